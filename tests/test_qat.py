"""Calibration, training with the engine's rounding, and integers in torch, bit for bit."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from gshw import golden
from gshw.config import EngineConfig, load_config
from gshw.encoding import Requantisation, decode_weights
from gshw.errors import GshwError
from gshw.quantise import Calibration, FloatLayer, RangeMethod, row_scales, to_integers
from gshw.simulate import chain_input
from pruning.digits import accuracy, channels_last, digits, network, train
from pruning.integers.evaluation import IntegerProduct, quantised_copy
from pruning.integers.quantisation import (
    FakeProduct,
    attach_quantisation,
    detach_quantisation,
    float_layer,
)
from pruning.integers.ranges import Quantisation, calibrate
from pruning.models.export import export, export_matrices
from pruning.models.layers import analyse
from pruning.models.masking import set_mask, weight_mask
from pruning.models.products import Product, route_model, unroute_model
from pruning.models.weights import find_weights
from pruning.patterns.pattern import Projection
from pruning.settings import QuantisationChoice
from tests.strategies import all_engines

TINY = load_config("tiny").engine
V16 = load_config("v16x4").engine
ALL = all_engines()


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small_network() -> nn.Sequential:
    """Two convolutions with batch norms that matter, two linear layers: a chain."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 9, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.1, 3.0)
    return model.eval()


