"""Asynchronous serial bytes: eight bits, lowest first, no parity, one stop bit."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

DIVISOR_WIDTH = 12
MIN_DIVISOR = 4
"""Clock cycles per bit: at least this many, so that a bit has three samples and a middle."""
FRAME_BITS = 10
"""Start bit, data, stop bit."""


class UartReceiver(wiring.Component):
    """Bytes from a serial line.

    The line is sampled every clock cycle; each sample is the majority of three neighbours, and a
    bit is the sample in its middle. A start bit that is gone by its middle starts nothing, and a
    byte without a stop bit is dropped. Latency: ``valid`` is high for one cycle, about half a bit
    after the stop bit began.

    Members
    -------
    rx
        Asynchronous; high when idle.
    divisor
        Clock cycles per bit, at least ``MIN_DIVISOR``.
    valid, byte
        ``byte`` is right only while ``valid``.
    """

    def __init__(self) -> None:
        super().__init__(
            {"rx": In(1, init=1), "divisor": In(DIVISOR_WIDTH), "valid": Out(1), "byte": Out(8)}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # The first two only bring the line into this clock domain.
        samples = Signal(5, init=-1)
        m.d.sync += samples.eq(Cat(self.rx, samples))
        low, middle, high = samples[2:]
        level = (low & middle) | (middle & high) | (low & high)

        busy = Signal()
        n_left = Signal(range(FRAME_BITS))
        wait = Signal(DIVISOR_WIDTH, reset_less=True)
        m.d.sync += self.valid.eq(0)
        with m.If(~busy):
            m.d.sync += [wait.eq(self.divisor[1:]), n_left.eq(FRAME_BITS - 1), busy.eq(~level)]
        with m.Elif(wait != 1):
            m.d.sync += wait.eq(wait - 1)
        with m.Else():
            m.d.sync += [wait.eq(self.divisor), n_left.eq(n_left - 1)]
            with m.If(n_left == 0):
                m.d.sync += [busy.eq(0), self.valid.eq(level)]
            with m.Else():
                m.d.sync += self.byte.eq(Cat(self.byte[1:], level))
            with m.If((n_left == FRAME_BITS - 1) & level):
                m.d.sync += busy.eq(0)
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a serial line.

    Throughput: one byte per ``FRAME_BITS * divisor`` cycles.

    Members
    -------
    i
        Bytes.
    tx
        High when idle.
    divisor
        Clock cycles per bit, at least ``MIN_DIVISOR``.
    """

    def __init__(self) -> None:
        super().__init__(
            {"i": In(stream.Signature(8)), "tx": Out(1, init=1), "divisor": In(DIVISOR_WIDTH)}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bits = Signal(FRAME_BITS - 1, init=-1)
        n_left = Signal(range(FRAME_BITS + 1))
        wait = Signal(DIVISOR_WIDTH, reset_less=True)
        m.d.comb += [self.i.ready.eq(n_left == 0), self.tx.eq(bits[0])]
        with m.If(n_left == 0):
            m.d.sync += wait.eq(self.divisor)
            with m.If(self.i.valid):
                m.d.sync += [bits.eq(Cat(Const(0, 1), self.i.payload)), n_left.eq(FRAME_BITS)]
        with m.Elif(wait != 1):
            m.d.sync += wait.eq(wait - 1)
        with m.Else():
            m.d.sync += [
                wait.eq(self.divisor),
                bits.eq(Cat(bits[1:], 1)),
                n_left.eq(n_left - 1),
            ]
        return m
