"""The ``gshw`` command. Torch and Amaranth are imported only by the commands that need them."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from rich.console import Console

from gshw.artefact import archive_format, load_model
from gshw.cli_parser import build_parser
from gshw.config import Config, load_config
from gshw.errors import GshwError
from gshw.files import check_output_file, check_output_files
from gshw.golden import check_activations
from gshw.image import LayerImage, save_image
from gshw.network.artefact import FORMAT as NETWORK_FORMAT
from gshw.plan import Plan
from gshw.report import (
    config_info,
    cycles_table,
    info_text,
    layer_table,
    print_wide,
    progress_bar,
    write_record,
)
from gshw.simulate import (
    LayerReport,
    explain_layer,
    input_size,
    random_activations,
    simulate_layer,
)

USER_ERROR = 2
MISMATCH = 1
DEFAULT_SAMPLES = 4
"""Input samples of layers, where nothing is said."""


def _info(arguments: argparse.Namespace, console: Console) -> int:
    config = load_config(arguments.config)
    if arguments.json:
        print(json.dumps(config_info(config), indent=1))
    else:
        print(info_text(config))
    return 0


def _generate(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.package.contents import left_out
    from gshw.top import Top
    from rtl_gen.emit import generate

    config, top = load_config(arguments.config), Top(arguments.top)
    for path in generate(config, arguments.output, top=top, force=arguments.force):
        # Of the many web pages only the first.
        if "html" not in path.parts or path.name == "index.html":
            print(path)
    for line in left_out() if top is not Top.CORE else []:
        print(f"gshw: {line}", file=sys.stderr)
    return 0


def _selected(arguments: argparse.Namespace, config: Config) -> dict:
    layers = load_model(arguments.model, config.engine).layers
    if arguments.samples is None:
        arguments.samples = DEFAULT_SAMPLES
    if arguments.layer is None:
        return layers
    if arguments.layer not in layers:
        raise GshwError(
            f"{arguments.model}: no layer {arguments.layer!r}; its layers are {', '.join(layers)}"
        )
    return {arguments.layer: layers[arguments.layer]}


def _is_network(arguments: argparse.Namespace) -> bool:
    """Whether the model is a compiled network, whose samples were decided by ``gshw compile``."""
    if archive_format(arguments.model) != NETWORK_FORMAT:
        return False
    if arguments.samples is not None:
        raise GshwError(f"{arguments.model}: samples are those it was compiled for, no --samples")
    return True


def _explain(arguments: argparse.Namespace, console: Console) -> int:
    check_output_file(arguments.json)
    config = load_config(arguments.config)
    if _is_network(arguments):
        return _explain_network(arguments, console, config)
    if arguments.plot is not None:
        raise GshwError("--plot is for compiled networks")
    layers = _selected(arguments, config)
    reports = [
        explain_layer(config.engine, layer, arguments.samples, *input_size(layer))
        for layer in layers.values()
    ]
    title = f"{arguments.model} on {config.name}, {arguments.samples} sample(s)"
    print_wide(console, cycles_table(reports, f"{title}: where the cycles go"))
    print_wide(console, layer_table(reports, f"{title}: by the cycle law"))
    data: dict[str, object] = {"layers": [r.as_json() for r in reports]}
    if arguments.program:
        data["programs"] = _explain_programs(arguments, console, config, layers)
    write_record(arguments.json, config, arguments.raw, None, data)
    return 0


def _explain_network(arguments: argparse.Namespace, console: Console, config: Config) -> int:
    from gshw.network.commands import explain_network_command

    if arguments.layer is not None or arguments.program:
        raise GshwError("--layer and --program are for encoded layers, not compiled networks")
    if arguments.plot is not None:
        from pruning.runs.options import check_plot

        check_plot(arguments.plot)
        check_output_files(arguments.json, arguments.plot)
    profile = explain_network_command(arguments, console, config)
    if arguments.plot is not None:
        from pruning.networks.plots import plot_profile

        plot_profile(
            arguments.plot, profile.compiled, profile.cycles, profile.reports, profile.title
        )
    return 0


def _explain_programs(
    arguments: argparse.Namespace, console: Console, config: Config, layers: dict
) -> dict:
    from gshw.drivers.simulated import MemoryModel
    from gshw.program_report import explain_programs, program_json, program_table

    latency, interval = arguments.latency, arguments.interval
    model = MemoryModel(read_latency=latency, write_latency=latency, interval=interval)
    programs = explain_programs(config, layers, arguments.samples, model)
    title = (
        f"{arguments.model}: every layer as a program, {config.bus.data_width}-bit memory, "
        f"{latency} cycles latency, a beat in {interval}"
    )
    print_wide(console, program_table(programs, title))
    return {name: program_json(program) for name, program in programs.items()}


def _simulate(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.device import CompiledEngine
    from gshw.verilate import build_library, wave_format
    from rtl_gen.emit import cached_core_verilog

    config = load_config(arguments.config)
    engine = config.engine
    if _is_network(arguments):
        return _simulate_network(arguments, console, config)
    _refuse_parts(arguments)
    layers = _selected(arguments, config)
    inputs = _load_inputs(arguments)
    waves = arguments.waves
    kind = wave_format(waves) if waves else None
    check_output_file(waves)
    check_output_file(arguments.json)
    codes = {}
    for name, layer in layers.items():
        x = inputs
        if x is None:
            x = random_activations(engine, layer, arguments.samples, arguments.seed)
        # Refuse bad input and layers that do not fit before the build, which takes a while.
        codes[name] = check_activations(engine, layer, x)
        Plan(engine, LayerImage(engine, layer), *codes[name].shape[:3])
    with console.status("building the simulation") if console.is_terminal else nullcontext():
        library = build_library(cached_core_verilog(engine), waves=kind)
    reports: list[LayerReport] = []
    with CompiledEngine(engine, library, waves=waves) as device, progress_bar(console) as progress:
        for name, layer in layers.items():
            task = progress.add_task(name, total=None)
            _, report = simulate_layer(
                engine,
                layer,
                device,
                codes[name],
                lambda done, total, task=task: progress.update(task, completed=done, total=total),
            )
            reports.append(report)
    print_wide(console, layer_table(reports, f"{arguments.model} in RTL, engine {config.name}"))
    data = {"layers": [r.as_json() for r in reports]}
    write_record(arguments.json, config, arguments.raw, arguments.seed, data)
    wrong = [r for r in reports if not r.match]
    for report in wrong:
        print(f"layer {report.name!r} differs at {report.mismatch}", file=sys.stderr)
    return MISMATCH if wrong else 0


def _simulate_network(arguments: argparse.Namespace, console: Console, config: Config) -> int:
    from gshw.network.commands import run_network_command
    from rtl_gen.emit import cached_top_verilog

    if arguments.waves is not None:
        raise GshwError("--waves is for encoded layers, not compiled networks")
    given = None if arguments.input is None else _load_array(arguments.input)
    asked = argparse.Namespace(**vars(arguments), device="sim", check=True, output=None)
    same = run_network_command(asked, console, config, given, cached_top_verilog)
    return 0 if same else MISMATCH


def _refuse_parts(arguments: argparse.Namespace) -> None:
    if arguments.first is not None or arguments.last is not None:
        raise GshwError("--from and --to are for compiled networks")


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise GshwError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise GshwError(f"{path}: not a whole .npy file: {error}") from None


def _load_inputs(arguments: argparse.Namespace) -> np.ndarray | None:
    if arguments.input is None:
        return None
    if arguments.layer is None:
        raise GshwError("--input needs --layer: it holds the codes of one layer")
    return _load_array(arguments.input)


def _check(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.geometry import Geometry, LayerKind
    from gshw.pattern import require_match

    config = load_config(arguments.config)
    mask = _load_array(arguments.mask)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise GshwError(
            f"{arguments.mask}: must hold a two-dimensional bool array, not {mask.dtype} of shape "
            f"{mask.shape}"
        )
    order = None if arguments.rows is None else _load_array(arguments.rows)
    channels = arguments.channels or mask.shape[1]
    if not mask.shape[1] or mask.shape[1] % channels:
        raise GshwError(
            f"--channels must divide the mask's {mask.shape[1]} columns (taps x channels), "
            f"not {channels}"
        )
    # Which bank a column falls on depends on its channel only, not on the taps' places.
    geometry = Geometry(
        kind=LayerKind.CONV2D, in_channels=channels, kernel=(1, mask.shape[1] // channels)
    )
    require_match(config.engine, mask, geometry, order, name=str(arguments.mask))
    density = float(mask.mean())
    print(f"{arguments.mask}: matches {config.engine.pattern_name}, density {100 * density:.2f} %")
    return 0


def _image(arguments: argparse.Namespace, console: Console) -> int:
    check_output_file(arguments.output)
    config = load_config(arguments.config)
    (layer,) = _selected(arguments, config).values()
    image = LayerImage(config.engine, layer)
    plan = Plan(config.engine, image, arguments.samples, *input_size(layer))
    save_image(arguments.output, image, plan.pitch)
    print(arguments.output)
    return 0


def _program(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.program_commands import program_command

    check_output_file(arguments.output)
    config = load_config(arguments.config)
    (layer,) = _selected(arguments, config).values()
    return program_command(arguments, config, layer)


def _assemble(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.program_commands import assemble_command

    return assemble_command(arguments)


def _disassemble(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.program_commands import disassemble_command

    return disassemble_command(arguments)


def _synth(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.synth.command import synth_command
    from rtl_gen.emit import cached_top_verilog

    return synth_command(arguments, console, cached_top_verilog)


def _board(arguments: argparse.Namespace, console: Console) -> int:
    from rtl_gen.boards.ulx3s import build_bitstream

    config = load_config(arguments.config)
    with console.status("placing and routing") if console.is_terminal else nullcontext():
        bitstream, fmax_mhz = build_bitstream(
            config,
            arguments.output,
            clock_mhz=arguments.clock,
            baud=arguments.baud,
            force=arguments.force,
        )
    print(bitstream)
    print(f"{arguments.clock} MHz wanted, {fmax_mhz:.1f} MHz possible, {arguments.baud} baud")
    return 0


def _run(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.drivers.run_command import run_command
    from rtl_gen.emit import cached_top_verilog

    config = load_config(arguments.config)
    given = None if arguments.input is None else _load_array(arguments.input)
    if _is_network(arguments):
        from gshw.network.commands import run_network_command

        same = run_network_command(arguments, console, config, given, cached_top_verilog)
    else:
        _refuse_parts(arguments)
        layers = _selected(arguments, config)
        same = run_command(arguments, console, config, layers, given, cached_top_verilog)
    return 0 if same else MISMATCH


def _compile(arguments: argparse.Namespace, console: Console) -> int:
    from pruning.networks.command import compile_command
    from rtl_gen.emit import cached_top_verilog

    return 0 if compile_command(arguments, console, cached_top_verilog) else MISMATCH


def _test(arguments: argparse.Namespace, console: Console) -> int:
    import importlib.util
    import subprocess

    benches = Path(__file__).resolve().parents[1] / "sim_tests"
    if not benches.is_dir():
        raise GshwError("the regression lives in sim_tests/ of a checkout, and none is here")
    for package in ("pytest", "cocotb"):
        if importlib.util.find_spec(package) is None:
            raise GshwError(f"the regression needs {package}: pip install 'gshw[dev]'")
    load_config(arguments.config)
    source = Path(arguments.config)
    config = source.resolve() if source.suffix == ".toml" else arguments.config
    command = [sys.executable, "-m", "pytest", str(benches), "--gshw-config", str(config)]
    return subprocess.run([*command, *arguments.pytest], check=False, cwd=benches.parent).returncode


def _prune(arguments: argparse.Namespace, console: Console) -> int:
    from pruning.runs.command import prune_command

    return prune_command(arguments, console)


def build_rtl(config: Config, folder: Path) -> Path:
    """Write the Verilog into ``folder`` and return the simulation library built from it."""
    from gshw.verilate import build_library
    from rtl_gen.emit import cached_core_verilog, generate

    generate(config, folder, force=True)
    return build_library(cached_core_verilog(config.engine))


def _demo(arguments: argparse.Namespace, console: Console) -> int:
    from pruning.demo import demo_command

    return demo_command(arguments, console, build_rtl)


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    from pruning.comparison.compare import compare_command
    from rtl_gen.emit import cached_top_verilog

    return 0 if compare_command(arguments, console, cached_top_verilog) else MISMATCH


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "info": _info,
    "generate": _generate,
    "prune": _prune,
    "compile": _compile,
    "check": _check,
    "explain": _explain,
    "simulate": _simulate,
    "image": _image,
    "program": _program,
    "assemble": _assemble,
    "disassemble": _disassemble,
    "board": _board,
    "run": _run,
    "test": _test,
    "synth": _synth,
    "compare": _compare,
    "demo": _demo,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and status 2."""
    raw = sys.argv[1:] if argv is None else argv
    own, rest = raw, []
    if raw[:1] == ["test"] and "--" in raw:
        own, rest = raw[: raw.index("--")], raw[raw.index("--") + 1 :]
    try:
        arguments = build_parser().parse_args(own)
    except GshwError as error:
        print(f"gshw: {error}", file=sys.stderr)
        return USER_ERROR
    arguments.raw, arguments.pytest = raw, rest
    try:
        return _COMMANDS[arguments.name](arguments, Console())
    except GshwError as error:
        print(f"gshw: {error}", file=sys.stderr)
        return USER_ERROR
    except MemoryError as error:
        detail = f": {error}" if str(error) else ""
        print(f"gshw: {arguments.name} must fit into memory{detail}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        # The reader of a pipe has gone; keep the interpreter from flushing into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("gshw: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        extras = {"torch": "prune", "sklearn": "prune", "matplotlib": "prune"}
        if error.name not in extras:
            raise
        print(
            f"gshw: {arguments.name} needs {error.name}: pip install 'gshw[{extras[error.name]}]'",
            file=sys.stderr,
        )
        return USER_ERROR
