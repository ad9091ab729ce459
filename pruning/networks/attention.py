"""``torch.nn.MultiheadAttention`` in a form whose sequences come after the samples throughout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gshw.errors import GshwError


class _BatchFirst(nn.MultiheadAttention):
    """The same numbers: the class of a module is exchanged for this one while it is exported."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        self._check(query, key_padding_mask, attn_mask, is_causal)
        width = self.embed_dim
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key and key is value:
            # One matrix, as its masks have it.
            packed = functional.linear(query, weight, bias)
            parts = [packed[..., n * width : (n + 1) * width] for n in range(3)]
        else:
            parts = []
            for n, x in enumerate((query, key, value)):
                rows = slice(n * width, (n + 1) * width)
                own = None if bias is None else bias[rows]
                parts.append(functional.linear(x, weight[rows], own))
        heads = [
            part.view(*part.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for part in parts
        ]
        found = functional.scaled_dot_product_attention(*heads, is_causal=is_causal)
        return self.out_proj(found.transpose(1, 2).reshape(query.shape)), None

    def _check(self, query: Tensor, padding: Any, mask: Any, is_causal: bool) -> None:
        reasons = {
            "must be made with batch_first=True": not self.batch_first or query.ndim != 3,
            "must have keys and values as wide as queries": not self._qkv_same_embed_dim,
            "must not add biases or zeros to keys": self.bias_k is not None or self.add_zero_attn,
            "must not have a mask, but a causal one": padding is not None
            or (mask is not None and not is_causal),
        }
        for reason, holds in reasons.items():
            if holds:
                raise GshwError(f"MultiheadAttention {reason}")


@contextmanager
def batch_first_attention(model: nn.Module) -> Iterator[None]:
    """While it lasts, a model's attention can be followed."""
    found = [m for m in model.modules() if type(m) is nn.MultiheadAttention]
    fast = torch.backends.mha.get_fastpath_enabled()
    # A transformer's layer of one operator, that only torch knows.
    torch.backends.mha.set_fastpath_enabled(False)
    for module in found:
        module.__class__ = _BatchFirst
    try:
        yield
    finally:
        for module in found:
            module.__class__ = nn.MultiheadAttention
        torch.backends.mha.set_fastpath_enabled(fast)
