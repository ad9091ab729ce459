"""``gshw_axi`` and ``gshw_stream`` under cocotb, between the bus models of cocotbext-axi."""

from pathlib import Path

import pytest

from gshw.config import Config
from gshw.top import Top
from rtl_gen.emit import cached_top_verilog
from sim_tests.axi_wrapper import wrapped
from sim_tests.cocotb_flow import run_bench

AXI_SCENARIOS = {
    "every_register_reads_and_writes",
    "registers_that_do_not_exist_answer_with_an_error",
    "reads_and_writes_at_once",
    "random_programs_with_pauses_on_every_channel",
    "auto_restart_and_back_to_back",
    "no_interrupt_is_lost",
    "interrupt_enables_gate_the_output_at_any_time",
    "bus_errors_on_any_beat",
    "outside_the_window",
    "resets_at_any_time",
    "damaged_programs_are_stopped",
}
STREAM_SCENARIOS = {
    "identity_and_settings",
    "random_programs_with_pauses_on_every_channel",
    "programs_wait_in_the_stream",
    "packets_that_end_early",
    "packets_that_end_late",
    "damaged_packets",
    "resets_at_any_time",
}


def scenarios_of(config: Config, top: Top, bench: str, folder: Path) -> set[str]:
    """Names of the scenarios that ran, all of them well."""
    path = folder / f"{config.name}.toml"
    path.write_text(config.to_toml())
    verilog, module = wrapped(cached_top_verilog(config, top), top.module_name)
    environment = {"GSHW_BENCH_CONFIG": str(path), "GSHW_BENCH_SEED": "1"}
    # The models report every transfer.
    environment["COCOTB_LOG_LEVEL"] = "WARNING"
    names = run_bench(folder, verilog, module, bench, environment)
    return {name.partition("/")[0] for name in names}


@pytest.mark.cocotb
def test_axi_top_under_cocotb(axi_top_config, tmp_path):
    names = scenarios_of(axi_top_config, Top.AXI, "sim_tests.bench_axi", tmp_path)
    assert names == AXI_SCENARIOS


@pytest.mark.cocotb
def test_stream_top_under_cocotb(stream_top_config, tmp_path):
    names = scenarios_of(stream_top_config, Top.STREAM, "sim_tests.bench_stream", tmp_path)
    assert names == STREAM_SCENARIOS
