"""``gshw prune``: from a factory to the artefact and through the RTL, and what it refuses."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gshw.artefact import load_model
from gshw.config import load_config, parse_config
from gshw.encoding import decode_weights
from pruning.models.masking import set_mask, weight_mask
from pruning.pruner import GSPruner
from pruning.recipe import load_recipe
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
    assert "kept dense: 4: the recipe skips it" in result.out


@pytest.mark.parametrize(("name", "shown"), [("nan", "nan"), ("inf", "inf")])
def test_prune_refuses_weights_that_are_not_finite(refused, factory, tmp_path, name, shown):
    out = tmp_path / "m.safetensors"
    line = refused("prune", f"{factory}:{name}", *PRUNE, "-o", out)
    # Column (pixel 7, channel 0) of the engine's order; torch has it at (2, 7).
    assert line == f"layer '4': scores must be finite, not {shown} at (2, 56)"
    assert not out.exists()


def test_prune_what_is_no_chain(run, factory, tmp_path):
    """Recurrent layers, and layers used twice: each matrix is encoded as a layer of its own."""
    out = tmp_path / "m.safetensors"
    options = ["--config", "tiny", "--sparsity", "0.5", "-o", out]
    result = run("prune", f"{factory}:recurrent", *options, "--input-shape", "3,4")
    assert (result.status, result.err) == (0, "")
    assert "each matrix is a layer of its own: layer '1' is a LSTM; supported are " in result.out
    assert list(load_model(out, TINY).layers) == ["0", "1.weight_ih_l0", "1.weight_hh_l0"]
    result = run("prune", f"{factory}:twice", *options, "--input-shape", "4")
    assert (result.status, result.err) == (0, "")
    assert "of its own: layer '0' is used twice; supported are layers used once" in result.out
    assert (list(load_model(out, TINY).layers), load_model(out, TINY).chain) == (["0"], ())


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
        ([], "needs --dataset, --calibration FILE or --input-shape C,H,W"),
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
def test_sparsity_out_of_range(text, refused):
    line = refused("prune", "a:b", "--config", "tiny", "-o", "m", f"--sparsity={text}")
    assert line.startswith("argument --sparsity: must be ")


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "four"])
def test_samples_must_be_positive(text, refused):
    assert refused("explain", "m", "--config", "tiny", f"--samples={text}") == (
        f"argument --samples: must be a positive integer, not '{text}'; "
        "gshw explain --help tells more"
    )


# --- recipes and reports -------------------------------------------------------------------------

RECIPE = """
engine = "tiny"
seed = 3

[pattern]
kind = "gs"

[target]
sparsity = 0.5

[[layer]]
match = "4"
sparsity = 0.75
"""

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


def network():
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 24), nn.ReLU(),
        nn.Linear(24, 2),
    )


def samples(n, seed):
    x = torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, :8].sum(dim=1) > 0).long())


def dataset():
    return samples(96, 1), samples(50, 2)


def regression():
    x = samples(96, 1).tensors[0]
    data = TensorDataset(x, x[:, :2])
    return data, data, nn.functional.mse_loss


def empty():
    return [], samples(50, 2)


def one():
    return nn.Linear(4, 4)


def language():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 8)
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            self.head = nn.Linear(8, 9)

        def forward(self, x):
            return self.head(self.lstm(self.embedding(x))[0])

    torch.manual_seed(0)
    return Text()


class Broken:
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return 96

    def __getitem__(self, index):
        if index >= self.n:
            raise OSError(f"image {index} is truncated\\nand more")
        return torch.zeros(16), 0


def broken_at_once():
    return Broken(0), Broken(99)


def broken_later():
    return Broken(60), Broken(99)


def broken_validation():
    return Broken(99), Broken(60)


def several_losses():
    return *dataset(), lambda output, target: output.sum(dim=1)


def no_gradient():
    return *dataset(), lambda output, target: output.detach().mean()


def bad_metric():
    return *dataset(), nn.functional.cross_entropy, lambda output, target: output.nothing


def two_lines():
    raise RuntimeError("first\\nsecond")


def conv():
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(),
                         nn.Linear(48, 4))


def transformer():
    torch.manual_seed(6)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
"""


