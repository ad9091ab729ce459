"""The report's pictures."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from gshw.config import EngineConfig
from pruning.patterns.pattern import Projection
from pruning.runs.report import PrunedLayer

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_DPI = 150


def save_figure(figure, path: Path) -> None:
    """Write the whole picture or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    figure.savefig(temporary, dpi=_DPI, bbox_inches="tight")
    plt.close(figure)
    os.replace(temporary, path)
    path.chmod(0o644)


def plot_mask(path: Path, config: EngineConfig, name: str, projection: Projection) -> None:
    """Rows in bundle order, kept weights coloured by bank, and how many each bank keeps.

    Draws the first four bundles' rows (at least 32) and the first 256 columns.
    """
    n_rows = max(32, 4 * config.rows)
    order = projection.row_order[:n_rows]
    mask = projection.mask[order][:, :256]
    bank = (np.arange(mask.shape[1]) // config.block) % config.lanes
    picture = np.where(mask, bank[None, :], np.nan)
    colours = matplotlib.colormaps["turbo"].resampled(config.lanes)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 4.5), width_ratios=[4, 1], layout="constrained"
    )
    drawn = left.imshow(
        picture,
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=-0.5,
        vmax=config.lanes - 0.5,
    )
    for border in range(config.rows, len(order), config.rows):
        if config.rows > 1:
            left.axhline(border - 0.5, color="black", linewidth=0.7)
    left.set(
        title=f"layer {name}: kept weights of {config.pattern_name}, coloured by bank",
        xlabel="column",
        ylabel="row, in bundle order",
    )
    figure.colorbar(drawn, ax=left, label="bank", fraction=0.03, pad=0.01)
    rows = projection.row_order[: config.rows]
    whole = projection.mask[rows]
    banks = (np.arange(whole.shape[1]) // config.block) % config.lanes
    counts = np.bincount(banks, weights=whole.sum(axis=0), minlength=config.lanes) / config.block
    right.barh(np.arange(config.lanes), counts, color=colours(np.arange(config.lanes)))
    right.set(title="first bundle", xlabel="blocks kept", ylabel="bank")
    right.set_ylim(config.lanes - 0.5, -0.5)
    save_figure(figure, path)


def plot_cycles(
    path: Path, layers: list[str], cases: dict[str, list[int]], dense: list[int]
) -> None:
    """Cycles per layer for every pattern, beside the dense layer, on a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(9, 4.5))
    series = {"dense": dense, **cases}
    width = 0.8 / len(series)
    for index, (label, cycles) in enumerate(series.items()):
        place = np.arange(len(layers)) + (index - (len(series) - 1) / 2) * width
        axis.bar(place, cycles, width, label=label)
    axis.set_yscale("log")
    axis.set_xticks(np.arange(len(layers)), [f"layer {name}" for name in layers])
    axis.set(ylabel="cycles (hardware counter)", title="cycles per layer, same engine")
    axis.legend()
    save_figure(figure, path)


def plot_accuracy(
    path: Path, points: list[tuple[str, float, float, float]], dense_accuracy: float
) -> None:
    """Accuracy in RTL over speed-up; points are (pattern, sparsity, speed-up, accuracy)."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for label in dict.fromkeys(point[0] for point in points):
        mine = [point for point in points if point[0] == label]
        axis.plot([p[2] for p in mine], [100 * p[3] for p in mine], "o-", label=label)
        for _, sparsity, speed_up, found in mine:
            axis.annotate(
                f"{100 * sparsity:.0f} %",
                (speed_up, 100 * found),
                textcoords="offset points",
                xytext=(5, 5),
            )
    axis.axhline(100 * dense_accuracy, color="grey", linestyle=":", label="dense float")
    axis.set(
        xlabel="speed-up over dense on the same RTL",
        ylabel="accuracy of int8 in RTL (%)",
        title="digits: accuracy over speed",
    )
    axis.legend()
    save_figure(figure, path)


def plot_pruning(path: Path, layers: Sequence[PrunedLayer], title: str) -> None:
    """Per layer: kept score relative to unstructured, certified gap, and cycles beside dense."""
    names = [layer.law.name for layer in layers]
    places = np.arange(len(layers))
    width = max(6.0, min(24.0, 0.35 * len(layers) + 4.0))
    figure, (score, gap, cycles) = plt.subplots(
        3, 1, figsize=(width, 8), sharex=True, layout="constrained"
    )

    def values(key: str) -> list[float]:
        found = [getattr(layer, key) for layer in layers]
        return [np.nan if value is None else value for value in found]

    kept = 100 * np.array(values("kept_of_unstructured"), dtype=float)
    score.bar(places, kept, 0.6)
    if np.isfinite(kept).any():
        score.set_ylim(min(99.0, float(np.nanmin(kept))) - 0.5, 100.2)
    score.set(ylabel="kept score (%)\nof unstructured", title=title)
    gap.plot(places, values("gap"), "o")
    # A gap of zero must show: linear up to what rounding leaves, logarithmic above.
    gap.set_yscale("symlog", linthresh=1e-9)
    gap.set_ylim(bottom=-1e-10)
    gap.axhline(1e-6, color="grey", linestyle=":")
    gap.set(ylabel="certified gap")
    for offset, key, label in ((-0.2, "dense_cycles", "dense"), (0.2, "cycles", "pruned")):
        heights = [getattr(layer.law, key) for layer in layers]
        cycles.bar(places + offset, heights, 0.4, label=label)
    cycles.set_yscale("log")
    cycles.set(ylabel="cycles (law)")
    cycles.set_xticks(places, names, rotation=90 if len(layers) > 8 else 0)
    cycles.legend()
    save_figure(figure, path)
