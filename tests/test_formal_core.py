"""Proofs inside the core: networks permute, tokens neither deadlock nor free a live buffer."""

from contextlib import contextmanager
from unittest import mock

import pytest
from amaranth.asserts import AnyConst
from amaranth.hdl import Array, Assert, Assume, Cat, Const, Cover, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from gshw.program import COMMON_FIELDS
from gshw.program_timing import MAX_IN_FLIGHT, QUEUE_SLOTS
from rtl_gen.fetch import UNITS
from rtl_gen.queue import UnitQueue
from rtl_gen.routing import BenesNetwork, Crossbar
from tests.formal_support import Opened, broken, memories_as_registers, prove, refuted


class RoutingProof(wiring.Component):
    """Every bank's own number goes in; whatever the control, all of them come out.

    The control is any constant, so from ``latency`` cycles on the outputs belong to it.

    Parameters
    ----------
    collide
        Let the crossbar's lanes choose any banks: two lanes may then get one word.
    """

    def __init__(self, kind: type, n_lanes: int, *, collide: bool = False) -> None:
        self._width = n_lanes.bit_length() - 1
        self._network = kind(n_lanes, self._width)
        self._n_lanes = n_lanes
        self._collide = collide
        super().__init__({})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.network = network = self._network
        lanes = range(self._n_lanes)
        m.d.comb += [network.i[bank].eq(bank) for bank in lanes]
        if isinstance(network, BenesNetwork):
            control = AnyConst(len(network.switch))
            m.d.comb += network.switch.eq(control)
        else:
            chosen = [AnyConst(self._width) for _ in lanes]
            m.d.comb += network.enable.eq(-1)
            m.d.comb += [network.bank[lane].eq(chosen[lane]) for lane in lanes]
            if not self._collide:
                m.d.comb += [Assume(chosen[a] != chosen[b]) for a in lanes for b in lanes if a < b]
        cycle = Signal(range(network.latency + 1))
        with m.If(cycle != network.latency):
            m.d.sync += cycle.eq(cycle + 1)
        with m.Else():
            arrived = Cat(Cat(network.o[lane] == bank for lane in lanes).any() for bank in lanes)
            m.d.comb += Assert(arrived.all())
        return m


@pytest.mark.parametrize("n_lanes", [4, 8])
@pytest.mark.parametrize("kind", [BenesNetwork, Crossbar])
def test_routing_is_a_permutation(kind: type, n_lanes: int) -> None:
    network = RoutingProof(kind, n_lanes)
    prove(network, depth=network._network.latency + 1)


def test_routing_proof_can_fail() -> None:
    assert refuted(RoutingProof(Crossbar, 4, collide=True), depth=3)


N_SLOTS = 2
"""Of each buffer: it is filled and emptied in turn."""

TOKEN_BITS = {
    field.name: field.low_bit for field in COMMON_FIELDS if field.name.startswith(("pop_", "push_"))
}


@contextmanager
def one_word_instructions():
    """While active, a queue's instructions are one word: tokens and opcode are all that matters."""
    with (
        memories_as_registers("rtl_gen.queue"),
        mock.patch("rtl_gen.queue.WORDS_PER_INSTRUCTION", 1),
        mock.patch("rtl_gen.queue.queue_words", lambda _unit: 1),
        mock.patch("rtl_gen.queue.unit_fields", lambda _unit, _optional: ()),
    ):
        yield


