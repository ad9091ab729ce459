"""The parts of ``scripts/bench_synth`` that need no place and route."""

import pytest
from amaranth.sim import Simulator

from gshw.config import load_config
from gshw.synth.command import config_design
from gshw.top import Top
from rtl_gen.emit import cached_core_verilog
from scripts.bench_synth import FabricLimit, main, relative_change, unit_names, without_detail


def test_the_fabric_limit_is_a_memory_and_a_multiplier():
    """Four cycles after its address a word's halves are multiplied; extreme values included."""
    dut = FabricLimit()
    words = [(-256, -256), (255, -256), (3, -5), (0, 17)]

    async def bench(ctx):
        ctx.set(dut.write_enable, 1)
        for address, (low, high) in enumerate(words):
            ctx.set(dut.write_address, address)
            ctx.set(dut.write_data, (low & 0x1FF) | (high & 0x1FF) << 9)
            await ctx.tick()
        ctx.set(dut.write_enable, 0)
        await ctx.tick()
        products = []
        for cycle in range(len(words) + 4):
            if cycle < len(words):
                ctx.set(dut.address, cycle)
            if cycle >= 4:
                products.append(ctx.get(dut.product))
            await ctx.tick()
        assert products == [low * high for low, high in words]

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()


def test_change_against_the_stored_table():
    assert relative_change(103.1, 100.0) == "+3.1 %"
    assert relative_change(90, 100) == "-10.0 %"
    assert relative_change(5, None) == relative_change(5, 0) == "-"


def test_what_is_stored():
    record = {
        "cores": {"tiny": {"area": {"lut": 1}, "cells": {"LUT4": 1}, "runs": []}},
        "seeds": [1],
    }
    assert without_detail(record) == {"cores": {"tiny": {"area": {"lut": 1}}}, "seeds": [1]}


def test_every_module_of_an_engine_is_a_unit():
    config = load_config("tiny")
    verilog = cached_core_verilog(config.engine)
    names = unit_names(config_design(config, Top.CORE, verilog))
    n_modules = verilog.count("\nmodule ") + verilog.startswith("module ")
    assert len(names) == len(set(names.values())) == n_modules - 2
    assert names["requantiser"] == "gshw_core_requantiser"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "virtex"], "bench_synth: device must be one of "),
        (["--preset", "none", "--only", "units"], "bench_synth: none: no such config file"),
        (["--jobs", "0"], "bench_synth: n_jobs must be positive, not 0"),
    ],
)
def test_mistakes(capsys, arguments, message):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)
