"""Proofs by k-induction: AXI4 rules of the data movers, for every request, memory and halt.

The wrappers keep their own records of requests, bursts and transfers. The invariants that tie the
device's registers to those records are assertions like the rules, so they are proved with them.
"""

from types import SimpleNamespace

import pytest
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In

from gshw.config import BusConfig
from rtl_gen.axi import ReadArbiter, beat_layout, request_layout
from rtl_gen.axi_bursts import BurstIssuer
from rtl_gen.axi_read import AxiReader
from rtl_gen.axi_write import AxiWriter
from tests.formal_support import Opened, broken, memories_as_registers, prove, refuted

BUS = BusConfig(data_width=32, address_width=16, max_burst=4, outstanding=2)
N_BYTES = BUS.data_bytes


def register(m: Module, value, name: str) -> Signal:
    """The value of the cycle before; 0 at first."""
    value = Value.cast(value)
    before = Signal(len(value), name=f"{name}_before")
    m.d.sync += before.eq(value)
    return before


def holds(m: Module, name: str, valid, ready, *payload, unless=0) -> None:
    """Assert that a transfer that is offered and not taken stays, unless ``unless`` was high."""
    waited = register(m, valid & ~ready & ~Value.cast(unless), f"{name}_waits")
    payload = Cat(payload)
    held = register(m, payload, f"{name}_payload")
    m.d.comb += Assert(~waited | (valid & (payload == held)))


def free_request(m: Module, outer, inner) -> None:
    """Connect a request from outside; it asks for at least one byte."""
    m.d.comb += [
        inner.valid.eq(outer.valid),
        Value.cast(inner.payload).eq(Value.cast(outer.payload)),
        Assume(~outer.valid | (outer.payload.n_bytes != 0)),
    ]


