"""Any torch network as sums of matrix products, through torch.export."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from gshw.errors import GshwError
from gshw.quantise import RangeMethod, activation_range
from pruning.checks import first_line
from pruning.networks.affine import POINT, Affine, Pair, Term, Window, pair, skip
from pruning.networks.arithmetic import ArithmeticRules
from pruning.networks.attention import batch_first_attention
from pruning.networks.builder import FIRST_INPUT, NetworkBuilder
from pruning.networks.float_graph import FloatNetwork, FloatNode, TorchLayout
from pruning.networks.host_rules import HostRules
from pruning.networks.pools import PoolRules
from pruning.networks.recurrent import RecurrentRules
from pruning.networks.shapes import ShapeRules
from pruning.networks.values import Value

aten = torch.ops.aten
_CHANNELS_LAST = (
    aten.linear.default,
    aten.lstm.input,
    aten.gru.input,
    aten.layer_norm.default,
    aten.scaled_dot_product_attention.default,
)
"""Operators whose inputs have their channels in the last axis."""

_ORIGINAL = ".parametrizations.weight.original"


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
        self.graph = NetworkBuilder(lambda x: activation_range(x, method, percentile=percentile))
        self.floats: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, Value] = {}
        self.keys: dict[fx.Node, str] = {}
        self._rows: dict[fx.Node, tuple[int, int]] = {}
        self._arrays: dict[fx.Node, NDArray[np.float64]] = {}
        self._inputs: list[str] = []
        self._layouts: dict[str, TorchLayout] = {}
        self._host = HostRules(self)
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
                    embeds = node.target is aten.embedding.default
                    if computed or (embeds and not self._host.is_constant(node)):
                        self.values[node] = self._interpret(node)
                    else:
                        # A weight that is computed, as a masked one.
                        found = [self.keys[n] for n in node.all_input_nodes if n in self.keys]
                        self.keys[node] = found[0] if found else node.name
                        if node.target is aten.slice.Tensor and not self.argument(node, 1, "dim"):
                            n_rows = len(self.floats[node.args[0]])
                            start = self.argument(node, 2, "start")
                            self._rows[node] = slice(start, None).indices(n_rows)[0], n_rows
        return FloatNetwork(
            tensors=self.graph.tensors,
            nodes=tuple(self.graph.nodes),
            inputs=tuple(self._inputs),
            outputs=tuple(outputs),
            layouts=self._layouts,
            magnitude_of=self.graph.magnitude,
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
                self._layouts[FIRST_INPUT] = self._layout(node)
            else:
                self.floats[node] = state[spec.target].detach()
                self.keys[node] = str(spec.target)

    def _input(self, node: fx.Node) -> Value:
        if self._inputs:
            raise GshwError("the model must have one input")
        self._inputs.append(FIRST_INPUT)
        if not self.example.is_floating_point():
            self.graph.add_tokens(FIRST_INPUT, self.example)
            return Value(skip(FIRST_INPUT, 1), FIRST_INPUT, 0)
        nonnegative = bool(self.example.min() >= 0)
        last = any(user.target in _CHANNELS_LAST for user in node.users)
        axis = self.example.ndim - 1 if last else 1
        return self.new_tensor(node, FIRST_INPUT, axis, nonnegative=nonnegative)

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
            raise GshwError(f"{node}: the state of a recurrent layer may only go into another one")
        if self.values[node].head_axis is not None:
            raise GshwError(f"{node}: heads may only go into attention, or become channels again")
        return self.values[node]

    # --- tensors -------------------------------------------------------------------------------

    def shape(self, node: fx.Node, axis: int) -> tuple[Pair, int]:
        """Size and channels of a node's float value."""
        shape = list(self.floats[node].shape[1:])
        channels = shape.pop(axis - 1)
        if len(shape) > 2:
            raise self.unsupported(node, ": a tensor must have one or two axes of pixels")
        height, width = [1] * (2 - len(shape)) + shape
        return (height, width), channels

    def new_tensor(self, node: fx.Node, name: str, axis: int, *, nonnegative: bool) -> Value:
        size, channels = self.shape(node, axis)
        values = self.floats[node].detach().cpu().movedim(axis, 1).reshape(-1, channels, *size)
        self.graph.add_tensor(name, values, nonnegative=nonnegative)
        return Value(skip(name, channels), name, axis)

    def _emit(
        self, node: fx.Node, value: Value, low: float | None = None, high: float | None = None
    ) -> Value:
        """Make a node of a pending value, with the clamp that this place of the graph applies."""
        name = self.name(node, [term.key for term in value.affine.terms])
        if value.affine.maximum and low != 0:
            self._check_maximum(node, value.affine)
        sources = [self.graph.tensors[term.tensor] for term in value.affine.terms]
        positive = all(
            tensor.nonnegative and bool((term.weight >= 0).all())
            for tensor, term in zip(sources, value.affine.terms, strict=True)
        ) and bool((value.affine.bias >= 0).all())
        self.graph.nodes.append(FloatNode(name=name, affine=value.affine, low=low, high=high))
        found = self.new_tensor(
            node, name, value.axis, nonnegative=positive or (low is not None and low >= 0)
        )
        if value.affine.maximum and positive:
            # Some of the source's codes, as they are.
            self.graph.tensors[name].magnitude = sources[0].magnitude
        return found

    def name(self, node: fx.Node, keys: Sequence[str | None] = ()) -> str:
        """Of a new tensor: the weight's, or the place's."""
        found = [key for key in keys if key is not None]
        name = found[0] if found else node.name
        n_same = sum(other == name or other.startswith(f"{name}#") for other in self.graph.tensors)
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

    def pending(self, node: fx.Node, *, clamps: bool = False) -> Value:
        """A value to go on with: as it is, if nobody else reads it.

        A maximum goes on only into a clamp.
        """
        value = self.value(node)
        if value.tensor is None and (len(node.users) > 1 or (value.affine.maximum and not clamps)):
            self.materialised(node)
        return self.values[node]

    # --- operators -----------------------------------------------------------------------------

    def _make_rules(self) -> dict[Any, Callable[[fx.Node], Value]]:
        rules: dict[Any, Callable[[fx.Node], Value]] = {
            aten.conv1d.default: self._convolve,
            aten.conv2d.default: self._convolve,
            aten.linear.default: self._linear,
            aten.batch_norm.default: self._batch_norm,
            aten.relu.default: self._relu,
            aten.relu_.default: self._relu,
            aten.hardtanh.default: self._hardtanh,
            aten.hardtanh_.default: self._hardtanh,
            aten.cat.default: self._concatenate,
        }
        others = (
            ShapeRules(self),
            PoolRules(self),
            ArithmeticRules(self),
            self._host,
            RecurrentRules(self),
        )
        return reduce(or_, (other.rules() for other in others), rules)

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

    def passed_on(self, node: fx.Node, source: fx.Node) -> Value:
        """A place of the graph that stands for the same as another one."""
        if self.values[source].head_axis is not None:
            return self.values[source]
        value = self.pending(source)
        if value.tensor is None and self.floats[node].shape != self.floats[source].shape:
            self.materialised(source)
            value = self.values[source]
        return value

    def _convolve(self, node: fx.Node) -> Value:
        weight = self.array(node.args[1])
        assert weight is not None, "a convolution has a weight"
        flat = weight.ndim == 3
        padding = self.argument(node, 4, "padding", 0)
        window = Window(
            kernel=(1, weight.shape[2]) if flat else weight.shape[2:],
            stride=pair(self.argument(node, 3, "stride", 1), 1, flat=flat),
            padding=pair(padding, 0, flat=flat),
            dilation=pair(self.argument(node, 5, "dilation", 1), 1, flat=flat),
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
            channels = self.graph.tensors[name].channels
            whole = len(names) == 1
            term = Term(
                tensor=name,
                channels=channels,
                weight=weight if whole else weight[:, start : start + channels],
                groups=groups,
                window=window,
                key=self.keys[node.args[1]].removesuffix(_ORIGINAL).removesuffix(".weight"),
                columns=None if whole else (start, weight.shape[1]),
                rows=self._rows.get(node.args[1]),
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
        value = self.pending(node.args[0])
        affine = value.affine.scaled(factor, shift)
        return replace(value, affine=affine, tensor=None, pieces=(), selection=None)

    def _relu(self, node: fx.Node) -> Value:
        return self._clamped(node, 0.0, None)

    def _hardtanh(self, node: fx.Node) -> Value:
        low = float(self.argument(node, 1, "min_val", -1.0))
        high = float(self.argument(node, 2, "max_val", 1.0))
        if low != 0.0 and low != -high:
            raise self.unsupported(node, f" from {low:g} to {high:g}")
        return self._clamped(node, low, high)

    def _clamped(self, node: fx.Node, low: float | None, high: float | None) -> Value:
        value = self.pending(node.args[0], clamps=True)
        is_relu = low == 0 and high is None
        if value.tensor is not None and is_relu and self.graph.tensors[value.tensor].nonnegative:
            return value
        if value.flattened is not None:
            raise self.unsupported(node, " on what was flattened")
        return self._emit(node, value, low, high)

    def _check_maximum(self, node: fx.Node, affine: Affine) -> None:
        """Accumulators begin at 0, and padding is 0."""
        if not self.graph.tensors[affine.terms[0].tensor].nonnegative:
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
        channels = [self.graph.tensors[name].channels for name in names]
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
            with batch_first_attention(model):
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
