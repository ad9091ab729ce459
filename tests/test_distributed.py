"""Masks under DDP and FSDP2, and ``gshw prune`` under torchrun: two processes over gloo."""

import datetime
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from gshw.cli import main
from gshw.config import load_config
from gshw.errors import GshwError
from pruning.integers.quantisation import attach_quantisation, detach_quantisation
from pruning.models.masking import (
    capture_gradients,
    dense_weight,
    masked_tensors,
    set_mask,
    squash_masks,
    squashed_state_dict,
    weight_mask,
)
from pruning.models.weights import find_weights
from pruning.runs.training import TaskData, TrainingPlan, evaluate
from pruning.runs.training import train as fit
from pruning.runs.world import SharedError, World, told_once

ROOT = Path(__file__).resolve().parents[1]
N_RANKS = 2
TIMEOUT = 60
"""Seconds: a rank that waits longer for another one has lost it."""


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    for index in (0, 3):
        mask = torch.rand(model[index].weight.shape) < 0.5
        set_mask(model[index], mask)
    return model


def samples() -> torch.Tensor:
    return torch.randn(4 * N_RANKS, 2, 6, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, x: torch.Tensor, steps: torch.optim.Optimizer) -> None:
    for _ in range(3):
        steps.zero_grad()
        model(x).square().mean().backward()
        steps.step()


