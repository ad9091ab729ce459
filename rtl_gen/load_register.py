"""Registers between the loads and the memories, which lie all over a large engine."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out


class LoadRegister(wiring.Component):
    """One register. Latency 1 cycle, throughput one load per cycle."""

    def __init__(self, layout: StructLayout) -> None:
        self.variant = (layout.size, str(layout))
        super().__init__(
            {
                "i": In(stream.Signature(layout, always_ready=True)),
                "o": Out(stream.Signature(layout, always_ready=True)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        payload = Signal(self.i.payload.shape(), name="payload", reset_less=True)
        valid = Signal()
        m.d.sync += [valid.eq(self.i.valid), payload.eq(self.i.payload)]
        m.d.comb += [self.o.valid.eq(valid), self.o.payload.eq(payload)]
        return m
