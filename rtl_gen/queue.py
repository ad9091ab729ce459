"""The queue of one unit: its instructions in order, and the tokens they wait for."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.program import COMMON_FIELDS, Unit
from gshw.program_timing import MAX_IN_FLIGHT, QUEUE_SLOTS, queue_words
from rtl_gen.delay import delay
from rtl_gen.fetch import WORDS_PER_INSTRUCTION
from rtl_gen.instructions import instruction_layout, unit_fields
from rtl_gen.library import place

TOKEN_WIDTH = 8
"""Bits of a token counter: at most ``2**TOKEN_WIDTH - 1`` tokens wait for a unit."""


class TokenCounter(wiring.Component):
    """Tokens from one neighbour that are not used yet.

    Latency: ``available`` follows ``push`` and ``pop`` by one cycle.

    Members
    -------
    push, pop
        One token more, one less; ``pop`` only while ``available``.
    clear
        Forget all tokens.
    available
        There is a token; a register.
    overflow
        A token came and there was no room; one cycle, combinational.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "push": In(1),
                "pop": In(1),
                "clear": In(1),
                "available": Out(1),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        count = Signal(TOKEN_WIDTH)
        m.d.comb += self.overflow.eq(self.push & ~self.pop & count.all())
        with m.If(self.push & ~self.pop & ~count.all()):
            m.d.sync += [count.eq(count + 1), self.available.eq(1)]
        with m.If(self.pop & ~self.push):
            m.d.sync += [count.eq(count - 1), self.available.eq(count != 1)]
        with m.If(self.clear):
            m.d.sync += [count.eq(0), self.available.eq(0)]
        return m


