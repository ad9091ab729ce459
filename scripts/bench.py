"""Measures what the README claims, and prints it beside the goal. ``scripts/bench --help``."""

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse
from rich.console import Console
from rich.table import Table

from gshw import __version__, golden
from gshw.cli import USER_ERROR, build_rtl
from gshw.config import Config, EngineConfig, load_config, preset_names
from gshw.device import CompiledEngine
from gshw.encoding import EncodedLayer, Requantisation, encode_layer, scatter_rows
from gshw.errors import GshwError
from gshw.files import check_output_file, write_atomically
from gshw.geometry import Geometry
from gshw.pattern import require_match
from gshw.report import print_wide, progress_bar
from gshw.runtime import run_layer
from gshw.simulate import dense_twin, simulate_layer
from gshw.verilate import build_library
from pruning.patterns.gs import Gs
from pruning.patterns.pattern import Projection, ScoredMatrix
from rtl_gen.emit import cached_core_verilog
from rtl_gen.top import TOP_NAME
from scripts import bench_compensation
from scripts.bench_networks import CASES as NETWORKS
from scripts.bench_networks import bench_masks, bench_plans, bench_runs
from scripts.bench_overlap import OverlapCase, measure_overlap, shortcomings
from scripts.bench_pruning import (
    bench_kept,
    bench_optimal,
    bench_projection_speed,
    conv_window,
    resnet50_shapes,
    unstructured_mask,
)
from scripts.bench_tasks import bench_tasks, bench_trained, bench_zeros

SEED = 2021
N_RANDOM_LAYERS = 14


@dataclass
class Results:
    """Tables to print, the same as plain values, and what must hold and does not.

    ``networks`` names those to measure; none means all.
    """

    tables: list[Table] = field(default_factory=list)
    data: dict[str, object] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """One of the layers that the goals name."""

    name: str
    rows: int
    geometry: Geometry
    sparsity: float
    positions: tuple[int, int] = (1, 1)


SHAPES = (
    Shape("512 x 4608, 49 positions", 512, conv_window(512, 3), 0.90, (7, 7)),
    Shape("2048 x 512", 2048, Geometry.linear(512), 0.90),
    Shape("4096 x 4096", 4096, Geometry.linear(4096), 0.91),
    Shape("2400 x 1201 (NT-LSTM, out x in)", 2400, Geometry.linear(1201), 0.90),
    Shape("1201 x 2400 (read as rows x columns)", 1201, Geometry.linear(2400), 0.90),
)


