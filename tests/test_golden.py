"""The golden model against nested loops over Python integers and exact rational arithmetic."""

import dataclasses
import math
import re
from fractions import Fraction

import numpy as np
import pytest

from gshw.config import load_config
from gshw.encoding import Requantisation, decode_weights, encode_layer
from gshw.errors import GshwError
from gshw.geometry import Geometry, LayerKind, Part
from gshw.golden import accumulate, check_activations, requantise, run_layer, unfold_windows
from tests.strategies import (
    all_engines,
    conv,
    naive_requantise,
    random_activations,
    random_layer,
)

ALL = all_engines()
TINY = load_config("tiny").engine


def conv1d(in_channels: int, kernel: int, stride: int, padding: int, dilation: int) -> Geometry:
    return Geometry(
        kind=LayerKind.CONV1D,
        in_channels=in_channels,
        kernel=(1, kernel),
        stride=(1, stride),
        padding=(0, padding),
        dilation=(1, dilation),
    )


def columns_of_a_tap(geometry: Geometry) -> list[int]:
    """Input channels in the order of the columns: every part as often as it is repeated."""
    channels, start = [], 0
    for part in geometry.parts or (Part(geometry.in_channels),):
        channels += list(range(start, start + part.channels)) * part.repeats
        start += part.channels
    return channels


def naive_sum(geometry: Geometry, row: list[int], x: np.ndarray, y: int, column: int) -> int:
    """One accumulator by loops over the window; ``x`` is (height, width, channels)."""
    total, index = 0, 0
    for ky in range(geometry.kernel[0]):
        for kx in range(geometry.kernel[1]):
            in_y = y * geometry.stride[0] + ky * geometry.dilation[0] - geometry.padding[0]
            in_x = column * geometry.stride[1] + kx * geometry.dilation[1] - geometry.padding[1]
            inside = 0 <= in_y < x.shape[0] and 0 <= in_x < x.shape[1]
            for channel in columns_of_a_tap(geometry):
                if inside:
                    total += row[index] * int(x[in_y, in_x, channel])
                index += 1
    return total


def naive_code(layer, weights: list[list[int]], x: np.ndarray, place: tuple) -> int:
    """One output code by loops."""
    sample, y, column, row = place
    out = layer.requantisation
    acc = int(out.bias[row]) + naive_sum(layer.geometry, weights[row], x[sample], y, column)
    parameters = int(out.multiplier[row]), int(out.shift[row]), out.low, out.high
    return naive_requantise(acc, *parameters)


CASES = {
    "linear": (Geometry.linear(37), (3, 1, 1)),
    "linear one": (Geometry.linear(1), (3, 1, 1)),
    "pointwise": (conv(5, (1, 1)), (2, 3, 4)),
    "3x3 padded": (conv(3, (3, 3), padding=(1, 1)), (2, 4, 5)),
    "strided": (conv(2, (3, 2), stride=(2, 3), padding=(1, 0)), (1, 7, 8)),
    "dilated": (conv(2, (2, 3), dilation=(3, 2), padding=(2, 2)), (1, 5, 6)),
    "unfolded": (conv(3, (3, 3), stride=(1, 2), padding=(1, 2), unfold=True), (2, 5, 4)),
    "parts": (conv(7, (2, 2), padding=(1, 0), parts=(Part(2), Part(5, 2))), (2, 3, 4)),
    "conv1d": (conv1d(4, 5, 2, 3, 2), (2, 1, 11)),
}
ENGINES = ["tiny", "hybrid16", "block16", "direct2x2", "vertical4", "vertical8"]


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_layers_equal_nested_loops(engine, case, signed):
    config = ALL[engine]
    geometry, shape = CASES[case]
    n_rows = config.rows + 1
    layer = random_layer(3, config, n_rows, geometry, 0.7, signed_input=signed, relu=not signed)
    x = random_activations(4, config, (*shape, geometry.in_channels), signed=signed)
    weights = decode_weights(config, layer).tolist()
    found = run_layer(config, layer, x)
    assert found.dtype == np.int64
    wanted = np.empty_like(found)
    for place in np.ndindex(found.shape):
        wanted[place] = naive_code(layer, weights, x, place)
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(found)) > 1


