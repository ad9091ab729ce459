"""Attention of heads, layer norms, and transformers: numbers against torch and naive loops."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gshw.config import load_config
from gshw.encoding import decode_weights
from gshw.errors import GshwError
from gshw.network.execute import execute
from gshw.network.graph import HostNode
from gshw.network.host import attention, exponentials, integer_root, layer_norm, norm_numbers
from gshw.quantise import to_fixed
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.networks.module import IntegerNetwork
from pruning.patterns.pattern import Projection
from pruning.zoo.bert import Bert, SelfAttention

ENGINE = load_config("v16x4").engine


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}")


def as_integers(model: nn.Module, x: Tensor) -> IntegerNetwork:
    floats = import_model(model, x)
    return IntegerNetwork(ENGINE, quantise_network(ENGINE, floats), floats.layouts)


# --- host functions --------------------------------------------------------------------------


def test_roots_are_exact():
    rng = np.random.default_rng(0)
    roots = np.concatenate([rng.integers(0, 1 << 31, 1000), [0, 1, (1 << 31) - 1]])
    squares = roots * roots
    assert np.array_equal(integer_root(squares), roots)
    assert np.array_equal(integer_root(squares + 2 * roots), roots)
    assert np.array_equal(integer_root(squares[roots > 0] - 1), roots[roots > 0] - 1)


@pytest.mark.parametrize(
    ("n_channels", "width", "epsilon"),
    [(1, 8, 40), (5, 8, 40), (768, 8, 40), (4096, 8, 0), (5, 16, 40), (1024, 16, 1 << 60)],
)
def test_a_layer_norm_follows_its_definition(n_channels, width, epsilon):
    """Also for the widest codes and norms, where no intermediate may overflow."""
    rng = np.random.default_rng(n_channels)
    high = (1 << (width - 1)) - 1
    codes = rng.integers(-high - 1, high + 1, (3, 1, 4, n_channels))
    codes[0, 0, 0] = np.where(np.arange(n_channels) % 2, high, -high - 1)
    codes[0, 0, 1] = 7
    gain, offset = rng.integers(-(1 << 15), 1 << 15, (2, n_channels))
    shift = 21
    numbers = norm_numbers(n_channels, width, epsilon)
    epsilon = numbers["epsilon"]
    numbers |= {"shift": shift, "low": -128, "high": 127}
    (found,) = layer_norm([codes], [gain, offset << 4], numbers)
    for place in np.ndindex(3, 1, 4):
        x = [int(code) for code in codes[place]]
        mean = sum(x) / n_channels
        variance = sum((value - mean) ** 2 for value in x) / n_channels
        deviation = math.sqrt(variance + epsilon / n_channels**3)
        for channel in range(0, n_channels, 1 + n_channels // 50):
            normal = (x[channel] - mean) / deviation if deviation else 0.0
            exact = normal * gain[channel] / 2**9 + offset[channel] / 2**17
            wanted = min(max(exact, -128), 127)
            assert abs(found[*place, channel] - wanted) < 0.75, (place, channel)


@pytest.mark.parametrize(
    ("n_channels", "width", "epsilon", "message"),
    [
        (2048, 16, 1, "a layer norm over 2048 channels of 16 bits is beyond 64-bit integers"),
        (8, 8, 1 << 61, "epsilon is far beyond the variance of any codes at this scale"),
    ],
)
def test_norms_that_64_bits_do_not_hold(n_channels, width, epsilon, message):
    with raises(message):
        norm_numbers(n_channels, width, epsilon)


def test_heads_and_causes_follow_torch():
    rng = np.random.default_rng(1)
    n_heads, n_steps = 3, 7
    queries, keys = (rng.integers(-128, 128, (2, 1, n_steps, 12)) for _ in range(2))
    values = rng.integers(-128, 128, (2, 1, n_steps, 15))
    scale = 5e-5
    multiplier, shift = to_fixed(np.array([scale * 16]))
    numbers = {"multiplier": int(multiplier[0]), "shift": int(shift[0]), "heads": n_heads}

    def heads(codes: np.ndarray) -> Tensor:
        split = codes[:, 0].reshape(2, n_steps, n_heads, -1).swapaxes(1, 2)
        return torch.from_numpy(split).double()

    for causal in (0, 1):
        sources = [queries, keys, values]
        (found,) = attention(sources, [exponentials()], numbers | {"causal": causal})
        wanted = functional.scaled_dot_product_attention(
            *map(heads, sources), is_causal=bool(causal), scale=scale
        )
        wanted = wanted.transpose(1, 2).reshape(2, n_steps, 15).numpy()
        assert np.abs(found[:, 0] - wanted).max() < 0.04 * 128
        if causal:
            # The first step sees itself only.
            assert np.array_equal(found[:, 0, 0], values[:, 0, 0])


# --- networks --------------------------------------------------------------------------------


def small_bert() -> Bert:
    torch.manual_seed(0)
    model = Bert(width=32, n_heads=4, n_inner=48, n_layers=2, n_tokens=30).eval()
    for name, parameter in model.named_parameters():
        scale = 0.3 if "LayerNorm" not in name and parameter.ndim > 1 else 0.1
        parameter.data += scale * torch.randn(parameter.shape)
    return model


def test_a_transformer_follows_torch():
    model = small_bert()
    tokens = torch.randint(30, (8, 9))
    floats = import_model(model, tokens)
    network = quantise_network(ENGINE, floats)
    codes = {"input": tokens.numpy()[:, None, :, None]}
    found = execute(ENGINE, network, codes)
    for name in ("layer_norm", "scaled_dot_product_attention", "layer_norm_2", "layer_norm_4"):
        values = floats.tensors[name].values[:, :, 0].movedim(1, 2).numpy()
        error = found[name][:, 0] * network.tensors[name].scale - values
        assert np.abs(error).mean() < 0.03 * np.abs(values).max(), name
        assert np.corrcoef(error.ravel() + values.ravel(), values.ravel())[0, 1] > 0.99, name
    outputs = as_integers(model, tokens)(tokens)
    assert torch.corrcoef(torch.stack([outputs, model(tokens)]).flatten(1))[0, 1] > 0.97


def test_what_of_a_transformer_runs_where():
    network = quantise_network(ENGINE, import_model(small_bert(), torch.randint(30, (2, 5))))
    functions = [node.function for node in network.nodes if isinstance(node, HostNode)]
    assert {name: functions.count(name) for name in functions} == {
        "embedding": 1,
        "constant": 1,
        "layer_norm": 5,
        "attention": 2,
        "table": 3,
    }
    # Two times six matrices, the sum of the embeddings, the first token, and the pooler.
    assert len(network.matrices) == 2 * 6 + 3
    assert sum(len(node.sources) == 2 for node in network.matrices) == 2 * 2 + 1


def test_an_affine_norm_may_lack_its_affine_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False)).eval()
    x = torch.randn(16, 3, 6)
    with torch.no_grad():
        assert (as_integers(model, x)(x) - model(x)).abs().max() < 0.1


class Odd(nn.Module):
    """What is not supported, by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        match self.kind:
            case "norm":
                return functional.layer_norm(y, y.shape[1:])
            case "mask":
                mask = torch.zeros(5, 5)
                return functional.scaled_dot_product_attention(y, y, y, attn_mask=mask)
            case "heads":
                return y.view(-1, 5, 2, 4).transpose(1, 2).relu()
            case "order":
                heads = y.view(-1, 5, 2, 4)
                return functional.scaled_dot_product_attention(heads, heads, heads)
        return y


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "norm",
            "operator layer_norm.default at the top of the model is not supported but over the "
            "channels, which come last",
        ),
        (
            "mask",
            "operator scaled_dot_product_attention.default at the top of the model is not "
            "supported with a mask, dropout or groups",
        ),
        ("heads", "transpose: heads may only go into attention, or become channels again"),
        (
            "order",
            "operator scaled_dot_product_attention.default at the top of the model is not "
            "supported but of (samples, steps, channels) or (samples, heads, steps, channels)",
        ),
    ],
)
def test_what_is_not_supported(kind, message):
    with raises(message):
        import_model(Odd(kind).eval(), torch.randn(2, 5, 8))


