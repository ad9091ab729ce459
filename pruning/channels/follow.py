"""Following channels through a torch.fx graph: which axes of which tensors hold the same.

Every tensor gets a :class:`pruning.channels.axes.Layout`; every operation of the graph says what
its result holds along each axis. An operation that is not listed here keeps the order of all it
reads.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from pruning.channels.axes import (
    Axis,
    Layout,
    Segment,
    Space,
    Stack,
    broadcast,
    cut,
    given,
    index,
    layouts,
    reduce_axes,
    refuse,
    reshape,
    segments,
    tie,
    transpose,
)

# ruff: noqa: SIM905
_EQUIVARIANT = frozenset(
    "abs add alpha_dropout celu clamp clone contiguous cos detach div double dropout dropout1d "
    "dropout2d dropout3d elu erf exp expand expand_as feature_alpha_dropout float gelu half "
    "hardshrink hardsigmoid hardswish hardtanh iadd imul isub itruediv leaky_relu log log1p "
    "log_softmax logsigmoid masked_fill maximum minimum mish mul neg negative normalize pow "
    "reciprocal relu relu6 rrelu rsqrt rsub selu sigmoid silu sin softmax softmin softplus "
    "softshrink softsign sqrt square sub tanh tanhshrink threshold to true_divide truediv "
    "where".split()
)
"""Element by element, or alike for every index of any axis; several operands are broadcast."""

_RESHAPES = frozenset("flatten reshape squeeze unflatten unsqueeze view".split())
_REDUCTIONS = frozenset("amax amin logsumexp mean sum".split())
_METADATA = frozenset("dim get_device getattr is_floating_point ndimension numel size".split())
_WINDOWS = {
    f"{kind}_pool{n}d": n
    for kind in ("avg", "max", "lp", "adaptive_avg", "adaptive_max")
    for n in (1, 2, 3)
}
_POOLS = (
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}


def _call_name(node: fx.Node) -> str | None:
    """Torch's name of a call, without the underscore of in-place; None for any other function."""
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    name = getattr(node.target, "__name__", "")
    homes = (torch, nn.functional, operator)
    return name.rstrip("_") if any(getattr(m, name, 0) is node.target for m in homes) else None


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _integers(value: Any) -> list[int] | None:
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values if values and all(type(v) is int for v in values) else None


@dataclass(frozen=True)
class Held:
    """One axis of a parameter or buffer, and whose channels lie along it."""

    tensor: str
    axis: int
    content: tuple[Segment, ...]


