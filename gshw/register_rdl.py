"""SystemRDL of a register map, and what PeakRDL makes from it: C header, HTML, IP-XACT."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from gshw.errors import GshwError
from gshw.registers import REGISTER_WIDTH, Access, RegisterField, RegisterMap

TOOLS = ("systemrdl", "peakrdl_cheader", "peakrdl_html", "peakrdl_ipxact")
"""Modules that :func:`export` imports."""

_ACCESS = {
    Access.READ_WRITE: "sw = rw; hw = r;",
    Access.READ_ONLY: "sw = r; hw = w;",
    Access.CONSTANT: "sw = r; hw = na;",
    Access.WRITE_1_CLEARS: "sw = rw; hw = r; onwrite = woclr; hwset; precedence = hw;",
    Access.PULSE: "sw = w; hw = r; singlepulse;",
}


def _field_lines(field: RegisterField, encoding: str | None) -> list[str]:
    reset = "" if field.access is Access.READ_ONLY else f" = {field.width}'h{field.reset:x}"
    clear = " hwclr;" if field.hardware_clears else ""
    encode = f" encode = {encoding};" if encoding else ""
    return [
        "        field {",
        f"            desc = {json.dumps(field.description)};",
        f"            {_ACCESS[field.access]}{clear}{encode}",
        f"        }} {field.name}[{field.high_bit}:{field.low_bit}]{reset};",
    ]


def system_rdl(registers: RegisterMap) -> str:
    """The map in SystemRDL 2.0: one addrmap of its name, a register of each name in it."""
    lines = [
        f"addrmap {registers.name} {{",
        f"    desc = {json.dumps(registers.description)};",
        f"    default regwidth = {REGISTER_WIDTH};",
        f"    default accesswidth = {REGISTER_WIDTH};",
        "    addressing = regalign;",
        "    littleendian;",
        "    lsb0;",
    ]
    for register in registers.registers:
        lines.append("")
        encodings = {}
        for field in register.fields:
            if field.values:
                encodings[field.name] = f"{register.member(field)}_values"
                lines.append(f"    enum {encodings[field.name]} {{")
                lines += [f"        {name} = {field.width}'d{n};" for n, name in field.values]
                lines.append("    };")
        lines += ["    reg {", f"        desc = {json.dumps(register.description)};"]
        for field in register.fields:
            lines += _field_lines(field, encodings.get(field.name))
        lines.append(f"    }} {register.name} @ 0x{register.offset:x};")
    return "\n".join([*lines, "};"]) + "\n"


def missing_tools() -> list[str]:
    """Those of :data:`TOOLS` that are not installed."""
    return [tool for tool in TOOLS if importlib.util.find_spec(tool) is None]


def elaborate(path: Path):
    """The root node of a SystemRDL file.

    Raises
    ------
    GshwError
        When the compiler is not installed or refuses the file.
    """
    if "systemrdl" in missing_tools():
        raise GshwError("SystemRDL needs systemrdl-compiler: pip install 'gshw[regs]'")
    from systemrdl.compiler import RDLCompiler
    from systemrdl.messages import MessagePrinter, RDLCompileError

    class Quiet(MessagePrinter):
        """Keeps the first message instead of printing all."""

        first = ""

        def print_message(self, severity, text, src_ref) -> None:
            self.first = self.first or str(text)

    printer = Quiet()
    compiler = RDLCompiler(message_printer=printer)
    try:
        compiler.compile_file(str(path))
        return compiler.elaborate()
    except RDLCompileError:
        raise GshwError(f"{path}: not valid SystemRDL: {printer.first}") from None


def export(registers: RegisterMap, folder: Path) -> list[Path]:
    """Write what PeakRDL makes of the map into ``folder``, overwriting what is there.

    Returns
    -------
    list of Path
        ``{name}_peakrdl.h``, ``html/`` and ``{name}.xml`` (IP-XACT component, IEEE 1685-2014).

    Raises
    ------
    GshwError
        When a tool is missing (the pip command), or the compiler refuses the map.
    """
    if missing := missing_tools():
        raise GshwError(f"register documents need {', '.join(missing)}: pip install 'gshw[regs]'")
    from peakrdl_cheader.exporter import CHeaderExporter
    from peakrdl_html import HTMLExporter
    from peakrdl_ipxact import IPXACTExporter, Standard

    outputs: list[tuple[str, Callable]] = [
        (f"{registers.name}_peakrdl.h", lambda top, path: CHeaderExporter().export(top, path)),
        ("html", lambda top, path: HTMLExporter().export(top, path)),
        (
            f"{registers.name}.xml",
            lambda top, path: IPXACTExporter(
                vendor="gshw", library="gshw", standard=Standard.IEEE_1685_2014
            ).export(top, path),
        ),
    ]
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / f"{registers.name}.rdl"
        source.write_text(system_rdl(registers), encoding="utf-8")
        root = elaborate(source)
        for name, write in outputs:
            write(root.top, str(Path(scratch) / name))
        folder.mkdir(parents=True, exist_ok=True)
        for name, _ in outputs:
            made = Path(scratch) / name
            if made.is_dir():
                shutil.copytree(made, folder / name, dirs_exist_ok=True)
            else:
                shutil.copyfile(made, folder / name)
    return [folder / name for name, _ in outputs]
