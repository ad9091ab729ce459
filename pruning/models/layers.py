"""What a torch model holds for the engine: its layers, their matrices, and what follows them."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry, LayerKind, conv_matrix
from gshw.quantise import RangeMethod, activation_range
from pruning.models.trace import SUPPORTED, Recorder, around, module_of

_HOST = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


@dataclass(kw_only=True)
class ModelLayer:
    """One layer that the engine can run.

    Parameters
    ----------
    name, module
        In the model.
    geometry
        The window; ``unfold`` where the input has few channels for the banks.
    index
        Shape (n_rows, n_columns): place in the flattened torch weight of every matrix element.
    input_size
        Input pixels (height, width) seen with the example.
    batch_norm
        Folded into the layer, or None.
    relu
        Whether a ReLU follows directly (after the batch norm).
    source
        Name of the layer whose output is this one's input, but for flattening; None where
        something else lies between.
    calibration
        Largest magnitudes, and the like, of input and output; filled by :func:`analyse`.
    """

    name: str
    module: nn.Module
    geometry: Geometry
    index: NDArray[np.int64]
    input_size: tuple[int, int]
    batch_norm: nn.Module | None = None
    relu: bool = False
    source: str | None = None
    calibration: dict[str, float] = field(default_factory=dict)

    def to_matrix(self, weight: Tensor | NDArray) -> NDArray:
        """Any tensor of the weight's shape as (n_rows, n_columns) in the engine's column order."""
        values = weight.detach().cpu().numpy() if isinstance(weight, Tensor) else weight
        return values.reshape(-1)[self.index]

    def from_matrix(self, matrix: NDArray) -> Tensor:
        """Inverse of :meth:`to_matrix`, as a tensor on the module's device."""
        flat = np.empty(matrix.size, dtype=matrix.dtype)
        flat[self.index.reshape(-1)] = matrix.reshape(-1)
        shape = self.module.weight.shape
        return torch.from_numpy(flat.reshape(tuple(shape))).to(self.module.weight.device)


def check_supported(model: nn.Module) -> None:
    """Refuse a model that has weights the engine cannot run and the host does not keep.

    Raises
    ------
    GshwError
        Naming the layer, its type and what is supported.
    """
    found = False
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        holder = isinstance(module, SUPPORTED)
        found |= holder
        if holder and getattr(module, "groups", 1) != 1:
            raise GshwError(
                f"layer {name!r} is a convolution of {module.groups} groups; "
                "supported are Linear, Conv1d and Conv2d with groups = 1"
            )
        if holder and getattr(module, "padding_mode", "zeros") != "zeros":
            raise GshwError(
                f"layer {name!r} has padding_mode {module.padding_mode!r}; supported is 'zeros'"
            )
        if own and not holder and not isinstance(module, _HOST) and "parametrizations" not in name:
            raise GshwError(
                f"layer {name!r} is a {type(module).__name__}; "
                "supported are Linear, Conv1d and Conv2d with groups = 1"
            )
    if not found:
        raise GshwError("the model has no Linear, Conv1d or Conv2d layer")


def _pair(value, kind: LayerKind, fill: int) -> tuple[int, int]:
    if kind is LayerKind.CONV2D:
        return (value[0], value[1]) if isinstance(value, tuple) else (value, value)
    return fill, value[0] if isinstance(value, tuple) else value