def images(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def mask_all(config: EngineConfig, model: nn.Module, example=None) -> dict[str, Projection]:
    """Random masks of a quarter of every weight, as projections by name."""
    rng = np.random.default_rng(5)
    projections = {}
    for weight in find_weights(config, model, example)[0]:
        mask = rng.random(weight.shape) < 0.25
        mask[0] = True
        set_mask(weight.module, weight.from_matrix(mask), weight.tensor_name)
        projections[weight.name] = Projection(
            mask=mask, row_order=rng.permutation(len(mask)), kept_score=0.0
        )
    return projections


def golden_outputs(config: EngineConfig, encoded, x: torch.Tensor) -> np.ndarray:
    """Float outputs of a chain: golden codes times the last scale."""
    first = next(iter(encoded.layers.values()))
    low, high = config.activation_range(first.requantisation.signed_input)
    codes = np.clip(np.rint(channels_last(x).astype(np.float64) / first.input_scale), low, high)
    codes = codes.astype(np.int64)
    for layer in encoded.layers.values():
        codes = golden.run_layer(config, layer, chain_input(layer, codes))
    return codes.reshape(len(x), -1) * layer.output_scale


# --- integers in torch ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "method"),
    [(name, RangeMethod.PERCENTILE) for name in sorted(ALL)]
    + [("tiny", RangeMethod.MAX), ("direct2x2", RangeMethod.MSE)],
)
def test_a_chain_is_golden_bit_for_bit(engine, method):
    """All widths and signs, batch norms folded, masks live; nothing of the model has changed."""
    config, model, x = ALL[engine], small_network(), images(32)
    projections = mask_all(config, model, x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quantisation = calibrate(config, model, [x], QuantisationChoice(activations=method))
    twin = quantised_copy(config, model, quantisation)
    encoded = export(config, analyse(config, model, x), projections, quantisation=quantisation)
    assert encoded.chain == ("0", "3", "7", "9")
    fresh = images(50, seed=2) * 1.5
    with torch.no_grad():
        found, real = twin(fresh), model(fresh)
    wanted = golden_outputs(config, encoded, fresh)
    np.testing.assert_array_equal(found.numpy(), wanted.astype(np.float32))
    assert len(np.unique(found)) > (5 if config.activation_width == 4 else 30)
    if config.activation_width > 4:
        assert (found - real).abs().mean() < 0.05 * real.abs().max()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_output_stage_is_golden_over_its_whole_range():
    """Accumulators up to 32 bits, every shift, ties: rows without weights give their bias."""
    rng = np.random.default_rng(7)
    shift = np.repeat(np.arange(1, 48), 60)
    acc = np.concatenate([rng.integers(-(2**31), 2**31, shift.size)])
    # Close to the codes, and exactly between two of them where the shift allows.
    near = rng.integers(-140, 140, shift.size) * 2 + 1
    acc[::2] = np.clip((near[::2] << shift[::2]) >> 16, -(2**31), 2**31 - 1)
    multiplier = np.where(np.arange(shift.size) % 3, 1 << 15, rng.integers(1 << 15, 1 << 16))
    requantisation = Requantisation(
        bias=acc, multiplier=multiplier, shift=shift, low=-128, high=127, signed_input=True
    )
    calibration = Calibration(
        input_range=127.0, output_range=127.0, signed_input=True, signed_output=True
    )
    codes = torch.zeros(shift.size, 1, dtype=torch.float64)
    product = IntegerProduct(TINY, codes, requantisation, calibration)
    found = product(codes, None, nn.functional.linear, -1)(torch.ones(1, 1))[0].numpy()
    np.testing.assert_array_equal(found, golden.requantise(acc, requantisation))
    ties = (acc * multiplier * 2) % (1 << (shift + 1)) == 1 << shift
    assert (ties & (found > -128) & (found < 127)).sum() > 50


def test_calibration_without_training_equals_the_export_of_analyse():
    """Two ways to the same integers, but for the last bit of a float range."""
    model, x = small_network(), images(64)
    layers = analyse(V16, model, x)
    quantisation = calibrate(V16, model, [x])
    plain = export(V16, layers, {})
    other = export(V16, layers, {}, quantisation=quantisation)
    for name, layer in plain.layers.items():
        twin = other.layers[name]
        assert layer.input_scale == pytest.approx(twin.input_scale, rel=1e-5)
        assert layer.output_scale == pytest.approx(twin.output_scale, rel=1e-5)
        np.testing.assert_array_equal(layer.value, twin.value)
        assert layer.requantisation.signed_input == twin.requantisation.signed_input
        assert layer.requantisation.low == twin.requantisation.low


class Gated(nn.Module):
    """An LSTM and a linear layer on a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.output = nn.Linear(8, 11)

    def forward(self, symbols):
        return self.output(self.lstm(self.embedding(symbols))[0])


def symbols(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 11, (n, 7), generator=torch.Generator().manual_seed(seed))


def product_by_golden(config, layer, x: torch.Tensor) -> torch.Tensor:
    """One matrix on the engine: codes in, golden, float out."""
    low, high = config.activation_range(layer.requantisation.signed_input)
    codes = np.clip(np.rint(x.double().numpy() / layer.input_scale), low, high).astype(np.int64)
    y = golden.run_layer(config, layer, codes)[:, 0, 0]
    return torch.from_numpy(y * layer.output_scale).float()


@pytest.mark.parametrize("config", [TINY, V16], ids=["tiny", "v16x4"])
def test_an_lstm_is_golden_bit_for_bit(config):
    """Each step by the golden model of its exported matrices, gates by the textbook."""
    model = Gated().eval()
    projections = mask_all(config, model)
    quantisation = calibrate(config, model, [symbols(16), symbols(16, 2)])
    weights, _ = find_weights(config, model)
    encoded = export_matrices(config, model, weights, projections, quantisation)
    assert encoded.chain == ()
    names = ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "output"]
    assert list(encoded.layers) == names
    for name in names:
        kept = decode_weights(config, encoded.layers[name]) != 0
        assert not kept[~projections[name].mask].any()
    on_input, on_state, output = (encoded.layers[name] for name in names)
    text = symbols(5, seed=3)
    with torch.no_grad():
        found = quantised_copy(config, model, quantisation)(text)
        x = model.embedding(text)
        h, c, steps = torch.zeros(5, 8), torch.zeros(5, 8), []
        for t in range(7):
            gates = product_by_golden(config, on_input, x[:, t])
            gates = gates + product_by_golden(config, on_state, h)
            i, f, g, o = gates.split(8, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            steps.append(product_by_golden(config, output, h))
        assert torch.equal(found, torch.stack(steps, dim=1))
        assert (found - model(text)).abs().max() < 0.1


def test_what_the_host_keeps_stays_float():
    model = Gated().eval()
    quantisation = calibrate(V16, model, [symbols(8)], host=["lstm.weight_ih_l0"])
    assert set(quantisation.calibrations) == {"lstm.weight_hh_l0", "output"}
    with torch.no_grad():
        model.lstm.weight_ih_l0 *= 1 + 1e-4  # Less than half a code.
        found = quantised_copy(V16, model, quantisation)(symbols(8))
        model.lstm.weight_ih_l0 /= 1 + 1e-4
        other = quantised_copy(V16, model, quantisation)(symbols(8))
    assert len(torch.unique(other)) > 20 and torch.isfinite(found).all()


def test_conv1d_language_model():
    """An embedding stops analyse; batch norms and ReLUs are still the engine's."""
    model = nn.Sequential(
        nn.Embedding(11, 6), nn.Conv1d(7, 9, 3, dilation=2), nn.BatchNorm1d(9), nn.ReLU(),
        nn.Conv1d(9, 4, 1),
    ).eval()  # fmt: skip
    nn.init.normal_(model[2].running_mean)
    quantisation = calibrate(TINY, model, [symbols(16)])
    first, second = quantisation.calibrations["1"], quantisation.calibrations["4"]
    assert quantisation.batch_norms == {"1": "2"}
    assert (first.signed_input, first.signed_output) == (True, False)
    assert (second.signed_input, second.signed_output) == (False, True)
    assert (first.input_size, second.input_size) == ((1, 6), (1, 2))
    assert first.output_range == second.input_range
    twin = quantised_copy(TINY, model, quantisation)
    weights, _ = find_weights(TINY, model)
    encoded = export_matrices(TINY, model, weights, {}, quantisation)
    assert encoded.layers["1"].metadata["input_size"] == "1x6"
    with torch.no_grad():
        x = model[0](symbols(4))
        found, real = twin(symbols(4)), model(symbols(4))
    codes = np.rint(x.double().numpy() / first.input_scale(TINY)).clip(-128, 127).astype(np.int64)
    codes = codes.transpose(0, 2, 1)
    for layer in encoded.layers.values():
        codes = golden.run_layer(TINY, layer, codes)[:, 0]
    wanted = codes.transpose(0, 2, 1) * second.output_scale(TINY)
    np.testing.assert_array_equal(found.numpy(), wanted.astype(np.float32))
    assert (found - real).abs().max() < 0.05 * real.abs().max()


# --- products of fused modules -------------------------------------------------------------------

MODULES = {
    "lstm": (lambda: nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True), [(3, 4, 5)]),
    "projected": (lambda: nn.LSTM(5, 7, proj_size=3), [(4, 5)]),
    "gru": (lambda: nn.GRU(5, 7, 2, bidirectional=True), [(4, 3, 5), (4, 3, 7)]),
    "tanh": (lambda: nn.RNN(5, 7), [(4, 2, 5), (1, 2, 7)]),
    "relu": (lambda: nn.RNN(5, 7, nonlinearity="relu", bias=False), [(4, 5)]),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), [(2, 5, 8)] * 3),
    "cross": (
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True, add_zero_attn=True),
        [(5, 2, 8), (3, 2, 4), (3, 2, 6)],
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), [(2, 5, 8)]),
}


