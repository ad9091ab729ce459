"""What the host computes: token numbers, attention, layer norms, functions of single values."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from pruning.networks.affine import skip
from pruning.networks.values import Value

if TYPE_CHECKING:
    from pruning.networks.importer import Importer

aten = torch.ops.aten

TABLES = (
    aten.sigmoid.default,
    aten.tanh.default,
    aten.gelu.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.elu.default,
    aten.leaky_relu.default,
)
"""Functions of single values."""


class HostRules:
    """Rules of an importer for what is no sum of products."""

    def __init__(self, importer: "Importer") -> None:
        self._importer = importer
        self._graph = importer.graph

    def rules(self) -> dict[Any, Callable[[fx.Node], Value]]:
        """By operator."""
        return dict.fromkeys(TABLES, self._by_table) | {
            aten.embedding.default: self._embedding,
            aten.scaled_dot_product_attention.default: self._attention,
            aten.layer_norm.default: self._layer_norm,
            aten.argmax.default: self._argmax,
        }

    # --- tokens --------------------------------------------------------------------------------

    def is_constant(self, node: fx.Node) -> bool:
        """Whether an embedding is a weight like any other: of constant tokens for all samples.

        A single token for as many samples as there are is filled in instead.
        """
        importer, tokens = self._importer, node.args[1]
        numbers = importer.floats[tokens]
        if tokens in importer.values or not torch.equal(numbers, numbers[:1].expand_as(numbers)):
            return tokens not in importer.values and numbers.ndim == 1
        filled = len(numbers) == len(importer.example) and len(numbers.unique()) == 1
        return numbers.ndim == 1 or not filled

    def _embedding(self, node: fx.Node) -> Value:
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
            source = self._graph.filled(f"token.{value}", value, shaped, host=True)
        found = importer.floats[node]
        if len(found) != len(importer.example):
            found = found.expand(len(importer.example), *found.shape[1:])
        name = importer.name(node)
        self._graph.add_tensor(name, found.movedim(2, 1)[:, :, None])
        key = importer.keys[node.args[0]]
        self._graph.add_host_node("embedding", [source], name, key=key, table=table)
        return Value(skip(name, found.shape[2]), name, 2)

    def _argmax(self, node: fx.Node) -> Value:
        importer = self._importer
        source = node.args[0]
        value = importer.value(source)
        axis = importer.argument(node, 1, "dim")
        n_axes = importer.floats[source].ndim
        if axis is None or axis % n_axes != value.axis or n_axes != 3:
            raise importer.unsupported(node, " but along the channels of a sequence")
        tensor = importer.materialised(source)
        name = importer.name(node)
        self._graph.add_tokens(name, importer.floats[node])
        self._graph.add_host_node("argmax", [tensor], name)
        return Value(skip(name, 1), name, 0)

    # --- attention -----------------------------------------------------------------------------

    def _attention(self, node: fx.Node) -> Value:
        importer = self._importer
        given = importer.argument(node, 3, "attn_mask"), importer.argument(node, 4, "dropout_p", 0)
        if given != (None, 0) or node.kwargs.get("enable_gqa", False):
            raise importer.unsupported(node, " with a mask, dropout or groups")
        arguments = node.args[:3]
        for argument in arguments:
            if argument not in importer.values:
                importer.value(argument)
        before = [importer.values[argument] for argument in arguments]
        shape = importer.floats[node].shape
        if len(shape) == 4 and all(value.head_axis == 1 for value in before):
            sources = [value.selection or str(value.tensor) for value in before]
            found = importer.floats[node].transpose(1, 2).flatten(2)
        elif len(shape) == 3 and all(importer.value(each).axis == 2 for each in arguments):
            sources = [importer.materialised(argument) for argument in arguments]
            found = importer.floats[node]
        else:
            raise importer.unsupported(
                node, " but of (samples, steps, channels) or (samples, heads, steps, channels)"
            )
        scale = node.kwargs.get("scale")
        width = importer.floats[arguments[0]].shape[-1]
        name = importer.name(node)
        self._graph.add_tensor(name, found.movedim(2, 1)[:, :, None])
        self._graph.add_host_node(
            "attention",
            sources,
            name,
            factor=width**-0.5 if scale is None else float(scale),
            numbers={
                "heads": shape[1] if len(shape) == 4 else 1,
                "causal": int(bool(importer.argument(node, 5, "is_causal", False))),
            },
        )
        head_axis = 1 if len(shape) == 4 else None
        return Value(skip(name, found.shape[2]), name, 2, head_axis=head_axis)

    # --- element by element --------------------------------------------------------------------

    def _layer_norm(self, node: fx.Node) -> Value:
        importer = self._importer
        source = node.args[0]
        value = importer.value(source)
        shape = importer.floats[source].shape
        if list(node.args[1]) != [shape[-1]] or value.axis != len(shape) - 1:
            raise importer.unsupported(node, " but over the channels, which come last")
        given = importer.argument(node, 2, "weight"), importer.argument(node, 3, "bias")
        gain, offset = (importer.array(each) for each in given)
        tensor = importer.materialised(source)
        name = importer.name(node)
        found = importer.new_tensor(node, name, value.axis, nonnegative=False)
        self._graph.add_host_node(
            "layer_norm",
            [tensor],
            name,
            gain=gain,
            offset=offset,
            epsilon=float(importer.argument(node, 4, "eps", 1e-5)),
        )
        return found

    def _by_table(self, node: fx.Node) -> Value:
        """A function of single values."""
        importer = self._importer
        source = node.args[0]
        tensor = importer.materialised(source)
        value = importer.values[source]
        if value.flattened is not None:
            raise importer.unsupported(node, " on what was flattened")

        def apply(x: Tensor) -> Tensor:
            return node.target(x, *node.args[1:], **node.kwargs)

        name = importer.name(node)
        nonnegative = bool((importer.floats[node] >= 0).all())
        found = importer.new_tensor(node, name, value.axis, nonnegative=nonnegative)
        kind = f"{node.target}{node.args[1:]}{node.kwargs}"
        self._graph.add_host_node("table", [tensor], name, apply=apply, kind=kind)
        return found
