"""An AXI4 memory and stream ends in Python, one object per role, stepped once per clock cycle.

Nothing here knows how the movers work: the memory accepts what the bus rules allow and complains
about anything else. Every actor has ``drive``, which returns the inputs of the device for the
coming cycle by name, and ``observe``, which sees all members as they were in that cycle.
"""

from collections import deque
from collections.abc import Callable, Iterable

from gshw.config import BusConfig
from rtl_gen.library import flat_ports
from tests.rtl.bench import at_random, never, simulate

Stall = Callable[[int], bool]


def byte_at(address: int) -> int:
    """What the memory holds before anything is written."""
    return (address * 151 + (address >> 8) * 77 + (address >> 16) * 13) & 255


def run_actors(dut, actors: Iterable, done: Callable[[], bool], n_cycles: int = 20_000) -> int:
    """Step all actors until ``done``; the number of cycles it took."""
    actors = list(actors)
    ports = {name: (out, value) for name, out, value in flat_ports(dut)}
    n_run = 0

    async def bench(ctx):
        nonlocal n_run
        now = {}
        while not done():
            for actor in actors:
                for name, value in actor.drive(n_run).items():
                    if now.get(name) != value:
                        ctx.set(ports[name][1], value)
                        now[name] = value
            sampled = await ctx.tick().sample(*(value for _, value in ports.values()))
            seen = dict(zip(ports, sampled[-len(ports) :]))
            for actor in actors:
                actor.observe(n_run, seen)
            n_run += 1

    simulate(dut, bench, n_cycles=n_cycles)
    return n_run


class Source:
    """Offers payloads on a stream, in order; remembers when each was taken."""

    def __init__(self, stream: str, payloads: Iterable[int], stall: Stall = never) -> None:
        self.stream, self.stall = stream, stall
        self.queue = deque(payloads)
        self.taken_at: list[int] = []
        self._offered = False

    def drive(self, cycle: int) -> dict[str, int]:
        self._offered = self._offered or (bool(self.queue) and not self.stall(cycle))
        payload = {f"{self.stream}__payload": self.queue[0]} if self._offered else {}
        return {f"{self.stream}__valid": int(self._offered), **payload}

    def observe(self, cycle: int, seen: dict[str, int]) -> None:
        if self._offered and seen[f"{self.stream}__ready"]:
            self.queue.popleft()
            self.taken_at.append(cycle)
            self._offered = False

    def drop(self) -> None:
        """Withdraw everything."""
        self.queue.clear()
        self._offered = False


class Sink:
    """Takes payloads from a stream; remembers them and when."""

    def __init__(self, stream: str, stall: Stall = never) -> None:
        self.stream, self.stall = stream, stall
        self.payloads: list[int] = []
        self.taken_at: list[int] = []

    def drive(self, cycle: int) -> dict[str, int]:
        return {f"{self.stream}__ready": int(not self.stall(cycle))}

    def observe(self, cycle: int, seen: dict[str, int]) -> None:
        if seen[f"{self.stream}__valid"] and seen[f"{self.stream}__ready"]:
            self.payloads.append(seen[f"{self.stream}__payload"])
            self.taken_at.append(cycle)


class Level:
    """Drives one input with a function of the cycle."""

    def __init__(self, name: str, value: Callable[[int], int]) -> None:
        self.name, self.value = name, value

    def drive(self, cycle: int) -> dict[str, int]:
        return {self.name: int(self.value(cycle))}

    def observe(self, cycle: int, seen: dict[str, int]) -> None:
        pass


class Recorder:
    """Remembers the cycles in which an output was high, and another output's value then."""

    def __init__(self, name: str, value: str | None = None) -> None:
        self.name, self.value = name, value or name
        self.cycles: list[int] = []
        self.values: list[int] = []

    def drive(self, _cycle: int) -> dict[str, int]:
        return {}

    def observe(self, cycle: int, seen: dict[str, int]) -> None:
        if seen[self.name]:
            self.cycles.append(cycle)
            self.values.append(seen[self.value])


