"""Calibrated ranges, and training with the engine's rounding in every product.

Quantisation-aware training with straight-through gradients (Jacob et al. 2018, arXiv 1712.05877).
What is rounded, and how, is the engine's: weights symmetric by row with the very scale of
:func:`gshw.quantise.row_scales`, activations with zero point 0 and the calibrated range. Rounding
happens where a masked weight is used, never in the parameter below it: a zero of the mask stays
zero because zero is a code, and a kept weight that rounds to zero stays kept.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.quantise import (
    Calibration,
    FloatLayer,
    accumulator_scales,
    least_scale,
    max_weight,
    row_scales,
)
from pruning.integers.ranges import Quantisation, calibrate
from pruning.models.products import (
    Multiply,
    Product,
    add_bias,
    route_model,
    routed_products,
    unroute_model,
    weight_bias,
)
from pruning.models.weights import PrunableWeight, find_weights
from pruning.patterns.pattern import Projection
from pruning.settings import QuantisationChoice

# --- batch norms ---------------------------------------------------------------------------------


def fold(weight: Tensor, bias: Tensor | None, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias that do the work of a batch norm too, float64.

    Parameters
    ----------
    weight
        Rows on the first axis.
    """
    weight = weight.detach().double()
    n_rows = len(weight)
    bias = weight.new_zeros(n_rows) if bias is None else bias.detach().double()
    if norm is None:
        return weight, bias
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    offset = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    factor = gain / torch.sqrt(variance + norm.eps)
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), (bias - mean) * factor + offset


def _fold_in_place(model: nn.Module, weight: PrunableWeight, norm_name: str) -> None:
    norm = model.get_submodule(norm_name)
    dense = weight.dense
    folded, bias = fold(dense, weight.module.bias, norm)
    # An optimiser that holds the batch norm's offset goes on to train it as the layer's bias.
    parameter = weight.module.bias
    parameter = norm.bias if parameter is None else parameter
    if parameter is None:
        parameter = nn.Parameter(torch.zeros_like(bias, dtype=dense.dtype))
    with torch.no_grad():
        dense.copy_(folded)
        parameter.copy_(bias)
    weight.module.bias = parameter
    parent, _, child = norm_name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())


