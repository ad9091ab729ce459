"""Host nodes in integers: their tables and numbers."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.network.graph import HostNode, Tensor
from gshw.network.host import (
    ARGUMENT_BITS,
    EXPONENT_STEPS,
    NORM_BITS,
    SCALE_BITS,
    exponentials,
    gru_tables,
    lstm_tables,
    norm_numbers,
)
from gshw.quantise import quantise_activations, to_fixed
from pruning.networks.float_graph import FloatHostNode
from pruning.networks.tables import codes_of

GAIN_BITS = 15
"""Of the largest gain of a layer norm."""


class HostNodes:
    """Makes host nodes for tensors of known scales.

    Attributes
    ----------
    tables
        What the nodes made so far look up.
    """

    def __init__(self, config: EngineConfig, tensors: Mapping[str, Tensor]) -> None:
        self._config, self._tensors = config, tensors
        self._embeddings: dict[tuple[int, float, bool], str] = {}
        self.tables: dict[str, NDArray] = {}

    def make(self, node: FloatHostNode) -> HostNode:
        """One node.

        Raises
        ------
        GshwError
            Naming the node, for scales that no integers stand for.
        """
        try:
            names, numbers = self._parameters(node)
        except GshwError as error:
            raise GshwError(f"node {node.name!r}: {error}") from None
        return HostNode(
            name=node.name,
            function=node.function,
            sources=node.sources,
            targets=node.targets,
            tables=names,
            numbers=numbers,
        )

    def _parameters(self, node: FloatHostNode) -> tuple[tuple[str, ...], dict[str, int]]:
        """Names of tables, and numbers."""
        sources = [self._tensors[source.tensor] for source in node.sources]
        target = self._tensors[node.targets[0].tensor]
        match node.function:
            case "lstm_cell":
                return self._lstm(sources[0])
            case "gru_cell":
                return self._gru(sources[0], sources[1])
            case "constant":
                assert node.table is not None, "a constant has values"
                scale, signed = target.scale, target.signed
                codes = quantise_activations(self._config, node.table, scale, signed)
                return self._add_tables((node.name,), [codes]), {}
            case "layer_norm":
                return self._layer_norm(node, sources[0], target)
            case "embedding":
                return (self._embedding(node, target),), {}
            case "attention":
                names = self._add_tables(("exponentials",), [exponentials()])
                step = sources[0].scale * sources[1].scale * node.factor * EXPONENT_STEPS
                return names, _fixed(step) | dict(node.numbers)
            case "table":
                codes = codes_of(self._config, node, sources[0], target)
                low, _ = self._config.activation_range(sources[0].signed)
                return self._add_tables((node.name,), [codes]), {"low": low}
            case "multiply":
                low, high = self._config.activation_range(target.signed)
                step = sources[0].scale * sources[1].scale / target.scale
                return (), _fixed(step) | {"low": low, "high": high}
            case "fill":
                size = {"width": target.size[1], "channels": target.channels}
                return (), {"value": node.value} | size
        return (), {}

    def _lstm(self, gates: Tensor) -> tuple[tuple[str, ...], dict[str, int]]:
        """Gates of one scale share their tables."""
        low, high = self._config.activation_range(gates.signed)
        names = tuple(f"{kind} of {gates.scale!r}" for kind in ("sigmoid", "tanh"))
        names = (*names, "tanh of cells")
        self._add_tables(names, lstm_tables(gates.scale, low, high))
        return names, {"low": low, "output_bits": self._config.activation_width - 1}

    def _gru(self, inner: Tensor, outer: Tensor) -> tuple[tuple[str, ...], dict[str, int]]:
        names = ("sigmoid of GRUs", "tanh of GRUs")
        self._add_tables(names, gru_tables())
        return names, {
            "input": round(inner.scale * 2.0 ** (ARGUMENT_BITS + SCALE_BITS)),
            "before": round(outer.scale * 2.0 ** (ARGUMENT_BITS + SCALE_BITS)),
            "output_bits": self._config.activation_width - 1,
        }

    def _layer_norm(
        self, node: FloatHostNode, source: Tensor, target: Tensor
    ) -> tuple[tuple[str, ...], dict[str, int]]:
        ones = np.ones(source.channels)
        gain = (ones if node.gain is None else node.gain) / target.scale
        offset = (0 * ones if node.offset is None else node.offset) / target.scale
        if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
            raise GshwError("gain and offset must be finite")
        # Of the gain, as many bits as the largest one needs to have GAIN_BITS.
        largest = max(float(np.abs(gain).max()), 2.0**-GAIN_BITS)
        gain_bits = max(0, GAIN_BITS - math.ceil(math.log2(largest)))
        shift = NORM_BITS + gain_bits
        names = f"{node.name}.gain", f"{node.name}.offset"
        values = gain * 2.0**gain_bits, offset * 2.0**shift
        self._add_tables(names, [np.rint(value).astype(np.int64) for value in values])
        low, high = self._config.activation_range(target.signed)
        epsilon = round(node.epsilon * source.channels**3 / source.scale**2)
        numbers = norm_numbers(source.channels, self._config.activation_width, epsilon)
        return names, numbers | {"shift": shift, "low": low, "high": high}

    def _add_tables(self, names: tuple[str, ...], tables: list[NDArray]) -> tuple[str, ...]:
        """Tables by name; nodes may share one, but not give one name to two."""
        for name, table in zip(names, tables, strict=True):
            known = self.tables.setdefault(name, table)
            assert np.array_equal(known, table), f"two tables are called {name!r}"
        return names

    def _embedding(self, node: FloatHostNode, target: Tensor) -> str:
        """One table, however many nodes look it up."""
        assert node.key is not None and node.table is not None, "an embedding has a table"
        known = id(node.table), target.scale, target.signed
        if known not in self._embeddings:
            codes = quantise_activations(self._config, node.table, target.scale, target.signed)
            name = node.key if node.key not in self.tables else node.name
            self.tables[name] = codes.astype(np.min_scalar_type(-int(np.abs(codes).max()) - 1))
            self._embeddings[known] = name
        return self._embeddings[known]


def _fixed(step: float) -> dict[str, int]:
    multiplier, shift = to_fixed(np.array([step]))
    return {"multiplier": int(multiplier[0]), "shift": int(shift[0])}
