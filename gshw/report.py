"""Tables and pictures for people: the pattern, the words, the layers."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gshw import __version__
from gshw.config import Config, EngineConfig, Gather, Routing
from gshw.files import write_atomically
from gshw.layout import Field, group_fields, record_fields, word_width
from gshw.pattern import highest_sparsity
from gshw.pipeline import Pipeline
from gshw.simulate import LayerReport

_PIPE_WIDTH = 150


def progress_bar(console: Console) -> Progress:
    """Progress on a terminal, silence in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def print_wide(console: Console, table: Table) -> None:
    """Print a table; in a pipe with room for all its columns."""
    wide = console if console.is_terminal else Console(width=_PIPE_WIDTH)
    wide.print(table)


def write_record(
    path: Path | None, config: Config, raw: Sequence[str], seed: int | None, data: dict
) -> None:
    """Write a report's JSON twin with the command, config hash and seed; no path, no file."""
    if path is None:
        return
    record = {
        "command": shlex.join(["gshw", *raw]),
        "gshw": __version__,
        "config": config.name,
        "config_hash": config.engine.hash,
        "seed": seed,
        **data,
    }
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def bit_diagram(fields: tuple[Field, ...]) -> str:
    """Word drawn with its highest bit on the left, one box per field."""
    tops, names, sizes = [], [], []
    for f in reversed(fields):
        size = f"{f.count} x {f.width}" if f.count > 1 else f"{f.width}"
        label = f"{f.stop - 1}..{f.start}" if f.total_width > 1 else f"{f.start}"
        width = max(len(f.name), len(size), len(label)) + 2
        tops.append(label.center(width))
        names.append(f.name.center(width))
        sizes.append(size.center(width))
    rule = "+" + "+".join("-" * len(name) for name in names) + "+"
    lines = [" " + " ".join(tops), rule, "|" + "|".join(names) + "|"]
    return "\n".join([*lines, "|" + "|".join(sizes) + "|", rule])