def _random_weights(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Gaussian weights as 8-bit codes without zeros, so that a mask alone decides the density."""
    codes = np.rint(rng.standard_normal(shape) * 30).clip(-127, 127).astype(np.int8)
    codes[codes == 0] = 1
    return codes


def _project(
    config: EngineConfig, name: str, scores: np.ndarray, geometry: Geometry, sparsity: float
) -> Projection:
    matrix = ScoredMatrix(name=name, scores=scores, geometry=geometry)
    return Gs(config=config).project(matrix, sparsity)


def _encode(
    config: EngineConfig, name: str, weights: np.ndarray, geometry: Geometry, sparsity: float
) -> EncodedLayer:
    """With a mask of the engine's pattern."""
    scores = np.abs(weights.astype(np.float64))
    projection = _project(config, name, scores, geometry, sparsity)
    require_match(config, projection.mask, geometry, projection.row_order)
    return _encode_masked(config, name, weights, geometry, projection.mask, projection.row_order)


def _encode_masked(config, name, weights, geometry, mask, row_order) -> EncodedLayer:
    requantisation = Requantisation.identity(len(weights), config, shift=26)
    return encode_layer(
        config, name, np.where(mask, weights, 0).astype(np.int8), geometry, requantisation,
        mask=mask, row_order=row_order,
    )  # fmt: skip


def _device(config: Config, cache: dict[str, CompiledEngine]) -> CompiledEngine:
    if config.name not in cache:
        library = build_library(cached_core_verilog(config.engine))
        cache[config.name] = CompiledEngine(config.engine, library)
    return cache[config.name]


def bench_exact(results: Results, devices: dict) -> None:
    """Goal 1: random (config, layer) pairs, output and every counter."""
    from sim_tests.configs import ODD_CONFIGS
    from sim_tests.layers import expected_counters, random_case

    rng = np.random.default_rng(SEED)
    configs = [load_config(name) for name in preset_names()] + list(ODD_CONFIGS)
    n_pairs = n_output = n_counters = 0
    for config in configs:
        device = _device(config, devices)
        for _ in range(N_RANDOM_LAYERS):
            case = random_case(rng, config.engine, cycle_goal=20_000)
            run = run_layer(config.engine, case.layer, device, case.activations)
            wanted = golden.run_layer(config.engine, case.layer, case.activations)
            law = expected_counters(config.engine, case.layer, case.activations.shape)
            n_pairs += 1
            n_output += not np.array_equal(run.output, wanted)
            n_counters += run.counters != law
    table = Table(title="1. Bit-exact: random layers in RTL")
    for column in ("configs", "pairs (goal 200)", "outputs that differ", "counters off the law"):
        table.add_column(column, justify="right")
    table.add_row(str(len(configs)), str(n_pairs), str(n_output), str(n_counters))
    results.tables.append(table)
    results.data["exact"] = {
        "configs": len(configs),
        "pairs": n_pairs,
        "output_differences": n_output,
        "counter_differences": n_counters,
    }


def bench_utilisation(results: Results, devices: dict) -> None:
    """Goals 2 and 3: the hardware's cycle counter on matching, dense and unstructured layers."""
    table = Table(title="2./3. MAC utilisation (goal 0.98) and speed-up over dense (goal 9.7 x)")
    for column in ("layer", "engine", "density", "cycles", "utilisation", "dense", "speed-up"):
        table.add_column(column, justify="left" if column in ("layer", "engine") else "right")
    rows = []
    for shape in SHAPES:
        rng = np.random.default_rng(SEED)
        weights = _random_weights(rng, (shape.rows, shape.geometry.n_columns))
        for name in ("h16", "v16x4", "arb16"):
            config = load_config(name)
            rows.append(_utilisation_row(config, _device(config, devices), shape, weights))
            row = rows[-1]
            table.add_row(
                shape.name,
                name + (" (unstructured)" if name == "arb16" else ""),
                f"{100 * row['density']:.2f} %",
                f"{row['cycles']:,}",
                f"{row['utilisation']:.4f}",
                f"{row['dense_cycles']:,}",
                f"{row['speed_up']:.3f} x",
            )
    results.tables.append(table)
    results.data["utilisation"] = rows


def _utilisation_row(config: Config, device: CompiledEngine, shape: Shape, weights) -> dict:
    engine = config.engine
    if config.name == "arb16":
        scores = np.abs(weights.astype(np.float64))
        mask = unstructured_mask(scores, shape.geometry, shape.sparsity)
        order = scatter_rows(mask.sum(axis=1))
        layer = _encode_masked(engine, shape.name, weights, shape.geometry, mask, order)
    else:
        layer = _encode(engine, shape.name, weights, shape.geometry, shape.sparsity)
    rng = np.random.default_rng(SEED)
    size = (engine.columns, *shape.positions, shape.geometry.in_channels)
    x = rng.integers(0, 256, size)
    _, report = simulate_layer(engine, layer, device, x)
    if not report.match:
        raise SystemExit(f"{shape.name} on {config.name}: {report.mismatch}")
    dense = run_layer(engine, dense_twin(engine, layer), device, x).counters.cycles
    return {
        "layer": shape.name,
        "engine": config.name,
        "density": report.density,
        "cycles": report.cycles,
        "utilisation": report.utilisation,
        "dense_cycles": dense,
        "speed_up": dense / report.cycles,
    }


def bench_runner(results: Results, devices: dict) -> None:
    """Goal 4: the compiled runner's rate, and cocotb's on the same layer in the same run."""
    from sim_tests.cocotb_flow import run_bench
    from sim_tests.rate_layer import TimedDevice, rate_case

    config = load_config("v16x4")
    device, case = _device(config, devices), rate_case(config.engine)
    before, timed = device.total_cycles, TimedDevice(device, time.thread_time)
    for _ in range(20):
        run = run_layer(config.engine, case.layer, timed, case.activations)
    compiled = (device.total_cycles - before) / timed.seconds
    engine_only = _engine_rate(config, device)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rate.json"
        environment = {"GSHW_BENCH_CONFIG": "v16x4", "GSHW_BENCH_SEED": "1"}
        environment["GSHW_BENCH_OUTPUT"] = str(output)
        verilog = cached_core_verilog(config.engine)
        run_bench(Path(folder), verilog, TOP_NAME, "sim_tests.bench_rate", environment)
        measured = json.loads(output.read_text())
    cocotb_rate = measured["cycles"] / measured["seconds"]
    table = Table(title="4. Simulation rate, v16x4 (64 MACs), one core")
    table.add_column("what")
    table.add_column("cycles per CPU second", justify="right")
    table.add_row("compiled runner, engine busy (goal 1 M)", f"{engine_only:,.0f}")
    table.add_row("compiled runner, a layer with loads and read-back", f"{compiled:,.0f}")
    table.add_row("cocotb, the same layer", f"{cocotb_rate:,.0f}")
    table.add_row("ratio on the same layer (goal 30)", f"{compiled / cocotb_rate:.0f}")
    results.tables.append(table)
    results.data["rate"] = {
        "compiled_busy": engine_only,
        "compiled_layer": compiled,
        "cocotb_layer": cocotb_rate,
        "ratio": compiled / cocotb_rate,
        "layer_cycles": run.counters.cycles,
    }


def _engine_rate(config: Config, device: CompiledEngine) -> float:
    """Cycles per second while commands run: a layer with many positions, best of three."""
    from sim_tests.rate_layer import TimedDevice

    rng = np.random.default_rng(SEED)
    geometry = conv_window(1024, 1)
    weights = _random_weights(rng, (256, geometry.n_columns))
    layer = _encode(config.engine, "rate", weights, geometry, 0.9)
    x = rng.integers(0, 256, (4, 14, 14, 1024))
    best = 0.0
    for _ in range(3):
        timed = TimedDevice(device, time.thread_time)
        run = run_layer(config.engine, layer, timed, x)
        best = max(best, run.counters.cycles / timed.run_seconds)
    return best


def bench_encoder(results: Results, devices: dict) -> None:
    """Goal 5: all of a ResNet-50 at v16x4, the minimum proved per bundle."""
    engine = load_config("v16x4").engine
    rng = np.random.default_rng(SEED)
    _encode(engine, "warm-up", _random_weights(rng, (64, 256)), Geometry.linear(256), 0.9)
    encode_seconds = csr_seconds = 0.0
    n_weights = n_groups = n_kept = n_bundles = n_beyond = 0
    for rows, geometry in resnet50_shapes():
        weights = _random_weights(rng, (rows, geometry.n_columns))
        scores = np.abs(weights.astype(np.float64))
        projection = _project(engine, "layer", scores, geometry, 0.9)
        masked = np.where(projection.mask, weights, 0).astype(np.int8)
        requantisation = Requantisation.identity(rows, engine, shift=26)
        started = time.perf_counter()
        layer = encode_layer(
            engine, "layer", masked, geometry, requantisation,
            mask=projection.mask, row_order=projection.row_order,
        )  # fmt: skip
        encode_seconds += time.perf_counter() - started
        started = time.perf_counter()
        scipy.sparse.csr_matrix(masked)
        csr_seconds += time.perf_counter() - started
        bound = _least_groups(engine, projection.mask, geometry, projection.row_order)
        n_beyond += int((layer.groups_per_bundle != bound).sum())
        n_bundles += bound.size
        n_weights += weights.size
        n_kept += int(projection.mask.sum())
        n_groups += layer.n_groups
    table = Table(title="5. Encoder: ResNet-50, random weights, 90 %, v16x4")
    for column in (
        "weights",
        "kept",
        "groups",
        "bundles",
        "not at the minimum",
        "seconds",
    ):
        table.add_column(column, justify="right")
    table.add_column("goal", justify="right")
    table.add_column("ratio to SciPy dense to CSR", justify="right")
    ratio = encode_seconds / csr_seconds
    table.add_row(
        f"{n_weights:,}", f"{n_kept:,}", f"{n_groups:,}", f"{n_bundles:,}", str(n_beyond),
        f"{encode_seconds:.1f}", "30", f"{ratio:.1f}",
    )  # fmt: skip
    results.tables.append(table)
    results.data["encoder"] = {
        "weights": n_weights,
        "kept": n_kept,
        "groups": n_groups,
        "bundles": n_bundles,
        "bundles_beyond_minimum": n_beyond,
        "seconds": encode_seconds,
        "ratio_to_csr": ratio,
    }


def _least_groups(engine: EngineConfig, mask, geometry: Geometry, row_order) -> np.ndarray:
    """Lower bound of every bundle, counted from the mask alone."""
    kept = geometry.to_blocks(engine, mask).any(axis=3)
    bounds = []
    for start in range(0, len(row_order), engine.rows):
        counts = kept[row_order[start : start + engine.rows]].sum(axis=1)
        in_row = -(-counts.sum(axis=1) // engine.lanes_per_row)
        bounds.append(max(int(in_row.max()), int(counts.sum(axis=0).max())))
    return np.array(bounds)


def bench_demo(results: Results, devices: dict) -> None:
    """Goal 6: the demo's accuracies over three seeds."""
    from pruning.demo import FULL, run_demo

    config = load_config("v16x4")
    console = Console(stderr=True)
    accuracies: dict[tuple[str, float], list[float]] = {}
    speeds: dict[tuple[str, float], list[float]] = {}
    dense = []
    for seed in range(3):
        with tempfile.TemporaryDirectory() as folder, progress_bar(console) as progress:
            found, cases = run_demo(config, Path(folder), FULL, seed, progress, str, build_rtl)
        dense.append(found)
        for case in cases:
            key = (case.pattern, case.sparsity)
            accuracies.setdefault(key, []).append(case.rtl_accuracy)
            speeds.setdefault(key, []).append(case.speed_up)
    table = Table(
        title=f"6. Demo, 3 seeds: int8 accuracy in RTL (dense float {100 * np.mean(dense):.2f} %)"
    )
    for column in ("pattern", "sparsity", "mean", "least", "most", "speed-up"):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    rows = []
    for (pattern, sparsity), values in accuracies.items():
        speed = float(np.mean(speeds[pattern, sparsity]))
        rows.append(
            {"pattern": pattern, "sparsity": sparsity, "accuracy": values, "speed_up": speed}
        )
        numbers = [f"{100 * value:.2f} %" for value in (np.mean(values), min(values), max(values))]
        table.add_row(pattern, f"{100 * sparsity:.0f} %", *numbers, f"{speed:.2f} x")
    results.tables.append(table)
    results.data["demo"] = {"dense": dense, "cases": rows}


def bench_golden(results: Results, devices: dict) -> None:
    """The golden model on a ResNet-50 layer of 3 x 3 x 512 x 512 and a 7 x 7 map."""
    config = load_config("v16x4").engine
    rng = np.random.default_rng(SEED)
    geometry = conv_window(512, 3)
    weights = _random_weights(rng, (512, geometry.n_columns))
    layer = _encode(config, "3x3x512x512", weights, geometry, 0.9)
    x = rng.integers(0, 256, (1, 7, 7, 512))
    started = time.perf_counter()
    golden.run_layer(config, layer, x)
    seconds = time.perf_counter() - started
    table = Table(title="Golden model, 3 x 3 x 512 x 512 on a 7 x 7 map")
    table.add_column("seconds", justify="right")
    table.add_column("goal", justify="right")
    table.add_row(f"{seconds:.2f}", "2")
    results.tables.append(table)
    results.data["golden"] = {"seconds": seconds}


def overlap_cases() -> list[OverlapCase]:
    """A layer that reuses its weights, and one that only waits for them, on two engines."""
    cases = []
    for shape, resource in (
        (Shape("256 x 2304, 14 x 14 map", 256, conv_window(256, 3), 0.90, (14, 14)), "compute"),
        (Shape("4096 x 4096, 1 position", 4096, Geometry.linear(4096), 0.91), "memory read"),
    ):
        for name in ("h16", "v16x4"):
            config = load_config(name)
            rng = np.random.default_rng(SEED)
            weights = _random_weights(rng, (shape.rows, shape.geometry.n_columns))
            layer = _encode(config.engine, shape.name, weights, shape.geometry, shape.sparsity)
            n_samples = config.engine.columns if resource == "compute" else 1
            size = (n_samples, *shape.positions, shape.geometry.in_channels)
            cases.append(OverlapCase(config, layer, rng.integers(0, 256, size), resource))
    return cases


def bench_overlap(results: Results, devices: dict) -> None:
    """Loads, compute and stores at the same time: whole programs on ``gshw_axi``."""
    table, rows = measure_overlap(overlap_cases())
    results.tables.append(table)
    results.data["overlap"] = rows
    results.missed += [text for row in rows for text in shortcomings(row)]


def _pruning(name: str, measure) -> Callable[[Results, dict], None]:
    """A part of :mod:`scripts.bench_pruning`."""

    def run(results: Results, devices: dict) -> None:
        with progress_bar(Console(stderr=True)) as progress:
            table, data = measure(SEED, progress)
        results.tables.append(table)
        results.data[name] = data

    return run


def bench_least_squares(results: Results, devices: dict) -> None:
    """Output error of compensated layers."""
    results.data["compensation"] = bench_compensation.measure(Console())


def _networks(name: str, measure) -> Callable[[Results, dict], None]:
    """A part of :mod:`scripts.bench_networks`."""

    def run(results: Results, devices: dict) -> None:
        with progress_bar(Console(stderr=True)) as progress:
            tables, rows, missed = measure(progress, results.networks)
        results.tables += tables
        results.data[name] = rows
        results.missed += missed

    return run


PARTS = {
    "exact": bench_exact,
    "utilisation": bench_utilisation,
    "runner": bench_runner,
    "encoder": bench_encoder,
    "overlap": bench_overlap,
    "golden": bench_golden,
    "demo": bench_demo,
    "optimal": _pruning("optimal", bench_optimal),
    "kept": _pruning("kept", bench_kept),
    "projection": _pruning("projection", bench_projection_speed),
    "compensation": bench_least_squares,
    "tasks": _pruning("tasks", bench_tasks),
    "zeros": _pruning("zeros", bench_zeros),
    "networks": _networks("networks", bench_runs),
    "masks": _networks("masks", bench_masks),
    "plans": _networks("plans", bench_plans),
    "trained": _networks("trained", bench_trained),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (repeatable)")
    parser.add_argument(
        "--network",
        choices=[case.name for case in NETWORKS],
        action="append",
        default=[],
        help="of the parts networks, masks and plans (all; repeatable)",
    )
    parser.add_argument("--json", type=Path, help="results file")
    arguments = parser.parse_args()
    try:
        check_output_file(arguments.json)
    except GshwError as error:
        print(f"bench: {error}", file=sys.stderr)
        return USER_ERROR
    results = Results(networks=tuple(arguments.network))
    devices, console = {}, Console()
    for name in arguments.only or PARTS:
        n_before = len(results.tables)
        PARTS[name](results, devices)
        for table in results.tables[n_before:]:
            print_wide(console, table)
    record = {
        "command": shlex.join(["scripts/bench", *sys.argv[1:]]),
        "gshw": __version__,
        "config_hash": {name: load_config(name).engine.hash for name in preset_names()},
        "seed": SEED,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        **results.data,
    }
    if arguments.json:
        write_atomically(arguments.json, json.dumps(record, indent=1) + "\n")
    for text in results.missed:
        print(f"bench: {text}", file=sys.stderr)
    return 1 if results.missed else 0


if __name__ == "__main__":
    sys.exit(main())
