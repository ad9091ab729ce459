"""Proofs by k-induction of the stream ports and the buffer of fetch, each against a plain queue.

The queue beside the device has no timing: what was let in and is not out, the oldest first. That
``valid`` follows from it alone, whatever ``ready`` does, is the rule that no valid waits for ready.
"""

import pytest
from amaranth.hdl import Array, Assert, Assume, Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In

from gshw.config import BusConfig
from rtl_gen.axi import beat_layout, request_layout
from rtl_gen.fetch import BeatBuffer
from rtl_gen.stream_ports import StreamRegister, StreamSink, StreamSource
from tests.formal_support import Opened, broken, memories_as_registers, prove, refuted

BUS = BusConfig(data_width=32, address_width=16, max_burst=4, outstanding=2)
BEAT = BUS.data_width + 1


def holds(m: Module, name: str, link, *, unless=0) -> None:
    """Assert that a transfer that is offered and not taken stays, unless ``unless`` was high."""
    waited, held = Signal(name=f"{name}_waits"), Signal(BEAT, name=f"{name}_held")
    payload = Value.cast(link.payload)
    m.d.sync += [waited.eq(link.valid & ~link.ready & ~Value.cast(unless)), held.eq(payload)]
    m.d.comb += Assert(~waited | (link.valid & (payload == held)))


class Held:
    """What is inside, the oldest first; at most ``depth`` items."""

    def __init__(self, m: Module, depth: int, width: int, *, put, item, take, clear=0) -> None:
        self.items = [Signal(width, name=f"held_{i}") for i in range(depth)]
        self.n = Signal(range(depth + 1), name="n_held_there")
        kept = self.n - take
        m.d.comb += Assert(self.n <= depth)
        m.d.sync += self.n.eq(Mux(clear, 0, kept + put))
        for i, row in enumerate(self.items):
            later = self.items[i + 1] if i + 1 < depth else row
            m.d.sync += row.eq(Mux(put & (kept == i), item, Mux(take, later, row)))

    def __getitem__(self, place) -> Value:
        return Array(self.items)[place]


def register_is(held: Held, opened: Opened, prefix: str, link) -> list:
    """A :class:`StreamRegister` holds just what it should, and offers the oldest."""
    spare_valid = opened[f"{prefix}spare_valid"]
    return [
        Assert(held.n == link.valid + spare_valid),
        Assert(~spare_valid | link.valid),
        Assert(~link.valid | (opened[f"{prefix}out"] == held[0])),
        Assert(~spare_valid | (opened[f"{prefix}spare"] == held[1])),
    ]


class RegisterProof(wiring.Component):
    """The register slice between anything and anything."""

    beats: In(stream.Signature(beat_layout(BUS)))
    ready: In(1)
    clear: In(1)

    def __init__(self, device: type[StreamRegister] = StreamRegister) -> None:
        self._device = device
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.dut = opened = Opened(self._device(BUS))
        dut = opened.component
        m.d.comb += [
            dut.i.valid.eq(self.beats.valid),
            Value.cast(dut.i.payload).eq(Value.cast(self.beats.payload)),
            dut.o.ready.eq(self.ready),
            dut.clear.eq(self.clear),
        ]
        holds(m, "o", dut.o, unless=dut.clear)
        put, take = dut.i.valid & dut.i.ready, dut.o.valid & dut.o.ready
        item = Value.cast(dut.i.payload)
        held = Held(m, 2, BEAT, put=put, item=item, take=take, clear=dut.clear)
        m.d.comb += register_is(held, opened, "", dut.o)
        m.d.comb += [
            Assert(dut.o.valid == (held.n != 0)),
            Assert(dut.i.ready == (held.n != 2)),
            Assert(~dut.o.valid | (Value.cast(dut.o.payload) == held[0])),
        ]
        return m


