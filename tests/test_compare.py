"""Contestants, cases, cache, sweep and report of the comparison."""

import dataclasses
import json
import re
from concurrent.futures import BrokenExecutor, CancelledError
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import LocalCluster
from torch import nn

from gshw.config import Gather, Routing, load_config, parse_config, preset_names
from gshw.encoding import Requantisation, encode_layer
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.simulate import explain_layer
from pruning.comparison import cases as cases_module
from pruning.comparison import compare
from pruning.comparison.cases import (
    Case,
    code_version,
    hash_of,
    layer_cycles,
    run_case,
    train_dense,
)
from pruning.comparison.compare import Cache, plan_cases, sweep
from pruning.comparison.contestants import (
    DENSE,
    contestants,
    engine_rows,
    engine_variant,
    engines,
    make_recipe,
)
from pruning.comparison.report import draw, markdown, pareto, summarise, terminal_tables
from pruning.comparison.tasks import TASKS
from pruning.comparison.whole_report import (
    draw_networks,
    network_markdown,
    network_rows,
    network_table,
)
from pruning.comparison.workers import cluster_workers, local_workers
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.networks.module import IntegerNetwork
from pruning.patterns.registry import PATTERNS
from tests.strategies import conv

CONFIG = load_config("v16x4")
EVERYONE = contestants(CONFIG.engine)


def case_of(name: str, sparsity: float = 0.9, seed: int = 0, **rest) -> Case:
    options = {"task": "digits", "quick": True, "config": CONFIG} | rest
    return Case(contestant=EVERYONE[name], sparsity=sparsity, seed=seed, **options)


