"""The golden model: what the numbers are, exactly.

acc = bias + sum(w * x) over integers (or the largest w * x, at least 0, for a maximum), then
``y = clamp((acc * multiplier + 2**(shift - 1)) >> shift, low, high)`` with an arithmetic shift, and
where the layer has a table, ``y`` is replaced by the entry whose number is the bits of ``y``.
The RTL, the documentation and this module say the same.
"""

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import EncodedLayer, Requantisation, decode_weights
from gshw.errors import GshwError
from gshw.geometry import Geometry


def requantise(acc: NDArray[np.int64], requantisation: Requantisation) -> NDArray[np.int64]:
    """Accumulators to output codes; ties round towards +infinity.

    Parameters
    ----------
    acc
        Shape (..., n_rows), int64, bias included, within 32 bits.
    """
    half = np.int64(1) << (requantisation.shift - 1)
    scaled = (acc * requantisation.multiplier + half) >> requantisation.shift
    codes = np.clip(scaled, requantisation.low, requantisation.high)
    table = requantisation.table
    return codes if table is None else table[codes & (table.size - 1)]


def check_activations(
    config: EngineConfig, layer: EncodedLayer, activations: NDArray
) -> NDArray[np.int64]:
    """Validate a layer's input.

    Parameters
    ----------
    activations
        Shape (n_samples, height, width, in_channels), integers; (n_samples, in_channels) for a
        linear layer and (n_samples, width, in_channels) for Conv1d are widened.

    Returns
    -------
    ndarray
        Shape (n_samples, height, width, in_channels), int64.

    Raises
    ------
    GshwError
        For a wrong shape or dtype, or a code outside the layer's activation range.
    """
    x = np.asarray(activations)
    if not np.issubdtype(x.dtype, np.integer):
        raise GshwError(f"layer {layer.name!r}: activations must be integers, not {x.dtype}")
    if x.ndim == 2:
        x = x[:, None, None, :]
    elif x.ndim == 3:
        x = x[:, None, :, :]
    if x.ndim != 4 or x.shape[3] != layer.geometry.in_channels or 0 in x.shape:
        raise GshwError(
            f"layer {layer.name!r}: activations must have shape (samples, height, width, "
            f"{layer.geometry.in_channels}), not {np.asarray(activations).shape}"
        )
    low, high = config.activation_range(layer.requantisation.signed_input)
    lowest, highest = int(x.min()), int(x.max())
    if lowest < low or highest > high:
        raise GshwError(
            f"layer {layer.name!r}: activations must be within {low}..{high} "
            f"({config.activation_width} bits), not {lowest}..{highest}"
        )
    return x.astype(np.int64)


def unfold_windows(geometry: Geometry, x: NDArray) -> NDArray:
    """Windows of every output position.

    Parameters
    ----------
    x
        Shape (n_samples, height, width, in_channels).

    Returns
    -------
    ndarray
        Shape (n_samples, out_height, out_width, n_columns), columns ordered (kernel row, kernel
        column, channel), zeros where the window leaves the map.
    """
    if geometry.parts:
        x = x[..., geometry.column_channels]
    n_samples, height, width, n_channels = x.shape
    out_height, out_width = geometry.output_size(height, width)
    (pad_y, pad_x), (step_y, step_x) = geometry.padding, geometry.stride
    padded = np.pad(x, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0)))
    windows = np.empty((n_samples, out_height, out_width, geometry.n_taps, n_channels), x.dtype)
    for ky in range(geometry.kernel[0]):
        for kx in range(geometry.kernel[1]):
            y, column = ky * geometry.dilation[0], kx * geometry.dilation[1]
            windows[:, :, :, ky * geometry.kernel[1] + kx] = padded[
                :,
                y : y + (out_height - 1) * step_y + 1 : step_y,
                column : column + (out_width - 1) * step_x + 1 : step_x,
            ]
    return windows.reshape(n_samples, out_height, out_width, -1)


def accumulate(weights: NDArray, geometry: Geometry, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exact integer products of every window with every row, bias not included.

    Uses double-precision matrix products: every partial sum is an integer below 2**53, because
    the encoder bounds the accumulator to 32 bits in either sign.

    Returns
    -------
    ndarray
        Shape (n_samples, out_height, out_width, n_rows), int64.
    """
    windows = unfold_windows(geometry, x.astype(np.float64))
    flat = windows.reshape(-1, geometry.n_columns) @ weights.T.astype(np.float64)
    return flat.astype(np.int64).reshape(*windows.shape[:3], weights.shape[0])


def largest(weights: NDArray, geometry: Geometry, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest code of every window that a row has a weight for, at least 0.

    Parameters
    ----------
    weights
        Shape (n_rows, n_columns): 0 or 1.

    Returns
    -------
    ndarray
        Shape (n_samples, out_height, out_width, n_rows), int64.
    """
    windows = unfold_windows(geometry, x)
    n_kept = np.count_nonzero(weights, axis=1)
    # Kept columns first; where a row has fewer than another, it keeps 0.
    columns = np.argsort(weights == 0, axis=1, kind="stable")
    found = np.zeros((*windows.shape[:3], weights.shape[0]), dtype=np.int64)
    for n in range(int(n_kept.max())):
        codes = np.where(n < n_kept, windows[..., columns[:, n]], 0)
        np.maximum(found, codes, out=found)
    return found


def run_layer(config: EngineConfig, layer: EncodedLayer, activations: NDArray) -> NDArray[np.int64]:
    """Output codes of one encoded layer.

    Parameters
    ----------
    activations
        As for :func:`check_activations`.

    Returns
    -------
    ndarray
        Shape (n_samples, out_height, out_width, n_rows), int64.
    """
    x = check_activations(config, layer, activations)
    reduce = largest if layer.requantisation.maximum else accumulate
    acc = reduce(decode_weights(config, layer), layer.geometry, x)
    return requantise(acc + layer.requantisation.bias, layer.requantisation)
