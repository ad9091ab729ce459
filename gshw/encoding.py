"""The encoder: any integer matrix into groups, the fewest there can be, and back exactly.

Source: the compact format of arXiv 2112.10898 (value, offset, bundle pointer), extended by the
bank of every lane so that rows may share groups.
"""

from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gshw.config import MULTIPLIER_WIDTH, SHIFT_WIDTH, EngineConfig, Gather, Routing
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.schedule import minimum_groups, schedule

IDLE_BANK = 255
"""Bank number of an arbitrated lane that has nothing to fetch."""


@dataclass(frozen=True, kw_only=True)
class Requantisation:
    """Integer output stage of a layer: ``clamp((acc * multiplier + half) >> shift, low, high)``.

    ``acc`` is the sum of a row's products and the bias; ``half`` is ``2 ** (shift - 1)``, so ties
    round up.

    Parameters
    ----------
    bias
        Shape (n_rows,), int64, in accumulator units.
    multiplier
        Shape (n_rows,), int64, each in [2**15, 2**16).
    shift
        Shape (n_rows,), int64, each in [1, 47].
    low, high
        Clamp of the output codes: ReLU and saturation.
    signed_input
        Whether input codes are two's complement.
    maximum
        ``acc`` is the largest of a row's products, at least 0, instead of their sum; the bias must
        be 0.
    table
        Shape (2**activation_width,), int64: what replaces the code whose bits are the index. Its
        codes have one sign, that of the output.
    """

    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    low: int
    high: int
    signed_input: bool = False
    maximum: bool = False
    table: NDArray[np.int64] | None = None

    @property
    def signed_output(self) -> bool:
        """Whether what leaves the stage is two's complement."""
        return self.low < 0 if self.table is None else bool((self.table < 0).any())

    @staticmethod
    def identity(
        n_rows: int, config: EngineConfig, *, shift: int = 16, signed_input: bool = False
    ) -> "Requantisation":
        """Zero bias and the scale ``2 ** (15 - shift)``, clamped to signed codes."""
        low, high = config.activation_range(signed=True)
        return Requantisation(
            bias=np.zeros(n_rows, dtype=np.int64),
            multiplier=np.full(n_rows, 1 << (MULTIPLIER_WIDTH - 1), dtype=np.int64),
            shift=np.full(n_rows, shift, dtype=np.int64),
            low=low,
            high=high,
            signed_input=signed_input,
        )


@dataclass(frozen=True, kw_only=True)
class EncodedLayer:
    """One layer as the engine executes it.

    Parameters
    ----------
    name
        The layer's name in its model.
    config_hash
        Of the engine it was made for.
    geometry, n_rows
        The float layer's window, and its output rows M.
    value
        Shape (n_groups, lanes, block), int8 or int16: the weights of every slot, 0 where empty.
    offset
        Shape (n_groups, lanes), int32. Scheduled: the column word read from each *bank*.
        Arbitrated: the column word that each *lane* reads.
    bank
        Shape (n_groups, lanes), uint8: the bank that feeds each lane; a permutation of the banks
        when scheduled. Arbitrated lanes with nothing to fetch hold ``IDLE_BANK``.
    bundle_ptr
        Shape (n_bundles + 1,), int64: groups of bundle b are ``bundle_ptr[b]:bundle_ptr[b + 1]``.
    row
        Shape (n_bundles * rows,), int32: output rows in execution order, -1 for none.
    requantisation
        The integer output stage, by output row.
    input_scale, output_scale
        Float value of one input and one output code; only reports and float comparisons use them.
    """

    name: str
    config_hash: str
    geometry: Geometry
    n_rows: int
    value: NDArray
    offset: NDArray[np.int32]
    bank: NDArray[np.uint8]
    bundle_ptr: NDArray[np.int64]
    row: NDArray[np.int32]
    requantisation: Requantisation
    input_scale: float = 1.0
    output_scale: float = 1.0
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def n_groups(self) -> int:
        return int(self.bundle_ptr[-1])

    @property
    def n_bundles(self) -> int:
        return self.bundle_ptr.size - 1

    @property
    def groups_per_bundle(self) -> NDArray[np.int64]:
        return np.diff(self.bundle_ptr)

    @property
    def n_blocks_kept(self) -> int:
        """Slots that hold a block with a non-zero weight."""
        return int(np.count_nonzero(self.value.any(axis=2)))

    def check_config(self, config: EngineConfig) -> None:
        """Refuse an engine that this layer was not encoded for."""
        if self.config_hash != config.hash:
            raise GshwError(
                f"layer {self.name!r} was encoded for the engine {self.config_hash[:8]}, "
                f"not for {config.hash[:8]}"
            )


