"""Programs and data on AXI4-Stream: what stands in for the movers in gshw_stream."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import BusConfig
from rtl_gen.axi import REQUEST_BYTES_WIDTH, beat_layout, log2, request_layout
from rtl_gen.library import place


class StreamRegister(wiring.Component):
    """Register slice of two beats: no combinational path between its sides.

    Latency one cycle, throughput one beat per cycle. ``clear`` drops what it holds.
    """

    def __init__(self, bus: BusConfig) -> None:
        self.bus = bus
        self.variant = bus
        beats = stream.Signature(beat_layout(bus))
        super().__init__({"i": In(beats), "o": Out(beats), "clear": In(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        out = Signal.like(self.i.payload, name="out", reset_less=True)
        spare = Signal.like(self.i.payload, name="spare", reset_less=True)
        spare_valid = Signal()
        free = Signal()
        m.d.comb += [
            self.i.ready.eq(~spare_valid),
            self.o.payload.eq(out),
            free.eq(~self.o.valid | self.o.ready),
        ]
        with m.If(free):
            m.d.sync += [
                out.eq(Mux(spare_valid, spare, self.i.payload)),
                self.o.valid.eq(spare_valid | self.i.valid),
                spare_valid.eq(0),
            ]
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += spare_valid.eq(1)
        with m.If(self.i.ready):
            m.d.sync += spare.eq(self.i.payload)
        with m.If(self.clear):
            m.d.sync += [self.o.valid.eq(0), spare_valid.eq(0)]
        return m


class _Wires(wiring.Component):
    """In place of a :class:`StreamRegister`: no register at all."""

    def __init__(self, bus: BusConfig) -> None:
        self.variant = bus
        beats = stream.Signature(beat_layout(bus))
        super().__init__({"i": In(beats), "o": Out(beats), "clear": In(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
        return m


def _port(m: Module, platform, bus: BusConfig, small: bool):
    return place(m, platform, "port", _Wires(bus) if small else StreamRegister(bus))


class StreamSource(wiring.Component):
    """Gives the beats of ``s_axis`` to whoever asked: instructions to fetch, data to load.

    The order is that of the requests; addresses are ignored, and a request of n bytes takes
    ``ceil(n / data_bytes)`` beats. The two clients must not ask at the same time.

    Latency: a beat that is accepted in cycle t is at the client in t + 1, if its request was
    accepted by t. Throughput: one beat per cycle, across requests too.

    Parameters
    ----------
    small
        No registers on the way: latency 0.

    Members
    -------
    axis
        ``last`` with the last beat of a program.
    start
        A program begins.
    fetch_*, load_*
        Clients.
    halt
        Drop everything that is held, then all beats of the program up to its ``last``.
    error
        A client wants more than the program had; one cycle or more.
    beat
        A beat was accepted.
    """

    def __init__(self, bus: BusConfig, *, small: bool = False) -> None:
        self.bus = bus
        self._small = small
        requests = stream.Signature(request_layout(bus))
        beats = stream.Signature(beat_layout(bus))
        super().__init__(
            {
                "axis": In(beats),
                "start": In(1),
                "fetch_request": In(requests),
                "fetch_data": Out(beats),
                "load_request": In(requests),
                "load_data": Out(beats),
                "halt": In(1),
                "error": Out(1),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        log2_bytes = log2(self.bus.data_bytes)
        port = _port(m, platform, self.bus, self._small)
        accepted = Signal()
        in_program = Signal()
        awaited = Signal()
        # Beats are let in only during a program, so that none of the next one gets lost.
        m.d.comb += [
            port.i.valid.eq(self.axis.valid & in_program & ~self.halt),
            port.i.payload.eq(self.axis.payload),
            port.clear.eq(self.halt),
            self.axis.ready.eq(in_program & (port.i.ready | self.halt)),
            accepted.eq(self.axis.valid & self.axis.ready),
        ]
        with m.If(self.start):
            m.d.sync += in_program.eq(1)
        with m.Elif(accepted & self.axis.payload.last):
            m.d.sync += in_program.eq(0)
        m.d.sync += self.beat.eq(accepted & ~self.halt)

        # --- who gets the beats --------------------------------------------------------------
        active = Signal()
        to_load = Signal()
        take = Signal()
        final = Signal()
        left = Signal(REQUEST_BYTES_WIDTH - log2_bytes)
        request = Signal(request_layout(self.bus))
        m.d.comb += [
            final.eq(port.o.valid & port.o.ready & (left == 0)),
            take.eq(~active | final),
            self.fetch_request.ready.eq(take),
            self.load_request.ready.eq(take & ~self.fetch_request.valid),
            request.eq(
                Mux(
                    self.fetch_request.valid,
                    self.fetch_request.payload,
                    self.load_request.payload,
                )
            ),
        ]
        with m.If(take):
            m.d.sync += [
                active.eq(self.fetch_request.valid | self.load_request.valid),
                to_load.eq(~self.fetch_request.valid),
                left.eq((request.n_bytes - 1)[log2_bytes:]),
            ]
        with m.Elif(port.o.valid & port.o.ready):
            m.d.sync += left.eq(left - 1)
        with m.If(self.halt):
            m.d.sync += active.eq(0)
        for chosen, data in ((~to_load, self.fetch_data), (to_load, self.load_data)):
            m.d.comb += [
                data.valid.eq(port.o.valid & active & chosen),
                data.payload.data.eq(port.o.payload.data),
                data.payload.last.eq(left == 0),
            ]
        m.d.comb += [
            port.o.ready.eq(active & Mux(to_load, self.load_data.ready, self.fetch_data.ready)),
            awaited.eq(active & ~port.o.valid & ~in_program),
        ]
        m.d.sync += self.error.eq(awaited & ~self.halt)
        return m


class StreamSink(wiring.Component):
    """Sends the beats of stores on ``m_axis``, each run from a beat of its own.

    Latency: a beat is at ``axis`` one cycle after it was accepted. Throughput: one beat per
    cycle, across runs too.

    Parameters
    ----------
    small
        No registers on the way: latency 0.

    Members
    -------
    request, request_last, data
        As for a writer; ``request_last`` belongs to the final run of a store.
    axis
        ``last`` with the last beat of a store.
    halt
        Drop what was not sent; a packet that was begun is closed by one more beat, of zeros.
    idle
        Nothing is held, and no packet is open if ``halt``.
    beat
        A beat was sent.
    """

    def __init__(self, bus: BusConfig, *, small: bool = False) -> None:
        self.bus = bus
        self._small = small
        beats = stream.Signature(beat_layout(bus))
        super().__init__(
            {
                "request": In(stream.Signature(request_layout(bus))),
                "request_last": In(1),
                "data": In(beats),
                "axis": Out(beats),
                "halt": In(1),
                "idle": Out(1),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        port = _port(m, platform, self.bus, self._small)
        active = Signal()
        is_last = Signal()
        is_open = Signal()
        accepted = Signal()
        final = Signal()
        close = Signal()
        n_held = Signal(2)
        sent = Signal()
        wiring.connect(m, port.o, wiring.flipped(self.axis))
        m.d.comb += [
            close.eq(self.halt & is_open),
            port.i.valid.eq((self.data.valid & active & ~self.halt) | close),
            port.i.payload.data.eq(Mux(self.halt, 0, self.data.payload.data)),
            port.i.payload.last.eq((self.data.payload.last & is_last) | close),
            self.data.ready.eq((active & port.i.ready) | self.halt),
            accepted.eq(port.i.valid & port.i.ready),
            final.eq(accepted & self.data.payload.last & ~self.halt),
            self.request.ready.eq(~active | final),
            sent.eq(self.axis.valid & self.axis.ready),
            self.idle.eq(~active & ~self.request.valid & (n_held == 0) & ~close),
        ]
        with m.If(self.request.ready):
            m.d.sync += [active.eq(self.request.valid & ~self.halt), is_last.eq(self.request_last)]
        with m.If(self.halt):
            m.d.sync += active.eq(0)
        with m.If(accepted):
            m.d.sync += is_open.eq(~port.i.payload.last)
        with m.If(accepted & ~sent):
            m.d.sync += n_held.eq(n_held + 1)
        with m.If(sent & ~accepted):
            m.d.sync += n_held.eq(n_held - 1)
        m.d.sync += self.beat.eq(sent)
        return m
