"""The artefact: whole round trips, atomic writes, and one line for every broken file."""

import dataclasses
import errno
import json
import os
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from gshw.artefact import EncodedModel, load_model, save_model
from gshw.config import load_config
from gshw.encoding import decode_weights
from gshw.errors import GshwError
from gshw.geometry import Geometry, LayerKind
from gshw.golden import run_layer
from tests.strategies import all_engines, conv, random_activations, random_layer

ALL = all_engines()
TINY = load_config("tiny").engine


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def model_of(config, names=("conv", "block.1.fc")) -> EncodedModel:
    """Two layers of different kinds, with scales and metadata to lose."""
    geometries = [conv(5, (3, 3), stride=(2, 1), padding=(1, 0)), Geometry.linear(37)]
    layers = {}
    for seed, (name, geometry) in enumerate(zip(names, geometries)):
        layer = random_layer(seed, config, config.rows + 3, geometry, 0.3, shuffled=True)
        layers[name] = dataclasses.replace(
            layer,
            name=name,
            input_scale=0.1 / 3,
            output_scale=1e-7 / 7,
            metadata={"input_size": "7x9"},
        )
    return EncodedModel(layers=layers, chain=tuple(names), provenance={"seed": "1", "ü": "é"})


def read(path) -> tuple[dict, dict]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(str(path), "np") as archive:
        names = list(archive.keys())
        return {name: archive.get_tensor(name) for name in names}, archive.metadata()


@pytest.fixture
def saved(tmp_path):
    """A good file for the tiny engine."""
    path = tmp_path / "model.safetensors"
    save_model(path, TINY, model_of(TINY))
    return path


@pytest.mark.parametrize("engine", [n for n in sorted(ALL) if n != "arbitrated4"])
def test_round_trip(engine, tmp_path):
    """Every field of every layer, exactly."""
    config, path = ALL[engine], tmp_path / "m.safetensors"
    model = model_of(config)
    save_model(path, config, model)
    again = load_model(path, config)
    assert (list(again.layers), again.chain, again.provenance) == (
        list(model.layers),
        model.chain,
        model.provenance,
    )
    for name, layer in model.layers.items():
        found = again.layers[name]
        for key in ("value", "offset", "bank", "bundle_ptr", "row"):
            np.testing.assert_array_equal(getattr(found, key), getattr(layer, key))
            assert getattr(found, key).dtype == getattr(layer, key).dtype
        for key in ("name", "config_hash", "geometry", "n_rows", "metadata"):
            assert getattr(found, key) == getattr(layer, key)
        assert (found.input_scale, found.output_scale) == (layer.input_scale, layer.output_scale)
        for key in ("bias", "multiplier", "shift"):
            np.testing.assert_array_equal(
                getattr(found.requantisation, key), getattr(layer.requantisation, key)
            )
        for key in ("low", "high", "signed_input"):
            assert getattr(found.requantisation, key) == getattr(layer.requantisation, key)
        np.testing.assert_array_equal(decode_weights(config, found), decode_weights(config, layer))


def test_loaded_layers_run(saved):
    model = model_of(TINY)
    found = load_model(saved, TINY)
    for name, layer in model.layers.items():
        shape = (1, 4, 4) if layer.geometry.kind is LayerKind.CONV2D else (2, 1, 1)
        x = random_activations(9, TINY, (*shape, layer.geometry.in_channels))
        np.testing.assert_array_equal(
            run_layer(TINY, found.layers[name], x), run_layer(TINY, layer, x)
        )


def test_empty_layer_and_empty_model(tmp_path):
    path = tmp_path / "m.safetensors"
    layer = random_layer(0, TINY, 3, Geometry.linear(9), 0.0)
    assert layer.n_groups == 0
    save_model(path, TINY, EncodedModel(layers={"random0": layer}))
    assert load_model(path, TINY).layers["random0"].n_groups == 0
    save_model(path, TINY, EncodedModel(layers={}))
    assert load_model(path, TINY).layers == {}


