"""The register declaration, and everything that is written from it, against independent readers."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from gshw import register_docs, register_rdl
from gshw.config import BusConfig, load_config, preset_names
from gshw.errors import GshwError
from gshw.register_map import register_map
from gshw.registers import (
    PROGRAM_COUNTERS,
    PROGRAM_ERRORS,
    WIDE_COUNTERS,
    Access,
    Register,
    RegisterField,
    RegisterMap,
)
from gshw.top import Top

ROOT = Path(__file__).resolve().parents[1]


def example(top: Top = Top.AXI, address_width: int = 40, preset: str = "v16x4") -> RegisterMap:
    config = load_config(preset)
    return register_map(replace(config, bus=replace(config.bus, address_width=address_width)), top)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[RegisterMap, Path]:
    registers = example()
    folder = tmp_path_factory.mktemp("regs")
    register_rdl.export(registers, folder)
    return registers, folder


# --- the declaration ---------------------------------------------------------------------------


def field(name="value", low_bit=0, width=1, access=Access.READ_WRITE, **rest) -> RegisterField:
    return RegisterField(
        name=name, low_bit=low_bit, width=width, access=access, description="A field.", **rest
    )


def register(name="one", offset=0, fields=None, **rest) -> Register:
    fields = (field(),) if fields is None else fields
    return Register(name=name, offset=offset, description="A register.", fields=fields, **rest)


def mapped(*registers: Register, address_width: int = 12) -> RegisterMap:
    return RegisterMap(
        name="block", description="A map.", address_width=address_width, registers=registers
    )


def in_memory(name: str, offset: int) -> Register:
    whole = (field(width=32, access=Access.READ_ONLY),)
    return register(name, offset, whole, in_memory=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: field("Start"),
            "a field's name must be lower-case words joined by _, not 'Start'",
        ),
        (lambda: field("up", 30, 3), "up must lie in bits 31:0, not 32:30"),
        (lambda: field("none", 3, 0), "none must lie in bits 31:0, not 2:3"),
        (lambda: field("big", width=2, reset=4), "big: reset must fit in 2 bits, not 0x4"),
        (
            lambda: field("state", access=Access.READ_ONLY, reset=1),
            "state: reset must be 0 for ro",
        ),
        (
            lambda: field("mode", hardware_clears=True),
            "mode: only w1c fields are cleared by hardware, not rw",
        ),
        (
            lambda: field("go", width=2, access=Access.PULSE),
            "go: a pulse must have one bit, not 2",
        ),
        (lambda: field("mode", width=3).put(8), "mode must be from 0 to 7, not 8"),
        (
            lambda: register("a__b"),
            "a register's name must be lower-case words joined by _, not 'a__b'",
        ),
        (lambda: register("one", 6), "one: offset must be a multiple of 4, not 6"),
        (lambda: register(fields=()), "one must have at least one field"),
        (
            lambda: register(fields=(field("a"), field("a", 1))),
            "one: fields must have different names, not two 'a'",
        ),
        (
            lambda: register(fields=(field(), field("a", 1))),
            "one: a field may be called 'value' only if it is the only one",
        ),
        (
            lambda: register(fields=(field("a", 0, 3), field("b", 2))),
            "one: fields must be in order and not overlap, not a at 2:0 before b at 2:2",
        ),
        (
            lambda: register(in_memory=True),
            "one: a register in memory must be one read-only field",
        ),
        (
            lambda: mapped(register("a", 4), register("b", 4)),
            "registers must be in order and not overlap, not a at 0x4 before b at 0x4",
        ),
        (
            lambda: mapped(register("a", 16), address_width=4),
            "a: offset must be below 0x10, not 0x10",
        ),
        (
            lambda: mapped(register("a_b", 0), register("a", 4, (field("b"),))),
            "registers and fields must have different names, not 'a_b'",
        ),
        (
            lambda: mapped(in_memory("a", 0), register("b", 4), in_memory("c", 8)),
            "registers in memory must follow each other without gaps",
        ),
        (
            lambda: RegisterMap(name="A", description="", address_width=4, registers=()),
            "a register map's name must be lower-case words joined by _, not 'A'",
        ),
    ],
)
def test_broken_rules_are_told_in_one_line(make, message):
    with pytest.raises(GshwError) as error:
        make()
    assert str(error.value) == message


def test_fields_get_and_put():
    middle = field("middle", 4, 5)
    assert middle.put(0b10101) == 0b1_0101_0000
    assert middle.get(0xFFFF_FEAF) == 0b01010
    assert middle.mask == 0x1F0


# --- the map -----------------------------------------------------------------------------------


def test_one_driver_serves_every_config():
    """Offsets, names and places of fields do not depend on config or top."""

    def shape(registers: RegisterMap):
        return [
            (r.name, r.offset, [(f.name, f.low_bit) for f in r.fields]) for r in registers.registers
        ]

    expected = shape(example())
    for top in (Top.AXI, Top.STREAM):
        for address_width in (16, 32, 33, 64):
            assert shape(example(top, address_width, "h16")) == expected
    assert example()["control"].offset == 0
    offsets = [example()[f"{name}_low"].offset for name in ("program_address", "window_first")]
    assert offsets == [0x10, 0x18]


@pytest.mark.parametrize("preset", preset_names())
def test_identity_is_the_configs(preset):
    config = load_config(preset)
    engine = config.engine
    registers = register_map(config, Top.STREAM)

    def constant(name: str) -> dict[str, int]:
        fields = registers[name].fields
        assert all(f.access is Access.CONSTANT for f in fields)
        return {f.name: f.get(registers[name].reset) for f in fields}

    assert registers["magic"].reset.to_bytes(4, "little") == b"GSHW"
    assert constant("config_hash") == {"value": int(engine.hash[:8], 16)}
    assert constant("geometry") == {
        key: getattr(engine, key) for key in ("lanes", "rows", "block", "columns")
    }
    assert constant("widths") == {
        "activation": engine.activation_width,
        "weight": engine.weight_width,
        "accumulator": engine.accumulator_width,
        "drain_rows": engine.drain_rows,
    }
    for depth in ("bank_depth", "output_depth", "group_buffer_depth", "row_buffer_depth"):
        assert constant(depth) == {"value": getattr(engine, depth)}
    routing = registers["features"].field("routing")
    features = constant("features")
    assert dict(routing.values)[features["routing"]] == engine.routing.value
    assert features["stream"] == 1
    assert features["arbitrated"] == (engine.gather.value == "arbitrated")
    assert constant("bus_widths")["data"] == config.bus.data_width
    assert constant("bus_bursts")["max_burst"] == config.bus.max_burst


def test_every_counter_and_error_has_its_place():
    registers = example()
    for name in PROGRAM_COUNTERS:
        assert registers[f"counter_{name}"].in_memory
    for name in WIDE_COUNTERS:
        low, high = registers[f"counter_{name}_low"], registers[f"counter_{name}_high"]
        assert high.offset == low.offset + 4 and low.offset % 8 == 0
    assert [(f.name, f.low_bit) for f in registers["error"].fields] == [
        (name, bit) for bit, name in enumerate(PROGRAM_ERRORS)
    ]
    codes = dict(registers["first_error"].field("code").values)
    assert codes == {0: "none"} | {bit + 1: name for bit, name in enumerate(PROGRAM_ERRORS)}


def test_address_bits_that_the_bus_lacks_are_constants():
    narrow, wide = example(address_width=20), example(address_width=64)
    assert narrow["window_last_low"].fields[0].mask == 0xFFFFF
    assert narrow["window_last_low"].reset == 0xFFFFF
    assert narrow["window_last_high"].fields[0].access is Access.CONSTANT
    assert narrow["window_last_high"].reset == 0
    assert wide["window_last_high"].fields[0].access is Access.READ_WRITE
    assert wide["window_last_high"].reset == 0xFFFFFFFF


# --- SystemRDL and PeakRDL ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "registers", [example(), example(Top.STREAM, 20, "arb16")], ids=lambda registers: registers.name
)
def test_the_compiled_rdl_says_what_the_declaration_says(registers, tmp_path):
    path = tmp_path / "map.rdl"
    path.write_text(register_rdl.system_rdl(registers))
    top = register_rdl.elaborate(path).top
    assert top.inst_name == registers.name
    nodes = {node.inst_name: node for node in top.registers()}
    assert list(nodes) == [r.name for r in registers.registers]
    for declared in registers.registers:
        node = nodes[declared.name]
        assert node.absolute_address == declared.offset
        assert node.get_property("regwidth") == 32
        assert node.get_property("desc") == declared.description
        fields = list(node.fields())
        assert [f.inst_name for f in fields] == [f.name for f in declared.fields]
        for rdl, ours in zip(fields, declared.fields):
            assert (rdl.low, rdl.high) == (ours.low_bit, ours.high_bit)
            assert rdl.is_sw_readable is (ours.access is not Access.PULSE)
            assert rdl.is_sw_writable is ours.writable
            on_write = rdl.get_property("onwrite")
            assert (on_write and on_write.name) == (
                "woclr" if ours.access is Access.WRITE_1_CLEARS else None
            )
            assert rdl.get_property("singlepulse") is (ours.access is Access.PULSE)
            assert rdl.get_property("hwclr") is ours.hardware_clears
            assert rdl.is_hw_writable is (ours.access is Access.READ_ONLY)
            assert rdl.get_property("hwset") is (ours.access is Access.WRITE_1_CLEARS)
            if ours.access is not Access.READ_ONLY:
                assert rdl.get_property("reset") == ours.reset
            encode = rdl.get_property("encode")
            values = () if encode is None else tuple((int(e), e.name) for e in encode)
            assert values == ours.values


def c_compiler() -> str:
    found = next((path for name in ("gcc", "cc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no C compiler")
    return found


def test_our_c_header_agrees_with_peakrdls(exported, tmp_path):
    """Every constant of both, compared by the compiler."""
    registers, folder = exported
    (tmp_path / "own.h").write_text(register_docs.c_header(registers))
    theirs = (folder / "gshw_axi_peakrdl.h").read_text()
    checks = []
    for r in registers.registers:
        checks.append(f"offsetof(gshw_axi_t, {r.name}) == GSHW_{r.name.upper()}_OFFSET")
        for f in r.fields:
            own = f"GSHW_{r.member(f).upper()}"
            their = f"GSHW_AXI__{r.name.upper()}__{f.name.upper()}"
            assert f"#define {their}_bm " in theirs
            checks.append(f"{own}_MASK == {their}_bm")
            checks.append(f"{own}_LOW_BIT == {their}_bp")
            checks.append(f"{own}_WIDTH == {their}_bw")
            if f.access is Access.CONSTANT:
                checks.append(f"{own}_VALUE == {their}_reset")
    text = '#include <stddef.h>\n#include "own.h"\n#include "gshw_axi_peakrdl.h"\n'
    text += "".join(f'_Static_assert({check}, "{check}");\n' for check in checks)
    source = tmp_path / "check.c"
    source.write_text(text)
    flags = ["-Wall", "-Werror", "-std=c11", "-fsyntax-only", f"-I{folder}", f"-I{tmp_path}"]
    result = subprocess.run([c_compiler(), *flags, source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_our_c_header_is_plain_c99(tmp_path):
    header = tmp_path / "own.h"
    header.write_text(register_docs.c_header(example()))
    source = tmp_path / "main.c"
    source.write_text('#include "own.h"\n#include "own.h"\nint main(void) { return 0; }\n')
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c99", "-fsyntax-only"]
    result = subprocess.run([c_compiler(), *flags, source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_ip_xact_has_every_field(exported):
    registers, folder = exported
    space = {"x": "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"}
    root = ElementTree.parse(folder / "gshw_axi.xml").getroot()

    def number(element, tag: str) -> int:
        text = element.find(f"x:{tag}", space).text
        return int(text[2:], 16) if text.startswith("'h") else int(text)

    found = {
        (r.find("x:name", space).text, number(r, "addressOffset")): [
            (f.find("x:name", space).text, number(f, "bitOffset"), number(f, "bitWidth"))
            for f in r.findall("x:field", space)
        ]
        for r in root.iter(f"{{{space['x']}}}register")
    }
    assert found == {
        (r.name, r.offset): [(f.name, f.low_bit, f.width) for f in r.fields]
        for r in registers.registers
    }


def test_html_is_written(exported):
    _, folder = exported
    assert (folder / "html" / "index.html").is_file()


def test_export_without_the_tools(monkeypatch, tmp_path):
    monkeypatch.setattr(register_rdl, "missing_tools", lambda: ["systemrdl", "peakrdl_html"])
    with pytest.raises(GshwError) as error:
        register_rdl.export(example(), tmp_path)
    assert str(error.value) == (
        "register documents need systemrdl, peakrdl_html: pip install 'gshw[regs]'"
    )
    with pytest.raises(GshwError) as error:
        register_rdl.elaborate(tmp_path / "map.rdl")
    assert str(error.value) == "SystemRDL needs systemrdl-compiler: pip install 'gshw[regs]'"
    assert not list(tmp_path.iterdir())


def test_rdl_that_does_not_compile(tmp_path):
    path = tmp_path / "bad.rdl"
    path.write_text("addrmap bad { reg { field {} a[3:0]; field {} b[2:2]; } one @ 0; };\n")
    with pytest.raises(GshwError, match=r"bad.rdl: not valid SystemRDL: .*overlaps") as error:
        register_rdl.elaborate(path)
    assert "\n" not in str(error.value)


# --- our own documents -------------------------------------------------------------------------


def test_the_documentation_is_up_to_date():
    text = (ROOT / "docs" / "registers.md").read_text()
    assert text == register_docs.documentation(), "run python -m gshw.register_docs"


def test_json_says_everything():
    registers = example()
    made = json.loads(register_docs.as_json(registers))
    rebuilt = [
        Register(
            name=r["name"],
            offset=r["offset"],
            description=r["description"],
            fields=tuple(
                RegisterField(
                    name=f["name"],
                    low_bit=f["low_bit"],
                    width=f["width"],
                    access=Access(f["access"]),
                    description=f["description"],
                    reset=f["reset"],
                    hardware_clears=f.get("hardware_clears", False),
                    values=tuple((int(n), name) for n, name in f.get("values", {}).items()),
                )
                for f in r["fields"]
            ),
        )
        for r in made["registers"]
    ]
    assert rebuilt == [replace(r, in_memory=False) for r in registers.registers]
    assert made["address_width"] == registers.address_width


def test_python_and_c_have_the_same_constants():
    registers = example()
    names = [name for name, _, _ in register_docs.constants(registers)]
    assert len(set(names)) == len(names)
    python: dict = {}
    exec(register_docs.python_constants(registers), python)
    header = register_docs.c_header(registers)
    in_c = dict(re.findall(r"^#define GSHW_(\w+) (\w+)u$", header, re.M))
    assert {name: int(value, 0) for name, value in in_c.items()} == {
        name: value for name, value in python.items() if name.isupper()
    }
    assert python["CONTROL_DONE_MASK"] == 2 and python["MAGIC_VALUE"] == 0x57485347
    assert python["FIRST_ERROR_CODE_IS_DEADLOCK"] == 14


def test_diagram_of_a_known_register():
    fields = (field("go", 0), field("wide_name", 4, 2), field("number", 14, 4))
    assert register_docs.diagram(register(fields=fields)).splitlines() == [
        "   31     30     29     28     27     26     25     24     23     22     21     20     19"
        "     18     17     16",
        "+" + "-" * 97 + "+" + "-" * 13 + "+",
        f"|{'-':^97}|{'number':^13}|",
        "+" + "-" * 97 + "+" + "-" * 13 + "+",
        "   15     14     13     12     11     10      9      8      7      6      5      4      3"
        "      2      1      0",
        "+-------------+-------------------------------------------------------+"
        "-------------+--------------------+------+",
        "|   number    |                           -                           |"
        "  wide_name  |         -          |  go  |",
        "+-------------+-------------------------------------------------------+"
        "-------------+--------------------+------+",
    ]


def test_every_diagram_is_a_rectangle_with_every_name():
    for declared in example().registers:
        lines = register_docs.diagram(declared).splitlines()
        assert len({len(line) for line in lines if line[0] in "+|"}) == 1
        letters = "".join(lines)
        for f in declared.fields:
            name = declared.name if f.name == "value" else f.name
            assert name[:6] in letters or name.split("_")[0] in letters


def test_bus_config_reaches_the_map():
    config = replace(load_config("h16"), bus=BusConfig(data_width=128, max_burst=256))
    registers = register_map(config, Top.AXI)
    assert registers["bus_widths"].field("data").get(registers["bus_widths"].reset) == 128
    assert registers["bus_bursts"].field("max_burst").get(registers["bus_bursts"].reset) == 256
