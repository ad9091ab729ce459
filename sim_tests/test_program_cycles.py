"""The cycle law of programs on the compiled ``gshw_axi``: every counter, exactly."""

import numpy as np

from gshw.drivers.layers import run_program
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator
from gshw.lower import lower_layer
from gshw.program_cycles import ProgramCycles, layer_cycles, program_cycles
from gshw.top import Top
from gshw.verilate import build_library
from rtl_gen.emit import cached_top_verilog
from sim_tests.layers import corner_cases, random_case
from sim_tests.program_core import ProgramCore
from sim_tests.programs import RandomProgram, random_program

MODELS = (
    MemoryModel(),
    MemoryModel(read_latency=1, write_latency=1),
    MemoryModel(read_latency=5, write_latency=90, interval=3),
    MemoryModel(read_latency=100, write_latency=7, interval=2),
)
N_LAYERS = 8
CYCLE_GOAL = 4000


def law_of(program: RandomProgram, model: MemoryModel) -> ProgramCycles:
    """The prediction, from the memory before the program."""
    before, base = program.before, program.base
    part = program.program_bytes
    return program_cycles(
        program.config,
        before[part].tobytes(),
        lambda address, n_bytes: before[address - base : address - base + n_bytes].tobytes(),
        model,
        program_address=program.address,
    )


def test_random_programs(program_config, n_programs):
    """Any mix of instructions and tokens, on any alignment, at memories of any speed."""
    rng = np.random.default_rng(20211222)
    with ProgramCore(program_config) as core:
        for seed in range(n_programs):
            program = random_program(np.random.default_rng(seed), program_config)
            model = MemoryModel(
                read_latency=int(rng.integers(1, 70)),
                write_latency=int(rng.integers(1, 70)),
                interval=int(rng.choice([1, 1, 2, 7])),
            )
            run = core.run_well(program, model)
            assert law_of(program, model).counters == run.counters, f"seed {seed}, {model}"


def test_random_layers(law_config):
    """Lowered layers: long streams of beats, double buffering, replays."""
    rng = np.random.default_rng(20211222)
    engine = law_config.engine
    cases = [random_case(rng, engine, cycle_goal=CYCLE_GOAL) for _ in range(N_LAYERS)]
    cases += list(corner_cases(rng, engine))
    n_waits = dict.fromkeys(("compute_waits_load", "store_waits_compute"), 0)
    library = build_library(cached_top_verilog(law_config, Top.AXI), top=Top.AXI)
    with SimulatedAccelerator(law_config, library, cycle_limit=1_000_000) as core:
        for number, case in enumerate(cases):
            program = lower_layer(law_config, case.layer, *case.activations.shape[:3])
            for model in MODELS if number < 2 else MODELS[number % 4 :][:1]:
                core.set_model(model)
                run = run_program(core, program, case.activations)
                law = layer_cycles(program, model)
                assert law.counters == run.counters, f"{case.label}, {model}"
                for name in n_waits:
                    n_waits[name] += law.counters[name]
    assert all(n_waits.values()), "the layers became too simple"
