"""AXI4 read master: requests of bytes in, packed beats out."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import BusConfig
from rtl_gen.align import funnel
from rtl_gen.axi import (
    BURST_INCR,
    ReadSignature,
    beat_layout,
    log2,
    request_layout,
)
from rtl_gen.axi_bursts import BurstIssuer
from rtl_gen.library import place


class AxiReader(wiring.Component):
    """Read pieces of memory at any byte address; requests in order, several bursts in flight.

    Bursts as :class:`~rtl_gen.axi_bursts.BurstIssuer` cuts them, so from whole beats: up to
    ``data_bytes - 1`` bytes on each side of a request are read and dropped.

    Timing. With ``skip = address % data_bytes``:

    - A request accepted in cycle t has ARVALID in t + 4 (if the request before has all its
      addresses out by t + 2 and a burst is free); then one address per cycle that the bus takes,
      and one cycle without between requests.
    - ``skip == 0``: a beat of R in cycle t is a beat of ``data`` in t + 2.
    - ``skip > 0``: beat j of ``data`` needs beats j and j + 1 of R and comes 2 cycles after the
      latter. When the request's end lies in the lane of its start or above,
      ``(address + n_bytes - 1) % data_bytes >= skip``, its last beat of R serves two
      of ``data``: the second comes 3 cycles after it, and RREADY is low in the cycle after it.
    - RREADY is low, too, in the cycle after one in which ``data`` was valid but not ready while
      another beat arrived behind it, until it is taken.

    So a request of n beats on R takes n or n + 1 cycles of the bus, and aligned ones take n.

    ``halt`` drops requests and data, and takes what is still to come from the bus; nothing is
    accepted until ``idle``. A beat with RRESP other than OKAY is data like any other, and ``error``
    pulses in the cycle after it, with the burst's address and the ``tag`` that its request came
    with. ``beat`` pulses in the cycle after each beat of R.
    After ``out_of_range`` the reader waits for ``halt``. RLAST is trusted.
    """

    def __init__(self, bus: BusConfig) -> None:
        self.bus = bus
        super().__init__(
            {
                "request": In(stream.Signature(request_layout(bus))),
                "tag": In(1),
                "data": Out(stream.Signature(beat_layout(bus))),
                "axi": Out(ReadSignature(bus)),
                "window_low": In(bus.address_width),
                "window_high": In(bus.address_width),
                "halt": In(1),
                "idle": Out(1),
                "beat": Out(1),
                "error": Out(1),
                "out_of_range": Out(1),
                "error_address": Out(bus.address_width),
                "error_tag": Out(1),
            }
        )

    @property
    def variant(self) -> object:
        """Readers of one bus are one Verilog module."""
        return self.bus

    def elaborate(self, platform) -> Module:
        m = Module()
        bus, axi = self.bus, self.axi
        log2_bytes = log2(bus.data_bytes)

        issuer = place(m, platform, "issuer", BurstIssuer(bus))
        taken = Signal()
        burst = issuer.burst
        m.d.comb += [
            issuer.request.valid.eq(self.request.valid),
            issuer.request.payload.eq(self.request.payload),
            issuer.tag.eq(self.tag),
            self.request.ready.eq(issuer.request.ready),
            issuer.window_low.eq(self.window_low),
            issuer.window_high.eq(self.window_high),
            issuer.halt.eq(self.halt),
            axi.araddr.eq(issuer.address),
            axi.arlen.eq(issuer.n_less_1),
            axi.arsize.eq(log2_bytes),
            axi.arburst.eq(BURST_INCR),
            axi.arvalid.eq(issuer.valid),
            issuer.ready.eq(axi.arready),
            issuer.retire.eq(taken & axi.rlast),
            issuer.fault.eq(taken & axi.rresp.any()),
            self.error.eq(issuer.error),
            self.out_of_range.eq(issuer.out_of_range),
            self.error_address.eq(issuer.error_address),
            self.error_tag.eq(issuer.error_tag),
        ]

        # Per burst in flight: how its request lies in the beats.
        plan_layout = data.StructLayout({"skip": log2_bytes, "extra": 1, "last": 1})
        plans = Memory(shape=plan_layout, depth=bus.outstanding, init=[])
        m.submodules.plans = plans
        write, read = plans.write_port(), plans.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(issuer.issue),
            write.data.skip.eq(burst.start - 1),
            write.data.extra.eq((burst.start != 0) & (burst.end >= burst.start)),
            write.data.last.eq(burst.last),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + issuer.issue),
            read.addr.eq(read.addr + issuer.retire),
        ]

        # Beat from the bus; one whose bytes fill two beats of data stays for a second cycle.
        here = Signal()
        again = Signal()
        emit = Signal(reset_less=True)
        final = Signal(reset_less=True)
        skip = Signal(log2_bytes, reset_less=True)
        beat = Signal(bus.data_width, reset_less=True)
        before = Signal(bus.data_width - 8, reset_less=True)
        first = Signal(init=1)
        blocked = Signal()
        ends = Signal()
        aligned = Signal()
        m.d.comb += [
            axi.rready.eq(~(blocked | again)),
            taken.eq(axi.rvalid & axi.rready),
            ends.eq(axi.rlast & read.data.last),
            aligned.eq(read.data.skip.all()),
        ]
        m.d.sync += self.beat.eq(taken)
        with m.If(~blocked):
            m.d.sync += before.eq(beat[8:])
            with m.If(again):
                m.d.sync += [again.eq(0), emit.eq(1), final.eq(1)]
            with m.Else():
                m.d.sync += [
                    here.eq(axi.rvalid),
                    again.eq(axi.rvalid & ends & read.data.extra),
                    emit.eq(~first | aligned),
                    final.eq(ends & ~read.data.extra),
                    skip.eq(read.data.skip),
                    beat.eq(axi.rdata),
                ]
        with m.If(taken):
            m.d.sync += first.eq(ends)

        # Output register, and a second one so that no ready passes through the reader.
        spare = Signal(beat_layout(bus), reset_less=True)
        out = Signal(beat_layout(bus), reset_less=True)
        packed = Cat(funnel(m, before, beat, skip, "skipped"), final)
        with m.If(~blocked):
            m.d.sync += spare.as_value().eq(packed)
        with m.If(~self.data.valid | self.data.ready):
            m.d.sync += [
                self.data.valid.eq(blocked | (here & emit)),
                out.as_value().eq(Mux(blocked, spare.as_value(), packed)),
                blocked.eq(0),
            ]
        with m.Elif(here & emit):
            m.d.sync += blocked.eq(1)
        m.d.comb += self.data.payload.eq(out)

        with m.If(issuer.draining):
            m.d.sync += [
                here.eq(0),
                again.eq(0),
                first.eq(1),
                blocked.eq(0),
                self.data.valid.eq(0),
            ]
        m.d.comb += self.idle.eq(issuer.idle & ~(here | self.data.valid))
        return m
