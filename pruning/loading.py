"""What the user of ``gshw prune`` names: models, datasets, weights, samples."""

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gshw.errors import GshwError
from pruning.masking import attach_masks, squash_masks
from pruning.training import TaskData

_N_RANDOM_SAMPLES = 16


def _call_named(name: str, what: str) -> Any:
    """What ``package.module:attribute`` is, or returns when called."""
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise GshwError(f"the {what} must be written package.module:{what}, not {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise GshwError(f"{name}: cannot be imported: {error}") from None
    try:
        return found() if callable(found) and not isinstance(found, nn.Module) else found
    except Exception as error:
        raise GshwError(f"{name}: raised {type(error).__name__}: {error}") from None


def load_factory(name: str) -> nn.Module:
    """Call ``package.module:factory`` and return its model.

    Raises
    ------
    GshwError
        For a name that cannot be imported, or something that is not a module.
    """
    model = _call_named(name, "factory")
    if not isinstance(model, nn.Module):
        raise GshwError(f"{name}: must return a torch.nn.Module, not {type(model).__name__}")
    return model


def load_dataset(name: str) -> TaskData:
    """Call ``package.module:dataset``; see :mod:`pruning.training` for what it returns.

    Raises
    ------
    GshwError
        For a name that cannot be imported, or another protocol.
    """
    return TaskData.from_returned(name, _call_named(name, "dataset"))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict (.pt through torch's safe unpickler, or .safetensors).

    Masks in it become zeros of the weights.

    Raises
    ------
    GshwError
        Naming the file: unreadable, truncated, or keys that do not fit the model.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise GshwError(f"{path}: no such file") from None
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GshwError(f"{path}: truncated, or not a state dict: {first}") from None
    if not isinstance(state, dict):
        raise GshwError(f"{path}: must hold a state dict, not {type(state).__name__}")
    try:
        attach_masks(model, {k: v for k, v in state.items() if isinstance(v, Tensor)})
        model.load_state_dict(state)
        squash_masks(model)
    except GshwError as error:
        raise GshwError(f"{path}: does not fit the model: {error}") from None
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise GshwError(
            f"{path}: does not fit the model: {lines[min(1, len(lines) - 1)]}"
        ) from None


def load_samples(path: Path | None, input_shape: str | None, seed: int) -> Tensor:
    """Calibration samples from a file, else random ones of a shape.

    Parameters
    ----------
    path
        ``.npy`` of floats, a batch, channels first.
    input_shape
        Of one sample, like ``3,32,32``.

    Raises
    ------
    GshwError
        Naming the file or the option; also where both are None.
    """
    if path is not None:
        try:
            values = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise GshwError(f"{path}: no such file") from None
        except (OSError, ValueError, EOFError) as error:
            raise GshwError(f"{path}: not a whole .npy file: {error}") from None
        if not np.issubdtype(values.dtype, np.floating) or values.size == 0:
            raise GshwError(
                f"{path}: must hold float samples, not {values.dtype} of shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise GshwError(f"{path}: samples must be finite")
        return torch.from_numpy(values).float()
    if input_shape is None:
        raise GshwError("needs --dataset, --calibration FILE or --input-shape C,H,W")
    try:
        shape = tuple(int(n) for n in input_shape.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise GshwError(
            f"--input-shape must be positive integers like 3,32,32, not {input_shape!r}"
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_N_RANDOM_SAMPLES, *shape, generator=generator)
