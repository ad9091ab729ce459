"""Calibration: the ranges of what every weight of a model reads and gives."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.quantise import Calibration, activation_range, max_weight
from pruning.models.products import Multiply, Product, route_model, unroute_model
from pruning.models.trace import Surroundings, surroundings
from pruning.models.weights import PrunableWeight, find_weights
from pruning.recovery.calibration import batch_input, evaluating
from pruning.settings import QuantisationChoice

_MAX_VALUES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """All that the integers of a model need besides its weights.

    Parameters
    ----------
    weight_width
        Bits of a weight; None: the engine's.
    calibrations
        By weight name; what is missing stays with the host, in float.
    batch_norms
        Name of the batch norm that the engine's weights take in, by weight name.
    """

    weight_width: int | None = None
    calibrations: dict[str, Calibration]
    batch_norms: dict[str, str] = field(default_factory=dict)


class _Values:
    """Magnitudes seen at one place, thinned at random to about a million, and their extremes."""

    def __init__(self) -> None:
        self.lowest, self.highest = 0.0, 0.0
        self._kept: list[NDArray] = []
        self._n_kept = 0
        self._share = 1.0
        self._rng = np.random.default_rng(0)

    def add(self, values: Tensor) -> None:
        if not values.numel():
            return
        flat = values.detach().reshape(-1).float().cpu().numpy()
        self.lowest = min(self.lowest, float(flat.min()))
        magnitudes = np.abs(flat)
        # NumPy's maximum hands NaN on, Python's may not.
        self.highest = float(np.maximum(self.highest, magnitudes.max()))
        if self._share < 1.0:
            magnitudes = magnitudes[self._rng.random(magnitudes.size) < self._share]
        self._kept.append(magnitudes)
        self._n_kept += magnitudes.size
        while self._n_kept > _MAX_VALUES:
            self._kept = [m[self._rng.random(m.size) < 0.5] for m in self._kept]
            self._n_kept = sum(m.size for m in self._kept)
            self._share /= 2

    def magnitudes(self) -> NDArray:
        """What was kept, and always the largest."""
        kept = self._kept if self._share == 1.0 else [*self._kept, np.array([self.highest])]
        return np.concatenate(kept) if kept else np.zeros(0)


class _Observer(Product):
    """The plain product; notes what goes in and, behind batch norm and ReLU, what comes out."""

    def __init__(self, place: Surroundings) -> None:
        super().__init__()
        # In a tuple, so that the batch norm does not become a child of this module.
        self.after = (place.batch_norm, place.relu)
        self.inputs, self.outputs = _Values(), _Values()
        self.input_size = (1, 1)

    def forward(self, weight: Tensor, bias: Tensor | None, multiply: Multiply, axis: int):
        plain = super().forward(weight, bias, multiply, axis)

        def apply(x: Tensor) -> Tensor:
            self.inputs.add(x)
            if axis < -1:
                self.input_size = (1, *x.shape[axis + 1 :])[-2:]
            y = plain(x)
            norm, relu = self.after
            after = y if norm is None else norm(y)
            self.outputs.add(after.relu() if relu else after)
            return y

        return apply


def calibrate(
    config: EngineConfig,
    model: nn.Module,
    batches: Iterable,
    spec: QuantisationChoice | None = None,
    *,
    host: Collection[str] = (),
) -> Quantisation:
    """Ranges of what every weight reads and gives, with the model (and its masks) as it is.

    The model runs in evaluation mode and is left as it was. A layer that directly feeds another
    shares its range and sign with it, as on the engine. Where torch.fx follows the model, batch
    norms are counted to the engine's weights and outputs in front of a ReLU are unsigned; else
    both are the host's.

    Parameters
    ----------
    batches
        Inputs, or tuples whose first element is the input. Under ``torch.distributed`` every rank
        must give the same.
    host
        Names of weights that the host applies in float; they are left out.

    Raises
    ------
    GshwError
        For batches that yield nothing or are not finite, an unknown name in ``host``, a weight
        that no batch reaches, a weight width that the engine does not have, or a model that is
        quantised already.
    """
    spec = spec or QuantisationChoice()
    max_weight(config, spec.weight_width)
    inputs = (batch_input(batch) for batch in batches)
    first = next(inputs, None)
    if first is None:
        raise GshwError("calibration batches yield nothing")
    weights = _engine_weights(config, model, host)
    places = surroundings(model, first)
    observers = {
        weight.name: _Observer(places.get(weight.name, Surroundings())) for weight in weights
    }
    route_model(model, weights, observers)
    try:
        with evaluating(model):
            for batch in chain([first], inputs):
                model(batch)
    finally:
        unroute_model(model)
    names = {module: name for name, module in model.named_modules()}
    return Quantisation(
        weight_width=spec.weight_width,
        calibrations=_calibrations(config, observers, places, spec),
        batch_norms={
            name: names[place.batch_norm]
            for name, place in places.items()
            if name in observers and place.batch_norm is not None
        },
    )


def _engine_weights(
    config: EngineConfig, model: nn.Module, host: Collection[str]
) -> list[PrunableWeight]:
    weights, _ = find_weights(config, model)
    names = [weight.name for weight in weights]
    for name in host:
        if name not in names:
            listed = ", ".join(names)
            raise GshwError(f"no weight {name!r} to leave to the host; there are {listed}")
    return [weight for weight in weights if weight.name not in host]


def _calibrations(
    config: EngineConfig,
    observers: dict[str, _Observer],
    places: dict[str, Surroundings],
    spec: QuantisationChoice,
) -> dict[str, Calibration]:
    def range_of(name: str, values: _Values, signed: bool) -> float:
        if not values.magnitudes().size:
            raise GshwError(f"layer {name!r}: no calibration batch reached it")
        if not np.isfinite(values.highest):
            raise GshwError(f"layer {name!r}: its calibration activations must be finite")
        return activation_range(
            values.magnitudes(),
            spec.activations,
            percentile=spec.percentile,
            highest_code=config.activation_range(signed)[1],
        )

    found: dict[str, Calibration] = {}
    for name, observer in observers.items():
        place = places.get(name, Surroundings())
        source = places[place.source] if place.source in observers else None
        signed_input = observer.inputs.lowest < 0 if source is None else not source.relu
        found[name] = Calibration(
            input_range=range_of(name, observer.inputs, signed_input),
            output_range=range_of(name, observer.outputs, not place.relu),
            signed_input=signed_input,
            signed_output=not place.relu,
            input_size=observer.input_size,
        )
    for name in observers:
        source = places[name].source if name in places else None
        if source in found:
            found[source] = replace(found[source], output_range=found[name].input_range)
    return found
