"""``gshw compile``, and ``gshw run`` on what it wrote."""

import json
import re

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from gshw.artefact import load_model
from gshw.config import load_config
from gshw.encoding import decode_weights
from gshw.network import commands
from gshw.network.artefact import load_network


@pytest.fixture
def compiled(run, factory, tmp_path):
    """The example chain, compiled for tiny; its file."""
    path = tmp_path / "net.safetensors"
    result = run(
        "compile", f"{factory}:chain", "--config", "tiny", "--input-shape", "4,3,3", "-o", path,
        "--json", tmp_path / "net.json",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    return path, result


def test_compile_tells_where_the_cycles_go(compiled, tmp_path):
    path, result = compiled
    record = json.loads((tmp_path / "net.json").read_text())
    assert [node["name"] for node in record["nodes"]] == ["0", "4"]
    assert sum(node["cycles"] for node in record["nodes"]) == record["counters"]["cycles"]
    assert f"{record['counters']['cycles']:,}" in result.out
    assert "2 nodes, all on the engine" in result.out
    assert record["n_bytes"] == load_network(path, load_config("tiny")).n_bytes


def test_compiling_twice_gives_the_same_bytes(compiled, run, factory):
    path, _ = compiled
    first = path.read_bytes()
    assert run(
        "compile", f"{factory}:chain", "--config", "tiny", "--input-shape", "4,3,3", "-o", path,
        "--json", path.with_name("net.json"),
    ).status == 0  # fmt: skip
    assert path.read_bytes() == first


@pytest.mark.parametrize("device", ["golden", "sim"])
def test_a_compiled_network_runs(compiled, run, device, tmp_path):
    path, _ = compiled
    x = np.random.default_rng(0).integers(-128, 128, (1, 3, 3, 4))
    np.save(tmp_path / "x.npy", x)
    result = run(
        "run", path, "--config", "tiny", "--device", device, "--input", tmp_path / "x.npy",
        "--check", "-o", tmp_path / "y.npy", "--json", tmp_path / "run.json",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    assert "all 3 tensors same" in result.out
    assert np.load(tmp_path / "y.npy").shape == (1, 1, 1, 5)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["match"] is True
    if device == "sim":
        predicted = json.loads((tmp_path / "net.json").read_text())["counters"]
        assert record["counters"]["cycles"] == predicted["cycles"]


def test_a_wrong_result_is_told(compiled, run, tmp_path):
    """A bit of a bias in the memory image changed."""
    path, _ = compiled
    tensors = load_file(path)
    records = tensors["segment.4.records"].copy()
    records[2] ^= 0x40
    tensors["segment.4.records"] = records
    with safe_open(str(path), "np") as archive:
        metadata = archive.metadata()
    bad = tmp_path / "bad.safetensors"
    save_file(tensors, bad, metadata)
    result = run("run", bad, "--config", "tiny", "--check", "--seed", 1)
    assert result.status == 1
    assert "DIFFERS from '4' on" in result.out


def test_pruned_drawn_and_run_in_one_command(run, factory, tmp_path):
    result = run(
        "compile", f"{factory}:chain", "--config", "tiny", "--input-shape", "4,3,3",
        "--sparsity", "0.5", "--keep-dense", "4", "-o", tmp_path / "net.safetensors",
        "--plot", tmp_path / "net.png", "--run", "sim", "--json", tmp_path / "net.json",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    assert "all 3 tensors same" in result.out
    record = json.loads((tmp_path / "net.json").read_text())
    assert record["run"]["counters"] == record["counters"]
    weights = [node["weights"] for node in record["nodes"]]
    assert weights[0] == 8 * 36 // 2 and weights[1] > 0.9 * 5 * 72
    assert record["nodes"][1]["bytes_read"] > weights[1]
    assert (tmp_path / "net.png").read_bytes()[1:4] == b"PNG"


def test_a_translator_and_what_the_host_does(run, factory, tmp_path):
    path = tmp_path / "net.safetensors"
    result = run(
        "compile", f"{factory}:translator", "--config", "tiny", "--tokens", "30",
        "--input-shape", "4", "-o", path, "--run", "golden",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    # Two ways and two layers over 4 tokens, three layers over 2.
    assert " 22 lstm_cell" in result.out and "on the host (" in result.out
    assert "tensors same" in result.out
    result = run("run", path, "--config", "tiny", "--check")
    assert (result.status, result.err) == (0, "")


def test_a_slow_memory_bounds_a_node(run, factory, tmp_path):
    """Its beats count for as long as they take."""
    needs = []
    for interval in ("1", "40"):
        assert run(
            "compile", f"{factory}:chain", "--config", "tiny", "--input-shape", "4,3,3",
            "--interval", interval, "-o", tmp_path / "x", "--json", tmp_path / "x.json",
        ).status == 0  # fmt: skip
        needs.append(json.loads((tmp_path / "x.json").read_text())["nodes"][0])
    assert needs[1]["needs"]["memory read"] == 40 * needs[0]["needs"]["memory read"]
    assert (needs[0]["bound"], needs[1]["bound"]) == ("compute", "memory read")


def test_masks_of_a_pruned_file_are_kept(run, factory, tmp_path):
    """With their row orders."""
    weights = tmp_path / "weights.safetensors"
    result = run(
        "prune", f"{factory}:chain", "--config", "v16x4", "--sparsity", "0.5", "--keep-dense", "4",
        "--input-shape", "4,3,3", "-o", tmp_path / "x.safetensors", "--save-weights", weights,
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    path = tmp_path / "net.safetensors"
    result = run(
        "compile", f"{factory}:chain", "--config", "v16x4", "--weights", weights,
        "--input-shape", "4,3,3", "-o", path,
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    config = load_config("v16x4")
    layers = load_network(path, config).network.layers
    kept = load_model(tmp_path / "x.safetensors", config.engine).layers["0"]
    assert np.array_equal(layers["0"].row, kept.row)
    found, wanted = (decode_weights(config.engine, layer) != 0 for layer in (layers["0"], kept))
    assert np.count_nonzero(found) == pytest.approx(np.count_nonzero(wanted), abs=3)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ('{"0": [0, 0]}', "layer '0': row order must be a permutation of the 2 rows"),
        ('{"0": 3}', "layer '0': row order must be a permutation of the 2 rows"),
        ("nope", "gshw.row_orders in its metadata is damaged: "),
        ("[1]", "gshw.row_orders in its metadata is damaged: "),
        ('{"0": ["a", "b"]}', "gshw.row_orders in its metadata is damaged: "),
    ],
)
def test_row_orders_of_another_model(factory, refused, tmp_path, orders, message):
    weights = tmp_path / "weights.safetensors"
    state = {name: t.numpy() for name, t in nn.Sequential(nn.Conv2d(4, 2, 1)).state_dict().items()}
    save_file(state, weights, {"gshw.row_orders": orders})
    text = refused(
        "compile", f"{factory}:point", "--config", "tiny", "--weights", weights,
        "--input-shape", "4,3,3", "-o", tmp_path / "x.safetensors",
    )  # fmt: skip
    assert text.startswith(f"{weights}: {message}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nodes", [], "programs must be those of the network's matrices, in order"),
        ("layouts", {}, "layouts must be those of the core's tensors"),
        ("layouts", [], "metadata is incomplete: "),
        ("segments", [], "segments must begin with the programs, in order"),
    ],
)
def test_a_damaged_network(compiled, refused, key, value, message):
    path, _ = compiled
    with safe_open(str(path), "np") as archive:
        metadata = archive.metadata()
    program = json.loads(metadata["program"]) | {key: value}
    save_file(load_file(path), path, metadata | {"program": json.dumps(program)})
    assert refused("run", path, "--config", "tiny").startswith(f"{path}: {message}")


def test_weights_of_a_recipe_for_another_width(refused, factory, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[pattern]\nkind = "gs"\n[target]\nsparsity = 0.5\n[quantisation]\nweight_width = 4\n'
    )
    text = refused(
        "compile", f"{factory}:chain", "--config", "tiny", "--recipe", recipe,
        "--input-shape", "4,3,3", "-o", tmp_path / "x.safetensors",
    )  # fmt: skip
    assert text == "[quantisation] weight_width must be the engine's 8 here, not 4"


def test_a_depthwise_model_with_weights_and_nothing_to_prune(run, factory, tmp_path):
    weights = tmp_path / "w.safetensors"
    state = nn.Conv2d(4, 4, 3, groups=4).state_dict()
    save_file({name: tensor.numpy() for name, tensor in state.items()}, weights)
    result = run(
        "compile", f"{factory}:depthwise", "--config", "tiny", "--weights", weights,
        "--input-shape", "4,5,5", "-o", tmp_path / "x.safetensors",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")


# --- bad input -----------------------------------------------------------------------------------


def test_a_factory_of_what_is_not_supported(refused, factory, tmp_path):
    out = tmp_path / "x.safetensors"
    text = refused(
        "compile", f"{factory}:recurrent", "--config", "tiny", "--input-shape", "5,4", "-o", out
    )
    assert re.match(r"operator lstm.input in '1' is not supported without batch_first", text)
    assert not out.exists()


def test_options_of_pruning_without_it(refused, factory, tmp_path):
    for option, value in (("--rows", "scatter"), ("--keep-dense", "4")):
        text = refused(
            "compile", f"{factory}:chain", "--config", "tiny", "--input-shape", "4,3,3",
            option, value, "-o", tmp_path / "x.safetensors",
        )  # fmt: skip
        assert text == f"{option} is about pruning: needs --sparsity or --recipe"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "net.safetensors"], "net.safetensors: cannot be written twice"),
        (["--plot", "a.png", "--json", "./a.png"], "a.png: cannot be written twice"),
        (
            ["--run", "simm"],
            "device must be one of golden, sim, sim-stream, sim-uart, uart:PORT[:BAUD], "
            "mem:REGISTERS,MEMORY,BYTES, uio:PORT,FILE,MEMORY,BYTES, not 'simm'",
        ),
        (["--run", "golden:"], "device must be one of golden, sim, sim-stream, sim-uart, uart:"),
    ],
)
def test_what_is_wrong_before_the_work(refused, factory, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    text = refused(
        "compile", f"{factory}:chain", "--config", "tiny", "--input-shape", "4,3,3",
        "-o", "net.safetensors", *options,
    )  # fmt: skip
    assert text.startswith(message)
    assert not (tmp_path / "net.safetensors").exists()


def test_no_calibration(refused, factory, tmp_path):
    text = refused(
        "compile", f"{factory}:chain", "--config", "tiny", "-o", tmp_path / "x.safetensors"
    )
    assert text == "needs --calibration FILE, or --input-shape C,H,W for random samples"


def test_weights_that_are_not_finite(refused, factory, tmp_path):
    text = refused(
        "compile", f"{factory}:nan", "--config", "tiny", "--input-shape", "4,3,3",
        "-o", tmp_path / "x.safetensors",
    )  # fmt: skip
    assert text == "tensor '4': values must be finite"


def test_a_network_of_another_engine(compiled, refused):
    path, _ = compiled
    text = refused("run", path, "--config", "h16")
    assert text.startswith(f"{path}: was encoded for the engine ")


def test_a_truncated_network(compiled, refused):
    path, _ = compiled
    path.write_bytes(path.read_bytes()[:-9])
    text = refused("run", path, "--config", "tiny")
    assert text.startswith(f"{path}: truncated, or not a safetensors file: ")


def test_input_of_another_shape(compiled, refused, tmp_path):
    path, _ = compiled
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 3, 4), dtype=np.int64))
    text = refused("run", path, "--config", "tiny", "--input", tmp_path / "x.npy")
    assert text == (
        "input 'input' must have the 1 samples that the network was compiled for, not 2"
    )
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 4, 4), dtype=np.int64))
    text = refused("run", path, "--config", "tiny", "--input", tmp_path / "x.npy")
    assert text == "tensor 'input' must have shape (samples, 3, 3, 4), not (1, 3, 4, 4)"


