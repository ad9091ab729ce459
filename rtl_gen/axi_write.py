"""AXI4 write master: requests of bytes and packed beats in, strobed bursts out."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import BusConfig
from rtl_gen.align import from_byte, funnel, up_to_byte
from rtl_gen.axi import (
    BURST_INCR,
    WriteSignature,
    beat_layout,
    log2,
    request_layout,
)
from rtl_gen.axi_bursts import BurstIssuer, burst_layout
from rtl_gen.library import place


class AxiWriter(wiring.Component):
    """Write pieces of memory at any byte address; requests in order, several bursts in flight.

    Bursts as :class:`~rtl_gen.axi_bursts.BurstIssuer` cuts them; strobes select the bytes of the
    request and no others. ``data`` brings the packed beats of each request, in order; its
    ``last`` is not used. Addresses go out as soon as requests are there, whether data are or not.

    Timing. With ``skip = address % data_bytes``:

    - A request accepted in cycle t has AWVALID in t + 4 (as a reader's), and its first WVALID in
      t + 6 if the data are there; then one beat of W per cycle.
    - Beat j of ``data``, accepted in cycle t, is beat j of W in t + 2, at least one cycle after
      the beat before. If the bytes of the request's last beat do not fit,
      ``(address + n_bytes - 1) % data_bytes < skip``, one more beat of W follows a cycle later.
    - Data may come before their request; two beats wait inside.
    - A burst stays in flight until the cycle after its B; BREADY is always high.

    ``halt`` drops requests and data; bursts whose address is out are finished without strobes and
    their responses awaited; nothing is accepted until ``idle``, which says that no request and no
    data are held and no response is due. ``error`` pulses in the cycle after a BRESP other than
    OKAY. ``beat`` pulses in the cycle after each beat of W. After ``out_of_range`` the
    writer waits for ``halt``.
    """

    def __init__(self, bus: BusConfig) -> None:
        self.bus = bus
        super().__init__(
            {
                "request": In(stream.Signature(request_layout(bus))),
                "data": In(stream.Signature(beat_layout(bus))),
                "axi": Out(WriteSignature(bus)),
                "window_low": In(bus.address_width),
                "window_high": In(bus.address_width),
                "halt": In(1),
                "idle": Out(1),
                "beat": Out(1),
                "error": Out(1),
                "out_of_range": Out(1),
                "error_address": Out(bus.address_width),
            }
        )

    @property
    def variant(self) -> object:
        """Writers of one bus are one Verilog module."""
        return self.bus

    def elaborate(self, platform) -> Module:
        m = Module()
        bus, axi = self.bus, self.axi
        log2_bytes = log2(bus.data_bytes)

        issuer = place(m, platform, "issuer", BurstIssuer(bus))
        m.d.comb += [
            issuer.request.valid.eq(self.request.valid),
            issuer.request.payload.eq(self.request.payload),
            self.request.ready.eq(issuer.request.ready),
            issuer.window_low.eq(self.window_low),
            issuer.window_high.eq(self.window_high),
            issuer.halt.eq(self.halt),
            axi.awaddr.eq(issuer.address),
            axi.awlen.eq(issuer.n_less_1),
            axi.awsize.eq(log2_bytes),
            axi.awburst.eq(BURST_INCR),
            axi.awvalid.eq(issuer.valid),
            issuer.ready.eq(axi.awready),
            axi.bready.eq(1),
            issuer.retire.eq(axi.bvalid),
            issuer.fault.eq(axi.bvalid & axi.bresp.any()),
            self.error.eq(issuer.error),
            self.out_of_range.eq(issuer.out_of_range),
            self.error_address.eq(issuer.error_address),
        ]

        # Bursts announced whose data are still to go.
        plans = Memory(shape=burst_layout(bus), depth=bus.outstanding, init=[])
        m.submodules.plans = plans
        write, read = plans.write_port(), plans.read_port(domain="comb")
        write_plan = Signal(log2(bus.outstanding) + 1)
        read_plan = Signal(log2(bus.outstanding) + 1)
        m.d.comb += [
            write.addr.eq(write_plan),
            write.en.eq(issuer.issue),
            write.data.eq(issuer.burst),
            read.addr.eq(read_plan),
        ]
        m.d.sync += write_plan.eq(write_plan + issuer.issue)

        # Input register, and a second one so that no ready passes through the writer.
        here = Signal()
        blocked = Signal()
        beat = Signal(bus.data_width, reset_less=True)
        spare = Signal(bus.data_width, reset_less=True)
        before = Signal(bus.data_width - 8, reset_less=True)
        use = Signal()
        accept = Signal()
        m.d.comb += [
            self.data.ready.eq(~(blocked | issuer.draining)),
            accept.eq(self.data.valid & self.data.ready),
        ]
        with m.If(~blocked):
            m.d.sync += spare.eq(self.data.payload.data)
        with m.If(~here | use):
            m.d.sync += [
                here.eq(blocked | accept),
                blocked.eq(0),
                beat.eq(Mux(blocked, spare, self.data.payload.data)),
            ]
        with m.Elif(accept):
            m.d.sync += blocked.eq(1)
        with m.If(use):
            m.d.sync += before.eq(beat[8:])

        # The burst whose data go out, and its next beat.
        active = Signal()
        plan = Signal(burst_layout(bus), reset_less=True)
        spill = Signal(reset_less=True)
        free = Signal()
        ready = Signal()
        at_end = Signal()
        extra = Signal()
        next_plan = Signal()
        m.d.comb += [
            free.eq(~axi.wvalid | axi.wready),
            at_end.eq(plan.n_less_1 == 0),
            extra.eq(at_end & spill),
            ready.eq(active & (here | extra | issuer.draining)),
            use.eq(free & active & here & ~extra),
            next_plan.eq(~active | (free & ready & at_end)),
        ]
        with m.If(free & ready):
            m.d.sync += [plan.n_less_1.eq(plan.n_less_1 - 1), plan.first.eq(0)]
        with m.If(next_plan):
            m.d.sync += [
                active.eq(write_plan != read_plan),
                plan.eq(read.data),
                spill.eq(read.data.last & (read.data.end < read.data.start)),
            ]
        with m.If(next_plan & (write_plan != read_plan)):
            m.d.sync += read_plan.eq(read_plan + 1)

        start_strobes = Mux(plan.first, from_byte(plan.start, bus.data_bytes), -1)
        end_strobes = Mux(plan.last & at_end, up_to_byte(plan.end, bus.data_bytes), -1)
        out = Signal(bus.data_width, reset_less=True)
        strobes = Signal(bus.data_bytes, reset_less=True)
        final = Signal(reset_less=True)
        with m.If(free):
            m.d.sync += [
                axi.wvalid.eq(ready),
                out.eq(funnel(m, before, beat, ~plan.start, "shifted")),
                strobes.eq(Mux(issuer.draining, 0, start_strobes & end_strobes)),
                final.eq(at_end),
            ]
        m.d.comb += [axi.wdata.eq(out), axi.wstrb.eq(strobes), axi.wlast.eq(final)]
        m.d.sync += self.beat.eq(axi.wvalid & axi.wready)

        with m.If(issuer.draining):
            m.d.sync += [here.eq(0), blocked.eq(0)]
        m.d.comb += self.idle.eq(issuer.idle & ~here)
        return m
