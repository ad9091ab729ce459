"""Networks: golden executor, compiled programs in the model of programs, bad input."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

from gshw.config import BusConfig, Config, EngineConfig, load_config
from gshw.drivers.golden import GoldenAccelerator
from gshw.errors import GshwError
from gshw.geometry import Part
from gshw.golden import run_layer
from gshw.network.artefact import load_network, save_network
from gshw.network.compile import compile_network
from gshw.network.execute import execute
from gshw.network.graph import MatrixNode, Network, Source, Tensor
from gshw.network.part import part_of
from gshw.network.run import run_network
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from tests.network_cases import encoded, residual_network
from tests.strategies import all_engines, conv

TINY = load_config("tiny").engine


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def image(engine, n_samples: int) -> np.ndarray:
    rng = np.random.default_rng(n_samples)
    return rng.integers(0, engine.activation_range(False)[1] + 1, (n_samples, 7, 6, 3))


def test_executor_by_hand():
    """Every node is its layer over the parts, subsampled and side by side."""
    network = residual_network(TINY)
    found = execute(TINY, network, {"image": image(TINY, 2)})
    assert set(found) == set(network.tensors)
    inputs = np.concatenate([found["block2.a"], found["block1.b"][:, ::2, ::2]], axis=3)
    wanted = run_layer(TINY, network.layers["block2.b"], inputs)
    assert np.array_equal(found["block2.b"], wanted)
    assert len(np.unique(found["fc"])) > 1


@pytest.mark.parametrize("name", sorted(all_engines()))
@pytest.mark.parametrize("max_pooling", [False, True])
def test_compiled_networks_equal_golden(name, max_pooling):
    """All tensors, one program, no access that tokens do not order."""
    engine = dataclasses.replace(all_engines()[name], max_pooling=max_pooling)
    network = residual_network(engine)
    for n_samples in (1, engine.columns + 1):
        compare(engine, network, "image", image(engine, n_samples))


def compare(engine: EngineConfig, network: Network, name: str, x: np.ndarray) -> None:
    """All tensors of the compiled network, in the model of programs, with the executor's."""
    config = Config(name="test", engine=engine, bus=BusConfig(data_width=64))
    wanted = execute(engine, network, {name: x})
    compiled = compile_network(config, network, len(x), base_address=0x1000)
    with GoldenAccelerator(config, n_bytes=0x1000 + compiled.n_bytes) as core:
        found = run_network(core, compiled, {name: x}).codes
    for tensor, codes in wanted.items():
        assert np.array_equal(found[tensor], codes), tensor


def folded_network(engine: EngineConfig, fold: int, width: int = 12) -> Network:
    """One dilated window of five taps, of fold 1 or of its dilation, 3."""
    gap = 3 // fold
    geometry = conv(4, (1, 5), padding=(0, 2 * gap), dilation=(1, gap))
    layer = encoded(np.random.default_rng(0), engine, "conv", geometry, 6)
    signs = {"x": (4, False), "y": (6, layer.requantisation.signed_output)}
    tensors = {
        name: Tensor(name=name, size=(1, width), channels=n, scale=1.0, signed=signed)
        for name, (n, signed) in signs.items()
    }
    node = MatrixNode(layer="conv", sources=(Source("x"),), output="y", fold=fold)
    return Network(
        tensors=tensors, nodes=(node,), layers={"conv": layer}, inputs=("x",), outputs=("y",)
    )


def test_a_folded_line_is_a_dilated_window():
    x = np.random.default_rng(0).integers(0, 256, (3, 1, 12, 4))
    plain, folded = (execute(TINY, folded_network(TINY, fold), {"x": x}) for fold in (1, 3))
    assert np.array_equal(plain["y"], folded["y"]) and len(np.unique(plain["y"])) > 9
    compare(TINY, folded_network(TINY, 3), "x", x)
    with raises(
        "node 'conv': tensors must be one line of a multiple of 3 pixels to be folded, not 1 x 13"
    ):
        folded_network(TINY, 3, 13)


def test_maxima_by_hand():
    engine = dataclasses.replace(TINY, max_pooling=True)
    network = residual_network(engine)
    found = execute(engine, network, {"image": image(engine, 2)})
    stem = np.pad(found["stem"], ((0, 0), (1, 1), (1, 1), (0, 0)))
    for y, x in np.ndindex(7, 6):
        window = stem[:, y : y + 3, x : x + 3]
        assert np.array_equal(found["pool"][:, y, x], window.max(axis=(1, 2)))
    assert len(np.unique(found["pool"])) > 2


