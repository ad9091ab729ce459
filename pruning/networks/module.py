"""An integer network as a torch module: codes inside, torch's floats and shapes outside."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.network.execute import execute
from gshw.network.graph import Network
from gshw.quantise import quantise_activations
from pruning.networks.float_graph import TorchLayout

Codes = NDArray[np.int64]
Run = Callable[[Mapping[str, Codes]], Mapping[str, Codes]]
"""From the codes of inputs to those of outputs, maybe of more tensors."""


class IntegerNetwork(nn.Module):
    """Computes what the engine and its host compute, so that a float model's metric can be taken.

    Parameters
    ----------
    network
        With one input and one output.
    layouts
        Of them, from the float network.
    run
        Who computes; None: the golden executor.

    Raises
    ------
    GshwError
        From :meth:`forward`, for inputs of another shape than the network was imported for.
    """

    def __init__(
        self,
        config: EngineConfig,
        network: Network,
        layouts: Mapping[str, TorchLayout],
        run: Run | None = None,
    ) -> None:
        super().__init__()
        self._config, self._network, self._layouts = config, network, layouts
        self._run = self._execute if run is None else run

    def _execute(self, inputs: Mapping[str, Codes]) -> Mapping[str, Codes]:
        return execute(self._config, self._network, inputs)

    def forward(self, x: Tensor) -> Tensor:
        network = self._network
        source, result = (network.tensors[n[0]] for n in (network.inputs, network.outputs))
        layout = self._layouts[source.name]
        if tuple(x.shape[1:]) != layout.shape:
            raise GshwError(
                f"input must be of shape (samples, {', '.join(map(str, layout.shape))}), which the "
                f"network was imported for, not {tuple(x.shape)}"
            )
        codes = layout.codes(x.detach().cpu().numpy())
        if not source.host:
            codes = quantise_activations(self._config, codes, source.scale, source.signed)
        found = self._run({source.name: codes})[result.name]
        values = self._layouts[result.name].values(found)
        if result.host:
            return torch.from_numpy(np.ascontiguousarray(values))
        return torch.from_numpy(values * result.scale).to(torch.float32)
