"""Scores against their definitions, and gradients against finite differences."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from gshw.config import load_config
from gshw.errors import GshwError
from pruning.models.masking import set_mask, weight_mask
from pruning.models.weights import PrunableWeight, find_weights
from pruning.recovery.calibration import Moments
from pruning.scores import Score, load_function, loss_gradients, score_matrix

TINY = load_config("tiny").engine


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def layer(n_rows: int = 3, n_columns: int = 5) -> PrunableWeight:
    torch.manual_seed(1)
    return find_weights(TINY, nn.Sequential(nn.Linear(n_columns, n_rows)))[0][0]


def inputs(n_samples: int, n_columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(n_columns, n_columns))
    return rng.normal(size=(n_samples, n_columns)) @ mix


def seen(x: np.ndarray) -> Moments:
    return Moments(n_samples=len(x), gram=x.T @ x)


# --- kinds ---------------------------------------------------------------------------------------


def test_magnitude_of_a_convolution_in_the_matrix_order():
    conv = nn.Conv2d(3, 2, 2)
    weight = find_weights(TINY, nn.Sequential(conv))[0][0]
    scores = score_matrix(Score.MAGNITUDE, weight)
    wanted = conv.weight.detach().abs().permute(0, 2, 3, 1).reshape(2, -1).numpy()
    np.testing.assert_array_equal(scores, wanted)
    assert scores.dtype == np.float32


def test_wanda():
    weight, x = layer(), inputs(40, 5)
    wanted = np.abs(weight.to_matrix(weight.dense)) * np.sqrt((x**2).mean(axis=0))
    np.testing.assert_allclose(score_matrix(Score.WANDA, weight, moments=seen(x)), wanted, 1e-5)
    diagonal = Moments(n_samples=40, squares=(x**2).sum(axis=0))
    np.testing.assert_allclose(score_matrix(Score.WANDA, weight, moments=diagonal), wanted, 1e-5)


def test_hessian_is_the_error_of_removing_one_weight():
    """Remove a weight, solve the row's others by least squares: the mean squared error it costs."""
    weight, x = layer(), inputs(200, 5)
    matrix = weight.to_matrix(weight.dense).astype(np.float64)
    hessian = x.T @ x / 200
    hessian += 0.01 * np.trace(hessian) / 5 * np.eye(5)
    root = np.linalg.cholesky(hessian).T
    scores = score_matrix(Score.HESSIAN, weight, moments=seen(x))
    for row, column in np.ndindex(3, 5):
        others = np.delete(root, column, axis=1)
        residual = np.linalg.lstsq(others, root @ matrix[row], rcond=None)[1]
        np.testing.assert_allclose(scores[row, column], residual[0], rtol=1e-4)


def test_hessian_of_dead_inputs_is_finite():
    """A column of zeros is worth next to nothing; so are all columns if nothing comes in."""
    weight, x = layer(), inputs(40, 5)
    x[:, 2] = 0
    scores = score_matrix(Score.HESSIAN, weight, moments=seen(x))
    squares = weight.to_matrix(weight.dense) ** 2
    assert (scores / squares).argmin(axis=1).tolist() == [2, 2, 2]
    assert score_matrix(Score.HESSIAN, weight, moments=seen(0 * x)).max() < 1e-30


@pytest.mark.parametrize("kind", [Score.WANDA, Score.HESSIAN])
def test_rows_with_inputs_of_their_own(kind):
    weight = layer(6, 5)
    xs = [inputs(40, 5, seed) for seed in range(3)]
    moments = Moments(n_samples=40, gram=np.stack([x.T @ x for x in xs]))
    scores = score_matrix(kind, weight, moments=moments)
    for part, x in enumerate(xs):
        rows = slice(2 * part, 2 * part + 2)
        np.testing.assert_array_equal(
            scores[rows], score_matrix(kind, weight, moments=seen(x))[rows]
        )


def test_gradient():
    weight = layer()
    gradient = np.arange(-7.0, 8.0).reshape(3, 5)
    wanted = np.abs(gradient * weight.to_matrix(weight.dense))
    found = score_matrix(Score.GRADIENT, weight, gradient=gradient)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_scores_look_below_the_mask():
    weight = layer()
    before = score_matrix(Score.MAGNITUDE, weight)
    set_mask(weight.module, torch.zeros(3, 5))
    np.testing.assert_array_equal(score_matrix(Score.MAGNITUDE, weight), before)
    assert before.min() > 0


# --- the user's function -------------------------------------------------------------------------


def largest_column(weights: np.ndarray, name: str) -> np.ndarray:
    assert name == "0" and weights.dtype == np.float32
    scores = weights * 0 + np.arange(weights.shape[1])
    weights[:] = np.nan
    return scores


not_a_function = 3


@pytest.mark.parametrize("function", [largest_column, f"{__name__}:largest_column"])
def test_function(function):
    """By object or by path; it gets a copy."""
    weight = layer()
    scores = score_matrix(Score.FUNCTION, weight, function=function)
    assert scores.tolist() == [[0, 1, 2, 3, 4]] * 3 and scores.dtype == np.float32
    assert np.isfinite(weight.to_matrix(weight.dense)).all()


@pytest.mark.parametrize("path", ["scores", "scores:", ":name", ""])
def test_function_path_of_another_form(path):
    with raises(f"score function must be package.module:name, not {path!r}"):
        load_function(path)


