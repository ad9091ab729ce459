"""What only rearranges values: shapes, orders of axes, parts."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from gshw.network.graph import Source
from pruning.networks.affine import skip
from pruning.networks.values import Value

if TYPE_CHECKING:
    from pruning.networks.importer import Importer

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
_SQUEEZING = (aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default)
_SHAPING = (
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    *_SQUEEZING,
)


class ShapeRules:
    """Rules of an importer for shapes, axes and indexing."""

    def __init__(self, importer: "Importer") -> None:
        self._importer = importer
        self._graph = importer.graph

    def rules(self) -> dict[Any, Callable[[fx.Node], Value]]:
        """By operator."""
        return (
            dict.fromkeys(_PASSING, self._pass)
            | dict.fromkeys(_SHAPING, self._reshape)
            | {
                aten.permute.default: self._permute,
                aten.transpose.int: self._permute,
                aten.select.int: self._select,
                aten.slice.Tensor: self._slice,
            }
        )

    def _pass(self, node: fx.Node) -> Value:
        return self._importer.passed_on(node, node.args[0])

    def _reshape(self, node: fx.Node) -> Value:
        source = node.args[0]
        before, after = self._importer.floats[source].shape, self._importer.floats[node].shape
        value = self._importer.values[source]
        splits = node.target not in _SQUEEZING and len(before) == 3 and value.axis == 2
        splits = splits and len(after) == 4 and after[2] * after[3] == before[2]
        if splits and tuple(before[:2]) == tuple(after[:2]):
            if value.selection is None:
                self._importer.materialised(source)
            return replace(self._importer.values[source], head_axis=2)
        if value.head_axis == 2 and tuple(after) == (*before[:2], before[2] * before[3]):
            return replace(value, head_axis=None)
        self._importer.materialised(source)
        value = self._importer.values[source]
        if value.flattened is not None or not value.axis:
            raise self._importer.unsupported(node, " on what was flattened, or on tokens")
        pixels = [n for axis, n in enumerate(before) if axis not in (0, value.axis)]
        kept = [n for axis, n in enumerate(after) if axis and n != 1]
        if after[0] == before[0] and kept == [n for n in before[1:] if n != 1]:
            # Only axes of one pixel come or go.
            axis = next(i for i, n in enumerate(after) if i and n == before[value.axis])
            return replace(value, axis=axis)
        if len(after) == 2 and value.axis == 1:
            height, width = [1] * (2 - len(pixels)) + pixels
            return replace(value, axis=1, flattened=(before[1], height, width))
        raise self._importer.unsupported(node, f" from {tuple(before)} to {tuple(after)}")

    def _permute(self, node: fx.Node) -> Value:
        n_axes = self._importer.floats[node].ndim
        order = list(range(n_axes))
        if node.target is aten.permute.default:
            order = [axis % n_axes for axis in self._importer.argument(node, 1, "dims")]
        else:
            one, other = (axis % n_axes for axis in node.args[1:3])
            order[one], order[other] = other, one
        head_axis = self._importer.values[node.args[0]].head_axis
        if head_axis is not None and order == [0, 2, 1, 3]:
            return replace(self._importer.values[node.args[0]], head_axis=3 - head_axis)
        value = self._importer.pending(node.args[0])
        pixels = [axis for axis in order if axis not in (0, value.axis)]
        if order[0] != 0 or pixels != sorted(pixels) or value.flattened:
            raise self._importer.unsupported(node, " other than moving the channels")
        return replace(value, axis=order.index(value.axis))

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
        if places.start >= places.stop:
            raise importer.unsupported(node, " of nothing")
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
