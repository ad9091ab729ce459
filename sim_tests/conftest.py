"""Which engines the regression runs on: the presets and some odd ones, or the user's own."""

import pytest

from gshw.config import Config, load_config, preset_names
from gshw.errors import GshwError
from sim_tests.configs import (
    COMPONENT_CONFIGS,
    ODD_CONFIGS,
    ODD_ENGINES,
    bus_configs,
    cocotb_axi_configs,
    find_config,
    law_configs,
    stream_bus_configs,
)

_USER_CONFIGS = pytest.StashKey[list[Config]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gshw-config",
        action="append",
        default=[],
        metavar="PATH",
        help="engine config to run the regression on, instead of the presets (repeatable)",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="gshw_axi and gshw_stream of every preset and odd engine, and many more programs",
    )


def _presets() -> list[Config]:
    return [load_config(name) for name in preset_names()]


def _everything() -> list[Config]:
    return [*_presets(), *bus_configs(), *ODD_CONFIGS]


def _streams() -> list[Config]:
    return [*_everything(), *stream_bus_configs()]


_DEFAULTS = {
    "engine_config": lambda: [*_presets(), *map(find_config, ODD_ENGINES)],
    "component_config": lambda: [find_config(name) for name in COMPONENT_CONFIGS],
    "layer_config": lambda: [*_presets(), *ODD_CONFIGS],
    "program_config": lambda: [load_config("tiny"), *bus_configs()],
    "law_config": law_configs,
    "fault_config": lambda: [find_config("arbitrated4")],
    "stream_config": lambda: [load_config("hybrid16")],
    "axi_top_config": cocotb_axi_configs,
    "stream_top_config": lambda: [find_config("narrow_sums")],
}
"""Fixture name -> engines it runs over when the user names none.

Benches of whole cores take turns, so that each engine and bus meets one of them.
"""


_LONG = {
    "program_config": _everything,
    "law_config": _everything,
    "fault_config": _everything,
    "stream_config": _streams,
    "axi_top_config": lambda: [*_presets(), *cocotb_axi_configs()],
    "stream_top_config": _presets,
}
"""As above, for ``--long``."""


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a config that does not load before anything runs."""
    try:
        sources = config.getoption("gshw_config", default=[])
        config.stash[_USER_CONFIGS] = [load_config(source) for source in sources]
    except GshwError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    defaults_of = _DEFAULTS | (_LONG if metafunc.config.getoption("long", default=False) else {})
    for fixture, defaults in defaults_of.items():
        if fixture in metafunc.fixturenames:
            configs = metafunc.config.stash[_USER_CONFIGS] or defaults()
            metafunc.parametrize(fixture, configs, ids=[config.name for config in configs])


@pytest.fixture
def n_programs(request: pytest.FixtureRequest) -> int:
    """How many random programs a test runs on one config."""
    return 1000 if request.config.getoption("long") else 40
