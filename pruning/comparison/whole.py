"""A trained network as one network of the engine: integers end to end, its cycles, and in RTL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gshw.config import Config
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator
from gshw.network.compile import compile_network
from gshw.network.execute import execute
from gshw.network.graph import Network
from gshw.network.run import network_cycles, run_network
from pruning.comparison.tasks import Task
from pruning.networks.float_graph import FloatNetwork
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.networks.module import IntegerNetwork
from pruning.patterns.pattern import Projection

Codes = NDArray[np.int64]


class _InRtl:
    """Runs a network on the verilated core, and compares it.

    Attributes
    ----------
    same
        Whether all tensors so far were the executor's, and all counters those of the cycle law.
    """

    def __init__(self, config: Config, network: Network, library: Path) -> None:
        self._config, self._network, self._library = config, network, library
        self.same = True

    def __call__(self, inputs: Mapping[str, Codes]) -> dict[str, Codes]:
        model = MemoryModel()
        n_samples = len(next(iter(inputs.values())))
        compiled = compile_network(self._config, self._network, n_samples)
        memory = {"n_bytes": compiled.n_bytes, "model": model}
        with SimulatedAccelerator(self._config, self._library, **memory) as accelerator:
            run = run_network(accelerator, compiled, inputs)
        wanted = execute(self._config.engine, self._network, inputs)
        self.same &= all(np.array_equal(run.codes[name], codes) for name, codes in wanted.items())
        self.same &= run.counters == network_cycles(compiled, model).counters
        return run.codes


def measure_network(
    config: Config,
    task: Task,
    model: nn.Module,
    projections: Mapping[str, Projection],
    library: Path | None = None,
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """Metric and cycles of the whole network in the engine's integers.

    Every tensor between two nodes is codes, on the engine and on the host. Ranges come from
    training inputs of the evaluation's shape.

    Parameters
    ----------
    model
        Trained, its masks written into the weights.
    library
        ``gshw_axi`` of this config, compiled; None: no run in RTL.
    quick
        Evaluate on a part of the data.

    Returns
    -------
    dict
        Plain values: ``int8``, the metric of the integer network; ``cycles`` of the task's
        ``network_workload``, all programs. With a library, of a part of the data: ``part_float``
        and ``part``, the metric of the float and the integer network, ``rtl``, that of the run, and
        ``same``, whether every tensor and counter is as expected.
    """

    def integers(example: Tensor) -> tuple[FloatNetwork, Network]:
        floats = import_model(model, example)
        read = {term.key for node in floats.matrices for term in node.affine.terms}
        own = {name: mask for name, mask in projections.items() if name in read}
        return floats, quantise_network(config.engine, floats, own)

    floats, network = integers(task.network_input(quick=quick))
    whole = IntegerNetwork(config.engine, network, floats.layouts)
    found = {"int8": task.evaluate(whole, quick=quick)}
    example = task.workload_input()
    _, workload = integers(example)
    found["cycles"] = network_cycles(compile_network(config, workload, len(example))).cycles
    if library is None:
        return found
    if not quick:
        floats, network = integers(task.network_input(quick=True))
    part = IntegerNetwork(config.engine, network, floats.layouts)
    in_rtl = _InRtl(config, network, library)
    run = IntegerNetwork(config.engine, network, floats.layouts, in_rtl)
    return found | {
        "part_float": task.evaluate(model, quick=True),
        "part": task.evaluate(part, quick=True),
        "rtl": task.evaluate(run, quick=True),
        "same": in_rtl.same,
    }
