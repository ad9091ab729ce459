"""Compensation against the exact least squares of each row, and what it brings on real layers."""

import copy
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from gshw.config import load_config
from gshw.encoding import decode_weights
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.quantise import FloatLayer, quantise_layer, row_scales
from pruning.digits import digits, network, train
from pruning.models.masking import set_mask
from pruning.models.weights import find_weights
from pruning.recovery.calibration import Moments, collect_moments
from pruning.recovery.compensation import (
    bias_shift,
    compensate,
    compensate_model,
    output_error,
    quantise_compensated,
    reestimate_batch_norm,
)

TINY = load_config("tiny").engine
V16 = load_config("v16x4").engine
DAMPING = 0.01


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def correlated(n_samples: int, n_columns: int, seed: int = 0) -> np.ndarray:
    """Inputs with a mean and a few strong directions, as after a ReLU."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(max(1, n_columns // 6), n_columns))
    x = rng.normal(size=(n_samples, len(mix))) @ mix + rng.normal(size=(n_samples, n_columns))
    return np.maximum(x + 0.5, 0)


def seen(x: np.ndarray, y: np.ndarray | None = None) -> Moments:
    sums = x.sum(axis=0)
    if y is None:
        return Moments(n_samples=len(x), gram=x.T @ x, sums=sums)
    return Moments(
        n_samples=len(x), gram=x.T @ x, sums=sums, cross=x.T @ y, reference=y.T @ y,
        reference_sums=y.sum(axis=0),
    )  # fmt: skip


def top_mask(weights: np.ndarray, sparsity: float) -> np.ndarray:
    return np.abs(weights) > np.quantile(np.abs(weights), sparsity)


def exact(weights, mask, x, y=None) -> np.ndarray:
    """Each row by an augmented system of equations: the inputs, then the damping's rows."""
    y = x if y is None else y
    level = np.sqrt(DAMPING * np.square(x).sum() / x.shape[1])
    found = np.zeros(weights.shape)
    for row, keep in enumerate(mask):
        left = np.concatenate([x, level * np.eye(x.shape[1])])[:, keep]
        right = np.concatenate([y @ weights[row], level * weights[row]])
        found[row, keep] = np.linalg.lstsq(left, right, rcond=None)[0]
    return found


def relative(weights, found, x, y=None) -> float:
    y = x if y is None else y
    return np.linalg.norm(x @ found.T - y @ weights.T) / np.linalg.norm(y @ weights.T)


# --- one matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_columns", [1, 2, 5, 40, 150])
@pytest.mark.parametrize("with_reference", [False, True])
def test_many_steps_reach_the_exact_solution(n_columns, with_reference):
    rng = np.random.default_rng(n_columns)
    x = correlated(300, n_columns)
    y = x + rng.normal(size=x.shape) if with_reference else None
    weights = rng.normal(size=(20, n_columns))
    mask = rng.random(weights.shape) < 0.4
    mask[0], mask[1] = False, True
    found = compensate(weights, mask, seen(x, y), steps=200)
    wanted = exact(weights, mask, x, y)
    assert not found[~mask].any()
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())
    best = relative(weights, wanted, x, y)
    assert output_error(weights, found, seen(x, y)) == pytest.approx(best, rel=1e-3)
    if not with_reference:
        np.testing.assert_allclose(found[1], weights[1], rtol=1e-6)


def test_more_steps_are_better():
    x, rng = correlated(200, 120), np.random.default_rng(0)
    weights = rng.normal(size=(16, 120))
    mask = rng.random(weights.shape) < 0.5
    errors = [relative(weights, weights * mask, x)]
    errors += [relative(weights, compensate(weights, mask, seen(x), steps=n), x) for n in range(6)]
    assert errors[0] == pytest.approx(errors[1])
    assert all(a > b for a, b in pairwise(errors[1:]))


