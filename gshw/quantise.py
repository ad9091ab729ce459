"""From float to the engine's integers, in one place.

Weights: symmetric, one scale per output row. Activations: zero point 0, one scale per tensor,
from the range that calibration found (:func:`activation_range`). The output scale becomes a
16-bit multiplier and a shift (:func:`to_fixed`).
"""

import enum
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gshw.config import MULTIPLIER_WIDTH, EngineConfig
from gshw.encoding import EncodedLayer, Requantisation, encode_layer
from gshw.errors import GshwError
from gshw.geometry import Geometry

MIN_SHIFT, MAX_SHIFT = 1, 47
_LEAST_SCALE = 2.0**-31
FIXED_POINT_ERROR = 2.0**-16
"""Largest relative error of :func:`to_fixed`."""

_CLIPS = 2.0 ** (-np.arange(256) / 32)
_TAIL, _N_MEANS = 4096, 4096


Array = TypeVar("Array")
"""NumPy array or torch tensor."""


class RangeMethod(enum.Enum):
    """How the magnitude that the highest code stands for is chosen."""

    MAX = "max"
    PERCENTILE = "percentile"
    MSE = "mse"


def check_percentile(percentile: float) -> None:
    """Refuse a percentile outside (0, 100].

    Raises
    ------
    GshwError
        Naming the value.
    """
    if not 0.0 < percentile <= 100.0:
        raise GshwError(f"percentile must be above 0 and at most 100, not {percentile:g}")


def activation_range(
    values: NDArray,
    method: RangeMethod = RangeMethod.PERCENTILE,
    *,
    percentile: float = 99.99,
    highest_code: int = 127,
) -> float:
    """Magnitude that the highest code should stand for; what lies above saturates.

    Parameters
    ----------
    values
        Observed activations, any shape.
    method
        The largest magnitude; a percentile of the magnitudes; or the clip of least squared
        quantisation error. That error has two parts, rounding below the clip and saturation above
        it (Banner et al. 2019, arXiv 1810.05723); here it is summed over what was observed, for
        256 clips from the largest magnitude down to 1/250 of it, 2.2 % apart.
    percentile
        In (0, 100], for that method.
    highest_code
        For least error: of the layer's codes, for example 127 or 255.

    Returns
    -------
    float
        At least 0; 0 where there are no values or all are zero; not finite where a value is not.

    Raises
    ------
    GshwError
        For a percentile out of range.
    """
    check_percentile(percentile)
    magnitudes = np.abs(np.asarray(values, dtype=np.float64).reshape(-1))
    if not magnitudes.size:
        return 0.0
    peak = float(magnitudes.max())
    if method is RangeMethod.MAX or peak == 0.0 or not np.isfinite(peak):
        return peak
    if method is RangeMethod.PERCENTILE:
        return float(np.quantile(magnitudes, percentile / 100.0))
    found, counts = _summary(magnitudes)
    clips = peak * _CLIPS
    errors = [np.dot(counts, _squared_errors(found, clip, highest_code)) for clip in clips]
    return float(clips[int(np.argmin(errors))])


