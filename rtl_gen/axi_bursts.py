"""The address side of a data mover: requests into bursts, bursts in flight, errors."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import BusConfig
from gshw.program_timing import burst_beats
from rtl_gen.axi import REQUEST_BYTES_WIDTH, log2, request_layout


def burst_layout(bus: BusConfig) -> data.StructLayout:
    """What the data side of a mover must know of a burst.

    ``n_less_1`` beats; whether it is the ``first`` or the ``last`` of its request; and, of the
    request, the byte lane of its ``start`` and of its ``end`` (inclusive).
    """
    return data.StructLayout(
        {
            "n_less_1": log2(burst_beats(bus)),
            "first": 1,
            "last": 1,
            "start": log2(bus.data_bytes),
            "end": log2(bus.data_bytes),
        }
    )


class BurstIssuer(wiring.Component):
    """Cut requests into legal bursts, put them on an address channel, and count them.

    Memory is divided into blocks of ``burst_beats(bus)`` beats, and a burst is what a request has
    of a block; so no burst is too long or crosses 4 KiB, and all but the first start at a block.
    Addresses are those of whole beats.

    Latency: a request accepted in cycle t puts its first address on the bus in cycle t + 4.
    Throughput: one burst per cycle, and one cycle between two requests. ``issue`` is high in the
    cycle before a burst's address appears. A burst counts as in flight from then until the cycle
    after ``retire``; with ``bus.outstanding`` in flight no further one is issued.

    A request with a byte outside of [``window_low``, ``window_high``] is not issued: when all
    bursts before it have retired, ``out_of_range`` pulses with the request's address, and nothing
    happens until ``halt``. ``fault`` in a cycle says that the oldest burst met a bus error:
    ``error`` pulses in the next with its address. ``error_address`` holds until the next pulse,
    and so does ``error_tag``, the ``tag`` that came with the request.

    ``halt`` drops the requests held; ``draining`` is high from the cycle after until no burst is
    in flight, and nothing is accepted meanwhile. An address on the bus stays there until taken.
    """

    def __init__(self, bus: BusConfig) -> None:
        self.bus = bus
        super().__init__(
            {
                "request": In(stream.Signature(request_layout(bus))),
                "tag": In(1),
                "window_low": In(bus.address_width),
                "window_high": In(bus.address_width),
                "halt": In(1),
                "address": Out(bus.address_width),
                "n_less_1": Out(8),
                "valid": Out(1),
                "ready": In(1),
                "issue": Out(1),
                "burst": Out(burst_layout(bus)),
                "retire": In(1),
                "fault": In(1),
                "draining": Out(1),
                "idle": Out(1),
                "error": Out(1),
                "out_of_range": Out(1),
                "error_address": Out(bus.address_width),
                "error_tag": Out(1),
            }
        )

    @property
    def variant(self) -> object:
        """Issuers of one bus are one Verilog module."""
        return self.bus

    def elaborate(self, platform) -> Module:
        m = Module()
        bus = self.bus
        log2_bytes = log2(bus.data_bytes)
        log2_beats = log2(burst_beats(bus))
        block_width = log2_bytes + log2_beats
        high_width = bus.address_width - block_width

        # Request as given, less one byte.
        held = Signal()
        held_address = Signal(bus.address_width, reset_less=True)
        held_less_1 = Signal(REQUEST_BYTES_WIDTH, reset_less=True)
        held_tag = Signal(reset_less=True)
        # Request with its last byte.
        ended = Signal()
        ended_address = Signal(bus.address_width, reset_less=True)
        ended_last = Signal(max(bus.address_width, REQUEST_BYTES_WIDTH) + 1, reset_less=True)
        ended_below = Signal(reset_less=True)
        ended_tag = Signal(reset_less=True)
        # What is left of a request: from block ``high``, beat ``low``.
        left = Signal()
        bad = Signal(reset_less=True)
        first = Signal(reset_less=True)
        tag = Signal(reset_less=True)
        high = Signal(high_width, reset_less=True)
        low = Signal(log2_beats, reset_less=True)
        # A request spans at most 2**24 bytes more than one: that many bits tell its blocks apart.
        last_high = Signal(
            min(high_width, max(REQUEST_BYTES_WIDTH - block_width, 0) + 1), reset_less=True
        )
        last_low = Signal(log2_beats, reset_less=True)
        start = Signal(log2_bytes, reset_less=True)
        end = Signal(log2_bytes, reset_less=True)

        advance = Signal()
        m.d.comb += [
            advance.eq(~ended | ~left),
            self.request.ready.eq(advance & ~self.draining),
        ]
        with m.If(advance):
            m.d.sync += [
                held.eq(self.request.valid),
                held_address.eq(self.request.payload.address),
                held_less_1.eq(self.request.payload.n_bytes - 1),
                held_tag.eq(self.tag),
                ended.eq(held),
                ended_address.eq(held_address),
                ended_last.eq(held_address + held_less_1),
                ended_below.eq(held_address < self.window_low),
                ended_tag.eq(held_tag),
            ]

        last = Signal()
        move = Signal()
        level = Signal(log2(bus.outstanding) + 1)
        empty = Signal()
        m.d.comb += [
            last.eq(high[: len(last_high)] == last_high),
            empty.eq(level == 0),
            move.eq(left & ~bad & ~self.draining & ~level[-1] & (~self.valid | self.ready)),
        ]
        length = Signal(log2_beats)
        m.d.comb += length.eq(Mux(last, last_low, ~Const(0, log2_beats)) - low)

        with m.If(~left):
            m.d.sync += [
                left.eq(ended),
                bad.eq(
                    ended_below
                    | ended_last[bus.address_width :].any()
                    | (self.window_high < ended_last[: bus.address_width])
                ),
                first.eq(1),
                tag.eq(ended_tag),
                Cat(start, low, high).eq(ended_address),
                Cat(end, last_low, last_high).eq(ended_last),
            ]
        with m.Elif(move):
            m.d.sync += [left.eq(~last), first.eq(0), low.eq(0), high.eq(high + 1)]

        out_address = Signal(bus.address_width - log2_bytes, reset_less=True)
        out_length = Signal(log2_beats, reset_less=True)
        m.d.comb += [
            self.address.eq(Cat(Const(0, log2_bytes), out_address)),
            self.n_less_1.eq(out_length),
            self.issue.eq(move),
            self.burst.n_less_1.eq(length),
            self.burst.first.eq(first),
            self.burst.last.eq(last),
            self.burst.start.eq(start),
            self.burst.end.eq(end),
        ]
        with m.If(move):
            m.d.sync += [self.valid.eq(1), out_address.eq(Cat(low, high)), out_length.eq(length)]
        with m.Elif(self.ready):
            m.d.sync += self.valid.eq(0)
        m.d.sync += level.eq(level + move - self.retire)

        # Addresses of the bursts in flight; a bad request shows its own where the next would be.
        addresses = Memory(shape=bus.address_width + 1, depth=bus.outstanding, init=[])
        m.submodules.addresses = addresses
        write, oldest = addresses.write_port(), addresses.read_port(domain="comb")
        report = Signal()
        reported = Signal()
        reporting = Signal()
        m.d.comb += [
            report.eq(left & bad & empty & ~reported),
            write.en.eq(move | report),
            write.data.eq(Cat(Mux(bad, start, 0), low, high, tag)),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + move),
            oldest.addr.eq(oldest.addr + self.retire),
            reporting.eq(report & ~self.draining),
            self.out_of_range.eq(reporting & ~self.draining),
            self.error.eq(self.fault),
        ]
        with m.If(report):
            m.d.sync += reported.eq(1)
        error_at = Signal(bus.address_width + 1, reset_less=True)
        with m.If(self.fault | reporting):
            m.d.sync += error_at.eq(oldest.data)
        m.d.comb += Cat(self.error_address, self.error_tag).eq(error_at)

        m.d.sync += self.draining.eq(self.halt | (self.draining & ~empty))
        with m.If(self.draining):
            m.d.sync += [held.eq(0), ended.eq(0), left.eq(0), reported.eq(0)]
        m.d.comb += self.idle.eq(~(held | ended | left) & empty)
        return m
