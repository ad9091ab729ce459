"""The kept weights of a matrix that give its output back best: masked least squares.

With the mask fixed, each row w of a layer is solved anew: w' minimises ||X' w' - X w||^2 over its
kept entries, X what the layer read before pruning and X' what it reads now. Only second moments of
the inputs (:mod:`pruning.recovery.calibration`) are needed. The normal equations of all rows share
one matrix, so conjugate gradients restricted to each row's mask solve them together (masked
conjugate gradients after pruning: Meng et al. 2024, ALPS, arXiv 2406.07831).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gshw.errors import GshwError
from pruning.recovery.calibration import Moments

DAMPING = 0.01
"""Weight of ||w' - w||^2, relative to the mean squared input of a column."""

_RANK = 32
"""Directions of the inputs that the preconditioner knows; see :class:`_Preconditioner`."""

_POWER_STEPS = 4
_LEAST_REST = 0.02
_LEAST_GAIN = 1e-6
_CHUNK_ELEMENTS = 1 << 23


def output_error(
    weights: NDArray, compensated: NDArray, moments: Moments, shift: NDArray | None = None
) -> float:
    """Relative error of a layer's output on the calibration inputs.

    ``||X' W'^T + shift - X W^T|| / ||X W^T||`` in the Frobenius norm; X' = X without a reference.
    Zero where both outputs are zero.

    Parameters
    ----------
    weights, compensated
        W and W', shape (n_rows, n_columns).
    shift
        Shape (n_rows,): how much the bias has changed; takes moments with sums.
    """
    wrong, whole = 0.0, 0.0
    for rows, part in moments.parts(len(weights)):
        problem = Problem(weights[rows], part, 0.0, "cpu")
        wrong += float(problem.errors(to_tensor(compensated[rows], "cpu")).sum())
        whole += float(problem.energy.sum())
        if shift is not None:
            lack = bias_shift(weights[rows], compensated[rows], part)
            wrong += part.n_samples * float((shift[rows] * (shift[rows] - 2 * lack)).sum())
    # Differences of large sums may come out below zero.
    wrong = max(wrong, 0.0)
    return float(np.sqrt(wrong / whole)) if whole > 0 else float(np.sqrt(wrong))


def bias_shift(weights: NDArray, compensated: NDArray, moments: Moments) -> NDArray[np.float64]:
    """What the mean output lacks of the dense layer's, shape (n_rows,): add it to the bias."""
    shift = np.empty(len(weights))
    for rows, part in moments.parts(len(weights)):
        mine, theirs = part.means()
        shift[rows] = weights[rows].astype(np.float64) @ theirs - compensated[rows] @ mine
    return shift


def compensate(
    weights: NDArray,
    mask: NDArray[np.bool_],
    moments: Moments,
    *,
    steps: int = 10,
    damping: float = DAMPING,
    device: torch.device | str = "cpu",
) -> NDArray[np.float64]:
    """Kept weights that give the layer's output back as well as they can.

    Parameters
    ----------
    weights
        Shape (n_rows, n_columns): those of the dense layer.
    mask
        Same shape; True where a weight is kept.
    moments
        Of the layer's input, with Gram matrix; centred where the bias follows by
        :func:`bias_shift`.
    steps
        Conjugate gradients, at most: they stop when a step hardly gains. On the digits network's
        layers ten come within 0.01 % of the exact solution's output error at 90 % sparsity and
        within about 2 % at 50 %.
    damping
        Weight of ||w' - w||^2 relative to the mean diagonal of the Gram matrix: what few
        calibration samples cannot decide stays near the old weights.
    device
        Where to compute, in float64.

    Returns
    -------
    ndarray
        Float64, shape (n_rows, n_columns), zero outside the mask.

    Raises
    ------
    GshwError
        For shapes that do not fit, weights that are not finite, moments without Gram matrix, or a
        damping that is not positive.
    """
    check_problem(weights, mask, moments)
    if not damping > 0:
        raise GshwError(f"damping must be positive, not {damping:g}")
    found = np.zeros(weights.shape)
    for rows, part in moments.parts(len(weights)):
        problem = Problem(weights[rows], part, damping, device)
        found[rows] = _solve(problem, torch.from_numpy(mask[rows]).to(device), steps)
    return found


def check_problem(weights: NDArray, mask: NDArray, moments: Moments) -> None:
    """Refuse what :func:`compensate` cannot solve.

    Raises
    ------
    GshwError
        For shapes that do not fit, weights that are not finite, or moments without Gram matrix.
    """
    if mask.shape != weights.shape or moments.n_columns != weights.shape[1]:
        raise GshwError(
            f"weights {weights.shape} must come with a mask of that shape and moments of "
            f"{weights.shape[1]} columns, not {mask.shape} and {moments.n_columns}"
        )
    if moments.gram is None:
        raise GshwError("compensation needs the whole Gram matrix, not its diagonal")
    if not np.isfinite(weights).all():
        raise GshwError("weights to compensate must be finite")


