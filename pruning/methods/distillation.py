"""Data-free distillation: the dense model teaches the pruned one on inputs that nobody collected.

Who has the model but not the data makes inputs from the model itself. Where it has batch norms,
their running statistics say what the data looked like inside: noise is optimised until every batch
norm sees its own mean and variance (DeepInversion, Yin et al. 2020, arXiv 1912.08795; ZeroQ, Cai
et al. 2020, arXiv 2001.00281). Elsewhere the inputs are Gaussian, or random tokens. The pruned
model then learns the dense one's answers (Hinton et al. 2015, arXiv 1503.02531) with its masks
live, and the owner of the data only has to train on under the masks (the split of labour of
privacy-preserving compression, Gong et al. 2020, arXiv 2003.06513).
"""

import copy
import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gshw.errors import GshwError
from pruning.checks import is_integer, is_number, require
from pruning.models.masking import masked_tensors
from pruning.pruner import GSPruner
from pruning.recipe import Recipe

Advance = Callable[[str, int, int], None]
"""Told after each step: what is being done, steps done, steps in all."""

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_STILL = (_BATCH_NORMS, nn.modules.dropout._DropoutNd)


class Lesson(enum.Enum):
    """What the student is to match: the softened answers, or what its pruned layers put out."""

    ANSWERS = "answers"
    FEATURES = "features"


def _require_count(key: str, value: object) -> None:
    require(is_integer(value) and value >= 1, key, "an integer of at least 1", value)


def _require_positive(key: str, value: object) -> None:
    require(is_number(value) and value > 0, key, "above 0", value)


@dataclass(frozen=True, kw_only=True)
class InputPlan:
    """Inputs to make up.

    Parameters
    ----------
    shape
        Of one sample, without the batch.
    n_batches, batch_size
        At least 1 each.
    mean, deviation
        Of the values: what the model's inputs are normalised to.
    n_tokens
        For a model that reads token numbers: how many there are. None: it reads floats.
    n_steps, learning_rate
        Of Adam on the inputs, where there are batch norms to match; 0 steps leave them random.
    seed
        Of the noise.
    """

    shape: tuple[int, ...]
    n_batches: int = 8
    batch_size: int = 32
    mean: float = 0.0
    deviation: float = 1.0
    n_tokens: int | None = None
    n_steps: int = 200
    learning_rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        good = bool(self.shape) and all(is_integer(size) and size >= 1 for size in self.shape)
        require(good, "shape", "positive integers", self.shape)
        _require_count("n_batches", self.n_batches)
        _require_count("batch_size", self.batch_size)
        require(is_number(self.mean), "mean", "a number", self.mean)
        _require_positive("deviation", self.deviation)
        if self.n_tokens is not None:
            _require_count("n_tokens", self.n_tokens)
        good = is_integer(self.n_steps) and self.n_steps >= 0
        require(good, "n_steps", "an integer of at least 0", self.n_steps)
        _require_positive("learning_rate", self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class LessonPlan:
    """How the student learns.

    Parameters
    ----------
    n_steps
        Of Adam; batches take turns.
    learning_rate
        At first; it falls to nothing along a half cosine.
    lesson
        Answers: the divergence of the softened outputs, times the squared temperature. Features:
        the squared error of the pruned layers' and the model's outputs, each relative to the
        teacher's squares.
    temperature
        Of the answers' softmax.
    class_axis
        Axis of the outputs that holds the classes.
    """

    n_steps: int = 500
    learning_rate: float = 1e-3
    lesson: Lesson = Lesson.ANSWERS
    temperature: float = 4.0
    class_axis: int = 1

    def __post_init__(self) -> None:
        _require_count("n_steps", self.n_steps)
        _require_positive("learning_rate", self.learning_rate)
        _require_positive("temperature", self.temperature)
        require(is_integer(self.class_axis), "class_axis", "an integer", self.class_axis)


# --- inputs --------------------------------------------------------------------------------------


def synthesise(model: nn.Module, plan: InputPlan, advance: Advance | None = None) -> list[Tensor]:
    """Batches of inputs that look to the model like its training data.

    The model runs in evaluation mode and is left as it was.

    Parameters
    ----------
    advance
        For progress.

    Returns
    -------
    list of Tensor
        ``n_batches`` of shape (batch_size, *shape), on the model's device; int64 tokens, else
        the dtype of its parameters.
    """
    like = next(model.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(plan.seed)
    size = (plan.batch_size, *plan.shape)
    if plan.n_tokens is not None:
        return [
            torch.randint(plan.n_tokens, size, generator=generator).to(like.device)
            for _ in range(plan.n_batches)
        ]
    batches = [
        (plan.mean + plan.deviation * torch.randn(size, generator=generator)).to(like)
        for _ in range(plan.n_batches)
    ]
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BATCH_NORMS) and module.running_mean is not None
    ]
    if not norms or not plan.n_steps:
        return batches
    with _frozen(model):
        return [
            _matched(model, norms, batch, plan, _shifted(advance, place, plan))
            for place, batch in enumerate(batches)
        ]


