"""Some nodes of a network as a network of their own."""

from dataclasses import replace

from gshw.errors import GshwError
from gshw.network.graph import HostNode, MatrixNode, Network


def part_of(network: Network, first: str | None = None, last: str | None = None) -> Network:
    """The nodes from ``first`` to ``last``; None: from the beginning, to the end.

    Nodes that write one tensor stay together, so the part may begin earlier and end later. Inputs
    are the tensors that it reads and does not write; outputs those that nobody in it reads, and
    outputs of the whole.

    Raises
    ------
    GshwError
        For a node that the network does not have, and a last one before the first.
    """
    start = 0 if first is None else _place(network, first)
    stop = len(network.nodes) if last is None else _place(network, last) + 1
    if start >= stop:
        raise GshwError(f"node {last!r} must not come before node {first!r}")
    written = [tensors_written(node) for node in network.nodes]
    grows = True
    while grows:
        inside = set().union(*written[start:stop])
        ours = [n for n, names in enumerate(written) if names & inside]
        grows = ours[0] < start or ours[-1] >= stop
        start, stop = min(start, ours[0]), max(stop, ours[-1] + 1)
    nodes = network.nodes[start:stop]
    inside = set().union(*written[start:stop])
    read = {source.tensor for node in nodes for source in node.sources}
    layers = {node.layer for node in nodes if isinstance(node, MatrixNode)}
    tables = {name for node in nodes if isinstance(node, HostNode) for name in node.tables}
    return replace(
        network,
        tensors={name: t for name, t in network.tensors.items() if name in read | inside},
        nodes=nodes,
        layers={name: layer for name, layer in network.layers.items() if name in layers},
        tables={name: table for name, table in network.tables.items() if name in tables},
        inputs=tuple(name for name in network.tensors if name in read - inside),
        outputs=tuple(
            name
            for name in network.tensors
            if name in inside and (name not in read or name in network.outputs)
        ),
    )


def _place(network: Network, name: str) -> int:
    names = [node.name for node in network.nodes]
    if name not in names:
        few = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise GshwError(f"no node {name!r}; the network's nodes are {few}")
    return names.index(name)


def tensors_written(node: MatrixNode | HostNode) -> set[str]:
    """Names of the tensors that a node writes, or writes a part of."""
    if isinstance(node, MatrixNode):
        return {node.output}
    return {target.tensor for target in node.targets}
