"""Whole networks on the compiled ``gshw_axi``: every tensor and every counter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gshw.config import Config
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator
from gshw.network.compile import compile_network
from gshw.network.execute import execute
from gshw.network.run import network_cycles, run_network
from gshw.top import Top
from gshw.verilate import build_library
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.zoo.gnmt import Gnmt
from rtl_gen.emit import cached_top_verilog
from sim_tests.configs import find_config
from tests.network_cases import residual_network

POOLING = ("tiny", "three_columns", "arbitrated4")
MODELS = (MemoryModel(), MemoryModel(read_latency=3, write_latency=90, interval=2))


def test_a_residual_network_in_one_program(law_config):
    compare(law_config)


@pytest.mark.parametrize("name", POOLING)
def test_a_network_with_maxima(name):
    config = find_config(name)
    compare(replace(config, engine=replace(config.engine, max_pooling=True)))


def test_a_translation():
    """Many programs, and the host between them."""
    torch.manual_seed(0)
    config = find_config("block16")
    model = Gnmt(width=24, n_layers=3, n_tokens=40, n_steps=3).eval()
    tokens = torch.randint(40, (1, 4))
    network = quantise_network(config.engine, import_model(model, tokens))
    compiled = compile_network(config, network)
    library = build_library(cached_top_verilog(config, Top.AXI), top=Top.AXI)
    codes = {"input": tokens.numpy()[:, None, :, None]}
    with SimulatedAccelerator(config, library, n_bytes=compiled.n_bytes) as core:
        run = run_network(core, compiled, codes)
    for name, values in execute(config.engine, network, codes).items():
        assert np.array_equal(run.codes[name], values), name
    assert network_cycles(compiled).counters == run.counters


def compare(config: Config) -> None:
    """All tensors and counters of a network, for few and many samples."""
    engine = config.engine
    network = residual_network(engine)
    highest = engine.activation_range(False)[1]
    library = build_library(cached_top_verilog(config, Top.AXI), top=Top.AXI)
    for n_samples, model in zip((1, engine.columns + 1), MODELS, strict=True):
        x = np.random.default_rng(n_samples).integers(0, highest + 1, (n_samples, 7, 6, 3))
        compiled = compile_network(config, network, n_samples)
        with SimulatedAccelerator(config, library, n_bytes=compiled.n_bytes) as core:
            core.set_model(model)
            run = run_network(core, compiled, {"image": x})
        wanted = execute(engine, network, {"image": x})
        for name, codes in wanted.items():
            assert np.array_equal(run.codes[name], codes), name
        assert network_cycles(compiled, model).counters == run.counters
