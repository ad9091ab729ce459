"""What the user of ``gshw prune`` names: models, datasets, weights, samples."""

import importlib
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from gshw.errors import GshwError
from gshw.pattern import require_match
from pruning.checks import first_line, unreadable
from pruning.models.masking import attach_masks, masked_tensors, weight_mask
from pruning.models.weights import PrunableWeight
from pruning.patterns.checkers import violations
from pruning.patterns.greedy import Greedy
from pruning.patterns.gs import Gs
from pruning.patterns.pattern import Pattern, Projection
from pruning.runs.training import TaskData

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
        raise GshwError(f"{name}: cannot be imported: {first_line(error)}") from None
    try:
        return found() if callable(found) and not isinstance(found, nn.Module) else found
    except Exception as error:
        raise GshwError(f"{name}: raised {type(error).__name__}: {first_line(error)}") from None


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
    """Call ``package.module:dataset``; see :mod:`pruning.runs.training` for what it returns.

    Raises
    ------
    GshwError
        For a name that cannot be imported, or another protocol.
    """
    return TaskData.from_returned(name, _call_named(name, "dataset"))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict (.pt through torch's safe unpickler, or .safetensors).

    Masks in it are live in the model afterwards; see :func:`kept_masks`. A checkpoint of a
    training gives the state of its model.

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
        told = unreadable(error)
        raise GshwError(f"{path}: truncated, or not a state dict: {told}") from None
    if isinstance(state, dict) and {"format", "run", "model"} <= state.keys():
        state = state["model"]
    if not isinstance(state, dict):
        raise GshwError(f"{path}: must hold a state dict, not {type(state).__name__}")
    try:
        attach_masks(model, {k: v for k, v in state.items() if isinstance(v, Tensor)})
        model.load_state_dict(state)
    except GshwError as error:
        raise GshwError(f"{path}: does not fit the model: {error}") from None
    except (RuntimeError, AttributeError, TypeError) as error:
        # Torch's first line only says that there are errors.
        told = first_line(RuntimeError(str(error).partition(":\n")[2] or error))
        raise GshwError(f"{path}: does not fit the model: {told}") from None


ROW_ORDERS = "gshw.row_orders"
"""Metadata of a pruned state dict: rows of every pruned weight in bundle order, as JSON."""


def row_orders_text(projections: Mapping[str, Projection]) -> str:
    """What :data:`ROW_ORDERS` holds for these masks."""
    return json.dumps({name: found.row_order.tolist() for name, found in projections.items()})


def pruned_masks(path: Path, weights: Sequence[PrunableWeight]) -> dict[str, Projection]:
    """Masks of a state dict that ``gshw prune --save-weights`` wrote: what is not zero.

    Parameters
    ----------
    path
        Of the file; one without :data:`ROW_ORDERS` has no masks.
    weights
        Of the model that it was loaded into.

    Raises
    ------
    GshwError
        Naming the file and the layer, for a row order of another model.
    """
    try:
        with safe_open(str(path), "pt") as archive:
            text = (archive.metadata() or {}).get(ROW_ORDERS, "{}")
    except (SafetensorError, OSError):
        return {}
    try:
        found = json.loads(text).items()
        orders = {name: np.array(order, dtype=np.int64).reshape(-1) for name, order in found}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise GshwError(f"{path}: {ROW_ORDERS} in its metadata is damaged: {error}") from None
    masks = {}
    for weight in weights:
        if weight.name not in orders:
            continue
        order = orders[weight.name]
        mask = weight.to_matrix(weight.dense.detach() != 0)
        if not np.array_equal(np.sort(order), np.arange(len(mask))):
            raise GshwError(
                f"{path}: layer {weight.name!r}: row order must be a permutation of the "
                f"{len(mask)} rows"
            )
        masks[weight.name] = Projection(mask=mask, row_order=order, kept_score=0.0)
    return masks


def kept_masks(
    path: Path,
    model: nn.Module,
    pattern: Pattern | None,
    weights: Sequence[PrunableWeight],
    skipped: Mapping[str, str],
) -> dict[str, Projection]:
    """The masks that came with the weights of a file, for ``GSPruner.prepare(keep=...)``.

    A mask must have the recipe's pattern; one of an engine, on the bundles of the row order that
    the file records with it, else of consecutive rows. What lies below it is cleared: it is not
    part of the model that the file holds.

    Parameters
    ----------
    path
        Of the file, for errors.
    pattern
        That the masks must have; None: any.
    weights, skipped
        Of the model, see :func:`pruning.models.weights.find_weights`.

    Raises
    ------
    GshwError
        Naming the file, the layer and the rule that its mask breaks; or for a mask on what cannot
        be pruned.
    """
    found: dict[str, Projection] = {}
    paths = {module: path for path, module in model.named_modules()}
    others = {
        id(weight_mask(module, name)): paths[module] or name
        for module, name in masked_tensors(model)
    }
    for weight in weights:
        mask = weight_mask(weight.module, weight.tensor_name)
        if mask is None:
            continue
        del others[id(mask)]
        matrix = weight.to_matrix(mask.mask)
        order = None if mask.row_order is None else mask.row_order.numpy()
        if pattern is not None:
            _require_pattern(f"{path}: layer {weight.name!r}", pattern, weight, matrix, order)
        found[weight.name] = Projection(
            mask=matrix,
            row_order=np.arange(len(matrix)) if order is None else order,
            kept_score=0.0,
        )
        with torch.no_grad():
            weight.dense.mul_(mask.mask)
    for name in others.values():
        why = f": {skipped[name]}" if name in skipped else ""
        raise GshwError(f"{path}: layer {name!r} has a mask, but cannot be pruned{why}")
    return found


def _require_pattern(
    name: str,
    pattern: Pattern,
    weight: PrunableWeight,
    mask: np.ndarray,
    order: np.ndarray | None,
) -> None:
    if isinstance(pattern, Gs | Greedy):
        hint = ""
        if order is None and pattern.config.rows > 1:
            hint = "; the file records no row order for it, so that bundles are of consecutive rows"
        try:
            require_match(pattern.config, mask, weight.geometry, order, name)
        except GshwError as error:
            told = str(error) if str(error).startswith(name) else f"{name}: {error}"
            raise GshwError(told + hint) from None
        return
    broken = violations(pattern, mask, weight.geometry, weights=weight.to_matrix(weight.masked))
    if broken:
        raise GshwError(f"{name} does not match {pattern.label}: {broken[0]}")


def load_samples(
    path: Path | None, input_shape: str | None, seed: int, n_tokens: int | None = None
) -> Tensor:
    """Calibration samples from a file, else random ones of a shape.

    Parameters
    ----------
    path
        ``.npy`` of floats, a batch, channels first; of integers with ``n_tokens``.
    input_shape
        Of one sample, like ``3,32,32``.
    n_tokens
        For a model that reads token numbers: how many there are.

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
        kind = np.floating if n_tokens is None else np.integer
        if not np.issubdtype(values.dtype, kind) or values.size == 0 or values.ndim < 1:
            wanted = "float samples" if n_tokens is None else "integer tokens"
            raise GshwError(
                f"{path}: must hold {wanted}, not {values.dtype} of shape {values.shape}"
            )
        if n_tokens is not None:
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= n_tokens:
                wrong = low if low < 0 else high
                raise GshwError(f"{path}: tokens must be from 0 to {n_tokens - 1}, not {wrong}")
            return torch.from_numpy(values.astype(np.int64))
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
    if n_tokens is not None:
        return torch.randint(n_tokens, (_N_RANDOM_SAMPLES, *shape), generator=generator)
    return torch.randn(_N_RANDOM_SAMPLES, *shape, generator=generator)
