"""From a torch model to integers: what is found, folded, reordered, quantised, and refused."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from gshw.config import EngineConfig, load_config
from gshw.encoding import decode_weights
from gshw.errors import GshwError
from gshw.geometry import LayerKind
from gshw.golden import run_layer
from gshw.quantise import RangeMethod, activation_range, quantise_activations
from gshw.simulate import chain_input
from pruning.integers.ranges import calibrate
from pruning.models.export import export, export_matrices, folded
from pruning.models.layers import analyse, check_supported
from pruning.models.masking import set_mask, weight_mask
from pruning.models.weights import find_weights
from pruning.patterns.gs import Gs
from pruning.patterns.neighbours import Block, Unstructured
from pruning.patterns.pattern import Pattern, Projection, ScoredMatrix
from tests.strategies import ENGINES

TINY = load_config("tiny").engine
V16 = load_config("v16x4").engine
BLOCK = load_config("block16").engine


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Normal weights, and batch norms with statistics and gains that matter, negative ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, value in [*module.named_parameters(recurse=False)]:
                scale = 1.0 if name == "bias" else value[0].numel() ** -0.5
                value.copy_(torch.randn(value.shape, generator=generator) * scale)
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                shape = module.running_mean.shape
                module.running_mean.copy_(torch.randn(shape, generator=generator))
                module.running_var.copy_(torch.rand(shape, generator=generator) * 3 + 0.05)
    return model.eval()


def samples(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    """Convolution, batch norm, ReLU, flatten, two linear layers: one chain."""
    return seeded(
        nn.Sequential(
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 9, 40),
            nn.ReLU(),
            nn.Linear(40, 6),
        )
    )


def masked(
    pattern: Pattern, config: EngineConfig, model: nn.Module, x: torch.Tensor, sparsity: float
) -> dict[str, Projection]:
    """Mask by magnitude every weight that the pattern takes; its projections by name."""
    projections = {}
    for weight in find_weights(config, model, x)[0]:
        if pattern.refusal(weight.shape[0], weight.geometry) is None:
            scores = np.abs(weight.to_matrix(weight.dense))
            matrix = ScoredMatrix(name=weight.name, scores=scores, geometry=weight.geometry)
            found = projections[weight.name] = pattern.project(matrix, sparsity)
            set_mask(weight.module, weight.from_matrix(found.mask))
    return projections


class Functional(nn.Module):
    """ReLUs and flattening as calls and methods, one layer after a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 8, 5, padding=2, dilation=1)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Conv1d(8, 6, 3, stride=2)
        self.third = nn.Linear(6 * 3, 5)
        self.fourth = nn.Linear(5, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        x = functional.max_pool1d(x, 2)
        x = self.second(x).relu()
        x = x.view(x.size(0), -1)
        x = torch.tanh(self.third(x))
        return self.fourth(x)


# --- analyse -------------------------------------------------------------------------------------


def test_sequential():
    layers = analyse(V16, network(), samples(8, 16, 6, 5))
    assert [layer.name for layer in layers] == ["0", "4", "6"]
    assert [layer.source for layer in layers] == [None, "0", "4"]
    assert [layer.relu for layer in layers] == [True, True, False]
    assert [layer.batch_norm is not None for layer in layers] == [True, False, False]
    assert [layer.input_size for layer in layers] == [(6, 5), (1, 1), (1, 1)]
    first = layers[0].geometry
    assert (first.kind, first.in_channels, first.unfold) == (LayerKind.CONV2D, 16, False)
    assert (first.kernel, first.stride, first.padding) == ((3, 3), (2, 2), (1, 1))
    assert [layer.geometry.n_columns for layer in layers] == [144, 216, 40]
    assert layers[0].calibration["input_low"] < 0 <= layers[1].calibration["input_low"]


def test_functional_model():
    layers = {layer.name: layer for layer in analyse(TINY, seeded(Functional()), samples(4, 4, 14))}
    assert list(layers) == ["first", "second", "third", "fourth"]
    assert [layer.relu for layer in layers.values()] == [True, True, False, False]
    assert [layer.source for layer in layers.values()] == [None, None, "second", None]
    assert layers["first"].batch_norm is not None
    assert layers["first"].input_size == (1, 14)
    geometry = layers["second"].geometry
    assert (geometry.kind, geometry.kernel, geometry.stride) == (LayerKind.CONV1D, (1, 3), (1, 2))


def test_calibration_is_the_range_of_input_and_output():
    """The 99.99th percentile, which for few values is nearly the largest magnitude."""
    model, x = network(), samples(8, 16, 6, 5)
    layers = analyse(V16, model, x)
    with torch.no_grad():
        after = model[:3](x)
    assert layers[0].calibration["input_low"] == x.min().item()
    for key, values in (("input", x), ("output", after)):
        largest = values.abs().max().item()
        assert 0.9 * largest < layers[0].calibration[key] <= largest
    assert layers[1].calibration["input"] == layers[0].calibration["output"]


def test_a_residual_ends_the_chain():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            y = self.a(x)
            return self.b(torch.relu(y)) + y

    layers = analyse(TINY, seeded(Residual()), samples(4, 8))
    assert [(layer.relu, layer.source) for layer in layers] == [(False, None), (False, None)]


def test_few_channels_are_unfolded():
    """3 channels on 16 banks: the window becomes one pixel; on 4 banks it stays."""
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 7)))
    assert analyse(V16, model, samples(2, 3, 9, 9))[0].geometry.unfold
    assert not analyse(TINY, model, samples(2, 3, 9, 9))[0].geometry.unfold


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
def test_padding_names():
    model = nn.Sequential(
        nn.Conv2d(4, 4, (3, 5), padding="same", dilation=2), nn.Conv2d(4, 4, 3, padding="valid")
    )
    same, valid = analyse(TINY, model, samples(1, 4, 8, 8))
    assert (same.geometry.padding, valid.geometry.padding) == ((2, 4), (0, 0))
    with raises("layer '0': padding 'same' must be symmetric (odd kernels)"):
        analyse(TINY, nn.Sequential(nn.Conv2d(4, 4, 2, padding="same")), samples(1, 4, 8, 8))


