"""Whole networks on the compiled ``gshw_axi``: every tensor and every counter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gshw.config import Config
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator
from gshw.network.compile import compile_network
from gshw.network.execute import execute
from gshw.network.run import network_cycles, run_network
from gshw.top import Top
from gshw.verilate import build_library
from pruning.comparison.whole import measure_network
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.zoo.bert import Bert
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


class SmallImages:
    """A task with next to nothing to compute."""

    def __init__(self) -> None:
        self.images = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))

    def network_input(self, *, quick: bool = False) -> torch.Tensor:
        return self.images

    def workload_input(self) -> torch.Tensor:
        return self.images[:2]

    def evaluate(self, model: nn.Module, *, quick: bool = False) -> float:
        with torch.no_grad():
            return float(model(self.images[: 3 if quick else 4]).double().mean())


def test_a_task_as_a_whole_network():
    """Float, integers and RTL give one metric; of a part of the data the run's is exact."""
    torch.manual_seed(0)
    config, task = find_config("tiny"), SmallImages()
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).eval()
    library = build_library(cached_top_verilog(config, Top.AXI), top=Top.AXI)
    found = measure_network(config, task, model, {}, library)
    assert found["same"] and found["rtl"] == found["part"]
    assert found["part_float"] == task.evaluate(model, quick=True) != task.evaluate(model)
    assert found["part"] == pytest.approx(found["part_float"], abs=0.02)
    assert found["int8"] == pytest.approx(task.evaluate(model), abs=0.02)
    assert found["cycles"] > 2 * (16 * 5 * 18 + 3 * 80) / config.engine.macs_per_cycle


class Recurrent(nn.Module):
    """A GRU both ways over embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 6)
        self.gru = nn.GRU(6, 9, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(18, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc(self.gru(self.embed(tokens))[0])


SENTENCES = {
    "translation": lambda: Gnmt(width=24, n_layers=3, n_tokens=40, n_steps=3),
    "transformer": lambda: Bert(width=32, n_heads=4, n_inner=40, n_layers=2, n_tokens=40),
    "GRU": Recurrent,
}


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("preset", ["block16", "three_columns"])
def test_networks_with_host_nodes(name, preset):
    """Many programs, and the host between them; functions by table, where the engine has them."""
    torch.manual_seed(0)
    config = find_config(preset)
    model = SENTENCES[name]().eval()
    tokens = torch.randint(40, (1, 4))
    network = quantise_network(config.engine, import_model(model, tokens))
    in_engine = any(layer.requantisation.table is not None for layer in network.layers.values())
    assert in_engine == (name == "transformer" and config.engine.activation_tables > 0)
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
    # Once with memory that is used again, where only some tensors are there at the end.
    cases = zip((1, engine.columns + 1, 2), (*MODELS, MODELS[0]), (False, False, True), strict=True)
    for n_samples, model, reuse_memory in cases:
        x = np.random.default_rng(n_samples).integers(0, highest + 1, (n_samples, 7, 6, 3))
        compiled = compile_network(config, network, n_samples, reuse_memory=reuse_memory)
        with SimulatedAccelerator(config, library, n_bytes=compiled.n_bytes) as core:
            core.set_model(model)
            run = run_network(core, compiled, {"image": x})
        wanted = execute(engine, network, {"image": x})
        assert set(run.codes) == (set(compiled.remaining) if reuse_memory else set(wanted))
        assert set(network.outputs) <= set(run.codes)
        for name, codes in run.codes.items():
            assert np.array_equal(wanted[name], codes), name
        assert network_cycles(compiled, model).counters == run.counters