def test_the_file_describes_itself(saved):
    """Format, version, hash, engine and shapes are readable without this package."""
    tensors, metadata = read(saved)
    assert metadata["format"] == "gshw-encoded-model"
    assert (metadata["version"], metadata["config_hash"]) == ("1", TINY.hash)
    assert json.loads(metadata["engine"]) == TINY.canonical()
    assert [entry["name"] for entry in json.loads(metadata["layers"])] == ["conv", "block.1.fc"]
    assert {name.rsplit(".", 1)[1] for name in tensors} == {
        "value",
        "offset",
        "bank",
        "bundle_ptr",
        "row",
        "bias",
        "multiplier",
        "shift",
    }


# --- refusals ------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    with raises(f"{tmp_path}/none: no such file"):
        load_model(tmp_path / "none", TINY)


def test_foreign_engine(saved):
    other = dataclasses.replace(TINY, bank_depth=512)
    with raises(f"{saved}: was encoded for the engine {TINY.hash[:8]}, not for {other.hash[:8]}"):
        load_model(saved, other)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1, -1000])
def test_truncated(saved, length):
    data = saved.read_bytes()
    saved.write_bytes(data[:length])
    with pytest.raises(GshwError) as caught:
        load_model(saved, TINY)
    message = str(caught.value)
    assert message.startswith(f"{saved}: truncated, or not a safetensors file: ")
    assert "\n" not in message


@pytest.mark.parametrize("text", [b"[engine]\nlanes = 4\n", b"\x93NUMPY" + bytes(200)])
def test_not_safetensors(tmp_path, text):
    path = tmp_path / "m.safetensors"
    path.write_bytes(text)
    message = re.escape(f"{path}: truncated, or not a safetensors file: ")
    with pytest.raises(GshwError, match=f"^{message}[^\n]+$"):
        load_model(path, TINY)


def test_a_folder(tmp_path):
    with pytest.raises(GshwError, match=f"^{re.escape(str(tmp_path))}: [^\n]+$"):
        load_model(tmp_path, TINY)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_foreign_safetensors(tmp_path, metadata):
    path = tmp_path / "m.safetensors"
    save_file({"weight": np.zeros((2, 2), np.float32)}, path, metadata)
    with raises(f"{path}: not an encoded model (metadata format must be 'gshw-encoded-model')"):
        load_model(path, TINY)


def test_weights_that_numpy_cannot_hold(tmp_path):
    """Someone hands over a bfloat16 checkpoint."""
    path = tmp_path / "m.safetensors"
    save_torch({"weight": torch.zeros(2, dtype=torch.bfloat16)}, path, {"format": "pt"})
    with raises(f"{path}: not an encoded model (metadata format must be 'gshw-encoded-model')"):
        load_model(path, TINY)


@pytest.mark.parametrize("version", ["2", "0", "one"])
def test_unknown_version(saved, version):
    tensors, metadata = read(saved)
    save_file(tensors, saved, metadata | {"version": version})
    with raises(f"{saved}: format version must be 1, not {version}"):
        load_model(saved, TINY)


@pytest.mark.parametrize(
    "key", ["value", "offset", "bank", "bundle_ptr", "row", "bias", "multiplier", "shift"]
)
def test_missing_tensor(saved, key):
    tensors, metadata = read(saved)
    del tensors[f"conv.{key}"]
    save_file(tensors, saved, metadata)
    with raises(f"{saved}: layer 'conv': tensor {key!r} is missing"):
        load_model(saved, TINY)


@pytest.mark.parametrize("key", ["layers", "chain", "provenance"])
def test_incomplete_metadata(saved, key):
    tensors, metadata = read(saved)
    for change in ({}, {key: "{"}):
        broken = {k: v for k, v in metadata.items() if k != key} | change
        save_file(tensors, saved, broken)
        message = re.escape(f"{saved}: metadata is incomplete: ")
        with pytest.raises(GshwError, match=f"^{message}[^\n]+$"):
            load_model(saved, TINY)


