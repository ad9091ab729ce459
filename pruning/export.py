"""Post-training quantisation and export of a pruned model to the encoded artefact."""

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from gshw.artefact import EncodedModel
from gshw.config import EngineConfig
from gshw.encoding import EncodedLayer
from gshw.errors import GshwError
from gshw.quantise import FloatLayer, quantise_layer
from pruning.layers import ModelLayer
from pruning.prune import PruningPlan


def folded(layer: ModelLayer) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_rows, n_columns) and bias (n_rows,) with the batch norm folded in, float64."""
    weights = layer.to_matrix(layer.module.weight).astype(np.float64)
    n_rows = weights.shape[0]
    bias = np.zeros(n_rows)
    if layer.module.bias is not None:
        bias = layer.module.bias.detach().cpu().double().numpy().copy()
    norm = layer.batch_norm
    if norm is None:
        return weights, bias
    mean, variance = (
        t.detach().cpu().double().numpy() for t in (norm.running_mean, norm.running_var)
    )
    gain = np.ones(n_rows) if norm.weight is None else norm.weight.detach().cpu().double().numpy()
    offset = np.zeros(n_rows) if norm.bias is None else norm.bias.detach().cpu().double().numpy()
    factor = gain / np.sqrt(variance + norm.eps)
    return weights * factor[:, None], (bias - mean) * factor + offset


def _scale(statistic: float, config: EngineConfig, signed: bool) -> float:
    high = config.activation_range(signed)[1]
    return (statistic if statistic > 0 else 1.0) / high


def export(
    config: EngineConfig,
    layers: list[ModelLayer],
    plan: PruningPlan,
    provenance: dict[str, str] | None = None,
) -> EncodedModel:
    """Quantise and encode every layer.

    A layer whose output is directly the next one's input shares its scale and sign with it, so
    that codes pass unchanged; if all layers do, the model is a chain.

    Raises
    ------
    GshwError
        Naming the layer: values that are not finite, an accumulator that could overflow, a batch
        norm that cannot be folded.
    """
    readers = {layer.source: layer for layer in layers if layer.source is not None}
    encoded: dict[str, EncodedLayer] = {}
    for layer in layers:
        if layer.batch_norm is not None and not layer.batch_norm.track_running_stats:
            raise GshwError(f"layer {layer.name!r}: a batch norm without running statistics")
        weights, bias = folded(layer)
        projection = plan.projections.get(layer.name)
        reader = readers.get(layer.name)
        signed_input = layer.calibration["input_low"] < 0
        signed_output = not layer.relu
        statistic = reader.calibration["input"] if reader else layer.calibration["output"]
        encoded[layer.name] = quantise_layer(
            config,
            FloatLayer(
                name=layer.name,
                weights=weights,
                bias=bias,
                geometry=layer.geometry,
                input_scale=_input_scale(config, layer, layers, signed_input),
                output_scale=_scale(statistic, config, signed_output),
                signed_input=_input_signed(layer, layers, signed_input),
                signed_output=signed_output,
                mask=None if projection is None else projection.mask,
                row_order=None if projection is None else projection.row_order,
            ),
        )
        encoded[layer.name].metadata["input_size"] = "x".join(map(str, layer.input_size))
    chained = all(a.name == b.source for a, b in pairwise(layers))
    return EncodedModel(
        layers=encoded,
        chain=tuple(encoded) if chained else (),
        provenance=provenance or {},
    )


def _input_signed(layer: ModelLayer, layers: list[ModelLayer], seen: bool) -> bool:
    """A chained layer takes the sign of its source's codes, others what calibration saw."""
    source = next((other for other in layers if other.name == layer.source), None)
    return seen if source is None else not source.relu


def _input_scale(
    config: EngineConfig, layer: ModelLayer, layers: list[ModelLayer], seen: bool
) -> float:
    return _scale(layer.calibration["input"], config, _input_signed(layer, layers, seen))


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict ready for safetensors: contiguous, on the CPU."""
    return {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
