"""Lowered layers, executed by the model of programs, equal the golden model."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from gshw.config import BusConfig, Config
from gshw.cycles import plan_cycles
from gshw.errors import GshwError
from gshw.geometry import Geometry, Part
from gshw.golden import run_layer
from gshw.image import LayerImage
from gshw.lower import lower_layer
from gshw.plan import Plan
from gshw.program import Opcode, assemble, disassemble
from gshw.program_builder import ProgramBuilder
from gshw.program_model import ProgramModel
from gshw.transfers import Transfers, merge_loops, split_loops, tensor_layout
from scripts.bench import overlap_cases
from scripts.bench_overlap import GOAL, law_of, shares_of, shortcomings
from tests.strategies import ENGINES, all_engines, conv, random_activations, random_layer

SHAPES = {
    "linear": (Geometry.linear(20), 7, (1, 1)),
    "linear_rows": (Geometry.linear(64), 5, (1, 1)),
    "conv": (conv(4, (3, 3), padding=(1, 1)), 2, (9, 7)),
    "conv_rows": (conv(16, (3, 3), padding=(1, 1)), 1, (6, 5)),
    "strided": (conv(8, (2, 3), stride=(2, 3), padding=(0, 1)), 1, (11, 17)),
    "dilated": (conv(5, (3, 2), dilation=(2, 1), padding=(2, 2)), 2, (6, 7)),
    "pointwise": (conv(12, (1, 1)), 2, (7, 5)),
    "parts": (conv(9, (3, 3), padding=(1, 1), parts=(Part(6), Part(3, 2))), 2, (7, 6)),
    "part_rows": (conv(16, (1, 1), parts=(Part(8, 3), Part(8))), 2, (5, 4)),
    "unfolded": (conv(1, (3, 3), unfold=True, padding=(1, 0)), 1, (12, 12)),
}
WHOLE_MEMORY = 0xA5


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def config_of(engine, **bus) -> Config:
    return Config(name="test", engine=engine, bus=BusConfig(**bus))


def check_layer(config: Config, layer, seed: int, n_samples: int, size: tuple[int, int]):
    """Lower, execute, compare; memory outside the results must not change."""
    engine = config.engine
    lowered = lower_layer(config, layer, n_samples, *size, base_address=0x4000)
    shape = (n_samples, *size, layer.geometry.in_channels)
    x = random_activations(seed, engine, shape, signed=layer.requantisation.signed_input)
    memory = lowered.memory(x)
    start = lowered.output_layout.address - lowered.base_address
    stop = start + lowered.output_layout.n_bytes
    memory[start:stop] = WHOLE_MEMORY
    before = memory.copy()
    ProgramModel(engine, memory, base_address=0x4000).run_at(lowered.program_address)
    assert np.array_equal(lowered.read_output(memory), run_layer(engine, layer, x))
    before[start:stop] = memory[start:stop]
    assert np.array_equal(before, memory)
    return lowered


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(all_engines()))
def test_lowered_layers_equal_golden(name, shape):
    """Rows that fill no word exactly, unsigned; and whole rows, signed and shuffled.

    Presets take turns, small engines do both.
    """
    engine = all_engines()[name]
    geometry, n_samples, size = SHAPES[shape]
    config = config_of(engine, data_width=[32, 64, 128][len(shape) % 3])
    turn = (len(name) + list(SHAPES).index(shape)) % 2
    if name in ENGINES or turn:
        check_layer(config, random_layer(1, engine, 5, geometry, 0.3), 2, n_samples, size)
    if name in ENGINES or not turn:
        n_rows = min(engine.channels_per_row, 32)
        layer = random_layer(3, engine, n_rows, geometry, 0.2, signed_input=True, shuffled=True)
        check_layer(config, layer, 4, n_samples, size)


@pytest.mark.parametrize("name", ["direct4", "hybrid4", "arbitrated4"])
def test_cut_weights(name):
    """Weights in tiles, bundles in parts, records in chunks; one and several positions."""
    for groups, records, n_samples in ((7, 6, 1), (5, 6, 5), (32, 4, 9)):
        engine = dataclasses.replace(
            ENGINES[name], group_buffer_depth=groups, row_buffer_depth=records
        )
        layer = random_layer(5, engine, 9 * engine.rows - 1, Geometry.linear(96), 0.6)
        lowered = check_layer(config_of(engine), layer, 6, n_samples, (1, 1))
        program = disassemble(lowered.program, engine)
        assert sum(i.opcode is Opcode.LOAD_GROUPS for i in program) > 1
        assert sum(i.opcode is Opcode.LOAD_RECORDS for i in program) > 1
    assert any(i["continues"] for i in program if i.opcode is Opcode.RUN) or groups == 32


def test_weights_that_fit_are_loaded_once():
    engine = ENGINES["vertical8"]
    layer = random_layer(7, engine, 12, conv(16, (1, 1)), 0.5)
    lowered = check_layer(config_of(engine), layer, 8, 2, (16, 16))
    program = disassemble(lowered.program, engine)
    loads = [i for i in program if i.opcode in (Opcode.LOAD_GROUPS, Opcode.LOAD_RECORDS)]
    runs = [i for i in program if i.opcode is Opcode.RUN]
    assert len(loads) < 4 < len(runs)
    # Tiles take turns in the slots of both buffers.
    assert len({run["read_base"] for run in runs}) > 1
    assert len({run["write_base"] for run in runs}) > 1


def test_estimate_overlaps():
    """Much reuse: few cycles more than the engine needs; one position: than the port needs."""
    engine = all_engines()["v16x4"]
    config = config_of(engine)
    layer = random_layer(9, engine, 64, conv(64, (3, 3), padding=(1, 1)), 0.1)
    compute = plan_cycles(Plan(engine, LayerImage(engine, layer), 4, 28, 28)).total
    assert lower_layer(config, layer, 4, 28, 28).estimated_cycles < compute / 0.95
    layer = random_layer(10, engine, 512, Geometry.linear(2048), 0.1)
    lowered = lower_layer(config, layer, 1, 1, 1)
    n_bytes = sum(len(segment.data) for segment in lowered.segments)
    assert lowered.estimated_cycles < n_bytes / 8 / 0.95


def test_padding_is_filled_once_where_it_stays():
    """As many fills for many tiles as for the tiles that differ."""
    engine = all_engines()["h16"]
    layer = random_layer(11, engine, 16, conv(16, (3, 3), padding=(1, 1)), 0.1)
    counts = []
    for n_samples in (256, 512):
        lowered = lower_layer(config_of(engine), layer, n_samples, 4, 4)
        program = disassemble(lowered.program, engine)
        counts.append(sum(i.opcode is Opcode.FILL for i in program))
        runs = sum(i.opcode is Opcode.RUN for i in program)
    assert counts[0] == counts[1] and runs > 8


def test_lines_that_lie_together_are_one_run():
    """Pixels of whole rows, as wide as the item, in one piece of memory."""
    engine = all_engines()["tiny"]
    layer = random_layer(12, engine, 4, conv(4, (1, 1)), 0.5)
    program = disassemble(lower_layer(config_of(engine), layer, 1, 5, 6).program, engine)
    moved = [i for i in program if i.opcode in (Opcode.LOAD_ACTIVATIONS, Opcode.STORE)]
    assert [(i["run_bytes"], i.loop("count")) for i in moved] == [(120, (1, 1))] * 2


def test_memory_lies_apart_and_aligned():
    engine = all_engines()["tiny"]
    layer = random_layer(13, engine, 6, conv(5, (3, 3)), 0.5)
    lowered = lower_layer(config_of(engine), layer, 2, 6, 6, base_address=0x80000000)
    assert lowered.program_address == 0x80000000
    assert lowered.image.startswith(lowered.program)
    ends = [(s.address, len(s.data)) for s in lowered.segments]
    ends += [(t.address, t.n_bytes) for t in (lowered.input_layout, lowered.output_layout)]
    for (first, n_bytes), (second, _) in itertools.pairwise(ends):
        assert first + n_bytes <= second and not first % 64
    assert ends[-1][0] + ends[-1][1] == lowered.base_address + lowered.n_bytes
    lines = lowered.memory_map.splitlines()
    names = ["program", "groups", "records", "input", "output"]
    assert [line.split()[0] for line in lines] == names
    assert lines[3].endswith(f"{2 * 6 * 6 * 5} bytes  (2, 6, 6, 5)")


def test_what_cannot_be_lowered():
    engine = ENGINES["direct4"]
    layer = random_layer(14, engine, 4, Geometry.linear(65 * 4), 0.1)
    with raises(
        f"layer {layer.name!r} does not fit the scratchpad: the window of one output pixel needs "
        "65 words per bank, bank_depth is 64: 1 too many"
    ):
        lower_layer(config_of(engine), layer, 1, 1, 1)
    layer = random_layer(15, engine, 4, Geometry.linear(8), 0.5)
    with raises("base_address must be a multiple of 64, not 0x20"):
        lower_layer(config_of(engine), layer, 1, 1, 1, base_address=0x20)
    with raises(
        f"layer {layer.name!r} needs memory up to 0x10203, beyond the bus's last address 0xffff"
    ):
        lower_layer(config_of(engine, address_width=16), layer, 1, 1, 1, base_address=0xFFC0)
    lowered = lower_layer(config_of(engine), layer, 2, 1, 1)
    with raises(
        f"layer {layer.name!r} was lowered for an input of shape (2, 1, 1, 8), not (3, 1, 1, 8)"
    ):
        lowered.input_bytes(np.zeros((3, 8), dtype=np.int64))
    with raises(f"layer {layer.name!r}: activations must be within 0..255 (8 bits), not 0..256"):
        lowered.memory(np.full((2, 8), 256) * [1, 0, 0, 0, 0, 0, 0, 0])


def test_sets_with_nothing_in_between_are_left_alone():
    """Sets 0 and 2 hold items, set 1 none: two fills and two loads, none for set 1."""
    engine = all_engines()["h16"]
    config = config_of(engine)
    layer = random_layer(16, engine, 4, conv(16, (3, 3), padding=(1, 1)), 0.3)
    plan = Plan(engine, LayerImage(engine, layer), 4, 2, 2)
    (tile,) = plan.stream_tiles()
    tile.items[1] = -1
    source = tensor_layout(config, (4, 2, 2, 16), 0)
    transfers = Transfers(config, plan, (source,), tensor_layout(config, (4, 2, 2, 4), 4096))
    touched = set()
    for transfer in transfers.loads(tile, 0):
        values = transfer.values
        for _, first in walk(1, [(values["count_0"], 1, values["target_stride_0"])]):
            touched |= {(values["target"] + first) // plan.item_input_words}
        for _, first in walk(1, [(values["count_1"], 1, values["target_stride_1"])]):
            touched |= {(values["target"] + first) // plan.item_input_words}
    assert touched == {0, 2, 3}


# --- loops -----------------------------------------------------------------------------------


def walk(run: int, loops) -> list[tuple[int, int]]:
    """Every (byte, word) that loops visit, naively."""
    places = [(0, 0)]
    for count, stride, words in loops:
        places = [(b + n * stride, w + n * words) for n in range(count) for b, w in places]
    return places


@pytest.mark.parametrize("seed", range(20))
def test_loops_visit_the_same_places_merged_and_split(seed):
    rng = np.random.default_rng(seed)
    inner = int(rng.integers(1, 4))
    loops = [(inner, 8, 2)]
    for _ in range(3):
        count, stride, words = loops[-1]
        follow = rng.random() < 0.5
        step = (count * stride, count * words) if follow else (int(rng.integers(90, 200)), 40)
        loops.append((int(rng.integers(1, 4)), *step))
    run_words = 2 if seed % 2 else None
    run, merged = merge_loops(8, run_words, loops, 1 << 24)
    visited = []
    for n_bytes, n_words, first, second in split_loops(merged):
        for b, w in walk(run, [first, second]):
            pieces = range(run // 8)
            visited += [(n_bytes + b + 8 * k, n_words + w + 2 * k) for k in pieces]
    assert sorted(visited) == sorted(walk(8, loops))


def test_long_loops_are_cut():
    parts = list(split_loops([(70000, 3, 1), (2, 5, 7)]))
    assert [(part[2][0], part[3][0]) for part in parts] == [(65535, 2), (4465, 2)]
    assert parts[1][:2] == (65535 * 3, 65535)
    assert merge_loops(1, None, [(65535, 1, 1), (2, 65535, 65535)], 1 << 24)[1] == [
        (65535, 1, 1),
        (2, 65535, 65535),
    ]


# --- tokens ----------------------------------------------------------------------------------


def test_builder_gives_no_token_twice():
    """Waits that an earlier wait covers take no token; the newest of several counts."""
    builder = ProgramBuilder()
    fill = {"n_words": 1, "columns": 1}
    loads = [builder.add(Opcode.FILL, fill, [], 10) for _ in range(3)]
    first = builder.add(Opcode.SYNC, {}, [loads[0], loads[1]], 100)
    builder.add(Opcode.SYNC, {}, [loads[0]], 100)
    third = builder.add(Opcode.SYNC, {}, [loads[2], first], 100)
    program = builder.instructions()
    assert [i.push_next for i in program] == [False, True, True, False, False, False]
    assert [i.pop_previous for i in program] == [False, False, False, True, False, True]
    assert builder.estimate() == 20 + 300
    assert third == 5
    engine = ENGINES["direct4"]
    ProgramModel(engine, np.zeros(64, np.uint8)).run(assemble(engine.hash32, program))


# --- the goal of the benchmark -------------------------------------------------------------------


def test_what_bounds_a_layer_is_busy():
    """Compute of a layer with reuse, the memory's reads of one without: by the cycle law."""
    cases = overlap_cases()
    assert {case.resource for case in cases} == {"compute", "memory read"}
    for case in cases:
        shares = shares_of(case.config, law_of(case).counters)
        assert shares[case.resource] >= GOAL, (case.layer.name, case.config.name, shares)


def test_the_benchmark_names_what_is_wrong():
    row = {
        "layer": "a",
        "engine": "b",
        "resource": "compute",
        "counters_equal": True,
        "shares": {"compute": 0.95, "memory read": 0.1},
    }
    assert shortcomings(row) == []
    assert shortcomings(row | {"counters_equal": False}) == [
        "a on b: the counters differ from the cycle law"
    ]
    assert shortcomings(row | {"resource": "memory read"}) == [
        "a on b: memory read must be busy 95%, not 10.00%"
    ]
