"""The engine in software, bit for bit: buffers, and what one command makes of them.

It works on unpacked group words and records, whoever packed them; it knows no layers. Requantising
is :func:`gshw.golden.requantise`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.benes import apply_switches
from gshw.config import TABLE_WORD_CODES, EngineConfig, Gather, Routing
from gshw.encoding import Requantisation
from gshw.errors import GshwError
from gshw.golden import requantise
from gshw.image import unpack_words
from gshw.layout import group_fields, record_fields
from gshw.program import Instruction

_CHUNK_PRODUCTS = 1 << 21


@dataclass(frozen=True)
class Touched:
    """Scratchpad words that a command reads, and output words that it writes (with repeats)."""

    read: NDArray[np.int64]
    written: NDArray[np.int64]


def walk_positions(
    base: int, counts: tuple[int, ...], steps: tuple[int, ...], depth: int
) -> NDArray[np.int64]:
    """Addresses of a box of positions, innermost loop first: what ``PositionLoops`` makes.

    Parameters
    ----------
    counts, steps
        Per loop; a step is added when its loop advances, while the inner loops start again.
    depth
        Addresses are modulo this.

    Returns
    -------
    ndarray
        Shape (product of the counts,), int64.
    """
    address = np.array([base], dtype=np.int64)
    travel = 0
    for count, step in zip(counts, steps, strict=True):
        stride = travel + step
        address = (address + np.arange(count)[:, None] * stride).reshape(-1)
        travel += (count - 1) * stride
    return address % depth


def _wrap(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Two's complement of ``width`` bits."""
    half = 1 << (width - 1)
    return ((values + half) & ((1 << width) - 1)) - half