class SourceProof(wiring.Component):
    """The source between any sender and two clients that take turns."""

    beats: In(stream.Signature(beat_layout(BUS)))
    fetch_request: In(stream.Signature(request_layout(BUS)))
    load_request: In(stream.Signature(request_layout(BUS)))
    fetch_ready: In(1)
    load_ready: In(1)
    start: In(1)
    halt: In(1)

    def __init__(self, device: type[StreamSource] = StreamSource) -> None:
        self._device = device
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.dut = opened = Opened(self._device(BUS))
        dut = opened.component
        for name in ("fetch", "load"):
            outer, inner = getattr(self, f"{name}_request"), getattr(dut, f"{name}_request")
            m.d.comb += [
                inner.valid.eq(outer.valid),
                Value.cast(inner.payload).eq(Value.cast(outer.payload)),
                Assume(~outer.valid | (outer.payload.n_bytes != 0)),
                getattr(dut, f"{name}_data").ready.eq(getattr(self, f"{name}_ready")),
            ]
            holds(m, name, getattr(dut, f"{name}_data"), unless=dut.halt)
        m.d.comb += [
            Assume(~(self.fetch_request.valid & self.load_request.valid)),
            dut.axis.valid.eq(self.beats.valid),
            Value.cast(dut.axis.payload).eq(Value.cast(self.beats.payload)),
            dut.start.eq(self.start),
            dut.halt.eq(self.halt),
        ]
        fetch, load = dut.fetch_data, dut.load_data

        # The program, and the beats of it that are inside.
        accepted = dut.axis.valid & dut.axis.ready
        in_program = Signal()
        with m.If(dut.start):
            m.d.sync += in_program.eq(1)
        with m.Elif(accepted & dut.axis.payload.last):
            m.d.sync += in_program.eq(0)
        taken = (fetch.valid & fetch.ready) | (load.valid & load.ready)
        item = Value.cast(dut.axis.payload)
        put = accepted & ~dut.halt
        held = Held(m, 2, BEAT, put=put, item=item, take=taken, clear=dut.halt)
        m.d.comb += register_is(held, opened, "port.", opened.inner("port").o)
        was_put = Signal()
        m.d.sync += was_put.eq(put)

        # The request being served: whose, and how many beats are due.
        due, of_load = Signal(23), Signal()
        asked = [link.valid & link.ready for link in (dut.fetch_request, dut.load_request)]
        n_bytes = Mux(asked[1], self.load_request.payload.n_bytes, 0)
        n_bytes = Mux(asked[0], self.fetch_request.payload.n_bytes, n_bytes)
        with m.If(dut.halt):
            m.d.sync += due.eq(0)
        with m.Elif(asked[0] | asked[1]):
            m.d.sync += [due.eq((n_bytes + BUS.data_bytes - 1) >> 2), of_load.eq(asked[1])]
        with m.Elif(taken):
            m.d.sync += due.eq(due - 1)
        waits = Signal()
        m.d.sync += waits.eq((due != 0) & (held.n == 0) & ~in_program & ~dut.halt)
        m.d.comb += [
            Assert(opened["in_program"] == in_program),
            Assert(opened["active"] == (due != 0)),
            Assert((due == 0) | (opened["left"] == due - 1)),
            Assert((due == 0) | (opened["to_load"] == of_load)),
            # The rules: beats of the program only, in order, each to whom it is due; the last one
            # of a request says so; a request only when the one before has all its beats.
            Assert(~dut.axis.ready | in_program),
            Assert(fetch.valid == ((held.n != 0) & (due != 0) & ~of_load)),
            Assert(load.valid == ((held.n != 0) & (due != 0) & of_load)),
            Assert(~(asked[0] & asked[1])),
            Assert(~(asked[0] | asked[1]) | (due == 0) | (taken & (due == 1))),
            Assert(dut.beat == was_put),
            Assert(dut.error == waits),
        ]
        for link in (fetch, load):
            m.d.comb += [
                Assert(~link.valid | (link.payload.data == held[0][: BUS.data_width])),
                Assert(~link.valid | (link.payload.last == (due == 1))),
            ]
        return m


