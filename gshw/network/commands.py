"""``gshw run``, ``gshw simulate`` and ``gshw explain`` for compiled networks."""

import argparse
import io
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gshw.config import Config
from gshw.drivers.open import check_device, open_accelerator
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator
from gshw.errors import GshwError
from gshw.files import check_output_files, write_atomically
from gshw.network.artefact import load_network
from gshw.network.compile import CompiledNetwork, compile_network
from gshw.network.execute import execute
from gshw.network.graph import HostNode
from gshw.network.part import part_of
from gshw.network.report import NodeReport, network_json, node_reports, node_table
from gshw.network.run import NetworkCycles, checked_inputs, network_cycles, run_network
from gshw.report import print_wide, write_record
from gshw.top import Top


@dataclass(frozen=True)
class NetworkProfile:
    """A compiled network, its cycles, and a line for every node."""

    compiled: CompiledNetwork
    cycles: NetworkCycles
    reports: list[NodeReport]
    title: str


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
    part: tuple[str | None, str | None] = (None, None),
) -> dict[str, Any]:
    """Run a network, or a part of it, and print what came of it.

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
    part
        The first node and the last one to run, see :func:`gshw.network.part.part_of`; what comes
        before is the golden executor's work. Inputs are those of the whole network.

    Returns
    -------
    dict
        For reports. ``differs`` names the tensors that are not the executor's, in order,
        ``counters_differ`` counters that are not the cycle law's (``law``; None where no memory is
        simulated).

    Raises
    ------
    GshwError
        For bad input, and a device that fails.
    """
    config, model = compiled.config, model or MemoryModel()
    inputs = random_codes(compiled, seed)
    if given is not None:
        inputs = dict.fromkeys(compiled.network.inputs, given)
    inputs = checked_inputs(compiled, inputs)
    if part != (None, None):
        whole, network = compiled, part_of(compiled.network, *part)
        codes = execute(config.engine, whole.network, inputs)
        inputs = {name: codes[name] for name in network.inputs}
        address = whole.base_address
        compiled = compile_network(config, network, whole.n_samples, base_address=address)
    law: dict[str, int] | None = None
    status = console.status("running") if console.is_terminal else nullcontext()
    needed = compiled.base_address + compiled.n_bytes
    opened = open_accelerator(device, config, top_verilog, n_bytes=needed)
    with status, opened as accelerator:
        if isinstance(accelerator, SimulatedAccelerator):
            accelerator.set_model(model)
            law = network_cycles(compiled, model).counters
        begin = time.monotonic()
        run = run_network(accelerator, compiled, inputs)
        seconds = time.monotonic() - begin
        note = accelerator.note
    differs: list[str] = []
    beyond = [] if law is None else [key for key in law if law[key] != run.counters[key]]
    if check:
        wanted = execute(config.engine, compiled.network, inputs)
        differs = [name for name in run.codes if not np.array_equal(wanted[name], run.codes[name])]
    table = Table(title=f"on {device}")
    for name in ("nodes", "cycles", "by the law", "groups", "seconds", "golden executor"):
        table.add_column(name, justify="right")
    told = f"all {len(run.codes)} tensors same" if check else ""
    if differs:
        told = f"DIFFERS from {differs[0]!r} on"
    if beyond:
        told += f"{'; ' * bool(told)}DIFFERS from the law in {', '.join(beyond)}"
    counters = [f"{run.counters[key]:,}" if run.counters else "" for key in ("cycles", "groups")]
    cycles, groups = counters
    predicted = "" if law is None else f"{law['cycles']:,}"
    row = (str(len(compiled.nodes)), cycles, predicted, groups, f"{seconds:.3f}")
    table.add_row(*row, told)
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
        "law": law,
        "match": not differs if check else None,
        "differs": differs,
        "counters_differ": beyond,
        "note": note,
    }


def part_asked_for(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """The first and the last node of ``--layer``, ``--from`` and ``--to``.

    Raises
    ------
    GshwError
        For ``--layer`` together with one of the others.
    """
    if arguments.layer is None:
        return arguments.first, arguments.last
    if arguments.first is not None or arguments.last is not None:
        raise GshwError("--layer is one node, without --from and --to")
    return arguments.layer, arguments.layer


def explain_network_command(
    arguments: argparse.Namespace, console: Console, config: Config
) -> NetworkProfile:
    """Where the cycles of a compiled network go, by the cycle law.

    Raises
    ------
    GshwError
        For a network that is not the config's.
    """
    compiled = load_network(arguments.model, config)
    latency, interval = arguments.latency, arguments.interval
    model = MemoryModel(read_latency=latency, write_latency=latency, interval=interval)
    cycles = network_cycles(compiled, model)
    reports = node_reports(compiled, cycles, interval=interval)
    title = (
        f"{arguments.model} on {config.name}, {compiled.n_samples} sample(s), "
        f"{config.bus.data_width}-bit memory, {latency} cycles latency"
    )
    print_wide(console, node_table(reports, title))
    data = network_json(reports, cycles) | {"n_bytes": compiled.n_bytes}
    write_record(arguments.json, config, arguments.raw, None, data)
    return NetworkProfile(compiled, cycles, reports, title)


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
        Whether all tensors equal the golden executor's, where that was asked for, and all counters
        the cycle law's, where there is one.

    Raises
    ------
    GshwError
        For bad input, and a device that fails.
    """
    check_output_files(arguments.output, arguments.json)
    check_device(arguments.device)
    part = part_asked_for(arguments)
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
        part=part,
    )
    write_record(arguments.json, config, arguments.raw, arguments.seed, data)
    return not (data["differs"] or data["counters_differ"])
