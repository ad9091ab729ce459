"""``gshw run`` for compiled networks."""

import argparse
import io
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gshw.config import Config
from gshw.drivers.open import open_accelerator
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator
from gshw.errors import GshwError
from gshw.files import check_output_file, write_atomically
from gshw.network.artefact import load_network
from gshw.network.compile import CompiledNetwork
from gshw.network.execute import execute
from gshw.network.graph import HostNode
from gshw.network.run import checked_inputs, run_network
from gshw.report import print_wide, write_record
from gshw.top import Top


def random_codes(compiled: CompiledNetwork, seed: int) -> dict[str, NDArray[np.int64]]:
    """Any codes for the inputs; of token numbers, such as all tables have."""
    network, rng = compiled.network, np.random.default_rng(seed)
    found = {}
    for name in network.inputs:
        tensor = network.tensors[name]
        low, high = compiled.config.engine.activation_range(tensor.signed)
        if tensor.host:
            readers = (
                node
                for node in network.nodes
                if isinstance(node, HostNode) and node.function == "embedding"
            )
            sizes = (
                len(network.tables[node.tables[0]])
                for node in readers
                if node.sources[0].tensor == name
            )
            low, high = 0, min(sizes, default=1) - 1
        shape = (compiled.n_samples, *tensor.size, tensor.channels)
        found[name] = rng.integers(low, high + 1, shape)
    return found


def run_and_compare(
    console: Console,
    device: str,
    compiled: CompiledNetwork,
    seed: int,
    top_verilog: Callable[[Config, Top], str],
    *,
    given: NDArray | None = None,
    check: bool = True,
    output: Path | None = None,
    model: MemoryModel | None = None,
) -> dict[str, Any]:
    """Run a network and print what came of it.

    Parameters
    ----------
    device, top_verilog
        See :func:`gshw.drivers.open.open_accelerator`.
    seed
        Of random input codes, where ``given`` is None.
    check
        Compare every tensor with the golden executor's.
    output
        ``.npy`` for the codes of the first output.
    model
        Timing of the memory, where it is simulated.

    Returns
    -------
    dict
        For reports. ``differs`` names the tensors that are not the executor's, in order.

    Raises
    ------
    GshwError
        For bad input, and a device that fails.
    """
    config = compiled.config
    inputs = random_codes(compiled, seed)
    if given is not None:
        inputs = dict.fromkeys(compiled.network.inputs, given)
    inputs = checked_inputs(compiled, inputs)
    status = console.status("running") if console.is_terminal else nullcontext()
    needed = compiled.base_address + compiled.n_bytes
    opened = open_accelerator(device, config, top_verilog, n_bytes=needed)
    with status, opened as accelerator:
        if model is not None and isinstance(accelerator, SimulatedAccelerator):
            accelerator.set_model(model)
        begin = time.monotonic()
        run = run_network(accelerator, compiled, inputs)
        seconds = time.monotonic() - begin
        note = accelerator.note
    differs: list[str] = []
    if check:
        wanted = execute(config.engine, compiled.network, inputs)
        differs = [name for name in wanted if not np.array_equal(wanted[name], run.codes[name])]
    table = Table(title=f"on {device}")
    for name in ("nodes", "cycles", "groups", "seconds", "golden executor"):
        table.add_column(name, justify="right")
    told = f"DIFFERS from {differs[0]!r} on" if differs else f"all {len(run.codes)} tensors same"
    counters = [f"{run.counters[key]:,}" if run.counters else "" for key in ("cycles", "groups")]
    table.add_row(str(len(compiled.nodes)), *counters, f"{seconds:.3f}", told if check else "")
    print_wide(console, table)
    if note:
        console.print(note, highlight=False)
    if output is not None:
        text = io.BytesIO()
        np.save(text, run.codes[compiled.network.outputs[0]])
        write_atomically(output, text.getvalue())
    return {
        "device": device,
        "seconds": seconds,
        "counters": run.counters,
        "match": not differs if check else None,
        "differs": differs,
        "note": note,
    }


def run_network_command(
    arguments: argparse.Namespace,
    console: Console,
    config: Config,
    given: NDArray | None,
    top_verilog: Callable[[Config, Top], str],
) -> bool:
    """Run a compiled network; with ``--check`` compare every tensor.

    Parameters
    ----------
    given
        Input codes; None takes random ones.
    top_verilog
        See :func:`gshw.drivers.open.open_accelerator`.

    Returns
    -------
    bool
        Whether all tensors equal the golden executor's; True where that was not asked for.

    Raises
    ------
    GshwError
        For bad input, and a device that fails.
    """
    check_output_file(arguments.output)
    check_output_file(arguments.json)
    if arguments.layer is not None:
        raise GshwError(f"{arguments.model}: a compiled network runs as a whole, without --layer")
    compiled = load_network(arguments.model, config)
    data = run_and_compare(
        console,
        arguments.device,
        compiled,
        arguments.seed,
        top_verilog,
        given=given,
        check=arguments.check,
        output=arguments.output,
    )
    write_record(arguments.json, config, arguments.raw, arguments.seed, data)
    return not data["differs"]
