"""The group buffer and the row-parameter buffer: memories read in a loop."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig, Gather
from gshw.layout import group_fields, group_head_fields, record_fields, word_width
from gshw.pipeline import FETCH_LATENCY, Pipeline
from rtl_gen.delay import delay
from rtl_gen.layouts import (
    group_layout,
    head_layout,
    issue_layout,
    load_layout,
    record_layout,
    route_width,
)
from rtl_gen.library import place


class LoopBuffer(wiring.Component):
    """Memory whose entries ``base .. end_word - 1`` stream out, over and over.

    After ``start`` the first entry is valid ``latency`` cycles later; then one entry per cycle as
    long as it is taken. ``start`` again begins anew with new bounds. The host may load any entry
    at any time, one per cycle; an entry that is read while it is loaded may be either.

    Parameters
    ----------
    width, depth
        Bits of an entry, and entries.

    Members
    -------
    load
        Address and data of one entry.
    start, stop
        ``start`` begins the stream, unless ``end_word`` is ``base``; ``stop`` ends it.
    base, end_word
        From ``start`` on they must hold for as long as the stream is used.
    o
        Entry ``data``, its ``address``, and ``last`` with the final entry of each pass.
    """

    def __init__(self, width: int, depth: int) -> None:
        self._width = width
        self._depth = depth
        self.variant = (width, depth)
        address_width = (depth - 1).bit_length()
        self._address_width = address_width
        super().__init__(
            {
                "load": In(stream.Signature(load_layout(address_width, width), always_ready=True)),
                "start": In(1),
                "stop": In(1),
                "base": In(address_width),
                "end_word": In(address_width + 1),
                "o": Out(
                    stream.Signature(
                        data.StructLayout({"data": width, "address": address_width, "last": 1})
                    )
                ),
            }
        )

    @property
    def latency(self) -> int:
        return FETCH_LATENCY

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=self._width, depth=self._depth, init=[])
        write = memory.write_port()
        read = memory.read_port(transparent_for=())
        m.d.comb += [
            write.en.eq(self.load.valid),
            write.addr.eq(self.load.payload.address),
            write.data.eq(self.load.payload.data),
        ]

        advance = Signal()
        last_word = Signal(self._address_width, reset_less=True)
        address = Signal(self._address_width, reset_less=True)
        at_last = Signal()
        m.d.comb += [
            advance.eq(~self.o.valid | self.o.ready),
            at_last.eq(address == last_word),
            read.en.eq(advance),
            read.addr.eq(address),
        ]
        m.d.sync += last_word.eq(self.end_word - 1)
        with m.If(self.start | advance):
            m.d.sync += address.eq(Mux(self.start | at_last, self.base, address + 1))

        running = Signal()
        read_valid = Signal()
        out_valid = Signal()
        read_address = Signal(self._address_width, reset_less=True)
        read_last = Signal(reset_less=True)
        entry = Signal.like(self.o.payload.as_value(), name="entry", reset_less=True)
        with m.If(advance):
            m.d.sync += [
                read_valid.eq(running),
                read_address.eq(address),
                read_last.eq(at_last),
                out_valid.eq(read_valid),
                entry.eq(Cat(read.data, read_address, read_last)),
            ]
        with m.If(self.start):
            m.d.sync += running.eq(self.base != self.end_word)
        with m.Elif(self.stop):
            m.d.sync += running.eq(0)
        with m.If(self.start | self.stop):
            m.d.sync += [read_valid.eq(0), out_valid.eq(0)]
        m.d.comb += [self.o.valid.eq(out_valid), self.o.payload.eq(entry)]
        return m


class GroupBuffer(wiring.Component):
    """Group words, each part read when the pipeline needs it.

    What decides the issue streams to the gather unit: the drain count; arbitrated: the whole head.
    Offsets, routing control and weights sit in memories of their own, read a fixed time after the
    gather unit takes the head, so that no register chain has to carry them along, and a stall
    reaches few registers.

    Latency: ``offset`` (scheduled only) is valid ``Pipeline.offset_latency`` after the head was at
    ``head``, ``route`` after ``Pipeline.route_delay``, ``weight`` after ``Pipeline.weight_delay``.
    Throughput: one group per cycle.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        address_width = config.group_address_width
        self._pipeline = Pipeline(config)
        arbitrated = config.gather is Gather.ARBITRATED
        super().__init__(
            {
                "load": In(
                    stream.Signature(
                        load_layout(address_width, word_width(group_fields(config))),
                        always_ready=True,
                    )
                ),
                "start": In(1),
                "stop": In(1),
                "base": In(address_width),
                "end_word": In(address_width + 1),
                "head": Out(stream.Signature(head_layout(config))),
                "route": Out(route_width(config)),
                "weight": Out(config.weight_width).array(config.lanes * config.block),
            }
            | ({} if arbitrated else {"offset": Out(config.address_width).array(config.lanes)})
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        head_width = word_width(group_head_fields(config))
        whole = group_layout(config)
        word = self.load.payload.data

        issue_width = issue_layout(config).size
        head = place(m, platform, "head", LoopBuffer(issue_width + 1, config.group_buffer_depth))
        loaded = data.View(whole, word)
        m.d.comb += [
            head.load.valid.eq(self.load.valid),
            head.load.payload.address.eq(self.load.payload.address),
            head.load.payload.data.eq(Cat(word[:issue_width], loaded.drain[0] != 0)),
            head.start.eq(self.start),
            head.stop.eq(self.stop),
            head.base.eq(self.base),
            head.end_word.eq(self.end_word),
            self.head.valid.eq(head.o.valid),
            Cat(self.head.payload.group, self.head.payload.ends).eq(head.o.payload.data),
            self.head.payload.last.eq(head.o.payload.last),
            head.o.ready.eq(self.head.ready),
        ]

        if issue_width < head_width:
            offsets = data.View(
                data.ArrayLayout(config.address_width, config.lanes),
                self._late_read(
                    m,
                    "offset",
                    word[issue_width:head_width],
                    head.o.payload.address,
                    self._pipeline.offset_latency,
                ),
            )
            m.d.comb += [self.offset[b].eq(offsets[b]) for b in range(config.lanes)]
        n_route = route_width(config)
        if n_route:
            m.d.comb += self.route.eq(
                self._late_read(
                    m,
                    "route",
                    word[head_width : head_width + n_route],
                    head.o.payload.address,
                    self._pipeline.route_delay,
                )
            )
        weights = data.View(
            data.ArrayLayout(config.weight_width, len(self.weight)),
            self._late_read(
                m,
                "weight",
                word[whole["weight"].offset :],
                head.o.payload.address,
                self._pipeline.weight_delay,
            ),
        )
        m.d.comb += [self.weight[i].eq(weights[i]) for i in range(len(self.weight))]
        return m

    def _late_read(self, m: Module, name: str, load_data, address, n_cycles: int) -> Signal:
        """Memory of one part of the word, out ``n_cycles`` after ``address`` was presented.

        A register follows the memory, and one more where those who need the word lie far away.
        """
        n_registers = self._pipeline.read_registers
        memory = Memory(shape=len(load_data), depth=self.config.group_buffer_depth, init=[])
        m.submodules[f"{name}_memory"] = memory
        write, read = memory.write_port(), memory.read_port(transparent_for=())
        m.d.comb += [
            write.en.eq(self.load.valid),
            write.addr.eq(self.load.payload.address),
            write.data.eq(load_data),
            read.en.eq(1),
            read.addr.eq(delay(m, address, n_cycles - 1 - n_registers, f"{name}_address")),
        ]
        return delay(m, read.data, n_registers, f"{name}_data")


class RowBuffer(wiring.Component):
    """Row-parameter records, streamed in order, pass after pass.

    Latency and throughput of :class:`LoopBuffer`.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        address_width = config.record_address_width
        super().__init__(
            {
                "load": In(
                    stream.Signature(
                        load_layout(address_width, word_width(record_fields(config))),
                        always_ready=True,
                    )
                ),
                "start": In(1),
                "stop": In(1),
                "base": In(address_width),
                "end_word": In(address_width + 1),
                "record": Out(
                    stream.Signature(data.StructLayout({"row": record_layout(config), "last": 1}))
                ),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        width = word_width(record_fields(self.config))
        loop = place(m, platform, "loop", LoopBuffer(width, self.config.row_buffer_depth))
        m.d.comb += [
            loop.load.valid.eq(self.load.valid),
            loop.load.payload.eq(self.load.payload),
            loop.start.eq(self.start),
            loop.stop.eq(self.stop),
            loop.base.eq(self.base),
            loop.end_word.eq(self.end_word),
            self.record.valid.eq(loop.o.valid),
            self.record.payload.row.eq(loop.o.payload.data),
            self.record.payload.last.eq(loop.o.payload.last),
            loop.o.ready.eq(self.record.ready),
        ]
        return m