def flat(output) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [t for o in output for t in flat(o)]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", MODULES)
def test_a_routed_module_computes_the_same(kind):
    """Every product routed, none changed; and back to the fused kernels."""
    make, shapes = MODULES[kind]
    module = make().eval()
    inputs = [torch.randn(shape) for shape in shapes]
    weights, _ = find_weights(TINY, module)
    with torch.no_grad():
        wanted = flat(module(*inputs))
        twin = copy.deepcopy(module)
        route_model(twin, find_weights(TINY, twin)[0], {w.name: CountingProduct() for w in weights})
        again = copy.deepcopy(twin)
        for routed in (twin, again):
            found = flat(routed(*inputs))
            assert len(found) == len(wanted)
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            counted = [m for m in routed.modules() if isinstance(m, CountingProduct)]
            assert len(counted) == len(weights) and all(m.n_calls > 0 for m in counted)
        unroute_model(twin)
        assert list(twin.state_dict()) == list(module.state_dict())
        for a, b in zip(flat(twin(*inputs)), wanted, strict=True):
            assert torch.equal(a, b)


class CountingProduct(Product):
    """The plain product, counted."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def forward(self, weight, bias, multiply, axis):
        self.n_calls += 1
        return super().forward(weight, bias, multiply, axis)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", MODULES)
def test_integers_in_fused_modules(kind):
    """Close to the float module and not equal to it: no fused kernel goes round the products."""
    make, shapes = MODULES[kind]
    module = make().eval()

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return self.inner(x, *rest)[0] if kind != "encoder" else self.inner(x)

    x, *rest = (torch.randn(shape) for shape in shapes)
    model = One().eval()
    twin = quantised_copy(V16, model, calibrate(V16, model, [x]))
    with torch.no_grad():
        found, wanted = twin(x), model(x)
    error = (found - wanted).abs().max()
    assert 1e-5 < error < 0.1 * wanted.abs().max()


def test_only_the_output_projection_of_an_attention():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    names = [w.name for w in find_weights(V16, model)[0]]
    host = [name for name in names if name != "0.self_attn.out_proj"]
    quantisation = calibrate(V16, model, [torch.randn(2, 5, 8)], host=host)
    assert list(quantisation.calibrations) == ["0.self_attn.out_proj"]


# --- scales of training --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", sorted(ALL))
@pytest.mark.parametrize("weight_width", [None, 3])
@pytest.mark.parametrize("shape", [(7, 40), (4, 6, 3, 3)])
def test_codes_of_training_are_those_of_the_export(engine, weight_width, shape):
    """Heavy tails, one-sided, empty, tiny and bias-only rows, narrow and wide accumulators."""
    rng = np.random.default_rng(11)
    for config in (ALL[engine], replace(ALL[engine], accumulator_width=32)):
        for signed in (False, True):
            weight = torch.from_numpy(rng.standard_t(3, shape)).float()
            weight[0], weight[1], weight[2] = weight[0].abs(), 0.0, weight[2] * 1e-12
            weight[rng.random(shape) < 0.5] = 0.0
            bias = torch.from_numpy(rng.normal(size=shape[0]) * 10.0 ** rng.integers(-2, 3)).float()
            calibration = Calibration(
                input_range=2.7, output_range=3.1, signed_input=signed, signed_output=not signed
            )
            product = FakeProduct(config, "x", calibration, weight_width)
            layer = FloatLayer(
                name="x",
                weights=weight.flatten(1).numpy(),
                bias=bias.double().numpy(),
                geometry=None,
                input_scale=calibration.input_scale(config),
                output_scale=calibration.output_scale(config),
                signed_input=signed,
                signed_output=not signed,
                weight_width=weight_width,
            )
            scale = row_scales(config, layer)
            np.testing.assert_allclose(product.weight_scales(weight, bias), scale, rtol=1e-14)
            codes, _ = to_integers(config, layer)
            fake = product.fake_weight(weight, bias).flatten(1).double().numpy()
            np.testing.assert_array_equal(fake, (codes * scale[:, None]).astype(np.float32))
            assert not fake[weight.flatten(1) == 0].any()


def test_weights_between_two_codes():
    """Ties as near as float32 can say them: training must not round them in float32."""
    weight = torch.cat([(torch.arange(-126, 126) + 0.5) * (1.3 / 127), torch.tensor([1.3])])[None]
    calibration = Calibration(
        input_range=1.0, output_range=1.0, signed_input=True, signed_output=True
    )
    fake = FakeProduct(TINY, "x", calibration, None).fake_weight(weight, None).double().numpy()
    exact = weight.double().numpy() / (float(weight[0, -1]) / 127)
    codes = np.rint(fake / (float(weight[0, -1]) / 127))
    np.testing.assert_array_equal(codes, np.rint(exact))


def test_fake_weight_passes_the_gradient_on():
    calibration = Calibration(
        input_range=1.0, output_range=1.0, signed_input=True, signed_output=True
    )
    weight = torch.randn(3, 8, requires_grad=True)
    gradient = torch.randn(3, 8)
    FakeProduct(TINY, "x", calibration, None).fake_weight(weight, None).backward(gradient)
    assert torch.equal(weight.grad, gradient)


# --- training ------------------------------------------------------------------------------------


def test_attach_folds_batch_norms_and_keeps_parameters():
    """Without rounding the network is the same; an optimiser made before goes on."""
    model, x = small_network(), images(32)
    projections = mask_all(TINY, model, x)
    with torch.no_grad():
        wanted = model(x)
    weight, offset, bias = (
        model[0].parametrizations.weight.original,
        model[1].bias,
        model[3].bias,
    )
    attached = attach_quantisation(TINY, model, [x])
    assert attached.batch_norms == {}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model[0].parametrizations.weight.original is weight
    assert model[0].bias is offset and model[3].bias is bias
    with torch.no_grad():
        rounded = model(x)
    assert (rounded - wanted).abs().max() > 1e-3
    detached = detach_quantisation(model)
    assert detached == attached
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    for found in find_weights(TINY, model, x)[0]:
        held = found.to_matrix(weight_mask(found.module).mask)
        np.testing.assert_array_equal(held, projections[found.name].mask)


def test_a_batch_norm_without_parameters_gets_a_bias():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3, affine=False)).eval()
    nn.init.normal_(model[1].running_mean)
    x = torch.randn(20, 4)
    with torch.no_grad():
        wanted = model(x)
    attach_quantisation(TINY, model, [x])
    assert isinstance(model[0].bias, nn.Parameter) and isinstance(model[1], nn.Identity)
    detach_quantisation(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)


def test_batch_norms_that_stay_with_the_host():
    """No running statistics, two uses, or the second axis of a sequence."""

    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
            self.plain = nn.BatchNorm1d(4, track_running_stats=False)
            self.shared = nn.BatchNorm1d(4)
            self.steps = nn.BatchNorm1d(5)

        def forward(self, x):
            y = self.shared(self.b(self.shared(self.a(self.steps(self.d(x))[:, 0])))).relu()
            return self.plain(self.c(y))

    model, x = Host().eval(), torch.randn(6, 5, 4)
    before = [type(m) for m in model.modules()]
    quantisation = calibrate(TINY, model, [x])
    assert quantisation.batch_norms == {}
    assert all(c.signed_output for c in quantisation.calibrations.values())
    attach_quantisation(TINY, model, [x])
    detach_quantisation(model)
    assert [type(m) for m in model.modules()] == before


@pytest.fixture(scope="module")
def trained():
    """The digits network: float training, masks, fine-tuning, then training with rounding."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, model = digits(), network()
    train(model, data, 3, 3e-3, 0)
    projections = mask_all(V16, model, data.train_x[:8])
    train(model, data, 3, 2e-3, 1)
    real = accuracy(model, data)
    # One kept weight that rounds to zero and stays there.
    mask = weight_mask(model[10]).mask
    row, column = (int(i) for i in mask.nonzero()[50])
    with torch.no_grad():
        model[10].parametrizations.weight.original[row, column] = 1e-9
    batches = list(data.train_x[:512].split(128))
    quantisation = attach_quantisation(V16, model, batches)
    model[10].parametrizations.weight.original.register_hook(
        lambda g: g.index_put((torch.tensor(row), torch.tensor(column)), torch.tensor(0.0))
    )
    train(model, data, 2, 5e-4, 2)
    return data, model, projections, quantisation, real, (row, column)


