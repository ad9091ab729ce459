"""The software model of the core, as an accelerator."""

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.drivers.accelerator import Accelerator, HostMemory, ProgramRun
from gshw.program_model import ProgramModel


class GoldenAccelerator(Accelerator):
    """Programs run by :class:`gshw.program_model.ProgramModel`: bit for bit, without cycles.

    Parameters
    ----------
    config
        The config.
    n_bytes, base
        Size and first address of the memory.
    """

    def __init__(self, config: Config, *, n_bytes: int = 1 << 26, base: int = 0) -> None:
        super().__init__(config)
        self.memory = HostMemory(n_bytes, base)
        self.memory_base = base
        self._model = ProgramModel(config.engine, self.memory.data, base_address=base)

    def write_memory(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        self.memory.write(address, data)

    def read_memory(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        return self.memory.read(address, n_bytes)

    def run(self, address: int) -> ProgramRun:
        self._model.run_at(address)
        return ProgramRun(counters={})

    def close(self) -> None:
        """Nothing stands behind."""