class TokenProof(wiring.Component):
    """Load, compute and store on double buffers, behind the core's queues, wired as in the core.

    Each unit works on the buffers' slots in turn, as the lowered programs tell it to: load takes a
    token from compute before it fills a slot again, and so on. Instructions come whenever there is
    room for them: that a token comes from before in the program is not the queues' affair, and
    :mod:`gshw.program_order` checks it. Units take and finish one instruction at a time, and take
    as long as they like.

    Members
    -------
    fetch, take, done
        Per unit: the next instruction comes; what is offered is begun; what runs is finished.

    """

    def __init__(self, queue: type[UnitQueue] = UnitQueue) -> None:
        self._queue = queue
        super().__init__({"fetch": In(3), "take": In(3), "done": In(3)})

    def elaborate(self, platform) -> Module:
        m = Module()
        units = load, compute, store = tuple(range(3))
        with one_word_instructions():
            opened = [Opened(self._queue(unit)) for unit in UNITS]
        queues = [each.component for each in opened]
        m.submodules += opened
        behind = {load: compute, compute: store}
        before = {compute: load, store: compute}
        for unit, after in behind.items():
            m.d.comb += [
                queues[after].previous_push.eq(queues[unit].push_next),
                queues[unit].next_push.eq(queues[after].push_previous),
            ]

        # --- programs: the first instructions use slots that nobody has used yet ---------------
        fresh = [Signal(range(N_SLOTS + 1), init=N_SLOTS, name=f"fresh_{unit}") for unit in units]
        slot = [Signal(name=f"slot_{unit}") for unit in units]
        held, pops = [], []
        for unit, queue in enumerate(queues):
            each = opened[unit]
            offered, busy = queue.o.valid, queue.busy
            m.d.comb += [
                queue.o.ready.eq(self.take[unit] & (~busy | queue.done)),
                queue.done.eq(self.done[unit] & busy),
                queue.write.eq(self.fetch[unit] & queue.room),
                queue.commit.eq(queue.write),
                Assert(~queue.overflow_previous & ~queue.overflow_next),
            ]
            with m.If(queue.done):
                m.d.sync += slot[unit].eq(~slot[unit])
            # An instruction holds its slots from its tokens on.
            popped = Signal(name=f"popped_{unit}")
            m.d.comb += popped.eq(each["pop"])
            with m.If(popped & (fresh[unit] != 0)):
                m.d.sync += fresh[unit].eq(fresh[unit] - 1)
            held.append(offered + busy)
            pops.append(popped)

            def word(is_fresh, unit=unit) -> Value:
                """The instruction, which depends on its place in the program only so far."""
                waits = ~Value.cast(is_fresh)
                bits = {
                    "pop_previous": Const(int(unit in before)),
                    "pop_next": waits[0] if unit in behind else Const(0),
                    "push_previous": Const(int(unit in before)),
                    "push_next": Const(int(unit in behind)),
                }
                return Cat(*(bits[name] for name in TOKEN_BITS))

            def tokens_of(value) -> Value:
                return Cat(*(Value.cast(value)[low] for low in TOKEN_BITS.values()))

            # --- where its instructions are: in hand, on the way there, in the memory -------------
            occupied, settled, loaded = each["occupied"], each["settled"], each["loaded"]
            n_committed, in_flight = each["n_committed"], each["n_in_flight"]
            in_hand = occupied & ~offered
            is_new = (n_committed + in_hand) < fresh[unit]
            for name, low in TOKEN_BITS.items():
                place = list(TOKEN_BITS).index(name)
                m.d.comb += queue.word[low].eq(word(is_new)[place])
            hand = word(fresh[unit] != 0)
            rows = Array(each[f"memory.row_{i}"] for i in range(QUEUE_SLOTS))
            flights = Array(each[f"flight.row_{i}"] for i in range(MAX_IN_FLIGHT))
            oldest, newest = each.inner("flight").addresses
            m.d.comb += [
                Assert(n_committed <= QUEUE_SLOTS),
                Assert((each["write_slot"] - each["read_slot"])[:2] == n_committed[:2]),
                Assert(in_flight <= 1),
                Assert((newest - oldest)[:2] == in_flight),
                Assert(~offered | (occupied & settled & loaded)),
                Assert(~loaded | occupied),
                Assert(each["step_1"] == (occupied & ~settled)),
                Assert(each["step_2"] == (occupied & settled & ~loaded)),
                Assert(~loaded | settled),
                Assert(~(in_hand & ~settled) | (tokens_of(each["memory.read_data"]) == hand)),
                Assert(~(in_hand & settled & ~loaded) | (tokens_of(each["arrived_1"]) == hand)),
                Assert(~(in_hand & loaded) | (tokens_of(each["word_0"]) == hand)),
                Assert(~offered | (tokens_of(each["word_0"])[2:] == word(1)[2:])),
                Assert(~busy | (Value.cast(flights[oldest])[:2] == word(1)[2:])),
            ]
            for i in range(QUEUE_SLOTS):
                row = rows[(each["read_slot"] + i)[:2]]
                expected = word((Const(i, 3) + in_hand) < fresh[unit])
                m.d.comb += Assert((n_committed <= i) | (tokens_of(row) == expected))

        # --- what must hold ------------------------------------------------------------------
        busy = [queue.busy for queue in queues]
        for writer, reader in ((load, compute), (compute, store)):
            m.d.comb += Assert(~(busy[writer] & busy[reader] & (slot[writer] == slot[reader])))
        pushing = Cat(*(Cat(queue.push_previous, queue.push_next) for queue in queues))
        waiting = Cat(*(queue.waiting for queue in queues))
        m.d.comb += Assert(~waiting.all() | pushing.any())

        # --- why it holds: every slot is somewhere, and slots are used in turn ---------------
        for writer, reader in ((load, compute), (compute, store)):
            full = opened[reader]["previous_tokens.count"] + queues[writer].push_next
            empty = opened[writer]["next_tokens.count"] + queues[reader].push_previous
            empty = empty + fresh[writer]
            m.d.comb += [
                Assert(full + empty + held[writer] + held[reader] == N_SLOTS),
                Assert((slot[writer] ^ slot[reader]) == (full + held[reader])[0]),
            ]
        for unit, each in enumerate(opened):
            for side in ("previous", "next"):
                if unit in {"previous": before, "next": behind}[side]:
                    count = each[f"{side}_tokens.count"]
                    available = getattr(queues[unit], f"has_{side}")
                    m.d.comb += Assert(available == (count != 0))
            m.d.comb += Assert(~pops[unit] | (each["loaded"] & ~queues[unit].o.valid))

        # --- all three at once can happen ----------------------------------------------------
        m.d.comb += Cover(Cat(*busy).all())
        stored = Signal()
        with m.If(queues[store].done):
            m.d.sync += stored.eq(1)
        m.d.comb += Cover(stored & busy[load] & (fresh[load] == 0))
        return m


def test_tokens_never_deadlock_or_free_a_live_buffer() -> None:
    prove(TokenProof(), depth=2)


def test_three_units_work_at_once_in_the_token_proof() -> None:
    prove(TokenProof(), mode="cover", depth=24)


def does_not_wait(m, queue):
    with m.If(queue.waiting):
        m.d.sync += queue.o.valid.eq(1)


def gives_twice(m, queue):
    with m.If(queue.push_next & queue.o.valid):
        m.d.sync += queue.push_next.eq(1)


@pytest.mark.parametrize("mistake", [does_not_wait, gives_twice])
def test_mistakes_of_a_queue_are_found(mistake) -> None:
    assert refuted(TokenProof(broken(UnitQueue, mistake)), mode="bmc", depth=16)
