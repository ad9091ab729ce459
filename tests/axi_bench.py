"""A data mover with a memory, streams and recorders around it; requests and what they must do."""

import random

from gshw.config import BusConfig
from rtl_gen.axi_read import AxiReader
from rtl_gen.axi_write import AxiWriter
from tests.axi_memory import (
    HoldChecker,
    Level,
    Recorder,
    Sink,
    Source,
    byte_at,
    run_actors,
)
from tests.rtl.bench import never

BUSES = [
    BusConfig(data_width=32, address_width=16, max_burst=1, outstanding=1),
    BusConfig(data_width=32, address_width=20, max_burst=4, outstanding=2),
    BusConfig(data_width=64, address_width=32, max_burst=16, outstanding=16),
    BusConfig(data_width=128, address_width=40, max_burst=256, outstanding=4),
    BusConfig(data_width=512, address_width=64, max_burst=8, outstanding=8),
    # Its longest burst is longer than 4 KiB, so that only the page limits it.
    BusConfig(data_width=512, address_width=32, max_burst=256, outstanding=4),
]
IDS = [f"{bus.data_width}x{bus.max_burst}" for bus in BUSES]
MEDIUM = BUSES[2]
Request = tuple[int, int]


def random_requests(bus: BusConfig, seed: int, n_requests: int, most: int = 0) -> list[Request]:
    """Addresses and byte counts: whole beats, odd ones, across 4 KiB, both ends of memory.

    ``most`` bytes each, by default four bursts and a bit. Where a burst could be longer than 4 KiB,
    two more are.
    """
    pages = [(5 * 4096 + 7, 4096), (9 * 4096, 8189)]
    long = pages if bus.max_burst * bus.data_bytes > 4096 and not most else []
    most = most or min(4 * bus.max_burst * bus.data_bytes + 5, 600)
    rng = random.Random(seed)
    top = 1 << bus.address_width
    requests = []
    for index in range(n_requests):
        n_bytes = rng.choice([1, bus.data_bytes, 2 * bus.data_bytes + 1, rng.randint(1, most)])
        address = rng.randrange(top - n_bytes)
        if index % 4 == 1:
            address -= address % bus.data_bytes
        if index % 4 == 2:
            address = max(rng.randint(1, (top >> 12) - 1) * 4096 - rng.randint(1, n_bytes), 0)
        requests.append((min(address, top - n_bytes), n_bytes))
    return [*requests, *long, (0, most), (top - 2 * bus.data_bytes - 1, 2 * bus.data_bytes + 1)]


def payloads(bus: BusConfig, requests: list[Request]) -> list[int]:
    return [address | n_bytes << bus.address_width for address, n_bytes in requests]


def n_beats(bus: BusConfig, request: Request) -> int:
    """Beats of memory that a request touches."""
    address, n_bytes = request
    return (address + n_bytes - 1) // bus.data_bytes - address // bus.data_bytes + 1


def expected_bursts(bus: BusConfig, requests: list[Request]) -> list[list[Request]]:
    """Per request its bursts as (address, beats less 1), beat by beat, cut where the rules say."""
    block = min(bus.max_burst * bus.data_bytes, 4096)
    every = []
    for address, n_bytes in requests:
        bursts = []
        first = address - address % bus.data_bytes
        for beat in range(first, address + n_bytes, bus.data_bytes):
            if not bursts or beat % block == 0:
                bursts.append((beat, 0))
            else:
                bursts[-1] = (bursts[-1][0], bursts[-1][1] + 1)
        every.append(bursts)
    return every


def flat(lists) -> list:
    return [item for items in lists for item in items]


def packed(bus: BusConfig, octets: bytes) -> list[int]:
    """Beats of a stream with ``last`` on top; spare bytes 0."""
    beats = [
        int.from_bytes(octets[i : i + bus.data_bytes], "little")
        for i in range(0, len(octets), bus.data_bytes)
    ]
    beats[-1] |= 1 << bus.data_width
    return beats


def memory_bytes(request: Request) -> bytes:
    return bytes(byte_at(request[0] + i) for i in range(request[1]))


def check_data(bus: BusConfig, requests: list[Request], beats: list[int]) -> None:
    """The beats are the requests' bytes, packed; spare bytes of a last beat are free."""
    beats = list(beats)
    for request in requests:
        expected = packed(bus, memory_bytes(request))
        got = beats[: len(expected)]
        del beats[: len(expected)]
        spare = -request[1] % bus.data_bytes
        mask = (1 << (bus.data_width - 8 * spare)) - 1 | 1 << bus.data_width
        got[-1] &= mask
        assert got == expected, request
    assert not beats


def open_window(bus: BusConfig) -> list[Level]:
    top = (1 << bus.address_width) - 1
    return [Level("window_low", lambda _: 0), Level("window_high", lambda _: top)]


