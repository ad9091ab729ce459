"""Which tensors of a model can be pruned, each as a matrix in the engine's column order."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry
from pruning.layers import flattened_shapes, module_geometry, weight_index
from pruning.masking import dense_weight

_UNPRUNED = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
)
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
        """The parameter below the mask."""
        return dense_weight(self.module, self.tensor_name)

    @property
    def masked(self) -> Tensor:
        """The tensor as the model uses it."""
        return getattr(self.module, self.tensor_name)

    def to_matrix(self, values: Tensor | NDArray) -> NDArray:
        """Any tensor of the weight's shape as (n_rows, n_columns), float32 or as given."""
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            # NumPy has no bfloat16; half precision would lose sums.
            values = (values.float() if values.dtype.itemsize < 4 else values).numpy()
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

    Parameters
    ----------
    example
        A batch of inputs; with it, the column order of linear layers behind a flatten is known
        (channels last). Without it, or where torch.fx cannot trace the model, such a layer keeps
        torch's column order.

    Returns
    -------
    weights, skipped
        In the model's order; reason by module name.

    Raises
    ------
    GshwError
        For a model without any prunable weight.
    """
    flattened = {} if example is None else flattened_shapes(model, example)
    weights: list[PrunableWeight] = []
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        found, reason = _of_module(config, name, module, flattened.get(name))
        weights += found
        if reason is not None:
            skipped[name] = reason
    if not weights:
        raise GshwError("the model has no weight to prune")
    return weights, skipped


def _of_module(
    config: EngineConfig, name: str, module: nn.Module, flattened: tuple[int, ...] | None
) -> tuple[list[PrunableWeight], str | None]:
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        if getattr(module, "groups", 1) != 1:
            return [], f"a convolution of {module.groups} groups; the engine runs groups = 1"
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return [], f"padding_mode {module.padding_mode!r}; the engine pads with zeros"
        geometry = module_geometry(config, name, module)
        index = weight_index(name, module, flattened)
        weight = PrunableWeight(
            name=name, module=module, tensor_name="weight", geometry=geometry, index=index
        )
        return [weight], None
    if isinstance(module, nn.RNNBase):
        tensors = [n for n in dict.fromkeys(module._flat_weights_names) if "weight" in n]
        return [_matrix(name, module, tensor) for tensor in tensors], None
    if isinstance(module, nn.MultiheadAttention):
        tensors = [n for n in _ATTENTION if getattr(module, n, None) is not None]
        return [_matrix(name, module, tensor) for tensor in tensors], None
    own = [n for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
    if own and not isinstance(module, _UNPRUNED):
        return [], (
            f"a {type(module).__name__}; pruned are Linear, Conv1d, Conv2d, RNN, LSTM, GRU "
            "and MultiheadAttention"
        )
    return [], None


def _matrix(name: str, module: nn.Module, tensor_name: str) -> PrunableWeight:
    shape = tuple(getattr(module, tensor_name).shape)
    return PrunableWeight(
        name=f"{name}.{tensor_name}" if name else tensor_name,
        module=module,
        tensor_name=tensor_name,
        geometry=Geometry.linear(shape[1]),
        index=np.arange(shape[0] * shape[1]).reshape(shape),
    )
