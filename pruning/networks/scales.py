"""Scale and sign of every tensor, and which tensors must have one."""

import hashlib

import numpy as np

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.network.graph import Tensor
from gshw.quantise import activation_scale
from pruning.networks.affine import Term
from pruning.networks.float_graph import FloatHostNode, FloatNetwork, FloatNode, FloatTensor


def matrix_of(term: Term) -> tuple:
    """What says which matrix a term has: where its weight lies, or the weight without a name."""
    if term.key is None:
        known = hashlib.sha256(np.ascontiguousarray(term.weight)).digest()
    else:
        place = term.weight.__array_interface__
        known = place["data"], place["shape"], place["strides"]
    return known, term.columns, term.channels, term.groups, term.window, term.tap


class _Ties:
    """Tensors that must have one scale, because one layer or one table serves them all."""

    def __init__(self, network: FloatNetwork) -> None:
        self._tensors = network.tensors
        self._parent = {name: name for name in network.tensors}
        self._members = {name: [name] for name in network.tensors}
        by_keys: dict[tuple, FloatNode | FloatHostNode] = {}
        for node in network.nodes:
            if isinstance(node, FloatHostNode):
                known = (node.function, id(node.table)) if node.key is not None else None
                if node.function == "attention":
                    self._tie(node.targets[0].tensor, node.sources[2].tensor)
            else:
                # What has no weights of a name is known by what it reads, too.
                terms = node.affine.terms
                named = [term.key or self.of(term.tensor) for term in terms]
                function = None if node.table is None else node.table.kind
                known = (*named, *map(matrix_of, terms), node.low, node.high, function)
            if known is None:
                continue
            other = by_keys.setdefault(known, node)
            for one, two in zip(other.tensors_read, node.tensors_read, strict=True):
                if not network.tensors[one].host:
                    self._tie(one, two)
            for one, two in zip(_written(other), _written(node), strict=True):
                self._tie(one, two)

    def of(self, name: str) -> str:
        """The tensor that stands for all that this one is tied to."""
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def _tie(self, one: str, two: str) -> None:
        """Not where one has the scale of a fraction, and the other needs more."""
        one, two = self.of(one), self.of(two)
        if one == two:
            return
        both = [self._tensors[name] for name in self._members[one] + self._members[two]]
        if any(t.fraction for t in both) and max(t.magnitude for t in both) > 1:
            return
        self._parent[two] = one
        self._members[one] += self._members.pop(two)


def _written(node: FloatNode | FloatHostNode) -> tuple[str, ...]:
    """What a node computes, and what it writes."""
    if isinstance(node, FloatNode):
        return node.name, node.output
    return (node.targets[0].tensor,)


def scaled_tensors(config: EngineConfig, network: FloatNetwork) -> dict[str, Tensor]:
    """Scale and sign of every tensor: all that one node reads have one sign."""
    ties = _Ties(network)
    classes: dict[str, list[str]] = {}
    for name in network.tensors:
        classes.setdefault(ties.of(name), []).append(name)
    floats = network.tensors
    signed = {
        name: any(not floats[other].nonnegative for other in classes[ties.of(name)])
        for name in floats
    }
    reads = [
        {name for name in node.tensors_read if not floats[name].host} for node in network.nodes
    ]
    groups = [*map(set, classes.values()), *reads]
    changing = True
    while changing:
        changing = False
        for group in groups:
            if any(signed[name] for name in group) and not all(signed[name] for name in group):
                signed |= dict.fromkeys(group, True)
                changing = True

    def tensor(found: FloatTensor) -> Tensor:
        group = [floats[name] for name in classes[ties.of(found.name)]]
        magnitude = max(other.magnitude for other in group)
        if not np.isfinite(magnitude):
            raise GshwError(f"tensor {found.name!r}: values must be finite")
        scale = activation_scale(config, magnitude, signed[found.name])
        if any(other.fraction for other in group):
            scale = 2.0 ** (1 - config.activation_width)
        return Tensor(
            name=found.name,
            size=found.size,
            channels=found.channels,
            scale=1.0 if found.host else scale,
            signed=signed[found.name],
            host=found.host,
        )

    return {name: tensor(found) for name, found in floats.items()}
