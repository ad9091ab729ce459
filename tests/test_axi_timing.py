"""Cycles of the data movers at a memory of fixed latency: the documented timing, and rates."""

import pytest

from gshw.config import BusConfig
from tests.axi_bench import BUSES, IDS, Reading, Request, Writing, expected_bursts, random_requests
from tests.axi_memory import ReadMemory, WriteMemory

LATENCY = 30


class AddressTiming:
    """Cycles in which bursts are issued, request by request, as the docstrings say."""

    def __init__(self, bus: BusConfig) -> None:
        self.bus = bus
        self.accepted: list[int] = []
        self.issued: list[int] = []
        self.retired: list[int] = []
        self._entered: list[int] = []
        self._left: list[int] = []

    def request(self, offered: int) -> None:
        """Accept one that is offered from this cycle on; two wait while a third is cut."""
        cycle = max(offered, self.accepted[-1] + 1 if self.accepted else 0)
        for entered, left in list(zip(self._entered, self._left))[-2:]:
            if entered <= cycle <= left - 2:
                cycle = left - 1
        self.accepted.append(cycle)
        entered = cycle + 2
        if self._left:
            entered = max(entered, self._left[-1])
        self._entered.append(entered)
        left = max(entered, self.issued[-1] + 1) + 1 if self.issued else entered + 1
        self._left.append(left)
        self._earliest = left

    def burst(self) -> int:
        """Issue the next burst of the latest request; the cycle before its address appears."""
        cycle = max(self._earliest, self.issued[-1] + 1 if self.issued else 0)
        n_before = len(self.issued) - self.bus.outstanding
        if n_before >= 0:
            cycle = max(cycle, self.retired[n_before] + 1)
        self.issued.append(cycle)
        return cycle


def expected_read(bus: BusConfig, requests: list[Request]) -> tuple[list, list, list]:
    """Cycles of address, R and data transfers; everything offered at once, all taken at once."""
    timing = AddressTiming(bus)
    beats, data = [], []
    free = 0
    for (address, n_bytes), bursts in zip(requests, expected_bursts(bus, requests)):
        timing.request(0)
        skip = address % bus.data_bytes
        doubles = skip and (address + n_bytes - 1) % bus.data_bytes >= skip
        n_taken = 0
        for _, n_less_1 in bursts:
            free = max(free, timing.burst() + 1 + LATENCY)
            for _ in range(n_less_1 + 1):
                beats.append(free)
                if not skip or n_taken:
                    data.append(free + 2)
                n_taken += 1
                free += 1
            timing.retired.append(free - 1)
        if doubles:
            data.append(free + 2)
            free += 1
    return [cycle + 1 for cycle in timing.issued], beats, data


def expected_write(bus: BusConfig, requests: list[Request]) -> tuple[list, list, list]:
    """Cycles of address, W and data transfers; everything offered at once, all taken at once."""
    timing = AddressTiming(bus)
    steps, data, uses = [], [], []
    active = 0
    for (_, n_bytes), bursts in zip(requests, expected_bursts(bus, requests)):
        timing.request(0)
        n_left = -(-n_bytes // bus.data_bytes)
        for _, n_less_1 in bursts:
            active = max(active, timing.burst() + 2)
            for _ in range(n_less_1 + 1):
                if n_left:
                    # Two beats wait inside; room is seen a cycle after it was made.
                    accepted = data[-1] + 1 if data else 0
                    if len(uses) >= 2 and uses[-2] >= accepted:
                        accepted = uses[-2] + 1
                    data.append(accepted)
                    active = max(active, accepted + 1)
                    uses.append(active)
                    n_left -= 1
                steps.append(active)
                active += 1
            timing.retired.append(active + LATENCY)
    return [cycle + 1 for cycle in timing.issued], [cycle + 1 for cycle in steps], data


def request_lists(bus: BusConfig) -> list[list[Request]]:
    base = 64 * bus.data_bytes
    return [
        [(base + bus.data_bytes * i, bus.data_bytes) for i in range(25)],
        [(base + 3 + 7 * i, 1 + i % (3 * bus.data_bytes)) for i in range(40)],
        [(base, 40 * bus.data_bytes), (base, bus.data_bytes), (base + 1, 30 * bus.data_bytes)],
        random_requests(bus, 5, 10),
    ]


@pytest.mark.parametrize("bus", BUSES, ids=IDS)
def test_read_timing(bus):
    """Every address, beat and datum in the cycle that the recurrence gives."""
    for requests in request_lists(bus):
        reading = Reading(bus, requests, ReadMemory(bus, latency=lambda _: LATENCY))
        reading.run()
        addresses, beats, data = expected_read(bus, requests)
        assert reading.memory.address_at == addresses
        assert reading.memory.beat_at == beats
        assert reading.sink.taken_at == data


@pytest.mark.parametrize("bus", BUSES, ids=IDS)
def test_write_timing(bus):
    """Every address, beat and datum in the cycle that the recurrence gives."""
    for requests in request_lists(bus):
        writing = Writing(bus, requests, WriteMemory(bus, latency=lambda _: LATENCY))
        writing.run()
        addresses, beats, data = expected_write(bus, requests)
        assert writing.memory.address_at == addresses
        assert writing.memory.beat_at == beats
        assert writing.data.taken_at == data


def per_request(cycles: list[int], n_requests: int) -> float:
    """Cycles per request over the second half of a run."""
    half = len(cycles) // 2
    return (cycles[-1] - cycles[half]) / (len(cycles) - 1 - half) * len(cycles) / n_requests


@pytest.mark.parametrize("mover", [Reading, Writing])
def test_rates(mover):
    """One beat per cycle, request after request; small ones about as many cycles as beats."""
    bus = BusConfig()
    memory = ReadMemory if mover is Reading else WriteMemory

    def run(requests):
        bench = mover(bus, requests, memory(bus, latency=lambda _: LATENCY))
        bench.run()
        return bench.memory.beat_at

    long = run([(4096, 4096), (8192, 2048), (1 << 20, 2048)])
    assert long[-1] - long[0] == len(long) - 1
    # 16 bursts of two beats are in flight at most: 16 requests per round trip.
    short = per_request(run([(4096 + 64 * i, 16) for i in range(100)]), 100)
    assert 2 <= short < (2.1 if mover is Reading else 2.25)
    assert per_request(run([(4099 + 64 * i, 16) for i in range(100)]), 100) == 3
