"""Data-free distillation: inputs that fit the model, and students that come to answer alike."""

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

from gshw.errors import GshwError
from pruning.methods.distillation import (
    InputPlan,
    Lesson,
    LessonPlan,
    distil,
    prune_without_data,
    synthesise,
)
from pruning.models.masking import set_mask, weight_mask
from pruning.recipe import Recipe
from tests.test_pruner import CONFIG

torch.set_num_threads(1)


def trained(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """A network whose batch norms have seen inputs far from normal, and such inputs."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5)
    )
    mixing = torch.randn(8, 8)
    inputs = torch.randn(2048, 8) @ mixing * 0.3 + 0.5
    model.train()
    for _ in range(60):
        model(inputs)
    return model.eval(), inputs


def recipe_of(**sections) -> Recipe:
    document = {"pattern": {"kind": "unstructured"}, "target": {"sparsity": 0.5}}
    return Recipe.from_dict(document | sections, CONFIG)


def mismatch(model: nn.Module, x: torch.Tensor) -> float:
    """Distance of the batch's statistics from those the batch norm keeps."""
    with torch.no_grad():
        inside = model[0](x)
    norm = model[1]
    spread = norm.running_var.sqrt()
    moved = ((inside.mean(0) - norm.running_mean) / spread).abs().mean()
    return float(moved + (inside.std(0) / spread - 1).abs().mean())


# --- inputs --------------------------------------------------------------------------------------


def test_inputs_match_the_batch_norms():
    model, real = trained()
    known = {"mean": float(real.mean()), "deviation": float(real.std())}
    plan = InputPlan(shape=(8,), n_batches=2, batch_size=64, n_steps=150, **known)
    noise = synthesise(model, dataclasses.replace(plan, n_steps=0))
    before = copy.deepcopy(model.state_dict())
    model.train()
    found = synthesise(model, plan)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert [x.shape for x in found] == [(64, 8)] * 2 and not any(x.requires_grad for x in found)
    assert not torch.equal(found[0], found[1])
    for x, start in zip(found, noise, strict=True):
        assert mismatch(model, x) < 0.2 * mismatch(model, start)
    assert mismatch(model, real) < 0.3


def test_progress_of_inputs_and_lesson():
    model, _ = trained()
    told: list[tuple[str, int, int]] = []
    plan = InputPlan(shape=(8,), n_batches=2, batch_size=4, n_steps=3)
    x = synthesise(model, plan, lambda *step: told.append(step))
    distil(model, copy.deepcopy(model), x, LessonPlan(n_steps=2), advance=lambda *s: told.append(s))
    assert told == [
        *(("inputs", done, 6) for done in range(1, 7)),
        *(("distillation", done, 2) for done in (1, 2)),
    ]


def test_inputs_of_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    plan = InputPlan(shape=(3, 8, 8), n_batches=1, batch_size=4, n_steps=2)
    assert synthesise(model, plan)[0].shape == (4, 3, 8, 8)


def test_gaussian_inputs():
    """Without batch norms that keep statistics: the mean and deviation asked for."""
    model = nn.Sequential(nn.Linear(50, 4), nn.BatchNorm1d(4, track_running_stats=False)).double()
    plan = InputPlan(shape=(50,), n_batches=3, batch_size=100, mean=2.0, deviation=0.5)
    found = synthesise(model, plan)
    values = torch.stack(found)
    assert values.shape == (3, 100, 50) and values.dtype == torch.float64
    assert values.mean().item() == pytest.approx(2.0, abs=0.02)
    assert values.std().item() == pytest.approx(0.5, abs=0.02)
    again = synthesise(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    other = InputPlan(shape=(50,), n_batches=3, batch_size=100, seed=1)
    assert not torch.equal(synthesise(model, other)[0], found[0])


def test_token_inputs():
    plan = InputPlan(shape=(20,), n_tokens=7, n_batches=2, batch_size=30)
    found = synthesise(nn.Embedding(7, 4), plan)
    assert [x.shape for x in found] == [(30, 20)] * 2 and found[0].dtype == torch.int64
    assert set(torch.stack(found).unique().tolist()) == set(range(7))


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", Lesson)
def test_a_pruned_student_comes_to_answer_alike(lesson):
    """Its masks are live throughout, on data it has never seen."""
    teacher, real = trained()
    student = copy.deepcopy(teacher)
    weight = student[0].weight
    set_mask(student[0], weight.abs() >= weight.abs().median())
    mask = weight_mask(student[0]).mask.clone()
    before = copy.deepcopy(teacher.state_dict())

    def disagreement(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(real) - teacher(real)).square().mean())

    start = disagreement(student)
    plan = LessonPlan(n_steps=300, learning_rate=5e-3, lesson=lesson, temperature=1.0)
    # Plain noise is a worse teacher than inputs that fit the model.
    noise = synthesise(teacher, InputPlan(shape=(8,), n_batches=8, batch_size=64, n_steps=0))
    distracted = copy.deepcopy(student)
    distil(teacher, distracted, noise, plan)
    inputs = synthesise(teacher, InputPlan(shape=(8,), n_batches=8, batch_size=64, n_steps=50))
    student.train()
    assert distil(teacher, student, inputs, plan) is student
    assert student.training and student[1].training and not teacher.training
    assert torch.equal(weight_mask(student[0]).mask, mask)
    assert not student[0].weight[~mask].any()
    assert disagreement(student) < 0.8 * min(start, disagreement(distracted))
    # Statistics of made-up inputs do not replace those of the data.
    assert torch.equal(student[1].running_mean, teacher[1].running_mean)
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())
    assert all(p.requires_grad for p in teacher.parameters())