# --- contestants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", preset_names())
def test_engines_differ_in_rows_only(preset):
    own = load_config(preset).engine
    found = engines(own)
    assert list(found) == sorted(found, reverse=True) == engine_rows(own)
    assert found[own.rows] is own
    assert {own.lanes // rows for rows in found} >= {1, own.lanes}
    for rows, engine in found.items():
        assert engine.rows == rows
        free = {"rows", "routing", "drain_rows"}
        same = {f.name for f in dataclasses.fields(engine)} - free
        assert all(getattr(engine, name) == getattr(own, name) for name in same)
        assert engine.macs_per_cycle == own.macs_per_cycle


def test_routing_of_engine_variants():
    horizontal = load_config("h16").engine
    assert engine_variant(CONFIG.engine, 1).routing is Routing.DIRECT
    assert engine_variant(CONFIG.engine, 1).drain_rows == 1
    assert engine_variant(horizontal, 16).routing is Routing.BENES
    arbitrated = engine_variant(load_config("arb16").engine, 1)
    assert (arbitrated.gather, arbitrated.routing) == (Gather.ARBITRATED, Routing.CROSSBAR)


def test_every_pattern_takes_part():
    assert {c.kind for c in EVERYONE.values()} == {None, *PATTERNS}
    for k, groupings in ((1, 2), (4, 2), (16, 1)):
        gs = [c for c in EVERYONE.values() if c.kind == "gs" and c.rows == 16 // k]
        found = {(c.parameters["grouping"], c.deal) for c in gs}
        assert len(gs) == len(found) == 2 * groupings


@pytest.mark.parametrize("preset", preset_names())
def test_everyone_has_a_recipe(preset):
    config = load_config(preset)
    for contestant in contestants(config.engine).values():
        if contestant.kind is None:
            with pytest.raises(GshwError, match="the dense network needs no recipe"):
                make_recipe(config, contestant, 0.9, (), 0)
            continue
        recipe = make_recipe(config, contestant, 0.9, ("fc",), 3)
        assert recipe.channels.deal == contestant.deal
        assert (recipe.seed, recipe.target.sparsity) == (3, 0.9)
        if contestant.rows is not None:
            assert recipe.config.engine.rows == contestant.rows
            assert recipe.pattern.config.rows == contestant.rows


def test_who_takes_no_part():
    square = {"a": conv(4, (3, 3)), "b": Geometry.linear(8)}
    line = {"a": conv(4, (1, 5))}
    none = {"b": Geometry.linear(8)}
    assert EVERYONE["vector"].refusal(square, 0.9) is None
    wanted = "the network has no two-dimensional kernels"
    assert EVERYONE["vector"].refusal(line, 0.9) == wanted
    assert EVERYONE["kernel"].refusal(line, 0.9) is None
    wanted = "the network has no kernels of several taps"
    assert EVERYONE["kernel"].refusal(none, 0.9) == wanted
    assert EVERYONE["n-of-4"].refusal(none, 0.75) is None
    assert EVERYONE["n-of-4"].refusal(none, 0.8) == "keeps nothing above sparsity 0.75"


# --- keys -----------------------------------------------------------------------------------------


def test_code_version_follows_imports_and_ignores_words(tmp_path):
    package = tmp_path / "p"
    package.mkdir()
    (package / "a.py").write_text("from p.b import f\n\n\ndef g():\n    return f() + 1\n")
    (package / "b.py").write_text("def f():\n    return 1\n")
    (package / "c.py").write_text("x = 1\n")

    def version():
        code_version.cache_clear()
        return code_version(("p.a",), tmp_path)

    first = version()
    (package / "c.py").write_text("x = 2\n")
    (package / "b.py").write_text(
        '"""Words."""\n\n\ndef f():  # more\n    """Yes."""\n    return 1\n'
    )
    assert version() == first
    (package / "b.py").write_text("def f():\n    return 2\n")
    assert version() != first
    (package / "b.py").write_text("def f():\n    return 1\n")
    (package / "a.py").write_text("import p.b\n\n\ndef g():\n    return p.b.f() + 1\n")
    second = version()
    assert second != first
    (package / "b.py").write_text("def f():\n    return 2\n")
    assert version() != second
    code_version.cache_clear()


def test_keys_tell_cases_apart():
    base = case_of("gs-k1-scatter")
    other = parse_config("[engine]\nlanes = 16\nrows = 16\nbank_width = 8")
    variants = [
        case_of("gs-k1-consecutive"),
        case_of("gs-k1-scatter-dealt"),
        case_of("gs-k4-scatter"),
        case_of("unstructured"),
        case_of(DENSE, 0.0),
        case_of("gs-k1-scatter", 0.8),
        case_of("gs-k1-scatter", seed=1),
        case_of("gs-k1-scatter", quick=False),
        case_of("gs-k1-scatter", task="lstm"),
        case_of("gs-k1-scatter", config=other),
        case_of("gs-k1-scatter", is_whole=True),
        case_of("gs-k1-scatter", is_whole=True, library=Path("x")),
        case_of("gs-k1-scatter", is_whole=True, library=Path("y")),
    ]
    keys = [hash_of(case.key()) for case in [base, *variants]]
    assert len(set(keys)) == len(keys)
    assert hash_of(case_of("gs-k1-scatter").key()) == keys[0]
    dense = [hash_of(case.dense_key()) for case in [base, *variants]]
    assert dense[1:7] == dense[:1] * 6 and dense[10] == dense[0]
    assert len(set(dense)) == 4


# --- one case -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """The quick digits network of seed 0."""
    return train_dense(case_of(DENSE, 0.0), "")


def test_cycles_are_those_of_explain():
    rng = np.random.default_rng(0)
    geometry = conv(20, (3, 3), padding=(1, 1))
    mask = rng.random((24, 180)) < 0.3
    layer = encode_layer(
        CONFIG.engine,
        "x",
        mask.astype(np.int8),
        geometry,
        Requantisation.identity(24, CONFIG.engine),
        row_order=np.argsort(mask.sum(axis=1)),
    )
    wanted = explain_layer(CONFIG.engine, layer, 3, 8, 7).cycles
    orders = [np.argsort(mask.sum(axis=1)), np.arange(24)]
    assert layer_cycles(CONFIG.engine, mask, geometry, (3, 8, 7), orders[:1]) == wanted
    alone = layer_cycles(CONFIG.engine, mask, geometry, (3, 8, 7), orders[1:])
    assert layer_cycles(CONFIG.engine, mask, geometry, (3, 8, 7), orders) == min(wanted, alone)
    assert alone != wanted


def test_a_gs_case(trained):
    result = run_case(case_of("gs-k4-scatter"), trained, "")
    assert result == run_case(case_of("gs-k4-scatter"), trained, "")
    assert (result["rows"], result["engine"], list(result["by_rows"])) == (4, "GS(16, 4)", ["4"])
    assert result["cycles"] == result["by_rows"]["4"]
    assert 0.098 < result["density"] <= 0.1
    assert result["skipped"] == {}
    # 90 % of three layers; the two that stay dense are few weights.
    assert 5.5 < result["dense_cycles"] / result["cycles"] < 10
    assert 30 < result["metric"] <= 100 and abs(result["int8"] - result["metric"]) < 5
    json.dumps(result)


def test_a_neighbours_case(trained):
    """On the engine that takes fewest cycles; what it leaves dense is told, and counted."""
    result = run_case(case_of("kernel-pattern"), trained, "")
    assert list(result["by_rows"]) == ["16", "4", "1"]
    assert result["cycles"] == min(result["by_rows"].values())
    assert result["by_rows"][str(result["rows"])] == result["cycles"]
    assert list(result["skipped"]) == ["10"]
    n_kernels, n_linear = 64 * 288 + 128 * 576, 256 * 512
    wanted = (0.1 * n_kernels + n_linear) / (n_kernels + n_linear)
    assert result["density"] == pytest.approx(wanted, abs=1e-3)


def test_a_refused_case(trained):
    result = run_case(case_of("n-of-4"), trained, "")
    assert result == {"refused": "keeps nothing above sparsity 0.75"}


def test_dense_costs_its_own_cycles(trained):
    result = run_case(case_of(DENSE, 0.0), trained, "")
    assert result["cycles"] == result["dense_cycles"] and result["density"] == 1.0


def test_a_whole_network(trained):
    """Integers end to end are as good as layer by layer; loads and stores cost cycles more."""
    result = run_case(case_of("gs-k1-scatter", is_whole=True), trained, "")
    network = result.pop("network")
    assert result == run_case(case_of("gs-k1-scatter"), trained, "")
    assert (network["engine"], set(network)) == ("GS(16, 1)", {"engine", "int8", "cycles"})
    assert abs(network["int8"] - result["metric"]) < 2
    assert result["cycles"] < network["cycles"] < 2 * result["cycles"]


def test_an_integer_network_is_refused_other_shapes():
    task = TASKS["lstm"]
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).eval()
    tokens = torch.randint(7, (2, 5))
    floats = import_model(model, tokens)
    network = quantise_network(CONFIG.engine, floats)
    module = IntegerNetwork(CONFIG.engine, network, floats.layouts)
    with torch.no_grad():
        assert (module(tokens) - model(tokens)).abs().max() < 0.05
    message = "input must be of shape (samples, 5), which the network was imported for, not (2, 6)"
    with pytest.raises(GshwError, match=re.escape(message)):
        module(torch.randint(7, (2, 6)))
    assert task.network_input(quick=True).shape == (32, 128)
    assert task.workload_input().shape == (64, 16)


def test_host_layers_cost_nothing(monkeypatch):
    task = TASKS["lstm"]
    seen = []

    def count(engine, mask, geometry, size, orders):
        seen.append((*mask.shape, size))
        return 1

    monkeypatch.setattr(cases_module, "layer_cycles", count)
    case = case_of(DENSE, 0.0, task="lstm")
    cases_module.count_cycles(case, task, task.make_model(0), {})
    assert set(seen) == {(1024, 256, (64, 1, 1)), (97, 256, (64, 1, 1))}


@pytest.mark.parametrize("work", [train_dense, lambda case, h: run_case(case, b"", h)])
def test_other_data_are_refused(work):
    with pytest.raises(GshwError) as caught:
        work(case_of(DENSE, 0.0, task="lstm"), "other")
    text = str(caught.value)
    assert text.startswith("task 'lstm': the text of Python 3.")
    assert text.endswith(
        "'s library on this worker differs; all workers must have one Python version"
    )


# --- cache and sweep ------------------------------------------------------------------------------


class Stub:
    """Counts work instead of doing it."""

    def __init__(self, monkeypatch, fail_at: int | None = None) -> None:
        self.trained: list[tuple[str, int]] = []
        self.ran: list[str] = []
        self.fail_at = fail_at
        monkeypatch.setattr(compare, "train_dense", self.train)
        monkeypatch.setattr(compare, "run_case", self.run)
        monkeypatch.setattr(compare, "load", lambda data: data)

    def train(self, case, data_hash):
        self.trained.append((case.task, case.seed))
        return f"{case.task} {case.seed}".encode()

    def run(self, case, dense, data_hash):
        assert dense == f"{case.task} {case.seed}".encode()
        assert data_hash == TASKS[case.task].data_hash()
        if len(self.ran) == self.fail_at:
            raise KeyboardInterrupt
        self.ran.append(case.contestant.name)
        return {"refused": f"{case.contestant.name} {case.sparsity} {case.seed}"}


def many() -> list[Case]:
    return plan_cases(
        CONFIG, ["lstm", "digits"], ["unstructured", "gs-k16*"], [0.9, 0.5], [0, 1], True
    )


def test_whole_networks_change_other_cases_as_little_as_patterns_do():
    """Only cases of whole networks depend on how networks are made."""
    modules = ("pruning.comparison.cases",)
    code_version.cache_clear()
    both = code_version((*modules, "pruning.comparison.whole"))
    assert code_version(modules) != both
    whole = [case_of("unstructured", is_whole=each).key()["code"] for each in (False, True)]
    assert whole[0] != whole[1]


def test_plan():
    found = [(c.task, c.seed, c.contestant.name, c.sparsity) for c in many()]
    assert len(found) == len(set(found)) == 4 * (1 + 3 * 2)
    assert found[:3] == [
        ("lstm", 0, "dense", 0.0),
        ("lstm", 0, "unstructured", 0.5),
        ("lstm", 0, "unstructured", 0.9),
    ]
    all_of_them = plan_cases(CONFIG, ["digits"], ["all"], [0.9], [0], False)
    assert [c.contestant.name for c in all_of_them] == list(EVERYONE)


def test_a_sweep_that_was_interrupted_resumes(monkeypatch, tmp_path):
    cases, cache = many(), Cache(tmp_path / "cache")
    stub = Stub(monkeypatch, fail_at=9)
    with pytest.raises(KeyboardInterrupt), local_workers(1) as (executor, n):
        sweep(cases, cache, executor, n, lambda record: None)
    assert len(stub.ran) == 9
    again = Stub(monkeypatch)
    seen = []
    with local_workers(1) as (executor, n):
        records = sweep(cases, cache, executor, n, seen.append)
    assert len(again.ran) == len(cases) - 9
    assert not set(again.trained) & set(stub.trained)
    assert sorted(stub.trained + again.trained) == [
        ("digits", 0),
        ("digits", 1),
        ("lstm", 0),
        ("lstm", 1),
    ]
    assert [r.case for r in records] == cases and len(seen) == len(cases)
    for record in records:
        case = record.case
        wanted = f"{case.contestant.name} {case.sparsity} {case.seed}"
        assert record.as_json()["refused"] == wanted
    idle = Stub(monkeypatch)
    with local_workers(1) as (executor, n):
        assert sweep(cases, cache, executor, n, lambda record: None) == records
    assert not idle.ran and not idle.trained


def test_damaged_cache_files_are_made_anew(monkeypatch, tmp_path, trained):
    cache = Cache(tmp_path)
    case = case_of(DENSE, 0.0)
    assert cache.dense(case) is None and cache.result(case) is None
    cache.keep_dense(case, trained)
    cache.keep_result(compare.Record(case=case, result={"refused": "x"}))
    assert cache.dense(case) == trained and cache.result(case) == {"refused": "x"}
    for path in [*tmp_path.glob("dense/*"), *tmp_path.glob("cases/*")]:
        path.write_bytes(path.read_bytes()[:-9])
    assert cache.dense(case) is None and cache.result(case) is None
    (path,) = tmp_path.glob("cases/*")
    for text in ("[]", "{}", '{"key": 1, "result": {}}'):
        path.write_text(text)
        assert cache.result(case) is None


def test_cache_that_cannot_be_written(tmp_path, trained):
    (tmp_path / "dense").write_text("")
    with pytest.raises(GshwError) as caught:
        Cache(tmp_path).keep_dense(case_of(DENSE, 0.0), trained)
    assert str(caught.value) == f"{tmp_path / 'dense'}: cannot be made: File exists"


def test_a_dead_worker():
    with pytest.raises(GshwError) as caught, local_workers(2):
        raise BrokenExecutor
    assert str(caught.value) == (
        "a worker died; run again to go on, with fewer --jobs if memory was short"
    )


def test_on_a_cluster(tmp_path, trained):
    """The same results as here, through a scheduler's port."""
    cases = [case_of("unstructured")]
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            protocol="tcp",
            dashboard_address=None,
        ) as cluster,
        cluster_workers(cluster.scheduler_address) as (executor, n),
    ):
        assert n == 4
        records = sweep(cases, Cache(tmp_path), executor, n, lambda record: None)
    assert [r.result for r in records] == [run_case(case, trained, "") for case in cases]


