"""torch networks through torch.export: structure, numbers, what is refused."""

import dataclasses
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
from gshw.network.graph import HostNode, Network
from gshw.quantise import quantise_activations
from pruning.networks.affine import Affine, Term, Window, added, skip
from pruning.networks.importer import import_model
from pruning.networks.integers import quantise_network
from pruning.networks.module import IntegerNetwork
from pruning.patterns.pattern import Projection
from tests.test_network import compare

ENGINE = load_config("v16x4m").engine


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}")


class Block(nn.Module):
    """A basic residual block, with a shortcut of its own where shapes change."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride > 1 or n_in != n_out:
            self.down = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class Residual(nn.Module):
    """Stem, three blocks, a depthwise layer with ReLU6, mean and classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1))
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(self.blocks(self.stem(x))))


class Signed(nn.Module):
    """A bottleneck without a clamp whose sum is signed, concatenation, and a flatten of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 4, 1)
        self.late = nn.Conv2d(8, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 5 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(x, 2)
        y = self.project(nn.functional.hardtanh(self.expand(x), 0.0, 6.0)) + x
        both = torch.cat([y, torch.relu(y)], dim=1)
        return self.fc(torch.flatten(self.late(both), 1))


class Sequence(nn.Module):
    """Conv1d with a residual of a point convolution, then a linear layer on every time step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 10, 5, padding=4, dilation=2)
        self.side = nn.Conv1d(6, 10, 1)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x) + self.side(x))
        return self.fc(y.transpose(1, 2))


