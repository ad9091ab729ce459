"""Bit layout and memory image, checked with big integers packed here."""

import dataclasses
import re
import struct
import zlib

import numpy as np
import pytest

from gshw.config import EngineConfig, load_config, preset_names
from gshw.encoding import EncodedLayer, Requantisation, encode_layer, order_for_drain
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.image import LayerImage, drain_records, load_image, pack_words, save_image, unpack_words
from gshw.layout import group_fields, record_fields, word_width
from tests.strategies import ENGINES, all_engines, big_pack, conv, random_layer, word_int

# Name, width and count of every field of a group word, lowest bits first, by the format's text.
GROUP_WORDS = {
    "tiny": [("drain", 1, 1), ("offset", 8, 4), ("weight", 8, 4)],
    "v16x4": [("drain", 5, 1), ("offset", 11, 16), ("switch", 1, 49), ("weight", 8, 16)],
    "block16": [("drain", 5, 1), ("offset", 11, 16), ("switch", 1, 49), ("weight", 8, 64)],
    "arb16": [
        ("drain", 1, 1),
        ("active", 1, 16),
        ("bank", 4, 16),
        ("offset", 11, 16),
        ("weight", 8, 16),
    ],
    "vertical4": [("drain", 3, 1), ("offset", 6, 4), ("bank", 2, 4), ("weight", 16, 4)],
}
RECORDS = {
    "tiny": [
        ("advance", 1, 1),
        ("valid", 1, 1),
        ("bias", 32, 1),
        ("multiplier", 16, 1),
        ("shift", 6, 1),
        ("row", 10, 1),
    ],
    "v16x4": [
        ("advance", 1, 1),
        ("valid", 1, 2),
        ("bias", 32, 2),
        ("multiplier", 16, 2),
        ("shift", 6, 2),
        ("row", 14, 2),
    ],
}


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def random_values(seed: int, fields, n_words: int) -> dict:
    """Values over each field's whole range, both ends among them."""
    rng = np.random.default_rng(seed)
    values = {}
    for f in fields:
        low, high = 0, (1 << f.width) - 1
        if f.signed:
            low, high = -(1 << (f.width - 1)), (1 << (f.width - 1)) - 1
        values[f.name] = rng.integers(low, high + 1, (n_words, f.count))
        values[f.name][0] = low
        values[f.name][-1] = high
    return values


@pytest.mark.parametrize("table", [group_fields, record_fields])
@pytest.mark.parametrize("name", all_engines())
def test_pack_round_trip(name, table):
    """Every field comes back; the packed word is the big integer of its elements."""
    fields = table(all_engines()[name])
    values = random_values(1, fields, 20)
    words = pack_words(fields, values)
    assert words.dtype == np.uint32 and words.shape == (20, (word_width(fields) + 31) // 32)
    back = unpack_words(fields, words)
    assert set(back) == set(values)
    for key, value in values.items():
        np.testing.assert_array_equal(back[key], value)
    for index, word in enumerate(words):
        elements = [(int(v), f.width) for f in fields for v in values[f.name][index]]
        assert word_int(word) == big_pack(elements)


def test_round_trip_beyond_a_chunk():
    """More words than are packed at once."""
    fields = record_fields(ENGINES["direct4"])
    values = random_values(2, fields, (1 << 15) + 3)
    back = unpack_words(fields, pack_words(fields, values))
    for key, value in values.items():
        np.testing.assert_array_equal(back[key], value)


def test_no_words():
    fields = group_fields(ENGINES["direct4"])
    values = {f.name: np.zeros((0, f.count), dtype=np.int64) for f in fields}
    assert pack_words(fields, values).shape == (0, 2)


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [(group_fields, name, fields) for name, fields in GROUP_WORDS.items()]
    + [(record_fields, name, fields) for name, fields in RECORDS.items()],
)
def test_documented_positions(table, name, expected):
    """Order, widths, counts and start bits as the format's text has them."""
    start = 0
    placed = []
    for field, width, count in expected:
        placed.append((field, width, count, start, field in ("weight", "bias")))
        start += width * count
    fields = table(all_engines()[name])
    assert [dataclasses.astuple(f) for f in fields] == placed
    assert word_width(fields) == start


