"""The pruner's goals on trained networks: accuracy beside other patterns, and zeros that stay."""

import os
from collections.abc import Collection, Sequence
from statistics import mean

import numpy as np
import torch
from rich.progress import Progress
from rich.table import Table

from gshw.config import load_config
from gshw.encoding import decode_weights
from gshw.top import Top
from gshw.verilate import build_library, cache_folder
from pruning.comparison.cases import Case
from pruning.comparison.compare import Cache, Record, plan_cases, sweep
from pruning.comparison.contestants import UNSTRUCTURED, contestants
from pruning.comparison.report import Row, summarise
from pruning.comparison.tasks import TASKS, train
from pruning.comparison.whole_report import network_rows, network_table
from pruning.comparison.workers import local_workers
from pruning.methods.registry import Gradual
from pruning.models.export import export
from pruning.models.layers import analyse
from pruning.patterns.gs import Gs
from pruning.pruner import GSPruner
from pruning.recipe import Recipe
from pruning.settings import LayerRule, QuantisationChoice, SparsityTarget
from rtl_gen.emit import cached_top_verilog

SPARSITY = 0.9
SEEDS = (0, 1, 2)
GOAL_POINTS, GOAL_BITS = 0.3, 0.01
GOAL_INT8_POINTS, GOAL_INT8_BITS = 0.3, 0.005
_RIVALS = ("block", "vector")
_PATTERNS = ["unstructured", "gs-k*", "block-*", "simd-*", "vector", "kernel", "row-column"]
_WEIGHT_WIDTHS = (8, 4)
_WHOLE_SPARSITIES = (0.8, 0.9, 0.95)
_WHOLE_PATTERNS = [
    "unstructured",
    "gs-k1-scatter",
    "gs-k1-consecutive",
    "n-of-20",
    "bank-balanced-4",
    "block-1x16",
]


def _swept(cases: Sequence[Case], progress: Progress) -> list[Record]:
    """All cases measured, on all cores."""
    task = progress.add_task("comparing", total=len(cases))

    def on_record(record: Record) -> None:
        progress.update(task, advance=1)

    with local_workers(os.cpu_count() or 1) as (executor, n_slots):
        records = sweep(cases, Cache(cache_folder() / "compare"), executor, n_slots, on_record)
    progress.remove_task(task)
    return records


def bench_tasks(seed: int, progress: Progress) -> tuple[Table, dict]:
    """Goal 5: GS beside unstructured, block and vector patterns at 90 %, mean of the seeds."""
    config = load_config("v16x4")
    cases = plan_cases(config, list(TASKS), _PATTERNS, [SPARSITY], SEEDS, quick=False)
    records = _swept(cases, progress)
    families = {c.name: c.family for c in contestants(config.engine).values()}
    rows = summarise([record.as_json() for record in records])
    title = f"GS at {100 * SPARSITY:.0f} %, mean of {len(SEEDS)} seeds"
    table = Table(title=title)
    for column in ("task", "best GS", "GS", "unstructured", "behind (goal)"):
        table.add_column(column, justify="left" if column in ("task", "best GS") else "right")
    for column in ("int8 costs (goal)", "block and vector patterns beaten", "goals"):
        table.add_column(column, justify="right")
    found = []
    for name in TASKS:
        own = [row for row in rows if row.task == name and row.refused is None]
        result = _judge(own, families)
        found.append(result)
        table.add_row(
            name,
            str(result["best"]),
            f"{result['metric']:.4f}",
            f"{result['unstructured']:.4f}",
            f"{result['behind']:+.4f} ({result['goal']:.4f})",
            f"{result['int8_cost']:+.4f} ({result['int8_goal']:.4f})",
            f"{result['n_beaten']} of {result['n_rivals']}",
            "met" if result["met"] else f"MISSED {result['not_beaten']}",
        )
    return table, {"rows": found}


def bench_trained(
    progress: Progress, networks: Collection[str]
) -> tuple[list[Table], list[dict], list[str]]:
    """The trained tasks as whole networks: float, pruned, integers, RTL, and cycles.

    ``networks`` names those of other parts and changes nothing.
    """
    config = load_config("v16x4")
    library = build_library(cached_top_verilog(config, Top.AXI), top=Top.AXI)
    cases = plan_cases(
        config,
        list(TASKS),
        _WHOLE_PATTERNS,
        _WHOLE_SPARSITIES,
        SEEDS[:1],
        quick=False,
        is_whole=True,
        library=library,
    )
    records = _swept(cases, progress)
    found = [record.as_json() for record in records]
    rows = network_rows(found)
    missed = []
    for row in rows:
        metric = TASKS[row.task].metric
        cost = abs(mean(row.metric) - mean(row.floats))
        goal = GOAL_INT8_POINTS if metric.higher_is_better else GOAL_INT8_BITS * mean(row.floats)
        worse = (mean(row.metric) < mean(row.floats)) == metric.higher_is_better
        told = f"{row.task}, {row.pattern} at {100 * row.sparsity:g} %"
        if worse and cost > goal:
            missed.append(f"{told}: integers cost {cost:.4f} {metric.unit}, goal {goal:.4f}")
        if row.same is False:
            missed.append(f"{told}: RTL differs from the executor or the cycle law")
    return [network_table(rows)], found, missed