@pytest.fixture
def task(factory, tmp_path):
    """A module with a small network and datasets beside the factories."""
    (tmp_path / "cli_task.py").write_text(TASK)
    yield "cli_task"
    sys.modules.pop("cli_task", None)


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe, the usual one or with changes, and return its path."""

    def write(more: str = "", text: str = RECIPE):
        path = tmp_path / "recipe.toml"
        path.write_text(text + more)
        return path

    return write


def test_prune_by_recipe(run, factory, recipe, tmp_path):
    """Report, totals, provenance and picture tell of the resolved recipe."""
    out, record, plot = tmp_path / "m.safetensors", tmp_path / "r.json", tmp_path / "p.png"
    arguments = ["prune", f"{factory}:chain", "--recipe", recipe(), "--input-shape", "4,3,3"]
    result = run(*arguments, "-o", out, "--json", record, "--plot", plot)
    assert (result.status, result.err) == (0, "")
    data = json.loads(record.read_text())
    assert data["config_hash"] == TINY.hash and data["seed"] == 3
    assert [layer["target"] for layer in data["layers"]] == [0.5, 0.75]
    for layer in data["layers"]:
        assert layer["pattern"] == TINY.pattern_name
        assert layer["actual"] == pytest.approx(layer["target"], abs=0.03)
        assert 0.8 < layer["kept_of_unstructured"] <= 1.0
        assert 0 <= layer["gap"] < 1e-6
        assert 0 < layer["output_error"] < 1
        assert layer["speed_up"] == layer["dense_cycles"] / layer["cycles"] > 1
    total = data["total"]
    for key in ("groups", "cycles", "dense_cycles"):
        assert total[key] == sum(layer[key] for layer in data["layers"])
    sizes = [layer["rows"] * layer["columns"] for layer in data["layers"]]
    kept = sum(layer["actual"] * size for layer, size in zip(data["layers"], sizes))
    assert total["sparsity"] == pytest.approx(kept / sum(sizes))
    scores = [sum(layer[key] for layer in data["layers"]) for key in ("kept_score", "ceiling")]
    assert total["kept_of_unstructured"] == pytest.approx(scores[0] / scores[1])
    assert total["gap"] == max(layer["gap"] for layer in data["layers"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    header = next(line for line in result.out.splitlines() if "kept score" in line)
    wanted = ["shape", "pattern", "target", "actual", "gap", "output error", "groups", "speed-up"]
    assert all(column in header for column in wanted)
    provenance = load_model(out, TINY).provenance
    resolved = json.loads(provenance["recipe"])
    assert resolved == data["recipe"] and resolved["layer"][0]["match"] == "4"
    assert provenance["recipe_hash"] == data["recipe_hash"]
    assert (provenance["seed"], provenance["config_hash"]) == ("3", TINY.hash)


def test_kept_score_and_output_error_against_numpy(run, task, tmp_path):
    """Of one linear layer, computed here from its weights and samples."""
    record, weights = tmp_path / "r.json", tmp_path / "w.safetensors"
    samples = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
    path = save_array(tmp_path / "x.npy", samples)
    torch.manual_seed(0)
    save_file(dict(nn.Linear(4, 4).state_dict()), tmp_path / "in.safetensors")
    options = ["--config", "tiny", "--sparsity", "0.5", "--calibration", path]
    options += ["--weights", tmp_path / "in.safetensors", "--save-weights", weights]
    result = run("prune", f"{task}:one", *options, "-o", tmp_path / "m", "--json", record)
    assert (result.status, result.err) == (0, "")
    (layer,) = json.loads(record.read_text())["layers"]
    before = load_file(tmp_path / "in.safetensors")["weight"].numpy().astype(float)
    bias = load_file(tmp_path / "in.safetensors")["bias"].numpy().astype(float)
    after = load_file(weights)["weight"].numpy().astype(float)
    kept = np.abs(after).sum() / np.sort(np.abs(before).reshape(-1))[-8:].sum()
    assert np.count_nonzero(after) == 8
    assert layer["kept_of_unstructured"] == pytest.approx(kept, rel=1e-6)
    dense, pruned = samples @ before.T + bias, samples @ after.T + bias
    error = np.linalg.norm(pruned - dense) / np.linalg.norm(dense)
    assert layer["output_error"] == pytest.approx(error, rel=1e-5)


def test_options_change_a_recipe(run, factory, recipe, tmp_path):
    record = tmp_path / "r.json"
    arguments = ["prune", f"{factory}:chain", "--recipe", recipe(), "--input-shape", "4,3,3"]
    arguments += ["-o", tmp_path / "m", "--json", record, "--seed", "9", "--sparsity", "0.25"]
    assert run(*arguments, "--keep-dense", "4").status == 0
    data = json.loads(record.read_text())
    assert data["recipe"]["seed"] == data["seed"] == 9
    assert data["recipe"]["target"]["sparsity"] == 0.25
    assert data["kept_dense"] == {"4": "the recipe skips it"}
    by_name = {layer["name"]: layer for layer in data["layers"]}
    assert (by_name["4"]["pattern"], by_name["4"]["gap"]) == ("dense", None)
    assert by_name["0"]["target"] == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "tiny"], "needs --recipe FILE, or --config and --sparsity"),
        (["--sparsity", "0.5"], "needs --recipe FILE, or --config and --sparsity"),
        (["--recipe", "no.toml"], "no.toml: no such recipe"),
        (
            ["--recipe", "recipe.toml", "--rows", "scatter"],
            "--rows is [pattern] grouping of the recipe; give one of both",
        ),
        (["--recipe", "recipe.toml", "--epochs", "2"], "--epochs is about training, which needs"),
        (["--recipe", "recipe.toml", "--batch-size", "2"], "--batch-size is about training, "),
        (["--recipe", "recipe.toml", "--learning-rate", "2"], "--learning-rate is about train"),
        (["--recipe", "recipe.toml", "--checkpoint", "c"], "--checkpoint is about training, "),
        (["--recipe", "recipe.toml", "--resume"], "--resume is about training, which needs"),
        (
            ["--recipe", "recipe.toml", "--json", "no/r.json"],
            "no/r.json: cannot be written: No such file or directory",
        ),
        (
            ["--recipe", "recipe.toml", "--plot", "no/p.png"],
            "no/p.png: cannot be written: No such file or directory",
        ),
        (["--recipe", "recipe.toml", "--json", "."], ".: cannot be written: Is a directory"),
        (
            ["--recipe", "recipe.toml", "--plot", "p.bmp"],
            "p.bmp: a picture must be .png, .svg or .pdf",
        ),
        (
            ["--recipe", "recipe.toml", "--json", "./recipe.toml"],
            "recipe.toml: is given for --recipe and --json; one would overwrite the other",
        ),
        (
            ["--recipe", "recipe.toml", "--save-weights", "m"],
            "m: is given for --output and --save-weights; one would overwrite the other",
        ),
        (
            ["--recipe", "recipe.toml", "--epochs", "0"],
            "--epochs is about training, which needs --dataset",
        ),
        (
            ["--recipe", "recipe.toml", "--data-free", "3", "--dataset", "a:b"],
            "--data-free learns from the dense model alone; leave out --dataset",
        ),
        (
            ["--recipe", "recipe.toml", "--data-free", "3", "--epochs", "2"],
            "--epochs is about training, which needs --dataset",
        ),
        (
            ["--recipe", "recipe.toml", "--dataset", "a:b", "--tokens", "2"],
            "--tokens is about --input-shape and --calibration; leave out --dataset",
        ),
    ],
)
def test_options_that_do_not_go_together(refused, factory, recipe, tmp_path, options, message):
    recipe()
    out = tmp_path / "m"
    line = refused("prune", f"{factory}:chain", *options, "--input-shape", "4,3,3", "-o", out)
    assert line.startswith(message)
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('[[layer]]\nmatch = "conv*"\nskip = true', "no layer matches 'conv*' of the recipe"),
        ('[method]\nkind = "gradual"\nstop = 0.5\nupdates = 2', "method 'gradual' acts during tr"),
        ("[targets]\nsparsity = 0.5", "{path}: unknown key or section 'targets'"),
        ('[score]\nkind = "gradient"', "score 'gradient' needs the targets and the loss of a --da"),
    ],
)
def test_recipes_that_cannot_be_followed(refused, factory, recipe, tmp_path, more, message):
    path, out = recipe(more), tmp_path / "m"
    line = refused(
        "prune", f"{factory}:chain", "--recipe", path, "--input-shape", "4,3,3", "-o", out
    )
    assert line.startswith(message.format(path=path))
    assert not out.exists()


# --- training ------------------------------------------------------------------------------------

GRADUAL = """
engine = "tiny"

