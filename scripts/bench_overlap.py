"""How well loads and stores hide behind compute, in RTL and by the cycle law of programs."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from gshw import golden
from gshw.config import Config
from gshw.drivers.layers import run_program
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator
from gshw.encoding import EncodedLayer
from gshw.lower import lower_layer
from gshw.program_cycles import ProgramCycles, layer_cycles
from gshw.top import Top
from gshw.verilate import build_library
from rtl_gen.emit import cached_top_verilog

MODEL = MemoryModel(read_latency=30, write_latency=30, interval=1)
GOAL = 0.95


@dataclass(frozen=True)
class OverlapCase:
    """A layer, its input, and what must be busy: ``compute`` or ``memory read``."""

    config: Config
    layer: EncodedLayer
    activations: np.ndarray
    resource: str


def shares_of(config: Config, counters: dict[str, int]) -> dict[str, float]:
    """Parts of a program's cycles in which compute and both ways of the memory were busy."""
    busy = {
        "compute": counters["compute_busy"],
        "memory read": counters["bytes_read"] / config.bus.data_bytes,
        "memory write": counters["bytes_written"] / config.bus.data_bytes,
    }
    return {name: cycles / counters["cycles"] for name, cycles in busy.items()}


def law_of(case: OverlapCase) -> ProgramCycles:
    """What the cycle law says, without the RTL."""
    program = lower_layer(case.config, case.layer, *case.activations.shape[:3])
    return layer_cycles(program, MODEL)


def shortcomings(row: dict) -> list[str]:
    """What is wrong with a row of :func:`run_case`: counters beside the law, or a missed goal."""
    where = f"{row['layer']} on {row['engine']}"
    found = []
    if not row["counters_equal"]:
        found.append(f"{where}: the counters differ from the cycle law")
    share = row["shares"][row["resource"]]
    if share < GOAL:
        found.append(f"{where}: {row['resource']} must be busy {GOAL:.0%}, not {share:.2%}")
    return found


def run_case(case: OverlapCase) -> dict:
    """Run a layer as a program on ``gshw_axi`` and hold it against law and golden model."""
    config, x = case.config, case.activations
    program = lower_layer(config, case.layer, *x.shape[:3])
    law = layer_cycles(program, MODEL)
    library = build_library(cached_top_verilog(config, Top.AXI), top=Top.AXI)
    with SimulatedAccelerator(config, library, model=MODEL) as accelerator:
        run = run_program(accelerator, program, x)
    if not np.array_equal(run.output, golden.run_layer(config.engine, case.layer, x)):
        raise SystemExit(f"{case.layer.name} on {config.name}: wrong output")
    counters = run.counters
    return {
        "layer": case.layer.name,
        "engine": config.name,
        "data_width": config.bus.data_width,
        "latency": MODEL.read_latency,
        "resource": case.resource,
        "cycles": counters["cycles"],
        "law_cycles": law.cycles,
        "counters_equal": counters == law.counters,
        "shares": shares_of(config, counters),
        "counters": counters,
    }


def measure_overlap(cases: Iterable[OverlapCase]) -> tuple[Table, list[dict]]:
    """Table of all cases, and the same as plain values.

    Raises
    ------
    SystemExit
        With what is wrong, after the table was printed: see :func:`shortcomings`.
    """
    table = Table(
        title=f"Overlap: 64-bit memory, {MODEL.read_latency} cycles latency "
        f"(goal {GOAL:.0%} of what bounds)"
    )
    names = ("layer", "engine", "cycles in RTL", "by the law", "counters", "bound")
    names += ("compute", "memory read", "memory write")
    for name in names:
        left = name in ("layer", "engine", "counters", "bound")
        table.add_column(name, justify="left" if left else "right")
    rows = []
    for case in cases:
        row = run_case(case)
        rows.append(row)
        table.add_row(
            row["layer"],
            row["engine"],
            f"{row['cycles']:,}",
            f"{row['law_cycles']:,}",
            "all equal" if row["counters_equal"] else "DIFFER",
            row["resource"],
            *(f"{100 * share:.2f} %" for share in row["shares"].values()),
        )
    return table, rows