def _padding(module: nn.Module, kind: LayerKind, name: str) -> tuple[int, int]:
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        sizes = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        if any(size % 2 for size in sizes):
            raise GshwError(f"layer {name!r}: padding 'same' must be symmetric (odd kernels)")
        halves = tuple(size // 2 for size in sizes)
        return _pair(halves, kind, 0)
    return _pair(module.padding, kind, 0)


def module_geometry(config: EngineConfig, name: str, module: nn.Module) -> Geometry:
    """The engine's window of a torch layer; unfolded where that halves the padded columns."""
    if isinstance(module, nn.Linear):
        return Geometry.linear(module.in_features)
    kind = LayerKind.CONV1D if isinstance(module, nn.Conv1d) else LayerKind.CONV2D
    plain = Geometry(
        kind=kind,
        in_channels=module.in_channels,
        kernel=_pair(module.kernel_size, kind, 1),
        stride=_pair(module.stride, kind, 1),
        padding=_padding(module, kind, name),
        dilation=_pair(module.dilation, kind, 1),
    )
    return plain.unfolded_if_smaller(config)


def weight_index(
    name: str, module: nn.Module, flattened: tuple[int, ...] | None
) -> NDArray[np.int64]:
    """Place in the flattened torch weight of every element of the layer's matrix.

    Parameters
    ----------
    flattened
        (channels, pixels...) of the map that a linear layer reads flattened, or None.

    Returns
    -------
    ndarray
        Shape (n_rows, n_columns), columns in the engine's order.
    """
    shape = tuple(module.weight.shape)
    index = conv_matrix(np.arange(int(np.prod(shape))).reshape(shape))
    if flattened is not None:
        # Torch flattens (channel, y, x); the engine keeps channels last.
        channels, *pixels = flattened
        if index.shape[1] != channels * int(np.prod(pixels)):
            raise GshwError(
                f"layer {name!r} reads a reshaped {flattened} as {index.shape[1]} features; "
                "supported is a flatten of all channels and pixels of a sample"
            )
        order = np.arange(index.shape[1]).reshape(channels, -1).T.reshape(-1)
        index = index[:, order]
    return index


def analyse(
    config: EngineConfig,
    model: nn.Module,
    example: Tensor,
    method: RangeMethod = RangeMethod.PERCENTILE,
    percentile: float = 99.99,
) -> list[ModelLayer]:
    """Find the layers, what surrounds them, and the ranges of their activations.

    Parameters
    ----------
    example
        A batch of calibration samples, channels first.
    method, percentile
        Of the ranges; see :func:`gshw.quantise.activation_range`.

    Returns
    -------
    list of ModelLayer
        In execution order.

    Raises
    ------
    GshwError
        For an unsupported layer, a model that cannot be traced or run, or one that reuses a layer.
    """
    check_supported(model)
    if not torch.isfinite(example).all():
        raise GshwError("calibration samples must be finite")
    model.eval()
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:
        raise GshwError(
            f"the model cannot be traced by torch.fx ({type(error).__name__}: {error})"
        ) from None
    recorder = Recorder(traced)
    try:
        with torch.no_grad():
            recorder.run(example)
    except (RuntimeError, ValueError, IndexError) as error:
        first = str(error).splitlines()[0]
        raise GshwError(
            f"the model does not run on input {tuple(example.shape)}: {first}"
        ) from None
    layers: list[ModelLayer] = []
    ends: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        module = module_of(traced, node)
        if not isinstance(module, SUPPORTED):
            continue
        name = str(node.target)
        if any(layer.name == name for layer in layers):
            raise GshwError(f"layer {name!r} is used twice; supported are layers used once")
        layer, y = _layer(config, traced, recorder, node, module, ends)
        x = recorder.values[node.args[0]]
        for key, values, signed in (("input", x, bool(x.min() < 0)), ("output", y, not layer.relu)):
            layer.calibration[key] = activation_range(
                values.double().cpu().numpy(),
                method,
                percentile=percentile,
                highest_code=config.activation_range(signed)[1],
            )
        layer.calibration["input_low"] = float(x.min())
        layers.append(layer)
    return layers


def _layer(
    config: EngineConfig,
    traced: fx.GraphModule,
    recorder: Recorder,
    node: fx.Node,
    module: nn.Module,
    ends: dict[fx.Node, str],
) -> tuple[ModelLayer, Tensor]:
    """A layer, not calibrated yet, and its output, behind batch norm and ReLU."""
    name = str(node.target)
    if not node.args:
        raise GshwError(f"layer {name!r} must be called with its input as positional argument")
    geometry = module_geometry(config, name, module)
    place, end, flattened = around(traced, recorder, node, ends)
    ends[end] = name
    x, y = recorder.values[node.args[0]], recorder.values[end]
    if isinstance(module, nn.Linear):
        if x.ndim != 2:
            raise GshwError(
                f"layer {name!r} gets input of shape {tuple(x.shape)}; a Linear layer on the "
                "engine needs (samples, features)"
            )
        size = (1, 1)
    else:
        n_dimensions = 3 if isinstance(module, nn.Conv1d) else 4
        if x.ndim != n_dimensions:
            raise GshwError(
                f"layer {name!r} gets input of shape {tuple(x.shape)}; a {type(module).__name__} "
                "layer on the engine needs a batch of samples"
            )
        size = (1, x.shape[2]) if n_dimensions == 3 else (x.shape[2], x.shape[3])
    layer = ModelLayer(
        name=name,
        module=module,
        geometry=geometry,
        index=weight_index(name, module, flattened),
        input_size=size,
        batch_norm=place.batch_norm,
        relu=place.relu,
        source=place.source,
    )
    return layer, y
