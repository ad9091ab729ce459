"""Payload layouts of the units' instruction streams, made from the tables of gshw.program."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from gshw.program import COMMON_FIELDS, FIELDS, InstructionField, Opcode, Unit


def unit_fields(unit: Unit, *, max_pooling: bool = False) -> tuple[InstructionField, ...]:
    """The opcode and every field of the unit's instructions, each name once.

    Fields of different opcodes may share bits: ``n_words`` of a fill lies in ``run_bytes``. An
    engine without ``max_pooling`` has no wire for ``maximum``.
    """
    fields = {field.name: field for field in COMMON_FIELDS if field.name == "opcode"}
    for opcode in Opcode:
        if opcode.unit is unit:
            fields |= {field.name: field for field in FIELDS[opcode]}
    if not max_pooling:
        fields.pop("maximum", None)
    return tuple(fields.values())


def instruction_layout(unit: Unit, *, max_pooling: bool = False) -> data.StructLayout:
    """Payload of a unit's instruction stream: :func:`unit_fields` by name."""
    return data.StructLayout(
        {
            field.name: signed(field.width) if field.signed else unsigned(field.width)
            for field in unit_fields(unit, max_pooling=max_pooling)
        }
    )


def load_instruction_layout() -> data.StructLayout:
    """Payload of the load unit's instructions."""
    return instruction_layout(Unit.LOAD)


def run_instruction_layout(*, max_pooling: bool) -> data.StructLayout:
    """Payload of the compute unit's instructions."""
    return instruction_layout(Unit.COMPUTE, max_pooling=max_pooling)


def store_instruction_layout() -> data.StructLayout:
    """Payload of the store unit's instructions."""
    return instruction_layout(Unit.STORE)
