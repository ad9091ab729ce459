"""One case of ``gshw compare``: prune a trained network under the one recipe, and measure it."""

import ast
import hashlib
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import nn

from gshw.config import Config, EngineConfig
from gshw.cycles import plan_cycles
from gshw.encoding import Requantisation, consecutive_rows, encode_layer, scatter_rows
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.image import LayerImage
from gshw.plan import Plan
from pruning.comparison.contestants import Contestant, engines, make_recipe
from pruning.comparison.tasks import TASKS, Effort, Size, Task, train
from pruning.comparison.whole import measure_network
from pruning.integers.evaluation import quantised_copy
from pruning.integers.quantisation import calibrate
from pruning.models.export import state_tensors
from pruning.models.weights import find_weights
from pruning.patterns.pattern import Projection
from pruning.pruner import GSPruner

_RETRAINING = 1000
"""Added to the seed, so that retraining sees the data in another order than training."""

_random_state = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to measure. Everything in it can be sent to another process.

    Parameters
    ----------
    config
        Its engine; contestants for other numbers of rows get that variant of it.
    task
        Name of one of :data:`pruning.comparison.tasks.TASKS`.
    sparsity
        Of every pruned layer; 0 for the dense network.
    seed
        Of the first weights, and of the data's order.
    quick
        Next to no training: for tests.
    is_whole
        Measures the whole network, too; see :mod:`pruning.comparison.whole`.
    library
        The config's ``gshw_axi``, compiled, to run it in RTL.
    """

    config: Config
    task: str
    contestant: Contestant
    sparsity: float
    seed: int
    quick: bool = False
    is_whole: bool = False
    library: Path | None = None

    @property
    def effort(self) -> Effort:
        task = TASKS[self.task]
        return task.quick if self.quick else task.full

    def dense_key(self) -> dict[str, Any]:
        """All that decides the trained network from which the case starts."""
        return {
            "task": self.task,
            "data": TASKS[self.task].data_hash(),
            "steps": self.effort.dense_steps,
            "seed": self.seed,
            "code": code_version(("pruning.comparison.tasks",)),
            "torch": torch.__version__,
        }

    def key(self) -> dict[str, Any]:
        """All that decides the result; results are cached under its hash."""
        task = TASKS[self.task]
        recipe = None
        modules = [__name__, *["pruning.comparison.whole"] * self.is_whole]
        if self.contestant.kind is not None:
            recipe = self.recipe()
            modules.append(type(recipe.pattern).__module__)
        return {
            "dense": self.dense_key(),
            "engine": self.config.engine.hash,
            "recipe": None if recipe is None else recipe.hash,
            "steps": self.effort.prune_steps,
            "learning_rate": task.learning_rate,
            "quick": self.quick,
            "code": code_version(tuple(modules)),
            # The library's name is made of the Verilog's hash.
            **({"whole": self.library and self.library.name} if self.is_whole else {}),
        }

    def recipe(self):
        """The recipe of a case that is not dense."""
        dense = TASKS[self.task].dense_layers + TASKS[self.task].host_layers
        return make_recipe(self.config, self.contestant, self.sparsity, dense, self.seed)


def hash_of(key: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


# --- what code a result depends on ----------------------------------------------------------------

_APART = ("pruning.patterns.registry", "pruning.comparison.whole")
"""Modules that most cases do not depend on: those of all patterns, and of whole networks."""


_ROOT = Path(__file__).resolve().parents[2]


@cache
def code_version(modules: tuple[str, ...], root: Path = _ROOT) -> str:
    """Hash of the code of some modules and of all that they import from this project.

    Comments, docstrings and layout do not count.

    Parameters
    ----------
    root
        Folder of the packages.
    """
    waiting, seen = list(modules), {}
    while waiting:
        name = waiting.pop()
        path = root.joinpath(*name.split(".")).with_suffix(".py")
        apart = name in _APART and name not in modules
        if name in seen or apart or not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        waiting += _imported(tree)
        seen[name] = ast.dump(_without_docstrings(tree))
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return tree


# --- work for a worker ----------------------------------------------------------------------------


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread per case: cases run side by side, and sums do not depend on the machine."""
    n_torch, n_numba = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_torch)
        numba.set_num_threads(n_numba)


