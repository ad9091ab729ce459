"""Shapes of layers, and where a weight column lives in the scratchpad.

Columns of a weight matrix are ordered (kernel row, kernel column, input channel). Each pixel's
channels are padded to whole scratchpad rows (``lanes * block`` channels), so a column's bank does
not depend on the position, and a mask that is conflict-free once is conflict-free everywhere.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.errors import GshwError


class LayerKind(enum.Enum):
    """What the float layer was; the engine runs all of them as one matrix."""

    LINEAR = "linear"
    CONV1D = "conv1d"
    CONV2D = "conv2d"


@dataclass(frozen=True)
class Part:
    """Input channels that come from one tensor.

    Parameters
    ----------
    channels
        How many.
    repeats
        How often the matrix has their columns; they are stored once. So a weight may be the sum
        of several codes.
    """

    channels: int
    repeats: int = 1

    def __post_init__(self) -> None:
        for key in ("channels", "repeats"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise GshwError(f"{key} of a part must be an integer of at least 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One layer's input channels and window, as (height, width) pairs.

    Parameters
    ----------
    kind
        Linear and Conv1d use windows of height 1.
    in_channels
        Input channels of the float layer.
    kernel, stride, padding, dilation
        As torch: (height, width). Linear: all ones, padding zero.
    unfold
        The driver hands each window as one pixel of ``kernel * in_channels`` channels (im2col).
        For layers with fewer channels than banks, whose taps would all fall on a few banks.
    parts
        Where the input channels come from, in order; each part begins a scratchpad row of its
        own. Columns of a tap are ordered (part, repeat, channel). Empty: all from one tensor.
    """

    kind: LayerKind
    in_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    unfold: bool = False
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        pairs = (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
        for key, low in pairs:
            value = getattr(self, key)
            if len(value) != 2 or any(not isinstance(v, int) or v < low for v in value):
                raise GshwError(f"{key} must be two integers of at least {low}, not {value}")
        if self.in_channels < 1:
            raise GshwError(f"in_channels must be at least 1, not {self.in_channels}")
        total = sum(part.channels for part in self.parts)
        if self.parts and total != self.in_channels:
            raise GshwError(f"parts must have in_channels = {self.in_channels}, not {total}")
        if self.parts and self.unfold:
            raise GshwError("an unfolded layer must have no parts")

    @staticmethod
    def linear(in_features: int) -> "Geometry":
        """Geometry of a fully connected layer."""
        return Geometry(kind=LayerKind.LINEAR, in_channels=in_features)

    def unfolded_if_smaller(self, config: EngineConfig) -> "Geometry":
        """The same window unfolded, where that halves the padded columns at least."""
        unfolded = replace(self, unfold=True)
        return unfolded if 2 * unfolded.n_words(config) <= self.n_words(config) else self

    @property
    def n_taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def n_columns(self) -> int:
        """Columns of the weight matrix: taps times input channels, repeats included."""
        return self.n_taps * sum(part.channels * part.repeats for part in self._input_parts)

    @property
    def _input_parts(self) -> tuple[Part, ...]:
        return self.parts or (Part(self.in_channels),)

    @property
    def _stored_parts(self) -> tuple[Part, ...]:
        return self.parts or (Part(self.stored_channels),)

    @property
    def column_channels(self) -> NDArray[np.int64]:
        """Input channel of every column of a tap."""
        pieces, start = [], 0
        for part in self._input_parts:
            pieces += [np.arange(start, start + part.channels)] * part.repeats
            start += part.channels
        return np.concatenate(pieces)

    @property
    def stored_kernel(self) -> tuple[int, int]:
        """Window as the scratchpad sees it: (1, 1) when unfolded."""
        return (1, 1) if self.unfold else self.kernel

    @property
    def stored_channels(self) -> int:
        """Channels of one pixel in the scratchpad, before padding."""
        return self.n_taps * self.in_channels if self.unfold else self.in_channels

    @property
    def stored_part_channels(self) -> tuple[int, ...]:
        """Channels of every part of a stored pixel, before padding."""
        return tuple(part.channels for part in self._stored_parts)

    def part_words(self, config: EngineConfig) -> tuple[int, ...]:
        """Scratchpad rows that each part of a pixel takes."""
        return tuple(-(-part.channels // config.channels_per_row) for part in self._stored_parts)

    def words_per_pixel(self, config: EngineConfig) -> int:
        """Scratchpad rows that one input pixel takes."""
        return sum(self.part_words(config))

    def column_words(self, config: EngineConfig) -> NDArray[np.int64]:
        """Scratchpad row, within a pixel, of every column word of a stored tap."""
        pieces, start = [], 0
        for part, n_words in zip(self._stored_parts, self.part_words(config), strict=True):
            pieces += [np.arange(start, start + n_words)] * part.repeats
            start += n_words
        return np.concatenate(pieces)

    def n_words(self, config: EngineConfig) -> int:
        """Column words per bank: one for every stored tap, word of a pixel, and repeat."""
        return self.stored_kernel[0] * self.stored_kernel[1] * self.column_words(config).size

    def pad_pixels(self, config: EngineConfig, x: NDArray) -> NDArray:
        """Fill every part up to whole scratchpad rows.

        Parameters
        ----------
        x
            Shape (..., stored_channels).

        Returns
        -------
        ndarray
            Shape (..., words_per_pixel * channels_per_row).
        """
        pieces, start = [], 0
        for part, n_words in zip(self._stored_parts, self.part_words(config), strict=True):
            spare = n_words * config.channels_per_row - part.channels
            piece = x[..., start : start + part.channels]
            pieces.append(np.pad(piece, [(0, 0)] * (x.ndim - 1) + [(0, spare)]))
            start += part.channels
        return np.concatenate(pieces, axis=-1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output pixels (height, width) for an input of this size.

        Raises
        ------
        GshwError
            When the window does not fit the padded input.
        """
        size = []
        for axis, extent in enumerate((height, width)):
            span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            free = extent + 2 * self.padding[axis] - span
            if free < 0:
                raise GshwError(
                    f"input of {height} x {width} pixels is smaller than the window "
                    f"({span} along axis {axis}, padding {self.padding[axis]})"
                )
            size.append(free // self.stride[axis] + 1)
        return size[0], size[1]

    def to_blocks(self, config: EngineConfig, matrix: NDArray) -> NDArray:
        """Lay a (n_rows, n_columns) matrix out in blocks, padding channels with zeros.

        Returns
        -------
        ndarray
            Shape (n_rows, n_words, lanes, block), the matrix's dtype: element (row, word, bank,
            channel). ``word`` counts (tap, word of the pixel).
        """
        n_rows, n_columns = matrix.shape
        if n_columns != self.n_columns:
            raise GshwError(f"matrix must have {self.n_columns} columns, not {n_columns}")
        stored_taps = self.stored_kernel[0] * self.stored_kernel[1]
        n_words = self.n_words(config)
        shape = (n_rows, n_words, config.lanes, config.block)
        if n_columns == n_words * config.channels_per_row:
            return np.ascontiguousarray(matrix).reshape(shape)
        columns = matrix.reshape(n_rows, stored_taps, -1)
        blocks = np.zeros(
            (n_rows, stored_taps, n_words // stored_taps * config.channels_per_row),
            dtype=matrix.dtype,
        )
        for source, target in self._column_slices(config):
            blocks[:, :, target] = columns[:, :, source]
        return blocks.reshape(shape)

    def from_blocks(self, config: EngineConfig, blocks: NDArray) -> NDArray:
        """Inverse of :meth:`to_blocks`: drop the padding channels."""
        stored_taps = self.stored_kernel[0] * self.stored_kernel[1]
        flat = blocks.reshape(blocks.shape[0], stored_taps, -1)
        pieces = [flat[:, :, target] for _, target in self._column_slices(config)]
        return np.concatenate(pieces, axis=2).reshape(blocks.shape[0], self.n_columns)

    def _column_slices(self, config: EngineConfig) -> Iterator[tuple[slice, slice]]:
        """Of every part and repeat: its columns of a stored tap, without and with padding."""
        source = target = 0
        for part, n_words in zip(self._stored_parts, self.part_words(config), strict=True):
            for _ in range(part.repeats):
                yield (
                    slice(source, source + part.channels),
                    slice(target, target + part.channels),
                )
                source += part.channels
                target += n_words * config.channels_per_row

    def word_offsets(self, config: EngineConfig, pitch: int) -> NDArray[np.int64]:
        """Scratchpad offset of each column word for a stored map ``pitch`` pixels wide.

        Returns
        -------
        ndarray
            Shape (n_words,), int64: ``(ky * dilation * pitch + kx * dilation) * words + word``,
            the word being that of :meth:`column_words`.
        """
        words = self.words_per_pixel(config)
        height, width = self.stored_kernel
        pixel = (
            np.arange(height)[:, None] * self.dilation[0] * pitch
            + np.arange(width)[None, :] * self.dilation[1]
        )
        return (pixel.reshape(-1, 1) * words + self.column_words(config)).reshape(-1)


def conv_matrix(weight: NDArray) -> NDArray:
    """Flatten a channel-first convolution weight to (out, kernel row, kernel column, in).

    Parameters
    ----------
    weight
        Shape (n_out, n_in, height, width), or (n_out, n_in, width) for one dimension, or
        (n_out, n_in) for a linear layer.

    Returns
    -------
    ndarray
        Shape (n_out, height * width * n_in).
    """
    if weight.ndim == 2:
        return weight
    if weight.ndim == 3:
        weight = weight[:, :, None, :]
    return weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)
