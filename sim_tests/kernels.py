"""Random group words and records: whatever the engine may meet, not only what an encoder makes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig, Gather, Routing
from gshw.image import drain_records, pack_words
from gshw.layout import group_fields, record_fields

MAX_CHAIN = 40
"""Groups that one sum may take in, over positions and commands that continue it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """Some bundles, as words of the group and row buffers; each is equal only to itself.

    Parameters
    ----------
    groups, records
        Shape (n, limbs), uint32. Groups behind the last bundle's end leave a sum unfinished.
    group_ptr, record_ptr
        Shape (n_bundles + 1,): where each finished bundle begins, and where the last ends.
    span
        Offsets are below this.
    n_words
        Output rows lie in so many words.
    """

    groups: NDArray[np.uint32]
    records: NDArray[np.uint32]
    group_ptr: NDArray[np.int64]
    record_ptr: NDArray[np.int64]
    span: int
    n_words: int

    @property
    def n_bundles(self) -> int:
        return self.group_ptr.size - 1

    @property
    def n_tail(self) -> int:
        """Groups behind the last finished bundle."""
        return len(self.groups) - int(self.group_ptr[-1])


def make_kernel(
    rng: np.random.Generator,
    config: EngineConfig,
    rows: NDArray[np.int64],
    *,
    span: int,
    n_tail: int = 0,
    max_groups: int = 3,
) -> Kernel:
    """Bundles with these output rows and random everything else.

    Parameters
    ----------
    rows
        Shape (n_bundles, rows): output rows in execution order, -1 for none.
    n_tail
        Groups without an end behind the bundles.
    max_groups
        Of a bundle; each has at least one.
    """
    records = drain_records(config, rows.reshape(-1))
    sizes = rng.integers(1, max_groups + 1, len(rows))
    group_ptr = np.concatenate([[0], np.cumsum(sizes)])
    n_groups = int(group_ptr[-1]) + n_tail
    peak = _peak(config)
    weight = rng.integers(-peak, peak + 1, (n_groups, config.lanes * config.block))
    weight[rng.random(weight.shape) < rng.choice([0.0, 0.2, 0.9])] = 0
    drain = np.zeros((n_groups, 1), dtype=np.int64)
    drain[group_ptr[1:] - 1, 0] = np.diff(records.bundle_ptr)
    values = {
        "drain": drain,
        "offset": rng.integers(0, span, (n_groups, config.lanes)),
        "weight": weight,
    }
    if config.gather is Gather.ARBITRATED:
        values["active"] = (rng.random((n_groups, config.lanes)) < 0.8).astype(np.int64)
        values["bank"] = rng.integers(0, config.lanes, (n_groups, config.lanes))
    elif config.routing is Routing.CROSSBAR:
        values["bank"] = np.array([rng.permutation(config.lanes) for _ in range(n_groups)])
    elif config.routing is Routing.BENES:
        values["switch"] = rng.integers(0, 2, (n_groups, config.n_switches))
    return Kernel(
        groups=pack_words(group_fields(config), values),
        records=pack_words(record_fields(config), _record_values(rng, config, records)),
        group_ptr=group_ptr,
        record_ptr=records.bundle_ptr,
        span=span,
        n_words=max(0, int(rows.max())) // config.channels_per_row + 1,
    )


def random_kernel(rng: np.random.Generator, config: EngineConfig) -> Kernel:
    """One to four bundles of any rows in up to three words, now and then with a tail."""
    n_words = int(rng.integers(1, 4))
    n_bundles = int(rng.integers(1, min(4, _most_bundles(config)) + 1))
    rows = np.array(
        [
            rng.choice(n_words * config.channels_per_row, config.rows, replace=False)
            for _ in range(n_bundles)
        ]
    )
    rows[rng.random(rows.shape) < rng.choice([0.0, 0.3])] = -1
    rows[:, config.row_buffer_depth :] = -1
    n_tail = int(rng.integers(1, 4)) if rng.random() < 0.4 else 0
    n_tail = min(n_tail, config.group_buffer_depth - n_bundles)
    max_groups = min(3, (config.group_buffer_depth - n_tail) // n_bundles)
    span = int(rng.integers(1, 6))
    return make_kernel(rng, config, rows, span=span, n_tail=n_tail, max_groups=max_groups)


def whole_word_kernels(rng: np.random.Generator, config: EngineConfig) -> list[Kernel]:
    """Bundles that together write every channel of one output word, in any order."""
    order = rng.permutation(config.channels_per_row)
    n_used = min(config.rows, config.row_buffer_depth)
    rows = np.full((-(-order.size // n_used), config.rows), -1, dtype=np.int64)
    for start in range(0, order.size, n_used):
        some = order[start : start + n_used]
        rows[start // n_used, : some.size] = some
    n_bundles = _most_bundles(config)
    return [
        make_kernel(rng, config, rows[start : start + n_bundles], span=1, max_groups=1)
        for start in range(0, len(rows), n_bundles)
    ]


def _most_bundles(config: EngineConfig) -> int:
    """Bundles that surely fit the buffers, each with as many records as it can need."""
    n_records = min(config.rows, config.row_buffer_depth)
    return min(config.group_buffer_depth, config.row_buffer_depth // n_records)


def _peak(config: EngineConfig) -> int:
    """Largest weight with which no sum of ``MAX_CHAIN`` groups leaves half of the accumulator."""
    terms = MAX_CHAIN * config.lanes_per_row * config.block
    code = (1 << config.activation_width) - 1
    return min(config.max_weight, (1 << (config.accumulator_width - 2)) // (terms * code))


def _record_values(rng: np.random.Generator, config: EngineConfig, records) -> dict:
    """Output stages whose codes show the sums, most of them; the rest are any."""
    valid = records.rows >= 0
    shape = valid.shape
    limit = 1 << (config.accumulator_width - 2)
    bias = rng.integers(-limit, limit, shape) >> rng.integers(0, config.accumulator_width, shape)
    # A sum of few groups has about so many bits.
    terms = 2 * config.lanes_per_row * config.block
    n_bits = max(1, _peak(config) * terms).bit_length() + config.activation_width
    shift = 15 + n_bits - config.activation_width - rng.integers(0, 6, shape)
    shift = np.where(rng.random(shape) < 0.1, rng.integers(1, 48, shape), shift)
    return {
        "advance": records.advance[:, None],
        "valid": valid.astype(np.int64),
        "bias": np.where(valid, bias, 0),
        "multiplier": np.where(valid, rng.integers(1 << 15, 1 << 16, shape), 0),
        "shift": np.where(valid, np.clip(shift, 1, 47), 1),
        "row": np.where(valid, records.rows, 0),
    }
