"""What the cocotb benches share: time, streams and watchers.

Time. Inputs change right after a falling edge and hold until the next. Outputs, also those that
depend on inputs in the same cycle, are sampled in the ``ReadOnly`` phase of that same edge, where
they are what the next rising edge will see. Every helper starts and ends right after a falling
edge, so that helpers may follow each other freely.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

from cocotb.clock import Clock
from cocotb.handle import LogicArrayObject
from cocotb.triggers import FallingEdge, ReadOnly, Timer
from cocotb.utils import get_sim_time

PERIOD_NS = 10


async def start_clock_and_reset(dut, inputs: Iterable[str]) -> None:
    """Start ``dut.clk`` with all other inputs 0, and reset."""
    for name in inputs:
        getattr(dut, name).value = 0
    dut.rst.value = 1
    Clock(dut.clk, PERIOD_NS, unit="ns", impl="gpi").start()
    await FallingEdge(dut.clk)
    await reset(dut)


async def reset(dut, n_cycles: int = 2) -> None:
    """Hold ``rst`` for ``n_cycles`` cycles."""
    dut.rst.value = 1
    await cycles(dut, n_cycles)
    dut.rst.value = 0
    await cycles(dut, 1)


async def cycles(dut, n_cycles: int) -> None:
    """Wait ``n_cycles`` falling edges without waking Python in between."""
    if n_cycles > 1:
        # Ends at the rising edge before the last falling one.
        await Timer(n_cycles * PERIOD_NS - PERIOD_NS // 2, unit="ns")
    if n_cycles > 0:
        await FallingEdge(dut.clk)


def half_cycles() -> int:
    """Simulated time in half clock periods, as a whole number."""
    return round(2 * get_sim_time("ns") / PERIOD_NS)


class Stream:
    """One ready/valid stream of the device under test, by its ports.

    Parameters
    ----------
    valid, ready
        Ports; ``ready`` is None where the stream is always ready.
    payload
        Payload port for each key.
    """

    def __init__(self, dut, valid: str, ready: str | None, payload: Mapping[str, str]) -> None:
        self.dut = dut
        self.valid: LogicArrayObject = getattr(dut, valid)
        self.ready: LogicArrayObject | None = getattr(dut, ready) if ready else None
        self.payload = {key: getattr(dut, port) for key, port in payload.items()}

    def _garble(self, random: Random) -> None:
        """Payload without ``valid`` must not matter."""
        for handle in self.payload.values():
            handle.value = random.getrandbits(len(handle))

    async def send(
        self,
        items: Iterable[Mapping[str, int]],
        *,
        random: Random | None = None,
        limit: int = 10_000,
    ) -> None:
        """Send items in order; with ``random``, at about half the rate and garbage between them."""
        for item in items:
            if random:
                self._garble(random)
                while random.random() < 0.5:
                    await FallingEdge(self.dut.clk)
            for key, value in item.items():
                self.payload[key].value = value
            self.valid.value = 1
            await ReadOnly()
            waited = 0
            while self.ready is not None and not int(self.ready.value):
                waited += 1
                assert waited < limit, f"{self.valid._name}: not taken in {limit} cycles"
                await FallingEdge(self.dut.clk)
                await ReadOnly()
            await FallingEdge(self.dut.clk)
            self.valid.value = 0

    async def receive(
        self, n_items: int, *, random: Random | None = None, limit: int = 10_000
    ) -> list[dict[str, int]]:
        """Take ``n_items`` items; with ``random``, ready in about half the cycles."""
        items: list[dict[str, int]] = []
        waited = 0
        while len(items) < n_items:
            ready = not random or random.random() < 0.5
            self.ready.value = int(ready)
            await ReadOnly()
            if ready and int(self.valid.value):
                items.append({key: int(handle.value) for key, handle in self.payload.items()})
                waited = 0
            waited += 1
            assert waited < limit, f"{self.valid._name}: nothing came for {limit} cycles"
            await FallingEdge(self.dut.clk)
        self.ready.value = 0
        return items

    async def watch(self) -> None:
        """For ever: fail when ``valid`` falls or the payload changes while stalled."""
        held: list[int] | None = None
        while True:
            await FallingEdge(self.dut.clk)
            await ReadOnly()
            valid = int(self.valid.value)
            now = [int(handle.value) for handle in self.payload.values()] if valid else []
            if held is not None:
                assert valid, f"{self.valid._name}: fell while stalled"
                assert now == held, f"{self.valid._name}: payload changed while stalled"
            held = now if valid and not int(self.ready.value) else None


async def check_pipeline(
    dut,
    latency: int,
    inputs: Sequence[Mapping[str, int]],
    expected: Sequence[Mapping[str, int]],
    *,
    what: Callable[[int], str] = str,
) -> None:
    """Drive one input per cycle and compare the outputs ``latency`` cycles later, at full rate.

    Parameters
    ----------
    inputs, expected
        Port values, unsigned, of equal length.
    """
    for index in range(len(inputs) + latency):
        if index < len(inputs):
            for port, value in inputs[index].items():
                getattr(dut, port).value = value
        await ReadOnly()
        if index >= latency:
            for port, value in expected[index - latency].items():
                got = int(getattr(dut, port).value)
                assert got == value, f"{port} of input {what(index - latency)}: {got}, not {value}"
        await FallingEdge(dut.clk)