def _judge(rows: list[Row], families: dict[str, str]) -> dict:
    """One task: the best GS pattern, and what it must be better than."""
    metric = TASKS[rows[0].task].metric
    sign = -1.0 if metric.higher_is_better else 1.0
    reference = next(row for row in rows if row.pattern == UNSTRUCTURED)
    ours = [row for row in rows if families[row.pattern].startswith("GS k")]
    best = min(ours, key=lambda row: sign * mean(row.metric))
    rivals = [row for row in rows if families[row.pattern] in _RIVALS]
    beaten = [
        rival
        for rival in rivals
        if any(
            row.cycles <= rival.cycles and sign * (mean(row.metric) - mean(rival.metric)) < 0
            for row in ours
        )
    ]
    level = mean(reference.metric)
    behind = sign * (mean(best.metric) - level)
    cost = sign * (mean(best.int8) - mean(best.metric))
    goal = GOAL_POINTS if metric.higher_is_better else GOAL_BITS * level
    int8_goal = GOAL_INT8_POINTS if metric.higher_is_better else GOAL_INT8_BITS * level
    not_beaten = [row.pattern for row in rivals if row not in beaten]
    return {
        "task": rows[0].task,
        "best": best.pattern,
        "metric": mean(best.metric),
        "cycles": best.cycles,
        "unstructured": level,
        "behind": behind,
        "goal": goal,
        "int8_cost": cost,
        "int8_goal": int8_goal,
        "n_rivals": len(rivals),
        "n_beaten": len(beaten),
        "not_beaten": not_beaten,
        "met": behind <= goal and cost <= int8_goal and not not_beaten,
    }


def bench_zeros(seed: int, progress: Progress) -> tuple[Table, dict]:
    """Goal 6: zeros after quantisation-aware fine-tuning, in float and in the encoded layers."""
    table = Table(title="Zeros after quantisation-aware fine-tuning (digits, GS(16, 1), 90 %)")
    for column in ("weights", "layer", "mask's zeros", "zero weights outside it (goal 0)"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for column in ("non-zeros under zeros of the mask (goal 0)", "encoded slots beyond the mask"):
        table.add_column(column, justify="right")
    rows = []
    for width in _WEIGHT_WIDTHS:
        for row in _zeros(seed, width):
            rows.append({"weight_width": width, **row})
            table.add_row(f"int{width}", *(str(value) for value in row.values()))
    return table, {"rows": rows}


def _zeros(seed: int, weight_width: int) -> list[dict]:
    config = load_config("v16x4")
    task = TASKS["digits"]
    model = task.make_model(seed)
    train(task, model, 300, seed)
    recipe = Recipe(
        config=config,
        pattern=Gs(config=config.engine),
        target=SparsityTarget(sparsity=SPARSITY),
        layers=tuple(LayerRule(match=name, skip=True) for name in task.dense_layers),
        method=Gradual(stop=0.5, updates=5),
        quantisation=QuantisationChoice(weight_width=weight_width, aware_from=0.6),
        seed=seed,
    )
    pruner = GSPruner(model, recipe)
    calibration = task.calibration()
    pruner.prepare(200, calibration[0], calibration)
    train(task, model, 200, seed + 1, pruner)
    pruner.squash_mask()
    layers = analyse(config.engine, model, torch.cat(calibration))
    encoded = export(config.engine, layers, pruner.projections, quantisation=pruner.quantisation)
    by_name = {layer.name: layer for layer in layers}
    rows = []
    for name, projection in pruner.projections.items():
        weights = by_name[name].to_matrix(by_name[name].module.weight)
        codes = decode_weights(config.engine, encoded.layers[name])
        mask = projection.mask
        rows.append(
            {
                "layer": name,
                "mask_zeros": int((~mask).sum()),
                "zeros_outside": int(((weights == 0) & mask).sum()),
                "nonzeros_under": int(np.count_nonzero(weights[~mask]))
                + int(np.count_nonzero(codes[~mask])),
                "slots_beyond": encoded.layers[name].n_blocks_kept - int(mask.sum()),
            }
        )
    return rows
