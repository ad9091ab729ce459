"""The golden executor: every tensor of a network, exactly."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.golden import run_layer
from gshw.network.graph import MatrixNode, Network, Tensor


def check_codes(config: EngineConfig, tensor: Tensor, codes: NDArray) -> NDArray[np.int64]:
    """Validate codes for a tensor.

    Raises
    ------
    GshwError
        Naming the tensor: a wrong shape or dtype, or a code out of range.
    """
    x = np.asarray(codes)
    if not np.issubdtype(x.dtype, np.integer):
        raise GshwError(f"tensor {tensor.name!r}: codes must be integers, not {x.dtype}")
    shape = (*tensor.size, tensor.channels)
    if x.ndim != 4 or x.shape[1:] != shape or not x.shape[0]:
        raise GshwError(
            f"tensor {tensor.name!r} must have shape (samples, {shape[0]}, {shape[1]}, "
            f"{shape[2]}), not {x.shape}"
        )
    low, high = config.activation_range(tensor.signed)
    if x.min() < low or x.max() > high:
        raise GshwError(
            f"tensor {tensor.name!r}: codes must be within {low}..{high}, not {x.min()}..{x.max()}"
        )
    return x.astype(np.int64)


def check_inputs(
    config: EngineConfig, network: Network, inputs: Mapping[str, NDArray]
) -> dict[str, NDArray[np.int64]]:
    """Validate the codes of all inputs.

    Raises
    ------
    GshwError
        As :func:`check_codes`, and for an input that is missing.
    """
    for name in network.inputs:
        if name not in inputs:
            raise GshwError(f"input {name!r} is missing")
    tensors = network.tensors
    return {name: check_codes(config, tensors[name], inputs[name]) for name in network.inputs}


def node_input(node: MatrixNode, codes: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """The parts of a node's input side by side, shape (n_samples, height, width, channels)."""
    pieces = []
    for source in node.sources:
        stop = None if source.channels is None else source.first + source.channels
        tensor = codes[source.tensor]
        pieces.append(tensor[:, :: source.step[0], :: source.step[1], source.first : stop])
    return folded(np.concatenate(pieces, axis=3), node.fold)


def folded(codes: NDArray, fold: int) -> NDArray:
    """One line as ``fold`` lines: (n, 1, width, c) to (n, fold, width / fold, c)."""
    if fold == 1:
        return codes
    n_samples, _, width, channels = codes.shape
    return codes.reshape(n_samples, width // fold, fold, channels).swapaxes(1, 2)


def unfolded(codes: NDArray, fold: int) -> NDArray:
    """Inverse of :func:`folded`."""
    if fold == 1:
        return codes
    n_samples, _, width, channels = codes.shape
    return codes.swapaxes(1, 2).reshape(n_samples, 1, width * fold, channels)


def execute(
    config: EngineConfig,
    network: Network,
    inputs: Mapping[str, NDArray],
    *,
    on_node: Callable[[str], None] = lambda name: None,
) -> dict[str, NDArray[np.int64]]:
    """Codes of every tensor.

    Parameters
    ----------
    inputs
        Codes by name, shape (n_samples, height, width, channels) each.
    on_node
        Called with the name of every node before it is computed.

    Raises
    ------
    GshwError
        For another engine, or inputs that are missing or do not match.
    """
    network.check_config(config)
    codes = check_inputs(config, network, inputs)
    for node in network.nodes:
        on_node(node.name)
        layer = network.layers[node.layer]
        found = unfolded(run_layer(config, layer, node_input(node, codes)), node.fold)
        tensor = network.tensors[node.output]
        if node.output not in codes:
            codes[node.output] = np.zeros((*found.shape[:3], tensor.channels), dtype=np.int64)
        codes[node.output][..., node.first : node.first + layer.n_rows] = found
    return codes