def issuer_rules(m: Module, issuer: BurstIssuer, inner, window_low, window_high) -> SimpleNamespace:
    """Assert that bursts are legal and that together they are the requests, and nothing else.

    Returns
    -------
    SimpleNamespace
        The request being cut: ``address`` and ``end`` (inclusive); ``beat``, the number in memory
        of the first beat of the burst being issued; and ``taken``, the bursts in flight whose
        address the bus has taken.
    """
    layout = request_layout(BUS)
    names = ("held", "ended", "left")
    held, ended, left = (Signal(layout, name=f"given_{n}") for n in names)
    tags = [Signal(name=f"given_tag_{n}") for n in names]
    with m.If(inner("advance")):
        m.d.sync += [held.eq(issuer.request.payload), ended.eq(held)]
        m.d.sync += Cat(tags[:2]).eq(Cat(issuer.tag, tags[0]))
    with m.If(~inner("left")):
        m.d.sync += [left.eq(ended), tags[2].eq(tags[1])]
    for name, tag, known in zip(names, tags, ("held_tag", "ended_tag", "tag"), strict=True):
        m.d.comb += Assert(~inner(name) | (inner(known) == tag))
    m.d.comb += [
        Assert(
            ~inner("held")
            | (
                (held.n_bytes != 0)
                & (inner("held_address") == held.address)
                & (inner("held_less_1") == held.n_bytes - 1)
            )
        ),
        Assert(
            ~inner("ended")
            | (
                (ended.n_bytes != 0)
                & (inner("ended_address") == ended.address)
                & (inner("ended_last") == ended.address + ended.n_bytes - 1)
                & (inner("ended_below") == (ended.address < window_low))
            )
        ),
    ]

    # The request being cut.
    end = Signal(26)
    beat = Signal(14)
    end_beat = Signal(14)
    expected = Signal(14)
    outside = Signal()
    m.d.comb += [
        end.eq(left.address + left.n_bytes - 1),
        end_beat.eq(end[2:]),
        outside.eq((left.address < window_low) | (end > window_high)),
        beat.eq(Cat(inner("low"), inner("high"))),
    ]
    burst, issue = issuer.burst, issuer.issue
    with m.If(issue):
        m.d.sync += expected.eq(beat + burst.n_less_1 + 1)
    is_left = inner("left")
    m.d.comb += [
        Assert(~is_left | (left.n_bytes != 0)),
        Assert(~is_left | (inner("bad") == outside)),
        Assert(~is_left | (burst.start == left.address[:2])),
        Assert(~is_left | (Cat(inner("end"), inner("last_low"), inner("last_high")) == end[:16])),
        Assert(~(is_left & outside) | (burst.first & (beat == left.address[2:]))),
        Assert(~(is_left & ~outside) | ((beat >= left.address[2:]) & (beat <= end_beat))),
        Assert(~is_left | (burst.first == (beat == left.address[2:]))),
        Assert(~is_left | burst.first | (beat == expected)),
        Assert(~is_left | burst.first | (inner("low") == 0)),
        # The rules: inside the window, not too long, within 4 KiB, ending with the request.
        Assert(~issue | ~outside),
        Assert(~issue | (burst.n_less_1 < BUS.max_burst)),
        Assert(~issue | (beat[:10] + burst.n_less_1 < 1024)),
        Assert(~issue | (beat + burst.n_less_1 <= end_beat)),
        Assert(~issue | (burst.last == (beat + burst.n_less_1 == end_beat))),
        Assert(~issue | ~issuer.draining),
    ]
    issued = register(m, issue, "issue")
    burst_before = register(m, Cat(beat, burst.n_less_1), "issued")
    m.d.comb += Assert(
        ~issued | (issuer.valid & (Cat(issuer.address[2:], issuer.n_less_1[:2]) == burst_before))
    )
    m.d.comb += [Assert(issuer.address[:2] == 0), Assert(issuer.n_less_1[2:] == 0)]

    # Bursts in flight: their number, and their addresses, the oldest first.
    n_taken = Signal(3)
    m.d.sync += n_taken.eq(n_taken + (issuer.valid & issuer.ready) - issuer.retire)
    level = inner("level")
    # With the tag of their request on top.
    oldest, newer = Signal(17), Signal(17)
    address = Cat(Cat(beat << 2)[:16], tags[2])
    with m.If(issue):
        m.d.sync += newer.eq(address)
    with m.If(issue & (level == issuer.retire)):
        m.d.sync += oldest.eq(address)
    with m.Elif(issuer.retire):
        m.d.sync += oldest.eq(newer)
    rows = inner("addresses.row_0"), inner("addresses.row_1")
    read, write = inner("read_address"), inner("write_address")
    fault_before = register(m, issuer.fault, "fault")
    oldest_before = register(m, oldest, "oldest")
    m.d.comb += [
        Assert(n_taken + issuer.valid == level),
        Assert(level <= BUS.outstanding),
        Assert((write ^ read) == level[0]),
        Assert((level == 0) | (Mux(read, rows[1], rows[0]) == oldest)),
        Assert((level < 2) | (Mux(read, rows[0], rows[1]) == newer)),
        Assert((level != 1) | (oldest == newer)),
        Assert(issuer.error == fault_before),
        Assert(~issuer.error | (Cat(issuer.error_address, issuer.error_tag) == oldest_before)),
        Assert(~issuer.idle | ((n_taken == 0) & ~issuer.valid)),
    ]
    # A request out of range: reported with its own address when nothing is in flight.
    reporting = inner("reporting") & ~issuer.draining
    whole = Cat(left.address, tags[2])
    left_before = register(m, whole, "left")
    outside_before = register(m, is_left & outside, "outside")
    m.d.comb += [
        Assert(
            ~reporting | (is_left & outside & (level == 0) & (Mux(read, rows[1], rows[0]) == whole))
        ),
        Assert(
            ~issuer.out_of_range
            | (outside_before & (Cat(issuer.error_address, issuer.error_tag) == left_before))
        ),
        Assert(~issuer.out_of_range | ~issuer.error),
    ]
    return SimpleNamespace(
        address=left.address, end=end, end_beat=end_beat, beat=beat, taken=n_taken
    )


