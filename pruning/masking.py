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


def weight_mask(module: nn.Module, tensor_name: str = "weight") -> WeightMask | None:
    """The mask on a module's tensor, or None."""
    if not parametrize.is_parametrized(module, tensor_name):
        return None
    for part in module.parametrizations[tensor_name]:
        if isinstance(part, WeightMask):
            return part
    return None


def set_mask(module: nn.Module, mask: Tensor, tensor_name: str = "weight") -> None:
    """Mask a module's tensor, or change its mask in place.

    Parameters
    ----------
    mask
        Bool, the tensor's shape.

    Raises
    ------
    GshwError
        For another shape.
    """
    shape = dense_weight(module, tensor_name).shape
    if mask.shape != shape:
        raise GshwError(
            f"mask must have the {tensor_name}'s shape {tuple(shape)}, not {tuple(mask.shape)}"
        )
    present = weight_mask(module, tensor_name)
    if present is None:
        parametrize.register_parametrization(module, tensor_name, WeightMask(mask))
    else:
        present.mask.copy_(mask)


def dense_weight(module: nn.Module, tensor_name: str = "weight") -> Tensor:
    """The parameter below the mask: what pruned positions would be without it."""
    if parametrize.is_parametrized(module, tensor_name):
        return module.parametrizations[tensor_name].original
    return getattr(module, tensor_name)


def masked_tensors(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every (module, tensor name) that has a mask."""
    return [
        (module, tensor_name)
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for tensor_name in module.parametrizations
        if weight_mask(module, tensor_name) is not None
    ]


def squash_masks(model: nn.Module) -> None:
    """Write the masks' zeros into the weights and remove the parametrisations.

    The parameters stay the same objects, so an optimiser that holds them goes on.
    """
    for module, tensor_name in masked_tensors(model):
        parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=True)
