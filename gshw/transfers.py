"""Loads, fills and stores of activation tiles: as few runs and instructions as the shape allows.

A tensor in memory is channel-last: element (sample, y, x, channel) at pixel
``(sample * height + y) * width + x``, a pixel taking whole bytes.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.errors import GshwError
from gshw.plan import Plan, StreamTile
from gshw.program import Opcode

LATENCY_CYCLES = 40
"""Estimated time from a load's or store's start to its first byte and from its last to its end."""
_MAX_COUNT = (1 << 16) - 1
_MAX_RUN_BYTES = (1 << 24) - 1

Loop = tuple[int, int, int]
"""Count, stride in memory bytes, stride in buffer words."""


@dataclass(frozen=True)
class Transfer:
    """An instruction of the load or store unit: its fields, and its estimated cycles."""

    opcode: Opcode
    values: dict[str, int]
    n_cycles: int


@dataclass(frozen=True)
class TensorLayout:
    """A tensor in memory, or some pixels or channels of one.

    Parameters
    ----------
    address
        Of its first byte.
    shape
        (n_samples, height, width, channels).
    run_bytes
        Of one pixel's channels.
    strides
        Bytes from one sample, line and pixel to the next.
    """

    address: int
    shape: tuple[int, int, int, int]
    run_bytes: int
    strides: tuple[int, int, int]

    @property
    def n_bytes(self) -> int:
        """From the first byte to the last one's end."""
        last = sum((n - 1) * s for n, s in zip(self.shape[:3], self.strides, strict=True))
        return last + self.run_bytes

    def offset(self, sample: int, y: int, x: int) -> int:
        """Bytes from the tensor's start to a pixel."""
        return sample * self.strides[0] + y * self.strides[1] + x * self.strides[2]

    def window(self, start: tuple[int, int], size: tuple[int, int] | None) -> "TensorLayout":
        """A rectangle of its pixels; no size: all from the start on."""
        if size is None:
            size = self.shape[1] - start[0], self.shape[2] - start[1]
        shape = (self.shape[0], *size, self.shape[3])
        return replace(self, address=self.address + self.offset(0, *start), shape=shape)

    def every(self, step: tuple[int, int]) -> "TensorLayout":
        """Every ``step``-th line and pixel, from the first on."""
        samples, height, width, channels = self.shape
        shape = (samples, -(-height // step[0]), -(-width // step[1]), channels)
        sample, line, pixel = self.strides
        return replace(self, shape=shape, strides=(sample, line * step[0], pixel * step[1]))

    def folded(self, fold: int) -> "TensorLayout":
        """Its one line as ``fold`` lines, of every ``fold``-th pixel each."""
        if fold == 1:
            return self
        samples, _, width, channels = self.shape
        sample, _, pixel = self.strides
        shape = (samples, fold, width // fold, channels)
        return replace(self, shape=shape, strides=(sample, pixel, pixel * fold))

    def part(self, config: Config, first: int, channels: int) -> "TensorLayout":
        """Some channels of it.

        Raises
        ------
        GshwError
            Where they do not begin at a whole byte.
        """
        start, rest = divmod(first * config.engine.activation_width, 8)
        if rest:
            raise GshwError(f"channels from {first} on must begin at a whole byte of the pixel")
        shape = (*self.shape[:3], channels)
        run_bytes = _channel_bytes(config, channels)
        return replace(self, address=self.address + start, shape=shape, run_bytes=run_bytes)


def _channel_bytes(config: Config, n_channels: int) -> int:
    return -(-n_channels * config.engine.activation_width // 8)


def tensor_layout(config: Config, shape: tuple[int, int, int, int], address: int) -> TensorLayout:
    """Channel-last, every pixel in whole bytes."""
    (layout,) = part_layouts(config, shape[:3], (shape[3],), address)
    return layout


def part_layouts(
    config: Config, size: tuple[int, int, int], channels: Sequence[int], address: int
) -> tuple[TensorLayout, ...]:
    """Parts of one channel-last tensor, each in whole bytes.

    Parameters
    ----------
    size
        (n_samples, height, width).
    channels
        Of each part.
    """
    run_bytes = [_channel_bytes(config, n) for n in channels]
    pixel = sum(run_bytes)
    strides = (size[1] * size[2] * pixel, size[2] * pixel, pixel)
    starts = itertools.accumulate(run_bytes, initial=address)
    return tuple(
        TensorLayout(start, (*size, n), length, strides)
        for start, n, length in zip(starts, channels, run_bytes, strict=False)
    )


def joined_parts(parts: Sequence[TensorLayout]) -> TensorLayout:
    """The whole of what :func:`part_layouts` cut up."""
    channels = sum(part.shape[3] for part in parts)
    run_bytes = sum(part.run_bytes for part in parts)
    return replace(parts[0], shape=(*parts[0].shape[:3], channels), run_bytes=run_bytes)


@dataclass(frozen=True)
class Rectangle:
    """Stored pixels of an item: rows ``top:bottom``, columns ``left:right``."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def empty(self) -> bool:
        return self.top >= self.bottom or self.left >= self.right

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


def merge_loops(
    run: int, run_words: int | None, loops: Sequence[Loop], largest_run: int
) -> tuple[int, list[Loop]]:
    """Join loops that walk on where the loop within ends.

    Parameters
    ----------
    run
        Bytes of a run.
    run_words
        Buffer words that a run fills exactly; None where it ends within a row.
    loops
        Innermost first.

    Returns
    -------
    tuple
        Bytes of a run, and the loops left, none of a single turn.
    """
    merged: list[Loop] = []
    for count, stride, words in loops:
        if count == 1:
            continue
        if (
            not merged
            and run_words is not None
            and (stride, words) == (run, run_words)
            and run * count <= largest_run
        ):
            run, run_words = run * count, run_words * count
        elif (
            merged
            and (stride, words) == (merged[-1][0] * merged[-1][1], merged[-1][0] * merged[-1][2])
            and merged[-1][0] * count <= _MAX_COUNT
        ):
            merged[-1] = (merged[-1][0] * count, *merged[-1][1:])
        else:
            merged.append((count, stride, words))
    return run, merged


def split_loops(loops: Sequence[Loop]) -> Iterator[tuple[int, int, Loop, Loop]]:
    """Cut loops into instructions: (bytes and words to add, inner and outer loop)."""
    inner: list[list[Loop]] = [
        [
            (min(_MAX_COUNT, count - start), start * stride, start * words)
            for start in range(0, count, _MAX_COUNT)
        ]
        for count, stride, words in loops[:2]
    ]
    inner += [[(1, 0, 0)]] * (2 - len(inner))
    strides = [loop[1:] for loop in loops[:2]] + [(0, 0)] * (2 - len(loops[:2]))
    outer = [
        [(index * stride, index * words) for index in range(count)]
        for count, stride, words in loops[2:]
    ]
    for places in itertools.product(*reversed(outer)):
        for second, first in itertools.product(inner[1], inner[0]):
            yield (
                sum(place[0] for place in places) + first[1] + second[1],
                sum(place[1] for place in places) + first[2] + second[2],
                (first[0], *strides[0]),
                (second[0], *strides[1]),
            )


def _equal_steps(places: list[tuple[int, object, int]]) -> Iterator[tuple[int, object, int, Loop]]:
    """Join neighbouring sets of one kind at equal distances in memory.

    Parameters
    ----------
    places
        (set, kind, memory offset), by rising set.

    Yields
    ------
    tuple
        First set, kind, its memory offset, and the loop over sets (words per set: 1).
    """
    start = 0
    while start < len(places):
        stop = start + 1
        while (
            stop < len(places)
            and places[stop][0] == places[stop - 1][0] + 1
            and places[stop][1] == places[start][1]
            and places[stop][2] - places[stop - 1][2] == places[start + 1][2] - places[start][2]
        ):
            stop += 1
        stride = places[start + 1][2] - places[start][2] if stop - start > 1 else 0
        first, kind, offset = places[start]
        yield first, kind, offset, (stop - start, stride, 1)
        start = stop


class Transfers:
    """What moves the activations of a layer's stream tiles.

    Parameters
    ----------
    config, plan
        What tiles there are.
    sources
        The layer's input in memory, one per part; of unfolded layers it holds the windows.
    result
        Its output.
    """

    def __init__(
        self, config: Config, plan: Plan, sources: Sequence[TensorLayout], result: TensorLayout
    ) -> None:
        self.config, self.plan, self.sources, self.result = config, plan, sources, result
        engine = config.engine
        self._part_words = plan.geometry.part_words(engine)
        self._part_starts = tuple(itertools.accumulate(self._part_words, initial=0))[:-1]
        self._zero = np.zeros((engine.columns, engine.bank_depth), dtype=np.bool_)

    def _instructions(
        self,
        opcode: Opcode,
        address: int,
        word: int,
        run: int,
        loops: Sequence[Loop],
        column: dict[str, int],
    ) -> Iterator[Transfer]:
        """Instructions of merged loops; ``column`` is the field that names columns."""
        buffer = "source" if opcode is Opcode.STORE else "target"
        for n_bytes, n_words, inner, outer in split_loops(loops):
            values = {buffer: word + n_words, "count_0": inner[0], "count_1": outer[0]} | column
            values |= {f"{buffer}_stride_0": inner[2], f"{buffer}_stride_1": outer[2]}
            n_runs = inner[0] * outer[0]
            if opcode is Opcode.FILL:
                yield Transfer(opcode, values | {"n_words": run}, run * n_runs)
                continue
            values |= {"address": address + n_bytes, "run_bytes": run}
            values |= {"memory_stride_0": inner[1], "memory_stride_1": outer[1]}
            n_beats = -(-run // self.config.bus.data_bytes)
            yield Transfer(opcode, values, n_beats * n_runs + LATENCY_CYCLES)

    # --- load --------------------------------------------------------------------------------

    def _rectangles(
        self, item: NDArray[np.int64]
    ) -> tuple[Rectangle, list[Rectangle], tuple[int, int, int]]:
        """Of one item: the pixels in memory, the padding around them, and the first's place."""
        geometry = self.plan.geometry
        padding = (0, 0) if geometry.unfold else geometry.padding
        sample, *corner = (int(n) for n in item)
        needed, low, high, first = [], [], [], []
        for axis in range(2):
            start = corner[axis] * self.plan.stored_stride[axis] - padding[axis]
            extent = self.sources[0].shape[1 + axis]
            needed.append(min(self.plan.input_shape[axis], extent + padding[axis] - start))
            low.append(min(max(0, -start), needed[axis]))
            high.append(max(low[axis], min(needed[axis], extent - start)))
            first.append(start + low[axis])
        inside = Rectangle(low[0], high[0], low[1], high[1])
        around = [
            Rectangle(0, low[0], 0, self.plan.pitch),
            Rectangle(high[0], needed[0], 0, self.plan.pitch),
            Rectangle(low[0], high[0], 0, low[1]),
            Rectangle(low[0], high[0], high[1], needed[1]),
        ]
        return inside, [part for part in around if not part.empty], (sample, first[0], first[1])

    def loads(self, tile: StreamTile, base: int) -> list[Transfer]:
        """Fill the padding of a tile's items and load the rest to the scratchpad at ``base``.

        Padding that is known to be 0 from the tile before in the same place is left alone.
        """
        plan = self.plan
        height, width = plan.input_shape
        loads: list[Transfer] = []
        fills: dict[Rectangle, list[int]] = {}
        words = plan.item_input_words
        for column in range(self.config.engine.columns):
            items = self._zero[column, base : base + plan.n_sets * words].reshape(
                plan.n_sets, height, width, plan.input_words
            )
            places: list[tuple[int, Rectangle, tuple[int, int, int]]] = []
            for item_set, item in enumerate(tile.items[:, column]):
                if item[0] < 0:
                    continue
                inside, around, pixel = self._rectangles(item)
                for part in around:
                    if not items[item_set][part.slices].all():
                        masks = fills.setdefault(part, [0] * plan.n_sets)
                        masks[item_set] |= 1 << column
                        items[item_set][part.slices] = True
                if not inside.empty:
                    places.append((item_set, inside, pixel))
                    items[item_set][inside.slices] = False
            for part, source in enumerate(self.sources):
                offsets: list[tuple[int, object, int]] = [
                    (item_set, inside, source.offset(*pixel)) for item_set, inside, pixel in places
                ]
                for first, kind, offset, sets in _equal_steps(offsets):
                    assert isinstance(kind, Rectangle)
                    loads += self._load(base + first * words, part, column, kind, offset, sets)
        return self._fills(base, fills) + loads

    def _load(
        self, word: int, part: int, column: int, inside: Rectangle, offset: int, sets: Loop
    ) -> Iterator[Transfer]:
        plan, source = self.plan, self.sources[part]
        run, loops = _pixel_loops(
            self.config,
            source,
            (inside.bottom - inside.top, inside.right - inside.left),
            plan.pitch,
            self._part_words[part],
            plan.input_words,
            (*sets[:2], plan.item_input_words),
        )
        corner = (inside.top * plan.pitch + inside.left) * plan.input_words
        return self._instructions(
            Opcode.LOAD_ACTIVATIONS,
            source.address + offset,
            word + corner + self._part_starts[part],
            run,
            loops,
            {"columns": 1 << column},
        )

    def _fills(self, base: int, fills: dict[Rectangle, list[int]]) -> list[Transfer]:
        plan, transfers = self.plan, []
        line_words = plan.pitch * plan.input_words
        for part, masks in fills.items():
            places: list[tuple[int, object, int]] = [
                (item_set, mask, 0) for item_set, mask in enumerate(masks) if mask
            ]
            for first, mask, _, sets in _equal_steps(places):
                assert isinstance(mask, int)
                n_words = (part.right - part.left) * plan.input_words
                corner = part.top * line_words + part.left * plan.input_words
                # In words both times, so that the loops merge as they lie in the buffer.
                run, loops = merge_loops(
                    n_words,
                    n_words,
                    [
                        (part.bottom - part.top, line_words, line_words),
                        (sets[0], plan.item_input_words, plan.item_input_words),
                    ],
                    _MAX_COUNT,
                )
                word = base + first * plan.item_input_words + corner
                transfers += self._instructions(Opcode.FILL, 0, word, run, loops, {"columns": mask})
        return transfers

    # --- store -------------------------------------------------------------------------------

    def stores(self, tile: StreamTile, base: int) -> list[Transfer]:
        """Store a tile's results, which lie in the output buffer from ``base`` on."""
        plan = self.plan
        stores: list[Transfer] = []
        for column in range(self.config.engine.columns):
            places: list[tuple[int, object, int]] = []
            for item_set, (sample, y, x) in enumerate(tile.items[:, column].tolist()):
                if sample < 0:
                    continue
                size = (
                    min(plan.item_shape[0], plan.output_shape[0] - y),
                    min(plan.item_shape[1], plan.output_shape[1] - x),
                )
                places.append((item_set, size, self.result.offset(sample, y, x)))
            for first, size, offset, sets in _equal_steps(places):
                assert isinstance(size, tuple)
                run, loops = _pixel_loops(
                    self.config,
                    self.result,
                    size,
                    plan.item_shape[1],
                    plan.output_words,
                    plan.output_words,
                    (*sets[:2], plan.item_output_words),
                )
                stores += self._instructions(
                    Opcode.STORE,
                    self.result.address + offset,
                    base + first * plan.item_output_words,
                    run,
                    loops,
                    {"column": column},
                )
        return stores


def _pixel_loops(
    config: Config,
    tensor: TensorLayout,
    size: tuple[int, int],
    pitch: int,
    run_words: int,
    pixel_words: int,
    sets: Loop,
) -> tuple[int, list[Loop]]:
    """Run and loops of a rectangle of pixels, for ``sets`` items of it.

    Parameters
    ----------
    size
        Pixels (height, width).
    pitch
        Pixels of a line in the buffer.
    run_words, pixel_words
        Words that the tensor fills of a pixel, and words of a pixel.
    """
    fills_rows = tensor.shape[3] % config.engine.channels_per_row == 0
    _, line, pixel = tensor.strides
    return merge_loops(
        tensor.run_bytes,
        run_words if fills_rows else None,
        [
            (size[1], pixel, pixel_words),
            (size[0], line, pitch * pixel_words),
            sets,
        ],
        _MAX_RUN_BYTES,
    )


def input_shape(plan: Plan, height: int, width: int) -> tuple[int, int]:
    """Pixels of the tensor that the program loads: for an unfolded layer one per window."""
    return plan.output_shape if plan.geometry.unfold else (height, width)
