"""AXI4-Lite in front of the registers."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.registers import REGISTER_BYTES, REGISTER_WIDTH
from rtl_gen.register_file import RegisterBus

OKAY = 0
SLAVE_ERROR = 2


class AxiLite(wiring.Signature):
    """A 32-bit AXI4-Lite bus as its master sees it; AMBA's names, without a prefix."""

    def __init__(self, address_width: int) -> None:
        self.address_width = address_width
        super().__init__(
            {
                "awaddr": Out(address_width),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(REGISTER_WIDTH),
                "wstrb": Out(REGISTER_BYTES),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(address_width),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(REGISTER_WIDTH),
                "rresp": In(2),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


class AxiLiteSlave(wiring.Component):
    """Turns AXI4-Lite accesses into accesses of a :class:`RegisterBus`, one at a time.

    Address and data of a write may come in any order, and a response that is not taken does not
    hold up the other direction. When both want the bus, the one that did not have it last gets it.
    Nothing is waited for before a response becomes valid but its request, and all outputs are
    registers. The lowest two address bits choose no register: they are ignored, as masters with
    narrow accesses need it, and the strobes say which bytes are written. What the register file
    does not know is answered with SLVERR, everything else with OKAY. ``awprot`` and ``arprot`` are
    ignored.

    Latency: with nothing in progress, the later of address and data of a write in cycle t is
    ``bus.write`` in t + 2, ``arvalid`` in t is ``bus.read`` in t + 1, and ``acknowledge`` in t is
    the response in t + 1. Throughput: one access at a time.
    """

    def __init__(self, address_width: int) -> None:
        self.address_width = address_width
        super().__init__(
            {"axi": In(AxiLite(address_width)), "bus": Out(RegisterBus(address_width))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        axi, bus = self.axi, self.bus
        write_address = Signal(self.address_width - 2, reset_less=True)

        # --- requests ----------------------------------------------------------------------
        have_address = Signal()
        have_data = Signal()
        m.d.comb += [axi.awready.eq(~have_address), axi.wready.eq(~have_data)]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [have_address.eq(1), write_address.eq(axi.awaddr[2:])]
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += [
                have_data.eq(1),
                bus.write_data.eq(axi.wdata),
                bus.strobes.eq(axi.wstrb),
            ]

        # --- accesses ----------------------------------------------------------------------
        busy = Signal()
        writing = Signal()
        may_write = Signal()
        may_read = Signal()
        start_write = Signal()
        start_read = Signal()
        m.d.comb += [
            may_write.eq(have_address & have_data & ~axi.bvalid & ~busy),
            may_read.eq(axi.arvalid & ~axi.rvalid & ~busy),
            start_write.eq(may_write & ~(may_read & writing)),
            start_read.eq(may_read & ~(may_write & ~writing)),
        ]
        m.d.sync += [
            bus.write.eq(start_write),
            bus.read.eq(start_read),
            axi.arready.eq(start_read),
        ]
        with m.If(start_write | start_read):
            m.d.sync += [
                busy.eq(1),
                writing.eq(start_write),
                bus.address.eq(Mux(start_write, write_address, axi.araddr[2:])),
            ]
        with m.Elif(bus.acknowledge):
            m.d.sync += busy.eq(0)

        # --- responses ---------------------------------------------------------------------
        response = Mux(bus.error, SLAVE_ERROR, OKAY)
        m.d.comb += axi.rdata.eq(bus.read_data)
        with m.If(axi.bvalid & axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        with m.If(axi.rvalid & axi.rready):
            m.d.sync += axi.rvalid.eq(0)
        with m.If(busy & bus.acknowledge):
            with m.If(writing):
                m.d.sync += [
                    have_address.eq(0),
                    have_data.eq(0),
                    axi.bvalid.eq(1),
                    axi.bresp.eq(response),
                ]
            with m.Else():
                m.d.sync += [axi.rvalid.eq(1), axi.rresp.eq(response)]
        return m
