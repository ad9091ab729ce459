"""Where tensors and weights of a network lie in the core's memory, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.errors import GshwError
from gshw.golden import unfold_windows
from gshw.image import LayerImage
from gshw.lowering import LayerMemory, aligned
from gshw.network.graph import MatrixNode, Network
from gshw.network.part import tensors_written
from gshw.program_model import pack_codes
from gshw.transfers import TensorLayout, tensor_layout


@dataclass(frozen=True)
class Lifetime:
    """When a tensor's memory is its own, by the numbers of nodes.

    Parameters
    ----------
    begin
        Its first writer; -1 for an input.
    end
        Its last reader or writer; after all nodes for an output.
    """

    begin: int
    end: int

    def meets(self, other: "Lifetime") -> bool:
        """Whether both need their memory at one time.

        A node that reads one and writes the other needs both: its later tiles are loaded after its
        first ones are stored. Between nodes, stores wait for sums, which wait for all loads before.
        """
        return self.begin <= other.end and other.begin <= self.end


def lifetimes(network: Network) -> dict[str, Lifetime]:
    """Of every tensor of the core's."""
    begin = dict.fromkeys(network.inputs, -1)
    end = dict.fromkeys(network.inputs, -1)
    for place, node in enumerate(network.nodes):
        for name in tensors_written(node):
            begin.setdefault(name, place)
            end[name] = place
        for source in node.sources:
            end[source.tensor] = place
    end |= dict.fromkeys(network.outputs, len(network.nodes))
    return {
        name: Lifetime(begin[name], end[name])
        for name, tensor in network.tensors.items()
        if not tensor.host and name in begin
    }


def place_tensors(
    config: Config, network: Network, n_samples: int, *, reuse: bool
) -> tuple[dict[str, TensorLayout], int]:
    """Layout of every tensor, from address 0 on, and the end of the last.

    Parameters
    ----------
    reuse
        Tensors that do not live at one time may lie at one place: the largest first, each as low
        as those before it let it. Otherwise every tensor has memory of its own.

    Raises
    ------
    GshwError
        Where what is unfolded is no input of its own.
    """
    shapes = {
        name: (*tensor.size, tensor.channels)
        for name, tensor in network.tensors.items()
        if not tensor.host
    }
    for node in network.matrices:
        geometry = network.layers[node.layer].geometry
        if not geometry.unfold:
            continue
        name = node.sources[0].tensor
        readers = [other for other in network.nodes if name in {s.tensor for s in other.sources}]
        if name not in network.inputs or len(readers) > 1:
            raise GshwError(
                f"node {node.name!r} is unfolded, so it must be the only one to read an input"
            )
        shapes[name] = (*geometry.output_size(*shapes[name][:2]), geometry.stored_channels)
    sizes = {
        name: aligned(tensor_layout(config, (n_samples, *shape), 0).n_bytes)
        for name, shape in shapes.items()
    }
    starts = _packed(sizes, lifetimes(network)) if reuse else _one_after_another(sizes)
    layouts = {
        name: tensor_layout(config, (n_samples, *shape), starts[name])
        for name, shape in shapes.items()
    }
    return layouts, max(starts[name] + size for name, size in sizes.items())


def _one_after_another(sizes: Mapping[str, int]) -> dict[str, int]:
    ends = np.cumsum(list(sizes.values()))
    return {name: int(end) - sizes[name] for name, end in zip(sizes, ends, strict=True)}


def _packed(sizes: Mapping[str, int], lives: Mapping[str, Lifetime]) -> dict[str, int]:
    starts: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        taken = sorted(
            (start, start + sizes[other])
            for other, start in starts.items()
            if name not in lives or other not in lives or lives[name].meets(lives[other])
        )
        place = 0
        for start, end in taken:
            if place + sizes[name] <= start:
                break
            place = max(place, end)
        starts[name] = place
    return starts


def tensors_that_remain(network: Network, layouts: Mapping[str, TensorLayout]) -> tuple[str, ...]:
    """Tensors that no later one has overwritten when all is done."""
    lives = lifetimes(network)

    def overwrites(other: str, name: str) -> bool:
        a, b = layouts[name], layouts[other]
        meet = a.address < b.address + b.n_bytes and b.address < a.address + a.n_bytes
        return meet and other in lives and lives[other].begin > lives[name].end

    return tuple(
        name
        for name in layouts
        if name not in lives or not any(overwrites(other, name) for other in layouts)
    )


def input_bytes(config: Config, network: Network, name: str, codes: NDArray[np.int64]) -> bytes:
    """What must lie at a tensor's address; ``codes`` as for the executor."""
    for node in network.matrices:
        geometry = network.layers[node.layer].geometry
        if geometry.unfold and node.sources[0].tensor == name:
            codes = unfold_windows(geometry, codes)
    return pack_codes(config.engine, codes).tobytes()


def node_memory(
    config: Config,
    node: MatrixNode,
    image: LayerImage,
    layouts: Mapping[str, TensorLayout],
    weights: tuple[int, int, int],
) -> LayerMemory:
    """Where a node's groups, records, parts and results lie."""
    sources = []
    for source, n in zip(node.sources, image.layer.geometry.stored_part_channels, strict=True):
        layout = layouts[source.tensor].window(source.start, source.size)
        sources.append(layout.every(source.step).part(config, source.first, n).folded(node.fold))
    output = layouts[node.output].part(config, node.first, image.layer.n_rows)
    return LayerMemory(
        groups=weights[0],
        records=weights[1],
        table=None if image.layer.requantisation.table is None else weights[2],
        sources=tuple(sources),
        result=output.folded(node.fold),
    )