def test_function_that_is_not_there():
    with raises("score function 'nowhere.at_all:f': No module named 'nowhere'"):
        load_function("nowhere.at_all:f")
    for name in ("missing", "not_a_function"):
        with raises(f"score function '{__name__}:{name}': {__name__} has no function {name!r}"):
            load_function(f"{__name__}:{name}")


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (np.ones((5, 3)), "float64 of shape (5, 3)"),
        (np.ones((3, 5), dtype=complex), "complex128 of shape (3, 5)"),
        ([["a"] * 5] * 3, "<U1 of shape (3, 5)"),
        (1.0, "float64 of shape ()"),
    ],
)
def test_function_of_other_results(result, shown):
    rule = "scores must be real numbers of the weights' shape (3, 5)"
    with raises(f"layer '0': {rule}, not {shown}"):
        score_matrix(Score.FUNCTION, layer(), function=lambda w, name: result)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_scores_that_are_not_finite(bad):
    """Also those that float32 cannot hold."""

    def function(weights, name):
        scores = np.ones(weights.shape)
        scores[1, 2] = bad
        return scores

    shown = "nan" if np.isnan(bad) else "inf"
    with raises(f"layer '0': scores must be finite, not {shown} at (1, 2)"):
        score_matrix(Score.FUNCTION, layer(), function=function)


# --- what is missing -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Score))
def test_missing_input(kind):
    wanted = {
        Score.WANDA: "layer '0': score 'wanda' needs calibration moments",
        Score.HESSIAN: "layer '0': score 'hessian' needs calibration moments",
        Score.GRADIENT: "layer '0': score 'gradient' needs a gradient",
        Score.FUNCTION: "layer '0': score 'function' needs a function",
    }
    assert kind.needs_moments == (kind in (Score.WANDA, Score.HESSIAN))
    if kind in wanted:
        with raises(wanted[kind]):
            score_matrix(kind, layer())
    else:
        assert score_matrix(kind, layer()).shape == (3, 5)


def test_moments_that_do_not_fit():
    with raises("layer '0': moments must have 5 columns, not 4"):
        score_matrix(Score.WANDA, layer(), moments=seen(inputs(9, 4)))
    with raises("layer '0': score 'hessian' needs the whole Gram matrix"):
        score_matrix(Score.HESSIAN, layer(), moments=Moments(n_samples=1, squares=np.ones(5)))


# --- gradients -----------------------------------------------------------------------------------


def small_model() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(9, 2),
    ).double()  # fmt: skip


def batches(n: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(3)
    return [
        (torch.randn(5, 2, 4, dtype=torch.float64), torch.randint(0, 2, (5,))) for _ in range(n)
    ]


def test_gradients_by_finite_differences():
    """Mean over batches of magnitudes; masked places as if they were open and zero."""
    model, data, loss = small_model().train(), batches(), nn.CrossEntropyLoss()
    weights, _ = find_weights(TINY, model, data[0][0])
    mask = torch.rand(2, 9) < 0.5
    set_mask(model[5], mask)
    found = loss_gradients(model, weights, data, loss)
    assert model.training and model[3].training
    model.eval()
    for weight in weights:
        used = weight.masked.detach().clone()
        present = weight_mask(weight.module)
        if present is not None:
            present.mask.fill_(True)
        wanted = torch.zeros_like(used)
        for place in np.ndindex(*used.shape):
            sides = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    weight.dense.copy_(used)
                    weight.dense[place] += step
                    sides.append([float(loss(model(x), y)) for x, y in data])
            wanted[place] = np.abs(np.subtract(*sides)).mean() / 2e-5
        with torch.no_grad():
            weight.dense.copy_(used)
        np.testing.assert_allclose(found[weight.name], weight.to_matrix(wanted), 1e-4, 1e-7)
        assert found[weight.name].dtype == np.float32


def test_gradients_leave_the_model_alone():
    model, data = small_model().train(), batches()
    weights, _ = find_weights(TINY, model, data[0][0])
    set_mask(model[5], torch.rand(2, 9) < 0.5)
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(3, dtype=torch.float64)
    before = [t.clone() for t in model.state_dict().values()]
    loss_gradients(model, weights, data, nn.CrossEntropyLoss())
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert not model[0].weight.requires_grad and model[5].bias.requires_grad
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["0.bias"] and grads["0.bias"].tolist() == [1, 1, 1]
    assert not weight_mask(model[5]).capture_gradient


def test_gradients_of_nothing():
    model = small_model()
    weights, _ = find_weights(TINY, model)
    loss = nn.CrossEntropyLoss()
    with raises("calibration batches yield nothing"):
        loss_gradients(model, weights, [], loss)
    with raises("gradient scores need batches of (input, target)"):
        loss_gradients(model, weights, [batches()[0][0]], loss)


def test_gradient_that_is_not_finite():
    model = small_model()
    x, y = batches()[0]
    x[0, 0, 0] = torch.inf
    with raises("layer '0': its gradients must be finite"):
        loss_gradients(model, find_weights(TINY, model, x)[0], [(x, y)], nn.CrossEntropyLoss())


def test_weight_that_the_loss_does_not_use():
    model = small_model()
    weights, _ = find_weights(TINY, model, batches()[0][0])
    with raises("layer '5': no gradient of the loss reaches it"):
        loss_gradients(model[:3], weights, batches(1), lambda y, _: y.square().sum())