[pattern]
kind = "gs"

[target]
sparsity = 0.5

[method]
kind = "gradual"
start = 0.0
stop = 0.6
updates = 3
"""


def training(task, recipe, out, *more):
    options = ["--recipe", recipe(text=GRADUAL), "--dataset", f"{task}:dataset", "-o", out]
    options += ["--epochs", "3", "--batch-size", "16", "--learning-rate", "0.01"]
    return ["prune", f"{task}:network", *options, *more]


def test_train_and_prune(run, task, recipe, tmp_path):
    out, record, weights = tmp_path / "m", tmp_path / "r.json", tmp_path / "w"
    arguments = training(task, recipe, out, "--json", record, "--save-weights", weights)
    result = run(*arguments)
    assert (result.status, result.err) == (0, "")
    data = json.loads(record.read_text())
    epochs = data["training"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[-1]["metric"] > 0.6 and epochs[-1]["sparsity"] == pytest.approx(0.5, abs=0.02)
    state = load_file(weights)
    for layer in data["layers"]:
        assert layer["output_error"] is None
        assert layer["kept_of_unstructured"] > 0.8 and layer["gap"] < 1e-6
        matrix = state[f"{layer['name']}.weight"]
        assert (matrix == 0).float().mean() == pytest.approx(layer["actual"], abs=1e-6)
    settings = json.loads(load_model(out, TINY).provenance["training"])
    assert settings["dataset"] == f"{task}:dataset" and settings["n_epochs"] == 3


def test_loss_of_the_dataset(run, task, recipe, tmp_path):
    record = tmp_path / "r.json"
    arguments = training(task, recipe, tmp_path / "m", "--json", record)
    arguments[arguments.index(f"{task}:dataset")] = f"{task}:regression"
    assert run(*arguments, "--calibration", save_array(tmp_path / "x.npy", X)).status == 0
    epochs = json.loads(record.read_text())["training"]
    assert epochs[-1]["metric"] is None
    assert epochs[-1]["validation_loss"] < epochs[0]["validation_loss"]


X = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_of_a_resumed_run_are_told_by_their_bytes(run, refused, task, recipe, tmp_path):
    """Other weights or samples under the same name are refused, the same under another are not."""
    weights, samples = tmp_path / "start.safetensors", save_array(tmp_path / "x.npy", X)
    assert run(*training(task, recipe, tmp_path / "a", "--save-weights", weights)).status == 0
    checkpoint = tmp_path / "c.pt"
    more = ["--checkpoint", checkpoint, "--epochs", "1", "--weights", weights]
    arguments = training(task, recipe, tmp_path / "b", *more, "--calibration", samples)
    assert run(*arguments).status == 0
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(weights.read_bytes())
    assert run(*arguments, "--resume", "--weights", copied).status == 0
    state = load_file(weights)
    save_file({name: 2 * tensor for name, tensor in state.items()}, weights)
    told = f"weights SHA-256 {sha256(copied)}, not {sha256(weights)}; resume with the same, or "
    line = refused(*arguments, "--resume")
    assert line == f"{checkpoint}: is of a run with {told}remove it to start anew"
    weights.write_bytes(copied.read_bytes())
    before = sha256(samples)
    save_array(samples, 2 * X)
    told = f"calibration SHA-256 {before}, not {sha256(samples)}; resume with the same, or "
    line = refused(*arguments, "--resume")
    assert line == f"{checkpoint}: is of a run with {told}remove it to start anew"


def test_interrupted_and_resumed(run, refused, task, recipe, tmp_path, monkeypatch):
    """Weights, artefact and record are those of the run that was left alone."""
    wanted = tmp_path / "wanted.safetensors"
    assert run(*training(task, recipe, tmp_path / "a", "--save-weights", wanted)).status == 0
    from pruning.runs import training as module

    evaluate, calls = module.evaluate, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    checkpoint, weights = tmp_path / "c.pt", tmp_path / "w"
    arguments = training(
        task, recipe, tmp_path / "b", "--checkpoint", checkpoint, "--save-weights", weights
    )
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", interrupted)
        assert run(*arguments, "--resume").status == 130
    assert checkpoint.exists() and not weights.exists()
    before = checkpoint.read_bytes()
    line = refused(*arguments)
    assert line == f"{checkpoint}: is there already; go on with --resume, or remove it"
    for option, value, told in [
        ("--epochs", "4", "epochs 3, not 4"),
        ("--sparsity", "0.6", "recipe target sparsity 0.5, not 0.6;"),
        ("--seed", "4", "recipe seed 0, not 4;"),
        ("--keep-dense", "3", "recipe layer [], not [{'match': '3', "),
        ("--config", "h16", f"engine {TINY.hash[:16]}, not {load_config('h16').engine.hash[:16]};"),
        ("--weights", str(wanted), f"weights SHA-256 None, not {sha256(wanted)};"),
        ("--batch-size", "8", "batch size 16, not 8"),
        ("--learning-rate", "0.02", "learning rate 0.01, not 0.02"),
    ]:
        line = refused(*arguments, "--resume", option, value)
        assert line.startswith(f"{checkpoint}: is of a run with {told}")
    assert checkpoint.read_bytes() == before and not weights.exists()
    assert run(*arguments, "--resume").status == 0
    resumed, uninterrupted = load_file(weights), load_file(wanted)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())
    a, b = load_model(tmp_path / "a", TINY), load_model(tmp_path / "b", TINY)
    for name, layer in a.layers.items():
        np.testing.assert_array_equal(layer.value, b.layers[name].value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "cli_task:empty"], "cli_task:empty: the training set yields nothing"),
        (["--dataset", "cli_task"], "the dataset must be written package.module:dataset, not"),
        (["--dataset", "cli_task:network"], "cli_task:network: must return (training, validatio"),
        (["--dataset", "cli_task:nothing"], "cli_task:nothing: cannot be imported: "),
        (["--learning-rate", "0"], "learning_rate must be positive, not 0"),
        (["--resume"], "--resume needs --checkpoint FILE"),
        (
            ["--checkpoint", "no/c.pt"],
            "no/c.pt: cannot be written: No such file or directory",
        ),
        (["--epochs", "1", "--batch-size", "96"], "method 'gradual' makes "),
        (["--dataset", "cli_task:two_lines"], "cli_task:two_lines: raised RuntimeError: first"),
        (
            ["--dataset", "cli_task:broken_at_once"],
            "cli_task:broken_at_once: sample 0 of the training set: OSError: image 0 is truncated",
        ),
        (
            ["--dataset", "cli_task:broken_later"],
            "cli_task:broken_later: a batch cannot be read: OSError: image 60 is truncated",
        ),
        (
            ["--dataset", "cli_task:broken_validation"],
            "cli_task:broken_validation: a batch cannot be read: OSError: image 60 is truncated",
        ),
        (
            ["--dataset", "cli_task:several_losses"],
            "cli_task:several_losses: the loss must be a tensor of one value, not Tensor of shape ",
        ),
        (["--dataset", "cli_task:no_gradient"], "cli_task:no_gradient: the loss has no gradient"),
        (
            ["--dataset", "cli_task:bad_metric"],
            "cli_task:bad_metric: the metric fails: 'Tensor' object has no attribute 'nothing'",
        ),
        (["--epochs", "0", "--checkpoint", "c"], "--learning-rate is about training, which --epo"),
    ],
)
def test_trainings_that_cannot_begin(refused, task, recipe, tmp_path, options, message):
    out = tmp_path / "m"
    assert refused(*training(task, recipe, out), *options).startswith(message)
    assert not out.exists()


VERTICAL = """
[engine]
lanes = 4
rows = 4
bank_width = 32
bank_depth = 64
columns = 4
group_buffer_depth = 64
row_buffer_depth = 32
routing = "benes"
"""
V4 = parse_config(VERTICAL, name="v4").engine
ONE_SHOT = f"""{VERTICAL}
[pattern]
kind = "gs"

