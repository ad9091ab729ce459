"""Sums, differences, products, constants, and parts of tensors."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from gshw.network.graph import Source
from pruning.networks.affine import Affine, added, skip
from pruning.networks.builder import FIRST_INPUT
from pruning.networks.values import Value

if TYPE_CHECKING:
    from pruning.networks.importer import Importer

aten = torch.ops.aten


class ArithmeticRules:
    """Rules of an importer for ``+``, ``-``, ``*``, ``/`` and indexing."""

    def __init__(self, importer: "Importer") -> None:
        self._importer = importer
        self._graph = importer.graph

    def rules(self) -> dict[Any, Callable[[fx.Node], Value]]:
        """By operator."""
        return {
            aten.add.Tensor: lambda node: self._sum(node, 1.0),
            aten.add_.Tensor: lambda node: self._sum(node, 1.0),
            aten.sub.Tensor: lambda node: self._sum(node, -1.0),
            aten.rsub.Scalar: self._subtract_from,
            aten.mul.Tensor: self._multiply,
            aten.div.Tensor: self._divide,
            aten.select.int: self._select,
            aten.slice.Tensor: self._slice,
        }

    # --- sums ----------------------------------------------------------------------------------

    def _sum(self, node: fx.Node, sign: float) -> Value:
        importer = self._importer
        one, other = node.args[:2]
        factor = sign * float(node.kwargs.get("alpha", 1))
        if one in importer.values and other in importer.values:
            return self._sum_of_tensors(node, factor)
        if one in importer.values:
            return self._plus_constant(node, one, 1.0, factor * self._constant(node, other))
        return self._plus_constant(node, other, factor, self._constant(node, one))

    def _subtract_from(self, node: fx.Node) -> Value:
        factor = -float(self._importer.argument(node, 2, "alpha", 1))
        constant = self._constant(node, node.args[1])
        return self._plus_constant(node, node.args[0], factor, constant)

    def _sum_of_tensors(self, node: fx.Node, factor: float) -> Value:
        importer = self._importer
        one, other = node.args[:2]
        if importer.floats[one].shape != importer.floats[other].shape:
            raise importer.unsupported(node, " of two shapes")
        a, b = importer.pending(one), importer.pending(other)
        if a.axis != b.axis or a.flattened != b.flattened:
            raise importer.unsupported(node, " of two layouts")

        def total() -> Affine | None:
            sizes = {name: tensor.size for name, tensor in self._graph.tensors.items()}
            a, b = importer.values[one].affine, importer.values[other].affine
            return added(a, b if factor == 1 else _times(b, factor), sizes)

        found = total()
        # One of them by itself first, the second where that is enough.
        for each in (other, one):
            if found is None:
                importer.materialised(each)
                found = total()
        assert found is not None, "two tensors of one shape can be added"
        return Value(found, None, a.axis)

    def _plus_constant(
        self, node: fx.Node, source: fx.Node, factor: float, constant: Tensor
    ) -> Value:
        """A bias where it is one number per channel, else a tensor of its own to add."""
        importer = self._importer
        value = self._to_change(node, source)
        by_channel = constant.movedim(value.axis - 1, 0).flatten(1)
        affine = value.affine if factor == 1 else _times(value.affine, factor)
        first = by_channel[:, :1]
        if torch.equal(by_channel, first.expand_as(by_channel)):
            offset = first[:, 0].double().numpy()
            return Value(affine.scaled(np.ones(len(offset)), offset), None, value.axis)
        (height, width), channels = importer.shape(node, value.axis)
        values = by_channel.reshape(1, channels, height, width)
        name = f"{importer.name(node)}.constant"
        self._graph.add_tensor(name, values.expand(len(importer.example), -1, -1, -1))
        table = values[0].permute(1, 2, 0).double().numpy()
        self._graph.add_host_node("constant", [FIRST_INPUT], name, table=table)
        sizes = {name: tensor.size for name, tensor in self._graph.tensors.items()}
        found = added(affine, skip(name, channels), sizes)
        if found is None:
            importer.materialised(source)
            affine = importer.values[source].affine
            found = added(_times(affine, factor), skip(name, channels), sizes)
        assert found is not None, "two tensors of one shape can be added"
        return Value(found, None, value.axis)

    # --- products ------------------------------------------------------------------------------

    def _multiply(self, node: fx.Node) -> Value:
        """By a number per channel on the engine; two tensors on the host."""
        one, other = node.args[:2]
        known = [each for each in (one, other) if each in self._importer.values]
        if len(known) == 2:
            return self._product(node)
        factor = self._constant(node, one if known[0] is other else other)
        return self._scaled(node, known[0], factor)

    def _divide(self, node: fx.Node) -> Value:
        one, other = node.args[:2]
        if other in self._importer.values:
            raise self._importer.unsupported(node, " by anything but a constant")
        return self._scaled(node, one, 1 / self._constant(node, other))

    def _scaled(self, node: fx.Node, source: fx.Node, factor: Tensor) -> Value:
        value = self._to_change(node, source)
        by_channel = factor.movedim(value.axis - 1, 0).flatten(1)
        first = by_channel[:, :1]
        if not torch.equal(by_channel, first.expand_as(by_channel)):
            raise self._importer.unsupported(node, " by a constant that differs between pixels")
        numbers = first[:, 0].double().numpy()
        return Value(value.affine.scaled(numbers, np.zeros(len(numbers))), None, value.axis)

    def _product(self, node: fx.Node) -> Value:
        """Of two tensors, one of which may have a single pixel."""
        importer = self._importer
        one, other = node.args[:2]
        names = [importer.materialised(source) for source in (one, other)]
        a, b = (importer.values[source] for source in (one, other))
        tensors = [self._graph.tensors[name] for name in names]
        sizes = {tensor.size for tensor in tensors}
        same_axis = a.axis == b.axis and importer.floats[one].ndim == importer.floats[other].ndim
        if a.flattened is not None or b.flattened is not None:
            raise importer.unsupported(node, " on what was flattened")
        if not same_axis or tensors[0].channels != tensors[1].channels or len(sizes - {(1, 1)}) > 1:
            raise importer.unsupported(node, " of two shapes")
        name = importer.name(node)
        nonnegative = all(tensor.nonnegative for tensor in tensors)
        found = importer.new_tensor(node, name, a.axis, nonnegative=nonnegative)
        self._graph.add_host_node("multiply", names, name)
        return found

    # --- constants -----------------------------------------------------------------------------

    def _constant(self, node: fx.Node, operand: Any) -> Tensor:
        """Values of a constant operand for one sample of the result.

        Raises
        ------
        GshwError
            Where they differ between samples.
        """
        importer = self._importer
        found = importer.floats[operand] if isinstance(operand, fx.Node) else operand
        shape = importer.floats[node].shape
        values = torch.as_tensor(found, dtype=torch.float32).detach().cpu().expand(shape)
        if not torch.equal(values, values[:1].expand(shape)):
            raise importer.unsupported(node, " with a constant that differs between samples")
        return values[0]

    def _to_change(self, node: fx.Node, source: fx.Node) -> Value:
        importer = self._importer
        value = importer.pending(source)
        if value.flattened is not None or not value.axis:
            raise importer.unsupported(node, " on what was flattened, or on tokens")
        if importer.floats[source].shape != importer.floats[node].shape:
            raise importer.unsupported(node, " of two shapes")
        return value

    # --- parts ---------------------------------------------------------------------------------

    def _select(self, node: fx.Node) -> Value:
        index = int(node.args[2])
        n_places = self._importer.floats[node.args[0]].shape[node.args[1]]
        index %= n_places
        return self._part(node, slice(index, index + 1, 1), keeps_axis=False)

    def _slice(self, node: fx.Node) -> Value:
        importer = self._importer
        n_places = importer.floats[node.args[0]].shape[importer.argument(node, 1, "dim", 0)]
        given = [importer.argument(node, n, name) for n, name in ((2, "start"), (3, "end"))]
        places = slice(*given, importer.argument(node, 4, "step", 1)).indices(n_places)
        return self._part(node, slice(*places), keeps_axis=True)

    def _part(self, node: fx.Node, places: slice, *, keeps_axis: bool) -> Value:
        """Some pixels along one axis."""
        importer = self._importer
        source = node.args[0]
        before = importer.floats[source].shape
        axis = importer.argument(node, 1, "dim", 0) % len(before)
        if keeps_axis and importer.floats[node].shape == before:
            return importer.passed_on(node, source)
        value = importer.value(source)
        if axis == 0 or not value.axis or value.flattened is not None:
            raise importer.unsupported(node, " along the samples, or of what was flattened")
        name = importer.materialised(source)
        if axis == value.axis:
            return self._channels(node, name, places, keeps_axis=keeps_axis)
        pixels = [other for other in range(1, len(before)) if other != value.axis]
        place = pixels.index(axis) + 2 - len(pixels)
        start, size, step = [0, 0], list(self._graph.tensors[name].size), [1, 1]
        start[place], size[place], step[place] = (
            places.start,
            places.stop - places.start,
            places.step,
        )
        whole = skip(name, self._graph.tensors[name].channels)
        term = replace(
            whole.terms[0],
            start=(start[0], start[1]),
            size=(size[0], size[1]),
            step=(step[0], step[1]),
        )
        lost = not keeps_axis and axis < value.axis
        return Value(replace(whole, terms=(term,)), None, value.axis - lost)

    def _channels(self, node: fx.Node, name: str, places: slice, *, keeps_axis: bool) -> Value:
        """Some channels that follow each other."""
        if places.step != 1 or not keeps_axis:
            raise self._importer.unsupported(node, " of single channels")
        n_channels = places.stop - places.start
        whole = skip(name, n_channels)
        term = replace(whole.terms[0], first=places.start)
        return Value(
            replace(whole, terms=(term,)),
            None,
            self._importer.values[node.args[0]].axis,
            selection=Source(name, first=places.start, channels=n_channels),
        )


def _times(affine: Affine, factor: float) -> Affine:
    ones: NDArray[np.float64] = np.ones(affine.n_rows)
    return affine.scaled(factor * ones, 0 * ones)
