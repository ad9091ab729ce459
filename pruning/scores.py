"""What each weight is worth: the larger its score, the rather a pattern keeps it.

Scores are sums' terms: a pattern maximises the sum of those it keeps, over a bundle, a layer, or
with a network budget over all layers. So they are compared between rows and not only within one.
"""

import enum
import importlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gshw.errors import GshwError
from pruning.models.masking import capture_gradients, weight_mask
from pruning.models.weights import PrunableWeight
from pruning.patterns.pattern import check_finite
from pruning.recovery.calibration import Moments, batch_input, evaluating

DAMPING = 0.01
"""Added to the diagonal of X^T X, relative to its mean (as SparseGPT)."""

ScoreFunction = Callable[[NDArray, str], NDArray]
"""Takes the weights (n_rows, n_columns) and their name, returns scores of that shape."""


class Score(enum.Enum):
    """How a weight is scored.

    ``MAGNITUDE``
        ``abs(w)`` (Han et al. 2015, arXiv 1506.02626).
    ``WANDA``
        ``abs(w) * rms(x)`` of the weight's input (Sun et al. 2023, arXiv 2306.11695). The paper
        ranks within a row and sums x over its samples; the root *mean* square makes layers with
        different numbers of positions comparable, and changes no order within a layer.
    ``HESSIAN``
        ``w**2 / diag(H^-1)``, H the mean of x x^T, damped: what the output's mean squared error
        grows by if the weight goes and the row's others make up for it (Hassibi & Stork 1993;
        per layer as Frantar & Alistarh 2023, arXiv 2301.00774).
    ``GRADIENT``
        ``abs(g * w)``, the first-order change of the loss (Molchanov et al. 2016,
        arXiv 1611.06440); see :func:`loss_gradients`.
    ``FUNCTION``
        The user's own.
    """

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    HESSIAN = "hessian"
    GRADIENT = "gradient"
    FUNCTION = "function"

    @property
    def needs_moments(self) -> bool:
        """Whether calibration inputs are needed."""
        return self in (Score.WANDA, Score.HESSIAN)


def score_matrix(
    kind: Score,
    weight: PrunableWeight,
    *,
    moments: Moments | None = None,
    gradient: NDArray | None = None,
    function: ScoreFunction | str | None = None,
) -> NDArray[np.float32]:
    """Scores of all weights of one matrix, masked or not: from the values below the mask.

    Parameters
    ----------
    moments
        Of the weight's input: for ``WANDA`` (its diagonal will do) and ``HESSIAN``.
    gradient
        Shape (n_rows, n_columns), for ``GRADIENT``.
    function
        For ``FUNCTION``; a string is read by :func:`load_function`.

    Returns
    -------
    ndarray
        Float32, shape (n_rows, n_columns).

    Raises
    ------
    GshwError
        Where the kind's own input is missing, and for scores of another shape or not finite.
    """
    matrix = weight.to_matrix(weight.dense)
    if kind.needs_moments:
        scores = _from_inputs(kind, weight, matrix, moments)
    elif kind is Score.GRADIENT:
        if gradient is None:
            raise GshwError(f"layer {weight.name!r}: score 'gradient' needs a gradient")
        scores = np.abs(gradient * matrix)
    elif kind is Score.FUNCTION:
        if function is None:
            raise GshwError(f"layer {weight.name!r}: score 'function' needs a function")
        function = load_function(function) if isinstance(function, str) else function
        scores = np.asarray(function(matrix, weight.name))
    else:
        scores = np.abs(matrix)
    if scores.shape != matrix.shape or scores.dtype.kind not in "fiu":
        raise GshwError(
            f"layer {weight.name!r}: scores must be real numbers of the weights' shape "
            f"{matrix.shape}, not {scores.dtype} of shape {scores.shape}"
        )
    with np.errstate(over="ignore"):  # What overflows is infinite, and refused.
        scores = scores.astype(np.float32)
    check_finite(weight.name, scores)
    return scores


