"""The cycle law: exactly how many cycles a command, and a layer, takes.

Ours. Bundle i of a command issues its last group at

    L[i] = L[i-1] + max(c[i], n[i-1])

where c is the bundle's issue cycles (groups, plus replays when arbitrated) and n its drain cycles
(records): the next bundle may be captured only when the drain of the one before has finished.
A command of P positions repeats its bundles P times; around that lie the fetch, the pipeline and
the drain of the last bundle. The hardware's counter must equal this for every program.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.image import LayerImage
from gshw.pipeline import FETCH_LATENCY, Pipeline
from gshw.plan import Plan, WeightTile


@dataclass(frozen=True, kw_only=True)
class Cycles:
    """Where the cycles of a command or a layer go.

    Parameters
    ----------
    total
        The hardware's cycle counter, summed over commands.
    issued
        Cycles in which a group, or a part of an arbitrated group, was issued.
    groups
        Groups issued; ``issued - groups`` are replays.
    stalls
        Cycles in which a finished bundle waited for the drain of the one before.
    drains
        Cycles in which the drain was busy; most overlap with issue.
    fill
        The rest: fetch, pipeline and last drain of every command.
    conflicts
        Arbitrated groups that needed more than one issue cycle.
    commands
        Commands run.
    """

    total: int = 0
    issued: int = 0
    groups: int = 0
    stalls: int = 0
    drains: int = 0
    fill: int = 0
    conflicts: int = 0
    commands: int = 0

    def __add__(self, other: "Cycles") -> "Cycles":
        return Cycles(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def __mul__(self, times: int) -> "Cycles":
        return Cycles(**{f.name: getattr(self, f.name) * times for f in fields(self)})

    @property
    def replays(self) -> int:
        return self.issued - self.groups


def command_cycles(
    config: EngineConfig,
    bundle_cycles: NDArray[np.int64],
    bundle_drain: NDArray[np.int64],
    n_groups: int,
    n_positions: int,
    ends_inside: bool = False,
    n_conflicts: int = 0,
) -> Cycles:
    """Cycles of one command.

    Parameters
    ----------
    bundle_cycles
        Shape (n_bundles,): issue cycles of each bundle's groups in this command.
    bundle_drain
        Shape (n_bundles,): drain cycles (records) of each bundle.
    n_groups
        Group words per position.
    n_positions
        Positions; 1 where ``ends_inside``.
    ends_inside
        The last bundle goes on in the next command: it is neither held nor drained.
    n_conflicts
        Arbitrated groups that need more than one issue cycle.
    """
    drain = bundle_drain.astype(np.int64).copy()
    if ends_inside:
        drain[-1] = 0
    before = np.roll(drain, 1)
    held = np.maximum(before - bundle_cycles, 0)
    if ends_inside:
        held[-1] = 0
    issued = int(bundle_cycles.sum())
    first_pass = issued + int(held[1:].sum())
    next_pass = issued + int(held.sum())
    stalls = int(held[1:].sum()) + (n_positions - 1) * int(held.sum())
    last_issue = first_pass + (n_positions - 1) * next_pass
    pipeline = Pipeline(config)
    tail = pipeline.accumulate
    if not ends_inside:
        tail += int(drain[-1]) + pipeline.drain
    elif drain.size > 1:
        waited = int(drain[-2]) + pipeline.drain - int(bundle_cycles[-1])
        tail += max(0, waited)
    total = FETCH_LATENCY + last_issue + tail
    return Cycles(
        total=total,
        issued=issued * n_positions,
        groups=n_groups * n_positions,
        stalls=stalls,
        drains=int(drain.sum()) * n_positions,
        fill=total - issued * n_positions - stalls,
        conflicts=n_conflicts * n_positions,
        commands=1,
    )


def tile_cycles(
    config: EngineConfig, image: LayerImage, tile: WeightTile, n_positions: int
) -> Cycles:
    """Cycles of one weight tile over ``n_positions`` positions."""
    pointer = image.group_ptr[tile.bundle_start : tile.bundle_stop + 1].copy()
    pointer[0] = tile.group_start
    pointer[-1] = tile.group_stop
    cycles = image.group_cycles[tile.group_start : tile.group_stop]
    running = np.concatenate([[0], np.cumsum(cycles)])
    return command_cycles(
        config,
        np.diff(running[pointer - tile.group_start]),
        image.drain[tile.bundle_start : tile.bundle_stop],
        tile.group_stop - tile.group_start,
        n_positions,
        tile.ends_inside,
        n_conflicts=int(np.count_nonzero(cycles > 1)),
    )


def plan_cycles(plan: Plan) -> Cycles:
    """Cycles of a whole layer: the sum over its commands."""
    total = Cycles()
    for run in plan.tile_runs:
        n_positions = plan.n_positions if len(run) == 1 else 1
        repeats = plan.n_stream_tiles * (1 if len(run) == 1 else plan.n_positions)
        for tile in run:
            total = total + tile_cycles(plan.config, plan.image, tile, n_positions) * repeats
    return total
