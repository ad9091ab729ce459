"""Whole networks: cycles for every kind of mask, and complete runs in RTL against the executor."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from gshw.config import BusConfig, Config, load_config
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator
from gshw.image import LayerImage
from gshw.lower import layer_program, lowered_plans
from gshw.network.commands import random_codes
from gshw.network.compile import CompiledNetwork, compile_network
from gshw.network.execute import execute
from gshw.network.graph import MatrixNode, Network
from gshw.network.memory import place_tensors
from gshw.network.report import NodeReport, node_reports, utilisation
from gshw.network.run import NetworkCycles, network_cycles, run_network
from gshw.program_cycles import program_cycles
from gshw.top import Top
from gshw.verilate import build_library
from pruning.networks.command import masks_of
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.recipe import Recipe
from pruning.recovery.compensation import reestimate_batch_norm
from pruning.zoo.bert import N_TOKENS as BERT_TOKENS
from pruning.zoo.bert import bert_base
from pruning.zoo.gnmt import N_TOKENS, gnmt
from pruning.zoo.jasper import jasper10x5
from pruning.zoo.resnet import resnet50
from rtl_gen.emit import cached_top_verilog

MODEL = MemoryModel()
SPARSITIES = (0.8, 0.9)
GOAL_COMPILE_SECONDS = 120.0
GOAL_SPEED_UP = {0.8: 3.8, 0.9: 6.5}
"""Of ResNet-50 over the dense network, every layer but the first pruned."""


@dataclass(frozen=True, kw_only=True)
class NetworkCase:
    """A network of the repository.

    Parameters
    ----------
    build, shape
        The model, and one sample for it.
    config
        Of the engine, and its bus.
    goal, seconds
        Of the run in RTL at 90 %: MAC utilisation, or with ``is_port_bound`` the read port's; and
        its time. None: no goal.
    dense_layers
        That stay dense.
    n_tokens
        The model reads token numbers below this.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    config: Config
    goal: float | None = None
    seconds: float | None = None
    is_port_bound: bool = False
    dense_layers: tuple[str, ...] = ()
    n_tokens: int | None = None

    def samples(self, n: int) -> Tensor:
        if self.n_tokens is None:
            return torch.randn(n, *self.shape)
        return torch.randint(self.n_tokens, (1, *self.shape))


CASES = (
    NetworkCase(
        name="ResNet-50",
        build=resnet50,
        shape=(3, 224, 224),
        config=load_config("v16x4m"),
        dense_layers=("conv1",),
        goal=0.80,
        seconds=60,
    ),
    NetworkCase(
        name="Jasper 10x5",
        build=jasper10x5,
        shape=(64, 100),
        config=load_config("v16x4m"),
        dense_layers=("first.conv",),
        goal=0.90,
        seconds=180,
    ),
    NetworkCase(
        name="BERT-base",
        build=bert_base,
        shape=(128,),
        config=load_config("v16x4m"),
        n_tokens=BERT_TOKENS,
    ),
    NetworkCase(
        name="GNMT",
        build=gnmt,
        shape=(20,),
        config=dataclasses.replace(
            load_config("block16"), name="block16, 128-bit", bus=BusConfig(data_width=128)
        ),
        goal=0.90,
        seconds=180,
        is_port_bound=True,
        n_tokens=N_TOKENS,
    ),
)
GS = "GS"
MASKS: dict[str, dict[str, Any]] = {
    GS: {"kind": "gs", "grouping": "consecutive"},
    "GS, any rows": {"kind": "gs", "grouping": "scatter"},
    "unstructured": {"kind": "unstructured"},
    "n of 20": {"kind": "n-of-m", "group_size": 20},
    "bank-balanced, 4 banks": {"kind": "bank-balanced", "n_banks": 4},
    "blocks 1 x 16": {"kind": "block", "height": 1, "width": 16},
    "blocks 16 x 1": {"kind": "block", "height": 16, "width": 1},
}
"""Patterns of the masks, as recipes have them."""


def chosen(names: Collection[str]) -> list[NetworkCase]:
    """Networks of these names; all without any."""
    return [case for case in CASES if not names or case.name in names]


@dataclass(frozen=True)
class Measured:
    """A network compiled, and what the law says of it."""

    compiled: CompiledNetwork
    cycles: NetworkCycles
    reports: list[NodeReport]
    seconds: float


