"""Proofs inside the core: networks permute, tokens neither deadlock nor free a live buffer."""

import pytest
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from rtl_gen.queue import TokenCounter
from rtl_gen.routing import BenesNetwork, Crossbar
from tests.formal_support import Opened, prove, refuted


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


class TokenProof(wiring.Component):
    """Load, compute and store on double buffers, with the core's own token counters.

    Each unit works on the buffers' slots in turn, for as long as it likes, as the lowered programs
    tell it to: load takes a token from compute before it fills a slot again, and so on. Tokens
    travel as in :class:`rtl_gen.queue.UnitQueue`: one cycle after the instruction is done.

    Members
    -------
    go, done
        Per unit: begin an instruction that may begin; end the one that runs.

    Parameters
    ----------
    careless
        Load begins without its token.
    """

    def __init__(self, *, careless: bool = False) -> None:
        self._careless = careless
        super().__init__({"go": In(3), "done": In(3)})

    def elaborate(self, platform) -> Module:
        m = Module()
        load, compute, store = range(3)
        ways = ((load, compute), (compute, load), (compute, store), (store, compute))
        counters, counts, pending = {}, {}, {}
        for way in ways:
            opened = Opened(TokenCounter())
            m.submodules += opened
            counters[way], counts[way] = opened.component, opened["count"]
            pending[way] = Signal(name=f"push_{way[0]}_{way[1]}")
            m.d.comb += [
                counters[way].push.eq(pending[way]),
                Assert(~counters[way].overflow),
                Assert(~counters[way].pop | counters[way].available),
            ]
        busy = [Signal(name=f"busy_{unit}") for unit in range(3)]
        slot = [Signal(name=f"slot_{unit}") for unit in range(3)]
        # Slots that a unit may fill without a token, because nobody has used them yet.
        fresh = {unit: Signal(range(N_SLOTS + 1), init=N_SLOTS) for unit in (load, compute)}
        behind = {load: compute, compute: store}
        before = {compute: load, store: compute}

        can_begin = []
        for unit in range(3):
            enabled = ~busy[unit]
            if unit in before:
                enabled = enabled & counters[before[unit], unit].available
            if unit in behind and not (self._careless and unit == load):
                enabled = enabled & ((fresh[unit] != 0) | counters[behind[unit], unit].available)
            can_begin.append(enabled)
            begins = enabled & self.go[unit]
            ends = busy[unit] & self.done[unit]
            with m.If(begins):
                m.d.sync += busy[unit].eq(1)
            with m.If(ends):
                m.d.sync += [busy[unit].eq(0), slot[unit].eq(~slot[unit])]
            if unit in before:
                m.d.comb += counters[before[unit], unit].pop.eq(begins)
                m.d.sync += pending[unit, before[unit]].eq(ends)
            if unit in behind:
                takes = begins & (fresh[unit] == 0)
                if self._careless and unit == load:
                    takes = takes & counters[behind[unit], unit].available
                m.d.comb += counters[behind[unit], unit].pop.eq(takes)
                m.d.sync += pending[unit, behind[unit]].eq(ends)
                with m.If(begins & (fresh[unit] != 0)):
                    m.d.sync += fresh[unit].eq(fresh[unit] - 1)

        # --- what must hold ------------------------------------------------------------------
        for writer, reader in ((load, compute), (compute, store)):
            m.d.comb += Assert(~(busy[writer] & busy[reader] & (slot[writer] == slot[reader])))
        moving = Cat(busy).any() | Cat(pending.values()).any() | Cat(can_begin).any()
        m.d.comb += Assert(moving)

        # --- why it holds: every slot is somewhere, and slots are used in turn ---------------
        for writer, reader in ((load, compute), (compute, store)):
            full = counts[writer, reader] + pending[writer, reader]
            empty = counts[reader, writer] + pending[reader, writer] + fresh[writer]
            m.d.comb += [
                Assert(full + empty + busy[writer] + busy[reader] == N_SLOTS),
                Assert((slot[writer] ^ slot[reader]) == (full + busy[reader])[0]),
            ]

        # --- all three at once can happen ----------------------------------------------------
        m.d.comb += Cover(Cat(busy).all())
        n_stores = Signal(3)
        m.d.sync += n_stores.eq(
            Mux(busy[store] & self.done[store] & (n_stores != 7), n_stores + 1, n_stores)
        )
        m.d.comb += Cover(n_stores == 4)
        return m


def test_tokens_never_deadlock_or_free_a_live_buffer() -> None:
    prove(TokenProof(), depth=2)
    prove(TokenProof(), mode="cover", depth=40)


def test_token_proof_can_fail() -> None:
    assert refuted(TokenProof(careless=True), mode="bmc", depth=16)
