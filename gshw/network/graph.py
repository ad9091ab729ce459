"""The integer network: tensors of codes, and nodes that compute codes from codes.

``docs/networks.md`` is the contract.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gshw.config import EngineConfig
from gshw.encoding import EncodedLayer
from gshw.errors import GshwError


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
    """

    name: str
    size: tuple[int, int]
    channels: int
    scale: float
    signed: bool

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
    """A tensor as a node reads it.

    Parameters
    ----------
    step
        Every so many lines and pixels.
    first, channels
        Range of channels; None: all from the first on.
    """

    tensor: str
    step: tuple[int, int] = (1, 1)
    first: int = 0
    channels: int | None = None

    def channels_of(self, tensor: Tensor) -> range:
        """Channels that are read."""
        stop = tensor.channels if self.channels is None else self.first + self.channels
        return range(self.first, stop)

    def size_of(self, tensor: Tensor) -> tuple[int, int]:
        """Lines and pixels that are read."""
        return -(-tensor.size[0] // self.step[0]), -(-tensor.size[1] // self.step[1])


@dataclass(frozen=True, kw_only=True)
class MatrixNode:
    """One encoded layer over its parts.

    Parameters
    ----------
    layer
        Name of the encoded layer, and of the node.
    sources
        One per part of the layer's geometry.
    output, first
        Tensor, and the channel where the layer's rows begin in it.
    fold
        The one line of every tensor is taken as so many lines, of every ``fold``-th pixel each: a
        dilated window is then one without gaps.
    """

    layer: str
    sources: tuple[Source, ...]
    output: str
    first: int = 0
    fold: int = 1

    @property
    def name(self) -> str:
        return self.layer


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
    nodes: tuple[MatrixNode, ...]
    layers: Mapping[str, EncodedLayer]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.inputs, *self.outputs):
            self._tensor("the network", name)
        written = {name: set(range(self.tensors[name].channels)) for name in self.inputs}
        for node in self.nodes:
            for source in node.sources:
                channels = source.channels_of(self._tensor(f"node {node.name!r}", source.tensor))
                if not written.get(source.tensor, set()).issuperset(channels):
                    raise GshwError(
                        f"node {node.name!r} reads {source.tensor!r} before it is written"
                    )
            self._tensor(f"node {node.name!r}", node.output)
            if node.layer not in self.layers:
                raise GshwError(f"node {node.name!r}: no encoded layer of that name")
            rows = range(node.first, node.first + self.layers[node.layer].n_rows)
            before = written.setdefault(node.output, set())
            if not before.isdisjoint(rows):
                raise GshwError(f"node {node.name!r}: tensor {node.output!r} is written twice")
            before.update(rows)
            self._check_matrix(node)
        for name in self.outputs:
            if len(written.get(name, ())) < self.tensors[name].channels:
                raise GshwError(f"output {name!r} is never written")

    def _tensor(self, who: str, name: str) -> Tensor:
        if name not in self.tensors:
            raise GshwError(f"{who} names the tensor {name!r}, which there is not")
        return self.tensors[name]

    def _check_matrix(self, node: MatrixNode) -> None:
        layer = self.layers[node.layer]
        geometry, stage = layer.geometry, layer.requantisation
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
        for node in self.nodes:
            layer = self.layers[node.layer]
            layer.check_config(config)
            low, high = config.activation_range(self.tensors[node.output].signed)
            stage = layer.requantisation
            if stage.low < low or stage.high > high:
                raise GshwError(
                    f"node {node.name!r}: clamp must be within {low}..{high}, the codes of its "
                    f"output, not {stage.low}..{stage.high}"
                )

    def input_size(self, node: MatrixNode) -> tuple[int, int]:
        """Lines and pixels of a node's input as its layer sees them, before padding."""
        height, width = node.sources[0].size_of(self.tensors[node.sources[0].tensor])
        return height * node.fold, width // node.fold
