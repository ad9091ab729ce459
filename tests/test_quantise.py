"""Quantisation: the fixed-point error bound, provable accumulators, and bad floats."""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest

from gshw.config import load_config
from gshw.encoding import decode_weights
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.golden import run_layer
from gshw.quantise import (
    FIXED_POINT_ERROR,
    Calibration,
    FloatLayer,
    RangeMethod,
    activation_range,
    quantise_activations,
    quantise_layer,
    row_scales,
    to_fixed,
    to_integers,
)
from tests.strategies import all_engines

TINY = load_config("tiny").engine
ALL = all_engines()


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def float_layer(weights, bias=None, **options) -> FloatLayer:
    """A linear layer with plain scales."""
    weights = np.asarray(weights, dtype=np.float64)
    defaults = {
        "name": "fc",
        "weights": weights,
        "bias": np.zeros(len(weights)) if bias is None else np.asarray(bias, dtype=np.float64),
        "geometry": Geometry.linear(weights.shape[1]),
        "input_scale": 0.02,
        "output_scale": 0.05,
        "signed_input": False,
        "signed_output": True,
    }
    return FloatLayer(**defaults | options)


# --- to_fixed ------------------------------------------------------------------------------------


def fixed_scales() -> np.ndarray:
    """Random over the whole range, powers of two and their neighbours, both ends."""
    rng = np.random.default_rng(0)
    powers = 2.0 ** np.arange(-31, 15)
    halves = (32768 + np.arange(0, 32768, 97) + 0.5) * 2.0**-20
    return np.concatenate(
        [
            2.0 ** rng.uniform(-31.9, 14.9, 3000),
            powers,
            np.nextafter(powers, 0),
            np.nextafter(powers, np.inf),
            halves,
            [2.0**-32, np.nextafter(2.0**-32, 1), np.nextafter(2.0**15 - 0.25, 0), 32767.5],
        ]
    )


def test_to_fixed_error_bound():
    """Exactly, in fractions: normalised, within the bound, and the nearest there is."""
    scales = fixed_scales()
    multiplier, shift = to_fixed(scales)
    assert multiplier.dtype == shift.dtype == np.int64
    worst = Fraction(0)
    for scale, m, s in zip(scales.tolist(), multiplier.tolist(), shift.tolist()):
        assert 2**15 <= m < 2**16 and 1 <= s <= 47
        error = abs(Fraction(m, 2**s) - Fraction(scale))
        assert error <= Fraction(1, 2 ** (s + 1))
        worst = max(worst, error / Fraction(scale))
    assert Fraction(FIXED_POINT_ERROR) / 2 < worst <= Fraction(FIXED_POINT_ERROR)


def test_to_fixed_powers_of_two_are_exact():
    for exponent in range(-32, 15):
        multiplier, shift = to_fixed(np.array(2.0**exponent))
        assert (int(multiplier), int(shift)) == (1 << 15, 15 - exponent)


def test_to_fixed_keeps_the_shape():
    multiplier, shift = to_fixed(np.full((2, 3), 0.3))
    assert multiplier.shape == shift.shape == (2, 3)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_to_fixed_refuses(bad):
    with raises("output scale must be positive and finite"):
        to_fixed(np.array([0.5, bad]))


@pytest.mark.parametrize(
    ("bad", "shown"), [(2.0**-33, "1.16e-10"), (2.0**15, "3.28e+04"), (1e30, "1e+30")]
)
def test_to_fixed_out_of_range(bad, shown):
    with raises(f"output scale must be from 2**-32 to 2**15, not {shown}"):
        to_fixed(np.array([0.5, bad, 0.25]))


# --- row scales ----------------------------------------------------------------------------------


