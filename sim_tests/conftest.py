"""Which engines the regression runs on: the presets and some odd ones, or the user's own."""

import pytest

from gshw.config import Config, load_config, preset_names
from gshw.errors import GshwError
from sim_tests.configs import COMPONENT_CONFIGS, ODD_CONFIGS, ODD_ENGINES, find_config

_USER_CONFIGS = pytest.StashKey[list[Config]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gshw-config",
        action="append",
        default=[],
        metavar="PATH",
        help="engine config to run the regression on, instead of the presets (repeatable)",
    )


def _presets() -> list[Config]:
    return [load_config(name) for name in preset_names()]


_DEFAULTS = {
    "engine_config": lambda: [*_presets(), *map(find_config, ODD_ENGINES)],
    "component_config": lambda: [find_config(name) for name in COMPONENT_CONFIGS],
    "layer_config": lambda: [*_presets(), *ODD_CONFIGS],
}
"""Fixture name -> engines it runs over when the user names none."""


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a config that does not load before anything runs."""
    try:
        sources = config.getoption("gshw_config", default=[])
        config.stash[_USER_CONFIGS] = [load_config(source) for source in sources]
    except GshwError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, defaults in _DEFAULTS.items():
        if fixture in metafunc.fixturenames:
            configs = metafunc.config.stash[_USER_CONFIGS] or defaults()
            metafunc.parametrize(fixture, configs, ids=[config.name for config in configs])
