"""Layers and inputs for the regression: random ones, and the corners that random ones miss.

Layers are drawn so that they fit the engine and its accumulator by plain arithmetic, never by
trying and catching, so that a wrong refusal makes a test fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.cycles import Cycles, plan_cycles
from gshw.device import Counters
from gshw.encoding import (
    EncodedLayer,
    Requantisation,
    accumulator_bounds,
    consecutive_rows,
    encode_layer,
    scatter_rows,
)
from gshw.geometry import Geometry, LayerKind, Part
from gshw.image import LayerImage
from gshw.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer, and input codes of shape (n_samples, height, width, in_channels)."""

    label: str
    layer: EncodedLayer
    activations: NDArray[np.int64]


def expected_counters(
    config: EngineConfig, layer: EncodedLayer, shape: tuple[int, ...]
) -> Counters:
    """What the hardware's counters must sum up to, by the cycle law.

    Parameters
    ----------
    shape
        Of the activations; its first three entries are samples, height and width.
    """
    image = LayerImage(config, layer)
    law: Cycles = plan_cycles(Plan(config, image, *shape[:3]))
    conflicting = int(np.count_nonzero(image.group_cycles > 1))
    return Counters(
        cycles=law.total,
        groups=law.groups,
        stalls=law.stalls,
        drains=law.drains,
        conflicts=conflicting * (law.groups // image.n_groups),
        replays=law.replays,
    )


def _largest_code(config: EngineConfig, signed: bool) -> int:
    low, high = config.activation_range(signed)
    return max(-low, high)


def _most_rows(config: EngineConfig) -> int:
    """Rows of one bundle drain one by one at worst, and must fit the row buffer."""
    return config.row_buffer_depth if config.rows > config.row_buffer_depth else 1 << 16


def _limited_weights(
    rng: np.random.Generator,
    config: EngineConfig,
    shape: tuple[int, int],
    density: float,
    signed: bool,
) -> NDArray[np.int64]:
    """Random weights whose rows cannot overflow the accumulator."""
    limit = (1 << (config.accumulator_width - 1)) - 1
    code = _largest_code(config, signed)
    keep = rng.random(shape) < density
    keep &= np.cumsum(keep, axis=1) <= limit // code
    most = max(1, int(keep.sum(axis=1).max()))
    peak = min(config.max_weight, limit // (most * code))
    return np.where(keep, rng.integers(-peak, peak + 1, shape), 0)


def _random_bias(
    rng: np.random.Generator, config: EngineConfig, weights: NDArray, signed: bool
) -> NDArray[np.int64]:
    """Small biases, or any that the accumulator holds."""
    limit = 1 << (config.accumulator_width - 1)
    lowest, highest = accumulator_bounds(
        config, weights, np.zeros(len(weights), dtype=np.int64), signed
    )
    bias = rng.integers(-limit - lowest, limit - highest)
    if rng.random() < 0.7:
        bias = np.clip(bias, -1000, 1000)
    return bias


def random_requantisation(
    rng: np.random.Generator, config: EngineConfig, weights: NDArray, signed_input: bool
) -> Requantisation:
    """An output stage that neither loses the result nor only saturates, most of the time."""
    n_rows = len(weights)
    bias = _random_bias(rng, config, weights, signed_input)
    lowest, highest = accumulator_bounds(config, weights, bias, signed_input)
    magnitude = np.log2(np.maximum(np.maximum(-lowest, highest), 1)).astype(np.int64)
    shift = 15 + magnitude - config.activation_width + rng.integers(-1, 4, n_rows)
    if rng.random() < 0.15:
        shift = rng.integers(1, 48, n_rows)
    signed_low, signed_high = config.activation_range(True)
    _, unsigned_high = config.activation_range(False)
    clamps = [
        (signed_low, signed_high),
        (0, unsigned_high),
        (0, signed_high),
        (signed_low, -1),
        (-1, 2),
    ]
    low, high = clamps[rng.choice(len(clamps), p=(0.4, 0.3, 0.1, 0.1, 0.1))]
    return Requantisation(
        bias=bias,
        multiplier=rng.integers(1 << 15, 1 << 16, n_rows),
        shift=np.clip(shift, 1, 47),
        low=low,
        high=high,
        signed_input=signed_input,
        table=_random_table(rng, config),
    )


def _random_table(rng: np.random.Generator, config: EngineConfig) -> NDArray[np.int64] | None:
    if not config.activation_tables or rng.random() < 0.3:
        return None
    low, high = config.activation_range(bool(rng.integers(2)))
    return rng.integers(low, high + 1, 1 << config.activation_width)


def _codes(
    rng: np.random.Generator, config: EngineConfig, shape: tuple[int, ...], signed: bool
) -> NDArray[np.int64]:
    low, high = config.activation_range(signed)
    return rng.integers(low, high + 1, shape)


def _random_geometry(
    rng: np.random.Generator, config: EngineConfig
) -> tuple[Geometry, tuple[int, int]]:
    """A geometry, and the height and width of its input."""
    pixel = config.channels_per_row
    if rng.random() < 0.4:
        return Geometry.linear(int(rng.integers(1, 5 * pixel + 1))), (1, 1)

    def pair(low: int, high: int) -> tuple[int, int]:
        return int(rng.integers(low, high)), int(rng.integers(low, high))

    one_dimensional = rng.random() < 0.25
    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 3)
    extent = [dilation[axis] * (kernel[axis] - 1) + 1 + int(rng.integers(0, 5)) for axis in (0, 1)]
    if one_dimensional:
        kernel, stride, padding, dilation = (
            (flat, value[1])
            for flat, value in ((1, kernel), (1, stride), (0, padding), (1, dilation))
        )
        extent[0] = 1
    in_channels, parts, unfold = int(rng.integers(1, 2 * pixel + 1)), (), False
    match rng.choice(("plain", "unfold", "parts"), p=(0.5, 0.3, 0.2)):
        case "unfold":
            unfold = True
        case "parts":
            parts = tuple(
                Part(int(rng.integers(1, pixel + 1)), int(rng.integers(1, 3)))
                for _ in range(rng.integers(1, 4))
            )
            in_channels = sum(part.channels for part in parts)
    geometry = Geometry(
        kind=LayerKind.CONV1D if one_dimensional else LayerKind.CONV2D,
        in_channels=in_channels,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        unfold=unfold,
        parts=parts,
    )
    return geometry, (extent[0], extent[1])


def _fits(config: EngineConfig, geometry: Geometry, n_rows: int) -> bool:
    """Whether the window and the result of one output pixel fit their memories."""
    span = [
        1 if geometry.unfold else dilation * (kernel - 1) + 1
        for kernel, dilation in zip(geometry.kernel, geometry.dilation)
    ]
    window = span[0] * span[1] * geometry.words_per_pixel(config)
    result = -(-n_rows // config.channels_per_row)
    return window <= config.bank_depth and result <= config.output_depth


def random_case(rng: np.random.Generator, config: EngineConfig, *, cycle_goal: int) -> Case:
    """A random layer of about ``cycle_goal`` groups at most, over all its positions.

    Linear, Conv1d or Conv2d with stride, padding, dilation, unfolding or parts; any density from
    empty to dense; consecutive, scattered or random bundles; now and then a mask that keeps zeros.
    """
    while True:
        geometry, (height, width) = _random_geometry(rng, config)
        n_rows = int(rng.integers(1, min(max(3 * config.rows, 20), _most_rows(config)) + 1))
        density = float(
            rng.choice((0.0, 0.02, 0.1, 0.3, 0.6, 1.0), p=(0.03, 0.17, 0.3, 0.3, 0.15, 0.05))
        )
        n_samples = int(rng.integers(1, 2 * config.columns + 2))
        out_height, out_width = geometry.output_size(height, width)
        n_positions = -(-n_samples * out_height * out_width // config.columns)
        bundles = -(-n_rows // config.rows)
        groups = bundles * (density * config.rows * geometry.n_words(config) + 2)
        if _fits(config, geometry, n_rows) and groups * n_positions <= cycle_goal:
            break
    signed = bool(rng.random() < 0.5)
    weights = _limited_weights(rng, config, (n_rows, geometry.n_columns), density, signed)
    mask = None
    if rng.random() < 0.2:
        mask = (weights != 0) | (rng.random(weights.shape) < 0.05)
    row_order = (
        consecutive_rows(n_rows),
        scatter_rows(np.count_nonzero(weights, axis=1)),
        rng.permutation(n_rows),
    )[rng.integers(3)]
    layer = encode_layer(
        config,
        "random",
        weights,
        geometry,
        random_requantisation(rng, config, weights, signed),
        mask=mask,
        row_order=row_order,
    )
    shape = (n_samples, height, width, geometry.in_channels)
    label = f"{geometry}, {n_rows} rows, density {density}, input {shape}"
    return Case(label=label, layer=layer, activations=_codes(rng, config, shape, signed))


def linear_case(
    rng: np.random.Generator,
    config: EngineConfig,
    label: str,
    weights: NDArray[np.int64],
    *,
    n_samples: int | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> Case:
    """A linear layer of these weights with random output stage and inputs."""
    signed = bool(rng.random() < 0.5)
    n_columns = weights.shape[1]
    layer = encode_layer(
        config,
        label,
        weights,
        Geometry.linear(n_columns),
        random_requantisation(rng, config, weights, signed),
        mask=mask,
    )
    shape = (n_samples or config.columns + 1, 1, 1, n_columns)
    return Case(label=label, layer=layer, activations=_codes(rng, config, shape, signed))


def corner_cases(rng: np.random.Generator, config: EngineConfig) -> Iterator[Case]:
    """The shapes that break encoders and drains: nothing, one of each, gaps, raggedness."""
    most = _most_rows(config)
    n_columns = 2 * config.channels_per_row - 1

    def weights(n_rows: int, density: float) -> NDArray[np.int64]:
        return _limited_weights(rng, config, (min(n_rows, most), n_columns), density, False)

    yield linear_case(rng, config, "all zero", weights(2 * config.rows, 0.0))
    yield linear_case(rng, config, "one row", weights(1, 0.5))
    one = np.zeros((1, 1), dtype=np.int64)
    yield linear_case(rng, config, "one zero weight", one, n_samples=1)
    yield linear_case(rng, config, "ragged last bundle", weights(2 * config.rows + 1, 0.3))
    gaps = weights(5 * config.rows, 0.3)
    empty = np.arange(len(gaps)) // config.rows % 2 == 0
    gaps[empty] = 0
    yield linear_case(rng, config, "empty bundles first, between and last", gaps)
    short = np.zeros_like(weights(4 * config.rows, 0.0))
    short[:, 0] = 1
    yield linear_case(rng, config, "drain-bound", short, n_samples=3 * config.columns)
    kept = weights(config.rows, 0.1)
    mask = (kept != 0) | (rng.random(kept.shape) < 0.2)
    yield linear_case(rng, config, "kept zeros", kept, mask=mask)


def extreme_cases(config: EngineConfig, *, n_columns_goal: int) -> Iterator[Case]:
    """Every weight and activation at its limit, the accumulator at both its bounds.

    Even rows hold only the largest weight, odd rows only the smallest. The bias takes up what the
    accumulator has left, so that some input drives it to ``2**(width - 1) - 1`` (even rows) and
    ``-2**(width - 1)`` (odd rows). Inputs: all highest, all lowest, and both in turn.
    """
    limit = 1 << (config.accumulator_width - 1)
    n_rows = min(2 * config.rows + 2, _most_rows(config))
    odd = np.arange(n_rows) % 2 == 1
    capacity = config.bank_depth * config.channels_per_row
    for signed in (False, True):
        low, high = config.activation_range(signed)
        most = (limit - 1) // (config.max_weight * _largest_code(config, signed))
        n_columns = min(most, capacity, n_columns_goal)
        weights = np.where(odd, -config.max_weight, config.max_weight)[:, None]
        weights = np.repeat(weights, n_columns, axis=1)
        zero = np.zeros(n_rows, dtype=np.int64)
        lowest, highest = accumulator_bounds(config, weights, zero, signed)
        scale = config.accumulator_width + 16 - config.activation_width
        shifts = np.array([scale, 1, scale - 1, 47, scale - 2])
        for clamp_signed in (False, True):
            low_code, high_code = config.activation_range(clamp_signed)
            parameters = Requantisation(
                bias=np.where(odd, -limit - lowest, limit - 1 - highest),
                multiplier=np.where(np.arange(n_rows) // 2 % 2, 1 << 15, (1 << 16) - 1),
                shift=shifts[np.arange(n_rows) // 2 % shifts.size],
                low=low_code,
                high=high_code,
                signed_input=signed,
            )
            label = f"extreme, {n_columns} columns, signed in {signed}, out {clamp_signed}"
            layer = encode_layer(config, label, weights, Geometry.linear(n_columns), parameters)
            inputs = np.empty((3, 1, 1, n_columns), dtype=np.int64)
            inputs[0], inputs[1] = high, low
            inputs[2] = np.where(np.arange(n_columns) % 2, high, low)
            yield Case(label=label, layer=layer, activations=inputs)