def test_a_cluster_that_loses_its_work():
    with (
        LocalCluster(
            n_workers=1, processes=False, protocol="tcp", dashboard_address=None
        ) as cluster,
        pytest.raises(GshwError) as caught,
        cluster_workers(cluster.scheduler_address),
    ):
        raise CancelledError
    assert str(caught.value) == (
        f"the cluster at {cluster.scheduler_address} lost a case (CancelledError); "
        "run again to go on"
    )


def test_a_cluster_without_workers():
    with (
        LocalCluster(
            n_workers=0, processes=False, protocol="tcp", dashboard_address=None
        ) as cluster,
        pytest.raises(GshwError) as caught,
        cluster_workers(cluster.scheduler_address),
    ):
        pass
    wanted = f"the scheduler at {cluster.scheduler_address} has no worker"
    assert str(caught.value) == wanted


# --- report ---------------------------------------------------------------------------------------


def found(task: str, pattern: str, sparsity: float, seed: int, metric: float, cycles: int) -> dict:
    return {
        "task": task,
        "pattern": pattern,
        "sparsity": sparsity,
        "seed": seed,
        "metric": metric,
        "int8": metric,
        "density": 1 - sparsity,
        "cycles": cycles,
        "dense_cycles": 1000,
        "engine": "GS(16, 1)",
        "skipped": {},
    }


