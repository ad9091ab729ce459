"""Single components' emitted Verilog under cocotb."""

import pytest

from sim_tests.cocotb_flow import run_bench
from sim_tests.components import WRAPPER_NAME, wrapper_verilog

BENCHES = {
    "requantiser_is_the_golden_requantise",
    "multipliers_are_exact",
    "adder_trees_sum_and_wrap",
    "accumulators_keep_finished_sums_while_the_next_add_up",
    "benes_network_permutes",
    "crossbar_routes_any_bank_to_any_lane",
    "scratchpad_reads_what_was_written",
    "loop_buffer_repeats_its_window",
    "row_buffer_repeats_its_records",
    "group_buffer_reads_route_and_weights_late",
    "position_loops_walk_a_box",
    "gather_serves_every_lane_once",
    "drain_control_takes_a_record_per_cycle",
    "scatter_writer_finds_every_rows_word",
    "output_buffer_answers_in_order_while_written",
}


@pytest.mark.cocotb
def test_components_under_cocotb(component_config, tmp_path):
    path = tmp_path / f"{component_config.name}.toml"
    path.write_text(component_config.to_toml())
    names = run_bench(
        tmp_path,
        wrapper_verilog(component_config.engine),
        WRAPPER_NAME,
        "sim_tests.bench_components",
        {"GSHW_BENCH_CONFIG": str(path), "GSHW_BENCH_SEED": "1"},
    )
    assert set(names) == BENCHES