class Known:
    """A pruner of a known penalty: what it is added to decides the step."""

    def __init__(self, weight: torch.Tensor, slope: torch.Tensor) -> None:
        self.weight, self.slope, self.n_steps = weight, slope, 0

    def penalty(self) -> torch.Tensor:
        return (self.weight * self.slope).sum()

    def step(self) -> None:
        self.n_steps += 1


def test_answers_are_a_divergence():
    """One step of Adam goes against the gradient of T^2 KL(teacher || student) plus penalty."""
    torch.manual_seed(0)
    teacher, student = nn.Linear(3, 4), nn.Linear(3, 4)
    x = torch.randn(5, 3)
    twin = copy.deepcopy(student)
    p = (teacher(x).detach() / 2).softmax(1)
    q = (twin(x) / 2).softmax(1)
    (4 * (p * (p / q).log()).sum() / 5).backward()
    plan = LessonPlan(n_steps=1, learning_rate=1e-3, temperature=2.0)
    # A penalty that takes off a little more or less than the whole gradient turns its sign.
    for share in (0.9, 1.1):
        learner = copy.deepcopy(student)
        known = Known(learner.weight, -share * twin.weight.grad)
        distil(teacher, learner, [x], plan, known)
        moved = learner.weight.detach() - student.weight.detach()
        sign = twin.weight.grad.sign() * (1 if share < 1 else -1)
        assert torch.allclose(moved, -1e-3 * sign, atol=2e-5) and known.n_steps == 1


