"""Small integer networks with everything that large ones have."""

import dataclasses

import numpy as np

from gshw.config import EngineConfig
from gshw.encoding import EncodedLayer, Requantisation, encode_layer
from gshw.geometry import Geometry, LayerKind, Part
from gshw.network.graph import MatrixNode, Network, Source, Tensor
from tests.strategies import conv, random_requantisation, random_weights


def encoded(
    rng: np.random.Generator,
    engine: EngineConfig,
    name: str,
    geometry: Geometry,
    n_rows: int,
    *,
    signed: bool = False,
    relu: bool = True,
    density: float = 0.4,
) -> EncodedLayer:
    """A random layer; identity columns where a second part of as many channels is repeated."""
    weights = random_weights(rng, engine, n_rows, geometry.n_columns, density)
    start, peak = 0, max(1, int(np.abs(weights).max()))
    for part in geometry.parts:
        width = part.channels * part.repeats
        if part.repeats > 1 and geometry.n_taps == 1 and part.channels == n_rows:
            pieces = [np.diag(rng.integers(1, peak + 1, n_rows)) for _ in range(part.repeats)]
            weights[:, start : start + width] = np.concatenate(pieces, axis=1)
        start += width
    stage = random_requantisation(rng, engine, weights, signed_input=signed, relu=relu)
    return encode_layer(engine, name, weights, geometry, stage)


def maximum_layer(engine: EngineConfig, name: str, channels: int) -> EncodedLayer:
    """The largest code of every 3 x 3 window."""
    weights = np.tile(np.eye(channels, dtype=np.int64), 9)
    low, high = engine.activation_range(False)
    stage = dataclasses.replace(
        Requantisation.identity(channels, engine, shift=15), low=low, high=high, maximum=True
    )
    return encode_layer(engine, name, weights, conv(channels, (3, 3), padding=(1, 1)), stage)


def residual_network(engine: EngineConfig, seed: int = 0) -> Network:
    """Stem (unfolded), a block with its skip, a strided block with a shortcut of its own, a mean.

    Two tensors have two readers, and one is read with a step. Where the engine can, the largest
    codes of the stem's windows go into the first block.
    """
    rng = np.random.default_rng(seed)
    width = engine.channels_per_row // 2 + 3
    layers = [
        encoded(rng, engine, "stem", conv(3, (3, 3), padding=(1, 1), unfold=True), width),
        *([maximum_layer(engine, "pool", width)] if engine.max_pooling else []),
        encoded(rng, engine, "block1.a", conv(width, (1, 1)), 5),
        encoded(
            rng, engine, "block1.b", conv(5 + width, (1, 1), parts=(Part(5), Part(width, 2))), width
        ),
        encoded(rng, engine, "block2.a", conv(width, (3, 3), padding=(1, 1), stride=(2, 2)), width),
        encoded(
            rng,
            engine,
            "block2.b",
            conv(2 * width, (3, 3), padding=(1, 1), parts=(Part(width), Part(width))),
            7,
        ),
        encoded(rng, engine, "mean", conv(7, (4, 3)), 7),
        encoded(
            rng,
            engine,
            "fc",
            Geometry(kind=LayerKind.LINEAR, in_channels=7),
            4,
            relu=False,
        ),
    ]
    sizes = {
        "image": (7, 6),
        "stem": (7, 6),
        **({"pool": (7, 6)} if engine.max_pooling else {}),
        "block1.a": (7, 6),
        "block1.b": (7, 6),
        "block2.a": (4, 3),
        "block2.b": (4, 3),
        "mean": (1, 1),
        "fc": (1, 1),
    }
    channels = {"image": 3} | {layer.name: layer.n_rows for layer in layers}
    signs = {"image": False} | {layer.name: layer.requantisation.signed_output for layer in layers}
    sources = {
        "stem": (Source("image"),),
        "pool": (Source("stem"),),
        "block1.a": (Source("pool" if engine.max_pooling else "stem"),),
        "block1.b": (Source("block1.a"), Source("stem")),
        "block2.a": (Source("block1.b"),),
        "block2.b": (Source("block2.a"), Source("block1.b", (2, 2))),
        "mean": (Source("block2.b"),),
        "fc": (Source("mean"),),
    }
    return Network(
        tensors={
            name: Tensor(
                name=name, size=size, channels=channels[name], scale=1.0, signed=signs[name]
            )
            for name, size in sizes.items()
        },
        nodes=tuple(
            MatrixNode(layer=layer.name, sources=sources[layer.name], output=layer.name)
            for layer in layers
        ),
        layers={layer.name: layer for layer in layers},
        inputs=("image",),
        outputs=("fc",),
    )
