"""``gshw demo``: from images to bit-exact RTL, with accuracy, cycles and a report."""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from gshw import golden
from gshw.artefact import EncodedModel, save_model
from gshw.config import Config, EngineConfig, load_config
from gshw.device import CompiledEngine
from gshw.encoding import EncodedLayer
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.quantise import quantise_activations
from gshw.report import print_wide, progress_bar, write_record
from gshw.runtime import run_layer
from gshw.simulate import LayerReport, chain_input, dense_twin, simulate_layer
from pruning.digits import (
    Digits,
    accuracy,
    channels_last,
    digits,
    n_steps,
    network,
    train,
)
from pruning.methods.registry import Gradual
from pruning.models.export import export
from pruning.models.layers import analyse
from pruning.models.weights import find_weights
from pruning.patterns.gs import Gs
from pruning.patterns.neighbours import Block, Unstructured
from pruning.patterns.pattern import Pattern, Projection
from pruning.plots import plot_accuracy, plot_cycles, plot_mask
from pruning.pruner import GSPruner
from pruning.recipe import Recipe
from pruning.settings import LayerRule, SparsityTarget

SPARSITIES = (0.8, 0.9)


@dataclass(frozen=True)
class Effort:
    """Epochs of training, of gradual pruning, of fine-tuning after it; test images run in RTL."""

    dense_epochs: int
    prune_epochs: int
    tune_epochs: int
    n_images: int


FULL = Effort(dense_epochs=20, prune_epochs=5, tune_epochs=9, n_images=500)
QUICK = Effort(dense_epochs=6, prune_epochs=2, tune_epochs=3, n_images=20)


@dataclass(kw_only=True)
class Case:
    """One pattern at one sparsity, measured.

    Parameters
    ----------
    pattern, sparsity
        Asked for; ``density`` is what was kept of all weights.
    float_accuracy, golden_accuracy, rtl_accuracy
        Of the pruned float network, of its integers in the golden model, and in RTL.
    cycles, dense_cycles
        Counted by the same RTL, all layers and images.
    """

    pattern: str
    sparsity: float
    density: float
    float_accuracy: float
    golden_accuracy: float
    rtl_accuracy: float
    cycles: int
    dense_cycles: int
    utilisation: float
    exact: bool
    layers: list[LayerReport] = field(default_factory=list)

    @property
    def speed_up(self) -> float:
        return self.dense_cycles / self.cycles


def contestants(config: EngineConfig) -> dict[str, Pattern]:
    """The patterns compared: the engine's own, no pattern, and blocks of as many weights."""
    return {
        "gs": Gs(config=config),
        "unstructured": Unstructured(),
        "block": Block(height=1, width=config.lanes),
    }


def _kept_dense(config: EngineConfig, model: nn.Module, data: Digits) -> tuple[LayerRule, ...]:
    """Layers that the engine's pattern cannot prune stay dense for every pattern."""
    weights, _ = find_weights(config, model, data.train_x[:64])
    pattern = Gs(config=config)
    return tuple(
        LayerRule(match=weight.name, skip=True)
        for weight in weights
        if pattern.refusal(weight.shape[0], weight.geometry) is not None
    )


def prune_and_tune(
    config: Config,
    dense: nn.Module,
    data: Digits,
    pattern: Pattern,
    sparsity: float,
    effort: Effort,
    seed: int,
) -> tuple[nn.Module, dict[str, Projection]]:
    """Gradual cubic pruning from the dense network, then fine-tuning under the last mask."""
    model = copy.deepcopy(dense)
    n_epochs = effort.prune_epochs + effort.tune_epochs
    recipe = Recipe(
        config=config,
        pattern=pattern,
        target=SparsityTarget(sparsity=sparsity),
        layers=_kept_dense(config.engine, model, data),
        method=Gradual(stop=effort.prune_epochs / n_epochs, updates=effort.prune_epochs),
        seed=seed,
    )
    pruner = GSPruner(model, recipe)
    pruner.prepare(n_epochs * n_steps(data), example=data.train_x[:64])
    train(model, data, n_epochs, 2e-3, seed, pruner.step)
    projections = pruner.projections
    pruner.squash_mask()
    return model, projections


def encode(
    config: EngineConfig, model: nn.Module, projections: dict[str, Projection], data: Digits
) -> EncodedModel:
    """Quantise with 512 training images as calibration, and encode."""
    layers = analyse(config, model, data.train_x[:512])
    return export(config, layers, projections)


class _Rtl:
    """The engine in simulation; dense runs of one shape are measured once."""

    def __init__(self, config: EngineConfig, library: Path) -> None:
        self.config = config
        self.device = CompiledEngine(config, library)
        self._dense: dict[tuple, int] = {}

    def run(self, layer: EncodedLayer, x: np.ndarray) -> tuple[np.ndarray, LayerReport, int]:
        run, report = simulate_layer(self.config, layer, self.device, x)
        return run.output, report, self._dense_cycles(layer, x)

    def _dense_cycles(self, layer: EncodedLayer, x: np.ndarray) -> int:
        key = (layer.n_rows, layer.geometry, x.shape)
        if key not in self._dense:
            twin = dense_twin(self.config, layer)
            self._dense[key] = run_layer(self.config, twin, self.device, x).counters.cycles
        return self._dense[key]


