"""Recurrent layers, attention and tokens: numbers against torch, devices against each other."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gshw.config import Config, load_config
from gshw.drivers.golden import GoldenAccelerator
from gshw.encoding import decode_weights
from gshw.errors import GshwError
from gshw.network.artefact import load_network, save_network
from gshw.network.compile import compile_network
from gshw.network.execute import execute
from gshw.network.graph import HostNode, MatrixNode, Network, Source
from gshw.network.graph import Tensor as Codes
from gshw.network.host import (
    ARGUMENT_BITS,
    CELL_BITS,
    SCALE_BITS,
    UNIT_BITS,
    argmax,
    attention,
    embedding,
    exponentials,
    fill,
    gru_cell,
    gru_tables,
    lstm_cell,
    lstm_tables,
)
from gshw.network.run import run_network
from gshw.quantise import quantise_activations, to_fixed
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.networks.module import IntegerNetwork
from pruning.patterns.pattern import Projection
from pruning.zoo.gnmt import Gnmt

CONFIG = load_config("v16x4")


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}")


def translator() -> Gnmt:
    torch.manual_seed(0)
    model = Gnmt(width=24, n_layers=4, n_tokens=50, n_steps=4).eval()
    # Larger weights than torch's, so that the gates open and close.
    for parameter in model.parameters():
        parameter.data *= 2.0
    return model


def integers(model: nn.Module, tokens: Tensor, config: Config = CONFIG) -> Network:
    return quantise_network(config.engine, import_model(model, tokens))


def as_codes(tokens: Tensor) -> np.ndarray:
    return tokens.numpy()[:, None, :, None]


# --- host functions --------------------------------------------------------------------------


def test_an_lstm_cell_follows_torch():
    rng = np.random.default_rng(0)
    scale = 4 / 127
    gates = rng.integers(-128, 128, (40, 1, 1, 4 * 6))
    cells = rng.integers(-(4 << CELL_BITS), 4 << CELL_BITS, (40, 1, 1, 6))
    numbers = {"low": -128, "output_bits": 7}
    outputs, found = lstm_cell([gates, cells], lstm_tables(scale, -128, 127), numbers)
    enter, forget, new, leave = np.split(gates * scale, 4, axis=3)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    wanted = sigmoid(forget) * cells / (1 << CELL_BITS) + sigmoid(enter) * np.tanh(new)
    assert np.abs(found / (1 << CELL_BITS) - wanted).max() < 2.0**-CELL_BITS
    codes = sigmoid(leave) * np.tanh(wanted) * 128
    assert np.abs(outputs - codes).max() < 1.1 and np.abs(outputs).max() > 60


def test_cells_and_outputs_saturate():
    gates = np.full((1, 1, 1, 4), 127)
    cells = np.full((1, 1, 1, 1), 32767)
    tables = lstm_tables(1.0, -128, 127)
    outputs, found = lstm_cell([gates, cells], tables, {"low": -128, "output_bits": 7})
    assert (outputs.item(), found.item()) == (127, 32767)
    gates = np.array([127, 127, -128, 127])[None, None, None]
    outputs, found = lstm_cell([gates, -cells - 1], tables, {"low": -128, "output_bits": 7})
    assert (outputs.item(), found.item()) == (-128, -32768)


def test_a_gru_cell_follows_torch():
    rng = np.random.default_rng(0)
    scales = 3 / 127, 5 / 127
    inner, outer = rng.integers(-128, 128, (2, 40, 1, 1, 3 * 6))
    before = rng.integers(-(1 << UNIT_BITS), 1 << UNIT_BITS, (40, 1, 1, 6))
    unit = 1 << (ARGUMENT_BITS + SCALE_BITS)
    numbers = {"input": round(scales[0] * unit), "before": round(scales[1] * unit)}
    outputs, found = gru_cell([inner, outer, before], gru_tables(), numbers | {"output_bits": 7})
    (r, z, n), (own_r, own_z, own_n) = (
        np.split(codes * scale, 3, axis=3)
        for codes, scale in zip((inner, outer), scales, strict=True)
    )
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    update = sigmoid(z + own_z)
    new = np.tanh(n + sigmoid(r + own_r) * own_n)
    wanted = (1 - update) * new + update * before / (1 << UNIT_BITS)
    assert np.abs(found / (1 << UNIT_BITS) - wanted).max() < 0.01
    assert np.abs(outputs - 128 * wanted).max() < 1.6 and np.abs(outputs).max() > 100


class GatedGru(nn.Module):
    """A GRU between functions whose names are those of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).sigmoid()
        return self.b(self.gru(y)[0]).tanh() * y


