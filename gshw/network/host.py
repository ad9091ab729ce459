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
ARGUMENT_BITS = 8
"""Fractional bits of what a GRU's sigmoids and tangents are taken of; it is within +-8."""
ARGUMENT_LIMIT = 1 << (3 + ARGUMENT_BITS)
SCALE_BITS = 16
"""Further bits of a scale, by which a GRU's codes are multiplied."""
NORM_BITS = 12
"""Fractional bits of a value less its mean, by the standard deviation."""
ROOT_BITS = 10
"""Of the standard deviation, where 64-bit integers leave so many."""


def round_shift(values: Codes, shift: int) -> Codes:
    """``values / 2 ** shift`` to the nearest integer, ties up."""
    return values if not shift else (values + (1 << (shift - 1))) >> shift


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


def gru_cell(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """One step of a GRU.

    Parameters
    ----------
    sources
        What the input and the output before add to the gates, channels ordered (reset, update,
        new) as torch has them; the output before, of ``UNIT_BITS`` fractional bits.
    tables
        Sigmoid and tangent of n / 2**ARGUMENT_BITS, from ``-ARGUMENT_LIMIT`` on.
    numbers
        ``input``, ``before``: scales of the first two sources in units of
        ``2**-(ARGUMENT_BITS + SCALE_BITS)``. ``output_bits``: as of :func:`lstm_cell`.

    Returns
    -------
    list
        Outputs, and the same of ``UNIT_BITS`` fractional bits.
    """
    sigmoid, tangent = tables

    def place(values: Codes) -> Codes:
        found = round_shift(values, SCALE_BITS)
        return np.clip(found, -ARGUMENT_LIMIT, ARGUMENT_LIMIT - 1) + ARGUMENT_LIMIT

    inner = np.split(sources[0] * numbers["input"], 3, axis=3)
    outer = np.split(sources[1] * numbers["before"], 3, axis=3)
    reset, update = (sigmoid[place(inner[n] + outer[n])] for n in range(2))
    new = tangent[place(inner[2] + round_shift(reset * outer[2], UNIT_BITS))]
    states = round_shift(((1 << UNIT_BITS) - update) * new + update * sources[2], UNIT_BITS)
    bits = numbers["output_bits"]
    return [np.minimum(round_shift(states, UNIT_BITS - bits), (1 << bits) - 1), states]


def gru_tables() -> list[Codes]:
    """The tables of :func:`gru_cell`."""
    arguments = np.arange(-ARGUMENT_LIMIT, ARGUMENT_LIMIT) * 2.0**-ARGUMENT_BITS
    values = (1 / (1 + np.exp(-arguments)), np.tanh(arguments))
    return [np.rint((1 << UNIT_BITS) * value).astype(np.int64) for value in values]


def layer_norm(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """Every pixel's channels less their mean, over their standard deviation, times a gain.

    Of C channels, d = C * x - sum(x) is C times a value less its mean, and the square root of
    ``(sum(d**2) + epsilon) / C`` is C times the standard deviation.

    Parameters
    ----------
    tables
        Gain, of ``shift - NORM_BITS`` fractional bits of a code, and offset, of ``shift``; shape
        (channels,) each.
    numbers
        ``epsilon``, ``root_bits``: from :func:`norm_numbers`. ``shift``. ``low``, ``high``: clamp.
    """
    codes = sources[0]
    n_channels = codes.shape[3]
    less_mean = n_channels * codes - codes.sum(axis=3, keepdims=True)
    squares = (less_mean * less_mean).sum(axis=3, keepdims=True) + numbers["epsilon"]
    root_bits = numbers["root_bits"]
    root = np.maximum(integer_root((squares // n_channels) << (2 * root_bits)), 1)
    scaled = less_mean << (root_bits + NORM_BITS)
    normal = (2 * scaled + root) // (2 * root)
    shift = numbers["shift"]
    found = round_shift(normal * tables[0] + tables[1], shift)
    return [np.clip(found, numbers["low"], numbers["high"])]


def norm_numbers(n_channels: int, activation_width: int, epsilon: int) -> dict[str, int]:
    """Numbers of a layer norm whose integers fit 64 bits, whatever the codes.

    Parameters
    ----------
    epsilon
        That is added to the sum of squares; at least 1 is.

    Raises
    ------
    GshwError
        For too many channels, or an epsilon far beyond any variance.
    """
    # Of a value less its mean, times the channels; a variance is at most a quarter of its square.
    width = ((n_channels << activation_width) - 1).bit_length()
    if 2 * width - 2 + (n_channels - 1).bit_length() > 61:
        raise GshwError(
            f"a layer norm over {n_channels} channels of {activation_width} bits is beyond 64-bit "
            "integers"
        )
    if epsilon >= 1 << 61:
        raise GshwError("epsilon is far beyond the variance of any codes at this scale")
    epsilon = max(1, epsilon)
    largest = max(2 * width - 2, (epsilon // n_channels).bit_length()) + 1
    root_bits = min(ROOT_BITS, (62 - largest) // 2)
    return {"epsilon": epsilon, "root_bits": root_bits}


def integer_root(values: Codes) -> Codes:
    """The largest integers whose squares are at most the values, which are below 2**62."""
    root = np.sqrt(values.astype(np.float64)).astype(np.int64)
    root -= root * root > values
    return root + ((root + 1) * (root + 1) <= values)


def constant(
    sources: Sequence[Codes], tables: Sequence[Codes], numbers: Mapping[str, int]
) -> list[Codes]:
    """A table, shape (height, width, channels), for as many samples as the source has."""
    return [np.broadcast_to(tables[0], (len(sources[0]), *tables[0].shape)).astype(np.int64)]


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
        ``multiplier``, ``shift``: from a product of codes to an entry of the table. ``heads``:
        among which the channels are split evenly. ``causal``: 1 where a step sees only those up to
        its own.

    Returns
    -------
    list
        At the values' scale.
    """
    # Shape (n_samples, heads, steps, channels of a head).
    queries, keys, values = (
        codes[:, 0].reshape(*codes.shape[::2], numbers["heads"], -1).swapaxes(1, 2)
        for codes in sources
    )
    scores = _product(queries, keys.swapaxes(2, 3))
    seen = np.ones(scores.shape[2:], dtype=bool)
    if numbers["causal"]:
        seen = np.tril(seen)
    lowest = scores.min()
    distance = np.where(seen, scores, lowest).max(axis=3, keepdims=True) - scores
    place = round_shift(distance * numbers["multiplier"], numbers["shift"])
    weights = np.where(seen, tables[0][np.clip(place, 0, tables[0].size - 1)], 0)
    total = weights.sum(axis=3, keepdims=True)
    found = (2 * _product(weights, values) + total) // (2 * total)
    n_samples, _, n_steps, _ = found.shape
    return [found.swapaxes(1, 2).reshape(n_samples, 1, n_steps, -1)]


def _product(a: Codes, b: Codes) -> Codes:
    """Integer matrix products, exact in floats as long as sums are below 2**53."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def exponentials() -> Codes:
    """The table of :func:`attention`."""
    exponents = -np.arange(EXPONENT_ENTRIES) / EXPONENT_STEPS
    return np.rint((1 << UNIT_BITS) * np.exp(exponents)).astype(np.int64)


FUNCTIONS: dict[str, Function] = {
    "lstm_cell": lstm_cell,
    "gru_cell": gru_cell,
    "layer_norm": layer_norm,
    "constant": constant,
    "embedding": embedding,
    "argmax": argmax,
    "fill": fill,
    "table": table,
    "multiply": multiply,
    "attention": attention,
}

NEEDS: dict[str, tuple[int, int, int, frozenset[str]]] = {
    "lstm_cell": (2, 2, 3, frozenset(("low", "output_bits"))),
    "gru_cell": (3, 2, 2, frozenset(("input", "before", "output_bits"))),
    "layer_norm": (1, 1, 2, frozenset(("epsilon", "root_bits", "shift", "low", "high"))),
    "constant": (1, 1, 1, frozenset()),
    "embedding": (1, 1, 1, frozenset()),
    "argmax": (1, 1, 0, frozenset()),
    "fill": (1, 1, 0, frozenset(("value", "width", "channels"))),
    "table": (1, 1, 1, frozenset(("low",))),
    "multiply": (2, 1, 0, frozenset(("multiplier", "shift", "low", "high"))),
    "attention": (3, 1, 1, frozenset(("multiplier", "shift", "heads", "causal"))),
}
"""How many sources, targets and tables each function has, and its numbers."""
