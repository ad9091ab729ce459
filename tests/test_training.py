"""The training loop: checkpoints, resumption, what datasets must be, and several processes."""

import copy
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from gshw.errors import GshwError
from pruning.models.masking import set_mask, weight_mask
from pruning.runs.checkpoint import Checkpoint
from pruning.runs.training import (
    EpochRecord,
    TaskData,
    TrainingPlan,
    evaluate,
    seed_epoch,
    train,
)
from pruning.runs.world import World

PLAN = TrainingPlan(n_epochs=4, batch_size=8, learning_rate=0.05, seed=3)
RUN = {"recipe": "abc", "epochs": 4}


class StepPruner:
    """Prunes the smallest half of a weight in the middle of the training; remembers the step."""

    def __init__(self, model: nn.Module, at: int) -> None:
        self.layer, self.at, self.n_steps = model[0], at, 0
        set_mask(self.layer, torch.ones_like(self.layer.weight))

    def penalty(self) -> torch.Tensor:
        return 1e-3 * self.layer.weight.square().sum()

    def step(self) -> None:
        self.n_steps += 1
        if self.n_steps == self.at:
            size = self.layer.weight.abs()
            set_mask(self.layer, size > size.median())

    def state_dict(self) -> dict:
        return {"n_steps": self.n_steps}

    def load_state_dict(self, state: dict) -> None:
        self.n_steps = state["n_steps"]