def test_compiling_is_deterministic():
    config = load_config("tiny")
    programs = [compile_network(config, residual_network(TINY)).segments for _ in range(2)]
    assert programs[0] == programs[1]


# --- bad input -----------------------------------------------------------------------------------


def changed(network, position: int, **changes):
    """The network with one node changed."""
    nodes = list(network.nodes)
    nodes[position] = dataclasses.replace(nodes[position], **changes)
    return dataclasses.replace(network, nodes=tuple(nodes))


@pytest.mark.parametrize(
    ("position", "changes", "message"),
    [
        (1, {"layer": "x"}, "node 'x': no encoded layer of that name"),
        (1, {"output": "x"}, "node 'block1.a' names the tensor 'x', which there is not"),
        (1, {"output": "stem"}, "node 'block1.a': tensor 'stem' is written twice"),
        (1, {"sources": (Source("fc"),)}, "node 'block1.a' reads 'fc' before it is written"),
        (
            4,
            {"sources": (Source("block2.a"),)},
            "node 'block2.b' must read parts of [5, 5] channels: [5]",
        ),
        (
            4,
            {"sources": (Source("block2.a"), Source("block1.b"))},
            "node 'block2.b': parts must be of one size, (4, 3), not (7, 6)",
        ),
    ],
)
def test_networks_that_do_not_fit_together(position, changes, message):
    with raises(message):
        changed(residual_network(TINY), position, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("stem", {"channels": 0}, "tensor 'stem' must have at least one element, not 7 x 6 x 0"),
        ("stem", {"scale": 0.0}, "tensor 'stem': scale must be positive, not 0.0"),
        (
            "stem",
            {"signed": True},
            "node 'block1.a': tensor 'stem' and the layer must have one sign",
        ),
        (
            "block2.a",
            {"size": (4, 4)},
            "node 'block2.a': output must be of size (4, 3) and have 5 channels, not (4, 4) and 5",
        ),
        ("fc", {"channels": 6}, "output 'fc' is never written"),
    ],
)
def test_tensors_that_do_not_fit(name, changes, message):
    network = residual_network(TINY)
    with raises(message):
        tensor = dataclasses.replace(network.tensors[name], **changes)
        dataclasses.replace(network, tensors={**network.tensors, name: tensor})


def test_a_clamp_beyond_the_tensor():
    network = residual_network(TINY)
    tensors = dict(network.tensors)
    tensors["fc"] = dataclasses.replace(tensors["fc"], signed=False)
    with raises("node 'fc': clamp must be within 0..255, the codes of its output, not -128..127"):
        dataclasses.replace(network, tensors=tensors).check_config(TINY)


def test_an_unfolded_input_with_two_readers():
    """The windows in memory would be of no use to the other one."""
    network = residual_network(TINY)
    stem = network.nodes[0]
    twin = dataclasses.replace(network.layers["stem"], name="twin")
    tensor = dataclasses.replace(network.tensors["stem"], name="twin")
    double = dataclasses.replace(
        network,
        tensors={**network.tensors, "twin": tensor},
        layers={**network.layers, "twin": twin},
        nodes=(*network.nodes, dataclasses.replace(stem, layer="twin", output="twin")),
    )
    with raises("node 'stem' is unfolded, so it must be the only one to read an input"):
        compile_network(load_config("tiny"), double)


@pytest.mark.parametrize("address", [-64, 32])
def test_a_base_address_that_is_not_aligned(address):
    with raises(f"base_address must be a multiple of 64, not {address:#x}"):
        compile_network(load_config("tiny"), residual_network(TINY), base_address=address)


def test_parts_that_do_not_fit_a_layer():
    for options, message in (
        ({"parts": (Part(3),)}, "parts must have in_channels = 4, not 3"),
        ({"parts": (Part(4),), "unfold": True}, "an unfolded layer must have no parts"),
    ):
        with raises(message):
            conv(4, (1, 1), **options)
    with raises("repeats of a part must be an integer of at least 1, not 0"):
        Part(4, 0)