def test_functions_beside_a_gru():
    torch.manual_seed(0)
    model, x = GatedGru().eval(), 3 * torch.randn(32, 4, 6)
    floats = import_model(model, x)
    network = quantise_network(CONFIG.engine, floats)
    with torch.no_grad():
        wanted = model(x)
        found = IntegerNetwork(CONFIG.engine, network, floats.layouts)(x)
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert len(network.tables) == 4


def test_a_gru_of_sixteen_bits():
    """Outputs are as fine as the states then."""
    gates = np.zeros((1, 1, 1, 3), int)
    sources = [gates, gates, np.full((1, 1, 1, 1), -30001)]
    numbers = {"input": 1, "before": 1, "output_bits": 15}
    outputs, found = gru_cell(sources, gru_tables(), numbers)
    assert outputs.item() == found.item() == -15000


def test_gru_outputs_saturate():
    gates = np.full((1, 1, 1, 3), 127)
    sources = [gates, 0 * gates, np.full((1, 1, 1, 1), 32768)]
    numbers = {"input": 1 << 24, "before": 1, "output_bits": 7}
    outputs, found = gru_cell(sources, gru_tables(), numbers)
    assert (outputs.item(), found.item()) == (127, 32768)


def test_attention_follows_torch():
    rng = np.random.default_rng(1)
    queries, keys = (rng.integers(-128, 128, (3, 1, n, 16)) for n in (2, 9))
    values = rng.integers(-128, 128, (3, 1, 9, 5))
    scale = 2e-5
    multiplier, shift = to_fixed(np.array([scale * 16]))
    numbers = {"multiplier": int(multiplier[0]), "shift": int(shift[0]), "heads": 1, "causal": 0}
    (found,) = attention([queries, keys, values], [exponentials()], numbers)
    scores = torch.from_numpy(queries[:, 0] @ keys[:, 0].swapaxes(1, 2)).double() * scale
    wanted = (torch.softmax(scores, 2) @ torch.from_numpy(values[:, 0]).double()).numpy()
    assert found.shape == (3, 1, 2, 5)
    assert np.abs(found[:, 0] - wanted).max() < 0.04 * 128
    # Far from the largest a key counts for nothing; alone it is its value.
    numbers |= {"multiplier": 1 << 15, "shift": 1}
    (found,) = attention([queries, keys, values], [exponentials()], numbers)
    best = scores.argmax(2).numpy()
    assert np.array_equal(found[:, 0], np.take_along_axis(values[:, 0], best[..., None], 1))


def test_small_functions():
    tokens = np.array([[[[2], [0]]]])
    table = np.arange(12, dtype=np.int8).reshape(4, 3)
    (found,) = embedding([tokens], [table], {})
    assert found.tolist() == [[[[6, 7, 8], [0, 1, 2]]]] and found.dtype == np.int64
    assert argmax([np.array([[[[3, 9, 9]]]])], [], {})[0].tolist() == [[[[1]]]]
    (found,) = fill([tokens], [], {"value": 5, "width": 2, "channels": 3})
    assert found.shape == (1, 1, 2, 3) and (found == 5).all()


# --- networks --------------------------------------------------------------------------------


def test_a_translation_follows_torch():
    """All steps of the gates, and tokens but for near ties."""
    model = translator()
    tokens = torch.randint(50, (6, 7))
    floats = import_model(model, tokens)
    network = quantise_network(CONFIG.engine, floats)
    found = execute(CONFIG.engine, network, {"input": as_codes(tokens)})
    wanted = model(tokens)
    same = [
        found[name][:, 0, :, 0] == want.numpy()
        for name, want in zip(network.outputs, wanted, strict=True)
    ]
    # What follows a different token is another translation.
    assert same[0].mean() > 0.8 and np.mean(same) > 0.5
    for name in ("lstm.gates.0", "lstm.reverse.gates.6", "lstm_3.gates.6", "lstm_4.gates.0"):
        values = floats.tensors[name].values[:, :, 0, 0].numpy()
        codes = found[name][:, 0, 0] * network.tensors[name].scale
        assert np.abs(codes - values).max() < 0.1 * np.abs(values).max(), name


def test_steps_share_their_layers():
    network = integers(translator(), torch.randint(50, (2, 7)))
    uses = {}
    for node in network.matrices:
        uses[node.layer] = uses.get(node.layer, 0) + 1
    gates = {name: n for name, n in uses.items() if "gates" in name}
    # Encoder: two ways, then three layers, over 7 tokens; decoder: four layers over 4.
    assert sorted(gates.values()) == [4, 4, 4, 4, 7, 7, 7, 7, 7]
    assert uses["decoder.query"] == uses["decoder.classifier"] == 4
    assert uses["decoder.key"] == 1
    # The additions of the decoder are one layer each, too.
    assert sorted(n for name, n in uses.items() if name.startswith("add")) == [1, 1, 4, 4]
    functions = {node.function for node in network.nodes if isinstance(node, HostNode)}
    assert functions == {"fill", "embedding", "lstm_cell", "attention", "argmax"}


