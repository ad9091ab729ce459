"""Tiling: how a layer that exceeds a buffer runs as several commands.

Activations are cut into *items*: one rectangle of output pixels of one sample. All items of a
layer have the same size; each column of the engine works on its own items, and ``n_sets`` items
per column are on chip at once: inputs in the scratchpad, results in the output buffer. Weights are
cut at bundle borders into tiles that fit the group and row buffers. A bundle larger than the group
buffer is cut into parts: accumulators keep their sums from one command to the next, so its
positions run one at a time.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.image import LayerImage

N_LOOPS = 3
COUNT_WIDTH = 16
"""Bits of a loop count of the sequencer."""
COMMAND_CYCLES = 64
"""About what a command takes besides its groups."""
MORE_TILES = 8
"""How many tiles beyond the fewest are tried, to leave no set empty."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One run of the engine over the groups of a tile and a box of positions.

    Parameters
    ----------
    group_base, n_groups, record_base, n_records
        Ranges in the group and row buffers.
    read_base, write_base
        Addresses of the first position in the scratchpad and in the output buffer.
    counts
        Positions along each loop, innermost first, each 1..2**16.
    read_strides, write_strides
        Words between neighbours along each loop.
    continues
        The first bundle began in the command before: its sums go on.
    """

    group_base: int
    n_groups: int
    record_base: int
    n_records: int
    read_base: int
    write_base: int
    counts: tuple[int, int, int]
    read_strides: tuple[int, int, int]
    write_strides: tuple[int, int, int]
    continues: bool = False

    @property
    def n_positions(self) -> int:
        return self.counts[0] * self.counts[1] * self.counts[2]

    def steps(self, strides: tuple[int, ...], depth: int) -> tuple[int, ...]:
        """What the sequencer adds when loop i advances: its stride less the inner loops' travel.

        Modulo the memory's ``depth``.
        """
        travel, steps = 0, []
        for count, stride in zip(self.counts, strides, strict=True):
            steps.append((stride - travel) % depth)
            travel += (count - 1) * stride
        return tuple(steps)


@dataclass(frozen=True, kw_only=True)
class WeightTile:
    """Groups and records loaded together.

    ``starts_inside`` / ``ends_inside``: the first / last bundle has groups in a neighbouring tile.
    """

    group_start: int
    group_stop: int
    record_start: int
    record_stop: int
    bundle_start: int
    bundle_stop: int
    starts_inside: bool = False
    ends_inside: bool = False


@dataclass(frozen=True, kw_only=True)
class StreamTile:
    """Items on chip at once.

    Parameters
    ----------
    items
        Shape (n_sets, columns, 3), int64: (sample, first output row, first output column); sample
        -1 where a column has nothing to do.
    """

    items: NDArray[np.int64]


def _strip_sizes(extent: int) -> list[int]:
    return sorted({-(-extent // parts) for parts in range(1, extent + 1)}, reverse=True)


class Plan:
    """Tiling of one layer for one input size.

    Parameters
    ----------
    config, image
        The engine and the layer's memory image.
    n_samples, height, width
        Of the layer's input, before padding.
    group_cycles
        Of the port, to load a group word. Weights that do not fit their buffer are loaded again
        for every stream tile, which then takes that long at least.

    Attributes
    ----------
    item_shape
        Output pixels (height, width) of an item.
    input_shape
        Stored input pixels (height, width) of an item; its width is the pitch.
    n_sets
        Items per column on chip at once.

    Raises
    ------
    GshwError
        When even a single output pixel does not fit, naming the buffer and the excess.
    """

    def __init__(
        self,
        config: EngineConfig,
        image: LayerImage,
        n_samples: int,
        height: int,
        width: int,
        *,
        group_cycles: int = 0,
    ) -> None:
        self.config = config
        self._group_cycles = group_cycles
        self.image = image
        self.geometry = image.layer.geometry
        self.n_samples = n_samples
        self.input_words = self.geometry.words_per_pixel(config)
        self.output_words = -(-image.layer.n_rows // config.channels_per_row)
        self.output_shape = self.geometry.output_size(height, width)
        self.item_shape, self.n_sets = self._choose_items()
        self.input_shape = self._stored_shape(*self.item_shape)
        self._check_buffers()

    def _stored_shape(self, height: int, width: int) -> tuple[int, int]:
        """Stored input pixels for this many output pixels."""
        if self.geometry.unfold:
            return height, width
        shape = [
            (n - 1) * stride + dilation * (kernel - 1) + 1
            for n, stride, dilation, kernel in zip(
                (height, width),
                self.geometry.stride,
                self.geometry.dilation,
                self.geometry.kernel,
                strict=True,
            )
        ]
        return shape[0], shape[1]

    @property
    def stored_stride(self) -> tuple[int, int]:
        return (1, 1) if self.geometry.unfold else self.geometry.stride

    def _item_words(self, height: int, width: int) -> tuple[int, int]:
        """Words per bank of an item: in the scratchpad, in the output buffer."""
        stored = self._stored_shape(height, width)
        return stored[0] * stored[1] * self.input_words, height * width * self.output_words

    def _most_items(self, height: int, width: int) -> int:
        """Items of this size that are on chip at once, as far as the memories go."""
        depths = (self.config.bank_depth, self.config.output_depth)
        words = self._item_words(height, width)
        return min(depth // n for depth, n in zip(depths, words, strict=True))

    def _n_items(self, height: int, width: int) -> int:
        out_height, out_width = self.output_shape
        return self.n_samples * -(-out_height // height) * -(-out_width // width)

    def _choose_items(self) -> tuple[tuple[int, int], int]:
        """Item shape and sets of fewest cycles, about, then the largest items.

        Every stream tile runs all its sets, also when its last ones are empty.
        """
        self._check_pixel()
        n_groups = max(1, self.image.n_groups)
        n_commands = -(-n_groups // self.config.group_buffer_depth)
        overhead = COMMAND_CYCLES * n_commands
        loading = n_groups * self._group_cycles if n_commands > 1 else 0
        out_height, out_width = self.output_shape
        best: tuple[tuple[int, int], tuple[int, int], int] | None = None
        for height in _strip_sizes(out_height):
            for width in _strip_sizes(out_width):
                most = min(self._most_items(height, width), 1 << COUNT_WIDTH)
                if not most:
                    continue
                per_column = -(-self._n_items(height, width) // self.config.columns)
                fewest = -(-per_column // most)
                for n_parts in range(fewest, min(per_column, fewest + MORE_TILES) + 1):
                    n_sets = -(-per_column // n_parts)
                    n_positions = n_sets * height * width
                    n_tiles = -(-per_column // n_sets)
                    n_cycles = max(n_positions * n_groups, loading) + overhead
                    cost = (n_tiles * n_cycles, -height * width)
                    if best is None or cost < best[0]:
                        best = cost, (height, width), n_sets
        assert best is not None, "a single pixel fits"
        return best[1:]

    def _check_pixel(self) -> None:
        """A single output pixel must fit."""
        input_words, output_words = self._item_words(1, 1)
        for memory, what, key, need in (
            ("scratchpad", "window of one output pixel", "bank_depth", input_words),
            ("output buffer", "result of one output pixel", "output_depth", output_words),
        ):
            depth = getattr(self.config, key)
            if need > depth:
                raise GshwError(
                    f"layer {self.image.layer.name!r} does not fit the {memory}: the {what} needs "
                    f"{need} words per bank, {key} is {depth}: {need - depth} too many"
                )

    def _check_buffers(self) -> None:
        worst = int(self.image.drain.max())
        if worst > self.config.row_buffer_depth:
            raise GshwError(
                f"layer {self.image.layer.name!r} does not fit the row buffer: a bundle needs "
                f"{worst} records, row_buffer_depth is {self.config.row_buffer_depth}: "
                f"{worst - self.config.row_buffer_depth} too many"
            )

    @property
    def pitch(self) -> int:
        """Width in pixels of the stored input of an item."""
        return self.input_shape[1]

    @property
    def item_input_words(self) -> int:
        return self.input_shape[0] * self.input_shape[1] * self.input_words

    @property
    def item_output_words(self) -> int:
        return self.item_shape[0] * self.item_shape[1] * self.output_words

    @property
    def n_positions(self) -> int:
        """Positions of one command."""
        return self.n_sets * self.item_shape[0] * self.item_shape[1]

    @cached_property
    def weight_tiles(self) -> list[WeightTile]:
        """Tiles in execution order. With one position, tiles may cut bundles anywhere."""
        groups, records = self.image.group_ptr, self.image.record_ptr
        depth, record_depth = self.config.group_buffer_depth, self.config.row_buffer_depth
        tiles: list[WeightTile] = []
        group, bundle = 0, 0
        cut_anywhere = self.n_positions == 1
        while bundle < groups.size - 1:
            limit = np.searchsorted(groups, group + depth, side="right") - 1
            record_limit = (
                np.searchsorted(records, records[bundle] + record_depth, side="right") - 1
            )
            stop = int(min(limit, record_limit))
            whole = int(groups[stop]) if stop > bundle else group
            part = stop == limit and stop < groups.size - 1 and whole < group + depth
            if part and (cut_anywhere or stop <= bundle):
                tile_stop, ends_inside = group + depth, True
            else:
                tile_stop, ends_inside = whole, False
            tiles.append(
                WeightTile(
                    group_start=group,
                    group_stop=tile_stop,
                    record_start=int(records[bundle]),
                    record_stop=int(records[max(stop, bundle)]),
                    bundle_start=bundle,
                    bundle_stop=stop + ends_inside,
                    starts_inside=group > groups[bundle],
                    ends_inside=ends_inside,
                )
            )
            group, bundle = tile_stop, max(stop, bundle)
        return tiles

    @cached_property
    def tile_runs(self) -> list[list[WeightTile]]:
        """Tiles grouped so that a bundle's parts stay together: each run repeats per position."""
        runs: list[list[WeightTile]] = [[]]
        for tile in self.weight_tiles:
            runs[-1].append(tile)
            if not tile.ends_inside:
                runs.append([])
        return runs[:-1]

    def stream_tiles(self) -> list[StreamTile]:
        """All items, ``n_sets`` per column at a time."""
        out_height, out_width = self.output_shape
        height, width = self.item_shape
        items = np.array(
            [
                (sample, y, x)
                for sample in range(self.n_samples)
                for y in range(0, out_height, height)
                for x in range(0, out_width, width)
            ],
            dtype=np.int64,
        )
        per_tile = self.n_sets * self.config.columns
        n_tiles = self.n_stream_tiles
        padded = np.full((n_tiles * per_tile, 3), (-1, 0, 0), dtype=np.int64)
        padded[: len(items)] = items
        tiles = padded.reshape(n_tiles, self.n_sets, self.config.columns, 3)
        return [StreamTile(items=tile) for tile in tiles]

    @property
    def n_stream_tiles(self) -> int:
        return -(-self._n_items(*self.item_shape) // (self.n_sets * self.config.columns))

    def commands(self, run: list[WeightTile]) -> list[tuple[WeightTile, Command]]:
        """Commands of one run of tiles for the items on chip, in order."""
        if len(run) == 1:
            return [(run[0], self._command(run[0], None))]
        height, width = self.item_shape
        return [
            (tile, self._command(tile, (x, y, item)))
            for item in range(self.n_sets)
            for y in range(height)
            for x in range(width)
            for tile in run
        ]

    def _command(self, tile: WeightTile, position: tuple[int, int, int] | None) -> Command:
        height, width = self.item_shape
        step_y, step_x = self.stored_stride
        read = (
            step_x * self.input_words,
            step_y * self.pitch * self.input_words,
            self.item_input_words,
        )
        write = (self.output_words, width * self.output_words, self.item_output_words)
        place = position or (0, 0, 0)
        return Command(
            group_base=0,
            n_groups=tile.group_stop - tile.group_start,
            record_base=0,
            n_records=tile.record_stop - tile.record_start,
            read_base=sum(p * s for p, s in zip(place, read, strict=True)),
            write_base=sum(p * s for p, s in zip(place, write, strict=True)),
            counts=(width, height, self.n_sets) if position is None else (1, 1, 1),
            read_strides=read,
            write_strides=write,
            continues=tile.starts_inside,
        )


def stored_items(
    config: EngineConfig, geometry: Geometry, plan: Plan, x: NDArray, tile: StreamTile
) -> NDArray:
    """Scratchpad contents of a stream tile's inputs.

    Parameters
    ----------
    x
        Shape (n_samples, height, width, stored channels): padded spatially as the layer asks, or
        unfolded windows.

    Returns
    -------
    ndarray
        Shape (n_sets * item_input_words, lanes, block, columns), int64: element (address, bank,
        channel, column).
    """
    height, width = plan.input_shape
    channels = plan.input_words * config.channels_per_row
    stored = np.zeros((plan.n_sets, config.columns, height, width, channels), dtype=np.int64)
    step_y, step_x = plan.stored_stride
    for item_set in range(plan.n_sets):
        for column in range(config.columns):
            sample, y, column_x = tile.items[item_set, column]
            if sample < 0:
                continue
            part = x[
                sample,
                y * step_y : y * step_y + height,
                column_x * step_x : column_x * step_x + width,
            ]
            stored[item_set, column, : part.shape[0], : part.shape[1]] = geometry.pad_pixels(
                config, part
            )
    words = stored.reshape(
        plan.n_sets, config.columns, height * width * plan.input_words, config.lanes, config.block
    )
    return words.transpose(0, 2, 3, 4, 1).reshape(-1, config.lanes, config.block, config.columns)