# --- quantisation-aware training -----------------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    """The rounded value forwards, the gradient of the identity backwards."""

    @staticmethod
    def forward(ctx, value: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class FakeProduct(Product):
    """A product as the engine rounds it, in float and with gradients.

    Parameters
    ----------
    name
        Of the weight.
    """

    def __init__(
        self,
        config: EngineConfig,
        name: str,
        calibration: Calibration,
        weight_width: int | None,
    ) -> None:
        super().__init__()
        self.config, self.name, self.weight_width = config, name, weight_width
        self.calibration = calibration

    def get_extra_state(self) -> Tensor:
        """The calibration, as a tensor so that any state-dict format can hold it."""
        c = self.calibration
        values = (c.input_range, c.output_range, c.signed_input, c.signed_output, *c.input_size)
        return torch.tensor(values, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        input_range, output_range, signed_input, signed_output, *size = state.tolist()
        self.calibration = Calibration(
            input_range=input_range,
            output_range=output_range,
            signed_input=bool(signed_input),
            signed_output=bool(signed_output),
            input_size=(int(size[0]), int(size[1])),
        )

    def weight_scales(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """:func:`gshw.quantise.row_scales`, on the weight's device; shape (n_rows,), float64."""
        rows = weight.detach().flatten(1).abs()
        c, config = self.calibration, self.config
        peak = rows.amax(dim=1).double() / max_weight(config, self.weight_width)
        need, _ = accumulator_scales(
            config,
            (rows != 0).sum(dim=1).double(),
            rows.sum(dim=1, dtype=torch.float64),
            torch.zeros_like(peak) if bias is None else bias.detach().double().abs(),
            input_scale=c.input_scale(config),
            signed_input=c.signed_input,
        )
        least = least_scale(c.input_scale(config), c.output_scale(config))
        return torch.maximum(peak, need).clamp_min(least)

    def fake_weight(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The weight at its codes: float values, exactly codes times the rows' scales."""
        with torch.no_grad():
            scale = self.weight_scales(weight, bias).reshape(-1, *[1] * (weight.ndim - 1))
            rounded = ((weight.double() / scale).round() * scale).to(weight.dtype)
        return _StraightThrough.apply(weight, rounded)

    def forward(self, weight: Tensor, bias: Tensor | None, multiply: Multiply, axis: int):
        weight = self.fake_weight(weight, bias)
        c, config = self.calibration, self.config
        before = (c.input_scale(config), 0, *config.activation_range(c.signed_input))
        after = (c.output_scale(config), 0, *config.activation_range(c.signed_output))

        def apply(x: Tensor) -> Tensor:
            y = multiply(torch.fake_quantize_per_tensor_affine(x, *before), weight)
            return torch.fake_quantize_per_tensor_affine(add_bias(y, bias, axis), *after)

        return apply


def attach_quantisation(
    config: EngineConfig,
    model: nn.Module,
    batches: Iterable,
    spec: QuantisationChoice | None = None,
    *,
    host: Collection[str] = (),
) -> Quantisation:
    """Calibrate, fold the batch norms, and round in every product from now on, in place.

    The engine runs folded weights, so those are what has to be rounded. Folding first is the
    robust way (Nagel et al. 2021, arXiv 2106.08295, section 4.2): training and export then see
    the same numbers, with no batch statistics that a small batch or a frozen running mean could
    pull away from what is exported. Parameters stay the same objects, and a batch norm's offset
    becomes the bias of a layer without one, so an optimiser goes on; a model that DDP has wrapped
    must be wrapped anew. Ranges stay as calibrated; weights learn to live within them. Weight
    scales follow the weights at every step.

    Parameters
    ----------
    batches, host
        As for :func:`calibrate`.

    Returns
    -------
    Quantisation
        For the export; :func:`detach_quantisation` returns the same again.

    Raises
    ------
    GshwError
        As :func:`calibrate`; for weights or ranges that cannot be quantised.
    """
    quantisation = calibrate(config, model, batches, spec, host=host)
    weights, _ = find_weights(config, model)
    used = [weight for weight in weights if weight.name in quantisation.calibrations]
    for weight in used:
        norm = quantisation.batch_norms.get(weight.name)
        row_scales(
            config,
            float_layer(
                config, weight, quantisation, None if norm is None else model.get_submodule(norm)
            ),
        )
    for weight in used:
        if weight.name in quantisation.batch_norms:
            _fold_in_place(model, weight, quantisation.batch_norms[weight.name])
    products = {
        weight.name: FakeProduct(
            config,
            weight.name,
            quantisation.calibrations[weight.name],
            quantisation.weight_width,
        )
        for weight in used
    }
    route_model(model, used, products)
    return replace(quantisation, batch_norms={})


def detach_quantisation(model: nn.Module) -> Quantisation:
    """Undo the rounding of :func:`attach_quantisation`; masks and folded batch norms stay.

    Raises
    ------
    GshwError
        For a model without it.
    """
    found = [product for product in routed_products(model) if isinstance(product, FakeProduct)]
    if not found:
        raise GshwError("the model has no quantisation to detach")
    unroute_model(model)
    return Quantisation(
        weight_width=found[0].weight_width,
        calibrations={product.name: product.calibration for product in found},
    )


# --- towards integers ----------------------------------------------------------------------------


def float_layer(
    config: EngineConfig,
    weight: PrunableWeight,
    quantisation: Quantisation,
    norm: nn.Module | None = None,
    projection: Projection | None = None,
) -> FloatLayer:
    """One weight as :mod:`gshw.quantise` takes it, batch norm folded in.

    Raises
    ------
    GshwError
        For a weight that was not calibrated.
    """
    calibration = quantisation.calibrations.get(weight.name)
    if calibration is None:
        raise GshwError(f"layer {weight.name!r}: no calibration of that name")
    folded, bias = fold(weight.masked, weight_bias(weight.module, weight.tensor_name), norm)
    return FloatLayer(
        name=weight.name,
        weights=weight.to_matrix(folded),
        bias=bias.cpu().numpy(),
        geometry=weight.geometry,
        input_scale=calibration.input_scale(config),
        output_scale=calibration.output_scale(config),
        signed_input=calibration.signed_input,
        signed_output=calibration.signed_output,
        mask=None if projection is None else projection.mask,
        row_order=None if projection is None else projection.row_order,
        weight_width=quantisation.weight_width,
    )
