"""The demo's data and network: scikit-learn's digits, and a small convolutional network."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

N_TEST = 500
_BATCH = 64


@dataclass(frozen=True)
class Digits:
    """8 x 8 grey images of ten digits, values 0..1, shape (n, 1, 8, 8)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits() -> Digits:
    """The 1,797 images that come with scikit-learn, split once and for all (500 for testing)."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=N_TEST, random_state=0, stratify=labels
    )
    shaped = [
        torch.tensor(x / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8) for x in (train_x, test_x)
    ]
    return Digits(shaped[0], torch.tensor(train_y), shaped[1], torch.tensor(test_y))


def network() -> nn.Sequential:
    """Three convolutions (padding, stride 2) and two linear layers, 226 k weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def train(
    model: nn.Module,
    data: Digits,
    n_epochs: int,
    learning_rate: float,
    seed: int,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Adam with a cosine schedule and shifts by one pixel.

    Parameters
    ----------
    after_step
        Called after every step of the optimiser; may change masks.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_epochs)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    padded = nn.functional.pad(data.train_x, (1, 1, 1, 1))
    for _ in range(n_epochs):
        model.train()
        order = torch.randperm(len(padded), generator=generator)
        for batch in order.split(_BATCH):
            dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
            images = padded[batch, :, dy : dy + 8, dx : dx + 8]
            optimiser.zero_grad()
            loss_of(model(images), data.train_y[batch]).backward()
            optimiser.step()
            if after_step:
                after_step()
        schedule.step()


def n_steps(data: Digits) -> int:
    """Steps of the optimiser in one epoch of :func:`train`."""
    return -(-len(data.train_x) // _BATCH)


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Fraction of the test images classified correctly."""
    model.eval()
    return float((model(data.test_x).argmax(dim=1) == data.test_y).double().mean())


def channels_last(x: Tensor) -> np.ndarray:
    """Images as (n, height, width, channels)."""
    return x.permute(0, 2, 3, 1).numpy()
