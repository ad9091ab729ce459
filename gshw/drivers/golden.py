"""The software model of the core, as an accelerator."""

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
        super().__init__(config, HostMemory(n_bytes, base))
        self._model = ProgramModel(config.engine, self.memory.data, base_address=base)

    def run(self, address: int) -> ProgramRun:
        self._model.run_at(address)
        return ProgramRun(counters={})

    def close(self) -> None:
        """Nothing stands behind."""
