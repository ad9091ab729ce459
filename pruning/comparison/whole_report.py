"""What ``gshw compare --whole`` found: float, pruned, integers, RTL, and accuracy over cycles."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gshw.config import Config
from pruning.comparison.contestants import DENSE
from pruning.comparison.report import draw_lines, save_figure, shown
from pruning.comparison.tasks import TASKS

_COLUMNS = (
    "task",
    "mask",
    "sparsity",
    "float",
    "integers",
    "of a part: float",
    "integers",
    "in RTL",
    "all same",
    "cycles",
    "over dense",
    "engine",
)


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    """One pattern at one sparsity on one task, as a whole network, over all seeds.

    Parameters
    ----------
    floats, metric
        Metric of the float network and of the integer network, per seed.
    cycles
        Of the task's ``network_workload``, mean over the seeds.
    speed_up
        Over the dense network of the same seed on the config's own engine.
    part_float, part, rtl
        Metrics on a part of the data, per seed; empty without runs in RTL.
    same
        Whether all tensors and counters of the runs were as expected; None without any.
    """

    task: str
    pattern: str
    sparsity: float
    floats: tuple[float, ...]
    metric: tuple[float, ...]
    cycles: float
    speed_up: float
    part_float: tuple[float, ...]
    part: tuple[float, ...]
    rtl: tuple[float, ...]
    same: bool | None
    engine: str


def network_rows(cases: Iterable[dict[str, Any]]) -> list[NetworkRow]:
    """Rows over seeds, in the cases' order; patterns that took no part have none.

    Parameters
    ----------
    cases
        As ``results.json`` has them.
    """
    groups: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for case in cases:
        if "network" in case:
            key = case["task"], case["pattern"], case["sparsity"]
            groups.setdefault(key, {})[case["seed"]] = case
    rows = []
    for (task, pattern, sparsity), by_seed in groups.items():
        dense = groups[task, DENSE, 0.0]
        ratios = [
            dense[seed]["network"]["cycles"] / case["network"]["cycles"]
            for seed, case in by_seed.items()
        ]
        found = [case["network"] for case in by_seed.values()]
        ran = [network for network in found if "rtl" in network]
        rows.append(
            NetworkRow(
                task=task,
                pattern=pattern,
                sparsity=sparsity,
                floats=tuple(case["metric"] for case in by_seed.values()),
                metric=tuple(network["int8"] for network in found),
                cycles=mean(network["cycles"] for network in found),
                speed_up=mean(ratios),
                part_float=tuple(network["part_float"] for network in ran),
                part=tuple(network["part"] for network in ran),
                rtl=tuple(network["rtl"] for network in ran),
                same=all(network["same"] for network in ran) if ran else None,
                engine=found[0]["engine"],
            )
        )
    return rows


def _cells(row: NetworkRow) -> list[str]:
    metric = TASKS[row.task].metric

    def maybe(values: tuple[float, ...]) -> str:
        return shown(values, metric) if values else "-"

    return [
        row.task,
        row.pattern,
        f"{100 * row.sparsity:g} %",
        shown(row.floats, metric),
        shown(row.metric, metric),
        maybe(row.part_float),
        maybe(row.part),
        maybe(row.rtl),
        {True: "yes", False: "NO", None: "-"}[row.same],
        f"{row.cycles:,.0f}",
        f"{row.speed_up:.2f} x",
        row.engine,
    ]


def network_table(rows: Sequence[NetworkRow]) -> Table:
    """All tasks."""
    table = Table(title="whole networks: metric in float, in integers, in RTL, and cycles")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("task", "mask") else "right")
    for task in dict.fromkeys(row.task for row in rows):
        for row in rows:
            if row.task == task:
                table.add_row(*_cells(row))
        table.add_section()
    return table


def network_markdown(config: Config, rows: Sequence[NetworkRow], raw: Sequence[str]) -> str:
    """A page of all tasks."""
    names = dict.fromkeys(row.task for row in rows)
    lines = [
        "# Whole networks",
        "",
        f"Made by `{shlex.join(['gshw', *raw])}`, engine {config.name}, config hash "
        f"`{config.engine.hash[:16]}`, {max((len(row.metric) for row in rows), default=0)} "
        "seed(s): mean ± standard deviation.",
        "",
        "Every tensor between two nodes is codes, on the engine and on the host. What runs in RTL "
        "is the whole network on a part of the data; the float and the integer network are "
        "measured on the same part beside it. All same: every tensor is the golden executor's, "
        "every counter the cycle law's.",
        "",
        *(f"- {n}: {TASKS[n].metric.unit}; cycles of {TASKS[n].network_workload}" for n in names),
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---|---|" + "---:|" * (len(_COLUMNS) - 2),
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
        "",
        "![metric over cycles](networks.svg)",
    ]
    return "\n".join(lines) + "\n"


def draw_networks(folder: Path, config: Config, rows: Sequence[NetworkRow]) -> None:
    """``networks.png`` and ``networks.svg``: metric of the integer networks over their cycles."""
    names = list(dict.fromkeys(row.task for row in rows))
    if not names:
        return
    figure = Figure(figsize=(6 * len(names), 5.5), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(panels, names, strict=True):
        task = TASKS[name]
        draw_lines(axis, config, [row for row in rows if row.task == name])
        axis.set_xscale("log")
        axis.set_title(task.title)
        axis.set_xlabel(f"cycles of {task.network_workload}, exact")
        better = "higher" if task.metric.higher_is_better else "lower"
        axis.set_ylabel(f"{task.metric.label} of the integers ({task.metric.unit}), {better} wins")
        axis.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    for suffix in (".png", ".svg"):
        save_figure(figure, folder / f"networks{suffix}")
