"""Permuting a model's channels without changing what it computes.

The channels of a map may have any order: permute the rows of the weights that produce it, what
follows per channel (biases, batch norm), and the columns of all weights that read it. Only the
order of float additions changes. Which tensors belong together is read from the torch.fx graph
(:mod:`pruning.channels.follow`); where channels are not treated alike, or not known to be, their
order is kept and the reason is told. Done before for 2:4 sparsity by Pool and Yu (2021, NeurIPS).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from gshw.errors import GshwError
from pruning.channels.axes import Space
from pruning.channels.follow import ChannelWalk, Held


@dataclass(frozen=True, kw_only=True)
class TensorSlice:
    """Where a tensor holds the channels of a space: each ``inner`` times in a row from ``start``.

    Parameters
    ----------
    tensor
        Name of the parameter or buffer in the model.
    axis
        Of the tensor.
    """

    tensor: str
    axis: int
    start: int
    inner: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelSpace:
    """Channels that several tensors hold, and that must have one order in all of them.

    Parameters
    ----------
    producers, consumers
        Names of the weight tensors whose rows make the channels, and whose columns read them; a
        recurrent layer's ``weight_hh`` does both.
    slices
        All that a permutation of the space touches.
    refused
        Why the order must stay, as a clause about the channels; None where it is free.
    """

    n_channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    slices: tuple[TensorSlice, ...]
    refused: str | None = None


def channel_spaces(model: nn.Module, example: Tensor) -> list[ChannelSpace]:
    """All channels that tensors of the model hold, free to be permuted or refused.

    Followed through are Linear, convolutions (depthwise too), Embedding, RNN, LSTM and GRU,
    normalisation, activations, pooling, dropout, additions and other element-wise calls,
    concatenation and its undoing, flatten and other reshapes that keep channels whole,
    transpositions and reductions. Inputs and outputs of the model keep their order, and so does
    what passes anything else, or a masked weight: its mask was made for the banks.

    Parameters
    ----------
    example
        A batch of inputs, for the shapes; they come from a run in evaluation mode. The model is
        left as it was.

    Returns
    -------
    list of ChannelSpace
        In the order of the graph. Permuting one leaves the others valid.

    Raises
    ------
    GshwError
        For a model that torch.fx cannot trace, or that does not run on the example.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        traced = fx.symbolic_trace(model)
        recorder = _ShapeRecorder(traced)
        with torch.no_grad():
            recorder.run(example)
    except Exception as error:  # Tracing fails in as many ways as models are written.
        reason = (str(error).splitlines() or [""])[0]
        raise GshwError(
            f"torch.fx cannot follow the model ({type(error).__name__}: {reason})"
        ) from None
    finally:
        for module, training in modes:
            module.training = training
    walk = ChannelWalk(model, traced, recorder.shapes)
    found: dict[Space, list[TensorSlice]] = {}
    for held in walk.held.values():
        start = 0
        for segment in held.content:
            part = TensorSlice(tensor=held.tensor, axis=held.axis, start=start, inner=segment.inner)
            found.setdefault(segment.space.root, []).append(part)
            start += segment.width
    return [
        ChannelSpace(
            n_channels=space.n_channels,
            producers=_names(walk.made, space),
            consumers=_names(walk.read, space),
            slices=tuple(slices),
            refused=space.refused,
        )
        for space, slices in found.items()
    ]


class _ShapeRecorder(fx.Interpreter):
    """Runs a traced model and keeps the shapes of all tensors, nested in tuples as they come."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.shapes[n] = _shape(value)
        return value


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape
    # A bare torch.Size is no tensor but what the model asked about one.
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return tuple(_shape(part) for part in value)
    return None


def _names(weights: Iterable[Held], space: Space) -> tuple[str, ...]:
    names = [
        held.tensor for held in weights if any(part.space.root is space for part in held.content)
    ]
    return tuple(dict.fromkeys(names))


def apply_permutation(model: nn.Module, space: ChannelSpace, permutation: NDArray) -> None:
    """Put the channels of a space into another order, in place.

    The model computes what it computed, to float rounding. Parameters stay the same objects, but
    what an optimiser has gathered about them does not follow: permute before training.

    Parameters
    ----------
    permutation
        Shape (n_channels,): place p gets what is channel ``permutation[p]`` now.

    Raises
    ------
    GshwError
        For a refused space, what is no permutation of its channels, or a weight that was masked
        since. Nothing is changed then.
    """
    name = " and ".join(space.producers) or "the model's input"
    if space.refused is not None:
        raise GshwError(f"channels of {name} must keep their order: {space.refused}")
    if not np.array_equal(np.sort(permutation), np.arange(space.n_channels)):
        raise GshwError(
            f"channels of {name} need a permutation of {space.n_channels}, not {permutation}"
        )
    places = sorted({(part.tensor, part.axis) for part in space.slices})
    tensors = {name: find_tensor(model, name) for name, _ in places}
    with torch.no_grad():
        for tensor_name, axis in places:
            tensor = tensors[tensor_name]
            parts = [p for p in space.slices if (p.tensor, p.axis) == (tensor_name, axis)]
            order = slice_order(parts, permutation, tensor.shape[axis])
            # Copied, not exchanged: views of the parameter, such as cuDNN's flat ones, stay views.
            tensor.copy_(tensor.index_select(axis, torch.from_numpy(order).to(tensor.device)))


def slice_order(
    parts: Iterable[TensorSlice], permutation: NDArray, width: int
) -> NDArray[np.int64]:
    """Old place of all that lies along an axis, shape (width,), for the slices of that axis."""
    order = np.arange(width)
    for part in parts:
        inside = (permutation[:, None] * part.inner + np.arange(part.inner)).reshape(-1)
        order[part.start : part.start + inside.size] = part.start + inside
    return order


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name in the model.

    Raises
    ------
    GshwError
        For one that is masked or otherwise parametrised.
    """
    path, _, tensor_name = name.rpartition(".")
    module = model.get_submodule(path)
    if is_parametrized(module, tensor_name):
        raise GshwError(f"tensor {name!r} is masked; permute channels before masks are attached")
    return getattr(module, tensor_name)
