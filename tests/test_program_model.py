"""The software model of programs: arithmetic against loops, and all that it refuses."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest

from gshw.config import EngineConfig, Gather, Routing
from gshw.engine_model import EngineModel, walk_positions
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.image import pack_words
from gshw.layout import Field, group_fields, record_fields, word_width
from gshw.lower import lower_layer
from gshw.program import MAX_TOKENS, Instruction, Opcode, assemble, disassemble
from gshw.program_model import ProgramModel, pack_codes, unpack_codes
from gshw.program_text import parse_text
from tests.strategies import ENGINES, conv, naive_requantise, random_activations, random_layer
from tests.test_lower import config_of

DIRECT = ENGINES["direct4"]
WIDE = ENGINES["vertical4"]


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def random_values(rng, fields: tuple[Field, ...], n_words: int) -> dict:
    values = {}
    for field in fields:
        low = -(1 << (field.width - 1)) if field.signed else 0
        high = (1 << (field.width - field.signed)) - 1
        values[field.name] = rng.integers(low, high, (n_words, field.count), endpoint=True)
    return values


def random_groups(rng, config: EngineConfig, drains: list[int]) -> dict:
    """Any legal group words whose bundles end as ``drains`` says."""
    values = random_values(rng, group_fields(config), len(drains))
    values["drain"] = np.array(drains)[:, None]
    values["offset"] %= 20
    if config.gather is Gather.SCHEDULED and config.routing is Routing.CROSSBAR:
        values["bank"] = np.array([rng.permutation(config.lanes) for _ in drains])
    return values


def random_records(rng, config: EngineConfig, drains: list[int]) -> dict:
    """Bundles that drain one accumulator after the other, or several at once."""
    values = random_values(rng, record_fields(config), sum(drains))
    # Sizes at which sums show in the codes; the fourth record has any bias and shift.
    width = config.weight_width
    spare = config.accumulator_width - width - config.activation_width
    values["bias"][np.arange(len(values["bias"])) != 3] >>= max(0, spare)
    values["multiplier"] |= 1 << 15
    values["valid"] = (rng.random(values["valid"].shape) < 0.8).astype(np.int64)
    values["shift"] = rng.integers(width + 16, width + 18, values["shift"].shape)
    values["shift"][3:4] = rng.choice([1, 47], values["shift"][3:4].shape)
    values["row"] %= 6 * config.channels_per_row
    for start, count in zip(np.cumsum(drains) - drains, drains, strict=True):
        # At most rows / drain_rows times may the accumulators move on.
        allowed = config.rows // config.drain_rows
        values["advance"][start : start + count] = np.arange(count)[:, None] < allowed - 1
    return values


def naive_bank(config: EngineConfig, values: dict, group: int) -> list[int]:
    """Bank of each lane, Waksman's network walked switch by switch."""
    if config.gather is Gather.ARBITRATED or config.routing is Routing.CROSSBAR:
        return values["bank"][group].tolist()
    banks = list(range(config.lanes))
    if config.routing is Routing.DIRECT:
        return banks
    switches = iter(values["switch"][group].tolist())
    n = config.log2_lanes
    for stage, bit in enumerate([*range(n - 1, -1, -1), *range(1, n)]):
        for low in range(config.lanes):
            # Behind the middle, the first pair of every sub-network is a pair of wires.
            if low >> bit & 1 or (stage >= n and low % (2 << bit) == 0):
                continue
            if next(switches):
                high = low | 1 << bit
                banks[low], banks[high] = banks[high], banks[low]
    return banks


