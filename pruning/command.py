"""``gshw prune``: any torch model, with or without training, to an encoded artefact."""

import argparse
import copy
import dataclasses
import json
import shlex
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gshw.artefact import EncodedModel, save_model
from gshw.config import Config, load_config
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.report import print_wide, write_record
from pruning.calibration import evaluating
from pruning.checkpoint import Checkpoint
from pruning.export import export, export_matrices, state_tensors
from pruning.gs import Gs
from pruning.layers import analyse
from pruning.loading import load_dataset, load_factory, load_samples, load_weights
from pruning.methods import OneShot
from pruning.pattern import RowGrouping
from pruning.pruner import GSPruner, prune
from pruning.quantisation import attach_quantisation, detach_quantisation
from pruning.ranges import Quantisation, calibrate
from pruning.recipe import Recipe, load_recipe
from pruning.report import output_errors, pruned_layers, pruning_table, totals
from pruning.settings import LayerRule, SparsityTarget
from pruning.training import EpochRecord, TaskData, TrainingPlan, moved, seed_epoch, train
from pruning.weights import find_weights
from pruning.world import World, join_world, told_once

_N_CALIBRATION_SAMPLES = 256
_EXAMPLE_EPOCH = 2**31
"""Seeds what calibration draws, beyond all epochs."""

_TRAINING = {"epochs": 10, "batch_size": 64, "learning_rate": 1e-3}
"""Options that need a dataset, and their defaults."""


def resolve_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe file, if any, with what the options change; else one-shot GS.

    Raises
    ------
    GshwError
        For options that are missing, or that contradict the file.
    """
    config = None if arguments.config is None else load_config(arguments.config)
    if arguments.recipe is not None:
        if arguments.rows is not None:
            raise GshwError("--rows is [pattern] grouping of the recipe; give one of both")
        recipe = load_recipe(arguments.recipe, config)
    elif config is None or arguments.sparsity is None:
        raise GshwError("needs --recipe FILE, or --config and --sparsity")
    else:
        grouping = RowGrouping(arguments.rows or RowGrouping.SCATTER.value)
        recipe = Recipe(
            config=config,
            pattern=Gs(config=config.engine, grouping=grouping),
            target=SparsityTarget(sparsity=arguments.sparsity),
        )
    changes: dict[str, Any] = {}
    if arguments.sparsity is not None:
        changes["target"] = dataclasses.replace(recipe.target, sparsity=arguments.sparsity)
    if arguments.seed is not None:
        changes["seed"] = arguments.seed
    kept = tuple(LayerRule(match=name, skip=True) for name in arguments.keep_dense)
    return dataclasses.replace(recipe, layers=recipe.layers + kept, **changes)


def _training_plan(arguments: argparse.Namespace, recipe: Recipe) -> TrainingPlan | None:
    """None without a dataset."""
    if arguments.dataset is None:
        given = [key for key in _TRAINING if getattr(arguments, key) is not None]
        given += ["checkpoint"] if arguments.checkpoint is not None else []
        given += ["resume"] if arguments.resume else []
        if given:
            option = given[0].replace("_", "-")
            raise GshwError(f"--{option} is about training, which needs --dataset")
        if not isinstance(recipe.method, OneShot):
            raise GshwError(
                f"method {recipe.method.kind!r} acts during training, which needs --dataset"
            )
        return None
    if arguments.resume and arguments.checkpoint is None:
        raise GshwError("--resume needs --checkpoint FILE")
    values = {
        key: default if getattr(arguments, key) is None else getattr(arguments, key)
        for key, default in _TRAINING.items()
    }
    return TrainingPlan(
        n_epochs=values["epochs"],
        batch_size=values["batch_size"],
        learning_rate=values["learning_rate"],
        seed=recipe.seed,
    )


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Tell before hours of training what could not be written after them."""
    paths = (
        arguments.output,
        arguments.save_weights,
        arguments.json,
        arguments.plot,
        arguments.checkpoint,
    )
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise GshwError(f"{path}: cannot be written: No such file or directory")
    checkpoint = arguments.checkpoint
    if checkpoint is not None and checkpoint.exists() and not arguments.resume:
        raise GshwError(f"{checkpoint}: is there already; go on with --resume, or remove it")


