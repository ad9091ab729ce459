"""Requantisation against the golden model; drain control and scatter against naive models."""

import dataclasses
import itertools

import numpy as np
import pytest

from gshw.encoding import Requantisation
from gshw.golden import requantise
from gshw.pipeline import SCATTER_LEAD
from rtl_gen.output import DrainControl, Requantiser, ScatterWriter
from tests.rtl.bench import observed_latencies, respond, simulate
from tests.strategies import ENGINES, naive_requantise

CLAMPS = {
    4: [(0, 15), (-8, 7), (-8, 15)],
    8: [(0, 255), (-128, 127), (-1, 0), (-5, 100)],
    16: [(0, 65535), (-32768, 32767)],
}


def ties(rng, width: int) -> list[tuple[int, int, int]]:
    """(acc, multiplier, shift) whose products lie exactly between two codes, both signs."""
    found = []
    for shift in range(16, min(width + 15, 40)):
        half = 1 << (shift - 1)
        for odd in (-3, -1, 1, 5):
            acc = (half * odd) >> 15
            if (acc << 15) == half * odd and abs(acc) < 1 << (width - 1):
                found.append((acc, 1 << 15, shift))
    return found


def operands(seed: int, width: int) -> list[tuple[int, int, int, int]]:
    """(sum, bias, multiplier, shift): all shifts with all extremes, ties, random ones."""
    rng = np.random.default_rng(seed)
    low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    accs = [low, low + 1, -1, 0, 1, high]
    corners = itertools.product(accs, (1 << 15, (1 << 16) - 1), range(1, 48))
    cases = list(corners) + ties(rng, width)
    for shift in range(1, 48):
        for _ in range(4):
            scale = int(rng.integers(1, width))
            acc = int(rng.integers(low, high + 1)) >> scale
            cases.append((acc, int(rng.integers(1 << 15, 1 << 16)), shift))
    chosen = []
    for acc, multiplier, shift in cases:
        bias = int(rng.integers(max(low, acc - high), min(high, acc - low) + 1))
        chosen.append((acc - bias, bias, multiplier, shift))
    return chosen


@pytest.mark.parametrize(
    ("accumulator_width", "activation_width"), [(16, 4), (20, 8), (32, 4), (32, 8), (32, 16)]
)
def test_requantiser_equals_the_golden_model(accumulator_width, activation_width):
    """All shifts from 1 to 47 with extreme accumulators and multipliers, one value per cycle."""
    cases = operands(1, accumulator_width)
    for low, high in CLAMPS[activation_width]:
        dut = Requantiser(accumulator_width, activation_width)
        parameters = Requantisation(
            bias=np.array([case[1] for case in cases]),
            multiplier=np.array([case[2] for case in cases]),
            shift=np.array([case[3] for case in cases]),
            low=low,
            high=high,
        )
        golden = requantise(np.array([case[0] + case[1] for case in cases]), parameters)
        expected = [int(code) & ((1 << activation_width) - 1) for code in golden]
        assert len(set(expected)) > min(5, high - low)

        def drive(ctx, case, dut=dut, low=low, high=high):
            ctx.set(dut.low, low)
            ctx.set(dut.high, high)
            for signal, value in zip((dut.i, dut.bias, dut.multiplier, dut.shift), case):
                ctx.set(signal, value)

        outputs = respond(dut, cases, drive, lambda ctx, dut=dut: ctx.get(dut.o))
        assert observed_latencies(expected, outputs) == [dut.latency]


def test_golden_requantisation_equals_plain_integers():
    """The golden formula against ``floor(acc * m / 2**s + 1/2)`` in Python integers."""
    cases = operands(2, 32)
    for low, high in (pair for pairs in CLAMPS.values() for pair in pairs):
        parameters = Requantisation(
            bias=np.zeros(len(cases), dtype=np.int64),
            multiplier=np.array([case[2] for case in cases]),
            shift=np.array([case[3] for case in cases]),
            low=low,
            high=high,
        )
        accs = [case[0] + case[1] for case in cases]
        naive = [
            naive_requantise(acc, multiplier, shift, low, high)
            for acc, (_, _, multiplier, shift) in zip(accs, cases)
        ]
        assert requantise(np.array(accs), parameters).tolist() == naive


