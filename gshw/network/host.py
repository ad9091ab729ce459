"""What the host computes between matrices, in integers: the same code for every device.

A function takes the codes of its sources, each of shape (n_samples, height, width, channels), its
tables and its numbers, and returns the codes of its targets.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gshw.errors import GshwError

Codes = NDArray[np.int64]
Function = Callable[[Sequence[Codes], Sequence[Codes], Mapping[str, int]], list[Codes]]

UNIT_BITS = 15
"""Sigmoids, tangents and exponentials are integers of this many fractional bits."""
CELL_BITS = 11
"""So are the cells of an LSTM; they have 16 bits."""
CELL_LIMIT = (1 << 15) - 1
CELL_TABLE_BITS = 12
"""The tangent of a cell is looked up by its highest bits."""
EXPONENT_STEPS = 16
"""Entries of the table of exponentials per unit of the exponent."""
EXPONENT_ENTRIES = 256


def round_shift(values: Codes, shift: int) -> Codes:
    """``values / 2 ** shift`` to the nearest integer, ties up."""
    return (values + (1 << (shift - 1))) >> shift


def lstm_cell(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """One step of an LSTM from its gates.

    Parameters
    ----------
    sources
        Gates, channels ordered (input, forget, cell, output) as torch has them; the cells before.
    tables
        Sigmoid and tangent of a gate's code less the lowest one, and the tangent of a cell.
    numbers
        ``low``: the lowest code of a gate. ``output_bits``: fractional bits of an output code;
        outputs are at most one less than 1.

    Returns
    -------
    list
        Outputs and cells.
    """
    gates, cells = sources
    sigmoid, tangent, cell_tangent = tables
    entering, forgetting, new, leaving = np.split(gates - numbers["low"], 4, axis=3)
    kept = round_shift(sigmoid[forgetting] * cells, UNIT_BITS)
    added = round_shift(sigmoid[entering] * tangent[new], 2 * UNIT_BITS - CELL_BITS)
    cells = np.clip(kept + added, -CELL_LIMIT - 1, CELL_LIMIT)
    place = (cells >> (16 - CELL_TABLE_BITS)) + (1 << (CELL_TABLE_BITS - 1))
    outputs = sigmoid[leaving] * cell_tangent[place]
    bits = numbers["output_bits"]
    outputs = np.minimum(round_shift(outputs, 2 * UNIT_BITS - bits), (1 << bits) - 1)
    return [outputs, cells]


def lstm_tables(gate_scale: float, low: int, high: int) -> list[Codes]:
    """The tables of :func:`lstm_cell` for gates of this scale and range of codes."""
    one = 1 << UNIT_BITS
    gates = np.arange(low, high + 1) * gate_scale
    # The middle of what shares an entry.
    half = 1 << (CELL_TABLE_BITS - 1)
    cells = (np.arange(-half, half) + 0.5) * 2.0 ** (16 - CELL_TABLE_BITS - CELL_BITS)
    values = (1 / (1 + np.exp(-gates)), np.tanh(gates), np.tanh(cells))
    return [np.rint(one * value).astype(np.int64) for value in values]


def embedding(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """Rows of a table by number; one source, of one channel."""
    low, high = int(sources[0].min()), int(sources[0].max())
    if low < 0 or high >= len(tables[0]):
        wrong = low if low < 0 else high
        raise GshwError(f"tokens must be from 0 to {len(tables[0]) - 1}, not {wrong}")
    return [tables[0][sources[0][..., 0]].astype(np.int64)]


def argmax(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """The channel of the largest code, the first of several."""
    return [np.argmax(sources[0], axis=3)[..., None]]


def table(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """Any function of single codes.

    Parameters
    ----------
    numbers
        ``low``: the code of the table's first entry.
    """
    return [tables[0][sources[0] - numbers["low"]]]


def multiply(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """Products of two tensors, one of which may have a single pixel for all of the other's.

    Parameters
    ----------
    numbers
        ``multiplier``, ``shift``: from a product of codes to a code. ``low``, ``high``: clamp.
    """
    products = sources[0] * sources[1] * numbers["multiplier"]
    return [np.clip(round_shift(products, numbers["shift"]), numbers["low"], numbers["high"])]


def fill(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """One code everywhere, for as many samples as the source has.

    Parameters
    ----------
    numbers
        ``value``; ``width`` and ``channels`` of what is filled.
    """
    shape = (len(sources[0]), 1, numbers["width"], numbers["channels"])
    return [np.full(shape, numbers["value"], dtype=np.int64)]


def attention(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """Means of values, weighted by the softmax of products of queries and keys.

    Parameters
    ----------
    sources
        Queries, keys and values; their pixels are the sequence.
    tables
        Exponentials of minus n / ``EXPONENT_STEPS``.
    numbers
        ``multiplier``, ``shift``: from a product of codes to an entry of the table.

    Returns
    -------
    list
        At the values' scale.
    """
    queries, keys, values = (codes[:, 0] for codes in sources)
    scores = queries @ keys.swapaxes(1, 2)
    distance = scores.max(axis=2, keepdims=True) - scores
    place = round_shift(distance * numbers["multiplier"], numbers["shift"])
    weights = tables[0][np.minimum(place, tables[0].size - 1)]
    total = weights.sum(axis=2, keepdims=True)
    return [((2 * (weights @ values) + total) // (2 * total))[:, None]]


def exponentials() -> Codes:
    """The table of :func:`attention`."""
    exponents = -np.arange(EXPONENT_ENTRIES) / EXPONENT_STEPS
    return np.rint((1 << UNIT_BITS) * np.exp(exponents)).astype(np.int64)


FUNCTIONS: dict[str, Function] = {
    "lstm_cell": lstm_cell,
    "embedding": embedding,
    "argmax": argmax,
    "fill": fill,
    "table": table,
    "multiply": multiply,
    "attention": attention,
}

NEEDS: dict[str, tuple[int, int, int, frozenset[str]]] = {
    "lstm_cell": (2, 2, 3, frozenset(("low", "output_bits"))),
    "embedding": (1, 1, 1, frozenset()),
    "argmax": (1, 1, 0, frozenset()),
    "fill": (1, 1, 0, frozenset(("value", "width", "channels"))),
    "table": (1, 1, 1, frozenset(("low",))),
    "multiply": (2, 1, 0, frozenset(("multiplier", "shift", "low", "high"))),
    "attention": (3, 1, 1, frozenset(("multiplier", "shift"))),
}
"""How many sources, targets and tables each function has, and its numbers."""