class HoldChecker:
    """While a transfer is offered and not taken, it stays and does not change.

    ``unless`` names a signal that allows it to vanish in the cycles after.
    """

    def __init__(self, valid: str, ready: str, *payload: str, unless: str | None = None) -> None:
        self.valid, self.ready, self.payload, self.unless = valid, ready, payload, unless
        self.n_held = 0
        self._held: tuple | None = None

    def drive(self, _cycle: int) -> dict[str, int]:
        return {}

    def observe(self, cycle: int, seen: dict[str, int]) -> None:
        now = tuple(seen[name] for name in self.payload) if seen[self.valid] else None
        if self._held is not None:
            assert now == self._held, f"{self.valid} or its payload changed in cycle {cycle}"
            self.n_held += 1
        waits = seen[self.valid] and not seen[self.ready]
        self._held = now if waits and not (self.unless and seen[self.unless]) else None


def check_burst(bus: BusConfig, address: int, n_less_1: int, size: int, burst: int) -> None:
    """The rules of an address phase."""
    assert size == bus.data_bytes.bit_length() - 1 and burst == 1
    assert address % bus.data_bytes == 0
    assert n_less_1 + 1 <= bus.max_burst
    assert address // 4096 == (address + (n_less_1 + 1) * bus.data_bytes - 1) // 4096
    assert address + (n_less_1 + 1) * bus.data_bytes <= 1 << bus.address_width


class ReadMemory:
    """Serves reads in order; counts bursts in flight.

    Parameters
    ----------
    latency
        Cycles from an address taken to its first beat offered, by burst number.
    stall_address, stall_data
        When ARREADY is low, and when no new beat is offered.
    response
        RRESP of (burst number, beat number).
    """

    def __init__(
        self,
        bus: BusConfig,
        *,
        latency: Callable[[int], int] = lambda _: 1,
        stall_address: Stall = never,
        stall_data: Stall = never,
        response: Callable[[int, int], int] = lambda _burst, _beat: 0,
    ) -> None:
        self.bus, self.latency, self.response = bus, latency, response
        self.stall_address, self.stall_data = stall_address, stall_data
        self.bursts: list[tuple[int, int]] = []
        self.address_at: list[int] = []
        self.beat_at: list[int] = []
        self.most_in_flight = 0
        self.n_done = 0
        self._queue: deque[tuple[int, int]] = deque()
        self._beat: tuple[int, int] = (0, 0)
        self._offered = False
        self.holds = HoldChecker("axi__arvalid", "axi__arready", "axi__araddr", "axi__arlen")

    @property
    def n_in_flight(self) -> int:
        return len(self.bursts) - self.n_done

    def drive(self, cycle: int) -> dict[str, int]:
        inputs = {"axi__arready": int(not self.stall_address(cycle))}
        if not self._offered and self._queue and self._queue[0][0] <= cycle:
            self._offered = not self.stall_data(cycle)
        inputs["axi__rvalid"] = int(self._offered)
        if self._offered:
            number, beat = self._queue[0][1], self._beat[1]
            address, n_less_1 = self.bursts[number]
            address += beat * self.bus.data_bytes
            lanes = (byte_at(address + i) << (8 * i) for i in range(self.bus.data_bytes))
            inputs["axi__rdata"] = sum(lanes)
            inputs["axi__rlast"] = int(beat == n_less_1)
            inputs["axi__rresp"] = self.response(number, beat)
        return inputs

    def observe(self, cycle: int, seen: dict[str, int]) -> None:
        self.holds.observe(cycle, seen)
        if seen["axi__arvalid"] and seen["axi__arready"]:
            burst = seen["axi__araddr"], seen["axi__arlen"]
            check_burst(self.bus, *burst, seen["axi__arsize"], seen["axi__arburst"])
            number = len(self.bursts)
            self.bursts.append(burst)
            self.address_at.append(cycle)
            self._queue.append((cycle + self.latency(number), number))
            self.most_in_flight = max(self.most_in_flight, self.n_in_flight)
        if self._offered and seen["axi__rready"]:
            self.beat_at.append(cycle)
            number, beat = self._queue[0][1], self._beat[1]
            self._beat = (number, beat + 1)
            self._offered = False
            if beat == self.bursts[number][1]:
                self._queue.popleft()
                self._beat = (0, 0)
                self.n_done += 1


