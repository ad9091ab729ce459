"""``gshw prune``: any torch model of Linear and convolution layers, to an encoded artefact."""

import argparse
import importlib
import pickle
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gshw.artefact import EncodedModel, save_model
from gshw.config import EngineConfig, load_config
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.report import layer_table, print_wide, write_record
from gshw.simulate import explain_layer, input_size
from pruning.export import export, state_tensors
from pruning.layers import analyse
from pruning.masking import squash_masks
from pruning.projection import RowGrouping
from pruning.prune import PruningPlan, prune_step

_N_RANDOM_SAMPLES = 16


def load_factory(name: str) -> nn.Module:
    """Call ``package.module:factory`` and return its model.

    Raises
    ------
    GshwError
        For a name that cannot be imported, or something that is not a module.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise GshwError(f"the factory must be written package.module:factory, not {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise GshwError(f"{name}: cannot be imported: {error}") from None
    try:
        model = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as error:
        raise GshwError(f"{name}: raised {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise GshwError(f"{name}: must return a torch.nn.Module, not {type(model).__name__}")
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict (.pt through torch's safe unpickler, or .safetensors).

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
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise GshwError(
            f"{path}: does not fit the model: {lines[min(1, len(lines) - 1)]}"
        ) from None


def _calibration(arguments: argparse.Namespace) -> Tensor:
    if arguments.calibration is not None:
        try:
            values = np.load(arguments.calibration, allow_pickle=False)
        except FileNotFoundError:
            raise GshwError(f"{arguments.calibration}: no such file") from None
        except (OSError, ValueError, EOFError) as error:
            raise GshwError(f"{arguments.calibration}: not a whole .npy file: {error}") from None
        if not np.issubdtype(values.dtype, np.floating) or values.size == 0:
            raise GshwError(
                f"{arguments.calibration}: must hold float samples, not {values.dtype} of shape "
                f"{values.shape}"
            )
        if not np.isfinite(values).all():
            raise GshwError(f"{arguments.calibration}: samples must be finite")
        return torch.from_numpy(values).float()
    if arguments.input_shape is None:
        raise GshwError("needs --calibration FILE or --input-shape C,H,W")
    try:
        shape = tuple(int(n) for n in arguments.input_shape.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise GshwError(
            f"--input-shape must be positive integers like 3,32,32, not {arguments.input_shape!r}"
        )
    generator = torch.Generator().manual_seed(arguments.seed)
    return torch.randn(_N_RANDOM_SAMPLES, *shape, generator=generator)


def _report(
    console: Console, config: EngineConfig, encoded: EncodedModel, plan: PruningPlan, title: str
) -> list[dict]:
    reports = [
        explain_layer(config, layer, config.columns, *input_size(layer))
        for layer in encoded.layers.values()
    ]
    print_wide(console, layer_table(reports, title))
    for name, reason in plan.kept_dense.items():
        console.print(f"kept dense: {name}: {reason}")
    for line in plan.warnings:
        console.print(f"warning: {line}")
    return [report.as_json() for report in reports]


def prune_command(arguments: argparse.Namespace, console: Console) -> int:
    """Prune one-shot, quantise, encode, write the artefact and report the predicted cycles."""
    config = load_config(arguments.config)
    torch.manual_seed(arguments.seed)
    model = load_factory(arguments.factory)
    if arguments.weights is not None:
        load_weights(model, arguments.weights)
    example = _calibration(arguments)
    layers = analyse(config.engine, model, example)
    plan = prune_step(
        config.engine,
        layers,
        arguments.sparsity,
        grouping=RowGrouping(arguments.rows),
        keep_dense=arguments.keep_dense,
    )
    # Activations of the pruned model differ from those of the dense one: calibrate again.
    layers = analyse(config.engine, model, example)
    provenance = {
        "command": shlex.join(["gshw", *arguments.raw]),
        "sparsity": str(arguments.sparsity),
        "seed": str(arguments.seed),
    }
    encoded = export(config.engine, layers, plan, provenance)
    save_model(arguments.output, config.engine, encoded)
    if arguments.save_weights is not None:
        squash_masks(model)
        write_atomically(arguments.save_weights, save(state_tensors(model)))
    rows = _report(
        console, config.engine, encoded, plan, f"{arguments.factory} on {config.name} (cycle law)"
    )
    data = {"layers": rows, "kept_dense": plan.kept_dense}
    write_record(arguments.json, config, arguments.raw, arguments.seed, data)
    print(arguments.output)
    return 0
