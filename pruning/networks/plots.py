"""Pictures of a network's profile."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from gshw.config import Config
from gshw.network.compile import CompiledNetwork
from gshw.network.report import NodeReport
from gshw.network.run import NetworkCycles
from gshw.program import Unit, disassemble
from gshw.program_cycles import Bound
from pruning.plots import save_figure

_UNITS = (Unit.LOAD, Unit.COMPUTE, Unit.STORE)
_COLOURS = {
    Bound.ISSUE: "tab:blue",
    Bound.DRAIN: "tab:orange",
    Bound.READ: "tab:red",
    Bound.WRITE: "tab:purple",
}


def plot_profile(
    path: Path,
    compiled: CompiledNetwork,
    cycles: NetworkCycles,
    reports: Sequence[NodeReport],
    title: str,
) -> None:
    """When load, compute and store are busy, node by node; and every node below its roofline."""
    figure, (line, roof) = plt.subplots(
        2, 1, figsize=(11, 8), layout="constrained", height_ratios=(1, 2)
    )
    _draw_time_line(line, compiled, cycles)
    line.set_title(title)
    _draw_roofline(roof, compiled.config, reports)
    save_figure(figure, path)


def _draw_time_line(axis: Axes, compiled: CompiledNetwork, cycles: NetworkCycles) -> None:
    """Nodes in two colours in turn."""
    units = [[i.unit for i in disassemble(segment.data)] for segment in compiled.programs]
    ends = np.cumsum([found.cycles for found in cycles.programs])
    shades = ("tab:blue", "tab:cyan")
    for number, share in enumerate(compiled.nodes):
        own = [n - 1 for first, stop in share.instructions for n in range(first, stop)]
        for row, unit in enumerate(_UNITS):
            program = cycles.programs[share.program]
            times = program.times[[n for n in own if units[share.program][n] is unit]]
            times = times + ends[share.program] - program.cycles
            bars = np.stack([times[:, 0], times[:, 1] - times[:, 0]], axis=1)
            axis.broken_barh(bars, (row - 0.4, 0.8), color=shades[number % 2])
    axis.set_yticks(range(len(_UNITS)), [unit.value for unit in _UNITS])
    axis.set(xlabel="cycle", xlim=(0, cycles.cycles))
    axis.invert_yaxis()


def _draw_roofline(axis: Axes, config: Config, reports: Sequence[NodeReport]) -> None:
    """Multiplications per cycle over multiplications per byte of the busier channel."""
    n_bytes, peak = config.bus.data_bytes, config.engine.macs_per_cycle
    intensities = []
    for bound, colour in _COLOURS.items():
        mine = [r for r in reports if r.bound is bound and r.needed and r.bytes_read]
        if not mine:
            continue
        work = np.array([report.needed * peak for report in mine])
        moved = np.array([max(report.bytes_read, report.bytes_written) for report in mine])
        speed = work / np.array([report.cycles for report in mine])
        intensities += list(work / moved)
        axis.scatter(work / moved, speed, s=18, color=colour, label=f"bound by {bound.value}")
    if not intensities:
        return
    x = np.geomspace(min(intensities) / 2, 2 * max(max(intensities), peak / n_bytes), 200)
    axis.plot(x, np.minimum(peak, x * n_bytes), color="grey", linestyle=":", label="roof")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set(
        xlabel="multiplications by weights that are not zero, per byte of the busier channel",
        ylabel="multiplications per cycle",
    )
    axis.legend()