def window(m: Module, dut) -> tuple[Value, Value]:
    """Any window, the same for ever."""
    low, high = AnyConst(16), AnyConst(16)
    m.d.comb += [dut.window_low.eq(low), dut.window_high.eq(high)]
    return low, high


class ReaderProof(wiring.Component):
    """The reader with any client, and a memory that sends no beat before a burst's address."""

    request: In(stream.Signature(request_layout(BUS)))
    tag: In(1)
    data_ready: In(1)
    halt: In(1)
    arready: In(1)
    rvalid: In(1)
    rdata: In(BUS.data_width)
    rresp: In(2)
    rlast: In(1)

    def __init__(self, device: type[AxiReader] = AxiReader) -> None:
        self._device = device
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        with memories_as_registers("rtl_gen.axi_bursts", "rtl_gen.axi_read"):
            opened = Opened(self._device(BUS))
        dut, axi = opened.component, opened.component.axi
        issuer = opened.inner("issuer")
        m.submodules.dut = opened
        free_request(m, self.request, dut.request)
        m.d.comb += [
            dut.tag.eq(self.tag),
            dut.halt.eq(self.halt),
            dut.data.ready.eq(self.data_ready),
            *(getattr(axi, n).eq(getattr(self, n)) for n in ("arready", "rvalid", "rdata")),
            *(getattr(axi, n).eq(getattr(self, n)) for n in ("rresp", "rlast")),
        ]
        rules = issuer_rules(m, issuer, lambda n: opened[f"issuer.{n}"], *window(m, dut))
        m.d.comb += Assume(~self.rvalid | (rules.taken != 0))
        holds(m, "ar", axi.arvalid, axi.arready, axi.araddr, axi.arlen, axi.arsize, axi.arburst)
        draining = issuer.draining
        holds(m, "data", dut.data.valid, dut.data.ready, dut.data.payload, unless=draining)
        drained = register(m, draining, "draining")
        m.d.comb += [
            Assert((axi.arsize == 2) & (axi.arburst == 1)),
            # While draining the bus is never held up, and nothing goes on to the client.
            Assert(~drained | (axi.rready & ~dut.data.valid)),
            Assert(~opened["blocked"] | dut.data.valid),
            Assert(~dut.idle | ((rules.taken == 0) & ~axi.arvalid & ~dut.data.valid)),
        ]
        return m


