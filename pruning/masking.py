"""Masks that live in the model: applied in every forward pass, kept in the state dict."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from gshw.errors import GshwError


class WeightMask(nn.Module):
    """Parametrisation that multiplies a weight by a persistent bool buffer."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool().clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def weight_mask(module: nn.Module) -> WeightMask | None:
    """The module's mask, or None."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    for part in module.parametrizations["weight"]:
        if isinstance(part, WeightMask):
            return part
    return None


def set_mask(module: nn.Module, mask: Tensor) -> None:
    """Mask a module's weight, or change its mask in place.

    Parameters
    ----------
    mask
        Bool, the weight's shape.

    Raises
    ------
    GshwError
        For another shape.
    """
    if mask.shape != module.weight.shape:
        raise GshwError(
            f"mask must have the weight's shape {tuple(module.weight.shape)}, "
            f"not {tuple(mask.shape)}"
        )
    present = weight_mask(module)
    if present is None:
        parametrize.register_parametrization(module, "weight", WeightMask(mask))
    else:
        present.mask.copy_(mask)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight below the mask: what pruned positions would be without it."""
    if parametrize.is_parametrized(module, "weight"):
        return module.parametrizations["weight"].original
    return module.weight


def squash_masks(model: nn.Module) -> None:
    """Write the masks' zeros into the weights and remove the parametrisations."""
    for module in model.modules():
        if weight_mask(module) is not None:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
