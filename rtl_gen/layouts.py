"""Payload layouts of the engine's streams, made from the bit tables of :mod:`gshw.layout`."""

from amaranth.hdl import ShapeLike, signed, unsigned
from amaranth.lib import data

from gshw.config import EngineConfig, Gather
from gshw.layout import Field, group_fields, group_head_fields, record_fields, route_field
from gshw.plan import COUNT_WIDTH, N_LOOPS


def _element(field: Field) -> ShapeLike:
    return signed(field.width) if field.signed else unsigned(field.width)


def _struct(fields: tuple[Field, ...]) -> data.StructLayout:
    """Every field is an array, also one of a single element."""
    return data.StructLayout({f.name: data.ArrayLayout(_element(f), f.count) for f in fields})


def issue_layout(config: EngineConfig) -> data.StructLayout:
    """What the gather unit reads of a group: ``drain[0]``; arbitrated: the whole head."""
    fields = group_head_fields(config)
    return _struct(fields if config.gather is Gather.ARBITRATED else fields[:1])


def head_layout(config: EngineConfig) -> data.StructLayout:
    """What streams to the gather unit.

    ``ends`` says that ``drain[0]`` is not 0: a bit of its own, as all of the issue waits for it.
    ``last`` comes with the final group of a pass.
    """
    return data.StructLayout({"group": issue_layout(config), "ends": 1, "last": 1})


def group_layout(config: EngineConfig) -> data.StructLayout:
    """A whole group word."""
    return _struct(group_fields(config))


def route_width(config: EngineConfig) -> int:
    """Bits of routing control in a group word; 0 where there is none."""
    route = route_field(config)
    return 0 if route is None else route[1] * route[2]


def record_layout(config: EngineConfig) -> data.StructLayout:
    """A row-parameter record: per drained row valid, bias, multiplier, shift, output row."""
    return _struct(record_fields(config))


def load_layout(address_width: int, word_width: int) -> data.StructLayout:
    """One word for a buffer: where, and what."""
    return data.StructLayout({"address": address_width, "data": word_width})


def scratchpad_load_layout(config: EngineConfig) -> data.StructLayout:
    """One scratchpad row, and which elements of it to write.

    ``channel_enable[bank * block + channel]`` and ``column_enable[column]``.
    """
    return data.StructLayout(
        {
            "address": config.address_width,
            "channel_enable": config.channels_per_row,
            "column_enable": config.columns,
            "data": config.scratchpad_row_width,
        }
    )


def step_layout() -> data.StructLayout:
    """Which loop moves at the next position: the innermost one that has not ended."""
    return data.StructLayout({"inner_ended": 1, "middle_ended": 1})


def command_layout(config: EngineConfig) -> data.StructLayout:
    """One run of the engine; see :class:`gshw.plan.Command`."""
    return data.StructLayout(
        {
            "config_hash": 32,
            "group_base": config.group_address_width,
            "n_groups": config.group_address_width + 1,
            "record_base": config.record_address_width,
            "n_records": config.record_address_width + 1,
            "read_base": config.address_width,
            "write_base": config.output_address_width,
            "count_less_1": data.ArrayLayout(COUNT_WIDTH, N_LOOPS),
            "read_step": data.ArrayLayout(config.address_width, N_LOOPS),
            "write_step": data.ArrayLayout(config.output_address_width, N_LOOPS),
            "signed_input": 1,
            "low": signed(config.activation_width + 1),
            "high": signed(config.activation_width + 1),
            "continues": 1,
        }
        | ({"maximum": 1} if config.max_pooling else {})
        | ({"table": config.table_width} if config.activation_tables else {})
    )


def tag_layout(config: EngineConfig) -> data.StructLayout:
    """What travels beside an issued group: framing, and how its bundle drains.

    ``first`` starts new sums; ``drain`` is 0 inside a bundle, else its record count.
    """
    return data.StructLayout({"valid": 1, "first": 1, "drain": config.drain_width})