class Noisy(Dataset):
    """Two classes, with augmentation from every common generator."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 6, generator=generator)
        self.y = (self.x.sum(dim=1) > 0).long()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index):
        import random

        noise = torch.rand(6) + np.random.rand() + random.random()  # noqa: NPY002
        return self.x[index] + 0.01 * noise, self.y[index]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.2), nn.Linear(12, 2))


def data(**changes) -> TaskData:
    return TaskData.from_returned("m:f", (Noisy(42), Noisy(19)))


def trained(checkpoint=None, interrupt_after=None, plan=PLAN):
    """Train anew; with ``interrupt_after`` the run dies in the epoch behind that one."""
    model = network()
    pruner = StepPruner(model, at=9)
    if interrupt_after is not None:
        per_epoch = plan.steps_per_epoch(42)
        plain = pruner.step

        def step() -> None:
            plain()
            if pruner.n_steps == interrupt_after * per_epoch + 2:
                raise KeyboardInterrupt

        pruner.step = step
    records = train(model, pruner, data(), plan, checkpoint=checkpoint)
    return model, records


def test_learns_and_prunes():
    model, records = trained()
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert records[-1].training_loss < records[0].training_loss
    assert records[-1].metric > 0.8
    assert records[0].sparsity == 0.0 and records[-1].sparsity == pytest.approx(0.5, abs=0.02)
    assert model.training


@pytest.mark.parametrize("interrupt_after", [1, 3])
def test_a_resumed_run_is_bit_identical(tmp_path, interrupt_after):
    """Dropout, augmentation, momentum, masks and the schedule, cut in the middle of an epoch."""
    wanted, records = trained()
    checkpoint = Checkpoint(path=tmp_path / "c.pt", run=RUN)
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint, interrupt_after)
    torch.manual_seed(99)
    model, resumed = trained(checkpoint)
    assert resumed == records
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    again, finished = trained(checkpoint)
    assert finished == records
    assert torch.equal(again[0].weight, wanted[0].weight)


def test_another_seed_gives_other_weights():
    other = TrainingPlan(n_epochs=4, batch_size=8, learning_rate=0.05, seed=4)
    assert not torch.equal(trained()[0][0].weight, trained(plan=other)[0][0].weight)


def test_resume_with_another_recipe(tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "c.pt", run=RUN)
    trained(checkpoint)
    before = checkpoint.path.read_bytes()
    for key, value in [("recipe", "abd"), ("epochs", 5), ("config", "new")]:
        other = Checkpoint(path=checkpoint.path, run=RUN | {key: value})
        message = (
            f"{checkpoint.path}: is of a run with {key} {RUN.get(key)}, not {value}; resume with "
            "the same, or remove it to start anew"
        )
        with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
            trained(other)
    assert checkpoint.path.read_bytes() == before


def test_resume_with_another_table(tmp_path):
    """Told is the innermost place that differs, not the table; a key may be on one side only."""
    run = {"recipe": {"seed": 1, "method": {"kind": "rigl", "fraction": 0.3}}}
    checkpoint = Checkpoint(path=tmp_path / "c.pt", run=run)
    checkpoint.save({})
    assert checkpoint.load() is not None
    for method, told in [
        ({"kind": "rigl", "fraction": 0.2}, "fraction 0.3, not 0.2"),
        ({"kind": "mest", "fraction": 0.3}, "kind rigl, not mest"),
        ({"kind": "rigl"}, "fraction 0.3, not None"),
        ({"kind": "rigl", "fraction": 0.3, "soft": True}, "soft None, not True"),
    ]:
        other = Checkpoint(path=checkpoint.path, run={"recipe": {"seed": 1, "method": method}})
        with pytest.raises(GshwError, match=f"is of a run with recipe method {told}; resume"):
            other.load()


def test_checkpoint_that_is_none(tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "c.pt", run=RUN)
    assert checkpoint.load() is None
    trained(checkpoint)
    whole = checkpoint.path.read_bytes()
    for damaged in (whole[:-300], b"", b"no checkpoint at all"):
        checkpoint.path.write_bytes(damaged)
        message = f"^{re.escape(str(checkpoint.path))}: truncated, or not a checkpoint: "
        with pytest.raises(GshwError, match=message):
            trained(checkpoint)
        assert checkpoint.path.read_bytes() == damaged
    torch.save({"weight": torch.zeros(2)}, checkpoint.path)
    with pytest.raises(GshwError, match=r"not a checkpoint of this version$"):
        checkpoint.load()


def test_checkpoint_of_another_model(tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "c.pt", run=RUN)
    trained(checkpoint)
    model = nn.Sequential(nn.Linear(6, 13), nn.BatchNorm1d(13), nn.Dropout(), nn.Linear(13, 2))
    message = f"^{re.escape(str(checkpoint.path))}: does not fit the model: size mismatch for 0"
    with pytest.raises(GshwError, match=message):
        train(model, StepPruner(model, 1), data(), PLAN, checkpoint=checkpoint)


def test_checkpoint_where_nothing_can_be_written(tmp_path):
    path = tmp_path / "no" / "c.pt"
    with pytest.raises(GshwError, match=f"^{re.escape(str(path))}: cannot be written: No such"):
        trained(Checkpoint(path=path, run=RUN))


def test_a_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    """A run that dies while it writes leaves the last checkpoint."""
    checkpoint = Checkpoint(path=tmp_path / "c.pt", run=RUN)
    checkpoint.save({"records": []})
    before = checkpoint.path.read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"records": [1]})
    assert checkpoint.path.read_bytes() == before


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(6), 0)])


GOOD = TensorDataset(torch.zeros(3, 6), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must return (training, validation), and maybe a loss and a metric, not NoneType"),
        (
            (GOOD,),
            "must return (training, validation), and maybe a loss and a metric, not tuple of",
        ),
        ((GOOD, []), "the validation set yields nothing"),
        ((TensorDataset(torch.zeros(0, 6)), GOOD), "the training set yields nothing"),
        (
            (Endless(), GOOD),
            "the training set must be map-style (__len__ and __getitem__), not Endless",
        ),
        (
            (GOOD, TensorDataset(torch.zeros(3, 6))),
            "samples of the validation set must be (input, target), not tuple of 1",
        ),
        (
            ([torch.zeros(6)], GOOD),
            "samples of the training set must be (input, target), not Tensor",
        ),
        (([("text", 0)], GOOD), "inputs of the training set must be tensors, not str"),
        (([((GOOD, 1), 0)], GOOD), "inputs of the training set must be tensors, not tuple of 2"),
        ((GOOD, GOOD, "mse"), "the loss must be callable, not str"),
        ((GOOD, GOOD, nn.MSELoss(), 3), "the metric must be callable, not int"),
    ],
)
def test_datasets_that_break_the_protocol(value, message):
    with pytest.raises(GshwError, match=f"^m:f: {re.escape(message)}"):
        TaskData.from_returned("m:f", value)


def test_loss_and_metric_of_the_user():
    """Means over samples, though the last batch is smaller; in evaluation, training restored."""
    x = torch.arange(10.0).reshape(5, 2)
    samples = TensorDataset(x, x.sum(dim=1, keepdim=True))
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 1))
    given = TaskData.from_returned("m:f", (samples, samples, nn.functional.l1_loss))
    with torch.no_grad():
        wanted = nn.functional.l1_loss(model[1](x), x.sum(dim=1, keepdim=True))
    loss, metric = evaluate(model, given, batch_size=2)
    assert (loss, metric) == (pytest.approx(float(wanted)), None) and model.training
    given = TaskData.from_returned("m:f", (samples, samples, nn.functional.l1_loss, _first_target))
    assert evaluate(model, given, batch_size=2)[1] == pytest.approx(9.0)


def _first_target(output, target):
    return target.mean()


def test_model_and_data_that_do_not_fit():
    wrong = TensorDataset(torch.zeros(9, 5), torch.zeros(9, dtype=torch.long))
    model = network()
    message = "^m:f: model or loss fails on inputs \\(8, 5\\): mat1 and mat2 shapes cannot be"
    with pytest.raises(GshwError, match=message):
        given = TaskData.from_returned("m:f", (wrong, wrong))
        train(model, StepPruner(model, 1), given, PLAN)


def test_loss_that_runs_away():
    model = network()
    with torch.no_grad():
        model[3].bias.fill_(float("inf"))
    with pytest.raises(GshwError, match=r"^the training loss is nan in epoch 1; lower the learni"):
        train(model, StepPruner(model, 99), data(), PLAN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_epochs": 0}, "n_epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, not 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, not nan"),
    ],
)
def test_bad_plans(changes, message):
    with pytest.raises(GshwError, match=f"^{message}$"):
        TrainingPlan(**{"n_epochs": 1, "batch_size": 1, "learning_rate": 0.1} | changes)


def test_steps_and_rates():
    assert [PLAN.steps_per_epoch(n) for n in (1, 8, 9, 42)] == [1, 1, 2, 6]
    message = "^batch_size must be a multiple of the 3 processes, not 8$"
    with pytest.raises(GshwError, match=message):
        PLAN.steps_per_epoch(42, 3)
    rates = [PLAN.rate_at(step, 10) for step in range(10)]
    assert rates[0] == 0.05 and rates[5] == pytest.approx(0.025)
    assert all(a > b > 0 for a, b in pairwise(rates))


def test_seeds_differ_between_epochs_and_ranks():
    draws = set()
    for key in [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]:
        seed_epoch(*key)
        draws.add((float(torch.rand(())), float(np.random.rand())))  # noqa: NPY002
    assert len({a for a, _ in draws}) == len({b for _, b in draws}) == 4


def test_quiet_in_a_pipe(capsys):
    trained()
    assert capsys.readouterr() == ("", "")


def test_records_are_plain(tmp_path):
    """The checkpoint loads by torch's safe unpickler, records included."""
    checkpoint = Checkpoint(path=tmp_path / "c.pt", run=RUN)
    _, records = trained(checkpoint)
    state = torch.load(checkpoint.path, weights_only=True)
    assert [EpochRecord(**record) for record in state["records"]] == records
    assert copy.deepcopy(state["run"]) == RUN


