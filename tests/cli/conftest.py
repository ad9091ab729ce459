"""Running commands in this process, model factories, and a small encoded model."""

import sys

import numpy as np
import pytest

from gshw.artefact import EncodedModel, save_model
from gshw.cli import main
from gshw.config import load_config
from gshw.geometry import Geometry
from tests.strategies import conv, random_layer

TINY = load_config("tiny").engine

FACTORY = """
import torch
from torch import nn


def chain():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)
    )


def translator():
    from pruning.zoo.gnmt import Gnmt

    torch.manual_seed(3)
    return Gnmt(width=16, n_layers=3, n_tokens=30, n_steps=2)


def depthwise():
    return nn.Conv2d(4, 4, 3, groups=4)


def point():
    return nn.Sequential(nn.Conv2d(4, 2, 1))


def damaged(value):
    model = chain()
    with torch.no_grad():
        model[4].weight[2, 7] = value
    return model


def nan():
    return damaged(float("nan"))


def inf():
    return damaged(float("-inf"))


def recurrent():
    return nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))


def number():
    return 3


def twice():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, layer)


ready = chain()
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A module of model factories, importable from the working directory."""
    (tmp_path / "cli_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield "cli_models"
    sys.modules.pop("cli_models", None)


@pytest.fixture
def model(tmp_path):
    """Two small layers encoded for the tiny engine."""
    path = tmp_path / "model.safetensors"
    layers = {
        "conv": random_layer(1, TINY, 6, conv(5, (3, 3), padding=(1, 1)), 0.4),
        "fc": random_layer(2, TINY, 9, Geometry.linear(30), 0.3, signed_input=True),
    }
    named = {name: _renamed(layer, name) for name, layer in layers.items()}
    save_model(path, TINY, EncodedModel(layers=named))
    return path


def _renamed(layer, name: str):
    metadata = {"input_size": "4x5"} if name == "conv" else {}
    return type(layer)(**layer.__dict__ | {"name": name, "metadata": metadata})


class Result:
    """Status and output of one command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capsys):
    """Run a command in this process."""

    def call(*arguments) -> Result:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture
def refused(run):
    """Run a command that must end in one line on stderr and status 2; return the line."""

    def call(*arguments) -> str:
        result = run(*arguments)
        assert result.status == 2, result.err
        assert result.err.endswith("\n") and result.err.count("\n") == 1, result.err
        assert result.err.startswith("gshw: ") and "Traceback" not in result.err
        return result.err.removeprefix("gshw: ").rstrip("\n")

    return call


def save_array(path, array):
    """Write a .npy file and return its path."""
    np.save(path, array)
    return path
