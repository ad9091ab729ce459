"""Second moments of what every weight reads, gathered on calibration batches."""

import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gshw.errors import GshwError
from gshw.geometry import LayerKind
from pruning.models.weights import PrunableWeight
from pruning.recovery.recurrence import recurrent_inputs, single_layers

_CHUNK_ELEMENTS = 1 << 23
"""Largest unfolded piece of a convolution's input, in elements: 32 MiB."""

_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """X^T X of the inputs X (n_samples, n_columns) that one weight matrix was multiplied with.

    Where equal parts of the rows read different inputs (query, key and value of ``in_proj_weight``
    in a cross attention), every array has a leading axis of n_parts.

    Parameters
    ----------
    n_samples
        Input vectors seen: one per sample and position or time step.
    gram
        Float64, shape (n_columns, n_columns), in the matrix's column order. None where only the
        diagonal was asked for.
    squares
        Its diagonal alone, shape (n_columns,), in place of ``gram``.
    sums
        Each column's sum, shape (n_columns,); for :meth:`centred`.
    cross, reference
        X^T Y and Y^T Y, shaped like ``gram``, where a reference model's weight read Y instead.
        None: it is the same input.
    reference_sums
        As ``sums``, of Y.

    Raises
    ------
    GshwError
        Without samples, without one of ``gram`` and ``squares``, or for values that are not finite.
    """

    n_samples: int
    gram: NDArray[np.float64] | None = None
    squares: NDArray[np.float64] | None = None
    sums: NDArray[np.float64] | None = None
    cross: NDArray[np.float64] | None = None
    reference: NDArray[np.float64] | None = None
    reference_sums: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise GshwError(f"moments need at least one sample, not {self.n_samples}")
        if (self.gram is None) == (self.squares is None):
            raise GshwError("moments need either a gram matrix or its diagonal")
        if any(a is not None and not np.isfinite(a).all() for a in self._arrays().values()):
            raise GshwError("moments must be finite")

    def _arrays(self) -> dict[str, NDArray[np.float64] | None]:
        names = [field.name for field in fields(self) if field.name != "n_samples"]
        return {name: getattr(self, name) for name in names}

    @property
    def diagonal(self) -> NDArray[np.float64]:
        """Each column's sum of squares, shape (n_columns,)."""
        if self.gram is None:
            return self.squares
        return np.diagonal(self.gram, axis1=-2, axis2=-1)

    @property
    def n_columns(self) -> int:
        return self.diagonal.shape[-1]

    def parts(self, n_rows: int) -> Iterator[tuple[slice, "Moments"]]:
        """Each part's rows, and its moments alone."""
        if self.diagonal.ndim == 1:
            yield slice(0, n_rows), self
            return
        n_parts = len(self.diagonal)
        height = n_rows // n_parts
        for part in range(n_parts):
            own = {key: None if a is None else a[part] for key, a in self._arrays().items()}
            yield (
                slice(part * height, (part + 1) * height),
                Moments(n_samples=self.n_samples, **own),
            )

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean of the inputs, and of the reference's (the same without one)."""
        own = np.divide(self.sums, self.n_samples)
        return own, own if self.reference_sums is None else self.reference_sums / self.n_samples

    def centred(self) -> "Moments":
        """The moments about the means, for a layer whose bias is free to take up the means.

        The diagonal is raised by 1e-5 of what it was: products summed in float32 are no more
        exact, and an input that hardly varies must not end up with a negative variance.

        Raises
        ------
        GshwError
            Without ``gram`` and ``sums``.
        """
        if self.gram is None or self.sums is None:
            raise GshwError("only moments with a gram matrix and sums can be centred")
        mine, theirs = self.means()

        def about(values: NDArray | None, left: NDArray, right: NDArray) -> NDArray | None:
            if values is None:
                return None
            return values - self.n_samples * left[..., :, None] * right[..., None, :]

        gram = about(self.gram, mine, mine)
        np.einsum("...ii->...i", gram)[:] += _ROUNDING * self.diagonal
        return Moments(
            n_samples=self.n_samples,
            gram=gram,
            sums=np.zeros_like(mine),
            cross=about(self.cross, mine, theirs),
            reference=about(self.reference, theirs, theirs),
            reference_sums=None if self.reference_sums is None else np.zeros_like(theirs),
        )


