"""AXI4-Lite rules of the register access, proved by k-induction for every behaviour of the master.

Monitors beside the component count requests and responses; assertions speak about them, the
component's members and two of its states.
"""

from collections.abc import Callable

import pytest
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from rtl_gen.axi_lite import OKAY, SLAVE_ERROR, AxiLite, AxiLiteSlave
from rtl_gen.register_file import RegisterBus, RegisterFile
from tests.formal_support import Opened, broken, prove, refuted
from tests.rtl.test_register_file import odd_map

LONGEST_ACCESS = 2
"""Cycles that the register side may take to acknowledge; bounds how long a master waits."""
DEPTH = 10


class Past:
    """Values of the cycle before; ``valid`` is 0 in the first cycle.

    In a module of its own, so that an ``m.If`` around a call does not hold them back.
    """

    def __init__(self, m: Module) -> None:
        m.submodules.past = self._m = Module()
        self.valid = Signal(name="past_valid")
        self._m.d.sync += self.valid.eq(1)

    def __call__(self, value) -> Signal:
        value = Value.cast(value)
        past = Signal(len(value), name="past")
        self._m.d.sync += past.eq(value)
        return past


def counter(m: Module, up, down, name: str) -> Signal:
    """Ups minus downs so far."""
    count = Signal(3, name=name)
    m.d.sync += count.eq(count + up - down)
    return count


def age(m: Module, waiting, name: str) -> Signal:
    """Cycles for which ``waiting`` has been high without a break, up to 31."""
    cycles = Signal(5, name=name)
    m.d.sync += cycles.eq(Mux(waiting, Mux(cycles == 31, 31, cycles + 1), 0))
    return cycles


def keeps_requests(m: Module, past: Past, valid, ready, *payload, check: Callable) -> None:
    """A valid that is not taken stays, with its payload."""
    held = past.valid & past(valid & ~ready)
    m.d.comb += check(~held | valid)
    for value in payload:
        m.d.comb += check(~held | (value == past(value)))


