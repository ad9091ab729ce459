"""Gather units against naive models: when a group is issued, and which lanes it serves."""

from collections import Counter

import numpy as np
import pytest

from gshw.config import EngineConfig, Gather, Routing
from rtl_gen.gather import ArbitratedGather, ScheduledGather
from tests.rtl.bench import at_random, never, simulate
from tests.strategies import ENGINES

SCHEDULED = ENGINES["hybrid4"]
ARBITRATED = {
    "lanes2": EngineConfig(
        lanes=2,
        rows=1,
        bank_width=8,
        bank_depth=16,
        routing=Routing.CROSSBAR,
        gather=Gather.ARBITRATED,
    ),
    "lanes4": ENGINES["arbitrated4"],
    "lanes16": EngineConfig(
        lanes=16,
        rows=4,
        bank_width=8,
        bank_depth=32,
        routing=Routing.CROSSBAR,
        gather=Gather.ARBITRATED,
    ),
}


def offer(ctx, dut, group: dict | None):
    """Put a group head at the input, or nothing."""
    ctx.set(dut.i.valid, group is not None)
    if group is None:
        return
    ctx.set(dut.i.payload.last, group["last"])
    ctx.set(dut.i.payload.group.drain[0], group["drain"])
    ctx.set(dut.i.payload.ends, group["drain"] != 0)
    if "bank" in group:
        for lane in range(dut.config.lanes):
            ctx.set(dut.i.payload.group.offset[lane], group["offset"][lane])
            ctx.set(dut.i.payload.group.bank[lane], group["bank"][lane])
            ctx.set(dut.i.payload.group.active[lane], group["active"][lane])


def events(ctx, dut) -> dict:
    return {
        "ready": ctx.get(dut.i.ready),
        "valid": ctx.get(dut.tag.valid),
        "first": ctx.get(dut.tag.first),
        "drain": ctx.get(dut.tag.drain),
        "pass_end": ctx.get(dut.pass_end),
        "stalled": ctx.get(dut.stalled),
        "replayed": ctx.get(dut.replayed),
        "conflicted": ctx.get(dut.conflicted),
    }


def random_groups(seed: int, config: EngineConfig, n_groups: int) -> list[dict]:
    """Groups whose bundles have 1 to 4 groups and every legal drain count."""
    rng = np.random.default_rng(seed)
    groups = []
    while len(groups) < n_groups:
        n_in_bundle = int(rng.integers(1, 5))
        for index in range(n_in_bundle):
            ends = index == n_in_bundle - 1
            groups.append(
                {
                    "drain": int(rng.integers(1, config.rows + 1)) if ends else 0,
                    "last": int(ends and rng.random() < 0.3),
                    "offset": [int(n) for n in rng.integers(0, config.bank_depth, config.lanes)],
                }
            )
    return groups


@pytest.mark.parametrize("idle", [never, at_random(1)], ids=["full_rate", "gaps"])
@pytest.mark.parametrize("name", ["direct4", "hybrid4", "vertical8"])
def test_scheduled_issues_a_group_per_cycle_unless_the_drain_runs(name, idle):
    """A bundle ends no earlier than the one before has drained; all else goes at full rate."""
    config = ENGINES[name]
    dut = ScheduledGather(config)
    groups = random_groups(2, config, 150)
    stalls = []

    async def bench(ctx):
        free_at, first, cycle = 0, 1, 0
        for group in groups:
            while idle(cycle):
                offer(ctx, dut, None)
                seen = events(ctx, dut)
                assert not (seen["valid"] or seen["stalled"] or seen["pass_end"])
                await ctx.tick()
                cycle += 1
            issued = False
            while not issued:
                offer(ctx, dut, group)
                issued = group["drain"] == 0 or cycle >= free_at
                seen = events(ctx, dut)
                assert seen["ready"] == seen["valid"] == issued
                assert seen["stalled"] == (not issued)
                assert seen["pass_end"] == (issued and group["last"])
                assert not (seen["replayed"] or seen["conflicted"])
                if issued:
                    assert (seen["first"], seen["drain"]) == (first, group["drain"])
                else:
                    stalls.append(cycle)
                await ctx.tick()
                cycle += 1
            first = int(group["drain"] != 0)
            if group["drain"]:
                free_at = cycle - 1 + group["drain"]

    simulate(dut, bench)
    assert bool(stalls) == (config.rows > 1)


