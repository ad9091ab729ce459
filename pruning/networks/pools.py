"""Means and maxima over windows, as matrices that are diagonal in the channels."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from pruning.networks.affine import Affine, Term, Window, pair
from pruning.networks.values import Value

if TYPE_CHECKING:
    from pruning.networks.importer import Importer

aten = torch.ops.aten


class PoolRules:
    """Rules of an importer for pooling."""

    def __init__(self, importer: "Importer") -> None:
        self._importer = importer

    def rules(self) -> dict[Any, Callable[[fx.Node], Value]]:
        """By operator."""
        return {
            aten.adaptive_avg_pool1d.default: self._adaptive_mean,
            aten.adaptive_avg_pool2d.default: self._adaptive_mean,
            aten.avg_pool2d.default: self._mean_pool,
            aten.mean.dim: self._mean,
            aten.max_pool1d.default: self._max_pool,
            aten.max_pool2d.default: self._max_pool,
        }

    def _mean(self, node: fx.Node) -> Value:
        source = node.args[0]
        value = self._importer.values[source]
        axes = {
            axis % self._importer.floats[source].ndim
            for axis in self._importer.argument(node, 1, "dim")
        }
        pixels = set(range(1, self._importer.floats[source].ndim)) - {value.axis}
        if axes != pixels:
            raise self._importer.unsupported(node, " over anything but all pixels")
        found = self._mean_of(source, None)
        keeps = bool(self._importer.argument(node, 2, "keepdim", False))
        return found if keeps else replace(found, axis=1)

    def _adaptive_mean(self, node: fx.Node) -> Value:
        source = node.args[0]
        if any(n != 1 for n in self._importer.argument(node, 1, "output_size")):
            raise self._importer.unsupported(node, " to more than one pixel")
        return self._mean_of(source, None)

    def _mean_pool(self, node: fx.Node) -> Value:
        kernel = pair(node.args[1], 1, flat=False)
        stride = self._importer.argument(node, 2, "stride") or node.args[1]
        padding = pair(self._importer.argument(node, 3, "padding", 0), 0, flat=False)
        if padding != (0, 0) or self._importer.argument(node, 4, "ceil_mode", False):
            raise self._importer.unsupported(node, " with padding or ceil_mode")
        window = Window(kernel=kernel, stride=pair(stride, 1, flat=False))
        return self._mean_of(node.args[0], window)

    def _mean_of(self, source: fx.Node, window: Window | None) -> Value:
        """A mean over windows; None: over all pixels."""
        name = self._importer.materialised(source)
        tensor = self._importer.graph.tensors[name]
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
        return Value(affine, None, self._importer.values[source].axis)

    def _max_pool(self, node: fx.Node) -> Value:
        flat = node.target is aten.max_pool1d.default
        kernel = pair(node.args[1], 1, flat=flat)
        stride = self._importer.argument(node, 2, "stride") or node.args[1]
        if self._importer.argument(node, 5, "ceil_mode", False):
            raise self._importer.unsupported(node, " with ceil_mode")
        window = Window(
            kernel=kernel,
            stride=pair(stride, 1, flat=flat),
            padding=pair(self._importer.argument(node, 3, "padding", 0), 0, flat=flat),
            dilation=pair(self._importer.argument(node, 4, "dilation", 1), 1, flat=flat),
        )
        name = self._importer.materialised(node.args[0])
        channels = self._importer.graph.tensors[name].channels
        term = Term(
            tensor=name,
            channels=channels,
            weight=np.ones((channels, 1, *kernel)),
            groups=channels,
            window=window,
        ).normal()
        affine = Affine(terms=(term,), bias=np.zeros(channels), maximum=True)
        return Value(affine, None, self._importer.values[node.args[0]].axis)