class EngineModel:
    """Scratchpad, group, row and output buffers of an engine.

    Attributes
    ----------
    scratchpad, output
        Shape (depth * channels_per_row, columns), int64: codes as unsigned bits. Channel n of the
        row at word w is element ``w * channels_per_row + n``.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        row = config.channels_per_row
        self.scratchpad = np.zeros((config.bank_depth * row, config.columns), dtype=np.int64)
        self.output = np.zeros((config.output_depth * row, config.columns), dtype=np.int64)
        depth = config.group_buffer_depth
        # A filler of weights 0 at offset 0 stands where no group was loaded.
        self._drain = np.zeros(depth, dtype=np.int64)
        self._block = np.tile(np.arange(config.lanes), (depth, 1))
        self._weight = np.zeros((depth, config.lanes * config.block), dtype=np.int64)
        self._records = {
            f.name: np.zeros((config.row_buffer_depth, f.count), dtype=np.int64)
            for f in record_fields(config)
        }
        self._tables = np.zeros((config.activation_tables, 1 << config.activation_width), np.int64)
        self._sums = np.zeros((config.rows, config.columns), dtype=np.int64)

    def load_groups(self, entry: int, words: NDArray[np.uint32]) -> None:
        """Put group words, shape (n, limbs), into the buffer."""
        config = self.config
        values = unpack_words(group_fields(config), words)
        where = slice(entry, entry + len(words))
        bank = np.tile(np.arange(config.lanes), (len(words), 1))
        if config.gather is Gather.ARBITRATED or config.routing is Routing.CROSSBAR:
            bank = values["bank"]
        elif config.routing is Routing.BENES:
            bank = apply_switches(bank, values["switch"])
        offset, weight = values["offset"], values["weight"]
        if config.gather is Gather.ARBITRATED:
            weight = weight * np.repeat(values["active"], config.block, axis=1)
        else:
            offset = np.take_along_axis(offset, bank, axis=1)
        self._drain[where] = values["drain"][:, 0]
        self._block[where] = offset * config.lanes + bank
        self._weight[where] = weight

    def load_records(self, entry: int, words: NDArray[np.uint32]) -> None:
        """Put records, shape (n, limbs), into the buffer; from ``table_base`` on, tables."""
        if self.config.activation_tables and entry >= self.config.table_base:
            self._load_tables(entry - self.config.table_base, words)
            return
        for name, values in unpack_words(record_fields(self.config), words).items():
            self._records[name][entry : entry + len(words)] = values

    def _load_tables(self, word: int, words: NDArray[np.uint32]) -> None:
        width = self.config.activation_width
        shifts = width * np.arange(TABLE_WORD_CODES)
        codes = words[:, :1].astype(np.int64) >> shifts & ((1 << width) - 1)
        flat = self._tables.reshape(-1)
        flat[word * TABLE_WORD_CODES :][: codes.size] = codes.reshape(-1)

    def run(self, command: Instruction) -> Touched:
        """Execute a ``run`` instruction.

        Raises
        ------
        GshwError
            For a range outside a buffer, an address beyond a bank, drain counts that do not match
            the records, and parameters that no encoder makes.
        """
        config = self.config
        self._check_ranges(command)
        counts = tuple(command[f"count_less_1_{i}"] + 1 for i in range(3))
        read, write = (
            walk_positions(
                command[f"{kind}_base"],
                counts,
                tuple(command[f"{kind}_step_{i}"] for i in range(3)),
                depth,
            )
            for kind, depth in (("read", config.bank_depth), ("write", config.output_depth))
        )
        groups = slice(command["group_base"], command["group_base"] + command["n_groups"])
        block = self._block[groups]
        furthest = int(read.max() + block.max() // config.lanes)
        if furthest >= config.bank_depth:
            raise GshwError(
                f"base plus offset must be below bank_depth = {config.bank_depth}, not {furthest}"
            )
        reduce = np.maximum if command["maximum"] else np.add
        sums = self._bundle_sums(groups, read, bool(command["signed_input"]), reduce)
        done = self._carry(sums, groups, bool(command["continues"]), reduce)
        words = np.unique(block // config.lanes)
        touched = (read[:, None] + words).reshape(-1)
        return Touched(read=np.unique(touched), written=self._drain_bundles(command, done, write))

    def _check_ranges(self, command: Instruction) -> None:
        config = self.config
        if command["maximum"] and not config.max_pooling:
            raise GshwError("maximum needs max_pooling = true in the config")
        if command["table"] > config.activation_tables:
            raise GshwError(
                f"table must be at most activation_tables = {config.activation_tables}, "
                f"not {command['table']}"
            )
        for name, count, depth, key in (
            ("group_base", "n_groups", config.group_buffer_depth, "group_buffer_depth"),
            ("record_base", "n_records", config.row_buffer_depth, "row_buffer_depth"),
        ):
            stop = command[name] + command[count]
            if stop > depth:
                raise GshwError(f"{name} + {count} must be at most {key} = {depth}, not {stop}")
            if command[name] >= depth:
                raise GshwError(f"{name} must be below {key} = {depth}, not {command[name]}")
        for kind, depth, key in (
            ("read", config.bank_depth, "bank_depth"),
            ("write", config.output_depth, "output_depth"),
        ):
            for name in (f"{kind}_base", *(f"{kind}_step_{i}" for i in range(3))):
                if command[name] >= depth:
                    raise GshwError(f"{name} must be below {key} = {depth}, not {command[name]}")
        limit = 1 << config.activation_width
        if not -limit <= command["low"] <= command["high"] < limit:
            raise GshwError(
                f"low and high must rise within {-limit}..{limit - 1}, not "
                f"{command['low']}..{command['high']}"
            )
        drains = int(self._drain[command["group_base"] :][: command["n_groups"]].sum())
        if drains != command["n_records"]:
            raise GshwError(
                f"n_records must be the {drains} records that the groups drain, "
                f"not {command['n_records']}"
            )

    def _bundle_sums(
        self, groups: slice, read: NDArray[np.int64], signed_input: bool, reduce: np.ufunc
    ) -> NDArray[np.int64]:
        """Sums of every bundle at every position: (n_positions, n_bundles, rows, columns).

        The last bundle may be unfinished. ``reduce`` joins groups: a sum or a maximum from 0 on.
        """
        config = self.config
        ends = self._drain[groups] > 0
        bundle = np.cumsum(ends) - ends
        block, weight = self._block[groups], self._weight[groups]
        channel = (block[:, :, None] * config.block + np.arange(config.block)).reshape(
            len(block), -1
        )
        sums = np.zeros(
            (read.size, int(bundle[-1]) + 1, config.rows, config.columns), dtype=np.int64
        )
        n_groups = max(1, min(len(block), _CHUNK_PRODUCTS // (channel.shape[1] * config.columns)))
        n_positions = max(1, _CHUNK_PRODUCTS // (n_groups * channel.shape[1] * config.columns))
        for first in range(0, len(block), n_groups):
            some = slice(first, first + n_groups)
            starts = np.flatnonzero(np.diff(bundle[some], prepend=-1))
            for position in range(0, read.size, n_positions):
                here = slice(position, position + n_positions)
                base = read[here, None, None] * config.channels_per_row
                codes = self.scratchpad[base + channel[some]]
                if signed_input:
                    codes = _wrap(codes, config.activation_width)
                products = codes * weight[some][:, :, None]
                rows = products.reshape(*products.shape[:2], config.rows, -1, config.columns)
                partial = reduce.reduceat(rows.sum(axis=3), starts, axis=1)
                where = (here, bundle[some][starts])
                sums[where] = reduce(sums[where], partial)
        return sums

    def _carry(
        self, sums: NDArray[np.int64], groups: slice, continues: bool, reduce: np.ufunc
    ) -> NDArray[np.int64]:
        """Join a bundle's parts over passes and commands; returns the finished bundles' sums."""
        before = self._sums if continues else np.zeros_like(self._sums)
        if self._drain[groups][-1]:
            sums[0, 0] = reduce(sums[0, 0], before)
            self._sums = np.zeros_like(self._sums)
            return sums
        if sums.shape[1] == 1:
            self._sums = reduce(before, reduce.reduce(sums[:, 0], axis=0))
            return sums[:, :0]
        sums[0, 0] = reduce(sums[0, 0], before)
        sums[1:, 0] = reduce(sums[1:, 0], sums[:-1, -1])
        self._sums = sums[-1, -1].copy()
        return sums[:, :-1]

    def _drain_bundles(
        self, command: Instruction, sums: NDArray[np.int64], write: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Requantise and scatter finished bundles; returns the output words written."""
        config = self.config
        drain = self._drain[command["group_base"] :][: command["n_groups"]]
        drain = drain[drain > 0]
        records = {
            name: values[command["record_base"] :][: command["n_records"]]
            for name, values in self._records.items()
        }
        bundle = np.repeat(np.arange(drain.size), drain)
        advanced = np.cumsum(records["advance"][:, 0]) - records["advance"][:, 0]
        first = np.cumsum(drain) - drain
        part = advanced - advanced[first][bundle] if drain.size else advanced
        record, place = np.nonzero(records["valid"])
        row = part[record] * config.drain_rows + place
        if row.size and row.max() >= config.rows:
            raise GshwError(f"a bundle must drain {config.rows} rows at most, not {row.max() + 1}")
        picked = {name: records[name][record, place] for name in ("multiplier", "shift", "row")}
        if ((picked["shift"] < 1) | (picked["shift"] > 47)).any():
            bad = picked["shift"][(picked["shift"] < 1) | (picked["shift"] > 47)][0]
            raise GshwError(f"shift of a record must be from 1 to 47, not {bad}")
        bias = records["bias"][record, place]
        width = config.accumulator_width
        acc = _wrap(sums[:, bundle[record], row], width).transpose(0, 2, 1) + bias
        stage = Requantisation(
            bias=bias,
            multiplier=picked["multiplier"],
            shift=picked["shift"],
            low=command["low"],
            high=command["high"],
        )
        codes = requantise(_wrap(acc, width), stage) & ((1 << config.activation_width) - 1)
        if command["table"]:
            codes = self._tables[command["table"] - 1][codes]
        words = (write[:, None] + picked["row"] // config.channels_per_row).reshape(-1)
        if words.size and words.max() >= config.output_depth:
            raise GshwError(
                f"base plus result word must be below output_depth = {config.output_depth}, "
                f"not {words.max()}"
            )
        element = write[:, None] * config.channels_per_row + picked["row"]
        self.output[element] = codes.transpose(0, 2, 1)
        return np.unique(words)