def test_simulate_a_network(compiled, run, tmp_path):
    """All of it, and from any node on; the executor makes what comes before."""
    path, _ = compiled
    predicted = json.loads((tmp_path / "net.json").read_text())["counters"]
    cases = (
        ([], 3),
        (["--from", "0", "--to", "4"], 3),
        (["--from", "4"], 2),
        (["--layer", "0"], 2),
    )
    for options, n_tensors in cases:
        report = tmp_path / "run.json"
        result = run("simulate", path, "--config", "tiny", *options, "--json", report)
        assert (result.status, result.err) == (0, "")
        assert f"all {n_tensors} tensors same" in result.out
        record = json.loads(report.read_text())
        assert record["counters"] == record["law"]
        assert (record["law"]["cycles"] == predicted["cycles"]) == (n_tensors == 3)


def test_memory_is_used_again_on_request(compiled, run, factory, tmp_path):
    path, _ = compiled
    small = tmp_path / "small.safetensors"
    result = run(
        "compile", f"{factory}:chain", "--config", "tiny", "--input-shape", "4,3,3", "-o", small,
        "--reuse-memory", "--run", "sim",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    found, whole = (load_network(each, load_config("tiny")) for each in (small, path))
    assert found.n_bytes <= whole.n_bytes and found.network.outputs[0] in found.remaining
    assert f"all {len(found.remaining)} tensors same" in result.out


def test_a_part_on_another_device(compiled, run, tmp_path):
    path, _ = compiled
    out = tmp_path / "y.npy"
    result = run("run", path, "--config", "tiny", "--check", "--to", "0", "-o", out)
    assert (result.status, result.err) == (0, "")
    assert np.load(out).shape == (1, 3, 3, 8)


def test_counters_that_are_not_the_laws(compiled, run, monkeypatch):
    path, _ = compiled
    right = commands.network_cycles

    class Wrong:
        def __init__(self, *arguments):
            self.counters = right(*arguments).counters
            self.counters["groups"] += 1

    monkeypatch.setattr(commands, "network_cycles", Wrong)
    result = run("simulate", path, "--config", "tiny")
    assert result.status == 1
    assert "all 3 tensors same; DIFFERS from the law in groups" in result.out
    result = run("run", path, "--config", "tiny", "--device", "sim")
    assert result.status == 1
    assert "DIFFERS from the law in groups" in result.out and "same" not in result.out


def test_explain_a_network(compiled, run, tmp_path):
    path, _ = compiled
    report, plot = tmp_path / "explain.json", tmp_path / "net.svg"
    result = run("explain", path, "--config", "tiny", "--json", report, "--plot", plot)
    assert (result.status, result.err) == (0, "")
    found, wanted = (json.loads(p.read_text()) for p in (report, tmp_path / "net.json"))
    assert found["nodes"] == wanted["nodes"] and found["counters"] == wanted["counters"]
    assert plot.read_text().startswith("<?xml")
    slow = run("explain", path, "--config", "tiny", "--interval", 4, "--json", report)
    assert slow.status == 0
    assert json.loads(report.read_text())["counters"]["cycles"] > wanted["counters"]["cycles"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--layer", "5"], "no node '5'; the network's nodes are 0, 4"),
        (["simulate", "--from", "5"], "no node '5'; the network's nodes are 0, 4"),
        (["run", "--from", "4", "--to", "0"], "node '0' must not come before node '4'"),
        (["run", "--from", "4", "--layer", "4"], "--layer is one node, without --from and --to"),
        (["simulate", "--waves", "x.fst"], "--waves is for encoded layers, not compiled networks"),
        (
            ["explain", "--layer", "4"],
            "--layer and --program are for encoded layers, not compiled networks",
        ),
        (
            ["simulate", "--samples", "2"],
            "net.safetensors: samples are those it was compiled for, no --samples",
        ),
        (["explain", "--plot", "x.txt"], "x.txt: a picture must be .png, .svg or .pdf"),
    ],
)
def test_parts_that_there_are_not(compiled, refused, arguments, message):
    path, _ = compiled
    command, *options = arguments
    text = refused(command, path, "--config", "tiny", *options)
    assert text.removeprefix(f"{path.parent}/") == message


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("run", "--from", "--from and --to are for compiled networks"),
        ("simulate", "--to", "--from and --to are for compiled networks"),
        ("explain", "--plot", "--plot is for compiled networks"),
    ],
)
def test_options_for_networks_only(model, refused, command, option, message):
    assert refused(command, model, "--config", "tiny", option, "x") == message