def golden_chain(config: EngineConfig, model: EncodedModel, x: np.ndarray) -> np.ndarray:
    """Output codes of the last layer in the golden model, shape (n_samples, n_rows)."""
    for layer in model.layers.values():
        x = golden.run_layer(config, layer, chain_input(layer, x))
    return x.reshape(len(x), -1)


def run_case(
    config: EngineConfig,
    rtl: _Rtl,
    model: nn.Module,
    projections: dict[str, Projection],
    data: Digits,
    n_images: int,
    pattern: str,
    sparsity: float,
) -> tuple[Case, EncodedModel]:
    """Encode a pruned network and run all layers of the test images in RTL."""
    encoded = encode(config, model, projections, data)
    if not encoded.chain:
        raise GshwError("the demo network must be a chain of layers")
    first = next(iter(encoded.layers.values()))
    images = channels_last(data.test_x[:n_images])
    codes = quantise_activations(
        config, images, first.input_scale, first.requantisation.signed_input
    )
    labels = data.test_y[:n_images].numpy()
    wanted = golden_chain(config, encoded, codes).argmax(axis=1)
    x, dense_cycles, reports = codes, 0, []
    for layer in encoded.layers.values():
        x, report, dense = rtl.run(layer, chain_input(layer, x))
        dense_cycles += dense
        reports.append(report)
    found = x.reshape(len(x), -1).argmax(axis=1)
    cycles = sum(report.cycles for report in reports)
    kept = sum(report.density * report.rows * report.columns for report in reports)
    case = Case(
        pattern=pattern,
        sparsity=sparsity,
        density=kept / sum(report.rows * report.columns for report in reports),
        float_accuracy=accuracy(model, data),
        golden_accuracy=float((wanted == labels).mean()),
        rtl_accuracy=float((found == labels).mean()),
        cycles=cycles,
        dense_cycles=dense_cycles,
        utilisation=sum(r.utilisation * r.cycles for r in reports) / cycles,
        exact=all(report.match for report in reports),
        layers=reports,
    )
    return case, encoded


def _title(config: EngineConfig, pattern: str) -> str:
    names = {
        "gs": config.pattern_name,
        "unstructured": "unstructured",
        "block": f"1 x {config.lanes} blocks",
        "dense": "dense",
    }
    return names[pattern]


def summary_table(config: EngineConfig, dense_accuracy: float, cases: list[Case]) -> Table:
    """Accuracy and cycles of every case."""
    table = Table(title=f"digits, dense float accuracy {100 * dense_accuracy:.1f} %")
    for column in ("pattern", "sparsity", "float", "int8 golden", "int8 RTL", "cycles"):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    for column in ("MAC utilisation", "speed-up over dense", "RTL = golden"):
        table.add_column(column, justify="right")
    for case in cases:
        table.add_row(
            _title(config, case.pattern),
            f"{100 * case.sparsity:.0f} %",
            f"{100 * case.float_accuracy:.1f} %",
            f"{100 * case.golden_accuracy:.1f} %",
            f"{100 * case.rtl_accuracy:.1f} %",
            f"{case.cycles:,}",
            f"{case.utilisation:.3f}",
            f"{case.speed_up:.2f} x",
            "bit for bit" if case.exact else "DIFFERS",
        )
    return table


def _markdown(config: Config, dense_accuracy: float, cases: list[Case], n_images: int) -> str:
    engine = config.engine
    lines = [
        f"# gshw demo: digits on {config.name}",
        "",
        f"{engine.pattern_name}, {engine.macs_per_cycle} MACs per cycle, config hash "
        f"`{engine.hash[:16]}`. Network: 3 convolutions and 2 linear layers, "
        f"dense float accuracy {100 * dense_accuracy:.1f} %. All layers of {n_images} test images "
        "ran in RTL simulation; cycles are the hardware's counter.",
        "",
        "| pattern | sparsity | float | int8 golden | int8 RTL | cycles | MAC utilisation "
        "| speed-up over dense | RTL = golden |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        lines.append(
            f"| {_title(engine, case.pattern)} | {100 * case.sparsity:.0f} % "
            f"| {100 * case.float_accuracy:.1f} % | {100 * case.golden_accuracy:.1f} % "
            f"| {100 * case.rtl_accuracy:.1f} % | {case.cycles:,} | {case.utilisation:.3f} "
            f"| {case.speed_up:.2f} x | {'bit for bit' if case.exact else 'DIFFERS'} |"
        )
    best = [case for case in cases if case.pattern == "gs"][-1]
    lines += [
        "",
        f"## Layers, {_title(engine, 'gs')} at {100 * best.sparsity:.0f} %",
        "",
        "| layer | shape | density | groups | cycles | limit | MAC utilisation | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.name} | {r.rows} x {r.columns} | {100 * r.density:.1f} % | {r.groups:,} "
        f"| {r.cycles:,} | {r.limit} | {r.utilisation:.3f} | {r.speed_up:.2f} x |"
        for r in best.layers
    ]
    lines += [
        "",
        "![mask](mask.png)",
        "",
        "![cycles](cycles.png)",
        "",
        "![accuracy over speed](accuracy.png)",
    ]
    return "\n".join(lines) + "\n"


