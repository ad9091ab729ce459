"""Where a model multiplies by a weight: each such product can be replaced, all else stays.

The engine multiplies matrices; nonlinearities, gates and attention scores are the host's. So that
calibration, quantisation-aware training and integer evaluation agree on what is a product, all
three put a :class:`Product` on a weight and let :func:`route_model` call it. Fused kernels of
recurrent and attention modules hide their products; a routed module computes the same step by step.
"""

from collections.abc import Callable, Mapping
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence

from gshw.errors import GshwError
from pruning.models.weights import PrunableWeight

Multiply = Callable[[Tensor, Tensor], Tensor]
"""(input, weight) to output, without a bias."""

_SLOT = "products"
_INPUT_BIAS = {"q_proj_weight": 0, "k_proj_weight": 1, "v_proj_weight": 2}


class Product(nn.Module):
    """Computes the products with one weight; the plain one here, others in subclasses."""

    def forward(
        self, weight: Tensor, bias: Tensor | None, multiply: Multiply, axis: int
    ) -> Callable[[Tensor], Tensor]:
        """What to apply to every input; a recurrence asks once and applies at each step.

        Parameters
        ----------
        weight, bias
            As the module has them, masked; rows are the weight's first axis.
        multiply
            The module's operation.
        axis
            Of the output's rows, counted from its end.
        """
        return lambda x: add_bias(multiply(x, weight), bias, axis)


def by_rows(values: Tensor, axis: int) -> Tensor:
    """One value per row, shaped to broadcast along an axis counted from the end."""
    return values.reshape(-1, *[1] * (-axis - 1))


def add_bias(output: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """Output plus one bias per row."""
    return output if bias is None else output + by_rows(bias, axis)


def weight_bias(module: nn.Module, tensor_name: str) -> Tensor | None:
    """The bias that is added to the products with a weight, shape (n_rows,), or None."""
    if isinstance(module, nn.RNNBase):
        # A projection (weight_hr) has none.
        return getattr(module, tensor_name.replace("weight", "bias"), None)
    if isinstance(module, nn.MultiheadAttention):
        bias = module.in_proj_bias
        if bias is None or tensor_name == "in_proj_weight":
            return bias
        return bias.chunk(3)[_INPUT_BIAS[tensor_name]]
    return module.bias


def route_model(
    model: nn.Module, weights: list[PrunableWeight], products: Mapping[str, Product]
) -> None:
    """Have a model multiply by its weights through products, all of them or none.

    Modules keep their parameters, names and classes; the products become a child ``products``.

    Parameters
    ----------
    weights
        Of the model.
    products
        By name of a weight of that list; the others' products stay plain.

    Raises
    ------
    GshwError
        For a model that is routed already, or a module whose class computes something of its own.
    """
    by_module: dict[nn.Module, dict[str, Product]] = {}
    names: dict[nn.Module, str] = {}
    for weight in weights:
        names[weight.module] = weight.name.removesuffix(f".{weight.tensor_name}")
        if weight.name in products:
            by_module.setdefault(weight.module, {})[weight.tensor_name] = products[weight.name]
    for module in model.modules():
        if is_routed(module):
            raise GshwError("the model is quantised already; detach that first")
        if isinstance(module, nn.MultiheadAttention) and module.out_proj in by_module:
            # Torch's attention hands the output projection's tensors to a function.
            by_module.setdefault(module, {})
    for module in by_module:
        if _forward_of(module) is None:
            kind = type_before_parametrizations(module).__name__
            raise GshwError(
                f"layer {names.get(module, '')!r}: {kind} has a forward of its own; "
                "its products cannot be quantised"
            )
    for module, own in by_module.items():
        setattr(module, _SLOT, nn.ModuleDict(own))
        module.forward = MethodType(_forward_of(module), module)
        # Fused transformer layers call no modules; torch does not fuse where one has a hook.
        module.register_forward_pre_hook(_do_not_fuse)


def _forward_of(module: nn.Module) -> Callable | None:
    own = type(module).forward
    return next((_FORWARDS[kind] for kind in _FORWARDS if own is kind.forward), None)


def unroute_model(model: nn.Module) -> None:
    """Undo :func:`route_model`, if it was applied."""
    for module in list(model.modules()):
        if not is_routed(module):
            continue
        delattr(module, _SLOT)
        del module.forward
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _do_not_fuse:
                del module._forward_pre_hooks[key]


def is_routed(module: nn.Module) -> bool:
    """Whether a module multiplies through products."""
    return isinstance(module._modules.get(_SLOT), nn.ModuleDict) and "forward" in vars(module)


def routed_products(model: nn.Module) -> list[Product]:
    """Every product in a model, in the model's order."""
    return [p for module in model.modules() if is_routed(module) for p in module.products.values()]


def _do_not_fuse(module: nn.Module, args: tuple) -> None:
    return None


def _applied(
    module: nn.Module, tensor_name: str, multiply: Multiply = functional.linear, axis: int = -1
) -> Callable[[Tensor], Tensor]:
    products = getattr(module, _SLOT)
    product = products[tensor_name] if tensor_name in products else Product()
    weight, bias = getattr(module, tensor_name), weight_bias(module, tensor_name)
    return product(weight, bias, multiply, axis)


def _linear(self: nn.Linear, input: Tensor) -> Tensor:
    return _applied(self, "weight")(input)


def _convolution(self: nn.Conv1d | nn.Conv2d, input: Tensor) -> Tensor:
    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, None)

    return _applied(self, "weight", multiply, -1 - len(self.kernel_size))(input)


