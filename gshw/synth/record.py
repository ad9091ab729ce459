"""A result as a table for people and as plain values for programs."""

import dataclasses

from rich.table import Table

from gshw.synth.devices import LIMITED, RESOURCES, Area
from gshw.synth.flow import Result


def per_mac(result: Result) -> dict[str, float]:
    """LUTs and registers of the design per multiply-accumulate; empty without any."""
    n_macs = result.synthesis.design.n_macs
    if not n_macs:
        return {}
    return {"lut": result.own.lut / n_macs, "ff": result.own.ff / n_macs}


def result_json(result: Result) -> dict:
    """Everything that a table or a later comparison needs."""
    synthesis = result.synthesis
    device = synthesis.device
    path = result.path
    low, middle, high = result.fmax_mhz if result.runs else (None, None, None)
    return {
        "design": synthesis.design.name,
        "module": synthesis.design.module,
        "device": {
            "name": device.name,
            "package": device.package,
            "speed_grade": device.speed,
        },
        "tools": {"yosys": synthesis.yosys_version, "nextpnr": result.nextpnr_version},
        "yosys_script": synthesis.script,
        "cells": dict(synthesis.cells),
        "area_of_netlist": dataclasses.asdict(synthesis.area),
        "area_placed": dataclasses.asdict(result.placed) if result.runs else None,
        "area": dataclasses.asdict(result.own),
        "harness": bool(synthesis.design.inner),
        "macs": synthesis.design.n_macs,
        "per_mac": per_mac(result),
        "components": {
            name: {"instances": result.n_instances.get(name, 1), **dataclasses.asdict(area)}
            for name, area in result.components.items()
        },
        "goal_search": [{"goal_mhz": goal, "fmax_mhz": fmax} for goal, fmax in result.search],
        "fmax_mhz": {"min": low, "median": middle, "max": high},
        "runs": [
            {"seed": run.seed, "goal_mhz": run.goal_mhz, "fmax_mhz": run.fmax_mhz}
            for run in result.runs
        ],
        "critical_path": None
        if path is None
        else {
            "start": path.start,
            "end": path.end,
            "n_cells": path.n_levels,
            "total_ns": path.total_ns,
            "steps": [dataclasses.asdict(step) for step in path.steps],
        },
    }


def _cells(area: Area) -> list[str]:
    return [str(getattr(area, field.name) or "-") for field in dataclasses.fields(Area)]


def component_table(result: Result) -> Table:
    """One row per component, the total of the netlist, and what was placed."""
    synthesis = result.synthesis
    table = Table(title=f"{synthesis.design.name} on {synthesis.device.title}")
    table.add_column("component")
    for name in ("instances", *(field.name for field in dataclasses.fields(Area))):
        table.add_column(name, justify="right")
    for name, area in result.components.items():
        table.add_row(name, str(result.n_instances.get(name, 1)), *_cells(area))
    table.add_section()
    table.add_row("netlist", "", *_cells(synthesis.area))
    if result.runs:
        table.add_row("placed", "", *_cells(result.placed))
        if synthesis.design.inner:
            table.add_row("placed, less the harness", "", *_cells(result.own))
    capacity = synthesis.device.capacity
    table.add_row("of the device", "", *_cells(capacity))
    return table


def summary_lines(result: Result) -> list[str]:
    """Clock, critical path and figures per MAC, a line each."""
    lines = []
    if result.runs:
        low, middle, high = result.fmax_mhz
        n_seeds = len(result.runs)
        lines.append(
            f"Fmax {low:.1f} / {middle:.1f} / {high:.1f} MHz (minimum / median / maximum of "
            f"{n_seeds} seed{'s' if n_seeds > 1 else ''}, goal {result.runs[0].goal_mhz:g} MHz)"
        )
    else:
        lines.append("synthesis only: no open tool places this device; vivado.tcl does (-o DIR)")
    if result.path is not None:
        lines.append(f"slowest path: {result.path}")
    figures = per_mac(result)
    if figures:
        labels = RESOURCES[result.synthesis.device.family]
        lines.append(
            f"per MAC ({result.synthesis.design.n_macs} of them): "
            + ", ".join(f"{figures[key]:.1f} {labels[key]}" for key in LIMITED if key in figures)
        )
    return lines
