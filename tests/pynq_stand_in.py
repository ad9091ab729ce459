"""Stands for pynq on a board: the overlay is the simulated ``gshw_axi`` of config.toml."""

import numpy as np

from gshw.config import load_config
from gshw.drivers.simulated import SimulatedAccelerator
from gshw.top import Top
from gshw.verilate import build_library
from rtl_gen.emit import cached_top_verilog

BASE = 0x1000_0000
_CONFIG = load_config("config.toml")
_CORE = SimulatedAccelerator(
    _CONFIG, build_library(cached_top_verilog(_CONFIG, Top.AXI), top=Top.AXI), base=BASE
)


class _Ip:
    def read(self, offset: int) -> int:
        return _CORE.library.read_register(offset)

    def write(self, offset: int, value: int) -> None:
        _CORE.library.write_register(offset, value)


class Overlay:
    """The overlay, with one core under the driver's default name."""

    def __init__(self, bitstream: str) -> None:
        assert bitstream == "gshw_axi.bit"
        self.gshw_axi_0 = _Ip()


class _Buffer(np.ndarray):
    device_address = BASE

    def flush(self) -> None:
        """The simulated core is coherent."""

    invalidate = freebuffer = flush


def allocate(*, shape: tuple[int, ...], dtype: type) -> _Buffer:
    """The simulated core's memory."""
    assert dtype is np.uint8
    return _CORE.memory.data[: shape[0]].view(_Buffer)