def _compiled(case: NetworkCase, mask: str | None, sparsity: float) -> Measured:
    """Weights as torch initialises them, batch norms re-estimated on noise after the pruning."""
    config = case.config
    torch.manual_seed(0)
    model = case.build().eval()
    samples = case.samples(2)
    recipe = None
    if mask is not None:
        document = {
            "pattern": MASKS[mask],
            "target": {"sparsity": sparsity},
            "layer": [{"match": name, "skip": True} for name in case.dense_layers],
        }
        recipe = Recipe.from_dict(document, config)
    masks = masks_of(config, model, samples, recipe)
    if recipe is None:
        reestimate_batch_norm(model, [samples])
    begin = time.monotonic()
    network = quantise_network(config.engine, import_model(model, samples), masks)
    compiled = compile_network(config, network)
    seconds = time.monotonic() - begin
    cycles = network_cycles(compiled, MODEL)
    return Measured(compiled, cycles, node_reports(compiled, cycles), seconds)


def _mask_row(case: NetworkCase, mask: str | None, sparsity: float) -> dict[str, Any]:
    measured = _compiled(case, mask, sparsity)
    return {
        "network": case.name,
        "config_hash": case.config.engine.hash,
        "mask": mask or "dense",
        "sparsity": sparsity,
        "weights": sum(report.weights for report in measured.reports),
        "cycles": measured.cycles.cycles,
        "utilisation": utilisation(measured.reports),
        "needed": sum(report.needed for report in measured.reports),
        "compile_seconds": measured.seconds,
    }


def bench_masks(
    progress: Progress, names: Collection[str]
) -> tuple[list[Table], list[dict], list[str]]:
    """Networks under every kind of mask, by the cycle law."""
    tables, rows, missed = [], [], []
    for case in chosen(names):
        task = progress.add_task(case.name, total=1 + len(MASKS) * len(SPARSITIES))
        found = []
        for mask, sparsity in [(None, 0.0), *itertools.product(MASKS, SPARSITIES)]:
            found.append(_mask_row(case, mask, sparsity))
            progress.advance(task)
        for row in found:
            row["speed_up"] = found[0]["cycles"] / row["cycles"]
            row["speed_up_over_lossless"] = found[0]["needed"] / row["cycles"]
            told = f"{case.name}, {row['mask']} at {row['sparsity']:.0%}"
            goal = GOAL_SPEED_UP.get(row["sparsity"], 0.0)
            if case is CASES[0] and row["mask"] == GS and row["speed_up"] < goal:
                missed.append(f"{told}: speed-up {row['speed_up']:.2f}, goal {goal}")
            if case is CASES[0] and row["compile_seconds"] > GOAL_COMPILE_SECONDS:
                missed.append(f"{told}: compiled in {row['compile_seconds']:.0f} s")
        rows += found
        tables.append(_mask_table(case, found))
    return tables, rows, missed


def _mask_table(case: NetworkCase, rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title=f"{case.name} on {case.config.name}, {case.config.bus.data_width}-bit memory; "
        "speed-up over dense, and over dense without any loss"
    )
    names = ("mask", "sparsity", "weights", "cycles", "MACs", "speed-up", "lossless", "compile s")
    for name in names:
        table.add_column(name, justify="left" if name == "mask" else "right")
    for row in rows:
        table.add_row(
            row["mask"],
            f"{row['sparsity']:.0%}",
            f"{row['weights']:,}",
            f"{row['cycles']:,}",
            f"{row['utilisation']:.2f}",
            f"{row['speed_up']:.2f}",
            f"{row['speed_up_over_lossless']:.2f}",
            f"{row['compile_seconds']:.0f}",
        )
    return table


MOST_PLANS = 5
"""Of a layer, that the exact law looks at: those of the least estimates, ..."""
SLACK = 1.15
"""... at most so many times the least one."""


def bench_plans(
    progress: Progress, names: Collection[str]
) -> tuple[list[Table], list[dict], list[str]]:
    """What it costs that plans are chosen by an estimate, layer by layer, not by the exact law."""
    table = Table(title="layers as programs of their own, GS at 90 %: cycles by the plan chosen")
    for name in ("network", "layers", "by the estimate", "by the exact law", "more", "worst layer"):
        table.add_column(name, justify="left" if name == "network" else "right")
    rows = []
    for case in chosen(names):
        task = progress.add_task(f"{case.name}: plans", total=None)
        network = _compiled(case, GS, 0.9).compiled.network
        found = [_chosen_cycles(case.config, network, node) for node in _one_per_plan(network)]
        chosen_cycles, best = (sum(pair[n] for pair in found) for n in range(2))
        worst = max(a / b for a, b in found) - 1
        row = {
            "network": case.name,
            "config_hash": case.config.engine.hash,
            "layers": len(found),
            "estimate": chosen_cycles,
            "exact": best,
            "worst": worst,
        }
        rows.append(row)
        more = f"{chosen_cycles / best - 1:.3%}"
        cycles = f"{chosen_cycles:,}", f"{best:,}"
        table.add_row(case.name, str(len(found)), *cycles, more, f"{worst:.2%}")
        progress.update(task, total=1, completed=1)
    return [table], rows, []


