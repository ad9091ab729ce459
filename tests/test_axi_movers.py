"""Data movers and read arbiter against a memory model: bytes, bus rules, errors, windows, halt."""

import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.config import BusConfig
from rtl_gen.axi import ReadArbiter, ReadSignature
from rtl_gen.axi_read import AxiReader
from tests.axi_bench import (
    BUSES,
    IDS,
    Halter,
    Reading,
    Writing,
    check_data,
    expected_bursts,
    flat,
    open_window,
    packed,
    payloads,
    random_requests,
)
from tests.axi_memory import (
    Level,
    ReadMemory,
    Sink,
    Source,
    WriteMemory,
    random_stalls,
    run_actors,
)
from tests.rtl.bench import at_random


@pytest.mark.parametrize("stalls", [0.0, 0.4])
@pytest.mark.parametrize("bus", BUSES, ids=IDS)
def test_reads(bus, stalls):
    """Bytes, bursts, number in flight and beat pulses, at full rate and with random stalls."""
    requests = random_requests(bus, 1, 14)
    rng = random.Random(2)
    memory = ReadMemory(bus, latency=lambda _: rng.randint(1, 30), **random_stalls(3, stalls))
    reading = Reading(bus, requests, memory, offer=at_random(5, stalls), take=at_random(6, stalls))
    reading.run()
    check_data(bus, requests, reading.sink.payloads)
    assert memory.bursts == flat(expected_bursts(bus, requests))
    assert memory.most_in_flight <= bus.outstanding
    assert reading.beats.cycles == [cycle + 1 for cycle in memory.beat_at]
    assert not reading.errors.cycles and not reading.out_of_range.cycles
    assert not stalls or (memory.holds.n_held and reading.holds.n_held)


@pytest.mark.parametrize("order", ["any", "address_first", "data_first"])
@pytest.mark.parametrize("stalls", [0.0, 0.4])
@pytest.mark.parametrize("bus", BUSES, ids=IDS)
def test_writes(bus, stalls, order):
    """Exactly the requested bytes, in order, whichever channel the memory wants first."""
    requests = random_requests(bus, 11, 12)
    rng = random.Random(12)
    memory = WriteMemory(
        bus, latency=lambda _: rng.randint(1, 30), order=order, **random_stalls(13, stalls)
    )
    writing = Writing(
        bus, requests, memory, offer=at_random(15, stalls), give=at_random(16, stalls)
    )
    writing.run()
    assert memory.writes == writing.expected_writes()
    assert memory.bursts == flat(expected_bursts(bus, requests))
    assert memory.most_in_flight <= bus.outstanding
    assert writing.beats.cycles == [cycle + 1 for cycle in memory.beat_at]
    assert not writing.errors.cycles and not writing.out_of_range.cycles


@pytest.mark.parametrize("bus", BUSES[1:3], ids=IDS[1:3])
def test_every_alignment(bus):
    """All start lanes with all lengths up to three beats, back to back, read and written."""
    requests = [
        (4096 - bus.data_bytes + start, n_bytes)
        for start in range(bus.data_bytes)
        for n_bytes in range(1, 3 * bus.data_bytes + 1)
    ]
    reading = Reading(bus, requests, ReadMemory(bus))
    reading.run()
    check_data(bus, requests, reading.sink.payloads)
    writing = Writing(bus, requests, WriteMemory(bus))
    writing.run()
    assert writing.memory.writes == writing.expected_writes()


@pytest.mark.parametrize("seed", [1, 2])
def test_read_errors(seed):
    """An error on any beat pulses with the address of its burst; the data still come."""
    bus = BUSES[1]
    requests = random_requests(bus, seed, 20, most=80)
    bursts = flat(expected_bursts(bus, requests))
    rng = random.Random(seed)
    bad = {}
    for _ in range(12):
        number = rng.randrange(len(bursts))
        bad[number, rng.randint(0, bursts[number][1])] = rng.choice([2, 3])
    memory = ReadMemory(bus, response=lambda *where: bad.get(where, 0), **random_stalls(seed, 0.3))
    reading = Reading(bus, requests, memory, take=at_random(seed, 0.3))
    reading.run()
    check_data(bus, requests, reading.sink.payloads)
    assert reading.errors.values == [bursts[number][0] for number, _ in sorted(bad)]


