"""Runs layers in RTL, holds them against the golden model and the cycle law, and reports."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from gshw import golden
from gshw.config import EngineConfig
from gshw.cycles import Cycles, plan_cycles
from gshw.device import Counters, Device
from gshw.encoding import EncodedLayer, Requantisation, decode_weights, encode_layer
from gshw.errors import GshwError
from gshw.image import LayerImage
from gshw.plan import Plan
from gshw.runtime import LayerRun, run_layer


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer, measured and predicted.

    Parameters
    ----------
    rows, columns
        Shape of the weight matrix.
    density
        Non-zero weights by all weights.
    groups
        Of the encoded layer.
    positions
        Output positions, over all samples.
    cycles
        Of the hardware counter; of the law where the layer was only explained.
    limit
        What bounds it: ``groups``, ``conflicts``, ``drain``, ``fill`` or ``padding``.
    utilisation
        Cycles that the non-zero blocks need, by cycles.
    dense_cycles, speed_up
        The same layer with every weight kept, on the same engine.
    match
        Output equals the golden model and cycles equal the law; None where only explained.
    mismatch
        First difference, or None.
    where
        The cycle law's account.
    """

    name: str
    rows: int
    columns: int
    density: float
    groups: int
    positions: int
    cycles: int
    limit: str
    utilisation: float
    dense_cycles: int
    speed_up: float
    match: bool | None
    mismatch: str | None
    where: Cycles

    def as_json(self) -> dict:
        """Plain values, for the JSON twin of a table."""
        return asdict(self)


def dense_twin(config: EngineConfig, layer: EncodedLayer) -> EncodedLayer:
    """The same shape with every weight kept: the dense baseline on the same engine."""
    shape = (layer.n_rows, layer.geometry.n_columns)
    return encode_layer(
        config,
        f"{layer.name} (dense)",
        np.zeros(shape, dtype=np.int8),
        layer.geometry,
        Requantisation.identity(
            layer.n_rows, config, signed_input=layer.requantisation.signed_input
        ),
        mask=np.ones(shape, dtype=bool),
    )


