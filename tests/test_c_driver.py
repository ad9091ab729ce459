"""The C driver, compiled strictly and run against the verilated core."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gshw import register_docs
from gshw.config import load_config
from gshw.drivers.accelerator import HostMemory
from gshw.drivers.stream_form import StreamForm
from gshw.golden import run_layer
from gshw.lower import lower_layer
from gshw.package import examples
from gshw.package.interface import Package
from gshw.program_model import pack_codes
from gshw.register_map import register_map
from gshw.registers import PROGRAM_ERRORS
from gshw.top import Top
from gshw.verilate import build_library
from rtl_gen.emit import cached_top_verilog
from tests.strategies import conv, random_activations, random_layer

TESTS = Path(__file__).resolve().parent
DRIVER = TESTS.parent / "gshw" / "c"
CONFIG = load_config("tiny")
BASE = 0x4000_0000
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]
WIDTHS = ["-m64", "-m32"] if platform.machine() == "x86_64" else ["-g"]
OK, NOT_FOUND, OTHER_VERSION, OTHER_CONFIG, BUSY, TIMEOUT, PROGRAM = range(7)


def gcc(*arguments: str | Path) -> None:
    result = subprocess.run(["gcc", *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module", params=[Top.AXI, Top.STREAM], ids=lambda top: top.value)
def package(request, tmp_path_factory) -> tuple[Package, Path]:
    """A package without ports, and a folder with its registers."""
    folder = tmp_path_factory.mktemp("regs")
    header = register_docs.c_header(register_map(CONFIG, request.param))
    (folder / "gshw_registers.h").write_text(header)
    return Package(CONFIG, request.param, ()), folder


@pytest.mark.parametrize("language", ["c", "c++"])
@pytest.mark.parametrize("width", WIDTHS)
def test_driver_and_example_compile_without_a_library(package, tmp_path, language, width):
    """As C99 and as C++, for 64 and 32-bit machines, without any header of a system."""
    described, registers = package
    (tmp_path / "example.c").write_text(examples.c_example(described))
    strict = [flag for flag in STRICT if language == "c" or not flag.startswith("-std")]
    for source in (DRIVER / "gshw.c", tmp_path / "example.c"):
        gcc(
            *strict, width, "-x", language, "-ffreestanding", "-fno-pic", f"-I{registers}",
            f"-I{DRIVER}", "-c", source, "-o", tmp_path / f"{source.stem}.o",
        )  # fmt: skip
    objects = [tmp_path / "gshw.o", tmp_path / "example.o"]
    gcc(width, "-r", "-nostdlib", *objects, "-o", tmp_path / "all.o")
    result = subprocess.run(
        ["nm", "-u", tmp_path / "all.o"], capture_output=True, text=True, check=True
    )
    assert result.stdout == ""


@pytest.fixture(scope="module")
def layer():
    engine = CONFIG.engine
    channels = 2 * engine.channels_per_row
    layer = random_layer(7, engine, channels, conv(channels, (3, 3), padding=(1, 1)))
    x = random_activations(8, engine, (1, 5, 6, channels))
    return layer, x, lower_layer(CONFIG, layer, 1, 5, 6, base_address=BASE)


@pytest.fixture(scope="module")
def lines(layer, tmp_path_factory) -> list[list[str]]:
    """What the bench printed, by words."""
    _, x, program = layer
    folder = tmp_path_factory.mktemp("bench")
    header = register_docs.c_header(register_map(CONFIG, Top.AXI))
    (folder / "gshw_registers.h").write_text(header)
    (folder / "image").write_bytes(program.memory(x).tobytes())
    library = build_library(cached_top_verilog(CONFIG, Top.AXI), top=Top.AXI)
    gcc(
        *STRICT, "-include", TESTS / "c_driver_bench.h", f"-I{folder}", f"-I{DRIVER}",
        DRIVER / "gshw.c", TESTS / "c_driver_bench.c", "-ldl", "-o", folder / "bench",
    )  # fmt: skip
    output = program.output_layout
    numbers = (BASE, program.program_address, output.address, output.n_bytes)
    command = [folder / "bench", library, folder / "image", *(f"{n:x}" for n in numbers)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


def test_the_example_for_a_stream_runs(layer, tmp_path):
    """It starts the core, lets the DMA begin where it says so, and waits."""
    encoded, x, _ = layer
    header = register_docs.c_header(register_map(CONFIG, Top.STREAM))
    (tmp_path / "gshw_registers.h").write_text(header)
    (tmp_path / "example.c").write_text(examples.c_example(Package(CONFIG, Top.STREAM, ())))
    program = lower_layer(CONFIG, encoded, 1, 5, 6)
    memory = HostMemory(program.n_bytes)
    memory.write(0, program.memory(x))
    form = StreamForm(CONFIG, memory, program.program_address)
    (tmp_path / "to_core").write_bytes(form.to_core)
    common = [*STRICT, "-include", TESTS / "c_stream_bench.h", f"-I{tmp_path}", f"-I{DRIVER}"]
    gcc(*common, "-Dmain=example_main", "-c", tmp_path / "example.c", "-o", tmp_path / "example.o")
    gcc(
        *common, DRIVER / "gshw.c", TESTS / "c_stream_bench.c", tmp_path / "example.o", "-ldl",
        "-o", tmp_path / "bench",
    )  # fmt: skip
    library = build_library(cached_top_verilog(CONFIG, Top.STREAM), top=Top.STREAM)
    command = [tmp_path / "bench", library, tmp_path / "to_core"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    status, cycles, received = result.stdout.split()
    assert int(status) == OK and int(cycles) > encoded.n_groups
    form.store(bytes.fromhex(received), form.packet_ends)
    output = program.output_layout
    data = memory.read(output.address, output.n_bytes)
    assert (program.output_codes(data) == run_layer(CONFIG.engine, encoded, x)).all()


def only(lines, name: str) -> list[str]:
    (found,) = [line[1:] for line in lines if line[0] == name]
    return found


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("nothing_there", NOT_FOUND),
        ("other_version", OTHER_VERSION),
        ("other_config", OTHER_CONFIG),
        ("open", OK),
        ("run", OK),
        ("start", OK),
        ("start_busy", BUSY),
        ("too_early", BUSY),
        ("handle", OK),
        ("timeout", TIMEOUT),
        ("reset_timeout", TIMEOUT),
        ("halted", BUSY),
    ],
)
def test_status(lines, name, status):
    assert only(lines, name) == [str(status)]


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "interrupt",
        "timeout",
        "header",
        "corrupted",
        "write_bus",
        "read_bus",
        "window",
        "watchdog",
    ],
)
def test_outputs_are_the_golden_model_s_also_after_every_error(lines, layer, name):
    encoded, x, _ = layer
    golden = pack_codes(CONFIG.engine, run_layer(CONFIG.engine, encoded, x))
    (got,) = only(lines, f"{name}_output")
    assert bytes.fromhex(got) == golden.tobytes()


def test_resets_and_runs_after_errors_succeed(lines):
    assert [line for line in lines if line[0] in ("reset", "again")] == [
        [name, "0"] for _ in range(7) for name in ("reset", "again")
    ]


def test_the_interrupt_follows_the_program_and_its_acknowledgement(lines):
    finished = [line[1] for line in lines if line[0] == "finished"]
    interrupt = [line[1] for line in lines if line[0] == "interrupt"]
    assert (finished, interrupt) == (["0", "1"], ["1", "0"])


def test_counters(lines, layer):
    cycles, groups = map(int, only(lines, "counters"))
    assert cycles > groups > 0


@pytest.mark.parametrize(
    ("name", "flag", "index"),
    [
        ("header", "header", 0),
        ("corrupted", "instruction", 2),
        ("read_bus", "read_bus", None),
        ("write_bus", "write_bus", None),
        ("window", "write_range", None),
        ("watchdog", "watchdog", None),
    ],
)
def test_errors_are_described(lines, layer, name, flag, index):
    _, _, program = layer
    status, flags, first, found, address = (int(word, 0) for word in only(lines, name))
    assert status == PROGRAM
    bit = list(PROGRAM_ERRORS).index(flag)
    assert flags >> bit & 1 and first == bit + 1
    assert index is None or found == index
    burst_bytes = CONFIG.bus.max_burst * CONFIG.bus.data_bytes
    where = {
        "read_bus": program.program_address + 64,
        "write_bus": program.output_layout.address,
        "window": program.output_layout.address,
    }.get(name)
    if where is None:
        assert address == 0
    else:
        assert abs(where - address) < burst_bytes


def test_offsets_are_those_of_the_declaration():
    """The header against the declaration's numbers, by a C compiler."""
    registers = register_map(CONFIG, Top.AXI)
    checks = "\n".join(
        f"char check_{r.name}[GSHW_{r.name.upper()}_OFFSET == {r.offset} ? 1 : -1];"
        for r in registers.registers
    )
    text = register_docs.c_header(registers) + checks
    result = subprocess.run(
        ["gcc", *STRICT, "-x", "c", "-fsyntax-only", "-"],
        input=text, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert np.unique([r.offset for r in registers.registers]).size == len(registers.registers)