@pytest.mark.parametrize("seed", [1, 2])
def test_write_errors(seed):
    """An error response pulses with its burst's address."""
    bus = BUSES[1]
    requests = random_requests(bus, seed, 20, most=80)
    bursts = flat(expected_bursts(bus, requests))
    rng = random.Random(seed)
    bad = {rng.randrange(len(bursts)): rng.choice([2, 3]) for _ in range(10)}
    memory = WriteMemory(bus, response=lambda n: bad.get(n, 0), **random_stalls(seed, 0.3))
    writing = Writing(bus, requests, memory)
    writing.run()
    assert writing.errors.values == [bursts[number][0] for number in sorted(bad)]


@pytest.mark.parametrize("mover", [Reading, Writing])
@pytest.mark.parametrize(
    ("low", "high", "request_bad"),
    [
        (1000, 2999, (999, 1)),
        (1000, 2999, (999, 50)),
        (1000, 2999, (2999, 2)),
        (1000, 2999, (3000, 1)),
        (1000, 2999, (2900, (1 << 24) - 1)),
        (0, (1 << 20) - 1, ((1 << 20) - 1, 2)),
        (0, (1 << 20) - 1, (5, 1 << 20)),
    ],
)
def test_window(mover, low, high, request_bad):
    """Requests up to both edges pass; one byte beyond is reported, not issued, and stops the mover.

    The report comes when the requests before it are finished; after a halt the next ones run.
    """
    bus = BUSES[1]
    good = [(low, 9), (high - 6, 7), (low, 1), (high, 1)]
    memory = (ReadMemory if mover is Reading else WriteMemory)(bus, latency=lambda _: 9)
    window = [Level("window_low", lambda _: low), Level("window_high", lambda _: high)]
    bench = mover(bus, [*good, request_bad, *good], memory, window=window)
    bench.run(lambda: bench.idle.now > 150)
    assert memory.bursts == flat(expected_bursts(bus, good))
    assert bench.out_of_range.values == [request_bad[0]] and not bench.errors.cycles
    assert bench.idle.since is None
    last = memory.beat_at[-1] if mover is Reading else memory.done_at[-1]
    assert bench.out_of_range.cycles[0] == last + 3

    memory = (ReadMemory if mover is Reading else WriteMemory)(bus, latency=lambda _: 9)
    bench = mover(bus, [*good, request_bad], memory, window=window)
    again = {bench.source: payloads(bus, good)}
    if mover is Writing:
        again[bench.data] = [beat for request in good for beat in packed(bus, bytes(request[1]))]
    bench.actors.append(Halter(120, again, wait_idle=True))
    bench.run(lambda: bench.idle.now > 240)
    assert memory.bursts == flat(expected_bursts(bus, good)) * 2
    assert len(bench.out_of_range.cycles) == 1 and bench.idle.since


@pytest.mark.parametrize("wait_idle", [True, False])
@pytest.mark.parametrize("stalls", [0.0, 0.5])
@pytest.mark.parametrize("at", [1, 4, 5, 20, 47])
def test_read_halt(at, stalls, wait_idle):
    """After a halt in any cycle nothing new is asked for, and the next requests get their data."""
    bus = BUSES[1]
    before, after = random_requests(bus, at, 12, most=60), random_requests(bus, at + 1, 4, most=60)
    memory = ReadMemory(bus, latency=lambda _: 7, **random_stalls(at, stalls))
    reading = Reading(bus, before, memory, take=at_random(at, stalls))
    reading.actors.remove(reading.holds)
    halter = Halter(at, {reading.source: payloads(bus, after)}, wait_idle=wait_idle)
    reading.actors.insert(0, halter)
    bursts = flat(expected_bursts(bus, after))

    def done() -> bool:
        announced = [cycle for cycle in memory.address_at if cycle > at + 1]
        n_new = len(memory.bursts) - len(bursts)
        complete = n_new >= 0 and memory.bursts[n_new:] == bursts and not memory.n_in_flight
        return bool(announced) and complete and bool(reading.idle.since)

    reading.run(done)
    n_old = sum(cycle <= at + 1 for cycle in reading.sink.taken_at)
    check_data(bus, after, reading.sink.payloads[n_old:])
    late = [cycle for cycle in memory.address_at if cycle > at + 1]
    assert len(late) - len(bursts) <= 1
    n_old = len(memory.bursts) - len(bursts)
    assert memory.bursts[:n_old] == flat(expected_bursts(bus, before))[:n_old]


