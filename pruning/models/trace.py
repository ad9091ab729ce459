"""What lies round the layers of a model, read from its torch.fx graph."""

from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_PASSING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, nn.Flatten)
_RELU_CALLS = (torch.relu, torch.relu_, nn.functional.relu)
_PASSING_CALLS = (torch.flatten, nn.functional.dropout)
_PASSING_METHODS = ("flatten", "view", "reshape", "contiguous")


class Recorder(fx.Interpreter):
    """Runs a traced model and keeps every tensor."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node):
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n] = value.detach()
        return value


def _single_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def module_of(traced: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    if node is None or node.op != "call_module":
        return None
    return traced.get_submodule(str(node.target))


def _is_relu(traced: fx.GraphModule, node: fx.Node | None) -> bool:
    if node is None:
        return False
    if node.op == "call_module":
        return isinstance(module_of(traced, node), nn.ReLU)
    if node.op == "call_function":
        return node.target in _RELU_CALLS
    return node.op == "call_method" and node.target in ("relu", "relu_")


def _passes(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node hands its first argument's values on, in order, maybe reshaped."""
    if node.op == "call_module":
        return isinstance(module_of(traced, node), _PASSING)
    if node.op == "call_function":
        return node.target in _PASSING_CALLS
    return node.op == "call_method" and node.target in _PASSING_METHODS


def _origin(
    traced: fx.GraphModule, recorder: Recorder, node: Any
) -> tuple[Any, tuple[int, ...] | None]:
    """Where a layer's input comes from, and the shape of a sample that was flattened on the way."""
    flattened = None
    while isinstance(node, fx.Node) and _passes(traced, node):
        before = node.args[0]
        shape = tuple(recorder.values[before].shape)
        if tuple(recorder.values[node].shape) != shape and recorder.values[node].ndim != 2:
            break  # Reshaped to pixels, channels first: the host has to reorder the codes.
        if len(shape) > 2 and recorder.values[node].ndim == 2:
            flattened = shape[1:]
        node = before
    return node, flattened


def record(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, Recorder] | None:
    """A traced run in evaluation mode, or None for a model that torch.fx cannot follow."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        traced = fx.symbolic_trace(model)
        recorder = Recorder(traced)
        with torch.no_grad():
            recorder.run(example)
    except Exception:  # Tracing fails in as many ways as models are written.
        return None
    finally:
        for module, training in modes:
            module.training = training
    return traced, recorder


def flattened_shapes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of the sample (channels, pixels...) that each linear layer reads flattened.

    Returns
    -------
    dict
        By layer name; empty for a model that torch.fx cannot trace.
    """
    recorded = record(model, example)
    if recorded is None:
        return {}
    traced, recorder = recorded
    shapes = {}
    for node in traced.graph.nodes:
        if isinstance(module_of(traced, node), nn.Linear) and node.args:
            _, flattened = _origin(traced, recorder, node.args[0])
            if flattened is not None:
                shapes[str(node.target)] = flattened
    return shapes


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What lies round a layer.

    Parameters
    ----------
    batch_norm
        Follows it and can be folded into it, or None.
    relu
        Whether a ReLU follows directly (after the batch norm).
    source
        Name of the layer whose output is this one's input, but for flattening; None where
        something else lies between.
    """

    batch_norm: nn.Module | None = None
    relu: bool = False
    source: str | None = None


def surroundings(model: nn.Module, example: Tensor) -> dict[str, Surroundings]:
    """What lies round each layer that the model calls once.

    Unlike :func:`pruning.models.layers.analyse` it takes any model, and leaves to the host a batch
    norm without running statistics, of several uses, or along another axis.

    Returns
    -------
    dict
        By layer name; empty for a model that torch.fx cannot trace.
    """
    recorded = record(model, example)
    if recorded is None:
        return {}
    traced, recorder = recorded
    calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    found: dict[str, Surroundings] = {}
    ends: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        name = str(node.target)
        module = module_of(traced, node)
        if not isinstance(module, SUPPORTED) or calls.count(name) > 1 or not node.args:
            continue
        place, end, _ = around(traced, recorder, node, ends)
        norm = place.batch_norm
        if norm is not None and (
            not norm.track_running_stats
            or calls.count(str(_single_user(node).target)) > 1
            # Only of batches is the second axis a batch norm's and the rows of the weight's.
            or recorder.values[node].ndim != module.weight.ndim
        ):
            place, end = Surroundings(source=place.source), node
        found[name] = place
        ends[end] = name
    return found


def around(
    traced: fx.GraphModule, recorder: Recorder, node: fx.Node, ends: dict[fx.Node, str]
) -> tuple[Surroundings, fx.Node, tuple[int, ...] | None]:
    """A layer's surroundings, the last node that belongs to it, and what it reads flattened."""
    end, batch_norm = node, None
    following = _single_user(node)
    if isinstance(module_of(traced, following), _BATCH_NORMS):
        batch_norm, end = module_of(traced, following), following
        following = _single_user(following)
    relu = _is_relu(traced, following)
    end = following if relu else end
    origin, flattened = _origin(traced, recorder, node.args[0])
    if isinstance(origin, fx.Node) and origin.op == "call_function" and origin.target is getitem:
        origin = None
    source = ends.get(origin) if isinstance(origin, fx.Node) else None
    return Surroundings(batch_norm=batch_norm, relu=relu, source=source), end, flattened
