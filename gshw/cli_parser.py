"""Commands and arguments of ``gshw``; what they do is in :mod:`gshw.cli`."""

import argparse
from pathlib import Path
from typing import NoReturn

from gshw import __version__
from gshw.drivers.open import SPECS
from gshw.errors import GshwError
from gshw.top import Top
from gshw.uart_protocol import DEFAULT_BAUD

_MAX_DIGITS = 18
"""Of an integer: as many always fit 64 bits with a sign."""


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to below 1, not {text}")
    return value


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def _positive(text: str) -> int:
    if not _is_whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def _address(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, not {text!r}") from None
    return value


def _count(text: str) -> int:
    if not _is_whole(text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, not {text!r}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as everybody else's."""

    def error(self, message: str) -> NoReturn:
        raise GshwError(f"{message}; {self.prog} --help tells more")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments; ``name`` is the command's."""
    parser = Parser(
        prog="gshw",
        description="Gather/scatter engines for sparse neural networks: RTL, pruning, simulation.",
    )
    parser.add_argument("--version", action="version", version=f"gshw {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def add_model(command: argparse.ArgumentParser, *, layer_required: bool = False) -> None:
        command.add_argument(
            "model", type=Path, metavar="MODEL", help=".safetensors: encoded layers or a network"
        )
        command.add_argument("--config", required=True, help="TOML file or preset")
        command.add_argument("--layer", required=layer_required, help="only this layer")
        command.add_argument("--samples", type=_positive, help="input samples of layers (4)")

    def add_part(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--from", dest="first", metavar="NODE", help="of a network: begin here (golden before)"
        )
        command.add_argument("--to", dest="last", metavar="NODE", help="of a network: end here")

    info = add("info", "the pattern, sizes and words of a config")
    info.add_argument("config", metavar="CONFIG", help="TOML file or preset")
    info.add_argument("--json", action="store_true", help="machine-readable")

    generate = add("generate", "write the Verilog, drivers, and wrappers for tools")
    generate.add_argument("config", metavar="CONFIG", help="TOML file or preset")
    tops = tuple(top.value for top in Top)
    # A board's top is let through, to be told why it is refused.
    generate.add_argument("--top", choices=tops, default="core", metavar="{core,axi,stream}")
    generate.add_argument("-o", "--output", type=Path, required=True, help="output folder")
    generate.add_argument("--force", action="store_true", help="overwrite files in the folder")

    prune = add("prune", "prune, quantise and encode a torch model for a config")
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
    prune.add_argument("--seed", type=_count, help="default: the recipe's, else 0")
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

    compile_ = add("compile", "a trained torch network as programs of the core")
    compile_.add_argument("factory", metavar="PACKAGE.MODULE:FACTORY", help="returns the model")
    compile_.add_argument("--config", required=True, help="TOML file or preset")
    compile_.add_argument(
        "--weights", type=Path, help="state dict (.pt or .safetensors), masked or not"
    )
    compile_.add_argument(
        "--sparsity", type=float, help="prune by magnitude first, in one shot and without training"
    )
    compile_.add_argument("--recipe", type=Path, help="TOML file: how to prune, in one shot")
    compile_.add_argument("--rows", choices=("scatter", "consecutive"), help="of a bundle")
    compile_.add_argument("--keep-dense", action="append", default=[], metavar="LAYER")
    compile_.add_argument("--input-shape", help="one sample, channels first: 3,32,32")
    compile_.add_argument("--calibration", type=Path, help=".npy of float samples, channels first")
    compile_.add_argument(
        "--tokens", type=_positive, help="the model reads token numbers below this"
    )
    compile_.add_argument("--samples", type=_positive, default=1, help="in one run (1)")
    compile_.add_argument("--address", type=_address, default=0, help="of the memory (0)")
    compile_.add_argument(
        "--reuse-memory", action="store_true", help="of tensors that nothing reads any more"
    )
    compile_.add_argument("--seed", type=_count, help="default: the recipe's, else 0")
    compile_.add_argument(
        "--latency", type=_positive, default=30, help="cycles of the memory, both ways (30)"
    )
    compile_.add_argument(
        "--interval", type=_positive, default=1, help="cycles of the memory per beat (1)"
    )
    compile_.add_argument("-o", "--output", type=Path, required=True, help="compiled network")
    compile_.add_argument("--json", type=Path, help="report file")
    compile_.add_argument(
        "--plot", type=Path, help="time line and roofline of the nodes (.png, .svg or .pdf)"
    )
    compile_.add_argument(
        "--run", metavar="SPEC", help="then run it, on random input, and compare every tensor"
    )

    check = add("check", "does a mask match a config, and if not, where not")
    check.add_argument("mask", type=Path, metavar="MASK", help=".npy, bool, rows x columns")
    check.add_argument("--config", required=True, help="TOML file or preset")
    check.add_argument(
        "--channels", type=_positive, help="input channels of a convolution (default: all columns)"
    )
    check.add_argument("--rows", type=Path, help=".npy, rows in bundle order")

    explain = add("explain", "where the cycles of layers or a network go, by the cycle law")
    add_model(explain)
    explain.add_argument("--json", type=Path, help="report file")
    explain.add_argument(
        "--plot", type=Path, help="of a network: time line and roofline (.png, .svg or .pdf)"
    )
    explain.add_argument("--program", action="store_true", help="also as programs of gshw_axi")
    explain.add_argument(
        "--latency", type=_positive, default=30, help="cycles of the memory, both ways (30)"
    )
    explain.add_argument(
        "--interval", type=_positive, default=1, help="cycles of the memory per beat (1)"
    )

    simulate = add("simulate", "run layers or a network in RTL, compare with the golden model")
    add_model(simulate)
    add_part(simulate)
    simulate.add_argument("--input", type=Path, help=".npy of integer codes, channels last")
    simulate.add_argument("--waves", type=Path, metavar="FILE", help="write waves, .vcd or .fst")
    simulate.add_argument("--seed", type=_count, default=0, help="of random input")
    simulate.add_argument("--json", type=Path, help="report file")

    image = add("image", "pack one layer bit for bit as the buffers hold it")
    add_model(image, layer_required=True)
    image.add_argument("-o", "--output", type=Path, required=True, help="image file")

    program = add("program", "make the program of one layer, with its memory")
    add_model(program, layer_required=True)
    program.add_argument("-o", "--output", type=Path, required=True, help="program, then weights")
    program.add_argument("--address", type=_address, default=0, help="where the file will lie (0)")

    assemble = add("assemble", "a program's text to its binary form")
    assemble.add_argument("source", type=Path, metavar="TEXT", help="one instruction per line")
    assemble.add_argument("--config", help="TOML file or preset, to check or give the config hash")
    assemble.add_argument("-o", "--output", type=Path, required=True, help="binary program")

    disassemble = add("disassemble", "check a binary program and print it as text")
    disassemble.add_argument("program", type=Path, metavar="PROGRAM", help="binary; may go on")
    disassemble.add_argument("--config", help="TOML file or preset that the program must be for")

    board = add("board", "make a bitstream: the core behind a board's serial port")
    board.add_argument("board", choices=("ulx3s",), help="ulx3s: with the ECP5-85F")
    board.add_argument("config", metavar="CONFIG", help="TOML file or preset")
    board.add_argument("-o", "--output", type=Path, required=True, help="empty folder")
    board.add_argument("--clock", type=_positive, default=50, metavar="MHZ", help="its own (50)")
    board.add_argument(
        "--baud", type=_positive, default=DEFAULT_BAUD, help=f"of the line ({DEFAULT_BAUD})"
    )
    board.add_argument("--force", action="store_true", help="overwrite files in the folder")

    run = add("run", "run layers or a network on a core: board, simulation, software model")
    add_model(run)
    add_part(run)
    run.add_argument(
        "--device",
        default="golden",
        metavar="SPEC",
        help=f"{', '.join(SPECS)} (golden)",
    )
    run.add_argument("--input", type=Path, help=".npy of codes for the first layer, channels last")
    run.add_argument("--seed", type=_count, default=0, help="of random input")
    run.add_argument("--check", action="store_true", help="compare with the golden model")
    run.add_argument("-o", "--output", type=Path, help=".npy of the last layer's codes")
    run.add_argument("--json", type=Path, help="report file")

    test = add("test", "run the cocotb regression for a config")
    test.add_argument("--config", required=True, help="TOML file or preset")
    test.epilog = "arguments after -- go to pytest"

    synth = add("synth", "place and route with open tools: area, clock, critical path")
    synth.add_argument("config", metavar="CONFIG", help="TOML file or preset")
    synth.add_argument("--device", help="such as ecp5-85k, ice40-up5k, xc7 (the config's)")
    synth.add_argument("--top", choices=tops, default="core")
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

    compare = add("compare", "every pattern in accuracy and cycles, on three tasks")
    compare.add_argument("--config", default="v16x4", help="TOML file or preset (v16x4)")
    compare.add_argument("--tasks", default="digits,lstm,conv1d", help="with commas between (all)")
    compare.add_argument("--patterns", default="all", help="names or globs, commas between (all)")
    compare.add_argument("--sparsities", help="with commas between (0.5,0.8,0.9,0.95)")
    compare.add_argument("--seeds", help="with commas between (0,1,2)")
    compare.add_argument("--jobs", type=_positive, help="cases at a time (the cores)")
    compare.add_argument("--scheduler", metavar="ADDRESS", help="dask.distributed, tcp://host:port")
    compare.add_argument("--quick", action="store_true", help="next to no training, for tests")
    compare.add_argument(
        "--whole", action="store_true", help="whole networks, too: integers end to end, and in RTL"
    )
    compare.add_argument("-o", "--output", type=Path, required=True, help="output folder")

    demo = add("demo", "train, prune, encode and run a network in RTL, with a report")
    demo.add_argument("--config", default="v16x4", help="TOML file or preset (v16x4)")
    demo.add_argument("-o", "--output", type=Path, default=Path("demo_report"))
    demo.add_argument("--seed", type=_count, default=0)
    demo.add_argument("--quick", action="store_true", help="fewer epochs and images, for tests")
    return parser
