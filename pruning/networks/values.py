"""What a place of an exported graph stands for."""

from dataclasses import dataclass

from gshw.network.graph import Source
from pruning.networks.affine import Affine


@dataclass(frozen=True)
class Value:
    """What a place of the graph stands for.

    Parameters
    ----------
    affine
        Pending, or a tensor by itself.
    tensor
        Its name where it is just that.
    axis
        Of the channels in torch's shape; the pixels are the others but the first.
    flattened
        Channels and pixels (c, h, w) that torch has made one axis.
    is_state
        Of a recurrent layer: only another one can read it.
    selection
        Some channels of a tensor, where the affine is just that.
    head_axis
        Of the heads that the channels of a sequence are split into, before the last axis of
        torch's shape: 2 beside it, 1 before the steps. Only attention can read the latter.
    pieces
        Tensors whose channels follow each other, where the affine only puts them side by side.
    """

    affine: Affine
    tensor: str | None
    axis: int
    flattened: tuple[int, int, int] | None = None
    pieces: tuple[str, ...] = ()
    is_state: bool = False
    selection: Source | None = None
    head_axis: int | None = None