def test_matrix_and_back():
    """Columns are (kernel row, kernel column, channel); flattened maps are (y, x, channel)."""
    layers = analyse(V16, network(), samples(8, 16, 6, 5))
    conv = layers[0].module.weight.detach()
    matrix = layers[0].to_matrix(conv)
    assert matrix[5, (1 * 3 + 2) * 16 + 7] == conv[5, 7, 1, 2]
    linear = layers[1].module.weight.detach()
    flat = layers[1].to_matrix(linear)
    assert flat[3, (2 * 3 + 1) * 24 + 10] == linear[3, 10 * 9 + 2 * 3 + 1]
    for layer in layers:
        weight = layer.module.weight.detach()
        assert torch.equal(layer.from_matrix(layer.to_matrix(weight)), weight)


# --- batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_equals_the_model(affine, bias):
    """Convolution and batch norm against one convolution, in double precision."""
    model = seeded(
        nn.Sequential(nn.Conv2d(5, 7, 3, padding=1, bias=bias), nn.BatchNorm2d(7, affine=affine))
    ).double()
    x = samples(3, 5, 6, 6).double()
    (layer,) = analyse(TINY, model, x)
    weights, offset = folded(layer)
    assert weights.dtype == offset.dtype == np.float64
    found = functional.conv2d(
        x, layer.from_matrix(weights), torch.from_numpy(offset), padding=1
    ).detach()
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-12, atol=1e-12)


def test_batch_norm_without_statistics():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, track_running_stats=False))
    layers = analyse(TINY, model, samples(6, 8))
    with raises("layer '0': a batch norm without running statistics"):
        export(TINY, layers, {})


# --- integers against floats ---------------------------------------------------------------------


def float_rows(layer, x: torch.Tensor) -> torch.Tensor:
    """The float layer as torch has it, batch norm and ReLU included, channels last."""
    with torch.no_grad():
        y = layer.module.double()(x)
        if layer.batch_norm is not None:
            y = layer.batch_norm.double()(y)
        y = torch.relu(y) if layer.relu else y
    return torch.movedim(y, 1, -1)