def pattern_drawing(config: EngineConfig) -> str:
    """What one group touches: the lanes of every row, and a conflict-free choice of banks."""
    k = config.lanes_per_row
    shown = min(config.rows, 8)
    lines = [
        f"One group: one {config.bank_width}-bit word from each of {config.lanes} banks,",
        f"{config.rows} output row(s) with {k} slot(s) each, 1x{config.block} weights per slot.",
        "",
        "          " + " ".join(f"{bank:2d}" for bank in range(config.lanes)) + "  <- bank",
        "(each number: the slot of its row that the bank feeds)",
    ]
    for row in range(shown):
        # Any permutation of the banks would do; an odd multiplier gives one that looks the part.
        direct = config.routing is Routing.DIRECT
        lanes = [b if direct else (b * 5 + 3) % config.lanes for b in range(config.lanes)]
        cells = [f"{lane % k:2d}" if lane // k == row else " ." for lane in lanes]
        lines.append(f"  row {row:3d} " + " ".join(cells))
    if shown < config.rows:
        lines.append(f"  ... {config.rows - shown} more rows; every bank is used exactly once")
    return "\n".join(lines)


def memory_bits(config: EngineConfig) -> dict[str, int]:
    """Bits of every on-chip memory; every code that is drained at a time has its own tables."""
    n_copies = config.drain_rows * config.columns
    table = config.activation_tables * config.activation_width << config.activation_width
    return {
        "scratchpad": config.lanes * config.bank_width * config.bank_depth,
        "output buffer": config.lanes * config.bank_width * config.output_depth,
        "group buffer": word_width(group_fields(config)) * config.group_buffer_depth,
        "row buffer": word_width(record_fields(config)) * config.row_buffer_depth,
    } | ({"activation tables": n_copies * table} if config.activation_tables else {})


def config_info(config: Config) -> dict:
    """Everything that ``gshw info`` prints, as plain values."""
    engine = config.engine
    return {
        "config": config.name,
        "config_hash": engine.hash,
        "engine": engine.canonical(),
        "target": {"device": config.target.device, "clock_mhz": config.target.clock_mhz},
        "pattern": engine.pattern_name,
        "block": engine.block,
        "lanes_per_row": engine.lanes_per_row,
        "macs_per_cycle": engine.macs_per_cycle,
        "group_word_bits": word_width(group_fields(engine)),
        "record_bits": word_width(record_fields(engine)),
        "memory_bits": memory_bits(engine),
        "routing_switches": engine.n_switches if engine.routing is Routing.BENES else 0,
        "pipeline_cycles": Pipeline(engine).accumulate,
        "highest_sparsity": {
            str(n_columns): highest_sparsity(engine, n_columns)
            for n_columns in (64, 256, 576, 1024, 4608)
        },
    }


def info_text(config: Config) -> str:
    """The readable form of :func:`config_info`."""
    engine = config.engine
    info = config_info(config)
    lines = [
        f"{config.name}: {engine.pattern_name}, {engine.lanes} lanes x {engine.block} channel(s) "
        f"x {engine.columns} column(s) = {engine.macs_per_cycle} MACs per cycle",
        f"hash {engine.hash}",
        f"target {config.target.device} at {config.target.clock_mhz} MHz: at most "
        f"{engine.macs_per_cycle * config.target.clock_mhz / 1000:.2f} G MAC/s on non-zero weights",
        f"widths in bits: activation {engine.activation_width}, weight {engine.weight_width}, "
        f"accumulator {engine.accumulator_width}, bank word {engine.bank_width}, "
        f"word address {engine.address_width} (output buffer {engine.output_address_width}), "
        f"row number {engine.row_width}",
        "",
        pattern_drawing(engine),
        "",
        f"routing {engine.routing.value}, gather {engine.gather.value}, {engine.drain_rows} row(s) "
        f"drained per cycle: a bundle needs {engine.rows // engine.drain_rows} groups to hide it",
        "",
        "memories:",
    ]
    lines += [f"  {name:13s} {bits / 8192:8.1f} KiB" for name, bits in info["memory_bits"].items()]
    lines += ["", "highest sparsity without padding (one group per bundle):"]
    lines += [
        f"  {columns:>5s} columns  " + (f"{100 * sparsity:6.2f} %" if sparsity else "  none")
        for columns, sparsity in info["highest_sparsity"].items()
    ]
    lines += ["", f"group word, {info['group_word_bits']} bits:", bit_diagram(group_fields(engine))]
    lines += ["", f"row-parameter record, {info['record_bits']} bits:"]
    lines += [bit_diagram(record_fields(engine))]
    if engine.gather is Gather.ARBITRATED:
        lines += ["", "arbitrated: any indices; lanes that want one bank take turns"]
    return "\n".join(lines)


def layer_table(reports: Sequence[LayerReport], title: str) -> Table:
    """One row per layer, and totals."""
    table = Table(title=title)
    columns = ("layer", "shape", "density", "positions", "groups", "cycles", "limit")
    columns += ("MAC utilisation", "dense cycles", "speed-up", "match")
    for column in columns:
        left = column in ("layer", "limit", "match")
        table.add_column(column, justify="left" if left else "right")
    verdict = {True: "exact", False: "MISMATCH", None: "-"}
    for r in reports:
        table.add_row(
            r.name,
            f"{r.rows} x {r.columns}",
            f"{100 * r.density:.1f} %",
            str(r.positions),
            f"{r.groups:,}",
            f"{r.cycles:,}",
            r.limit,
            f"{r.utilisation:.3f}",
            f"{r.dense_cycles:,}",
            f"{r.speed_up:.2f} x",
            verdict[r.match],
        )
    if len(reports) > 1:
        cycles, dense = sum(r.cycles for r in reports), sum(r.dense_cycles for r in reports)
        needed = sum(r.utilisation * r.cycles for r in reports)
        table.add_section()
        table.add_row(
            "all",
            "",
            "",
            "",
            f"{sum(r.groups for r in reports):,}",
            f"{cycles:,}",
            "",
            f"{needed / cycles:.3f}",
            f"{dense:,}",
            f"{dense / cycles:.2f} x",
            "",
        )
    return table


def cycles_table(reports: Sequence[LayerReport], title: str) -> Table:
    """Where each layer's cycles go, by the cycle law."""
    table = Table(title=title)
    names = ("layer", "cycles", "non-zeros", "padding", "replays", "drain", "fill", "commands")
    for column in names:
        table.add_column(column, justify="left" if column == "layer" else "right")
    for r in reports:
        needed = r.utilisation * r.cycles
        table.add_row(
            r.name,
            f"{r.where.total:,}",
            f"{needed:,.0f}",
            f"{r.where.groups - needed:,.0f}",
            f"{r.where.replays:,}",
            f"{r.where.stalls:,}",
            f"{r.where.fill:,}",
            f"{r.where.commands:,}",
        )
    return table