def test_inputs_that_do_not_match():
    network = residual_network(TINY)
    good = image(TINY, 1)
    for inputs, message in (
        ({}, "input 'image' is missing"),
        ({"image": good / 2}, "tensor 'image': codes must be integers, not float64"),
        (
            {"image": good[:, 1:]},
            "tensor 'image' must have shape (samples, 7, 6, 3), not (1, 6, 6, 3)",
        ),
        ({"image": good + 256}, "tensor 'image': codes must be within 0..255, not 256..511"),
    ):
        if "256..511" in message:
            inputs = {"image": np.clip(good + 256, 256, 511)}
            inputs["image"][0, 0, 0, :2] = 256, 511
        with raises(message):
            execute(TINY, network, inputs)


def test_memory_beyond_the_bus():
    config = Config(name="test", engine=TINY, bus=BusConfig(data_width=32, address_width=16))
    with pytest.raises(GshwError, match=r"^the network needs memory up to 0x\w+, beyond the bus's"):
        compile_network(config, residual_network(TINY), base_address=0xFC00)


def check_memory(compiled) -> int:
    """Walk the nodes with the owner of every byte: a node finds what it reads, and keeps it.

    Returns the number of tensors that are overwritten.
    """
    network, layouts = compiled.network, compiled.layouts
    places = {
        name: slice(layout.address, layout.address + layout.n_bytes)
        for name, layout in layouts.items()
    }
    owner = np.full(compiled.base_address + compiled.n_bytes, "", dtype=object)
    for segment in compiled.segments:
        owner[segment.address : segment.address + len(segment.data)] = segment.name
    for name in network.inputs:
        assert set(owner[places[name]]) == {""}
        owner[places[name]] = name
    for node in network.nodes:
        owner[places[node.output]] = node.output
        for source in node.sources:
            assert set(owner[places[source.tensor]]) == {source.tensor}, (node.name, source.tensor)
    remaining = [name for name in layouts if set(owner[places[name]]) == {name}]
    assert list(compiled.remaining) == remaining and set(network.outputs) <= set(remaining)
    for segment in compiled.segments:
        assert set(owner[segment.address : segment.address + len(segment.data)]) == {segment.name}
    return len(layouts) - len(remaining)


@pytest.mark.parametrize("name", ["tiny", "v16x4m", "v32"])
def test_memory_is_used_again(name, tmp_path):
    config = load_config(name)
    network = residual_network(config.engine)
    x = image(config.engine, 2)
    whole = compile_network(config, network, 2, base_address=0x100)
    assert check_memory(whole) == 0
    path = tmp_path / "net.safetensors"
    save_network(path, compile_network(config, network, 2, base_address=0x100, reuse_memory=True))
    compiled = load_network(path, config)
    assert check_memory(compiled) > 1 and compiled.n_bytes < whole.n_bytes
    with GoldenAccelerator(config, n_bytes=0x100 + compiled.n_bytes) as core:
        found = run_network(core, compiled, {"image": x}).codes
    assert set(found) == set(compiled.remaining)
    wanted = execute(config.engine, network, {"image": x})
    for tensor, codes in found.items():
        assert np.array_equal(codes, wanted[tensor]), tensor


def test_parts_of_a_network():
    """Tensors that several nodes write stay whole; a part computes what the whole does."""
    engine = load_config("v16x4").engine
    network = residual_network(engine)
    x = np.random.default_rng(0).integers(0, 256, (2, 7, 6, 3))
    codes = execute(engine, network, {"image": x})
    names = [node.name for node in network.nodes]
    for start, first in enumerate(names):
        for last in names[start:]:
            part = part_of(network, first, last)
            own = [node.name for node in part.nodes]
            assert {first, last} <= set(own)
            found = execute(engine, part, {name: codes[name] for name in part.inputs})
            for name, values in found.items():
                assert np.array_equal(values, codes[name]), (first, last, name)
    assert part_of(network) == network


def test_a_part_keeps_what_writes_one_tensor():
    engine = load_config("tiny").engine
    torch.manual_seed(0)
    depthwise = nn.Conv2d(96, 96, 5, padding=2, groups=96)
    model = nn.Sequential(nn.Conv2d(2, 96, 1), depthwise).eval()
    floats = import_model(model, torch.randn(2, 2, 4, 4))
    network = quantise_network(engine, floats)
    names = [node.name for node in network.nodes]
    assert len(names) > 2
    part = part_of(network, names[2], names[2])
    assert [node.name for node in part.nodes] == names[1:]
    assert len(part.inputs) == len(part.outputs) == 1
