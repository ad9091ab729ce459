"""Weights round a buffer: every word is loaded after its last reader, and as early as it can be."""

import numpy as np
import pytest

from gshw.word_ring import WordRing


def test_what_fits_is_loaded_once():
    ring = WordRing(10)
    tiles = [ring.place(0, first, first + 5) for first in (0, 5)]
    assert [tile.base for tile, _ in tiles] == [0, 5]
    for tile, pieces in tiles:
        assert [(p.first, p.stop, p.word, p.after) for p in pieces] == [
            (tile.first, tile.stop, tile.base, None)
        ]
        assert ring.place(0, tile.first, tile.stop) == (tile, [])
    # The same entries of another layer are others.
    assert ring.place(1, 0, 5)[1]


def test_what_lies_free_is_loaded_first():
    """Tiles of more than half the buffer lie at its begin and its end in turn."""
    ring = WordRing(10)
    found = []
    for step in range(4):
        tile, pieces = ring.place(0, 7 * step, 7 * step + 7)
        tile.used_by = step
        found.append([(p.first - 7 * step, p.word, p.after) for p in pieces])
    assert found == [
        [(0, 0, None)],
        [(4, 7, None), (0, 3, 0)],
        [(0, 0, 0), (3, 3, 1)],
        [(4, 7, 1), (0, 3, 2)],
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_word_waits_for_its_last_reader(seed):
    """Against a buffer that knows of every word who reads it."""
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(4, 40))
    ring = WordRing(depth)
    holds = np.full((depth, 2), -1)
    readers = np.full(depth, -1)
    for step in range(200):
        owner = int(rng.integers(2))
        first = int(rng.integers(5))
        stop = first + int(rng.integers(1, depth + 1))
        tile, pieces = ring.place(owner, first, stop)
        loaded = []
        for piece in pieces:
            words = slice(piece.word, piece.word + piece.stop - piece.first)
            assert readers[words].max() <= (-1 if piece.after is None else piece.after)
            holds[words] = [(owner, entry) for entry in range(piece.first, piece.stop)]
            loaded += range(piece.first, piece.stop)
        assert not pieces or sorted(loaded) == list(range(first, stop))
        assert [p.after or -1 for p in pieces] == sorted(p.after or -1 for p in pieces)
        words = slice(tile.base, tile.end)
        assert (holds[words] == [(owner, entry) for entry in range(first, stop)]).all()
        readers[words] = tile.used_by = step