def trained(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Batch norms that have seen something."""
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(16, *shape))
    return model.eval()


class Dilated(nn.Module):
    """Windows with gaps: of 18 pixels a fold, of 17 none; a skip around one; maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(4, 9, 5, padding=6, dilation=3)
        self.b = nn.Conv1d(9, 9, 3, padding=3, dilation=3)
        self.c = nn.Conv1d(9, 5, 2)
        self.d = nn.Conv1d(5, 5, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        y = functional.max_pool1d((self.b(y) + y).relu(), 3, 1, 1)
        return self.d(self.c(y).relu()).transpose(1, 2)


class Pooling(nn.Module):
    """Maxima after a ReLU, with padding, and before one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.b = nn.Sequential(nn.Conv2d(9, 20, 3), nn.MaxPool2d((2, 1)), nn.ReLU())
        self.c = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(20, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x))).permute(0, 2, 3, 1)


class Gated(nn.Module):
    """Functions by table and a gate per channel, as MobileNetV3 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Hardswish())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.GELU(), nn.Conv2d(4, 12, 1)
        )
        self.head = nn.Sequential(nn.Conv2d(12, 6, 3), nn.SiLU(), nn.Conv2d(6, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y * self.gate(y).sigmoid()
        return self.head(y).tanh().permute(0, 2, 3, 1)


class Constants(nn.Module):
    """Constants of every kind, differences, and parts of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.places = nn.Buffer(torch.randn(8, 7))
        self.channels = nn.Buffer(1 + torch.rand(6, 1, 1))
        self.c = nn.Conv1d(6, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = 2.0 - self.a(x) * self.channels / 3 + self.places
        y = torch.sub(y.relu(), self.b(x), alpha=0.5) + 0.25
        return self.c(y[:, :, 1:7:2, :][:, :, 1] - y[:, :, -1]).transpose(1, 2)


CASES = {
    "constants": (Constants, (3, 8, 7)),
    "residual": (Residual, (3, 12, 10)),
    "signed": (Signed, (4, 10, 10)),
    "sequence": (Sequence, (6, 17)),
    "dilated": (Dilated, (4, 18)),
    "pooling": (Pooling, (3, 15, 13)),
    "gated": (Gated, (3, 9, 8)),
}


def channels_last(x: Tensor) -> np.ndarray:
    """(samples, channels, pixels...) as (samples, height, width, channels)."""
    values = np.moveaxis(x.detach().numpy(), 1, -1)
    return values[:, None] if values.ndim == 3 else values


def input_codes(network: Network, x: Tensor) -> np.ndarray:
    tensor = network.tensors["input"]
    return quantise_activations(ENGINE, channels_last(x), tensor.scale, tensor.signed)


def integers(model: nn.Module, x: Tensor) -> tuple[Network, dict[str, np.ndarray]]:
    """The network in integers, and its tensors as float values."""
    network = quantise_network(ENGINE, import_model(model, x))
    found = execute(ENGINE, network, {"input": input_codes(network, x)})
    return network, {name: found[name] * network.tensors[name].scale for name in found}


@pytest.mark.parametrize("case", CASES)
def test_integers_follow_the_float_model(case):
    """Within what 8-bit codes can show, over the whole network."""
    torch.manual_seed(0)
    build, shape = CASES[case]
    model = trained(build(), shape)
    x = torch.randn(8, *shape)
    network, values = integers(model, x)
    compare(ENGINE, network, "input", input_codes(network, x))
    wanted = model(x).detach().numpy()
    found = values[network.outputs[0]].reshape(wanted.shape)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.999


def test_blocks_become_single_nodes():
    torch.manual_seed(0)
    model = trained(Residual(), (3, 12, 10))
    network = quantise_network(ENGINE, import_model(model, torch.randn(4, 3, 12, 10)))
    reads = {n.name: [(s.tensor, s.step) for s in n.sources] for n in network.nodes}
    assert reads["blocks.0.conv2"] == [("blocks.0.conv1", (1, 1)), ("stem.0", (1, 1))]
    assert reads["blocks.1.conv2"] == [("blocks.1.conv1", (1, 1)), ("blocks.0.conv2", (2, 2))]
    assert len(network.nodes) == 10
    assert network.layers["stem.0"].geometry.unfold
    # ReLU6 saturates at the code nearest to 6 or at the highest one.
    stage = network.layers["depthwise.0"].requantisation
    scale = network.tensors["depthwise.0"].scale
    assert stage.low == 0 and stage.high == min(255, round(6 / scale))


def test_windows_with_gaps_are_folded_where_they_can():
    network, _ = integers(Dilated().eval(), torch.randn(4, 4, 18))
    assert [node.fold for node in network.nodes] == [3, 3, 1, 1, 1]
    gaps = [network.layers[node.layer].geometry.dilation[1] for node in network.nodes]
    assert gaps == [1, 1, 1, 1, 2]


def test_points_that_fill_the_banks_are_summed_apart():
    """The window becomes a tensor of its own, and the numbers stay what they were."""
    torch.manual_seed(0)
    block = Block(16, 16, 1)
    x = torch.randn(8, 16, 10, 10)
    model = trained(block, (16, 10, 10))
    small = dataclasses.replace(ENGINE, bank_depth=32)
    whole, apart = (quantise_network(e, import_model(model, x)) for e in (ENGINE, small))
    assert [node.name for node in whole.nodes] == ["conv1", "conv2"]
    assert [node.name for node in apart.nodes] == ["conv1", "conv2[window]", "conv2"]
    sources = [source.tensor for source in apart.nodes[-1].sources]
    assert sources == ["conv2[window]", "input"]
    found = []
    for engine, network in ((ENGINE, whole), (small, apart)):
        tensor = network.tensors["input"]
        codes = quantise_activations(engine, channels_last(x), tensor.scale, tensor.signed)
        values = execute(engine, network, {"input": codes})[network.outputs[0]]
        found.append(values * network.tensors[network.outputs[0]].scale)
    assert np.abs(found[0] - found[1]).max() < 0.03 * np.abs(found[0]).max()


def test_a_skip_is_exact():
    """With a convolution of zeros, the sum is the skip itself, code by code."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + x

    torch.manual_seed(0)
    model = Plain().eval()
    x = torch.randn(4, 6, 5, 5)
    network = quantise_network(ENGINE, import_model(model, x))
    layer = network.layers["conv"]
    skip_part = layer.geometry.parts[1]
    assert skip_part.repeats > 1
    ratio = network.tensors["input"].scale / network.tensors["conv"].scale
    stage = layer.requantisation
    codes = decode_weights(ENGINE, layer).reshape(6, 9, -1)[:, :, 6:]
    sums = codes.sum(axis=(1, 2))
    scale = stage.multiplier / 2.0**stage.shift
    assert np.allclose(sums * scale, ratio, rtol=2**-15)


def test_a_wide_mean_is_cut_into_channels():
    """Windows of many words are split by channels, into one tensor."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    x = torch.randn(3, 100, 16, 8)
    network, values = integers(model, x)
    pieces = [node for node in network.nodes if node.output != "relu"]
    starts = [node.first for node in pieces]
    assert len(starts) > 1 and starts[0] == 0 and all(start % 16 == 0 for start in starts)
    assert [node.sources[0].first for node in pieces] == starts
    assert {node.output for node in pieces} == set(network.outputs)
    wanted = model(x).numpy()[:, :, 0, 0]
    assert np.abs(values[network.outputs[0]][:, 0, 0] - wanted).max() < 0.02 * wanted.max()


def test_masks_are_kept():
    torch.manual_seed(0)
    model = trained(Residual(), (3, 12, 10))
    mask = np.random.default_rng(0).random((8, 72)) < 0.2
    order = np.random.default_rng(1).permutation(8)
    projection = Projection(mask=mask, row_order=order, kept_score=0.0)
    x = torch.randn(4, 3, 12, 10)
    engine = load_config("h16").engine
    network = quantise_network(engine, import_model(model, x), {"blocks.0.conv1": projection})
    layer = network.layers["blocks.0.conv1"]
    assert layer.row.tolist() == order.tolist()
    weights = decode_weights(engine, layer)
    assert weights[mask].any() and not weights[~mask].any()


def test_a_tensor_with_two_readers_is_computed_once():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) + self.c(torch.relu(y))

    torch.manual_seed(0)
    network, _ = integers(Shared().eval(), torch.randn(4, 4, 3, 3))
    assert [node.name for node in network.nodes] == ["a", "relu", "b"]
    assert all(tensor.signed for tensor in network.tensors.values())


def test_points_that_have_no_tap_in_a_window():
    """A strided window and an unstrided point cannot be one node."""
    weight = np.ones((2, 2, 3, 3))
    strided = Window(kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    conv = Affine(
        terms=(Term(tensor="x", channels=2, weight=weight, window=strided),), bias=np.zeros(2)
    )
    sizes = {"x": (8, 8), "y": (4, 4)}
    assert added(conv, skip("y", 2), sizes) is None
    half = Affine(
        terms=(Term(tensor="x", channels=2, weight=weight[:, :, :1, :1], step=(2, 2)),),
        bias=np.zeros(2),
    )
    total = added(conv, half, sizes)
    assert total is not None and total.terms[1].step == (1, 1)
    assert total.terms[1].tap == 4


# --- bad input -----------------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Softplus())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_an_unsupported_operator_is_named_with_its_place():
    with raises("operator softplus.default in 'inner.1' is not supported; supported are "):
        import_model(Odd().eval(), torch.randn(2, 3, 4, 4))


def test_maxima_of_what_may_be_negative():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2)).eval()
    with raises(
        "operator max_pool2d.default in '1' is not supported of values that may be negative, but "
        "with a ReLU before or after it; supported are "
    ):
        import_model(model, torch.randn(2, 3, 4, 4))


def test_maxima_of_windows_beyond_the_map():
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)).eval()
    with raises("operator max_pool2d.default in '1' is not supported with ceil_mode; supported "):
        import_model(model, torch.randn(2, 3, 5, 5))


def test_maxima_need_their_engine():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    network = import_model(model, torch.randn(2, 3, 4, 4))
    with raises("layer 'max_pool2d': a maximum needs max_pooling = true in the config"):
        quantise_network(load_config("v16x4").engine, network)


@pytest.mark.parametrize("n_tables", [1, 2, 8])
def test_functions_join_the_node_before(n_tables):
    """On an engine with tables: the same numbers, with less on the host."""
    torch.manual_seed(0)
    model, x = trained(Gated(), (3, 9, 8)), torch.randn(4, 3, 9, 8)
    floats = import_model(model, x)
    network = quantise_network(ENGINE, floats)
    engine = dataclasses.replace(ENGINE, activation_tables=n_tables)
    joined = quantise_network(engine, floats)
    assert [n.function for n in network.nodes if isinstance(n, HostNode)] == [
        "table",
        "table",
        "table",
        "multiply",
        "table",
        "table",
    ]
    assert [n.function for n in joined.nodes if isinstance(n, HostNode)] == ["multiply"]
    codes = input_codes(network, x)
    wanted = execute(ENGINE, network, {"input": codes})
    found = execute(engine, joined, {"input": codes})
    assert len(wanted) - len(found) == 5 and joined.outputs == network.outputs
    for name, values in found.items():
        assert np.array_equal(values, wanted[name]), name
    compare(engine, joined, "input", codes)


def test_functions_that_stay_on_the_host():
    """Of what has another reader, is an output, or comes from the host."""

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.a(x)
            z = y.sigmoid()
            last = self.b(z)
            return last, last.tanh(), (self.b(y * z).sigmoid()).tanh()

    engine = dataclasses.replace(ENGINE, activation_tables=4)
    network = quantise_network(engine, import_model(Several().eval(), torch.randn(2, 3, 4, 4)))
    tables = [node for node in network.nodes if isinstance(node, HostNode)]
    assert [node.function for node in tables] == ["table", "table", "multiply", "table"]
    assert [node.name for node in tables] == ["sigmoid", "tanh", "mul", "tanh_1"]


class Arithmetic(nn.Module):
    """What cannot be computed, by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        match self.kind:
            case "channel":
                return y * self.b(x)
            case "pixels":
                return y * torch.arange(5.0)
            case "samples":
                return y + torch.arange(2.0)[:, None, None, None]
            case "divide":
                return y / self.a(x)
            case "wider":
                return y[:, :, :1] + torch.zeros(5, 5)
            case "nothing":
                return y[:, :, 3:2]
            case "sample":
                return y[0]
            case "channels":
                return y[:, ::2]
        return y


@pytest.mark.parametrize(
    ("kind", "operator", "message"),
    [
        ("channel", "mul.Tensor", " of two shapes"),
        ("pixels", "mul.Tensor", " by a constant that differs between pixels"),
        ("samples", "add.Tensor", " with a constant that differs between samples"),
        ("divide", "div.Tensor", " by anything but a constant"),
        ("wider", "add.Tensor", " of two shapes"),
        ("channels", "slice.Tensor", " of single channels"),
        ("nothing", "slice.Tensor", " of nothing"),
        ("sample", "select.int", " along the samples, or of what was flattened"),
    ],
)
def test_arithmetic_that_is_not_supported(kind, operator, message):
    with raises(f"operator {operator} at the top of the model is not supported{message}"):
        import_model(Arithmetic(kind).eval(), torch.randn(2, 3, 5, 5))


def test_constants_keep_their_rare_values():
    """They are known exactly, so no percentile cuts them."""

    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(1, 1, 1)
            self.constant = nn.Buffer(torch.zeros(120, 120))
            self.constant[60, 60] = 4.0

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).relu() + self.constant

    x = torch.randn(1, 1, 120, 120)
    network = quantise_network(ENGINE, import_model(Rare().eval(), x))
    found = execute(ENGINE, network, {"input": input_codes(network, x)})
    name = next(name for name in found if name.endswith(".constant"))
    assert found[name].max() * network.tensors[name].scale == pytest.approx(4.0, rel=0.01)


def test_constants_of_flat_tensors():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
            self.factors = nn.Buffer(torch.rand(8) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a((x - 0.5) / 0.3) * self.factors + self.factors) * 2.0 + 1.0

    torch.manual_seed(0)
    model, x = Flat().eval(), torch.randn(32, 6)
    floats = import_model(model, x)
    network = quantise_network(ENGINE, floats)
    with torch.no_grad():
        wanted = model(x)
        found = IntegerNetwork(ENGINE, network, floats.layouts)(x)
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert len(network.nodes) <= 3


def test_functions_of_what_was_flattened():
    flat = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Sigmoid()).eval()
    with raises("operator sigmoid.default in '2' is not supported on what was flattened"):
        import_model(flat, torch.randn(2, 3, 5, 5))


