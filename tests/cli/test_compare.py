"""``gshw compare``: tables, plots and results of a quick sweep, and what it refuses."""

import json

import pytest
from safetensors.torch import save

from gshw.config import load_config
from pruning.comparison import compare, workers

QUICK = ["compare", "--quick", "--tasks", "digits", "--patterns", "unstructured,gs-k1-s*"]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GSHW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_quick_sweep(run, cache, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = [*QUICK, "--jobs", "1", "--seeds", "0,1", "-o", out]
    result = run(*arguments)
    assert (result.status, result.err) == (0, "")
    assert "gs-k1-scatter-dealt" in result.out and "unstructured" in result.out
    names = ["digits.md", "digits.png", "digits.svg", "results.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    data = json.loads((out / "results.json").read_text())
    assert data["command"].startswith("gshw compare --quick --tasks digits")
    assert data["config_hash"] == load_config("v16x4").engine.hash
    assert (data["seeds"], data["quick"], len(data["cases"])) == ([0, 1], True, 8)
    first = data["cases"][2]
    assert (first["pattern"], first["sparsity"], first["seed"]) == ("gs-k1-scatter", 0.9, 0)
    assert {"metric", "int8", "cycles", "engine", "density"} <= set(first)
    text = (out / "digits.md").read_text()
    assert text.startswith("# digits images, CNN\n") and "2 seed(s)" in text

    # Again, with all from the cache.
    monkeypatch.setattr(compare, "train_dense", None)
    monkeypatch.setattr(compare, "run_case", None)
    assert run(*arguments).status == 0
    assert json.loads((out / "results.json").read_text())["cases"] == data["cases"]


def test_whole_networks(run, cache, tmp_path, monkeypatch):
    """One that differs in RTL is told by the table and the status."""
    monkeypatch.setattr(compare, "build_library", lambda verilog, top: tmp_path / "library.so")
    seen = []

    def run_case(case, dense, data_hash):
        seen.append((case.is_whole, case.library.name))
        ran = {"part_float": 99.0, "part": 98.0, "rtl": 98.0, "same": case.sparsity == 0}
        network = {"engine": "GS(16, 1)", "int8": 98.0, "cycles": 100, **ran}
        numbers = {"metric": 99.0, "int8": 98.5, "density": 1.0, "cycles": 10, "dense_cycles": 10}
        return {**numbers, "rows": 16, "engine": "GS(16, 1)", "skipped": {}, "network": network}

    monkeypatch.setattr(compare, "run_case", run_case)
    monkeypatch.setattr(compare, "train_dense", lambda case, data_hash: save({}))
    out = tmp_path / "out"
    options = ["--tasks", "digits", "--patterns", "unstructured", "--jobs", "1", "--whole"]
    result = run("compare", "--quick", *options, "-o", out)
    assert result.status == 1
    assert seen == [(True, "library.so")] * 2
    assert {path.name for path in out.iterdir()} >= {"networks.md", "networks.svg", "networks.png"}
    assert "| NO | 100 | 1.00 x |" in (out / "networks.md").read_text()
    assert "whole networks" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--whole", "--scheduler", "tcp://x:1"],
            "--whole runs in RTL on this machine: not with --scheduler",
        ),
        (["--tasks", "digits,mnist"], "no task 'mnist'; there are digits, lstm, conv1d"),
        (["--patterns", "gs-k3*"], "no pattern 'gs-k3*'; there are all, dense, unstructured, gs-"),
        (
            ["--sparsities", "0.9,x"],
            "--sparsities must be numbers with commas between, not '0.9,x'",
        ),
        (["--sparsities", "0.5,1"], "sparsity must be at least 0 and below 1, not 1"),
        (["--seeds", "0,1.5"], "--seeds must be integers with commas between, not '0,1.5'"),
        (["--seeds=-1"], "seed must be at least 0, not -1"),
        (["--config", "nothing"], "nothing: no such config file, nor a preset; presets are "),
    ],
)
def test_bad_options(refused, cache, tmp_path, options, message):
    out = tmp_path / "out"
    assert refused(*QUICK, "-o", out, *options).startswith(message)
    assert not out.exists()


def test_bad_output(refused, cache, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(*QUICK, "-o", tmp_path / "file")
    assert line == f"{tmp_path / 'file'}: must be a folder"
    line = refused(*QUICK, "-o", tmp_path / "file" / "folder")
    assert line == f"{tmp_path / 'file' / 'folder'}: cannot be made: Not a directory"


def test_no_scheduler(refused, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.2)
    address = "tcp://127.0.0.1:1"
    line = refused(*QUICK, "-o", tmp_path, "--scheduler", address)
    assert line.startswith(f"no scheduler at {address}: ")
    line = refused(*QUICK, "-o", tmp_path, "--scheduler", "nonsense://x")
    assert line.startswith("no scheduler at nonsense://x: ")


def test_scheduler_without_distributed(refused, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    line = refused(*QUICK, "-o", tmp_path, "--scheduler", "tcp://127.0.0.1:1")
    assert line == "--scheduler needs distributed: pip install 'gshw[cluster]'"
