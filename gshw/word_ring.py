"""Weights in a buffer, one tile after the other, round and round.

A tile that does not fit behind the last one goes to the buffer's begin or end. So whatever was
loaded longest ago makes room, and what lies free can be loaded while the rest is still in use.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass
class Resident:
    """A tile in the buffer.

    Parameters
    ----------
    owner
        Whose entries they are: of which layer.
    first, stop
        Its range of entries.
    base
        Of its first word.
    filled_by, used_by
        The step that loads its last word, and the last one that reads it.
    """

    owner: int
    first: int
    stop: int
    base: int
    filled_by: int | None = None
    used_by: int | None = None

    @property
    def end(self) -> int:
        """Word behind its last one."""
        return self.base + self.stop - self.first


@dataclass(frozen=True)
class Piece:
    """Entries of a tile to load together.

    Parameters
    ----------
    first, stop
        Range of entries.
    word
        Where the first one goes.
    after
        The step that reads what lies there now; None: nobody does.
    """

    first: int
    stop: int
    word: int
    after: int | None


class WordRing:
    """One buffer of weights over the course of a program.

    Parameters
    ----------
    depth
        Words of the buffer.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._tiles: list[Resident] = []
        self._numbers: dict[tuple[int, int, int], int] = {}
        # Number of the tile that was loaded to each word last.
        self._tile_of = np.full(depth, -1)

    def place(self, owner: int, first: int, stop: int) -> tuple[Resident, list[Piece]]:
        """A tile in the buffer, and what to load for it: nothing if it is there already.

        Parameters
        ----------
        first, stop
            Entries of the tile, at most ``depth``.

        Returns
        -------
        tuple
            The pieces cover the tile; a later one waits for a later step.
        """
        wanted = (owner, first, stop)
        number = self._numbers.get(wanted)
        if number is not None:
            tile = self._tiles[number]
            if (self._tile_of[tile.base : tile.end] == number).all():
                return tile, []
        base = self._base(stop - first)
        tile = Resident(owner, first, stop, base)
        pieces = self._pieces(tile)
        self._numbers[wanted] = len(self._tiles)
        self._tile_of[base : tile.end] = len(self._tiles)
        self._tiles.append(tile)
        return tile, pieces

    def _base(self, n_words: int) -> int:
        """Behind the last tile, or where least of it is displaced."""
        if not self._tiles:
            return 0
        last = self._tiles[-1]
        fits = [b for b in (last.end, 0, self._depth - n_words) if b + n_words <= self._depth]
        return min(fits, key=lambda b: max(0, min(last.end, b + n_words) - max(last.base, b)))

    def _pieces(self, tile: Resident) -> list[Piece]:
        """Where the tile used last lies, pieces of their own that wait for it."""
        here = self._tile_of[tile.base : tile.end]
        used = {int(n): self._tiles[n].used_by for n in np.unique(here) if n >= 0}
        steps = {number: step for number, step in used.items() if step is not None}
        newest = max(steps, key=lambda number: steps[number], default=None)
        late = here == newest
        cuts = np.flatnonzero(np.diff(late)) + 1
        pieces = []
        for start, stop in pairwise([0, *cuts.tolist(), here.size]):
            waits = [steps[n] for n in np.unique(here[start:stop]).tolist() if n in steps]
            pieces.append(
                Piece(
                    tile.first + start,
                    tile.first + stop,
                    tile.base + start,
                    max(waits, default=None),
                )
            )
        return sorted(pieces, key=lambda piece: -1 if piece.after is None else piece.after)