def test_damping_holds_what_the_samples_leave_open():
    """Fewer samples than weights: the fit is near perfect either way, the weights differ."""
    x, rng = correlated(10, 60), np.random.default_rng(1)
    weights = rng.normal(size=(8, 60))
    mask = rng.random(weights.shape) < 0.5
    moves = []
    for damping in (1e-4, 1e-2, 1.0, 100.0):
        found = compensate(weights, mask, seen(x), damping=damping, steps=50)
        moves.append(np.linalg.norm((found - weights)[mask]))
    assert all(a > b for a, b in pairwise(moves))
    assert moves[-1] < 0.05 * moves[0]


def test_dead_equal_and_absent_inputs():
    """Singular moments give finite weights; a weight whose input is always zero stays."""
    x, rng = correlated(100, 12), np.random.default_rng(2)
    x[:, 3] = 0
    x[:, 5] = x[:, 4]
    weights = rng.normal(size=(6, 12))
    mask = rng.random(weights.shape) < 0.6
    mask[:, 3] = True
    found = compensate(weights, mask, seen(x), steps=50)
    np.testing.assert_allclose(found[:, 3], weights[:, 3], atol=1e-3)
    np.testing.assert_allclose(found, exact(weights, mask, x), atol=1e-2)
    nothing = compensate(weights, mask, seen(0 * x))
    np.testing.assert_allclose(nothing, weights * mask, rtol=1e-9)
    assert output_error(weights, nothing, seen(0 * x)) == 0.0


def test_rows_with_inputs_of_their_own():
    rng = np.random.default_rng(3)
    xs = [correlated(80, 10, seed) for seed in range(3)]
    weights = rng.normal(size=(6, 10))
    mask = rng.random(weights.shape) < 0.5
    moments = Moments(n_samples=80, gram=np.stack([x.T @ x for x in xs]))
    found = compensate(weights, mask, moments, steps=50)
    wrong, whole = 0.0, 0.0
    for part, x in enumerate(xs):
        rows = slice(2 * part, 2 * part + 2)
        np.testing.assert_allclose(found[rows], exact(weights[rows], mask[rows], x), atol=1e-2)
        wrong += np.square(x @ (found - weights)[rows].T).sum()
        whole += np.square(x @ weights[rows].T).sum()
    assert output_error(weights, found, moments) == pytest.approx(np.sqrt(wrong / whole))


@pytest.mark.parametrize("with_reference", [False, True])
def test_free_bias(with_reference):
    """As one more input that is always one, kept in every row and not damped."""
    rng = np.random.default_rng(8)
    x = correlated(300, 30)
    y = x * 1.1 + rng.normal(size=x.shape) + 1 if with_reference else x
    weights = rng.normal(size=(12, 30))
    mask = rng.random(weights.shape) < 0.4
    moments = seen(x, y) if with_reference else seen(x)
    found = compensate(weights, mask, moments.centred(), steps=100)
    shift = bias_shift(weights, found, moments)
    level = np.sqrt(DAMPING * np.square(x - x.mean(axis=0)).sum() / 30)
    ones = np.concatenate([np.ones(300), np.zeros(30)])
    for row, keep in enumerate(mask):
        left = np.concatenate([x, level * np.eye(30)])[:, keep]
        right = np.concatenate([y @ weights[row], level * weights[row]])
        wanted = np.linalg.lstsq(np.c_[left, ones], right, rcond=None)[0]
        np.testing.assert_allclose(found[row, keep], wanted[:-1], atol=0.02)
        assert shift[row] == pytest.approx(wanted[-1], abs=0.2)
    output = x @ found.T + shift
    error = np.linalg.norm(output - y @ weights.T) / np.linalg.norm(y @ weights.T)
    assert output_error(weights, found, moments, shift) == pytest.approx(error, rel=1e-6)
    assert error < 0.97 * relative(weights, compensate(weights, mask, moments), x, y)


def test_rows_in_chunks(monkeypatch):
    x, rng = correlated(90, 20), np.random.default_rng(4)
    weights = rng.normal(size=(11, 20)).astype(np.float32)
    mask = rng.random(weights.shape) < 0.5
    whole = compensate(weights, mask, seen(x))
    monkeypatch.setattr("pruning.recovery.least_squares._CHUNK_ELEMENTS", 70)
    # Chunks stop on their own, so only the error agrees closely.
    np.testing.assert_allclose(compensate(weights, mask, seen(x)), whole, atol=2e-2)


