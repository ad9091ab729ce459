"""The integer network: tensors of codes, and nodes that compute codes from codes.

``docs/networks.md`` is the contract.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import EncodedLayer
from gshw.errors import GshwError
from gshw.network.host import FUNCTIONS, NEEDS


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Codes of shape (n_samples, height, width, channels), channel-last.

    Parameters
    ----------
    name
        In its network.
    size
        (height, width).
    scale
        Float value of one code.
    signed
        Whether codes may be negative.
    host
        Whether only the host has it: its codes may then be any integers.
    """

    name: str
    size: tuple[int, int]
    channels: int
    scale: float
    signed: bool
    host: bool = False

    def __post_init__(self) -> None:
        if min(*self.size, self.channels) < 1:
            raise GshwError(
                f"tensor {self.name!r} must have at least one element, not "
                f"{self.size[0]} x {self.size[1]} x {self.channels}"
            )
        if not 0 < self.scale < float("inf"):
            raise GshwError(f"tensor {self.name!r}: scale must be positive, not {self.scale}")


@dataclass(frozen=True)
class Source:
    """A tensor as a node reads it, or as a host node writes it.

    Parameters
    ----------
    step
        Every so many lines and pixels.
    first, channels
        Range of channels; None: all from the first on.
    start, size
        Rectangle of pixels, before the steps; no size: all from the start on.
    """

    tensor: str
    step: tuple[int, int] = (1, 1)
    first: int = 0
    channels: int | None = None
    start: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None

    def channels_of(self, tensor: Tensor) -> range:
        """Channels that are read."""
        stop = tensor.channels if self.channels is None else self.first + self.channels
        return range(self.first, stop)

    def size_of(self, tensor: Tensor) -> tuple[int, int]:
        """Lines and pixels that are read."""
        rows, columns = self.pixels_of(tensor)
        return len(range(tensor.size[0])[rows]), len(range(tensor.size[1])[columns])

    def pixels_of(self, tensor: Tensor) -> tuple[slice, slice]:
        """Slices of lines and pixels that are read."""
        size = self.size or tensor.size
        rows, columns = (
            slice(start, start + extent, step)
            for start, extent, step in zip(self.start, size, self.step, strict=True)
        )
        return rows, columns

    def index(self, tensor: Tensor) -> tuple[slice, slice, slice, slice]:
        """Of what is read in the tensor's codes."""
        channels = self.channels_of(tensor)
        return (slice(None), *self.pixels_of(tensor), slice(channels.start, channels.stop))

    def fits(self, tensor: Tensor) -> bool:
        """Whether all of it is in the tensor."""
        size = self.size or (1, 1)
        inside = all(
            a >= 0 and b >= 1 and a + b <= c
            for a, b, c in zip(self.start, size, tensor.size, strict=True)
        )
        channels = self.channels_of(tensor)
        whole = 0 <= channels.start < channels.stop <= tensor.channels
        return inside and whole and min(self.step) >= 1


@dataclass(frozen=True, kw_only=True)
class MatrixNode:
    """One encoded layer over its parts.

    Parameters
    ----------
    layer
        Name of the encoded layer.
    sources
        One per part of the layer's geometry.
    output, first
        Tensor, and the channel where the layer's rows begin in it.
    fold
        The one line of every tensor is taken as so many lines, of every ``fold``-th pixel each: a
        dilated window is then one without gaps.
    label
        Name of the node where others share its layer.
    """

    layer: str
    sources: tuple[Source, ...]
    output: str
    first: int = 0
    fold: int = 1
    label: str = ""

    @property
    def name(self) -> str:
        """The label, or the layer's name where that is enough."""
        return self.label or self.layer