@pytest.mark.parametrize("name", ["tiny", "block16", "arb16"])
@pytest.mark.parametrize("reuse_memory", [False, True])
def test_programs_between_host_nodes(name, reuse_memory, tmp_path):
    """Saved, loaded and run; every tensor is the executor's."""
    config = load_config(name)
    tokens = torch.randint(50, (2, 5))
    network = integers(translator(), tokens, config)
    path = tmp_path / "net.safetensors"
    save_network(path, compile_network(config, network, 2, reuse_memory=reuse_memory))
    compiled = load_network(path, config)
    n_programs = len(compiled.programs)
    assert n_programs > 30
    starts = [step for step in compiled.steps if not isinstance(step, HostNode)]
    assert starts == list(compiled.programs)
    codes = {"input": as_codes(tokens)}
    wanted = execute(config.engine, network, codes)
    with GoldenAccelerator(config, n_bytes=compiled.n_bytes) as core:
        found = run_network(core, compiled, codes).codes
    of_the_host = {tensor.name for tensor in network.tensors.values() if tensor.host}
    assert set(found) == of_the_host | set(compiled.remaining)
    assert (set(found) == set(wanted)) != reuse_memory and set(network.outputs) <= set(found)
    for tensor, values in found.items():
        assert np.array_equal(wanted[tensor], values), tensor


def test_masks_of_recurrent_weights_are_kept():
    """Also where the input is two tensors side by side."""
    torch.manual_seed(0)
    model = translator()
    tokens = torch.randint(50, (2, 3))
    name = "decoder.rest.1.weight_ih_l0"
    rng = np.random.default_rng(0)
    mask = rng.random((96, 48)) < 0.3
    projection = Projection(mask=mask, row_order=np.arange(96), kept_score=0.0)
    network = quantise_network(CONFIG.engine, import_model(model, tokens), {name: projection})
    layers = {n.layer for n in network.matrices if n.layer.startswith("lstm_6.gates")}
    (layer,) = (network.layers[name] for name in layers)
    codes = decode_weights(CONFIG.engine, layer)[:, :48]
    assert not codes[~mask].any() and np.count_nonzero(codes) > 0.9 * mask.sum()


