"""Sums, differences, products and constants."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pruning.networks.affine import Affine, added, skip
from pruning.networks.builder import FIRST_INPUT
from pruning.networks.values import Value

if TYPE_CHECKING:
    from pruning.networks.importer import Importer

aten = torch.ops.aten


class ArithmeticRules:
    """Rules of an importer for ``+``, ``-``, ``*`` and ``/``."""

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
        by_channel = _by_channel(constant, value)
        affine = value.affine if factor == 1 else _times(value.affine, factor)
        first = by_channel[:, :1]
        if torch.equal(by_channel, first.expand_as(by_channel)):
            offset = first[:, 0].double().numpy()
            return Value(affine.scaled(np.ones(len(offset)), offset), None, value.axis)
        (height, width), channels = importer.shape(node, value.axis)
        values = by_channel.reshape(1, channels, height, width)
        name = f"{importer.name(node)}.constant"
        # Known exactly: no percentile.
        everywhere = values.expand(len(importer.example), -1, -1, -1)
        magnitude = float(values.abs().max())
        self._graph.add_tensor(name, everywhere, magnitude=magnitude)
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
        by_channel = _by_channel(factor, value)
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


def _by_channel(constant: Tensor, value: Value) -> Tensor:
    """Values of one sample as (channels, pixels)."""
    moved = constant.movedim(value.axis - 1, 0)
    return moved.reshape(len(moved), -1)


def _times(affine: Affine, factor: float) -> Affine:
    ones: NDArray[np.float64] = np.ones(affine.n_rows)
    return affine.scaled(factor * ones, 0 * ones)