class WriterProof(wiring.Component):
    """The writer with any client, and a memory that answers a burst after its address and data."""

    request: In(stream.Signature(request_layout(BUS)))
    data: In(stream.Signature(beat_layout(BUS)))
    halt: In(1)
    awready: In(1)
    wready: In(1)
    bvalid: In(1)
    bresp: In(2)

    def elaborate(self, platform) -> Module:
        m = Module()
        with memories_as_registers("rtl_gen.axi_bursts", "rtl_gen.axi_write"):
            opened = Opened(AxiWriter(BUS))
        dut, axi = opened.component, opened.component.axi
        issuer = opened.inner("issuer")
        m.submodules.dut = opened
        free_request(m, self.request, dut.request)
        m.d.comb += [
            dut.data.valid.eq(self.data.valid),
            Value.cast(dut.data.payload).eq(Value.cast(self.data.payload)),
            dut.halt.eq(self.halt),
            *(getattr(axi, n).eq(getattr(self, n)) for n in ("awready", "wready", "bvalid")),
            axi.bresp.eq(self.bresp),
        ]
        rules = issuer_rules(m, issuer, lambda n: opened[f"issuer.{n}"], *window(m, dut))
        holds(m, "aw", axi.awvalid, axi.awready, axi.awaddr, axi.awlen, axi.awsize, axi.awburst)
        holds(m, "w", axi.wvalid, axi.wready, axi.wdata, axi.wstrb, axi.wlast)
        m.d.comb += Assert((axi.awsize == 2) & (axi.awburst == 1) & axi.bready)

        # Records of the last two bursts issued, by the lowest bit of their number.
        record = {"beat": 14, "n_less_1": 2, "first_byte": 16, "last_byte": 16, "opens": 1}
        records = [{n: Signal(w, name=f"{n}_{i}") for n, w in record.items()} for i in range(2)]
        n_issued, n_sent, n_answered = Signal(2), Signal(2), Signal(2)
        n_beats = Signal(2)
        now = {
            "beat": rules.beat,
            "n_less_1": issuer.burst.n_less_1,
            "first_byte": rules.address,
            "last_byte": rules.end,
            "opens": rules.beat == rules.address[2:],
        }
        for index, fields in enumerate(records):
            with m.If(issuer.issue & (n_issued[0] == index)):
                m.d.sync += [fields[name].eq(value) for name, value in now.items()]
        sent = axi.wvalid & axi.wready
        m.d.sync += [
            n_issued.eq(n_issued + issuer.issue),
            n_sent.eq(n_sent + (sent & axi.wlast)),
            n_answered.eq(n_answered + axi.bvalid),
        ]
        with m.If(sent):
            m.d.sync += n_beats.eq(Mux(axi.wlast, 0, n_beats + 1))

        def number(name: str, value) -> Value:
            """``value`` modulo 4."""
            out = Signal(2, name=name)
            m.d.comb += out.eq(value)
            return out

        def of_burst(which, name: str) -> Value:
            return Mux(which[0], records[1][name], records[0][name])

        n_waiting = number("n_waiting", n_sent - n_answered)
        n_left = number("n_left", n_issued - n_sent)
        m.d.comb += [
            Assume(~axi.bvalid | ((n_waiting != 0) & (rules.taken != 0))),
            Assert(n_waiting + n_left == opened["issuer.level"]),
            Assert(n_waiting <= BUS.outstanding),
            Assert(opened["write_plan"] == n_issued),
        ]

        # Where the bursts are: sent, in the output register, being cut, or waiting in the rows.
        active, read_plan = opened["active"], opened["read_plan"]
        plan = issuer.burst.shape()(opened["plan"])
        n_finished = number("n_finished", read_plan - active)
        n_loaded_left = number("n_loaded_left", n_issued - read_plan)
        n_done = number("n_done", of_burst(n_finished, "n_less_1") - plan.n_less_1)
        m.d.comb += [
            Assert(n_finished == number("n_due", n_sent + (axi.wvalid & axi.wlast))),
            Assert(n_loaded_left + active + (axi.wvalid & axi.wlast) == n_left),
            Assert(~(axi.wvalid & ~axi.wlast) | (active & (n_done == n_beats + 1))),
            Assert(axi.wvalid | (Mux(active, n_done, 0) == n_beats)),
            Assert(~(axi.wvalid & axi.wlast & active) | (n_done == 0)),
            Assert(~active | (plan.n_less_1 <= of_burst(n_finished, "n_less_1"))),
        ]
        for index, fields in enumerate(records):
            row = issuer.burst.shape()(opened[f"plans.row_{index}"])
            first = fields["opens"]
            last = fields["beat"] + fields["n_less_1"] == fields["last_byte"][2:]
            agrees = (
                (row.n_less_1 == fields["n_less_1"])
                & (row.start == fields["first_byte"][:2])
                & (row.end == fields["last_byte"][:2])
                & (row.first == first)
                & (row.last == last)
            )
            live = Mux(n_answered[0] == index, opened["issuer.level"] > 0, 0) | Mux(
                n_answered[0] == index, 0, opened["issuer.level"] > 1
            )
            inside = (
                (fields["beat"] >= fields["first_byte"][2:])
                & (fields["beat"] + fields["n_less_1"] <= fields["last_byte"][2:])
                & (first == (fields["beat"] == fields["first_byte"][2:]))
            )
            here = active & (n_finished[0] == index)
            m.d.comb += [
                Assert(~live | (agrees & inside)),
                Assert(~here | ((plan.start == row.start) & (plan.end == row.end))),
                Assert(~here | ((plan.last == row.last) & (plan.first == (first & (n_done == 0))))),
                Assert(~here | (opened["spill"] == (row.last & (row.end < row.start)))),
            ]

        # The rules: as many beats as announced, and strobes only where the client asked.
        at = number("at", n_sent)
        bytes_at = Signal(17)
        m.d.comb += bytes_at.eq((of_burst(at, "beat") + n_beats) << 2)
        lanes = Cat(
            (bytes_at + i >= of_burst(at, "first_byte"))
            & (bytes_at + i <= of_burst(at, "last_byte"))
            for i in range(N_BYTES)
        )
        halted = Signal()
        with m.If(self.halt):
            m.d.sync += halted.eq(1)
        m.d.comb += [
            Assert(~issuer.draining | halted),
            Assert(~opened["blocked"] | opened["here"]),
            Assert(~dut.idle | ~opened["here"]),
            Assert(~axi.wvalid | (n_left != 0)),
            Assert(~axi.wvalid | (axi.wlast == (n_beats == of_burst(at, "n_less_1")))),
            Assert(~axi.wvalid | (axi.wstrb == lanes) | (halted & (axi.wstrb == 0))),
            Assert(~dut.idle | ((rules.taken == 0) & ~axi.awvalid & ~axi.wvalid & (n_left == 0))),
        ]
        partial = axi.wvalid & axi.wstrb.any() & ~axi.wstrb.all()
        m.d.comb += Cover(partial & ~halted & (n_left + n_waiting == 2))
        m.d.comb += Cover(axi.wvalid & ~axi.wstrb.any() & (n_beats != 0))
        return m