def _summary(magnitudes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and how many each stands for: the largest one by one, means of like ones below."""
    ordered = np.sort(magnitudes)
    body, tail = ordered[:-_TAIL], ordered[-_TAIL:]
    if body.size <= _N_MEANS:
        return ordered, np.ones(ordered.size)
    starts = np.linspace(0, body.size, _N_MEANS, endpoint=False).astype(np.int64)
    counts = np.diff(starts, append=body.size).astype(np.float64)
    means = np.add.reduceat(body, starts) / counts
    return np.concatenate([means, tail]), np.concatenate([counts, np.ones(tail.size)])


def _squared_errors(
    magnitudes: NDArray[np.float64], clip: float, highest_code: int
) -> NDArray[np.float64]:
    step = clip / highest_code
    return np.square(magnitudes - np.minimum(np.rint(magnitudes / step), highest_code) * step)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration found at one weight matrix.

    Parameters
    ----------
    input_range, output_range
        Magnitudes that the highest codes stand for, at least 0 (see :func:`activation_range`).
    signed_input, signed_output
        Whether codes may be negative; an unsigned output includes a ReLU.
    input_size
        Input pixels (height, width); (1, 1) where a sample is one vector.
    """

    input_range: float
    output_range: float
    signed_input: bool
    signed_output: bool
    input_size: tuple[int, int] = (1, 1)

    def input_scale(self, config: EngineConfig) -> float:
        """Float value of one input code."""
        return activation_scale(config, self.input_range, self.signed_input)

    def output_scale(self, config: EngineConfig) -> float:
        """Float value of one output code."""
        return activation_scale(config, self.output_range, self.signed_output)


def activation_scale(config: EngineConfig, magnitude: float, signed: bool) -> float:
    """Float value of one code; where nothing but zero was seen, the highest code is 1.0."""
    return (magnitude if magnitude != 0 else 1.0) / config.activation_range(signed)[1]


def to_fixed(scale: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Multiplier and shift with ``multiplier / 2**shift`` nearest to each scale.

    The multiplier is normalised to [2**15, 2**16), so the relative error is at most
    ``FIXED_POINT_ERROR`` = 2**-16 (half a unit in 2**15). With the final rounding, an output code
    before clamping is within ``0.5 + abs(acc * scale) * 2**-16`` of ``acc * scale``.

    Parameters
    ----------
    scale
        Any shape, each from 2**-32 to below 2**15 - 2**-2.

    Returns
    -------
    multiplier, shift
        int64 of the same shape.

    Raises
    ------
    GshwError
        For a scale outside that range, or not finite.
    """
    scale = np.asarray(scale, dtype=np.float64)
    if not np.isfinite(scale).all() or (scale <= 0).any():
        raise GshwError("output scale must be positive and finite")
    _, exponent = np.frexp(scale)
    shift = MULTIPLIER_WIDTH - exponent.astype(np.int64)
    multiplier = np.rint(np.ldexp(scale, shift)).astype(np.int64)
    carried = multiplier == 1 << MULTIPLIER_WIDTH
    multiplier = np.where(carried, multiplier >> 1, multiplier)
    shift = np.where(carried, shift - 1, shift)
    if (shift < MIN_SHIFT).any() or (shift > MAX_SHIFT).any():
        worst = scale.flat[np.argmax((shift < MIN_SHIFT) | (shift > MAX_SHIFT))]
        raise GshwError(f"output scale must be from 2**-32 to 2**15, not {worst:.3g}")
    return multiplier, shift


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A trained layer, ready to be quantised.

    Parameters
    ----------
    name
        In the model.
    weights
        Shape (n_rows, n_columns), float, columns in the engine's order.
    bias
        Shape (n_rows,), float.
    geometry
        The layer's window.
    input_scale, output_scale
        Float value of one code.
    signed_input, signed_output
        Whether codes may be negative; an unsigned output includes a ReLU.
    mask
        Shape (n_rows, n_columns); kept weights. None: all.
    row_order
        Bundle order of the rows. None: consecutive.
    weight_width
        Bits of the weight codes, from 2 to the engine's. None: the engine's.
    """

    name: str
    weights: NDArray
    bias: NDArray
    geometry: Geometry
    input_scale: float
    output_scale: float
    signed_input: bool
    signed_output: bool
    mask: NDArray[np.bool_] | None = None
    row_order: NDArray | None = None
    weight_width: int | None = None


def max_weight(config: EngineConfig, weight_width: int | None) -> int:
    """Largest weight code of so many bits on this engine.

    Raises
    ------
    GshwError
        For a width that the engine's multipliers do not hold, or of which only zero is symmetric.
    """
    if weight_width is None:
        return config.max_weight
    if not 2 <= weight_width <= config.weight_width:
        raise GshwError(
            f"weight_width must be from 2 to the engine's {config.weight_width}, not {weight_width}"
        )
    return (1 << (weight_width - 1)) - 1


def kept_weights(layer: FloatLayer) -> NDArray[np.float64]:
    """The weights with zeros outside the mask."""
    weights = layer.weights.astype(np.float64)
    return weights if layer.mask is None else np.where(layer.mask, weights, 0.0)


def accumulator_scales(
    config: EngineConfig,
    n_weights: Array,
    total: Array,
    bias: Array,
    *,
    input_scale: float,
    signed_input: bool,
) -> tuple[Array, Array]:
    """Least scale of each row for which its worst accumulator provably fits.

    Only arithmetic, so it takes NumPy arrays and torch tensors alike: training rounds with the
    export's rule.

    Parameters
    ----------
    n_weights, total, bias
        Shape (n_rows,), float64: how many weights are not zero, the sum of their magnitudes, and
        the magnitude of the bias.

    Returns
    -------
    scale, limit
        The scale means nothing where the limit, what the accumulator leaves beside the worst
        rounding, is not positive.
    """
    low, high = config.activation_range(signed_input)
    reach = max(-low, high)
    # Rounding moves every weight by at most half a code and the bias by half: leave that much.
    limit = (1 << (config.accumulator_width - 1)) - 1 - (0.5 * n_weights * reach + 0.5)
    return (total * reach + bias / input_scale) / limit, limit


def least_scale(input_scale: float, output_scale: float) -> float:
    """The finest row scale used, for a row without weights or with tiny ones.

    Such a row has only its bias to represent: any scale that :func:`to_fixed` can express will
    do, and this one is finer than any output code can show.
    """
    return output_scale / input_scale * _LEAST_SCALE


def row_scales(config: EngineConfig, layer: FloatLayer) -> NDArray[np.float64]:
    """Float value of one weight code, per row.

    The larger of ``max abs(w) / max_weight`` and the least scale for which the row's worst
    accumulator, bias included, provably fits ``accumulator_width`` bits.

    Raises
    ------
    GshwError
        For a row of too many weights, or a weight width that the engine does not have.
    """
    weights = np.abs(kept_weights(layer))
    try:
        highest = max_weight(config, layer.weight_width)
    except GshwError as error:
        raise GshwError(f"layer {layer.name!r}: {error}") from None
    peak = weights.max(axis=1, initial=0.0) / highest
    n_weights = np.count_nonzero(weights, axis=1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        need, limit = accumulator_scales(
            config,
            n_weights,
            weights.sum(axis=1),
            np.abs(layer.bias),
            input_scale=layer.input_scale,
            signed_input=layer.signed_input,
        )
    if (limit <= 0).any():
        raise GshwError(
            f"layer {layer.name!r}: row {int(np.argmin(limit))} has too many weights for a "
            f"{config.accumulator_width}-bit accumulator"
        )
    return np.maximum(np.maximum(peak, need), least_scale(layer.input_scale, layer.output_scale))


def _check_finite(layer: FloatLayer) -> None:
    for key, values in (("weights", layer.weights), ("bias", layer.bias)):
        if not np.isfinite(values).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise GshwError(
                f"layer {layer.name!r}: {key} must be finite, not {values[place]} at {place}"
            )
    if layer.mask is not None and layer.mask.shape != layer.weights.shape:
        raise GshwError(
            f"layer {layer.name!r}: mask must have the weights' shape {layer.weights.shape}, "
            f"not {layer.mask.shape}"
        )
    for key in ("input_scale", "output_scale"):
        value = getattr(layer, key)
        if not (np.isfinite(value) and value > 0):
            raise GshwError(f"layer {layer.name!r}: {key} must be positive, not {value}")


def to_integers(
    config: EngineConfig, layer: FloatLayer
) -> tuple[NDArray[np.int16], Requantisation]:
    """Weight codes and the integer output stage of one layer.

    Returns
    -------
    codes, requantisation
        Codes of shape (n_rows, n_columns), zero outside the mask.

    Raises
    ------
    GshwError
        For NaN or infinite values, or a layer that the accumulator cannot hold.
    """
    _check_finite(layer)
    scale = row_scales(config, layer)
    codes = np.rint(kept_weights(layer) / scale[:, None]).astype(np.int16)
    try:
        multiplier, shift = to_fixed(layer.input_scale * scale / layer.output_scale)
    except GshwError as error:
        raise GshwError(f"layer {layer.name!r}: {error}") from None
    low, high = config.activation_range(layer.signed_output)
    requantisation = Requantisation(
        bias=np.rint(layer.bias / (layer.input_scale * scale)).astype(np.int64),
        multiplier=multiplier,
        shift=shift,
        low=low,
        high=high,
        signed_input=layer.signed_input,
    )
    return codes, requantisation


def quantise_layer(config: EngineConfig, layer: FloatLayer) -> EncodedLayer:
    """Quantise and encode one layer; no kept weight outside the mask, ever.

    Raises
    ------
    GshwError
        As :func:`to_integers`.
    """
    codes, requantisation = to_integers(config, layer)
    return encode_layer(
        config,
        layer.name,
        codes,
        layer.geometry,
        requantisation,
        mask=layer.mask,
        row_order=layer.row_order,
        input_scale=layer.input_scale,
        output_scale=layer.output_scale,
    )


def quantise_activations(
    config: EngineConfig, values: NDArray, scale: float, signed: bool
) -> NDArray[np.int64]:
    """Codes of float activations: nearest (ties to even), saturating."""
    low, high = config.activation_range(signed)
    return np.clip(np.rint(np.asarray(values, dtype=np.float64) / scale), low, high).astype(
        np.int64
    )