def test_weights_that_one_array_holds_are_several_layers():
    """Pieces of a convolution of groups, and one convolution at two places."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(64, 8, 5, groups=2, padding=2, bias=False)
            self.b = nn.Conv2d(3, 3, 3, padding=1)
            self.c = nn.Conv2d(3, 64, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(self.c(self.b(self.b(x))))
            return functional.max_pool2d(y.relu(), 1, 2).permute(0, 2, 3, 1)

    torch.manual_seed(0)
    model = Shared().eval()
    x = torch.randn(4, 3, 6, 6)
    engine = dataclasses.replace(load_config("tiny").engine, max_pooling=True)
    network = quantise_network(engine, import_model(model, x))
    names = [node.layer for node in network.nodes]
    assert len(set(names)) == len(names) and len([n for n in names if n.startswith("a")]) > 1
    codes = input_codes(network, x)
    compare(engine, network, "input", codes)
    name = network.outputs[0]
    found = execute(engine, network, {"input": codes})[name] * network.tensors[name].scale
    wanted = model(x).detach().numpy()
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_model_in_training():
    with raises("the model must be in evaluation mode: call eval() first"):
        import_model(Odd(), torch.randn(2, 3, 4, 4))


def test_a_model_that_cannot_be_exported():
    class Dynamic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: int(x.sum())]

    with raises("torch.export cannot follow Dynamic: "):
        import_model(Dynamic().eval(), torch.randn(2, 3, 4, 4))


def test_weights_that_are_not_finite():
    model = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    float_network = import_model(model, torch.randn(2, 3, 4, 4))
    float_network.nodes[0].affine.terms[0].weight[1] = np.nan
    with raises("node '0': weights must be finite"):
        quantise_network(ENGINE, float_network)


def test_masks_of_nothing_or_of_another_shape():
    model = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    network = import_model(model, torch.randn(2, 3, 4, 4))
    for name, shape, message in (
        ("x", (3, 3), "no layer 'x' for the mask of that name"),
        ("0", (3, 4), "layer '0': mask must have 9 elements, not 12"),
    ):
        mask = Projection(mask=np.ones(shape, bool), row_order=np.arange(3), kept_score=0.0)
        with raises(message):
            quantise_network(ENGINE, network, {name: mask})