def _from_inputs(
    kind: Score, weight: PrunableWeight, matrix: NDArray, moments: Moments | None
) -> NDArray:
    if moments is None:
        raise GshwError(f"layer {weight.name!r}: score {kind.value!r} needs calibration moments")
    if moments.n_columns != matrix.shape[1]:
        raise GshwError(
            f"layer {weight.name!r}: moments must have {matrix.shape[1]} columns, "
            f"not {moments.n_columns}"
        )
    if kind is Score.HESSIAN and moments.gram is None:
        raise GshwError(f"layer {weight.name!r}: score 'hessian' needs the whole Gram matrix")
    scores = np.empty(matrix.shape)
    for rows, part in moments.parts(len(matrix)):
        if kind is Score.WANDA:
            scores[rows] = np.abs(matrix[rows]) * np.sqrt(part.diagonal / part.n_samples)
        else:
            scores[rows] = matrix[rows].astype(np.float64) ** 2
            scores[rows] /= _inverse_diagonal(np.divide(part.gram, part.n_samples))
    return scores


def _inverse_diagonal(hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    """diag(H^-1), H damped."""
    # Inputs that are all zero make any damping do; the scores are then nearly zero.
    level = DAMPING * (np.trace(hessian) / len(hessian)) or np.finfo(np.float32).tiny
    return np.diagonal(np.linalg.inv(hessian + level * np.eye(len(hessian))))


def load_function(path: str) -> ScoreFunction:
    """The function at ``package.module:name``.

    Raises
    ------
    GshwError
        For a path of another form, a module that cannot be imported, or no such function in it.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise GshwError(f"score function must be package.module:name, not {path!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise GshwError(f"score function {path!r}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise GshwError(f"score function {path!r}: {module_name} has no function {name!r}")
    return function


def loss_gradients(
    model: nn.Module,
    weights: list[PrunableWeight],
    batches: Iterable,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, NDArray[np.float32]]:
    """Mean over the batches of the loss's gradient magnitude, by weight.

    Magnitudes, since the gradient itself is close to zero on the average over the data that a
    model was trained on. Gradients are with respect to the weights as the model uses them: those
    of masked places say what they would change. The model runs in evaluation mode and is left as
    it was, ``grad`` included.

    Parameters
    ----------
    batches
        Tuples of which the first two elements are input and target.
    loss
        Of (output, target), a scalar.

    Returns
    -------
    dict
        Float32 arrays of shape (n_rows, n_columns) by weight name.

    Raises
    ------
    GshwError
        For batches that yield nothing or have no target, and for a weight that no gradient
        reaches or whose gradient is not finite, naming it.
    """
    dense = {weight.name: weight.dense for weight in weights}
    needed = {name: tensor.requires_grad for name, tensor in dense.items()}
    sums: dict[str, Tensor] = {}
    n_batches = 0
    try:
        for tensor in dense.values():
            tensor.requires_grad_(True)
        # cuDNN has no backward pass for recurrent layers in evaluation mode.
        with (
            evaluating(model),
            torch.enable_grad(),
            capture_gradients(model),
            torch.backends.cudnn.flags(enabled=False),
        ):
            for batch in batches:
                if not isinstance(batch, tuple | list) or len(batch) < 2:
                    raise GshwError("gradient scores need batches of (input, target)")
                value = loss(model(batch_input(batch)), batch[1])
                found = torch.autograd.grad(value, list(dense.values()), allow_unused=True)
                for weight, gradient in zip(weights, found, strict=True):
                    mask = weight_mask(weight.module, weight.tensor_name)
                    gradient = gradient if mask is None else mask.take_gradient()
                    if gradient is not None:
                        sums[weight.name] = sums.get(weight.name, 0) + gradient.abs().double()
                n_batches += 1
    finally:
        for name, tensor in dense.items():
            tensor.requires_grad_(needed[name])
    if not n_batches:
        raise GshwError("calibration batches yield nothing")
    gradients = {}
    for weight in weights:
        if weight.name not in sums:
            raise GshwError(f"layer {weight.name!r}: no gradient of the loss reaches it")
        mean = weight.to_matrix(sums[weight.name] / n_batches).astype(np.float32)
        if not np.isfinite(mean).all():
            raise GshwError(f"layer {weight.name!r}: its gradients must be finite")
        gradients[weight.name] = mean
    return gradients