@pytest.mark.parametrize(
    "function", [compensate, lambda *a, **b: quantise_compensated(*a, 127, **b)]
)
def test_what_cannot_be_compensated(function):
    x, weights = correlated(9, 4), np.ones((3, 4))
    mask = weights > 0
    with raises(
        "weights (3, 4) must come with a mask of that shape and moments of 4 columns, "
        "not (4, 3) and 4"
    ):
        function(weights, mask.T, seen(x))
    with raises(
        "weights (3, 4) must come with a mask of that shape and moments of 4 columns, "
        "not (3, 4) and 3"
    ):
        function(weights, mask, seen(x[:, :3]))
    with raises("compensation needs the whole Gram matrix, not its diagonal"):
        function(weights, mask, Moments(n_samples=1, squares=np.ones(4)))
    for damping in (0.0, -1.0, np.nan):
        with raises(f"damping must be positive, not {damping:g}"):
            function(weights, mask, seen(x), damping=damping)
    weights[2, 1] = np.nan
    with raises("weights to compensate must be finite"):
        function(weights, mask, seen(x))


# --- codes ---------------------------------------------------------------------------------------


def objective(weights, found, x) -> np.ndarray:
    """Damped squared error of each row."""
    level = DAMPING * np.square(x).sum() / x.shape[1]
    return np.square(x @ (found - weights).T).sum(axis=0) + level * np.square(found - weights).sum(
        1
    )


def plain_rounding(weights, max_weight: int) -> np.ndarray:
    scales = np.abs(weights).max(axis=1, keepdims=True) / max_weight
    scales[scales == 0] = 1
    return np.rint(weights / scales) * scales


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(5)
    x = correlated(500, 90)
    weights = rng.normal(size=(24, 90)) * np.exp(rng.normal(size=(24, 1)))
    mask = top_mask(weights / np.abs(weights).max(axis=1, keepdims=True), 0.8)
    mask[3] = False
    mask[4] = np.arange(90) == 7
    return weights, mask, x


@pytest.mark.parametrize("max_weight", [127, 7, 1])
def test_codes(case, max_weight):
    """On the grid, inside the mask, reaching the largest code in every row that keeps a weight."""
    weights, mask, x = case
    found = quantise_compensated(weights, mask, seen(x), max_weight)
    assert found.codes.dtype == np.int16 and (found.scales > 0).all()
    assert not found.codes[~mask].any()
    peaks = np.abs(found.codes).max(axis=1)
    assert peaks[3] == 0 and set(np.delete(peaks, 3)) == {max_weight}
    np.testing.assert_array_equal(found.weights, found.codes * found.scales[:, None])


@pytest.mark.parametrize("max_weight", [127, 7])
def test_no_single_code_can_be_bettered(case, max_weight):
    """Every kept code but the row's largest is the best given the others, and so is the scale."""
    weights, mask, x = case
    found = quantise_compensated(weights, mask, seen(x), max_weight)
    best = objective(weights, found.weights, x)
    tolerance = 1e-3 * best + 1e-12
    for column in range(90):
        for step in (-1, 1):
            codes = found.codes.astype(np.int64)
            codes[:, column] += step * mask[:, column]
            moved = objective(weights, codes * found.scales[:, None], x)
            free = np.abs(found.codes[:, column]) < max_weight
            assert (moved >= best - tolerance)[free].all()
    for factor in (0.999, 1.001):
        assert (objective(weights, found.weights * factor, x) >= best - 1e-9).all()


@pytest.mark.parametrize(("max_weight", "goal"), [(127, 0.75), (7, 0.5)])
def test_codes_beat_plain_rounding(case, max_weight, goal):
    """Of what rounding the compensated weights costs, at most so much is left."""
    weights, mask, x = case
    floor = objective(weights, exact(weights, mask, x), x).sum()
    solved = compensate(weights, mask, seen(x), steps=50)
    plain = objective(weights, plain_rounding(solved, max_weight), x).sum()
    found = quantise_compensated(weights, mask, seen(x), max_weight).weights
    assert objective(weights, found, x).sum() - floor <= goal * (plain - floor)