def _shifted(advance: Advance | None, place: int, plan: InputPlan) -> Callable[[int], None]:
    """Progress of all batches from that of one."""

    def tell(done: int) -> None:
        if advance is not None:
            advance("inputs", place * plan.n_steps + done, plan.n_batches * plan.n_steps)

    return tell


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients for the parameters; all restored."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    model.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def _matched(
    model: nn.Module,
    norms: Sequence[nn.Module],
    batch: Tensor,
    plan: InputPlan,
    tell: Callable[[int], None],
) -> Tensor:
    """Move a batch until every batch norm sees its running statistics."""
    batch = batch.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([batch], lr=plan.learning_rate)
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(_mismatch(args[0], module.running_mean, module.running_var))

    hooks = [module.register_forward_pre_hook(watch) for module in norms]
    try:
        for step in range(plan.n_steps):
            seen.clear()
            with torch.enable_grad():
                model(batch)
                # The inputs themselves are normalised: one more statistic to keep.
                flat = (batch - plan.mean) / plan.deviation
                loss = torch.stack(seen).sum() + flat.mean() ** 2 + (flat.var() - 1.0) ** 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            tell(step + 1)
    finally:
        for hook in hooks:
            hook.remove()
    return batch.detach()


def _mismatch(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Distance of a batch's channel statistics from the running ones, in their own units."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    scale = variance + 1e-5
    moved = (x.mean(axes) - mean).square() / scale
    spread = (x.var(axes, unbiased=False) / scale - 1.0).square()
    return moved.mean() + spread.mean()


# --- learning ------------------------------------------------------------------------------------


def distil(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Sequence[Tensor],
    plan: LessonPlan,
    pruner: GSPruner | None = None,
    advance: Advance | None = None,
) -> nn.Module:
    """Train a student to do as its teacher does, with whatever masks it has live.

    Batch-norm statistics stay as they are, which made-up inputs would spoil, and dropout is off.
    The teacher runs in evaluation mode and is left as it was.

    Parameters
    ----------
    inputs
        Batches, as from :func:`synthesise`.
    pruner
        Prepared for the student and ``plan.n_steps``: its penalty joins the loss and its schedule
        is followed. None: masks stay.
    advance
        For progress.

    Returns
    -------
    Module
        The student, trained in place.

    Raises
    ------
    GshwError
        Without inputs, for outputs that do not fit the lesson, or a loss that is not finite.
    """
    if not inputs:
        raise GshwError("distillation needs at least one batch of inputs")
    optimiser = torch.optim.Adam(
        [parameter for parameter in student.parameters() if parameter.requires_grad],
        lr=plan.learning_rate,
    )
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.n_steps)
    modes = [(module, module.training) for module in student.modules()]
    student.train()
    for module in student.modules():
        if isinstance(module, _STILL):
            module.eval()
    features = _Features(teacher, student) if plan.lesson is Lesson.FEATURES else None
    try:
        with _frozen(teacher):
            for step in range(plan.n_steps):
                x = inputs[step % len(inputs)]
                with torch.no_grad():
                    wanted = _first_tensor(teacher(x))
                found = _first_tensor(student(x))
                if features is None:
                    loss = _divergence(found, wanted, plan)
                else:
                    loss = features.error() + _relative_error(found, wanted)
                if not torch.isfinite(loss):
                    raise GshwError(f"distillation: the loss is {loss.item():g} at step {step + 1}")
                if pruner is not None:
                    loss = loss + pruner.penalty()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                decay.step()
                if pruner is not None:
                    pruner.step()
                if advance is not None:
                    advance("distillation", step + 1, plan.n_steps)
    finally:
        if features is not None:
            features.remove()
        for module, training in modes:
            module.training = training
    return student