CASES = [
    found("lstm", "dense", 0.0, 0, 2.0, 1000),
    found("lstm", "unstructured", 0.9, 0, 2.2, 200),
    found("lstm", "unstructured", 0.9, 1, 2.4, 300),
    found("lstm", "gs-k1-scatter", 0.9, 0, 2.25, 100),
    found("lstm", "gs-k1-scatter", 0.9, 1, 2.39, 150),
    {
        "task": "lstm",
        "pattern": "kernel",
        "sparsity": 0.9,
        "seed": 0,
        "refused": "no kernels here",
    },
    found("digits", "unstructured", 0.9, 0, 98.0, 200) | {"skipped": {"10": "why not"}},
    found("digits", "gs-k16", 0.9, 0, 97.5, 100),
]


def test_summary_over_seeds():
    rows = {(row.task, row.pattern): row for row in summarise(CASES)}
    assert len(rows) == 6
    row = rows["lstm", "gs-k1-scatter"]
    assert (row.metric, row.cycles) == ((2.25, 2.39), 125)
    assert row.behind == pytest.approx(0.02)
    assert row.speed_up == pytest.approx((10 + 1000 / 150) / 2)
    assert rows["lstm", "dense"].behind is None
    assert rows["digits", "gs-k16"].behind == pytest.approx(0.5)
    assert rows["lstm", "kernel"].refused == "no kernels here"


