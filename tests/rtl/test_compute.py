"""Multipliers, adder trees and accumulators against Python integers."""

import dataclasses

import numpy as np
import pytest

from gshw.config import EngineConfig, Routing
from gshw.pipeline import TAG_LEAD
from rtl_gen.compute import Accumulators, AdderTree, MultiplierArray
from tests.rtl.bench import deskewed, not_built, observed_latencies, respond, skewed
from tests.strategies import ENGINES


def wrap(value: int, width: int) -> int:
    """Two's complement of the lowest ``width`` bits."""
    value %= 1 << width
    return value - (1 << width) if value >> (width - 1) else value


def multiplier_config(activation_width: int, weight_width: int) -> EngineConfig:
    """Two lanes of two channels and two columns."""
    return EngineConfig(
        lanes=2,
        rows=1,
        bank_width=4 * activation_width,
        columns=2,
        activation_width=activation_width,
        weight_width=weight_width,
        routing=Routing.DIRECT,
    )


@pytest.mark.parametrize("signed_input", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("weight_width", [4, 8, 16])
@pytest.mark.parametrize("activation_width", [4, 8, 16])
def test_products(activation_width, weight_width, signed_input):
    """Every product exact, every operand in its place; the extremes of both meet."""
    config = multiplier_config(activation_width, weight_width)
    dut = MultiplierArray(config)
    rng = np.random.default_rng(1)
    top_code = (1 << activation_width) - 1
    half = 1 << (weight_width - 1)
    code_ends = [0, 1, top_code // 2, top_code // 2 + 1, top_code]
    weight_ends = [-half, 1 - half, -1, 0, 1, half - 1]
    inputs = [([code] * 8, [weight] * 4) for code in code_ends for weight in weight_ends]
    for _ in range(20):
        codes = [int(n) for n in rng.integers(0, top_code + 1, 8)]
        inputs.append((codes, [int(n) for n in rng.integers(-half, half, 4)]))

    expected = []
    for codes, weights in inputs:
        products = []
        for lane in range(2):
            for channel in range(2):
                for column in range(2):
                    code = codes[lane * 4 + channel * 2 + column]
                    if signed_input and code > top_code // 2:
                        code -= top_code + 1
                    products.append(weights[lane * 2 + channel] * code)
        expected.append(products)

    def drive(ctx, vector):
        codes, weights = vector
        ctx.set(dut.signed_input, signed_input)
        for lane in range(2):
            word = 0
            for element in range(4):
                word |= codes[lane * 4 + element] << (element * activation_width)
            ctx.set(dut.word[lane], word)
        for index, weight in enumerate(weights):
            ctx.set(dut.weight[index], weight)

    outputs = respond(dut, inputs, drive, lambda ctx: [ctx.get(p) for p in dut.product])
    assert observed_latencies(expected, deskewed(outputs, 2)) == [dut.latency]


@pytest.mark.parametrize("output_width", [16, 18, 32])
@pytest.mark.parametrize("n_inputs", [1, 2, 3, 5, 6, 7, 8, 13])
def test_sums(n_inputs, output_width):
    """Sums of any number of inputs; beyond ``output_width`` bits they wrap."""
    dut = AdderTree(n_inputs, 16, output_width)
    rng = np.random.default_rng(2)
    low, high = -(1 << 15), (1 << 15) - 1
    inputs = [[low] * n_inputs, [high] * n_inputs, [low, high] * (n_inputs // 2) + [-1]]
    inputs = [vector[:n_inputs] for vector in inputs]
    inputs += [[low if i == j else 0 for i in range(n_inputs)] for j in range(n_inputs)]
    inputs += [[int(n) for n in rng.integers(low, high + 1, n_inputs)] for _ in range(30)]
    expected = [wrap(sum(vector), output_width) for vector in inputs]

    def drive(ctx, vector):
        for i, value in zip(dut.i, vector, strict=True):
            ctx.set(i, value)

    outputs = respond(dut, inputs, drive, lambda ctx: ctx.get(dut.o))
    assert observed_latencies(expected, outputs) == [dut.latency]
    if n_inputs > 4 and output_width == 18:
        assert any(sum(vector) != total for vector, total in zip(inputs, expected))


def test_adder_tree_latency_is_the_levels():
    levels = {1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 9: 4, 16: 4}
    assert {n: not_built(AdderTree(n, 8, 16)).latency for n in levels} == levels


def random_tags(rng, config: EngineConfig, n_bundles: int) -> list[dict]:
    """Cycles of several bundles: groups and gaps; ``shift`` at random, also while capturing."""
    cycles = []
    for _ in range(n_bundles):
        n_groups = int(rng.integers(1, 5))
        for index in range(n_groups):
            while rng.random() < 0.3:
                cycles.append({"valid": 0, "first": int(rng.integers(2)), "drain": 1})
            last = index == n_groups - 1
            cycles.append({"valid": 1, "first": int(index == 0), "drain": config.rows * last})
    limit = 1 << (config.accumulator_width - 4)
    for cycle in cycles:
        cycle["shift"] = int(rng.random() < 0.5)
        cycle["i"] = [int(n) for n in rng.integers(-limit, limit, config.rows * config.columns)]
    return cycles


ACCUMULATORS = {
    "one_row": ENGINES["direct4"],
    "hybrid": dataclasses.replace(ENGINES["hybrid4"], drain_rows=1),
    "all_at_once": ENGINES["hybrid4"],
    "vertical": ENGINES["vertical8"],
}


IDLE = {"valid": 0, "first": 0, "drain": 0}


def accumulated(
    dut: Accumulators, cycles: list[dict], n_extra: int = 0, *, maximum: bool = False
) -> list[list[int]]:
    """Outputs for the selection of every cycle; tags go ahead of sums by ``TAG_LEAD``."""
    n_lead, n_sums, columns = TAG_LEAD, len(dut.i), dut.config.columns
    n_tail = n_extra + columns - 1
    silence = [0] * n_sums
    tags = [*cycles, *[IDLE] * (n_lead + n_tail)]
    shifts = [*[0] * n_lead, *(cycle["shift"] for cycle in cycles), *[0] * n_tail]
    sums = [*[silence] * n_lead, *(cycle["i"] for cycle in cycles), *[silence] * n_extra]

    def drive(ctx, inputs):
        tag, shift, values = inputs
        for name in IDLE:
            ctx.set(getattr(dut.tag, name), tag[name])
        ctx.set(dut.shift, shift)
        if maximum:
            ctx.set(dut.maximum, 1)
        for i, value in zip(dut.i, values, strict=True):
            ctx.set(i, value)

    inputs = list(zip(tags, shifts, skewed(sums, columns), strict=True))
    outputs = respond(dut, inputs, drive, lambda ctx: [ctx.get(o) for o in dut.o], dut.latency)
    return deskewed(outputs, columns)[n_lead + dut.latency :]


@pytest.mark.parametrize("reduction", ["sum", "sum of two modes", "maximum"])
@pytest.mark.parametrize("name", ACCUMULATORS)
def test_accumulators(name, reduction):
    """Sums restart with ``first``, are captured with ``drain`` and selected by ``shift``.

    So do maxima of codes, which begin at 0.
    """
    maximum = reduction == "maximum"
    config = dataclasses.replace(ACCUMULATORS[name], max_pooling=reduction != "sum")
    dut = Accumulators(config)
    rng = np.random.default_rng(4)
    cycles = random_tags(rng, config, 60)
    if maximum:
        low, high = -(1 << (config.activation_width - 1)), 1 << config.activation_width
        for cycle in cycles:
            cycle["i"] = [int(n) for n in rng.integers(low, high, len(cycle["i"]))]
    n_out = config.drain_rows * config.columns
    expected = []
    sums = [0] * (config.rows * config.columns)
    drained: list[int] | None = None
    n_both = 0
    for cycle in cycles:
        expected.append(drained[:n_out] if drained else None)
        if cycle["valid"]:
            before = [0 if cycle["first"] else value for value in sums]
            if maximum:
                sums = [max(pair) for pair in zip(before, cycle["i"])]
            else:
                sums = [value + addend for value, addend in zip(before, cycle["i"])]
        if cycle["valid"] and cycle["drain"]:
            n_both += cycle["shift"]
            drained = list(sums)
        elif cycle["shift"] and drained:
            drained = drained[n_out:]

    outputs = accumulated(dut, cycles, maximum=maximum)
    for index, (want, got) in enumerate(zip(expected, outputs, strict=True)):
        assert want is None or got[: len(want)] == want, f"cycle {index}"
    assert n_both and sum(want is not None and len(want) > 0 for want in expected) > 50


def test_next_bundle_accumulates_while_this_one_drains():
    """Shifting the captured rows out leaves the new sums alone, and the other way round."""
    config = ENGINES["vertical8"]
    dut = Accumulators(config)
    n_rows, n_slices = config.rows, config.rows // config.drain_rows
    first = [100 + row for row in range(n_rows)]
    cycles = [{"valid": 1, "first": 1, "drain": n_slices, "shift": 0, "i": first}]
    for _ in range(3):
        cycles.append({"valid": 1, "first": 0, "drain": 0, "shift": 0, "i": [1000] * n_rows})
    cycles[1]["first"] = 1
    cycles[1]["shift"] = 1
    cycles[3]["drain"] = n_slices

    outputs = accumulated(dut, cycles, n_extra=1)
    assert outputs[1:] == [first[:4], first[4:], first[4:], [3000] * 4]