class ArbiterProof(wiring.Component):
    """The arbiter between any two clients and any reader that answers requests in order."""

    fetch_request: In(stream.Signature(request_layout(BUS)))
    load_request: In(stream.Signature(request_layout(BUS)))
    request_ready: In(1)
    data: In(stream.Signature(beat_layout(BUS)))
    fetch_ready: In(1)
    load_ready: In(1)
    halt: In(1)

    def __init__(self, device: type[ReadArbiter] = ReadArbiter) -> None:
        self._device = device
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        with memories_as_registers("rtl_gen.axi"):
            opened = Opened(self._device(BUS))
        dut = opened.component
        m.submodules.dut = opened
        n_turns = 2 * BUS.outstanding
        free_request(m, self.fetch_request, dut.fetch_request)
        free_request(m, self.load_request, dut.load_request)
        m.d.comb += [
            dut.request.ready.eq(self.request_ready),
            dut.data.valid.eq(self.data.valid),
            Value.cast(dut.data.payload).eq(Value.cast(self.data.payload)),
            dut.fetch_data.ready.eq(self.fetch_ready),
            dut.load_data.ready.eq(self.load_ready),
            dut.halt.eq(self.halt),
        ]
        request = (dut.request.payload, dut.of_load)
        holds(m, "request", dut.request.valid, dut.request.ready, *request, unless=dut.halt)

        # Whose data are due, the oldest lowest; data come only for requests handed on.
        fetch = dut.fetch_request.valid & dut.fetch_request.ready
        load = dut.load_request.valid & dut.load_request.ready
        done = dut.data.valid & dut.data.ready & dut.data.payload.last
        due = Signal(n_turns)
        n_due = Signal(range(n_turns + 1))
        kept = Signal(n_turns)
        n_kept = Signal(range(n_turns + 1))
        m.d.comb += [
            kept.eq(Mux(done, due >> 1, due)),
            n_kept.eq(n_due - done),
            Assume(~dut.data.valid | (n_due > dut.request.valid)),
        ]
        with m.If(self.halt):
            m.d.sync += [due.eq(0), n_due.eq(0)]
        with m.Else():
            m.d.sync += [
                due.eq(kept | (load << n_kept)),
                n_due.eq(n_kept + (fetch | load)),
            ]
        first, end = opened["read_turn"], opened["write_turn"]
        rows = Cat(opened[f"turns.row_{i}"] for i in range(n_turns))
        m.d.comb += [
            Assert(n_due <= n_turns),
            Assert((end - first)[: len(end)] == n_due),
            Assert(n_due >= dut.request.valid),
            # The register shows whose the oldest data are before any can come.
            Assert(opened["next_turn"] == (first + 1)[: len(end) - 1]),
            Assert((n_due <= dut.request.valid) | (opened["is_load"] == due[0])),
            # The request on offer is the one accepted last.
            Assert(~dut.request.valid | (dut.of_load == (due >> (n_due - 1)[:3])[0])),
            *(
                Assert((n_due <= i) | (due[i] == rows.bit_select((first + i)[: len(end) - 1], 1)))
                for i in range(n_turns)
            ),
            Assert((due >> n_due) == 0),
            # The rules: one client at a time, fetch first, each beat to whom it is due.
            Assert(~(fetch & load)),
            Assert(~(load & dut.fetch_request.valid)),
            Assert(~dut.fetch_data.valid | (dut.data.valid & ~due[0])),
            Assert(~dut.load_data.valid | (dut.data.valid & due[0])),
            Assert(~dut.data.valid | dut.fetch_data.valid | dut.load_data.valid),
            Assert(~dut.idle | (n_due == 0)),
        ]
        return m