class SinkProof(wiring.Component):
    """The sink between any store and any receiver, halted at any time."""

    request: In(stream.Signature(request_layout(BUS)))
    request_last: In(1)
    beats: In(stream.Signature(beat_layout(BUS)))
    ready: In(1)
    halt: In(1)

    def __init__(self, device: type[StreamSink] = StreamSink) -> None:
        self._device = device
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.dut = opened = Opened(self._device(BUS))
        dut = opened.component
        m.d.comb += [
            dut.request.valid.eq(self.request.valid),
            Value.cast(dut.request.payload).eq(Value.cast(self.request.payload)),
            dut.request_last.eq(self.request_last),
            dut.data.valid.eq(self.beats.valid),
            Value.cast(dut.data.payload).eq(Value.cast(self.beats.payload)),
            dut.axis.ready.eq(self.ready),
            dut.halt.eq(self.halt),
        ]
        # Not even a halt takes back what the receiver has seen.
        holds(m, "axis", dut.axis)

        # The run whose beats go out, and the packet that is open.
        running, run_last, is_open = Signal(), Signal(), Signal()
        given = dut.data.valid & dut.data.ready & ~dut.halt
        ends = given & dut.data.payload.last
        closing = dut.halt & is_open & (opened["port.spare_valid"] == 0)
        with m.If(dut.halt):
            m.d.sync += running.eq(0)
        with m.Elif(dut.request.valid & dut.request.ready):
            m.d.sync += [running.eq(1), run_last.eq(dut.request_last)]
        with m.Elif(ends):
            m.d.sync += running.eq(0)
        with m.If(closing | (ends & run_last)):
            m.d.sync += is_open.eq(0)
        with m.Elif(given):
            m.d.sync += is_open.eq(1)
        last = dut.data.payload.last & run_last
        item = Mux(dut.halt, 1 << BUS.data_width, Cat(dut.data.payload.data, last))
        sent = dut.axis.valid & dut.axis.ready
        held = Held(m, 2, BEAT, put=given | closing, item=item, take=sent)
        m.d.comb += register_is(held, opened, "port.", opened.inner("port").o)
        # As the receiver sees it.
        seen_open, was_sent = Signal(), Signal()
        with m.If(sent):
            m.d.sync += seen_open.eq(~dut.axis.payload.last)
        m.d.sync += was_sent.eq(sent)
        newest = Mux(held.n == 2, held[1], held[0])
        m.d.comb += [
            Assert(opened["active"] == running),
            Assert(~running | (opened["is_last"] == run_last)),
            Assert(opened["is_open"] == is_open),
            Assert(opened["n_held"] == held.n),
            Assert(is_open == Mux(held.n == 0, seen_open, ~newest[-1])),
            # The rules: all beats of runs in order, `last` with the end of the last run, nothing
            # without a request; a packet that was begun is closed before the sink is idle.
            Assert(dut.axis.valid == (held.n != 0)),
            Assert(~dut.axis.valid | (Value.cast(dut.axis.payload) == held[0])),
            Assert(~given | running),
            Assert(~(dut.request.valid & dut.request.ready) | ~running | ends | dut.halt),
            Assert(~dut.idle | ((held.n == 0) & ~running & ~(dut.halt & seen_open))),
            Assert(dut.beat == was_sent),
        ]
        return m


