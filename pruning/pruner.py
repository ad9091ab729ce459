"""The pruner as a training loop sees it, and in one call without training."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gshw.errors import GshwError
from gshw.pattern import highest_sparsity
from pruning.channels.dealing import Dealing, deal_network
from pruning.checks import is_integer, require
from pruning.integers.quantisation import Quantisation, attach_quantisation, detach_quantisation
from pruning.methods.registry import OneShot
from pruning.models.masking import squash_masks
from pruning.models.weights import PrunableWeight, find_weights
from pruning.patterns.gs import Gs
from pruning.patterns.pattern import Projection, RowGrouping
from pruning.recipe import Recipe
from pruning.recovery.calibration import batch_input
from pruning.recovery.compensation import LayerErrors, compensate_model, reestimate_batch_norm
from pruning.settings import Recovery
from pruning.targets import ScoreSource, Target, Targets, world_size

STATE_VERSION = 1


class GSPruner:
    """Prunes a model as a recipe says, in the course of its training.

    Call :meth:`prepare` once, add :meth:`penalty` to every loss, call :meth:`step` after every
    step of the optimiser and :meth:`squash_mask` at the end. Until then masks are
    parametrisations of the model; weights keep their values below them.

    Under ``torch.distributed`` every rank does the same; masks are those of rank 0.

    Parameters
    ----------
    model
        Changed in place.
    recipe
        See :mod:`pruning.recipe`.

    Attributes
    ----------
    skipped
        Why a layer is left dense, by name.
    warnings
        One line each, about the masks at the recipe's sparsity.
    log
        (step, sparsity of all pruned weights together) after every update.
    quantisation
        Ranges for the export, once the recipe has made fake quantisation live.
    dealing
        Which channels went where, if the recipe deals them.
    errors
        Of layers' outputs, by name, where :func:`prune` has compensated.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self.skipped: dict[str, str] = {}
        self.warnings: list[str] = []
        self.log: list[tuple[int, float]] = []
        self.quantisation: Quantisation | None = None
        self.dealing: Dealing | None = None
        self.errors: dict[str, LayerErrors] = {}
        self._targets: Targets | None = None
        self._updates: list[int] = []
        self._n_steps = 0
        self._step = 0
        self._quantised_from: int | None = None
        self._squashed = False

    # --- the training loop's calls -----------------------------------------------------------

    def prepare(
        self,
        n_steps: int,
        example: Tensor | None = None,
        calibration: Iterable[Any] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        quantise: bool = True,
        keep: Mapping[str, Projection] | None = None,
    ) -> None:
        """Find the weights, deal the channels, attach masks, and do what is due before training.

        Parameters
        ----------
        n_steps
            Optimiser steps of the training; the recipe's fractions refer to it. 0 only for a
            method that has nothing to wait for.
        example
            A batch of inputs: for channel dealing, and for the column order of linear layers
            behind a flatten.
        calibration
            Batches of inputs, or tuples of (input, target, ...), kept: for scores that look at
            inputs or gradients and for activation ranges. The same on all ranks.
        loss
            Of (output, target), for gradient scores.
        quantise
            Make fake quantisation live when the recipe says. That folds batch norms, after which
            a model in DDP has to be wrapped anew: such a loop has to do both itself.
        keep
            Masks to leave as they are, by the name of a weight that has this mask already:
            whatever the recipe says of it, it is neither pruned further nor left dense.

        Raises
        ------
        GshwError
            For a second call, a rule that matches nothing, a sparsity that the pattern cannot
            have on a layer, a model of which nothing can be pruned, a missing example, loss or
            calibration, or channels to deal under masks to keep.
        """
        if self._targets is not None:
            raise GshwError("prepare was called already")
        require(
            is_integer(n_steps) and n_steps >= 0, "n_steps", "an integer of at least 0", n_steps
        )
        updates = self.recipe.method.steps(n_steps)
        batches = None if calibration is None else list(calibration)
        if quantise and self.recipe.quantisation.aware_from < 1:
            if not batches:
                raise GshwError("[quantisation] aware_from below 1 needs calibration batches")
            if world_size() > 1:
                raise GshwError(
                    "[quantisation] aware_from below 1: DDP must wrap the model anew then; have "
                    "the training loop attach the quantisation, and prepare with quantise=False"
                )
            # A late fraction of a short training leaves it at least the last step.
            start = round(self.recipe.quantisation.aware_from * n_steps)
            self._quantised_from = min(start, max(n_steps - 1, 0))
        source = ScoreSource(
            model=self.model,
            kind=self.recipe.score.kind,
            function=self.recipe.score.function,
            calibration=batches,
            loss=loss,
        )
        targets = self._find_targets(example, source, keep or {})
        # An impossible sparsity is told now, not after hours of training, nor after a change.
        trial = targets.project(targets.score())
        self.warnings = self._warn(targets, trial)
        if self.recipe.channels.deal:
            self.dealing = self._deal(example, targets)
        for target in targets:
            target.attach()
        self._targets, self._updates, self._n_steps = targets, updates, n_steps
        self._follow()

    def penalty(self) -> Tensor:
        """What to add to the loss, a scalar; zero where the method adds nothing."""
        targets = self._prepared()
        penalty = self.recipe.method.penalty(targets)
        if penalty is None:
            return torch.zeros((), device=targets.items[0].weight.dense.device)
        return penalty

    def step(self) -> None:
        """Follow the recipe's schedule; call it after every step of the optimiser."""
        self._masked()
        self._step += 1
        self._follow()

    def squash_mask(self) -> None:
        """Write the zeros into the weights and remove the masks; parameters stay the same objects.

        Fake quantisation ends too; its ranges stay in ``quantisation``.

        Raises
        ------
        GshwError
            Before the recipe's last update.
        """
        targets = self._masked()
        if self._step < self._updates[-1]:
            raise GshwError(
                f"masks are final after step {self._updates[-1]}, not at step {self._step}; go on "
                "training, or prepare for fewer steps"
            )
        for target in targets:
            target.projection = target.current
        if self.quantisation is not None:
            self.quantisation = detach_quantisation(self.model)
        squash_masks(self.model)
        self._squashed = True

    @property
    def projections(self) -> dict[str, Projection]:
        """Mask and bundles of every pruned weight by name; none before the first update."""
        current = {target.name: target.current for target in self._prepared()}
        return {name: found for name, found in current.items() if found is not None}

    @property
    def weights(self) -> list[PrunableWeight]:
        """All weights that are pruned, in the model's order."""
        return [target.weight for target in self._prepared()]

    # --- saved runs --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the model's own state does not hold; for ``torch.save``."""
        targets = self._masked()
        return {
            "version": STATE_VERSION,
            "recipe": self.recipe.hash,
            "n_steps": self._n_steps,
            "step": self._step,
            "log": [list(entry) for entry in self.log],
            "warnings": list(self.warnings),
            "targets": {target.name: target.save() for target in targets},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a run was saved: after :meth:`prepare`.

        Then load the model's own state: quantisation changes the model's modules, and this brings
        it to where the saved one was.

        Raises
        ------
        GshwError
            For the state of another recipe, length of training or model.
        """
        targets = self._masked()
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise GshwError(f"not a pruner's state of version {STATE_VERSION}")
        if state["recipe"] != self.recipe.hash:
            raise GshwError(
                f"the state was saved under another recipe ({state['recipe'][:8]}, not "
                f"{self.recipe.hash[:8]})"
            )
        if state["n_steps"] != self._n_steps:
            raise GshwError(
                f"the state was saved in a training of {state['n_steps']} steps, not "
                f"{self._n_steps}"
            )
        names = [target.name for target in targets]
        if list(state["targets"]) != names:
            raise GshwError(
                f"the state is of weights {', '.join(state['targets'])}; the model has "
                f"{', '.join(names)}"
            )
        for target in targets:
            target.restore(state["targets"][target.name])
        self._step = state["step"]
        self.log = [(step, sparsity) for step, sparsity in state["log"]]
        self.warnings = list(state["warnings"])
        self._quantise()
        self._watch()

    # --- inside ------------------------------------------------------------------------------

    def _prepared(self) -> Targets:
        if self._targets is None:
            raise GshwError("call prepare first")
        return self._targets

    def _masked(self) -> Targets:
        if self._squashed:
            raise GshwError("the masks are squashed; nothing is left to follow or to save")
        return self._prepared()

    def _follow(self) -> None:
        """Do the update that is due at the present step, if any."""
        targets = self._prepared()
        if self._step in self._updates:
            number = self._updates.index(self._step)
            self.recipe.method.update(targets, number)
            self.log.append((self._step, targets.sparsity))
            if number == len(self._updates) - 1:
                final = [target.projection for target in targets]
                self.warnings = self._warn(targets, [p for p in final if p is not None])
        self._quantise()
        self._watch()

    def _watch(self) -> None:
        """Have the backward pass of the next step keep dense gradients if its update reads them."""
        targets = self._prepared()
        due = self._step + 1
        reads = due in self._updates and self.recipe.method.reads_gradient(self._updates.index(due))
        for target in targets:
            target.mask.capture_gradient = reads

    def _quantise(self) -> None:
        """Make fake quantisation live if it is due."""
        start = self._quantised_from
        if start is None or self._step < start or self.quantisation is not None:
            return
        source = self._prepared().source
        assert source.calibration is not None, "prepare asked for it"
        self.quantisation = attach_quantisation(
            self.recipe.config.engine, self.model, source.calibration, self.recipe.quantisation
        )

    def _find_targets(
        self, example: Tensor | None, source: ScoreSource, keep: Mapping[str, Projection]
    ) -> Targets:
        recipe = self.recipe
        if keep and recipe.channels.deal:
            name = next(iter(keep))
            raise GshwError(f"[channels] deal would move the weights under a mask to keep: {name}")
        engine = recipe.config.engine
        weights, skipped = find_weights(engine, self.model, example)
        self.skipped = dict(skipped)
        recipe.check_names([weight.name for weight in weights], list(skipped))
        items = []
        for weight in weights:
            kept = keep.get(weight.name)
            reason = self._dense_reason(weight) if kept is None else None
            if reason is not None:
                self.skipped[weight.name] = reason
                continue
            _, own = recipe.rule(weight.name)
            sparsity = recipe.target.sparsity if own is None else own
            items.append(
                Target(weight=weight, sparsity=sparsity, own_budget=own is not None, kept=kept)
            )
        if not items:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise GshwError(f"no layer is left to prune ({reasons})")
        return Targets(
            config=engine,
            pattern=recipe.pattern,
            scope=recipe.target.scope,
            items=items,
            source=source,
            seed=recipe.seed,
        )

    def _dense_reason(self, weight: PrunableWeight) -> str | None:
        """Why a weight is not pruned, or None."""
        skip, _ = self.recipe.rule(weight.name)
        if skip:
            return "the recipe skips it"
        return self.recipe.pattern.refusal(weight.shape[0], weight.geometry)

    def _deal(self, example: Tensor | None, targets: Targets) -> Dealing:
        if example is None:
            raise GshwError("[channels] deal needs an example batch to follow through the model")
        scores = {t.name: found for t, found in zip(targets, targets.score(), strict=True)}
        # Masks of patterns that choose no bundles are encoded with scattered rows.
        grouping = getattr(self.recipe.pattern, "grouping", RowGrouping.SCATTER)
        sparsities = {target.name: target.sparsity for target in targets}
        return deal_network(targets.config, self.model, example, scores, sparsities, grouping)

    def _warn(self, targets: Targets, projections: Sequence[Projection]) -> list[str]:
        lines = []
        for target, projection in zip(targets, projections, strict=True):
            empty = int((~projection.mask.any(axis=1)).sum())
            if not empty:
                continue
            line = f"layer {target.name!r}: {empty} of {len(projection.mask)} rows keep no weight"
            if isinstance(self.recipe.pattern, Gs):
                most = highest_sparsity(targets.config, target.weight.shape[1])
                line += f"; all keep some up to sparsity {most:.4g}, or with fewer lanes per row"
            lines.append(line)
        return lines


def prune(
    model: nn.Module,
    recipe: Recipe,
    calibration: Iterable[Any] | None = None,
    example: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    keep: Mapping[str, Projection] | None = None,
) -> GSPruner:
    """Prune without training: scores, masks in one shot, compensation, batch-norm statistics.

    The recipe's method is replaced by one-shot and its quantisation is left to the export, since
    there is no training for them to act in. Masks stay live in the model; ``squash_mask`` of the
    result ends them.

    Parameters
    ----------
    model
        Changed in place.
    calibration
        Batches of inputs (or tuples that start with them). Needed by scores that look at inputs
        and by compensation; without it, batch-norm statistics stay as they are.
    example
        A batch of inputs; default: the first calibration batch.
    loss
        Of (output, target), for gradient scores.
    keep
        Masks to leave as they are; see :meth:`GSPruner.prepare`.

    Raises
    ------
    GshwError
        As :meth:`GSPruner.prepare`; or where compensation lacks calibration.
    """
    quantisation = dataclasses.replace(recipe.quantisation, aware_from=1.0)
    recipe = dataclasses.replace(recipe, method=OneShot(), quantisation=quantisation)
    choice = recipe.compensation
    batches = None if calibration is None else list(calibration)
    if choice.kind is Recovery.LEAST_SQUARES and not batches:
        raise GshwError("[compensation] kind 'least-squares' needs calibration batches")
    if example is None and batches:
        first = batch_input(batches[0])
        example = first if isinstance(first, Tensor) else None
    pruner = GSPruner(model, recipe)
    pruner.prepare(0, example=example, calibration=batches, loss=loss, keep=keep)
    if not batches:
        return pruner
    if choice.kind is Recovery.LEAST_SQUARES:
        pruner.errors = compensate_model(
            model,
            pruner.weights,
            batches,
            steps=choice.steps,
            max_weight=2 ** (recipe.weight_width - 1) - 1 if choice.integer else None,
            batch_norm=choice.batch_norm,
        )
    elif choice.batch_norm:
        reestimate_batch_norm(model, batches)
    return pruner