@pytest.mark.parametrize("key", ["n_rows", "kind", "kernel", "low", "input_scale"])
def test_incomplete_layer(saved, key):
    tensors, metadata = read(saved)
    entries = json.loads(metadata["layers"])
    del entries[0][key]
    save_file(tensors, saved, metadata | {"layers": json.dumps(entries)})
    with raises(f"{saved}: metadata is incomplete: {key!r}"):
        load_model(saved, TINY)


def put(place, value):
    """A change of one element."""

    def change(tensor):
        tensor = tensor.copy()
        tensor[place] = value
        return tensor

    return change


POINTER = "bundle_ptr must rise from 0 over 4 bundles"
N_WORDS = 9 * 2
CORRUPTIONS = [
    ("bundle_ptr", put(0, 1), POINTER),
    ("bundle_ptr", put(1, 10_000), POINTER),
    ("bundle_ptr", put(2, -1), POINTER),
    ("bundle_ptr", lambda t: t[:-1], POINTER),
    ("bundle_ptr", lambda t: t.reshape(1, -1), POINTER),
    ("bundle_ptr", lambda t: t + (t == t[-1]), "value must have shape"),
    ("value", lambda t: t[:-1], "value must have shape"),
    ("value", lambda t: t.reshape(-1), "value must have shape"),
    ("value", put((0, 0, 0), -128), "value must be within +-127"),
    ("offset", lambda t: t[:, :-1], "offset must have shape"),
    ("offset", put((0, 0), -1), f"offset must be within 0..{N_WORDS - 1}"),
    ("offset", put((-1, -1), N_WORDS), f"offset must be within 0..{N_WORDS - 1}"),
    ("bank", lambda t: t[1:], "bank must have shape"),
    ("bank", put((0, 0), 4), "lane l must be fed by bank l"),
    ("bank", put((0, slice(2)), [1, 0]), "lane l must be fed by bank l"),
    ("row", lambda t: t[:-1], "row must have shape"),
    ("row", put(0, 7), "row must hold every row 0..3 once"),
    ("row", put(1, -1), "row must hold every row 0..3 once"),
    ("bias", lambda t: t[:-1], "bias must have shape (4,), not (3,)"),
    ("multiplier", lambda t: t[:-1], "multiplier must have shape (4,), not (3,)"),
    ("shift", lambda t: t[:-1], "shift must have shape (4,), not (3,)"),
    ("multiplier", put(0, 0), "multiplier must be from 32768 to 65535, not 0"),
    ("multiplier", put(1, 1 << 16), "multiplier must be from 32768 to 65535, not 65536"),
    ("shift", put(0, 0), "shift must be from 1 to 47, not 0"),
    ("shift", put(3, 63), "shift must be from 1 to 47, not 63"),
    ("bias", put(2, 2**31 - 1), "row 2 can reach "),
]


@pytest.mark.parametrize(
    ("key", "change", "message"), CORRUPTIONS, ids=[f"{c[0]}{i}" for i, c in enumerate(CORRUPTIONS)]
)
def test_corrupt_tensors(saved, key, change, message):
    """Nothing that no encoder writes gets through."""
    tensors, metadata = read(saved)
    name = f"conv.{key}"
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, saved, metadata)
    with pytest.raises(GshwError) as caught:
        load_model(saved, TINY)
    assert str(caught.value).startswith(f"{saved}: layer 'conv': {message}")


def test_corrupt_clamp(saved):
    tensors, metadata = read(saved)
    entries = json.loads(metadata["layers"])
    entries[0]["high"] = 1000
    save_file(tensors, saved, metadata | {"layers": json.dumps(entries)})
    with pytest.raises(GshwError, match=f"^{re.escape(str(saved))}: layer 'conv': output clamp "):
        load_model(saved, TINY)


def saved_for(name: str, tmp_path):
    """A good file for another engine: its config, path, tensors and metadata."""
    config, path = ALL[name], tmp_path / f"{name}.safetensors"
    save_model(path, config, model_of(config))
    return config, path, *read(path)