[target]
sparsity = 0.5
"""
COMPENSATION = '[compensation]\nkind = "least-squares"\n'


def test_compensation_acts_before_the_fine_tuning(run, task, recipe, tmp_path):
    """Where masks are final by then; else the user is told that it does not."""
    import cli_task

    x = cli_task.dataset()[0].tensors[0]
    model = cli_task.network().eval()
    dense, data, errors = model(x), {}, {}
    for name, more in (("without", ""), ("with", COMPENSATION)):
        record = tmp_path / f"{name}.json"
        options = ["--recipe", recipe(more, ONE_SHOT), "--dataset", f"{task}:dataset"]
        options += ["--epochs", "1", "--learning-rate", "1e-9", "-o", tmp_path / "m"]
        options += ["--save-weights", tmp_path / "w", "--json", record]
        result = run("prune", f"{task}:network", *options)
        assert (result.status, result.err) == (0, "")
        data[name] = json.loads(record.read_text())
        model.load_state_dict(load_file(tmp_path / "w"))
        errors[name] = (model(x) - dense).square().sum().item()
    assert "[compensation] before the training: mean output error of a layer " in result.out
    assert errors["with"] < 0.5 * errors["without"]
    assert list(data["with"]["compensation"]) == ["0", "3", "5"]
    assert all(error["after"] < error["before"] for error in data["with"]["compensation"].values())
    arguments = training(task, recipe, tmp_path / "m")
    recipe(COMPENSATION, GRADUAL)
    result = run(*arguments)
    assert (
        "[compensation] is left out: method 'gradual' still changes masks during the training"
    ) in result.out


def test_no_epochs_prune_at_once(run, task, recipe, tmp_path):
    """By gradients of the dataset's loss, which a model without training has too."""
    record = tmp_path / "r.json"
    path = recipe('[score]\nkind = "gradient"\n', ONE_SHOT)
    options = ["--recipe", path, "--dataset", f"{task}:dataset", "--epochs", "0", "--json", record]
    result = run("prune", f"{task}:network", *options, "-o", tmp_path / "m")
    assert (result.status, result.err) == (0, "")
    data = json.loads(record.read_text())
    assert data["training"] == [] and all(layer["output_error"] > 0 for layer in data["layers"])
    before, after = data["validation"]["before"], data["validation"]["after"]
    assert before["loss"] != after["loss"]
    assert (
        f"validation loss {before['loss']:.4f} -> {after['loss']:.4f}, "
        f"metric {before['metric']:.4f} -> {after['metric']:.4f}"
    ) in result.out
    assert "activation ranges" not in result.out


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ("", ["--resume"], "--resume is about training, which --epochs 0 leaves out"),
        ("", ["--checkpoint", "c"], "--checkpoint is about training, which --epochs 0 leaves out"),
        ('[method]\nkind = "rigl"', [], "method 'rigl' acts during training, which --epochs 0 lea"),
    ],
)
def test_what_no_epochs_leave_out(refused, task, recipe, tmp_path, more, options, message):
    options += ["--recipe", recipe(more, ONE_SHOT), "--dataset", f"{task}:dataset", "--epochs", "0"]
    assert refused("prune", f"{task}:network", *options, "-o", tmp_path / "m").startswith(message)