def _draw(
    folder: Path,
    engine: EngineConfig,
    cases: list[Case],
    projections: dict[str, Projection],
    dense: float,
) -> None:
    pruned = list(projections)
    name = pruned[min(1, len(pruned) - 1)]
    plot_mask(folder / "mask.png", engine, name, projections[name])
    at_last = [case for case in cases if case.sparsity == SPARSITIES[-1]]
    plot_cycles(
        folder / "cycles.png",
        [layer.name for layer in at_last[0].layers],
        {_title(engine, case.pattern): [r.cycles for r in case.layers] for case in at_last},
        [r.dense_cycles for r in at_last[0].layers],
    )
    points = [(_title(engine, c.pattern), c.sparsity, c.speed_up, c.rtl_accuracy) for c in cases]
    plot_accuracy(folder / "accuracy.png", points, dense)


def run_demo(
    config: Config,
    folder: Path,
    effort: Effort,
    seed: int,
    progress: Progress,
    note: Callable[[str], None],
    build_rtl: Callable[[Config, Path], Path],
) -> tuple[float, list[Case]]:
    """Everything the demo does, without printing tables.

    Parameters
    ----------
    note
        Called with one line per stage.
    build_rtl
        Writes the Verilog into a folder and returns the simulation library.

    Returns
    -------
    dense accuracy, cases
        GS, unstructured and block masks at each sparsity.
    """
    engine = config.engine
    data = digits()
    torch.manual_seed(seed)
    model = network()
    patterns = contestants(engine)
    n_cases = len(SPARSITIES) * len(patterns)
    task = progress.add_task("training the dense network", total=2 + 2 * n_cases)
    train(model, data, effort.dense_epochs, 3e-3, seed)
    dense_accuracy = accuracy(model, data)
    note(f"dense float accuracy {100 * dense_accuracy:.1f} %")
    progress.update(task, advance=1, description="generating the Verilog, building the simulation")
    rtl = _Rtl(engine, build_rtl(config, folder / "verilog"))
    progress.update(task, advance=1)
    cases: list[Case] = []
    drawn: dict[str, Projection] = {}
    for sparsity in SPARSITIES:
        for pattern_name, pattern in patterns.items():
            name = f"{_title(engine, pattern_name)} at {100 * sparsity:.0f} %"
            progress.update(task, description=f"pruning: {name}")
            pruned, found = prune_and_tune(config, model, data, pattern, sparsity, effort, seed)
            progress.update(task, advance=1, description=f"running in RTL: {name}")
            case, encoded = run_case(
                engine, rtl, pruned, found, data, effort.n_images, pattern_name, sparsity
            )
            progress.update(task, advance=1)
            cases.append(case)
            note(
                f"{name}: accuracy {100 * case.rtl_accuracy:.1f} % in RTL, "
                f"{case.speed_up:.2f} x over dense"
            )
            if pattern_name == "gs":
                drawn = found
                save_model(folder / f"digits_{round(100 * sparsity)}.safetensors", engine, encoded)
    rtl.device.close()
    _draw(folder, engine, cases, drawn, dense_accuracy)
    return dense_accuracy, cases


def demo_command(
    arguments: argparse.Namespace, console: Console, build_rtl: Callable[[Config, Path], Path]
) -> int:
    """Run the demo and write ``report.md``, ``report.json`` and the plots."""
    config = load_config(arguments.config)
    effort = QUICK if arguments.quick else FULL
    folder = arguments.output
    if folder.exists() and not folder.is_dir():
        raise GshwError(f"{folder}: must be a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GshwError(f"{folder}: cannot be made: {error.strerror}") from None
    started = time.monotonic()
    with progress_bar(console) as progress:
        dense_accuracy, cases = run_demo(
            config, folder, effort, arguments.seed, progress, progress.console.print, build_rtl
        )
    print_wide(console, summary_table(config.engine, dense_accuracy, cases))
    write_atomically(
        folder / "report.md", _markdown(config, dense_accuracy, cases, effort.n_images)
    )
    data = {
        "dense_accuracy": dense_accuracy,
        "n_images": effort.n_images,
        "cases": [asdict(case) | {"speed_up": case.speed_up} for case in cases],
    }
    write_record(folder / "report.json", config, arguments.raw, arguments.seed, data)
    console.print(
        f"report, plots, Verilog and encoded models: {folder}  ({time.monotonic() - started:.0f} s)"
    )
    return 0 if all(case.exact for case in cases) else 1
