"""Channel dealing: which input channel goes to which bank, folded through a model.

The channels of a map may have any order that its producers and all its readers agree on. For every
map :func:`deal_network` finds an order that suits the banks (:mod:`pruning.channels.banks`) and
folds it into the weights (:mod:`pruning.channels.permute`).

Nothing else needs to know. The engine stores maps channel-last in the order in which the producing
layer has its output rows, and that order then *is* the reader's column order: export, encoder,
golden model and driver handle a dealt model like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gshw.config import EngineConfig
from gshw.errors import GshwError
from pruning.channels.banks import UNFOLDED, Reader, deal_columns
from pruning.channels.permute import TensorSlice, apply_permutation, channel_spaces, slice_order
from pruning.models.weights import PrunableWeight, find_weights
from pruning.patterns.pattern import RowGrouping, ScoredMatrix

__all__ = ["Dealing", "Reader", "deal_columns", "deal_network"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dealing:
    """What :func:`deal_network` did.

    Parameters
    ----------
    dealt
        By the name of a weight: the order of its input channels (axis 1 of its tensor), shape
        (n_inputs,): place p has what was channel ``order[p]``.
    refused
        Why the input channels of the other weights kept their order.
    """

    dealt: dict[str, NDArray[np.int64]]
    refused: dict[str, str]


def deal_network(
    config: EngineConfig,
    model: nn.Module,
    example: Tensor,
    scores: Mapping[str, NDArray] | None,
    sparsity: float | Mapping[str, float],
    grouping: RowGrouping = RowGrouping.SCATTER,
) -> Dealing:
    """Deal the channels of all maps of a model, in place; it computes the same, to float rounding.

    Deal before masks are attached, and before an optimiser has gathered anything about weights.

    Parameters
    ----------
    example
        A batch of inputs; the model is run on it once.
    scores
        By the name of a weight (:func:`pruning.models.weights.find_weights`), shape (n_rows,
        n_columns) in the order before dealing; magnitudes for the others. They do not follow the
        permutation: score again afterwards.
    sparsity
        To prune to, one for all or by the name of a weight. Weights without one are not pruned;
        they are permuted where they have to be, but have no say.

    Returns
    -------
    Dealing
        Every weight that could be pruned is in one of its two dictionaries.

    Raises
    ------
    GshwError
        For a model without weights to prune, or scores of another shape or not finite.
    """
    weights, _ = find_weights(config, model, example)
    try:
        spaces = channel_spaces(model, example)
    except GshwError as error:
        return Dealing(dealt={}, refused={weight.name: str(error) for weight in weights})
    paths = {module: path for path, module in model.named_modules()}
    name_of = {f"{paths[w.module]}.{w.tensor_name}": w.name for w in weights}
    # In the shape of the weights' tensors, so that they follow every permutation.
    present = {w.name: _score_tensor(w, scores) for w in weights}
    inputs = {w.name: np.arange(w.dense.shape[1]) for w in weights}
    reasons: dict[str, str] = {}
    dealt: set[str] = set()
    # Last maps first: consecutive bundles of a layer are final once its own rows are in order.
    for space in reversed(spaces):
        # By weight and axis of its tensor: where it holds the space's channels.
        parts: dict[tuple[str, int], list[TensorSlice]] = {}
        for part in space.slices:
            if part.tensor in name_of:
                parts.setdefault((name_of[part.tensor], part.axis), []).append(part)
        readers = []
        for weight in weights:
            if (weight.name, 1) not in parts:
                continue
            wanted = sparsity.get(weight.name) if isinstance(sparsity, Mapping) else sparsity
            reason = f"its input channels keep their order: {space.refused}"
            if space.refused is None:
                reason = UNFOLDED if weight.geometry.unfold else "it is not pruned"
            if space.refused is not None or weight.geometry.unfold or wanted is None:
                reasons.setdefault(weight.name, reason)
                continue
            matrix = ScoredMatrix(
                name=weight.name,
                scores=weight.to_matrix(present[weight.name]),
                geometry=weight.geometry,
            )
            channel = _channel_of_columns(weight, parts[weight.name, 1], space.n_channels)
            readers.append(Reader(matrix=matrix, sparsity=wanted, channel=channel))
        if not readers:
            continue
        order = deal_columns(config, readers, grouping)
        apply_permutation(model, space, order)
        dealt |= {reader.matrix.name for reader in readers}
        for (name, axis), along in parts.items():
            moved = slice_order(along, order, present[name].shape[axis])
            present[name] = np.take(present[name], moved, axis=axis)
            if axis == 1:
                inputs[name] = inputs[name][moved]
    unknown = "its input channels keep their order: torch.fx does not show what it reads"
    return Dealing(
        dealt={name: order for name, order in inputs.items() if name in dealt},
        refused={name: reasons.get(name, unknown) for name in inputs if name not in dealt},
    )


def _score_tensor(weight: PrunableWeight, scores: Mapping[str, NDArray] | None) -> NDArray:
    if scores is None or weight.name not in scores:
        magnitudes = weight.dense.detach().abs().cpu()
        return (magnitudes.float() if magnitudes.dtype.itemsize < 4 else magnitudes).numpy()
    given = np.asarray(scores[weight.name])
    if given.shape != weight.shape:
        raise GshwError(
            f"layer {weight.name!r}: scores must have shape {weight.shape}, not {given.shape}"
        )
    return weight.from_matrix(given).cpu().numpy()


def _channel_of_columns(
    weight: PrunableWeight, parts: list[TensorSlice], n_channels: int
) -> NDArray[np.int64]:
    """Channel of the space that each column of the weight's matrix holds, or -1."""
    place = np.unravel_index(weight.index[0], tuple(weight.dense.shape))[1]
    channel = np.full(place.size, -1)
    for part in parts:
        inside = (part.start <= place) & (place < part.start + n_channels * part.inner)
        channel[inside] = (place[inside] - part.start) // part.inner
    return channel