# --- without data ---------------------------------------------------------------------------------


def test_prune_without_data(run, task, recipe, tmp_path):
    """The pruned model answers more like the dense one than without it; the same every time."""
    path = save_array(tmp_path / "x.npy", 3 + 2 * np.random.default_rng(0).normal(size=(64, 16)))
    errors, weights = {}, {}
    for name, more in (("none", []), ("a", ["--data-free", "60"]), ("b", ["--data-free", "60"])):
        record, state = tmp_path / f"{name}.json", tmp_path / f"{name}.w"
        options = ["--recipe", recipe(text=ONE_SHOT), "--calibration", path, "--json", record]
        options += ["-o", tmp_path / name, "--save-weights", state, "--seed", "4"]
        result = run("prune", f"{task}:network", *options, *more)
        assert (result.status, result.err) == (0, "")
        data = json.loads(record.read_text())
        errors[name] = {layer["name"]: layer["output_error"] for layer in data["layers"]}
        weights[name] = load_file(state)
    assert all(errors["a"][layer] < 0.9 * errors["none"][layer] for layer in ("0", "3", "5"))
    assert all(torch.equal(tensor, weights["b"][name]) for name, tensor in weights["a"].items())
    told = data["data_free"]
    assert told["lesson"]["n_steps"] == 60 and told["lesson"]["lesson"] == "features"
    assert told["inputs"]["shape"] == [16] and told["inputs"]["seed"] == 4
    assert told["inputs"]["mean"] == pytest.approx(3, abs=0.1)
    assert told["inputs"]["deviation"] == pytest.approx(2, abs=0.1)
    assert json.loads(load_model(tmp_path / "b", V4).provenance["data_free"])


