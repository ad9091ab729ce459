"""What is placed and routed: a top module or a unit of it, between registers or pins."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gshw.errors import GshwError
from gshw.synth.devices import Device

HARNESS = "synth_harness"
"""Module, added for synthesis, that stands around a design."""
INSTANCE = "design"
"""The design's instance in the harness."""

_MODULE = re.compile(r"^module (\w+)(?=[ (;#]).*?^endmodule", re.M | re.S)
_PORT = re.compile(r"^ *(input|output)\b *(?:reg|wire)? *(?:\[(\d+):(\d+)\] *)?(\w+)", re.M)
_INSTANCE = re.compile(r"^ +(\w+) (\w+) \(\n? *\.", re.M)


@dataclass(frozen=True, kw_only=True)
class Design:
    """Verilog and what to call it.

    Parameters
    ----------
    name
        For reports and messages.
    verilog
        All modules.
    top
        Name of the module to build.
    n_macs
        Multiply-accumulates per cycle; 0 where a figure per MAC makes no sense.
    is_unit
        Whether ``top`` is a part of an engine, to be measured between registers.
    inner
        The module inside the harness that ``top`` then is; empty without a harness.
    """

    name: str
    verilog: str
    top: str
    n_macs: int = 0
    is_unit: bool = False
    inner: str = ""

    @property
    def module(self) -> str:
        """Name of the module that is measured, harness or not."""
        return self.inner or self.top


def module_text(verilog: str, module: str) -> str:
    """Text of one module.

    Raises
    ------
    KeyError
        When there is none of that name.
    """
    for match in _MODULE.finditer(verilog):
        if match[1] == module:
            return match[0]
    raise KeyError(module)


def module_lines(verilog: str) -> list[tuple[int, int, str]]:
    """First line, last line (both from 1) and name of every module, in order."""
    found, line, position = [], 1, 0
    for match in _MODULE.finditer(verilog):
        line += verilog.count("\n", position, match.start())
        last = line + match[0].count("\n")
        found.append((line, last, match[1]))
        position, line = match.end(), last
    return found


def ports(verilog: str, module: str) -> list[tuple[str, str, int]]:
    """Direction, name and width of every port."""
    text = module_text(verilog, module)
    return [
        (m[1], m[4], 1 if m[2] is None else int(m[2]) - int(m[3]) + 1) for m in _PORT.finditer(text)
    ]


def _walk(verilog: str, module: str, path: str) -> Iterator[tuple[str, str]]:
    names = {match[1] for match in _MODULE.finditer(verilog)}
    for match in _INSTANCE.finditer(module_text(verilog, module)):
        if match[1] in names:
            place = f"{path}.{match[2]}" if path else match[2]
            yield place, match[1]
            yield from _walk(verilog, match[1], place)


def units(verilog: str, top: str) -> dict[str, str]:
    """Instance path of every component below ``top``, and its module."""
    return dict(_walk(verilog, top, ""))


def unit_design(design: Design, unit: str) -> Design:
    """One component of a design, on its own.

    Parameters
    ----------
    unit
        An instance's path, the end of one (``routing``), or the end of a module's name.

    Raises
    ------
    GshwError
        When there is no such unit, or the name fits several modules.
    """
    known = units(design.verilog, design.top)
    found = {m for path, m in known.items() if path == unit or path.endswith(f".{unit}")}
    if not found:
        found = {m for m in known.values() if m == unit or m.endswith(f"_{unit}")}
    names = sorted({re.sub(r"(_\d+)+$", "", path.rpartition(".")[2]) for path in known})
    if not found:
        raise GshwError(f"{design.name} has no unit {unit!r}; its units are {', '.join(names)}")
    if len(found) > 1:
        raise GshwError(f"unit must name one module, not {unit!r} of {', '.join(sorted(found))}")
    (module,) = found
    return replace(design, name=f"{design.name} {unit}", top=module, n_macs=0, is_unit=True)


