"""The golden executor: every tensor of a network, exactly."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.golden import run_layer
from gshw.network.graph import HostNode, MatrixNode, Network, Tensor
from gshw.network.host import FUNCTIONS


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
    if tensor.host:
        return x.astype(np.int64)
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


def node_input(
    network: Network, node: MatrixNode, codes: Mapping[str, NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The parts of a node's input side by side, shape (n_samples, height, width, channels)."""
    pieces = [codes[s.tensor][s.index(network.tensors[s.tensor])] for s in node.sources]
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
    n_samples = len(next(iter(codes.values())))
    codes |= {
        name: np.zeros((n_samples, *tensor.size, tensor.channels), dtype=np.int64)
        for name, tensor in network.tensors.items()
        if name not in codes
    }
    for node in network.nodes:
        on_node(node.name)
        if isinstance(node, HostNode):
            run_host_node(config, network, node, codes)
            continue
        layer = network.layers[node.layer]
        found = unfolded(run_layer(config, layer, node_input(network, node, codes)), node.fold)
        codes[node.output][..., node.first : node.first + layer.n_rows] = found
    return codes


def run_host_node(
    config: EngineConfig,
    network: Network,
    node: HostNode,
    codes: Mapping[str, NDArray[np.int64]],
) -> None:
    """Compute a host node's targets in place.

    Raises
    ------
    GshwError
        Naming the node, for results that its targets cannot hold.
    """
    sources = [codes[s.tensor][s.index(network.tensors[s.tensor])] for s in node.sources]
    tables = [network.tables[name] for name in node.tables]
    try:
        found = FUNCTIONS[node.function](sources, tables, node.numbers)
    except GshwError as error:
        raise GshwError(f"node {node.name!r}: {error}") from None
    for target, values in zip(node.targets, found, strict=True):
        tensor = network.tensors[target.tensor]
        place = codes[target.tensor][target.index(tensor)]
        if values.shape != place.shape:
            raise GshwError(
                f"node {node.name!r}: {target.tensor!r} must be of shape {place.shape}, "
                f"not {values.shape}"
            )
        low, high = config.activation_range(tensor.signed)
        if not tensor.host and (values.min() < low or values.max() > high):
            raise GshwError(
                f"node {node.name!r}: codes must be within {low}..{high}, not "
                f"{values.min()}..{values.max()}"
            )
        place[...] = values
