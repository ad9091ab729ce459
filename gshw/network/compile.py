"""From an integer network to one program and its memory."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.errors import GshwError
from gshw.golden import unfold_windows
from gshw.image import LayerImage
from gshw.lower import (
    Segment,
    check_addressable,
    check_base_address,
    choose_plan,
    tensor_codes,
)
from gshw.lowering import (
    LayerMemory,
    Lowering,
    Slots,
    aligned,
    group_bytes,
    record_bytes,
)
from gshw.network.graph import MatrixNode, Network
from gshw.plan import Plan
from gshw.program import INSTRUCTION_BYTES, Unit, assemble
from gshw.program_builder import ProgramBuilder
from gshw.program_model import pack_codes
from gshw.transfers import TensorLayout, tensor_layout


@dataclass(frozen=True, kw_only=True)
class NodeProgram:
    """A node's share of the program.

    Parameters
    ----------
    instructions
        Ranges (first, stop) of its instructions, the header being 0. Stores lie among those of
        the next node.
    last_command
        Its last instruction of compute.
    """

    name: str
    instructions: tuple[tuple[int, int], ...]
    last_command: int


@dataclass(frozen=True, kw_only=True)
class CompiledNetwork:
    """A network ready to run: one program, its memory, and where every tensor lies.

    Parameters
    ----------
    segments
        What must be in memory beforehand; the program is first.
    layouts
        Of every tensor; of an input that is unfolded, its windows.
    n_bytes
        All of the memory, from ``base_address`` on.
    nodes
        In order.
    """

    config: Config
    network: Network
    n_samples: int
    segments: tuple[Segment, ...]
    layouts: Mapping[str, TensorLayout]
    base_address: int
    n_bytes: int
    nodes: tuple[NodeProgram, ...]

    @property
    def program(self) -> bytes:
        """The binary program."""
        return self.segments[0].data

    @property
    def program_address(self) -> int:
        return self.segments[0].address

    def input_bytes(self, name: str, codes: NDArray[np.int64]) -> bytes:
        """What must lie at an input's address; ``codes`` as for the executor."""
        for node in self.network.nodes:
            geometry = self.network.layers[node.layer].geometry
            if geometry.unfold and node.sources[0].tensor == name:
                codes = unfold_windows(geometry, codes)
        return pack_codes(self.config.engine, codes).tobytes()

    def read_tensor(self, name: str, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Codes of the bytes of a tensor's layout."""
        signed = self.network.tensors[name].signed
        return tensor_codes(self.config, self.layouts[name], data, signed=signed)


@dataclass(frozen=True)
class _Planned:
    """A node with its tiling, before it has addresses."""

    node: MatrixNode
    image: LayerImage
    slots: Slots
    plan: Plan


def compile_network(
    config: Config,
    network: Network,
    n_samples: int = 1,
    *,
    base_address: int = 0,
    on_node: Callable[[str], None] = lambda name: None,
) -> CompiledNetwork:
    """Tile, place and schedule a network.

    Every tensor has memory of its own, so all of them can be compared after a run.

    Parameters
    ----------
    on_node
        Called with the name of every node before it is planned.

    Raises
    ------
    GshwError
        For another engine, a layer that does not fit the buffers, or too little memory.
    """
    engine = config.engine
    network.check_config(engine)
    check_base_address(base_address)
    planned = []
    for node in network.nodes:
        on_node(node.name)
        image = LayerImage(engine, network.layers[node.layer])
        slots, lowering = choose_plan(config, image, n_samples, *network.input_size(node))
        planned.append(_Planned(node, image, slots, lowering.plan))
    layouts, end = _place_tensors(config, network, n_samples)
    memories = []
    for item in planned:
        groups = end
        records = groups + aligned(item.image.n_groups * group_bytes(config))
        end = records + aligned(item.image.n_records * record_bytes(config))
        channels = item.image.layer.geometry.stored_part_channels
        sources = tuple(
            layouts[s.tensor].every(s.step).part(config, s.first, n).folded(item.node.fold)
            for s, n in zip(item.node.sources, channels, strict=True)
        )
        output = layouts[item.node.output].part(config, item.node.first, item.image.layer.n_rows)
        result = output.folded(item.node.fold)
        memories.append(LayerMemory(groups=groups, records=records, sources=sources, result=result))
    builder, nodes = _schedule(config, planned, memories)
    data = base_address + aligned((len(builder.steps) + 1) * INSTRUCTION_BYTES)
    check_addressable(config, data + end, "the network")
    segments = [
        Segment("program", base_address, assemble(engine.hash32, builder.instructions(data)))
    ]
    for item, memory in zip(planned, memories, strict=True):
        name = item.node.name
        groups = item.image.pack_groups(item.plan.pitch).tobytes()
        segments.append(Segment(f"{name}.groups", data + memory.groups, groups))
        records = item.image.pack_records().tobytes()
        segments.append(Segment(f"{name}.records", data + memory.records, records))
    return CompiledNetwork(
        config=config,
        network=network,
        n_samples=n_samples,
        segments=tuple(segments),
        layouts={
            name: dataclasses.replace(layout, address=data + layout.address)
            for name, layout in layouts.items()
        },
        base_address=base_address,
        n_bytes=data + end - base_address,
        nodes=nodes,
    )


def _place_tensors(
    config: Config, network: Network, n_samples: int
) -> tuple[dict[str, TensorLayout], int]:
    """Layout of every tensor, from address 0 on, and the end of the last."""
    shapes = {name: (*tensor.size, tensor.channels) for name, tensor in network.tensors.items()}
    for node in network.nodes:
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
    layouts, address = {}, 0
    for name, shape in shapes.items():
        layouts[name] = tensor_layout(config, (n_samples, *shape), address)
        address += aligned(layouts[name].n_bytes)
    return layouts, address


def _schedule(
    config: Config, planned: list[_Planned], memories: list[LayerMemory]
) -> tuple[ProgramBuilder, tuple[NodeProgram, ...]]:
    """The steps of all nodes, one after the other.

    Weights of the next node are loaded while the last results of the one before are stored; its
    inputs wait for them.
    """
    commands = []
    lowering: Lowering | None = None
    for item, memory in zip(planned, memories, strict=True):
        lowering = Lowering(config, item.plan, item.slots, memory, before=lowering)
        commands.append(lowering.builder.last(Unit.COMPUTE) + 1)
    assert lowering is not None, "a network has nodes"
    lowering.finish()
    owners = np.array([step.owner for step in lowering.builder.steps])
    nodes = [
        NodeProgram(name=item.node.name, instructions=_ranges(owners == number), last_command=last)
        for number, (item, last) in enumerate(zip(planned, commands, strict=True))
    ]
    return lowering.builder, tuple(nodes)


def _ranges(own: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Ranges of instructions of the steps that are marked; the header comes before them."""
    edges = np.flatnonzero(np.diff(own.astype(np.int8), prepend=0, append=0)) + 1
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))
