"""From an integer network to programs and their memory."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.errors import GshwError
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
    table_bytes,
)
from gshw.network.graph import HostNode, MatrixNode, Network
from gshw.network.memory import input_bytes, node_memory, place_tensors, tensors_that_remain
from gshw.plan import Plan
from gshw.program import INSTRUCTION_BYTES, Unit, assemble
from gshw.program_builder import ProgramBuilder
from gshw.transfers import TensorLayout


@dataclass(frozen=True, kw_only=True)
class NodeProgram:
    """A matrix node's share of its program.

    Parameters
    ----------
    program
        Which one.
    instructions
        Ranges (first, stop) of its instructions, the header being 0. Stores lie among those of
        the next node.
    last_command
        Its last instruction of compute.
    """

    name: str
    program: int
    instructions: tuple[tuple[int, int], ...]
    last_command: int


@dataclass(frozen=True, kw_only=True)
class CompiledNetwork:
    """A network ready to run: its programs, their memory, and where every tensor lies.

    Parameters
    ----------
    segments
        What must be in memory beforehand; the programs come first.
    layouts
        Of every tensor that the core knows; of an input that is unfolded, its windows.
    n_bytes
        All of the memory, from ``base_address`` on.
    nodes
        Of the network's matrices, in order. Those between two host nodes are one program.
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
    def programs(self) -> tuple[Segment, ...]:
        """The binary programs, in order."""
        return self.segments[: self.nodes[-1].program + 1]

    @property
    def steps(self) -> Iterator[Segment | HostNode]:
        """What the host has to do: programs to start, and nodes of its own."""
        programs = {node.name: node.program for node in self.nodes}
        started = -1
        for node in self.network.nodes:
            if isinstance(node, HostNode):
                yield node
            elif programs[node.name] > started:
                started = programs[node.name]
                yield self.segments[started]

    def input_bytes(self, name: str, codes: NDArray[np.int64]) -> bytes:
        """What must lie at a tensor's address; ``codes`` as for the executor."""
        return input_bytes(self.config, self.network, name, codes)

    @property
    def remaining(self) -> tuple[str, ...]:
        """Tensors of the core's that are still in its memory at the end."""
        return tensors_that_remain(self.network, self.layouts)

    def read_tensor(self, name: str, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Codes of the bytes of a tensor's layout."""
        signed = self.network.tensors[name].signed
        return tensor_codes(self.config, self.layouts[name], data, signed=signed)


@dataclass(frozen=True)
class _Planned:
    """A layer with its tiling for one input size, before it has addresses.

    ``name`` is the layer's; of further sizes it says which.
    """

    name: str
    image: LayerImage
    slots: Slots
    plan: Plan


class _Planner:
    """Plans every layer once for every input size."""

    def __init__(self, config: Config, network: Network, n_samples: int) -> None:
        self._config, self._network, self._n_samples = config, network, n_samples
        self._images: dict[str, LayerImage] = {}
        self._found: dict[tuple[str, tuple[int, int]], _Planned] = {}

    def plan(self, node: MatrixNode) -> _Planned:
        size = self._network.input_size(node)
        if node.layer not in self._images:
            layer = self._network.layers[node.layer]
            self._images[node.layer] = LayerImage(self._config.engine, layer)
        if (node.layer, size) not in self._found:
            image = self._images[node.layer]
            slots, lowering = choose_plan(self._config, image, self._n_samples, *size)
            name = node.layer
            if any(layer == name for layer, _ in self._found):
                name = f"{name}@{size[0]}x{size[1]}"
            self._found[node.layer, size] = _Planned(name, image, slots, lowering.plan)
        return self._found[node.layer, size]


def compile_network(
    config: Config,
    network: Network,
    n_samples: int = 1,
    *,
    base_address: int = 0,
    reuse_memory: bool = False,
    on_node: Callable[[str], None] = lambda name: None,
) -> CompiledNetwork:
    """Tile, place and schedule a network.

    Parameters
    ----------
    reuse_memory
        A tensor's memory is used again after its last reader. Otherwise every tensor has memory of
        its own, so all of them can be compared after a run.
    on_node
        Called with the name of every matrix before it is planned.

    Raises
    ------
    GshwError
        For another engine, a layer that does not fit the buffers, or too little memory.
    """
    engine = config.engine
    network.check_config(engine)
    check_base_address(base_address)
    if not network.matrices:
        raise GshwError("the network has nothing for the engine: no matrix")
    planner, planned = _Planner(config, network, n_samples), []
    for node in network.matrices:
        on_node(node.name)
        planned.append(planner.plan(node))
    layouts, end = place_tensors(config, network, n_samples, reuse=reuse_memory)
    weights, end = _place_weights(config, planned, end)
    memories = [
        node_memory(config, node, item.image, layouts, weights[item.name])
        for node, item in zip(network.matrices, planned, strict=True)
    ]
    builders, nodes = _schedule(config, network, planned, memories)
    data = base_address
    addresses = []
    for builder in builders:
        addresses.append(data)
        data += aligned((len(builder.steps) + 1) * INSTRUCTION_BYTES)
    check_addressable(config, data + end, "the network")
    segments = [
        Segment(f"program.{n}", address, assemble(engine.hash32, builder.instructions(data)))
        for n, (address, builder) in enumerate(zip(addresses, builders, strict=True))
    ]
    for name, item in {item.name: item for item in planned}.items():
        place = weights[name]
        groups = item.image.pack_groups(item.plan.pitch).tobytes()
        segments.append(Segment(f"{name}.groups", data + place[0], groups))
        records = item.image.pack_records().tobytes()
        segments.append(Segment(f"{name}.records", data + place[1], records))
        if item.image.layer.requantisation.table is not None:
            table = item.image.pack_table().tobytes()
            segments.append(Segment(f"{name}.table", data + place[2], table))
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


def _place_weights(
    config: Config, planned: Sequence[_Planned], end: int
) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Addresses of groups, records and table by the plan's name, and the end of the last."""
    found: dict[str, tuple[int, int, int]] = {}
    for item in planned:
        if item.name in found:
            continue
        records = end + aligned(item.image.n_groups * group_bytes(config))
        table = records + aligned(item.image.n_records * record_bytes(config))
        found[item.name] = end, records, table
        end = table + aligned(table_bytes(config, item.image.layer))
    return found, end


def _schedule(
    config: Config,
    network: Network,
    planned: Sequence[_Planned],
    memories: Sequence[LayerMemory],
) -> tuple[list[ProgramBuilder], tuple[NodeProgram, ...]]:
    """Programs of all matrices, one for those that no host node comes between.

    Weights of the next node are loaded while the last results of the one before are stored; its
    inputs wait for them.
    """
    builders: list[ProgramBuilder] = []
    nodes: list[NodeProgram] = []
    lowering: Lowering | None = None
    commands: list[tuple[str, int]] = []
    work = iter(zip(planned, memories, strict=True))

    def finish() -> None:
        nonlocal lowering
        if lowering is None:
            return
        lowering.finish()
        owners = np.array([step.owner for step in lowering.builder.steps])
        for owner, (name, last) in enumerate(commands):
            nodes.append(
                NodeProgram(
                    name=name,
                    program=len(builders),
                    instructions=_ranges(owners == owner),
                    last_command=last,
                )
            )
        builders.append(lowering.builder)
        lowering = None
        commands.clear()

    for node in network.nodes:
        if isinstance(node, HostNode):
            finish()
            continue
        item, memory = next(work)
        lowering = Lowering(config, item.plan, item.slots, memory, before=lowering)
        commands.append((node.name, lowering.builder.last(Unit.COMPUTE) + 1))
    finish()
    return builders, tuple(nodes)


def _ranges(own: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Ranges of instructions of the steps that are marked; the header comes before them."""
    edges = np.flatnonzero(np.diff(own.astype(np.int8), prepend=0, append=0)) + 1
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))
