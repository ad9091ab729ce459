"""A LiteX module around the core, and a small system that uses it."""

from gshw.package.interface import CLOCK, INTERRUPT, RESET, Bus, BusKind, Package
from gshw.register_map import ADDRESS_WIDTH
from gshw.top import Top

_CHANNELS = ("aw", "ar", "w", "b", "r")
_ADDRESS_WIDTHS = (32, 64)


def _channel(signal: str) -> tuple[str, str]:
    """``awaddr`` to ``aw``, ``addr``."""
    channel = next(channel for channel in _CHANNELS if signal.startswith(channel))
    return channel, signal.removeprefix(channel)


def _axi_lines(package: Package, bus: Bus, member: str) -> list[str]:
    """Instance arguments; addresses go through signals of the port's width."""
    lines = []
    for signal, port in package.signals(bus).items():
        channel, field = _channel(signal)
        value = f"{member}.{channel}.{field}"
        if field == "addr":
            value = f"{bus.prefix}_{channel}addr"
        lines.append(f"i_{port.name}={value}" if port.is_input else f"o_{port.name}={value}")
    return lines


def _stream_lines(package: Package, bus: Bus, member: str) -> list[str]:
    lines = []
    for signal, port in package.signals(bus).items():
        field = signal.removeprefix("t")
        if field == "keep":
            if port.is_input:
                lines.append(f"i_{port.name}={(1 << port.width) - 1}")
            continue
        lines.append(f"{'i' if port.is_input else 'o'}_{port.name}={member}.{field}")
    return lines


def _memory_side(package: Package) -> tuple[list[str], list[str], list[str]]:
    """Documentation, interface and Instance lines of what moves programs and data."""
    bus = package.config.bus
    if package.top is Top.STREAM:
        documentation = [
            "sink",
            "    Takes programs, each with its data; ``last`` ends a program.",
            "source",
            "    Gives results; ``last`` ends a store.",
        ]
        layout = f'[("data", {bus.data_width})]'
        interface = [
            f"self.sink = stream.Endpoint({layout})",
            f"self.source = stream.Endpoint({layout})",
        ]
        sink, source = (b for b in package.buses if b.kind is BusKind.STREAM)
        ports = _stream_lines(package, sink, "self.sink")
        return documentation, interface, ports + _stream_lines(package, source, "self.source")
    documentation = ["memory", "    AXI4 master: programs, weights, activations, results."]
    width = next(w for w in _ADDRESS_WIDTHS if w >= bus.address_width)
    interface = [
        f"self.memory = axi.AXIInterface(data_width={bus.data_width}, address_width={width})",
        f"m_axi_awaddr = Signal({bus.address_width})",
        f"m_axi_araddr = Signal({bus.address_width})",
        "self.comb += [",
        "    self.memory.aw.addr.eq(m_axi_awaddr),",
        "    self.memory.ar.addr.eq(m_axi_araddr),",
        "]",
    ]
    (memory,) = (b for b in package.buses if b.kind is BusKind.AXI)
    return documentation, interface, _axi_lines(package, memory, "self.memory")


def _block(lines: list[str], indent: int, end: str = "") -> str:
    return "\n".join(f"{' ' * indent}{line}{end}" for line in lines)


