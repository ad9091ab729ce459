"""The gather units: they issue groups, one bank offset per bank and cycle.

Both have the same members, except that arbitrated offsets, banks and lanes are known at issue only.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig
from rtl_gen.layouts import head_layout, tag_layout
from rtl_gen.library import place


def _gather_signature(config: EngineConfig) -> dict:
    return {
        "i": In(stream.Signature(head_layout(config))),
        "restart": In(1),
        "tag": Out(tag_layout(config)),
        "pass_end": Out(1),
        "stalled": Out(1),
        "replayed": Out(1),
        "conflicted": Out(1),
    }


class DrainGuard(wiring.Component):
    """Holds the end of a bundle while the drain of the one before it still runs.

    ``free`` is low for ``drain - 1`` cycles after an issue with that drain count, so that two
    bundles are captured at least as far apart as the first takes to drain.
    Latency: ``free`` falls the cycle after such an issue; it is a register. ``drain`` != 0 is
    issued only when free.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        super().__init__({"issue": In(1), "drain": In(config.drain_width), "free": Out(1, init=1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        # Cycles to come, 0 or below when free; a bundle ends only then, so the OR is a choice.
        left = Signal(signed(self.config.drain_width + 1))
        ending = self.drain & self.issue.replicate(len(self.drain))
        waiting = left & (~left[-1]).replicate(len(left))
        to_come = Signal.like(left)
        m.d.comb += to_come.eq(ending | waiting)
        m.d.sync += [left.eq(to_come - 1), self.free.eq(to_come[1:] == 0)]
        return m


class ScheduledGather(wiring.Component):
    """Issues one group per cycle; a bank conflict cannot be expressed.

    Latency: none; ``tag`` belongs to the group at ``i`` in the same cycle.
    Throughput: one group per cycle, held only by the drain (``stalled``).

    Members
    -------
    i
        Group heads; see :func:`rtl_gen.layouts.head_layout`.
    restart
        The next group starts new sums, whatever came before.
    tag
        ``valid`` when a group is issued, with its framing.
    pass_end
        The issued group is the last of its pass.
    stalled, replayed, conflicted
        One-cycle events for the counters.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        super().__init__(_gather_signature(config))

    def elaborate(self, platform) -> Module:
        m = Module()
        group = self.i.payload.group
        guard = place(m, platform, "guard", DrainGuard(self.config))
        held = Signal()
        fresh = Signal(init=1)
        m.d.comb += [
            held.eq(self.i.payload.ends & ~guard.free),
            self.tag.valid.eq(self.i.valid & ~held),
            self.tag.first.eq(fresh),
            self.tag.drain.eq(group.drain[0]),
            self.i.ready.eq(~held),
            self.stalled.eq(self.i.valid & held),
            self.pass_end.eq(self.tag.valid & self.i.payload.last),
            guard.issue.eq(self.tag.valid),
            guard.drain.eq(group.drain[0]),
        ]
        with m.If(self.restart):
            m.d.sync += fresh.eq(1)
        with m.Elif(self.tag.valid):
            m.d.sync += fresh.eq(self.i.payload.ends)
        return m


class ArbitratedGather(wiring.Component):
    """Issues a group in parts until every lane is served: the lowest waiting lane of each bank.

    Partial sums add up in the accumulators, so a part is an ordinary group with some lanes
    disabled. A group takes as many cycles as its most wanted bank has lanes, at least one.

    Latency: none for ``tag``; ``offset`` (and the read) one cycle later, like ``bank`` and
    ``enable``. Throughput: one part per cycle.

    Members
    -------
    As :class:`ScheduledGather`, and, registered:

    offset
        Word offset of every bank.
    bank, enable
        Per lane: the bank that feeds it, and whether it takes part.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        super().__init__(
            _gather_signature(config)
            | {
                "offset": Out(config.address_width).array(config.lanes),
                "bank": Out(config.log2_lanes).array(config.lanes),
                "enable": Out(config.lanes),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        lanes = range(config.lanes)
        group = self.i.payload.group
        guard = place(m, platform, "guard", DrainGuard(config))

        active = Signal(config.lanes)
        served = Signal(config.lanes)
        waiting = Signal(config.lanes)
        m.d.comb += active.eq(group.active.as_value())
        m.d.comb += waiting.eq(active & ~served)

        granted = []
        for b in lanes:
            wants = Signal(config.lanes, name=f"wants_{b}")
            grant = Signal(config.lanes, name=f"grant_{b}")
            for lane in lanes:
                m.d.comb += wants[lane].eq(waiting[lane] & (group.bank[lane] == b))
            m.d.comb += grant.eq(wants & (~wants + 1))
            granted.append(grant)
            chosen = reduce(or_, (Mux(grant[lane], group.offset[lane], 0) for lane in lanes))
            m.d.sync += self.offset[b].eq(chosen)
        serve = Signal(config.lanes)
        m.d.comb += serve.eq(reduce(or_, granted))

        last_part = Signal()
        held = Signal()
        fresh = Signal(init=1)
        m.d.comb += [
            last_part.eq((waiting & ~serve) == 0),
            held.eq(last_part & self.i.payload.ends & ~guard.free),
            self.tag.valid.eq(self.i.valid & ~held),
            self.tag.first.eq(fresh),
            self.tag.drain.eq(Mux(last_part, group.drain[0], 0)),
            self.i.ready.eq(last_part & ~held),
            self.stalled.eq(self.i.valid & held),
            self.replayed.eq(self.tag.valid & (served != 0)),
            self.conflicted.eq(self.tag.valid & ~last_part & (served == 0)),
            self.pass_end.eq(self.tag.valid & last_part & self.i.payload.last),
            guard.issue.eq(self.tag.valid),
            guard.drain.eq(self.tag.drain),
        ]
        with m.If(self.restart):
            m.d.sync += fresh.eq(1)
        with m.Elif(self.tag.valid):
            m.d.sync += [
                fresh.eq(last_part & self.i.payload.ends),
                served.eq(Mux(last_part, 0, served | serve)),
            ]
        m.d.sync += self.enable.eq(serve)
        m.d.sync += [self.bank[lane].eq(group.bank[lane]) for lane in lanes]
        return m
