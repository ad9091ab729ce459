"""The registers of a top behind AXI4-Lite, and a master that accesses them in the simulator."""

from dataclasses import dataclass, field

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from gshw.registers import RegisterMap
from rtl_gen.axi_lite import AxiLite, AxiLiteSlave
from rtl_gen.counters import CounterBank
from rtl_gen.library import place
from rtl_gen.register_file import RegisterFile

OKAY = 0
SLAVE_ERROR = 2


class Host(wiring.Component):
    """AXI4-Lite slave, register file and counters, as a top wires them."""

    def __init__(self, registers: RegisterMap) -> None:
        self.slave = AxiLiteSlave(registers.address_width)
        self.file = RegisterFile(registers)
        self.bank = CounterBank(8)
        super().__init__({"axi": In(AxiLite(registers.address_width))})

    def elaborate(self, platform) -> Module:
        m = Module()
        place(m, platform, "axi_lite", self.slave)
        place(m, platform, "register_file", self.file)
        place(m, platform, "counters", self.bank)
        wiring.connect(m, wiring.flipped(self.axi), self.slave.axi)
        wiring.connect(m, self.slave.bus, self.file.bus)
        wiring.connect(m, self.file.counters, self.bank.read)
        return m


@dataclass
class Pauses:
    """Cycles that a master waits before it offers or takes something: 0, or up to ``longest``."""

    seed: int = 0
    longest: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def __call__(self) -> int:
        return int(self.rng.integers(self.longest + 1))


async def write(ctx, axi, address: int, value: int, strobes: int = 15, pause=Pauses()) -> int:  # noqa: B008
    """One write; returns the response. Address, data and response each have their pause."""
    waits = {"aw": pause(), "w": pause(), "b": pause()}
    ctx.set(axi.awaddr, address)
    ctx.set(axi.wdata, value)
    ctx.set(axi.wstrb, strobes)
    done: set[str] = set()
    response = None
    while response is None:
        for channel in ("aw", "w"):
            ctx.set(getattr(axi, f"{channel}valid"), channel not in done and waits[channel] <= 0)
        ctx.set(axi.bready, waits["b"] <= 0)
        *_, aw, w, b, bresp = await ctx.tick().sample(
            axi.awvalid & axi.awready, axi.wvalid & axi.wready, axi.bvalid & axi.bready, axi.bresp
        )
        done |= {name for name, took in (("aw", aw), ("w", w)) if took}
        if b:
            assert done == {"aw", "w"}, "a response before its request"
            response = bresp
        waits = {name: left - 1 for name, left in waits.items()}
    ctx.set(axi.bready, 0)
    return response


async def read(ctx, axi, address: int, pause=Pauses()) -> tuple[int, int]:  # noqa: B008
    """One read; returns data and response."""
    waits = {"ar": pause(), "r": pause()}
    ctx.set(axi.araddr, address)
    asked = False
    answer = None
    while answer is None:
        ctx.set(axi.arvalid, not asked and waits["ar"] <= 0)
        ctx.set(axi.rready, waits["r"] <= 0)
        *_, ar, r, data, response = await ctx.tick().sample(
            axi.arvalid & axi.arready, axi.rvalid & axi.rready, axi.rdata, axi.rresp
        )
        asked |= bool(ar)
        if r:
            assert asked, "a response before its request"
            answer = data, response
        waits = {name: left - 1 for name, left in waits.items()}
    ctx.set(axi.rready, 0)
    return answer
