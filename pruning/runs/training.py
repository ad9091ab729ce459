"""The training behind ``gshw prune --dataset``: one process, or as many as torchrun starts.

A dataset is ``package.module:dataset``, called without arguments. It returns a tuple

    (training, validation)   or   (training, validation, loss)   or   (..., loss, metric)

of two map-style torch datasets whose samples are (input, target). ``loss(output, target)`` is the
mean over a batch, by default cross entropy; ``metric(output, target)`` is a mean too, by default
the share of right classes where the loss is the default. An input is one tensor, or becomes one in
torch's default collation.

The batch size counts all processes together. Every process takes each ``world size``-th sample of
one shuffled order, so a step sees the same samples, however many processes share it, and does the
same, but for rounding and the statistics of batch norm: each process normalises by its own share
of the batch, and the running statistics are those of the first one. Shares of few samples train
worse for it; give every process a dozen or more. (``nn.SyncBatchNorm`` would share the statistics,
but runs on GPUs only.)

All random state is set at the start of each epoch from (seed, epoch, rank). So a run that goes on
from the checkpoint of an epoch repeats the uninterrupted run bit for bit on the same machine.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, default_collate

from gshw.errors import GshwError
from gshw.report import progress_bar
from pruning.checks import first_line
from pruning.runs.checkpoint import Checkpoint
from pruning.runs.world import World

Measure = Callable[[Any, Any], Tensor]


class Pruner(Protocol):
    """What the loop asks of :class:`pruning.pruner.GSPruner`."""

    def penalty(self) -> Tensor | float: ...
    def step(self) -> None: ...
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskData:
    """What a user's dataset function returned.

    Parameters
    ----------
    name
        ``package.module:dataset``, for errors.
    training, validation
        Samples (input, target).
    loss
        Of (output, target); the mean over the batch.
    metric
        The same, larger is better; None: the loss alone is reported.
    """

    name: str
    training: Dataset
    validation: Dataset
    loss: Measure = nn.functional.cross_entropy
    metric: Measure | None = None

    @staticmethod
    def from_returned(name: str, value: object) -> "TaskData":
        """Check what the dataset function returned.

        Raises
        ------
        GshwError
            For another protocol than this module's, or a set that yields nothing.
        """
        if not isinstance(value, tuple | list) or not 2 <= len(value) <= 4:
            raise GshwError(
                f"{name}: must return (training, validation), and maybe a loss and a metric, "
                f"not {_described(value)}"
            )
        for kind, samples in zip(("training", "validation"), value, strict=False):
            if not isinstance(samples, Sized) or not hasattr(samples, "__getitem__"):
                raise GshwError(
                    f"{name}: the {kind} set must be map-style (__len__ and __getitem__), "
                    f"not {_described(samples)}"
                )
            if not len(samples):
                raise GshwError(f"{name}: the {kind} set yields nothing")
            try:
                first = samples[0]
            except Exception as error:
                raise GshwError(f"{name}: sample 0 of the {kind} set: {_raised(error)}") from error
            if not isinstance(first, tuple | list) or len(first) != 2:
                raise GshwError(
                    f"{name}: samples of the {kind} set must be (input, target), "
                    f"not {_described(first)}"
                )
            try:
                x = default_collate([first])[0]
            except TypeError:
                x = first[0]
            if not isinstance(x, Tensor):
                raise GshwError(
                    f"{name}: inputs of the {kind} set must be tensors, not {_described(first[0])}"
                )
        for kind, function in zip(("loss", "metric"), value[2:], strict=False):
            if not callable(function):
                raise GshwError(f"{name}: the {kind} must be callable, not {_described(function)}")
        loss = value[2] if len(value) > 2 else nn.functional.cross_entropy
        metric = value[3] if len(value) > 3 else None
        if len(value) == 2:
            metric = _right_share
        return TaskData(name=name, training=value[0], validation=value[1], loss=loss, metric=metric)


def _raised(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__


def read_batches(name: str, loader: Iterable) -> Iterator[Any]:
    """The batches of a user's dataset.

    Raises
    ------
    GshwError
        With the dataset's name and the first line of whatever reading a sample raises.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise GshwError(f"{name}: a batch cannot be read: {_raised(error)}") from error
        yield batch


def _described(value: object) -> str:
    many = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{type(value).__name__}{many}"