class IdleChecker:
    """While ``idle`` is high, no burst is announced or in flight and no data are offered."""

    def __init__(self, memory, *valid: str) -> None:
        self.memory, self.valid = memory, valid
        self.since: int | None = None
        self.now = 0

    def drive(self, _cycle: int) -> dict[str, int]:
        return {}

    def observe(self, cycle: int, seen: dict[str, int]) -> None:
        self.now = cycle
        if not seen["idle"]:
            self.since = None
            return
        assert not self.memory.n_in_flight and not any(seen[name] for name in self.valid)
        self.since = cycle if self.since is None else self.since


class Halter:
    """Halts in cycle ``at`` for ``n_cycles``; its clients drop what they offer, then offer anew.

    ``after`` maps sources to payloads that they offer from the next cycle on, or, with
    ``wait_idle``, when the device has become idle with ``halt`` held as long.
    """

    def __init__(self, at: int, after: dict, *, n_cycles: int = 1, wait_idle: bool = False) -> None:
        self.at, self.after, self.n_cycles, self.wait_idle = at, after, n_cycles, wait_idle
        self.resumed_at: int | None = None
        self._idle = False

    def drive(self, cycle: int) -> dict[str, int]:
        if cycle == self.at:
            for source in self.after:
                source.drop()
        halted = cycle > self.at and (self._idle or not self.wait_idle)
        if halted and self.resumed_at is None and cycle > self.at + 2 * self.wait_idle:
            self.resumed_at = cycle
            for source, items in self.after.items():
                source.queue.extend(items)
        over = self.resumed_at is not None if self.wait_idle else cycle >= self.at + self.n_cycles
        return {"halt": int(cycle >= self.at and not over)}

    def observe(self, _cycle: int, seen: dict[str, int]) -> None:
        self._idle = bool(seen["idle"])


class Reading:
    """A reader with everything around it."""

    def __init__(self, bus, requests, memory, *, offer=never, take=never, window=None) -> None:
        self.bus, self.requests, self.memory = bus, requests, memory
        self.dut = AxiReader(bus)
        self.source = Source("request", payloads(bus, requests), offer)
        self.sink = Sink("data", take)
        self.errors = Recorder("error", "error_address")
        self.out_of_range = Recorder("out_of_range", "error_address")
        self.beats = Recorder("beat")
        self.addresses = Recorder("axi__arvalid")
        self.valid = Recorder("data__valid")
        self.idle = IdleChecker(memory, "axi__arvalid", "data__valid")
        self.holds = HoldChecker("data__valid", "data__ready", "data__payload")
        self.actors = [
            *(window or open_window(bus)),
            *(self.source, self.sink, memory, self.errors, self.out_of_range, self.beats),
            *(self.addresses, self.valid, self.idle, self.holds),
        ]

    def run(self, done=None) -> int:
        """Until all data are out and the reader idle for two cycles, or ``done``."""
        return run_actors(self.dut, self.actors, done or self.finished)

    def finished(self) -> bool:
        n_data = sum(-(-n_bytes // self.bus.data_bytes) for _, n_bytes in self.requests)
        return len(self.sink.payloads) >= n_data and idle_since(self, self.sink.taken_at[-1] + 2)


def idle_since(bench, cycle: int) -> bool:
    """Whether the device is idle in the last cycle, which is ``cycle`` or later."""
    return bench.idle.since is not None and bench.idle.now >= cycle


class Writing:
    """A writer with everything around it."""

    def __init__(
        self, bus, requests, memory, *, offer=never, give=never, window=None, seed=0
    ) -> None:
        self.bus, self.requests, self.memory = bus, requests, memory
        self.dut = AxiWriter(bus)
        rng = random.Random(seed)
        self.octets = [rng.randbytes(min(n_bytes, 10_000)) for _, n_bytes in requests]
        beats = []
        for octets in self.octets:
            spare = rng.randbytes(-len(octets) % bus.data_bytes)
            beats += packed(bus, octets + spare)
        self.n_data = len(beats)
        self.source = Source("request", payloads(bus, requests), offer)
        self.data = Source("data", beats, give)
        self.errors = Recorder("error", "error_address")
        self.out_of_range = Recorder("out_of_range", "error_address")
        self.beats = Recorder("beat")
        self.addresses = Recorder("axi__awvalid")
        self.valid = Recorder("axi__wvalid")
        self.idle = IdleChecker(memory, "axi__awvalid", "axi__wvalid")
        self.actors = [
            *(window or open_window(bus)),
            *(self.source, self.data, memory, self.errors, self.out_of_range, self.beats),
            *(self.addresses, self.valid, self.idle),
        ]

    def run(self, done=None) -> int:
        """Until all bursts are acknowledged and the writer idle for two cycles, or ``done``."""
        return run_actors(self.dut, self.actors, done or self.finished)

    def finished(self) -> bool:
        n_bursts = sum(map(len, expected_bursts(self.bus, self.requests)))
        return self.memory.n_done >= n_bursts and idle_since(self, self.memory.done_at[-1] + 2)

    def expected_writes(self) -> list[tuple[int, int]]:
        return [
            (request[0] + i, octet)
            for request, octets in zip(self.requests, self.octets)
            for i, octet in enumerate(octets)
        ]
