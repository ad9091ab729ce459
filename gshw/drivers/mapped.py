"""A core in the address space of this machine: ``/dev/mem``, UIO, or any mappable file."""

import contextlib
import mmap
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.drivers.accelerator import Accelerator, CoreMemory, ProgramRun
from gshw.drivers.control import Control, RegisterPort
from gshw.errors import GshwError
from gshw.register_map import ADDRESS_WIDTH
from gshw.top import Top


class MappedFile:
    """Part of a file or device as memory.

    Parameters
    ----------
    path
        For example ``/dev/mem``, ``/dev/uio0``, ``/dev/udmabuf0``.
    offset
        First byte, a multiple of the page size; a physical address for ``/dev/mem``.
    n_bytes
        Bytes to map.

    Raises
    ------
    GshwError
        When it cannot be opened or mapped.
    """

    def __init__(self, path: Path | str, offset: int, n_bytes: int) -> None:
        self.path = Path(path)
        if offset % mmap.PAGESIZE:
            raise GshwError(
                f"{path}: the offset must be a multiple of {mmap.PAGESIZE}, not 0x{offset:x}"
            )
        if not 0 < n_bytes <= sys.maxsize - offset:
            raise GshwError(
                f"{path}: must be mapped from 1 byte on and below 0x{sys.maxsize:x}, not "
                f"{n_bytes} bytes at 0x{offset:x}"
            )
        flags = os.O_RDWR | getattr(os, "O_SYNC", 0)
        try:
            self.descriptor = os.open(self.path, flags)
        except OSError as error:
            raise GshwError(f"{path}: cannot be opened: {error.strerror}") from None
        try:
            self._map = mmap.mmap(self.descriptor, n_bytes, offset=offset)
        except (OSError, ValueError) as error:
            os.close(self.descriptor)
            raise GshwError(f"{path}: {n_bytes} bytes cannot be mapped: {error}") from None
        self.bytes = np.frombuffer(self._map, dtype=np.uint8)

    def close(self) -> None:
        """Unmap and close."""
        self.bytes = np.zeros(0, dtype=np.uint8)
        # Where a view is still held somewhere the map goes with it.
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(self.descriptor)


class MappedRegisters:
    """Registers in a mapped file, accessed as aligned 32-bit words."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file

    @property
    def _words(self) -> NDArray[np.uint32]:
        # Taken anew each time: a view that is kept keeps the map when the file is closed.
        return self._file.bytes[: 1 << ADDRESS_WIDTH].view("<u4")

    def read_register(self, offset: int) -> int:
        return int(self._words[offset >> 2])

    def write_register(self, offset: int, value: int) -> None:
        self._words[offset >> 2] = value


class UioInterrupt:
    """Waits for the interrupt of a UIO device.

    Parameters
    ----------
    file
        The mapped ``/dev/uioN``.
    """

    def __init__(self, file: MappedFile) -> None:
        self._path = file.path
        self._descriptor = file.descriptor

    def wait(self, timeout_s: float) -> bool:
        """Unmask, and block until an interrupt; False when none came in time.

        Raises
        ------
        GshwError
            When the device has none.
        """
        try:
            os.write(self._descriptor, np.uint32(1).tobytes())
        except OSError as error:
            raise GshwError(
                f"{self._path}: must have an interrupt, and has none: {error.strerror}"
            ) from None
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        if ready:
            os.read(self._descriptor, 4)
        return bool(ready)


class MappedAccelerator(Accelerator):
    """``gshw_axi`` reached through mapped registers and mapped memory.

    The core can touch this memory only: its window is set to it.

    Parameters
    ----------
    config
        The config.
    registers
        The registers' port, usually :class:`MappedRegisters`.
    memory
        Bytes that the core can reach and that are coherent with it (uncached, or a buffer such as
        u-dma-buf's in its uncached mode).
    base
        The core's address of their first byte.
    interrupt
        Waits for the interrupt; None polls.
    timeout_s
        Longest time of a program.
    close
        Called by :meth:`close`.

    Raises
    ------
    GshwError
        When no core for this config answers, or its bus does not reach the memory.
    """

    def __init__(
        self,
        config: Config,
        registers: RegisterPort,
        memory: NDArray[np.uint8],
        base: int,
        *,
        interrupt: UioInterrupt | None = None,
        timeout_s: float = 60.0,
        close: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(config, CoreMemory(memory, base))
        self._interrupt = interrupt
        self._timeout_s = timeout_s
        self._close = close
        self.control = Control(registers, config, Top.AXI)
        self.control.set_window(self.memory)

    def run(self, address: int) -> ProgramRun:
        pause = None if self._interrupt is None else self._interrupt.wait
        with self.control.running(address):
            self.control.wait(self._timeout_s, pause)
            return self.control.result()

    def close(self) -> None:
        self.memory.release()
        if self._close is not None:
            self._close()
            self._close = None


def open_mapped(
    config: Config,
    registers: Path | str,
    memory: Path | str,
    *,
    register_base: int = 0,
    memory_base: int,
    memory_offset: int = 0,
    n_bytes: int,
    timeout_s: float = 60.0,
) -> MappedAccelerator:
    """Open a core behind ``/dev/mem`` or a UIO device.

    Parameters
    ----------
    registers, register_base
        ``/dev/mem`` and the registers' physical address, or ``/dev/uioN`` and 0.
    memory, memory_offset, n_bytes
        File and place of the memory that the core reaches.
    memory_base
        The core's (physical) address of its first byte.

    Raises
    ------
    GshwError
        When a file cannot be mapped, or no core for this config answers.
    """
    register_file = MappedFile(registers, register_base, 1 << ADDRESS_WIDTH)
    try:
        memory_file = MappedFile(memory, memory_offset, n_bytes)
    except GshwError:
        register_file.close()
        raise

    def close() -> None:
        register_file.close()
        memory_file.close()

    interrupt = UioInterrupt(register_file) if Path(registers).name.startswith("uio") else None
    try:
        return MappedAccelerator(
            config,
            MappedRegisters(register_file),
            memory_file.bytes,
            memory_base,
            interrupt=interrupt,
            timeout_s=timeout_s,
            close=close,
        )
    except BaseException:
        close()
        raise