def test_zeros_after_training_are_those_of_the_mask(trained):
    """In the weights, in what the products used, and in the encoded integers."""
    data, model, projections, _, _, (row, column) = trained
    model = copy.deepcopy(model)
    weights, _ = find_weights(V16, model, data.train_x[:8])
    used = {}
    for weight in weights:
        product = weight.module.products["weight"]
        used[weight.name] = weight.to_matrix(product.fake_weight(weight.masked, weight.module.bias))
        assert not used[weight.name][~projections[weight.name].mask].any()
    quantisation = detach_quantisation(model)
    layers = analyse(V16, model, data.train_x[:8])
    encoded = export(V16, layers, projections, quantisation=quantisation)
    for weight in weights:
        mask = projections[weight.name].mask
        np.testing.assert_array_equal(weight.to_matrix(weight.masked) != 0, mask)
        np.testing.assert_array_equal(weight.to_matrix(weight_mask(weight.module).mask), mask)
        target = encoded.layers[weight.name]
        codes = decode_weights(V16, target)
        scale = row_scales(V16, float_layer(V16, weight, quantisation))
        # What was exported is what was trained, to the last code.
        np.testing.assert_array_equal(
            (codes * scale[:, None]).astype(np.float32), used[weight.name]
        )
        assert not codes[~mask].any()
        # The mask is the truth: as many groups as if no kept weight were zero.
        full = replace(projections[weight.name], mask=mask)
        with torch.no_grad():
            weight.dense.fill_(0.01)
        assert export(V16, layers, {weight.name: full}).layers[weight.name].n_groups == (
            target.n_groups
        )
    index = weights[3].index
    place = np.argwhere(index == row * 512 + column)[0]
    assert decode_weights(V16, encoded.layers["10"])[tuple(place)] == 0
    assert projections["10"].mask[tuple(place)]