def _one_per_plan(network: Network) -> list[MatrixNode]:
    """Nodes that share layer and size have one plan."""
    return list({(n.layer, network.input_size(n)): n for n in network.matrices}.values())


def _chosen_cycles(config: Config, network: Network, node: MatrixNode) -> tuple[int, int]:
    """Cycles of the plan of the least estimate, and the least cycles of any looked at."""
    image = LayerImage(config.engine, network.layers[node.layer])
    plans = [low for _, low in lowered_plans(config, image, 1, *network.input_size(node))]
    plans.sort(key=lambda lowering: lowering.cost)
    limit = SLACK * plans[0].cost
    exact = []
    for lowering in plans[:MOST_PLANS]:
        if lowering.cost <= limit:
            program = layer_program(config, image, lowering, 0)
            memory = program.image

            def read(address: int, n_bytes: int, memory: bytes = memory) -> bytes:
                return memory[address : address + n_bytes]

            exact.append(program_cycles(config, program.program, read, MODEL).cycles)
    return exact[0], min(exact)


def _spared_bytes(compiled: CompiledNetwork) -> int:
    """Memory that a network would do without if tensors' memory were used again."""
    ends = [
        place_tensors(compiled.config, compiled.network, compiled.n_samples, reuse=reuse)[1]
        for reuse in (False, True)
    ]
    return ends[0] - ends[1]


def bench_runs(
    progress: Progress, names: Collection[str]
) -> tuple[list[Table], list[dict], list[str]]:
    """Networks at 90 % on the verilated core: all tensors, all counters."""
    table = Table(title="complete runs in RTL, gshw_axi, one sample, GS at 90 %")
    columns = ("network", "engine", "nodes", "cycles", "the law's", "MACs", "read port", "tensors")
    for name in (*columns, "memory MB", "used again", "s", "cycles/s"):
        table.add_column(name, justify="left" if name in ("network", "engine") else "right")
    rows, missed = [], []
    for case in chosen(names):
        config = case.config
        library = build_library(cached_top_verilog(config, Top.AXI), top=Top.AXI)
        task = progress.add_task(f"{case.name} in RTL", total=None)
        measured = _compiled(case, GS, 0.9)
        compiled = measured.compiled
        codes = random_codes(compiled, 0)["input"]
        memory = {"n_bytes": compiled.n_bytes, "model": MODEL}
        with SimulatedAccelerator(config, library, **memory) as accelerator:
            begin = time.monotonic()
            run = run_network(accelerator, compiled, {"input": codes})
            seconds = time.monotonic() - begin
        wanted = execute(config.engine, compiled.network, {"input": codes})
        same = sum(np.array_equal(wanted[name], run.codes[name]) for name in wanted)
        port = run.counters["bytes_read"] / config.bus.data_bytes / run.counters["cycles"]
        share = port if case.is_port_bound else utilisation(measured.reports)
        row = {
            "network": case.name,
            "config_hash": config.engine.hash,
            "cycles": run.counters["cycles"],
            "law": measured.cycles.cycles,
            "counters_equal": run.counters == measured.cycles.counters,
            "utilisation": utilisation(measured.reports),
            "read_port": port,
            "tensors": len(wanted),
            "same": same,
            "seconds": seconds,
            "n_bytes": compiled.n_bytes,
            "n_bytes_reused": compiled.n_bytes - _spared_bytes(compiled),
            "nodes": [
                dataclasses.asdict(r) | {"needs": {k.value: n for k, n in r.needs.items()}}
                for r in measured.reports
            ],
        }
        rows.append(row)
        table.add_row(
            case.name,
            config.name,
            f"{len(measured.reports)}",
            f"{row['cycles']:,}",
            f"{row['law']:,}",
            f"{row['utilisation']:.2f}",
            f"{port:.2f}",
            f"{same} of {len(wanted)} same",
            f"{row['n_bytes'] / 1e6:.1f}",
            f"{row['n_bytes_reused'] / 1e6:.1f}",
            f"{seconds:.1f}",
            f"{row['cycles'] / seconds:,.0f}",
        )
        for wrong, text in (
            (same < len(wanted), "tensors differ from the executor's"),
            (not row["counters_equal"], "counters differ from the law"),
            (
                case.goal and share < case.goal,
                f"{share:.3f} of the bound is used, goal {case.goal}",
            ),
            (case.seconds and seconds > case.seconds, f"more than {case.seconds} s in RTL"),
        ):
            if wrong:
                missed.append(f"{case.name}: {text}")
        progress.update(task, total=1, completed=1)
    return [table], rows, missed
