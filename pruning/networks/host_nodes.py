"""Host nodes in integers: their tables and numbers."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.network.graph import HostNode, Tensor
from gshw.network.host import EXPONENT_STEPS, exponentials, lstm_tables
from gshw.quantise import quantise_activations, to_fixed
from pruning.networks.float_graph import FloatHostNode


def host_node(
    config: EngineConfig,
    node: FloatHostNode,
    tensors: Mapping[str, Tensor],
    tables: dict[str, NDArray],
) -> HostNode:
    """A host node for tensors of these scales; adds what it looks up to ``tables``."""
    names: tuple[str, ...] = ()
    numbers: dict[str, int] = {}
    target = tensors[node.targets[0].tensor]
    match node.function:
        case "lstm_cell":
            names, numbers = _lstm(config, tensors[node.sources[0].tensor], tables)
        case "embedding":
            assert node.key is not None and node.table is not None, "an embedding has a table"
            names = (node.key,)
            codes = quantise_activations(config, node.table, target.scale, target.signed)
            tables[node.key] = codes.astype(np.min_scalar_type(-int(np.abs(codes).max()) - 1))
        case "attention":
            names = ("exponentials",)
            tables["exponentials"] = exponentials()
            scales = [tensors[source.tensor].scale for source in node.sources[:2]]
            step = np.array([scales[0] * scales[1] * node.factor * EXPONENT_STEPS])
            multiplier, shift = to_fixed(step)
            numbers = {"multiplier": int(multiplier[0]), "shift": int(shift[0])}
        case "table":
            source = tensors[node.sources[0].tensor]
            low, high = config.activation_range(source.signed)
            assert node.apply is not None, "a table is of a function"
            values = node.apply(torch.arange(low, high + 1, dtype=torch.float64) * source.scale)
            names, numbers = (node.name,), {"low": low}
            tables[node.name] = quantise_activations(
                config, values.numpy(), target.scale, target.signed
            )
        case "multiply":
            scales = [tensors[source.tensor].scale for source in node.sources]
            multiplier, shift = to_fixed(np.array([scales[0] * scales[1] / target.scale]))
            low, high = config.activation_range(target.signed)
            numbers = {"multiplier": int(multiplier[0]), "shift": int(shift[0])}
            numbers |= {"low": low, "high": high}
        case "fill":
            numbers = {"value": node.value, "width": target.size[1], "channels": target.channels}
    return HostNode(
        name=node.name,
        function=node.function,
        sources=node.sources,
        targets=node.targets,
        tables=names,
        numbers=numbers,
    )


def _lstm(
    config: EngineConfig, gates: Tensor, tables: dict[str, NDArray]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Gates of one scale share their tables."""
    low, high = config.activation_range(gates.signed)
    names = tuple(f"{kind} of {gates.scale!r}" for kind in ("sigmoid", "tanh"))
    names = (*names, "tanh of cells")
    tables |= zip(names, lstm_tables(gates.scale, low, high), strict=True)
    return names, {"low": low, "output_bits": config.activation_width - 1}
