"""Engines that the regression runs besides the presets: legal, and unlike any preset."""

from dataclasses import replace
from pathlib import Path

from gshw.config import BusConfig, Config, EngineConfig, Gather, Routing, TargetConfig, load_config


def _odd(name: str, **engine) -> Config:
    return Config(name=name, engine=EngineConfig(**engine), target=TargetConfig())


ODD_CONFIGS = (
    # The smallest Benes network is a single switch.
    _odd("two_lanes", lanes=2, rows=2, bank_width=8, bank_depth=64, group_buffer_depth=128),
    # Most banks there can be; shallow, because its group words are wide.
    _odd(
        "many_lanes",
        lanes=64,
        rows=8,
        bank_width=8,
        bank_depth=32,
        drain_rows=2,
        group_buffer_depth=64,
        row_buffer_depth=32,
    ),
    _odd(
        "nibbles",
        lanes=8,
        rows=8,
        bank_width=16,
        bank_depth=64,
        columns=2,
        activation_width=4,
        weight_width=4,
        accumulator_width=24,
        drain_rows=2,
        activation_tables=8,
    ),
    _odd(
        "wide_operands",
        lanes=4,
        rows=2,
        bank_width=32,
        bank_depth=64,
        columns=2,
        activation_width=16,
        weight_width=16,
    ),
    # The narrowest accumulator that holds one product.
    _odd(
        "narrow_sums",
        lanes=4,
        rows=4,
        bank_width=32,
        bank_depth=64,
        activation_width=4,
        weight_width=16,
        accumulator_width=20,
        routing=Routing.CROSSBAR,
    ),
    _odd(
        "three_columns",
        lanes=8,
        rows=4,
        bank_width=48,
        bank_depth=128,
        columns=3,
        accumulator_width=24,
        drain_rows=2,
        activation_tables=2,
    ),
    _odd("drains_at_once", lanes=8, rows=8, bank_width=8, bank_depth=64, drain_rows=8),
    _odd(
        "block8",
        lanes=4,
        rows=1,
        bank_width=64,
        bank_depth=64,
        accumulator_width=28,
        routing=Routing.DIRECT,
    ),
    _odd(
        "crossbar8",
        lanes=16,
        rows=8,
        bank_width=8,
        bank_depth=128,
        drain_rows=4,
        routing=Routing.CROSSBAR,
    ),
    _odd(
        "arbitrated4",
        lanes=8,
        rows=4,
        bank_width=16,
        bank_depth=128,
        drain_rows=2,
        routing=Routing.CROSSBAR,
        gather=Gather.ARBITRATED,
    ),
    # Layers are cut into tiles, and bundles into parts; depths are no powers of two.
    _odd(
        "small_buffers",
        lanes=8,
        rows=8,
        bank_width=8,
        bank_depth=64,
        group_buffer_depth=60,
        row_buffer_depth=30,
    ),
)

ODD_ENGINES = ("three_columns", "small_buffers")
"""Names of the odd engines that cocotb drives besides the presets."""

COMPONENT_CONFIGS = ("tiny", "block8", "three_columns", "arbitrated4")
"""Names of the engines whose components are tested one by one."""


def _on_bus(name: str, **bus) -> Config:
    """An odd engine on another bus than the default one."""
    config = find_config(name)
    named = "_".join(f"{key}{value}" for key, value in bus.items())
    return replace(config, name=f"{name}-{named}", bus=BusConfig(**bus))


def bus_configs() -> tuple[Config, ...]:
    """Narrow and wide buses, short and long bursts, on engines with 4-bit and 16-bit codes.

    The longest bursts of the widest one are those that only the 4 KiB rule cuts.
    """
    return (
        _on_bus("nibbles", data_width=32, max_burst=1, outstanding=1),
        _on_bus("wide_operands", data_width=128, max_burst=256, outstanding=2, address_width=64),
        _on_bus("three_columns", data_width=512, max_burst=256, outstanding=8),
    )


def cocotb_axi_configs() -> tuple[Config, ...]:
    """What drives ``gshw_axi`` between cocotb's bus models: a small engine on a wide bus."""
    return (_on_bus("tiny", data_width=256, max_burst=64, outstanding=4),)


def stream_bus_configs() -> tuple[Config, ...]:
    """Streams narrower and wider than the default."""
    return (_on_bus("nibbles", data_width=32), _on_bus("block8", data_width=128))


def law_configs() -> tuple[Config, ...]:
    """Engines whose layers are held against the cycle law of programs."""
    names = ("tiny", "h16", "arbitrated4")
    return (*map(find_config, names), _on_bus("block8", data_width=128))


def find_config(source: str | Path) -> Config:
    """An odd engine by its name, a preset by its name, or a file."""
    for config in ODD_CONFIGS:
        if config.name == source:
            return config
    return load_config(source)