@pytest.mark.parametrize("drain", [1, 2, 5, 8])
def test_scheduled_holds_the_next_bundle_end_for_drain_less_one_cycles(drain):
    """Two bundles of one group: the second waits drain - 1 cycles and reports each of them."""
    dut = ScheduledGather(ENGINES["vertical8"])

    async def bench(ctx):
        offer(ctx, dut, {"drain": drain, "last": 0})
        assert events(ctx, dut)["valid"]
        await ctx.tick()
        offer(ctx, dut, {"drain": 1, "last": 1})
        n_stalls = 0
        while not events(ctx, dut)["valid"]:
            assert events(ctx, dut)["stalled"]
            n_stalls += 1
            await ctx.tick()
        assert n_stalls == drain - 1

    simulate(dut, bench, n_cycles=20)


def random_requests(seed: int, config: EngineConfig, n_groups: int) -> list[dict]:
    """Groups with random banks: spread, crowded on one bank, and idle ones."""
    rng = np.random.default_rng(seed)
    groups = random_groups(seed + 1, config, n_groups)
    for index, group in enumerate(groups):
        n_banks = [config.lanes, 1, 2, config.lanes][index % 4]
        banks = rng.permutation(config.lanes)[:n_banks]
        group["bank"] = [int(n) for n in rng.choice(banks, config.lanes)]
        density = [0.6, 1.0, 0.5, 0.0][index % 4] if index % 8 else 1.0
        group["active"] = [int(rng.random() < density) for _ in range(config.lanes)]
    groups[5]["bank"] = list(range(config.lanes))
    groups[5]["active"] = [1] * config.lanes
    return groups


def naive_parts(group: dict) -> list[dict[int, int]]:
    """Parts of a group as {bank: lane}: every bank serves its lanes one after another, upwards."""
    queues: dict[int, list[int]] = {}
    for lane, (bank, active) in enumerate(zip(group["bank"], group["active"])):
        if active:
            queues.setdefault(bank, []).append(lane)
    parts = []
    while any(queues.values()):
        parts.append({bank: queue.pop(0) for bank, queue in queues.items() if queue})
    return parts or [{}]


@pytest.mark.parametrize("idle", [never, at_random(3)], ids=["full_rate", "gaps"])
@pytest.mark.parametrize("name", ARBITRATED)
def test_arbitrated_serves_every_lane_once(name, idle):
    """Parts, routing, events and drain hold of random groups."""
    config = ARBITRATED[name]
    dut = ArbitratedGather(config)
    groups = random_requests(4, config, 120)
    n_seen = Counter()

    async def bench(ctx):
        free_at, first, cycle = 0, 1, 0
        for group in groups:
            while idle(cycle):
                offer(ctx, dut, None)
                seen = events(ctx, dut)
                assert not any(
                    seen[key] for key in ("valid", "stalled", "pass_end", "replayed", "conflicted")
                )
                await ctx.tick()
                cycle += 1
            parts = naive_parts(group)
            wanted = Counter(b for b, active in zip(group["bank"], group["active"]) if active)
            assert len(parts) == max(wanted.values(), default=1)
            served = Counter()
            offer(ctx, dut, group)
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                ends = last and group["drain"] > 0
                while ends and cycle < free_at:
                    seen = events(ctx, dut)
                    assert seen["stalled"]
                    assert not (seen["valid"] or seen["ready"] or seen["pass_end"])
                    assert not (seen["replayed"] or seen["conflicted"])
                    n_seen["stalls"] += 1
                    await ctx.tick()
                    cycle += 1
                seen = events(ctx, dut)
                assert seen["valid"] and not seen["stalled"]
                assert seen["ready"] == last
                assert seen["first"] == first
                assert seen["drain"] == (group["drain"] if last else 0)
                assert seen["pass_end"] == (last and group["last"])
                assert seen["replayed"] == (index > 0)
                assert seen["conflicted"] == (index == 0 and len(parts) > 1)
                n_seen["conflicts"] += seen["conflicted"]
                n_seen["replays"] += seen["replayed"]
                first = int(ends)
                if ends:
                    free_at = cycle + group["drain"]
                await ctx.tick()
                cycle += 1
                lanes = {lane for lane in range(config.lanes) if ctx.get(dut.enable) >> lane & 1}
                assert lanes == set(part.values())
                served.update(lanes)
                for bank, lane in part.items():
                    assert ctx.get(dut.bank[lane]) == bank
                    assert ctx.get(dut.offset[bank]) == group["offset"][lane]
            assert served == Counter(lane for lane, active in enumerate(group["active"]) if active)

    simulate(dut, bench)
    assert n_seen["conflicts"] and n_seen["replays"] > n_seen["conflicts"] // 2
    assert bool(n_seen["stalls"]) == (config.rows > 1)
