"""Where a network's cycles go: one line per node, and the whole."""

from dataclasses import asdict, dataclass

from rich.markup import escape
from rich.table import Table

from gshw.network.compile import CompiledNetwork
from gshw.program_cycles import ProgramCycles


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """One node of a compiled network.

    Parameters
    ----------
    rows, columns
        Of its matrix, repeats included.
    weights
        Kept weights that are not zero.
    positions
        Output pixels over all samples.
    cycles
        From the end of the last command of the node before to that of its own; the last node's end
        is the program's.
    needed
        Cycles that an engine without any loss needs for the weights.
    """

    name: str
    rows: int
    columns: int
    weights: int
    positions: int
    cycles: int
    needed: float

    @property
    def utilisation(self) -> float:
        return self.needed / self.cycles


def node_reports(compiled: CompiledNetwork, cycles: ProgramCycles) -> list[NodeReport]:
    """Cycles and work of every node, in order; the last one's end is the program's."""
    reports, begin = [], 0
    for node, share in zip(compiled.network.nodes, compiled.nodes, strict=True):
        layer = compiled.network.layers[node.layer]
        size = compiled.network.tensors[node.output].size
        # The header of the program has no times.
        end = int(cycles.times[share.stop - 2, 1])
        if share is compiled.nodes[-1]:
            end = cycles.cycles
        positions = compiled.n_samples * size[0] * size[1]
        weights = int((layer.value != 0).sum())
        reports.append(
            NodeReport(
                name=node.name,
                rows=layer.n_rows,
                columns=layer.geometry.n_columns,
                weights=weights,
                positions=positions,
                cycles=end - begin,
                needed=weights * positions / compiled.config.engine.macs_per_cycle,
            )
        )
        begin = end
    return reports


def node_table(reports: list[NodeReport], title: str) -> Table:
    """One row per node."""
    table = Table(title=title)
    for name in ("node", "rows", "columns", "weights", "positions", "cycles", "MAC utilisation"):
        table.add_column(name, justify="left" if name == "node" else "right")
    for report in reports:
        table.add_row(
            escape(report.name),
            f"{report.rows:,}",
            f"{report.columns:,}",
            f"{report.weights:,}",
            f"{report.positions:,}",
            f"{report.cycles:,}",
            f"{report.utilisation:.2f}",
        )
    total, needed = sum(r.cycles for r in reports), sum(r.needed for r in reports)
    weights = sum(r.weights for r in reports)
    table.add_section()
    table.add_row("whole", "", "", f"{weights:,}", "", f"{total:,}", f"{needed / total:.2f}")
    return table


def network_json(reports: list[NodeReport], cycles: ProgramCycles) -> dict:
    """The same as plain values, with every counter."""
    return {
        "counters": cycles.counters,
        "nodes": [asdict(r) | {"utilisation": r.utilisation} for r in reports],
    }