@pytest.mark.parametrize("config", [V16, TINY, BLOCK], ids=["v16x4", "tiny", "block16"])
@pytest.mark.parametrize("sparsity", [None, 0.75])
def test_codes_are_within_the_quantisation_error(config, sparsity):
    """Every layer on its own: half an output code, half a weight code per input code, the scale."""
    model, x = network(), samples(32, 16, 6, 5)
    projections = {}
    if sparsity is not None:
        projections = masked(Gs(config=config), config, model, x, sparsity)
    layers = analyse(config, model, x)
    encoded = export(config, layers, projections)
    assert encoded.chain == ("0", "4", "6")
    codes = quantise_activations(
        config, x.movedim(1, -1).numpy(), encoded.layers["0"].input_scale, True
    )
    for layer in layers:
        target = encoded.layers[layer.name]
        codes = chain_input(target, codes)
        found = run_layer(config, target, codes)
        real = torch.from_numpy(codes * target.input_scale)
        if layer.name == "0":
            real = real.movedim(-1, 1)
        elif layer.name == "4":
            # Torch flattens (channel, y, x), the engine (y, x, channel).
            real = real.reshape(-1, 9, 24).transpose(1, 2)
        if layer.name != "0":
            real = real.reshape(len(codes), -1)
        wanted = float_rows(layer, real).numpy().reshape(found.shape) / target.output_scale
        out = target.requantisation
        ratio = out.multiplier / 2.0**out.shift
        window = np.abs(codes).sum(axis=-1).max() * (9 if layer.name == "0" else 1)
        bound = 0.5 + (0.5 * window + 0.5) * ratio + np.abs(wanted) * 2.0**-16 + 1e-6
        error = np.abs(found - np.clip(wanted, out.low, out.high))
        assert (error <= bound).all()
        assert error.mean() < 1.0
        model.float()
        codes = found


@pytest.mark.parametrize("config", [V16, TINY], ids=["v16x4", "tiny"])
@pytest.mark.parametrize("sparsity", [None, 0.75])
def test_integer_network_agrees_with_the_float_network(config, sparsity):
    """Argmax of the golden chain against torch, on fresh data; the last bias balances classes."""
    model, x = network(), samples(64, 16, 6, 5)
    projections = {}
    if sparsity is not None:
        projections = masked(Gs(config=config), config, model, x, sparsity)
    with torch.no_grad():
        model[6].bias -= model(x).mean(dim=0)
    encoded = export(config, analyse(config, model, x), projections)
    fresh = samples(200, 16, 6, 5, seed=9)
    codes = quantise_activations(
        config, fresh.movedim(1, -1).numpy(), encoded.layers["0"].input_scale, True
    )
    for layer in encoded.layers.values():
        codes = run_layer(config, layer, chain_input(layer, codes))
    with torch.no_grad():
        wanted = model(fresh)
    found = codes.reshape(200, 6)
    assert (found.argmax(axis=1) == wanted.argmax(dim=1).numpy()).mean() > 0.93
    assert len(set(found.argmax(axis=1).tolist())) > 2
    scale = encoded.layers["6"].output_scale
    spread = wanted.abs().max().item()
    assert np.abs(found * scale - wanted.numpy()).mean() < 0.03 * spread


@pytest.mark.parametrize("kind", ["gs", "unstructured", "block"])
@pytest.mark.parametrize("config", [V16, BLOCK], ids=["v16x4", "block16"])
def test_zeros_outside_the_mask(config, kind):
    """Exactly zero in the integers, with batch norm folded and after more training."""
    model, x = network(), samples(16, 16, 6, 5)
    layers = analyse(config, model, x)
    patterns = {"gs": Gs(config=config), "unstructured": Unstructured(), "block": Block()}
    projections = masked(patterns[kind], config, model, x, 0.8)
    steps = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        model(x).square().mean().backward()
        steps.step()
    encoded = export(config, analyse(config, model, x), projections)
    assert {"0", "4"} <= set(projections)
    for layer in layers:
        if layer.name not in projections:
            continue
        weights = decode_weights(config, encoded.layers[layer.name])
        mask = projections[layer.name].mask
        assert not weights[~mask].any()
        assert np.count_nonzero(weights) > 0.5 * mask.sum()
        held = layer.to_matrix(weight_mask(layer.module).mask)
        np.testing.assert_array_equal(held, mask)


