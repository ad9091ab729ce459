"""What pruning did to every layer: how good its mask is, what it costs, what it saves."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

from gshw.artefact import EncodedModel
from gshw.config import EngineConfig
from gshw.simulate import LayerReport, explain_layer, input_size
from pruning.models.weights import PrunableWeight
from pruning.patterns.pattern import Projection
from pruning.recovery.calibration import evaluating


@dataclass(frozen=True, kw_only=True)
class PrunedLayer:
    """One encoded layer; a dense one has no mask, so nothing is known of its score.

    Parameters
    ----------
    pattern
        Its label; ``dense`` for a layer without a mask.
    target, actual
        Sparsity asked for, and that of the mask.
    kept_score, ceiling
        Sum of the scores kept, and of as many of the largest scores of the layer.
    gap
        Certified distance from the best mask, relative to the bound; None without a certificate.
    output_error
        See :func:`output_errors`; None where it was not measured.
    law
        Groups and cycles, by the cycle law.
    """

    pattern: str
    target: float
    actual: float
    kept_score: float | None
    ceiling: float | None
    gap: float | None
    output_error: float | None
    law: LayerReport

    @property
    def kept_of_unstructured(self) -> float | None:
        """Kept score relative to an unstructured mask of as many weights."""
        if self.kept_score is None or not self.ceiling:
            return None
        return self.kept_score / self.ceiling

    def as_json(self) -> dict:
        """Plain values: the cycle law's account, and the mask's."""
        own = {key: value for key, value in vars(self).items() if key != "law"}
        return {**self.law.as_json(), **own, "kept_of_unstructured": self.kept_of_unstructured}


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Over all layers.

    Parameters
    ----------
    sparsity
        Masked share of all weights.
    kept_of_unstructured
        Kept scores relative to ceilings, both summed over the layers that have them.
    gap
        The largest; None if no layer has one.
    groups, cycles, dense_cycles
        Sums.
    """

    sparsity: float
    kept_of_unstructured: float | None
    gap: float | None
    groups: int
    cycles: int
    dense_cycles: int

    @property
    def speed_up(self) -> float:
        return self.dense_cycles / self.cycles

    def as_json(self) -> dict:
        """Plain values."""
        return {**asdict(self), "speed_up": self.speed_up}


def pruned_layers(
    config: EngineConfig,
    encoded: EncodedModel,
    projections: Mapping[str, Projection],
    targets: Mapping[str, float],
    pattern: str,
    output_errors: Mapping[str, float] | None = None,
) -> list[PrunedLayer]:
    """One entry per encoded layer, for one full set of activation columns.

    Parameters
    ----------
    projections, targets
        Mask and target sparsity by layer name, of the pruned layers.
    pattern
        Label of the masks' pattern.
    output_errors
        By layer name.
    """
    found = []
    for name, layer in encoded.layers.items():
        law = explain_layer(config, layer, config.columns, *input_size(layer))
        projection = projections.get(name)
        masked = projection is not None
        found.append(
            PrunedLayer(
                pattern=pattern if masked else "dense",
                target=targets[name] if masked else 0.0,
                actual=1.0 - projection.density if masked else 0.0,
                kept_score=projection.kept_score if masked else None,
                ceiling=projection.ceiling if masked else None,
                gap=projection.gap if masked else None,
                output_error=(output_errors or {}).get(name),
                law=law,
            )
        )
    return found


def totals(layers: Sequence[PrunedLayer]) -> Totals:
    """Sums over all layers of a report."""
    sizes = [layer.law.rows * layer.law.columns for layer in layers]
    scored = [layer for layer in layers if layer.kept_of_unstructured is not None]
    ceiling = sum(layer.ceiling for layer in scored)
    gaps = [layer.gap for layer in layers if layer.gap is not None]
    n_pruned = sum(layer.actual * size for layer, size in zip(layers, sizes, strict=True))
    return Totals(
        sparsity=n_pruned / sum(sizes),
        kept_of_unstructured=sum(layer.kept_score for layer in scored) / ceiling
        if ceiling
        else None,
        gap=max(gaps, default=None),
        groups=sum(layer.law.groups for layer in layers),
        cycles=sum(layer.law.cycles for layer in layers),
        dense_cycles=sum(layer.law.dense_cycles for layer in layers),
    )


def pruning_table(layers: Sequence[PrunedLayer], title: str) -> Table:
    """One row per layer, and totals."""
    table = Table(title=title)
    columns = ("layer", "shape", "pattern", "target", "actual", "kept score", "gap")
    for column in (*columns, "output error", "groups", "cycles", "speed-up"):
        left = column in ("layer", "pattern")
        table.add_column(column, justify="left" if left else "right")
    for layer in layers:
        law = layer.law
        table.add_row(
            law.name,
            f"{law.rows} x {law.columns}",
            layer.pattern,
            f"{100 * layer.target:.1f} %",
            f"{100 * layer.actual:.2f} %",
            _percent(layer.kept_of_unstructured),
            _small(layer.gap),
            _percent(layer.output_error),
            f"{law.groups:,}",
            f"{law.cycles:,}",
            f"{law.speed_up:.2f} x",
        )
    if len(layers) > 1:
        total = totals(layers)
        table.add_section()
        table.add_row(
            "all",
            "",
            "",
            "",
            f"{100 * total.sparsity:.2f} %",
            _percent(total.kept_of_unstructured),
            _small(total.gap),
            "",
            f"{total.groups:,}",
            f"{total.cycles:,}",
            f"{total.speed_up:.2f} x",
        )
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1g}"


def output_errors(
    dense: nn.Module, pruned: nn.Module, weights: Sequence[PrunableWeight], batch: Tensor
) -> dict[str, float]:
    """How far each pruned module's output is from the dense one's, on the dense model's inputs.

    Parameters
    ----------
    dense
        The model as it was, with the same modules under the same names; runs in evaluation mode
        and is left as it was.
    weights
        Of the pruned model.

    Returns
    -------
    dict
        ``norm(difference) / norm(dense output)`` by weight name; the weights of one module share
        one. A module that is never called, such as an attention's ``out_proj``, is left out.
    """
    names = {module: name for name, module in pruned.named_modules()}
    modules = {names[weight.module]: weight.module for weight in weights}
    sums: dict[str, tuple[float, float]] = {}

    def hook(name: str, twin: nn.Module):
        def compare(_, args: tuple, kwargs: dict, output) -> None:
            wanted, found = _first(output), _first(twin(*args, **kwargs))
            wrong, whole = sums.get(name, (0.0, 0.0))
            sums[name] = (
                wrong + float((found - wanted).double().square().sum()),
                whole + float(wanted.double().square().sum()),
            )

        return compare

    handles = [
        dense.get_submodule(name).register_forward_hook(hook(name, twin), with_kwargs=True)
        for name, twin in modules.items()
    ]
    try:
        with evaluating(dense), evaluating(pruned):
            dense(batch)
    finally:
        for handle in handles:
            handle.remove()
    errors = {name: (wrong / whole) ** 0.5 for name, (wrong, whole) in sums.items() if whole}
    return {
        weight.name: errors[names[weight.module]]
        for weight in weights
        if names[weight.module] in errors
    }


def _first(output) -> Tensor:
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output