def _right_share(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How long and how fast: Adam, learning rate falling to zero along half a cosine.

    Parameters
    ----------
    n_epochs
        At least 1.
    batch_size
        Samples per step, over all processes.
    learning_rate
        At the first step.
    seed
        Of the order of samples and all else that is random.
    """

    n_epochs: int
    batch_size: int
    learning_rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("n_epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise GshwError(f"{key} must be at least 1, not {getattr(self, key)}")
        if not 0 < self.learning_rate < math.inf:
            raise GshwError(f"learning_rate must be positive, not {self.learning_rate:g}")

    def steps_per_epoch(self, n_samples: int, world_size: int = 1) -> int:
        """Optimiser steps per epoch; the last one may see fewer samples.

        Raises
        ------
        GshwError
            For a batch that the processes cannot share evenly.
        """
        if self.batch_size % world_size:
            raise GshwError(
                f"batch_size must be a multiple of the {world_size} processes, "
                f"not {self.batch_size}"
            )
        return -(-n_samples // self.batch_size)

    def rate_at(self, step: int, n_steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / n_steps))


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Set the state of every generator that datasets and dropout commonly draw from."""
    state = np.random.SeedSequence([seed, epoch, rank]).generate_state(4)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))
    np.random.seed(state[2])  # noqa: NPY002 - datasets of others still use it
    random.seed(int(state[3]))


@dataclass(kw_only=True)
class EpochRecord:
    """What one epoch came to; means over all samples."""

    epoch: int
    training_loss: float
    validation_loss: float
    metric: float | None
    sparsity: float


