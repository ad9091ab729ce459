"""A float network in the engine's integers; ``docs/networks.md`` has the rules."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import EncodedLayer, Requantisation, encode_layer
from gshw.errors import GshwError
from gshw.geometry import Geometry, LayerKind, Part, conv_matrix
from gshw.network.graph import HostNode, MatrixNode, Network, Source, Tensor
from gshw.quantise import accumulator_scales, least_scale, to_fixed
from gshw.row_order import choose_row_order
from pruning.networks.affine import Term, main_window
from pruning.networks.float_graph import FloatHostNode, FloatNetwork, FloatNode
from pruning.networks.host_nodes import HostNodes
from pruning.networks.pieces import split_groups, split_windows
from pruning.networks.scales import matrix_of, scaled_tensors
from pruning.networks.tables import join_tables, table_by_bits
from pruning.patterns.pattern import Projection

MAX_REPEATS = 4
"""How often the columns of a skip are repeated at most."""


def quantise_network(
    config: EngineConfig,
    network: FloatNetwork,
    projections: Mapping[str, Projection] | None = None,
    *,
    provenance: Mapping[str, str] | None = None,
    on_node: Callable[[str], None] = lambda name: None,
) -> Network:
    """Scales, codes and encoded layers of a float network.

    Parameters
    ----------
    projections
        Mask and row order by the name of the weight's module. Other weights keep what is not zero.
    on_node
        Called with the name of every node before it is encoded.

    Raises
    ------
    GshwError
        Naming the node: values that are not finite, an accumulator that could overflow, a
        projection of no weight or of another shape.
    """
    projections = projections or {}
    keys = {term.key for node in network.matrices for term in node.affine.terms}
    for name in projections:
        if name not in keys:
            raise GshwError(f"no layer {name!r} for the mask of that name")
    network = join_tables(config, split_windows(config, network))
    tensors = scaled_tensors(config, network)
    layers: dict[str, EncodedLayer] = {}
    hosts = HostNodes(config, tensors)
    shared: dict[tuple, str] = {}
    nodes: list[MatrixNode | HostNode] = []
    for node in network.nodes:
        on_node(node.name)
        if isinstance(node, FloatHostNode):
            nodes.append(hosts.make(node))
            continue
        for piece, first in split_groups(config, node):
            table = _table(config, piece, tensors)
            known = _identity(network, piece, tensors, table)
            name = shared.get(known)
            if name is None:
                layer = _encode(config, network, piece, tensors, projections, table)
                layers[layer.name] = layer
                name = shared[known] = layer.name
            nodes.append(_matrix_node(network, piece, name, first))
    # What goes through a table at once is never stored.
    unstored = {node.name for node in network.matrices if node.table is not None}
    return Network(
        tensors={name: t for name, t in tensors.items() if name not in unstored},
        nodes=tuple(nodes),
        layers=layers,
        inputs=network.inputs,
        outputs=network.outputs,
        provenance=dict(provenance or {}),
        tables=hosts.tables,
    )


def _identity(
    network: FloatNetwork,
    node: FloatNode,
    tensors: Mapping[str, Tensor],
    table: NDArray[np.int64] | None,
) -> tuple:
    """What two nodes have in common that are one layer."""
    terms, stage, output = node.affine.terms, tensors[node.whole], tensors[node.output]
    ends = stage.scale, stage.signed, output.scale, output.signed, _may_unfold(network, node)
    ends = (*ends, None if table is None else table.tobytes())
    scales = [(tensors[name].scale, tensors[name].signed) for name in node.tensors_read]
    sizes = [term.size or tensors[term.tensor].size for term in terms]
    parts = map(matrix_of, terms)
    bias = node.affine.bias.tobytes()
    return (*parts, *scales, *sizes, *ends, bias, node.low, node.high, node.affine.maximum)


def _table(
    config: EngineConfig, node: FloatNode, tensors: Mapping[str, Tensor]
) -> NDArray[np.int64] | None:
    """What its codes are replaced by, in the order of their bits."""
    if node.table is None:
        return None
    return table_by_bits(config, node.table, tensors[node.whole], tensors[node.output])


def _matrix_node(network: FloatNetwork, node: FloatNode, layer: str, first: int) -> MatrixNode:
    sources = tuple(
        Source(
            term.tensor,
            step=term.step,
            first=term.first,
            channels=term.channels,
            start=term.start,
            size=term.size,
        )
        for term in node.affine.terms
    )
    return MatrixNode(
        layer=layer,
        sources=sources,
        output=node.output,
        first=first,
        fold=_fold(network, node),
        label="" if layer == node.name else node.name,
    )


@dataclass(frozen=True)
class _Columns:
    """Columns of one term, repeats not included.

    Parameters
    ----------
    weights
        Shape (n_rows, taps, channels), float64: in units of real value per input code.
    mask
        Of the same shape; None: what is not zero.
    """

    term: Term
    weights: NDArray[np.float64]
    mask: NDArray[np.bool_] | None


def _dense(term: Term) -> NDArray[np.float64]:
    """Weights as (n_rows, taps, channels), groups filled up with zeros."""
    n_rows, per_group, height, width = term.weight.shape
    flat = conv_matrix(term.weight).reshape(n_rows, height * width, per_group)
    if term.groups == 1:
        return _in_window(term, flat)
    whole = np.zeros((n_rows, height * width, term.channels))
    rows_per_group = n_rows // term.groups
    for group in range(term.groups):
        rows = slice(group * rows_per_group, (group + 1) * rows_per_group)
        whole[rows, :, group * per_group : (group + 1) * per_group] = flat[rows]
    return _in_window(term, whole)


def _in_window(term: Term, columns: NDArray) -> NDArray:
    """Columns (n_rows, taps, channels) of the term's own weight among all taps of its window."""
    if term.tap is None:
        return columns
    n_taps = term.window.kernel[0] * term.window.kernel[1]
    found = np.zeros((len(columns), n_taps, columns.shape[2]), dtype=columns.dtype)
    found[:, term.tap] = columns[:, 0]
    return found


