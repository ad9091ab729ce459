"""The netlist that yosys makes for ECP5 behaves as the Verilog it was made from."""

import pytest

from gshw.config import load_config
from rtl_gen.emit import cached_core_verilog
from rtl_gen.top import TOP_NAME
from sim_tests.cocotb_flow import run_bench
from sim_tests.gate_level import gate_level_verilog

SMOKE = {"corner_layers", "extreme_values", "stalled_streams", "reset_in_the_middle"}
"""The engine's scenarios that are quick and reach every component."""


@pytest.mark.cocotb
def test_ecp5_netlist_under_the_engines_bench(tmp_path):
    """Some of the engine's scenarios, on LUTs, carry chains, block RAMs and multipliers."""
    config = load_config("tiny")
    path = tmp_path / "tiny.toml"
    path.write_text(config.to_toml())
    text, synthesis = gate_level_verilog(cached_core_verilog(config.engine), TOP_NAME)
    assert {"LUT4", "CCU2C", "DP16KD", "MULT18X18D", "TRELLIS_FF"} <= synthesis.cells.keys()
    names = run_bench(
        tmp_path,
        text,
        TOP_NAME,
        "sim_tests.bench_engine",
        {
            "GSHW_BENCH_CONFIG": str(path),
            "GSHW_BENCH_SEED": "1",
            "COCOTB_TEST_FILTER": f"({'|'.join(sorted(SMOKE))})$",
        },
    )
    assert set(names) == SMOKE