def test_tiny_diagram():
    """The diagram in :mod:`gshw.layout`: weight 64..33, offset 32..1, drain 0."""
    fields = group_fields(load_config("tiny").engine)
    values = {
        "drain": np.array([[1]]),
        "offset": np.array([[0x11, 0x22, 0x33, 0xFF]]),
        "weight": np.array([[1, -1, 127, -127]]),
    }
    word = word_int(pack_words(fields, values)[0])
    assert word == 1 | 0xFF332211 << 1 | 0x817FFF01 << 33


def decoded_matrix(config: EngineConfig, layer: EncodedLayer, pitch: int) -> np.ndarray:
    """The integer matrix of a linear layer, read from its packed image alone."""
    image = LayerImage(config, layer)
    groups = unpack_words(group_fields(config), image.pack_groups(pitch))
    records = unpack_words(record_fields(config), image.pack_records())
    n_columns = layer.geometry.n_columns
    matrix = np.zeros((layer.n_rows, n_columns), dtype=np.int64)
    bundle, slice_rows, first_record = 0, [], 0
    for group in range(image.n_groups):
        slots = groups["weight"][group].reshape(config.lanes, config.block)
        for lane in range(config.lanes):
            bank = lane
            if "bank" in groups:
                bank = int(groups["bank"][group, lane])
            arbitrated = "active" in groups
            offset = int(groups["offset"][group, lane if arbitrated else bank])
            slot = layer.row[bundle * config.rows + lane // config.lanes_per_row]
            for channel in range(config.block):
                weight = slots[lane, channel]
                column = (offset * config.lanes + bank) * config.block + channel
                if weight:
                    assert not arbitrated or groups["active"][group, lane]
                    assert matrix[slot, column] == 0
                    matrix[slot, column] = weight
        n_records = int(groups["drain"][group, 0])
        if n_records:
            stop = first_record + n_records
            rows = records["row"][first_record:stop][records["valid"][first_record:stop] > 0]
            slice_rows.append(sorted(rows.tolist()))
            first_record, bundle = stop, bundle + 1
    assert first_record == image.n_records and bundle == layer.n_bundles
    for index, rows in enumerate(slice_rows):
        wanted = layer.row[index * config.rows : (index + 1) * config.rows]
        assert rows == sorted(int(row) for row in wanted if row >= 0)
    return matrix


@pytest.mark.parametrize("name", ["direct4", "direct2x2", "vertical4", "arbitrated4"])
def test_image_holds_the_matrix(name):
    """Weights, offsets, banks, drain counts and rows of a random layer, from the bits alone."""
    config = ENGINES[name]
    rng = np.random.default_rng(3)
    n_rows, n_columns = 2 * config.rows + 1, 2 * config.channels_per_row
    peak = min(config.max_weight, 7)
    weights = rng.integers(-peak, peak + 1, (n_rows, n_columns))
    weights[rng.random(weights.shape) < 0.5] = 0
    geometry = Geometry.linear(n_columns)
    layer = encode_layer(
        config, "layer", weights, geometry, Requantisation.identity(n_rows, config)
    )
    np.testing.assert_array_equal(decoded_matrix(config, layer, 1), weights)


def test_records_hold_the_parameters():
    config = ENGINES["hybrid4"]
    layer = random_layer(4, config, 7, Geometry.linear(32), shuffled=True)
    records = unpack_words(record_fields(config), LayerImage(config, layer).pack_records())
    seen = []
    for index in range(len(records["row"])):
        for d in range(config.drain_rows):
            row = int(records["row"][index, d])
            if records["valid"][index, d]:
                seen.append(row)
                for key in ("bias", "multiplier", "shift"):
                    assert records[key][index, d] == getattr(layer.requantisation, key)[row]
            else:
                assert (row, records["shift"][index, d]) == (0, 1)
    assert sorted(seen) == list(range(7))


def test_offsets_follow_the_pitch():
    """Word (ky, kx, word) of a window lies at (ky * pitch + kx) * words + word."""
    config = ENGINES["direct4"]
    geometry = conv(5, (2, 3), dilation=(1, 2))
    weights = np.ones((1, 30), dtype=np.int64)
    layer = encode_layer(config, "c", weights, geometry, Requantisation.identity(1, config))
    groups = LayerImage(config, layer).group_values(pitch=7)
    seen = {int(n) for n in groups["offset"][groups["weight"] != 0]}
    expected = {(ky * 7 + 2 * kx) * 2 + w for ky in range(2) for kx in range(3) for w in range(2)}
    assert seen == expected
    with raises("layer 'c': a window spans 72 words per bank, bank_depth is 64"):
        LayerImage(config, layer).group_values(pitch=31)


def test_empty_bundles_get_one_filler_group():
    """All weights zero, the drain count of the bundle; other bundles are untouched."""
    config = ENGINES["direct4"]
    weights = np.zeros((4, 8), dtype=np.int64)
    weights[1, [0, 4]] = 5
    weights[3, 7] = -6
    layer = encode_layer(
        config, "gaps", weights, Geometry.linear(8), Requantisation.identity(4, config)
    )
    image = LayerImage(config, layer)
    assert layer.n_groups == 3
    assert image.group_ptr.tolist() == [0, 1, 3, 4, 5]
    values = image.group_values(1)
    assert values["drain"].reshape(-1).tolist() == [1, 0, 1, 1, 1]
    assert values["weight"].tolist() == [
        [0] * 4,
        [5, 0, 0, 0],
        [5, 0, 0, 0],
        [0] * 4,
        [0, 0, 0, -6],
    ]
    assert image.group_cycles.tolist() == [1] * 5
    part = image.group_values(1, 2, 4)
    assert part["drain"].reshape(-1).tolist() == [1, 1]
    np.testing.assert_array_equal(part["weight"], values["weight"][2:4])


@pytest.mark.parametrize("name", ENGINES)
def test_a_layer_without_weights(name):
    """One filler per bundle; arbitrated fillers fetch nothing, others keep a permutation."""
    config = ENGINES[name]
    n_rows = config.rows + 1
    weights = np.zeros((n_rows, 8), dtype=np.int64)
    layer = encode_layer(
        config, "zero", weights, Geometry.linear(8), Requantisation.identity(n_rows, config)
    )
    image = LayerImage(config, layer)
    values = image.group_values(1)
    assert image.n_groups == layer.n_bundles == 2
    assert not values["weight"].any() and not values["offset"].any()
    if "active" in values:
        assert not values["active"].any()
    elif "bank" in values:
        assert [sorted(row) for row in values["bank"].tolist()] == [list(range(config.lanes))] * 2
    assert (values["drain"] > 0).all()
    assert (image.group_cycles == 1).all()


def naive_drain_cycles(config: EngineConfig, rows: list[int]) -> int:
    """Cycles of one slice of accumulators: the most words that one bank must take."""
    words: dict[int, set[int]] = {}
    for row in rows:
        block = row // config.block
        words.setdefault(block % config.lanes, set()).add(block)
    return max([1, *map(len, words.values())])


@pytest.mark.parametrize("name", ["hybrid4", "vertical8", "v16x4", "v32"])
def test_drain_records_never_write_two_words_of_a_bank(name):
    """Any row order: every row once, in order of its accumulators, and no cycle too many."""
    config = all_engines()[name]
    rng = np.random.default_rng(5)
    for n_rows in (1, config.rows - 1, config.rows, 3 * config.rows + 1):
        padded = -(-n_rows // config.rows) * config.rows
        row = np.full(padded, -1)
        row[:n_rows] = rng.permutation(4 * padded)[:n_rows]
        records = drain_records(config, row)
        assert records.bundle_ptr[-1] == len(records.rows) == len(records.advance)
        for bundle in range(padded // config.rows):
            mine = slice(int(records.bundle_ptr[bundle]), int(records.bundle_ptr[bundle + 1]))
            wanted = row[bundle * config.rows : (bundle + 1) * config.rows]
            slices = [
                wanted[i : i + config.drain_rows]
                for i in range(0, config.rows, config.drain_rows)
                if (wanted[i:] >= 0).any()
            ]
            seen = [[-1] * config.drain_rows]
            n_cycles = [0]
            for advance, rows in zip(records.advance[mine], records.rows[mine], strict=True):
                blocks = {int(r) // config.block for r in rows if r >= 0}
                assert len({b % config.lanes for b in blocks}) == len(blocks)
                for d, r in enumerate(rows):
                    if r >= 0:
                        assert seen[-1][d] == -1
                        seen[-1][d] = int(r)
                n_cycles[-1] += 1
                if advance:
                    seen.append([-1] * config.drain_rows)
                    n_cycles.append(0)
            assert seen[:-1] == [list(map(int, part)) for part in slices]
            for part, cycles in zip(slices, n_cycles, strict=False):
                assert cycles == naive_drain_cycles(config, [int(r) for r in part if r >= 0])


def test_rows_are_ordered_for_draining():
    """Rows of one bank apart, channels of one word together."""
    config = ENGINES["hybrid4"]
    assert order_for_drain(config, [0, 8, 2, 10]) in ([0, 2, 8, 10], [2, 0, 10, 8], [0, 2, 10, 8])
    ordered = order_for_drain(config, [0, 1, 16, 17])
    assert {frozenset(ordered[:2]), frozenset(ordered[2:])} == {
        frozenset((0, 1)),
        frozenset((16, 17)),
    }
    one_at_a_time = ENGINES["direct4"]
    assert order_for_drain(one_at_a_time, [4, 0, 8]) == [4, 0, 8]


# --- file ------------------------------------------------------------------------------------

HEADER = struct.Struct("<8sI32sIIIIII")
"""Magic, version, config hash, pitch, groups and limbs, records and limbs, CRC-32."""


@pytest.fixture
def saved(tmp_path):
    """A saved image: (path, config, image)."""
    config = ENGINES["hybrid4"]
    image = LayerImage(config, random_layer(6, config, 5, Geometry.linear(24)))
    path = tmp_path / "layer.gshw"
    save_image(path, image, pitch=3)
    return path, config, image


def test_file_round_trip(saved):
    path, config, image = saved
    loaded = load_image(path, config)
    assert loaded.pitch == 3
    np.testing.assert_array_equal(loaded.groups, image.pack_groups(3))
    np.testing.assert_array_equal(loaded.records, image.pack_records())


def test_file_bytes(saved):
    """Header, groups, records, and nothing else; written twice the same."""
    path, config, image = saved
    groups, records = image.pack_groups(3), image.pack_records()
    payload = groups.astype("<u4").tobytes() + records.astype("<u4").tobytes()
    header = HEADER.pack(
        b"GSHWIMG\0",
        1,
        bytes.fromhex(config.hash),
        3,
        *groups.shape,
        *records.shape,
        zlib.crc32(payload),
    )
    data = path.read_bytes()
    assert data == header + payload
    save_image(path, image, pitch=3)
    assert path.read_bytes() == data
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", preset_names())
def test_refuses_another_engine(saved, name):
    path, config, _ = saved
    other = load_config(name).engine
    with raises(f"{path}: was packed for the engine {config.hash[:8]}, not for {other.hash[:8]}"):
        load_image(path, other)


@pytest.mark.parametrize("data", [b"", b"GSHW", b"GSHWIMG\0" + bytes(20), b"x" * 500])
def test_refuses_what_is_no_image(saved, data):
    path, config, _ = saved
    path.write_bytes(data)
    message = f"{path}: not a gshw memory image (its first 8 bytes must be {b'GSHWIMG' + bytes(1)})"
    with raises(message):
        load_image(path, config)


def test_refuses_an_unknown_version(saved):
    path, config, _ = saved
    data = bytearray(path.read_bytes())
    data[8] = 9
    path.write_bytes(data)
    with raises(f"{path}: image version must be 1, not 9"):
        load_image(path, config)


@pytest.mark.parametrize("change", [-1, -4, 1, 400])
def test_refuses_a_wrong_length(saved, change):
    path, config, _ = saved
    data = path.read_bytes()
    n_payload = len(data) - HEADER.size
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with raises(
        f"{path}: truncated or overlong: {n_payload} payload bytes expected, "
        f"{n_payload + change} found"
    ):
        load_image(path, config)


@pytest.mark.parametrize("where", [HEADER.size, HEADER.size + 21, -1])
def test_refuses_a_flipped_bit(saved, where):
    path, config, _ = saved
    data = bytearray(path.read_bytes())
    data[where] ^= 0x10
    path.write_bytes(data)
    with raises(f"{path}: corrupt: checksum does not match"):
        load_image(path, config)


def test_refuses_a_missing_file_and_folder(tmp_path, saved):
    _, config, image = saved
    with raises(f"{tmp_path}/none: cannot be read: No such file or directory"):
        load_image(tmp_path / "none", config)
    with raises(f"{tmp_path}/no/where: cannot be written: No such file or directory"):
        save_image(tmp_path / "no" / "where", image, 3)


def test_refuses_a_layer_of_another_engine(saved):
    _, config, image = saved
    other = ENGINES["direct4"]
    with raises(
        f"layer {image.layer.name!r} was encoded for the engine {config.hash[:8]}, "
        f"not for {other.hash[:8]}"
    ):
        LayerImage(other, image.layer)