class Unanswered(wiring.Component):
    """A mover whose bus is never ready, with requests and data from the first cycle on.

    After ``n_cycles`` everything that may be offered must be.
    """

    def __init__(self, mover, n_cycles: int) -> None:
        self.mover, self.n_cycles = mover, n_cycles
        super().__init__({"request": In(stream.Signature(request_layout(BUS)))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.dut = dut = self.mover(BUS)
        free_request(m, self.request, dut.request)
        cycle = Signal(range(self.n_cycles + 1))
        with m.If(cycle < self.n_cycles):
            m.d.sync += cycle.eq(cycle + 1)
        end = self.request.payload.address + self.request.payload.n_bytes - 1
        m.d.comb += [
            dut.window_high.eq(-1),
            Assume(self.request.valid & (end < 1 << BUS.address_width)),
        ]
        offered = Signal()
        if self.mover is AxiWriter:
            m.d.comb += [dut.data.valid.eq(1), offered.eq(dut.axi.awvalid & dut.axi.wvalid)]
        else:
            m.d.comb += offered.eq(dut.axi.arvalid)
        m.d.comb += Assert((cycle < self.n_cycles) | offered)
        return m


@pytest.mark.parametrize("proof", [ReaderProof, WriterProof, ArbiterProof])
def test_rules(proof):
    """Rules and invariants hold for ever."""
    prove(proof(), "prove", 3)


def changes_its_address(m, reader):
    m.d.comb += reader.axi.araddr[2].eq(reader.axi.rvalid)


def mixes_up_the_clients(m, arbiter):
    m.d.comb += arbiter.load_data.valid.eq(arbiter.data.valid & arbiter.load_data.ready)


def lets_load_go_first(m, arbiter):
    with m.If(arbiter.load_request.valid):
        m.d.comb += arbiter.load_request.ready.eq(arbiter.fetch_request.ready)


@pytest.mark.parametrize(
    ("proof", "device", "mistake"),
    [
        (ReaderProof, AxiReader, changes_its_address),
        (ArbiterProof, ReadArbiter, mixes_up_the_clients),
        (ArbiterProof, ReadArbiter, lets_load_go_first),
    ],
)
def test_mistakes_are_found(proof, device, mistake):
    assert refuted(proof(broken(device, mistake)), "bmc", 8)


@pytest.mark.parametrize(("mover", "n_cycles"), [(AxiReader, 4), (AxiWriter, 6)])
def test_no_valid_waits_for_ready(mover, n_cycles):
    """Address and data are offered to a bus that is never ready, as soon as documented."""
    prove(Unanswered(mover, n_cycles), "bmc", n_cycles + 3)
    assert refuted(Unanswered(mover, n_cycles - 1), "bmc", n_cycles + 3)


def test_writer_is_exercised():
    """The wrapper assumes nothing away: partial strobes, two bursts in flight, a burst cut off."""
    prove(WriterProof(), "cover", 14)