def test_a_method_without_data(run, task, recipe, tmp_path):
    """Schedules run over the steps; dealt channels are taught by answers."""
    more = '[method]\nkind = "gradual"\nupdates = 3\n[channels]\ndeal = true\n' + COMPENSATION
    record = tmp_path / "r.json"
    options = ["--recipe", recipe(more, ONE_SHOT), "--input-shape", "16", "--data-free", "9"]
    options += ["--batch-size", "5", "--learning-rate", "0.002", "--json", record]
    result = run("prune", f"{task}:network", *options, "-o", tmp_path / "m")
    assert (result.status, result.err) == (0, "")
    told = json.loads(record.read_text())["data_free"]
    assert told["lesson"]["lesson"] == "answers" and told["lesson"]["learning_rate"] == 0.002
    assert told["inputs"]["batch_size"] == 5 and told["inputs"]["mean"] == 0.0
    assert "[compensation] is left out: method 'gradual'" in result.out
    assert "activation ranges are those of made-up inputs" in result.out


def test_quantised_without_data(run, task, recipe, tmp_path):
    """Fake quantisation is live for the second half of the steps."""
    states = []
    for start in (0.5, 1.0):
        path = recipe(f"[quantisation]\naware_from = {start}", ONE_SHOT)
        options = ["--recipe", path, "--input-shape", "16", "--data-free", "4"]
        options += ["--save-weights", tmp_path / "w", "-o", tmp_path / "m"]
        result = run("prune", f"{task}:network", *options)
        assert (result.status, result.err) == (0, "")
        states.append(load_file(tmp_path / "w"))
    aware, plain = states
    assert aware.keys() == plain.keys()
    torch.testing.assert_close(aware["0.weight"], plain["0.weight"], rtol=0, atol=0.01)
    assert not torch.equal(aware["0.weight"], plain["0.weight"])


def test_batch_norms_quantised_without_data(run, tmp_path, monkeypatch, recipe):
    """What the student's layers put out has the batch norms in it: it learns by answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "cli_norms.py").write_text(NORMS)
    path = recipe("[quantisation]\naware_from = 0.0", ONE_SHOT)
    options = ["--recipe", path, "--input-shape", "16", "--data-free", "200", "-o", tmp_path / "m"]
    options += ["--save-weights", tmp_path / "w", "--json", tmp_path / "r.json"]
    options += ["--learning-rate", "0.01"]
    result = run("prune", "cli_norms:network", *options)
    assert (result.status, result.err) == (0, "")
    lesson = json.loads((tmp_path / "r.json").read_text())["data_free"]["lesson"]
    assert lesson["lesson"] == "answers"
    import cli_norms

    dense = cli_norms.network().eval()
    student = nn.Sequential(nn.Linear(16, 24), nn.Identity(), nn.ReLU(), nn.Linear(24, 4))
    student.load_state_dict(load_file(tmp_path / "w"))
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        agreement = (student(x).argmax(1) == dense(x).argmax(1)).float().mean()
    assert agreement > 0.75


NORMS = """
import torch
from torch import nn


