"""The engine's components side by side, each emitted as Verilog of its own.

One simulation then serves them all; a build takes longer than all their benches.
"""

import re

from amaranth.lib import wiring

from gshw.config import EngineConfig, Gather
from rtl_gen import verilog
from rtl_gen.buffers import GroupBuffer, LoopBuffer, RowBuffer
from rtl_gen.compute import Accumulators, AdderTree, MultiplierArray
from rtl_gen.gather import ArbitratedGather, ScheduledGather
from rtl_gen.library import flat_ports
from rtl_gen.output import DrainControl, Requantiser, ScatterWriter
from rtl_gen.routing import BenesNetwork, Crossbar
from rtl_gen.scratchpad import OutputBuffer, Scratchpad
from rtl_gen.sequencer import PositionLoops, SteppedAddress

WRAPPER_NAME = "components"
LOOP_WIDTH, LOOP_DEPTH = 24, 37
"""Of the loop buffer that is tested alone; the depth is no power of two."""
ODD_TREE = (5, 6, 7)
"""Inputs, input width and output width of an adder tree that is ragged and wraps."""


def components(config: EngineConfig) -> dict[str, wiring.Component]:
    """Fresh components of one engine, by the name of their module and ports' prefix."""
    arbitrated = config.gather is Gather.ARBITRATED
    return {
        "requantiser": Requantiser(config.accumulator_width, config.activation_width),
        "multipliers": MultiplierArray(config),
        "tree": AdderTree(
            config.lanes_per_row * config.block,
            config.weight_width + config.activation_width,
            config.accumulator_width,
        ),
        "odd_tree": AdderTree(*ODD_TREE),
        "benes": BenesNetwork(config.lanes, config.bank_width),
        "crossbar": Crossbar(config.lanes, config.bank_width),
        "scratchpad": Scratchpad(config),
        "loop": LoopBuffer(LOOP_WIDTH, LOOP_DEPTH),
        "groups": GroupBuffer(config),
        "records": RowBuffer(config),
        "gather": ArbitratedGather(config) if arbitrated else ScheduledGather(config),
        "loops": PositionLoops(),
        "base": SteppedAddress(config.address_width),
        "accumulators": Accumulators(config),
        "drain": DrainControl(config),
        "scatter": ScatterWriter(config),
        "results": OutputBuffer(config),
    }


def port_name(component: str, port: str) -> str:
    """The wrapper's port for a component's port."""
    return f"{component}_{port.replace('__', '_')}"


def input_ports(config: EngineConfig) -> list[str]:
    """The wrapper's inputs, clock and reset not included."""
    names = []
    for name, component in components(config).items():
        component._MustUse__silence = True
        names += [port_name(name, port) for port, out, _ in flat_ports(component) if not out]
    return names


def wrapper_verilog(config: EngineConfig) -> str:
    """All components' Verilog, and a module ``components`` that only instantiates each once."""
    texts, ports, instances = [], ["input clk", "input rst"], []
    for name, component in components(config).items():
        text = verilog.convert(component, name)
        texts.append(text)
        header = re.search(rf"^module {name} \((.*?)\);", text, re.M | re.S)
        assert header is not None
        links = [f".{port}({port})" for port in ("clk", "rst") if f"  {port}" in header[1]]
        for port, out, value in flat_ports(component):
            outer = port_name(name, port)
            ports.append(f"{'output' if out else 'input'} [{len(value) - 1}:0] {outer}")
            links.append(f".{port}({outer})")
        instances.append(f"  {name} {name}_instance (\n    {', '.join(links)}\n  );")
    listed = ",\n  ".join(ports)
    top = f"module {WRAPPER_NAME} (\n  {listed}\n);\n" + "\n".join(instances) + "\nendmodule\n"
    return "\n".join([*texts, top])