def test_accuracy_after_training(trained):
    """Integers, in torch and in the golden model, within a point of the float network."""
    data, model, projections, quantisation, real, _ = trained
    twin = quantised_copy(V16, model, quantisation)
    assert accuracy(twin, data) > real - 0.01 > 0.85
    plain = copy.deepcopy(model)
    assert detach_quantisation(plain) == quantisation
    encoded = export(
        V16, analyse(V16, plain, data.train_x[:8]), projections, quantisation=quantisation
    )
    with torch.no_grad():
        found = twin(data.test_x)
        fake = model.eval()(data.test_x)
    np.testing.assert_array_equal(
        found.numpy(), golden_outputs(V16, encoded, data.test_x).astype(np.float32)
    )
    # Training saw nearly the engine's outputs: most are the same code, none is far.
    codes = (found - fake).abs() / encoded.layers["12"].output_scale
    assert codes.median() < 0.5 and codes.max() < 12


def test_few_bits_need_training():
    """Weights of two bits (-1, 0, 1) on the int8 engine: training wins back most of their cost."""
    data = digits()
    torch.manual_seed(1)
    model = network()
    train(model, data, 3, 3e-3, 0)
    batches = [data.train_x[:256]]
    spec = QuantisationChoice(weight_width=2)
    quantisation = calibrate(V16, model, batches, spec)
    before = accuracy(quantised_copy(V16, model, quantisation), data)
    attach_quantisation(V16, model, batches, spec)
    train(model, data, 2, 1e-3, 0)
    quantisation = detach_quantisation(model)
    assert quantisation.weight_width == 2
    after = accuracy(quantised_copy(V16, model, quantisation), data)
    assert after > 0.9 > before
    encoded = export(V16, analyse(V16, model, batches[0]), {}, quantisation=quantisation)
    assert all(np.abs(layer.value).max() == 1 for layer in encoded.layers.values())


