"""The layer on which the rates of the simulations are compared."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gshw.config import EngineConfig
from gshw.encoding import Requantisation, encode_layer
from gshw.geometry import Geometry
from sim_tests.layers import Case


class TimedDevice:
    """A device that adds up the CPU seconds spent in it, without the software around it.

    Parameters
    ----------
    device
        Any :class:`gshw.device.Device`.
    clock
        CPU seconds so far: of this thread for a device that runs in it, so that idle threads that
        spin for work do not count; of the process for one that runs in another thread.

    Attributes
    ----------
    seconds
        In all methods.
    run_seconds
        In commands only.
    """

    def __init__(self, device: Any, clock: Callable[[], float]) -> None:
        self._device = device
        self._clock = clock
        self.seconds = 0.0
        self.run_seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._device, name)

        def timed(*arguments):
            started = self._clock()
            result = method(*arguments)
            spent = self._clock() - started
            self.seconds += spent
            self.run_seconds += spent if name == "run" else 0.0
            return result

        return timed


def rate_case(config: EngineConfig) -> Case:
    """256 x 1024 at a tenth of the weights, one sample per column: as many loads as groups."""
    rng = np.random.default_rng(7)
    weights = rng.integers(-100, 101, (256, 1024))
    weights[rng.random(weights.shape) < 0.9] = 0
    geometry = Geometry.linear(1024)
    requantisation = Requantisation.identity(256, config, shift=22)
    layer = encode_layer(config, "rate", weights, geometry, requantisation)
    x = rng.integers(0, config.activation_range(False)[1] + 1, (config.columns, 1024))
    return Case(label="rate", layer=layer, activations=x[:, None, None, :])