def test_one_process_agrees_with_itself():
    world = World()
    with pytest.raises(GshwError, match=r"^here$"), world.agreeing():
        raise GshwError("here")
    assert world.share(lambda: 3) == 3
    model = network()
    StepPruner(model, 1)
    assert weight_mask(model[0]) is not None


@pytest.mark.parametrize("die_at", [8, 13, 16, 20])
def test_resumes_a_model_whose_modules_have_changed(tmp_path, die_at):
    """Quantisation folds batch norms; here one goes in the middle of the third epoch."""

    def run(path, die_at=None):
        model = network()
        pruner = StepPruner(model, at=9)
        plain, swapped_at = pruner.step, []

        def step() -> None:
            plain()
            if pruner.n_steps == die_at:
                raise KeyboardInterrupt

        def swap() -> None:
            swapped_at.append(pruner.n_steps)
            model[1] = nn.Identity()

        pruner.step = step
        checkpoint = Checkpoint(path=path, run=RUN)
        options = {"quantise": swap, "quantise_from": 14 / 24}
        train(model, pruner, data(), PLAN, checkpoint=checkpoint, **options)
        return model.state_dict(), swapped_at

    wanted, swapped_at = run(tmp_path / "whole.pt")
    assert swapped_at == [14] and not any("running" in name for name in wanted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c.pt", die_at)
    state, swapped_at = run(tmp_path / "c.pt")
    assert swapped_at == ([0] if die_at == 20 else [14])
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


def test_quantisation_has_at_least_the_last_step(tmp_path):
    """The fraction rounds to all 24 steps; a finished run that is resumed is quantised too."""
    swapped_at = []

    def run() -> None:
        model = network()
        pruner = StepPruner(model, at=9)

        def swap() -> None:
            swapped_at.append(pruner.n_steps)
            model[1] = nn.Identity()

        checkpoint = Checkpoint(path=tmp_path / "c.pt", run=RUN)
        options = {"quantise": swap, "quantise_from": 0.99}
        train(model, pruner, data(), PLAN, checkpoint=checkpoint, **options)

    run()
    assert swapped_at == [23]
    run()
    assert swapped_at == [23, 0]


def test_every_epoch_has_an_order_of_its_own():
    """And sees each sample once; the penalty is part of what is minimised."""

    class Watched(Noisy):
        seen: list[int]

        def __getitem__(self, index):
            self.seen.append(int(index))
            return super().__getitem__(index)

    samples = Watched(42)
    samples.seen = []
    given = TaskData.from_returned("m:f", (samples, Noisy(19)))
    samples.seen.clear()
    model = network()
    pruner = StepPruner(model, at=99)
    before = float(model[0].weight.detach().square().sum())
    pruner.penalty = lambda: 100 * model[0].weight.square().sum()
    train(model, pruner, given, TrainingPlan(n_epochs=2, batch_size=8, learning_rate=0.01))
    first, second = samples.seen[:42], samples.seen[42:]
    assert sorted(first) == sorted(second) == list(range(42))
    assert first != second and first != list(range(42))
    assert float(model[0].weight.detach().square().sum()) < 0.7 * before
