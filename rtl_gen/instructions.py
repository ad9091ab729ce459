"""Payload layouts of the units' instruction streams, made from the tables of gshw.program."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from gshw.program import (
    COMMON_FIELDS,
    FIELDS,
    OPTIONAL_FIELDS,
    InstructionField,
    Opcode,
    Unit,
)


def unit_fields(unit: Unit, optional: tuple[str, ...] = ()) -> tuple[InstructionField, ...]:
    """The opcode and every field of the unit's instructions, each name once.

    Fields of different opcodes may share bits: ``n_words`` of a fill lies in ``run_bytes``. Of
    those that only some engines have, ``optional`` are there.
    """
    fields = {field.name: field for field in COMMON_FIELDS if field.name == "opcode"}
    for opcode in Opcode:
        if opcode.unit is unit:
            fields |= {field.name: field for field in FIELDS[opcode]}
    absent = set(OPTIONAL_FIELDS) - set(optional)
    return tuple(field for name, field in fields.items() if name not in absent)


def instruction_layout(unit: Unit, optional: tuple[str, ...] = ()) -> data.StructLayout:
    """Payload of a unit's instruction stream: :func:`unit_fields` by name."""
    return data.StructLayout(
        {
            field.name: signed(field.width) if field.signed else unsigned(field.width)
            for field in unit_fields(unit, optional)
        }
    )


def load_instruction_layout() -> data.StructLayout:
    """Payload of the load unit's instructions."""
    return instruction_layout(Unit.LOAD)


def run_instruction_layout(optional: tuple[str, ...]) -> data.StructLayout:
    """Payload of the compute unit's instructions."""
    return instruction_layout(Unit.COMPUTE, optional)


def store_instruction_layout() -> data.StructLayout:
    """Payload of the store unit's instructions."""
    return instruction_layout(Unit.STORE)
