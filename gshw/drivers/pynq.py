"""A core in a PYNQ overlay. ``pynq`` is imported by the functions that need it."""

from pathlib import Path

import numpy as np

from gshw.config import Config
from gshw.drivers.accelerator import ProgramRun
from gshw.drivers.mapped import MappedAccelerator
from gshw.errors import GshwError


class _OverlayRegisters:
    """Registers of an IP of the overlay (``pynq.MMIO`` or a ``DefaultIP``)."""

    def __init__(self, ip) -> None:
        self._ip = ip

    def read_register(self, offset: int) -> int:
        return int(self._ip.read(offset))

    def write_register(self, offset: int, value: int) -> None:
        self._ip.write(offset, value)


class PynqAccelerator(MappedAccelerator):
    """``gshw_axi`` in an overlay, with one contiguous buffer as its memory and window.

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
        overlay = pynq.Overlay(str(bitstream))
        if not hasattr(overlay, ip):
            raise GshwError(f"{bitstream}: the overlay has no IP {ip!r}")
        self._buffer = pynq.allocate(shape=(n_bytes,), dtype=np.uint8)
        try:
            super().__init__(
                config,
                _OverlayRegisters(getattr(overlay, ip)),
                np.asarray(self._buffer),
                int(self._buffer.device_address),
                timeout_s=timeout_s,
                close=self._buffer.freebuffer,
            )
        except BaseException:
            self._buffer.freebuffer()
            raise

    def run(self, address: int) -> ProgramRun:
        self._buffer.flush()
        run = super().run(address)
        self._buffer.invalidate()
        return run
