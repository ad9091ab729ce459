"""Recurrent layers as nodes of the engine and of the host.

Every step is nodes of its own: the gates on the engine, one matrix over the input and the output
before, and what joins them on the host.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from gshw.network.graph import Source
from pruning.networks.affine import Affine, Term, skip
from pruning.networks.float_graph import FloatHostNode, FloatNode
from pruning.networks.values import Value

if TYPE_CHECKING:
    from pruning.networks.importer import Importer

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
    """One layer and direction of a recurrent layer.

    Parameters
    ----------
    name
        Of its nodes.
    keys, weights
        Of input and output before: names, and values of shape (n_gates * channels, ...).
    biases
        Likewise, shape (n_gates * channels,) each.
    """

    name: str
    keys: tuple[str, str]
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]
    biases: tuple[NDArray[np.float64], NDArray[np.float64]]
    reverse: bool


class RecurrentRules:
    """Rules of an importer for LSTMs and GRUs."""

    def __init__(self, importer: "Importer") -> None:
        self._importer = importer
        self._graph = importer.graph
        self._states: dict[fx.Node, list[_State]] = {}

    def rules(self) -> dict[Any, Callable[[fx.Node], Value]]:
        """By operator."""
        return {
            aten.lstm.input: self._lstm,
            aten.gru.input: self._gru,
            operator.getitem: self._part_of_result,
        }

    def _part_of_result(self, node: fx.Node) -> Value:
        """Its outputs, or one of its states, which only another recurrent layer may read."""
        source, index = node.args
        assert isinstance(source, fx.Node), "what is taken apart is a result"
        value = self._importer.values[source]
        if not index:
            return value
        self._states[node] = self._states[source]
        return replace(value, is_state=True)

    def _lstm(self, node: fx.Node) -> Value:
        return self._layers(node, 4, self._lstm_steps)

    def _gru(self, node: fx.Node) -> Value:
        return self._layers(node, 3, self._gru_steps)

    def _layers(self, node: fx.Node, n_gates: int, steps: "_Steps") -> Value:
        importer = self._importer
        x, given, parameters, biased, n_layers, _, _, both_ways, batch_first = node.args
        states = given if isinstance(given, list) else [given]
        assert isinstance(parameters, list), "as torch declares them"
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
            width = importer.floats[parameters[0]].shape[0] // n_gates
            starts = [
                self._start(node, states, layer * n_directions + way, len(values), width)
                for way in range(n_directions)
            ]
            shape = (len(values), n_directions * width, 1, values.shape[1])
            outputs = torch.zeros(shape, dtype=values.dtype)
            # Its values follow while the steps are made.
            self._graph.add_tensor(output, outputs, fraction=True)
            for way in range(n_directions):
                own = parameters[(layer * n_directions + way) * per_layer :][:per_layer]
                direction = self._direction(output, own, way)
                ends.append(steps(direction, inputs, values, starts[way], output, outputs))
            inputs, values = [output], outputs[:, :, 0].movedim(1, 2)
        self._states[node] = ends
        return Value(skip(name, values.shape[2]), name, 2)

    def _direction(self, name: str, parameters: list[fx.Node], way: int) -> _Direction:
        arrays = [self._importer.array(parameter) for parameter in parameters]
        inner, outer, *biases = (array for array in arrays if array is not None)
        one, other = biases or [np.zeros(len(inner))] * 2
        return _Direction(
            name=f"{name}.reverse" if way else name,
            keys=(self._importer.keys[parameters[0]], self._importer.keys[parameters[1]]),
            weights=(inner, outer),
            biases=(one, other),
            reverse=bool(way),
        )

    def _start(
        self, node: fx.Node, states: list[fx.Node], place: int, n_samples: int, width: int
    ) -> _State:
        """State of a layer and direction before the first step."""
        if any(state in self._states for state in states):
            places = [state.args for state in states if state in self._states]
            indices = [index for _, index in places]
            layers = {id(source): source for source, _ in places}.values()
            alike = all(layer.target is node.target for layer in layers)
            if indices != list(range(1, len(states) + 1)) or len(layers) > 1 or not alike:
                raise self._importer.unsupported(node, " but with all states of one such layer")
            return self._states[states[0]][place]
        if any(self._importer.floats[state].any() for state in states):
            raise self._importer.unsupported(node, " that begins with a constant but 0")
        zeros = torch.zeros(n_samples, width)
        shaped = zeros[:, :, None, None]
        return _State(
            output=Source(self._graph.filled(f"zeros.{width}", 0, shaped, host=False)),
            cell=self._graph.filled(f"zeros.{width}.cell", 0, shaped, host=True),
            output_values=zeros,
            cell_values=zeros,
        )

    def _lstm_steps(
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
        width = state.output_values.shape[1]
        first = width if direction.reverse else 0
        weights = [torch.from_numpy(weight).to(values.dtype) for weight in direction.weights]
        total = direction.biases[0] + direction.biases[1]
        bias = torch.from_numpy(total).to(values.dtype)
        steps = range(values.shape[1])
        for step in reversed(steps) if direction.reverse else steps:
            name = f"{direction.name}.gates.{step}"
            gates = values[:, step] @ weights[0].T + bias + state.output_values @ weights[1].T
            self._graph.add_tensor(name, gates[:, :, None, None])
            terms = (
                *self._inner(direction, inputs, (0, step), (1, 1)),
                self._outer(direction, state.output),
            )
            affine = Affine(terms=terms, bias=total)
            self._graph.nodes.append(FloatNode(name=name, affine=affine, low=None, high=None))
            entering, forgetting, new, leaving = gates.chunk(4, dim=1)
            cell = forgetting.sigmoid() * state.cell_values + entering.sigmoid() * new.tanh()
            found = leaving.sigmoid() * cell.tanh()
            outputs[:, first : first + width, 0, step] = found
            place = Source(output, first=first, channels=width, start=(0, step), size=(1, 1))
            sources = (Source(name), Source(state.cell))
            state = self._joined(direction, step, "lstm_cell", sources, place, (found, cell))
        return state

    def _gru_steps(
        self,
        direction: _Direction,
        inputs: list[str],
        values: Tensor,
        state: _State,
        output: str,
        outputs: Tensor,
    ) -> _State:
        """As :meth:`_lstm_steps`; what the input adds to the gates is one matrix for all steps."""
        width = state.output_values.shape[1]
        first = width if direction.reverse else 0
        weights = [torch.from_numpy(weight).to(values.dtype) for weight in direction.weights]
        biases = [torch.from_numpy(bias).to(values.dtype) for bias in direction.biases]
        entering = f"{direction.name}.input"
        inner = values @ weights[0].T + biases[0]
        self._graph.add_tensor(entering, inner.movedim(2, 1)[:, :, None])
        affine = Affine(terms=self._inner(direction, inputs), bias=direction.biases[0])
        self._graph.nodes.append(FloatNode(name=entering, affine=affine, low=None, high=None))
        steps = range(values.shape[1])
        for step in reversed(steps) if direction.reverse else steps:
            name = f"{direction.name}.gates.{step}"
            outer = state.output_values @ weights[1].T + biases[1]
            self._graph.add_tensor(name, outer[:, :, None, None])
            terms = (self._outer(direction, state.output),)
            affine = Affine(terms=terms, bias=direction.biases[1])
            self._graph.nodes.append(FloatNode(name=name, affine=affine, low=None, high=None))
            (r, z, n), (own_r, own_z, own_n) = inner[:, step].chunk(3, 1), outer.chunk(3, 1)
            new = (n + (r + own_r).sigmoid() * own_n).tanh()
            update = (z + own_z).sigmoid()
            found = (1 - update) * new + update * state.cell_values
            outputs[:, first : first + width, 0, step] = found
            place = Source(output, first=first, channels=width, start=(0, step), size=(1, 1))
            now = Source(entering, start=(0, step), size=(1, 1))
            sources = (now, Source(name), Source(state.cell))
            state = self._joined(direction, step, "gru_cell", sources, place, (found, found))
        return state

    def _joined(
        self,
        direction: _Direction,
        step: int,
        function: str,
        sources: tuple[Source, ...],
        place: Source,
        values: tuple[Tensor, Tensor],
    ) -> _State:
        """The state after a step, from the host's node that makes output and cell of the gates.

        Parameters
        ----------
        place
            Of the output.
        values
            Of output and cell, shape (n_samples, channels) each.
        """
        cell = f"{direction.name}.cell.{step}"
        self._graph.add_host_tensor(cell, values[1][:, :, None, None])
        self._graph.nodes.append(
            FloatHostNode(
                name=f"{direction.name}.step.{step}",
                function=function,
                sources=sources,
                targets=(place, Source(cell)),
            )
        )
        return _State(place, cell, *values)

    def _inner(
        self,
        direction: _Direction,
        inputs: list[str],
        start: tuple[int, int] = (0, 0),
        size: tuple[int, int] | None = None,
    ) -> tuple[Term, ...]:
        """The input's matrix, over every tensor of it."""
        weight, _ = direction.weights
        terms, first = [], 0
        for tensor in inputs:
            channels = self._graph.tensors[tensor].channels
            terms.append(
                Term(
                    tensor=tensor,
                    channels=channels,
                    weight=weight[:, first : first + channels, None, None],
                    key=direction.keys[0],
                    columns=(first, weight.shape[1]),
                    start=start,
                    size=size,
                )
            )
            first += channels
        return tuple(terms)

    def _outer(self, direction: _Direction, before: Source) -> Term:
        """The matrix of the output before."""
        _, weight = direction.weights
        return Term(
            tensor=before.tensor,
            channels=weight.shape[1],
            weight=weight[:, :, None, None],
            key=direction.keys[1],
            first=before.first,
            start=before.start,
            size=before.size,
        )


_Steps = Callable[[_Direction, list[str], Tensor, _State, str, Tensor], _State]
