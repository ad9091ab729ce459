"""What the options of ``gshw prune`` ask for, checked before anything is done."""

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from gshw.config import load_config
from gshw.errors import GshwError
from gshw.files import check_output_file
from pruning.methods.registry import OneShot
from pruning.patterns.gs import Gs
from pruning.patterns.pattern import RowGrouping
from pruning.recipe import Recipe, load_recipe
from pruning.runs.training import TrainingPlan
from pruning.scores import Score
from pruning.settings import LayerRule, SparsityTarget

_TRAINING = {"epochs": 10, "batch_size": 64, "learning_rate": 1e-3}
"""Options of a training on a dataset, and their defaults."""

_DISTILLING = ("batch_size", "learning_rate")
"""Those that distillation without data has too."""

_OUTPUTS = ("output", "save_weights", "json", "plot", "checkpoint")
_INPUTS = ("recipe", "config", "weights", "calibration")
_PICTURES = (".png", ".svg", ".pdf")


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


def training_plan(arguments: argparse.Namespace, recipe: Recipe) -> TrainingPlan | None:
    """How to train on the dataset; None for no training, or one without data.

    Raises
    ------
    GshwError
        For options or parts of the recipe that mean nothing here.
    """
    data_free = arguments.data_free is not None
    if arguments.dataset is not None and data_free:
        raise GshwError("--data-free learns from the dense model alone; leave out --dataset")
    if recipe.score.kind is Score.GRADIENT and arguments.dataset is None:
        raise GshwError("score 'gradient' needs the targets and the loss of a --dataset")
    made_up = arguments.dataset is None or arguments.calibration is not None
    if arguments.tokens is not None and not made_up:
        raise GshwError("--tokens is about --input-shape and --calibration; leave out --dataset")
    if arguments.dataset is None or arguments.epochs == 0:
        _require_untrained(arguments, recipe, data_free)
        return None
    if arguments.resume and arguments.checkpoint is None:
        raise GshwError("--resume needs --checkpoint FILE")
    return TrainingPlan(
        n_epochs=option(arguments, "epochs"),
        batch_size=option(arguments, "batch_size"),
        learning_rate=option(arguments, "learning_rate"),
        seed=recipe.seed,
    )


def _require_untrained(arguments: argparse.Namespace, recipe: Recipe, data_free: bool) -> None:
    """Refuse what acts in a training on a dataset only."""
    allowed = set(_DISTILLING) if data_free else set()
    why = "needs --dataset"
    if arguments.dataset is not None:
        # Zero epochs are given, and the dataset is still read in batches.
        allowed = {"epochs", "batch_size"}
        why = "--epochs 0 leaves out"
    for key in (*_TRAINING, "checkpoint", "resume"):
        value = getattr(arguments, key)
        if key not in allowed and value is not None and value is not False:
            raise GshwError(f"--{key.replace('_', '-')} is about training, which {why}")
    if not data_free and not isinstance(recipe.method, OneShot):
        raise GshwError(f"method {recipe.method.kind!r} acts during training, which {why}")


def option(arguments: argparse.Namespace, key: str) -> Any:
    """An option of the training, or its default."""
    given = getattr(arguments, key)
    return _TRAINING[key] if given is None else given


def check_outputs(arguments: argparse.Namespace) -> None:
    """Tell before hours of training what could not be written after them.

    Raises
    ------
    GshwError
        Naming the file: its folder is missing or not writable, it is a folder, or no picture; it
        is another file of the command, or a checkpoint of an earlier run.
    """
    taken = {}
    for key in _INPUTS:
        value = getattr(arguments, key)
        if value is not None and Path(value).is_file():
            taken[Path(value).resolve()] = key
    for key in _OUTPUTS:
        path = getattr(arguments, key)
        if path is None:
            continue
        check_output_file(path)
        other = taken.setdefault(path.resolve(), key)
        if other != key:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in (other, key))
            raise GshwError(f"{path}: is given for {names}; one would overwrite the other")
    check_plot(arguments.plot)
    checkpoint = arguments.checkpoint
    if checkpoint is not None and checkpoint.exists() and not arguments.resume:
        raise GshwError(f"{checkpoint}: is there already; go on with --resume, or remove it")


def check_plot(plot: Path | None) -> None:
    """Refuse what no picture can be written to.

    Raises
    ------
    GshwError
        Naming the file, or the package that is missing.
    """
    if plot is None:
        return
    check_output_file(plot)
    if importlib.util.find_spec("matplotlib") is None:
        raise GshwError("--plot needs matplotlib: pip install 'gshw[prune]'")
    if plot.suffix not in _PICTURES:
        raise GshwError(f"{plot}: a picture must be {', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}")