def test_output_size():
    """Every position whose window fits, and no more."""
    for name, (geometry, (n_samples, height, width)) in CASES.items():
        starts = []
        for axis, extent in enumerate((height, width)):
            reach = geometry.dilation[axis] * (geometry.kernel[axis] - 1)
            last = extent + geometry.padding[axis] - 1
            first = range(-geometry.padding[axis], last + 1, geometry.stride[axis])
            starts.append(sum(start + reach <= last for start in first))
        layer = random_layer(0, TINY, 2, geometry)
        x = random_activations(0, TINY, (n_samples, height, width, geometry.in_channels))
        assert run_layer(TINY, layer, x).shape == (n_samples, *starts, 2), name


def test_shapes_are_widened():
    """(samples, channels) and (samples, width, channels) mean the same as four axes."""
    layer = random_layer(0, TINY, 5, Geometry.linear(9))
    x = random_activations(1, TINY, (4, 9))
    np.testing.assert_array_equal(
        run_layer(TINY, layer, x), run_layer(TINY, layer, x[:, None, None, :])
    )
    layer = random_layer(0, TINY, 5, conv1d(3, 3, 1, 1, 1))
    x = random_activations(1, TINY, (2, 6, 3))
    np.testing.assert_array_equal(run_layer(TINY, layer, x), run_layer(TINY, layer, x[:, None]))


def test_unfold_windows_by_hand():
    x = np.arange(1, 5).reshape(1, 2, 2, 1)
    windows = unfold_windows(conv(1, (2, 2), padding=(1, 0)), x)
    assert windows.tolist() == [[[[0, 0, 1, 2]], [[1, 2, 3, 4]], [[3, 4, 0, 0]]]]


# --- requantisation ------------------------------------------------------------------------------

EDGES = [0, 1, -1, 2, -2, 2**31 - 1, -(2**31), 2**30, -(2**30), 12345, -98765]


def rational(acc: int, multiplier: int, shift: int, low: int, high: int) -> int:
    """``floor(acc * multiplier / 2**shift + 1/2)`` in exact fractions, clamped."""
    return min(high, max(low, math.floor(Fraction(acc * multiplier, 2**shift) + Fraction(1, 2))))


@pytest.mark.parametrize("shift", range(1, 48))
def test_requantise_is_exact(shift):
    """Edges, random values, and values on and beside ties, with a clamp that cuts nothing."""
    rng = np.random.default_rng(shift)
    low, high = -(2**62), 2**62
    for multiplier in (1 << 15, (1 << 16) - 1, int(rng.integers(1 << 15, 1 << 16))):
        accs = EDGES + rng.integers(-(2**31), 2**31, 50).tolist()
        accs += rng.integers(-(2**16), 2**16, 50).tolist()
        # Ties of a power-of-two multiplier: acc * 2**15 / 2**shift ends in one half.
        step = 1 << max(0, shift - 15)
        ties = [n * step + step // 2 + d for n in range(-4, 5) for d in (-1, 0, 1)]
        accs += [tie for tie in ties if -(2**31) <= tie < 2**31]
        out = Requantisation(
            bias=np.zeros(1, int),
            multiplier=np.array([multiplier]),
            shift=np.array([shift]),
            low=low,
            high=high,
        )
        found = requantise(np.array(accs, dtype=np.int64)[:, None], out)[:, 0].tolist()
        assert found == [rational(acc, multiplier, shift, low, high) for acc in accs]


def test_ties_round_towards_plus_infinity():
    """Scale 1/2: halves go up, on both sides of zero."""
    out = Requantisation.identity(1, TINY, shift=16)
    accs = np.array([-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5])
    assert requantise(accs[:, None], out)[:, 0].tolist() == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3]


def test_clamp():
    accs = np.array([-(2**31), -257, -256, -1, 0, 254, 256, 2**31 - 1])[:, None]
    signed = Requantisation.identity(1, TINY, shift=16)
    assert requantise(accs, signed)[:, 0].tolist() == [-128, -128, -128, 0, 0, 127, 127, 127]
    relu = dataclasses.replace(signed, low=0, high=255)
    assert requantise(accs, relu)[:, 0].tolist() == [0, 0, 0, 0, 0, 127, 128, 255]
    narrow = dataclasses.replace(signed, low=-3, high=4)
    assert requantise(accs, narrow)[:, 0].tolist() == [-3, -3, -3, 0, 0, 4, 4, 4]


