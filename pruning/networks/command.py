"""``gshw compile``: from a torch model to one program."""

import argparse
import shlex

from rich.console import Console

from gshw.config import load_config
from gshw.drivers.simulated import MemoryModel
from gshw.files import check_output_file
from gshw.network.artefact import save_network
from gshw.network.compile import compile_network
from gshw.network.report import network_json, node_reports, node_table
from gshw.network.run import network_cycles
from gshw.report import print_wide, progress_bar, write_record
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.runs.loading import load_factory, load_samples, load_weights


def compile_command(arguments: argparse.Namespace, console: Console) -> int:
    """Import, quantise, tile and schedule; print where the cycles go.

    Raises
    ------
    GshwError
        For a model, weights, samples or a config that cannot be used.
    """
    check_output_file(arguments.output)
    check_output_file(arguments.json)
    config = load_config(arguments.config)
    model = load_factory(arguments.factory).eval()
    if arguments.weights is not None:
        load_weights(model, arguments.weights)
    samples = load_samples(arguments.calibration, arguments.input_shape, arguments.seed)
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("import", total=None)

        def tell(what: str) -> None:
            progress.update(task, description=what)

        network = quantise_network(
            config.engine,
            import_model(model, samples),
            provenance={"command": shlex.join(["gshw", *arguments.raw])},
            on_node=lambda name: tell(f"encode {name}"),
        )
        compiled = compile_network(
            config,
            network,
            arguments.samples,
            base_address=arguments.address,
            on_node=lambda name: tell(f"plan {name}"),
        )
        tell("cycles")
        latency = arguments.latency
        memory = MemoryModel(
            read_latency=latency, write_latency=latency, interval=arguments.interval
        )
        cycles = network_cycles(compiled, memory)
    save_network(arguments.output, compiled)
    reports = node_reports(compiled, cycles)
    title = (
        f"{arguments.factory} on {config.name}, {arguments.samples} sample(s), "
        f"{config.bus.data_width}-bit memory, {latency} cycles latency"
    )
    print_wide(console, node_table(reports, title))
    console.print(
        f"{len(reports)} nodes, all on the engine; {compiled.n_bytes:,} bytes of memory from "
        f"{compiled.base_address:#x}, {len(compiled.program):,} of them the program",
        highlight=False,
        soft_wrap=True,
    )
    data = network_json(reports, cycles) | {"n_bytes": compiled.n_bytes}
    write_record(arguments.json, config, arguments.raw, arguments.seed, data)
    return 0
