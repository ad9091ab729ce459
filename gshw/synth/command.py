"""``gshw synth``: from a config and its Verilog to figures, a report and files."""

import argparse
import json
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from gshw import __version__
from gshw.config import Config, load_config
from gshw.errors import GshwError
from gshw.files import check_output_file, check_output_folder, write_atomically, write_folder
from gshw.report import print_wide
from gshw.synth.design import Design, unit_design
from gshw.synth.devices import Device, find_device
from gshw.synth.flow import Effort, Result, run_flow
from gshw.synth.record import component_table, result_json, summary_lines
from gshw.synth.tools import Source
from gshw.synth.vivado import vivado_script
from gshw.top import Top


def config_design(config: Config, top: Top, verilog: str) -> Design:
    """One of a config's top modules, to be placed and routed."""
    name = config.name if top is Top.CORE else f"{config.name} {top.value}"
    return Design(
        name=name,
        verilog=verilog,
        top=top.module_name,
        n_macs=config.engine.macs_per_cycle,
    )


def _device(arguments: argparse.Namespace, config: Config) -> Device:
    if arguments.device is not None:
        return find_device(arguments.device)
    try:
        return find_device(config.target.device)
    except GshwError as error:
        raise GshwError(f"{arguments.config}: [target] {error}") from None


def _write_files(folder: Path, result: Result, record: str, clock_mhz: float) -> None:
    synthesis = result.synthesis
    source = f"{synthesis.design.module}.v"
    contents = {source: synthesis.design.verilog, "netlist.json": synthesis.netlist}
    if not synthesis.device.routable:
        script = vivado_script(synthesis.design, synthesis.device, clock_mhz, source)
        contents["vivado.tcl"] = script
    for run in result.runs:
        contents[f"nextpnr_seed{run.seed}.json"] = json.dumps(run.report, indent=1) + "\n"
    # Written last: a folder that holds it is whole.
    write_folder(folder, contents | {"synth.json": record}, last="synth.json")


def synth_command(
    arguments: argparse.Namespace, console: Console, top_verilog: Callable[[Config, Top], str]
) -> int:
    """Run the command; ``top_verilog`` makes the text of a top module."""
    config = load_config(arguments.config)
    device = _device(arguments, config)
    check_output_folder(arguments.output, force=arguments.force)
    check_output_file(arguments.json)
    effort = Effort(time_limit_seconds=arguments.time_limit, n_jobs=arguments.jobs)
    clock_mhz = arguments.clock or config.target.clock_mhz
    top = Top(arguments.top)
    progress = console.status("generating") if console.is_terminal else nullcontext()
    with progress as status:
        design = config_design(config, top, top_verilog(config, top))
        if arguments.unit is not None:
            design = unit_design(design, arguments.unit)

        def notify(text: str, done: int, total: int) -> None:
            if status is not None:
                status.update(f"{text} ({done} of {total} steps done)")

        result = run_flow(
            design,
            device,
            clock_mhz=clock_mhz,
            seeds=range(1, arguments.seeds + 1),
            source=Source(arguments.tools),
            effort=effort,
            notify=notify,
        )
    record = {
        "command": shlex.join(["gshw", *arguments.raw]),
        "gshw": __version__,
        "config": config.name,
        "config_hash": config.engine.hash,
        "seeds": list(range(1, arguments.seeds + 1)),
        **result_json(result),
    }
    text = json.dumps(record, indent=1) + "\n"
    if arguments.output is not None:
        _write_files(arguments.output, result, text, clock_mhz)
    if arguments.json is not None:
        write_atomically(arguments.json, text)
    print_wide(console, component_table(result))
    for line in summary_lines(result):
        console.print(line, highlight=False, soft_wrap=True)
    return 0
