"""Every latency that a component states is the constant that the cycle law uses.

That components keep the latency they state is tested beside each of them.
"""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest
from amaranth.lib import wiring

import rtl_gen
from gshw.config import Gather, Routing
from gshw.pipeline import (
    BANK_LATENCY,
    FETCH_LATENCY,
    MULTIPLY_LATENCY,
    REQUANTISE_LATENCY,
    TABLE_LATENCY,
    Pipeline,
    adder_tree_latency,
    benes_latency,
    drain_select_latency,
    scatter_latency,
)
from rtl_gen.activation import ActivationTables
from rtl_gen.buffers import LoopBuffer
from rtl_gen.compute import Accumulators, AdderTree, MultiplierArray
from rtl_gen.output import Requantiser, ScatterWriter
from rtl_gen.routing import BenesNetwork, Crossbar, DirectRouting
from rtl_gen.scratchpad import OutputBuffer, Scratchpad
from tests.rtl.bench import not_built
from tests.strategies import all_engines

ROUTING = {
    Routing.DIRECT: DirectRouting,
    Routing.CROSSBAR: Crossbar,
    Routing.BENES: BenesNetwork,
}
TESTED = {
    Accumulators,
    LoopBuffer,
    AdderTree,
    MultiplierArray,
    Requantiser,
    ScatterWriter,
    OutputBuffer,
    Scratchpad,
    ActivationTables,
    *ROUTING.values(),
}


def components_with_latency() -> set[type]:
    found = set()
    for module in pkgutil.iter_modules(rtl_gen.__path__):
        for _, kind in inspect.getmembers(
            importlib.import_module(f"rtl_gen.{module.name}"), inspect.isclass
        ):
            if issubclass(kind, wiring.Component) and hasattr(kind, "latency"):
                found.add(kind)
    return found


def latency(component) -> int:
    return not_built(component).latency


def test_no_latency_is_forgotten():
    assert components_with_latency() == TESTED


@pytest.mark.parametrize("name", all_engines())
def test_latencies_are_the_pipelines(name):
    # Tables, which some engines have, are added below.
    config = dataclasses.replace(all_engines()[name], activation_tables=0)
    pipeline = Pipeline(config)
    n_products = config.lanes_per_row * config.block
    product_width = config.weight_width + config.activation_width
    routing = latency(ROUTING[config.routing](config.lanes, config.bank_width))
    tree = latency(AdderTree(n_products, product_width, config.accumulator_width))
    multiply = latency(MultiplierArray(config))
    bank = latency(Scratchpad(config))
    requantise = latency(Requantiser(config.accumulator_width, config.activation_width))
    scatter = latency(ScatterWriter(config))
    drain_select = latency(Accumulators(config))

    # The buffers start in the first cycle of the law, the one after the accepted command.
    assert latency(LoopBuffer(8, config.group_buffer_depth)) == FETCH_LATENCY
    assert bank == latency(OutputBuffer(config)) == BANK_LATENCY
    assert multiply == MULTIPLY_LATENCY
    assert requantise == REQUANTISE_LATENCY
    assert scatter == scatter_latency(config.drain_rows)
    assert drain_select == pipeline.drain_select
    assert routing == pipeline.routing
    assert tree == pipeline.adder_tree
    few = config.lanes * config.block * config.columns <= 8
    offsets = 1 if config.gather is Gather.ARBITRATED else 2 if few else 3
    assert pipeline.address == 1 + offsets
    assert pipeline.route_delay == pipeline.address + bank
    assert pipeline.weight_delay == pipeline.route_delay + routing
    assert pipeline.accumulate == pipeline.weight_delay + multiply + tree
    assert pipeline.drain == drain_select + config.columns - 1 + requantise + scatter
    if config.activation_width <= 8:
        config = dataclasses.replace(config, activation_tables=2)
        tables = latency(ActivationTables(config))
        assert tables == TABLE_LATENCY
        assert Pipeline(config).drain == pipeline.drain + tables


@pytest.mark.parametrize(("n_inputs", "levels"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6)])
def test_adder_tree_levels(n_inputs, levels):
    assert adder_tree_latency(n_inputs) == levels
    assert latency(AdderTree(n_inputs, 8, 16)) == levels


@pytest.mark.parametrize("log2_lanes", range(1, 7))
def test_benes_registers(log2_lanes):
    """2 log2 B - 1 switch stages, one register each."""
    registers = 2 * log2_lanes - 1
    assert benes_latency(log2_lanes) == registers
    assert latency(BenesNetwork(1 << log2_lanes, 8)) == registers


@pytest.mark.parametrize(
    ("n_slices", "levels"), [(1, 0), (2, 2), (4, 2), (8, 3), (16, 3), (32, 4), (64, 4)]
)
def test_drain_select_levels(n_slices, levels):
    """A gate, then ORs of four."""
    assert drain_select_latency(n_slices) == levels


@pytest.mark.parametrize(("drain_rows", "levels"), [(1, 1), (2, 1), (4, 2), (8, 3), (64, 6)])
def test_scatter_levels(drain_rows, levels):
    """Multiplexers of two, and at least the register of the write port."""
    assert scatter_latency(drain_rows) == levels