@pytest.mark.parametrize("weight_width", [8, 4, 2])
@pytest.mark.parametrize("folded", [False, True])
def test_export_finds_the_codes_again(case, weight_width, folded):
    """Bit for bit through float32 and quantise_layer, also with a batch norm's factor per row."""
    weights, mask, x = case
    max_weight = (1 << (weight_width - 1)) - 1
    found = quantise_compensated(weights, mask, seen(x), max_weight)
    factor = np.ones(24)
    if folded:
        factor = np.random.default_rng(6).normal(size=24)
    stored = found.weights.astype(np.float32) * factor[:, None]
    layer = FloatLayer(
        name="fc", weights=stored, bias=np.zeros(24), geometry=Geometry.linear(90),
        input_scale=0.02, output_scale=0.05, signed_input=True, signed_output=True,
        mask=mask, weight_width=weight_width,
    )  # fmt: skip
    codes = decode_weights(TINY, quantise_layer(TINY, layer))
    np.testing.assert_array_equal(codes, found.codes * np.sign(factor)[:, None])
    wanted = np.delete(found.scales * np.abs(factor), 3)
    np.testing.assert_allclose(np.delete(row_scales(TINY, layer), 3), wanted, rtol=1e-6)


def test_codes_of_a_layer_with_a_reference():
    """They fit the reference's output, not the outputs of the dense weights on these inputs."""
    rng = np.random.default_rng(7)
    y = correlated(300, 30)
    x = 0.5 * y + 0.2 * rng.normal(size=y.shape)
    weights = rng.normal(size=(8, 30))
    mask = rng.random(weights.shape) < 0.5
    found = quantise_compensated(weights, mask, seen(x, y), 127).weights
    wanted = relative(weights, exact(weights, mask, x, y), x, y)
    assert relative(weights, found, x, y) == pytest.approx(wanted, rel=0.02)
    assert relative(weights, weights * mask, x, y) > 1.5 * wanted


def test_no_codes():
    with raises("max_weight must be at least 1, not 0"):
        quantise_compensated(np.ones((2, 3)), np.ones((2, 3), bool), seen(correlated(9, 3)), 0)


# --- trained layers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """Digits network, data, and its layers' inputs on the training and the test images."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data, model = digits(), network()
    train(model, data, n_epochs=4, learning_rate=2e-3, seed=0)
    torch.set_num_threads(threads)
    model.eval()
    # The first layer has nine columns: no engine's pattern suits it.
    weights = find_weights(V16, model, data.train_x[:8])[0][1:]
    calibration = data.train_x[:512].split(128)
    moments = collect_moments(model, weights, calibration)
    held_out = collect_moments(model, weights, data.test_x.split(250))
    return model, data, weights, moments, held_out


def gs_mask(weight, sparsity: float) -> np.ndarray:
    """GS(16, 16): of every row as many of each bank, the largest."""
    matrix = np.abs(weight.to_matrix(weight.dense))
    banks = matrix.reshape(len(matrix), -1, 16)
    kept = max(1, round(banks.shape[1] * (1 - sparsity)))
    rank = np.argsort(np.argsort(-banks, axis=1), axis=1)
    return (rank < kept).reshape(matrix.shape)


@pytest.mark.parametrize("pattern", ["GS(16, 16)", "unstructured"])
def test_goal_on_real_layers_at_90_percent(trained, pattern):
    """At most 0.6 of the uncompensated error, on held-out data too; 2 % off the exact solution."""
    _, _, weights, moments, held_out = trained
    for weight in weights:
        matrix = weight.to_matrix(weight.dense).astype(np.float64)
        mask = gs_mask(weight, 0.9) if pattern != "unstructured" else top_mask(matrix, 0.9)
        found = compensate(matrix, mask, moments[weight.name])
        best = exact_from_moments(matrix, mask, moments[weight.name])
        error = output_error(matrix, found, moments[weight.name])
        assert error <= 1.02 * output_error(matrix, best, moments[weight.name])
        for data in (moments, held_out):
            before = output_error(matrix, np.where(mask, matrix, 0), data[weight.name])
            assert output_error(matrix, found, data[weight.name]) <= 0.6 * before