def train(
    model: nn.Module,
    pruner: Pruner,
    data: TaskData,
    plan: TrainingPlan,
    *,
    world: World | None = None,
    checkpoint: Checkpoint | None = None,
    quantise: Callable[[], object] | None = None,
    quantise_from: float = 0.0,
    console: Console | None = None,
) -> list[EpochRecord]:
    """Train under a pruner that is already prepared for all of the plan's steps.

    Parameters
    ----------
    model
        On the world's device; trained in place.
    checkpoint
        Gone on from, where its file is there, and written after every epoch by rank 0.
    quantise, quantise_from
        Called once, after this fraction of the steps, before the last one at the latest; it may
        change the model's modules in place, as
        :func:`pruning.integers.quantisation.attach_quantisation` does, but not which parameters
        train.
    console
        For progress; quiet in a pipe.

    Returns
    -------
    list of EpochRecord
        One per epoch, those before the checkpoint too.

    Raises
    ------
    GshwError
        For a checkpoint that does not fit, or a loss that is not finite.
    """
    world = world or World()
    optimiser = torch.optim.Adam(model.parameters(), lr=plan.learning_rate)
    records: list[EpochRecord] = []
    per_epoch = plan.steps_per_epoch(len(data.training), world.size)
    n_steps = plan.n_epochs * per_epoch
    # A late fraction of a short training leaves it at least the last step.
    first_quantised = min(round(quantise_from * n_steps), n_steps - 1)
    if checkpoint is not None:
        state = world.share(checkpoint.load)
        if state is not None:
            # The state of changed modules is to be loaded into changed modules.
            if quantise is not None and len(state["records"]) * per_epoch > first_quantised:
                quantise()
            with world.agreeing():
                _restore(checkpoint.path, state, model, optimiser, pruner)
            records = [EpochRecord(**record) for record in state["records"]]
    parallel = _parallel(model, world)
    sampler = DistributedSampler(
        data.training, world.size, world.rank, shuffle=True, seed=plan.seed
    )
    loader = DataLoader(data.training, plan.batch_size // world.size, sampler=sampler)
    console = console or Console(quiet=True)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=n_steps, completed=len(records) * per_epoch)
        for epoch in range(len(records), plan.n_epochs):
            progress.update(task, description=f"epoch {epoch + 1} of {plan.n_epochs}")
            seed_epoch(plan.seed, epoch, world.rank)
            sampler.set_epoch(epoch)
            model.train()
            total = torch.zeros(2, dtype=torch.float64, device=world.device)
            for index, (x, y) in enumerate(read_batches(data.name, loader)):
                step = epoch * per_epoch + index
                if quantise is not None and step == first_quantised:
                    _share_statistics(model, world)
                    quantise()
                    parallel = _parallel(model, world)
                rate = plan.rate_at(step, n_steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                x, y = moved(x, world.device), moved(y, world.device)
                loss = _measured(parallel, data, x, y)[0]
                if not loss.requires_grad:
                    raise GshwError(f"{data.name}: the loss has no gradient")
                optimiser.zero_grad()
                (loss + pruner.penalty()).backward()
                optimiser.step()
                pruner.step()
                total += torch.stack((loss.detach(), torch.ones_like(loss)))
                progress.advance(task)
            records.append(_record(epoch, model, total, data, plan, world))
            _show(console, records[-1])
            if checkpoint is not None and world.rank == 0:
                checkpoint.save(
                    {
                        "model": model.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "pruner": pruner.state_dict(),
                        "records": [asdict(record) for record in records],
                    }
                )
    return records


def _restore(
    path: Path, state: dict, model: nn.Module, optimiser: torch.optim.Optimizer, pruner: Pruner
) -> None:
    try:
        pruner.load_state_dict(state["pruner"])
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = lines[min(1, len(lines) - 1)] if lines else type(error).__name__
        raise GshwError(f"{path}: does not fit the model: {told}") from None


def _parallel(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def _share_statistics(model: nn.Module, world: World) -> None:
    """Give all processes the running statistics of rank 0.

    DDP does so before a forward pass, after which each process has moved them by its own samples.
    """
    if world.size == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for statistic in module.buffers(recurse=False):
                dist.broadcast(statistic, 0)


def moved(value: Any, device: torch.device) -> Any:
    """A collated batch, or any part of one, on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple | list):
        return [moved(element, device) for element in value]
    return value


def _measured(model: nn.Module, data: TaskData, x: Tensor, y: Any) -> tuple[Tensor, Any]:
    """Loss and output of a batch."""
    try:
        output = model(x)
        loss = data.loss(output, y)
    except Exception as error:
        raise GshwError(
            f"{data.name}: model or loss fails on inputs {tuple(x.shape)}: {first_line(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise GshwError(
            f"{data.name}: the loss must be a tensor of one value, not {type(loss).__name__}{shape}"
        )
    return loss.reshape(()), output


def _metric(data: TaskData, output: Any, y: Any) -> float:
    if data.metric is None:
        return 0.0
    try:
        return float(data.metric(output, y))
    except Exception as error:
        raise GshwError(f"{data.name}: the metric fails: {first_line(error)}") from error


def _record(
    epoch: int, model: nn.Module, total: Tensor, data: TaskData, plan: TrainingPlan, world: World
) -> EpochRecord:
    if world.size > 1:
        dist.all_reduce(total)
    training_loss = float(total[0] / total[1])
    if not math.isfinite(training_loss):
        raise GshwError(
            f"the training loss is {training_loss} in epoch {epoch + 1}; lower the learning rate"
        )
    _share_statistics(model, world)
    validation_loss, metric = evaluate(model, data, plan.batch_size, world)
    masks = [buffer for name, buffer in model.named_buffers() if name.endswith(".mask")]
    n_weights = sum(mask.numel() for mask in masks)
    n_kept = sum(int(mask.sum()) for mask in masks)
    return EpochRecord(
        epoch=epoch + 1,
        training_loss=training_loss,
        validation_loss=validation_loss,
        metric=metric,
        sparsity=1.0 - n_kept / n_weights if n_weights else 0.0,
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, data: TaskData, batch_size: int, world: World | None = None
) -> tuple[float, float | None]:
    """Mean loss and metric over the validation set, each sample once; the metric may be None."""
    world = world or World()
    own = Subset(data.validation, range(world.rank, len(data.validation), world.size))
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    loader = DataLoader(own, max(1, batch_size // world.size)) if len(own) else ()
    for x, y in read_batches(data.name, loader):
        x, y = moved(x, world.device), moved(y, world.device)
        loss, output = _measured(model, data, x, y)
        n = len(x)
        metric = _metric(data, output, y)
        sums += torch.tensor([n * float(loss), n * metric, n], device=world.device)
    model.train(was_training)
    if world.size > 1:
        dist.all_reduce(sums)
    loss, metric = (float(value / sums[2]) for value in sums[:2])
    return loss, metric if data.metric else None


def _show(console: Console, record: EpochRecord) -> None:
    if not console.is_terminal:
        return
    metric = "" if record.metric is None else f", metric {record.metric:.4f}"
    console.print(
        f"epoch {record.epoch}: training loss {record.training_loss:.4f}, "
        f"validation loss {record.validation_loss:.4f}{metric}, sparsity {record.sparsity:.4f}"
    )