def test_a_gain_that_is_not_finite():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).eval()
    floats = import_model(model, torch.randn(2, 3, 4))
    floats.nodes[-1].gain[0] = np.nan
    with raises("node 'layer_norm': gain and offset must be finite"):
        quantise_network(ENGINE, floats)


@pytest.mark.parametrize("n_heads", [1, 2, 8])
def test_any_number_of_heads(n_heads):
    torch.manual_seed(0)
    model = SelfAttention(8, n_heads).eval()
    x = torch.randn(16, 5, 8)
    with torch.no_grad():
        assert (as_integers(model, x)(x) - model(x)).abs().max() < 0.1 * model(x).abs().max()


class Placed(nn.Module):
    """Positions as GPT has them, and as one row per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 8), nn.Embedding(6, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        x = self.words(tokens) + self.places(places)
        return self.fc(x + self.places(places[None].expand(len(tokens), -1)))


@pytest.mark.parametrize("n_samples", [1, 3])
def test_constant_positions(n_samples):
    torch.manual_seed(0)
    model, tokens = Placed().eval(), torch.randint(9, (n_samples, 6))
    with torch.no_grad():
        wanted = model(tokens)
        found = as_integers(model, tokens)(tokens)
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()


class Translator(nn.Module):
    """Torch's own transformer: an encoder's layer, and a decoder's that reads it, causal."""

    def __init__(self) -> None:
        super().__init__()
        options = {"dim_feedforward": 24, "batch_first": True, "activation": "gelu"}
        self.encoder = nn.TransformerEncoderLayer(16, 4, **options)
        self.decoder = nn.TransformerDecoderLayer(16, 2, norm_first=True, **options)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(7))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.encoder(x)
        return self.decoder(x, memory, self.mask, tgt_is_causal=True)


