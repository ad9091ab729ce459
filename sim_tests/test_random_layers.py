"""Random layers on the compiled engine: outputs and every counter, exactly."""

import numpy as np

from gshw import golden, runtime
from gshw.config import preset_names
from gshw.device import CompiledEngine
from gshw.image import LayerImage
from gshw.plan import Plan
from gshw.verilate import build_library
from rtl_gen import verilog
from rtl_gen.top import TOP_NAME, Core
from sim_tests.configs import ODD_CONFIGS
from sim_tests.layers import corner_cases, expected_counters, extreme_cases, random_case

N_RANDOM_LAYERS = 14
CYCLE_GOAL = 20_000


def test_at_least_200_random_pairs_over_at_least_ten_configs():
    n_configs = len(preset_names()) + len(ODD_CONFIGS)
    assert n_configs >= 10
    assert n_configs * N_RANDOM_LAYERS >= 200


def test_random_layers_match_the_golden_model_and_the_cycle_law(layer_config):
    config = layer_config.engine
    rng = np.random.default_rng(20211222)
    cases = [random_case(rng, config, cycle_goal=CYCLE_GOAL) for _ in range(N_RANDOM_LAYERS)]
    cases += corner_cases(rng, config)
    cases += extreme_cases(config, n_columns_goal=8 * config.channels_per_row)
    library = build_library(verilog.convert(Core(config), TOP_NAME))
    n_equal = 0
    with CompiledEngine(config, library, cycle_limit=1_000_000) as device:
        for case in cases:
            layer, x = case.layer, case.activations
            run = runtime.run_layer(config, layer, device, x)
            np.testing.assert_array_equal(
                run.output, golden.run_layer(config, layer, x), err_msg=case.label
            )
            assert run.counters == expected_counters(config, layer, x.shape), case.label
            n_equal += 1
    assert n_equal == len(cases) >= N_RANDOM_LAYERS


def test_layers_of_the_small_buffers_are_cut_into_tiles_and_bundles_into_parts():
    config = next(config for config in ODD_CONFIGS if config.name == "small_buffers").engine
    rng = np.random.default_rng(20211222)
    tiles = []
    for _ in range(N_RANDOM_LAYERS):
        case = random_case(rng, config, cycle_goal=CYCLE_GOAL)
        plan = Plan(config, LayerImage(config, case.layer), *case.activations.shape[:3])
        tiles.append((len(plan.weight_tiles), plan.n_stream_tiles, len(plan.tile_runs)))
    assert any(n_weight_tiles > 1 for n_weight_tiles, _, _ in tiles)
    assert any(n_stream_tiles > 1 for _, n_stream_tiles, _ in tiles)
    assert any(n_runs < n_weight_tiles for n_weight_tiles, _, n_runs in tiles)
