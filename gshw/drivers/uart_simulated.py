"""A board that is not there: the verilated ``gshw_uart`` at the end of a pseudo-terminal."""

import ctypes
import os
import pty
import select
import threading
import tty
from pathlib import Path

from gshw.config import Config
from gshw.drivers.uart import UartAccelerator

_CYCLES_PER_TURN = 4000
_IDLE_TURNS = 4
"""Turns without anything on the line after which the clock stops until the next byte."""
_BUFFER_BYTES = 65536


class SimulatedBoard:
    """Runs a board in a thread; ``path`` is what to open in place of ``/dev/ttyUSB0``.

    ``with`` switches it off.

    Parameters
    ----------
    library
        Made by :func:`gshw.verilate.build_library` with ``top=Top.UART``.
    divisor
        Clock cycles per bit.
    waves
        File to write; the library must have been built with that format.
    """

    def __init__(self, library: Path, *, divisor: int = 4, waves: Path | None = None) -> None:
        self._c = ctypes.CDLL(str(library))
        self._c.gshw_open.restype = ctypes.c_void_p
        self._c.gshw_receive.restype = ctypes.c_uint64
        self._c.gshw_total_cycles.restype = ctypes.c_uint64
        name = str(waves).encode() if waves else None
        self._handle = ctypes.c_void_p(self._c.gshw_open(name, divisor))
        self._master = self._slave = -1
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.plug()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def plug(self) -> None:
        """Connect a new cable."""
        with self._lock:
            self._master, self._slave = pty.openpty()
            tty.setraw(self._slave)
            os.set_blocking(self._master, False)
            self.path = os.ttyname(self._slave)

    def unplug(self) -> None:
        """Pull the cable: the port vanishes, the board stays as it is."""
        with self._lock:
            for descriptor in (self._master, self._slave):
                if descriptor >= 0:
                    os.close(descriptor)
            self._master = self._slave = -1

    @property
    def total_cycles(self) -> int:
        """Clock cycles so far."""
        return self._c.gshw_total_cycles(self._handle)

    def to_board(self, data: bytes) -> bytes:
        """What becomes of bytes on their way to the board; for a line that is not perfect."""
        return data

    def from_board(self, data: bytes) -> bytes:
        """What becomes of bytes on their way from the board."""
        return data

    def _run(self) -> None:
        buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
        idle_turns = _IDLE_TURNS
        while not self._stopping.is_set():
            data = self._read(0.0 if idle_turns < _IDLE_TURNS else 0.02)
            if data:
                data = self.to_board(data)
                self._c.gshw_send(self._handle, data, ctypes.c_uint64(len(data)))
                idle_turns = 0
            elif idle_turns >= _IDLE_TURNS:
                continue
            self._c.gshw_run(self._handle, ctypes.c_uint64(_CYCLES_PER_TURN))
            n_bytes = self._c.gshw_receive(self._handle, buffer, ctypes.c_uint64(_BUFFER_BYTES))
            idle = not n_bytes and not self._c.gshw_busy(self._handle)
            idle_turns = idle_turns + 1 if idle else 0
            self._write(self.from_board(buffer.raw[:n_bytes]))

    def _read(self, timeout_s: float) -> bytes:
        with self._lock:
            if self._master < 0:
                return b""
            try:
                if not select.select([self._master], [], [], timeout_s)[0]:
                    return b""
                return os.read(self._master, _BUFFER_BYTES)
            except OSError:
                return b""

    def _write(self, data: bytes) -> None:
        """What the host does not take in time is lost, as on a cable."""
        with self._lock:
            while data and self._master >= 0:
                try:
                    if not select.select([], [self._master], [], 0.1)[1]:
                        return
                    data = data[os.write(self._master, data) :]
                except OSError:
                    return

    def close(self) -> None:
        """Switch the board off."""
        self._stopping.set()
        self._thread.join()
        self.unplug()
        if self._handle:
            self._c.gshw_close(self._handle)
            self._handle = None

    def __enter__(self) -> "SimulatedBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SimulatedUartAccelerator(UartAccelerator):
    """A :class:`SimulatedBoard` with its cable in.

    Parameters
    ----------
    config
        The config.
    library
        As :class:`SimulatedBoard`.
    """

    def __init__(self, config: Config, library: Path) -> None:
        self._board = SimulatedBoard(library)
        try:
            super().__init__(config, self._board.path, baud=3_000_000)
        except BaseException:
            self._board.close()
            raise

    def close(self) -> None:
        super().close()
        self._board.close()