class ChannelWalk:
    """A traced model's channels, followed node by node.

    Attributes
    ----------
    held
        Every axis of every tensor that holds channels, once; shared tensors by their first name.
    made, read
        The weight tensors that produce channels and those that read them, by all their names.
    """

    def __init__(
        self, model: nn.Module, traced: fx.GraphModule, shapes: dict[fx.Node, Any]
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.held: dict[tuple, Held] = {}
        self.made: list[Held] = []
        self.read: list[Held] = []
        self._values: dict[fx.Node, Any] = {}
        for node in traced.graph.nodes:
            self._values[node] = self._visit(node)

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return given(self.shapes[node], f"they are the model's input {node.name!r}")
        if node.op == "output":
            return self._stop(node, "they are in the model's output")
        if node.op == "get_attr":
            return self._attribute(str(node.target), self.shapes[node])
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            where, kind = repr(str(node.target)), type(module).__name__
            value = self._module(node, str(node.target), module)
        else:
            where, kind = repr(node.name), getattr(node.target, "__name__", str(node.target))
            value = self._call(node, _call_name(node), where)
        if value is not None or (kind in _METADATA and self.shapes[node] is None):
            return value
        return self._stop(node, f"they pass {where} ({kind}), which may mix them")

    def _stop(self, node: fx.Node, reason: str) -> Any:
        """Keep the order of all that a node reads, and of what it returns."""
        for source in node.all_input_nodes:
            for layout in layouts(self._values[source]):
                for axis in layout.axes:
                    refuse(axis, reason)
        return given(self.shapes[node], reason)

    # --- tensors of the model --------------------------------------------------------------------

    def _hold(self, path: str, module: nn.Module, name: str, axis: int, content: Axis) -> Held:
        """Note what lies along an axis of a parameter; one that has been seen ties both."""
        tensor = getattr(module, name)
        plain = name in module._parameters or name in module._buffers
        full_name = f"{path}.{name}" if path else name
        key = (id(tensor) if plain else (id(module), name), axis)
        if key in self.held:
            tie(self.held[key].content, content, repr(full_name))
        else:
            self.held[key] = Held(full_name, axis, segments(content, tensor.shape[axis]))
        if not plain:
            refuse(
                self.held[key].content,
                f"they are held by {full_name!r}, which is masked or parametrised",
            )
        return Held(full_name, axis, self.held[key].content)

    def _make(self, path: str, module: nn.Module, name: str, axis: int) -> tuple[Segment, ...]:
        """Channels that a weight produces."""
        tensor = getattr(module, name)
        seen = self.held.get((id(tensor), axis))
        content = (Segment(Space(tensor.shape[axis])),) if seen is None else seen.content
        held = self._hold(path, module, name, axis, content)
        self.made.append(held)
        return held.content

    def _follow(self, path: str, module: nn.Module, names: Sequence[str], content: Axis) -> None:
        """Tensors of one value per channel."""
        for name in names:
            if getattr(module, name, None) is not None:
                self._hold(path, module, name, 0, content)

    def _attribute(self, target: str, shape: Any) -> Any:
        """A parameter that the model itself reads: its axes may hold channels, too."""
        names = dict(self.model.named_parameters(remove_duplicate=False))
        names |= dict(self.model.named_buffers(remove_duplicate=False))
        if target not in names:
            return given(shape, f"they are the constant {target!r}")
        path, _, name = target.rpartition(".")
        module = self.model.get_submodule(path)
        axes = [
            self._hold(path, module, name, axis, (Segment(Space(size)),))
            for axis, size in enumerate(shape)
        ]
        return Layout(tuple(shape), tuple(held.content for held in axes))

    # --- modules ---------------------------------------------------------------------------------

    def _module(self, node: fx.Node, path: str, module: nn.Module) -> Any:
        x = self._values.get(node.args[0]) if node.args else None
        shape = self.shapes[node]
        if not isinstance(x, Layout):
            return None
        if isinstance(module, nn.RNNBase):
            return self._recurrent(node, path, module, x)
        if not isinstance(shape, torch.Size) or len(node.all_input_nodes) > 1:
            return None
        where = repr(path)
        if isinstance(module, nn.Linear):
            self.read.append(self._hold(path, module, "weight", 1, x.axes[-1]))
            made = self._make(path, module, "weight", 0)
            self._follow(path, module, ["bias"], made)
            return Layout(tuple(shape), (*x.axes[:-1], made))
        if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
            return self._convolution(path, module, x, tuple(shape))
        if isinstance(module, nn.Embedding):
            self._hold(path, module, "weight", 0, f"they are the entries of {where}")
            return Layout(tuple(shape), (*x.axes, self._make(path, module, "weight", 1)))
        if isinstance(module, nn.modules.batchnorm._NormBase):
            instance = isinstance(module, nn.modules.instancenorm._InstanceNorm)
            # Only an instance norm takes samples without a batch.
            axis = len(shape) - 1 - _n_dimensions(module) if instance else 1
            names = ["weight", "bias", "running_mean", "running_var"]
            self._follow(path, module, names, x.axes[axis])
            return x
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            for axis in range(len(module.normalized_shape)):
                content = x.axes[axis - len(module.normalized_shape)]
                for name in ("weight", "bias"):
                    if getattr(module, name, None) is not None:
                        self._hold(path, module, name, axis, content)
            return x
        if isinstance(module, nn.GroupNorm) and module.num_groups in (1, module.num_channels):
            self._follow(path, module, ["weight", "bias"], x.axes[1])
            return x
        if isinstance(module, nn.PReLU):
            if module.num_parameters > 1:
                self._follow(path, module, ["weight"], x.axes[1])
            return x
        if isinstance(module, _POOLS):
            return self._window(x, tuple(shape), _n_dimensions(module), where)
        if isinstance(module, nn.Upsample):
            return self._window(x, tuple(shape), len(shape) - 2, where)
        if isinstance(module, nn.Flatten | nn.Unflatten):
            return reshape(x, tuple(shape), where) if 0 not in shape else None
        activation = type(module).__module__ == "torch.nn.modules.activation"
        if activation and not isinstance(module, nn.GLU | nn.MultiheadAttention):
            return x
        return x if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) else None

    def _convolution(self, path: str, module: Any, x: Layout, shape: tuple[int, ...]) -> Layout:
        where, groups = repr(path), module.groups
        n = _n_dimensions(module)
        source = x.axes[-n - 1]
        window = self._window(x, shape, n, where)
        if groups == 1:
            transposed = isinstance(module, _TRANSPOSED)
            self.read.append(self._hold(path, module, "weight", 0 if transposed else 1, source))
            made: Axis = self._make(path, module, "weight", 1 if transposed else 0)
        elif groups == module.in_channels and isinstance(module, _CONVOLUTIONS):
            times = module.out_channels // groups
            made = source
            if not isinstance(source, str):
                made = tuple(Segment(s.space, s.inner * times) for s in source)
            self._follow(path, module, ["weight"], made)
        else:
            made = f"they belong to the {groups} groups of {where}"
            refuse(source, made)
        self._follow(path, module, ["bias"], made)
        return window.replace(-n - 1, made)

    def _window(self, x: Layout, shape: tuple[int, ...], n: int, where: str) -> Layout:
        """Windows over the last ``n`` axes, which therefore have an order."""
        reason = f"they are pixels of {where}"
        for axis in x.axes[len(x.axes) - n :]:
            refuse(axis, reason)
        return Layout(shape, (*x.axes[: len(x.axes) - n], *(reason,) * n))

    def _recurrent(self, node: fx.Node, path: str, module: nn.RNNBase, x: Layout) -> Any:
        where = repr(path)
        if module.proj_size:
            return self._stop(node, f"they pass {where}, an LSTM with a projection")
        if len(node.all_input_nodes) > 1:
            return self._stop(node, f"they pass {where}, which is given its initial state")
        content, states = x.axes[-1], []
        reason = f"they are time steps or samples of {where}"
        for axis in x.axes[:-1]:
            refuse(axis, reason)
        for layer in range(module.num_layers):
            hidden: list[tuple[Segment, ...]] = []
            for direction in ("", "_reverse")[: 1 + module.bidirectional]:
                suffix = f"_l{layer}{direction}"
                own = self._make(path, module, f"weight_hh{suffix}", 1)
                gates = own * _GATES[module.mode]
                self.read.append(self._hold(path, module, f"weight_hh{suffix}", 1, own))
                self.read.append(self._hold(path, module, f"weight_ih{suffix}", 1, content))
                names = [f"{kind}{suffix}" for kind in ("weight_ih", "weight_hh")]
                names += [f"{kind}{suffix}" for kind in ("bias_ih", "bias_hh") if module.bias]
                self._follow(path, module, names, gates)
                hidden.append(own)
            content = tuple(segment for own in hidden for segment in own)
            states += hidden
        shape, state_shape = self.shapes[node]
        output = Layout(tuple(shape), (*x.axes[:-1], content))

        def last(state: torch.Size) -> Stack:
            others = (reason,) * (len(state) - 2)
            return Stack(tuple(Layout(tuple(state[1:]), (*others, own)) for own in states))

        if isinstance(state_shape, torch.Size):
            return output, last(state_shape)
        return output, tuple(last(state) for state in state_shape)

    # --- functions and methods -------------------------------------------------------------------

    def _call(self, node: fx.Node, name: str | None, where: str) -> Any:
        shape = self.shapes[node]
        operand = node.args[0] if node.args else None
        x = self._values.get(operand) if isinstance(operand, fx.Node) else None
        if name in ("cat", "concat", "concatenate"):
            return self._concatenate(node, where)
        if name == "getitem":
            return self._item(x, node.args[1], shape, where)
        if not isinstance(x, Layout):
            # As in 1 - x.
            return self._join(node, where) if name in _EQUIVARIANT else None
        if name in ("chunk", "split"):
            return self._split(x, _argument(node, 2, "dim", 0), shape, where)
        if not isinstance(shape, torch.Size):
            return None
        if name in _EQUIVARIANT:
            return self._join(node, where)
        if name in _RESHAPES and 0 not in shape and shape.numel() == math.prod(x.shape):
            return reshape(x, tuple(shape), where)
        if name in ("permute", "transpose"):
            return _transpose(node, x, name, tuple(shape))
        if name in _REDUCTIONS:
            dim = _argument(node, 1, "dim")
            gone = list(range(len(x.shape))) if dim is None else _integers(dim)
            return None if gone is None else reduce_axes(x, gone, tuple(shape), where)
        if name in _WINDOWS:
            return self._window(x, tuple(shape), _WINDOWS[name], where)
        if name == "interpolate":
            return self._window(x, tuple(shape), len(shape) - 2, where)
        if name == "pad" and isinstance(_argument(node, 1, "pad"), tuple | list):
            return self._window(x, tuple(shape), len(_argument(node, 1, "pad")) // 2, where)
        return None

    def _join(self, node: fx.Node, where: str) -> Layout | None:
        operands = [self._values[source] for source in node.all_input_nodes]
        tensors = [value for value in operands if isinstance(value, Layout)]
        if not isinstance(self.shapes[node], torch.Size):
            return None
        if any(layouts(value) and not isinstance(value, Layout) for value in operands):
            return None
        return broadcast(tensors, tuple(self.shapes[node]), where)

    def _concatenate(self, node: fx.Node, where: str) -> Layout | None:
        listed = _argument(node, 0, "tensors")
        dim = _argument(node, 1, "dim", node.kwargs.get("axis", 0))
        if not isinstance(listed, tuple | list) or type(dim) is not int:
            return None
        parts = [self._values[part] for part in listed]
        if not all(isinstance(part, Layout) for part in parts):
            return None
        shape = tuple(self.shapes[node])
        content: Axis = parts[0].axes[dim]
        if not all(isinstance(part.axes[dim], str) for part in parts):
            each = [segments(part.axes[dim], part.shape[dim]) for part in parts]
            content = tuple(segment for part in each for segment in part)
        # Along the others the parts are joined like operands of an addition.
        others = [
            Layout(part.shape, part.replace(dim, "it is concatenated").axes) for part in parts
        ]
        return broadcast(others, shape, where).replace(dim, content)

    def _split(self, x: Layout, dim: Any, shape: Any, where: str) -> Any:
        if type(dim) is not int:
            return None
        parts, at = [], 0
        for part in shape:
            content = cut(x.axes[dim], at, at + part[dim], where)
            parts.append(Layout(tuple(part), x.replace(dim, content).axes))
            at += part[dim]
        return tuple(parts)

    def _item(self, x: Any, place: Any, shape: Any, where: str) -> Any:
        if isinstance(x, Layout):
            parts = list(place) if isinstance(place, tuple) else [place]
            followed = all(_is_basic(part) for part in parts)
            return index(x, parts, tuple(shape), where) if followed else None
        parts = x.parts if isinstance(x, Stack) else x
        if parts is not None and type(place) is int:
            return parts[place]
        return None


def _n_dimensions(module: nn.Module) -> int:
    """The n of Conv2d, MaxPool2d, ..."""
    names = [kind.__name__ for kind in type(module).__mro__]
    return next(int(name[-2]) for name in names if name[-2:] in ("1d", "2d", "3d"))


def _transpose(node: fx.Node, x: Layout, name: str, shape: tuple[int, ...]) -> Layout | None:
    listed = node.args[1:] if len(node.args) > 1 else tuple(node.kwargs.values())
    axes = _integers(listed[0] if len(listed) == 1 else listed)
    if axes is None:
        return None
    order = list(range(len(shape)))
    if name == "permute":
        order = axes
    else:
        order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
    return transpose(x, order, shape)


def _is_basic(part: Any) -> bool:
    """Whether an index takes no tensor's values and no bool."""
    if isinstance(part, slice):
        return all(end is None or type(end) is int for end in (part.start, part.stop, part.step))
    return part is None or part is Ellipsis or type(part) is int