def to_tensor(values: NDArray, device: torch.device | str) -> Tensor:
    """Float64, on a device."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(device)


class Problem:
    """The quadratic whose minimum each row seeks: w' A w'^T - 2 w' b^T + constant.

    Attributes
    ----------
    gram, target
        A (n_columns, n_columns) and b (n_rows, n_columns), damping included.
    energy
        Shape (n_rows,): what the row's output sums to in squares before pruning.
    """

    def __init__(
        self, weights: NDArray, moments: Moments, damping: float, device: torch.device | str
    ) -> None:
        dense = to_tensor(weights, device)
        gram = to_tensor(moments.gram, device)
        output = (
            dense @ gram if moments.cross is None else dense @ to_tensor(moments.cross, device).T
        )
        before = (
            output if moments.reference is None else dense @ to_tensor(moments.reference, device)
        )
        # An input that was always zero leaves nothing to solve; any scale keeps it regular.
        level = damping * (float(gram.trace()) / len(gram) or 1.0)
        self.dense = dense
        self.gram = gram.clone()
        self.gram.diagonal().add_(level)
        self.target = output + level * dense
        self.energy = (before * dense).sum(dim=1)
        self._constant = self.energy + level * dense.square().sum(dim=1)

    def errors(self, weights: Tensor) -> Tensor:
        """Squared error of each row, damping included."""
        fit = (weights @ self.gram - 2 * self.target) * weights
        return fit.sum(dim=1) + self._constant


class _Preconditioner:
    """Inverse of a low rank plus a diagonal, on each row's kept columns.

    Inputs of real layers share a few strong directions (their mean, to begin with), which slow
    conjugate gradients down on every row. Scaled to unit diagonal, the Gram matrix is nearly
    U L U^T + D: U the strongest directions (block power iteration), D what they leave of the
    diagonal. Restricted to a row's columns that is inverted by Woodbury's identity with one small
    matrix per row. Ours; on the digits network's layers a diagonal alone takes 12 steps for what
    this does in 3 at 90 % sparsity, and at 50 % it is 25 % off after 20, this 2 % after 10.
    """

    def __init__(self, gram: Tensor) -> None:
        n_columns = len(gram)
        rank = min(_RANK, max(1, n_columns // 4))
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(n_columns, rank, generator=generator, dtype=gram.dtype)
        basis = torch.linalg.qr(gram @ basis.to(gram.device)).Q
        for _ in range(_POWER_STEPS):
            basis = torch.linalg.qr(gram @ basis).Q
        values, vectors = torch.linalg.eigh(basis.T @ gram @ basis)
        # Equal columns give fewer directions than asked for.
        self.basis = basis @ vectors
        self.values = values.clamp(min=_LEAST_REST)
        self.rest = (1.0 - self.basis.square() @ self.values).clamp(min=_LEAST_REST)

    def restrict(self, mask: Tensor) -> None:
        """Set the rows' masks (n_rows, n_columns)."""
        self._scale = mask / self.rest
        pairs = self.basis[:, :, None] * self.basis[:, None, :]
        rank = self.basis.shape[1]
        small = (self._scale @ pairs.reshape(len(pairs), -1)).reshape(-1, rank, rank)
        small.diagonal(dim1=1, dim2=2).add_(1.0 / self.values)
        self._factor = torch.linalg.cholesky(small)

    def __call__(self, residual: Tensor) -> Tensor:
        scaled = residual * self._scale
        inner = torch.cholesky_solve((scaled @ self.basis)[:, :, None], self._factor)[:, :, 0]
        return scaled - (inner @ self.basis.T) * self._scale


def _solve(problem: Problem, mask: Tensor, steps: int) -> NDArray[np.float64]:
    """Masked conjugate gradients from the pruned weights, a chunk of rows at a time."""
    scale = problem.gram.diagonal().rsqrt()
    gram = problem.gram * scale * scale[:, None]
    preconditioner = _Preconditioner(gram)
    n_rows = max(1, _CHUNK_ELEMENTS // len(gram))
    found = []
    for rows in torch.arange(len(mask)).split(n_rows):
        start = problem.dense[rows] * mask[rows] / scale
        solved = _descend(
            gram, problem.target[rows] * scale, mask[rows], start, preconditioner, steps
        )
        found.append(solved * scale)
    return torch.cat(found).cpu().numpy()


def _descend(
    gram: Tensor,
    target: Tensor,
    mask: Tensor,
    weights: Tensor,
    preconditioner: _Preconditioner,
    steps: int,
) -> Tensor:
    preconditioner.restrict(mask)
    residual = (target - weights @ gram) * mask
    step = preconditioner(residual)
    direction = step
    slope = (residual * step).sum(dim=1)
    gained = torch.zeros_like(slope)
    tiny = torch.finfo(gram.dtype).tiny
    for _ in range(steps):
        image = (direction @ gram) * mask
        length = slope / (direction * image).sum(dim=1).clamp(min=tiny)
        weights = weights + length[:, None] * direction
        gain = length * slope
        gained = gained + gain
        if bool((gain <= _LEAST_GAIN * gained).all()):
            break
        residual = residual - length[:, None] * image
        step = preconditioner(residual)
        before, slope = slope, (residual * step).sum(dim=1)
        direction = step + (slope / before.clamp(min=tiny))[:, None] * direction
    return weights