def test_a_recurrence_trains_with_rounding():
    """Gradients reach every weight through the steps; zeros stay."""
    model = Gated()
    projections = mask_all(TINY, model)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    text = symbols(16, seed=4)

    def losses(n_steps: int) -> list[float]:
        found = []
        for _ in range(n_steps):
            loss = nn.functional.cross_entropy(model(text).flatten(0, 1), text.flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(float(loss.detach()))
        return found

    before = losses(30)
    attach_quantisation(TINY, model, [text])
    after = losses(20)
    assert after[-1] < 0.9 * before[-1] < 0.7 * before[0]
    detach_quantisation(model)
    for weight in find_weights(TINY, model)[0]:
        found = weight.to_matrix(weight.masked) != 0
        np.testing.assert_array_equal(found, projections[weight.name].mask)
        gradient = weight.to_matrix(weight.dense.grad)
        assert np.count_nonzero(gradient[projections[weight.name].mask]) > 0


def test_state_dict_and_deepcopy_keep_the_ranges():
    model, x = small_network(), images(32)
    mask_all(TINY, model, x)
    other = copy.deepcopy(model)
    first = attach_quantisation(TINY, model, [x])
    second = attach_quantisation(TINY, other, [x * 3])
    assert first != second
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(other(x), model(x)) and torch.equal(twin(x), model(x))
        twin[9].bias += 1.0
        assert not torch.equal(twin(x), model(x))
    assert detach_quantisation(other) == first == detach_quantisation(twin)
    assert detach_quantisation(model) == first


# --- calibration ---------------------------------------------------------------------------------


def test_batches_add_up():
    """Extremes of all batches count; targets of (input, target) batches do not."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.rand(30, 4)
    x[20, 1] = -7.5
    choice = QuantisationChoice(activations=RangeMethod.MAX)
    parts = [(part, torch.full((10,), 99.0)) for part in x.split(10)]
    quantisation = calibrate(TINY, model, iter(parts), choice)
    first, second = quantisation.calibrations.values()
    assert (first.input_range, first.signed_input) == (7.5, True)
    with torch.no_grad():
        largest = float(model[:2](x).max())
    assert first.output_range == second.input_range == pytest.approx(largest, rel=1e-6)
    assert not second.signed_input and not first.signed_output and second.signed_output


def test_ranges_behind_batch_norm_and_relu():
    """No engine layer reads the output directly, so it is observed itself."""
    model = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 2, 1)
    ).eval()
    nn.init.constant_(model[1].running_var, 0.01)
    x = torch.randn(16, 3, 8)
    spec = QuantisationChoice(activations=RangeMethod.MAX)
    first, second = calibrate(TINY, model, [x], spec).calibrations.values()
    with torch.no_grad():
        assert first.output_range == pytest.approx(float(model[:3](x).max()), rel=1e-6)
    assert not first.signed_output and not second.signed_input


def test_a_chain_shares_signs_that_were_not_seen():
    """Positive outputs by chance: the source's codes are signed all the same."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
    nn.init.constant_(model[0].bias, 100.0)
    first, second = calibrate(TINY, model, [torch.randn(9, 3)]).calibrations.values()
    assert first.signed_output and second.signed_input
    assert first.output_range == second.input_range


def test_many_values_are_thinned_and_the_largest_kept():
    model = nn.Sequential(nn.Linear(64, 2)).eval()
    x = torch.randn(40000, 64)
    x[33333, 7] = 50.0
    for method, wanted in ((RangeMethod.MAX, 50.0), (RangeMethod.PERCENTILE, 3.89)):
        spec = QuantisationChoice(activations=method)
        found = calibrate(TINY, model, x.split(5000), spec).calibrations["0"]
        assert found.input_range == pytest.approx(wanted, rel=0.03)


def test_the_model_is_left_as_it_was():
    model = small_network().train()
    model[3].eval()
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    calibrate(TINY, model, [images(8)])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- refusals ------------------------------------------------------------------------------------


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x)


