"""Tables of whole programs: where their cycles go, and what bounds their tiles."""

from collections import Counter
from collections.abc import Mapping

from rich.table import Table

from gshw.config import Config
from gshw.drivers.simulated import MemoryModel
from gshw.encoding import EncodedLayer
from gshw.lower import lower_layer
from gshw.program_cycles import Bound, ProgramCycles, layer_cycles
from gshw.simulate import input_size


def explain_programs(
    config: Config, layers: Mapping[str, EncodedLayer], n_samples: int, model: MemoryModel
) -> dict[str, ProgramCycles]:
    """Cycles of every layer as a program of its own, for its recorded input size."""
    return {
        name: layer_cycles(lower_layer(config, layer, n_samples, *input_size(layer)), model)
        for name, layer in layers.items()
    }


def bounds(program: ProgramCycles) -> dict[Bound, int]:
    """How many tiles each resource bounds, the most first."""
    return dict(Counter(tile.bound for tile in program.tiles).most_common())


def program_table(programs: Mapping[str, ProgramCycles], title: str) -> Table:
    """One row per layer: cycles, how busy each resource is, what compute waits for."""
    table = Table(title=title)
    names = ("layer", "cycles", "compute", "memory read", "memory write")
    names += ("waits for load", "waits for store", "tiles", "bound by")
    for name in names:
        left = name in ("layer", "bound by")
        table.add_column(name, justify="left" if left else "right")
    for name, program in programs.items():
        shares = (program.compute_share, program.read_share, program.write_share)
        counts = bounds(program)
        kinds = (
            f"{kind.value}: {n}" if len(counts) > 1 else kind.value for kind, n in counts.items()
        )
        table.add_row(
            name,
            f"{program.cycles:,}",
            *(f"{100 * share:.1f} %" for share in shares),
            f"{program.counters['compute_waits_load']:,}",
            f"{program.counters['compute_waits_store']:,}",
            f"{len(program.tiles):,}",
            ", ".join(kinds),
        )
    return table


def program_json(program: ProgramCycles) -> dict:
    """The same with every counter and tile, as plain values."""
    return {
        "counters": program.counters,
        "compute_share": program.compute_share,
        "read_share": program.read_share,
        "write_share": program.write_share,
        "tiles": [
            {
                "first": tile.first,
                "last": tile.last,
                "start": tile.start,
                "end": tile.end,
                "needs": {kind.value: n for kind, n in tile.needs.items()},
                "bound": tile.bound.value,
            }
            for tile in program.tiles
        ],
    }
