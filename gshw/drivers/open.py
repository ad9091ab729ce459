"""Back ends by name: what ``gshw run --device`` takes."""

from collections.abc import Callable
from pathlib import Path

from gshw.config import Config
from gshw.drivers.accelerator import Accelerator
from gshw.errors import GshwError
from gshw.top import Top
from gshw.uart_protocol import DEFAULT_BAUD

SPECS = {
    "golden": "the software model",
    "sim": "gshw_axi, compiled, with a memory model",
    "sim-stream": "gshw_stream, compiled",
    "sim-uart": "gshw_uart, compiled, at the end of a pseudo-terminal",
    "uart:PORT[:BAUD]": f"gshw_uart behind a serial port such as /dev/ttyUSB0 ({DEFAULT_BAUD})",
    "mem:REGISTERS,MEMORY,BYTES": "gshw_axi through /dev/mem: physical addresses, and a size",
    "uio:PORT,FILE,MEMORY,BYTES": "gshw_axi through /dev/uioN, and FILE (such as /dev/udmabuf0) "
    "that holds the memory at address MEMORY",
}
"""Devices and what they are, as :func:`open_accelerator` reads them."""


DEFAULT_MEMORY_BYTES = 1 << 26
"""Of simulated cores and the software model, where a network does not need more."""


def _number(spec: str, name: str, text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise GshwError(f"device {spec}: {name} must be a number such as 0x40000000, not {text!r}")
    return value


def _parts(spec: str, rest: str, form: str) -> list[str]:
    parts = rest.split(",")
    if len(parts) != len(form.split(",")) or not all(parts):
        raise GshwError(f"device {spec}: must have the form {form}")
    return parts


def _open_uart(spec: str, rest: str, config: Config) -> Accelerator:
    from gshw.drivers.uart import UartAccelerator

    # Names below /dev/serial/by-path have colons of their own.
    before, _, last = rest.rpartition(":")
    has_baud = bool(before) and last.isdecimal() and not Path(rest).exists()
    path, baud = (before, int(last)) if has_baud else (rest, DEFAULT_BAUD)
    if not path or (":" in path and not Path(path).exists()):
        raise GshwError(
            f"device {spec}: must have the form uart:PORT[:BAUD], such as "
            f"uart:/dev/ttyUSB0:{DEFAULT_BAUD}, with a PORT that exists"
        )
    return UartAccelerator(config, path, baud=baud)


def _open_mem(spec: str, rest: str, config: Config) -> Accelerator:
    from gshw.drivers.mapped import open_mapped

    names = ("REGISTERS", "MEMORY", "BYTES")
    parts = _parts(spec, rest, f"mem:{','.join(names)}")
    registers, memory, n_bytes = (_number(spec, n, p) for n, p in zip(names, parts))
    return open_mapped(
        config,
        "/dev/mem",
        "/dev/mem",
        register_base=registers,
        memory_base=memory,
        memory_offset=memory,
        n_bytes=n_bytes,
    )


def _open_uio(spec: str, rest: str, config: Config) -> Accelerator:
    from gshw.drivers.mapped import open_mapped

    port, file, memory, n_bytes = _parts(spec, rest, "uio:PORT,FILE,MEMORY,BYTES")
    return open_mapped(
        config,
        port,
        file,
        memory_base=_number(spec, "MEMORY", memory),
        n_bytes=_number(spec, "BYTES", n_bytes),
    )


def _open_simulated(
    kind: str, config: Config, top_verilog: Callable[[Config, Top], str], n_bytes: int
) -> Accelerator:
    from gshw.drivers.simulated import SimulatedAccelerator, SimulatedStreamAccelerator
    from gshw.drivers.uart_simulated import SimulatedUartAccelerator
    from gshw.verilate import build_library

    top, accelerator = {
        "sim": (Top.AXI, SimulatedAccelerator),
        "sim-stream": (Top.STREAM, SimulatedStreamAccelerator),
        "sim-uart": (Top.UART, SimulatedUartAccelerator),
    }[kind]
    library = build_library(top_verilog(config, top), top=top)
    # The memory of the core at the serial port is its own.
    options = {} if top is Top.UART else {"n_bytes": n_bytes}
    return accelerator(config, library, **options)


def check_device(spec: str) -> None:
    """Refuse a text that names no kind of back end, before any work.

    Raises
    ------
    GshwError
        With the kinds that there are.
    """
    kind, colon, _ = spec.partition(":")
    kinds = {text.partition(":")[:2] for text in SPECS}
    if (kind, colon) not in kinds:
        raise GshwError(f"device must be one of {', '.join(SPECS)}, not {spec!r}")


def open_accelerator(
    spec: str,
    config: Config,
    top_verilog: Callable[[Config, Top], str],
    *,
    n_bytes: int = 0,
) -> Accelerator:
    """Open the back end that a text names; see :data:`SPECS`.

    Parameters
    ----------
    top_verilog
        Makes the text of a top module, for the simulated ones.
    n_bytes
        How much memory simulated cores and the software model need at least.

    Raises
    ------
    GshwError
        For another text, and when there is no core for this config behind it.
    """
    check_device(spec)
    n_bytes = max(n_bytes, DEFAULT_MEMORY_BYTES)
    kind, colon, rest = spec.partition(":")
    openers = {"uart": _open_uart, "mem": _open_mem, "uio": _open_uio}
    if colon and kind in openers:
        return openers[kind](spec, rest, config)
    if not colon and kind == "golden":
        from gshw.drivers.golden import GoldenAccelerator

        return GoldenAccelerator(config, n_bytes=n_bytes)
    return _open_simulated(spec, config, top_verilog, n_bytes)