def test_tables():
    rows = summarise(CASES)
    text = markdown(CONFIG, [r for r in rows if r.task == "lstm"], ["compare", "-o", "a b"])
    assert "Made by `gshw compare -o 'a b'`, engine v16x4, config hash" in text
    assert "| gs-k1-scatter | 10.0 % | 2.3200 ± 0.0990 | +0.87 % | 2.3200 ± 0.0990 | 125 " in text
    assert "| dense | 100.0 % | 2.0000 | - |" in text
    assert "- kernel at 90 % takes no part: no kernels here" in text
    assert text.index("## Dense") < text.index("## Sparsity 90 %") < text.index("## Notes")
    text = markdown(CONFIG, [r for r in rows if r.task == "digits"], ["compare"])
    assert "| gs-k16 | 10.0 % | 97.50 | +0.50 | 97.50 | 100 | 10.00 x |" in text
    assert "- unstructured leaves layer '10' dense: why not" in text
    assert [table.row_count for table in terminal_tables(rows)] == [3, 2]


def test_pareto_front():
    points = [(100, 2.3), (100, 2.2), (120, 2.4), (150, 2.1), (150, 2.1), (400, 2.1), (500, 1.9)]
    rows = summarise(
        found("lstm", f"p{i}", 0.9, 0, metric, cycles) for i, (cycles, metric) in enumerate(points)
    )
    assert [row.pattern for row in pareto(rows)] == ["p1", "p3", "p6"]
    better_up = summarise(
        found("digits", f"p{i}", 0.9, 0, metric, cycles)
        for i, (cycles, metric) in enumerate([(1, 90.0), (2, 89.0), (3, 91.0)])
    )
    assert [row.pattern for row in pareto(better_up)] == ["p0", "p2"]


