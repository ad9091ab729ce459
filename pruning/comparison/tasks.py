"""Three tasks that need no download: images of digits, and Python's own library as text.

The networks are small stand-ins for those of the GS paper (arXiv 2112.10898): the digits'
convolutions for ResNet-50, a character language model with an LSTM for GNMT's recurrent layers,
and one of causal 1-D convolutions for Jasper. Sizes are chosen so that one core trains them
in a minute or two, and so that every layer that is pruned has a few words per bank.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gshw.errors import GshwError
from pruning.comparison.corpus import N_SYMBOLS, corpus
from pruning.digits import digits, network

Batch = tuple[Tensor, Tensor]
Size = tuple[int, int, int]
"""Samples, height and width of a layer's input."""

_CLIP = 1.0
_WARM_UP = 0.05
_QUICK_TESTS = (8, 128)
"""Windows of text, and predicted characters of each, in a quick evaluation."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a task measures.

    Parameters
    ----------
    label, unit
        For tables and axes.
    higher_is_better
        Direction.
    """

    label: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Optimiser steps of a dense training, and of pruning with its fine-tuning."""

    dense_steps: int
    prune_steps: int

    def __post_init__(self) -> None:
        for key in ("dense_steps", "prune_steps"):
            if getattr(self, key) < 1:
                raise GshwError(f"{key} must be at least 1, not {getattr(self, key)}")


class StepPruner(Protocol):
    """What the training loop asks of a pruner; :class:`pruning.pruner.GSPruner` has it."""

    def penalty(self) -> Tensor | float: ...

    def step(self) -> object: ...


class Task(ABC):
    """Data, a network and a metric. Everything random follows from the seeds given."""

    name: ClassVar[str]
    title: ClassVar[str]
    metric: ClassVar[Metric]
    full: ClassVar[Effort]
    quick: ClassVar[Effort]
    learning_rate: ClassVar[float]
    weight_decay: ClassVar[float]
    dense_layers: ClassVar[tuple[str, ...]]
    """Weights on the engine that no pattern prunes: too few columns for 16 banks at 95 %."""

    host_layers: ClassVar[tuple[str, ...]] = ()
    """Weights that the host applies, as a table; they take no cycles."""

    workload: ClassVar[str]
    """What the cycles of layers are counted for, in words."""

    network_workload: ClassVar[str]
    """What those of whole networks are counted for."""

    @abstractmethod
    def make_model(self, seed: int) -> nn.Module:
        """A new network."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless training batches (inputs, labels)."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Training loss of a batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module, *, quick: bool = False) -> float:
        """The metric on held-out data; with ``quick`` on a part of it. Leaves the model in
        evaluation mode."""

    @abstractmethod
    def calibration(self) -> list[Tensor]:
        """Input batches of training data, for ranges and moments."""

    @abstractmethod
    def network_input(self, *, quick: bool = False) -> Tensor:
        """Training inputs of the shape in which :meth:`evaluate` gives them to a network."""

    @abstractmethod
    def workload_input(self) -> Tensor:
        """Training inputs that are ``network_workload``."""

    @abstractmethod
    def input_size(self, name: str) -> Size:
        """Samples, height and width of the input of an engine layer, for the workload."""

    def data_hash(self) -> str:
        """Identity of data that differ between installations; empty where they cannot."""
        return ""


