"""Who takes part in ``gshw compare``: every pattern, and the engines that its masks may run on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gshw.config import Config, EngineConfig, Gather, Routing
from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.recipe import Recipe

DENSE = "dense"
UNSTRUCTURED = "unstructured"
_GS_LANES_PER_ROW = (1, 4)
"""k of GS(B, k), besides k = B."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to choose masks.

    Parameters
    ----------
    name
        On the command line and in files.
    family
        Contestants that a plot draws alike.
    kind, parameters
        Of the pattern in a recipe; no kind for the dense network.
    rows
        Of the engine that the pattern is made for; None where any will do.
    deal
        Whether channels are dealt to banks first.
    taps
        Dimensions of the kernel, 0 to 2, below which the pattern is one of the others.
    sparsest
        Highest sparsity at which the pattern keeps anything.
    """

    name: str
    family: str
    kind: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    deal: bool = False
    taps: int = 0
    sparsest: float = 1.0

    def refusal(self, geometries: Mapping[str, Geometry], sparsity: float) -> str | None:
        """Why it does not take part, seen the windows of the layers to prune; or None."""
        if self.taps > max(_n_tap_dimensions(geometry) for geometry in geometries.values()):
            what = "kernels of several taps" if self.taps == 1 else "two-dimensional kernels"
            return f"the network has no {what}"
        if sparsity > self.sparsest:
            return f"keeps nothing above sparsity {self.sparsest:g}"
        return None


def _n_tap_dimensions(geometry: Geometry) -> int:
    return sum(extent > 1 for extent in geometry.kernel)


def engine_variant(engine: EngineConfig, rows: int) -> EngineConfig:
    """The same engine with another number of rows per group: same lanes, columns and MACs.

    Routing and drain change only where the rules of a config ask for it.
    """
    routing = engine.routing
    if engine.gather is Gather.SCHEDULED:
        if rows == 1:
            routing = Routing.DIRECT
        elif routing is Routing.DIRECT:
            routing = Routing.BENES
    drain_rows = min(rows, engine.drain_rows)
    return dataclasses.replace(engine, rows=rows, routing=routing, drain_rows=drain_rows)


def engine_rows(engine: EngineConfig) -> list[int]:
    """Rows of the engines compared, most first: k = 1, 4, B and the config's own."""
    lanes_per_row = {*_GS_LANES_PER_ROW, engine.lanes, engine.lanes_per_row}
    return sorted({engine.lanes // k for k in lanes_per_row if k <= engine.lanes}, reverse=True)


def engines(engine: EngineConfig) -> dict[int, EngineConfig]:
    """The engines compared, by rows; the config's own is unchanged."""
    return {
        rows: engine if rows == engine.rows else engine_variant(engine, rows)
        for rows in engine_rows(engine)
    }


def _gs(engine: EngineConfig) -> list[Contestant]:
    found = []
    for rows in engine_rows(engine):
        k = engine.lanes // rows
        # With one row per bundle there is nothing to group.
        groupings = ("scatter", "consecutive") if rows > 1 else ("scatter",)
        for grouping in groupings:
            for deal in (False, True):
                name = f"gs-k{k}" + (f"-{grouping}" if rows > 1 else "") + ("-dealt" * deal)
                found.append(
                    Contestant(
                        name=name,
                        family=f"GS k={k}",
                        kind="gs",
                        parameters={"grouping": grouping},
                        rows=rows,
                        deal=deal,
                    )
                )
        found.append(
            Contestant(name=f"gs-greedy-k{k}", family="GS greedy", kind="gs-greedy", rows=rows)
        )
    return found


def _neighbours(engine: EngineConfig) -> list[Contestant]:
    lanes = engine.lanes

    def one(name: str, family: str, kind: str, **rest: Any) -> Contestant:
        rules = {key: rest.pop(key) for key in ("taps", "sparsest") if key in rest}
        return Contestant(name=name, family=family, kind=kind, parameters=rest, **rules)

    return [
        one("block-1x8", "block", "block", height=1, width=8),
        one(f"block-1x{lanes}", "block", "block", height=1, width=lanes),
        one(f"block-{lanes}x1", "block", "block", height=lanes, width=1),
        one("block-4x4", "block", "block", height=4, width=4),
        one("simd-4", "vector", "simd-vector", width=4),
        one("simd-8", "vector", "simd-vector", width=8),
        one("node", "filter", "node"),
        one("vector", "vector", "granular", grain="vector", taps=2),
        one("kernel", "vector", "granular", grain="kernel", taps=1),
        one("filter", "filter", "granular", grain="filter"),
        one(f"bank-balanced-{lanes}", "balanced", "bank-balanced", n_banks=lanes),
        one("bank-balanced-4", "balanced", "bank-balanced", n_banks=4),
        # Twentieths of a group are the sparsities from 50 to 95 %; 2:4 itself is for 50 % only.
        one("n-of-20", "balanced", "n-of-m", group_size=20, sparsest=0.95),
        one("n-of-4", "balanced", "n-of-m", group_size=4, sparsest=0.75),
        one("pe-balanced", "balanced", "pe-balanced", n_pes=lanes),
        one("density-adaptive", "balanced", "density-adaptive"),
        one("block-column-row", "block", "block-column-row", height=4, width=16),
        one("row-column", "block", "row-column", height=16, width=16),
        one("kernel-group", "kernel", "kernel-group", taps=1),
        one("block-punched", "kernel", "block-punched", taps=1),
        one("kernel-pattern", "kernel", "kernel-pattern", taps=2),
        one("polarised", "balanced", "polarised"),
    ]


def contestants(engine: EngineConfig) -> dict[str, Contestant]:
    """Everyone by name: dense, unstructured, GS in its variants, the neighbours."""
    everyone = [
        Contestant(name=DENSE, family=DENSE, kind=None),
        Contestant(name=UNSTRUCTURED, family=UNSTRUCTURED, kind="unstructured"),
        *_gs(engine),
        *_neighbours(engine),
    ]
    return {contestant.name: contestant for contestant in everyone}


def make_recipe(
    config: Config,
    contestant: Contestant,
    sparsity: float,
    dense_layers: tuple[str, ...],
    seed: int,
) -> Recipe:
    """The one recipe of the comparison: cubic over half the training, then fine-tuning.

    Raises
    ------
    GshwError
        For a pattern that the config or its own rules forbid.
    """
    if contestant.kind is None:
        raise GshwError("the dense network needs no recipe")
    if contestant.rows is not None:
        engine = engines(config.engine)[contestant.rows]
        config = dataclasses.replace(config, engine=engine)
    document = {
        "seed": seed,
        "pattern": {"kind": contestant.kind, **contestant.parameters},
        "target": {"sparsity": sparsity},
        "layer": [{"match": name, "skip": True} for name in dense_layers],
        "score": {"kind": "magnitude"},
        "method": {"kind": "gradual", "start": 0.0, "stop": 0.5, "updates": 10},
        "channels": {"deal": contestant.deal},
    }
    return Recipe.from_dict(document, config)
