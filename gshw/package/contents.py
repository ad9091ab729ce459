"""Every file of a package but the Verilog, by its path in the output folder."""

import re
import tempfile
from pathlib import Path

from gshw import register_docs, register_rdl
from gshw.package import examples, fusesoc, ipxact, litex, vivado
from gshw.package.interface import Package
from gshw.top import Top

_C_DRIVER = Path(__file__).resolve().parents[1] / "c"

_INDEX = "regs/html/index.html"
_STAMP = re.compile(rb"(BUILD_TS = |[?]ts=)\d+")

Files = dict[str, str | bytes]


def left_out() -> list[str]:
    """Lines on what :func:`package_files` cannot make here, and how to change that."""
    missing = register_rdl.missing_tools()
    if not missing:
        return []
    return [
        "without ipxact/ and what PeakRDL makes in regs/ (C header, HTML, IP-XACT), which need "
        f"{', '.join(missing)}: pip install 'gshw[regs]'"
    ]


def _register_files(package: Package) -> Files:
    registers = package.registers
    return {
        "regs/gshw.rdl": register_rdl.system_rdl(registers),
        "regs/gshw_registers.h": register_docs.c_header(registers),
        "regs/registers.md": register_docs.markdown(registers),
        "regs/registers.json": register_docs.as_json(registers),
        "regs/registers.py": register_docs.python_constants(registers),
    }


def _peakrdl_files(package: Package) -> Files:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        register_rdl.export(package.registers, folder)
        files: Files = {
            f"regs/{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    # The pages tell browsers' caches when they were made; what they were made from does as well.
    index = files[_INDEX]
    assert isinstance(index, bytes), "files are read as bytes"
    files[_INDEX] = _STAMP.sub(rb"\g<1>%d" % package.config.engine.hash32, index)
    return files


def _driver_files(package: Package) -> Files:
    files: Files = {
        f"driver/{name}": (_C_DRIVER / name).read_text(encoding="utf-8")
        for name in ("gshw.h", "gshw.c")
    }
    files["driver/example.c"] = examples.c_example(package)
    files["driver/example.py"] = examples.python_example(package)
    return files


def package_files(package: Package) -> Files:
    """Registers, drivers, and wrappers for other tools; nothing for ``gshw_core``.

    The same package gives the same bytes. What needs tools that are not installed is left out:
    :func:`left_out`.
    """
    if package.top is Top.CORE:
        return {}
    files = _register_files(package) | _driver_files(package)
    files |= {
        f"{package.module}.core": fusesoc.core_file(package),
        fusesoc.TESTBENCH: fusesoc.testbench(package),
        f"litex/{package.module}.py": litex.wrapper(package),
        "litex/example.py": litex.example(package),
        "vivado/package_ip.tcl": vivado.package_script(package),
    }
    if package.top is Top.AXI:
        files["vivado/overlay.tcl"] = vivado.overlay_script(package)
    if not left_out():
        made = _peakrdl_files(package)
        memory_map = made[f"regs/{package.module}.xml"]
        assert isinstance(memory_map, bytes), "files are read as bytes"
        files |= made
        files["ipxact/component.xml"] = ipxact.component(package, memory_map)
    return files
