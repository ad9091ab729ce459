"""Bit layout of group words and row-parameter records.

The packer of the memory image, the RTL's payloads, ``gshw info`` and ``docs/format.md`` all
read these tables. Bit 0 of a word is bit 0 of its first field; element 0 of a field comes first.

For the ``tiny`` preset (4 lanes, direct routing, 256 words per bank) a group word is::

      64..33   32..1      0
    +--------+--------+-------+
    | weight | offset | drain |
    | 4 x 8  | 4 x 8  |   1   |
    +--------+--------+-------+
"""

from dataclasses import dataclass

from gshw.config import MULTIPLIER_WIDTH, SHIFT_WIDTH, EngineConfig, Gather, Routing


@dataclass(frozen=True)
class Field:
    """``count`` equal elements of ``width`` bits each, starting at bit ``start`` of the word."""

    name: str
    width: int
    count: int
    start: int
    signed: bool = False

    @property
    def total_width(self) -> int:
        return self.width * self.count

    @property
    def stop(self) -> int:
        return self.start + self.total_width


def _stack(fields: list[tuple[str, int, int, bool]]) -> tuple[Field, ...]:
    placed: list[Field] = []
    start = 0
    for name, width, count, signed in fields:
        placed.append(Field(name, width, count, start, signed))
        start += width * count
    return tuple(placed)


def group_head_fields(config: EngineConfig) -> tuple[Field, ...]:
    """Fields that the issue stage needs: where the bundle ends, and what to gather.

    ``drain`` is 0 while the bundle goes on, else the number of row-parameter records (cycles)
    that drain it. Scheduled gather: ``offset[bank]``. Arbitrated gather: per lane ``active``,
    ``bank`` and ``offset``.
    """
    fields = [("drain", config.drain_width, 1, False)]
    if config.gather is Gather.ARBITRATED:
        fields.append(("active", 1, config.lanes, False))
        fields.append(("bank", config.log2_lanes, config.lanes, False))
    fields.append(("offset", config.address_width, config.lanes, False))
    return _stack(fields)


def route_field(config: EngineConfig) -> tuple[str, int, int] | None:
    """Name, width and count of a group's routing control, or None where it has none.

    Crossbar: ``bank[lane]``. Benes: one bit per switch, stage by stage from the banks to the
    lanes, within a stage by the lower of the two positions that the switch may exchange.
    """
    if config.routing is Routing.DIRECT or config.gather is Gather.ARBITRATED:
        return None
    if config.routing is Routing.CROSSBAR:
        return "bank", config.log2_lanes, config.lanes
    return "switch", 1, config.n_switches


def group_fields(config: EngineConfig) -> tuple[Field, ...]:
    """All fields of a group word: head, routing control, ``weight[lane * block + channel]``."""
    fields = [(f.name, f.width, f.count, f.signed) for f in group_head_fields(config)]
    route = route_field(config)
    if route is not None:
        fields.append((*route, False))
    fields.append(("weight", config.weight_width, config.lanes * config.block, True))
    return _stack(fields)


def record_fields(config: EngineConfig) -> tuple[Field, ...]:
    """Fields of a row-parameter record, one element per drained row.

    ``advance`` is 1 when the next record drains the next ``drain_rows`` accumulators.
    """
    n_rows = config.drain_rows
    return _stack(
        [
            ("advance", 1, 1, False),
            ("valid", 1, n_rows, False),
            ("bias", config.accumulator_width, n_rows, True),
            ("multiplier", MULTIPLIER_WIDTH, n_rows, False),
            ("shift", SHIFT_WIDTH, n_rows, False),
            ("row", config.row_width, n_rows, False),
        ]
    )


def word_width(fields: tuple[Field, ...]) -> int:
    """Total bits of a word with these fields."""
    return fields[-1].stop
