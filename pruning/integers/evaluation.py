"""A model that computes as the engine does: integers in every product, float on the host between.

Bit for bit what :mod:`gshw.golden` computes, layer by layer, but in torch: fast enough for the
accuracy on thousands of samples, on any device, and for models that are no chain of layers.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gshw.config import EngineConfig
from gshw.encoding import Requantisation
from gshw.errors import GshwError
from gshw.quantise import Calibration, to_integers
from pruning.integers.quantisation import float_layer
from pruning.integers.ranges import Quantisation
from pruning.models.products import Multiply, Product, by_rows, route_model, unroute_model
from pruning.models.weights import find_weights


class IntegerProduct(Product):
    """The engine's product: codes in, exact sum, multiplier and shift, codes out.

    Numbers are float64 tensors that hold integers. That is exact, in any order of summation: a
    sum stays below 2**32, times a 16-bit multiplier below 2**48, and float64 holds all integers
    up to 2**53; a division by a power of two is exact as well.

    Parameters
    ----------
    codes
        Weight codes in the shape of the module's tensor, float64.
    """

    def __init__(
        self,
        config: EngineConfig,
        codes: Tensor,
        requantisation: Requantisation,
        calibration: Calibration,
    ) -> None:
        super().__init__()
        self.input_scale = calibration.input_scale(config)
        self.output_scale = calibration.output_scale(config)
        self.input_range = config.activation_range(requantisation.signed_input)
        self.output_range = (requantisation.low, requantisation.high)
        self.register_buffer("codes", codes)
        for key in ("bias", "multiplier", "shift"):
            values: NDArray = getattr(requantisation, key).astype(np.float64)
            self.register_buffer(key, torch.from_numpy(values).to(codes.device))

    def forward(self, weight: Tensor, bias: Tensor | None, multiply: Multiply, axis: int):
        """Ignores the float weight and bias."""
        offset, multiplier, shift = (
            by_rows(t, axis) for t in (self.bias, self.multiplier, self.shift)
        )
        step = torch.exp2(shift)

        def apply(x: Tensor) -> Tensor:
            codes = (x.double() / self.input_scale).round_().clamp_(*self.input_range)
            # Rounded, because a device's convolution may go through transforms with fractions.
            acc = multiply(codes, self.codes).round_().add_(offset)
            scaled = ((acc * multiplier + step / 2) / step).floor_()
            return (scaled.clamp_(*self.output_range) * self.output_scale).to(x.dtype)

        return apply


def quantised_copy(config: EngineConfig, model: nn.Module, quantisation: Quantisation) -> nn.Module:
    """A copy whose calibrated weights multiply in the engine's integers.

    Parameters
    ----------
    model
        Masked or not, in training with quantisation or not; it is left as it is.
    quantisation
        From :func:`pruning.integers.ranges.calibrate`, ``attach_quantisation`` or
        ``detach_quantisation``. Weights that it does not name stay float.

    Returns
    -------
    nn.Module
        In evaluation mode; batch norms that the integers include are identities.

    Raises
    ------
    GshwError
        For values that are not finite, an accumulator that could overflow, or a calibration of a
        weight that the model does not have.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    unroute_model(twin)
    weights, _ = find_weights(config, twin)
    names = [weight.name for weight in weights]
    for name in quantisation.calibrations:
        if name not in names:
            raise GshwError(f"no weight {name!r} in the model for the calibration of that name")
    products: dict[str, Product] = {}
    for weight in weights:
        calibration = quantisation.calibrations.get(weight.name)
        if calibration is None:
            continue
        norm = quantisation.batch_norms.get(weight.name)
        norm = None if norm is None else twin.get_submodule(norm)
        codes, requantisation = to_integers(config, float_layer(config, weight, quantisation, norm))
        tensor = weight.from_matrix(codes.astype(np.float64))
        products[weight.name] = IntegerProduct(config, tensor, requantisation, calibration)
    route_model(twin, weights, products)
    for norm in quantisation.batch_norms.values():
        parent, _, child = norm.rpartition(".")
        setattr(twin.get_submodule(parent), child, nn.Identity())
    return twin