def test_projections_by_name():
    """A plain mapping; the mask is the truth, and its zeros and slots are exactly those encoded."""
    model, x = network(), samples(16, 16, 6, 5)
    layers = analyse(V16, model, x)
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 216), dtype=bool)
    for row in mask:
        row[rng.permutation(216)[:20]] = True
    order = rng.permutation(40)
    projection = Projection(mask=mask, row_order=order, kept_score=1.0)
    with torch.no_grad():
        # Kept weights that are zero keep their slots; others that are not are dropped.
        kept = layers[1].from_matrix(mask).nonzero()[7:12]
        model[4].weight[kept[:, 0], kept[:, 1]] = 0.0
    layer = export(V16, layers, {"4": projection}).layers["4"]
    codes = decode_weights(V16, layer)
    assert not codes[~mask].any()
    assert mask.sum() - np.count_nonzero(codes) >= 5
    assert layer.row[layer.row >= 0].size == 40
    bundles = layer.row.reshape(-1, V16.rows)[:2]
    assert [set(b) for b in bundles] == [set(order[:16]), set(order[16:32])]
    with torch.no_grad():
        model[4].weight.fill_(0.5)
    assert export(V16, layers, {"4": projection}).layers["4"].n_groups == layer.n_groups


def test_projections_that_do_not_fit():
    model, x = network(), samples(16, 16, 6, 5)
    layers = analyse(V16, model, x)
    wrong = Projection(mask=np.ones((6, 39), bool), row_order=np.arange(6), kept_score=1.0)
    with raises("no layer 'fc' for the mask of that name"):
        export(V16, layers, {"fc": wrong})
    with raises("layer '6': mask must have the weights' shape (6, 40), not (6, 39)"):
        export(V16, layers, {"6": wrong})
    weights, _ = find_weights(V16, model, x)
    quantisation = calibrate(V16, model, [x], host=["6"])
    with raises("no layer 'fc' for the mask of that name"):
        export_matrices(V16, model, weights, {"fc": wrong}, quantisation)
    for call in (
        lambda: export(V16, layers, {}, quantisation=quantisation),
        lambda: export_matrices(V16, model, weights, {}, quantisation),
    ):
        with raises("layer '6': no calibration of that name"):
            call()


def test_matrices_are_the_layers():
    """The same model once as a chain and once matrix by matrix: the same integers."""
    model, x = network(), samples(16, 16, 6, 5)
    layers = analyse(V16, model, x)
    weights, _ = find_weights(V16, model, x)
    quantisation = calibrate(V16, model, [x])
    chain = export(V16, layers, {}, quantisation=quantisation)
    matrices = export_matrices(V16, model, weights, {}, quantisation, {"seed": "1"})
    assert matrices.chain == () and matrices.provenance == {"seed": "1"}
    for name, layer in chain.layers.items():
        other = matrices.layers[name]
        assert other.metadata == layer.metadata and other.geometry == layer.geometry
        np.testing.assert_array_equal(other.value, layer.value)
        for key in ("bias", "multiplier", "shift"):
            np.testing.assert_array_equal(
                getattr(other.requantisation, key), getattr(layer.requantisation, key)
            )


def test_ranges_by_other_methods():
    model, x = network(), samples(64, 16, 6, 5)
    narrow = ENGINES["direct2x2"]
    ranges = {
        method: analyse(narrow, model, x, method, 99.0)[0].calibration["output"]
        for method in RangeMethod
    }
    with torch.no_grad():
        values = model[:3](x).double().numpy()
    assert ranges[RangeMethod.MAX] == values.max()
    assert ranges[RangeMethod.PERCENTILE] == np.quantile(np.abs(values), 0.99)
    wanted = activation_range(values, RangeMethod.MSE, highest_code=15)
    assert ranges[RangeMethod.MSE] == wanted < values.max()


def test_chained_layers_share_scale_and_sign():
    model, x = network(), samples(16, 16, 6, 5)
    encoded = export(V16, analyse(V16, model, x), {}, {"seed": "3"})
    first, second, third = encoded.layers.values()
    assert first.requantisation.signed_input
    assert (first.requantisation.low, first.requantisation.high) == (0, 255)
    assert first.output_scale == second.input_scale
    assert not second.requantisation.signed_input
    assert second.output_scale == third.input_scale
    assert third.requantisation.signed_output
    assert (first.metadata["input_size"], second.metadata["input_size"]) == ("6x5", "1x1")
    assert encoded.provenance == {"seed": "3"}


def test_chained_layers_share_whatever_was_seen():
    """Codes pass unchanged even if calibration had seen two ranges, or no negative value."""
    model = seeded(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)))
    layers = analyse(TINY, model, samples(16, 8))
    layers[1].calibration |= {"input": 5.08, "input_low": 0.0}
    first, second = export(TINY, layers, {}).layers.values()
    assert first.output_scale == second.input_scale == pytest.approx(0.04)
    assert first.requantisation.signed_output and second.requantisation.signed_input


