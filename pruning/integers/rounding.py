"""Integer codes for a compensated matrix that keep its output, not its weights, near the float's.

Rounding each weight to its nearest code ignores that inputs are correlated: errors of two weights
can be made to cancel. Here codes are chosen one column after the other, each the best given all
others (coordinate descent on the layer's least squares, over the integers), and each row's scale
is refitted in between. The objective is that of GPTQ (Frantar et al. 2022, arXiv 2210.17323).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gshw.errors import GshwError
from pruning.recovery.calibration import Moments
from pruning.recovery.least_squares import DAMPING, Problem, check_problem, compensate, to_tensor

_ROUNDS = 4
_BLOCK = 64
_FINE = 31
_SHRINKS = (1.0, 0.95, 0.9, 0.8)
"""First scales to try with few codes, where clipping the largest weight can pay."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantisedWeights:
    """Codes of a matrix and the float value of one code in each row.

    Parameters
    ----------
    codes
        Int16, shape (n_rows, n_columns), zero outside the mask. The largest magnitude of a row is
        the largest code, so that :func:`gshw.quantise.row_scales` finds the scale again.
    scales
        Shape (n_rows,), positive.
    """

    codes: NDArray[np.int16]
    scales: NDArray[np.float64]

    @property
    def weights(self) -> NDArray[np.float64]:
        """Codes times scales."""
        return self.codes * self.scales[:, None]


def quantise_compensated(
    weights: NDArray,
    mask: NDArray[np.bool_],
    moments: Moments,
    max_weight: int,
    *,
    steps: int = 10,
    damping: float = DAMPING,
    device: torch.device | str = "cpu",
) -> QuantisedWeights:
    """Compensate under the constraint that the weights are codes times a scale per row.

    Export finds the codes again from ``QuantisedWeights.weights``, in float32 too, also with a
    factor per row folded in (batch norm), as long as the largest weight sets the row's scale; only
    a narrow accumulator (or an enormous bias) forces a coarser one.

    Parameters
    ----------
    weights, mask, moments, steps, damping, device
        As :func:`pruning.recovery.least_squares.compensate`, whose solution is the starting point.
    max_weight
        Largest code; 127 for 8 bits.

    Raises
    ------
    GshwError
        As there, and for ``max_weight`` below 1.
    """
    if max_weight < 1:
        raise GshwError(f"max_weight must be at least 1, not {max_weight}")
    check_problem(weights, mask, moments)
    start = compensate(weights, mask, moments, steps=steps, damping=damping, device=device)
    codes, scales = np.zeros(weights.shape, dtype=np.int16), np.ones(len(weights))
    for rows, part in moments.parts(len(weights)):
        problem = Problem(weights[rows], part, damping, device)
        kept = torch.from_numpy(np.ascontiguousarray(mask[rows])).to(device)
        found = _best_codes(problem, kept, to_tensor(start[rows], device), max_weight)
        codes[rows], scales[rows] = (values.cpu().numpy() for values in found)
    return QuantisedWeights(codes=codes, scales=scales)


def _best_codes(
    problem: Problem, mask: Tensor, start: Tensor, max_weight: int
) -> tuple[Tensor, Tensor]:
    """Codes and scales of least error, row by row, over the first scales tried."""
    peaks, places = start.abs().max(dim=1)
    # The row's largest weight stays at the largest code, or export would find another scale.
    free = mask.scatter(1, places[:, None], False)
    empty = peaks == 0
    best_codes, best_scales = torch.zeros_like(start), torch.ones_like(peaks)
    best = torch.full_like(peaks, torch.inf)
    for shrink in _SHRINKS if max_weight <= _FINE else _SHRINKS[:1]:
        scales = torch.where(empty, 1.0, peaks * shrink / max_weight)
        codes = (start / scales[:, None]).round().clamp(-max_weight, max_weight)
        for _ in range(_ROUNDS):
            moved = _sweep(problem, codes, scales, free & ~empty[:, None], max_weight)
            scales = _fitted(problem, codes, scales)
            if not moved:
                break
        errors = problem.errors(codes * scales[:, None])
        better = errors < best
        best = torch.where(better, errors, best)
        best_codes = torch.where(better[:, None], codes, best_codes)
        best_scales = torch.where(better, scales, best_scales)
    return best_codes, best_scales


def _sweep(problem: Problem, codes: Tensor, scales: Tensor, free: Tensor, max_weight: int) -> bool:
    """One pass over the columns, in place; whether any code changed.

    Half the gradient is kept exact within a block of columns, and for the others once per block.
    """
    gram = problem.gram
    gradient = (codes * scales[:, None]) @ gram - problem.target
    curvature = gram.diagonal()
    moved = False
    for block in torch.arange(len(gram), device=gram.device).split(_BLOCK):
        # Transposed, so that a column is contiguous.
        slope = gradient[:, block].T.contiguous()
        old = codes[:, block].T.contiguous()
        new, may = old.clone(), free[:, block].T
        inner = gram[block][:, block]
        for place in range(len(block)):
            if not bool(may[place].any()):
                continue
            wanted = new[place] - slope[place] / (scales * curvature[block[place]])
            wanted = wanted.round().clamp(-max_weight, max_weight)
            wanted = torch.where(may[place], wanted, new[place])
            change = (wanted - new[place]) * scales
            new[place] = wanted
            slope.addr_(inner[place], change)
        change = new - old
        if bool(change.any()):
            moved = True
            codes[:, block] = new.T
            gradient += (change * scales).T @ gram[block]
    return moved


def _fitted(problem: Problem, codes: Tensor, scales: Tensor) -> Tensor:
    """Each row's scale of least error for its codes."""
    square = ((codes @ problem.gram) * codes).sum(dim=1)
    fitted = (codes * problem.target).sum(dim=1) / square
    return torch.where((square > 0) & (fitted > 0), fitted, scales)
