"""Nested counted loops over positions, and the base addresses that follow them."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gshw.plan import COUNT_WIDTH, N_LOOPS
from rtl_gen.layouts import step_layout


class PositionLoops(wiring.Component):
    """Counts the positions of a box, innermost loop first.

    Latency: ``step`` and ``last`` follow ``start`` and ``advance`` by one cycle. Throughput: one
    position per cycle.

    Members
    -------
    start
        Take ``count_less_1``, which must then hold until the walk ends.
    count_less_1
        Positions along each loop, less 1.
    advance
        Go to the next position.
    step
        What the next ``advance`` steps over: see :class:`SteppedAddress`.
    last
        High at the final position.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "start": In(1),
                "count_less_1": In(COUNT_WIDTH).array(N_LOOPS),
                "advance": In(1),
                "step": Out(step_layout()),
                "last": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        ended = []
        moves = self.advance
        for i in range(N_LOOPS):
            # Holds the positions that follow in this loop, less 1; the sign bit ends it.
            left = Signal(COUNT_WIDTH + 1, name=f"left_{i}", reset_less=True)
            with m.If(self.start | moves):
                m.d.sync += left.eq(Mux(self.start | left[-1], self.count_less_1[i], left) - 1)
            moves = moves & left[-1]
            ended.append(left[-1])
        m.d.comb += [
            self.step.inner_ended.eq(ended[0]),
            self.step.middle_ended.eq(ended[1]),
            self.last.eq(ended[0] & ended[1] & ended[2]),
        ]
        return m


class SteppedAddress(wiring.Component):
    """A position's base address: starts at ``base`` and adds one loop's step at each ``advance``.

    The steps are strides less the inner loops' travel (:meth:`gshw.plan.Command.steps`).

    Latency: ``address`` follows ``start`` and ``advance`` by one cycle. Throughput: one step per
    cycle.

    Members
    -------
    start, base
        First position.
    advance, step
        Add the step of the innermost loop that has not ended.
    steps
        Of each loop, modulo the memory's depth; must hold until the walk ends.
    """

    def __init__(self, address_width: int) -> None:
        self.variant = address_width
        self._address_width = address_width
        super().__init__(
            {
                "start": In(1),
                "base": In(address_width),
                "advance": In(1),
                "step": In(step_layout()),
                "steps": In(data.ArrayLayout(address_width, N_LOOPS)),
                "address": Out(address_width),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        outer = Mux(self.step.middle_ended, self.steps[2], self.steps[1])
        amount = Signal(self._address_width)
        address = Signal(self._address_width, reset_less=True)
        m.d.comb += [
            amount.eq(Mux(self.step.inner_ended, outer, self.steps[0])),
            self.address.eq(address),
        ]
        with m.If(self.start):
            m.d.sync += address.eq(self.base)
        with m.Elif(self.advance):
            m.d.sync += address.eq(address + amount)
        return m