class AxiLiteProof(wiring.Component):
    """The slave between any master that keeps the rules and any register side that does.

    ``bounded``: the register side answers within ``LONGEST_ACCESS`` cycles, and nobody waits long.
    """

    def __init__(self, slave: type[AxiLiteSlave] = AxiLiteSlave, *, bounded: bool = False) -> None:
        self.dut = slave(6)
        self.bounded = bounded
        super().__init__(
            {
                "axi": In(AxiLite(6)),
                "acknowledge": In(1),
                "error": In(1),
                "read_data": In(32),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.dut = opened = Opened(self.dut)
        axi, bus = self.dut.axi, self.dut.bus
        wiring.connect(m, wiring.flipped(self.axi), axi)
        m.d.comb += [
            bus.acknowledge.eq(self.acknowledge),
            bus.error.eq(self.error),
            bus.read_data.eq(self.read_data),
        ]
        past = Past(m)

        # --- the master ------------------------------------------------------------------------
        keeps_requests(m, past, axi.awvalid, axi.awready, axi.awaddr, check=Assume)
        keeps_requests(m, past, axi.wvalid, axi.wready, axi.wdata, axi.wstrb, check=Assume)
        keeps_requests(m, past, axi.arvalid, axi.arready, axi.araddr, check=Assume)

        # --- the register side -----------------------------------------------------------------
        outstanding, reading = Signal(), Signal()
        asked = bus.read | bus.write
        with m.If(asked):
            m.d.sync += [outstanding.eq(1), reading.eq(bus.read)]
        with m.Elif(bus.acknowledge):
            m.d.sync += outstanding.eq(0)
        m.d.comb += [
            Assume(~bus.acknowledge | outstanding),
            Assume((outstanding & reading) | (bus.read_data == past(bus.read_data))),
            Assert(~(bus.read & bus.write)),
            Assert(~(asked & outstanding)),
        ]
        request = Cat(bus.address, bus.write_data, bus.strobes)
        with m.If(outstanding):
            m.d.comb += Assert(bus.address == past(bus.address))
            with m.If(~reading):
                m.d.comb += Assert(request == past(request))

        # --- handshakes ------------------------------------------------------------------------
        keeps_requests(m, past, axi.bvalid, axi.bready, axi.bresp, check=Assert)
        keeps_requests(m, past, axi.rvalid, axi.rready, axi.rresp, axi.rdata, check=Assert)

        # --- one response per request ----------------------------------------------------------
        b_taken = axi.bvalid & axi.bready
        n_aw = counter(m, axi.awvalid & axi.awready, b_taken, "n_aw")
        n_w = counter(m, axi.wvalid & axi.wready, b_taken, "n_w")
        n_ar = counter(m, axi.arvalid & axi.arready, axi.rvalid & axi.rready, "n_ar")
        m.d.comb += [
            Assert(~axi.bvalid | ((n_aw != 0) & (n_w != 0))),
            Assert(~axi.rvalid | (n_ar != 0)),
            Assert(n_aw == ~axi.awready + axi.bvalid),
            Assert(n_w == ~axi.wready + axi.bvalid),
            Assert(n_ar == (outstanding & reading) + axi.rvalid),
            Assert(opened["busy"] == (asked | outstanding)),
            Assert(~asked | (opened["writing"] == bus.write)),
            Assert(~outstanding | (opened["writing"] == ~reading)),
            Assert(~bus.read | (axi.arvalid & axi.arready & ~axi.rvalid)),
            Assert(bus.read == axi.arready),
            Assert(~(outstanding & reading) | ~axi.rvalid),
            Assert(~(bus.write | (outstanding & ~reading)) | (~axi.awready & ~axi.wready)),
            Assert(~(bus.write | (outstanding & ~reading)) | ~axi.bvalid),
        ]

        # --- what is asked is what was requested, what is answered is what came back ------------
        aw, w = Signal(6), Signal(36)
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += aw.eq(axi.awaddr)
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += w.eq(Cat(axi.wdata, axi.wstrb))
        m.d.comb += [
            Assert(axi.awready | (opened["write_address"] == aw[2:])),
            Assert(axi.wready | (Cat(bus.write_data, bus.strobes) == w)),
        ]
        with m.If(bus.write):
            m.d.comb += Assert(Cat(bus.address, bus.write_data, bus.strobes) == Cat(aw[2:], w))
        with m.If(bus.read):
            m.d.comb += Assert(bus.address == axi.araddr[2:])
        error = Mux(bus.error, SLAVE_ERROR, OKAY)
        finished = past.valid & past(outstanding & bus.acknowledge)
        with m.If(finished & past(reading)):
            m.d.comb += Assert(axi.rvalid & (axi.rresp == past(error)))
            m.d.comb += Assert(axi.rdata == past(bus.read_data))
        with m.If(finished & ~past(reading)):
            m.d.comb += Assert(axi.bvalid & (axi.bresp == past(error)))

        # --- nobody waits for ever -------------------------------------------------------------
        if self.bounded:
            longest = 2 * (LONGEST_ACCESS + 3)
            access_age = age(m, outstanding & ~bus.acknowledge, "access_age")
            write_age = age(m, ~axi.awready & ~axi.wready & ~axi.bvalid, "write_age")
            read_age = age(m, axi.arvalid & ~axi.arready & ~axi.rvalid, "read_age")
            m.d.comb += [
                Assume(access_age < LONGEST_ACCESS),
                Assert(write_age <= longest),
                Assert(read_age <= longest),
            ]
        return m


def drops_a_response(m, slave):
    with m.If(slave.axi.bvalid & slave.axi.arvalid):
        m.d.sync += slave.axi.bvalid.eq(0)


def answers_twice(m, slave):
    with m.If(slave.axi.rvalid & slave.axi.rready & slave.axi.bvalid):
        m.d.sync += slave.axi.rvalid.eq(1)


def waits_for_the_data(m, slave):
    m.d.comb += slave.axi.awready.eq(slave.axi.wvalid)


def starves_reads(m, slave):
    with m.If(slave.axi.awvalid):
        m.d.sync += [slave.bus.read.eq(0), slave.axi.arready.eq(0)]


def mixes_up_addresses(m, slave):
    with m.If(slave.axi.awvalid & ~slave.axi.awready):
        m.d.sync += slave.bus.address[0].eq(slave.axi.awaddr[2])


def test_axi_lite_slave():
    prove(AxiLiteProof(), depth=2)


def test_axi_lite_slave_lets_nobody_wait():
    prove(AxiLiteProof(bounded=True), depth=DEPTH)


@pytest.mark.parametrize(
    "mistake",
    [
        drops_a_response,
        answers_twice,
        waits_for_the_data,
        starves_reads,
        mixes_up_addresses,
    ],
)
def test_mistakes_are_found(mistake):
    slave = broken(AxiLiteSlave, mistake)
    assert refuted(AxiLiteProof(slave, bounded=True), mode="bmc", depth=DEPTH)


class Reached(AxiLiteProof):
    """Every kind of answer happens, so that the proof is not about nothing."""

    def elaborate(self, platform) -> Module:
        m = super().elaborate(platform)
        axi = self.dut.axi
        waiting = axi.bvalid & ~axi.bready & axi.rvalid & ~axi.rready
        m.d.comb += [
            Cover(waiting & (axi.bresp == OKAY) & (axi.rresp == SLAVE_ERROR)),
            Cover(waiting & (axi.bresp == SLAVE_ERROR) & (axi.rresp == OKAY) & ~axi.awready),
        ]
        return m


def test_the_proof_is_not_about_nothing():
    prove(Reached(), mode="cover", depth=DEPTH)


class RegisterFileProof(wiring.Component):
    """The register side keeps what the slave's proof assumes of it, and holds what was written."""

    def __init__(self, device: type[RegisterFile] = RegisterFile) -> None:
        registers = odd_map()
        self.dut = device(registers)
        self.depth = len(registers.in_memory)
        super().__init__(
            {
                "bus": In(RegisterBus(registers.address_width)),
                "valid": In(1),
                "data": In(32),
                "flags_set": In(7),
                "flags_clear": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.dut = dut = self.dut
        bus = dut.bus
        wiring.connect(m, wiring.flipped(self.bus), bus)
        m.d.comb += [
            dut.counters.valid.eq(self.valid),
            dut.counters.data.eq(self.data),
            dut.mixed_flags_set.eq(self.flags_set),
            dut.mixed_flags_clear.eq(self.flags_clear),
        ]
        past = Past(m)

        # --- the asking side, and the counters ---------------------------------------------------
        outstanding, reading, counting = Signal(), Signal(), Signal()
        asked = bus.read | bus.write
        with m.If(asked):
            m.d.sync += [outstanding.eq(1), reading.eq(bus.read)]
        with m.Elif(bus.acknowledge):
            m.d.sync += outstanding.eq(0)
        with m.If(dut.counters.request):
            m.d.sync += counting.eq(1)
        with m.Elif(self.valid):
            m.d.sync += counting.eq(0)
        request = Cat(bus.address, bus.write_data, bus.strobes)
        m.d.comb += [
            Assume(~(bus.read & bus.write)),
            Assume(~(asked & outstanding)),
            Assume(~outstanding | (request == past(request))),
            Assume(~self.valid | counting),
        ]

        # --- one acknowledgement, the data hold --------------------------------------------------
        m.d.comb += [
            Assert(~bus.acknowledge | outstanding),
            Assert(~counting | (outstanding & reading & ~bus.acknowledge & ~bus.error)),
            Assert(~outstanding | counting | bus.acknowledge),
            Assert((outstanding & reading) | (bus.read_data == past(bus.read_data))),
            Assert(~dut.counters.request | (dut.counters.slot < self.depth)),
        ]
        with m.If(past.valid & past(self.valid)):
            m.d.comb += Assert(bus.acknowledge & (bus.read_data == past(self.data)) & ~bus.error)

        # --- one register in full: `plain`, number 6, and the flags of `mixed`, number 1 ----------
        plain = Signal(32, init=0x89ABCDEF)
        with m.If(bus.write & (bus.address == 6)):
            for byte in range(4):
                with m.If(bus.strobes[byte]):
                    m.d.sync += plain.word_select(byte, 8).eq(bus.write_data.word_select(byte, 8))
        m.d.comb += Assert(dut.plain == plain)
        answered = past.valid & past(bus.read) & past(bus.address == 6)
        with m.If(answered):
            m.d.comb += Assert(bus.read_data == past(plain))
            m.d.comb += Assert(bus.acknowledge & ~bus.error)
        with m.If(past.valid):
            event = past(self.flags_set)
            m.d.comb += Assert((dut.mixed_flags & event) == event)
        return m


def ignores_a_strobe(m, device):
    with m.If(device.bus.write & (device.bus.address == 6)):
        m.d.sync += device.plain[24:].eq(device.bus.write_data[24:])


def clears_before_it_sets(m, device):
    with m.If(device.mixed_flags_clear):
        m.d.sync += device.mixed_flags.eq(0)


def test_register_file():
    prove(RegisterFileProof(), depth=2)


@pytest.mark.parametrize("mistake", [ignores_a_strobe, clears_before_it_sets])
def test_mistakes_of_the_register_file_are_found(mistake):
    assert refuted(RegisterFileProof(broken(RegisterFile, mistake)), mode="bmc", depth=4)
