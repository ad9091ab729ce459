"""Documents of a register map: Markdown, JSON, and constants for C and Python.

``python -m gshw.register_docs`` writes ``docs/registers.md`` of the checkout anew.
"""

import json
import re
import sys
from pathlib import Path

from gshw.config import load_config
from gshw.files import write_atomically
from gshw.register_map import register_map
from gshw.registers import (
    REGISTER_WIDTH,
    SINGLE_FIELD,
    Access,
    Register,
    RegisterField,
    RegisterMap,
)
from gshw.top import Top

DOCUMENTED_PRESET = "v16x4"
"""The preset whose constants ``docs/registers.md`` shows."""

_BITS_PER_LINE = 16
_CELL = 7
"""Characters of one bit in a diagram."""

_ACCESS = {
    Access.READ_WRITE: "read, write",
    Access.READ_ONLY: "read only",
    Access.CONSTANT: "constant",
    Access.WRITE_1_CLEARS: "read, write 1 to clear",
    Access.PULSE: "write 1 for a pulse, reads 0",
}

_INTRODUCTION = """\
`gshw_axi` and `gshw_stream` have the same registers behind an AXI4-Lite port of 32 bits,
`s_axi_*`. Offsets and fields are the same for every config.

- **Accesses.** Byte strobes are honoured in every register. The two lowest address bits are
  ignored: the strobes say which bytes are meant, and a read always gives the whole register.
  Writes to read-only fields, and to bits without a field, are ignored and answered with OKAY;
  bits without a field read as 0. An address without a register is answered with SLVERR, and reads
  as 0.
- **Start and end.** Write the program's address, then 1 to `control.start`. `control.done`
  becomes 1 when the program has ended without an error, `status.halted` when an error has stopped
  it. Reading never clears anything: HLS cores clear done by reading, which a debugger or a second
  reader spoils. `done` is cleared by the next start, by a soft reset, and by writing 1 to it.
- **Interrupts.** `interrupt_status` records what happens, enabled or not. The output `interrupt`
  is high while `interrupt_global.enable` is 1 and a bit is set in both `interrupt_status` and
  `interrupt_enable`. An event in the very cycle in which software clears its bit leaves the bit
  set.
- **Errors.** The first error stops the core; `first_error` and `first_error_address` describe it.
  `control.soft_reset` completes what is outstanding on the bus, clears the errors and makes the
  core ready; what software has written, and the counters, stay.
- **Counters** are cleared by a start and stand still when the program has ended. A read is exact
  at any time, but the halves of a 64-bit counter are read one after the other: of a running
  program read high, low, high, and again if high has changed.
- **64-bit numbers** lie in two registers, `_low` first. Address bits that the bus does not have
  (`bus_widths.address`) are constants.
"""


def _folded(name: str, space: int) -> list[str]:
    """Lines of at most ``space`` characters, broken after ``_`` where possible."""
    lines = [""]
    for word in re.findall(r"[^_]+_?|_", name):
        if lines[-1] and len(lines[-1]) + len(word) > space:
            lines.append("")
        lines[-1] += word
        while len(lines[-1]) > space:
            lines[-1:] = [lines[-1][:space], lines[-1][space:]]
    return lines


def diagram(register: Register) -> str:
    """The 32 bits in two lines of 16, bit 31 first; ``-`` where there is no field."""
    lines = []
    for top_bit in range(REGISTER_WIDTH - 1, 0, -_BITS_PER_LINE):
        bottom_bit = top_bit - _BITS_PER_LINE + 1
        cells: list[tuple[int, str]] = []
        bit = top_bit
        while bit >= bottom_bit:
            owner = next((f for f in register.fields if f.low_bit <= bit <= f.high_bit), None)
            below = max((f.high_bit for f in register.fields if f.high_bit < bit), default=-1)
            last = max(bottom_bit, owner.low_bit if owner else below + 1)
            name = "-" if owner is None else owner.name
            name = register.name if name == SINGLE_FIELD else name
            cells.append((bit - last + 1, name))
            bit = last - 1
        numbers = "".join(f"{n:^{_CELL}}" for n in range(top_bit, bottom_bit - 1, -1))
        border = "+" + "".join("-" * (_CELL * n - 1) + "+" for n, _ in cells)
        rows: list[str] = []
        parts = [_folded(name, _CELL * n - 1) for n, name in cells]
        for row in range(max(map(len, parts))):
            rows.append(
                "|"
                + "|".join(
                    f"{part[row] if row < len(part) else '':^{_CELL * n - 1}}"
                    for (n, _), part in zip(cells, parts)
                )
                + "|"
            )
        lines += [f" {numbers}".rstrip(), border, *rows, border]
    return "\n".join(lines)


def _values(field: RegisterField) -> str:
    if not field.values:
        return ""
    return " " + ", ".join(f"{value}: {name}" for value, name in field.values) + "."