@dataclass(frozen=True, kw_only=True)
class HostNode:
    """What the host computes in integers; see :mod:`gshw.network.host`.

    Parameters
    ----------
    function
        Name in :data:`gshw.network.host.FUNCTIONS`.
    sources, targets
        What it reads and writes.
    tables
        Names of the network's tables.
    numbers
        Of the function.
    """

    name: str
    function: str
    sources: tuple[Source, ...]
    targets: tuple[Source, ...]
    tables: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network ready to be compiled, checked as a whole.

    Parameters
    ----------
    tensors
        By name.
    nodes
        In an order of execution.
    layers
        Encoded layers by name.
    tables
        Integers that host nodes look up, by name.
    inputs, outputs
        Tensors that come from and go to the host.
    provenance
        Free text by key.

    Raises
    ------
    GshwError
        Naming the node or tensor: one that is unknown, written twice or read before it is
        written; a shape, sign or number of parts that does not match the layer.
    """

    tensors: Mapping[str, Tensor]
    nodes: tuple[MatrixNode | HostNode, ...]
    layers: Mapping[str, EncodedLayer]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.inputs, *self.outputs):
            self._tensor("the network", name)
        written = {
            name: np.full((*tensor.size, tensor.channels), name in self.inputs)
            for name, tensor in self.tensors.items()
        }
        for node in self.nodes:
            for source in node.sources:
                if not self._place(node.name, source, written).all():
                    raise GshwError(
                        f"node {node.name!r} reads {source.tensor!r} before it is written"
                    )
            if isinstance(node, MatrixNode):
                if node.layer not in self.layers:
                    raise GshwError(f"node {node.name!r}: no encoded layer of that name")
                rows = self.layers[node.layer].n_rows
                targets = (Source(node.output, first=node.first, channels=rows),)
                self._tensor(f"node {node.name!r}", node.output)
                self._check_matrix(node)
            else:
                self._check_host(node)
                targets = node.targets
            for target in targets:
                before = self._place(node.name, target, written)
                if before.any():
                    raise GshwError(
                        f"node {node.name!r}: tensor {target.tensor!r} is written twice"
                    )
                before[...] = True
        for name in self.outputs:
            if not written[name].all():
                raise GshwError(f"output {name!r} is never written")

    @property
    def matrices(self) -> tuple[MatrixNode, ...]:
        """Nodes on the engine, in order."""
        return tuple(node for node in self.nodes if isinstance(node, MatrixNode))

    def _place(
        self, who: str, source: Source, written: Mapping[str, NDArray[np.bool_]]
    ) -> NDArray[np.bool_]:
        """What of a tensor is written, where the source lies: a view."""
        tensor = self._tensor(f"node {who!r}", source.tensor)
        if not source.fits(tensor):
            raise GshwError(f"node {who!r}: tensor {tensor.name!r} has no such pixels or channels")
        return written[tensor.name][source.index(tensor)[1:]]

    def _check_host(self, node: HostNode) -> None:
        if node.function not in FUNCTIONS:
            raise GshwError(
                f"node {node.name!r}: function must be one of {', '.join(FUNCTIONS)}, "
                f"not {node.function!r}"
            )
        found = len(node.sources), len(node.targets), len(node.tables), frozenset(node.numbers)
        wanted = NEEDS[node.function]
        if found != wanted:
            raise GshwError(
                f"node {node.name!r}: {node.function} has {wanted[0]} sources, "
                f"{wanted[1]} targets, {wanted[2]} tables and the numbers "
                f"{', '.join(sorted(wanted[3])) or 'none'}"
            )
        for name in node.tables:
            if name not in self.tables:
                raise GshwError(f"node {node.name!r} names the table {name!r}, which there is not")
            if not np.issubdtype(self.tables[name].dtype, np.integer):
                raise GshwError(f"table {name!r} must hold integers")

    def _tensor(self, who: str, name: str) -> Tensor:
        if name not in self.tensors:
            raise GshwError(f"{who} names the tensor {name!r}, which there is not")
        return self.tensors[name]

    def _check_matrix(self, node: MatrixNode) -> None:
        layer = self.layers[node.layer]
        geometry, stage = layer.geometry, layer.requantisation
        if node.fold > 1 and geometry.unfold:
            raise GshwError(f"node {node.name!r}: a folded line must not be unfolded, too")
        output = self.tensors[node.output]
        channels = [part.channels for part in geometry.parts] or [geometry.in_channels]
        sources = [(source, self.tensors[source.tensor]) for source in node.sources]
        found = [len(source.channels_of(tensor)) for source, tensor in sources]
        if found != channels:
            raise GshwError(f"node {node.name!r} must read parts of {channels} channels: {found}")
        for size in (*(source.size_of(tensor) for source, tensor in sources), output.size):
            if node.fold > 1 and (size[0] > 1 or size[1] % node.fold):
                raise GshwError(
                    f"node {node.name!r}: tensors must be one line of a multiple of {node.fold} "
                    f"pixels to be folded, not {size[0]} x {size[1]}"
                )
        size = sources[0][0].size_of(sources[0][1])
        for source, tensor in sources:
            if tensor.host:
                raise GshwError(f"node {node.name!r}: tensor {tensor.name!r} is the host's alone")
            if source.size_of(tensor) != size:
                raise GshwError(
                    f"node {node.name!r}: parts must be of one size, {size}, not "
                    f"{source.size_of(tensor)}"
                )
            if tensor.signed != stage.signed_input:
                raise GshwError(
                    f"node {node.name!r}: tensor {tensor.name!r} and the layer must have one sign"
                )
        wanted = geometry.output_size(*self.input_size(node))
        if node.fold > 1:
            wanted = (1, wanted[1] * node.fold)
        if output.size != wanted or output.channels < node.first + layer.n_rows:
            raise GshwError(
                f"node {node.name!r}: output must be of size {wanted} and have "
                f"{node.first + layer.n_rows} channels, not {output.size} and {output.channels}"
            )

    def check_config(self, config: EngineConfig) -> None:
        """Refuse an engine that the layers were not encoded for, and codes beyond a tensor's."""
        for node in self.matrices:
            layer = self.layers[node.layer]
            layer.check_config(config)
            low, high = config.activation_range(self.tensors[node.output].signed)
            stage = layer.requantisation
            what, lowest, highest = "clamp", stage.low, stage.high
            if stage.table is not None:
                what, lowest, highest = "table", int(stage.table.min()), int(stage.table.max())
            if lowest < low or highest > high:
                raise GshwError(
                    f"node {node.name!r}: {what} must be within {low}..{high}, the codes of its "
                    f"output, not {lowest}..{highest}"
                )

    def input_size(self, node: MatrixNode) -> tuple[int, int]:
        """Lines and pixels of a node's input as its layer sees them, before padding."""
        height, width = node.sources[0].size_of(self.tensors[node.sources[0].tensor])
        return height * node.fold, width // node.fold
