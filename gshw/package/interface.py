"""The ports of a top module and the buses that they form, for every packager."""

import enum
from dataclasses import dataclass
from functools import cached_property

from gshw import __version__
from gshw.config import Config
from gshw.register_map import register_map
from gshw.registers import RegisterMap
from gshw.top import Top

CLOCK, RESET, INTERRUPT = "aclk", "aresetn", "interrupt"

VENDOR, LIBRARY = "gshw", "gshw"
"""First half of the name (VLNV) in FuseSoC, IP-XACT and Vivado."""


@dataclass(frozen=True)
class Port:
    """One port of a top module; ``direction`` is Verilog's word for it, input or output."""

    name: str
    direction: str
    width: int
    description: str

    @property
    def is_input(self) -> bool:
        return self.direction == "input"


class BusKind(enum.Enum):
    """Protocols of the buses."""

    AXI_LITE = "AXI4-Lite"
    AXI = "AXI4"
    STREAM = "AXI4-Stream"


@dataclass(frozen=True)
class Bus:
    """Ports with a common prefix.

    Parameters
    ----------
    prefix
        Such as ``s_axi``; a port is called prefix, ``_``, signal.
    is_initiator
        The core starts its transfers.
    """

    prefix: str
    kind: BusKind
    is_initiator: bool
    description: str


BUSES = {
    Top.CORE: (),
    Top.UART: (),
    Top.AXI: (
        Bus("s_axi", BusKind.AXI_LITE, False, "registers"),
        Bus("m_axi", BusKind.AXI, True, "memory"),
    ),
    Top.STREAM: (
        Bus("s_axi", BusKind.AXI_LITE, False, "registers"),
        Bus("s_axis", BusKind.STREAM, False, "programs and their data"),
        Bus("m_axis", BusKind.STREAM, True, "results"),
    ),
}

_CHANNELS = {"aw": "write address", "w": "write data", "b": "write response"}
_CHANNELS |= {"ar": "read address", "r": "read data", "t": "stream"}
_SIGNALS = {
    "addr": "byte address",
    "burst": "1: INCR",
    "cache": "memory attributes, constant: normal, not cached, bufferable",
    "data": "data, byte 0 in the lowest bits",
    "keep": "valid bytes",
    "last": "last beat",
    "len": "beats of the burst, less 1",
    "prot": "protection",
    "ready": "the other side takes it",
    "resp": "0: OKAY",
    "size": "log2 of the bytes of a beat",
    "strb": "bytes to write",
    "valid": "something is offered",
}
_IGNORED = {"s_axi_awprot", "s_axi_arprot", "s_axis_tkeep"}
_PLAIN = {
    CLOCK: "clock, rising edge; all ports belong to it",
    RESET: "reset, active low, synchronous to aclk",
    INTERRUPT: "level: an enabled interrupt is pending",
}


def describe(name: str) -> str:
    """Meaning of a port of ``gshw_axi`` or ``gshw_stream``."""
    if name in _PLAIN:
        return _PLAIN[name]
    prefix, _, signal = name.rpartition("_")
    channel = next(c for c in sorted(_CHANNELS, key=len, reverse=True) if signal.startswith(c))
    text = f"{_CHANNELS[channel]}: {_SIGNALS[signal.removeprefix(channel)]}"
    text += " (constant 0)" if prefix == "m_axi" and signal.endswith("prot") else ""
    return f"{text} (ignored)" if name in _IGNORED else text


@dataclass(frozen=True)
class Package:
    """One top module of one config, as packagers see it.

    Parameters
    ----------
    ports
        All ports of the Verilog module, clock and reset included.
    """

    config: Config
    top: Top
    ports: tuple[Port, ...]

    @property
    def module(self) -> str:
        return self.top.module_name

    @property
    def source(self) -> str:
        """The Verilog file, in the output folder."""
        return f"{self.module}.v"

    @property
    def version(self) -> str:
        return __version__

    @property
    def summary(self) -> str:
        """One line: what it is."""
        engine = self.config.engine
        return (
            f"Gather/scatter engine {engine.pattern_name}, {engine.macs_per_cycle} "
            f"multiply-accumulates per cycle, config {self.config.name}"
        )

    @property
    def buses(self) -> tuple[Bus, ...]:
        return BUSES[self.top]

    @cached_property
    def registers(self) -> RegisterMap:
        return register_map(self.config, self.top)

    def signals(self, bus: Bus) -> dict[str, Port]:
        """Ports of a bus by signal name (``awaddr``)."""
        stem = f"{bus.prefix}_"
        found = {p.name.removeprefix(stem): p for p in self.ports if p.name.startswith(stem)}
        return {name: port for name, port in found.items() if "_" not in name}
