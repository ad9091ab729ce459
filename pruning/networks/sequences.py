"""Recurrent layers, attention and token numbers, as nodes of the engine and of the host.

Every step of a recurrent layer is nodes of its own: the gates on the engine, one matrix over the
input and the output before, and what joins them on the host.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from gshw.errors import GshwError
from gshw.network.graph import Source
from pruning.networks.affine import Affine, Term, skip
from pruning.networks.float_graph import FloatHostNode, FloatNode, FloatTensor

if TYPE_CHECKING:
    from pruning.networks.importer import Importer, Value

aten = torch.ops.aten


@dataclass(frozen=True)
class _State:
    """Output and cell of one layer and direction after a step.

    Parameters
    ----------
    output
        Where the codes lie: a pixel of a sequence.
    cell
        A tensor of the host's.
    output_values, cell_values
        Of calibration, shape (n_samples, channels).
    """

    output: Source
    cell: str
    output_values: Tensor
    cell_values: Tensor


@dataclass(frozen=True)
class _Direction:
    """One layer and direction of an LSTM.

    Parameters
    ----------
    name
        Of its nodes.
    keys, weights
        Of input and output before: names, and values of shape (4 * channels, ...).
    bias
        Shape (4 * channels,).
    """

    name: str
    keys: tuple[str, str]
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]
    bias: NDArray[np.float64]
    reverse: bool


class SequenceRules:
    """Rules of an importer for what comes one step after the other."""

    def __init__(self, importer: "Importer", value: type["Value"]) -> None:
        self._importer = importer
        self._value = value
        self._states: dict[fx.Node, list[_State]] = {}

    def rules(self) -> dict[Any, Callable[[fx.Node], "Value"]]:
        """By operator."""
        return {
            aten.embedding.default: self._embedding,
            aten.lstm.input: self._lstm,
            operator.getitem: self._part_of_result,
            aten.scaled_dot_product_attention.default: self._attention,
            aten.argmax.default: self._argmax,
        }

    # --- tensors -------------------------------------------------------------------------------

    def tokens(self, name: str, values: Tensor) -> "Value":
        """A tensor of token numbers, shape (n_samples, steps).

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
        self._add_host_tensor(name, values[:, None, None, :])
        return self._value(skip(name, 1), name, 0)

    def _add_host_tensor(self, name: str, values: Tensor) -> None:
        """Shape (n_samples, channels, height, width)."""
        self._importer.tensors[name] = FloatTensor(
            name=name,
            size=(values.shape[2], values.shape[3]),
            channels=values.shape[1],
            nonnegative=False,
            magnitude=1.0,
            values=values,
            host=True,
        )

    def _add_tensor(self, name: str, values: Tensor, *, fraction: bool = False) -> None:
        """Shape (n_samples, channels, 1, steps)."""
        self._importer.tensors[name] = FloatTensor(
            name=name,
            size=(1, values.shape[3]),
            channels=values.shape[1],
            nonnegative=False,
            magnitude=self._importer.magnitude(values.numpy()),
            values=values,
            fraction=fraction,
        )

    def _filled(self, name: str, value: int, values: Tensor, *, host: bool) -> str:
        """A tensor of one code everywhere, made once."""
        if name not in self._importer.tensors:
            if host:
                self._add_host_tensor(name, values)
            else:
                self._add_tensor(name, values)
            first = self._importer.first_input
            node = FloatHostNode(
                name=name,
                function="fill",
                sources=(Source(first),),
                targets=(Source(name),),
                value=value,
            )
            self._importer.nodes.append(node)
        return name

    # --- tokens --------------------------------------------------------------------------------

    def _embedding(self, node: fx.Node) -> "Value":
        importer = self._importer
        table, tokens = importer.array(node.args[0]), node.args[1]
        numbers = importer.floats[tokens]
        if numbers.ndim != 2:
            raise importer.unsupported(node, f" of token numbers of shape {tuple(numbers.shape)}")
        if tokens in importer.values:
            source = importer.materialised(tokens)
        else:
            if len(numbers.unique()) > 1:
                raise importer.unsupported(node, " of several constant tokens")
            value = int(numbers.flatten()[0])
            shaped = numbers[:, None, None, :].expand(len(importer.example), 1, 1, -1)
            source = self._filled(f"token.{value}", value, shaped, host=True)
        found = importer.floats[node]
        if len(found) != len(importer.example):
            found = found.expand(len(importer.example), *found.shape[1:])
        name = importer.name(node)
        self._add_tensor(name, found.movedim(2, 1)[:, :, None])
        importer.nodes.append(
            FloatHostNode(
                name=name,
                function="embedding",
                sources=(Source(source),),
                targets=(Source(name),),
                key=importer.keys[node.args[0]],
                table=table,
            )
        )
        return self._value(skip(name, found.shape[2]), name, 2)

    def _argmax(self, node: fx.Node) -> "Value":
        importer = self._importer
        source = node.args[0]
        value = importer.value(source)
        axis = importer.argument(node, 1, "dim")
        n_axes = importer.floats[source].ndim
        if axis is None or axis % n_axes != value.axis or n_axes != 3:
            raise importer.unsupported(node, " but along the channels of a sequence")
        tensor = importer.materialised(source)
        name = importer.name(node)
        found = self.tokens(name, importer.floats[node])
        importer.nodes.append(
            FloatHostNode(
                name=name,
                function="argmax",
                sources=(Source(tensor),),
                targets=(Source(name),),
            )
        )
        return found

    # --- attention -----------------------------------------------------------------------------

    def _attention(self, node: fx.Node) -> "Value":
        importer = self._importer
        if len(node.args) > 3 or set(node.kwargs) - {"scale"}:
            raise importer.unsupported(node, " with a mask, dropout or groups")
        if importer.floats[node].ndim != 3:
            raise importer.unsupported(node, " of several heads")
        if any(importer.value(argument).axis != 2 for argument in node.args[:3]):
            raise importer.unsupported(node, " along an axis of pixels")
        names = [importer.materialised(argument) for argument in node.args[:3]]
        values = importer.floats[node]
        name = importer.name(node)
        self._add_tensor(name, values.movedim(2, 1)[:, :, None])
        width = importer.floats[node.args[0]].shape[2]
        scale = node.kwargs.get("scale")
        importer.nodes.append(
            FloatHostNode(
                name=name,
                function="attention",
                sources=tuple(Source(tensor) for tensor in names),
                targets=(Source(name),),
                factor=width**-0.5 if scale is None else float(scale),
            )
        )
        return self._value(skip(name, values.shape[2]), name, 2)

    # --- recurrent layers ----------------------------------------------------------------------

    def _part_of_result(self, node: fx.Node) -> "Value":
        """Of an LSTM: its outputs, or one of its states, which only an LSTM may read."""
        source, index = node.args
        assert isinstance(source, fx.Node), "what is taken apart is a result"
        value = self._importer.values[source]
        if not index:
            return value
        self._states[node] = self._states[source]
        return replace(value, is_state=True)

    def _lstm(self, node: fx.Node) -> "Value":
        importer = self._importer
        x, states, parameters, biased, n_layers, _, _, both_ways, batch_first = node.args
        assert isinstance(parameters, list) and isinstance(states, list), "as torch declares them"
        per_layer = 4 if biased else 2
        n_directions = 2 if both_ways else 1
        if not batch_first or len(parameters) != n_layers * n_directions * per_layer:
            raise importer.unsupported(node, " without batch_first, or with a projection")
        if importer.value(x).axis != 2:
            raise importer.unsupported(node, " along an axis of pixels")
        name = importer.name(node)
        inputs = importer.pieces(x)
        values = importer.floats[x]
        ends: list[_State] = []
        for layer in range(n_layers):
            output = name if layer == n_layers - 1 else f"{name}.layer{layer}"
            width = importer.floats[parameters[0]].shape[0] // 4
            starts = [
                self._start(node, states, layer * n_directions + way, len(values), width)
                for way in range(n_directions)
            ]
            shape = (len(values), n_directions * width, 1, values.shape[1])
            outputs = torch.zeros(shape, dtype=values.dtype)
            # Its values follow while the steps are made.
            self._add_tensor(output, outputs, fraction=True)
            for way in range(n_directions):
                own = parameters[(layer * n_directions + way) * per_layer :][:per_layer]
                direction = self._direction(output, own, way, width)
                ends.append(self._steps(direction, inputs, values, starts[way], output, outputs))
            inputs, values = [output], outputs[:, :, 0].movedim(1, 2)
        self._states[node] = ends
        return self._value(skip(name, values.shape[2]), name, 2)

    def _direction(self, name: str, parameters: list[fx.Node], way: int, width: int) -> _Direction:
        arrays = [self._importer.array(parameter) for parameter in parameters]
        inner, outer, *biases = (array for array in arrays if array is not None)
        bias = sum(biases, start=np.zeros(4 * width))
        return _Direction(
            name=f"{name}.reverse" if way else name,
            keys=(self._importer.keys[parameters[0]], self._importer.keys[parameters[1]]),
            weights=(inner, outer),
            bias=bias,
            reverse=bool(way),
        )

    def _start(
        self, node: fx.Node, states: list[fx.Node], place: int, n_samples: int, width: int
    ) -> _State:
        """State of a layer and direction before the first step."""
        if any(state in self._states for state in states):
            places = [state.args for state in states]
            if [index for _, index in places] != [1, 2] or places[0][0] is not places[1][0]:
                raise self._importer.unsupported(node, " but with both states of one LSTM")
            return self._states[states[0]][place]
        if any(self._importer.floats[state].any() for state in states):
            raise self._importer.unsupported(node, " that begins with a constant but 0")
        zeros = torch.zeros(n_samples, width)
        shaped = zeros[:, :, None, None]
        return _State(
            output=Source(self._filled(f"zeros.{width}", 0, shaped, host=False)),
            cell=self._filled(f"zeros.{width}.cell", 0, shaped, host=True),
            output_values=zeros,
            cell_values=zeros,
        )

    def _steps(
        self,
        direction: _Direction,
        inputs: list[str],
        values: Tensor,
        state: _State,
        output: str,
        outputs: Tensor,
    ) -> _State:
        """All steps of a direction; fills in ``outputs``.

        Parameters
        ----------
        inputs
            Tensors whose channels are the input's, one after the other.
        values
            Of the input, shape (n_samples, steps, channels).
        """
        importer = self._importer
        width = state.output_values.shape[1]
        first = width if direction.reverse else 0
        weights = [torch.from_numpy(weight).to(values.dtype) for weight in direction.weights]
        bias = torch.from_numpy(direction.bias).to(values.dtype)
        steps = range(values.shape[1])
        for step in reversed(steps) if direction.reverse else steps:
            name = f"{direction.name}.gates.{step}"
            gates = values[:, step] @ weights[0].T + bias + state.output_values @ weights[1].T
            self._add_tensor(name, gates[:, :, None, None])
            terms = self._terms(direction, inputs, step, state.output)
            affine = Affine(terms=terms, bias=direction.bias)
            importer.nodes.append(FloatNode(name=name, affine=affine, low=None, high=None))
            entering, forgetting, new, leaving = gates.chunk(4, dim=1)
            cell = forgetting.sigmoid() * state.cell_values + entering.sigmoid() * new.tanh()
            found = leaving.sigmoid() * cell.tanh()
            outputs[:, first : first + width, 0, step] = found
            cell_name = f"{direction.name}.cell.{step}"
            self._add_host_tensor(cell_name, cell[:, :, None, None])
            place = Source(output, first=first, channels=width, start=(0, step), size=(1, 1))
            importer.nodes.append(
                FloatHostNode(
                    name=f"{direction.name}.step.{step}",
                    function="lstm_cell",
                    sources=(Source(name), Source(state.cell)),
                    targets=(place, Source(cell_name)),
                )
            )
            state = _State(place, cell_name, found, cell)
        return state

    def _terms(
        self, direction: _Direction, inputs: list[str], step: int, before: Source
    ) -> tuple[Term, ...]:
        weight, own = direction.weights
        terms, start = [], 0
        for tensor in inputs:
            channels = self._importer.tensors[tensor].channels
            terms.append(
                Term(
                    tensor=tensor,
                    channels=channels,
                    weight=weight[:, start : start + channels, None, None],
                    key=direction.keys[0],
                    columns=(start, weight.shape[1]),
                    start=(0, step),
                    size=(1, 1),
                )
            )
            start += channels
        terms.append(
            Term(
                tensor=before.tensor,
                channels=own.shape[1],
                weight=own[:, :, None, None],
                key=direction.keys[1],
                first=before.first,
                start=before.start,
                size=before.size,
            )
        )
        return tuple(terms)