def needed_cycles(config: EngineConfig, layer: EncodedLayer, plan: Plan) -> float:
    """Cycles that a perfect engine of the same lanes needs for the non-zero blocks.

    Positions count ``ceil(samples * outputs / columns)`` as whole columns of work, so an idle
    column counts as waste only where a better tiling could have used it.
    """
    height, width = plan.output_shape
    n_positions = -(-plan.n_samples * height * width // config.columns)
    return layer.n_blocks_kept / config.lanes * n_positions


def limiting(config: EngineConfig, layer: EncodedLayer, cycles: Cycles, needed: float) -> str:
    """What costs most beyond the groups that the non-zeros need; ``groups`` if that is little."""
    costs = {
        "drain": cycles.stalls,
        "fill": cycles.fill,
        "conflicts": cycles.replays,
        "padding": max(0.0, cycles.groups - needed),
    }
    worst = max(costs, key=lambda key: costs[key])
    return worst if costs[worst] > 0.1 * cycles.total else "groups"


def _first_difference(found: NDArray, wanted: NDArray) -> str | None:
    if np.array_equal(found, wanted):
        return None
    sample, y, x, row = (int(i) for i in np.argwhere(found != wanted)[0])
    place = (sample, y, x, row)
    return (
        f"row {row}, sample {sample}, position ({y}, {x}): "
        f"{found[place]} in RTL, {wanted[place]} in the golden model"
    )


def explain_layer(
    config: EngineConfig,
    layer: EncodedLayer,
    n_samples: int,
    height: int,
    width: int,
    *,
    run: LayerRun | None = None,
    wanted: NDArray | None = None,
    image: LayerImage | None = None,
) -> LayerReport:
    """Account for a layer's cycles by the law; with a run, hold it against its measurement.

    Parameters
    ----------
    n_samples, height, width
        Of the input.
    run, wanted
        What the device did, and the golden output.
    """
    plan = Plan(config, image or LayerImage(config, layer), n_samples, height, width)
    cycles = plan_cycles(plan)
    twin = dense_twin(config, layer)
    dense = plan_cycles(Plan(config, LayerImage(config, twin), n_samples, height, width)).total
    needed = needed_cycles(config, layer, plan)
    mismatch = None
    total = cycles.total
    if run is not None and wanted is not None:
        total = run.counters.cycles
        mismatch = _first_difference(run.output, wanted) or _counter_difference(run, cycles)
    weights = decode_weights(config, layer)
    return LayerReport(
        name=layer.name,
        rows=layer.n_rows,
        columns=layer.geometry.n_columns,
        density=float(np.count_nonzero(weights)) / weights.size,
        groups=layer.n_groups,
        positions=n_samples * plan.output_shape[0] * plan.output_shape[1],
        cycles=total,
        limit=limiting(config, layer, cycles, needed),
        utilisation=needed / total,
        dense_cycles=dense,
        speed_up=dense / total,
        match=None if run is None else mismatch is None,
        mismatch=mismatch,
        where=cycles,
    )


def _counter_difference(run: LayerRun, cycles: Cycles) -> str | None:
    law = Counters(
        cycles=cycles.total,
        groups=cycles.groups,
        stalls=cycles.stalls,
        drains=cycles.drains,
        conflicts=cycles.conflicts,
        replays=cycles.replays,
    )
    return None if law == run.counters else f"counters are {run.counters}, the law says {law}"


def simulate_layer(
    config: EngineConfig,
    layer: EncodedLayer,
    device: Device,
    activations: NDArray,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[LayerRun, LayerReport]:
    """Run one layer on a device and compare it, bit for bit and cycle for cycle.

    Parameters
    ----------
    activations
        As :func:`gshw.golden.check_activations`.
    """
    x = golden.check_activations(config, layer, activations)
    image = LayerImage(config, layer)
    run = run_layer(config, layer, device, x, image=image, on_progress=on_progress)
    wanted = golden.run_layer(config, layer, x)
    report = explain_layer(config, layer, *x.shape[:3], run=run, wanted=wanted, image=image)
    return run, report


def input_size(layer: EncodedLayer) -> tuple[int, int]:
    """Input (height, width) that the layer's exporter recorded; else the smallest that fits.

    Raises
    ------
    GshwError
        When what was recorded is no size.
    """
    if "input_size" in layer.metadata:
        text = layer.metadata["input_size"]
        size = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text)
        if size is None:
            raise GshwError(
                f"layer {layer.name!r}: input_size must be a height and a width such as 28x28, "
                f"not {text!r}"
            )
        return int(size[1]), int(size[2])
    geometry = layer.geometry
    height, width = (
        max(1, dilation * (kernel - 1) + 1 - 2 * padding)
        for kernel, dilation, padding in zip(
            geometry.kernel, geometry.dilation, geometry.padding, strict=True
        )
    )
    return height, width


def random_activations(
    config: EngineConfig, layer: EncodedLayer, n_samples: int, seed: int
) -> NDArray[np.int64]:
    """Uniform codes over the layer's whole activation range, shape as the layer's input.

    Raises
    ------
    GshwError
        For more samples than memory holds.
    """
    low, high = config.activation_range(layer.requantisation.signed_input)
    shape = (n_samples, *input_size(layer), layer.geometry.in_channels)
    generator = np.random.default_rng(seed)
    try:
        return generator.integers(low, high + 1, shape)
    except (MemoryError, ValueError):
        raise GshwError(
            f"layer {layer.name!r}: its input must fit into memory, not {n_samples} samples of "
            f"{'x'.join(map(str, shape[1:]))} codes"
        ) from None


def chain_input(layer: EncodedLayer, codes: NDArray) -> NDArray:
    """Reshape one layer's output codes as the next one's input: flatten before a linear layer.

    Parameters
    ----------
    codes
        Shape (n_samples, height, width, channels).
    """
    if layer.geometry.in_channels == codes.shape[3]:
        return codes
    return codes.reshape(codes.shape[0], -1)
