"""What the weights of a recurrent layer are multiplied with, step by step."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


def single_layers(module: nn.RNNBase) -> list[nn.RNNBase]:
    """Copies of a recurrent stack's layers, one module each with both directions in it."""
    singles = []
    n_directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        size = module.input_size
        if layer:
            size = n_directions * (module.proj_size or module.hidden_size)
        if isinstance(module, nn.LSTM):
            kind = partial(nn.LSTM, proj_size=module.proj_size)
        elif isinstance(module, nn.GRU):
            kind = nn.GRU
        else:
            kind = partial(nn.RNN, nonlinearity=module.nonlinearity)
        first = module.weight_ih_l0
        single = kind(
            size,
            module.hidden_size,
            bias=module.bias,
            batch_first=module.batch_first,
            bidirectional=module.bidirectional,
            device="meta",
            dtype=first.dtype,
        ).to_empty(device=first.device)
        for name, parameter in single.named_parameters():
            parameter.data.copy_(getattr(module, name.replace("_l0", f"_l{layer}")))
        singles.append(single)
    return singles


def recurrent_inputs(
    singles: list[nn.RNNBase], x: Tensor | PackedSequence, state=None
) -> Iterator[tuple[str, Tensor]]:
    """What each weight of a stack reads: every layer's input, and every state but the last.

    Each layer runs once as a whole; no loop over time but for the cell of an LSTM's projection.

    Parameters
    ----------
    singles
        The stack, by :func:`single_layers`.
    x, state
        As the stack's own ``forward`` takes them.

    Yields
    ------
    tensor name, vectors
        ``weight_hh_l0_reverse`` and the like; shape (n_vectors, n_columns), a packed sequence's
        padding left out.
    """
    for layer, single in enumerate(singles):
        n_directions = 2 if single.bidirectional else 1
        own = slice(layer * n_directions, (layer + 1) * n_directions)
        if state is None:
            start = None
        elif isinstance(state, tuple):
            start = tuple(s[own] for s in state)
        else:
            start = state[own]
        output, _ = single(x, start)
        steps = _Steps(x, single.batch_first)
        after = _Steps(output, single.batch_first)
        for direction in range(n_directions):
            suffix = f"l{layer}" + ("_reverse" if direction else "")
            before = after.shifted(start, direction, n_directions)
            yield f"weight_ih_{suffix}", steps.values[steps.valid]
            yield f"weight_hh_{suffix}", before[steps.valid]
            if single.proj_size:
                unprojected = _unprojected(single, steps, before, start, direction)
                yield f"weight_hr_{suffix}", unprojected[steps.valid]
        x = output


class _Steps:
    """A sequence as (n_steps, n_sequences, n_features), and which of its steps are real."""

    def __init__(self, x: Tensor | PackedSequence, batch_first: bool) -> None:
        if isinstance(x, PackedSequence):
            self.values, lengths = pad_packed_sequence(x)
        else:
            self.values = x.unsqueeze(1) if x.ndim == 2 else x.transpose(0, 1) if batch_first else x
            lengths = torch.full((self.values.shape[1],), len(self.values))
        self.lengths = lengths.to(self.values.device)
        clock = torch.arange(len(self.values), device=self.values.device)
        self.valid = clock[:, None] < self.lengths

    def shifted(self, start, direction: int, n_directions: int) -> Tensor:
        """The state before each step of one direction, from the state after it."""
        states = self.values.chunk(n_directions, dim=2)[direction]
        first = _first_state(start, direction, states[0])
        if not direction:
            return torch.cat([first[None], states[:-1]])
        before = torch.cat([states[1:], first[None]])
        # A reversed sequence starts at its own last step.
        last = (self.lengths - 1, torch.arange(states.shape[1], device=states.device))
        before[last] = first
        return before


def _first_state(start, direction: int, like: Tensor) -> Tensor:
    if start is None:
        return torch.zeros_like(like)
    hidden = start[0] if isinstance(start, tuple) else start
    return hidden[direction].reshape(like.shape)


def _unprojected(
    single: nn.RNNBase, steps: _Steps, before: Tensor, start, direction: int
) -> Tensor:
    """What ``weight_hr`` of an LSTM reads: output gate times tanh of the cell, at every step."""
    suffix = "l0_reverse" if direction else "l0"
    gates = steps.values @ getattr(single, f"weight_ih_{suffix}").T
    gates = gates + before @ getattr(single, f"weight_hh_{suffix}").T
    if single.bias:
        gates = gates + getattr(single, f"bias_ih_{suffix}") + getattr(single, f"bias_hh_{suffix}")
    enter, forget, new, leave = gates.chunk(4, dim=2)
    fresh, forget = enter.sigmoid() * new.tanh(), forget.sigmoid()
    cell = torch.zeros_like(fresh[0]) if start is None else start[1][direction].view_as(fresh[0])
    cells = torch.empty_like(fresh)
    order = range(len(cells))
    for step in reversed(order) if direction else order:
        # Steps past a sequence's end must not touch its cell: a reversed one passes them first.
        cell = torch.where(steps.valid[step, :, None], forget[step] * cell + fresh[step], cell)
        cells[step] = cell
    return leave.sigmoid() * cells.tanh()
