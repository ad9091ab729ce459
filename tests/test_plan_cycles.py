"""Tiling covers a layer exactly once; the cycle law equals a cycle-by-cycle walk."""

import dataclasses
import re

import numpy as np
import pytest

from gshw.config import EngineConfig, Gather
from gshw.cycles import Cycles, command_cycles, plan_cycles, tile_cycles
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.image import LayerImage
from gshw.pipeline import FETCH_LATENCY, REQUANTISE_LATENCY, Pipeline
from gshw.plan import Command, Plan, stored_items
from tests.strategies import ENGINES, all_engines, conv, random_layer

# --- cycle law -------------------------------------------------------------------------------


def walk_command(
    config: EngineConfig,
    bundle_cycles: list[int],
    bundle_drain: list[int],
    n_positions: int,
    ends_inside: bool,
) -> dict[str, int]:
    """Count cycles one by one: an issue unit, a drain unit, and fixed distances between them.

    Cycle 1 is the first after the command was accepted. A bundle's last group is issued no
    earlier than the previous bundle's drain has had all of its cycles.
    """
    pipeline = Pipeline(config)
    queue = []
    for _ in range(n_positions):
        queue += list(zip(bundle_cycles, bundle_drain, strict=True))
    if ends_inside:
        queue[-1] = (queue[-1][0], 0)
    cycle = FETCH_LATENCY
    issued = stalls = drains = 0
    last_event = 0
    drain_busy_until = 0
    for length, n_records in queue:
        remaining = length
        while remaining:
            cycle += 1
            if remaining == 1 and n_records and cycle + pipeline.accumulate < drain_busy_until:
                stalls += 1
                continue
            remaining -= 1
            issued += 1
            last_event = max(last_event, cycle + pipeline.accumulate)
        for _ in range(n_records):
            drains += 1
        if n_records:
            drain_busy_until = cycle + pipeline.accumulate + n_records
            last_event = max(last_event, drain_busy_until + pipeline.drain)
    return {"total": last_event, "issued": issued, "stalls": stalls, "drains": drains}


@pytest.mark.parametrize("name", all_engines())
def test_law_equals_the_walk(name):
    """Random bundles, drain-bound and issue-bound, one and several positions, cut bundles."""
    config = all_engines()[name]
    rng = np.random.default_rng(1)
    n_stalled = 0
    for trial in range(300):
        n_bundles = int(rng.integers(1, 7))
        longest = [2, 5, 40][trial % 3]
        bundle_cycles = rng.integers(1, longest + 1, n_bundles)
        drain = rng.integers(1, config.rows + 1, n_bundles)
        ends_inside = bool(trial % 4 == 3)
        n_positions = 1 if ends_inside else int(rng.integers(1, 6))
        n_groups = int(bundle_cycles.sum()) - int(rng.integers(0, 2))
        law = command_cycles(config, bundle_cycles, drain, n_groups, n_positions, ends_inside)
        walked = walk_command(
            config, bundle_cycles.tolist(), drain.tolist(), n_positions, ends_inside
        )
        assert {key: getattr(law, key) for key in walked} == walked
        assert law.groups == n_groups * n_positions
        assert law.replays == law.issued - law.groups
        assert law.fill == law.total - law.issued - law.stalls
        assert law.commands == 1
        n_stalled += law.stalls > 0
    assert bool(n_stalled) == (config.rows > 1)


def test_law_leaves_its_arguments_alone():
    drain = np.array([2, 2])
    command_cycles(ENGINES["hybrid4"], np.array([1, 1]), drain, 2, 1, True)
    assert drain.tolist() == [2, 2]


def test_a_command_by_hand():
    """Two bundles of 3 and 1 groups, 2 records each, on the hybrid engine of 4 lanes.

    Fetch 3; issue 3, stall 1, issue 1; then address 4, bank 2, Benes 3, multiply 2, adder tree of
    four products 2; drain 2; the second column 1; requantise, scatter.
    """
    law = command_cycles(ENGINES["hybrid4"], np.array([3, 1]), np.array([2, 2]), 4, 1)
    assert law.total == 3 + 3 + 1 + 1 + (4 + 2 + 3 + 2 + 2) + 2 + 1 + REQUANTISE_LATENCY + 1
    assert (law.issued, law.groups, law.stalls, law.drains) == (4, 4, 1, 4)


def test_cycles_add_and_scale():
    a = Cycles(total=10, issued=4, groups=3, stalls=1, drains=2, fill=5, conflicts=1, commands=1)
    assert a + Cycles() == a
    assert a + a == a * 2
    assert a.replays == 1
    assert dataclasses.astuple(a * 3) == (30, 12, 9, 3, 6, 15, 3, 3)