def network():
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
    with torch.no_grad():
        model[0].bias += 8 * torch.rand(24)
        model[1].momentum = 1.0
        model(torch.randn(256, 16))
    return model
"""


# --- tokens, attention ----------------------------------------------------------------------------


def test_models_that_read_tokens(run, refused, task, recipe, tmp_path):
    options = ["--recipe", recipe(text=ONE_SHOT), "-o", tmp_path / "m"]
    line = refused("prune", f"{task}:language", *options, "--input-shape", "5")
    assert line.startswith("the model does not run on input (16, 5): ")
    assert line.endswith("; with --tokens N the inputs are token numbers below N")
    tokens = save_array(tmp_path / "x.npy", np.arange(27).reshape(3, 9) % 9)
    for more in (["--input-shape", "5"], ["--input-shape", "5", "--data-free", "3"]):
        result = run("prune", f"{task}:language", *options, "--tokens", "9", *more)
        assert (result.status, result.err) == (0, "")
    result = run("prune", f"{task}:language", *options, "--tokens", "9", "--calibration", tokens)
    assert (result.status, result.err) == (0, "")
    assert "kept dense: embedding: of type Embedding; pruned are " in result.out
    names = ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head"]
    assert list(load_model(tmp_path / "m", V4).layers) == names


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), "must hold integer tokens, not float64 of shape (2, 3)"),
        (np.array([[0, 9]]), "tokens must be from 0 to 8, not 9"),
        (np.array([[-1, 9]]), "tokens must be from 0 to 8, not -1"),
        (np.array(3), "must hold integer tokens, not int64 of shape ()"),
    ],
)
def test_bad_tokens(refused, task, recipe, tmp_path, array, message):
    path = save_array(tmp_path / "x.npy", array)
    options = ["--recipe", recipe(text=ONE_SHOT), "--calibration", path, "--tokens", "9"]
    line = refused("prune", f"{task}:language", *options, "-o", tmp_path / "m")
    assert line == f"{path}: {message}"


def test_prune_a_transformer(run, task, recipe, tmp_path):
    options = ["--recipe", recipe(text=ONE_SHOT), "--input-shape", "5,8", "-o", tmp_path / "m"]
    result = run("prune", f"{task}:transformer", *options)
    assert (result.status, result.err) == (0, "")
    parts = ["self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"]
    layers = load_model(tmp_path / "m", V4).layers
    assert list(layers) == [f"layers.0.{part}" for part in parts]


# --- weights with masks ---------------------------------------------------------------------------


@pytest.fixture
def masked(task, recipe, tmp_path):
    """A state dict saved in the middle of a training, the masks with it; and its model."""
    import cli_task

    model = cli_task.conv()
    recipe(text=ONE_SHOT)
    pruner = GSPruner(model, load_recipe(tmp_path / "recipe.toml"))
    pruner.prepare(1, example=torch.zeros(2, 8, 6))
    path = tmp_path / "masked.pt"
    torch.save(model.state_dict(), path)
    return path, model


MASKED = ["--input-shape", "8,6"]


def test_masks_of_weights_stay(run, task, recipe, masked, tmp_path):
    """At another sparsity, where the recipe skips, and through a training: bundles and zeros."""
    path, model = masked
    wanted = {name: model.get_submodule(name).weight.detach() for name in ("0", "4")}
    options = ["--recipe", recipe(text=ONE_SHOT), "--weights", path, "-o", tmp_path / "m"]
    options += ["--save-weights", tmp_path / "w", "--json", tmp_path / "r.json"]
    more = ["--sparsity", "0.75", "--keep-dense", "4", *MASKED]
    result = run("prune", f"{task}:conv", *options, *more)
    assert (result.status, result.err) == (0, "")
    assert f"masks of {path} stay: 0, 4" in result.out
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["kept_masks"] == ["0", "4"]
    assert [layer["actual"] for layer in data["layers"]] == [0.5, 0.5]
    state = load_file(tmp_path / "w")
    assert all(torch.equal(state[f"{name}.weight"], tensor) for name, tensor in wanted.items())
    encoded = load_model(tmp_path / "m", V4).layers
    for name, layer in encoded.items():
        order = weight_mask(model.get_submodule(name)).row_order
        assert np.array_equal(layer.row, order.numpy()), name


def test_what_lies_below_masks_of_weights_is_no_target(run, task, recipe, masked, tmp_path):
    """The model of the file is the masked one: compensation has nothing to make up for."""
    path, model = masked
    rng = np.random.default_rng(1)
    samples = save_array(tmp_path / "x.npy", rng.normal(size=(200, 8, 6)).astype(np.float32))
    more = COMPENSATION + "integer = false\nbatch_norm = false\n"
    options = ["--recipe", recipe(more, ONE_SHOT), "--weights", path, "--calibration", samples]
    options += ["-o", tmp_path / "m", "--save-weights", tmp_path / "w"]
    result = run("prune", f"{task}:conv", *options)
    assert (result.status, result.err) == (0, "")
    for name in ("0", "4"):
        wanted = model.get_submodule(name).weight.detach()
        torch.testing.assert_close(
            load_file(tmp_path / "w")[f"{name}.weight"], wanted, atol=1e-3, rtol=0
        )
    assert "[compensation]: mean output error of a layer 0.0 % -> " in result.out


def test_masks_of_weights_stay_in_training(run, task, recipe, tmp_path):
    """A method that would change them; and a checkpoint is as good as a state dict."""
    checkpoint = tmp_path / "c.pt"
    options = ["--dataset", f"{task}:dataset", "--epochs", "1", "--batch-size", "24"]
    options += ["-o", tmp_path / "m", "--save-weights", tmp_path / "w"]
    first = ["--recipe", recipe(text=ONE_SHOT), "--checkpoint", checkpoint]
    assert run("prune", f"{task}:network", *options, *first).status == 0
    zeros = {name: t == 0 for name, t in load_file(tmp_path / "w").items() if t.ndim == 2}
    path = recipe('[method]\nkind = "rigl"\nupdates = 2\n', ONE_SHOT)
    result = run("prune", f"{task}:network", *options, "--recipe", path, "--weights", checkpoint)
    assert (result.status, result.err) == (0, "")
    state = load_file(tmp_path / "w")
    assert all(torch.equal(state[name] == 0, wanted) for name, wanted in zeros.items())


def test_masks_that_do_not_match(refused, run, task, recipe, masked, tmp_path):
    path, _ = masked
    out = tmp_path / "m"

    def attempt(*more, text=ONE_SHOT):
        options = ["--recipe", recipe(text=text), "--weights", path, *MASKED, "-o", out]
        return refused("prune", f"{task}:conv", *options, *more)

    # Of a horizontal engine; a row of one bundle has as many in every bank.
    line = attempt("--config", "tiny")
    assert line.startswith(f"{path}: layer '0' does not match GS(4, 4), 1 rows per bundle: bundle ")
    state = torch.load(path, weights_only=True)
    without = {name: t for name, t in state.items() if not name.endswith("row_order")}
    torch.save(without, path)
    line = attempt()
    assert line.startswith(f"{path}: layer '0' does not match GS(4, 1), 4 rows per bundle: bundle ")
    assert line.endswith(
        "; the file records no row order for it, so that bundles are of consecutive rows"
    )
    state["0.parametrizations.weight.0.row_order"][0] = 1
    torch.save(state, path)
    assert attempt() == f"{path}: layer '0': row order must be a permutation of the 8 rows"
    other = ONE_SHOT.replace('kind = "gs"', 'kind = "n-of-m"\ngroup_size = 4')
    line = attempt(text=other)
    assert line.startswith(f"{path}: layer '0' does not match ")
    assert not out.exists()


def test_masks_where_none_can_be(refused, task, recipe, masked, tmp_path):
    path, _ = masked
    options = ["--weights", path, *MASKED, "-o", tmp_path / "m"]
    dealing = recipe("[channels]\ndeal = true\n", ONE_SHOT)
    line = refused("prune", f"{task}:conv", "--recipe", dealing, *options)
    assert line == "[channels] deal would move the weights under a mask to keep: 0"
    state = {"parametrizations.gain.0.mask": torch.ones(4, 4)}
    torch.save(state, path)
    line = refused("prune", f"{task}:one", "--recipe", recipe(text=ONE_SHOT), *options)
    assert line == (
        f"{path}: does not fit the model: the model has no tensor 'gain' for the mask of that name"
    )
    tied = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    set_mask(tied[0], torch.ones(4, 4))
    torch.save(tied.state_dict(), path)
    (tmp_path / "cli_tied.py").write_text(
        "from torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))\n"
    )
    options = ["--weights", path, "--input-shape", "3", "--tokens", "4", "-o", tmp_path / "m"]
    line = refused("prune", "cli_tied:net", "--recipe", recipe(text=ONE_SHOT), *options)
    assert line == f"{path}: layer '0' has a mask, but cannot be pruned"


def test_whole_models_are_no_state_dicts(refused, task, recipe, tmp_path):
    path = tmp_path / "whole.pt"
    torch.save(nn.Linear(4, 4), path)
    options = ["--recipe", recipe(text=ONE_SHOT), "--weights", path, "-o", tmp_path / "m"]
    line = refused("prune", f"{task}:one", *options, "--input-shape", "4")
    assert line == (
        f"{path}: truncated, or not a state dict: it holds other things than tensors and plain "
        "values, or nothing of torch.save"
    )