def test_features_are_those_of_masked_layers():
    """A student that differs in a hidden masked layer alone learns it from features."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        # Behind this ReLU nothing passes: only the hidden layer's features can teach.
        for model in (teacher, student):
            model[0].bias.fill_(-100.0)
        student[0].weight.add_(0.1)
    set_mask(student[0], torch.ones(4, 4, dtype=torch.bool))
    start = (student[0].weight - teacher[0].weight).abs().max().item()
    plan = LessonPlan(n_steps=200, learning_rate=1e-2, lesson=Lesson.FEATURES)
    distil(teacher, student, [torch.randn(32, 4)], plan)
    assert (student[0].weight - teacher[0].weight).abs().max().item() < 0.2 * start


@pytest.mark.parametrize("method", ["gradual", "admm", "rigl", "mest"])
def test_pruning_without_data(method):
    """By any method; the pruner follows its schedule, and the pruned model keeps its answers."""
    model, real = trained()
    dense = copy.deepcopy(model)
    recipe = recipe_of(method={"kind": method, "updates": 3})
    pruner = prune_without_data(
        model,
        recipe,
        InputPlan(shape=(8,), n_batches=4, batch_size=64, n_steps=30),
        LessonPlan(n_steps=150, learning_rate=5e-3, temperature=1.0),
    )
    assert [round(found.density, 2) for found in pruner.projections.values()] == [0.5, 0.5]
    assert weight_mask(model[0]) is not None
    with torch.no_grad():
        agreement = (model(real).argmax(1) == dense(real).argmax(1)).float().mean()
    assert agreement > 0.7
    pruner.squash_mask()
    for weight in pruner.weights:
        zeros = weight.to_matrix(weight.dense) == 0
        assert np.array_equal(zeros, ~pruner.projections[weight.name].mask)


def test_a_quantised_student_keeps_its_answers():
    """Though its first layer holds a batch norm of statistics far from 0 and 1."""
    model, real = trained()
    assert model[1].running_var.max() > 4 * model[1].running_var.min()
    dense = copy.deepcopy(model)
    pruner = prune_without_data(
        model,
        recipe_of(quantisation={"aware_from": 0.0}),
        InputPlan(shape=(8,), n_batches=4, batch_size=64, n_steps=30),
        LessonPlan(n_steps=150, learning_rate=5e-3, temperature=1.0),
    )
    assert pruner.quantisation is not None and isinstance(model[1], nn.Identity)
    with torch.no_grad():
        agreement = (model(real).argmax(1) == dense(real).argmax(1)).float().mean()
    assert agreement > 0.7


def test_outputs_in_parts():
    """A recurrent layer hands out its states too; the sequence is what counts."""
    torch.manual_seed(0)
    teacher, student = nn.LSTM(4, 4, batch_first=True), nn.LSTM(4, 4, batch_first=True)
    x = torch.randn(8, 6, 4)
    start = (student(x)[0] - teacher(x)[0]).square().mean().item()
    plan = LessonPlan(n_steps=100, learning_rate=2e-2, lesson=Lesson.FEATURES)
    distil(teacher, student, [x], plan)
    assert (student(x)[0] - teacher(x)[0]).square().mean().item() < 0.2 * start


# --- bad input -----------------------------------------------------------------------------------

MISTAKES = {
    "shape": (lambda: InputPlan(shape=()), "shape must be positive integers, not ()"),
    "shape of zero": (
        lambda: InputPlan(shape=(3, 0)),
        "shape must be positive integers, not (3, 0)",
    ),
    "batches": (
        lambda: InputPlan(shape=(1,), n_batches=0),
        "n_batches must be an integer of at least 1, not 0",
    ),
    "batch size": (
        lambda: InputPlan(shape=(1,), batch_size=0),
        "batch_size must be an integer of at least 1, not 0",
    ),
    "mean": (lambda: InputPlan(shape=(1,), mean="x"), "mean must be a number, not 'x'"),
    "deviation": (
        lambda: InputPlan(shape=(1,), deviation=0.0),
        "deviation must be above 0, not 0.0",
    ),
    "tokens": (
        lambda: InputPlan(shape=(1,), n_tokens=0),
        "n_tokens must be an integer of at least 1, not 0",
    ),
    "input steps": (
        lambda: InputPlan(shape=(1,), n_steps=-1),
        "n_steps must be an integer of at least 0, not -1",
    ),
    "input rate": (
        lambda: InputPlan(shape=(1,), learning_rate=0),
        "learning_rate must be above 0, not 0",
    ),
    "steps": (lambda: LessonPlan(n_steps=0), "n_steps must be an integer of at least 1, not 0"),
    "rate": (lambda: LessonPlan(learning_rate=-1), "learning_rate must be above 0, not -1"),
    "temperature": (
        lambda: LessonPlan(temperature=0),
        "temperature must be above 0, not 0",
    ),
    "axis": (lambda: LessonPlan(class_axis=1.0), "class_axis must be an integer, not 1.0"),
    "no inputs": (
        lambda: distil(nn.Linear(2, 2), nn.Linear(2, 2), [], LessonPlan()),
        "distillation needs at least one batch of inputs",
    ),
    "axis of outputs": (
        lambda: distil(
            nn.Linear(2, 2), nn.Linear(2, 2), [torch.ones(1, 2)], LessonPlan(class_axis=2)
        ),
        "class_axis must be an axis of outputs (1, 2), not 2",
    ),
    "not finite": (
        lambda: distil(
            nn.Linear(2, 2), nn.Linear(2, 2), [torch.full((1, 2), torch.nan)], LessonPlan()
        ),
        "distillation: the loss is nan at step 1",
    ),
    "outputs": (
        lambda: distil(Words(), nn.Linear(2, 2), [torch.ones(1, 2)], LessonPlan()),
        "distillation needs tensors as outputs, not str",
    ),
    "features of dealt channels": (
        lambda: prune_without_data(
            nn.Linear(8, 8),
            recipe_of(channels={"deal": True}),
            InputPlan(shape=(8,)),
            LessonPlan(lesson=Lesson.FEATURES),
        ),
        "features of dealt channels are in another order than the teacher's; distil answers, or "
        "leave [channels] deal off",
    ),
    "features of quantised layers": (
        lambda: prune_without_data(
            nn.Linear(8, 8),
            recipe_of(quantisation={"aware_from": 0.9}),
            InputPlan(shape=(8,)),
            LessonPlan(lesson=Lesson.FEATURES),
        ),
        "features of quantised layers have the batch norms in them, the teacher's do not; distil "
        "answers, or leave [quantisation] aware_from at 1",
    ),
}


class Words(nn.Module):
    """A teacher of another kind."""

    def forward(self, x):
        return "words"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
        call()