def train(
    task: Task,
    model: nn.Module,
    n_steps: int,
    seed: int,
    pruner: StepPruner | None = None,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """AdamW, a short warm-up, then a cosine to zero; gradients clipped to norm 1.

    Parameters
    ----------
    seed
        Of the data order: the same for all patterns, so that they differ in nothing else.
    pruner
        Asked for its penalty and told of every step.
    on_step
        Called with the number of steps done.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=task.learning_rate, weight_decay=task.weight_decay)
    warm_up = max(1, round(_WARM_UP * n_steps))

    def factor(step: int) -> float:
        progress = min(1.0, (step + 1) / n_steps)
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + float(np.cos(np.pi * progress)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    batches = task.batches(seed)
    model.train()
    for step in range(n_steps):
        loss = task.loss(model, next(batches))
        if pruner is not None:
            loss = loss + pruner.penalty()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimiser.step()
        schedule.step()
        if pruner is not None:
            pruner.step()
        if on_step is not None:
            on_step(step + 1)
    model.eval()


class DigitsTask(Task):
    """Scikit-learn's 8 x 8 digits; training images move by a pixel, tests too, all nine ways.

    Counting each of the 500 test images at nine places makes the accuracy steadier: 1 / 45 point
    a count.
    """

    name = "digits"
    title = "digits images, CNN"
    metric = Metric(label="accuracy", unit="%", higher_is_better=True)
    full = Effort(dense_steps=2000, prune_steps=600)
    quick = Effort(dense_steps=40, prune_steps=24)
    learning_rate = 3e-3
    weight_decay = 1e-2
    dense_layers = ("0", "12")
    workload = network_workload = "16 images"

    _batch = 64
    _sizes: ClassVar[dict[str, Size]] = {
        "0": (16, 8, 8),
        "3": (16, 8, 8),
        "6": (16, 4, 4),
        "10": (16, 1, 1),
        "12": (16, 1, 1),
    }

    def make_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return network()

    @cached_property
    def _data(self):
        return digits()

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        images = nn.functional.pad(self._data.train_x, (1, 1, 1, 1))
        while True:
            order = torch.randperm(len(images), generator=generator)
            # The last, smaller batch would weigh its images more.
            for batch in order.split(self._batch)[:-1]:
                dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
                yield images[batch, :, dy : dy + 8, dx : dx + 8], self._data.train_y[batch]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, quick: bool = False) -> float:
        model.eval()
        images = nn.functional.pad(self._data.test_x, (1, 1, 1, 1))
        shifts = [(1, 1)] if quick else [(dy, dx) for dy in range(3) for dx in range(3)]
        right = [
            (model(images[:, :, dy : dy + 8, dx : dx + 8]).argmax(dim=1) == self._data.test_y)
            for dy, dx in shifts
        ]
        return 100.0 * float(torch.cat(right).double().mean())

    def calibration(self) -> list[Tensor]:
        return list(self._data.train_x[:512].split(128))

    def network_input(self, *, quick: bool = False) -> Tensor:
        return self._data.train_x[:512]

    def workload_input(self) -> Tensor:
        return self._data.train_x[:16]

    def input_size(self, name: str) -> Size:
        return self._sizes[name]


class _TextTask(Task):
    """Next-character prediction on windows of the library's text."""

    metric = Metric(label="entropy", unit="bits per character", higher_is_better=False)

    context: ClassVar[int]
    """Characters before the first predicted one that a window holds."""

    _batch: ClassVar[int]
    _length: ClassVar[int]
    _tests: ClassVar[tuple[int, int]]
    """Windows and predicted characters of each in the evaluation."""

    _workload: ClassVar[tuple[int, int]]
    """Windows and predicted characters of the whole network's workload."""

    def _window(self, text: np.ndarray, starts: np.ndarray, length: int) -> Batch:
        """Inputs (n, context + length), and labels of the last ``length``: the next characters."""
        places = starts[:, None] + np.arange(self.context + length + 1)
        symbols = torch.from_numpy(text[places].astype(np.int64))
        return symbols[:, :-1], symbols[:, self.context + 1 :]

    def batches(self, seed: int) -> Iterator[Batch]:
        text = corpus().train
        rng = np.random.default_rng(seed)
        last = text.size - self.context - self._length - 1
        while True:
            yield self._window(text, rng.integers(0, last, self._batch), self._length)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(
            model(batch[0]).reshape(-1, N_SYMBOLS), batch[1].reshape(-1)
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, quick: bool = False) -> float:
        model.eval()
        text = corpus().validation
        n_windows, length = _QUICK_TESTS if quick else self._tests
        last = text.size - self.context - length - 1
        starts = np.linspace(0, last, n_windows).astype(np.int64)
        losses = [
            float(self.loss(model, self._window(text, part, length))) * part.size
            for part in np.array_split(starts, -(-n_windows // 64))
        ]
        return sum(losses) / n_windows / log(2)

    def calibration(self) -> list[Tensor]:
        batches = self.batches(seed=0)
        return [next(batches)[0] for _ in range(4)]

    def network_input(self, *, quick: bool = False) -> Tensor:
        return self._training_windows(32, (_QUICK_TESTS if quick else self._tests)[1])

    def workload_input(self) -> Tensor:
        return self._training_windows(*self._workload)

    def _training_windows(self, n_windows: int, length: int) -> Tensor:
        text = corpus().train
        starts = np.random.default_rng(0).integers(
            0, text.size - self.context - length - 1, n_windows
        )
        return self._window(text, starts, length)[0]

    def data_hash(self) -> str:
        return corpus().hash


class LstmLanguageModel(nn.Module):
    """Embedding, one LSTM, and a linear layer to the symbols.

    Shapes: symbols (n, time) to logits (n, time, N_SYMBOLS).
    """

    def __init__(self, n_embedded: int, n_hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_SYMBOLS, n_embedded)
        self.lstm = nn.LSTM(n_embedded, n_hidden, batch_first=True)
        self.output = nn.Linear(n_hidden, N_SYMBOLS)
        # Remember by default (Jozefowicz et al. 2015): half of the bias, as torch has two.
        with torch.no_grad():
            for bias in (self.lstm.bias_ih_l0, self.lstm.bias_hh_l0):
                bias[n_hidden : 2 * n_hidden] = 0.5

    def forward(self, symbols: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(symbols))
        return self.output(hidden)


class LstmTask(_TextTask):
    """A recurrent language model; the recurrent matrix and the output are pruned."""

    name = "lstm"
    title = "characters of Python's library, LSTM"
    full = Effort(dense_steps=2400, prune_steps=500)
    quick = Effort(dense_steps=4, prune_steps=24)
    learning_rate = 4e-3
    weight_decay = 0.0
    dense_layers = ()
    # One row of weight_ih times embedding per symbol: a table of 97 rows, made once.
    host_layers = ("lstm.weight_ih_l0",)
    workload = "one character of 64 texts"
    network_workload = "16 characters of 64 texts"

    context = 0
    _batch = 32
    _length = 64
    _tests = (512, 256)
    _workload = (64, 16)

    def make_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return LstmLanguageModel(32, 256)

    def input_size(self, name: str) -> Size:
        return 64, 1, 1


class ConvLanguageModel(nn.Module):
    """Embedding, then causal convolutions of growing dilation with batch norm and ReLU.

    No layer pads: a window of ``context + n`` symbols gives the n predictions that know their
    whole context, so a causal layer is just a convolution, and the engine runs it as one.
    Shapes: symbols (n, context + time) to logits (n, time, N_SYMBOLS).
    """

    def __init__(self, n_embedded: int, width: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.embedding = nn.Embedding(N_SYMBOLS, n_embedded)
        parts: list[nn.Module] = []
        for before, dilation in zip((n_embedded, *[width] * len(dilations)), dilations):
            parts += [
                nn.Conv1d(before, width, kernel, dilation=dilation, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*parts, nn.Conv1d(width, N_SYMBOLS, 1))

    def forward(self, symbols: Tensor) -> Tensor:
        return self.body(self.embedding(symbols).transpose(1, 2)).transpose(1, 2)


class Conv1dTask(_TextTask):
    """A convolutional language model; the last layer stays dense."""

    name = "conv1d"
    title = "characters of Python's library, causal convolutions"
    full = Effort(dense_steps=1000, prune_steps=250)
    quick = Effort(dense_steps=4, prune_steps=24)
    learning_rate = 4e-3
    weight_decay = 1e-2
    dense_layers = ("body.12",)
    workload = network_workload = "64 characters of 4 texts"

    _dilations = (1, 2, 4, 8)
    _kernel = 5
    context = (_kernel - 1) * sum(_dilations)
    _batch = 16
    _length = 192
    _tests = (512, 256)
    _workload = (4, 64)

    def make_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return ConvLanguageModel(64, 128, self._kernel, self._dilations)

    def input_size(self, name: str) -> Size:
        index = int(name.removeprefix("body.")) // 3
        return 4, 1, 64 + (self._kernel - 1) * sum(self._dilations[index:])


TASKS: dict[str, Task] = {task.name: task for task in (DigitsTask(), LstmTask(), Conv1dTask())}
