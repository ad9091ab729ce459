"""The ``gshw`` command. Torch and Amaranth are imported only by the commands that need them."""

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from rich.console import Console

from gshw import __version__
from gshw.artefact import load_model
from gshw.config import Config, load_config
from gshw.errors import GshwError
from gshw.golden import check_activations
from gshw.image import LayerImage, save_image
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
    if arguments.layer is None:
        return layers
    if arguments.layer not in layers:
        raise GshwError(
            f"{arguments.model}: no layer {arguments.layer!r}; its layers are {', '.join(layers)}"
        )
    return {arguments.layer: layers[arguments.layer]}


def _explain(arguments: argparse.Namespace, console: Console) -> int:
    config = load_config(arguments.config)
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
    layers = _selected(arguments, config)
    inputs = _load_inputs(arguments)
    waves = arguments.waves
    kind = wave_format(waves) if waves else None
    if waves and not waves.parent.is_dir():
        raise GshwError(f"{waves}: cannot be written: no such folder")
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
    config = load_config(arguments.config)
    (layer,) = _selected(arguments, config).values()
    image = LayerImage(config.engine, layer)
    plan = Plan(config.engine, image, arguments.samples, *input_size(layer))
    save_image(arguments.output, image, plan.pitch)
    print(arguments.output)
    return 0


