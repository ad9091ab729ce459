"""The two nested loops of a load or store: where each run begins."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

N_RUN_LOOPS = 2
RUN_COUNT_WIDTH = 16
BUFFER_ADDRESS_WIDTH = 16
"""Bits of a target or source in an instruction, whatever the buffer's depth."""


def is_beyond(address: Value, depth: int) -> Value:
    """Whether a word address is not within a buffer of ``depth`` words."""
    if depth & (depth - 1):
        return address >= depth
    return address[depth.bit_length() - 1 :].any()


class RunLoops(wiring.Component):
    """Walks ``base + i * stride[0] + j * stride[1]``, i innermost, modulo ``2**width``.

    Latency: ``value`` and ``last`` are those of the first run two cycles after ``load``, and
    follow ``advance`` by one cycle. Throughput: one run per cycle. A count of 0 means 65536.

    Parameters
    ----------
    width
        Bits of an address.
    held
        ``count`` and ``stride`` hold until the final run, so that no copy is made of them.

    Members
    -------
    load, base, count, stride
        Read in the cycle of ``load``; index 0 is the inner loop.
    advance
        Go to the next run; not in the two cycles that begin with ``load``.
    value
        Where the run begins.
    line_last
        The inner loop is at its end.
    last
        It is the final run.
    """

    def __init__(self, width: int, *, held: bool = False) -> None:
        self._width = width
        self._held = held
        self.variant = (width, held)
        super().__init__(
            {
                "load": In(1),
                "base": In(width),
                "count": In(data.ArrayLayout(RUN_COUNT_WIDTH, N_RUN_LOOPS)),
                "stride": In(data.ArrayLayout(width, N_RUN_LOOPS)),
                "advance": In(1),
                "value": Out(width),
                "line_last": Out(1),
                "last": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        value = Signal(self._width, reset_less=True)
        next_line = Signal(self._width, reset_less=True)
        if self._held:
            stride, inner_count = list(self.stride), self.count[0]
        else:
            stride = [Signal(self._width, name=f"stride_{i}", reset_less=True) for i in range(2)]
            inner_count = Signal(RUN_COUNT_WIDTH, reset_less=True)
            with m.If(self.load):
                m.d.sync += [stride[i].eq(self.stride[i]) for i in range(2)]
                m.d.sync += inner_count.eq(self.count[0])
        inner_left = Signal(RUN_COUNT_WIDTH, reset_less=True)
        outer_left = Signal(RUN_COUNT_WIDTH, reset_less=True)
        starting = Signal()
        m.d.sync += starting.eq(self.load)
        new_line = starting | self.line_last
        line_end = self.advance & self.line_last
        m.d.comb += [
            self.line_last.eq(inner_left == 1),
            self.last.eq(self.line_last & (outer_left == 1)),
            self.value.eq(value),
        ]
        with m.If(starting | self.advance):
            m.d.sync += [
                value.eq(Mux(new_line, next_line, value + stride[0])),
                inner_left.eq(Mux(new_line, inner_count, inner_left - 1)),
            ]
        with m.If(self.load | starting | line_end):
            m.d.sync += next_line.eq(Mux(self.load, self.base, next_line + stride[1]))
        with m.If(self.load | line_end):
            m.d.sync += outer_left.eq(Mux(self.load, self.count[1], outer_left - 1))
        return m
