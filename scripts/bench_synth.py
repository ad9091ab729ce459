"""Area and clock of engines and units after place and route, beside goals and the stored table."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from rich.console import Console
from rich.table import Table

from gshw import __version__
from gshw.cli import USER_ERROR
from gshw.config import load_config
from gshw.errors import GshwError
from gshw.files import check_output_file, write_atomically
from gshw.report import print_wide, progress_bar
from gshw.synth.command import config_design
from gshw.synth.design import Design, unit_design, units
from gshw.synth.devices import DEFAULT_DEVICE, Device, find_device
from gshw.synth.flow import Effort, Result, run_flow, synthesise
from gshw.synth.record import result_json
from gshw.synth.report import folded
from gshw.top import Top
from rtl_gen import verilog
from rtl_gen.emit import cached_top_verilog
from rtl_gen.routing import BenesNetwork, Crossbar

STORED = Path(__file__).resolve().parents[1] / "docs" / "synth.json"
PRESETS = ("tiny", "h16", "hybrid16", "v16x4")
CLOCK_GOALS = {"h16": 120.0, "v16x4": 100.0}
"""Preset -> least Fmax of ``gshw_axi`` over the seeds, in MHz."""
AREA_GOALS = {"h16": 110.0, "v16x4": 150.0}
"""Preset -> most TRELLIS_COMB per MAC of the engine."""
SMALL_DEVICE = "ice40-up5k"
SMALL_CLOCK_MHZ = 12.0
FABRIC_SHARE = 0.75
ROUTING_LANES = (8, 16, 32, 64)
ROUTING_WIDTH = 8
GOAL_MHZ = 100.0
"""What place and route is asked for where there is no goal; it hardly changes what comes out."""
NOTHING = 0.2
"""Relative change of an area that abc9's choices alone can make."""


