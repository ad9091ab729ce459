"""The encoder: exact both ways, the fewest groups, conflict-free, and what it refuses."""

import dataclasses
import itertools
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from gshw.config import EngineConfig, Gather, Routing, load_config
from gshw.encoding import (
    IDLE_BANK,
    Requantisation,
    accumulator_bounds,
    consecutive_rows,
    decode_weights,
    encode_layer,
    execution_order,
    order_for_drain,
    scatter_rows,
)
from gshw.errors import GshwError
from gshw.geometry import Geometry, LayerKind, Part
from gshw.image import drain_records
from tests.strategies import all_engines, conv, random_layer, random_weights

ALL = all_engines()
TINY = load_config("tiny").engine
ENGINE_NAMES = sorted(ALL)

GEOMETRIES = {
    "linear64": Geometry.linear(64),
    "linear1": Geometry.linear(1),
    "linear5": Geometry.linear(5),
    "linear147": Geometry.linear(147),
    "conv3s2p1": conv(3, (3, 3), stride=(2, 2), padding=(1, 1)),
    "conv5d2": conv(5, (2, 3), dilation=(2, 1)),
    "conv147": conv(147, (1, 2)),
    "conv3unfold": conv(3, (5, 5), stride=(2, 1), padding=(2, 0), unfold=True),
    "conv_parts": conv(40, (1, 2), parts=(Part(5, 3), Part(35))),
    "conv1d": Geometry(
        kind=LayerKind.CONV1D, in_channels=20, kernel=(1, 5), padding=(0, 2), stride=(1, 3)
    ),
}


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def place_of_column(config: EngineConfig, geometry: Geometry, column: int) -> tuple[int, int, int]:
    """(word, bank, channel in the block) of a column, from the design's definition."""
    channels = geometry.in_channels
    if geometry.unfold:
        channels *= geometry.kernel[0] * geometry.kernel[1]
    pieces = [channels]
    if geometry.parts:
        pieces = [part.channels for part in geometry.parts for _ in range(part.repeats)]
    tap, channel = divmod(column, sum(pieces))
    words_per_tap, first_word = 0, None
    for piece in pieces:
        if first_word is None and channel < piece:
            first_word, inside = words_per_tap, channel
        channel -= piece
        filled = 0
        while filled < piece:
            words_per_tap, filled = words_per_tap + 1, filled + config.lanes * config.block
    block, inner = divmod(inside, config.block)
    word = tap * words_per_tap + first_word + block // config.lanes
    return word, block % config.lanes, inner


def column_places(config: EngineConfig, geometry: Geometry) -> dict[tuple[int, int, int], int]:
    channels = sum(part.channels * part.repeats for part in geometry.parts)
    channels = channels or geometry.in_channels
    n_columns = geometry.kernel[0] * geometry.kernel[1] * channels
    return {place_of_column(config, geometry, c): c for c in range(n_columns)}