@pytest.mark.parametrize("bank", [0, 16])
def test_corrupt_bank_behind_a_routing_network(tmp_path, bank):
    """Any permutation is legal there, nothing else."""
    config, path, tensors, metadata = saved_for("hybrid16", tmp_path)
    banks = tensors["conv.bank"]
    banks[0, banks[0] != 0] = np.where(banks[0] == 5, bank, banks[0])[banks[0] != 0]
    save_file(tensors, path, metadata)
    with raises(f"{path}: layer 'conv': bank must be a permutation of the banks in every group"):
        load_model(path, config)


def test_corrupt_bank_of_an_arbitrated_engine(tmp_path):
    """Idle lanes are legal there; banks beyond the engine are not, nor weights that never run."""
    config, path, tensors, metadata = saved_for("arb16", tmp_path)
    banks = tensors["conv.bank"]
    assert (banks == 255).any()
    busy = tuple(np.argwhere(tensors["conv.value"].any(axis=2))[0])
    before = banks[busy]
    for bank, rule in (
        (16, "bank must be below 16, or 255 for an idle lane"),
        (255, "an idle lane must have weights of zero"),
    ):
        banks[busy] = bank
        save_file(tensors, path, metadata)
        with raises(f"{path}: layer 'conv': {rule}"):
            load_model(path, config)
    banks[busy] = before
    save_file(tensors, path, metadata)
    load_model(path, config)


def test_padding_rows_lie_at_the_end_of_a_bundle(tmp_path):
    config, path, tensors, metadata = saved_for("hybrid16", tmp_path)
    rows = tensors["conv.row"]
    assert rows[-1] == -1 and (rows >= 0).sum() == 7
    rows[-2:] = rows[-2:][::-1]
    save_file(tensors, path, metadata)
    with raises(
        f"{path}: layer 'conv': row must hold every row 0..6 once, and -1 only at the end of a "
        "bundle"
    ):
        load_model(path, config)


def test_one_weight_in_two_slots(saved):
    """The engine would add it twice, which no matrix says."""
    tensors, metadata = read(saved)
    tensors["conv.value"][0:2] = 1
    tensors["conv.offset"][1] = tensors["conv.offset"][0]
    assert tensors["conv.bundle_ptr"][1] >= 2
    save_file(tensors, saved, metadata)
    with raises(f"{saved}: layer 'conv': two slots hold the same weight of the matrix"):
        load_model(saved, TINY)


# --- writing -------------------------------------------------------------------------------------


def test_a_foreign_layer_is_not_written(tmp_path):
    other = dataclasses.replace(TINY, bank_depth=512)
    path = tmp_path / "m.safetensors"
    with raises(
        f"layer 'conv' was encoded for the engine {TINY.hash[:8]}, not for {other.hash[:8]}"
    ):
        save_model(path, other, model_of(TINY))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["replace", "chmod", "fdopen"])
def test_a_failed_write_leaves_the_old_file(saved, monkeypatch, function):
    """Disk full at any step: the old bytes stay and nothing lies beside them."""
    before = saved.read_bytes()

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"gshw.files.os.{function}", fail)
    with raises(f"{saved}: cannot be written: No space left on device"):
        save_model(saved, TINY, EncodedModel(layers={}))
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_missing_folder(tmp_path):
    path = tmp_path / "no" / "m.safetensors"
    with raises(f"{path}: cannot be written: No such file or directory"):
        save_model(path, TINY, model_of(TINY))


def test_a_folder_in_the_way(tmp_path):
    path = tmp_path / "m.safetensors"
    path.mkdir()
    with raises(f"{path}: cannot be written: Is a directory"):
        save_model(path, TINY, model_of(TINY))
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask(saved):
    """Readable by others, as a file written the plain way would be."""
    plain = saved.parent / "plain"
    plain.write_text("")
    assert saved.stat().st_mode == plain.stat().st_mode