def test_ties_round_up():
    """2.5 -> 3 and -2.5 -> -2: towards plus infinity, by the published example of the rule."""
    one = np.ones(1, dtype=np.int64)
    parameters = Requantisation(
        bias=one * 0, multiplier=one << 15, shift=one * 16, low=-128, high=127
    )
    codes = [requantise(np.array([acc]), parameters)[0] for acc in (5, -5, 1, -1, 3, -3)]
    assert codes == [3, -2, 1, 0, 2, -1]


@pytest.mark.parametrize("name", ["direct4", "hybrid4", "vertical8"])
def test_drain_control(name):
    """As many records as the tag asks, from the next cycle on; captures may follow gaplessly."""
    config = ENGINES[name]
    dut = DrainControl(config)
    rng = np.random.default_rng(3)
    rows = config.drain_rows
    records = [
        {
            "advance": int(rng.integers(2)),
            "row": [int(n) for n in rng.integers(0, 1 << config.row_width, rows)],
            "last": int(rng.random() < 0.3),
        }
        for _ in range(400)
    ]
    n_gapless = n_taken = 0

    async def bench(ctx):
        nonlocal n_gapless, n_taken
        busy_until = 0
        ctx.set(dut.i.valid, 1)
        for cycle in range(500):
            record = records[n_taken]
            ctx.set(dut.i.payload.last, record["last"])
            ctx.set(dut.i.payload.row.advance[0], record["advance"])
            for d in range(rows):
                ctx.set(dut.i.payload.row.row[d], record["row"][d])
            active = cycle < busy_until
            capture = cycle >= busy_until - 1 and rng.random() < 0.4
            n_records = int(rng.integers(1, config.rows + 1)) if capture else 0
            ctx.set(dut.tag.valid, capture or rng.random() < 0.5)
            ctx.set(dut.tag.drain, n_records)
            assert ctx.get(dut.active) == ctx.get(dut.i.ready) == active
            assert ctx.get(dut.shift) == (active and record["advance"])
            assert ctx.get(dut.pass_end) == (active and record["last"])
            if active:
                assert [ctx.get(dut.record.row[d]) for d in range(rows)] == record["row"]
                n_taken += 1
            if capture:
                n_gapless += active
                busy_until = cycle + 1 + n_records
            await ctx.tick()

    simulate(dut, bench)
    assert n_gapless > 10 and n_taken > 100


def test_drain_control_ignores_the_count_without_valid():
    dut = DrainControl(ENGINES["vertical8"])

    async def bench(ctx):
        ctx.set(dut.tag.drain, 5)
        for _ in range(4):
            await ctx.tick()
            assert not ctx.get(dut.active)

    simulate(dut, bench)


SCATTERS = {
    "one_row": ENGINES["direct4"],
    "two_rows_of_blocks": ENGINES["hybrid4"],
    "four_rows": dataclasses.replace(ENGINES["vertical8"], bank_width=32),
    "columns": ENGINES["vertical4"],
}


def row_number(config, address: int, bank: int, channel: int) -> int:
    """Output rows are channels, stored channel-last over the banks."""
    return (address * config.lanes + bank) * config.block + channel


def scatter_cycle(rng, config, kind: str) -> dict:
    """Rows of one cycle: random banks, or all in one word; some invalid."""
    n_rows = config.drain_rows
    free = config.output_depth // 2
    if kind == "one_word":
        n_rows = min(n_rows, config.block)
        place = int(rng.integers(free)), int(rng.integers(config.lanes))
        channels = rng.permutation(config.block)[:n_rows]
        rows = [row_number(config, *place, int(c)) for c in channels]
    else:
        banks = rng.permutation(config.lanes)[:n_rows]
        rows = [
            row_number(config, int(rng.integers(free)), int(b), int(rng.integers(config.block)))
            for b in banks
        ]
    rows += [0] * (config.drain_rows - n_rows)
    valid = [int(d < n_rows and rng.random() < 0.8) for d in range(config.drain_rows)]
    top = (1 << config.activation_width) - 1
    codes = [int(n) for n in rng.integers(0, top + 1, config.drain_rows * config.columns)]
    base = int(rng.integers(config.output_depth))
    return {"rows": rows, "valid": valid, "codes": codes, "base": base}


