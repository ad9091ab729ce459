"""Functions of single values as tables of codes, on the host or behind the node before."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.network.graph import Tensor
from gshw.quantise import quantise_activations
from pruning.networks.float_graph import FloatHostNode, FloatNetwork, FloatNode


def codes_of(
    config: EngineConfig, node: FloatHostNode, source: Tensor, target: Tensor
) -> NDArray[np.int64]:
    """A function's codes for every code of its source, from the lowest on."""
    low, high = config.activation_range(source.signed)
    assert node.apply is not None, "a table is of a function"
    values = node.apply(torch.arange(low, high + 1, dtype=torch.float64) * source.scale)
    return quantise_activations(config, values.numpy(), target.scale, target.signed)


def table_by_bits(
    config: EngineConfig, node: FloatHostNode, source: Tensor, target: Tensor
) -> NDArray[np.int64]:
    """The same in the order of the codes' bits, as the engine has it."""
    low, _ = config.activation_range(source.signed)
    return np.roll(codes_of(config, node, source, target), low)


def join_tables(config: EngineConfig, network: FloatNetwork) -> FloatNetwork:
    """On engines with tables, functions become part of the node whose results only they read."""
    if not config.activation_tables:
        return network
    readers: dict[str, int] = {}
    for node in network.nodes:
        for name in node.tensors_read:
            readers[name] = readers.get(name, 0) + 1
    made = {node.name: node for node in network.matrices}
    joined: dict[str, FloatHostNode] = {}
    for node in network.nodes:
        if isinstance(node, FloatHostNode) and node.function == "table":
            name = node.sources[0].tensor
            if name in made and readers[name] == 1 and name not in network.outputs:
                joined[name] = node
    gone = {id(node) for node in joined.values()}
    nodes = (
        replace(node, table=joined.get(node.name)) if isinstance(node, FloatNode) else node
        for node in network.nodes
        if id(node) not in gone
    )
    return replace(network, nodes=tuple(nodes))
