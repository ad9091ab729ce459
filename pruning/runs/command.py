"""``gshw prune``: any torch model, with or without training, to an encoded artefact."""

import argparse
import copy
import hashlib
import json
import shlex
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from gshw.artefact import EncodedModel, save_model
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.report import print_wide, progress_bar, write_record
from pruning.integers.quantisation import attach_quantisation, detach_quantisation
from pruning.integers.ranges import calibrate
from pruning.methods.distillation import InputPlan, Lesson, LessonPlan, distil, synthesise
from pruning.models.export import export, export_matrices, state_tensors
from pruning.models.layers import analyse
from pruning.models.weights import find_weights
from pruning.pruner import GSPruner, prune
from pruning.recipe import Recipe
from pruning.recovery.compensation import LayerErrors, compensate_model
from pruning.runs.checkpoint import Checkpoint
from pruning.runs.execution import Run, prepare_run
from pruning.runs.loading import ROW_ORDERS, row_orders_text
from pruning.runs.options import option
from pruning.runs.report import output_errors, pruned_layers, pruning_table, totals
from pruning.runs.training import moved, train
from pruning.runs.world import World, join_world, told_once
from pruning.settings import Recovery

_DISTILLED_BATCH = 32

# --- three ways to prune --------------------------------------------------------------------------


def _prune_at_once(run: Run, console: Console) -> GSPruner:
    dense = copy.deepcopy(run.model)
    run.measure("before")
    with _busy(console, "pruning"):
        pruner = prune(
            run.model,
            run.recipe,
            calibration=run.batches,
            example=run.example,
            loss=run.data and run.data.loss,
            keep=run.kept,
        )
    run.measure("after")
    if pruner.errors:
        _tell_compensation(run, pruner.errors, "[compensation]")
    _compare_outputs(run, pruner, dense)
    return pruner