def bounds_by_hand(config, layer, signed: bool) -> list[tuple[int, int]]:
    """Worst sums of every row over all legal inputs, in Python integers."""
    half = 1 << (config.activation_width - 1)
    low, high = (-half, half - 1) if signed else (0, 2 * half - 1)
    found = []
    for row, bias in zip(decode_weights(config, layer).tolist(), layer.requantisation.bias):
        ends = [sorted((w * low, w * high)) for w in row]
        found.append((int(bias) + sum(e[0] for e in ends), int(bias) + sum(e[1] for e in ends)))
    return found


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("accumulator_width", [16, 17, 20, 24, 32])
def test_accumulators_provably_fit(accumulator_width, signed):
    """One-sided, heavy-tailed and large-bias rows; narrow accumulators are used, not wasted."""
    config = dataclasses.replace(TINY, accumulator_width=accumulator_width)
    rng = np.random.default_rng(accumulator_width)
    weights = rng.standard_t(3, (12, 60))
    weights[0] = 1.0
    weights[1] = -1.0
    weights[2] = 0.0
    weights[3] = 1e-9
    bias = rng.normal(size=12) * 10.0 ** rng.integers(-2, 5, 12)
    layer = quantise_layer(config, float_layer(weights, bias, signed_input=signed))
    limit = 1 << (accumulator_width - 1)
    bounds = bounds_by_hand(config, layer, signed)
    assert all(-limit <= low and high < limit for low, high in bounds)
    if accumulator_width == 16:
        assert max(max(-low, high) for low, high in bounds) > 0.5 * limit


def test_scale_is_the_peak_where_the_accumulator_is_wide():
    weights = np.array([[0.5, -2.54, 1.0], [0.1, 0.127, -0.01]])
    np.testing.assert_allclose(row_scales(TINY, float_layer(weights)), [0.02, 0.001], rtol=1e-12)
    codes = decode_weights(TINY, quantise_layer(TINY, float_layer(weights)))
    assert codes.tolist() == [[25, -127, 50], [100, 127, -10]]


@pytest.mark.parametrize("engine", sorted(ALL))
def test_codes_are_within_half_a_code(engine):
    """Weights and bias of every engine: nearest to the float value over its row's scale."""
    config = ALL[engine]
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(5, 7)) * np.exp(rng.normal(size=(5, 1)))
    source = float_layer(weights, rng.normal(size=5))
    layer = quantise_layer(config, source)
    scale = row_scales(config, source)
    codes = decode_weights(config, layer)
    assert np.abs(codes - weights / scale[:, None]).max() <= 0.5 + 1e-9
    bias = source.bias / (source.input_scale * scale)
    assert np.abs(layer.requantisation.bias - bias).max() <= 0.5 + 1e-9
    ratio = layer.requantisation.multiplier / 2.0**layer.requantisation.shift
    np.testing.assert_allclose(ratio, 0.02 * scale / 0.05, rtol=FIXED_POINT_ERROR)


@pytest.mark.parametrize("bias", [0.0, 1e-12, 0.024, 0.026, 1.0, -3.17, 5.0, 1e4, -1e4])
def test_rows_with_only_a_bias(bias):
    """They give the bias, rounded, at any size; a row without anything gives zero."""
    layer = quantise_layer(TINY, float_layer([[0.0, 0.0], [1.0, 2.0]], [bias, 0.0]))
    found = run_layer(TINY, layer, np.array([[0, 0], [255, 3]]))[:, 0, 0, 0].tolist()
    wanted = min(127, max(-128, round(bias / 0.05)))
    assert found == [wanted, wanted]


def test_tiny_weights_do_not_overflow_the_scale():
    layer = quantise_layer(TINY, float_layer([[1e-30, -1e-30], [0.0, 1e-20]], [1.0, -1.0]))
    assert run_layer(TINY, layer, np.full((1, 2), 255)).reshape(-1).tolist() == [20, -20]


def test_output_of_a_layer_by_hand():
    """x = (10, 20) codes of 0.02: y = 0.2 * 1.27 + 0.4 * -0.635 + 0.5 = 0.5, ten codes."""
    layer = quantise_layer(TINY, float_layer([[1.27, -0.635]], [0.5]))
    assert abs(int(run_layer(TINY, layer, np.array([[10, 20]]))[0, 0, 0, 0]) - 10) <= 1


