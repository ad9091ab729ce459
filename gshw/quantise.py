"""From float to the engine's integers, in one place.

Weights: symmetric, one scale per output row. Activations: zero point 0, one scale per tensor.
The output scale becomes a 16-bit multiplier and a shift (:func:`to_fixed`).
"""

from dataclasses import dataclass

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


def kept_weights(layer: FloatLayer) -> NDArray[np.float64]:
    """The weights with zeros outside the mask."""
    weights = layer.weights.astype(np.float64)
    return weights if layer.mask is None else np.where(layer.mask, weights, 0.0)


def row_scales(config: EngineConfig, layer: FloatLayer) -> NDArray[np.float64]:
    """Float value of one weight code, per row.

    The larger of ``max abs(w) / max_weight`` and the least scale for which the row's worst
    accumulator, bias included, provably fits ``accumulator_width`` bits.
    """
    weights = np.abs(kept_weights(layer))
    peak = weights.max(axis=1, initial=0.0) / config.max_weight
    low, high = config.activation_range(layer.signed_input)
    reach = max(-low, high)
    # Rounding moves every weight by at most half a code and the bias by half: leave that much.
    half_codes = 0.5 * np.count_nonzero(weights, axis=1) * reach + 0.5
    limit = (1 << (config.accumulator_width - 1)) - 1 - half_codes
    if (limit <= 0).any():
        raise GshwError(
            f"layer {layer.name!r}: row {int(np.argmin(limit))} has too many weights for a "
            f"{config.accumulator_width}-bit accumulator"
        )
    need = (weights.sum(axis=1) * reach + np.abs(layer.bias) / layer.input_scale) / limit
    # A row without weights (or with tiny ones) has only its bias to represent: any scale that
    # to_fixed can express will do, and this one is finer than any output code can show.
    representable = layer.output_scale / layer.input_scale * _LEAST_SCALE
    return np.maximum(np.maximum(peak, need), representable)


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


def quantise_layer(config: EngineConfig, layer: FloatLayer) -> EncodedLayer:
    """Quantise and encode one layer; no kept weight outside the mask, ever.

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
