"""Which tensors of a model can be pruned, each as a matrix in the engine's column order."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.models.layers import module_geometry, weight_index
from pruning.models.masking import dense_weight, weight_mask, whole_tensor
from pruning.models.trace import flattened_shapes

_UNPRUNED = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
)
_KINDS = "pruned are Linear, Conv1d, Conv2d, RNN, LSTM, GRU and MultiheadAttention"
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(kw_only=True, eq=False)
class PrunableWeight:
    """One weight tensor of a module, and its matrix.

    Parameters
    ----------
    name
        The module's name in the model; with the tensor's name after a dot where the module has
        several (``encoder.weight_hh_l0``, ``attention.in_proj_weight``).
    module, tensor_name
        Where it lives: ``getattr(module, tensor_name)``.
    geometry
        Window of the matrix.
    index
        Shape (n_rows, n_columns): place in the flattened tensor of every matrix element.
    """

    name: str
    module: nn.Module
    tensor_name: str
    geometry: Geometry
    index: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns)."""
        return self.index.shape[0], self.index.shape[1]

    @property
    def dense(self) -> Tensor:
        """The parameter below the mask; a DTensor under ``fully_shard``."""
        return dense_weight(self.module, self.tensor_name)

    @property
    def masked(self) -> Tensor:
        """The tensor as the model uses it."""
        return getattr(self.module, self.tensor_name)

    def to_matrix(self, values: Tensor | NDArray) -> NDArray:
        """Any tensor of the weight's shape as (n_rows, n_columns), on the CPU.

        A tensor of half precision becomes float32. One that ``fully_shard`` has cut is gathered
        from all ranks, so every rank must call.
        """
        if isinstance(values, Tensor):
            values = whole_tensor(values.detach()).cpu()
            # NumPy has no bfloat16; half precision would lose sums.
            narrow = values.is_floating_point() and values.dtype.itemsize < 4
            values = (values.float() if narrow else values).numpy()
        return values.reshape(-1)[self.index]

    def from_matrix(self, matrix: NDArray) -> Tensor:
        """Inverse of :meth:`to_matrix`, on the weight's device."""
        flat = np.empty(matrix.size, dtype=matrix.dtype)
        flat[self.index.reshape(-1)] = matrix.reshape(-1)
        dense = self.dense
        return torch.from_numpy(flat.reshape(tuple(dense.shape))).to(dense.device)


def find_weights(
    config: EngineConfig, model: nn.Module, example: Tensor | None = None
) -> tuple[list[PrunableWeight], dict[str, str]]:
    """All weights that a pattern can be put on, and why the others are left alone.

    Found are those of Linear, Conv1d, Conv2d, RNN, LSTM, GRU (every layer, direction and
    projection) and MultiheadAttention (input projections; the output projection is a Linear of
    its own), masked or not. A weight that two modules share is skipped, since a mask on one would
    change the other; a module used in several places is not a case of that.

    Parameters
    ----------
    example
        A batch of inputs; with it, the column order of linear layers behind a flatten is known
        (channels last). Without it, or where torch.fx cannot trace the model, such a layer keeps
        torch's column order.

    Returns
    -------
    weights, skipped
        In the model's order; reason by the name of the module or of one of its tensors.

    Raises
    ------
    GshwError
        For a model without any prunable weight.
    """
    flattened = {} if example is None else flattened_shapes(model, example)
    owners = _owners(model)
    weights: list[PrunableWeight] = []
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        names = _tensor_names(module)
        for tensor_name in names:
            single = bool(name) and tensor_name == "weight"
            full_name = name if single else _join(name, tensor_name)
            reason = _unfit(module, tensor_name, owners)
            if reason is not None:
                skipped[full_name] = reason
                continue
            try:
                weights.append(_weight(config, full_name, module, tensor_name, flattened.get(name)))
            except GshwError as error:
                skipped[full_name] = _without_layer(str(error), full_name)
        others = [n for n, p in module.named_parameters(recurse=False) if _is_matrix(p)]
        if not names and others and not isinstance(module, _UNPRUNED):
            kind = type_before_parametrizations(module).__name__
            skipped[name or others[0]] = f"of type {kind}; {_KINDS}"
    if not weights:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise GshwError("the model has no weight to prune" + (f" ({reasons})" if reasons else ""))
    return weights, skipped


def _join(module_name: str, tensor_name: str) -> str:
    return f"{module_name}.{tensor_name}" if module_name else tensor_name


def _is_matrix(parameter: Tensor) -> bool:
    return isinstance(parameter, UninitializedParameter) or parameter.ndim > 1


def _without_layer(message: str, name: str) -> str:
    return message.removeprefix(f"layer {name!r}").removeprefix(":").strip()


def _tensor_names(module: nn.Module) -> list[str]:
    """Tensors of a module that could carry a mask."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        return ["weight"]
    if isinstance(module, nn.RNNBase):
        return [n for n in module._flat_weights_names if "weight" in n]
    if isinstance(module, nn.MultiheadAttention):
        # getattr would compute a masked one only to see whether it is there.
        masked = module.parametrizations if is_parametrized(module) else {}
        return [n for n in _ATTENTION if n in masked or module._parameters.get(n) is not None]
    return []


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the tensors that are one parameter object, by its id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for tensor_name, parameter in module._parameters.items():
            if parameter is not None:
                # A masked weight is x.parametrizations.weight.original; people know it as x.weight.
                shown = _join(name, tensor_name).removesuffix(".original")
                shown = shown.replace("parametrizations.", "")
                owners.setdefault(id(parameter), []).append(shown)
    return owners


def _unfit(module: nn.Module, tensor_name: str, owners: dict[int, list[str]]) -> str | None:
    """Why a mask cannot be put on a tensor, or None."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.groups != 1:
            return f"a convolution of {module.groups} groups; the engine runs groups = 1"
        if module.padding_mode != "zeros":
            return f"padding_mode {module.padding_mode!r}; the engine pads with zeros"
    if is_parametrized(module, tensor_name):
        if weight_mask(module, tensor_name) is None:
            kind = type(module.parametrizations[tensor_name][0]).__name__
            return f"parametrised by {kind} already; pruned are plain weights"
    elif tensor_name not in module._parameters:
        return f"its {tensor_name} is computed by a hook; pruned are plain weights"
    dense = dense_weight(module, tensor_name)
    if isinstance(dense, UninitializedParameter):
        return "its weight has no shape until the model has run once"
    if dense.is_meta:
        return "its weight is on the meta device and has no values"
    if not dense.is_floating_point():
        return f"its weight is {str(dense.dtype).removeprefix('torch.')}; pruned are real weights"
    sharing = owners.get(id(dense), [])
    if len(sharing) > 1:
        return f"one weight under several names: {', '.join(sharing)}"
    return None


def _weight(
    config: EngineConfig,
    name: str,
    module: nn.Module,
    tensor_name: str,
    flattened: tuple[int, ...] | None,
) -> PrunableWeight:
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        geometry = module_geometry(config, name, module)
        index = weight_index(name, module, flattened)
    else:
        shape = tuple(dense_weight(module, tensor_name).shape)
        geometry = Geometry.linear(shape[1])
        index = np.arange(shape[0] * shape[1]).reshape(shape)
    return PrunableWeight(
        name=name, module=module, tensor_name=tensor_name, geometry=geometry, index=index
    )