def consecutive_rows(n_rows: int) -> NDArray[np.int64]:
    """Row order of consecutive bundles: 0, 1, 2, ..."""
    return np.arange(n_rows)


def scatter_rows(counts: NDArray) -> NDArray[np.int64]:
    """Row order of scatter bundles: by falling count, ties by row number.

    Parameters
    ----------
    counts
        Shape (n_rows,): kept blocks of each row, or blocks above the layer's threshold.
    """
    return np.argsort(-np.asarray(counts), kind="stable")


def _same_word_or_other_bank(config: EngineConfig, a: int, b: int) -> bool:
    block_a, block_b = a // config.block, b // config.block
    return block_a == block_b or block_a % config.lanes != block_b % config.lanes


def order_for_drain(config: EngineConfig, rows: list[int]) -> list[int]:
    """Order the rows of one bundle so that ``drain_rows`` neighbours can be written together.

    Rows may share a drain cycle when they go to different banks or to the same word. Rows of the
    fullest banks go first, which needs the fewest cycles for different words.
    """
    if config.drain_rows == 1:
        return rows
    waiting: dict[int, list[int]] = {}
    for row in rows:
        waiting.setdefault(row // config.block % config.lanes, []).append(row)
    together: list[int] = []
    rest: list[int] = []
    left = len(rows)
    while left:
        fullest = sorted(waiting, key=lambda bank: (-len(waiting[bank]), bank))
        chosen = [waiting[bank].pop(0) for bank in fullest[: config.drain_rows] if waiting[bank]]
        for bank in fullest[: config.drain_rows]:
            for row in list(waiting[bank]):
                if len(chosen) == config.drain_rows:
                    break
                if all(_same_word_or_other_bank(config, row, other) for other in chosen):
                    waiting[bank].remove(row)
                    chosen.append(row)
        left -= len(chosen)
        (together if len(chosen) == config.drain_rows else rest).extend(chosen)
    return together + rest


def execution_order(config: EngineConfig, row_order: NDArray, n_rows: int) -> NDArray[np.int32]:
    """Cut a row order into bundles, order each for draining, and pad the last with -1.

    Raises
    ------
    GshwError
        When ``row_order`` is no permutation of ``n_rows`` rows.
    """
    if not np.array_equal(np.sort(row_order), np.arange(n_rows)):
        raise GshwError(f"row order must be a permutation of the {n_rows} rows")
    n_bundles = -(-n_rows // config.rows)
    row = np.full(n_bundles * config.rows, -1, dtype=np.int32)
    for start in range(0, n_rows, config.rows):
        rows = order_for_drain(config, [int(r) for r in row_order[start : start + config.rows]])
        row[start : start + len(rows)] = rows
    return row


@njit(cache=True)
def _complete_permutations(bank, idle):
    n_groups, n_lanes = bank.shape
    for group in range(n_groups):
        used = np.zeros(n_lanes, dtype=np.bool_)
        for lane in range(n_lanes):
            if bank[group, lane] != idle:
                used[bank[group, lane]] = True
        free = 0
        for lane in range(n_lanes):
            if bank[group, lane] == idle:
                while used[free]:
                    free += 1
                bank[group, lane] = free
                free += 1


@dataclass(frozen=True)
class _KeptBlocks:
    """Kept blocks in execution order: by bundle, row slot, word and bank."""

    edge_ptr: NDArray[np.int64]
    bundle: NDArray[np.int64]
    slot: NDArray[np.int32]
    word: NDArray[np.int32]
    bank: NDArray[np.int32]
    row: NDArray[np.int32]


def _kept_blocks(config: EngineConfig, kept: NDArray[np.bool_], row: NDArray) -> _KeptBlocks:
    positions = np.flatnonzero(row >= 0)
    flat = kept.reshape(kept.shape[0], -1)
    index, column = np.nonzero(flat[row[positions]])
    position = positions[index]
    bundle = position // config.rows
    n_bundles = row.size // config.rows
    edge_ptr = np.zeros(n_bundles + 1, dtype=np.int64)
    np.cumsum(np.bincount(bundle, minlength=n_bundles), out=edge_ptr[1:])
    return _KeptBlocks(
        edge_ptr=edge_ptr,
        bundle=bundle,
        slot=(position % config.rows).astype(np.int32),
        word=(column // config.lanes).astype(np.int32),
        bank=(column % config.lanes).astype(np.int32),
        row=row[position],
    )


def _check_weights(config: EngineConfig, name: str, weights: NDArray) -> None:
    if weights.ndim != 2 or 0 in weights.shape:
        raise GshwError(
            f"layer {name!r}: weights must be a matrix with rows and columns, "
            f"not of shape {weights.shape}"
        )
    if not np.issubdtype(weights.dtype, np.integer):
        raise GshwError(f"layer {name!r}: weights must be integers, not {weights.dtype}")
    peak = int(np.abs(weights.astype(np.int64)).max(initial=0))
    if peak > config.max_weight:
        raise GshwError(
            f"layer {name!r}: weights must be within +-{config.max_weight} "
            f"({config.weight_width} bits, symmetric), not {peak}"
        )


def accumulator_bounds(
    config: EngineConfig, weights: NDArray, bias: NDArray, signed_input: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lowest and highest accumulator value of each row over all inputs, exactly.

    Parameters
    ----------
    weights
        Shape (n_rows, n_columns), integers.
    bias
        Shape (n_rows,).
    """
    low, high = config.activation_range(signed_input)
    wide = weights.astype(np.int64)
    positive = np.where(wide > 0, wide, 0).sum(axis=1)
    negative = np.where(wide < 0, wide, 0).sum(axis=1)
    lowest = bias + np.minimum(0, positive * low + negative * high)
    return lowest, bias + np.maximum(0, positive * high + negative * low)


def check_requantisation(
    config: EngineConfig, name: str, weights: NDArray, requantisation: Requantisation
) -> None:
    """Refuse an output stage that the hardware cannot hold, or an accumulator that may overflow.

    Raises
    ------
    GshwError
        Naming the layer, the rule and the value.
    """
    n_rows = weights.shape[0]
    for key in ("bias", "multiplier", "shift"):
        shape = getattr(requantisation, key).shape
        if shape != (n_rows,):
            raise GshwError(f"layer {name!r}: {key} must have shape ({n_rows},), not {shape}")
    for key, low, high in (
        ("multiplier", 1 << (MULTIPLIER_WIDTH - 1), (1 << MULTIPLIER_WIDTH) - 1),
        ("shift", 1, (1 << SHIFT_WIDTH) - 17),
    ):
        values = getattr(requantisation, key)
        if ((values < low) | (values > high)).any():
            bad = values[(values < low) | (values > high)][0]
            raise GshwError(f"layer {name!r}: {key} must be from {low} to {high}, not {bad}")
    _check_table(config, name, requantisation.table)
    low, high = config.activation_range(requantisation.low < 0)
    if not low <= requantisation.low <= requantisation.high <= high:
        raise GshwError(
            f"layer {name!r}: output clamp must lie within {low}..{high}, "
            f"not {requantisation.low}..{requantisation.high}"
        )
    lowest, highest = accumulator_bounds(
        config, weights, requantisation.bias, requantisation.signed_input
    )
    limit = 1 << (config.accumulator_width - 1)
    worst = int(np.maximum(-lowest - 1, highest).argmax())
    if lowest[worst] < -limit or highest[worst] >= limit:
        raise GshwError(
            f"layer {name!r}: row {worst} can reach {lowest[worst]}..{highest[worst]}, "
            f"beyond the {config.accumulator_width}-bit accumulator ({-limit}..{limit - 1})"
        )


def _check_table(config: EngineConfig, name: str, table: NDArray[np.int64] | None) -> None:
    if table is None:
        return
    if not config.activation_tables:
        raise GshwError(f"layer {name!r}: a table needs activation_tables in the config")
    n_entries = 1 << config.activation_width
    if table.shape != (n_entries,) or not np.issubdtype(table.dtype, np.integer):
        raise GshwError(
            f"layer {name!r}: table must hold {n_entries} integers, not {table.dtype} of shape "
            f"{table.shape}"
        )
    low, high = config.activation_range(bool((table < 0).any()))
    if table.min() < low or table.max() > high:
        raise GshwError(
            f"layer {name!r}: table must be within {low}..{high}, not {table.min()}..{table.max()}"
        )


def encode_layer(
    config: EngineConfig,
    name: str,
    weights: NDArray,
    geometry: Geometry,
    requantisation: Requantisation,
    *,
    mask: NDArray[np.bool_] | None = None,
    row_order: NDArray | None = None,
    input_scale: float = 1.0,
    output_scale: float = 1.0,
) -> EncodedLayer:
    """Encode a layer in the minimum number of groups.

    Parameters
    ----------
    weights
        Shape (n_rows, n_columns), integers; columns ordered (kernel row, kernel column, channel).
    mask
        Same shape; the truth about which weights are kept. Default: the non-zero weights. A kept
        zero takes a slot; a non-zero weight outside the mask is refused.
    row_order
        Shape (n_rows,): rows in bundle order (see :func:`scatter_rows`). Default: consecutive.

    Returns
    -------
    EncodedLayer
        With ``max(max_row ceil(blocks / lanes_per_row), max_bank blocks)`` groups per bundle when
        scheduled; arbitrated engines pack each row's blocks in column order.

    Raises
    ------
    GshwError
        For wrong shapes, weights out of range, or a row that could overflow the accumulator.
    """
    _check_weights(config, name, weights)
    n_rows = weights.shape[0]
    check_requantisation(config, name, weights, requantisation)
    if mask is not None:
        if mask.shape != weights.shape:
            raise GshwError(
                f"layer {name!r}: mask must have the weights' shape {weights.shape}, "
                f"not {mask.shape}"
            )
        if weights[~mask].any():
            raise GshwError(f"layer {name!r}: weights outside the mask must be zero")
    order = consecutive_rows(n_rows) if row_order is None else np.asarray(row_order)
    row = execution_order(config, order, n_rows)
    blocks = geometry.to_blocks(config, weights)
    kept = (
        blocks.any(axis=3)
        if mask is None
        else geometry.to_blocks(config, mask.astype(np.bool_)).any(axis=3)
    )
    edges = _kept_blocks(config, kept, row)
    # The largest of a row's products needs them one by one.
    per_row = 1 if requantisation.maximum else config.lanes_per_row
    if config.gather is Gather.ARBITRATED:
        groups, lane, group = _pack_in_column_order(config, edges, row.size // config.rows, per_row)
    elif requantisation.maximum and config.routing is Routing.DIRECT:
        groups, lane, group = _one_per_group(edges)
    else:
        groups = minimum_groups(edges.edge_ptr, edges.slot, edges.bank, config.lanes, per_row)
        lane, group = schedule(
            edges.edge_ptr, edges.slot, edges.bank, groups, config.lanes, per_row
        )
        lane = lane * (config.lanes_per_row // per_row)
    bundle_ptr = np.zeros(groups.size + 1, dtype=np.int64)
    np.cumsum(groups, out=bundle_ptr[1:])
    n_groups = int(bundle_ptr[-1])
    where = bundle_ptr[edges.bundle] + group
    weight_dtype = np.int8 if config.weight_width <= 8 else np.int16
    value = np.zeros((n_groups, config.lanes, config.block), dtype=weight_dtype)
    value[where, lane] = blocks[edges.row, edges.word, edges.bank]
    offset = np.zeros((n_groups, config.lanes), dtype=np.int32)
    bank = np.full((n_groups, config.lanes), IDLE_BANK, dtype=np.uint8)
    bank[where, lane] = edges.bank
    if config.gather is Gather.SCHEDULED:
        offset[where, edges.bank] = edges.word
        _complete_permutations(bank, IDLE_BANK)
    else:
        offset[where, lane] = edges.word
    layer = EncodedLayer(
        name=name,
        config_hash=config.hash,
        geometry=geometry,
        n_rows=n_rows,
        value=value,
        offset=offset,
        bank=bank,
        bundle_ptr=bundle_ptr,
        row=row,
        requantisation=requantisation,
        input_scale=input_scale,
        output_scale=output_scale,
    )
    check_maximum(config, layer)
    return layer


def check_maximum(config: EngineConfig, layer: EncodedLayer) -> None:
    """Refuse what the accumulators cannot keep the largest of: they see single codes only.

    Raises
    ------
    GshwError
        Naming the layer and the rule.
    """
    if not layer.requantisation.maximum:
        return
    name = layer.name
    if not config.max_pooling:
        raise GshwError(f"layer {name!r}: a maximum needs max_pooling = true in the config")
    in_row = layer.value.reshape(layer.n_groups, config.rows, -1)
    if ((in_row != 0) & (in_row != 1)).any() or (np.count_nonzero(in_row, axis=2) > 1).any():
        raise GshwError(
            f"layer {name!r}: weights of a maximum must be 0 or 1, one of a row in a group at most"
        )
    if layer.requantisation.bias.any():
        raise GshwError(f"layer {name!r}: the bias of a maximum must be 0")


def _one_per_group(
    edges: _KeptBlocks,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Groups per bundle, lane and group of each block for a direct engine, a block per group."""
    groups = np.diff(edges.edge_ptr)
    return groups, edges.bank, np.arange(edges.bank.size) - edges.edge_ptr[edges.bundle]


def _pack_in_column_order(
    config: EngineConfig, edges: _KeptBlocks, n_bundles: int, per_row: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Groups per bundle, lane and group of each block when nothing is scheduled.

    Parameters
    ----------
    per_row
        Lanes of a row to use, ``lanes_per_row`` at most.
    """
    n_slots = n_bundles * config.rows
    slot = edges.bundle * config.rows + edges.slot
    in_slot = np.bincount(slot, minlength=n_slots)
    first = np.cumsum(in_slot) - in_slot
    rank = np.arange(slot.size) - first[slot]
    groups = (-(-in_slot // per_row)).reshape(n_bundles, config.rows).max(axis=1)
    return groups, edges.slot * config.lanes_per_row + rank % per_row, rank // per_row


def decode_weights(config: EngineConfig, layer: EncodedLayer) -> NDArray:
    """The exact integer matrix of an encoded layer.

    Returns
    -------
    ndarray
        Shape (n_rows, n_columns), the dtype of ``layer.value``.

    Raises
    ------
    GshwError
        If the layer was encoded for another engine.
    """
    layer.check_config(config)
    n_words = layer.geometry.n_words(config)
    blocks = np.zeros((layer.n_rows, n_words, config.lanes, config.block), dtype=layer.value.dtype)
    group, lane = np.nonzero(layer.value.any(axis=2))
    bundle = np.searchsorted(layer.bundle_ptr, group, side="right") - 1
    row = layer.row[bundle * config.rows + lane // config.lanes_per_row]
    bank = layer.bank[group, lane].astype(np.int64)
    reader = bank if config.gather is Gather.SCHEDULED else lane
    blocks[row, layer.offset[group, reader], bank] = layer.value[group, lane]
    return layer.geometry.from_blocks(config, blocks)
