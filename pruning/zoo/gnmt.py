"""GNMT, 8 layers of 1024 (Wu et al. 2016, arXiv 1609.08144), as one greedy translation.

The attention multiplies queries and keys, where the paper adds them (section 3).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

N_TOKENS = 32_000
"""Word pieces; section 4.1 takes 8 k to 32 k."""
N_STEPS = 20
END = 0
"""Ends a sentence, and begins a translation."""


class Encoder(nn.Module):
    """One layer both ways, then layers one way; additions around all but the first two."""

    def __init__(self, width: int, n_layers: int) -> None:
        super().__init__()
        self.first = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.second = nn.LSTM(2 * width, width, batch_first=True)
        rest = [nn.LSTM(width, width, batch_first=True) for _ in range(n_layers - 2)]
        self.rest = nn.ModuleList(rest)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.second(self.first(x)[0])
        for layer in self.rest:
            x = layer(x)[0] + x
        return x


class Decoder(nn.Module):
    """Layers that all read the attention of the first one's output to the encoder."""

    def __init__(self, width: int, n_layers: int, n_tokens: int) -> None:
        super().__init__()
        self.first = nn.LSTM(width, width, batch_first=True)
        rest = [nn.LSTM(2 * width, width, batch_first=True) for _ in range(n_layers - 1)]
        self.rest = nn.ModuleList(rest)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.classifier = nn.Linear(width, n_tokens)

    def forward(self, x: Tensor, keys: Tensor, memory: Tensor, states: list) -> tuple[Tensor, list]:
        """One step.

        Parameters
        ----------
        x
            Shape (samples, 1, width).
        keys, memory
            Of the encoder's outputs, and they themselves.
        states
            Of every layer; None before the first step.
        """
        x, state = self.first(x, states[0])
        found = [state]
        context = functional.scaled_dot_product_attention(self.query(x), keys, memory)
        for number, (layer, before) in enumerate(zip(self.rest, states[1:], strict=True)):
            y, state = layer(torch.cat([x, context], 2), before)
            found.append(state)
            x = y + x if number else y
        return self.classifier(x), found


class Gnmt(nn.Module):
    """Token numbers (samples, steps) to a greedy translation of ``n_steps`` token numbers.

    Parameters
    ----------
    n_steps
        Length of the translation.
    """

    def __init__(
        self,
        width: int = 1024,
        n_layers: int = 8,
        n_tokens: int = N_TOKENS,
        n_steps: int = N_STEPS,
    ) -> None:
        super().__init__()
        self.n_layers, self.n_steps = n_layers, n_steps
        self.source = nn.Embedding(n_tokens, width)
        self.target = nn.Embedding(n_tokens, width)
        self.encoder = Encoder(width, n_layers)
        self.decoder = Decoder(width, n_layers, n_tokens)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        memory = self.encoder(self.source(tokens))
        keys = self.decoder.key(memory)
        token = torch.full((len(tokens), 1), END)
        states, found = [None] * self.n_layers, []
        for _ in range(self.n_steps):
            scores, states = self.decoder(self.target(token), keys, memory, states)
            token = scores.argmax(2)
            found.append(token)
        return tuple(found)


def gnmt() -> Gnmt:
    """One sentence of 20 tokens."""
    return Gnmt()