def naive_decode(config: EngineConfig, layer) -> np.ndarray:
    """The matrix that the groups say, slot by slot; checks that no two slots clash."""
    columns = column_places(config, layer.geometry)
    matrix = np.zeros((layer.n_rows, layer.geometry.n_columns), dtype=np.int64)
    written = set()
    for bundle in range(len(layer.bundle_ptr) - 1):
        for group in range(layer.bundle_ptr[bundle], layer.bundle_ptr[bundle + 1]):
            for lane in range(config.lanes):
                row = layer.row[bundle * config.rows + lane * config.rows // config.lanes]
                bank = int(layer.bank[group, lane])
                if bank == IDLE_BANK or not layer.value[group, lane].any():
                    assert not layer.value[group, lane].any()
                    continue
                source = bank if config.gather is Gather.SCHEDULED else lane
                word = int(layer.offset[group, source])
                for inner, weight in enumerate(layer.value[group, lane]):
                    if weight:
                        place = int(row), columns[word, bank, inner]
                        assert row >= 0 and place not in written
                        written.add(place)
                        matrix[place] = weight
    return matrix


def naive_groups(config: EngineConfig, layer, kept: np.ndarray) -> list[int]:
    """Lower bound of every bundle: its busiest bank, and its longest row over its lanes."""
    bounds = []
    for bundle in range(len(layer.row) // config.rows):
        in_row, in_bank = Counter(), Counter()
        for row in layer.row[bundle * config.rows : (bundle + 1) * config.rows]:
            columns = np.flatnonzero(kept[row]) if row >= 0 else []
            places = {place_of_column(config, layer.geometry, int(c))[:2] for c in columns}
            in_row[row] = len(places)
            in_bank.update(bank for _, bank in places)
        per_row = config.lanes // config.rows
        longest = max((count + per_row - 1) // per_row for count in in_row.values())
        bounds.append(max([longest, *in_bank.values()]))
    return bounds


def encode(config, weights, geometry=None, **options):
    """Encode with the identity as output stage."""
    geometry = geometry or Geometry.linear(weights.shape[1])
    out = options.pop("requantisation", Requantisation.identity(len(weights), config))
    return encode_layer(config, "fc", weights, geometry, out, **options)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_round_trip(engine, geometry):
    """Decoding, ours and a naive one, gives the matrix back; the last bundle is often partial."""
    config, window = ALL[engine], GEOMETRIES[geometry]
    for n_rows, shuffled in ((1, False), (config.rows + 3, True)):
        rng = np.random.default_rng(n_rows)
        weights = random_weights(rng, config, n_rows, window.n_columns, 0.3)
        order = rng.permutation(n_rows) if shuffled else None
        layer = encode(config, weights, window, row_order=order)
        decoded = decode_weights(config, layer)
        np.testing.assert_array_equal(decoded, weights)
        np.testing.assert_array_equal(naive_decode(config, layer), weights)
        assert layer.n_blocks_kept <= layer.n_groups * config.lanes
        assert sorted(layer.row[layer.row >= 0]) == list(range(n_rows))


@pytest.mark.parametrize("engine", [n for n in ENGINE_NAMES if ALL[n].gather is Gather.SCHEDULED])
def test_fewest_groups(engine):
    """Every bundle meets the naive lower bound, for uneven rows and for masks with kept zeros."""
    config = ALL[engine]
    for seed, geometry in enumerate(GEOMETRIES.values()):
        rng = np.random.default_rng(seed)
        n_rows = 2 * config.rows + 1
        density = rng.choice([0.0, 0.1, 0.5, 1.0], n_rows)
        weights = random_weights(rng, config, n_rows, geometry.n_columns, density)
        layer = encode(config, weights, geometry, row_order=rng.permutation(n_rows))
        assert layer.groups_per_bundle.tolist() == naive_groups(config, layer, weights != 0)
        mask = (weights != 0) | (rng.random(weights.shape) < 0.2)
        layer = encode(config, weights, geometry, mask=mask)
        assert layer.groups_per_bundle.tolist() == naive_groups(config, layer, mask)
        np.testing.assert_array_equal(decode_weights(config, layer), weights)


@pytest.mark.parametrize("engine", [n for n in ENGINE_NAMES if ALL[n].gather is Gather.SCHEDULED])
def test_scheduled_groups_read_every_bank_once(engine):
    """The bank of every lane is a permutation; direct routing finds lane = bank."""
    config = ALL[engine]
    layer = random_layer(1, config, config.rows + 2, Geometry.linear(150), 0.3)
    assert layer.n_groups > 0
    for banks in layer.bank.tolist():
        assert sorted(banks) == list(range(config.lanes))
        if config.routing is Routing.DIRECT:
            assert banks == list(range(config.lanes))


@pytest.mark.parametrize("engine", ["arb16", "arbitrated4"])
def test_arbitrated_groups_fill_lanes_in_column_order(engine):
    """ceil(longest row / lanes per row) groups, whatever the banks."""
    config = ALL[engine]
    weights = np.zeros((config.rows, 64 * config.block * config.lanes), dtype=int)
    weights[0, :: config.block * config.lanes] = 1
    layer = encode(config, weights)
    assert layer.n_groups == -(-64 * config.rows // config.lanes)
    assert set(layer.bank[layer.value.any(axis=2)].tolist()) == {0}
    np.testing.assert_array_equal(naive_decode(config, layer), weights)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_empty_rows_and_bundles(engine):
    config = ALL[engine]
    weights = np.zeros((3 * config.rows, 40), dtype=int)
    layer = encode(config, weights)
    assert layer.groups_per_bundle.tolist() == [0, 0, 0]
    assert layer.value.shape == (0, config.lanes, config.block)
    assert not decode_weights(config, layer).any()
    weights[config.rows, 39] = -1
    layer = encode(config, weights)
    assert layer.groups_per_bundle.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(decode_weights(config, layer), weights)


def test_dense_layer_fills_every_slot():
    config = load_config("block16").engine
    layer = encode(config, np.ones((32, 128), dtype=int))
    assert layer.n_blocks_kept == layer.n_groups * config.lanes == 32 * 128 // config.block


def test_extreme_weights_of_every_width():
    """Both ends of the range survive; the narrow types hold them."""
    for width, dtype in ((4, np.int8), (8, np.int8), (16, np.int16)):
        config = dataclasses.replace(TINY, weight_width=width)
        peak = 2 ** (width - 1) - 1
        weights = np.array([[peak, -peak, 0, 1, -1]])
        layer = encode(config, weights)
        assert layer.value.dtype == dtype
        np.testing.assert_array_equal(decode_weights(config, layer), weights)


def test_kept_zeros_take_a_slot():
    mask = np.zeros((1, 8), dtype=bool)
    mask[0, [0, 4]] = True
    layer = encode(TINY, np.zeros((1, 8), dtype=int), mask=mask)
    assert (layer.n_groups, layer.n_blocks_kept) == (2, 0)


SUMS = "weights of a maximum must be 0 or 1, one of a row in a group at most"


@pytest.mark.parametrize(
    ("weights", "bias", "message"),
    [
        ([[1, 0], [0, 2]], 0, SUMS),
        ([[-1, 0], [0, 1]], 0, SUMS),
        ([[1, 0], [0, 1]], 3, "the bias of a maximum must be 0"),
    ],
)
def test_what_has_no_maximum(weights, bias, message):
    engine = dataclasses.replace(TINY, max_pooling=True)
    stage = dataclasses.replace(
        Requantisation.identity(2, engine), maximum=True, bias=np.full(2, bias)
    )
    with raises(f"layer 'pool': {message}"):
        encode_layer(engine, "pool", np.array(weights), Geometry.linear(2), stage)


def test_two_codes_of_a_block_have_no_maximum():
    engine = dataclasses.replace(load_config("block16").engine, max_pooling=True)
    stage = dataclasses.replace(Requantisation.identity(1, engine), maximum=True)
    with raises(f"layer 'pool': {SUMS}"):
        encode_layer(engine, "pool", np.ones((1, 2), int), Geometry.linear(2), stage)


def test_a_maximum_needs_its_engine():
    stage = dataclasses.replace(Requantisation.identity(2, TINY), maximum=True)
    with raises("layer 'pool': a maximum needs max_pooling = true in the config"):
        encode_layer(TINY, "pool", np.eye(2, dtype=int), Geometry.linear(2), stage)


@pytest.mark.parametrize(
    ("n_tables", "table", "message"),
    [
        (0, np.zeros(256, int), "a table needs activation_tables in the config"),
        (
            1,
            np.zeros(128, int),
            "table must hold 256 integers, not int64 of shape (128,)",
        ),
        (1, np.zeros(256), "table must hold 256 integers, not float64 of shape (256,)"),
        (1, np.arange(256) - 1, "table must be within -128..127, not -1..254"),
        (1, np.arange(256) * 2, "table must be within 0..255, not 0..510"),
    ],
)
def test_what_is_no_table(n_tables, table, message):
    engine = dataclasses.replace(TINY, activation_tables=n_tables)
    stage = dataclasses.replace(Requantisation.identity(2, engine), table=table)
    with raises(f"layer 'gate': {message}"):
        encode_layer(engine, "gate", np.eye(2, dtype=int), Geometry.linear(2), stage)


def test_row_orders():
    assert consecutive_rows(3).tolist() == [0, 1, 2]
    assert scatter_rows(np.array([1, 5, 5, 0, 9])).tolist() == [4, 1, 2, 0, 3]


def test_rows_of_like_density_share_bundles_and_save_groups():
    """Scatter pays: half the rows are dense, alternating with empty ones."""
    config = load_config("v16x4").engine
    weights = np.zeros((32, 64), dtype=int)
    weights[::2] = 1
    straight = encode(config, weights)
    scattered = encode(config, weights, row_order=scatter_rows((weights != 0).sum(axis=1)))
    assert (straight.n_groups, scattered.n_groups) == (128, 64)
    np.testing.assert_array_equal(decode_weights(config, scattered), weights)


# --- drain order ---------------------------------------------------------------------------------

DRAINS = [(4, 2, 1), (4, 4, 1), (8, 2, 1), (8, 4, 1), (8, 8, 1), (4, 2, 2), (8, 4, 2), (8, 2, 4)]


def drain_config(lanes: int, drain_rows: int, block: int) -> EngineConfig:
    return EngineConfig(lanes=lanes, rows=lanes, bank_width=8 * block, drain_rows=drain_rows)


def slice_cycles(lanes: int, block: int, rows: tuple[int, ...]) -> int:
    """Cycles for rows of one slice: the most different words that one bank has to take."""
    words = {row // block for row in rows}
    return max(Counter(word % lanes for word in words).values())


def fewest_cycles(lanes: int, drain_rows: int, block: int, rows: tuple[int, ...]) -> int:
    """Over all ways to cut the rows into slices of ``drain_rows``, the last one shorter."""

    @cache
    def best(left: tuple[int, ...]) -> int:
        if not left:
            return 0
        return min(
            slice_cycles(lanes, block, (left[0], *more))
            + best(tuple(r for r in left[1:] if r not in more))
            for more in itertools.combinations(left[1:], drain_rows - 1)
        )

    tail = len(rows) % drain_rows
    return min(
        (slice_cycles(lanes, block, last) if last else 0)
        + best(tuple(r for r in rows if r not in last))
        for last in itertools.combinations(rows, tail)
    )


@pytest.mark.parametrize(("lanes", "drain_rows", "block"), DRAINS)
def test_drain_cycles_write_a_bank_once_and_are_fewest(lanes, drain_rows, block):
    """Records from the image's drain plan; the brute force cuts the bundle in every way."""
    config = drain_config(lanes, drain_rows, block)
    rng = np.random.default_rng(lanes * drain_rows * block)
    for _ in range(60):
        n_rows = int(rng.integers(1, lanes + 1))
        words = rng.choice(4 * lanes, n_rows, replace=False)
        rows = [int(word * block + rng.integers(block)) for word in words]
        ordered = order_for_drain(config, rows)
        assert sorted(ordered) == sorted(rows)
        padded = np.array(ordered + [-1] * (lanes - n_rows), dtype=np.int32)
        records = drain_records(config, padded)
        drained = records.rows[records.rows >= 0].tolist()
        assert sorted(drained) == sorted(rows)
        for record in records.rows:
            banks = [row // block % lanes for row in record if row >= 0]
            assert len(set(banks)) == len(banks)
        wanted = fewest_cycles(lanes, drain_rows, block, tuple(sorted(rows)))
        assert len(records.rows) == wanted


@pytest.mark.parametrize(("drain_rows", "block"), [(2, 2), (4, 2), (4, 4)])
def test_rows_of_one_word_drain_together(drain_rows, block):
    """Consecutive rows: a full record every cycle, whatever falls on one word."""
    config = drain_config(8, drain_rows, block)
    rows = execution_order(config, np.arange(16), 16)
    records = drain_records(config, rows)
    assert len(records.rows) == 16 // drain_rows
    assert (records.rows >= 0).all() and records.advance.all()


def test_rows_that_share_a_bank_or_word():
    """Where rows share words, drain cycles stay legal and no row is lost."""
    config = drain_config(8, 4, 2)
    rng = np.random.default_rng(5)
    for _ in range(100):
        order = rng.permutation(40)[: int(rng.integers(1, 9))].tolist()
        rows = order_for_drain(config, order)
        padded = np.array(rows + [-1] * (8 - len(rows)))
        for record in drain_records(config, padded).rows:
            words = {row // 2 for row in record.tolist() if row >= 0}
            assert len({word % 8 for word in words}) == len(words)
        assert sorted(rows) == sorted(order)


def test_one_drain_row_keeps_the_order():
    config = drain_config(4, 1, 1)
    assert order_for_drain(config, [8, 0, 4, 3]) == [8, 0, 4, 3]


# --- accumulator bounds and errors ---------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_accumulator_bounds_are_reached(signed):
    """Brute force over inputs at the ends of the range: a linear form peaks at its corners."""
    config = dataclasses.replace(TINY, activation_width=4, bank_width=4)
    low, high = (-8, 7) if signed else (0, 15)
    rng = np.random.default_rng(6)
    weights, bias = rng.integers(-127, 128, (5, 6)), rng.integers(-500, 501, 5)
    sums = [
        [int(b) + sum(int(w) * x for w, x in zip(row, corner)) for row, b in zip(weights, bias)]
        for corner in itertools.product((low, 0, high), repeat=6)
    ]
    lowest, highest = accumulator_bounds(config, weights, bias, signed)
    assert lowest.tolist() == np.min(sums, axis=0).tolist()
    assert highest.tolist() == np.max(sums, axis=0).tolist()


ONE = np.ones((3, 8), dtype=int)


def out(**change) -> Requantisation:
    return dataclasses.replace(Requantisation.identity(3, TINY), **change)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (ONE[0], {}, "weights must be a matrix with rows and columns, not of shape (8,)"),
        (ONE * 1.0, {}, "weights must be integers, not float64"),
        (ONE * 128, {}, "weights must be within +-127 (8 bits, symmetric), not 128"),
        (ONE * -128, {}, "weights must be within +-127 (8 bits, symmetric), not 128"),
        (
            ONE,
            {"mask": np.ones((3, 7), dtype=bool)},
            "mask must have the weights' shape (3, 8), not (3, 7)",
        ),
        (ONE, {"mask": np.zeros((3, 8), dtype=bool)}, "weights outside the mask must be zero"),
        (
            ONE,
            {"requantisation": out(multiplier=np.array([1 << 15, 32767, 1 << 15]))},
            "multiplier must be from 32768 to 65535, not 32767",
        ),
        (
            ONE,
            {"requantisation": out(multiplier=np.full(3, 1 << 16))},
            "multiplier must be from 32768 to 65535, not 65536",
        ),
        (
            ONE,
            {"requantisation": out(shift=np.array([1, 47, 0]))},
            "shift must be from 1 to 47, not 0",
        ),
        (
            ONE,
            {"requantisation": out(shift=np.array([1, 48, 47]))},
            "shift must be from 1 to 47, not 48",
        ),
        (
            ONE,
            {"requantisation": out(bias=np.zeros(2, int))},
            "bias must have shape (3,), not (2,)",
        ),
        (
            ONE,
            {"requantisation": out(high=128)},
            "output clamp must lie within -128..127, not -128..128",
        ),
        (
            ONE,
            {"requantisation": out(low=0, high=256)},
            "output clamp must lie within 0..255, not 0..256",
        ),
        (
            ONE,
            {"requantisation": out(low=5, high=4)},
            "output clamp must lie within 0..255, not 5..4",
        ),
    ],
)
def test_errors(weights, options, message):
    with raises(f"layer 'fc': {message}"):
        encode(TINY, weights, Geometry.linear(8), **options)


def test_overflow_names_row_and_bounds():
    config = dataclasses.replace(TINY, accumulator_width=16)
    weights = np.zeros((3, 4), dtype=int)
    weights[1] = 32, 32, 32, 32
    bias = np.array([0, 127, 0])
    encode(config, weights, requantisation=out(bias=bias))
    bias = np.array([0, 128, 0])
    with raises(
        "layer 'fc': row 1 can reach 128..32768, beyond the 16-bit accumulator (-32768..32767)"
    ):
        encode(config, weights, requantisation=out(bias=bias))
    bias = np.array([0, -128, 0])
    encode(config, -weights, requantisation=out(bias=bias))
    with raises(
        "layer 'fc': row 1 can reach -32769..-129, beyond the 16-bit accumulator (-32768..32767)"
    ):
        encode(config, -weights, requantisation=out(bias=bias - [0, 1, 0]))


@pytest.mark.parametrize("order", [[0, 1, 1], [1, 2, 3], [-1, 0, 1]], ids=str)
def test_bad_row_order(order):
    with raises("row order must be a permutation of the 3 rows"):
        encode(TINY, ONE, row_order=np.array(order))


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 2, 3]], ids=str)
def test_row_order_of_another_length(order):
    """Neither drops a row of the matrix nor invents one."""
    with pytest.raises(GshwError, match="row order must be a permutation of the "):
        encode(TINY, ONE, row_order=np.array(order))


def test_column_count_must_fit_the_window():
    with raises("matrix must have 9 columns, not 8"):
        encode(TINY, ONE, conv(1, (3, 3)))


def test_layer_without_rows():
    with pytest.raises(GshwError):
        encode(TINY, np.zeros((0, 8), dtype=int))


def test_foreign_engine():
    other = dataclasses.replace(TINY, bank_depth=512)
    layer = encode(TINY, ONE)
    message = f"layer 'fc' was encoded for the engine {TINY.hash[:8]}, not for {other.hash[:8]}"
    with raises(message):
        decode_weights(other, layer)
    with raises(message):
        layer.check_config(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": (0, 1)}, "kernel must be two integers of at least 1, not (0, 1)"),
        ({"stride": (1,)}, "stride must be two integers of at least 1, not (1,)"),
        ({"padding": (0, -1)}, "padding must be two integers of at least 0, not (0, -1)"),
        ({"dilation": (1, 1.5)}, "dilation must be two integers of at least 1, not (1, 1.5)"),
        ({"in_channels": 0}, "in_channels must be at least 1, not 0"),
    ],
)
def test_geometry_rules(change, message):
    with raises(message):
        Geometry(**{"kind": LayerKind.CONV2D, "in_channels": 3} | change)


def test_window_larger_than_the_map():
    geometry = conv(3, (3, 5), dilation=(1, 2), padding=(0, 1))
    assert geometry.output_size(3, 7) == (1, 1)
    with raises("input of 3 x 6 pixels is smaller than the window (9 along axis 1, padding 1)"):
        geometry.output_size(3, 6)