@pytest.mark.parametrize("wait_idle", [True, False])
@pytest.mark.parametrize("stalls", [0.0, 0.5])
@pytest.mark.parametrize("at", [1, 4, 5, 20, 47])
def test_write_halt(at, stalls, wait_idle):
    """After a halt announced bursts end without a byte written; the next requests are whole."""
    bus = BUSES[1]
    before, after = random_requests(bus, at, 12, most=60), random_requests(bus, at + 1, 4, most=60)
    memory = WriteMemory(bus, latency=lambda _: 7, **random_stalls(at, stalls))
    writing = Writing(bus, before, memory, give=at_random(at, stalls))
    fresh = Writing(bus, after, None, seed=9)
    fresh.dut._MustUse__silence = True
    restart = {writing.source: fresh.source.queue, writing.data: fresh.data.queue}
    writing.actors.insert(0, Halter(at, restart, wait_idle=wait_idle))
    bursts = flat(expected_bursts(bus, after))

    def done() -> bool:
        n_old = len(memory.bursts) - len(bursts)
        complete = n_old >= 0 and memory.bursts[n_old:] == bursts and not memory.n_in_flight
        return complete and bool(writing.idle.since)

    writing.run(done)
    n_old = len(memory.writes) - sum(n_bytes for _, n_bytes in after)
    assert memory.writes[:n_old] == writing.expected_writes()[:n_old]
    assert memory.writes[n_old:] == fresh.expected_writes()
    late = [cycle for cycle in memory.address_at if cycle > at + 1]
    assert len(late) - len(bursts) <= 1
    n_old = len(memory.bursts) - len(bursts)
    assert memory.bursts[:n_old] == flat(expected_bursts(bus, before))[:n_old]


class SharedReader(wiring.Component):
    """A reader behind the arbiter."""

    def __init__(self, bus: BusConfig) -> None:
        self.arbiter = ReadArbiter(bus)
        self.reader = AxiReader(bus)
        clients = ("fetch_request", "fetch_data", "load_request", "load_data")
        super().__init__(
            {name: self.arbiter.signature.members[name] for name in clients}
            | {
                "axi": Out(ReadSignature(bus)),
                "window_low": In(bus.address_width),
                "window_high": In(bus.address_width),
                "halt": In(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.arbiter = arbiter = self.arbiter
        m.submodules.reader = reader = self.reader
        for client in ("fetch", "load"):
            outer, inner = getattr(self, f"{client}_request"), getattr(arbiter, f"{client}_request")
            wiring.connect(m, wiring.flipped(outer), inner)
            outer, inner = getattr(self, f"{client}_data"), getattr(arbiter, f"{client}_data")
            wiring.connect(m, wiring.flipped(outer), inner)
        wiring.connect(m, arbiter.request, reader.request)
        wiring.connect(m, reader.data, arbiter.data)
        wiring.connect(m, reader.axi, wiring.flipped(self.axi))
        m.d.comb += [
            reader.window_low.eq(self.window_low),
            reader.window_high.eq(self.window_high),
            reader.halt.eq(self.halt),
            arbiter.halt.eq(self.halt),
            self.idle.eq(arbiter.idle & reader.idle),
        ]
        return m


@pytest.mark.parametrize("bus", BUSES[:3], ids=IDS[:3])
@pytest.mark.parametrize("stalls", [0.0, 0.4])
@pytest.mark.parametrize("halt_at", [None, 40])
def test_arbiter(bus, stalls, halt_at):
    """Each client gets its own data in its own order, before and after a halt; fetch goes first."""
    dut = SharedReader(bus)
    memory = ReadMemory(bus, latency=lambda _: 12, **random_stalls(1, stalls))
    requests = {name: random_requests(bus, seed, 8) for seed, name in enumerate(("fetch", "load"))}
    sources = {
        name: Source(f"{name}_request", payloads(bus, requests[name]), at_random(3, stalls))
        for name in requests
    }
    sinks = {name: Sink(f"{name}_data", at_random(5, stalls)) for name in requests}
    actors = [*open_window(bus), *sources.values(), *sinks.values(), memory]
    if halt_at:
        again = {sources[name]: payloads(bus, requests[name]) for name in requests}
        actors.append(Halter(halt_at, again, wait_idle=True))
    n_data = {
        name: sum(-(-n_bytes // bus.data_bytes) for _, n_bytes in requests[name])
        for name in requests
    }

    def n_new(name: str) -> int:
        return sum(cycle > (halt_at or -2) + 1 for cycle in sinks[name].taken_at)

    run_actors(dut, actors, lambda: all(n_new(name) >= n_data[name] for name in requests))
    for name in requests:
        check_data(bus, requests[name], sinks[name].payloads[-n_data[name] :])
        assert n_new(name) == n_data[name]
    if not stalls and not halt_at:
        assert max(sources["fetch"].taken_at) < min(sources["load"].taken_at)