def wrapper(package: Package) -> str:
    """Text of ``litex/{module}.py``: the class ``GSHW``."""
    documentation, interface, ports = _memory_side(package)
    registers = package.buses[0]
    ports = [
        f"i_{CLOCK}=ClockSignal()",
        f"i_{RESET}=~ResetSignal()",
        *_axi_lines(package, registers, "self.registers"),
        *ports,
        f"o_{INTERRUPT}=self.ev.interrupt.trigger",
    ]
    is_axi = package.top is Top.AXI
    interconnect = "axi" if is_axi else "axi, stream"
    dma = (
        '\n        dma_bus = getattr(soc, "dma_bus", soc.bus)'
        '\n        dma_bus.add_master(f"{name}_memory", self.memory)'
        if is_axi
        else ""
    )
    connects = "registers, memory" if is_axi else "registers"
    return f'''\
"""LiteX module of {package.module}. {package.summary}."""

from pathlib import Path

from litex.gen import LiteXModule
from litex.soc.integration.soc import SoCRegion
from litex.soc.interconnect import {interconnect}
from litex.soc.interconnect.csr_eventmanager import EventManager, EventSourceLevel
from migen import ClockSignal, Instance, ResetSignal, Signal

CONFIG_HASH = 0x{package.config.engine.hash32:08x}
REGISTER_BYTES = 0x{1 << ADDRESS_WIDTH:x}


class GSHW(LiteXModule):
    """The core in the clock domain ``sys``.

    Attributes
    ----------
    registers
        AXI4-Lite slave.
{_block(documentation, 4)}
    ev
        Event manager with the core's interrupt, a level.
    """

    def __init__(self, platform):
        self.registers = axi.AXILiteInterface(data_width=32, address_width=32)
        s_axi_awaddr = Signal({ADDRESS_WIDTH})
        s_axi_araddr = Signal({ADDRESS_WIDTH})
        self.comb += [
            s_axi_awaddr.eq(self.registers.aw.addr),
            s_axi_araddr.eq(self.registers.ar.addr),
        ]
{_block(interface, 8)}
        self.ev = EventManager()
        self.ev.interrupt = EventSourceLevel(description="A program has ended.")
        self.ev.finalize()
        self.specials += Instance(
            "{package.module}",
{_block(ports, 12, ",")}
        )
        platform.add_source(str(Path(__file__).resolve().parents[1] / "{package.source}"))

    def connect_to(self, soc, name="gshw", origin=None):
        """Connect {connects} and interrupt to a system.

        ``name`` is the system's attribute that holds this module; without ``origin`` the registers
        go to a free place.
        """
        region = SoCRegion(origin=origin, size=REGISTER_BYTES)
        if origin is None:
            region.cached = not soc.bus.io_regions
        else:
            region.cached = not soc.bus.check_region_is_io(region)
        soc.bus.add_slave(name, self.registers, region){dma}
        if soc.irq.enabled:
            soc.irq.add(name, use_loc_if_exists=True)
'''


_DMA_IMPORTS = (
    "from litex.soc.cores.dma import WishboneDMAReader, WishboneDMAWriter\n",
    "from litex.soc.interconnect import wishbone\n",
)

_DMA = """\
        for name, kind in (("reader", WishboneDMAReader), ("writer", WishboneDMAWriter)):
            bus = wishbone.Interface(data_width={width}, address_width=32, addressing="word")
            self.bus.add_master(name, bus)
            setattr(self, name, kind(bus, endianness="little", with_csr=True))
        self.comb += [
            self.reader.source.connect(self.gshw.sink),
            # The writer counts words itself; each store of a program ends with a last.
            self.gshw.source.connect(self.writer.sink, omit={{"last"}}),
        ]
"""


def example(package: Package) -> str:
    """Text of ``litex/example.py``: a system for the ULX3S without a processor."""
    extra, imports = "", ("", "")
    task = "programs and data are written into its memory"
    if package.top is Top.STREAM:
        width = package.config.bus.data_width
        imports = _DMA_IMPORTS
        extra = _DMA.format(width=width)
        task += ", and two DMA engines\nmove them through the core"
    return f'''\
"""A small LiteX system with {package.module} for the ULX3S (ECP5-85F), without a processor.

The host reads and writes its bus through a serial port (``litex_server --uart``):
{task}.

    python litex/example.py [--build]
"""

import sys

from {package.module} import GSHW
from litex.build.generic_platform import Pins, Subsignal
from litex.build.io import CRG
from litex.build.lattice import LatticeECP5Platform
{imports[0]}from litex.soc.integration.builder import Builder
from litex.soc.integration.soc_core import SoCMini
{imports[1]}
PINS = [
    ("clk25", 0, Pins("G2")),
    ("serial", 0, Subsignal("tx", Pins("L4")), Subsignal("rx", Pins("M1"))),
]


class System(SoCMini):
    def __init__(self, platform, clock_frequency):
        super().__init__(platform, clock_frequency, ident="gshw")
        self.crg = CRG(platform.request("clk25"))
        self.add_uartbone(baudrate=115200)
        self.add_ram("main_ram", origin=0x40000000, size=0x10000)
        self.gshw = GSHW(platform)
        self.gshw.connect_to(self, origin=0x80000000)
{extra}

def main():
    platform = LatticeECP5Platform("LFE5U-85F-6BG381C", PINS, toolchain="trellis")
    system = System(platform, 25e6)
    Builder(system, output_dir="build", compile_software=False).build(run="--build" in sys.argv)


if __name__ == "__main__":
    main()
'''