class OwnForward(nn.Linear):
    def forward(self, input):
        return super().forward(input).abs()


def test_refused_calibrations():
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(3, 4)
    with raises("calibration batches yield nothing"):
        calibrate(TINY, model, [])
    with raises("no weight 'fc' to leave to the host; there are 0"):
        calibrate(TINY, model, [x], host=["fc"])
    with raises("weight_width must be from 2 to the engine's 8, not 16"):
        calibrate(TINY, model, [x], QuantisationChoice(weight_width=16))
    with raises("layer 'b': no calibration batch reached it"):
        calibrate(TINY, Unused(), [x])
    for bad in (float("nan"), float("inf")):
        with raises("layer '0': its calibration activations must be finite"):
            calibrate(TINY, model, [x, torch.full((1, 4), bad)])
    with raises("layer '0': OwnForward has a forward of its own; its products cannot be quantised"):
        calibrate(TINY, nn.Sequential(OwnForward(4, 2)), [x])
    assert "products" not in model[0]._modules and "forward" not in vars(model[0])


def test_refused_models():
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(3, 4)
    with raises("the model has no quantisation to detach"):
        detach_quantisation(model)
    quantisation = attach_quantisation(TINY, model, [x])
    for again in (calibrate, attach_quantisation):
        with raises("the model is quantised already; detach that first"):
            again(TINY, model, [x])
    missing = Quantisation(calibrations={"fc": quantisation.calibrations["0"]})
    with raises("no weight 'fc' in the model for the calibration of that name"):
        quantised_copy(TINY, model, missing)
    narrow = replace(TINY, accumulator_width=16)
    with raises("layer '0': row 0 has too many weights for a 16-bit accumulator"):
        attach_quantisation(narrow, nn.Sequential(nn.Linear(600, 2)), [torch.randn(3, 600)])


def test_packed_sequences_are_refused():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x):
            return self.lstm(pack_sequence(list(x)))[0].data

    with raises("a quantised recurrence takes padded sequences, not a PackedSequence"):
        calibrate(TINY, Packed(), [torch.randn(2, 3, 4)])