class Two(nn.Module):
    """Two recurrent layers; the second reads the first's outputs, and an embedding is added."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.a, self.b = (nn.LSTM(8, 8, batch_first=True) for _ in range(2))
        self.fc = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        x = self.embed(tokens)
        y = self.b(self.a(self.b(x)[0])[0])[0]
        return self.fc(y), self.fc(y + x)


def test_one_layer_over_tensors_of_different_ranges():
    """A shared weight must not cost the wider tensor its range."""
    torch.manual_seed(1)
    model = Two().eval()
    tokens = torch.randint(9, (16, 4))
    network = integers(model, tokens)
    found = execute(CONFIG.engine, network, {"input": as_codes(tokens)})
    for name, want in zip(network.outputs, model(tokens), strict=True):
        values = found[name][:, 0] * network.tensors[name].scale
        assert np.abs(values - want.detach().numpy()).max() < 0.05 * float(
            want.detach().abs().max()
        )
    embedding = network.tensors[next(n for n in network.tensors if "embed" in n)]
    assert embedding.scale * 127 > 1.5


def test_float_input_of_a_recurrent_layer_and_of_attention():
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.lstm(x)[0]
            return functional.scaled_dot_product_attention(y, y, y)

    torch.manual_seed(0)
    model = Direct().eval()
    x = torch.randn(16, 3, 8)
    network = quantise_network(CONFIG.engine, import_model(model, x))
    tensor = network.tensors["input"]
    assert (tensor.size, tensor.channels) == ((1, 3), 8)
    codes = quantise_activations(CONFIG.engine, x.numpy()[:, None], tensor.scale, tensor.signed)
    found = execute(CONFIG.engine, network, {"input": codes})[network.outputs[0]][:, 0]
    wanted = model(x).detach().numpy()
    values = found * network.tensors[network.outputs[0]].scale
    assert np.abs(values - wanted).max() < 0.05


class Grus(nn.Module):
    """Two layers both ways, then one that begins where another one ended."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 12)
        self.a = nn.GRU(12, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.b, self.c = (nn.GRU(n, 8, batch_first=True, bias=n < 16) for n in (12, 16))
        self.fc = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        _, state = self.b(x)
        return self.fc(self.c(self.a(x)[0], state)[0])


def test_grus_follow_torch(tmp_path):
    torch.manual_seed(0)
    model, tokens = Grus().eval(), torch.randint(9, (16, 5))
    for parameter in model.parameters():
        parameter.data *= 2
    floats = import_model(model, tokens)
    network = quantise_network(CONFIG.engine, floats)
    module = IntegerNetwork(CONFIG.engine, network, floats.layouts)
    with torch.no_grad():
        wanted = model(tokens)
        assert (module(tokens) - wanted).abs().max() < 0.05 * wanted.abs().max()
    # The input's matrix is one node for all steps, the other is shared by all of them.
    gates = [node for node in network.matrices if ".gates." in node.name]
    assert len(gates) == 5 * (4 + 1 + 1) and len({node.layer for node in gates}) == 6
    assert sum(node.name.endswith(".input") for node in network.matrices) == 6
    path = tmp_path / "net.safetensors"
    save_network(path, compile_network(CONFIG, network, 2))
    codes = {"input": as_codes(tokens[:2])}
    compiled = load_network(path, CONFIG)
    with GoldenAccelerator(CONFIG, n_bytes=compiled.n_bytes) as core:
        found = run_network(core, compiled, codes).codes
    for name, values in execute(CONFIG.engine, network, codes).items():
        assert np.array_equal(found[name], values), name


def test_two_tables_of_one_weight():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(9, 8))

        def forward(self, tokens: Tensor) -> Tensor:
            one = functional.embedding(tokens, self.weight)
            return one + functional.embedding(tokens, self.weight * 2.5 + 1)

    torch.manual_seed(0)
    model, tokens = Scaled().eval(), torch.randint(9, (4, 5))
    network = integers(model, tokens)
    name = network.outputs[0]
    found = execute(CONFIG.engine, network, {"input": as_codes(tokens)})[name][:, 0]
    wanted = model(tokens).detach().numpy()
    assert np.abs(found * network.tensors[name].scale - wanted).max() < 0.2