def exact_from_moments(weights, mask, moments) -> np.ndarray:
    gram = moments.gram + DAMPING * np.trace(moments.gram) / len(moments.gram) * np.eye(
        len(moments.gram)
    )
    found = np.zeros(weights.shape)
    for row, keep in enumerate(mask):
        found[row, keep] = np.linalg.solve(gram[np.ix_(keep, keep)], gram[keep] @ weights[row])
    return found


@pytest.mark.parametrize(("sparsity", "steps"), [(0.5, 10), (0.8, 6), (0.9, 4), (0.95, 3)])
def test_few_steps_do(trained, sparsity, steps):
    _, _, weights, moments, _ = trained
    for weight in weights:
        matrix = weight.to_matrix(weight.dense).astype(np.float64)
        mask = top_mask(matrix, sparsity)
        found = compensate(matrix, mask, moments[weight.name], steps=steps)
        best = exact_from_moments(matrix, mask, moments[weight.name])
        ratio = output_error(matrix, found, moments[weight.name]) / output_error(
            matrix, best, moments[weight.name]
        )
        assert ratio <= 1.02


def masked_copy(model, data, sparsity: float):
    pruned = copy.deepcopy(model)
    weights = find_weights(V16, pruned, data.train_x[:8])[0][1:-1]
    for weight in weights:
        set_mask(weight.module, weight.from_matrix(gs_mask(weight, sparsity)))
    return pruned, weights


def outputs(model, x) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(x)


