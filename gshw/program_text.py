"""The text form of programs: one instruction per line, and back.

A line is the instruction's name, then ``field=value`` in any order, then its tokens by name; fields
at their default may be left out, and ``#`` starts a comment. The first line may be ``begin`` with
the config hash; the header's other fields follow from the program::

    begin config_hash=0x0ec1fb8e
    load_activations address=0x1000 run_bytes=8 columns=1 push_next
    run n_groups=3 n_records=3 high=255 pop_previous push_next
    store address=0x2000 run_bytes=3 pop_previous
"""

from collections.abc import Iterable

from gshw.errors import GshwError
from gshw.program import FIELDS, TOKENS, Instruction, Opcode

_HEXADECIMAL = ("address",)
_BY_NAME = {opcode.text: opcode for opcode in Opcode}


def line_of(instruction: Instruction) -> str:
    """The instruction's line: name, fields that are not at their default, tokens."""
    words = [instruction.opcode.text]
    for field in FIELDS[instruction.opcode]:
        value = instruction[field.name]
        if value != field.default:
            text = f"{value:#x}" if field.name in _HEXADECIMAL else str(value)
            words.append(f"{field.name}={text}")
    return " ".join(words + [name for name in TOKENS if getattr(instruction, name)])


def to_text(config_hash32: int, instructions: Iterable[Instruction]) -> str:
    """The text of a whole program, the header's line first."""
    lines = [f"begin config_hash={config_hash32:#010x}"]
    lines += [line_of(instruction) for instruction in instructions]
    return "\n".join(lines) + "\n"


def _parse_integer(name: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise GshwError(f"{name} must be an integer, not {text!r}") from None


def _parse_words(words: list[str]) -> tuple[dict[str, int], dict[str, bool]]:
    values: dict[str, int] = {}
    tokens: dict[str, bool] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and name not in TOKENS:
            raise GshwError(
                f"must hold field=value or one of the tokens {', '.join(TOKENS)}, not {word!r}"
            )
        if name in values or name in tokens:
            raise GshwError(f"{name} must be given once, not twice")
        if not equals:
            tokens[name] = True
        elif name in TOKENS:
            raise GshwError(f"{name} is a token and takes no value, not {value!r}")
        else:
            values[name] = _parse_integer(name, value)
    return values, tokens


def _parse_header(words: list[str]) -> int:
    values, tokens = _parse_words(words)
    if tokens or values.keys() != {"config_hash"}:
        raise GshwError("begin must hold config_hash=VALUE and nothing else")
    if not 0 <= values["config_hash"] < 1 << 32:
        raise GshwError(f"config_hash must have 32 bits, not {values['config_hash']:#x}")
    return values["config_hash"]


def parse_text(text: str) -> tuple[int | None, list[Instruction]]:
    """Parse a program's text form.

    Returns
    -------
    tuple
        The config hash, None where the text has no line ``begin``; the other instructions.

    Raises
    ------
    GshwError
        Naming the line, what must hold, and what is there.
    """
    config_hash32: int | None = None
    instructions: list[Instruction] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            opcode = _BY_NAME.get(words[0])
            if opcode is None:
                raise GshwError(
                    f"instruction must be one of {', '.join(_BY_NAME)}, not {words[0]!r}"
                )
            if opcode is Opcode.BEGIN:
                if instructions or config_hash32 is not None:
                    raise GshwError("begin must be the first instruction only")
                config_hash32 = _parse_header(words[1:])
            else:
                values, tokens = _parse_words(words[1:])
                instructions.append(Instruction(opcode, values, **tokens))
        except GshwError as error:
            raise GshwError(f"line {number}: {error}") from None
    if not instructions:
        raise GshwError("a program must have at least one instruction, not 0")
    return config_hash32, instructions
