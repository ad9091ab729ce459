"""The checkers: masks made by hand that have a pattern's form, and how each can break it."""

import re
from dataclasses import dataclass

import numpy as np
import pytest

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.patterns.checkers import violations
from pruning.patterns.greedy import Greedy
from pruning.patterns.gs import Gs
from pruning.patterns.neighbours import (
    Block,
    BlockColumnRow,
    Node,
    RowColumn,
    SimdVector,
    Unstructured,
)
from pruning.patterns.neighbours_kernels import (
    BlockPunched,
    Grain,
    Granular,
    KernelGroup,
    KernelPattern,
)
from pruning.patterns.neighbours_rows import (
    BankBalanced,
    DensityAdaptive,
    NOfM,
    PeBalanced,
    Polarised,
)
from pruning.patterns.pattern import Pattern
from tests.strategies import conv


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def drawn(*rows: str) -> np.ndarray:
    """A mask from rows of ``#`` (kept), ``.`` (dropped) and spaces, which only help the eye."""
    return np.array([[c == "#" for c in row.replace(" ", "")] for row in rows])


def linear(mask: np.ndarray) -> Geometry:
    return Geometry.linear(mask.shape[1])


ENGINE = EngineConfig(lanes=4, rows=2, bank_width=8)

GOOD: dict[str, tuple[Pattern, np.ndarray, Geometry]] = {
    "unstructured": (Unstructured(), drawn("#.##", "...."), Geometry.linear(4)),
    "gs": (Gs(config=ENGINE), drawn("##..", "..##"), Geometry.linear(4)),
    "greedy": (Greedy(config=ENGINE), drawn("#... .#..", "..#. ...#"), Geometry.linear(8)),
    "block": (Block(height=2, width=3), drawn("### ...", "### ...", "... ###"), Geometry.linear(6)),
    "simd": (SimdVector(width=4), drawn("#### ..", ".... ##"), Geometry.linear(6)),
    "node": (Node(), drawn("###", "...", "###"), Geometry.linear(3)),
    "weight": (Granular(grain=Grain.WEIGHT), drawn("#..#"), Geometry.linear(4)),
    # Columns are (ky, kx, channel): here two rows of two taps of two channels.
    "vector": (Granular(grain=Grain.VECTOR), drawn("#.#. .#.#"), conv(2, (2, 2))),
    "kernel": (Granular(grain=Grain.KERNEL), drawn(".#.# .#.#"), conv(2, (2, 2))),
    "filter": (Granular(grain=Grain.FILTER), drawn("########", "........"), conv(2, (2, 2))),
    "banks": (BankBalanced(n_banks=2), drawn("##. #.#", ".## ##."), Geometry.linear(6)),
    "short banks": (BankBalanced(n_banks=2), drawn("### ##"), Geometry.linear(5)),
    "n of m": (NOfM(group_size=4), drawn("##.. #.#. #.", ".#.# ..## .#"), Geometry.linear(10)),
    "pe": (PeBalanced(n_pes=2), drawn("##.", "#..", "...", ".#."), Geometry.linear(3)),
    "uneven pe": (PeBalanced(n_pes=2), drawn("##.", "#..", "..."), Geometry.linear(3)),
    "darb": (DensityAdaptive(), drawn("#. .# #", "..# .#", "...#.", "....."), Geometry.linear(5)),
    "bcr": (BlockColumnRow(height=2, width=3), drawn("#.# ...", "#.# .#."), Geometry.linear(6)),
    "row-column": (RowColumn(height=3, width=3), drawn("##. #", "... .", "##. #"), conv(4, (1, 1))),
    "kgs": (KernelGroup(filters=2, channels=2), drawn("##. ..#", "##. ..#"), conv(3, (1, 2))),
    "punched": (BlockPunched(filters=3, channels=1), drawn("#. .#", "#. .#"), conv(2, (1, 2))),
    "shapes": (KernelPattern(n_shapes=1), drawn("##. ##. ...", "... ... ..."), conv(1, (3, 3))),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_masks(name):
    pattern, mask, geometry = GOOD[name]
    assert violations(pattern, mask, geometry) == []


@dataclass(frozen=True)
class Bad:
    name: str
    mask: np.ndarray
    message: str


BAD = [
    Bad("gs", drawn("##..", ".#.#"), "bundle 0: bank 1 keeps 2 blocks, not 1"),
    Bad("greedy", drawn("#... .#..", "..#. ...."), "bundle 0: row 0 keeps 2 blocks, not 0"),
    Bad(
        "block",
        drawn("### ...", "##. ...", "... ###"),
        "block at row 0, column 0 keeps 5 of 6 weights, not all or none",
    ),
    Bad(
        "block",
        drawn("### ...", "### ...", "... #.#"),
        "block at row 2, column 3 keeps 2 of 3 weights, not all or none",
    ),
    Bad(
        "simd",
        drawn("#### #.", ".... ##"),
        "block at row 0, column 4 keeps 1 of 2 weights, not all or none",
    ),
    Bad("node", drawn("###", "..#", "###"), "row 1 keeps 1 of 3 weights, not all or none"),
    Bad(
        "vector",
        drawn("#.#. .##."),
        "row 1 of kernel 0, 0 keeps 1 of 2 weights, not all or none",
    ),
    Bad("kernel", drawn("#.#. #..#"), "kernel 0, 0 keeps 3 of 4 weights, not all or none"),
    Bad("filter", drawn("########", "......#."), "filter 1 keeps 1 of 8 weights, not all or none"),
    Bad("banks", drawn("##. #.#", ".## .#."), "bank 1 of row 1 keeps 1 weights, not 2"),
    Bad("short banks", drawn("### .#"), "bank 1 of row 0 keeps 1 weights, not 2"),
    Bad(
        "n of m",
        drawn("##.. #.## #.", ".#.# ..## .#"),
        "group 1 of row 0 keeps 3 of 4 weights, not 2",
    ),
    Bad(
        "n of m",
        drawn("##.. #.#. #.", ".#.# ..## ##"),
        "group 2 of row 1 keeps 2 of 2 weights, not 1",
    ),
    Bad(
        "pe",
        drawn("##.", "#..", "#..", "..."),
        "PE 0 keeps 3 weights, more than one off its share of 2.00",
    ),
    Bad(
        "darb",
        drawn("#. #. .", "..# .#", "##...", "....."),
        "block at row 2, column 0 keeps 2 weights, not 1 of 3 (2 in the row)",
    ),
    Bad(
        "bcr",
        drawn("#.# ...", "#.. .#."),
        "tile at row 0, column 0 keeps 3 of the 4 weights where its rows and columns cross",
    ),
    Bad(
        "row-column",
        drawn("##. #", "... #", "#.. #"),
        "tile at row 0, column 0 keeps 3 of the 4 weights where its rows and columns cross",
    ),
    Bad(
        "kgs",
        drawn("##. ..#", "#.. ..#"),
        "position 0 of filter 0, channel 0 keeps 3 of 4 weights, not all or none",
    ),
    Bad(
        "punched",
        drawn("#. .#", "#. ##"),
        "position 1 of filter 0, channel 0 keeps 1 of 2 weights, not all or none",
    ),
    Bad(
        "shapes",
        drawn("##. #.. .#.", "... ... ..."),
        "kernel 0, 0 keeps positions [0, 1, 3, 7], not 4 with the centre",
    ),
    Bad(
        "shapes",
        drawn("##. ##. ...", "### .#. ..."),
        "kernels have 2 shapes, not at most 1",
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda b: b.name)
def test_bad_masks(bad):
    pattern, _, geometry = GOOD[bad.name]
    assert bad.message in violations(pattern, bad.mask, geometry)


def test_row_order_of_engines():
    mask = drawn("##..", "##..", "..##", "..##")
    pattern = Gs(config=ENGINE)
    assert violations(pattern, mask, Geometry.linear(4))
    assert violations(pattern, mask, Geometry.linear(4), np.array([0, 2, 1, 3])) == []
    assert violations(pattern, mask, Geometry.linear(4), np.array([0, 0, 1, 3])) == [
        "row order must be a permutation of the 4 rows"
    ]


def test_polarised():
    weights = np.array([[1.0, -2.0, 3.0, -1.0, 0.0, -3.0]])
    pattern, geometry = Polarised(fragment=3), Geometry.linear(6)
    assert violations(pattern, drawn("#.# ###"), geometry, weights=weights) == []
    assert violations(pattern, drawn(".#. ..#"), geometry, weights=weights) == []
    assert violations(pattern, drawn("##. ..."), geometry, weights=weights) == [
        "fragment at row 0, column 0 keeps both signs"
    ]


@pytest.mark.parametrize("weights", [None, np.ones((2, 3))])
def test_polarised_without_its_weights(weights):
    shape = None if weights is None else (2, 3)
    with raises(f"the polarised pattern is checked with weights of shape (1, 4), not {shape}"):
        violations(Polarised(), drawn("#..."), Geometry.linear(4), weights=weights)


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (np.ones((2, 3), dtype=bool), "bool of (2, 3)"),
        (np.ones((2, 4)), "float64 of (2, 4)"),
        (np.ones(4, dtype=bool), "bool of (4,)"),
    ],
)
def test_not_a_mask_of_the_layer(mask, what):
    with raises(f"mask must be bool of shape (rows, 4), not {what}"):
        violations(Node(), mask, Geometry.linear(4))


def test_a_pattern_that_nobody_checks():
    class Other(Unstructured):
        pass

    with raises("no check for masks of Other"):
        violations(Other(), drawn("#..."), Geometry.linear(4))
