"""Compensation on the digits network's trained layers: goal 4, and what it does to the model."""

import copy
import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from gshw.config import load_config
from gshw.report import print_wide
from pruning.digits import Digits, accuracy, digits, network, train
from pruning.models.masking import set_mask
from pruning.models.weights import PrunableWeight, find_weights
from pruning.patterns.gs import Gs
from pruning.patterns.neighbours import Unstructured
from pruning.patterns.pattern import Pattern, ScoredMatrix
from pruning.recovery.calibration import Moments, collect_moments
from pruning.recovery.compensation import (
    DAMPING,
    compensate,
    compensate_model,
    output_error,
    quantise_compensated,
    reestimate_batch_norm,
)

N_EPOCHS, N_CALIBRATION = 10, 512
SPARSITY, SPARSITIES = 0.9, (0.8, 0.9, 0.95)
LARGE = (512, 4608)
GOAL_ERROR, GOAL_EXACT = 0.6, 1.02


def _patterns() -> dict[str, Pattern]:
    engine = load_config("v16x4").engine
    gs = [Gs(config=replace(engine, rows=rows, drain_rows=1)) for rows in (16, 4)]
    horizontal = Gs(config=load_config("h16").engine)
    return {p.label: p for p in (*gs, horizontal, Unstructured())}


def _mask(weight: PrunableWeight, pattern: Pattern, sparsity: float) -> NDArray[np.bool_]:
    scores = np.abs(weight.to_matrix(weight.dense))
    matrix = ScoredMatrix(name=weight.name, scores=scores, geometry=weight.geometry)
    return pattern.project(matrix, sparsity).mask


def _exact(matrix: NDArray, mask: NDArray[np.bool_], moments: Moments) -> NDArray:
    """Row by row, from the kept part of the normal equations."""
    gram = moments.gram
    gram = gram + DAMPING * np.trace(gram) / len(gram) * np.eye(len(gram))
    found = np.zeros(matrix.shape)
    for row, keep in enumerate(mask):
        found[row, keep] = np.linalg.solve(gram[np.ix_(keep, keep)], gram[keep] @ matrix[row])
    return found


def _rounded(weights: NDArray, max_weight: int) -> NDArray:
    scales = np.abs(weights).max(axis=1, keepdims=True) / max_weight
    return np.rint(weights / np.where(scales > 0, scales, 1)) * scales


def _layers(model: nn.Module, data: Digits) -> tuple[Table, list[dict]]:
    # The first layer has nine columns: no pattern for sixteen banks suits it.
    weights = find_weights(load_config("v16x4").engine, model, data.train_x[:8])[0][1:]
    seen = collect_moments(model, weights, data.train_x[:N_CALIBRATION].split(128))
    unseen = collect_moments(model, weights, data.test_x.split(250))
    title = (
        f"4. Layer output error at {100 * SPARSITY:.0f} %, relative to the pruned layer's "
        f"(goal {GOAL_ERROR}), and to exact least squares (goal {GOAL_EXACT})"
    )
    table = Table(title=title)
    for column in ("layer", "pattern"):
        table.add_column(column)
    for column in ("pruned", "compensated", "ratio", "ratio, test images", "to exact",
                   "int4 rounded", "int4 compensated"):  # fmt: skip
        table.add_column(column, justify="right")
    rows = []
    for weight in weights:
        matrix = weight.to_matrix(weight.dense).astype(np.float64)
        moments, held_out = seen[weight.name], unseen[weight.name]
        for label, pattern in _patterns().items():
            if len(matrix) < 16 and isinstance(pattern, Gs) and pattern.config.rows > 1:
                continue
            mask = _mask(weight, pattern, SPARSITY)
            pruned = np.where(mask, matrix, 0.0)
            found = compensate(matrix, mask, moments)
            codes = quantise_compensated(matrix, mask, moments, 7).weights
            before, after, exact, rounded, int4 = (
                output_error(matrix, w, moments)
                for w in (pruned, found, _exact(matrix, mask, moments), _rounded(found, 7), codes)
            )
            ratio = [
                output_error(matrix, found, m) / output_error(matrix, pruned, m)
                for m in (moments, held_out)
            ]
            row = {
                "layer": weight.name,
                "pattern": label,
                "pruned": before,
                "compensated": after,
                "ratio": ratio[0],
                "ratio_test": ratio[1],
                "to_exact": after / exact,
                "int4_rounded": rounded,
                "int4_compensated": int4,
            }
            rows.append(row)
            table.add_row(weight.name, label, *(f"{v:.4f}" for v in list(row.values())[2:]))
    return table, rows