class FabricLimit(wiring.Component):
    """Block RAM, register, 9 x 9 multiplier, register: the shortest path that an engine must have.

    Latency 4 from ``address``: address register, memory, its register, product.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "address": In(10),
                "write_enable": In(1),
                "write_address": In(10),
                "write_data": In(18),
                "product": Out(signed(18)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=18, depth=1024, init=[])
        write, read = memory.write_port(), memory.read_port(transparent_for=())
        held = {
            name: Signal(len(value), name=f"{name}_held", reset_less=True)
            for name, value in (
                ("address", self.address),
                ("write_enable", self.write_enable),
                ("write_address", self.write_address),
                ("write_data", self.write_data),
            )
        }
        operands = Signal(18, reset_less=True)
        product = Signal(signed(18), reset_less=True)
        m.d.sync += [signal.eq(getattr(self, name)) for name, signal in held.items()]
        m.d.comb += [
            read.en.eq(1),
            read.addr.eq(held["address"]),
            write.en.eq(held["write_enable"]),
            write.addr.eq(held["write_address"]),
            write.data.eq(held["write_data"]),
            self.product.eq(product),
        ]
        m.d.sync += [
            operands.eq(read.data),
            product.eq(operands[:9].as_signed() * operands[9:].as_signed()),
        ]
        return m


class Bench:
    """What the parts share: device, seeds, where progress goes, and the table to compare with."""

    def __init__(self, arguments: argparse.Namespace, notify: Callable[[str], None]) -> None:
        self.device: Device = find_device(arguments.device)
        self.seeds = range(1, arguments.seeds + 1)
        self.presets: list[str] = arguments.preset or ["tiny"] * arguments.quick or list(PRESETS)
        self.lanes = ROUTING_LANES[:2] if arguments.quick else ROUTING_LANES
        self.effort = Effort(
            max_runs=1, n_jobs=arguments.jobs, time_limit_seconds=arguments.time_limit
        )
        self.notify = notify
        self.stored: dict = json.loads(STORED.read_text()) if STORED.is_file() else {}
        self.fabric: Result | None = None

    def before(self, part: str, *keys: str) -> float | None:
        """A figure of the stored table, None where there is none for this device."""
        found = self.stored.get(part, {})
        if found.get("device") != self.device.name:
            return None
        for key in ("results", *keys):
            found = found.get(key, {})
        return found or None

    def run(
        self,
        design: Design,
        *,
        device: Device | None = None,
        goal_mhz: float = GOAL_MHZ,
        n_seeds: int | None = None,
    ) -> Result:
        """Place and route, all seeds or the first ones."""
        return run_flow(
            design,
            device or self.device,
            clock_mhz=goal_mhz,
            seeds=self.seeds[:n_seeds],
            effort=self.effort,
            notify=lambda text, done, total: self.notify(f"{text} {done}/{total}"),
        )


_DETAIL = ("components", "cells", "goal_search", "runs", "critical_path", "yosys_script", "harness")


def without_detail(data: object) -> object:
    """A record as it is stored: what later runs are compared with, and how it was measured."""
    if not isinstance(data, dict):
        return data
    return {key: without_detail(value) for key, value in data.items() if key not in _DETAIL}


def relative_change(new: float, old: float | None) -> str:
    """``+3.1 %``, or a dash where there is nothing to compare with."""
    if not old:
        return "-"
    return f"{100 * (new / old - 1):+.1f} %"


def _fmax(result: Result) -> list[str]:
    return [f"{value:.1f}" for value in result.fmax_mhz]


def bench_fabric(bench: Bench) -> tuple[Table, dict]:
    """The clock that the fabric allows a memory and a multiplier."""
    text = verilog.convert(FabricLimit(), "fabric_limit")
    bench.fabric = bench.run(Design(name="fabric limit", verilog=text, top="fabric_limit"))
    table = Table(title=f"Bare fabric on {bench.device.title}")
    for column in ("path", "Fmax min", "median", "max"):
        table.add_column(column, justify="left" if column == "path" else "right")
    table.add_row("block RAM, register, 9 x 9 multiplier, register", *_fmax(bench.fabric))
    return table, result_json(bench.fabric)


def bench_engines(bench: Bench) -> tuple[Table, dict]:
    """Engines without DMA: what they take, against the goals and the stored table; first seed."""
    table = Table(title=f"Engines, without DMA, on {bench.device.title}")
    columns = ("engine", "comb", "ff", "bram", "dsp", "comb/MAC", "goal", "change", "ff/MAC")
    for column in (*columns, "Fmax"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    data = {}
    for name in bench.presets:
        config = load_config(name)
        design = config_design(config, Top.CORE, cached_top_verilog(config, Top.CORE))
        result = bench.run(design, n_seeds=1)
        data[name] = {"config_hash": config.engine.hash, **result_json(result)}
        own = result.own
        goal = AREA_GOALS.get(name)
        table.add_row(
            name,
            *(str(value) for value in (own.lut, own.ff, own.bram, own.dsp)),
            f"{own.lut / design.n_macs:.1f}",
            f"{goal:g}" if goal else "-",
            relative_change(own.lut, bench.before("engines", name, "area", "lut")),
            f"{own.ff / design.n_macs:.1f}",
            f"{result.fmax_mhz[0]:.1f}",
        )
    return table, data


def bench_cores(bench: Bench) -> tuple[Table, dict]:
    """Whole cores, ``gshw_axi``: clock goals, and the share of the fabric's own clock."""
    if bench.fabric is None:
        bench_fabric(bench)
    assert bench.fabric is not None
    limit = bench.fabric.fmax_mhz[0]
    table = Table(title=f"gshw_axi on {bench.device.title}, {len(bench.seeds)} seed(s)")
    columns = ("core", "Fmax min", "median", "max", "goal", "change", "of fabric", "goal")
    for column in (*columns, "comb", "ff", "bram", "dsp"):
        table.add_column(column, justify="left" if column == "core" else "right")
    data = {}
    for name in bench.presets:
        config = load_config(name)
        design = config_design(config, Top.AXI, cached_top_verilog(config, Top.AXI))
        goal = CLOCK_GOALS.get(name)
        result = bench.run(design, goal_mhz=goal or GOAL_MHZ)
        data[name] = {"config_hash": config.engine.hash, **result_json(result)}
        own, low = result.own, result.fmax_mhz[0]
        share = low / limit
        table.add_row(
            name,
            *_fmax(result),
            f"{goal:g}" if goal else "-",
            relative_change(low, bench.before("cores", name, "fmax_mhz", "min")),
            f"{share:.2f}",
            f"{FABRIC_SHARE}" if goal else "-",
            *(str(value) for value in (own.lut, own.ff, own.bram, own.dsp)),
        )
        data[name]["share_of_fabric"] = share
        if result.path is not None:
            data[name]["slowest"] = str(result.path)
    return table, data


def bench_small(bench: Bench) -> tuple[Table, dict]:
    """The smallest core behind a serial line on an iCE40 UP5K."""
    device = find_device(SMALL_DEVICE)
    config = load_config("tiny")
    design = config_design(config, Top.UART, cached_top_verilog(config, Top.UART))
    result = bench.run(design, device=device, goal_mhz=SMALL_CLOCK_MHZ)
    table = Table(title=f"gshw_uart of tiny on {device.title}, {len(bench.seeds)} seed(s)")
    columns = ("", "Fmax min", "median", "max", "logic cells", "block RAMs", "multipliers")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    own = result.placed
    table.add_row("measured", *_fmax(result), *(str(n) for n in (own.lut, own.bram, own.dsp)))
    have = device.capacity
    goal = f"{SMALL_CLOCK_MHZ:g}"
    table.add_row("goal", goal, "", "", *(str(n) for n in (have.lut, have.bram, have.dsp)))
    return table, {"config_hash": config.engine.hash, **result_json(result)}


def unit_names(design: Design) -> dict[str, str]:
    """One name per module of an engine, the shortest that stands for it, and the module."""
    names: dict[str, str] = {}
    for path, module in units(design.verilog, design.top).items():
        if module not in names.values() and path != "engine":
            names[folded(path.removeprefix("engine."))] = module
    return names


