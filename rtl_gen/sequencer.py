"""Nested counted loops with strides: the position's base address."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig
from gshw.plan import COUNT_WIDTH, N_LOOPS
from rtl_gen.layouts import loops_layout


class PositionLoops(wiring.Component):
    """Walks a box of positions, innermost loop first.

    ``address`` starts at ``base``; each ``advance`` adds the step of the outermost loop that
    moves, modulo the bank depth. The steps are strides less the inner loops' travel
    (:meth:`gshw.plan.Command.steps`).

    Latency: ``address`` follows ``start`` and ``advance`` by one cycle. Throughput: one position
    per cycle. ``last`` is high at the final position.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "base": In(config.address_width),
                "loops": In(loops_layout(config)),
                "advance": In(1),
                "address": Out(config.address_width),
                "last": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        left = [Signal(COUNT_WIDTH, name=f"left_{i}") for i in range(N_LOOPS)]
        reload = [Signal(COUNT_WIDTH, name=f"reload_{i}") for i in range(N_LOOPS)]
        step = [Signal(self.config.address_width, name=f"step_{i}") for i in range(N_LOOPS)]
        ended = [Signal(name=f"ended_{i}") for i in range(N_LOOPS)]
        m.d.comb += [ended[i].eq(left[i] == 0) for i in range(N_LOOPS)]

        with m.If(self.advance):
            inner_ended = 1
            for i in range(N_LOOPS):
                with m.If(inner_ended & ~ended[i]):
                    m.d.sync += [left[i].eq(left[i] - 1), self.address.eq(self.address + step[i])]
                    m.d.sync += [left[inner].eq(reload[inner]) for inner in range(i)]
                inner_ended = inner_ended & ended[i]
        with m.If(self.start):
            m.d.sync += self.address.eq(self.base)
            for i in range(N_LOOPS):
                m.d.sync += [
                    left[i].eq(self.loops.count[i] - 1),
                    reload[i].eq(self.loops.count[i] - 1),
                    step[i].eq(self.loops.step[i]),
                ]
        all_ended = ended[0]
        for i in range(1, N_LOOPS):
            all_ended = all_ended & ended[i]
        m.d.comb += self.last.eq(all_ended)
        return m