# --- recurrent modules ---------------------------------------------------------------------------


def _recurrent(self: nn.RNNBase, input: Tensor, hx=None):
    """As torch's, but for packed sequences.

    Raises
    ------
    GshwError
        For a packed sequence.
    """
    if isinstance(input, PackedSequence):
        raise GshwError("a quantised recurrence takes padded sequences, not a PackedSequence")
    batched = input.ndim == 3
    x = input if batched else input.unsqueeze(int(not self.batch_first))
    x = x.transpose(0, 1) if self.batch_first else x
    n_directions = 2 if self.bidirectional else 1
    is_lstm = isinstance(self, nn.LSTM)
    hidden, cell = _first_states(self, x, hx, batched)
    last_hidden, last_cell = [], []
    for layer in range(self.num_layers):
        outputs = []
        for direction in range(n_directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            state = layer * n_directions + direction
            steps, h, c = _one_direction(self, suffix, x, hidden[state], cell[state], direction)
            outputs.append(steps)
            last_hidden.append(h)
            last_cell.append(c)
        x = torch.cat(outputs, dim=2)
        if layer < self.num_layers - 1:
            x = functional.dropout(x, self.dropout, self.training)
    x = x.transpose(0, 1) if self.batch_first else x
    final = [torch.stack(last_hidden)] + ([torch.stack(last_cell)] if is_lstm else [])
    if not batched:
        x = x.squeeze(int(not self.batch_first))
        final = [state.squeeze(1) for state in final]
    return x, tuple(final) if is_lstm else final[0]


def _first_states(module: nn.RNNBase, x: Tensor, hx, batched: bool) -> tuple[Tensor, Tensor]:
    """Hidden and cell states, (n_states, n_sequences, n_features); no cell: the hidden ones."""
    n_states = module.num_layers * (2 if module.bidirectional else 1)
    if hx is None:
        hidden = x.new_zeros(n_states, x.shape[1], module.proj_size or module.hidden_size)
        return hidden, x.new_zeros(n_states, x.shape[1], module.hidden_size)
    states = hx if isinstance(hx, tuple) else (hx, hx)
    hidden, cell = states if batched else (state.unsqueeze(1) for state in states)
    return hidden, cell


def _one_direction(
    module: nn.RNNBase, suffix: str, x: Tensor, hidden: Tensor, cell: Tensor, direction: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (n_steps, n_sequences, n_features) in the order of time, and the last states."""
    inputs = _applied(module, "weight_ih" + suffix)(x)
    recur = _applied(module, "weight_hh" + suffix)
    project = _applied(module, "weight_hr" + suffix) if module.proj_size else None
    outputs = []
    for step in reversed(inputs.unbind()) if direction else inputs.unbind():
        hidden, cell = _cell(module, step, recur(hidden), hidden, cell)
        hidden = hidden if project is None else project(hidden)
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if direction else outputs), hidden, cell


def _cell(
    module: nn.RNNBase, from_input: Tensor, from_state: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """Next hidden and cell state, as torch documents them."""
    if isinstance(module, nn.LSTM):
        i, f, g, o = (from_input + from_state).chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    if isinstance(module, nn.GRU):
        (xr, xz, xn), (hr, hz, hn) = from_input.chunk(3, dim=-1), from_state.chunk(3, dim=-1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        return (1 - z) * (xn + r * hn).tanh() + z * hidden, cell
    total = from_input + from_state
    return (total.tanh() if module.nonlinearity == "tanh" else total.relu()), cell


# --- attention -----------------------------------------------------------------------------------


def _attention(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As torch's; what lies between the projections is torch's function, given identities."""
    if self._qkv_same_embed_dim:
        project = _applied(self, "in_proj_weight")
        done = {id(x): project(x).chunk(3, dim=-1) for x in (query, key, value)}
        q, k, v = (done[id(x)][part] for part, x in enumerate((query, key, value)))
    else:
        q, k, v = (
            _applied(self, f"{part}_proj_weight")(x)
            for part, x in zip("qkv", (query, key, value), strict=True)
        )
    swap = self.batch_first and q.ndim == 3
    if swap:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    same = torch.eye(self.embed_dim, dtype=q.dtype, device=q.device)
    output, weights = functional.multi_head_attention_forward(
        q,
        k,
        v,
        self.embed_dim,
        self.num_heads,
        None,
        None,
        self.bias_k,
        self.bias_v,
        self.add_zero_attn,
        self.dropout,
        same,
        None,
        training=self.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        use_separate_proj_weight=True,
        q_proj_weight=same,
        k_proj_weight=same,
        v_proj_weight=same,
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )
    output = output.transpose(0, 1) if swap else output
    return self.out_proj(output), weights


_FORWARDS = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.RNN: _recurrent,
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
    nn.MultiheadAttention: _attention,
}
