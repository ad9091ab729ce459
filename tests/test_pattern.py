"""The pattern checker finds every kind of violation, on masks made by hand."""

import re

import numpy as np
import pytest

from gshw.config import EngineConfig, load_config
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.pattern import Violation, check_mask, highest_sparsity, require_match
from tests.strategies import conv

LANES = 8


def engine(rows: int, block: int = 1) -> EngineConfig:
    return EngineConfig(lanes=LANES, rows=rows, bank_width=8 * block)


def balanced(rng, rows: int, n_bundles: int, n_words: int, groups: list[int]) -> np.ndarray:
    """A balanced mask, group by group: each takes a free word of every bank and deals the banks."""
    per_row = LANES // rows
    mask = np.zeros((n_bundles * rows, n_words, LANES), dtype=bool)
    for bundle in range(n_bundles):
        for _ in range(groups[bundle]):
            for slot, bank in enumerate(rng.permutation(LANES)):
                row = bundle * rows + slot // per_row
                free = np.flatnonzero(~mask[row, :, bank])
                mask[row, rng.choice(free), bank] = True
    return mask.reshape(n_bundles * rows, -1)


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_balanced_masks_match(rows):
    """Bundles may differ in groups; empty ones and shuffled rows are fine."""
    rng = np.random.default_rng(rows)
    config, window = engine(rows), Geometry.linear(6 * LANES)
    mask = balanced(rng, rows, 4, 6, [3, 0, 1, 4])
    assert check_mask(config, mask, window) == []
    order = rng.permutation(len(mask))
    shuffled = np.empty_like(mask)
    shuffled[order] = mask
    assert check_mask(config, shuffled, window, order) == []
    require_match(config, shuffled, window, order)
    if rows > 1:
        assert check_mask(config, shuffled, window) != []


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_every_single_flip_is_found(rows):
    """One block more or fewer, anywhere, breaks the bundle it is in and no other."""
    rng = np.random.default_rng(rows)
    config, window = engine(rows), Geometry.linear(4 * LANES)
    mask = balanced(rng, rows, 2, 4, [2, 2])
    for row in range(len(mask)):
        for column in range(mask.shape[1]):
            mask[row, column] ^= True
            violations = check_mask(config, mask, window)
            assert violations and {v.bundle for v in violations} == {row // rows}
            mask[row, column] ^= True
    assert check_mask(config, mask, window) == []


def test_row_count():
    """Two rows swap a block within one bank: the banks still fit, the rows do not."""
    config, window = engine(8), Geometry.linear(16)
    mask = np.eye(8, 16, dtype=bool)
    mask[3, 3] = False
    mask[5, 3] = True
    assert check_mask(config, mask, window) == [
        Violation(0, "row 3", 0, 1),
        Violation(0, "row 5", 2, 1),
    ]


def test_bank_count():
    """A row takes another bank: the rows still fit, two banks do not."""
    config, window = engine(8), Geometry.linear(16)
    mask = np.eye(8, 16, dtype=bool)
    mask[3, 3] = False
    mask[3, 12] = True
    assert check_mask(config, mask, window) == [
        Violation(0, "bank 3", 0, 1),
        Violation(0, "bank 4", 2, 1),
    ]


def test_violations_in_words():
    assert str(Violation(2, "row 17", 3, 4)) == "bundle 2: row 17 keeps 3 blocks, not 4"
    assert (
        str(Violation(0, "bank 3", 3, 2, at_most=True))
        == "bundle 0: bank 3 keeps 3 blocks, not at most 2"
    )


def test_rows_are_named_by_the_matrix():
    """In a shuffled order the violation names the matrix row, and its bundle in that order."""
    order = np.arange(16)[::-1]
    mask = np.zeros((16, 16), dtype=bool)
    mask[[7, 6]] = np.eye(2, 16, dtype=bool)
    found = check_mask(engine(8), mask, Geometry.linear(16), order)
    assert {(v.bundle, v.place) for v in found} >= {(1, "row 7"), (1, "row 6")}
    assert {v.bundle for v in found} == {1}


def test_partial_last_bundle():
    """Equal rows, and no bank fuller than their groups; a bank may be emptier."""
    config, window = engine(4), Geometry.linear(24)
    mask = np.zeros((6, 24), dtype=bool)
    mask[4, [0, 1]] = True
    mask[5, [2, 3]] = True
    assert check_mask(config, mask, window) == []
    mask[5, [2, 3]] = False
    mask[5, [8, 9]] = True
    found = check_mask(config, mask, window)
    assert found == [
        Violation(1, "bank 0", 2, 1, at_most=True),
        Violation(1, "bank 1", 2, 1, at_most=True),
    ]
    mask[5] = False
    mask[5, 2] = True
    assert check_mask(config, mask, window) == [Violation(1, "row 5", 1, 2)]
    mask[4] = False
    assert Violation(1, "row 5", 1, 0) in check_mask(config, mask, window)


def test_blocks_count_once():
    """With 1 x 2 blocks, neighbouring columns are one block of one bank, and counts are blocks."""
    config, window = engine(8, block=2), Geometry.linear(32)
    mask = np.repeat(np.eye(8, 16, dtype=bool), 2, axis=1)
    assert check_mask(config, mask, window) == []
    mask[3, 6:8] = False
    mask[3, 24:26] = True
    assert check_mask(config, mask, window) == [
        Violation(0, "bank 3", 0, 1),
        Violation(0, "bank 4", 2, 1),
    ]


def test_part_of_a_block():
    config, window = engine(8, block=2), Geometry.linear(32)
    mask = np.repeat(np.eye(8, 16, dtype=bool), 2, axis=1)
    mask[5, 11] = False
    with raises(
        "mask must keep whole blocks of 2 channels, but keeps a part of the block at row 5, "
        "word 0, bank 5"
    ):
        check_mask(config, mask, window)


def test_last_block_beyond_the_channels_is_whole():
    """15 channels: the eighth block has one real channel, which is all of it."""
    mask = np.repeat(np.eye(8, dtype=bool), 2, axis=1)[:, :15]
    assert check_mask(engine(8, block=2), mask, Geometry.linear(15)) == []


def test_banks_of_a_convolution_count_channels():
    """Every tap starts at bank 0 again: 3 channels of 8 banks."""
    config = engine(1)
    window = conv(3, (2, 2))
    mask = np.zeros((1, 12), dtype=bool)
    mask[0, [0, 4, 8]] = True
    found = check_mask(config, mask, window)
    assert Violation(0, "row 0", 3, 0) in found
    assert [v.place for v in found[1:]] == ["bank 0", "bank 1", "bank 2"]
    unfolded = conv(3, (2, 4), unfold=True)
    mask = np.zeros((1, 24), dtype=bool)
    mask[0, 8:16] = True
    assert check_mask(config, mask, unfolded) == []


def test_wrong_shape():
    with raises("mask must have shape (rows, 16), not (8, 15)"):
        check_mask(engine(8), np.zeros((8, 15), dtype=bool), Geometry.linear(16))
    with raises("mask must have shape (rows, 16), not (16,)"):
        check_mask(engine(8), np.zeros(16, dtype=bool), Geometry.linear(16))


@pytest.mark.parametrize(
    "order", [np.arange(7), np.zeros(8, int), np.arange(1, 9), np.arange(8.0)], ids=str
)
def test_wrong_row_order(order):
    """Rows counted twice or not at all would let a bad mask pass."""
    with pytest.raises(GshwError, match="row order"):
        check_mask(engine(8), np.zeros((8, 16), dtype=bool), Geometry.linear(16), order)


def test_require_match_says_the_first_and_how_many():
    config, window = load_config("block16").engine, Geometry.linear(128)
    mask = np.zeros((32, 128), dtype=bool)
    mask[20, 4:8] = True
    with raises(
        "fc does not match GS(16, 1) with 1x4 blocks, 16 rows per bundle: "
        "bundle 1: row 20 keeps 1 blocks, not 0 (and 1 more)"
    ):
        require_match(config, mask, window, name="fc")
    mask = np.zeros((18, 128), dtype=bool)
    mask[16, 0:4] = mask[17, 64:68] = True
    with raises(
        "mask does not match GS(16, 1) with 1x4 blocks, 16 rows per bundle: "
        "bundle 1: bank 0 keeps 2 blocks, not at most 1"
    ):
        require_match(config, mask, window)


def test_highest_sparsity():
    """One group per bundle: a row keeps k blocks of its n."""
    assert highest_sparsity(load_config("v16x4").engine, 64) == 1 - 1 / 64
    assert highest_sparsity(load_config("v16x4").engine, 15) == 0
    assert highest_sparsity(load_config("block16").engine, 60) == 0
    assert highest_sparsity(load_config("block16").engine, 64) == 1 - 4 / 64
    assert highest_sparsity(load_config("h16").engine, 64) == 1 - 16 / 64
    assert highest_sparsity(load_config("hybrid16").engine, 4608) == 1 - 4 / 4608
    assert highest_sparsity(load_config("block16").engine, 64) == 1 - 1 / 16
    assert highest_sparsity(load_config("h16").engine, 8) == 0.0
