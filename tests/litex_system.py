"""Makes the Verilog of a LiteX system around a generated core: LITEX_FOLDER BUS_STANDARD OUTPUT.

The host is a Wishbone master outside.
"""

import sys

from litex.build.generic_platform import Pins, Subsignal
from litex.build.io import CRG
from litex.build.lattice import LatticeECP5Platform
from litex.soc.integration.builder import Builder
from litex.soc.integration.soc_core import SoCMini
from litex.soc.interconnect import wishbone

WIDTHS = {
    "adr": 30, "dat_w": 32, "dat_r": 32, "sel": 4, "cyc": 1, "stb": 1, "ack": 1, "we": 1,
    "cti": 3, "bte": 2, "err": 1,
}  # fmt: skip


def main() -> None:
    folder, standard, output = sys.argv[1:]
    sys.path.insert(0, folder)
    from gshw_axi import GSHW

    signals = [
        Subsignal(name, Pins(" ".join(f"{name}{bit}" for bit in range(width))))
        for name, width in WIDTHS.items()
    ]
    pins = [("clk", 0, Pins("CLK")), ("host", 0, *signals)]
    platform = LatticeECP5Platform("LFE5U-85F-6BG381C", pins, toolchain="trellis")
    system = SoCMini(platform, 25e6, bus_standard=standard)
    system.crg = CRG(platform.request("clk"))
    host = wishbone.Interface(data_width=32, address_width=32, addressing="word")
    system.comb += host.connect_to_pads(platform.request("host"), mode="slave")
    system.bus.add_master("host", host)
    system.add_ram("main_ram", origin=0x40000000, size=0x10000)
    system.gshw = GSHW(platform)
    system.gshw.connect_to(system, origin=0x80000000)
    Builder(system, output_dir=output, compile_software=False).build(run=False)


main()
