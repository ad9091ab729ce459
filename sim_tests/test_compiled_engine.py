"""What the compiled engine says when a command goes wrong, and that the next one runs."""

import re

import numpy as np
import pytest

from gshw.config import load_config
from gshw.device import CompiledEngine, command_words
from gshw.errors import GshwError
from gshw.image import LayerImage
from gshw.plan import Plan
from gshw.verilate import build_library
from rtl_gen import verilog
from rtl_gen.top import TOP_NAME, Core
from sim_tests.layers import linear_case

CONFIG = load_config("tiny").engine
PORTS = ("config_hash", "group_base", "n_groups", "record_base", "n_records", "read_base")


@pytest.fixture(scope="module")
def library():
    return build_library(verilog.convert(Core(CONFIG), TOP_NAME))


@pytest.fixture
def loaded():
    """A layer's image, and the words of its only command."""
    weights = np.ones((3, 2 * CONFIG.channels_per_row), dtype=np.int64)
    case = linear_case(np.random.default_rng(1), CONFIG, "ones", weights, n_samples=1)
    image = LayerImage(CONFIG, case.layer)
    plan = Plan(CONFIG, image, 1, 1, 1)
    ((_, command),) = plan.commands(plan.tile_runs[0])
    return image, command_words(CONFIG, command, case.layer.requantisation)


ERRORS = {
    "foreign": ({"config_hash": 1}, "refused the command"),
    "no_groups": ({"n_groups": 0}, "refused the command"),
    "no_records": ({"n_records": 0}, "drained a bundle in a command without records"),
    "beyond": ({"read_base": CONFIG.bank_depth - 1}, "left the scratchpad or the output buffer"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_wrong_command_is_named_and_the_next_one_runs(library, loaded, name):
    change, message = ERRORS[name]
    image, words = loaded
    with CompiledEngine(CONFIG, library, cycle_limit=1000) as device:
        device.load_groups(0, image.pack_groups(1))
        device.load_records(0, image.pack_records())
        before = device.run_words(words)
        wrong = words.copy()
        for port, value in change.items():
            wrong[PORTS.index(port)] = value
        with pytest.raises(GshwError, match=f"^the engine {re.escape(message)}$"):
            device.run_words(wrong)
        assert device.run_words(words) == before


def test_a_command_beyond_the_cycle_limit(library, loaded):
    image, words = loaded
    with CompiledEngine(CONFIG, library, cycle_limit=5) as device:
        device.load_groups(0, image.pack_groups(1))
        device.load_records(0, image.pack_records())
        with pytest.raises(GshwError, match=r"^the engine did not finish$"):
            device.run_words(words)