def naive_run(config: EngineConfig, scratchpad, groups, records, positions, stage) -> dict:
    """Output codes by (flat channel, column), position by position, lane by lane."""
    low, high, signed_input = stage
    width, out = config.activation_width, {}
    wrap = 1 << config.accumulator_width
    for read, write in positions:
        sums = np.zeros((config.rows, config.columns), dtype=object)
        record = 0
        for group, drain in enumerate(groups["drain"][:, 0].tolist()):
            banks = naive_bank(config, groups, group)
            for lane, bank in enumerate(banks):
                if config.gather is Gather.ARBITRATED:
                    if not groups["active"][group, lane]:
                        continue
                    offset = groups["offset"][group, lane]
                else:
                    offset = groups["offset"][group, bank]
                for c in range(config.block):
                    place = ((read + offset) * config.lanes + bank) * config.block + c
                    weight = int(groups["weight"][group, lane * config.block + c])
                    for v in range(config.columns):
                        code = int(scratchpad[place, v])
                        if signed_input and code >> (width - 1):
                            code -= 1 << width
                        sums[lane // config.lanes_per_row, v] += weight * code
            if not drain:
                continue
            first = 0
            for _ in range(drain):
                for d in range(config.drain_rows):
                    if not records["valid"][record, d]:
                        continue
                    for v in range(config.columns):
                        acc = int(sums[first + d, v]) + int(records["bias"][record, d])
                        acc = (acc + wrap // 2) % wrap - wrap // 2
                        code = naive_requantise(
                            acc,
                            int(records["multiplier"][record, d]),
                            int(records["shift"][record, d]),
                            low,
                            high,
                        )
                        channel = write * config.channels_per_row + int(records["row"][record, d])
                        out[channel, v] = code % (1 << width)
                first += config.drain_rows * int(records["advance"][record, 0])
                record += 1
            sums[:] = 0
    return out


def loaded_engine(rng, config: EngineConfig, drains: list[int]) -> tuple[EngineModel, dict, dict]:
    """A model with random buffers, groups from entry 3 and records from entry 2."""
    model = EngineModel(config)
    model.scratchpad[:] = rng.integers(0, 1 << config.activation_width, model.scratchpad.shape)
    groups, records = random_groups(rng, config, drains), random_records(rng, config, drains)
    model.load_groups(3, pack_words(group_fields(config), groups))
    model.load_records(2, pack_words(record_fields(config), records))
    return model, groups, records


LOW, HIGH = -120, 119


def run_instruction(n_groups: int, n_records: int, **values) -> Instruction:
    given = {"group_base": 3, "n_groups": n_groups, "record_base": 2, "n_records": n_records}
    return Instruction(Opcode.RUN, given | {"low": LOW, "high": HIGH} | values)


@pytest.mark.parametrize("signed_input", [0, 1])
@pytest.mark.parametrize("name", sorted(ENGINES))
def test_commands_equal_loops(name, signed_input):
    """Random words, so every weight, switch, record and overflow; a box of positions."""
    config = ENGINES[name]
    rng = np.random.default_rng(len(name) + 100 * signed_input)
    most = config.rows // config.drain_rows
    drains = [0, 1, most, 0, 0, most, 1, 1, 0, 1]
    half = 1 << (config.activation_width - 1)
    low, high = 1 - half, half - 2
    model, groups, records = loaded_engine(rng, config, drains)
    command = run_instruction(
        len(drains),
        sum(drains),
        read_base=5,
        write_base=1,
        count_less_1_0=1,
        count_less_1_1=2,
        read_step_0=3,
        read_step_1=config.bank_depth - 1,
        write_step_0=6,
        write_step_1=config.output_depth - 5,
        signed_input=signed_input,
        low=low,
        high=high,
    )
    positions, read, write = [], 5, 1
    for _ in range(3):
        positions += [(read, write), (read + 3, write + 6)]
        read, write = read + 3 - 1, write + 6 - 5
    touched = model.run(command)
    expected = naive_run(
        config, model.scratchpad, groups, records, positions, (low, high, bool(signed_input))
    )
    found = {key: int(model.output[key]) for key in expected}
    assert found == expected
    limits = {low % (1 << config.activation_width), high, 0}
    assert len(set(expected.values()) - limits) > 2
    rows = {channel // config.channels_per_row for channel, _ in expected}
    assert rows == set(touched.written.tolist())
    assert min(touched.read) >= 5 and max(touched.read) < 12 + 20
    untouched = model.output.copy()
    for key in expected:
        untouched[key] = 0
    assert not untouched.any()


@pytest.mark.parametrize("name", ["hybrid4", "vertical8"])
def test_a_bundle_in_parts(name):
    """Three commands, and one; sums of a bundle that ended are not carried."""
    config = ENGINES[name]
    rng = np.random.default_rng(5)
    drains = [0, 0, 0, 1, 0, 1]
    whole, _, _ = loaded_engine(rng, config, drains)
    rng = np.random.default_rng(5)
    parts, _, _ = loaded_engine(rng, config, drains)
    whole.run(run_instruction(6, 2))
    parts.run(run_instruction(2, 0))
    parts.run(run_instruction(1, 0, group_base=5, continues=1))
    parts.run(run_instruction(3, 2, group_base=6, continues=1))
    assert np.array_equal(whole.output, parts.output)
    # A first bundle that nothing continues begins at 0, whatever was left.
    parts.run(run_instruction(2, 0))
    parts.run(run_instruction(6, 2))
    assert np.array_equal(whole.output, parts.output)
    parts.run(run_instruction(6, 2, continues=1))
    assert np.array_equal(whole.output, parts.output)


def test_an_unfinished_bundle_goes_on_at_the_next_position():
    """As the accumulators do: only an ended bundle clears them."""
    config = ENGINES["hybrid4"]
    model, groups, records = loaded_engine(np.random.default_rng(6), config, [1, 0])
    model.run(run_instruction(2, 1, count_less_1_0=1, read_step_0=2, write_step_0=8))
    joined = {key: np.concatenate([values, values])[[0, 1, 2]] for key, values in groups.items()}
    both = {key: np.concatenate([values, values]) for key, values in records.items()}
    joined["offset"] = joined["offset"] + np.array([0, 0, 2])[:, None]
    expected = naive_run(config, model.scratchpad, joined, both, [(0, 0)], (LOW, HIGH, False))
    later = {(channel, v): code for (channel, v), code in expected.items()}
    found = {key: int(model.output[key[0] + 8 * config.channels_per_row, key[1]]) for key in later}
    assert found == later


def test_positions_walk_like_nested_loops():
    address, expected = 7, []
    for k in range(2):
        for j in range(3):
            for i in range(4):
                expected.append(address % 64)
                if i < 3:
                    address += 5
            if j < 2:
                address += 60
        if k < 1:
            address += 9
    assert walk_positions(7, (4, 3, 2), (5, 60, 9), 64).tolist() == expected


@pytest.mark.parametrize("name", ["direct2x2", "direct4", "vertical4"])
def test_codes_lie_low_half_first(name):
    """4, 8 and 16 bits, against one big integer."""
    config = ENGINES[name]
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 1 << config.activation_width, (3, 10))
    raw = pack_codes(config, codes)
    for row, line in zip(codes, raw, strict=True):
        number = sum(int(code) << config.activation_width * n for n, code in enumerate(row))
        assert int.from_bytes(line.tobytes(), "little") == number
    assert np.array_equal(unpack_codes(config, raw), codes)


# --- movement --------------------------------------------------------------------------------


def model_of(config: EngineConfig, n_bytes: int = 1024, *, base_address: int = 0) -> ProgramModel:
    memory = np.random.default_rng(8).integers(0, 256, n_bytes).astype(np.uint8)
    return ProgramModel(config, memory, base_address=base_address)


def run_text(model: ProgramModel, text: str) -> None:
    model.run(assemble(model.config.hash32, parse_text(text)[1]))


def test_load_puts_channels_in_words_banks_and_places():
    """By the format's rule, channel by channel, for two nested loops and two of the columns."""
    config = WIDE
    model = model_of(config, base_address=0x100)
    run_text(
        model,
        "load_activations address=0x123 run_bytes=18 count_0=2 count_1=3 memory_stride_0=-20 "
        "memory_stride_1=101 target=4 columns=5 target_stride_0=3 target_stride_1=7",
    )
    view = model.engine.scratchpad.reshape(-1, config.lanes, config.block, config.columns)
    expected = np.zeros_like(view)
    for j in range(3):
        for i in range(2):
            start = 0x23 - 20 * i + 101 * j
            for n in range(9):
                code = int.from_bytes(model.memory[start + 2 * n : start + 2 * n + 2], "little")
                block, place = divmod(n, config.block)
                word, bank = divmod(block, config.lanes)
                for column in (0, 2):
                    expected[4 + 3 * i + 7 * j + word, bank, place, column] = code
    assert np.array_equal(view, expected)


def test_fill_writes_whole_words_of_some_columns():
    model = model_of(ENGINES["hybrid4"])
    model.engine.scratchpad[:] = 1
    run_text(model, "fill n_words=2 count_0=2 target=5 columns=2 target_stride_0=10 value=200")
    rows = model.engine.scratchpad.reshape(64, -1, 2)
    words = [5, 6, 15, 16]
    assert (rows[words, :, 1] == 200).all()
    assert (rows[:, :, 0] == 1).all()
    assert (np.delete(rows[:, :, 1], words, axis=0) == 1).all()


def test_a_program_runs_where_it_lies_and_spares_itself():
    config = DIRECT
    model = model_of(config, base_address=0x40)
    store = "store address={} run_bytes=1 source=3"
    for address in (0x80, 0xC7, 0xC8):
        program = assemble(config.hash32, parse_text(store.format(address))[1])
        model.memory[8 : 8 + 128] = np.frombuffer(program, np.uint8)
        model.written[:] = True
        if address == 0xC8:
            model.run_at(0x48)
            assert model.memory[0xC8 - 0x40] == 0
            continue
        message = f"byte {address:#x} of the program itself must not be written"
        with raises(f"instruction 1 (store): {message}"):
            model.run_at(0x48)
        model.run(program)


MEMORY = "must lie in memory, 0x0..0x3ff"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "direct4",
            "load_activations address=0x3fe run_bytes=3 columns=1",
            f"bytes 0x3fe..0x400 {MEMORY}",
        ),
        (
            "direct4",
            "load_activations address=4 run_bytes=3 columns=1 count_0=2 memory_stride_0=-5",
            f"bytes -0x1..0x1 {MEMORY}",
        ),
        (
            "direct4",
            "load_activations address=0 run_bytes=1 columns=2",
            "columns must name some of the 1 columns, not 0x2",
        ),
        ("direct4", "fill n_words=1", "columns must name some of the 1 columns, not 0x0"),
        (
            "vertical4",
            "load_activations address=0 run_bytes=3 columns=1",
            "run_bytes must be whole codes of 16 bits, not 3 bytes",
        ),
        (
            "direct4",
            "load_activations address=0 run_bytes=5 columns=1 target=63",
            "words must be below the buffer's depth of 64, not 64",
        ),
        (
            "direct4",
            "fill n_words=3 columns=1 count_1=2 target=1 target_stride_1=61",
            "words must be below the buffer's depth of 64, not 64",
        ),
        ("direct4", "fill n_words=1 columns=1 value=256", "value must have 8 bits, not 0x100"),
        ("direct4", "load_groups address=0 run_bytes=8 columns=1", "columns must be 0, not 0x1"),
        (
            "direct4",
            "load_groups address=0 run_bytes=12",
            "run_bytes must be whole groups of 8 bytes, not 12",
        ),
        (
            "direct4",
            "load_records address=0 run_bytes=10",
            "run_bytes must be whole records of 8 bytes, not 10",
        ),
        (
            "direct4",
            "load_records address=0 run_bytes=8 target=16",
            "words must be below the buffer's depth of 16, not 16",
        ),
        (
            "direct4",
            "store address=0 run_bytes=1 column=1",
            "column must be below columns = 1, not 1",
        ),
        (
            "direct4",
            "store address=0 run_bytes=1 source=32",
            "words must be below the buffer's depth of 32, not 32",
        ),
        (
            "direct4",
            "store address=0 run_bytes=1 source=9",
            "output word 9 must have been written by a run",
        ),
        (
            "direct4",
            "run n_groups=33",
            "group_base + n_groups must be at most group_buffer_depth = 32, not 33",
        ),
        (
            "direct4",
            "run n_groups=1 record_base=9 n_records=8",
            "record_base + n_records must be at most row_buffer_depth = 16, not 17",
        ),
        (
            "direct4",
            "run n_groups=1 record_base=16",
            "record_base must be below row_buffer_depth = 16, not 16",
        ),
        (
            "direct4",
            "run n_groups=1 read_base=64",
            "read_base must be below bank_depth = 64, not 64",
        ),
        (
            "direct4",
            "run n_groups=1 write_step_2=32",
            "write_step_2 must be below output_depth = 32, not 32",
        ),
        (
            "direct4",
            "run n_groups=1 low=1",
            "low and high must rise within -256..255, not 1..0",
        ),
        (
            "direct4",
            "run n_groups=1 high=256",
            "low and high must rise within -256..255, not 0..256",
        ),
        (
            "direct4",
            "run n_groups=1 n_records=1",
            "n_records must be the 0 records that the groups drain, not 1",
        ),
    ],
)
def test_instructions_that_are_refused(name, text, message):
    config = ENGINES[name]
    with raises(f"instruction 1 ({text.split()[0]}): {message}"):
        run_text(model_of(config), text)


