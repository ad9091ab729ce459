"""Where a network's cycles go: one line per node, and the whole."""

import math
from dataclasses import asdict, dataclass, replace

from rich.markup import escape
from rich.table import Table

from gshw.network.compile import CompiledNetwork, NodeProgram
from gshw.network.run import NetworkCycles
from gshw.program import Instruction, Opcode, Unit, disassemble
from gshw.program_cycles import Bound, ProgramCycles, Tile, beats


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """One node of a compiled network, or all that share a layer.

    Parameters
    ----------
    layer
        Its encoded layer.
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
    needs
        Cycles for which it needs each resource: no node is shorter than the longest.
    bytes_read, bytes_written
        Of its loads and stores.
    """

    name: str
    layer: str
    rows: int
    columns: int
    weights: int
    positions: int
    cycles: int
    needed: float
    needs: dict[Bound, int]
    bytes_read: int
    bytes_written: int

    @property
    def utilisation(self) -> float:
        return self.needed / self.cycles

    @property
    def bound(self) -> Bound:
        """The resource that it needs for longest."""
        return max(self.needs, key=lambda kind: self.needs[kind])


@dataclass(frozen=True)
class _Program:
    """One program's instructions, the tiles of its commands by their numbers, and its times."""

    instructions: list[Instruction]
    tiles: dict[int, Tile]
    cycles: ProgramCycles


def node_reports(
    compiled: CompiledNetwork, cycles: NetworkCycles, *, interval: int = 1
) -> list[NodeReport]:
    """Cycles and work of every matrix, in order; the last one of a program ends with it.

    Parameters
    ----------
    interval
        Cycles of the memory per beat.
    """
    programs = [
        _Program(instructions, _command_tiles(instructions, found), found)
        for segment, found in zip(compiled.programs, cycles.programs, strict=True)
        for instructions in [disassemble(segment.data)]
    ]
    last_of = {share.program: share for share in compiled.nodes}
    reports, begin = [], 0
    for node, share in zip(compiled.network.matrices, compiled.nodes, strict=True):
        program = programs[share.program]
        layer = compiled.network.layers[node.layer]
        size = compiled.network.tensors[node.output].size
        # The header of the program has no times.
        end = int(program.cycles.times[share.last_command - 1, 1])
        is_last = share is last_of[share.program]
        if is_last:
            end = program.cycles.cycles
        positions = compiled.n_samples * size[0] * size[1]
        weights = int((layer.value != 0).sum())
        reports.append(
            NodeReport(
                name=node.name,
                layer=node.layer,
                rows=layer.n_rows,
                columns=layer.geometry.n_columns,
                weights=weights,
                positions=positions,
                cycles=end - begin,
                needed=weights * positions / compiled.config.engine.macs_per_cycle,
                **_work(compiled, share, program, interval),
            )
        )
        begin = 0 if is_last else end
    return reports


def _command_tiles(instructions: list[Instruction], cycles: ProgramCycles) -> dict[int, Tile]:
    """Of every command, by its number; the last tile has the stores behind its command too."""
    commands = [n for n, i in enumerate(instructions, 1) if i.opcode is Opcode.RUN]
    return dict(zip(commands, cycles.tiles, strict=True))


def _work(compiled: CompiledNetwork, share: NodeProgram, program: _Program, interval: int) -> dict:
    """What a node's instructions need, and what they move."""
    needs = dict.fromkeys(Bound, 0)
    moved = {Unit.LOAD: 0, Unit.STORE: 0}
    channels = {Unit.LOAD: Bound.READ, Unit.STORE: Bound.WRITE}
    for number in (n for first, stop in share.instructions for n in range(first, stop)):
        instruction = program.instructions[number - 1]
        if instruction.opcode is Opcode.RUN:
            needs[Bound.ISSUE] += program.tiles[number].issue
            needs[Bound.DRAIN] += program.tiles[number].drain
        elif "memory_stride_0" in instruction.values:
            unit = instruction.unit
            needs[channels[unit]] += beats(compiled.config, instruction) * interval
            moved[unit] += instruction["run_bytes"] * math.prod(instruction.loop("count"))
    return {
        "needs": needs,
        "bytes_read": moved[Unit.LOAD],
        "bytes_written": moved[Unit.STORE],
    }


def _together(reports: list[NodeReport]) -> NodeReport:
    """Nodes of one layer as one."""
    first = reports[0]
    return replace(
        first,
        name=first.layer,
        positions=sum(r.positions for r in reports),
        cycles=sum(r.cycles for r in reports),
        needed=sum(r.needed for r in reports),
        needs={kind: sum(r.needs[kind] for r in reports) for kind in first.needs},
        bytes_read=sum(r.bytes_read for r in reports),
        bytes_written=sum(r.bytes_written for r in reports),
    )


def node_table(nodes: list[NodeReport], title: str) -> Table:
    """One row per layer, for all nodes that share it."""
    table = Table(title=title)
    names = ("layer", "nodes", "rows", "columns", "weights", "positions", "cycles", "kB read")
    for name in (*names, "kB written", "bound", "MAC utilisation"):
        table.add_column(name, justify="left" if name in ("layer", "bound") else "right")
    by_layer: dict[str, list[NodeReport]] = {}
    for node in nodes:
        by_layer.setdefault(node.layer, []).append(node)
    reports = [_together(found) for found in by_layer.values()]
    for report in reports:
        table.add_row(
            escape(report.name),
            f"{len(by_layer[report.layer]):,}",
            f"{report.rows:,}",
            f"{report.columns:,}",
            f"{report.weights:,}",
            f"{report.positions:,}",
            f"{report.cycles:,}",
            f"{report.bytes_read / 1e3:,.0f}",
            f"{report.bytes_written / 1e3:,.0f}",
            report.bound.value,
            f"{report.utilisation:.2f}",
        )
    table.add_section()
    table.add_row(
        "whole",
        f"{len(nodes):,}",
        "",
        "",
        f"{sum(r.weights for r in reports):,}",
        "",
        f"{sum(r.cycles for r in reports):,}",
        f"{sum(r.bytes_read for r in reports) / 1e3:,.0f}",
        f"{sum(r.bytes_written for r in reports) / 1e3:,.0f}",
        "",
        f"{utilisation(reports):.2f}",
    )
    return table


def utilisation(reports: list[NodeReport]) -> float:
    """Of all multipliers over the whole network, loads and stores included."""
    return sum(r.needed for r in reports) / sum(r.cycles for r in reports)


def network_json(reports: list[NodeReport], cycles: NetworkCycles) -> dict:
    """The same as plain values, with every counter."""
    return {
        "counters": cycles.counters,
        "utilisation": utilisation(reports),
        "nodes": [
            asdict(r)
            | {
                "needs": {kind.value: n for kind, n in r.needs.items()},
                "utilisation": r.utilisation,
                "bound": r.bound.value,
            }
            for r in reports
        ],
    }
