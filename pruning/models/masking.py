"""Masks that live in the model: applied in every forward pass, kept in the state dict.

A mask is a ``torch.nn.utils.parametrize`` parametrisation with a persistent bool buffer, so what
torch does with parameters and buffers it does with masks: state dict, deepcopy, ``torch.export``,
``torch.compile``, DDP, and FSDP2 (``fully_shard`` after the masks are attached). As for every
parametrised module, torch refuses to pickle one; save its state dict and see :func:`attach_masks`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gshw.errors import GshwError

_MASK_KEY = re.compile(r"(?:(?P<module>.+)\.)?parametrizations\.(?P<tensor>\w+)\.\d+\.mask")


class WeightMask(nn.Module):
    """Parametrisation that sets a weight to zero where a persistent bool buffer is False.

    What lies below the mask may be anything, even NaN; its gradient is zero where it is masked.

    Attributes
    ----------
    mask
        Bool, the weight's shape.
    row_order
        Int64, the rows of the weight's matrix in bundle order, kept with the mask in the state
        dict; None where the mask has no bundles, or they are of consecutive rows.
    capture_gradient
        While True, every backward pass adds the gradient with respect to the *masked* weight to
        what :meth:`take_gradient` returns: what the loss would gain from a weight at any place,
        masked or not. This is the score by which RigL grows (Evci et al. 2020, arXiv 1911.11134).
        See also :func:`capture_gradients`.
    """

    mask: Tensor
    row_order: Tensor | None

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool().clone())
        self.register_buffer("row_order", None)
        self.capture_gradient = False
        self._gradient: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        mask = self.mask
        if _is_sharded(weight) and not _is_sharded(mask):
            mask = _shard_like(mask, weight)
        masked = torch.where(mask, weight, 0)
        if self.capture_gradient and masked.requires_grad:
            masked.register_hook(self._add_gradient)
        return masked

    def _load_from_state_dict(self, state_dict: Mapping, prefix: str, *rest) -> None:
        # Whether there is an order may differ between the mask here and the one that is loaded.
        order = state_dict.get(f"{prefix}row_order")
        self.row_order = None if order is None else torch.empty_like(order, device=self.mask.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _add_gradient(self, gradient: Tensor) -> None:
        gradient = gradient.detach()
        # Cloned, since the backward pass may go on to use the tensor that it hands out.
        self._gradient = gradient.clone() if self._gradient is None else self._gradient + gradient

    def take_gradient(self) -> Tensor | None:
        """The captured dense gradient, and forget it.

        Returns
        -------
        Tensor or None
            The weight's shape and dtype, the sum over all backward passes since the last call;
            None if there was none. Under ``torch.distributed`` the mean over all ranks, so that
            all grow alike: every rank must call it.
        """
        gradient, self._gradient = self._gradient, None
        if gradient is not None and dist.is_available() and dist.is_initialized():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        return gradient


@contextmanager
def capture_gradients(model: nn.Module) -> Iterator[None]:
    """Capture the dense gradients of all masked weights in the backward passes of the block.

    Take them by :meth:`WeightMask.take_gradient`, inside the block or after it.
    """
    masks = [module for module in model.modules() if isinstance(module, WeightMask)]
    for mask in masks:
        mask._gradient = None
        mask.capture_gradient = True
    try:
        yield
    finally:
        for mask in masks:
            mask.capture_gradient = False


def _is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as ``fully_shard`` keeps parameters between forward passes."""
    return hasattr(tensor, "placements")


