"""BERT-base's encoder (Devlin et al. 2018, arXiv 1810.04805), for sentences without padding.

Parameters have the names of the public checkpoints, without the prefix ``bert.``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

N_TOKENS = 30_522
N_POSITIONS = 512
_EPSILON = 1e-12


class Embeddings(nn.Module):
    """Words, positions, and the first of two types of token."""

    def __init__(self, width: int, n_tokens: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(n_tokens, width)
        self.position_embeddings = nn.Embedding(N_POSITIONS, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])[None]
        found = self.position_embeddings(places) + self.token_type_embeddings(0 * places)
        return self.LayerNorm(self.word_embeddings(tokens) + found)


class SelfAttention(nn.Module):
    """Queries, keys, values, and attention between them."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n_samples, n_steps, width = x.shape
        heads = (n_samples, n_steps, self.n_heads, width // self.n_heads)
        parts = (layer(x).view(heads).transpose(1, 2) for layer in (self.query, self.key))
        values = self.value(x).view(heads).transpose(1, 2)
        found = functional.scaled_dot_product_attention(*parts, values)
        return found.transpose(1, 2).reshape(n_samples, n_steps, width)


class Output(nn.Module):
    """A matrix, what went in added, and a norm."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class Layer(nn.Module):
    """Attention, then two matrices with GELU between."""

    def __init__(self, width: int, n_heads: int, n_inner: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(width, n_heads), "output": Output(width, width)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, n_inner)})
        self.output = Output(n_inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class Bert(nn.Module):
    """Token numbers (samples, steps) to (samples, width): the first token, pooled.

    Parameters
    ----------
    width, n_heads, n_inner, n_layers
        Of the encoder.
    """

    def __init__(
        self,
        *,
        width: int = 768,
        n_heads: int = 12,
        n_inner: int = 3072,
        n_layers: int = 12,
        n_tokens: int = N_TOKENS,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(width, n_tokens)
        layers = [Layer(width, n_heads, n_inner) for _ in range(n_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        for module in self.modules():
            # As published: normal of deviation 0.02, and no biases.
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for layer in self.encoder["layer"]:
            x = layer(x)
        return torch.tanh(self.pooler["dense"](x[:, 0]))


def bert_base() -> Bert:
    """12 layers of 768 with 12 heads, 109 M parameters."""
    return Bert()
