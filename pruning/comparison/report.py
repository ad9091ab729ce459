"""What ``gshw compare`` found, as tables and as plots of accuracy over cycles."""

import os
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from gshw.config import Config
from pruning.comparison.contestants import DENSE, UNSTRUCTURED, contestants
from pruning.comparison.tasks import TASKS, Metric

_COLOURS = {
    DENSE: "black",
    UNSTRUCTURED: "tab:red",
    "GS greedy": "tab:cyan",
    "block": "tab:brown",
    "vector": "tab:purple",
    "filter": "tab:gray",
    "balanced": "tab:orange",
    "kernel": "tab:olive",
}
_GS_COLOURS = ("tab:blue", "tab:green", "navy", "limegreen")
_DPI = 150
_MARKERS = "osD^vP*Xph<>8d"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pattern at one sparsity, over all seeds.

    Parameters
    ----------
    task, pattern, sparsity
        What was asked for.
    refused
        Why there is nothing else, or None.
    density
        Mean share of weights kept, of those that are pruned at all.
    metric, int8
        One value per seed: the float network's, and that of its integers.
    behind
        Mean over seeds of how much worse than unstructured at this sparsity; None without it.
        Negative where it is better.
    cycles, speed_up
        Means; the speed-up is over the dense network on the same engine.
    engine
        The one on which the first seed's masks took the fewest cycles.
    """

    task: str
    pattern: str
    sparsity: float
    refused: str | None = None
    density: float = 1.0
    metric: tuple[float, ...] = ()
    int8: tuple[float, ...] = ()
    behind: float | None = None
    cycles: float = 0.0
    speed_up: float = 1.0
    engine: str = ""
    skipped: tuple[tuple[str, str], ...] = ()


def summarise(cases: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows over seeds, in the cases' order.

    Parameters
    ----------
    cases
        As ``results.json`` has them.
    """
    groups: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for case in cases:
        key = case["task"], case["pattern"], case["sparsity"]
        groups.setdefault(key, {})[case["seed"]] = case
    rows = []
    for (task, pattern, sparsity), by_seed in groups.items():
        refused = next((c["refused"] for c in by_seed.values() if "refused" in c), None)
        if refused is not None:
            rows.append(Row(task=task, pattern=pattern, sparsity=sparsity, refused=refused))
            continue
        found = list(by_seed.values())
        rows.append(
            Row(
                task=task,
                pattern=pattern,
                sparsity=sparsity,
                density=mean(c["density"] for c in found),
                metric=tuple(c["metric"] for c in found),
                int8=tuple(c["int8"] for c in found),
                behind=_behind(by_seed, groups.get((task, UNSTRUCTURED, sparsity), {})),
                cycles=mean(c["cycles"] for c in found),
                speed_up=mean(c["dense_cycles"] / c["cycles"] for c in found),
                engine=found[0]["engine"],
                skipped=tuple(found[0]["skipped"].items()),
            )
        )
    return rows


def _behind(mine: dict[int, dict], reference: dict[int, dict]) -> float | None:
    """Mean of the differences seed by seed: they started from the same network."""
    pairs = [(mine[s], reference[s]) for s in mine if s in reference]
    pairs = [(a["task"], a["metric"], b["metric"]) for a, b in pairs if "metric" in b]
    if not pairs:
        return None
    sign = -1.0 if TASKS[pairs[0][0]].metric.higher_is_better else 1.0
    return mean(sign * (a - b) for _, a, b in pairs)


# --- tables ---------------------------------------------------------------------------------------

_COLUMNS = (
    "pattern",
    "kept",
    "{metric}",
    "behind unstructured",
    "int8",
    "cycles",
    "speed-up over dense",
    "engine",
)