@dataclass(kw_only=True)
class _Run:
    """Everything of one command, checked before anything is done.

    Parameters
    ----------
    batches
        For calibration: (input, target) with a dataset, else inputs.
    plan, data
        None without training.
    quantisation
        That the training has lived with, or None.
    """

    arguments: argparse.Namespace
    recipe: Recipe
    model: nn.Module
    batches: list
    data: TaskData | None
    plan: TrainingPlan | None
    quantisation: Quantisation | None = None

    @property
    def config(self) -> Config:
        return self.recipe.config

    @property
    def example(self) -> Tensor:
        first = self.batches[0]
        return first if isinstance(first, Tensor) else first[0]


def _prepare(arguments: argparse.Namespace, world: World) -> _Run:
    recipe = resolve_recipe(arguments)
    plan = _training_plan(arguments, recipe)
    if world.rank == 0:
        _check_outputs(arguments)
    torch.manual_seed(recipe.seed)
    model = load_factory(arguments.factory)
    if arguments.weights is not None:
        load_weights(model, arguments.weights)
    data = None if arguments.dataset is None else load_dataset(arguments.dataset)
    if data is not None and plan is not None:
        plan.steps_per_epoch(len(data.training), world.size)
    seed_epoch(recipe.seed, _EXAMPLE_EPOCH, 0)
    if data is not None and arguments.calibration is None:
        # Spread over the set, which may be sorted by class.
        spread = range(0, len(data.training), -(-len(data.training) // _N_CALIBRATION_SAMPLES))
        batches = list(DataLoader(Subset(data.training, spread), plan.batch_size))
    else:
        batches = [load_samples(arguments.calibration, arguments.input_shape, recipe.seed)]
    run = _Run(
        arguments=arguments, recipe=recipe, model=model, batches=batches, data=data, plan=plan
    )
    if run.example.is_floating_point() and not torch.isfinite(run.example).all():
        raise GshwError("calibration samples must be finite")
    _check_runs(model, run.example)
    names = [weight.name for weight in find_weights(run.config.engine, model, run.example)[0]]
    for name in arguments.keep_dense:
        if not any(fnmatchcase(found, name) for found in names):
            raise GshwError(f"no layer {name!r} to keep dense; the layers are {', '.join(names)}")
    return run


def _check_runs(model: nn.Module, example: Tensor) -> None:
    try:
        with evaluating(model):
            model(example)
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise GshwError(
            f"the model does not run on input {tuple(example.shape)}: {lines[0]}"
        ) from None


def _train(run: _Run, world: World, console: Console) -> tuple[GSPruner, list[EpochRecord]]:
    model, recipe, plan, data = run.model.to(world.device), run.recipe, run.plan, run.data
    assert plan is not None and data is not None
    batches = moved(run.batches, world.device)
    pruner = GSPruner(model, recipe)
    n_steps = plan.n_epochs * plan.steps_per_epoch(len(data.training), world.size)
    # What goes wrong here goes wrong in all processes.
    with world.agreeing():
        pruner.prepare(
            n_steps,
            example=run.example.to(world.device),
            calibration=batches,
            loss=data.loss,
            quantise=False,
        )
    checkpoint = None
    if run.arguments.checkpoint is not None:
        checkpoint = Checkpoint(
            path=run.arguments.checkpoint,
            run={
                "recipe": recipe.hash[:16],
                "config": run.config.engine.hash,
                "factory": run.arguments.factory,
                "dataset": f"{run.arguments.dataset} of {len(data.training)} samples",
                "epochs": plan.n_epochs,
                "batch size": plan.batch_size,
                "learning rate": plan.learning_rate,
            },
        )
    aware = recipe.quantisation.aware_from < 1
    records = train(
        model,
        pruner,
        data,
        plan,
        world=world,
        checkpoint=checkpoint,
        quantise=(
            lambda: attach_quantisation(run.config.engine, model, batches, recipe.quantisation)
        )
        if aware
        else None,
        quantise_from=recipe.quantisation.aware_from,
        console=console,
    )
    if aware:
        run.quantisation = detach_quantisation(model)
    model.to("cpu")
    return pruner, records


def _encode(run: _Run, pruner: GSPruner) -> tuple[EncodedModel, str | None]:
    """The artefact, and why its layers are not one chain of the engine's own, if so."""
    engine, model, recipe = run.config.engine, run.model, run.recipe
    inputs = [batch if isinstance(batch, Tensor) else batch[0] for batch in run.batches]
    provenance = {
        "command": shlex.join(["gshw", *run.arguments.raw]),
        "sparsity": f"{recipe.target.sparsity:g}",
        "seed": str(recipe.seed),
        "recipe": json.dumps(recipe.as_dict(), sort_keys=True),
        "recipe_hash": recipe.hash,
        "config_hash": engine.hash,
    }
    if run.plan is not None:
        provenance["training"] = json.dumps({"dataset": run.arguments.dataset, **asdict(run.plan)})
    # Activations of the pruned model differ from those of the dense one.
    quantisation = run.quantisation or calibrate(engine, model, inputs, recipe.quantisation)
    projections = pruner.projections
    try:
        layers = analyse(engine, model, inputs[0])
        names = [layer.name for layer in layers]
        for name in projections:
            if name not in names:
                raise GshwError(f"layer {name!r} is not one that torch.fx sees called")
    except GshwError as error:
        weights, _ = find_weights(engine, model, inputs[0])
        encoded = export_matrices(engine, model, weights, projections, quantisation, provenance)
        return encoded, str(error)
    return export(engine, layers, projections, provenance, quantisation), None


def _target(recipe: Recipe, name: str) -> float:
    own = [
        rule.sparsity
        for rule in recipe.layers
        if rule.sparsity is not None and fnmatchcase(name, rule.match)
    ]
    return own[-1] if own else recipe.target.sparsity


def _finish(
    run: _Run,
    pruner: GSPruner,
    records: list[EpochRecord],
    errors: dict[str, float],
    console: Console,
) -> None:
    """Encode, write what was asked for, and report."""
    arguments, recipe = run.arguments, run.recipe
    pruner.squash_mask()
    encoded, unchained = _encode(run, pruner)
    rows = pruned_layers(
        run.config.engine,
        encoded,
        pruner.projections,
        {name: _target(recipe, name) for name in pruner.projections},
        recipe.pattern.label,
        errors,
    )
    save_model(arguments.output, run.config.engine, encoded)
    if arguments.save_weights is not None:
        write_atomically(arguments.save_weights, save(state_tensors(run.model)))
    title = f"{arguments.factory} on {run.config.name}, cycles by the cycle law"
    print_wide(console, pruning_table(rows, title))
    notes = [] if unchained is None else [f"each matrix is a layer of its own: {unchained}"]
    notes += [f"kept dense: {name}: {reason}" for name, reason in pruner.skipped.items()]
    notes += [f"warning: {line}" for line in pruner.warnings]
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)
    data = {
        "recipe": recipe.as_dict(),
        "recipe_hash": recipe.hash,
        "layers": [row.as_json() for row in rows],
        "total": totals(rows).as_json(),
        "kept_dense": pruner.skipped,
        "warnings": pruner.warnings,
        "training": [asdict(record) for record in records],
    }
    write_record(arguments.json, run.config, arguments.raw, recipe.seed, data)
    if arguments.plot is not None:
        from pruning.plots import plot_pruning

        plot_pruning(arguments.plot, rows, title)
    print(arguments.output)


def prune_command(arguments: argparse.Namespace, console: Console) -> int:
    """Prune one-shot or in training, quantise, encode, write the artefact and report."""
    records: list[EpochRecord] = []
    errors: dict[str, float] = {}
    with join_world() as world, told_once(world):
        console = console if world.rank == 0 else Console(quiet=True)
        with world.agreeing():
            run = _prepare(arguments, world)
        if run.plan is not None:
            pruner, records = _train(run, world, console)
        elif world.size > 1:
            raise GshwError("several processes have nothing to share without --dataset")
        else:
            dense = copy.deepcopy(run.model)
            pruner = prune(run.model, run.recipe, calibration=run.batches, example=run.example)
            # Dealt channels come in another order than the dense model's.
            if not run.recipe.channels.deal:
                errors = output_errors(dense, run.model, pruner.weights, run.example)
    if world.rank == 0:
        _finish(run, pruner, records, errors, console)
    return 0
