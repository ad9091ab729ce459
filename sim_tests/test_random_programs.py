"""Random programs on the compiled tops: the whole memory equals the software model's."""

from dataclasses import replace

import numpy as np
import pytest

from gshw.program_model import ProgramModel
from sim_tests.program_core import (
    ProgramCore,
    StreamCore,
    random_memory_model,
)
from sim_tests.programs import random_program


def program_of(config, seed: int, **options):
    return random_program(np.random.default_rng(seed), config, **options)


def test_random_programs_from_memory_to_memory(program_config, n_programs):
    """One after the other, whatever the memory does; counters say what the bus saw."""
    n_synced = n_unaligned = 0
    with ProgramCore(program_config) as core:
        n_beat = program_config.bus.data_bytes
        for seed in range(n_programs):
            program = program_of(program_config, seed)
            model = random_memory_model(np.random.default_rng(1000 + seed))
            before = core.traffic
            run = core.run_well(program, model, seed=seed, what=f"seed {seed}, {model}")
            seen = core.traffic
            for name, beats in (
                ("bytes_read", seen.read_beats - before.read_beats),
                ("bytes_written", seen.write_beats - before.write_beats),
            ):
                assert run.counters[name] == beats * n_beat, f"seed {seed}: {name}"
            n_synced += any(i.pop_next and i.pop_previous for i in program.instructions)
            n_unaligned += program.address % n_beat != 0
        assert core.traffic.stray_bytes == 0
    assert n_synced and n_unaligned, "the programs became too simple"


def test_random_programs_on_streams(stream_config, n_programs):
    """As packets in and out, with and without pauses."""
    with StreamCore(stream_config) as core:
        for seed in range(n_programs):
            program = program_of(stream_config, seed, feedback=False)
            core.run_well(program, (0, 30, 128, 220)[seed % 4], seed=seed)


def test_nothing_but_time_depends_on_the_memory(program_config):
    """The same program, quick and slow memory: same result, same work, other cycles."""
    program = program_of(program_config, 7)
    with ProgramCore(program_config) as core:
        runs = [
            core.run_well(program, random_memory_model(np.random.default_rng(seed)), seed=seed)
            for seed in range(5)
        ]
    assert len({run.counters["cycles"] for run in runs}) == len(runs)
    for name in ("bytes_read", "bytes_written", "groups", "drains", "stalls", "replays"):
        assert len({run.counters[name] for run in runs}) == 1, name


@pytest.mark.parametrize("n_runs", [1, 4])
def test_auto_restart_runs_the_program_again_and_again(program_config, n_runs):
    """Each run works on what the runs before made of the memory."""
    for seed in (3, 4):
        program = program_of(program_config, seed, n_steps=10)
        expected = program.before.copy()
        model = ProgramModel(program_config.engine, expected, base_address=program.base)
        for _ in range(n_runs + 1):
            model.run_at(program.address)
        with ProgramCore(program_config) as core:
            core.prepare(program)
            core.control.write("control", auto_restart=1)
            core.control.write_address("program_address", program.address)
            core.control.write("interrupt_enable", done=1, error=1)
            core.control.write("interrupt_global", enable=1)
            core.control.write("control", auto_restart=1, start=1)
            for _ in range(n_runs):
                core.step(100_000)
                assert core.interrupted
                core.control.write("interrupt_status", done=1)
            core.control.write("control", auto_restart=0)
            core.step(100_000)
            core.control.result()
            assert not core.control.read("status", "busy")
        assert not np.flatnonzero(core.memory.data != expected).size


def test_a_wrong_expectation_is_noticed(stream_config):
    """The comparison itself: one byte, in a stored region or not."""
    program = program_of(stream_config, 1)
    for place in (0, int(np.flatnonzero(program.written)[0])):
        after = program.after.copy()
        after[place] ^= 1
        with pytest.raises(AssertionError, match=f"the first at {program.base + place:#x}"):
            replace(program, after=after).check(program.after)