class Other(nn.Module):
    """What is not supported, by number."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(9, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=kind != 0)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.linear = nn.Linear(8, 4)
        self.conv = nn.Conv1d(8, 8, 1)
        self.zeros = nn.Buffer(torch.zeros(1, 1, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        match self.kind:
            case 1:
                return self.lstm(x, (self.zeros + 1, self.zeros))[0]
            case 2:
                return self.lstm(x + self.embed(torch.tensor([[1], [2]])))[0]
            case 4:
                return self.lstm(x)[0].argmax(1)
            case 5:
                return self.lstm(x, self.lstm(x)[1])[0] @ x.transpose(1, 2)
            case 6:
                return functional.scaled_dot_product_attention(*[x.unsqueeze(1)] * 3)
            case 7:
                return self.linear(self.lstm(x)[1][0])
            case 8:
                h, c = self.lstm(x)[1]
                return self.lstm(x, (c, h))[0]
            case 12:
                return self.gru(x, self.lstm(x)[1][0])[0]
            case 13:
                return self.lstm(x, (self.lstm(x)[1][0], self.zeros))[0]
            case 14:
                return functional.scaled_dot_product_attention(x, x, self.zeros.expand(1, 8, 8))
            case 9:
                return self.lstm(self.conv(x.transpose(1, 2)))[0]
            case 10:
                y = self.conv(x.transpose(1, 2))
                return functional.scaled_dot_product_attention(y, y, y)
            case 11:
                return self.embed(tokens.flatten(1))
        return self.lstm(x)[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (0, "operator lstm.input in 'lstm' is not supported without batch_first, or with a "),
        (1, "operator lstm.input in 'lstm' is not supported that begins with a constant but 0"),
        (2, "operator embedding.default in 'embed' is not supported of several constant tokens"),
        (4, "operator argmax.default at the top of the model is not supported but along the "),
        (
            6,
            "operator scaled_dot_product_attention.default at the top of the model is not "
            "supported but of (samples, steps, channels) or (samples, heads, steps, channels)",
        ),
        (7, "getitem_1: the state of a recurrent layer may only go into another one"),
        (8, "operator lstm.input in 'lstm' is not supported but with all states of one "),
        (12, "operator gru.input in 'gru' is not supported but with all states of one such layer"),
        (13, "operator lstm.input in 'lstm' is not supported but with all states of one such "),
        (14, "expand must be computed from the input, not be a constant"),
        (9, "operator lstm.input in 'lstm' is not supported along an axis of pixels"),
        (
            10,
            "operator scaled_dot_product_attention.default at the top of the model is not "
            "supported but of (samples, steps, channels)",
        ),
        (11, "operator flatten.using_ints at the top of the model is not supported on what was "),
        (5, "operator matmul.default at the top of the model is not supported; supported are "),
    ],
)
def test_what_is_not_supported(kind, message):
    with raises(message):
        import_model(Other(kind).eval(), torch.randint(9, (1, 8)))


def test_tokens_that_are_none():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8)).eval()
    with raises("embedding cannot be computed: index out of range in self"):
        import_model(model, torch.full((1, 3), 12))
    with raises("input: token numbers must be of shape (samples, steps), not (4,)"):
        import_model(model, torch.zeros(4, dtype=torch.long))
    network = integers(model, torch.zeros(1, 3, dtype=torch.long))
    for token in (9, -1):
        codes = np.full((1, 1, 3, 1), token)
        with raises(f"node 'embedding': tokens must be from 0 to 8, not {token}"):
            execute(CONFIG.engine, network, {"input": codes})


def test_nothing_for_the_engine():
    network = integers(nn.Embedding(9, 8).eval(), torch.zeros(1, 3, dtype=torch.long))
    with raises("the network has nothing for the engine: no matrix"):
        compile_network(CONFIG, network)


def test_a_factor_that_no_integers_stand_for():
    class Negative(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x, scale=-1.0)

    floats = import_model(Negative().eval(), torch.randn(2, 3, 4))
    with raises("node 'scaled_dot_product_attention': output scale must be positive"):
        quantise_network(CONFIG.engine, floats)


# --- what does not fit -----------------------------------------------------------------------


def host_network(**changes) -> Network:
    """One host node from an input to an output."""
    tensors = {
        name: Codes(name=name, size=(1, 2), channels=3, scale=1.0, signed=True)
        for name in ("x", "y")
    }
    node = HostNode(
        name="node",
        function="fill",
        sources=(Source("x"),),
        targets=(Source("y"),),
        numbers={"value": 1, "width": 2, "channels": 3},
    )
    node = dataclasses.replace(node, **changes)
    return Network(
        tensors=tensors,
        nodes=(node,),
        layers={},
        inputs=("x",),
        outputs=("y",),
        tables={"floats": np.zeros(3)},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": "sing"}, "node 'node': function must be one of lstm_cell, gru_cell, "),
        ({"tables": ("t",)}, "node 'node': fill has 1 sources, 1 targets, 0 tables and the numb"),
        ({"numbers": {}}, "node 'node': fill has 1 sources, 1 targets, 0 tables and the numbers c"),
        (
            {"function": "embedding", "numbers": {}, "tables": ("t",)},
            "node 'node' names the table 't', which there is not",
        ),
        (
            {"function": "embedding", "numbers": {}, "tables": ("floats",)},
            "table 'floats' must hold integers",
        ),
        (
            {"targets": (Source("y", start=(0, -1), size=(1, 1)),)},
            "node 'node': tensor 'y' has no such pixels or channels",
        ),
        ({"sources": (Source("y"),)}, "node 'node' reads 'y' before it is written"),
        ({"targets": (Source("x"),)}, "node 'node': tensor 'x' is written twice"),
        (
            {"targets": (Source("y", start=(0, 1), size=(1, 2)),)},
            "node 'node': tensor 'y' has no such pixels or channels",
        ),
        ({"targets": (Source("y", channels=2),)}, "output 'y' is never written"),
    ],
)
def test_host_nodes_that_do_not_fit(changes, message):
    with raises(message):
        host_network(**changes)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"width": 1}, "node 'node': 'y' must be of shape (1, 1, 2, 3), not (1, 1, 1, 3)"),
        ({"value": 128}, "node 'node': codes must be within -128..127, not 128..128"),
    ],
)
def test_results_that_do_not_fit(numbers, message):
    network = host_network(numbers={"value": 1, "width": 2, "channels": 3} | numbers)
    with raises(message):
        execute(CONFIG.engine, network, {"x": np.zeros((1, 1, 2, 3), int)})


def test_the_engine_does_not_read_the_hosts_tensors():
    network = integers(translator(), torch.randint(50, (1, 2)))
    tensors = {
        name: dataclasses.replace(tensor, host=True) if name == "embedding" else tensor
        for name, tensor in network.tensors.items()
    }
    first = next(node for node in network.nodes if isinstance(node, MatrixNode))
    with raises(f"node {first.name!r}: tensor 'embedding' is the host's alone"):
        dataclasses.replace(network, tensors=tensors)
