"""Tensors and nodes of a float network, as the rules of an importer add them."""

from collections.abc import Callable, Sequence

from numpy.typing import NDArray
from torch import Tensor

from gshw.errors import GshwError
from gshw.network.graph import Source
from pruning.networks.float_graph import FloatHostNode, FloatNode, FloatTensor

FIRST_INPUT = "input"


class NetworkBuilder:
    """A float network in the making.

    Parameters
    ----------
    magnitude
        Of calibrated values.

    Attributes
    ----------
    tensors, nodes
        So far.
    """

    def __init__(self, magnitude: Callable[[NDArray], float]) -> None:
        self.magnitude = magnitude
        self.tensors: dict[str, FloatTensor] = {}
        self.nodes: list[FloatNode | FloatHostNode] = []

    def add_tensor(
        self,
        name: str,
        values: Tensor,
        *,
        nonnegative: bool = False,
        fraction: bool = False,
        magnitude: float | None = None,
    ) -> None:
        """A tensor of the core's; values of shape (n_samples, channels, height, width).

        Without a magnitude, that of the values.
        """
        self.tensors[name] = FloatTensor(
            name=name,
            size=(values.shape[2], values.shape[3]),
            channels=values.shape[1],
            nonnegative=nonnegative,
            magnitude=self.magnitude(values.numpy()) if magnitude is None else magnitude,
            values=values,
            fraction=fraction,
        )

    def add_host_tensor(self, name: str, values: Tensor) -> None:
        """A tensor of the host's alone."""
        self.tensors[name] = FloatTensor(
            name=name,
            size=(values.shape[2], values.shape[3]),
            channels=values.shape[1],
            nonnegative=False,
            magnitude=1.0,
            values=values,
            host=True,
        )

    def add_tokens(self, name: str, values: Tensor) -> None:
        """Token numbers, shape (n_samples, steps).

        Raises
        ------
        GshwError
            For another shape.
        """
        if values.ndim != 2:
            raise GshwError(
                f"{name}: token numbers must be of shape (samples, steps), not "
                f"{tuple(values.shape)}"
            )
        self.add_host_tensor(name, values[:, None, None, :])

    def filled(self, name: str, value: int, values: Tensor, *, host: bool) -> str:
        """A tensor of one code everywhere, made once."""
        if name not in self.tensors:
            if host:
                self.add_host_tensor(name, values)
            else:
                self.add_tensor(name, values)
            self.add_host_node("fill", [FIRST_INPUT], name, value=value)
        return name

    def add_host_node(
        self, function: str, sources: Sequence[str | Source], target: str, **rest
    ) -> None:
        """A node of the host's that is named after its one target."""
        self.nodes.append(
            FloatHostNode(
                name=target,
                function=function,
                sources=tuple(Source(s) if isinstance(s, str) else s for s in sources),
                targets=(Source(target),),
                **rest,
            )
        )