def _new_model(task: Task, seed: int) -> nn.Module:
    # Torch's first weights come from a generator that all threads of a worker share.
    with _random_state, torch.random.fork_rng(devices=[]):
        return task.make_model(seed)


def train_dense(case: Case, data_hash: str) -> bytes:
    """Train the network from which the case starts.

    Parameters
    ----------
    data_hash
        Of the data that the asker has.

    Returns
    -------
    bytes
        Its state dict as safetensors.

    Raises
    ------
    GshwError
        For a worker with other data.
    """
    task = TASKS[case.task]
    check_data(task, data_hash)
    with _one_thread():
        model = _new_model(task, case.seed)
        train(task, model, case.effort.dense_steps, case.seed)
    return save(state_tensors(model))


def run_case(case: Case, dense: bytes, data_hash: str) -> dict[str, Any]:
    """Prune, retrain, quantise and count cycles.

    Parameters
    ----------
    dense
        What :func:`train_dense` returned.
    data_hash
        Of the data that the asker has.

    Returns
    -------
    dict
        Plain values: ``metric``, ``int8`` (the metric of the integers), ``density`` of the pruned
        weights, ``cycles``, ``engine`` and its ``rows``, ``by_rows``, ``dense_cycles``, ``skipped``
        ``warnings`` and, where it was asked for, ``network`` from
        :func:`pruning.comparison.whole.measure_network`; or ``refused`` with the pattern's reason.

    Raises
    ------
    GshwError
        For a worker with other data.
    """
    task = TASKS[case.task]
    check_data(task, data_hash)
    with _one_thread():
        model = _new_model(task, case.seed)
        model.load_state_dict(load(dense))
        try:
            return _measure(case, task, model)
        except _Refusal as refusal:
            return {"refused": str(refusal)}


class _Refusal(Exception):
    """The pattern takes no part in the case, and says why."""


def check_data(task: Task, data_hash: str) -> None:
    """Refuse to work on other data than the asker's.

    Raises
    ------
    GshwError
        Naming the Python whose library differs.
    """
    if task.data_hash() != data_hash:
        raise GshwError(
            f"task {task.name!r}: the text of Python {sys.version.split()[0]}'s library on this "
            "worker differs; all workers must have one Python version"
        )


def _measure(case: Case, task: Task, model: nn.Module) -> dict[str, Any]:
    n_steps, seed = case.effort.prune_steps, case.seed + _RETRAINING
    calibration = task.calibration()
    projections: dict[str, Projection] = {}
    skipped: dict[str, str] = {}
    warnings: list[str] = []
    matrices = _matrices(case.config.engine, model, calibration[0])
    spared = task.dense_layers + task.host_layers
    windows = {name: matrix for name, matrix in matrices.items() if name not in spared}
    if case.contestant.kind is None:
        train(task, model, n_steps, seed)
    else:
        geometries = {name: geometry for name, (_, geometry) in windows.items()}
        reason = case.contestant.refusal(geometries, case.sparsity)
        if reason is not None:
            raise _Refusal(reason)
        try:
            pruner = GSPruner(model, case.recipe())
            pruner.prepare(n_steps, calibration[0], calibration)
        except GshwError as error:
            raise _Refusal(str(error)) from None
        train(task, model, n_steps, seed, pruner)
        pruner.squash_mask()
        projections, warnings = pruner.projections, pruner.warnings
        skipped = {n: reason for n, reason in pruner.skipped.items() if n in windows}
    engine = case.config.engine
    ranges = calibrate(engine, model, calibration, host=task.host_layers)
    cycles = count_cycles(case, task, model, projections)
    whole = {}
    if case.is_whole:
        # One engine for all, but for masks that are made for another.
        rows = case.contestant.rows or engine.rows
        config = replace(case.config, engine=engines(engine)[rows])
        library = case.library if config.engine == engine else None
        found = measure_network(config, task, model, projections, library, quick=case.quick)
        whole["network"] = {"engine": config.engine.pattern_name, **found}
    # What the pattern had to leave dense counts too: the others prune it.
    size = sum(n_rows * window.n_columns for n_rows, window in windows.values())
    pruned = sum(p.mask.size - int(p.mask.sum()) for p in projections.values())
    return {
        "metric": task.evaluate(model, quick=case.quick),
        "int8": task.evaluate(quantised_copy(engine, model, ranges), quick=case.quick),
        "density": 1.0 - pruned / size,
        **cycles,
        **whole,
        "skipped": skipped,
        "warnings": warnings,
    }