def _columns(
    term: Term, tensor: Tensor, projections: Mapping[str, Projection], name: str
) -> _Columns:
    weights = _dense(term)
    if not np.isfinite(weights).all():
        raise GshwError(f"node {name!r}: weights must be finite")
    mask = None
    if term.key is not None and term.key in projections:
        own = projections[term.key].mask
        n_taps = weights.shape[1] if term.tap is None else 1
        start, total = term.columns or (0, weights.shape[2])
        first, n_rows = term.rows or (0, weights.shape[0])
        shape = (n_rows, n_taps, total)
        if own.size != math.prod(shape):
            raise GshwError(
                f"layer {term.key!r}: mask must have {math.prod(shape)} elements, not {own.size}"
            )
        rows = slice(first, first + weights.shape[0])
        own = own.reshape(shape)[rows, :, start : start + weights.shape[2]]
        mask = _in_window(term, own)
        weights = np.where(mask, weights, 0.0)
    return _Columns(term, weights * tensor.scale, mask)


def _unit(
    config: EngineConfig,
    columns: list[_Columns],
    bias: NDArray[np.float64],
    output_scale: float,
    *,
    signed: bool,
) -> tuple[NDArray[np.float64], int]:
    """Value of one unit of every row's accumulator, and how often skips are repeated."""
    n_rows = bias.size
    peak, n_weights, total = np.zeros(n_rows), np.zeros(n_rows), np.zeros(n_rows)
    skips = []
    for item in columns:
        magnitude = np.abs(item.weights).reshape(n_rows, -1)
        n_weights += np.count_nonzero(magnitude, axis=1)
        total += magnitude.sum(axis=1)
        if item.term.is_skip:
            skips.append(magnitude.max(axis=1))
        else:
            peak = np.maximum(peak, magnitude.max(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        need, limit = accumulator_scales(
            config, n_weights, total, np.abs(bias), input_scale=1.0, signed_input=signed
        )
    if (limit <= 0).any():
        raise GshwError(
            f"row {int(np.argmin(limit))} has too many weights for a "
            f"{config.accumulator_width}-bit accumulator"
        )
    unit = np.maximum(peak / config.max_weight, need)
    if not skips:
        return np.maximum(unit, least_scale(1.0, output_scale)), 1
    largest = np.max(skips, axis=0)
    if (peak == 0).all():
        unit = np.maximum(unit, largest / config.max_weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.floor(np.where(unit > 0, largest / unit, np.inf))
    n = np.clip(n, 0, MAX_REPEATS * config.max_weight)
    exact = np.where(n >= 1, largest / np.maximum(n, 1), unit)
    repeats = max(1, int(-(-n.max() // config.max_weight)))
    return np.maximum(exact, least_scale(1.0, output_scale)), repeats


def _split(codes: NDArray[np.int64], repeats: int, highest: int) -> list[NDArray[np.int64]]:
    """Codes as a sum of ``repeats`` codes, the first ones as large as they may be."""
    pieces, rest = [], codes
    for _ in range(repeats):
        piece = np.clip(rest, -highest, highest)
        pieces.append(piece)
        rest = rest - piece
    return pieces


def _encode(
    config: EngineConfig,
    network: FloatNetwork,
    node: FloatNode,
    tensors: Mapping[str, Tensor],
    projections: Mapping[str, Projection],
    table: NDArray[np.int64] | None,
) -> EncodedLayer:
    name, output = node.name, tensors[node.whole]
    terms = node.affine.terms
    signed = tensors[terms[0].tensor].signed
    columns = [_columns(term, tensors[term.tensor], projections, name) for term in terms]
    try:
        if node.affine.maximum:
            unit, repeats = np.full(node.affine.n_rows, tensors[terms[0].tensor].scale), 1
        else:
            unit, repeats = _unit(config, columns, node.affine.bias, output.scale, signed=signed)
        multiplier, shift = to_fixed(unit / output.scale)
    except GshwError as error:
        raise GshwError(f"node {name!r}: {error}") from None
    pieces, masks, parts = [], [], []
    for item in columns:
        codes = np.rint(item.weights / unit[:, None, None]).astype(np.int64)
        n_repeats = repeats if item.term.is_skip else 1
        split = _split(codes, n_repeats, config.max_weight)
        pieces += split
        kept = [item.mask if item.mask is not None else codes != 0 for codes in split]
        masks += kept
        parts.append(Part(item.term.channels, n_repeats))
    matrix = np.concatenate(pieces, axis=2)
    n_rows = node.affine.n_rows
    fold = _fold(network, node)
    geometry = _geometry(config, network, node, parts, fold)
    mask = np.concatenate(masks, axis=2).reshape(n_rows, -1)
    return encode_layer(
        config,
        name,
        matrix.reshape(n_rows, -1).astype(np.int16),
        geometry,
        Requantisation(
            bias=np.rint(node.affine.bias / unit).astype(np.int64),
            multiplier=multiplier,
            shift=shift,
            **_clamp(config, node, output),
            signed_input=signed,
            maximum=node.affine.maximum,
            table=table,
        ),
        mask=mask,
        row_order=_row_order(config, node, projections, geometry, mask),
        input_scale=tensors[terms[0].tensor].scale,
        output_scale=tensors[node.output].scale,
    )


def _clamp(config: EngineConfig, node: FloatNode, output: Tensor) -> dict[str, int]:
    """A clamp tighter than the codes' range is one of the requantisation."""
    low, high = config.activation_range(output.signed)
    if node.low is not None:
        low = max(low, int(np.rint(node.low / output.scale)))
    if node.high is not None:
        high = min(high, int(np.rint(node.high / output.scale)))
    return {"low": low, "high": high}


def _row_order(
    config: EngineConfig,
    node: FloatNode,
    projections: Mapping[str, Projection],
    geometry: Geometry,
    mask: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The best there is; that of the first mask is among them."""
    own = [projections[t.key].row_order for t in node.affine.terms if t.key in projections]
    fits = [order for order in own if len(order) == len(mask)]
    return choose_row_order(config, geometry, mask, fits[0] if fits else None)


def _fold(network: FloatNetwork, node: FloatNode) -> int:
    """How many lines a dilated one-dimensional window makes of one, to be without gaps."""
    window, terms = main_window(node.affine.terms), node.affine.terms
    dilation = window.dilation[1]
    sizes = [network.tensors[term.tensor].size for term in terms]
    folds = (
        window.kernel[0] == 1
        and window.stride == (1, 1)
        and window.padding[0] == 0
        and window.padding[1] % dilation == 0
        and all(term.step == (1, 1) for term in terms)
        and all(height == 1 and width % dilation == 0 for height, width in sizes)
    )
    return dilation if folds else 1


def _geometry(
    config: EngineConfig, network: FloatNetwork, node: FloatNode, parts: list[Part], fold: int
) -> Geometry:
    window = main_window(node.affine.terms)
    single = len(parts) == 1 and parts[0].repeats == 1
    plain = Geometry(
        kind=LayerKind.CONV2D,
        in_channels=sum(part.channels for part in parts),
        kernel=window.kernel,
        stride=window.stride,
        padding=(window.padding[0], window.padding[1] // fold),
        dilation=(window.dilation[0], window.dilation[1] // fold),
        parts=() if single else tuple(parts),
    )
    if single and fold == 1 and _may_unfold(network, node):
        return plain.unfolded_if_smaller(config)
    return plain


def _may_unfold(network: FloatNetwork, node: FloatNode) -> bool:
    """Whether the node is the only one to read an input, whole."""
    term = node.affine.terms[0]
    readers = [other for other in network.nodes if term.tensor in other.tensors_read]
    return term.tensor in network.inputs and len(readers) == 1 and term.step == (1, 1)
