"""The scheduler: no conflict, every block in its row's lanes, and the fewest groups."""

from collections import Counter

import numpy as np
import pytest

from gshw.schedule import minimum_groups, schedule

SHAPES = [
    (lanes, lanes_per_row)
    for lanes in (2, 4, 8, 16, 32, 64)
    for lanes_per_row in (1, 2, 4, lanes // 2, lanes)
    if lanes_per_row <= lanes
]


class Bundles:
    """Blocks as a list of (row slot, bank) per bundle, and the arrays the scheduler takes."""

    def __init__(self, blocks: list[list[tuple[int, int]]], lanes: int, lanes_per_row: int):
        self.blocks = blocks
        self.lanes, self.lanes_per_row = lanes, lanes_per_row
        flat = [block for bundle in blocks for block in bundle]
        self.edge_ptr = np.cumsum([0] + [len(bundle) for bundle in blocks])
        self.slot = np.array([slot for slot, _ in flat], dtype=np.int32)
        self.bank = np.array([bank for _, bank in flat], dtype=np.int32)

    def lower_bound(self) -> list[int]:
        """No bundle can take fewer groups than its busiest bank, or a row's blocks over k lanes."""
        bounds = []
        for bundle in self.blocks:
            rows = Counter(slot for slot, _ in bundle)
            banks = Counter(bank for _, bank in bundle)
            in_rows = [(n + self.lanes_per_row - 1) // self.lanes_per_row for n in rows.values()]
            bounds.append(max([0, *in_rows, *banks.values()]))
        return bounds

    def check(self) -> np.ndarray:
        """Schedule, compare with the definition, and return the groups of each bundle."""
        n_groups = minimum_groups(
            self.edge_ptr, self.slot, self.bank, self.lanes, self.lanes_per_row
        )
        assert n_groups.tolist() == self.lower_bound()
        lane, group = schedule(
            self.edge_ptr, self.slot, self.bank, n_groups, self.lanes, self.lanes_per_row
        )
        assert lane.shape == group.shape == self.slot.shape
        edge = 0
        for index, bundle in enumerate(self.blocks):
            at_lane, at_bank = set(), set()
            for slot, bank in bundle:
                where, when = int(lane[edge]), int(group[edge])
                assert 0 <= when < n_groups[index]
                first = slot * self.lanes_per_row
                assert first <= where < first + self.lanes_per_row
                assert (when, where) not in at_lane
                assert (when, bank) not in at_bank
                at_lane.add((when, where))
                at_bank.add((when, bank))
                edge += 1
            if bundle:
                assert len({when for when, _ in at_lane}) == n_groups[index]
        return n_groups


def random_bundle(rng, lanes: int, lanes_per_row: int, n_blocks: int) -> list[tuple[int, int]]:
    """Blocks in row order, as the encoder hands them over."""
    slots = np.sort(rng.integers(0, lanes // lanes_per_row, n_blocks))
    return [(int(slot), int(bank)) for slot, bank in zip(slots, rng.integers(0, lanes, n_blocks))]


@pytest.mark.parametrize(("lanes", "lanes_per_row"), SHAPES)
def test_random_bundles(lanes, lanes_per_row):
    """Sparse to dense, with empty bundles between them."""
    rng = np.random.default_rng(lanes * 100 + lanes_per_row)
    blocks = []
    for n_blocks in (1, lanes // 2, lanes, 3 * lanes, 0, 17 * lanes + 3):
        blocks += [random_bundle(rng, lanes, lanes_per_row, n_blocks) for _ in range(4)]
    Bundles(blocks, lanes, lanes_per_row).check()


@pytest.mark.parametrize(("lanes", "lanes_per_row"), SHAPES)
def test_dense_bundle_fills_every_slot(lanes, lanes_per_row):
    """All blocks of w words: each row has w * lanes blocks, so w * lanes / k groups."""
    n_words = 3
    rows = lanes // lanes_per_row
    bundle = [(r, b) for r in range(rows) for _ in range(n_words) for b in range(lanes)]
    [n_groups] = Bundles([bundle], lanes, lanes_per_row).check()
    assert n_groups * lanes == len(bundle)


@pytest.mark.parametrize(("lanes", "lanes_per_row"), SHAPES)
def test_balanced_bundle_takes_blocks_over_lanes(lanes, lanes_per_row):
    """Random matchings of ports and banks: exactly nnz / B groups, every slot full."""
    rng = np.random.default_rng(7)
    n_groups = 70 if lanes <= 16 else 9
    pairs = [
        (port // lanes_per_row, int(bank))
        for _ in range(n_groups)
        for port, bank in enumerate(rng.permutation(lanes))
    ]
    assert Bundles([sorted(pairs)], lanes, lanes_per_row).check().tolist() == [n_groups]


@pytest.mark.parametrize(("lanes", "lanes_per_row"), SHAPES)
def test_skewed_bundles(lanes, lanes_per_row):
    """One row, one bank, one (row, bank) cell, and one row far longer than the others."""
    rows = lanes // lanes_per_row
    one_row = [(rows - 1, b % lanes) for b in range(5 * lanes + 1)]
    one_bank = [(r, lanes - 1) for r in range(rows) for _ in range(3)]
    one_cell = [(0, 0)] * 9
    rng = np.random.default_rng(8)
    uneven = random_bundle(rng, lanes, lanes_per_row, 2 * lanes)
    long_row = sorted(uneven + [(0, int(b)) for b in rng.integers(0, lanes, 4 * lanes)])
    n_groups = Bundles([one_row, one_bank, one_cell, long_row], lanes, lanes_per_row).check()
    assert n_groups[1] == 3 * rows and n_groups[2] == 9


def test_more_groups_than_bits_of_a_mask_word():
    """Colours beyond 64 and 128, with alternating chains across the words."""
    rng = np.random.default_rng(9)
    for n_blocks in (4 * 64, 4 * 65, 4 * 130, 4 * 200):
        Bundles([random_bundle(rng, 4, 1, n_blocks)], 4, 1).check()


def test_horizontal_keeps_bank_order():
    """Direct routing relies on it: the lane of a block is its bank."""
    rng = np.random.default_rng(10)
    bundle = random_bundle(rng, 8, 8, 50)
    bundles = Bundles([bundle], 8, 8)
    n_groups = bundles.check()
    lane, _ = schedule(bundles.edge_ptr, bundles.slot, bundles.bank, n_groups, 8, 8)
    assert lane.tolist() == bundles.bank.tolist()


def test_nothing_at_all():
    assert Bundles([[], []], 4, 2).check().tolist() == [0, 0]


def test_same_input_same_schedule():
    rng = np.random.default_rng(11)
    b = Bundles([random_bundle(rng, 16, 2, 300) for _ in range(20)], 16, 2)
    n_groups = b.check()
    first = schedule(b.edge_ptr, b.slot, b.bank, n_groups, 16, 2)
    again = schedule(b.edge_ptr, b.slot, b.bank, n_groups, 16, 2)
    np.testing.assert_array_equal(first, again)