class WriteMemory:
    """Takes writes; data may come before their address; responses in order.

    Parameters
    ----------
    latency
        Cycles from the later of address and last beat to the response offered.
    stall_address, stall_data
        When AWREADY and WREADY are low.
    order
        ``"any"``; ``"address_first"`` takes no beat of a burst before its address;
        ``"data_first"`` takes no address before its burst's last beat.
    response
        BRESP by burst number.
    """

    def __init__(
        self,
        bus: BusConfig,
        *,
        latency: Callable[[int], int] = lambda _: 1,
        stall_address: Stall = never,
        stall_data: Stall = never,
        order: str = "any",
        response: Callable[[int], int] = lambda _burst: 0,
    ) -> None:
        self.bus, self.latency, self.response, self.order = bus, latency, response, order
        self.stall_address, self.stall_data = stall_address, stall_data
        self.bursts: list[tuple[int, int]] = []
        self.address_at: list[int] = []
        self.beat_at: list[int] = []
        self.done_at: list[int] = []
        self.writes: list[tuple[int, int]] = []
        self.most_in_flight = 0
        self.n_done = 0
        self._data: list[list[tuple[int, int]]] = [[]]
        self._due: deque[int] = deque()
        self._offered = False
        self._holds = (
            HoldChecker("axi__awvalid", "axi__awready", "axi__awaddr", "axi__awlen"),
            HoldChecker("axi__wvalid", "axi__wready", "axi__wdata", "axi__wstrb", "axi__wlast"),
        )

    @property
    def n_in_flight(self) -> int:
        """Bursts with an address or a beat taken whose response is not."""
        n_begun = len(self._data) - 1 + bool(self._data[-1])
        return max(len(self.bursts), n_begun) - self.n_done

    def drive(self, cycle: int) -> dict[str, int]:
        n_addresses, n_complete = len(self.bursts), len(self._data) - 1
        address = not self.stall_address(cycle)
        beat = not self.stall_data(cycle)
        if self.order == "data_first":
            address = address and n_complete > n_addresses
        if self.order == "address_first":
            beat = beat and n_addresses > n_complete
        self._offered = self._offered or (bool(self._due) and self._due[0] <= cycle)
        return {
            "axi__awready": int(address),
            "axi__wready": int(beat),
            "axi__bvalid": int(self._offered),
            "axi__bresp": self.response(self.n_done) if self._offered else 0,
        }

    def observe(self, cycle: int, seen: dict[str, int]) -> None:
        for holds in self._holds:
            holds.observe(cycle, seen)
        if self._offered and seen["axi__bready"]:
            self._due.popleft()
            self._offered = False
            self.n_done += 1
            self.done_at.append(cycle)
        n_paired = min(len(self.bursts), len(self._data) - 1)
        if seen["axi__awvalid"] and seen["axi__awready"]:
            burst = seen["axi__awaddr"], seen["axi__awlen"]
            check_burst(self.bus, *burst, seen["axi__awsize"], seen["axi__awburst"])
            self.bursts.append(burst)
            self.address_at.append(cycle)
        if seen["axi__wvalid"] and seen["axi__wready"]:
            self.beat_at.append(cycle)
            self._data[-1].append((seen["axi__wdata"], seen["axi__wstrb"]))
            if seen["axi__wlast"]:
                self._data.append([])
            assert len(self._data[-1]) <= self.bus.max_burst
        for number in range(n_paired, min(len(self.bursts), len(self._data) - 1)):
            self._commit(number)
            self._due.append(cycle + self.latency(number))
        self.most_in_flight = max(self.most_in_flight, self.n_in_flight)

    def _commit(self, number: int) -> None:
        address, n_less_1 = self.bursts[number]
        assert len(self._data[number]) == n_less_1 + 1, "WLAST and AWLEN differ"
        for beat, (data, strobes) in enumerate(self._data[number]):
            for lane in range(self.bus.data_bytes):
                if strobes >> lane & 1:
                    where = address + beat * self.bus.data_bytes + lane
                    self.writes.append((where, data >> (8 * lane) & 255))


def random_stalls(seed: int, probability: float) -> dict[str, Stall]:
    """Independent stalls of address and data channel."""
    return {
        "stall_address": at_random(seed, probability),
        "stall_data": at_random(seed + 1, probability),
    }