def test_plots(tmp_path):
    rows = [row for row in summarise(CASES) if row.task == "lstm"]
    draw(tmp_path, CONFIG, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lstm.png", "lstm.svg"]
    assert (tmp_path / "lstm.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "lstm.svg").read_text()
    assert "<svg" in first


def test_jobs_default_to_this_process():
    with local_workers(1) as (executor, n):
        assert n == 1
        assert executor.submit(lambda: 7).result() == 7
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 / 0).result()


def whole(int8: float, cycles: int, **ran) -> dict:
    return {"network": {"engine": "GS(16, 1)", "int8": int8, "cycles": cycles, **ran}}


def test_whole_networks(tmp_path):
    ran = {"part_float": 98.5, "part": 98.25, "rtl": 98.25}
    cases = [
        found("digits", "dense", 0.0, 0, 99.0, 1000) | whole(98.9, 1200, **ran, same=True),
        found("digits", "dense", 0.0, 1, 99.0, 1000) | whole(98.7, 1200, **ran, same=True),
        found("digits", "gs-k1-scatter", 0.9, 0, 98.5, 100) | whole(98.4, 200, **ran, same=True),
        found("digits", "gs-k1-scatter", 0.9, 1, 98.1, 100) | whole(98.0, 150, **ran, same=False),
        found("digits", "gs-k16", 0.9, 0, 98.1, 100) | whole(98.0, 300),
        {"task": "digits", "pattern": "kernel", "sparsity": 0.9, "seed": 0, "refused": "no"},
        found("digits", "unstructured", 0.9, 0, 98.0, 200),
    ]
    rows = network_rows(cases)
    assert [row.pattern for row in rows] == ["dense", "gs-k1-scatter", "gs-k16"]
    assert [row.same for row in rows] == [True, False, None]
    assert rows[1].speed_up == pytest.approx((6 + 8) / 2)
    text = network_markdown(CONFIG, rows, ["compare", "--whole"])
    assert "| digits | gs-k1-scatter | 90 % | 98.30 ± 0.28 | 98.20 ± 0.28 | 98.50 ± 0.00 |" in text
    assert "| NO | 175 | 7.00 x | GS(16, 1) |" in text
    assert "| - | - | - | - | 300 | 4.00 x |" in text
    assert network_table(rows).row_count == 3
    draw_networks(tmp_path, CONFIG, rows)
    assert (tmp_path / "networks.svg").read_text().startswith("<?xml")
    assert (tmp_path / "networks.png").stat().st_size > 10_000