# --- weight tiles ----------------------------------------------------------------------------


def uneven_layer(seed: int, config: EngineConfig, n_rows: int, n_columns: int, largest: float):
    """Rows from empty to nearly dense, so that bundles differ."""
    rng = np.random.default_rng(seed)
    return random_layer(
        seed, config, n_rows, Geometry.linear(n_columns), rng.uniform(0, largest, n_rows)
    )


def plans(name: str):
    """Plans with one and with several positions, for buffers of several depths."""
    base = ENGINES[name]
    for seed, (groups, records) in enumerate([(32, 16), (7, 5), (5, 64), (64, 4), (2, 4)]):
        records = max(records, base.rows)
        config = dataclasses.replace(base, group_buffer_depth=groups, row_buffer_depth=records)
        n_columns = 6 * config.channels_per_row
        layer = uneven_layer(seed, config, 9 * config.rows - 1, n_columns, [0.9, 0.3][seed % 2])
        image = LayerImage(config, layer)
        for n_samples in (1, 3 * config.columns):
            yield Plan(config, image, n_samples, 1, 1)


@pytest.mark.parametrize("name", sorted(set(ENGINES) - {"direct2x2"}))
def test_weight_tiles_cover_every_group_and_record_once(name):
    """In order, within the buffers, records with the bundle's last group."""
    n_cut = n_whole = 0
    for plan in plans(name):
        image, config = plan.image, plan.config
        tiles = plan.weight_tiles
        groups = [g for t in tiles for g in range(t.group_start, t.group_stop)]
        records = [r for t in tiles for r in range(t.record_start, t.record_stop)]
        assert groups == list(range(image.n_groups))
        assert records == list(range(image.n_records))
        ends = set((image.group_ptr[1:] - 1).tolist())
        starts = set(image.group_ptr[:-1].tolist())
        for tile in tiles:
            inside = range(tile.group_start, tile.group_stop)
            assert 0 < len(inside) <= config.group_buffer_depth
            assert tile.record_stop - tile.record_start <= config.row_buffer_depth
            touched = [
                b
                for b in range(image.layer.n_bundles)
                if image.group_ptr[b] < tile.group_stop and image.group_ptr[b + 1] > inside.start
            ]
            assert touched == list(range(tile.bundle_start, tile.bundle_stop))
            assert tile.starts_inside == (inside.start not in starts)
            assert tile.ends_inside == (inside[-1] not in ends)
            finished = [b for b in touched if image.group_ptr[b + 1] <= tile.group_stop]
            wanted = [
                r for b in finished for r in range(image.record_ptr[b], image.record_ptr[b + 1])
            ]
            assert wanted == list(range(tile.record_start, tile.record_stop))
            n_cut += tile.ends_inside
            n_whole += not tile.ends_inside
            oversized = any(
                image.group_ptr[b + 1] - image.group_ptr[b] > config.group_buffer_depth
                for b in touched
            )
            assert not tile.ends_inside or oversized or plan.n_positions == 1
        flat = [tile for run in plan.tile_runs for tile in run]
        assert flat == tiles
        for run in plan.tile_runs:
            assert not run[0].starts_inside and not run[-1].ends_inside
            assert all(tile.ends_inside for tile in run[:-1])
    assert n_cut and n_whole


@pytest.mark.parametrize("name", sorted(set(ENGINES) - {"direct2x2"}))
def test_layer_law_equals_the_walks_of_its_commands(name):
    """Bundle by bundle from the group words, through every command of every stream tile."""
    for plan in plans(name):
        image, config = plan.image, plan.config
        expected = dict.fromkeys(("total", "issued", "stalls", "drains"), 0)
        n_commands = 0
        for _ in plan.stream_tiles():
            for run in plan.tile_runs:
                for tile, command in plan.commands(run):
                    bundle_cycles = [
                        sum(
                            int(image.group_cycles[g])
                            for g in range(image.group_ptr[b], image.group_ptr[b + 1])
                            if tile.group_start <= g < tile.group_stop
                        )
                        for b in range(tile.bundle_start, tile.bundle_stop)
                    ]
                    drain = [
                        int(image.record_ptr[b + 1] - image.record_ptr[b])
                        for b in range(tile.bundle_start, tile.bundle_stop)
                    ]
                    walked = walk_command(
                        config, bundle_cycles, drain, command.n_positions, tile.ends_inside
                    )
                    law = tile_cycles(config, image, tile, command.n_positions)
                    assert law.total == walked["total"]
                    expected = {key: expected[key] + walked[key] for key in expected}
                    n_commands += 1
        law = plan_cycles(plan)
        assert {key: getattr(law, key) for key in expected} == expected
        assert law.commands == n_commands
        assert law.replays == 0 or config.gather is Gather.ARBITRATED


