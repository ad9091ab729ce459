"""Small helpers to run components in Amaranth's simulator.

Everything is observed at the component's members. A test bench that does not finish within its
cycle limit fails.
"""

from collections.abc import Callable, Iterable

import numpy as np
from amaranth.hdl import Module, Signal, Value
from amaranth.sim import Simulator

PERIOD = 1e-6


def wrapped(component) -> Module:
    """A module with the component and a clock domain, which the component alone may not use."""
    m = Module()
    m.submodules.dut = component
    beat = Signal()
    m.d.sync += beat.eq(~beat)
    return m


def not_built(component):
    """The component, without Amaranth's complaint that nothing elaborates it."""
    component._MustUse__silence = True
    return component


def simulate(component, *benches: Callable, watchers: Iterable[Callable] = (), n_cycles=20_000):
    """Run test benches to their end, watchers beside them.

    Parameters
    ----------
    benches
        Async functions of the simulation context; the simulation ends when all have returned.
    watchers
        As benches, but they do not keep the simulation running.
    n_cycles
        Cycle limit.

    Raises
    ------
    AssertionError
        From a bench or a watcher, or when the limit is reached.
    """

    async def limit(ctx):
        for _ in range(n_cycles):
            await ctx.tick()
        raise AssertionError(f"not finished after {n_cycles} cycles")

    simulator = Simulator(wrapped(component))
    simulator.add_clock(PERIOD)
    for bench in benches:
        simulator.add_testbench(bench)
    for watcher in (limit, *watchers):
        simulator.add_testbench(watcher, background=True)
    simulator.run()


def bits(payload) -> Value:
    """The payload of a stream as a plain value."""
    return Value.cast(payload)


def never(_cycle: int) -> bool:
    """Stall pattern of a stream at full rate."""
    return False


def at_random(seed: int, probability: float = 0.4) -> Callable[[int], bool]:
    """Stall pattern: each cycle independently with this probability."""
    rng = np.random.default_rng(seed)
    return lambda _cycle: bool(rng.random() < probability)


def feeder(stream, payloads: Iterable[int], stall: Callable[[int], bool] = never) -> Callable:
    """Bench that offers each payload once, idle while ``stall(cycle)``; valid never falls early."""

    async def bench(ctx):
        cycle = 0
        for payload in payloads:
            while stall(cycle):
                await ctx.tick()
                cycle += 1
            ctx.set(stream.valid, 1)
            ctx.set(bits(stream.payload), payload)
            taken = False
            while not taken:
                *_, taken = await ctx.tick().sample(stream.ready)
                cycle += 1
            ctx.set(stream.valid, 0)

    return bench


def collector(
    stream, n_payloads: int, into: list[int], stall: Callable[[int], bool] = never
) -> Callable:
    """Bench that takes ``n_payloads`` payloads, not ready while ``stall(cycle)``."""

    async def bench(ctx):
        cycle = 0
        while len(into) < n_payloads:
            ctx.set(stream.ready, not stall(cycle))
            *_, valid, ready, payload = await ctx.tick().sample(
                stream.valid, stream.ready, bits(stream.payload)
            )
            cycle += 1
            if valid and ready:
                into.append(payload)
        ctx.set(stream.ready, 0)

    return bench


def hold_watcher(stream, *, unless: Value | None = None, seen: list[int] | None = None) -> Callable:
    """Watcher: while a payload is not taken, it stays valid and does not change.

    Parameters
    ----------
    unless
        Signal that ends the stream; a payload offered in such a cycle may vanish.
    seen
        Gets the cycle number of every stall, so that a test can tell that it had some.
    """
    excuse = Value.cast(0) if unless is None else unless

    async def watch(ctx):
        waiting = None
        cycle = 0
        while True:
            *_, valid, ready, payload, ended = await ctx.tick().sample(
                stream.valid, stream.ready, bits(stream.payload), excuse
            )
            if waiting is not None:
                assert valid, f"cycle {cycle}: valid fell before the payload was taken"
                assert payload == waiting, f"cycle {cycle}: payload changed under stall"
            stalled = valid and not ready and not ended
            waiting = payload if stalled else None
            if stalled and seen is not None:
                seen.append(cycle)
            cycle += 1

    return watch


def respond(component, inputs: list, drive: Callable, read: Callable, n_extra: int = 16) -> list:
    """Give a component without back-pressure one input per cycle; read its outputs every cycle.

    Parameters
    ----------
    inputs
        One element per cycle; the last stays for ``n_extra`` more cycles.
    drive
        Called with (context, input).
    read
        Called with (context) after the inputs have settled; its results are returned.
    """
    outputs = []

    async def bench(ctx):
        for cycle in range(len(inputs) + n_extra):
            if cycle < len(inputs):
                drive(ctx, inputs[cycle])
            outputs.append(read(ctx))
            await ctx.tick()

    simulate(component, bench, n_cycles=len(inputs) + n_extra + 2)
    return outputs


def skewed(rows: list[list[int]], n_columns: int) -> list[list[int]]:
    """Rows per cycle, columns fastest, as they are when each column comes a cycle after another.

    What lies before and behind is 0; there are ``n_columns - 1`` more cycles.
    """
    silence = [[0] * len(rows[0])] * (n_columns - 1)
    padded = [*silence, *rows, *silence]
    last = n_columns - 1
    return [
        [padded[cycle + last - n % n_columns][n] for n in range(len(rows[0]))]
        for cycle in range(len(rows) + last)
    ]


def deskewed(rows: list[list[int]], n_columns: int) -> list[list[int]]:
    """The inverse of :func:`skewed`."""
    return [
        [rows[cycle + n % n_columns][n] for n in range(len(rows[0]))]
        for cycle in range(len(rows) - n_columns + 1)
    ]


def observed_latencies(expected: list, outputs: list) -> list[int]:
    """All delays, in cycles, at which the outputs equal the expected ones, one for one."""
    return [
        cycles
        for cycles in range(len(outputs) - len(expected) + 1)
        if outputs[cycles : cycles + len(expected)] == expected
    ]