def bench_units(bench: Bench) -> tuple[Table, dict]:
    """Every component of every engine on its own, between registers."""
    table = Table(title=f"Units on {bench.device.title}, {len(bench.seeds)} seed(s)")
    columns = ("engine", "unit", "Fmax min", "median", "max", "change", "comb", "change")
    for column in (*columns, "ff", "bram", "dsp"):
        table.add_column(column, justify="left" if column in ("engine", "unit") else "right")
    data: dict[str, dict] = {}
    for name in bench.presets:
        config = load_config(name)
        whole = config_design(config, Top.CORE, cached_top_verilog(config, Top.CORE))
        data[name] = {}
        for unit, module in unit_names(whole).items():
            result = bench.run(unit_design(whole, module))
            data[name][unit] = result_json(result)
            old = ("units", name, unit)
            own = result.own
            table.add_row(
                name,
                unit,
                *_fmax(result),
                relative_change(result.fmax_mhz[0], bench.before(*old, "fmax_mhz", "min")),
                str(own.lut),
                relative_change(own.lut, bench.before(*old, "area", "lut")),
                *(str(value) for value in (own.ff, own.bram, own.dsp)),
            )
    return table, data


def bench_routing(bench: Bench) -> tuple[Table, dict]:
    """LUTs of both routing networks over the number of lanes: where benes begins to win."""
    table = Table(title=f"Routing networks, {ROUTING_WIDTH} bits, LUT4 after synthesis")
    for column in ("lanes", "crossbar", "benes", "benes / crossbar"):
        table.add_column(column, justify="right")
    data = {}
    for n_lanes in bench.lanes:
        luts = {}
        for kind in (Crossbar, BenesNetwork):
            name = kind.__name__.lower()
            bench.notify(f"{name} of {n_lanes} lanes")
            text = verilog.convert(kind(n_lanes, ROUTING_WIDTH), name)
            design = Design(name=f"{name} {n_lanes}", verilog=text, top=name, is_unit=True)
            luts[name] = synthesise(design, bench.device).area.lut
        ratio = luts["benesnetwork"] / luts["crossbar"]
        table.add_row(
            str(n_lanes), str(luts["crossbar"]), str(luts["benesnetwork"]), f"{ratio:.2f}"
        )
        data[str(n_lanes)] = {"crossbar": luts["crossbar"], "benes": luts["benesnetwork"]}
    return table, data


PARTS = {
    "fabric": bench_fabric,
    "routing": bench_routing,
    "units": bench_units,
    "engines": bench_engines,
    "cores": bench_cores,
    "small": bench_small,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench_synth", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (repeatable)")
    parser.add_argument("--preset", action="append", help=f"({', '.join(PRESETS)}; repeatable)")
    parser.add_argument("--device", default=DEFAULT_DEVICE, help=f"({DEFAULT_DEVICE})")
    parser.add_argument("--seeds", type=int, default=5, help="of place and route (5)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (2)")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds of one run (3600)")
    parser.add_argument("--quick", action="store_true", help="the smallest of everything")
    parser.add_argument("--json", type=Path, help="results file")
    parser.add_argument(
        "--update", action="store_true", help=f"store the measured parts in docs/{STORED.name}"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and print; a user's mistake is one line on stderr and status 2."""
    raw = sys.argv[1:] if argv is None else argv
    parser = _parser()
    arguments = parser.parse_args(raw)
    if arguments.quick and arguments.update:
        parser.error("--update stores full measurements: not with --quick")
    if arguments.quick:
        arguments.seeds = 1
        arguments.only = arguments.only or ["fabric", "routing"]
    console, progress = Console(), progress_bar(Console(stderr=True))
    try:
        check_output_file(arguments.json)
        with progress:
            task = progress.add_task("", total=None)
            bench = Bench(arguments, lambda text: progress.update(task, description=text))
            record = {}
            for name in arguments.only or PARTS:
                table, results = PARTS[name](bench)
                record[name] = {
                    "command": shlex.join(["scripts/bench_synth", *raw]),
                    "gshw": __version__,
                    "device": SMALL_DEVICE if name == "small" else bench.device.name,
                    "seeds": list(bench.seeds),
                    "results": results,
                }
                print_wide(console, table)
        for name, core in record.get("cores", {"results": {}})["results"].items():
            console.print(f"{name}, slowest path: {core.get('slowest', '-')}", soft_wrap=True)
        limit = f"{100 * NOTHING:.0f} %"
        console.print(f"a change of area below {limit} is nothing: abc9's choices vary")
        if arguments.json:
            write_atomically(arguments.json, json.dumps(record, indent=1) + "\n")
        if arguments.update:
            stored = without_detail(bench.stored | record)
            write_atomically(STORED, json.dumps(stored, indent=1) + "\n")
    except GshwError as error:
        print(f"bench_synth: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