def distance(model, other, x) -> float:
    wanted = outputs(other, x)
    return float((outputs(model, x) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("max_weight", [None, 127])
def test_whole_model(trained, max_weight):
    """Each option brings the logits closer to the dense model's, on images not seen before."""
    model, data, *_ = trained
    batches = [(x, None) for x in data.train_x[:384].split(100)]
    found = []
    pruned, _ = masked_copy(model, data, 0.9)
    reestimate_batch_norm(pruned, batches)
    found.append(distance(pruned, model, data.test_x))
    for sequential in (False, True):
        pruned, weights = masked_copy(model, data, 0.9)
        masks = [gs_mask(w, 0.9) for w in weights]
        below = [w.to_matrix(w.dense)[~m] for w, m in zip(weights, masks, strict=True)]
        errors = compensate_model(
            pruned, weights, iter(batches), sequential=sequential, max_weight=max_weight
        )
        found.append(distance(pruned, model, data.test_x))
        assert list(errors) == [w.name for w in weights]
        assert all(e.after <= 0.6 * e.before for e in errors.values())
        for weight, mask, values in zip(weights, masks, below, strict=True):
            np.testing.assert_array_equal(weight.to_matrix(weight.dense)[~mask], values)
            matrix = weight.to_matrix(weight.masked)
            assert np.array_equal(matrix != 0, mask) or max_weight is not None
            if max_weight is not None:
                codes = matrix * (max_weight / np.abs(matrix).max(axis=1, keepdims=True))
                assert np.abs(codes - np.rint(codes)).max() < 1e-3
    assert found[1] < 0.6 * found[0] and found[2] < 0.75 * found[1]


def test_errors_are_those_of_the_outputs(trained):
    """The last layer's report, against the outputs of both models measured by hand."""
    model, data, *_ = trained
    pruned, weights = masked_copy(model, data, 0.8)
    x = data.train_x[:200]
    errors = compensate_model(pruned, weights, [x], batch_norm=False)
    last = weights[-1]

    def error() -> float:
        wanted = outputs(model[:11], x) - model[10].bias.detach()
        found = outputs(pruned[:11], x) - model[10].bias.detach()
        return float((found - wanted).norm() / wanted.norm())

    assert errors[last.name].after == pytest.approx(error(), rel=1e-3)
    with torch.no_grad():
        last.dense.copy_(model[10].weight)
        pruned[10].bias.copy_(model[10].bias)
    assert errors[last.name].before == pytest.approx(error(), rel=1e-3)


def test_one_layer_with_a_bias():
    """The model's way is the matrix's way: centred moments, then the bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 12))
    weight = find_weights(TINY, model)[0][0]
    matrix = weight.to_matrix(weight.dense)
    x = correlated(200, 30) + 1
    mask = top_mask(matrix, 0.8)
    set_mask(model[0], weight.from_matrix(mask))
    bias = model[0].bias.detach().clone()
    batches = torch.from_numpy(x).float().split(90)
    errors = compensate_model(model, [weight], batches)["0"]
    wanted = compensate(matrix, mask, seen(x).centred())
    np.testing.assert_allclose(weight.to_matrix(weight.masked), wanted, atol=1e-3)
    shift = bias_shift(matrix, wanted, seen(x))
    np.testing.assert_allclose((model[0].bias - bias).detach(), shift, atol=5e-3)
    assert errors.after == pytest.approx(output_error(matrix, wanted, seen(x), shift), rel=1e-3)
    plain = compensate(matrix, mask, seen(x))
    assert np.abs(plain - wanted).max() > 0.01


def test_batch_norms_are_left_alone_when_asked(trained):
    model, data, *_ = trained
    for sequential in (False, True):
        pruned, weights = masked_copy(model, data, 0.8)
        compensate_model(
            pruned, weights, [data.train_x[:64]], batch_norm=False, sequential=sequential
        )
        assert torch.equal(pruned[4].running_mean, model[4].running_mean)
        compensate_model(pruned, weights, [data.train_x[:64]], sequential=sequential)
        assert not torch.equal(pruned[4].running_mean, model[4].running_mean)


def test_reference_of_ones_own():
    """What lies below the masks is of no account then."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    pruned = copy.deepcopy(dense)
    weights, _ = find_weights(TINY, pruned)
    for weight in weights:
        mask = torch.rand(weight.shape) < 0.6
        set_mask(weight.module, mask)
        with torch.no_grad():
            weight.dense[~mask] = 1e3
    x = torch.from_numpy(correlated(300, 12)).float()
    before = distance(pruned, dense, x)
    errors = compensate_model(pruned, weights, [x], reference=dense)
    assert distance(pruned, dense, x) < 0.7 * before
    assert all(e.after < e.before < 1 for e in errors.values())
    assert all(float(w.dense.detach().max()) == 1e3 for w in weights)
    # A second call starts from the reference, biases included.
    again = compensate_model(pruned, weights, [x], reference=dense)
    assert again["0"].after == pytest.approx(errors["0"].after)
    assert again["2"].after == pytest.approx(errors["2"].after, rel=1e-4)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(10, 12, 2, bidirectional=True)
        self.attention = nn.MultiheadAttention(24, 2)

    def forward(self, x):
        y, _ = self.lstm(x)
        return self.attention(y, y.flip(0), y)[0]


@pytest.mark.parametrize("sequential", [False, True])
def test_recurrent_layers_and_attention(sequential):
    torch.manual_seed(0)
    dense = Recurrent().eval()
    pruned = copy.deepcopy(dense)
    weights, _ = find_weights(TINY, pruned)
    assert len(weights) == 10
    for weight in weights:
        mask = top_mask(weight.to_matrix(weight.dense), 0.7)
        set_mask(weight.module, weight.from_matrix(mask), weight.tensor_name)
    x = torch.randn(9, 40, 10) + 0.5
    before = distance(pruned, dense, x)
    errors = compensate_model(pruned, weights, [x], sequential=sequential)
    assert set(errors) == {w.name for w in weights}
    assert distance(pruned, dense, x) < 0.8 * before


BIASES = (
    (nn.Linear(6, 4), 4),
    (nn.Conv2d(3, 4, 2), 4),
    (nn.LSTM(6, 4, 2, bidirectional=True, proj_size=2), 16 * 8),
    (nn.GRU(6, 4), 12 * 2),
    (nn.MultiheadAttention(6, 2), 18 + 6),
    (nn.MultiheadAttention(6, 2, kdim=4, vdim=5), 18 + 6),
)


class Called(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x):
        keys = (x, x[..., :4], x[..., :5]) if getattr(self.inner, "kdim", 6) == 4 else (x, x, x)
        y = self.inner(*keys) if isinstance(self.inner, nn.MultiheadAttention) else self.inner(x)
        return y[0] if isinstance(y, tuple) else y


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("module", "n_values"), BIASES)
def test_biases_take_up_the_means(module, n_values):
    """With all weights gone, each bias stands in for the mean of its product: mean outputs stay."""
    torch.manual_seed(0)
    dense = Called(copy.deepcopy(module)).eval()
    for name, parameter in dense.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    pruned = copy.deepcopy(dense)
    weights, _ = find_weights(TINY, pruned)
    for weight in weights:
        set_mask(weight.module, torch.zeros_like(weight.dense), weight.tensor_name)
    shape = (40, 3, 5, 5) if isinstance(module, nn.Conv2d) else (9, 40, 6)
    x = torch.randn(shape) + 0.5
    compensate_model(pruned, weights, [x])
    pairs = zip(dense.named_parameters(), pruned.parameters(), strict=False)
    moved = {n: int((p != dict(pruned.named_parameters())[n]).sum()) for (n, p), _ in pairs
             if "bias" in n}  # fmt: skip
    assert sum(moved.values()) == n_values
    if isinstance(module, nn.Linear | nn.Conv2d):
        mean = outputs(dense, x).transpose(0, 1) if shape[1] == 3 else outputs(dense, x)
        wanted = mean.flatten(1).mean(1) if shape[1] == 3 else mean.mean((0, 1))
        np.testing.assert_allclose(pruned.inner.bias.detach(), wanted, rtol=1e-3, atol=1e-4)


def test_unmasked_layers_make_up_for_those_before_them():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    pruned = copy.deepcopy(dense)
    weights, _ = find_weights(TINY, pruned)
    set_mask(pruned[0], torch.rand(10, 12) < 0.5)
    errors = compensate_model(pruned, weights, [torch.rand(300, 12)])
    assert errors["2"].after < 0.9 * errors["2"].before


# --- batch norm ----------------------------------------------------------------------------------


def batch_norm_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(9, 4), nn.BatchNorm1d(4, momentum=None, affine=False),
        nn.BatchNorm1d(4, track_running_stats=False),
    )  # fmt: skip