@pytest.mark.parametrize(("signed_output", "clamp"), [(True, (-128, 127)), (False, (0, 255))])
def test_output_sign_sets_the_clamp(signed_output, clamp):
    layer = quantise_layer(TINY, float_layer([[1.0]], signed_output=signed_output))
    assert (layer.requantisation.low, layer.requantisation.high) == clamp
    assert layer.requantisation.signed_output is signed_output


def test_mask_zeros_weights_and_is_kept():
    """Nothing outside the mask survives, and its weights do not coarsen the scale."""
    rng = np.random.default_rng(3)
    weights, mask = rng.normal(size=(4, 16)), rng.random((4, 16)) < 0.4
    weights[~mask] *= 50
    layer = quantise_layer(TINY, float_layer(weights, mask=mask))
    assert not decode_weights(TINY, layer)[~mask].any()
    clean = quantise_layer(TINY, float_layer(np.where(mask, weights, 0), mask=mask))
    np.testing.assert_array_equal(layer.value, clean.value)
    for key in ("bias", "multiplier", "shift"):
        np.testing.assert_array_equal(
            getattr(layer.requantisation, key), getattr(clean.requantisation, key)
        )


def test_row_order_and_scales_are_handed_on():
    layer = quantise_layer(
        TINY, float_layer(np.eye(3), row_order=np.array([2, 0, 1]), output_scale=0.25)
    )
    assert layer.row.tolist() == [2, 0, 1]
    assert (layer.input_scale, layer.output_scale) == (0.02, 0.25)


@pytest.mark.parametrize("engine", sorted(ALL))
@pytest.mark.parametrize("weight_width", [2, 3, 4])
def test_fewer_bits_than_the_engine(engine, weight_width):
    """The whole narrow range is used, nearest codes, and None is the engine's width."""
    config = dataclasses.replace(ALL[engine], accumulator_width=32)
    weights = np.random.default_rng(4).normal(size=(6, 30))
    source = float_layer(weights, weight_width=weight_width)
    codes = decode_weights(config, quantise_layer(config, source))
    highest = 2 ** (weight_width - 1) - 1
    assert np.abs(codes).max(axis=1).tolist() == [highest] * 6
    scale = np.abs(weights).max(axis=1, keepdims=True) / highest
    assert np.abs(codes * scale - weights).max() <= 0.5 * scale.max() * (1 + 1e-12)
    full, _ = to_integers(config, float_layer(weights))
    same, _ = to_integers(config, float_layer(weights, weight_width=config.weight_width))
    np.testing.assert_array_equal(full, same)


# --- activation ranges ---------------------------------------------------------------------------


def heavy(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, n)


def test_range_by_maximum_and_percentile():
    values = np.concatenate([np.arange(-999, 1), [0.5]]).reshape(7, -1)
    assert activation_range(values, RangeMethod.MAX) == 999.0
    assert activation_range(values, percentile=50.0) == 499.0
    assert activation_range(values, percentile=100.0) == 999.0
    big = heavy(50000)
    assert activation_range(big) == np.quantile(np.abs(big), 0.9999)


def squared_error(values: np.ndarray, clip: float, highest_code: int) -> float:
    """By definition, value by value."""
    step = clip / highest_code
    total = 0.0
    for value in np.abs(values).tolist():
        total += (value - min(round(value / step), highest_code) * step) ** 2
    return total


@pytest.mark.parametrize("highest_code", [7, 15, 127])
@pytest.mark.parametrize("kind", ["normal", "heavy", "relu", "uniform", "outlier"])
def test_range_of_least_error(highest_code, kind):
    """No clip on a fine grid is better by more than the grid of the search explains."""
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.normal(size=3000),
        "heavy": heavy(3000, 2),
        "relu": np.maximum(rng.normal(size=3000), 0),
        "uniform": rng.uniform(-1, 1, 3000),
        "outlier": np.append(rng.normal(size=3000), 90.0),
    }[kind]
    found = activation_range(values, RangeMethod.MSE, highest_code=highest_code)
    peak = np.abs(values).max()
    best = min(squared_error(values, c, highest_code) for c in np.geomspace(peak / 200, peak, 60))
    assert squared_error(values, found, highest_code) <= 1.02 * best
    if kind == "uniform":
        assert found > 0.9 * peak
    if kind == "heavy" and highest_code == 7:
        assert found < 0.5 * peak


