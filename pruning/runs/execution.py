"""One ``gshw prune``: everything that it needs, read and checked, and what comes of it."""

import argparse
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gshw.config import Config
from gshw.errors import GshwError
from pruning.checks import first_line
from pruning.integers.ranges import Quantisation
from pruning.models.weights import find_weights
from pruning.patterns.pattern import Projection
from pruning.recipe import Recipe
from pruning.recovery.calibration import evaluating
from pruning.runs.loading import (
    kept_masks,
    load_dataset,
    load_factory,
    load_samples,
    load_weights,
)
from pruning.runs.options import check_outputs, option, resolve_recipe, training_plan
from pruning.runs.training import (
    EpochRecord,
    TaskData,
    TrainingPlan,
    evaluate,
    read_batches,
    seed_epoch,
)
from pruning.runs.world import World

_N_CALIBRATION_SAMPLES = 256
_EXAMPLE_EPOCH = 2**31
"""Seeds what calibration draws, beyond all epochs."""


@dataclass(kw_only=True)
class Run:
    """Everything of one command, checked before anything is done, and what came of it.

    Parameters
    ----------
    batches
        For calibration: (input, target) with a dataset, else inputs.
    data
        None without a dataset.
    plan
        None without training on it.
    kept
        Masks that came with the weights.
    quantisation
        That the training has lived with, or None.
    measured
        Loss and metric on the validation set, by when.
    errors
        Of layers' outputs, by name, where they were measured.
    compensated
        Errors of layers' outputs before and after it, by name.
    distilled
        How the pruned model was taught without data.
    notes
        Lines for the user.
    """

    arguments: argparse.Namespace
    recipe: Recipe
    model: nn.Module
    batches: list
    data: TaskData | None
    plan: TrainingPlan | None
    kept: dict[str, Projection] = field(default_factory=dict)
    quantisation: Quantisation | None = None
    measured: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    records: list[EpochRecord] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    compensated: dict[str, dict[str, float]] = field(default_factory=dict)
    distilled: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> Config:
        return self.recipe.config

    @property
    def example(self) -> Tensor:
        first = self.batches[0]
        return first if isinstance(first, Tensor) else first[0]

    @property
    def batch_size(self) -> int:
        return option(self.arguments, "batch_size")

    def measure(self, when: str, world: World | None = None) -> None:
        """Loss and metric of the model as it is, if there is a validation set."""
        if self.data is not None:
            self.measured[when] = evaluate(self.model, self.data, self.batch_size, world)


def prepare_run(arguments: argparse.Namespace, world: World) -> Run:
    """Read and check all that the options name.

    Raises
    ------
    GshwError
        For anything that does not exist, contradicts another thing, or does not fit the model.
    """
    recipe = resolve_recipe(arguments)
    plan = training_plan(arguments, recipe)
    if plan is None and world.size > 1:
        raise GshwError("several processes have nothing to share but a training on a dataset")
    if world.rank == 0:
        check_outputs(arguments)
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
        loader = DataLoader(Subset(data.training, spread), option(arguments, "batch_size"))
        batches = list(read_batches(data.name, loader))
    else:
        samples = arguments.calibration, arguments.input_shape
        batches = [load_samples(*samples, recipe.seed, arguments.tokens)]
    run = Run(
        arguments=arguments, recipe=recipe, model=model, batches=batches, data=data, plan=plan
    )
    if run.example.is_floating_point() and not torch.isfinite(run.example).all():
        raise GshwError("calibration samples must be finite")
    _check_runs(model, run.example)
    weights, skipped = find_weights(run.config.engine, model, run.example)
    if arguments.weights is not None:
        run.kept = kept_masks(arguments.weights, model, recipe.pattern, weights, skipped)
        if run.kept:
            run.notes.append(f"masks of {arguments.weights} stay: {', '.join(run.kept)}")
    names = [weight.name for weight in weights]
    for name in arguments.keep_dense:
        if not any(fnmatchcase(found, name) for found in names):
            raise GshwError(f"no layer {name!r} to keep dense; the layers are {', '.join(names)}")
    return run


def _check_runs(model: nn.Module, example: Tensor) -> None:
    try:
        with evaluating(model):
            model(example)
    except Exception as error:
        hint = ""
        embeds = any(isinstance(module, nn.Embedding) for module in model.modules())
        if embeds and example.is_floating_point():
            hint = "; with --tokens N the inputs are token numbers below N"
        raise GshwError(
            f"the model does not run on input {tuple(example.shape)}: {first_line(error)}{hint}"
        ) from None