def naive_writes(config, cycle: dict) -> tuple[dict, bool]:
    """{(bank, address, channel, column): code} and whether an address left the bank."""
    writes, overflow = {}, False
    for d, row in enumerate(cycle["rows"]):
        if not cycle["valid"][d]:
            continue
        block, channel = divmod(row, config.block)
        address = cycle["base"] + block // config.lanes
        if address >= config.output_depth:
            overflow = True
            continue
        for column in range(config.columns):
            key = block % config.lanes, address, channel, column
            writes[key] = cycle["codes"][d * config.columns + column]
    return writes, overflow


def observed_writes(config, ctx, dut) -> tuple[dict, bool]:
    writes = {}
    width = config.activation_width
    for bank in range(config.lanes):
        enable = ctx.get(dut.enable[bank])
        for channel in range(config.block):
            if enable >> channel & 1:
                for column in range(config.columns):
                    element = channel * config.columns + column
                    code = ctx.get(dut.data[bank]) >> (element * width) & ((1 << width) - 1)
                    writes[bank, ctx.get(dut.address[bank]), channel, column] = code
    return writes, bool(ctx.get(dut.overflow))


@pytest.mark.parametrize("name", SCATTERS)
def test_scatter(name):
    """Rows to different banks, rows of one word, invalid rows, and addresses past the end."""
    config = SCATTERS[name]
    dut = ScatterWriter(config)
    rng = np.random.default_rng(4)
    kinds = ["banks", "one_word"]
    cycles = [scatter_cycle(rng, config, kinds[index % 2]) for index in range(200)]
    expected = [naive_writes(config, cycle) for cycle in cycles]

    def drive(ctx, cycle):
        ctx.set(dut.valid, sum(v << d for d, v in enumerate(cycle["valid"])))
        ctx.set(dut.base, cycle["base"])
        for signal, row in zip(dut.row, cycle["rows"], strict=True):
            ctx.set(signal, row)
        for signal, code in zip(dut.code, cycle["late_codes"], strict=True):
            ctx.set(signal, code)

    codes = [cycle["codes"] for cycle in cycles]
    inputs = [
        cycle | {"late_codes": late}
        for cycle, late in zip(
            cycles + [cycles[-1] | {"valid": [0] * config.drain_rows}] * SCATTER_LEAD,
            codes[:SCATTER_LEAD] + codes,
            strict=True,
        )
    ]
    outputs = respond(dut, inputs, drive, lambda ctx: observed_writes(config, ctx, dut), 4)
    assert observed_latencies(expected, outputs) == [SCATTER_LEAD + dut.latency]
    assert any(overflow for _, overflow in expected)
    assert any(overflow and writes for writes, overflow in expected) == (config.drain_rows > 1)


def test_scatter_keeps_the_last_word_and_drops_the_next():
    """The last address of a bank is written; one beyond is suppressed and reported."""
    config = ENGINES["direct4"]
    dut = ScatterWriter(config)
    row = row_number(config, 3, 2, 0)

    def drive(ctx, base):
        ctx.set(dut.valid, 1)
        ctx.set(dut.row[0], row)
        ctx.set(dut.code[0], 77)
        ctx.set(dut.base, base)

    top = config.output_depth - 1
    bases = [top - 3, top - 2, top]
    n_cycles = SCATTER_LEAD + dut.latency
    outputs = respond(dut, bases, drive, lambda ctx: observed_writes(config, ctx, dut), n_cycles)
    assert outputs[n_cycles:] == [({(2, top, 0, 0): 77}, False), ({}, True), ({}, True)]