def test_torchs_own_transformer():
    """And its modules are as before."""
    torch.manual_seed(0)
    model = Translator().eval().requires_grad_(False)
    x = torch.randn(8, 7, 16)
    wanted = model(x)
    floats = import_model(model, x)
    attention = [node for node in floats.nodes if getattr(node, "function", "") == "attention"]
    assert [node.numbers["causal"] for node in attention] == [0, 1, 0]
    # Self-attention is one matrix, of which the host reads three parts.
    assert [len({source.tensor for source in node.sources}) for node in attention] == [1, 1, 3]
    network = quantise_network(ENGINE, floats)
    found = IntegerNetwork(ENGINE, network, floats.layouts)(x)
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert type(model.encoder.self_attn) is nn.MultiheadAttention
    assert torch.equal(model(x), wanted) and torch.backends.mha.get_fastpath_enabled()


class Slices(nn.Module):
    """Rows of one weight, counted from both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        first = functional.linear(x, self.weight[:4])
        return functional.linear(x, self.weight[-8:-4]) + first.relu()


def test_masks_of_rows_from_the_end():
    torch.manual_seed(0)
    mask = np.random.default_rng(0).random((12, 8)) < 0.4
    projection = Projection(mask=mask, row_order=np.arange(12), kept_score=0.0)
    floats = import_model(Slices().eval(), torch.randn(4, 3, 8))
    network = quantise_network(ENGINE, floats, {"weight": projection})
    first, second = (decode_weights(ENGINE, layer)[:, :8] for layer in network.layers.values())
    for codes, rows in ((first, slice(0, 4)), (second, slice(4, 8))):
        assert not codes[~mask[rows]].any() and codes[mask[rows]].any()


def test_masks_of_packed_projections():
    """Of one matrix in self-attention, of three parts of its rows in another's."""
    torch.manual_seed(0)
    model = Translator().eval()
    rng = np.random.default_rng(0)
    masks = {
        f"{name}.in_proj_weight": Projection(
            mask=rng.random((48, 16)) < 0.3, row_order=rng.permutation(48), kept_score=0.0
        )
        for name in ("encoder.self_attn", "decoder.multihead_attn")
    }
    network = quantise_network(ENGINE, import_model(model, torch.randn(8, 7, 16)), masks)
    for key, projection in masks.items():
        codes = np.concatenate(
            [
                decode_weights(ENGINE, layer)
                for name, layer in network.layers.items()
                if name.split("#")[0] == key
            ]
        )
        assert codes.shape == (48, 16) and not codes[~projection.mask].any()
        assert np.count_nonzero(codes) > 0.9 * projection.mask.sum()


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"batch_first": False}, {}, "must be made with batch_first=True"),
        ({"kdim": 6}, {}, "must have keys and values as wide as queries"),
        ({"add_bias_kv": True}, {}, "must not add biases or zeros to keys"),
        ({}, {"attn_mask": torch.zeros(5, 5)}, "must not have a mask, but a causal one"),
    ],
)
def test_attention_that_cannot_be_followed(options, arguments, message):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options_ = {"batch_first": True, "vdim": options.get("kdim")} | options
            self.attention = nn.MultiheadAttention(8, 2, **options_)

        def forward(self, x: Tensor) -> Tensor:
            y = x[..., : options.get("kdim", 8)]
            return self.attention(x, y, y, **arguments)[0]

    with raises(f"torch.export cannot follow Attention: MultiheadAttention {message}"):
        import_model(Attention().eval(), torch.randn(2, 5, 8))
