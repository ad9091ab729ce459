"""A core in a PYNQ overlay. ``pynq`` is imported by the functions that need it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.drivers.accelerator import Accelerator, ProgramRun
from gshw.drivers.control import Control
from gshw.errors import GshwError
from gshw.top import Top


class _OverlayRegisters:
    """Registers of an IP of the overlay (``pynq.MMIO`` or a ``DefaultIP``)."""

    def __init__(self, ip) -> None:
        self._ip = ip

    def read_register(self, offset: int) -> int:
        return int(self._ip.read(offset))

    def write_register(self, offset: int, value: int) -> None:
        self._ip.write(offset, value)


class PynqAccelerator(Accelerator):
    """``gshw_axi`` in an overlay, with one contiguous buffer as its memory.

    The buffer's place is known only here: lower programs for ``memory_base``.

    Parameters
    ----------
    config
        What the core was generated from.
    bitstream
        The overlay's .bit file.
    n_bytes
        Bytes of the buffer.
    ip
        Name of the core in the block design.
    timeout_s
        Longest time of a program.

    Attributes
    ----------
    memory_base
        The core's address of the buffer's first byte.

    Raises
    ------
    GshwError
        When pynq is not installed, the overlay lacks the core, or it is for another config.
    """

    def __init__(
        self,
        config: Config,
        bitstream: Path | str,
        *,
        n_bytes: int = 1 << 26,
        ip: str = "gshw_axi_0",
        timeout_s: float = 60.0,
    ) -> None:
        try:
            import pynq
        except ImportError:
            raise GshwError(
                "the PYNQ back end needs pynq: pip install pynq, on the board"
            ) from None
        super().__init__(config)
        overlay = pynq.Overlay(str(bitstream))
        if not hasattr(overlay, ip):
            raise GshwError(f"{bitstream}: the overlay has no IP {ip!r}")
        self._buffer = pynq.allocate(shape=(n_bytes,), dtype=np.uint8)
        self._timeout_s = timeout_s
        self.memory_base = int(self._buffer.device_address)
        try:
            self.control = Control(_OverlayRegisters(getattr(overlay, ip)), config, Top.AXI)
        except GshwError:
            self._buffer.freebuffer()
            raise

    def _start(self, address: int, n_bytes: int) -> int:
        start = address - self.memory_base
        if start < 0 or start + n_bytes > self._buffer.size:
            raise GshwError(
                f"address 0x{address:x}: {n_bytes} bytes do not lie in the buffer, "
                f"0x{self.memory_base:x} to 0x{self.memory_base + self._buffer.size - 1:x}"
            )
        return start

    def write_memory(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)
        start = self._start(address, raw.size)
        self._buffer[start : start + raw.size] = raw

    def read_memory(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        start = self._start(address, n_bytes)
        return np.array(self._buffer[start : start + n_bytes])

    def run(self, address: int) -> ProgramRun:
        self._buffer.flush()
        self.control.start(address)
        self.control.wait(self._timeout_s)
        run = self.control.result()
        self._buffer.invalidate()
        return run

    def close(self) -> None:
        self._buffer.freebuffer()