class BufferProof(wiring.Component):
    """The buffer of fetch with a user that asks for no more beats than it holds.

    Memory and pipeline hold the beats that are not all out: the words still to come of the oldest
    ones are in the word register, the beat register, the memory's output, and the memory.
    """

    N_BEATS = 4
    DATA_WIDTH = 64

    i_valid: In(1)
    i: In(DATA_WIDTH)
    ready: In(1)

    def __init__(self, device: type[BeatBuffer] = BeatBuffer) -> None:
        self._device = device
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        with memories_as_registers("rtl_gen.fetch"):
            opened = Opened(self._device(self.DATA_WIDTH, self.N_BEATS))
        dut = opened.component
        m.submodules.dut = opened
        m.d.comb += [dut.i_valid.eq(self.i_valid), dut.i.eq(self.i), dut.o.ready.eq(self.ready)]
        waited, word = Signal(), Signal(32)
        m.d.sync += [waited.eq(dut.o.valid & ~dut.o.ready), word.eq(dut.o.payload)]
        m.d.comb += Assert(~waited | (dut.o.valid & (dut.o.payload == word)))

        second = Signal()
        sent = dut.o.valid & dut.o.ready
        with m.If(sent):
            m.d.sync += second.eq(~second)
        held = Held(
            m,
            self.N_BEATS,
            self.DATA_WIDTH,
            put=dut.i_valid,
            item=dut.i,
            take=sent & second,
        )
        m.d.comb += Assume(~dut.i_valid | (held.n < self.N_BEATS))

        # Where they are.
        in_beat, in_output = opened["held"], opened["read_valid"]
        in_memory = Signal(3)
        out_of_beat = dut.o.valid & second
        at_beat, at_output, at_memory = Signal(3), Signal(3), Signal(3)
        m.d.comb += [
            in_memory.eq(opened["written"] - opened["taken"]),
            at_beat.eq(out_of_beat),
            at_output.eq(at_beat + in_beat),
            at_memory.eq(at_output + in_output),
            Assert(in_memory <= self.N_BEATS),
            Assert(at_memory + in_memory == held.n),
            Assert(~in_beat | (opened["beat"] == held[at_beat])),
            Assert(~in_output | (opened["memory.read_data"] == held[at_output])),
            Assert((in_beat | in_output | in_memory.any()) | ~opened["number"]),
            Assert(opened["number"] == (second ^ dut.o.valid)),
            Assert(in_beat | ~opened["number"]),
        ]
        rows = Array(opened[f"memory.row_{i}"] for i in range(self.N_BEATS))
        first = opened["taken"][:2]
        for i in range(self.N_BEATS):
            row = rows[(first + i)[:2]]
            m.d.comb += Assert((in_memory <= i) | (row == held[(at_memory + i)[:2]]))

        # The rules: words in order, and there whatever `ready` does.
        m.d.comb += Assert(~dut.o.valid | (dut.o.payload == held[0].word_select(second, 32)))
        waiting = Signal(3)
        with m.If((held.n == 0) | dut.o.valid):
            m.d.sync += waiting.eq(0)
        with m.Else():
            m.d.sync += waiting.eq(waiting + 1)
        m.d.comb += Assert(waiting <= 3)
        return m


PROOFS = {
    RegisterProof: (StreamRegister, 2),
    SourceProof: (StreamSource, 2),
    SinkProof: (StreamSink, 2),
    BufferProof: (BeatBuffer, 5),
}
"""Device and depth of the induction."""


@pytest.mark.parametrize("proof", PROOFS)
def test_rules(proof):
    prove(proof(), depth=PROOFS[proof][1])


def overruns(m, register):
    m.d.comb += register.i.ready.eq(1)


def waits_for_ready(m, sink):
    m.d.comb += sink.axis.valid.eq(sink.axis.ready)


def passes_the_programs_last(m, source):
    m.d.comb += source.load_data.payload.last.eq(source.axis.payload.last)


def leaves_a_packet_open(m, sink):
    with m.If(sink.halt):
        m.d.comb += sink.idle.eq(1)


def drops_a_word(m, buffer):
    with m.If(buffer.o.valid & ~buffer.o.ready & buffer.i_valid):
        m.d.sync += buffer.o.valid.eq(0)


@pytest.mark.parametrize(
    ("proof", "mistake"),
    [
        (RegisterProof, overruns),
        (SourceProof, passes_the_programs_last),
        (SinkProof, waits_for_ready),
        (SinkProof, leaves_a_packet_open),
        (BufferProof, drops_a_word),
    ],
)
def test_mistakes_are_found(proof, mistake):
    device, _ = PROOFS[proof]
    assert refuted(proof(broken(device, mistake)), "bmc", 8)