def test_arbitrated_groups_take_their_busiest_bank():
    """Issue cycles counted lane by lane; idle lanes count nowhere."""
    config = ENGINES["arbitrated4"]
    layer = random_layer(11, config, 2, Geometry.linear(64), 0.9)
    image = LayerImage(config, layer)
    values = image.group_values(1)
    for group in range(image.n_groups):
        wanted = [0] * config.lanes
        for lane in range(config.lanes):
            if values["active"][group, lane]:
                wanted[values["bank"][group, lane]] += 1
        assert image.group_cycles[group] == max(1, *wanted)
    assert image.group_cycles.max() > 1


# --- stream tiles ----------------------------------------------------------------------------

STREAMS = {
    "linear": (Geometry.linear(20), 11, (1, 1)),
    "conv_fits": (conv(4, (3, 3), padding=(1, 1)), 2, (3, 4)),
    "conv_cut": (conv(4, (3, 3), padding=(1, 1)), 3, (14, 9)),
    "conv_strided": (conv(8, (2, 3), stride=(2, 3), padding=(0, 1)), 1, (11, 17)),
    "pointwise": (conv(12, (1, 1)), 2, (7, 5)),
    "unfolded": (conv(1, (3, 3), unfold=True), 1, (12, 12)),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", ["direct4", "hybrid4", "vertical4"])
def test_every_output_pixel_is_computed_once(name, stream):
    """Over all tiles, sets and columns; each result has a word, and all accesses are in range."""
    config = ENGINES[name]
    geometry, n_samples, (height, width) = STREAMS[stream]
    layer = random_layer(12, config, 6, geometry, 0.5)
    plan = Plan(config, LayerImage(config, layer), n_samples, height, width)
    out_height, out_width = geometry.output_size(height, width)
    done = np.zeros((n_samples, out_height, out_width), dtype=int)
    tiles = plan.stream_tiles()
    assert len(tiles) == plan.n_stream_tiles
    for tile in tiles:
        assert tile.items.shape == (plan.n_sets, config.columns, 3)
        for sample, y, x in tile.items.reshape(-1, 3):
            if sample >= 0:
                done[sample, y : y + plan.item_shape[0], x : x + plan.item_shape[1]] += 1
    assert (done == 1).all()

    [(_, command), *_] = plan.commands(plan.tile_runs[0])
    if len(plan.tile_runs[0]) == 1:
        offsets = geometry.word_offsets(config, plan.pitch)
        reads, writes = set(), []
        for k in range(command.counts[2]):
            for j in range(command.counts[1]):
                for i in range(command.counts[0]):
                    at = [
                        sum(n * s for n, s in zip((i, j, k), strides, strict=True))
                        for strides in (command.read_strides, command.write_strides)
                    ]
                    reads |= {command.read_base + at[0] + int(offset) for offset in offsets}
                    first = command.write_base + at[1]
                    writes += range(first, first + plan.output_words)
        assert min(writes) == 0 and max(writes) < config.output_depth
        assert len(writes) == len(set(writes)) == plan.n_sets * plan.item_output_words
        assert max(reads) < plan.n_sets * plan.item_input_words <= config.bank_depth


@pytest.mark.parametrize("stream", ["conv_cut", "conv_strided", "pointwise"])
def test_stored_items_hold_each_window(stream):
    """The word that a position reads at a column's offset is the input under that column."""
    config = ENGINES["hybrid4"]
    geometry, n_samples, (height, width) = STREAMS[stream]
    rng = np.random.default_rng(13)
    x = rng.integers(1, 256, (n_samples, height, width, geometry.in_channels))
    (pad_y, pad_x), (step_y, step_x) = geometry.padding, geometry.stride
    padded = np.zeros((n_samples, height + 2 * pad_y, width + 2 * pad_x, x.shape[3]), dtype=int)
    padded[:, pad_y : pad_y + height, pad_x : pad_x + width] = x
    plan = Plan(
        config,
        LayerImage(config, random_layer(14, config, 4, geometry, 0.5)),
        n_samples,
        height,
        width,
    )
    offsets = geometry.word_offsets(config, plan.pitch)
    out_height, out_width = plan.output_shape
    [(_, command)] = plan.commands(plan.tile_runs[0])
    words = geometry.words_per_pixel(config)
    n_checked = 0
    for tile in plan.stream_tiles():
        stored = stored_items(config, geometry, plan, padded, tile)
        for k, column in np.ndindex(plan.n_sets, config.columns):
            sample, first_y, first_x = tile.items[k, column]
            if sample < 0:
                continue
            for j, i in np.ndindex(*plan.item_shape):
                y, column_x = first_y + j, first_x + i
                if y >= out_height or column_x >= out_width:
                    continue
                base = sum(n * s for n, s in zip((i, j, k), command.read_strides, strict=True))
                for ky, kx in np.ndindex(*geometry.kernel):
                    for channel in range(geometry.in_channels):
                        block = channel // config.block
                        tap = (ky * geometry.kernel[1] + kx) * words + block // config.lanes
                        got = stored[
                            base + offsets[tap],
                            block % config.lanes,
                            channel % config.block,
                            column,
                        ]
                        wanted = padded[sample, y * step_y + ky, column_x * step_x + kx, channel]
                        assert got == wanted
                        n_checked += 1
    assert n_checked == n_samples * out_height * out_width * geometry.n_columns


def test_steps_undo_the_inner_travel():
    command = Command(
        group_base=0,
        n_groups=1,
        record_base=0,
        n_records=1,
        read_base=0,
        write_base=0,
        counts=(3, 2, 4),
        read_strides=(2, 10, 30),
        write_strides=(1, 3, 6),
    )
    assert command.n_positions == 24
    assert command.steps(command.read_strides, 64) == (2, 6, 16)
    assert command.steps(command.write_strides, 32) == (1, 1, 1)
    assert command.steps((20, 1, 0), 64) == (20, (1 - 40) % 64, (0 - 41) % 64)
    assert command.steps((20, 1, 0), 32) == (20, (1 - 40) % 32, (0 - 41) % 32)


# --- what does not fit -----------------------------------------------------------------------


def test_window_beyond_the_scratchpad():
    """65 words of window, 64 words per bank."""
    config = ENGINES["direct4"]
    layer = random_layer(15, config, 4, Geometry.linear(65 * 4), 0.1)
    message = (
        f"layer {layer.name!r} does not fit the scratchpad: the window of one output pixel needs "
        "65 words per bank, bank_depth is 64: 1 too many"
    )
    with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
        Plan(config, LayerImage(config, layer), 1, 1, 1)
    fits = random_layer(15, config, 4, Geometry.linear(64 * 4), 0.1)
    assert Plan(config, LayerImage(config, fits), 1, 1, 1).n_sets == 1


def test_result_beyond_the_output_buffer():
    """18 words of result, 16 words per bank."""
    config = dataclasses.replace(ENGINES["direct4"], output_depth=16)
    layer = random_layer(15, config, 71, Geometry.linear(8), 0.1)
    message = (
        f"layer {layer.name!r} does not fit the output buffer: the result of one output pixel "
        "needs 18 words per bank, output_depth is 16: 2 too many"
    )
    with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
        Plan(config, LayerImage(config, layer), 1, 1, 1)
    fits = random_layer(15, config, 64, Geometry.linear(8), 0.1)
    assert Plan(config, LayerImage(config, fits), 1, 1, 1).n_sets == 1


@pytest.mark.parametrize(
    ("depths", "n_sets"), [((64, 64), 16), ((16, 64), 4), ((64, 16), 8), ((16, 16), 4)]
)
def test_the_fuller_memory_bounds_the_items(depths, n_sets):
    """Four words of input and two of result per item; as many items as both memories hold."""
    bank_depth, output_depth = depths
    config = dataclasses.replace(
        ENGINES["direct4"], bank_depth=bank_depth, output_depth=output_depth
    )
    layer = random_layer(18, config, 7, Geometry.linear(16), 0.5)
    assert Plan(config, LayerImage(config, layer), n_sets, 1, 1).n_sets == n_sets
    assert Plan(config, LayerImage(config, layer), 2 * n_sets, 1, 1).n_stream_tiles == 2


def test_bundle_beyond_the_row_buffer():
    """A bundle of four rows drains in four records."""
    config = dataclasses.replace(ENGINES["vertical4"], row_buffer_depth=3)
    layer = random_layer(16, config, 8, Geometry.linear(16), 0.5)
    message = (
        f"layer {layer.name!r} does not fit the row buffer: a bundle needs 4 records, "
        "row_buffer_depth is 3: 1 too many"
    )
    with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
        Plan(config, LayerImage(config, layer), 1, 1, 1)


def test_input_smaller_than_the_window():
    config = ENGINES["direct4"]
    layer = random_layer(17, config, 2, conv(4, (3, 3), padding=(1, 0)), 0.5)
    message = "input of 1 x 2 pixels is smaller than the window (3 along axis 1, padding 0)"
    with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
        Plan(config, LayerImage(config, layer), 1, 1, 2)
