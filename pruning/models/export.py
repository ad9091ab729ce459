"""Quantisation and export of a pruned model to the encoded artefact."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from gshw.artefact import EncodedModel
from gshw.config import EngineConfig
from gshw.encoding import EncodedLayer
from gshw.errors import GshwError
from gshw.quantise import Calibration, FloatLayer, quantise_layer
from pruning.integers.quantisation import float_layer, fold
from pruning.integers.ranges import Quantisation
from pruning.models.layers import ModelLayer
from pruning.models.weights import PrunableWeight
from pruning.patterns.pattern import Projection


def folded(layer: ModelLayer) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_rows, n_columns) and bias (n_rows,) with the batch norm folded in, float64."""
    weight, bias = fold(layer.module.weight, layer.module.bias, layer.batch_norm)
    return layer.to_matrix(weight), bias.cpu().numpy()


def export(
    config: EngineConfig,
    layers: list[ModelLayer],
    projections: Mapping[str, Projection],
    provenance: dict[str, str] | None = None,
    quantisation: Quantisation | None = None,
) -> EncodedModel:
    """Quantise and encode every layer.

    The mask is the truth about what is kept, not which weights are zero. A layer whose output is
    directly the next one's input shares its scale and sign with it, so that codes pass unchanged;
    if all layers do, the model is a chain.

    Parameters
    ----------
    projections
        Mask and row order by layer name; other layers keep every weight that is not zero.
    quantisation
        Ranges and weight width from training with quantisation. None: the ranges that
        :func:`pruning.models.layers.analyse` found, and the engine's weight width.

    Raises
    ------
    GshwError
        Naming the layer: values that are not finite, an accumulator that could overflow, a batch
        norm that cannot be folded, no calibration, a projection of no layer or another shape.
    """
    _check_names(projections, [layer.name for layer in layers])
    found = _calibrations(layers) if quantisation is None else quantisation.calibrations
    encoded: dict[str, EncodedLayer] = {}
    for layer in layers:
        if layer.batch_norm is not None and not layer.batch_norm.track_running_stats:
            raise GshwError(f"layer {layer.name!r}: a batch norm without running statistics")
        if layer.name not in found:
            raise GshwError(f"layer {layer.name!r}: no calibration of that name")
        weights, bias = folded(layer)
        projection = projections.get(layer.name)
        calibration = found[layer.name]
        encoded[layer.name] = quantise_layer(
            config,
            FloatLayer(
                name=layer.name,
                weights=weights,
                bias=bias,
                geometry=layer.geometry,
                input_scale=calibration.input_scale(config),
                output_scale=calibration.output_scale(config),
                signed_input=calibration.signed_input,
                signed_output=calibration.signed_output,
                mask=None if projection is None else projection.mask,
                row_order=None if projection is None else projection.row_order,
                weight_width=None if quantisation is None else quantisation.weight_width,
            ),
        )
        encoded[layer.name].metadata["input_size"] = "x".join(map(str, layer.input_size))
    chained = all(a.name == b.source for a, b in pairwise(layers))
    return EncodedModel(
        layers=encoded,
        chain=tuple(encoded) if chained else (),
        provenance=provenance or {},
    )


def export_matrices(
    config: EngineConfig,
    model: nn.Module,
    weights: list[PrunableWeight],
    projections: Mapping[str, Projection],
    quantisation: Quantisation,
    provenance: dict[str, str] | None = None,
) -> EncodedModel:
    """Quantise and encode the weights of any model, each as a layer of its own.

    For what is no chain of layers: the gates of an LSTM, the projections of an attention, a model
    that torch.fx cannot follow. What lies between the matrices is the host's; their cycles can be
    explained and simulated, and :func:`pruning.integers.evaluation.quantised_copy` has the same
    integers.

    Parameters
    ----------
    weights
        Those to encode, as :func:`pruning.models.weights.find_weights` found them in the model.
    projections
        Mask and row order by weight name; other weights keep every weight that is not zero.
    quantisation
        Of this model; see :func:`pruning.integers.ranges.calibrate`.

    Raises
    ------
    GshwError
        As :func:`export`.
    """
    _check_names(projections, [weight.name for weight in weights])
    encoded: dict[str, EncodedLayer] = {}
    for weight in weights:
        norm = quantisation.batch_norms.get(weight.name)
        norm = None if norm is None else model.get_submodule(norm)
        layer = float_layer(config, weight, quantisation, norm, projections.get(weight.name))
        encoded[weight.name] = quantise_layer(config, layer)
        size = quantisation.calibrations[weight.name].input_size
        encoded[weight.name].metadata["input_size"] = "x".join(map(str, size))
    return EncodedModel(layers=encoded, provenance=provenance or {})


def _check_names(projections: Mapping[str, Projection], names: list[str]) -> None:
    for name in projections:
        if name not in names:
            raise GshwError(f"no layer {name!r} for the mask of that name")


def _calibrations(layers: list[ModelLayer]) -> dict[str, Calibration]:
    """By layer name; a chained layer takes scale and sign of its source's codes."""
    named = {layer.name: layer for layer in layers}
    readers = {layer.source: layer for layer in layers if layer.source is not None}
    found = {}
    for layer in layers:
        source, reader = named.get(layer.source), readers.get(layer.name)
        seen = layer.calibration["input_low"] < 0
        found[layer.name] = Calibration(
            input_range=layer.calibration["input"],
            output_range=(reader or layer).calibration["input" if reader else "output"],
            signed_input=seen if source is None else not source.relu,
            signed_output=not layer.relu,
            input_size=layer.input_size,
        )
    return found


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict ready for safetensors: contiguous, on the CPU."""
    return {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