# --- cycles ---------------------------------------------------------------------------------------


def _matrices(
    engine: EngineConfig, model: nn.Module, example: torch.Tensor
) -> dict[str, tuple[int, Geometry]]:
    weights, _ = find_weights(engine, model, example)
    return {weight.name: (weight.shape[0], weight.geometry) for weight in weights}


def layer_cycles(
    engine: EngineConfig,
    mask: NDArray[np.bool_],
    geometry: Geometry,
    size: Size,
    row_orders: Iterable[NDArray],
) -> int:
    """Cycles of a layer by the exact law, in the best of some row orders.

    Parameters
    ----------
    mask
        Shape (n_rows, n_columns): the weights kept.
    size
        Samples, height and width of the layer's input.
    """
    zeros = np.zeros(mask.shape, dtype=np.int8)
    requantisation = Requantisation.identity(len(mask), engine)
    found = []
    for order in row_orders:
        layer = encode_layer(
            engine, "case", zeros, geometry, requantisation, mask=mask, row_order=order
        )
        found.append(plan_cycles(Plan(engine, LayerImage(engine, layer), *size)).total)
    return min(found)


def count_cycles(
    case: Case, task: Task, model: nn.Module, projections: Mapping[str, Projection]
) -> dict[str, Any]:
    """Cycles of the whole network on the engine that suits the masks best.

    A GS mask runs on the engine that it was made for, in its own bundles. Any other is encoded for
    every engine, its rows as they come, in its projection's order and sorted by their counts, and
    the fewest cycles count.
    """
    example = task.calibration()[0]
    matrices = _matrices(case.config.engine, model, example)
    own_rows = case.contestant.rows
    chosen = {
        rows: engine
        for rows, engine in engines(case.config.engine).items()
        if own_rows is None or rows == own_rows
    }
    by_rows, dense_by_rows = {}, {}
    for rows, engine in chosen.items():
        total = dense_total = 0
        for name, (n_rows, geometry) in matrices.items():
            if name in task.host_layers:
                continue
            whole = np.ones((n_rows, geometry.n_columns), dtype=bool)
            as_they_come = [consecutive_rows(n_rows)]
            dense = layer_cycles(engine, whole, geometry, task.input_size(name), as_they_come)
            dense_total += dense
            projection = projections.get(name)
            if projection is None:
                total += dense
                continue
            mask = projection.mask
            orders = [projection.row_order]
            if own_rows is None:
                orders += [*as_they_come, scatter_rows(mask.sum(axis=1))]
            total += layer_cycles(engine, mask, geometry, task.input_size(name), orders)
        by_rows[rows], dense_by_rows[rows] = total, dense_total
    rows = min(by_rows, key=lambda r: (by_rows[r], -r))
    return {
        "cycles": by_rows[rows],
        "dense_cycles": dense_by_rows[rows],
        "rows": rows,
        "engine": chosen[rows].pattern_name,
        "by_rows": {str(r): cycles for r, cycles in by_rows.items()},
    }