def alone() -> nn.Module:
    """The same training in one process, on all samples."""
    model = network()
    train(model, samples(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    return model


def share(rank: int) -> torch.Tensor:
    return samples()[rank::N_RANKS]


def under_ddp(rank: int) -> None:
    model = network()
    parallel = DistributedDataParallel(model)
    steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(parallel, share(rank), steps)
    single = alone()
    for index in (0, 3):
        torch.testing.assert_close(model[index].weight, single[index].weight)
        assert not model[index].weight[~weight_mask(model[index]).mask].any()
    with capture_gradients(model), capture_gradients(single):
        parallel(share(rank)).square().mean().backward()
        single(samples()).square().mean().backward()
    for index in (0, 3):
        mask = weight_mask(model[index])
        gradient = mask.take_gradient()
        wanted = weight_mask(single[index])._gradient
        torch.testing.assert_close(gradient, wanted)
        assert gradient[~mask.mask].any()
        # A mask that changes on one rank only reaches the others with the next forward pass.
        if rank == 0:
            set_mask(model[index], ~mask.mask)
    parallel(share(rank))
    assert torch.equal(weight_mask(model[3]).mask, ~weight_mask(single[3]).mask)
    squash_masks(model)
    del parallel
    train(DistributedDataParallel(model), share(rank), steps)
    assert not masked_tensors(model)
    gathered = [torch.empty_like(model[3].weight) for _ in range(N_RANKS)]
    dist.all_gather(gathered, model[3].weight.detach())
    assert torch.equal(*gathered)


def under_fsdp(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = network()
    for part in (model[0], model[3], model):
        fully_shard(part, mesh=dist.init_device_mesh("cpu", (N_RANKS,)))
    steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert isinstance(dense_weight(model[3]), DTensor)
    train(model, share(rank), steps)
    single = alone()
    weights, _ = find_weights(load_config("tiny").engine, model)
    plain, _ = find_weights(load_config("tiny").engine, single)
    assert [weight.name for weight in weights] == ["0", "3"]
    for weight, other in zip(weights, plain):
        torch.testing.assert_close(
            torch.from_numpy(weight.to_matrix(weight.masked)),
            torch.from_numpy(other.to_matrix(other.masked)),
        )
    with capture_gradients(model), capture_gradients(single):
        model(share(rank)).square().mean().backward()
        single(samples()).square().mean().backward()
    torch.testing.assert_close(
        weight_mask(model[3]).take_gradient(), weight_mask(single[3])._gradient
    )
    # Masks change between steps, as a schedule does.
    flipped = ~weight_mask(model[3]).mask
    for one in (model, single):
        set_mask(one[3], flipped)
    torch.testing.assert_close(model(samples()), single(samples()))
    state = squashed_state_dict(model)
    assert len(masked_tensors(model)) == 2
    squash_masks(single)
    assert state.keys() == single.state_dict().keys()
    for name, tensor in single.state_dict().items():
        torch.testing.assert_close(state[name], tensor)
    with pytest.raises(GshwError, match=r"^a model under fully_shard cannot be squashed in place"):
        squash_masks(model)
    unmasked = fully_shard(nn.Linear(4, 4), mesh=dist.init_device_mesh("cpu", (N_RANKS,)))
    message = "^masks must be attached before fully_shard; weight of a FSDPLinear is sharded"
    with pytest.raises(GshwError, match=message):
        set_mask(unmasked, torch.ones(4, 4))


class NoPruner:
    """Adds nothing to a training."""

    def penalty(self) -> torch.Tensor:
        return torch.zeros(())

    def step(self) -> None:
        pass


def statistics_are_shared(rank: int) -> None:
    """Each rank's samples move its running statistics elsewhere; its ranges must not follow."""
    generator = torch.Generator().manual_seed(2)
    # The sampler deals samples of such different sizes unevenly.
    x = torch.randn(16, 6, generator=generator) * torch.arange(1.0, 17.0)[:, None]
    samples = TensorDataset(x, (x.sum(dim=1) > 0).long())
    data = TaskData.from_returned("m:f", (samples, samples))
    plan = TrainingPlan(n_epochs=2, batch_size=8, learning_rate=0.01)
    world = World(rank=rank, size=N_RANKS)

    def trained(aware: bool):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

        def quantise() -> None:
            attach_quantisation(load_config("tiny").engine, model, [x])

        # In the middle of an epoch: between epochs all is shared for the validation.
        options = {"quantise": quantise if aware else None, "quantise_from": 0.75}
        return model, fit(model, NoPruner(), data, plan, world=world, **options)

    model, records = trained(aware=False)
    gathered = [torch.empty_like(model[1].running_var) for _ in range(N_RANKS)]
    dist.all_gather(gathered, model[1].running_var)
    assert torch.equal(*gathered)
    loss, metric = evaluate(model, data, batch_size=16)
    assert records[-1].validation_loss == pytest.approx(loss, rel=1e-5)
    assert records[-1].metric == pytest.approx(metric)
    model, _ = trained(aware=True)
    found = [None] * N_RANKS
    dist.all_gather_object(found, detach_quantisation(model).calibrations)
    assert found[0] == found[1]


BODIES = {body.__name__: body for body in (under_ddp, under_fsdp, statistics_are_shared)}


def enter(rank: int, store: str, outcomes) -> None:
    """One process: join the group, run all bodies, tell the parent how each of them went."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # A store in a file needs no port, so none can be taken.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=N_RANKS,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    for name, body in BODIES.items():
        try:
            body(rank)
            dist.barrier()
        except BaseException:
            outcomes.put((name, rank, traceback.format_exc()))
            # The ranks no longer agree on what comes next.
            return
        outcomes.put((name, rank, "passed"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[tuple[str, int], str]:
    """What became of every body in every process."""
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    arguments = (str(tmp_path_factory.mktemp("group") / "store"), queue)
    ranks = [context.Process(target=enter, args=(n, *arguments)) for n in range(N_RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(2 * TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
    found = {}
    while not queue.empty():
        name, rank, outcome = queue.get()
        found[name, rank] = outcome
    return found


@pytest.mark.timeout(5 * TIMEOUT)
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("rank", range(N_RANKS))
@pytest.mark.parametrize("name", BODIES)
def test_two_processes(outcomes, name, rank):
    outcome = outcomes.get((name, rank), "hung, or died before it")
    assert outcome == "passed", outcome


# --- the command under torchrun ------------------------------------------------------------------

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


def network():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 2))


def samples(n, seed):
    x = torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, :8].sum(dim=1) > 0).long())


def dataset():
    return samples(96, 1), samples(51, 2)
"""

RECIPE = """
engine = "tiny"
[pattern]
kind = "gs"
[target]
sparsity = 0.5
[method]
kind = "rigl"
start = 0.25
stop = 0.75
updates = 3
[quantisation]
aware_from = 0.8
"""

COMMAND = "import sys; from gshw.cli import main; sys.exit(main(sys.argv[1:]))"


def arguments(out: str) -> list[str]:
    files = ["-o", out, "--save-weights", f"{out}.weights", "--json", f"{out}.json"]
    files += ["--recipe", "recipe.toml", "--dataset", "two_task:dataset"]
    return ["prune", "two_task:network", "--epochs", "5", *files]


def under_torchrun(folder: Path, *command: str) -> tuple[int, str, str]:
    """Status and outputs of a ``gshw`` command in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    launcher += ["--nproc-per-node", str(N_RANKS), sys.executable, "-c", COMMAND]
    # In a session of its own, so that a hang takes the processes of the launcher along.
    with subprocess.Popen(
        [*launcher, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=3 * TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out, err


@pytest.mark.timeout(5 * TIMEOUT)
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
def test_prune_under_torchrun(tmp_path, monkeypatch):
    """As one process, but for rounding; weights that grow by gradient, quantisation live."""
    (tmp_path / "two_task.py").write_text(TASK)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert main(arguments("one")) == 0
    status, out, err = under_torchrun(tmp_path, *arguments("two"), "--checkpoint", "c.pt")
    assert status == 0, err
    assert out.splitlines()[-1] == "two" and out.count("kept score") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["training"][-1]["sparsity"] == pytest.approx(0.5, abs=0.02)
    for a, b in zip(one["training"], two["training"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    first, second = (load_file(tmp_path / f"{name}.weights") for name in ("one", "two"))
    for name, tensor in first.items():
        assert torch.equal(tensor == 0, second[name] == 0)
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-5)
    # The checkpoint of two processes is as good for one; nothing is left to train.
    assert main([*arguments("three"), "--checkpoint", "c.pt", "--resume"]) == 0
    third = load_file(tmp_path / "three.weights")
    assert all(torch.equal(third[name], tensor) for name, tensor in second.items())


def test_an_error_of_all_is_told_by_one():
    with pytest.raises(SharedError, match=r"^here$"), told_once(World()):
        World().agree(GshwError("here"))
    with pytest.raises(SystemExit) as caught, told_once(World(rank=1, size=2)):
        raise SharedError("here")
    assert caught.value.code == 2
    with pytest.raises(GshwError, match=r"^alone$"), told_once(World(rank=1, size=2)):
        raise GshwError("alone")
