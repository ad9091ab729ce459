"""Any torch network as sums of matrix products, through torch.export."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from gshw.errors import GshwError
from gshw.network.graph import Source
from gshw.quantise import RangeMethod, activation_range
from pruning.checks import first_line
from pruning.networks.affine import POINT, Affine, Pair, Term, Window, added, skip
from pruning.networks.float_graph import (
    FloatHostNode,
    FloatNetwork,
    FloatNode,
    FloatTensor,
    TorchLayout,
)
from pruning.networks.sequences import SequenceRules

aten = torch.ops.aten
_PASSING = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.feature_dropout.default,
)
_SHAPING = (
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)


_TABLES = (
    aten.sigmoid.default,
    aten.tanh.default,
    aten.gelu.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.elu.default,
    aten.leaky_relu.default,
)

_CHANNELS_LAST = (
    aten.linear.default,
    aten.lstm.input,
    aten.scaled_dot_product_attention.default,
)
"""Operators whose inputs have their channels in the last axis."""

_ORIGINAL = ".parametrizations.weight.original"


@dataclass(frozen=True)
class Value:
    """What a place of the graph stands for.

    Parameters
    ----------
    affine
        Pending, or a tensor by itself.
    tensor
        Its name where it is just that.
    axis
        Of the channels in torch's shape; the pixels are the others but the first.
    flattened
        Channels and pixels (c, h, w) that torch has made one axis.
    is_state
        Of an LSTM: only another LSTM can read it.
    pieces
        Tensors whose channels follow each other, where the affine only puts them side by side.
    """

    affine: Affine
    tensor: str | None
    axis: int
    flattened: tuple[int, int, int] | None = None
    pieces: tuple[str, ...] = ()
    is_state: bool = False


def _pair(value: Any, fill: int, *, flat: bool) -> Pair:
    """A torch argument of one or two numbers as (height, width)."""
    values = [value] if isinstance(value, int) else list(value)
    if flat:
        return fill, int(values[0])
    return int(values[0]), int(values[-1])


class Importer:
    """Walks an exported graph, computing float values along the way.

    Parameters
    ----------
    model
        In evaluation mode.
    example
        A batch of calibration samples.
    method, percentile
        Of the ranges; see :func:`gshw.quantise.activation_range`.

    Raises
    ------
    GshwError
        From :meth:`run`: what torch.export cannot follow, and operators that are not supported,
        with their place in the model.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        method: RangeMethod = RangeMethod.PERCENTILE,
        percentile: float = 99.99,
    ) -> None:
        self._program = _exported(model, example)
        self.example = example
        self.magnitude = lambda x: activation_range(x, method, percentile=percentile)
        self.floats: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, Value] = {}
        self.keys: dict[fx.Node, str] = {}
        self._arrays: dict[fx.Node, NDArray[np.float64]] = {}
        self.tensors: dict[str, FloatTensor] = {}
        self.nodes: list[FloatNode | FloatHostNode] = []
        self._inputs: list[str] = []
        self._layouts: dict[str, TorchLayout] = {}
        self.first_input = "input"
        self._sequences = SequenceRules(self, Value)
        self._rules: dict[Any, Callable[[fx.Node], Value]] = self._make_rules()

    def run(self) -> FloatNetwork:
        """The float network."""
        outputs: list[str] = []
        with torch.no_grad():
            self._bind_placeholders()
            for node in self._program.graph.nodes:
                if node.op == "output":
                    results = node.args[0]
                    for result in results if isinstance(results, tuple | list) else [results]:
                        outputs.append(self.materialised(result))
                        self._layouts[outputs[-1]] = self._layout(result)
                elif node.op == "call_function":
                    self.floats[node] = self._evaluate(node)
                    computed = any(n in self.values for n in node.all_input_nodes)
                    if computed or node.target is aten.embedding.default:
                        self.values[node] = self._interpret(node)
                    else:
                        # A weight that is computed, as a masked one.
                        found = [self.keys[n] for n in node.all_input_nodes if n in self.keys]
                        self.keys[node] = found[0] if found else node.name
        return FloatNetwork(
            tensors=self.tensors,
            nodes=tuple(self.nodes),
            inputs=tuple(self._inputs),
            outputs=tuple(outputs),
            layouts=self._layouts,
            magnitude_of=self.magnitude,
        )

    def _layout(self, node: fx.Node) -> TorchLayout:
        value = self.values[node]
        return TorchLayout(
            shape=tuple(self.floats[node].shape[1:]),
            axis=value.axis,
            is_flat=value.flattened is not None,
        )

    # --- graph ---------------------------------------------------------------------------------

    def _bind_placeholders(self) -> None:
        state = self._program.state_dict | self._program.constants
        nodes = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        for spec in self._program.graph_signature.input_specs:
            node = nodes[spec.arg.name]
            if spec.kind is InputKind.USER_INPUT:
                self.floats[node] = self.example
                self.values[node] = self._input(node)
                self._layouts[self.first_input] = self._layout(node)
            else:
                self.floats[node] = state[spec.target].detach()
                self.keys[node] = str(spec.target)

    def _input(self, node: fx.Node) -> Value:
        if self._inputs:
            raise GshwError("the model must have one input")
        self._inputs.append(self.first_input)
        if not self.example.is_floating_point():
            return self._sequences.tokens(self.first_input, self.example)
        nonnegative = bool(self.example.min() >= 0)
        last = any(user.target in _CHANNELS_LAST for user in node.users)
        axis = self.example.ndim - 1 if last else 1
        return self._new_tensor(node, "input", axis, nonnegative=nonnegative)

    def _evaluate(self, node: fx.Node) -> Any:
        def of(argument: Any) -> Any:
            return fx.node.map_arg(argument, lambda n: self.floats[n])

        arguments, options = of(node.args), of(node.kwargs)
        if _is_in_place(node):
            arguments = (arguments[0].clone(), *arguments[1:])
        try:
            return node.target(*arguments, **options)
        except (IndexError, RuntimeError) as error:
            raise GshwError(f"{node.name} cannot be computed: {first_line(error)}") from None

    def _interpret(self, node: fx.Node) -> Value:
        rule = self._rules.get(node.target)
        if rule is None:
            raise self.unsupported(node)
        return rule(node)

    def unsupported(self, node: fx.Node, why: str = "") -> GshwError:
        stack = node.meta.get("nn_module_stack") or {}
        place = [path for path, _ in stack.values() if path]
        where = f"in {place[-1]!r}" if place else "at the top of the model"
        names = [str(target).split(".") for target in self._rules]
        known = sorted({name[1].strip("_") for name in names if name[0] == "aten"})
        name = str(node.target).removeprefix("aten.")
        return GshwError(
            f"operator {name} {where} is not supported{why}; supported are {', '.join(known)}"
        )

    def value(self, node: Any) -> Value:
        if node not in self.values:
            raise GshwError(f"{node} must be computed from the input, not be a constant")
        if self.values[node].is_state:
            raise GshwError(f"{node}: the state of an LSTM may only go into another one")
        return self.values[node]

    # --- tensors -------------------------------------------------------------------------------

    def _shape(self, node: fx.Node, axis: int) -> tuple[Pair, int]:
        """Size and channels of a node's float value."""
        shape = list(self.floats[node].shape[1:])
        channels = shape.pop(axis - 1)
        if len(shape) > 2:
            raise self.unsupported(node, ": a tensor must have one or two axes of pixels")
        height, width = [1] * (2 - len(shape)) + shape
        return (height, width), channels

    def _new_tensor(self, node: fx.Node, name: str, axis: int, *, nonnegative: bool) -> Value:
        size, channels = self._shape(node, axis)
        values = self.floats[node].detach().cpu()
        self.tensors[name] = FloatTensor(
            name=name,
            size=size,
            channels=channels,
            nonnegative=nonnegative,
            magnitude=self.magnitude(values.numpy()),
            values=values.movedim(axis, 1).reshape(-1, channels, *size),
        )
        return Value(skip(name, channels), name, axis)

    def _emit(
        self, node: fx.Node, value: Value, low: float | None = None, high: float | None = None
    ) -> Value:
        """Make a node of a pending value, with the clamp that this place of the graph applies."""
        name = self.name(node, [term.key for term in value.affine.terms])
        if value.affine.maximum and low != 0:
            self._check_maximum(node, value.affine)
        sources = [self.tensors[term.tensor] for term in value.affine.terms]
        positive = all(
            tensor.nonnegative and bool((term.weight >= 0).all())
            for tensor, term in zip(sources, value.affine.terms, strict=True)
        ) and bool((value.affine.bias >= 0).all())
        self.nodes.append(FloatNode(name=name, affine=value.affine, low=low, high=high))
        found = self._new_tensor(
            node, name, value.axis, nonnegative=positive or (low is not None and low >= 0)
        )
        if value.affine.maximum and positive:
            # Some of the source's codes, as they are.
            self.tensors[name].magnitude = sources[0].magnitude
        return found

    def name(self, node: fx.Node, keys: Sequence[str | None] = ()) -> str:
        """Of a new tensor: the weight's, or the place's."""
        found = [key for key in keys if key is not None]
        name = found[0] if found else node.name
        n_same = sum(other == name or other.startswith(f"{name}#") for other in self.tensors)
        return f"{name}#{n_same + 1}" if n_same else name

    def materialised(self, node: fx.Node) -> str:
        """Name of the tensor behind a place of the graph."""
        value = self.value(node)
        if value.tensor is None:
            value = replace(self._emit(node, value), flattened=value.flattened)
            self.values[node] = value
        assert value.tensor is not None, "it was just made"
        return value.tensor

    def pieces(self, node: fx.Node) -> tuple[str, ...]:
        """Tensors that hold a place's channels: several where it is a concatenation."""
        return self.value(node).pieces or (self.materialised(node),)

    def _pending(self, node: fx.Node, *, clamps: bool = False) -> Value:
        """A value to go on with: as it is, if nobody else reads it.

        A maximum goes on only into a clamp.
        """
        value = self.value(node)
        if value.tensor is None and (len(node.users) > 1 or (value.affine.maximum and not clamps)):
            self.materialised(node)
        return self.values[node]

    # --- operators -----------------------------------------------------------------------------

    def _make_rules(self) -> dict[Any, Callable[[fx.Node], Value]]:
        rules: dict[Any, Callable[[fx.Node], Value]] = dict.fromkeys(_PASSING, self._pass)
        rules |= dict.fromkeys(_SHAPING, self._reshape)
        rules |= dict.fromkeys(_TABLES, self._by_table)
        rules |= {
            aten.conv1d.default: self._convolve,
            aten.conv2d.default: self._convolve,
            aten.linear.default: self._linear,
            aten.batch_norm.default: self._batch_norm,
            aten.add.Tensor: self._add,
            aten.add_.Tensor: self._add,
            aten.relu.default: self._relu,
            aten.relu_.default: self._relu,
            aten.hardtanh.default: self._hardtanh,
            aten.hardtanh_.default: self._hardtanh,
            aten.adaptive_avg_pool1d.default: self._adaptive_mean,
            aten.adaptive_avg_pool2d.default: self._adaptive_mean,
            aten.avg_pool2d.default: self._mean_pool,
            aten.mean.dim: self._mean,
            aten.max_pool1d.default: self._max_pool,
            aten.max_pool2d.default: self._max_pool,
            aten.mul.Tensor: self._multiply,
            aten.cat.default: self._concatenate,
            aten.permute.default: self._permute,
            aten.transpose.int: self._permute,
        }
        return rules | self._sequences.rules()

    def array(self, node: fx.Node | None) -> NDArray[np.float64] | None:
        """Values of a weight, one array however many read it."""
        if node is None:
            return None
        if node not in self._arrays:
            self._arrays[node] = self.floats[node].detach().double().cpu().numpy()
        return self._arrays[node]

    def argument(self, node: fx.Node, index: int, name: str, default: Any = None) -> Any:
        if len(node.args) > index:
            return node.args[index]
        return node.kwargs.get(name, default)

    def _pass(self, node: fx.Node) -> Value:
        return self._through(node, node.args[0])

    def _through(self, node: fx.Node, source: fx.Node) -> Value:
        value = self._pending(source)
        if value.tensor is None and self.floats[node].shape != self.floats[source].shape:
            self.materialised(source)
            value = self.values[source]
        return value

    def _reshape(self, node: fx.Node) -> Value:
        source = node.args[0]
        self.materialised(source)
        value = self.values[source]
        before, after = self.floats[source].shape, self.floats[node].shape
        if value.flattened is not None or not value.axis:
            raise self.unsupported(node, " on what was flattened, or on tokens")
        pixels = [n for axis, n in enumerate(before) if axis not in (0, value.axis)]
        kept = [n for axis, n in enumerate(after) if axis and n != 1]
        if after[0] == before[0] and kept == [n for n in before[1:] if n != 1]:
            # Only axes of one pixel come or go.
            axis = next(i for i, n in enumerate(after) if i and n == before[value.axis])
            return replace(value, axis=axis)
        if len(after) == 2 and value.axis == 1:
            height, width = [1] * (2 - len(pixels)) + pixels
            return replace(value, axis=1, flattened=(before[1], height, width))
        raise self.unsupported(node, f" from {tuple(before)} to {tuple(after)}")

    def _permute(self, node: fx.Node) -> Value:
        value = self._pending(node.args[0])
        n_axes = self.floats[node].ndim
        order = list(range(n_axes))
        if node.target is aten.permute.default:
            order = [axis % n_axes for axis in self.argument(node, 1, "dims")]
        else:
            one, other = (axis % n_axes for axis in node.args[1:3])
            order[one], order[other] = other, one
        pixels = [axis for axis in order if axis not in (0, value.axis)]
        if order[0] != 0 or pixels != sorted(pixels) or value.flattened:
            raise self.unsupported(node, " other than moving the channels")
        return replace(value, axis=order.index(value.axis))

    def _convolve(self, node: fx.Node) -> Value:
        weight = self.array(node.args[1])
        assert weight is not None, "a convolution has a weight"
        flat = weight.ndim == 3
        padding = self.argument(node, 4, "padding", 0)
        window = Window(
            kernel=(1, weight.shape[2]) if flat else weight.shape[2:],
            stride=_pair(self.argument(node, 3, "stride", 1), 1, flat=flat),
            padding=_pair(padding, 0, flat=flat),
            dilation=_pair(self.argument(node, 5, "dilation", 1), 1, flat=flat),
        )
        return self._product(
            node,
            weight[:, :, None, :] if flat else weight,
            self.argument(node, 2, "bias"),
            window,
            int(self.argument(node, 6, "groups", 1)),
        )

    def _product(
        self, node: fx.Node, weight: NDArray, bias: fx.Node | None, window: Window, groups: int
    ) -> Value:
        source = node.args[0]
        names = self.pieces(source) if groups == 1 else (self.materialised(source),)
        terms, start = [], 0
        for name in names:
            channels = self.tensors[name].channels
            whole = len(names) == 1
            term = Term(
                tensor=name,
                channels=channels,
                weight=weight if whole else weight[:, start : start + channels],
                groups=groups,
                window=window,
                key=self.keys[node.args[1]].removesuffix(_ORIGINAL).removesuffix(".weight"),
                columns=None if whole else (start, weight.shape[1]),
            )
            terms.append(term.normal())
            start += channels
        offset = self.array(bias)
        if offset is None:
            offset = np.zeros(len(weight))
        return Value(Affine(terms=tuple(terms), bias=offset), None, self.values[source].axis)

    def _linear(self, node: fx.Node) -> Value:
        weight = self.array(node.args[1])
        assert weight is not None, "a linear layer has a weight"
        source = node.args[0]
        self.pieces(source)
        value = self.values[source]
        window = POINT
        if value.flattened is not None:
            channels, *kernel = value.flattened
            weight = weight.reshape(len(weight), channels, *kernel)
            window = Window(kernel=(kernel[0], kernel[1]))
        else:
            if value.axis != self.floats[source].ndim - 1:
                raise self.unsupported(node, " along an axis of pixels")
            weight = weight[:, :, None, None]
        return self._product(node, weight, self.argument(node, 2, "bias"), window, 1)

    def _batch_norm(self, node: fx.Node) -> Value:
        gain, offset, mean, variance = (self.array(n) for n in node.args[1:5])
        if mean is None or variance is None:
            raise self.unsupported(node, " without running statistics")
        factor = 1 / np.sqrt(variance + float(node.args[7]))
        factor = factor if gain is None else factor * gain
        shift = -mean * factor + (0 if offset is None else offset)
        value = self._pending(node.args[0])
        affine = value.affine.scaled(factor, shift)
        return replace(value, affine=affine, tensor=None, pieces=())

    def _add(self, node: fx.Node) -> Value:
        if node.kwargs.get("alpha", 1) != 1 or not isinstance(node.args[1], fx.Node):
            raise self.unsupported(node, " with a constant or a factor")
        one, other = node.args[:2]
        if self.floats[one].shape != self.floats[other].shape:
            raise self.unsupported(node, " of two shapes")
        sizes = {name: tensor.size for name, tensor in self.tensors.items()}
        a, b = self._pending(one), self._pending(other)
        if a.axis != b.axis or a.flattened != b.flattened:
            raise self.unsupported(node, " of two layouts")
        total = added(a.affine, b.affine, sizes)
        if total is None:
            # One of them by itself first, the second where that is enough.
            self.materialised(other)
            sizes = {name: tensor.size for name, tensor in self.tensors.items()}
            total = added(a.affine, self.values[other].affine, sizes)
        if total is None:
            self.materialised(one)
            total = added(self.values[one].affine, self.values[other].affine, sizes)
        assert total is not None, "two tensors of one shape can be added"
        return Value(total, None, a.axis)

    def _relu(self, node: fx.Node) -> Value:
        return self._clamped(node, 0.0, None)

    def _hardtanh(self, node: fx.Node) -> Value:
        low = float(self.argument(node, 1, "min_val", -1.0))
        high = float(self.argument(node, 2, "max_val", 1.0))
        if low != 0.0 and low != -high:
            raise self.unsupported(node, f" from {low:g} to {high:g}")
        return self._clamped(node, low, high)

    def _clamped(self, node: fx.Node, low: float | None, high: float | None) -> Value:
        value = self._pending(node.args[0], clamps=True)
        is_relu = low == 0 and high is None
        if value.tensor is not None and is_relu and self.tensors[value.tensor].nonnegative:
            return value
        if value.flattened is not None:
            raise self.unsupported(node, " on what was flattened")
        return self._emit(node, value, low, high)

    def _mean(self, node: fx.Node) -> Value:
        source = node.args[0]
        value = self.values[source]
        axes = {axis % self.floats[source].ndim for axis in self.argument(node, 1, "dim")}
        pixels = set(range(1, self.floats[source].ndim)) - {value.axis}
        if axes != pixels:
            raise self.unsupported(node, " over anything but all pixels")
        found = self._mean_of(source, None)
        keeps = bool(self.argument(node, 2, "keepdim", False))
        return found if keeps else replace(found, axis=1)

    def _adaptive_mean(self, node: fx.Node) -> Value:
        source = node.args[0]
        if any(n != 1 for n in self.argument(node, 1, "output_size")):
            raise self.unsupported(node, " to more than one pixel")
        return self._mean_of(source, None)

    def _mean_pool(self, node: fx.Node) -> Value:
        kernel = _pair(node.args[1], 1, flat=False)
        stride = self.argument(node, 2, "stride") or node.args[1]
        padding = _pair(self.argument(node, 3, "padding", 0), 0, flat=False)
        if padding != (0, 0) or self.argument(node, 4, "ceil_mode", False):
            raise self.unsupported(node, " with padding or ceil_mode")
        window = Window(kernel=kernel, stride=_pair(stride, 1, flat=False))
        return self._mean_of(node.args[0], window)

    def _mean_of(self, source: fx.Node, window: Window | None) -> Value:
        """A mean over windows; None: over all pixels."""
        name = self.materialised(source)
        tensor = self.tensors[name]
        window = window or Window(kernel=tensor.size)
        n_taps = window.kernel[0] * window.kernel[1]
        term = Term(
            tensor=name,
            channels=tensor.channels,
            weight=np.full((tensor.channels, 1, *window.kernel), 1 / n_taps),
            groups=tensor.channels,
            window=window,
        )
        affine = Affine(terms=(term,), bias=np.zeros(tensor.channels))
        return Value(affine, None, self.values[source].axis)

    def _by_table(self, node: fx.Node) -> Value:
        """A function of single values, on the host."""
        source = node.args[0]
        tensor = self.materialised(source)
        value = self.values[source]
        if value.flattened is not None:
            raise self.unsupported(node, " on what was flattened")

        def apply(x: Tensor) -> Tensor:
            return node.target(x, *node.args[1:], **node.kwargs)

        name = self.name(node)
        nonnegative = bool((self.floats[node] >= 0).all())
        found = self._new_tensor(node, name, value.axis, nonnegative=nonnegative)
        self.nodes.append(
            FloatHostNode(
                name=name,
                function="table",
                sources=(Source(tensor),),
                targets=(Source(name),),
                apply=apply,
            )
        )
        return found

    def _multiply(self, node: fx.Node) -> Value:
        """Of two tensors, one of which may have a single pixel; on the host."""
        one, other = node.args[:2]
        if not isinstance(other, fx.Node) or other not in self.values or one not in self.values:
            raise self.unsupported(node, " with a constant")
        names = [self.materialised(source) for source in (one, other)]
        a, b = (self.values[source] for source in (one, other))
        sizes = {self.tensors[name].size for name in names}
        channels = {self.tensors[name].channels for name in names}
        same_axis = a.axis == b.axis and self.floats[one].ndim == self.floats[other].ndim
        if a.flattened is not None or b.flattened is not None:
            raise self.unsupported(node, " on what was flattened")
        if not same_axis or len(channels) > 1 or len(sizes - {(1, 1)}) > 1:
            raise self.unsupported(node, " of two shapes")
        name = self.name(node)
        nonnegative = all(self.tensors[source].nonnegative for source in names)
        found = self._new_tensor(node, name, a.axis, nonnegative=nonnegative)
        self.nodes.append(
            FloatHostNode(
                name=name,
                function="multiply",
                sources=tuple(Source(source) for source in names),
                targets=(Source(name),),
            )
        )
        return found

    def _max_pool(self, node: fx.Node) -> Value:
        flat = node.target is aten.max_pool1d.default
        kernel = _pair(node.args[1], 1, flat=flat)
        stride = self.argument(node, 2, "stride") or node.args[1]
        if self.argument(node, 5, "ceil_mode", False):
            raise self.unsupported(node, " with ceil_mode")
        window = Window(
            kernel=kernel,
            stride=_pair(stride, 1, flat=flat),
            padding=_pair(self.argument(node, 3, "padding", 0), 0, flat=flat),
            dilation=_pair(self.argument(node, 4, "dilation", 1), 1, flat=flat),
        )
        name = self.materialised(node.args[0])
        channels = self.tensors[name].channels
        term = Term(
            tensor=name,
            channels=channels,
            weight=np.ones((channels, 1, *kernel)),
            groups=channels,
            window=window,
        ).normal()
        affine = Affine(terms=(term,), bias=np.zeros(channels), maximum=True)
        return Value(affine, None, self.values[node.args[0]].axis)

    def _check_maximum(self, node: fx.Node, affine: Affine) -> None:
        """Accumulators begin at 0, and padding is 0."""
        if not self.tensors[affine.terms[0].tensor].nonnegative:
            raise self.unsupported(
                node, " of values that may be negative, but with a ReLU before or after it"
            )

    def _concatenate(self, node: fx.Node) -> Value:
        """Every piece as rows of its own: a diagonal matrix over parts."""
        pieces = self.argument(node, 0, "tensors")
        axis = int(self.argument(node, 1, "dim", 0)) % self.floats[node].ndim
        if any(self.value(piece).axis != axis for piece in pieces):
            raise self.unsupported(node, " along an axis of pixels")
        names = tuple(self.materialised(piece) for piece in pieces)
        channels = [self.tensors[name].channels for name in names]
        total, start, terms = sum(channels), 0, []
        for name, n in zip(names, channels, strict=True):
            weight = np.zeros((total, n, 1, 1))
            weight[start + np.arange(n), np.arange(n)] = 1.0
            terms.append(Term(tensor=name, channels=n, weight=weight))
            start += n
        affine = Affine(terms=tuple(terms), bias=np.zeros(total))
        return Value(affine, None, axis, pieces=names)


def _is_in_place(node: fx.Node) -> bool:
    name = str(node.target).split(".")
    return len(name) > 1 and name[1].endswith("_")


def _exported(model: nn.Module, example: Tensor) -> ExportedProgram:
    if model.training:
        raise GshwError("the model must be in evaluation mode: call eval() first")
    try:
        with warnings.catch_warnings():
            # About how recurrent layers keep their weights; the user can do nothing about it.
            warnings.simplefilter("ignore")
            return torch.export.export(model, (example,))
    except Exception as error:
        first = str(error).strip().splitlines()
        raise GshwError(
            f"torch.export cannot follow {type(model).__name__}: "
            f"{first[0] if first else type(error).__name__}"
        ) from None


def import_model(
    model: nn.Module,
    example: Tensor,
    method: RangeMethod = RangeMethod.PERCENTILE,
    percentile: float = 99.99,
) -> FloatNetwork:
    """A trained network as nodes of the engine; see :class:`Importer`."""
    return Importer(model, example, method, percentile).run()
