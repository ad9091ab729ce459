"""Host nodes in integers: their tables and numbers."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.network.graph import HostNode, Tensor
from gshw.network.host import EXPONENT_STEPS, exponentials, lstm_tables
from gshw.quantise import quantise_activations, to_fixed
from pruning.networks.float_graph import FloatHostNode


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
            case "embedding":
                return (self._embedding(node, target),), {}
            case "attention":
                self.tables["exponentials"] = exponentials()
                step = sources[0].scale * sources[1].scale * node.factor * EXPONENT_STEPS
                return ("exponentials",), _fixed(step)
            case "table":
                return (node.name,), self._function(node, sources[0], target)
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
        self.tables |= zip(names, lstm_tables(gates.scale, low, high), strict=True)
        return names, {"low": low, "output_bits": self._config.activation_width - 1}

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

    def _function(self, node: FloatHostNode, source: Tensor, target: Tensor) -> dict[str, int]:
        low, high = self._config.activation_range(source.signed)
        assert node.apply is not None, "a table is of a function"
        values = node.apply(torch.arange(low, high + 1, dtype=torch.float64) * source.scale)
        self.tables[node.name] = quantise_activations(
            self._config, values.numpy(), target.scale, target.signed
        )
        return {"low": low}


def _fixed(step: float) -> dict[str, int]:
    multiplier, shift = to_fixed(np.array([step]))
    return {"multiplier": int(multiplier[0]), "shift": int(shift[0])}