def test_each_row_has_its_own_parameters():
    out = Requantisation(
        bias=np.zeros(2, int),
        multiplier=np.array([1 << 15, 3 << 14]),
        shift=np.array([15, 16]),
        low=-128,
        high=127,
    )
    assert requantise(np.array([[[8, 8]]]), out).tolist() == [[[8, 6]]]


# --- large layers --------------------------------------------------------------------------------


def test_large_convolution():
    """3 x 3 x 512 x 512 on a 7 x 7 map; a sample of outputs against the loops."""
    config = load_config("v16x4").engine
    geometry = conv(512, (3, 3), padding=(1, 1))
    layer = random_layer(5, config, 512, geometry, 0.1)
    x = random_activations(6, config, (1, 7, 7, 512))
    found = run_layer(config, layer, x)
    assert found.shape == (1, 7, 7, 512)
    weights = decode_weights(config, layer).tolist()
    for place in [(0, 0, 0, 0), (0, 3, 3, 100), (0, 6, 0, 511), (0, 6, 6, 7), (0, 2, 5, 300)]:
        assert found[place] == naive_code(layer, weights, x, place)


def test_sums_at_the_end_of_32_bits():
    """The largest accumulator there can be, exactly, in either sign."""
    weights = np.array([[16383, 16383], [-16384, -16384]])
    x = np.full((1, 1, 1, 2), 65535)
    acc = accumulate(weights, Geometry.linear(2), x)
    assert acc.tolist() == [[[[2 * 16383 * 65535, -2 * 16384 * 65535]]]]


# --- errors --------------------------------------------------------------------------------------


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def layer_of(signed: bool):
    out = Requantisation.identity(2, TINY, signed_input=signed)
    return encode_layer(TINY, "fc", np.ones((2, 3), int), Geometry.linear(3), out)


@pytest.mark.parametrize(
    ("signed", "codes", "message"),
    [
        (False, [0.0, 1, 2], "activations must be integers, not float64"),
        (False, [True, True, False], "activations must be integers, not bool"),
        (False, [0, 1, 256], "activations must be within 0..255 (8 bits), not 0..256"),
        (False, [-1, 1, 2], "activations must be within 0..255 (8 bits), not -1..2"),
        (True, [0, 1, 128], "activations must be within -128..127 (8 bits), not 0..128"),
        (True, [-129, 1, 2], "activations must be within -128..127 (8 bits), not -129..2"),
    ],
)
def test_activation_errors(signed, codes, message):
    with raises(f"layer 'fc': {message}"):
        run_layer(TINY, layer_of(signed), np.array([codes]))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 1, 1, 1, 3), (0, 3), (1, 0, 1, 3), ()])
def test_activation_shapes(shape):
    with raises(
        f"layer 'fc': activations must have shape (samples, height, width, 3), not {shape}"
    ):
        check_activations(TINY, layer_of(False), np.zeros(shape, dtype=int))


def test_range_ends_are_legal():
    for signed, ends in ((False, [0, 255, 1]), (True, [-128, 127, 0])):
        run_layer(TINY, layer_of(signed), np.array([ends]))


def test_foreign_layer():
    other = dataclasses.replace(TINY, bank_depth=512)
    with raises(f"layer 'fc' was encoded for the engine {TINY.hash[:8]}, not for {other.hash[:8]}"):
        run_layer(other, layer_of(False), np.zeros((1, 3), int))


def test_codes_go_through_a_table():
    """The bits of a code are the number of its entry, whatever its sign."""
    rng = np.random.default_rng(0)
    table = rng.integers(-128, 128, 256)
    acc = rng.integers(-(1 << 20), 1 << 20, (50, 3))
    for low, high in ((0, 255), (-128, 127)):
        stage = dataclasses.replace(
            Requantisation.identity(3, TINY, shift=27), low=low, high=high, table=table
        )
        codes = requantise(acc, dataclasses.replace(stage, table=None))
        found = requantise(acc, stage)
        for place in np.ndindex(acc.shape):
            assert found[place] == table[int(codes[place]) % 256]
        assert len(np.unique(codes)) > 20 and stage.signed_output