class _Reader(ABC):
    """Sees every input vector of one weight, in torch's column order."""

    def __init__(self, weight: PrunableWeight) -> None:
        self.weight = weight

    @abstractmethod
    def add(self, *inputs: Tensor) -> None:
        """One call's input vectors (..., n_columns): one tensor, or one per part of the rows."""

    def add_windows(self, x: Tensor) -> None:
        """A convolution's input: one vector (in, ky, kx) per output pixel."""
        geometry = self.weight.geometry
        if geometry.kind is LayerKind.CONV1D:
            x = x.unsqueeze(-2)
        x = x.detach().reshape(-1, *x.shape[-3:])
        n_pixels = int(np.prod(geometry.output_size(x.shape[2], x.shape[3])))
        n_images = max(1, _CHUNK_ELEMENTS // (geometry.n_columns * n_pixels))
        for images in x.split(n_images):
            windows = nn.functional.unfold(
                _at_least_float(images),
                geometry.kernel,
                dilation=geometry.dilation,
                padding=geometry.padding,
                stride=geometry.stride,
            )
            self.add(windows.transpose(1, 2))


class _Recorder(_Reader):
    """Keeps the vectors, call by call, for the sums that are compared with them."""

    def __init__(self, weight: PrunableWeight) -> None:
        super().__init__(weight)
        self.calls: deque[tuple[Tensor, ...]] = deque()

    def add(self, *inputs: Tensor) -> None:
        self.calls.append(tuple(x.detach().clone() for x in inputs))


class _Sums(_Reader):
    """Running moments, on the model's device."""

    def __init__(
        self, weight: PrunableWeight, diagonal_only: bool, recorder: _Recorder | None
    ) -> None:
        super().__init__(weight)
        self.diagonal_only = diagonal_only
        self.recorder = recorder
        self.n_samples = 0
        self.parts: list[Tensor] = []

    def add(self, *inputs: Tensor) -> None:
        self.n_samples += inputs[0].numel() // inputs[0].shape[-1]
        others = self._recorded(inputs[0]) if self.recorder else (None,)
        n_parts = max(len(inputs), len(others), len(self.parts))
        new = [
            self._moments(x, y)
            for x, y in zip(_spread(inputs, n_parts), _spread(others, n_parts), strict=True)
        ]
        old = _spread(self.parts, n_parts) if self.parts else [torch.zeros_like(p) for p in new]
        self.parts = [a + b for a, b in zip(old, new, strict=True)]

    def _recorded(self, like: Tensor) -> tuple[Tensor, ...]:
        calls = self.recorder.calls
        others = calls.popleft() if calls else (like[:0],)
        if others[0].shape != like.shape:
            raise GshwError(
                f"layer {self.weight.name!r}: the reference model must read inputs of the same "
                f"shape {tuple(like.shape)}, not {tuple(others[0].shape)}"
            )
        return others

    def _moments(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Squares (1, n_columns), or below each Gram matrix its sums.

        Shape (1, n_columns + 1, n_columns) then, and (3, ...) with a reference.
        """
        x = _at_least_float(x.detach().reshape(-1, x.shape[-1]))
        if self.diagonal_only:
            return x.double().square().sum(dim=0)[None]
        pairs = [(x, x)]
        if y is not None:
            y = y.reshape(x.shape).to(x)
            pairs += [(x, y), (y, y)]
        return torch.stack(
            [torch.cat([(a.T @ b).double(), b.double().sum(dim=0)[None]]) for a, b in pairs]
        )

    def moments(self) -> Moments:
        """In the matrix's column order."""
        name = self.weight.name
        if not self.n_samples:
            raise GshwError(f"layer {name!r}: no calibration batch reached it")
        sums = torch.stack(self.parts, dim=1).cpu().numpy()
        if not np.isfinite(sums).all():
            raise GshwError(f"layer {name!r}: its calibration inputs must be finite")
        order = self.weight.index[0] % self.weight.shape[1]
        sums = (sums[:, 0] if sums.shape[1] == 1 else sums)[..., order]
        if self.diagonal_only:
            return Moments(n_samples=self.n_samples, squares=sums[0])
        grams = dict(zip(("gram", "cross", "reference"), sums[..., order, :]))
        if len(sums) == 3:
            grams["reference_sums"] = sums[2, ..., -1, :]
        return Moments(n_samples=self.n_samples, sums=sums[0, ..., -1, :], **grams)


def _at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _spread(parts: Sequence, n_parts: int) -> Sequence:
    """One for all parts, or one each."""
    return parts if len(parts) == n_parts else list(parts) * n_parts


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def batch_input(batch):
    """The model's input: the batch, or the first element of an (input, target, ...) batch."""
    # A PackedSequence is a tuple too.
    plain = isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence)
    return batch[0] if plain else batch


def run_batches(batches: Iterable, *models: nn.Module) -> None:
    """Feed every batch to every model in turn.

    Raises
    ------
    GshwError
        If there is no batch at all.
    """
    n_batches = 0
    for batch in batches:
        for model in models:
            model(batch_input(batch))
        n_batches += 1
    if not n_batches:
        raise GshwError("calibration batches yield nothing")


def collect_moments(
    model: nn.Module,
    weights: list[PrunableWeight],
    batches: Iterable,
    *,
    diagonal_only: Collection[str] = (),
    reference: nn.Module | None = None,
) -> dict[str, Moments]:
    """Moments of every weight's input, with the model (and its masks) as it is.

    The model runs in evaluation mode and is left as it was. Products are in the inputs' precision
    (at least float32) per call, sums over calls in float64. A recurrent weight's input is the
    state before each step, an attention's ``out_proj`` reads the heads' outputs. Padded steps of
    a packed sequence are left out.

    Parameters
    ----------
    batches
        Inputs, or tuples whose first element is the input.
    diagonal_only
        Names of weights too wide for a Gram matrix: only their ``squares`` are kept.
    reference
        The same model with other weights (before pruning); it runs on the same batches, and
        ``cross`` and ``reference`` of the moments say what its weights read.

    Returns
    -------
    dict
        By weight name.

    Raises
    ------
    GshwError
        For batches that yield nothing, a layer that no batch reaches (naming it), inputs that are
        not finite, a reference that reads other shapes, or an unknown name in ``diagonal_only``.
    """
    for name in diagonal_only:
        if name not in [weight.name for weight in weights]:
            raise GshwError(f"diagonal_only must name weights of the list, not {name!r}")
    recorders: dict[str, _Recorder] = {}
    if reference is not None:
        paths = {module: path for path, module in model.named_modules()}
        for weight in weights:
            twin = reference.get_submodule(paths[weight.module])
            recorders[weight.name] = _Recorder(replace(weight, module=twin))
    sums = {
        weight.name: _Sums(weight, weight.name in diagonal_only, recorders.get(weight.name))
        for weight in weights
    }
    with ExitStack() as stack:
        # Fused kernels of transformer layers call no modules.
        fused = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        _attach(stack, model, list(sums.values()))
        if reference is None:
            run_batches(batches, model)
        else:
            _attach(stack, reference, list(recorders.values()))
            run_batches(batches, reference, model)
    return {name: total.moments() for name, total in sums.items()}


def _attach(stack: ExitStack, model: nn.Module, readers: Sequence[_Reader]) -> None:
    """Evaluation mode, and hooks on the readers' modules, until the stack unwinds."""
    stack.enter_context(evaluating(model))
    by_module: dict[nn.Module, dict[str, _Reader]] = {}
    for reader in readers:
        by_module.setdefault(reader.weight.module, {})[reader.weight.tensor_name] = reader
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and module.out_proj in by_module:
            _expose_heads(stack, module)
    for module, own in by_module.items():
        hook = _hook(module, own)
        stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _hook(
    module: nn.Module, readers: dict[str, _Reader]
) -> Callable[[nn.Module, tuple, dict], None]:
    signature = inspect.signature(module.forward)
    if isinstance(module, nn.MultiheadAttention):
        add = partial(_add_attention, readers)
    elif isinstance(module, nn.RNNBase):
        add = partial(_add_recurrence, readers, single_layers(module))
    elif isinstance(module, nn.Linear):
        add = readers["weight"].add
    else:
        add = readers["weight"].add_windows

    def hook(_, args: tuple, kwargs: dict) -> None:
        values = signature.bind(*args, **kwargs).arguments
        add(*list(values.values())[: 3 if isinstance(module, nn.MultiheadAttention) else 2])

    return hook


def _expose_heads(stack: ExitStack, attention: nn.MultiheadAttention) -> None:
    """Have ``out_proj`` called as a module, so that its hooks see its input.

    Attention hands the projection's tensors to a function. Meanwhile it gets the identity, and
    the projection follows as a call.
    """
    projection = attention.out_proj
    device = projection.weight.device
    size = projection.in_features
    # On no device at first: initial values would move the random state.
    identity = nn.Linear(size, size, bias=False, device="meta")
    identity.weight = nn.Parameter(torch.eye(size, device=device, dtype=projection.weight.dtype))

    def project(_, args, output):
        return projection(output[0]), output[1]

    attention.out_proj = identity
    stack.callback(setattr, attention, "out_proj", projection)
    stack.callback(attention.register_forward_hook(project).remove)


def _add_attention(readers: dict[str, _Reader], query: Tensor, key: Tensor, value: Tensor) -> None:
    if "in_proj_weight" in readers:
        same = query is key and key is value
        readers["in_proj_weight"].add(*((query,) if same else (query, key, value)))
    for name, x in (("q", query), ("k", key), ("v", value)):
        if f"{name}_proj_weight" in readers:
            readers[f"{name}_proj_weight"].add(x)


def _add_recurrence(readers: dict[str, _Reader], singles: list[nn.RNNBase], *inputs) -> None:
    for tensor_name, vectors in recurrent_inputs(singles, *inputs):
        if tensor_name in readers:
            readers[tensor_name].add(vectors)