class UnitQueue(wiring.Component):
    """Instructions of one unit, offered in order once their tokens are there.

    An instruction offered has used up the tokens that it waits for; ``done`` of the unit, once per
    instruction and in order, sends its own tokens out. An instruction may wait for its tokens,
    and be offered, while earlier ones still run.

    Latency: with no tokens missing, an instruction is offered ``offer_latency`` cycles after its
    ``commit`` or after the one before was taken, whichever is later. A token from a neighbour in
    cycle t lets an instruction be offered in t + 2; ``done`` in cycle t sends tokens in t + 1.

    Parameters
    ----------
    unit
        Load, compute or store; decides the payload.
    small
        One instruction in flight, whose payload holds until it is done, and no register behind
        the memory: for a slow clock.

    Members
    -------
    word, write, commit, room
        From :class:`rtl_gen.fetch.Fetch`: sixteen words, then perhaps their commit.
    o
        Instructions. The payload changes after it was taken.
    done
        The oldest instruction that was taken is finished.
    halt
        Offer nothing new.
    clear
        Forget the tokens.
    previous_push, next_push
        Tokens from the units before and after.
    push_previous, push_next
        Tokens to them.
    waiting, waits_previous, waits_next
        Nothing is in flight and the next instruction lacks tokens; from whom.
    busy
        An instruction is in flight.
    drained
        Nothing is in the queue or in flight.
    index
        Number in the program of the oldest instruction in flight, else of the one in hand.
    has_previous, has_next
        Tokens from the units before and after are there.
    overflow_previous, overflow_next
        One of them was lost; one cycle.
    """

    def __init__(self, unit: Unit, *, small: bool = False, optional: tuple[str, ...] = ()) -> None:
        self._unit = unit
        self._small = small
        self._optional = optional
        self.variant = (unit, small, optional)
        super().__init__(
            {
                "word": In(32),
                "write": In(1),
                "commit": In(1),
                "room": Out(1),
                "o": Out(stream.Signature(instruction_layout(unit, optional))),
                "done": In(1),
                "halt": In(1),
                "clear": In(1),
                "previous_push": In(1),
                "next_push": In(1),
                "push_previous": Out(1),
                "push_next": Out(1),
                "waiting": Out(1),
                "waits_previous": Out(1),
                "waits_next": Out(1),
                "busy": Out(1),
                "drained": Out(1),
                "index": Out(16),
                "has_previous": Out(1),
                "has_next": Out(1),
                "overflow_previous": Out(1),
                "overflow_next": Out(1),
            }
        )

    @property
    def n_words(self) -> int:
        """Words of an instruction that the unit sees."""
        return queue_words(self._unit)

    @property
    def offer_latency(self) -> int:
        """Cycles from ``commit`` to the offer."""
        return self.n_words + 4

    def elaborate(self, platform) -> Module:
        m = Module()
        words = [Signal(32, name=f"word_{i}", reset_less=True) for i in range(self.n_words)]
        common = {f.name: words[0][f.low_bit : f.low_bit + f.width] for f in COMMON_FIELDS}
        for field in unit_fields(self._unit, self._optional):
            word, low_bit = divmod(field.low_bit, 32)
            bits = Cat(words[word:])[low_bit : low_bit + field.width]
            m.d.comb += self.o.payload[field.name].eq(bits)
        taken = Signal()
        m.d.comb += taken.eq(self.o.valid & self.o.ready)
        loaded, empty = self._unload(m, words, taken)

        # --- in flight -----------------------------------------------------------------------
        max_in_flight = 1 if self._small else MAX_IN_FLIGHT
        n_in_flight = Signal(range(max_in_flight + 1))
        oldest = self._flight(m, common, taken)
        m.d.comb += [
            self.busy.eq(n_in_flight != 0),
            self.index.eq(Mux(self.busy, oldest.index, common["index"])),
        ]
        with m.If(taken & ~self.done):
            m.d.sync += n_in_flight.eq(n_in_flight + 1)
        with m.If(self.done & ~taken):
            m.d.sync += n_in_flight.eq(n_in_flight - 1)
        m.d.sync += [
            self.push_previous.eq(self.done & oldest.push_previous),
            self.push_next.eq(self.done & oldest.push_next),
        ]

        # --- tokens --------------------------------------------------------------------------
        pop = Signal()
        lacks = {}
        for side in ("previous", "next"):
            wanted = common[f"pop_{side}"]
            if (self._unit, side) in ((Unit.LOAD, "previous"), (Unit.STORE, "next")):
                lacks[side] = wanted
                continue
            tokens = place(m, platform, f"{side}_tokens", TokenCounter())
            m.d.comb += [
                tokens.push.eq(getattr(self, f"{side}_push")),
                tokens.pop.eq(pop & wanted),
                tokens.clear.eq(self.clear),
                getattr(self, f"has_{side}").eq(tokens.available),
            ]
            m.d.sync += getattr(self, f"overflow_{side}").eq(tokens.overflow)
            lacks[side] = wanted & ~tokens.available
        waits = {side: loaded & ~self.o.valid & ~self.busy & lacks[side] for side in lacks}
        m.d.comb += [
            pop.eq(
                loaded
                & ~self.o.valid
                & ~lacks["previous"]
                & ~lacks["next"]
                & (n_in_flight != max_in_flight)
                & ~self.halt
            ),
            self.waits_previous.eq(waits["previous"]),
            self.waits_next.eq(waits["next"]),
            self.waiting.eq(self.waits_previous | self.waits_next),
            self.drained.eq(empty & ~self.busy),
        ]
        with m.If(pop):
            m.d.sync += self.o.valid.eq(1)
        with m.Elif(taken):
            m.d.sync += self.o.valid.eq(0)
        return m

    def _flight(self, m: Module, common: dict, taken):
        """What is kept of instructions in flight; the oldest one's."""
        layout = data.StructLayout({"push_previous": 1, "push_next": 1, "index": 16})
        if self._small:
            return data.View(layout, Cat(common[name] for name in layout.members))
        m.submodules.flight = flight = Memory(shape=layout, depth=MAX_IN_FLIGHT, init=[])
        accept, oldest = flight.write_port(), flight.read_port(domain="comb")
        m.d.comb += accept.en.eq(taken)
        m.d.comb += [accept.data[name].eq(common[name]) for name in layout.members]
        with m.If(taken):
            m.d.sync += accept.addr.eq(accept.addr + 1)
        with m.If(self.done):
            m.d.sync += oldest.addr.eq(oldest.addr + 1)
        return oldest.data

    def _unload(self, m: Module, words: list[Signal], taken) -> tuple[Signal, Signal]:
        """The instruction memory, read into ``words``; (they hold one, there is none at all)."""
        depth = QUEUE_SLOTS * WORDS_PER_INSTRUCTION
        m.submodules.memory = memory = Memory(shape=32, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port(transparent_for=())
        write_word = Signal(range(WORDS_PER_INSTRUCTION))
        read_word = Signal(range(WORDS_PER_INSTRUCTION))
        write_slot = Signal(range(QUEUE_SLOTS))
        read_slot = Signal(range(QUEUE_SLOTS))
        n_committed = Signal(range(QUEUE_SLOTS + 1))
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(Cat(write_word, write_slot)),
            write.data.eq(self.word),
            read.addr.eq(Cat(read_word, read_slot)),
            self.room.eq(n_committed != QUEUE_SLOTS),
        ]
        with m.If(self.write):
            m.d.sync += write_word.eq(write_word + 1)
        with m.If(self.commit):
            m.d.sync += write_slot.eq(write_slot + 1)

        step = Signal()
        ended = Signal()
        occupied = Signal()
        loaded = Signal()
        empty = Signal()
        m.d.comb += [
            step.eq((n_committed != 0) & ~occupied & ~(self.busy if self._small else 0)),
            ended.eq(step & (read_word == self.n_words - 1)),
            empty.eq((n_committed == 0) & ~occupied),
        ]
        with m.If(step):
            m.d.sync += read_word.eq(read_word + 1)
        with m.If(ended):
            m.d.sync += [read_word.eq(0), read_slot.eq(read_slot + 1), occupied.eq(1)]
        with m.Elif(taken):
            m.d.sync += occupied.eq(0)
        with m.If(self.commit & ~ended):
            m.d.sync += n_committed.eq(n_committed + 1)
        with m.If(ended & ~self.commit):
            m.d.sync += n_committed.eq(n_committed - 1)
        # Memory output, a register behind it (block RAM is slow), then the word's own.
        arrived = read.data if self._small else delay(m, read.data, 1, "arrived")
        settled = Signal()
        m.d.sync += [settled.eq(occupied), loaded.eq(occupied & settled & ~taken)]
        n_late = 1 if self._small else 2
        late_step = delay(m, step, n_late, "step", resets=True)
        late_word = delay(m, read_word, n_late, "read_word")
        for number, word in enumerate(words):
            with m.If(late_step & (late_word == number)):
                m.d.sync += word.eq(arrived)
        return loaded, empty
