"""Bits, checksums and texts of programs, and every line that refuses one."""

import binascii
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from gshw.config import load_config
from gshw.errors import GshwError
from gshw.program import (
    COMMON_FIELDS,
    CRC_FIELD,
    FIELDS,
    INSTRUCTION_BYTES,
    MAX_TOKENS,
    TOKENS,
    Instruction,
    Opcode,
    Unit,
    assemble,
    begin,
    decode,
    disassemble,
    encode,
    first_program,
)
from gshw.program_text import line_of, parse_text, to_text

TINY = load_config("tiny").engine
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "program.md"
BODY = [Opcode(opcode) for opcode in Opcode if opcode is not Opcode.BEGIN]


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def random_instruction(rng: np.random.Generator, opcode: Opcode, extreme: int) -> Instruction:
    """Fields at their lowest (0), highest (1) or any value; legal tokens at random."""
    values = {}
    for field in FIELDS[opcode]:
        choice = int.from_bytes(rng.bytes(16)) % (field.high - field.low + 1) + field.low
        values[field.name] = (field.low, field.high, choice)[extreme]
    tokens = {name: bool(rng.integers(2)) for name in TOKENS}
    missing = {Unit.LOAD: "previous", Unit.STORE: "next"}.get(opcode.unit, "no side")
    tokens = {name: flag for name, flag in tokens.items() if not name.endswith(missing)}
    return Instruction(opcode, values, **tokens)


def random_program(seed: int, n_each: int = 3) -> list[Instruction]:
    rng = np.random.default_rng(seed)
    program = [random_instruction(rng, opcode, n % 3) for opcode in BODY for n in range(n_each)]
    return [program[index] for index in rng.permutation(len(program))]


# --- the document ----------------------------------------------------------------------------