def prune_without_data(
    model: nn.Module, recipe: Recipe, inputs: InputPlan, lesson: LessonPlan
) -> GSPruner:
    """Prune a model by any method of a recipe, taught by what it was before.

    Returns
    -------
    GSPruner
        Of the model, which is changed in place; its masks are live.

    Raises
    ------
    GshwError
        As :meth:`GSPruner.prepare` and :func:`distil`; or for features of dealt channels, whose
        order differs from the teacher's, or of quantised layers, which have the batch norms in
        them.
    """
    if recipe.channels.deal and lesson.lesson is Lesson.FEATURES:
        raise GshwError(
            "features of dealt channels are in another order than the teacher's; distil answers, "
            "or leave [channels] deal off"
        )
    if recipe.quantisation.aware_from < 1 and lesson.lesson is Lesson.FEATURES:
        raise GshwError(
            "features of quantised layers have the batch norms in them, the teacher's do not; "
            "distil answers, or leave [quantisation] aware_from at 1"
        )
    teacher = copy.deepcopy(model)
    batches = synthesise(teacher, inputs)
    pruner = GSPruner(model, recipe)
    pruner.prepare(lesson.n_steps, example=batches[0], calibration=batches)
    distil(teacher, model, batches, lesson, pruner)
    return pruner


def _first_tensor(output: object) -> Tensor:
    """The output, or the first part of one in parts."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise GshwError(f"distillation needs tensors as outputs, not {type(output).__name__}")
    return output


def _divergence(found: Tensor, wanted: Tensor, plan: LessonPlan) -> Tensor:
    """Kullback-Leibler divergence of the softened answers, mean over all but the classes."""
    axis = plan.class_axis
    if not -found.ndim <= axis < found.ndim:
        raise GshwError(f"class_axis must be an axis of outputs {tuple(found.shape)}, not {axis}")
    log_found = (found / plan.temperature).log_softmax(axis)
    log_wanted = (wanted / plan.temperature).log_softmax(axis)
    divergence = (log_wanted.exp() * (log_wanted - log_found)).sum(axis)
    return divergence.mean() * plan.temperature**2


def _relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum() / (wanted.square().sum() + 1e-12)


class _Features:
    """Outputs of the student's masked layers and of the same layers of its teacher."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        masked = {id(module) for module, _ in masked_tensors(student)}
        names = [name for name, module in student.named_modules() if id(module) in masked]
        self._found: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}
        self._hooks = []
        for name in names:
            for model, seen in ((student, self._found), (teacher, self._wanted)):
                module = model.get_submodule(name)
                self._hooks.append(module.register_forward_hook(_keeper(seen, name)))

    def error(self) -> Tensor:
        """Mean over the layers that ran, and forget their outputs."""
        errors = [_relative_error(self._found[name], self._wanted[name]) for name in self._found]
        self._found.clear()
        self._wanted.clear()
        return torch.stack(errors).mean() if errors else torch.zeros(())

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _keeper(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple, object], None]:
    def keep(_, __, output: object) -> None:
        seen[name] = _first_tensor(output)

    return keep