def shown(values: Sequence[float], metric: Metric) -> str:
    """Mean and, with several seeds, the standard deviation between them."""
    digits = 2 if metric.higher_is_better else 4
    text = f"{mean(values):.{digits}f}"
    return text + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _cells(row: Row) -> list[str]:
    metric = TASKS[row.task].metric
    behind = "-"
    if row.behind is not None:
        # Points for an accuracy; per cent of it for bits.
        behind = f"{row.behind:+.2f}"
        if not metric.higher_is_better:
            behind = f"{100 * row.behind / (mean(row.metric) - row.behind):+.2f} %"
    return [
        row.pattern,
        f"{100 * row.density:.1f} %",
        shown(row.metric, metric),
        behind,
        shown(row.int8, metric),
        f"{row.cycles:,.0f}",
        f"{row.speed_up:.2f} x",
        row.engine,
    ]


def _headings(task: str) -> list[str]:
    metric = TASKS[task].metric
    name = f"{metric.label} ({metric.unit})" if metric.higher_is_better else metric.unit
    return [column.format(metric=name) for column in _COLUMNS]


def _by_sparsity(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """Rows to show at each sparsity: fewest cycles first."""
    found: dict[float, list[Row]] = {}
    for row in rows:
        if row.refused is None:
            found.setdefault(row.sparsity, []).append(row)
    return {s: sorted(found[s], key=lambda row: row.cycles) for s in sorted(found)}


def terminal_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per task, by sparsity."""
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        table = Table(title=f"{TASKS[task].title}: cycles for {TASKS[task].workload}")
        for heading in ["sparsity", *_headings(task)]:
            table.add_column(heading, justify="left" if heading == "pattern" else "right")
        for sparsity, own in _by_sparsity([row for row in rows if row.task == task]).items():
            for row in own:
                table.add_row(f"{100 * sparsity:g} %", *_cells(row))
            table.add_section()
        tables.append(table)
    return tables


def markdown(config: Config, rows: Sequence[Row], raw: Sequence[str]) -> str:
    """The page of one task."""
    task = TASKS[rows[0].task]
    n_seeds = max((len(row.metric) for row in rows), default=0)
    lines = [
        f"# {task.title}",
        "",
        f"Made by `{shlex.join(['gshw', *raw])}`, engine {config.name}, config hash "
        f"`{config.engine.hash[:16]}`, {n_seeds} seed(s): mean ± standard deviation.",
        "",
        f"Cycles, by the exact law, are for {task.workload}: all layers, those that stay dense "
        "included. A GS mask runs on its own engine; any other on whichever engine takes fewest, "
        "of those that differ in the number of rows per group only. The column behind unstructured "
        "is the mean difference between networks of the same seed; negative is better.",
    ]
    for sparsity, own in _by_sparsity(rows).items():
        headings = _headings(task.name)
        lines += ["", f"## Sparsity {100 * sparsity:g} %" if sparsity else "## Dense", ""]
        lines += ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in own]
    notes = dict.fromkeys(_notes(rows))
    if notes:
        lines += ["", "## Notes", "", *[f"- {note}" for note in notes]]
    lines += ["", f"![{task.metric.label} over cycles]({task.name}.svg)"]
    return "\n".join(lines) + "\n"


def _notes(rows: Sequence[Row]) -> Iterable[str]:
    for row in rows:
        if row.refused is not None:
            yield f"{row.pattern} at {100 * row.sparsity:g} % takes no part: {row.refused}"
        for name, reason in row.skipped:
            yield f"{row.pattern} leaves layer {name!r} dense: {reason}"


# --- plots ----------------------------------------------------------------------------------------


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other beats in both cycles and metric, by rising cycles."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.cycles, _loss(r))):
        if not front or _loss(row) < _loss(front[-1]):
            front.append(row)
    return front


def _loss(row: Row) -> float:
    value = mean(row.metric)
    return -value if TASKS[row.task].metric.higher_is_better else value


def draw(folder: Path, config: Config, rows: Sequence[Row]) -> None:
    """``TASK.png`` and ``TASK.svg``: the metric over cycles.

    On the left all patterns, on the right where the front is, with its names.
    """
    measured = [row for row in rows if row.refused is None]
    task = TASKS[rows[0].task]
    front = pareto(measured)
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis in axes:
        draw_lines(axis, config, measured)
        axis.step(
            [row.cycles for row in front],
            [mean(row.metric) for row in front],
            where="post",
            color="black",
            linewidth=0.8,
            linestyle=":",
            label="nobody is better",
        )
        axis.set_xscale("log")
        axis.set_xlabel(f"cycles for {task.workload} (exact law)")
        better = "higher" if task.metric.higher_is_better else "lower"
        axis.set_ylabel(f"{task.metric.label} ({task.metric.unit}), {better} is better")
        axis.grid(alpha=0.3)
    axes[0].set_title(f"{task.title}: all")
    axes[1].set_title("the best, with their sparsity")
    _zoom(axes[1], measured, front)
    _label(axes[1], front)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)
    for suffix in (".png", ".svg"):
        save_figure(figure, folder / f"{task.name}{suffix}")


def save_figure(figure: Figure, path: Path) -> None:
    """Write the whole picture or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    # Without a date, the same results give the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(temporary, dpi=_DPI, bbox_inches="tight", metadata=metadata)
    os.replace(temporary, path)
    path.chmod(0o644)


class Point(Protocol):
    """What a line goes through."""

    @property
    def pattern(self) -> str: ...

    @property
    def cycles(self) -> float: ...

    @property
    def metric(self) -> tuple[float, ...]: ...


def draw_lines(axis: Axes, config: Config, rows: Sequence[Point]) -> None:
    """One line per pattern through its sparsities."""
    families = {c.name: c.family for c in contestants(config.engine).values()}
    gs = [f for f in dict.fromkeys(families.values()) if f.startswith("GS k")]
    colours = _COLOURS | dict(zip(gs, _GS_COLOURS, strict=False))
    seen: dict[str, int] = {}
    for pattern in dict.fromkeys(row.pattern for row in rows):
        own = sorted((r for r in rows if r.pattern == pattern), key=lambda r: r.cycles)
        family = families[pattern]
        number = seen[family] = seen.get(family, -1) + 1
        strong = family in gs or family in (DENSE, UNSTRUCTURED)
        axis.errorbar(
            [row.cycles for row in own],
            [mean(row.metric) for row in own],
            yerr=[stdev(row.metric) if len(row.metric) > 1 else 0.0 for row in own],
            marker=_MARKERS[number % len(_MARKERS)],
            color=colours[family],
            markersize=6 if strong else 4,
            linewidth=1.4 if strong else 0.6,
            alpha=1.0 if strong else 0.7,
            elinewidth=0.5,
            label=pattern,
        )


def _zoom(axis: Axes, rows: Sequence[Row], front: Sequence[Row]) -> None:
    """Show the front, with a margin in which close rivals lie."""
    values = [mean(row.metric) for row in front]
    cycles = [row.cycles for row in front]
    margin = 0.25 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
    axis.set_ylim(min(values) - margin, max(values) + margin)
    axis.set_xlim(min(cycles) / 1.15, max(cycles) * 1.15)


def _label(axis: Axes, front: Sequence[Row]) -> None:
    """Number the front, and say who is who: names would cover each other."""
    for number, row in enumerate(front, start=1):
        axis.annotate(
            str(number),
            (row.cycles, mean(row.metric)),
            textcoords="offset points",
            xytext=(-9, 7) if number % 2 else (5, -13),
            fontsize=8,
            fontweight="bold",
        )
    names = [
        f"{number}  {row.pattern}" + (f", {100 * row.sparsity:g} %" if row.sparsity else "")
        for number, row in enumerate(front, start=1)
    ]
    better_up = TASKS[front[0].task].metric.higher_is_better
    axis.text(
        0.98,
        0.02 if better_up else 0.98,
        "\n".join(names),
        transform=axis.transAxes,
        horizontalalignment="right",
        multialignment="left",
        verticalalignment="bottom" if better_up else "top",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "0.8"},
    )
