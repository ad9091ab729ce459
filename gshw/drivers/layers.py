"""Runs encoded layers on an accelerator: lower, place, run, read back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.drivers.accelerator import Accelerator
from gshw.encoding import EncodedLayer
from gshw.golden import check_activations
from gshw.lower import LayerProgram, lower_layer


@dataclass(frozen=True, kw_only=True)
class AcceleratedLayer:
    """What an accelerator did with a layer.

    Parameters
    ----------
    output
        Shape (n_samples, out_height, out_width, n_rows), int64 codes.
    counters
        The core's counters, empty where the back end has none.
    """

    output: NDArray[np.int64]
    counters: dict[str, int]


def run_program(
    accelerator: Accelerator, program: LayerProgram, activations: NDArray
) -> AcceleratedLayer:
    """Place a lowered layer and its input in memory, run it, and read its output.

    Raises
    ------
    GshwError
        For activations of another shape or range, a memory that does not hold all of the program's
        data, or when the core stops.
    """
    layout = program.output_layout
    accelerator.memory.require(layout.address, layout.n_bytes)
    for segment in program.segments:
        accelerator.write_memory(segment.address, segment.data)
    accelerator.write_memory(program.input_layout.address, program.input_bytes(activations))
    run = accelerator.run(program.program_address)
    data = accelerator.read_memory(layout.address, layout.n_bytes)
    return AcceleratedLayer(output=program.output_codes(data), counters=run.counters)


def run_layer(
    accelerator: Accelerator,
    layer: EncodedLayer,
    activations: NDArray,
    *,
    base_address: int = 0,
) -> AcceleratedLayer:
    """Lower a layer for these activations and run it.

    Parameters
    ----------
    activations
        As :func:`gshw.golden.check_activations`.
    base_address
        First byte of the memory to use.

    Raises
    ------
    GshwError
        For a foreign layer, activations out of range, a layer that cannot fit, or when the core
        stops.
    """
    x = check_activations(accelerator.config.engine, layer, activations)
    program = lower_layer(accelerator.config, layer, *x.shape[:3], base_address=base_address)
    return run_program(accelerator, program, x)