def markdown(registers: RegisterMap, introduction: str = "") -> str:
    """The whole map: overview, then each register with a bit diagram and its fields."""
    lines = [f"# Registers of {registers.name}", "", registers.description, ""]
    if introduction:
        lines += [*introduction.rstrip().splitlines(), ""]
    lines += ["| offset | register | meaning |", "|---|---|---|"]
    lines += [
        f"| 0x{r.offset:03x} | [`{r.name}`](#{r.name}) | {r.description} |"
        for r in registers.registers
    ]
    for register in registers.registers:
        lines += ["", f"## {register.name}", "", f"Offset 0x{register.offset:03x}."]
        lines[-1] += f" {register.description}"
        lines += ["", "```", diagram(register), "```", ""]
        lines += ["| bits | field | access | reset | meaning |", "|---|---|---|---|---|"]
        for f in reversed(register.fields):
            bits = f"{f.high_bit}:{f.low_bit}" if f.width > 1 else str(f.low_bit)
            reset = "" if f.access is Access.READ_ONLY else f"{f.reset:#x}"
            lines.append(
                f"| {bits} | `{f.name}` | {_ACCESS[f.access]} | {reset} "
                f"| {f.description}{_values(f)} |"
            )
    return "\n".join(lines) + "\n"


def as_json(registers: RegisterMap) -> str:
    """Everything that the declaration says, as JSON."""

    def field(f: RegisterField) -> dict:
        described = {
            "name": f.name,
            "low_bit": f.low_bit,
            "width": f.width,
            "access": f.access.value,
            "volatile": f.volatile,
            "reset": f.reset,
            "description": f.description,
        }
        if f.hardware_clears:
            described["hardware_clears"] = True
        if f.values:
            described["values"] = {str(value): name for value, name in f.values}
        return described

    description = {
        "name": registers.name,
        "description": registers.description,
        "address_width": registers.address_width,
        "register_width": REGISTER_WIDTH,
        "registers": [
            {
                "name": r.name,
                "offset": r.offset,
                "description": r.description,
                "fields": [field(f) for f in r.fields],
            }
            for r in registers.registers
        ],
    }
    return json.dumps(description, indent=1) + "\n"


def constants(registers: RegisterMap) -> list[tuple[str, int, str]]:
    """Name, value and meaning of every constant of the drivers, the same for C and Python.

    ``{REGISTER}_OFFSET``; of each field ``{MEMBER}_LOW_BIT``, ``_WIDTH``, ``_MASK`` (at its place
    in the register), ``_VALUE`` where it is a constant, and ``_IS_{NAME}`` of each named value.
    """
    found = []
    for register in registers.registers:
        found.append((f"{register.name.upper()}_OFFSET", register.offset, register.description))
        for field in register.fields:
            name = register.member(field).upper()
            text = "" if field.name == SINGLE_FIELD else field.description
            found.append((f"{name}_LOW_BIT", field.low_bit, text))
            found.append((f"{name}_WIDTH", field.width, ""))
            found.append((f"{name}_MASK", field.mask, ""))
            if field.access is Access.CONSTANT:
                found.append((f"{name}_VALUE", field.reset, ""))
            for value, meaning in field.values:
                found.append((f"{name}_IS_{meaning.upper()}", value, ""))
    return found


def c_header(registers: RegisterMap) -> str:
    """C99 header of :func:`constants`, each with the prefix ``GSHW_``."""
    lines = [
        f"/* Registers of {registers.name}. */",
        "#ifndef GSHW_REGISTERS_H",
        "#define GSHW_REGISTERS_H",
    ]
    for name, value, text in constants(registers):
        if name.endswith("_OFFSET"):
            lines.append("")
        if text:
            lines.append(f"/* {text} */")
        number = f"{value}u" if name.endswith(("_LOW_BIT", "_WIDTH")) else f"0x{value:x}u"
        lines.append(f"#define GSHW_{name} {number}")
    return "\n".join([*lines, "", "#endif"]) + "\n"


def python_constants(registers: RegisterMap) -> str:
    """Python module of :func:`constants`, for drivers on machines without gshw."""
    lines = [f'"""Registers of {registers.name}."""']
    for name, value, text in constants(registers):
        if name.endswith("_OFFSET"):
            lines.append("")
        if text:
            lines.append(f"# {text}")
        number = str(value) if name.endswith(("_LOW_BIT", "_WIDTH")) else f"{value:#x}"
        lines.append(f"{name} = {number}")
    return "\n".join(lines) + "\n"


def documentation() -> str:
    """Text of ``docs/registers.md``."""
    note = (
        f"The constants shown are those of the preset `{DOCUMENTED_PRESET}`. This file is made by "
        "`python -m gshw.register_docs`.\n"
    )
    registers = register_map(load_config(DOCUMENTED_PRESET), Top.AXI)
    return markdown(registers, f"{_INTRODUCTION}\n{note}")


def main() -> None:
    """Write ``docs/registers.md`` of the checkout that this module lies in."""
    path = Path(__file__).resolve().parents[1] / "docs" / "registers.md"
    write_atomically(path, documentation())
    print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
