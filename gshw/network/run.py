"""Runs compiled networks on accelerators, and predicts their cycles."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.drivers.accelerator import Accelerator
from gshw.drivers.simulated import MemoryModel
from gshw.errors import GshwError
from gshw.network.compile import CompiledNetwork
from gshw.network.execute import check_inputs, run_host_node
from gshw.network.graph import HostNode
from gshw.program_cycles import ProgramCycles, program_cycles

CYCLE_LIMIT = 1 << 33
"""Of a whole network; it is predicted long before."""


@dataclass(frozen=True, kw_only=True)
class NetworkRun:
    """What an accelerator did with a network.

    Parameters
    ----------
    codes
        Of every tensor by name, but those whose memory was used again; shape (n_samples, height,
        width, channels), int64.
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
    """Place programs, weights and inputs in memory, run them and the host nodes, read what remains.

    Counters are those of all programs together.

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
        _write(accelerator, compiled, name, codes[name])
    for name, tensor in network.tensors.items():
        if tensor.host and name not in codes:
            shape = (compiled.n_samples, *tensor.size, tensor.channels)
            codes[name] = np.zeros(shape, dtype=np.int64)
    counters: Counter[str] = Counter()
    for step in compiled.steps:
        if isinstance(step, HostNode):
            _run_host_node(accelerator, compiled, step, codes)
        else:
            counters.update(accelerator.run(step.address).counters)
    remaining = compiled.remaining
    for name in compiled.layouts:
        if name not in remaining:
            codes.pop(name, None)
        elif name not in network.inputs:
            codes[name] = _read(accelerator, compiled, name)
    return NetworkRun(codes=codes, counters=dict(counters))


def _write(
    accelerator: Accelerator, compiled: CompiledNetwork, name: str, codes: NDArray[np.int64]
) -> None:
    if name in compiled.layouts:
        accelerator.write_memory(compiled.layouts[name].address, compiled.input_bytes(name, codes))


def _read(accelerator: Accelerator, compiled: CompiledNetwork, name: str) -> NDArray[np.int64]:
    layout = compiled.layouts[name]
    return compiled.read_tensor(name, accelerator.read_memory(layout.address, layout.n_bytes))


def _run_host_node(
    accelerator: Accelerator,
    compiled: CompiledNetwork,
    node: HostNode,
    codes: dict[str, NDArray[np.int64]],
) -> None:
    """With what the core's memory holds; inputs and the host's own tensors are in ``codes``."""
    network = compiled.network
    for place in (*node.sources, *node.targets):
        if place.tensor in compiled.layouts and place.tensor not in network.inputs:
            codes[place.tensor] = _read(accelerator, compiled, place.tensor)
    run_host_node(compiled.config.engine, network, node, codes)
    for target in node.targets:
        _write(accelerator, compiled, target.tensor, codes[target.tensor])


@dataclass(frozen=True)
class NetworkCycles:
    """What the core counts in all programs of a network; see :class:`ProgramCycles`."""

    programs: tuple[ProgramCycles, ...]

    @property
    def cycles(self) -> int:
        return sum(program.cycles for program in self.programs)

    @property
    def counters(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for program in self.programs:
            total.update(program.counters)
        return dict(total)


def network_cycles(compiled: CompiledNetwork, model: MemoryModel | None = None) -> NetworkCycles:
    """Cycles of all programs, exactly; see :func:`gshw.program_cycles.program_cycles`."""
    segments = sorted(compiled.segments, key=lambda segment: segment.address)
    starts = [segment.address for segment in segments]

    def read(address: int, n_bytes: int) -> bytes:
        segment = segments[np.searchsorted(starts, address, side="right") - 1]
        return segment.data[address - segment.address :][:n_bytes]

    return NetworkCycles(
        tuple(
            program_cycles(
                compiled.config,
                program.data,
                read,
                MemoryModel() if model is None else model,
                program_address=program.address,
                cycle_limit=CYCLE_LIMIT,
            )
            for program in compiled.programs
        )
    )