def document_rows(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading of the document."""
    text = DOCUMENT.read_text().split(f"\n{heading}\n", 1)[1]
    rows = []
    for line in text.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def document_fields(heading: str) -> dict[str, tuple[int, int]]:
    """Lowest bit (of 512) and width of every field that the section's table names."""
    found = {}
    for word, *bits, text in document_rows(heading):
        words = [int(n) for n in word.split(",")]
        names = re.findall(r"`(\w+)`", text.split(":")[0])
        ranges = bits[0].split(", ") if bits and bits[0] else []
        if ranges:
            for name, span in zip(names, ranges, strict=True):
                high, _, low = span.partition(":")
                low = int(low or high)
                found[name] = (32 * words[0] + low, int(high) - low + 1)
        elif len(names) == len(words):
            found |= {name: (32 * w, 32) for name, w in zip(names, words, strict=True)}
        else:
            (name,) = names
            found[name] = (32 * words[0], 32 * len(words))
    return found


LOADS = "### load_activations, load_groups, load_records"
HEADINGS = {
    Opcode.BEGIN: "### begin",
    Opcode.LOAD_ACTIVATIONS: LOADS,
    Opcode.LOAD_GROUPS: LOADS,
    Opcode.LOAD_RECORDS: LOADS,
    Opcode.FILL: "### fill",
    Opcode.RUN: "### run",
    Opcode.STORE: "### store",
}


@pytest.mark.parametrize("opcode", HEADINGS)
def test_document_has_the_fields(opcode):
    fields = {field.name: (field.low_bit, field.width) for field in FIELDS[opcode]}
    assert document_fields(HEADINGS[opcode]) == fields


@pytest.mark.parametrize("opcode", HEADINGS)
def test_document_says_signed_and_minimum(opcode):
    signed, least = set(), set()
    for *_, text in document_rows(HEADINGS[opcode]):
        names = set(re.findall(r"`(\w+)`", text.split(":")[0]))
        signed |= names if "signed" in text.replace("`signed_input`", "") else set()
        least |= names if "at least 1" in text else set()
    assert signed == {field.name for field in FIELDS[opcode] if field.signed}
    assert least == {field.name for field in FIELDS[opcode] if field.minimum == 1}


def test_document_has_the_common_fields_and_opcodes():
    rows = [row for row in document_rows("## Encoding") if row[1]]
    fields = {}
    for bits, name, _ in rows:
        high, _, low = bits.partition(":")
        low = int(low or high)
        fields[name.strip("`")] = (low, int(high) - low + 1)
    assert fields == {field.name: (field.low_bit, field.width) for field in COMMON_FIELDS}
    text = DOCUMENT.read_text()
    table = re.findall(r"^\| 0x(\w\w) \| `(\w+)` \| (\w+) \|$", text, re.MULTILINE)
    assert [(int(code, 16), name, unit) for code, name, unit in table] == [
        (int(opcode), opcode.text, opcode.unit.value) for opcode in Opcode
    ]
    assert f"At most {MAX_TOKENS} wait for one unit" in text


def test_the_documents_example_is_a_program():
    (example,) = re.findall(r"```\n(begin config_hash.*?)```", DOCUMENT.read_text(), re.DOTALL)
    config_hash32, program = parse_text(example)
    assert config_hash32 == TINY.hash32
    assert to_text(TINY.hash32, program) == example


def test_fields_share_no_bits():
    for opcode in Opcode:
        used = 0
        for field in (*COMMON_FIELDS, *FIELDS[opcode], CRC_FIELD):
            assert not used & field.bits and field.bits < 1 << (8 * INSTRUCTION_BYTES)
            used |= field.bits


# --- binary ----------------------------------------------------------------------------------


def test_bytes_of_a_load():
    """Laid out by hand with struct, checksum by binascii."""
    instruction = Instruction(
        Opcode.LOAD_ACTIVATIONS,
        {
            "address": 0x1122334455667788,
            "run_bytes": 0xABCDEF,
            "count_0": 5,
            "count_1": 6,
            "memory_stride_0": -2,
            "memory_stride_1": 1 << 20,
            "target": 7,
            "columns": 9,
            "target_stride_0": 10,
            "target_stride_1": 11,
        },
        pop_next=True,
        push_next=True,
    )
    body = struct.pack(
        "<IQIHHiiHHHH", 0x0003_0A10, 0x1122334455667788, 0xABCDEF, 5, 6, -2, 1 << 20, 7, 9, 10, 11
    ).ljust(60, b"\0")
    raw = body + struct.pack("<I", binascii.crc32(body))
    assert encode(instruction, 3) == encode(instruction, 3 + 65536) == raw
    assert decode(raw, 3) == instruction


def test_bytes_of_a_run_and_the_header():
    fields = {field.name: index + 1 for index, field in enumerate(FIELDS[Opcode.RUN])}
    fields |= {"signed_input": 1, "continues": 0, "maximum": 1, "table": 10}
    fields |= {"low": -128, "high": 127}
    raw = encode(Instruction(Opcode.RUN, fields, pop_previous=True, push_previous=True), 1)
    words = struct.unpack("<16I", raw)
    steps = (8, *(n | (n + 1) << 16 for n in (14, 16, 18)))
    flags = 5 | 10 << 3
    assert words[:8] == (0x0001_0520, 1, 2, 3, 4, 5 | 6 << 16, 7 | 8 << 16, 9 | flags << 16)
    assert words[8:13] == (*steps[1:], 0xFFFFFF80, 127)
    header = struct.unpack("<16I", encode(begin(0xDEADBEEF, 42), 0))
    assert header[:5] == (1, 0x57485347, 1, 0xDEADBEEF, 42)
    assert encode(begin(1, 1), 0)[4:8] == b"GSHW"


@pytest.mark.parametrize("seed", range(3))
def test_programs_survive_both_forms(seed):
    program = random_program(seed)
    data = assemble(TINY.hash32, program)
    assert len(data) == INSTRUCTION_BYTES * (len(program) + 1)
    assert disassemble(data, TINY) == disassemble(data) == program
    assert first_program(data + b"behind") == data
    text = to_text(TINY.hash32, program)
    assert parse_text(text) == (TINY.hash32, program)
    assert len(text.splitlines()) == len(program) + 1


# --- what a program must not be --------------------------------------------------------------

SYNC = Instruction(Opcode.SYNC, {})


def sealed(words: dict[int, int], index: int, opcode: int = 0x21) -> bytes:
    """An instruction of these words with a right checksum."""
    block = [opcode | index << 16] + [0] * 14
    for word, value in words.items():
        block[word] |= value
    body = struct.pack("<15I", *block)
    return body + struct.pack("<I", binascii.crc32(body))


def test_headers_that_are_refused():
    data = assemble(0x12345678, [SYNC])
    with raises("truncated program: the header must have 64 bytes, not 63"):
        disassemble(data[:63])
    with raises("not a program: magic must be 0x57485347, not 0x0"):
        disassemble(bytes(128))
    with raises("not a program: version must be 0x1, not 0x2"):
        disassemble(data[:8] + b"\2" + data[9:])
    with raises(f"program was made for the engine 12345678, not for {TINY.hash32:08x}"):
        disassemble(data, TINY)
    header = {1: 0x57485347, 2: 1, 4: 1}
    with raises("not a program: opcode must be 0x01, not 0x21"):
        disassemble(sealed(header, 0) + data[64:])
    with raises("instruction 0: begin: n_instructions must be from 1 to 4294967295, not 0"):
        disassemble(sealed(header | {4: 0}, 0, 1) + data[64:])
    with raises("instruction 0: begin: pop_next must not be set: begin takes no tokens"):
        disassemble(sealed(header | {0: 1 << 9}, 0, 1) + data[64:])


def test_lengths_that_are_refused():
    data = assemble(1, [SYNC, SYNC])
    with raises("truncated program: 2 instructions and the header must have 192 bytes, not 191"):
        disassemble(data[:-1])
    with raises(
        "bytes behind the program: 2 instructions and the header must have 192 bytes, not 193"
    ):
        disassemble(data + b"\0")
    with raises("a program must have at least one instruction, not 0"):
        assemble(1, [])
    with raises("instruction 2: begin must be the first instruction only"):
        assemble(1, [SYNC, begin(1, 1)])


@pytest.mark.parametrize("bit", [0, 8, 16, 200, 479, 480, 511])
def test_any_wrong_bit_is_a_wrong_checksum(bit):
    raw = bytearray(encode(SYNC, 1))
    right = binascii.crc32(raw[:60])
    raw[bit // 8] ^= 1 << bit % 8
    found, expected = struct.unpack("<I", raw[60:])[0], binascii.crc32(raw[:60])
    assert (found == right) == (bit < 480)
    with raises(f"instruction 1: CRC-32 must be {expected:#010x}, not {found:#010x}"):
        decode(bytes(raw), 1)


def test_instructions_that_are_refused():
    header = encode(begin(1, 1), 0)
    for raw, message in (
        (encode(SYNC, 2), "instruction 1: index must be 1, not 2"),
        (sealed({}, 1, 0x22), "instruction 1: unknown opcode 0x22"),
        (sealed({3: 1 << 9}, 1), "instruction 1: sync: bit 9 of word 3 must be 0"),
        (sealed({0: 1 << 12}, 1), "instruction 1: sync: bit 12 of word 0 must be 0"),
        (
            sealed({3: 1 << 24 | 4, 4: 0x10001}, 1, 0x10),
            "instruction 1: load_activations: bit 24 of word 3 must be 0",
        ),
        (
            sealed({4: 0x10001}, 1, 0x30),
            "instruction 1: store: run_bytes must be from 1 to 16777215, not 0",
        ),
        (
            sealed({0: 1 << 8, 3: 1, 4: 0x10001}, 1, 0x13),
            "instruction 1: fill: pop_previous must not be set: load has no unit before it",
        ),
        (
            sealed({0: 1 << 11, 3: 1, 4: 0x10001}, 1, 0x30),
            "instruction 1: store: push_next must not be set: store has no unit after it",
        ),
        (encode(begin(1, 1), 1), "instruction 1: begin must be the first instruction only"),
    ):
        with raises(message):
            disassemble(header + raw)


def test_fields_that_are_refused():
    with raises("run needs the field n_groups"):
        Instruction(Opcode.RUN, {})
    with raises("sync has no field 'speed'; it has none"):
        Instruction(Opcode.SYNC, {"speed": 1})
    with raises(
        "fill has no field 'address'; its fields are n_words, count_0, count_1, target, columns, "
        "target_stride_0, target_stride_1, value"
    ):
        Instruction(Opcode.FILL, {"address": 1})
    for field in (f for opcode in BODY for f in FIELDS[opcode]):
        opcode = next(o for o in BODY if field in FIELDS[o])
        given = {f.name: f.low for f in FIELDS[opcode]}
        for wrong in (field.low - 1, field.high + 1):
            with raises(
                f"{opcode.text}: {field.name} must be from {field.low} to {field.high}, not {wrong}"
            ):
                Instruction(opcode, given | {field.name: wrong})


# --- text ------------------------------------------------------------------------------------


def test_text_of_instructions():
    text = """
    # a comment
    begin config_hash=0x12   # the engine
    fill n_words=0x10 columns=3 push_next

    sync pop_previous
    """
    config_hash32, program = parse_text(text)
    assert config_hash32 == 0x12
    assert [line_of(instruction) for instruction in program] == [
        "fill n_words=16 columns=3 push_next",
        "sync pop_previous",
    ]
    assert program[0].loop("count") == (1, 1)
    assert parse_text("sync")[0] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a program must have at least one instruction, not 0"),
        ("begin config_hash=1", "a program must have at least one instruction, not 0"),
        (
            "sync\nstroe",
            "line 2: instruction must be one of begin, load_activations, load_groups, "
            "load_records, fill, run, sync, store, not 'stroe'",
        ),
        ("sync\nbegin config_hash=1", "line 2: begin must be the first instruction only"),
        (
            "begin config_hash=1\nbegin config_hash=1\nsync",
            "line 2: begin must be the first instruction only",
        ),
        ("begin version=1\nsync", "line 1: begin must hold config_hash=VALUE and nothing else"),
        ("begin config_hash=-1\nsync", "line 1: config_hash must have 32 bits, not -0x1"),
        (
            "sync pop",
            "line 1: must hold field=value or one of the tokens pop_previous, pop_next, "
            "push_previous, push_next, not 'pop'",
        ),
        ("fill n_words=1 n_words=1", "line 1: n_words must be given once, not twice"),
        ("sync pop_next pop_next", "line 1: pop_next must be given once, not twice"),
        ("sync pop_next=1", "line 1: pop_next is a token and takes no value, not '1'"),
        ("fill n_words=0b2", "line 1: n_words must be an integer, not '0b2'"),
        ("fill n_words=0", "line 1: fill: n_words must be from 1 to 65535, not 0"),
        (
            "\nstore pop_next address=0 run_bytes=1",
            "line 2: store: pop_next must not be set: store has no unit after it",
        ),
    ],
)
def test_texts_that_are_refused(text, message):
    with raises(message):
        parse_text(text)
