"""The three tasks: data, causality, sizes on the engine, and the training loop."""

import sysconfig
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gshw.config import load_config
from gshw.errors import GshwError
from pruning.comparison.corpus import N_SYMBOLS, corpus, encode_text
from pruning.comparison.tasks import TASKS, Effort, train
from pruning.models.weights import find_weights

ENGINE = load_config("v16x4").engine
NAMES = list(TASKS)


def test_symbols():
    text = "a\n ~\tä\x00€😀b"
    wanted = []
    for character in text:
        printable = character == "\n" or " " <= character <= "~"
        order = "\n" + "".join(map(chr, range(32, 127)))
        wanted.append(order.index(character) if printable else 96)
    assert encode_text(text).tolist() == wanted
    assert N_SYMBOLS == 97


def test_corpus_is_split_by_module():
    modules = sorted(p for p in Path(sysconfig.get_path("stdlib")).iterdir() if p.suffix == ".py")
    held = [encode_text(p.read_text(encoding="utf-8")) for p in modules[6::12]]
    text = corpus()
    np.testing.assert_array_equal(text.validation, np.concatenate(held))
    whole = sum(len(p.read_text(encoding="utf-8")) for p in modules)
    assert text.train.size == whole - text.validation.size > 8 * text.validation.size


def test_corpus_needs_sources(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("import b\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(GshwError) as caught:
        corpus.__wrapped__()
    assert str(caught.value) == (
        f"{tmp_path}: must hold the sources of Python's library, 1 MB at least"
    )


@pytest.mark.parametrize("name", NAMES)
def test_batches_follow_the_seed(name):
    def first_two(seed):
        batches = TASKS[name].batches(seed)
        return [next(batches) for _ in range(2)]

    a, b, other = first_two(3), first_two(3), first_two(4)
    for (x, y), (x2, y2) in zip(a, b, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert not torch.equal(a[0][0], other[0][0])
    assert not torch.equal(a[0][0], a[1][0])


@pytest.mark.parametrize("name", ["lstm", "conv1d"])
def test_labels_are_the_next_characters(name):
    task = TASKS[name]
    x, y = next(task.batches(0))
    assert y.shape == (x.shape[0], x.shape[1] - task.context)
    assert torch.equal(x[:, task.context + 1 :], y[:, :-1])


@pytest.mark.parametrize("name", ["lstm", "conv1d"])
def test_models_are_causal(name):
    """A prediction changes with the characters it may know, and with no later one."""
    task = TASKS[name]
    model = task.make_model(0).eval()
    x = torch.randint(0, N_SYMBOLS, (1, task.context + 6))
    with torch.no_grad():
        before = model(x)
        assert before.shape == (1, 6, N_SYMBOLS)
        for place in range(task.context + 6):
            changed = x.clone()
            changed[0, place] = (x[0, place] + 1) % N_SYMBOLS
            moved = (model(changed) != before).any(dim=2)[0]
            now = place - task.context
            assert not moved[: max(0, now)].any()
            assert moved[max(0, now)]


class Fixed(nn.Module):
    """The same logits for everything."""

    def __init__(self, logits: torch.Tensor, context: int | None) -> None:
        super().__init__()
        self.logits, self.context = logits, context

    def forward(self, x):
        if self.context is None:
            return self.logits.expand(len(x), -1)
        return self.logits.expand(x.shape[0], x.shape[1] - self.context, -1)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", ["lstm", "conv1d"])
def test_entropy_of_known_guesses(name, quick):
    task = TASKS[name]
    uniform = Fixed(torch.zeros(N_SYMBOLS), task.context)
    assert task.evaluate(uniform, quick=quick) == pytest.approx(log2(N_SYMBOLS), rel=1e-5)
    assert not uniform.training


def test_accuracy_of_known_guesses():
    task = TASKS["digits"]
    always = Fixed(torch.eye(10)[3], None)
    share = 100 * float((task._data.test_y == 3).double().mean())
    assert task.evaluate(always) == pytest.approx(share)
    assert task.evaluate(always, quick=True) == pytest.approx(share)
    model = task.make_model(0)
    assert task.evaluate(model) == task.evaluate(model)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_workload(name):
    """Whatever the engine runs gets inputs of the size that cycles are counted for."""
    task = TASKS[name]
    model = task.make_model(0).eval()
    example = task.calibration()[0]
    weights, _ = find_weights(ENGINE, model, example)
    names = {weight.name for weight in weights}
    if name == "digits":
        inputs = example[:16]
    elif name == "lstm":
        inputs = example[:1, :1].expand(64, 1)
    else:
        inputs = example[:4, : task.context + 64]
    seen = {}

    def note(layer_name):
        def hook(module, arguments, output):
            x = arguments[0]
            if isinstance(module, nn.Conv2d):
                seen[layer_name] = (x.shape[0], x.shape[2], x.shape[3])
            elif isinstance(module, nn.Conv1d):
                seen[layer_name] = (x.shape[0], 1, x.shape[2])
            else:
                seen[layer_name] = (x.numel() // x.shape[-1], 1, 1)

        return hook

    for layer_name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
            module.register_forward_hook(note(layer_name))
    model(inputs)
    assert set(task.dense_layers) | set(task.host_layers) < names
    for layer_name in names - set(task.host_layers):
        size = task.input_size(layer_name)
        assert size == seen.get(layer_name, (64, 1, 1)), layer_name
    assert set(seen) <= names


class Counting:
    """A pruner that adds a penalty and counts the calls."""

    def __init__(self, parameter):
        self.parameter, self.n_steps = parameter, 0

    def penalty(self):
        return 1e3 * self.parameter.square().sum()

    def step(self):
        self.n_steps += 1


def test_training_learns_and_repeats():
    task = TASKS["digits"]
    models = []
    for _ in range(2):
        model = task.make_model(1)
        done = []
        train(task, model, 30, 1, on_step=done.append)
        assert done == list(range(1, 31)) and not model.training
        models.append(model)
    assert task.evaluate(models[0], quick=True) > 60
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values()):
        assert torch.equal(a, b)


def test_training_asks_the_pruner():
    task = TASKS["digits"]
    plain, pulled = task.make_model(1), task.make_model(1)
    pruner = Counting(pulled[12].weight)
    train(task, plain, 6, 1)
    train(task, pulled, 6, 1, pruner)
    assert pruner.n_steps == 6
    assert pulled[12].weight.norm() < 0.9 * plain[12].weight.norm()


@pytest.mark.parametrize("key", ["dense_steps", "prune_steps"])
def test_effort_is_checked(key):
    with pytest.raises(GshwError) as caught:
        Effort(**{"dense_steps": 1, "prune_steps": 1, key: 0})
    assert str(caught.value) == f"{key} must be at least 1, not 0"


def test_models_follow_the_seed():
    for task in TASKS.values():
        a, b, c = (task.make_model(seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert any(not torch.equal(a[key], c[key]) for key in a)