def _train(run: Run, world: World, console: Console) -> GSPruner:
    model, recipe, plan, data = run.model.to(world.device), run.recipe, run.plan, run.data
    assert plan is not None and data is not None
    batches = moved(run.batches, world.device)
    run.measure("before", world)
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
            keep=run.kept,
        )
        _compensate(run, pruner, batches, n_steps, console)
    checkpoint = None
    if run.arguments.checkpoint is not None:
        checkpoint = Checkpoint(
            path=run.arguments.checkpoint,
            run={
                "engine": run.config.engine.hash[:16],
                "recipe": {k: v for k, v in recipe.as_dict().items() if k != "engine"},
                "factory": run.arguments.factory,
                "weights SHA-256": _digest(run.arguments.weights),
                "calibration SHA-256": _digest(run.arguments.calibration),
                "dataset": f"{run.arguments.dataset} of {len(data.training)} samples",
                "epochs": plan.n_epochs,
                "batch size": plan.batch_size,
                "learning rate": plan.learning_rate,
            },
        )
    aware = recipe.quantisation.aware_from < 1
    run.records = train(
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
    last = run.records[-1]
    run.measured["after"] = last.validation_loss, last.metric
    if aware:
        run.quantisation = detach_quantisation(model)
    model.to("cpu")
    return pruner


def _digest(path: Path | None) -> str | None:
    """SHA-256 of a file's bytes: its name says nothing of what is in it."""
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _distil(run: Run, world: World, console: Console) -> GSPruner:
    """Prune without data: the model as it was teaches, on inputs that are made up from it."""
    arguments, recipe = run.arguments, run.recipe
    model, samples = run.model.to(world.device), run.example
    look: dict[str, float] = {}
    if arguments.calibration is not None and arguments.tokens is None:
        deviation = float(samples.std()) if samples.numel() > 1 else 0.0
        look = {"mean": float(samples.mean()), "deviation": deviation or 1.0}
    inputs = InputPlan(
        shape=tuple(samples.shape[1:]),
        batch_size=arguments.batch_size or _DISTILLED_BATCH,
        n_tokens=arguments.tokens,
        seed=recipe.seed,
        **look,
    )
    # Features say more than answers, but those of dealt channels come in another order, and those
    # of quantised layers have the batch norms in them, which the teacher's lack.
    answers = recipe.channels.deal or recipe.quantisation.aware_from < 1
    lesson = LessonPlan(
        n_steps=arguments.data_free,
        learning_rate=option(arguments, "learning_rate"),
        lesson=Lesson.ANSWERS if answers else Lesson.FEATURES,
    )
    teacher = copy.deepcopy(model)
    with progress_bar(console) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        batches = synthesise(teacher, inputs, advance)
        pruner = GSPruner(model, recipe)
        pruner.prepare(lesson.n_steps, example=batches[0], calibration=batches, keep=run.kept)
        _compensate(run, pruner, batches, lesson.n_steps, Console(quiet=True))
        distil(teacher, model, batches, lesson, pruner, advance)
    model.to("cpu")
    if arguments.calibration is None:
        run.batches = moved(batches, torch.device("cpu"))
    run.distilled = {
        "inputs": asdict(inputs),
        "lesson": {**asdict(lesson), "lesson": lesson.lesson.value},
    }
    _compare_outputs(run, pruner, teacher.to("cpu"))
    return pruner


def _compensate(run: Run, pruner: GSPruner, batches: list, n_steps: int, console: Console) -> None:
    """Solve the kept weights anew before they are trained on, where masks are final by then.

    A short fine-tuning ends better from compensated weights than from those of the dense network,
    the more so the sparser the model is.
    """
    choice, method = run.recipe.compensation, run.recipe.method
    if choice.kind is Recovery.NONE:
        return
    if method.steps(n_steps)[-1] > 0:
        run.notes.append(
            f"[compensation] is left out: method {method.kind!r} still changes masks during the "
            "training, which makes up for them itself"
        )
        return
    with _busy(console, "compensating"):
        errors = compensate_model(
            run.model,
            pruner.weights,
            batches,
            steps=choice.steps,
            batch_norm=choice.batch_norm,
        )
    _tell_compensation(run, errors, "[compensation] before the training")


def _tell_compensation(run: Run, errors: dict[str, LayerErrors], what: str) -> None:
    run.compensated = {name: asdict(error) for name, error in errors.items()}
    before, after = (
        100 * sum(error[key] for error in run.compensated.values()) / len(errors)
        for key in ("before", "after")
    )
    run.notes.append(f"{what}: mean output error of a layer {before:.1f} % -> {after:.1f} %")


def _compare_outputs(run: Run, pruner: GSPruner, dense: nn.Module) -> None:
    # Dealt channels come in another order than the dense model's.
    if not run.recipe.channels.deal:
        run.errors = output_errors(dense, run.model, pruner.weights, run.example)


def _busy(console: Console, what: str):
    """A sign of life on a terminal, silence in a pipe."""
    return console.status(what) if console.is_terminal else nullcontext()


# --- the end ------------------------------------------------------------------------------------


def _encode(run: Run, pruner: GSPruner) -> tuple[EncodedModel, str | None]:
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
    if run.distilled is not None:
        provenance["data_free"] = json.dumps(run.distilled)
    # Activations of the pruned model differ from those of the dense one.
    quantisation = run.quantisation or pruner.quantisation
    if quantisation is None:
        quantisation = calibrate(engine, model, inputs, recipe.quantisation)
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
    _, own = recipe.rule(name)
    return recipe.target.sparsity if own is None else own


def _validation(run: Run) -> list[str]:
    """What pruning did to loss and metric, in one line."""
    if "before" not in run.measured or "after" not in run.measured:
        return []
    (loss, metric), (new_loss, new_metric) = run.measured["before"], run.measured["after"]
    line = f"validation loss {loss:.4f} -> {new_loss:.4f}"
    if metric is not None and new_metric is not None:
        line += f", metric {metric:.4f} -> {new_metric:.4f}"
    return [line]


def _finish(run: Run, pruner: GSPruner, console: Console) -> None:
    """Encode, write what was asked for, and report."""
    arguments, recipe = run.arguments, run.recipe
    pruner.squash_mask()
    with _busy(console, "encoding"):
        encoded, unchained = _encode(run, pruner)
    rows = pruned_layers(
        run.config.engine,
        encoded,
        pruner.projections,
        {name: _target(recipe, name) for name in pruner.projections},
        recipe.pattern.label,
        run.errors,
    )
    save_model(arguments.output, run.config.engine, encoded)
    if arguments.save_weights is not None:
        metadata = {ROW_ORDERS: row_orders_text(pruner.projections)}
        write_atomically(arguments.save_weights, save(state_tensors(run.model), metadata))
    title = f"{arguments.factory} on {run.config.name}, cycles by the cycle law"
    print_wide(console, pruning_table(rows, title))
    notes = _validation(run) + run.notes
    if unchained is not None:
        notes.append(f"each matrix is a layer of its own: {unchained}")
    if run.data is None and arguments.calibration is None:
        notes.append("activation ranges are those of made-up inputs; --calibration gives real ones")
    notes += [f"kept dense: {name}: {reason}" for name, reason in pruner.skipped.items()]
    notes += [f"warning: {line}" for line in pruner.warnings]
    for note in notes:
        console.print(note, soft_wrap=True, markup=False, highlight=False)
    data = {
        "recipe": recipe.as_dict(),
        "recipe_hash": recipe.hash,
        "layers": [row.as_json() for row in rows],
        "total": totals(rows).as_json(),
        "kept_dense": pruner.skipped,
        "kept_masks": list(run.kept),
        "warnings": pruner.warnings,
        "validation": {
            when: {"loss": loss, "metric": metric} for when, (loss, metric) in run.measured.items()
        },
        "compensation": run.compensated,
        "training": [asdict(record) for record in run.records],
        "data_free": run.distilled,
    }
    write_record(arguments.json, run.config, arguments.raw, recipe.seed, data)
    if arguments.plot is not None:
        from pruning.plots import plot_pruning

        plot_pruning(arguments.plot, rows, title)
    print(arguments.output)


def prune_command(arguments: argparse.Namespace, console: Console) -> int:
    """Prune at once, in training or without data; quantise, encode, write and report."""
    with join_world() as world, told_once(world):
        console = console if world.rank == 0 else Console(quiet=True)
        with world.agreeing():
            run = prepare_run(arguments, world)
        if run.plan is not None:
            pruner = _train(run, world, console)
        elif arguments.data_free is not None:
            pruner = _distil(run, world, console)
        else:
            pruner = _prune_at_once(run, console)
    if world.rank == 0:
        _finish(run, pruner, console)
    return 0