def uneven_batches() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(n, 2, 4) * (1 + n) + 1000 for n in (2, 7, 3)]


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_statistics(training):
    """All values of all batches as one sample; every batch by its own statistics on its way."""
    model, batches = batch_norm_model().train(training), uneven_batches()
    assert reestimate_batch_norm(model, iter(batches)) == 2
    assert all(m.training == training for m in model.modules())
    assert [len(m._forward_pre_hooks) for m in model] == [0] * 8
    wide = copy.deepcopy(model).double()
    wide[3].p = 0.0
    first = [wide[0](x.double()) for x in batches]
    values = torch.cat([y.transpose(0, 1).flatten(1) for y in first], dim=1)
    np.testing.assert_allclose(model[1].running_mean, values.mean(1).detach(), rtol=1e-5)
    np.testing.assert_allclose(model[1].running_var, values.var(1).detach(), rtol=1e-3)
    wide.train()
    second = torch.cat([wide[:6](x.double()) for x in batches]).detach()
    np.testing.assert_allclose(model[6].running_mean, second.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model[6].running_var, second.var(0), rtol=1e-3)
    assert model[1].num_batches_tracked == model[6].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration batches yield nothing"),
        (
            [*uneven_batches(), torch.randn(1, 2, 4)],
            "layer '6': a batch must have more than one value per channel",
        ),
        (
            [*uneven_batches(), torch.full((3, 2, 4), torch.nan)],
            "layer '1': the inputs of its batch norm must be finite",
        ),
    ],
)
def test_batch_norm_errors_change_nothing(batches, message):
    model = batch_norm_model().train()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with raises(message):
        reestimate_batch_norm(model, batches)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], t) for k, t in before.items())
    assert all(m.training for m in model.modules())


def test_no_batch_norm_no_pass():
    assert reestimate_batch_norm(nn.Linear(2, 2), iter([])) == 0