def _models(model: nn.Module, data: Digits) -> tuple[Table, list[dict]]:
    table = Table(title="Digits network in GS(16, 1), no training: accuracy / error of the logits")
    table.add_column("sparsity", justify="right")
    options = {
        "batch norms only": None,
        "one pass": {"sequential": False},
        "layer by layer": {},
        "and int8": {"max_weight": 127},
        "and int4": {"max_weight": 7},
    }
    for name in options:
        table.add_column(name, justify="right")
    calibration = data.train_x[:N_CALIBRATION].split(128)
    rows = []
    for sparsity in SPARSITIES:
        row: dict = {"sparsity": sparsity}
        for name, option in options.items():
            pruned = copy.deepcopy(model)
            pattern = Gs(config=load_config("v16x4").engine)
            weights = find_weights(pattern.config, pruned, data.train_x[:8])[0][1:-1]
            for weight in weights:
                mask = weight.from_matrix(_mask(weight, pattern, sparsity))
                set_mask(weight.module, mask, weight.tensor_name)
            if option is None:
                reestimate_batch_norm(pruned, calibration)
            else:
                compensate_model(pruned, weights, calibration, **option)
            with torch.no_grad():
                wanted, found = model(data.test_x), pruned.eval()(data.test_x)
            error = float((found - wanted).norm() / wanted.norm())
            row[name] = {"accuracy": accuracy(pruned, data), "logits_error": error}
        rows.append(row)
        cells = [f"{100 * r['accuracy']:.1f} % / {r['logits_error']:.3f}" for r in
                 list(row.values())[1:]]  # fmt: skip
        table.add_row(f"{100 * sparsity:.0f} %", *cells)
    return table, rows


def _large() -> dict:
    """Seconds for a layer of the size of a ResNet-50's largest, one thread."""
    rng = np.random.default_rng(0)
    n_rows, n_columns = LARGE
    basis = rng.normal(size=(200, n_columns))
    x = np.maximum(
        rng.normal(size=(6000, 200)) @ basis / 14 + rng.normal(size=(6000, n_columns)), 0
    )
    moments = Moments(n_samples=len(x), gram=x.T @ x)
    matrix = rng.normal(size=LARGE)
    mask = np.abs(matrix) > np.quantile(np.abs(matrix), SPARSITY)
    start = time.perf_counter()
    found = compensate(matrix, mask, moments)
    seconds = time.perf_counter() - start
    exact_rows = slice(0, 64)
    start = time.perf_counter()
    exact = _exact(matrix[exact_rows], mask[exact_rows], moments)
    exact_seconds = (time.perf_counter() - start) * n_rows / 64
    to_exact = output_error(matrix[exact_rows], found[exact_rows], moments) / output_error(
        matrix[exact_rows], exact, moments
    )
    return {
        "shape": LARGE,
        "seconds": seconds,
        "exact_seconds": exact_seconds,
        "to_exact": to_exact,
    }


def measure(console: Console) -> dict:
    """Train, prune and compensate; print the tables and return their values."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        data, model = digits(), network()
        train(model, data, N_EPOCHS, learning_rate=2e-3, seed=0)
        model.eval()
        table, layers = _layers(model, data)
        print_wide(console, table)
        table, models = _models(model, data)
        print_wide(console, table)
        large = _large()
    finally:
        torch.set_num_threads(threads)
    worst = {
        "ratio": max(row["ratio"] for row in layers),
        "ratio_test": max(row["ratio_test"] for row in layers),
        "to_exact": max(row["to_exact"] for row in layers),
    }
    met = max(worst["ratio"], worst["ratio_test"]) <= GOAL_ERROR and worst["to_exact"] <= GOAL_EXACT
    console.print(
        f"worst ratio {worst['ratio']:.3f}, on test images {worst['ratio_test']:.3f} "
        f"(goal {GOAL_ERROR}); to exact {worst['to_exact']:.5f} (goal {GOAL_EXACT}): "
        + ("met" if met else "MISSED")
    )
    console.print(
        f"{LARGE[0]} x {LARGE[1]} at {100 * SPARSITY:.0f} %: {large['seconds']:.1f} s, row by row "
        f"exactly {large['exact_seconds']:.1f} s; to exact {large['to_exact']:.5f}"
    )
    return {"layers": layers, "models": models, "large": large, "worst": worst, "met": met}