def _program(arguments: argparse.Namespace, console: Console) -> int:
    from gshw.program_commands import program_command

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
    layers = _selected(arguments, config)
    given = None if arguments.input is None else _load_array(arguments.input)
    same = run_command(arguments, console, config, layers, given, cached_top_verilog)
    return 0 if same else MISMATCH


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

    return compare_command(arguments, console)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to below 1, not {text}")
    return value


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def _address(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, not {text!r}") from None
    return value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gshw",
        description="Gather/scatter engines for sparse neural networks: RTL, pruning, simulation.",
    )
    parser.add_argument("--version", action="version", version=f"gshw {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        return command

    def add_model(command: argparse.ArgumentParser, *, layer_required: bool = False) -> None:
        command.add_argument("model", type=Path, metavar="MODEL", help="encoded .safetensors")
        command.add_argument("--config", required=True, help="TOML file or preset")
        command.add_argument("--layer", required=layer_required, help="only this layer")
        command.add_argument("--samples", type=_positive, default=4, help="input samples (4)")

    info = add("info", _info, "the pattern, sizes and words of a config")
    info.add_argument("config", metavar="CONFIG", help="TOML file or preset")
    info.add_argument("--json", action="store_true", help="machine-readable")

    generate = add("generate", _generate, "write the Verilog, drivers, and wrappers for tools")
    generate.add_argument("config", metavar="CONFIG", help="TOML file or preset")
    generate.add_argument("--top", choices=("core", "axi", "stream"), default="core")
    generate.add_argument("-o", "--output", type=Path, required=True, help="output folder")
    generate.add_argument("--force", action="store_true", help="overwrite files in the folder")

    prune = add("prune", _prune, "prune, quantise and encode a torch model for a config")
    prune.add_argument("factory", metavar="PACKAGE.MODULE:FACTORY", help="returns the model")
    prune.add_argument("--recipe", type=Path, help="TOML file; the options below may change it")
    prune.add_argument("--config", help="TOML file or preset (default: the recipe's engine)")
    prune.add_argument("--sparsity", type=_fraction, help="of every pruned layer")
    prune.add_argument(
        "--weights",
        type=Path,
        help="state dict (.pt or .safetensors), or a checkpoint; layers with a mask in it keep it",
    )
    prune.add_argument("--input-shape", help="one sample, channels first: 3,32,32")
    prune.add_argument("--calibration", type=Path, help=".npy of float samples, channels first")
    prune.add_argument("--tokens", type=_positive, help="the model reads token numbers below this")
    prune.add_argument("--rows", choices=("scatter", "consecutive"), help="of a bundle (scatter)")
    prune.add_argument("--keep-dense", action="append", default=[], metavar="LAYER")
    prune.add_argument("--seed", type=int, help="default: the recipe's, else 0")
    prune.add_argument("-o", "--output", type=Path, required=True, help="encoded .safetensors")
    prune.add_argument("--save-weights", type=Path, help="pruned float state dict (.safetensors)")
    prune.add_argument("--json", type=Path, help="report file")
    prune.add_argument("--plot", type=Path, help="picture of the report (.png, .svg or .pdf)")
    training = prune.add_argument_group("training, also under torchrun")
    training.add_argument(
        "--dataset",
        metavar="PACKAGE.MODULE:DATASET",
        help="returns (training, validation), and maybe a loss and a metric of (output, target)",
    )
    training.add_argument("--epochs", type=_count, help="10; 0 prunes without training")
    training.add_argument("--batch-size", type=_positive, help="over all processes (64)")
    training.add_argument("--learning-rate", type=float, help="of Adam, falling to 0 (0.001)")
    training.add_argument("--checkpoint", type=Path, help="written after every epoch")
    training.add_argument(
        "--resume", action="store_true", help="go on with the checkpoint, if it is there"
    )
    training.add_argument(
        "--data-free",
        type=_positive,
        metavar="STEPS",
        help="instead of a dataset: learn from the dense model, on inputs made up from it",
    )

    check = add("check", _check, "does a mask match a config, and if not, where not")
    check.add_argument("mask", type=Path, metavar="MASK", help=".npy, bool, rows x columns")
    check.add_argument("--config", required=True, help="TOML file or preset")
    check.add_argument(
        "--channels", type=_positive, help="input channels of a convolution (default: all columns)"
    )
    check.add_argument("--rows", type=Path, help=".npy, rows in bundle order")

    explain = add("explain", _explain, "where the cycles of every layer go, by the cycle law")
    add_model(explain)
    explain.add_argument("--json", type=Path, help="report file")
    explain.add_argument("--program", action="store_true", help="also as programs of gshw_axi")
    explain.add_argument(
        "--latency", type=_positive, default=30, help="cycles of the memory, both ways (30)"
    )
    explain.add_argument(
        "--interval", type=_positive, default=1, help="cycles of the memory per beat (1)"
    )

    simulate = add("simulate", _simulate, "run layers in RTL, compare with the golden model")
    add_model(simulate)
    simulate.add_argument("--input", type=Path, help=".npy of integer codes, channels last")
    simulate.add_argument("--waves", type=Path, metavar="FILE", help="write waves, .vcd or .fst")
    simulate.add_argument("--seed", type=int, default=0, help="of random input")
    simulate.add_argument("--json", type=Path, help="report file")

    image = add("image", _image, "pack one layer bit for bit as the buffers hold it")
    add_model(image, layer_required=True)
    image.add_argument("-o", "--output", type=Path, required=True, help="image file")

    program = add("program", _program, "make the program of one layer, with its memory")
    add_model(program, layer_required=True)
    program.add_argument("-o", "--output", type=Path, required=True, help="program, then weights")
    program.add_argument("--address", type=_address, default=0, help="where the file will lie (0)")

    assemble = add("assemble", _assemble, "a program's text to its binary form")
    assemble.add_argument("source", type=Path, metavar="TEXT", help="one instruction per line")
    assemble.add_argument("--config", help="TOML file or preset, to check or give the config hash")
    assemble.add_argument("-o", "--output", type=Path, required=True, help="binary program")

    disassemble = add("disassemble", _disassemble, "check a binary program and print it as text")
    disassemble.add_argument("program", type=Path, metavar="PROGRAM", help="binary; may go on")
    disassemble.add_argument("--config", help="TOML file or preset that the program must be for")

    board = add("board", _board, "make a bitstream: the core behind a board's serial port")
    board.add_argument("board", choices=("ulx3s",), help="ulx3s: with the ECP5-85F")
    board.add_argument("config", metavar="CONFIG", help="TOML file or preset")
    board.add_argument("-o", "--output", type=Path, required=True, help="empty folder")
    board.add_argument("--clock", type=_positive, default=50, metavar="MHZ", help="its own (50)")
    board.add_argument("--baud", type=_positive, default=115200, help="of the line (115200)")
    board.add_argument("--force", action="store_true", help="overwrite files in the folder")

    run = add("run", _run, "run layers on a core: a board, a simulation, or the software model")
    add_model(run)
    run.add_argument(
        "--device",
        default="golden",
        metavar="SPEC",
        help="golden, sim, sim-stream, sim-uart, uart:PORT[:BAUD], mem:REGISTERS,MEMORY,BYTES, "
        "uio:PORT,FILE,MEMORY,BYTES (golden)",
    )
    run.add_argument("--input", type=Path, help=".npy of codes for the first layer, channels last")
    run.add_argument("--seed", type=int, default=0, help="of random input")
    run.add_argument("--check", action="store_true", help="compare with the golden model")
    run.add_argument("-o", "--output", type=Path, help=".npy of the last layer's codes")
    run.add_argument("--json", type=Path, help="report file")

    test = add("test", _test, "run the cocotb regression for a config")
    test.add_argument("--config", required=True, help="TOML file or preset")
    test.epilog = "arguments after -- go to pytest"

    synth = add("synth", _synth, "place and route with open tools: area, clock, critical path")
    synth.add_argument("config", metavar="CONFIG", help="TOML file or preset")
    synth.add_argument("--device", help="such as ecp5-85k, ice40-up5k, xc7 (the config's)")
    synth.add_argument("--top", choices=("core", "axi", "stream", "uart"), default="core")
    synth.add_argument("--unit", metavar="NAME", help="only this component, between registers")
    synth.add_argument("--seeds", type=_positive, default=5, help="of place and route (5)")
    synth.add_argument("--clock", type=_positive, metavar="MHZ", help="first goal (the config's)")
    synth.add_argument("--tools", choices=("yowasp", "system"), default="yowasp")
    synth.add_argument("--jobs", type=_positive, default=2, help="runs at a time (2)")
    synth.add_argument(
        "--time-limit", type=_positive, default=1800, help="seconds of one run (1800)"
    )
    synth.add_argument("--json", type=Path, help="report file")
    synth.add_argument("-o", "--output", type=Path, help="folder for Verilog, netlist and reports")
    synth.add_argument("--force", action="store_true", help="overwrite files in the folder")

    compare = add("compare", _compare, "every pattern in accuracy and cycles, on three tasks")
    compare.add_argument("--config", default="v16x4", help="TOML file or preset (v16x4)")
    compare.add_argument("--tasks", default="digits,lstm,conv1d", help="with commas between (all)")
    compare.add_argument("--patterns", default="all", help="names or globs, commas between (all)")
    compare.add_argument("--sparsities", help="with commas between (0.5,0.8,0.9,0.95)")
    compare.add_argument("--seeds", help="with commas between (0,1,2)")
    compare.add_argument("--jobs", type=_positive, help="cases at a time (the cores)")
    compare.add_argument("--scheduler", metavar="ADDRESS", help="dask.distributed, tcp://host:port")
    compare.add_argument("--quick", action="store_true", help="next to no training, for tests")
    compare.add_argument("-o", "--output", type=Path, required=True, help="output folder")

    demo = add("demo", _demo, "train, prune, encode and run a network in RTL, with a report")
    demo.add_argument("--config", default="v16x4", help="TOML file or preset (v16x4)")
    demo.add_argument("-o", "--output", type=Path, default=Path("demo_report"))
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--quick", action="store_true", help="fewer epochs and images, for tests")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and status 2."""
    raw = sys.argv[1:] if argv is None else argv
    own, rest = raw, []
    if raw[:1] == ["test"] and "--" in raw:
        own, rest = raw[: raw.index("--")], raw[raw.index("--") + 1 :]
    arguments = _parser().parse_args(own)
    arguments.raw, arguments.pytest = raw, rest
    try:
        return arguments.function(arguments, Console())
    except GshwError as error:
        print(f"gshw: {error}", file=sys.stderr)
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