def test_range_of_least_error_on_many_values():
    """The bulk is summed up with its weight, the tail is kept whole."""
    values = np.append(heavy(200_000, 3), [400.0, -500.0])

    def error(clip: float) -> float:
        step = clip / 7
        return np.square(values - np.clip(np.rint(values / step), -7, 7) * step).sum()

    found = activation_range(values, RangeMethod.MSE, highest_code=7)
    assert error(found) <= 1.01 * min(error(clip) for clip in np.geomspace(2, 500, 80))


@pytest.mark.parametrize("method", RangeMethod)
def test_range_of_nothing(method):
    assert activation_range(np.zeros(0), method) == 0.0
    assert activation_range(np.zeros((3, 4)), method) == 0.0
    assert activation_range(np.full(9, -2.5), method, highest_code=127) == 2.5
    assert np.isnan(activation_range(np.array([1.0, np.nan]), method))


@pytest.mark.parametrize(("bad", "shown"), [(0.0, "0"), (-3, "-3"), (100.01, "100.01")])
def test_percentile_out_of_range(bad, shown):
    with raises(f"percentile must be above 0 and at most 100, not {shown}"):
        activation_range(np.ones(3), percentile=bad)


def test_calibration_scales():
    found = Calibration(input_range=2.54, output_range=0.0, signed_input=True, signed_output=False)
    assert found.input_scale(TINY) == pytest.approx(0.02)
    assert found.output_scale(TINY) == 1 / 255


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-4, 0, 1, 9])
def test_weight_width_out_of_range(bad):
    with raises(f"layer 'fc': weight_width must be from 2 to the engine's 8, not {bad}"):
        quantise_layer(TINY, float_layer([[1.0, 2.0]], weight_width=bad))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad):
    weights = np.ones((3, 4))
    weights[1, 2] = bad
    with raises(f"layer 'fc': weights must be finite, not {bad} at (1, 2)"):
        quantise_layer(TINY, float_layer(weights))
    with raises(f"layer 'fc': bias must be finite, not {bad} at (2,)"):
        quantise_layer(TINY, float_layer(np.ones((3, 4)), [0, 1, bad]))


@pytest.mark.parametrize("key", ["input_scale", "output_scale"])
@pytest.mark.parametrize("bad", [0.0, -0.5, np.nan, np.inf])
def test_scales_that_are_not_positive(key, bad):
    with raises(f"layer 'fc': {key} must be positive, not {bad}"):
        quantise_layer(TINY, float_layer(np.ones((1, 2)), **{key: bad}))


def test_scale_too_large_names_the_layer():
    with raises("layer 'fc': output scale must be from 2**-32 to 2**15, not 3.15e+05"):
        quantise_layer(TINY, float_layer([[127.0]], input_scale=1.0, output_scale=1 / 315000))


def test_too_many_weights_for_the_accumulator():
    config = dataclasses.replace(TINY, accumulator_width=16)
    quantise_layer(config, float_layer(np.ones((2, 256))))
    weights = np.zeros((2, 257))
    weights[1] = 1.0
    with raises("layer 'fc': row 1 has too many weights for a 16-bit accumulator"):
        quantise_layer(config, float_layer(weights))


# --- activations ---------------------------------------------------------------------------------


def test_activations_round_and_saturate():
    values = np.array([-1e9, -1.3, -0.26, 0.0, 0.24, 0.25, 0.75, 31.9, 63.75, 64.0, np.inf])
    unsigned = quantise_activations(TINY, values, 0.25, signed=False)
    assert unsigned.tolist() == [0, 0, 0, 0, 1, 1, 3, 128, 255, 255, 255]
    signed = quantise_activations(TINY, values, 0.25, signed=True)
    assert signed.tolist() == [-128, -5, -1, 0, 1, 1, 3, 127, 127, 127, 127]
    assert unsigned.dtype == np.int64


def test_activation_ties_go_to_even():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantise_activations(TINY, values, 1.0, signed=True).tolist() == [0, 2, 2, 0, -2]
