"""``gshw prune``: from a factory to the artefact and through the RTL, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gshw.artefact import load_model
from gshw.cli import main
from gshw.config import load_config
from gshw.encoding import decode_weights
from tests.cli.conftest import save_array

TINY = load_config("tiny").engine

PRUNE = ["--config", "tiny", "--sparsity", "0.5", "--input-shape", "4,3,3"]


def test_prune_to_simulate(run, factory, tmp_path):
    """One model through every command; the RTL is bit-exact on both layers."""
    out, record = tmp_path / "m.safetensors", tmp_path / "prune.json"
    weights = tmp_path / "w.safetensors"
    arguments = ["prune", f"{factory}:chain", *PRUNE, "-o", out]
    result = run(*arguments, "--json", record, "--save-weights", weights, "--seed", "5")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1] == str(out)
    encoded = load_model(out, TINY)
    assert (list(encoded.layers), encoded.chain) == (["0", "4"], ("0", "4"))
    assert encoded.provenance["sparsity"] == "0.5"
    for layer in encoded.layers.values():
        kept = np.count_nonzero(decode_weights(TINY, layer)) / layer.n_rows
        assert 0.4 < kept / layer.geometry.n_columns <= 0.52
    data = json.loads(record.read_text())
    assert (data["config_hash"], data["seed"]) == (TINY.hash, 5)
    assert data["command"].startswith(f"gshw prune {factory}:chain --config tiny ")
    assert [layer["name"] for layer in data["layers"]] == ["0", "4"]
    state = load_file(weights)
    assert set(state) >= {"0.weight", "4.weight", "1.running_mean"}
    assert (state["4.weight"] == 0).float().mean() == pytest.approx(0.5, abs=0.02)

    record = tmp_path / "explain.json"
    result = run("explain", out, "--config", "tiny", "--json", record)
    assert (result.status, result.err) == (0, "")
    explained = json.loads(record.read_text())
    assert [layer["match"] for layer in explained["layers"]] == [None, None]
    assert (explained["seed"], explained["config_hash"]) == (None, TINY.hash)

    record = tmp_path / "simulate.json"
    result = run("simulate", out, "--config", "tiny", "--json", record, "--seed", "7")
    assert (result.status, result.err) == (0, "")
    assert result.out.count("exact") == 2
    measured = json.loads(record.read_text())
    assert measured["command"] == (f"gshw simulate {out} --config tiny --json {record} --seed 7")
    assert (measured["seed"], measured["config_hash"]) == (7, TINY.hash)
    assert [layer["match"] for layer in measured["layers"]] == [True, True]
    for law, hardware in zip(explained["layers"], measured["layers"]):
        assert law["cycles"] == hardware["cycles"]


def test_prune_again_gives_the_same_layers(run, factory, tmp_path):
    layers = []
    for name in ("a", "b"):
        run("prune", f"{factory}:chain", *PRUNE, "-o", tmp_path / name)
        layers.append(load_model(tmp_path / name, TINY).layers)
    for name, layer in layers[0].items():
        np.testing.assert_array_equal(layer.value, layers[1][name].value)
        np.testing.assert_array_equal(
            layer.requantisation.bias, layers[1][name].requantisation.bias
        )


def test_prune_with_calibration_weights_and_dense_layers(run, factory, tmp_path):
    rng = np.random.default_rng(0)
    samples = save_array(tmp_path / "x.npy", rng.normal(size=(5, 4, 3, 3)).astype(np.float32))
    run(
        "prune",
        f"{factory}:ready",
        *PRUNE,
        "-o",
        tmp_path / "a",
        "--save-weights",
        tmp_path / "w.safetensors",
    )
    result = run(
        "prune",
        f"{factory}:chain",
        "--config",
        "tiny",
        "--sparsity",
        "0.5",
        "-o",
        tmp_path / "b",
        "--calibration",
        samples,
        "--weights",
        tmp_path / "w.safetensors",
        "--keep-dense",
        "4",
        "--rows",
        "consecutive",
    )
    assert (result.status, result.err) == (0, "")
    assert "kept dense: 4: asked for" in result.out


@pytest.mark.parametrize(("name", "shown"), [("nan", "nan"), ("inf", "inf")])
def test_prune_refuses_weights_that_are_not_finite(refused, factory, tmp_path, name, shown):
    out = tmp_path / "m.safetensors"
    line = refused("prune", f"{factory}:{name}", *PRUNE, "-o", out)
    # Column (pixel 7, channel 0) of the engine's order; torch has it at (2, 7).
    assert line == f"layer '4': scores must be finite, not {shown} at (2, 56)"
    assert not out.exists()


def test_prune_refuses_unsupported_layers(refused, factory, tmp_path):
    line = refused("prune", f"{factory}:recurrent", *PRUNE, "-o", tmp_path / "m")
    assert line == ("layer '1' is a LSTM; supported are Linear, Conv1d and Conv2d with groups = 1")
    line = refused(
        "prune",
        f"{factory}:twice",
        "--config",
        "tiny",
        "--sparsity",
        "0.5",
        "--input-shape",
        "4",
        "-o",
        tmp_path / "m",
    )
    assert line == "layer '0' is used twice; supported are layers used once"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cli_models", "the factory must be written package.module:factory, not 'cli_models'"),
        ("cli_models:none", "cli_models:none: cannot be imported: "),
        ("no_such_module:f", "no_such_module:f: cannot be imported: "),
        ("cli_models:number", "cli_models:number: must return a torch.nn.Module, not int"),
        (":chain", ""),
        (".cli_models:chain", ""),
    ],
)
def test_prune_bad_factory(refused, factory, tmp_path, name, message):
    assert refused("prune", name, *PRUNE, "-o", tmp_path / "m").startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --calibration FILE or --input-shape C,H,W"),
        (
            ["--input-shape", "4,x"],
            "--input-shape must be positive integers like 3,32,32, not '4,x'",
        ),
        (
            ["--input-shape", "4,0"],
            "--input-shape must be positive integers like 3,32,32, not '4,0'",
        ),
        (["--input-shape", "5,3,3"], "the model does not run on input (16, 5, 3, 3): "),
        (
            ["--input-shape", "4,3,3", "--keep-dense", "fc"],
            "no layer 'fc' to keep dense; the layers are 0, 4",
        ),
    ],
)
def test_prune_bad_options(refused, factory, tmp_path, options, message):
    line = refused(
        "prune",
        f"{factory}:chain",
        "--config",
        "tiny",
        "--sparsity",
        "0.5",
        "-o",
        tmp_path / "m",
        *options,
    )
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 3, 3), int), "must hold float samples, not int64 of shape (2, 4, 3, 3)"),
        (np.zeros((0, 4, 3, 3)), "must hold float samples, not float64 of shape (0, 4, 3, 3)"),
        (np.full((2, 4, 3, 3), np.nan), "samples must be finite"),
    ],
)
def test_prune_bad_calibration(refused, factory, tmp_path, array, message):
    path = save_array(tmp_path / "x.npy", array)
    line = refused(
        "prune",
        f"{factory}:chain",
        "--config",
        "tiny",
        "--sparsity",
        "0.5",
        "-o",
        tmp_path / "m",
        "--calibration",
        path,
    )
    assert line == f"{path}: {message}"


def test_prune_bad_weights(refused, factory, tmp_path):
    def attempt(path):
        return refused("prune", f"{factory}:chain", *PRUNE, "-o", tmp_path / "m", "--weights", path)

    path = tmp_path / "w.safetensors"
    assert attempt(path) == f"{path}: no such file"
    path.write_bytes(b"not tensors")
    assert attempt(path).startswith(f"{path}: truncated, or not a state dict: ")
    save_file({"0.weight": torch.zeros(2)}, path)
    assert attempt(path).startswith(f"{path}: does not fit the model: ")
    path = tmp_path / "w.pt"
    assert attempt(path) == f"{path}: no such file"
    for data in (b"", b"garbage that is no pickle"):
        path.write_bytes(data)
        assert attempt(path).startswith(f"{path}: truncated, or not a state dict: ")
    torch.save(torch.zeros(3), path)
    assert attempt(path) == f"{path}: must hold a state dict, not Tensor"
    torch.save({"0.weight": 3}, path)
    assert attempt(path).startswith(f"{path}: does not fit the model: ")
    whole = tmp_path / "whole.pt"
    torch.save({"0.weight": torch.zeros(100)}, whole)
    path.write_bytes(whole.read_bytes()[:-200])
    assert attempt(path).startswith(f"{path}: truncated, or not a state dict: ")


def test_prune_output_not_writable(refused, factory, tmp_path):
    out = tmp_path / "no" / "m.safetensors"
    line = refused("prune", f"{factory}:chain", *PRUNE, "-o", out)
    assert line == f"{out}: cannot be written: No such file or directory"


@pytest.mark.parametrize("text", ["1", "-0.1", "nan", "half"])
def test_sparsity_out_of_range(text, capsys):
    """Argparse's own form: usage, then one line, status 2."""
    with pytest.raises(SystemExit) as caught:
        main(["prune", "a:b", "--config", "tiny", "-o", "m", f"--sparsity={text}"])
    assert caught.value.code == 2
    assert "argument --sparsity: must be " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "four"])
def test_samples_must_be_positive(text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["explain", "m", "--config", "tiny", f"--samples={text}"])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"argument --samples: must be a positive integer, not '{text}'")
