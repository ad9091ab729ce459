"""``gshw compile``: from a torch model to programs."""

import argparse
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from gshw.config import Config, load_config
from gshw.drivers.open import check_device
from gshw.drivers.simulated import MemoryModel
from gshw.errors import GshwError
from gshw.files import check_output_files
from gshw.network.artefact import save_network
from gshw.network.commands import run_and_compare
from gshw.network.compile import compile_network
from gshw.network.graph import HostNode, Network
from gshw.network.report import network_json, node_reports, node_table
from gshw.network.run import network_cycles
from gshw.report import print_wide, progress_bar, write_record
from gshw.top import Top
from pruning.models.masking import squash_masks
from pruning.models.weights import find_weights
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.patterns.pattern import Projection
from pruning.pruner import prune
from pruning.recipe import Recipe
from pruning.runs.loading import (
    kept_masks,
    load_factory,
    load_samples,
    load_weights,
    pruned_masks,
)
from pruning.runs.options import check_plot, resolve_recipe
from pruning.settings import QuantisationChoice


def masks_of(
    config: Config,
    model: nn.Module,
    samples: Tensor,
    recipe: Recipe | None = None,
    weights: Path | None = None,
) -> Mapping[str, Projection]:
    """Masks that a model has or is given, written into its weights.

    Parameters
    ----------
    model
        Changed in place: pruned where there is a recipe, and masks are gone.
    recipe
        How to prune in one shot what has no mask yet.
    weights
        The file that the model's masks came from.

    Raises
    ------
    GshwError
        For masks on what cannot be pruned, and as :func:`pruning.pruner.prune`.
    """
    kept: dict[str, Projection] = {}
    if weights is not None:
        try:
            found, skipped = find_weights(config.engine, model, samples)
        except GshwError:
            # Without a weight that can be pruned there are no masks, which is no mistake here.
            found, skipped = [], {}
        pattern = None if recipe is None else recipe.pattern
        kept = pruned_masks(weights, found) | kept_masks(weights, model, pattern, found, skipped)
    if recipe is not None:
        pruner = prune(model, recipe, calibration=[samples], example=samples, keep=kept)
        kept = pruner.projections
    squash_masks(model)
    return kept


def _recipe(arguments: argparse.Namespace) -> Recipe | None:
    if arguments.recipe is None and arguments.sparsity is None:
        for key in ("rows", "keep_dense"):
            if getattr(arguments, key):
                name = key.replace("_", "-")
                raise GshwError(f"--{name} is about pruning: needs --sparsity or --recipe")
        return None
    return resolve_recipe(arguments)


def _on_host(network: Network) -> str:
    """What of a network does not run on the engine."""
    functions = Counter(node.function for node in network.nodes if isinstance(node, HostNode))
    if not functions:
        return ", all on the engine"
    told = ", ".join(f"{n} {name}" for name, n in functions.items())
    return f" on the engine, {functions.total()} on the host ({told})"


def compile_command(
    arguments: argparse.Namespace, console: Console, top_verilog: Callable[[Config, Top], str]
) -> bool:
    """Import, quantise, tile and schedule; print where the cycles go; run it if that is asked for.

    Parameters
    ----------
    top_verilog
        See :func:`gshw.drivers.open.open_accelerator`.

    Returns
    -------
    bool
        Whether all tensors of the run equal the golden executor's; True without a run.

    Raises
    ------
    GshwError
        For a model, weights, samples, a recipe or a config that cannot be used.
    """
    check_plot(arguments.plot)
    check_output_files(arguments.output, arguments.json, arguments.plot)
    if arguments.run is not None:
        check_device(arguments.run)
    config = load_config(arguments.config)
    recipe = _recipe(arguments)
    seed = arguments.seed
    if seed is None:
        seed = 0 if recipe is None else recipe.seed
    choice = QuantisationChoice() if recipe is None else recipe.quantisation
    if choice.weight_width not in (None, config.engine.weight_width):
        raise GshwError(
            f"[quantisation] weight_width must be the engine's {config.engine.weight_width} here, "
            f"not {choice.weight_width}"
        )
    if arguments.calibration is None and arguments.input_shape is None:
        raise GshwError("needs --calibration FILE, or --input-shape C,H,W for random samples")
    torch.manual_seed(seed)
    model = load_factory(arguments.factory).eval()
    if arguments.weights is not None:
        load_weights(model, arguments.weights)
    samples = load_samples(arguments.calibration, arguments.input_shape, seed, arguments.tokens)
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("prune" if recipe else "import", total=None)

        def tell(what: str) -> None:
            progress.update(task, description=what)

        masks = masks_of(config, model, samples, recipe, arguments.weights)
        tell("import")
        floats = import_model(model, samples, choice.activations, choice.percentile)
        read = {term.key for node in floats.matrices for term in node.affine.terms}
        network = quantise_network(
            config.engine,
            floats,
            # What the model never uses has no place in it.
            {name: mask for name, mask in masks.items() if name in read},
            provenance={"command": shlex.join(["gshw", *arguments.raw])},
            on_node=lambda name: tell(f"encode {name}"),
        )
        compiled = compile_network(
            config,
            network,
            arguments.samples,
            base_address=arguments.address,
            reuse_memory=arguments.reuse_memory,
            on_node=lambda name: tell(f"plan {name}"),
        )
        tell("cycles")
        latency = arguments.latency
        memory = MemoryModel(
            read_latency=latency, write_latency=latency, interval=arguments.interval
        )
        cycles = network_cycles(compiled, memory)
    save_network(arguments.output, compiled)
    reports = node_reports(compiled, cycles, interval=arguments.interval)
    title = (
        f"{arguments.factory} on {config.name}, {arguments.samples} sample(s), "
        f"{config.bus.data_width}-bit memory, {latency} cycles latency"
    )
    print_wide(console, node_table(reports, title))
    program_bytes = sum(len(program.data) for program in compiled.programs)
    console.print(
        f"{len(reports)} nodes{_on_host(network)}; {compiled.n_bytes:,} bytes of memory from "
        f"{compiled.base_address:#x}, {program_bytes:,} of them the program",
        highlight=False,
        soft_wrap=True,
    )
    if arguments.plot is not None:
        from pruning.networks.plots import plot_profile

        plot_profile(arguments.plot, compiled, cycles, reports, title)
    data: dict[str, Any] = network_json(reports, cycles) | {"n_bytes": compiled.n_bytes}
    same = True
    if arguments.run is not None:
        data["run"] = run_and_compare(
            console, arguments.run, compiled, seed, top_verilog, model=memory
        )
        same = not (data["run"]["differs"] or data["run"]["counters_differ"])
    write_record(arguments.json, config, arguments.raw, seed, data)
    return same
