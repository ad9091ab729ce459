"""The whole engine's emitted Verilog under cocotb."""

import pytest

from rtl_gen import verilog
from rtl_gen.top import TOP_NAME, Core
from sim_tests.cocotb_flow import run_bench

SCENARIOS = {
    "random_layers",
    "corner_layers",
    "extreme_values",
    "stalled_streams",
    "response_holds_until_taken",
    "reads_while_running",
    "loads_while_running",
    "reset_in_the_middle",
    "reset_while_loading_and_reading",
    "refused_commands",
    "addresses_beyond_the_banks",
    "bases_move_the_run",
}


@pytest.mark.cocotb
def test_engine_under_cocotb(engine_config, tmp_path):
    path = tmp_path / f"{engine_config.name}.toml"
    path.write_text(engine_config.to_toml())
    names = run_bench(
        tmp_path,
        verilog.convert(Core(engine_config.engine), TOP_NAME),
        TOP_NAME,
        "sim_tests.bench_engine",
        {"GSHW_BENCH_CONFIG": str(path), "GSHW_BENCH_SEED": "1"},
    )
    assert set(names) == SCENARIOS