def harnessed_design(design: Design, device: Device) -> Design:
    """The design as it is placed on a device.

    With more ports than pins it stands behind a shift register, a unit between registers at all of
    its ports; everything else is taken as it is.
    """
    n_bits = sum(width for _, _, width in ports(design.verilog, design.top))
    if device.n_pins is not None and n_bits > device.n_pins:
        harness = shift_harness(design.verilog, design.top)
    elif design.is_unit:
        harness = registered_harness(design.verilog, design.top)
    else:
        return design
    return replace(design, verilog=f"{design.verilog}\n{harness}", top=HARNESS, inner=design.top)


_CLOCKS = ("clk", "aclk")
_RESETS = ("rst", "aresetn")


def _split(
    verilog: str, module: str
) -> tuple[list[str], list[tuple[str, int]], list[tuple[str, int]], str]:
    """Clock and reset, other inputs and outputs with their widths, and the clock's name."""
    listed = ports(verilog, module)
    direct = [name for _, name, _ in listed if name in _CLOCKS + _RESETS]
    inputs = [(n, w) for d, n, w in listed if d == "input" and n not in direct]
    outputs = [(n, w) for d, n, w in listed if d == "output"]
    clock = next((name for name in direct if name in _CLOCKS), "clk")
    return direct, inputs, outputs, clock


def registered_harness(verilog: str, module: str) -> str:
    """A module with the ports of ``module`` and a register at each but clock and reset."""
    direct, inputs, outputs, clock = _split(verilog, module)
    header = [f"input {name}" for name in dict.fromkeys([clock, *direct])]
    header += [f"input [{w - 1}:0] {n}" for n, w in inputs]
    header += [f"output reg [{w - 1}:0] {n}" for n, w in outputs]
    links = [f".{n}({n})" for n in direct]
    links += [f".{n}({n}_held)" for n, _ in inputs] + [f".{n}({n}_next)" for n, _ in outputs]
    lines = [f"  reg [{w - 1}:0] {n}_held;" for n, w in inputs]
    lines += [f"  wire [{w - 1}:0] {n}_next;" for n, w in outputs]
    lines += [f"  always @(posedge {clock}) {n}_held <= {n};" for n, _ in inputs]
    lines += [f"  always @(posedge {clock}) {n} <= {n}_next;" for n, _ in outputs]
    return _module(header, lines, module, links)


def shift_harness(verilog: str, module: str) -> str:
    """A module of five pins: inputs are shifted in, outputs are captured and shifted out."""
    direct, inputs, outputs, clock = _split(verilog, module)
    header = [f"input {port}" for port in dict.fromkeys([clock, *direct])]
    header += ["input shift_in", "input capture", "output shift_out"]
    n_in, n_out = (sum(width for _, width in side) for side in (inputs, outputs))
    links = [f".{port}({port})" for port in direct]
    for side, wire in ((inputs, "held"), (outputs, "made")):
        low = 0
        for port, width in side:
            links.append(f".{port}({wire}[{low + width - 1}:{low}])")
            low += width
    lines = [
        f"  reg [{n_in - 1}:0] held;",
        f"  wire [{n_out - 1}:0] made;",
        f"  reg [{n_out - 1}:0] captured;",
        f"  always @(posedge {clock}) held <= {{held, shift_in}};",
        f"  always @(posedge {clock}) captured <= capture ? made : {{captured, shift_in}};",
        f"  assign shift_out = captured[{n_out - 1}];",
    ]
    return _module(header, lines, module, links)


def _module(header: list[str], lines: list[str], inner: str, links: list[str]) -> str:
    listed = ",\n".join(f"  {port}" for port in header)
    connected = ",\n".join(f"    {link}" for link in links)
    body = "\n".join(lines)
    instance = f"  {inner} {INSTANCE} (\n{connected}\n  );"
    return f"module {HARNESS} (\n{listed}\n);\n{body}\n{instance}\nendmodule\n"
