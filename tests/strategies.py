"""Random engines and layers with fixed seeds, and naive models of what they compute.

The models are nested loops over Python integers; they share no code with gshw.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig, Gather, Routing, load_config, preset_names
from gshw.encoding import EncodedLayer, Requantisation, encode_layer
from gshw.geometry import Geometry, LayerKind

_SMALL = {"bank_depth": 64, "output_depth": 32, "group_buffer_depth": 32, "row_buffer_depth": 16}

ENGINES: dict[str, EngineConfig] = {
    "direct4": EngineConfig(lanes=4, rows=1, bank_width=8, routing=Routing.DIRECT, **_SMALL),
    "direct2x2": EngineConfig(
        lanes=2,
        rows=1,
        bank_width=32,
        columns=2,
        activation_width=4,
        weight_width=4,
        accumulator_width=20,
        routing=Routing.DIRECT,
        **_SMALL,
    ),
    "hybrid4": EngineConfig(
        lanes=4, rows=2, bank_width=32, columns=2, drain_rows=2, routing=Routing.BENES, **_SMALL
    ),
    "vertical4": EngineConfig(
        lanes=4,
        rows=4,
        bank_width=48,
        columns=3,
        activation_width=16,
        weight_width=16,
        routing=Routing.CROSSBAR,
        **_SMALL,
    ),
    "vertical8": EngineConfig(
        lanes=8, rows=8, bank_width=16, drain_rows=4, routing=Routing.BENES, **_SMALL
    ),
    "arbitrated4": EngineConfig(
        lanes=4,
        rows=2,
        bank_width=16,
        routing=Routing.CROSSBAR,
        gather=Gather.ARBITRATED,
        **_SMALL,
    ),
    "tables4": EngineConfig(
        lanes=4,
        rows=4,
        bank_width=16,
        columns=2,
        drain_rows=2,
        max_pooling=True,
        activation_tables=2,
        **_SMALL,
    ),
}
"""Small engines of every kind: routing, gather, block, columns, widths, drain rows, extras."""


def all_engines() -> dict[str, EngineConfig]:
    """The small engines and the presets, by name."""
    return ENGINES | {name: load_config(name).engine for name in preset_names()}


def conv(in_channels: int, kernel: tuple[int, int], **options) -> Geometry:
    """Geometry of a Conv2d."""
    return Geometry(kind=LayerKind.CONV2D, in_channels=in_channels, kernel=kernel, **options)


def random_weights(
    rng: np.random.Generator,
    config: EngineConfig,
    n_rows: int,
    n_columns: int,
    density: float | Sequence[float],
) -> NDArray[np.int64]:
    """Weights over the range that cannot overflow; ``density`` is one number or one per row."""
    sum_limit = 3 << (config.accumulator_width - 3)
    peak = min(config.max_weight, sum_limit // (n_columns << config.activation_width))
    weights = rng.integers(-peak, peak + 1, (n_rows, n_columns))
    kept = rng.random((n_rows, n_columns)) < np.reshape(density, (-1, 1))
    return np.where(kept, weights, 0)


def random_requantisation(
    rng: np.random.Generator,
    config: EngineConfig,
    weights: NDArray,
    *,
    signed_input: bool = False,
    relu: bool = False,
) -> Requantisation:
    """Scales that bring typical sums of these weights into the range of the output codes."""
    n_rows = weights.shape[0]
    limit = 1 << (config.accumulator_width - 1)
    high = (1 << config.activation_width) - 1
    typical = high * np.sqrt((weights.astype(np.float64) ** 2).sum(axis=1) + 1)
    largest = np.where(rng.random(n_rows) < 0.8, np.minimum(typical, limit // 8), limit // 8)
    bias = (rng.uniform(-1, 1, n_rows) * largest).astype(np.int64)
    shift = np.ceil(np.log2(typical)).astype(np.int64) + 16 - config.activation_width
    low_code, high_code = (0, high) if relu else (-(1 << (config.activation_width - 1)), high // 2)
    return Requantisation(
        bias=bias,
        multiplier=rng.integers(1 << 15, 1 << 16, n_rows),
        shift=np.clip(shift, 1, 47),
        low=low_code,
        high=high_code,
        signed_input=signed_input,
        table=random_table(rng, config, signed=not relu),
    )


def random_table(
    rng: np.random.Generator, config: EngineConfig, *, signed: bool
) -> NDArray[np.int64] | None:
    """Any codes; None, sometimes, and for engines without tables."""
    if not config.activation_tables or rng.random() < 0.3:
        return None
    low, high = config.activation_range(signed)
    return rng.integers(low, high + 1, 1 << config.activation_width)


def random_layer(
    seed: int,
    config: EngineConfig,
    n_rows: int,
    geometry: Geometry,
    density: float | Sequence[float] = 0.4,
    *,
    shuffled: bool = False,
    **requantisation,
) -> EncodedLayer:
    """An encoded layer; ``shuffled`` takes its rows in random bundles."""
    rng = np.random.default_rng(seed)
    weights = random_weights(rng, config, n_rows, geometry.n_columns, density)
    return encode_layer(
        config,
        f"random{seed}",
        weights,
        geometry,
        random_requantisation(rng, config, weights, **requantisation),
        row_order=rng.permutation(n_rows) if shuffled else None,
    )


def random_activations(
    seed: int, config: EngineConfig, shape: tuple[int, ...], *, signed: bool = False
) -> NDArray[np.int64]:
    """Codes over the whole range, both ends included."""
    rng = np.random.default_rng(seed)
    width = config.activation_width
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
    codes = rng.integers(low, high + 1, shape)
    codes.reshape(-1)[:2] = low, high
    return codes


def naive_requantise(acc: int, multiplier: int, shift: int, low: int, high: int) -> int:
    """The output code of one accumulator: ``floor(acc * multiplier / 2**shift + 1/2)``, clamped."""
    rounded = (2 * acc * multiplier + 2**shift) // (2 * 2**shift)
    return min(max(rounded, low), high)


def big_pack(elements: Sequence[tuple[int, int]]) -> int:
    """One big integer of (value, width) elements, the first in the lowest bits."""
    word, place = 0, 0
    for value, width in elements:
        assert -(1 << width) < value < (1 << width)
        word |= (int(value) % (1 << width)) << place
        place += width
    return word


def word_int(limbs: NDArray[np.uint32]) -> int:
    """The big integer that a row of 32-bit little-endian limbs holds."""
    return sum(int(limb) << (32 * index) for index, limb in enumerate(limbs))