def test_a_broken_chain_is_no_chain():
    model = seeded(Functional())
    encoded = export(TINY, analyse(TINY, model, samples(4, 4, 14)), {})
    assert encoded.chain == ()
    assert list(encoded.layers) == ["first", "second", "third", "fourth"]


def test_silent_calibration_gives_a_legal_scale():
    """All-zero samples: no range was seen, one unit is assumed."""
    encoded = export(
        TINY,
        analyse(TINY, nn.Sequential(nn.Linear(4, 2, bias=False)), torch.zeros(2, 4)),
        {},
    )
    assert encoded.layers["0"].input_scale == 1 / 255


# --- refusals ------------------------------------------------------------------------------------

SUPPORTED = "supported are Linear, Conv1d and Conv2d with groups = 1"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)),
            f"layer '0' is a Embedding; {SUPPORTED}",
        ),
        (
            nn.Sequential(nn.Linear(4, 2), nn.ConvTranspose2d(2, 2, 2)),
            f"layer '1' is a ConvTranspose2d; {SUPPORTED}",
        ),
        (nn.Sequential(nn.Linear(4, 2), nn.LSTM(2, 2)), f"layer '1' is a LSTM; {SUPPORTED}"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))),
            f"layer '1.0' is a convolution of 2 groups; {SUPPORTED}",
        ),
        (nn.Conv3d(1, 1, 1), f"layer '' is a Conv3d; {SUPPORTED}"),
        (
            nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")),
            "layer '0' has padding_mode 'reflect'; supported is 'zeros'",
        ),
        (nn.Sequential(nn.ReLU()), "the model has no Linear, Conv1d or Conv2d layer"),
    ],
)
def test_unsupported_layers(model, message):
    with raises(message):
        check_supported(model)
    with raises(message):
        analyse(TINY, model, samples(1, 4))


def test_host_layers_are_allowed():
    check_supported(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 2)))


def test_a_model_that_cannot_be_traced():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    start = re.escape("the model cannot be traced by torch.fx (TraceError: ")
    with pytest.raises(GshwError, match=f"^{start}[^\n]+$"):
        analyse(TINY, Branching(), samples(1, 4))


def test_a_layer_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    with raises("layer 'fc' is used twice; supported are layers used once"):
        analyse(TINY, Twice(), samples(1, 4))


def test_input_of_another_shape():
    message = re.escape("the model does not run on input (2, 5): ")
    with pytest.raises(GshwError, match=f"^{message}[^\n]+$"):
        analyse(TINY, nn.Sequential(nn.Linear(4, 2)), samples(2, 5))


def test_linear_over_a_sequence():
    with raises(
        "layer '0' gets input of shape (2, 3, 4); a Linear layer on the engine needs "
        "(samples, features)"
    ):
        analyse(TINY, nn.Sequential(nn.Linear(4, 2)), samples(2, 3, 4))


def test_a_convolution_without_a_batch():
    """Torch runs it; the layer's input size would be read from the wrong axes."""
    with pytest.raises(GshwError, match=re.escape("layer '0'")):
        analyse(TINY, nn.Sequential(nn.Conv2d(1, 4, 3)), samples(1, 6, 7))


def test_reshaping_that_mixes_samples():
    """A view that cuts maps into several rows cannot be followed."""

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.conv(x).view(-1, 8))

    with pytest.raises(GshwError, match=re.escape("layer 'fc'")):
        analyse(TINY, Mixing(), samples(2, 1, 4, 4))


def test_values_that_are_not_finite():
    model = nn.Sequential(seeded(nn.Linear(4, 2)))
    with torch.no_grad():
        model[0].weight[1, 2] = float("nan")
    layers = analyse(TINY, model, samples(3, 4))
    with raises("layer '0': weights must be finite, not nan at (1, 2)"):
        export(TINY, layers, {})


class Unflatten(nn.Module):
    """Features reshaped to pixels, channels first, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 64)
        self.c = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.c(torch.relu(self.a(x)).view(-1, 16, 2, 2))


def test_features_reshaped_to_pixels_end_a_chain():
    """The engine keeps channels last, so the host has to reorder them."""
    layers = analyse(TINY, seeded(Unflatten()), samples(4, 8))
    assert [layer.source for layer in layers] == [None, None]
    assert export(TINY, layers, {}).chain == ()