def test_tables_that_are_refused():
    config = dataclasses.replace(ENGINES["direct4"], activation_tables=2)
    n_bytes = -(-word_width(record_fields(config)) // 32) * 4
    base = config.table_base
    for text, message in (
        ("run n_groups=1 table=3", "table must be at most activation_tables = 2, not 3"),
        (
            f"load_records address=0 run_bytes={n_bytes} target={base - 1}",
            f"words must be below the buffer's depth of 16, not {base - 1}",
        ),
        (
            f"load_records address=0 run_bytes={2 * n_bytes} target={base + 127}",
            f"words must be below the buffer's depth of {base + 128}, not {base + 128}",
        ),
        (
            f"load_records address=0 run_bytes={n_bytes} count_0=2 target={base} "
            "target_stride_0=65535",
            f"words must be below the buffer's depth of {base + 128}, not {base + 65535}",
        ),
    ):
        with raises(f"instruction 1 ({text.split()[0]}): {message}"):
            run_text(model_of(config), text)
    with raises("instruction 1 (run): table must be at most activation_tables = 0, not 1"):
        run_text(model_of(ENGINES["direct4"]), "run n_groups=1 table=1")


def test_words_that_are_refused():
    """What no encoder makes, and addresses that only groups and records show."""
    config = ENGINES["vertical8"]
    cases: list[tuple[Callable[[dict, dict], None], dict, str]] = [
        (lambda g, r: g["offset"].fill(10), {"read_base": 54},
         "base plus offset must be below bank_depth = 64, not 64"),
        (lambda g, r: r["row"].fill(17), {"write_base": 31},
         "base plus result word must be below output_depth = 32, not 32"),
        (lambda g, r: r["shift"].fill(48), {}, "shift of a record must be from 1 to 47, not 48"),
        (lambda g, r: r["shift"].fill(0), {}, "shift of a record must be from 1 to 47, not 0"),
        (lambda g, r: r["advance"].fill(1), {}, "a bundle must drain 8 rows at most, not 12"),
    ]  # fmt: skip
    for change, values, message in cases:
        rng = np.random.default_rng(9)
        drains = [0, 3]
        model = EngineModel(config)
        groups, records = random_groups(rng, config, drains), random_records(rng, config, drains)
        records["valid"].fill(1)
        change(groups, records)
        model.load_groups(3, pack_words(group_fields(config), groups))
        model.load_records(2, pack_words(record_fields(config), records))
        with raises(message):
            model.run(run_instruction(2, 3, **values))


# --- tokens ----------------------------------------------------------------------------------


def filler_memory(config: EngineConfig) -> np.ndarray:
    """A group that ends a bundle of one row, at 0, and its record at 64."""
    rng = np.random.default_rng(10)
    memory = np.zeros(512, dtype=np.uint8)
    groups, records = random_groups(rng, config, [1]), random_records(rng, config, [1])
    records["valid"].fill(1)
    records["row"].fill(0)
    groups["offset"].fill(0)
    for address, words in (
        (0, pack_words(group_fields(config), groups)),
        (64, pack_words(record_fields(config), records)),
    ):
        data = words.tobytes()
        memory[address : address + len(data)] = np.frombuffer(data, np.uint8)
    return memory


GROUP = "load_groups address=0 run_bytes=8"
RECORD = "load_records address=64 run_bytes=8"
CODES = "load_activations address=128 run_bytes=4 columns=1"
RUN = "run n_groups=1 n_records=1 high=255"
STORE = "store address=256 run_bytes=1"
GOOD = f"{GROUP}\n{RECORD}\n{CODES} push_next\n{RUN} pop_previous push_next\n{STORE} pop_previous"

HAZARDS = {
    "all in order": (GOOD, None),
    "codes not loaded yet": (
        f"{GROUP}\n{RECORD} push_next\n{CODES}\n{RUN} pop_previous",
        "instruction 4 (run): reads scratchpad word 0, which instruction 3 (load_activations) may "
        "still write: a token must order them",
    ),
    "group not loaded yet": (
        f"{CODES}\n{RECORD} push_next\n{GROUP}\n{RUN} pop_previous",
        "instruction 4 (run): reads group 0, which instruction 3 (load_groups) may still write: "
        "a token must order them",
    ),
    "record not loaded yet": (
        f"{CODES}\n{GROUP} push_next\n{RECORD}\n{RUN} pop_previous",
        "instruction 4 (run): reads record 0, which instruction 3 (load_records) may still write: "
        "a token must order them",
    ),
    "codes loaded over": (
        f"{GOOD}\n{CODES}",
        "instruction 6 (load_activations): writes scratchpad word 0, which instruction 4 (run) may "
        "still read: a token must order them",
    ),
    "codes filled over": (
        f"{GOOD}\nfill n_words=1 columns=1",
        "instruction 6 (fill): writes scratchpad word 0, which instruction 4 (run) may "
        "still read: a token must order them",
    ),
    "group loaded over": (
        f"{GOOD}\n{GROUP}",
        "instruction 6 (load_groups): writes group 0, which instruction 4 (run) may still read: "
        "a token must order them",
    ),
    "record loaded over": (
        f"{GOOD}\n{RECORD}",
        "instruction 6 (load_records): writes record 0, which instruction 4 (run) may still read: "
        "a token must order them",
    ),
    "results not there yet": (
        f"{GROUP}\n{RECORD}\n{CODES} push_next\n{RUN} pop_previous\n{STORE}",
        "instruction 5 (store): reads output word 0, which instruction 4 (run) may still write: "
        "a token must order them",
    ),
    "results written over": (
        f"{GOOD}\n{RUN}",
        "instruction 6 (run): writes output word 0, which instruction 5 (store) may still read: "
        "a token must order them",
    ),
    "tensor not in memory yet": (
        f"{GOOD}\nload_activations address=254 run_bytes=4 columns=1 target=1",
        "instruction 6 (load_activations): reads memory byte 256, which instruction 5 (store) may "
        "still write: a token must order them",
    ),
    "tensor in memory, by way of compute": (
        f"{GOOD} push_previous\nsync pop_next push_previous\n"
        "load_activations address=254 run_bytes=4 columns=1 target=1 pop_next",
        None,
    ),
    "tensor stored over": (
        f"{GOOD.replace('256', '130')}",
        None,
    ),
    "tensor stored over while it loads": (
        GOOD.replace(f"{CODES} push_next", f"{CODES} push_next\nload_activations address=250 "
                     "run_bytes=8 columns=1 target=1"),
        "instruction 6 (store): writes memory byte 256, which instruction 4 (load_activations) may "
        "still read: a token must order them",
    ),
    "no token at all": (
        f"{GROUP}\nrun n_groups=1 n_records=1 pop_previous",
        "instruction 2 (run): deadlock: the token from load must be given by an instruction of "
        "load, and none is left",
    ),
    "a token from behind": (
        "sync pop_next\nsync\nstore address=0 run_bytes=1 push_previous",
        "instruction 1 (sync): deadlock: the token from store must come from an instruction before "
        "it in the program, not from instruction 3",
    ),
    "a circle": (
        "fill n_words=1 columns=1 pop_next push_next\nsync pop_previous push_previous",
        "instruction 1 (fill): deadlock: the token from compute must come from an instruction "
        "before it in the program, not from instruction 2",
    ),
    "taken twice": (
        "sync push_next push_previous\nfill n_words=1 columns=1 pop_next\n"
        "fill n_words=1 columns=1 pop_next",
        "instruction 3 (fill): deadlock: the token from compute must be given by an instruction of "
        "compute, and none is left",
    ),
    "left over": (
        "sync push_next\nsync push_next",
        "tokens from compute to store must all be taken at the end of the program, not 2 left",
    ),
    "too many": (
        "\n".join(["fill n_words=1 columns=1 push_next"] * (MAX_TOKENS + 1)),
        f"instruction {MAX_TOKENS + 1} (fill): tokens from load to compute that may wait at once "
        f"must be at most {MAX_TOKENS}, not {MAX_TOKENS + 1}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HAZARDS)
def test_hazards(case):
    text, message = HAZARDS[case]
    model = ProgramModel(DIRECT, filler_memory(DIRECT))
    if message is None:
        run_text(model, text)
    else:
        with raises(message):
            run_text(model, text)


def test_tokens_that_were_surely_taken_do_not_count():
    """A long chain in which every token is taken before the next but one is given."""
    line = "fill n_words=1 columns=1 push_next"
    answer = "sync pop_previous push_previous"
    chain = [line, answer] + [line + " pop_next", answer] * (2 * MAX_TOKENS)
    chain[-1] = "sync pop_previous"
    run_text(ProgramModel(DIRECT, np.zeros(64, np.uint8)), "\n".join(chain))


WAYS = [
    ("push_next", Opcode.LOAD_ACTIVATIONS.unit, "pop_previous", Opcode.RUN.unit),
    ("push_previous", Opcode.RUN.unit, "pop_next", Opcode.LOAD_ACTIVATIONS.unit),
    ("push_next", Opcode.RUN.unit, "pop_previous", Opcode.STORE.unit),
    ("push_previous", Opcode.STORE.unit, "pop_next", Opcode.RUN.unit),
]


def without(program: list[Instruction], index: int, name: str) -> list[Instruction]:
    old = program[index]
    flags = {
        token: getattr(old, token) and token != name
        for token in ("pop_previous", "pop_next", "push_previous", "push_next")
    }
    return [*program[:index], Instruction(old.opcode, old.values, **flags), *program[index + 1 :]]


@pytest.mark.parametrize("name", ["direct4", "hybrid4"])
def test_no_token_of_a_lowered_program_can_be_left_out(name):
    """Both ends of one token after the other: somewhere a hazard shows."""
    engine = ENGINES[name]
    layer = random_layer(11, engine, 10, conv(6, (2, 2), padding=(1, 1)), 0.6)
    lowered = lower_layer(config_of(engine), layer, 2, 12, 9)
    memory = lowered.memory(random_activations(12, engine, (2, 12, 9, 6)))
    program = disassemble(lowered.program, engine)
    n_removed = 0
    for push, giver, pop, taker in WAYS:
        gives = [n for n, i in enumerate(program) if i.unit is giver and getattr(i, push)]
        takes = [n for n, i in enumerate(program) if i.unit is taker and getattr(i, pop)]
        assert len(gives) == len(takes) > 0
        # The ends and the middle stand for all.
        for k in {0, len(gives) // 2, len(gives) - 1}:
            changed = without(without(program, gives[k], push), takes[k], pop)
            with pytest.raises(GshwError, match=r"a token must order them$"):
                model = ProgramModel(engine, memory.copy())
                model.run(assemble(engine.hash32, changed))
            n_removed += 1
    assert n_removed > 8


def test_buffers_outlive_a_program():
    """Load in one program, run in the next, store in a third."""
    model = ProgramModel(DIRECT, filler_memory(DIRECT))
    for text in (f"{GROUP}\n{RECORD}\n{CODES}", RUN, STORE):
        run_text(model, text)
    other = ProgramModel(DIRECT, filler_memory(DIRECT))
    run_text(other, GOOD)
    assert np.array_equal(model.memory, other.memory)


def test_a_foreign_program():
    model = ProgramModel(DIRECT, np.zeros(64, np.uint8))
    with raises(f"program was made for the engine 00000001, not for {DIRECT.hash32:08x}"):
        model.run(assemble(1, parse_text("sync")[1]))
    with raises("bytes 0x20..0x5f must lie in memory, 0x0..0x3f"):
        model.run_at(0x20)


def test_linear_layer_by_hand():
    """One word of a program from text to result: 2 * 3 + 4 * 5 = 26, halved."""
    config = DIRECT
    weights = {"drain": [[1]], "offset": [[0] * 4], "weight": [[2, 4, 0, 0]]}
    groups = pack_words(group_fields(config), {k: np.array(v) for k, v in weights.items()})
    stage = {
        "advance": 0, "valid": 1, "bias": 0, "multiplier": 1 << 15, "shift": 16, "row": 0,
    }  # fmt: skip
    records = pack_words(record_fields(config), {k: np.array([[v]]) for k, v in stage.items()})
    memory = np.zeros(512, dtype=np.uint8)
    memory[: groups.nbytes] = groups.view(np.uint8)[0]
    memory[64 : 64 + records.nbytes] = records.view(np.uint8)[0]
    memory[128:132] = 3, 5, 7, 9
    run_text(ProgramModel(config, memory), GOOD)
    assert memory[256] == 13
    assert Geometry.linear(4).words_per_pixel(config) == 1