def _shard_like(tensor: Tensor, sharded: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole mask; nothing is to be sent.
    return distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor, gathered from all ranks if ``fully_shard`` has cut it; all ranks must call."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def weight_mask(module: nn.Module, tensor_name: str = "weight") -> WeightMask | None:
    """The mask on a module's tensor, or None."""
    if not parametrize.is_parametrized(module, tensor_name):
        return None
    for part in module.parametrizations[tensor_name]:
        if isinstance(part, WeightMask):
            return part
    return None


def set_mask(
    module: nn.Module,
    mask: Tensor,
    tensor_name: str = "weight",
    row_order: Tensor | None = None,
) -> None:
    """Mask a module's tensor, or change its mask in place.

    The parameter stays the same object, so an optimiser that holds it goes on.

    Parameters
    ----------
    mask
        The tensor's shape; True or not zero where a weight is kept. Copied.
    row_order
        Rows in bundle order, to be kept with the mask. None: forget an earlier mask's.

    Raises
    ------
    GshwError
        For another shape, or a first mask on a weight that ``fully_shard`` has already cut.
    """
    dense = dense_weight(module, tensor_name)
    if mask.shape != dense.shape:
        raise GshwError(
            f"mask must have the {tensor_name}'s shape {tuple(dense.shape)}, "
            f"not {tuple(mask.shape)}"
        )
    present = weight_mask(module, tensor_name)
    if present is not None:
        present.mask.copy_(mask.bool())
    elif _is_sharded(dense):
        raise GshwError(
            f"masks must be attached before fully_shard; {tensor_name} of a "
            f"{type(module).__name__} is sharded already"
        )
    else:
        present = WeightMask(mask.to(dense.device))
        _own_class(module)
        parametrize.register_parametrization(module, tensor_name, present)
        _own_class(module)
    present.row_order = None if row_order is None else row_order.to(present.mask.device).clone()


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


def attach_masks(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Give a plain model the masks of a state dict, so that ``load_state_dict`` fits it.

    Returns
    -------
    list of str
        Names of the masked tensors, like ``layer4.0.conv1.weight``.

    Raises
    ------
    GshwError
        For a mask of a tensor that the model lacks or has in another shape; the model is unchanged.
    """
    found: list[tuple[str, nn.Module, str, Tensor]] = []
    for key, mask in state.items():
        match = _MASK_KEY.fullmatch(key)
        if match is None:
            continue
        prefix, tensor_name = match["module"] or "", match["tensor"]
        name = f"{prefix}.{tensor_name}" if prefix else tensor_name
        try:
            module = model.get_submodule(prefix)
            shape = dense_weight(module, tensor_name).shape
        except AttributeError:
            raise GshwError(f"the model has no tensor {name!r} for the mask of that name") from None
        if shape != mask.shape:
            raise GshwError(
                f"tensor {name!r}: mask must have its shape {tuple(shape)}, not {tuple(mask.shape)}"
            )
        found.append((name, module, tensor_name, mask))
    for _, module, tensor_name, mask in found:
        set_mask(module, mask, tensor_name)
    return [name for name, *_ in found]


def squash_masks(model: nn.Module) -> None:
    """Write the masks' zeros into the weights and remove the parametrisations.

    Whatever else parametrises a masked weight goes too, its effect written into the weight. The
    parameters stay the same objects, so an optimiser that holds them goes on with its state. A
    ``DistributedDataParallel`` around the model must be made anew if no other buffer is left:
    torch's fails at synchronising none where it had some.

    Raises
    ------
    GshwError
        For a model that ``fully_shard`` has cut: it has no plain weights to leave behind.
    """
    tensors = masked_tensors(model)
    for module, tensor_name in tensors:
        if _is_sharded(dense_weight(module, tensor_name)):
            raise GshwError(
                "a model under fully_shard cannot be squashed in place; load "
                "squashed_state_dict(model) into a plain model"
            )
    for module, tensor_name in tensors:
        with torch.no_grad():
            # Copied, not exchanged: views of the weight, such as cuDNN's flat ones, stay views.
            dense_weight(module, tensor_name).copy_(getattr(module, tensor_name))
        _own_class(module)
        parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=False)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def squashed_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """State dict of the model as :func:`squash_masks` would leave it; the model is unchanged.

    Under ``fully_shard`` the weights are gathered, and every rank must call it.
    """
    state = {name: whole_tensor(t.detach()) for name, t in model.state_dict().items()}
    names = {module: name for name, module in model.named_modules()}
    for module, tensor_name in masked_tensors(model):
        prefix = f"{names[module]}." if names[module] else ""
        inside = f"{prefix}parametrizations.{tensor_name}."
        state = {name: t for name, t in state.items() if not name.startswith(inside)}
        with torch.no_grad():
            state[prefix + tensor_name] = whole_tensor(getattr(module, tensor_name).detach())
    return state


def _own_class(module: nn.Module) -> None:
    """Give a parametrised module a class that no copy of it shares.

    Torch puts the property of a parametrised tensor on a class made for the module, which
    ``copy.deepcopy`` then shares with the copy: masking or squashing one would break the other.
    """
    if not parametrize.is_parametrized(module):
        return
    shared = type(module)
    own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    if isinstance(module, nn.RNNBase) and "_copy_rnn" not in own:
        own["_copy_rnn"] = own["__deepcopy__"]
        own["__deepcopy__"] = _deepcopy_rnn
    module.__class__ = type(shared.__name__, shared.__bases__, own)


def _deepcopy_rnn(self: nn.RNNBase, memo: dict) -> nn.Module:
    # The masked weights of the last forward pass cannot be copied; the next one makes them anew.
    self._flat_weights = []
    return self._copy_rnn(memo)
