"""Runs compiled networks on accelerators, and predicts their cycles."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.drivers.accelerator import Accelerator
from gshw.drivers.simulated import MemoryModel
from gshw.errors import GshwError
from gshw.network.compile import CompiledNetwork
from gshw.network.execute import check_inputs
from gshw.program_cycles import ProgramCycles, program_cycles

CYCLE_LIMIT = 1 << 33
"""Of a whole network; it is predicted long before."""


@dataclass(frozen=True, kw_only=True)
class NetworkRun:
    """What an accelerator did with a network.

    Parameters
    ----------
    codes
        Of every tensor by name, shape (n_samples, height, width, channels), int64.
    counters
        The core's counters, empty where the back end has none.
    """

    codes: dict[str, NDArray[np.int64]]
    counters: dict[str, int]


def checked_inputs(
    compiled: CompiledNetwork, inputs: Mapping[str, NDArray]
) -> dict[str, NDArray[np.int64]]:
    """Codes of all inputs, for as many samples as the network was compiled for.

    Raises
    ------
    GshwError
        Naming the input that is missing or does not match.
    """
    codes = check_inputs(compiled.config.engine, compiled.network, inputs)
    for name, found in codes.items():
        if len(found) != compiled.n_samples:
            raise GshwError(
                f"input {name!r} must have the {compiled.n_samples} samples that the network was "
                f"compiled for, not {len(found)}"
            )
    return codes


def run_network(
    accelerator: Accelerator, compiled: CompiledNetwork, inputs: Mapping[str, NDArray]
) -> NetworkRun:
    """Place program, weights and inputs in memory, run, and read every tensor.

    Raises
    ------
    GshwError
        For inputs that do not match, a memory that does not hold the network, or when the core
        stops.
    """
    network, codes = compiled.network, checked_inputs(compiled, inputs)
    accelerator.memory.require(compiled.base_address, compiled.n_bytes)
    for segment in compiled.segments:
        accelerator.write_memory(segment.address, segment.data)
    for name in network.inputs:
        address = compiled.layouts[name].address
        accelerator.write_memory(address, compiled.input_bytes(name, codes[name]))
    run = accelerator.run(compiled.program_address)
    for name in dict.fromkeys(node.output for node in network.nodes):
        layout = compiled.layouts[name]
        data = accelerator.read_memory(layout.address, layout.n_bytes)
        codes[name] = compiled.read_tensor(name, data)
    return NetworkRun(codes=codes, counters=run.counters)


def network_cycles(compiled: CompiledNetwork, model: MemoryModel | None = None) -> ProgramCycles:
    """Cycles of the whole program, exactly; see :func:`gshw.program_cycles.program_cycles`."""
    starts = [segment.address for segment in compiled.segments]

    def read(address: int, n_bytes: int) -> bytes:
        segment = compiled.segments[np.searchsorted(starts, address, side="right") - 1]
        return segment.data[address - segment.address :][:n_bytes]

    return program_cycles(
        compiled.config,
        compiled.program,
        read,
        MemoryModel() if model is None else model,
        program_address=compiled.program_address,
        cycle_limit=CYCLE_LIMIT,
    )
