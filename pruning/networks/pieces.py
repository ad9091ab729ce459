"""Nodes that would fill the banks, as several that do not."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from gshw.config import EngineConfig
from pruning.networks.affine import Affine, Term, main_window, skip
from pruning.networks.float_graph import FloatHostNode, FloatNetwork, FloatNode, FloatTensor

WINDOW_SHARE = 4
"""A window of groups shall take at most one in so many words of a bank."""

POINTS_SHARE = 2
"""And one that points are embedded in, one in so many."""


def split_windows(config: EngineConfig, network: FloatNetwork) -> FloatNetwork:
    """Nodes whose points would fill the banks when embedded as two: the window, then the points.

    What lies between them has its own range: its values are computed from those of calibration.
    """
    tensors, nodes = dict(network.tensors), []
    for node in network.nodes:
        if isinstance(node, FloatHostNode):
            nodes.append(node)
            continue
        terms = node.affine.terms
        kernel = main_window(terms).kernel
        n_words = sum(-(-term.channels // config.channels_per_row) for term in terms)
        points = tuple(term.alone for term in terms if term.tap is not None)
        share = kernel[0] * kernel[1] * n_words * POINTS_SHARE
        if not points or share <= config.bank_depth:
            nodes.append(node)
            continue
        inner = Affine(
            terms=tuple(term for term in terms if term.tap is None), bias=node.affine.bias
        )
        values = sum(_product(term, tensors[term.tensor]) for term in inner.terms)
        assert isinstance(values, torch.Tensor), "there is a window"
        values = values + torch.from_numpy(inner.bias)[:, None, None]
        name = f"{node.name}[window]"
        tensors[name] = replace(
            tensors[node.name],
            name=name,
            nonnegative=False,
            magnitude=network.magnitude_of(values.numpy()),
            values=values,
        )
        nodes.append(FloatNode(name=name, affine=inner, low=None, high=None))
        (rest,) = skip(name, inner.n_rows).terms
        outer = Affine(terms=(rest, *points), bias=np.zeros(inner.n_rows))
        nodes.append(replace(node, affine=outer))
    return replace(network, tensors=tensors, nodes=tuple(nodes))


def _product(term: Term, tensor: FloatTensor) -> torch.Tensor:
    """A term's share of the sum, from the values of calibration."""
    x = tensor.values[:, term.first : term.first + term.channels].double()
    window = term.window
    return functional.conv2d(
        x[:, :, :: term.step[0], :: term.step[1]],
        torch.from_numpy(term.weight),
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=term.groups,
    )


def split_groups(config: EngineConfig, node: FloatNode) -> list[tuple[FloatNode, int]]:
    """A node of many groups as several, each of some groups; and the first row of each.

    So the window of one pixel fits the banks with room for more, and no matrix is mostly zeros.
    """
    term = node.affine.terms[0]
    n_taps = term.window.kernel[0] * term.window.kernel[1]
    if len(node.affine.terms) > 1 or term.groups == 1 or n_taps == 1:
        return [(node, 0)]
    n_words = max(1, config.bank_depth // WINDOW_SHARE // n_taps)
    per_group = term.channels // term.groups
    most = max(1, n_words * config.channels_per_row // per_group)
    n_pieces = -(-term.groups // most)
    # Whole scratchpad rows, but for the last piece.
    row_groups = max(1, config.channels_per_row // per_group)
    even = -(-term.groups // n_pieces)
    size = -(-even // row_groups) * row_groups
    rows_per_group = term.n_rows // term.groups
    pieces = []
    for start in range(0, term.groups, size):
        n_groups = min(size, term.groups - start)
        rows = slice(start * rows_per_group, (start + n_groups) * rows_per_group)
        part = replace(
            term,
            weight=term.weight[rows],
            groups=n_groups,
            channels=n_groups * per_group,
            first=start * per_group,
        )
        affine = replace(node.affine, terms=(part,), bias=node.affine.bias[rows])
        name = node.name if size >= term.groups else f"{node.name}[{rows.start}:{rows.stop}]"
        piece = replace(node, name=name, piece_of=node.name, affine=affine)
        pieces.append((piece, rows.start))
    return pieces
