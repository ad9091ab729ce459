"""A serial port, raw: bytes out, bytes in, within a time."""

import fcntl
import os
import select
import termios
import time
from pathlib import Path

from gshw.errors import GshwError

BAUD_RATES = {
    int(name[1:]): getattr(termios, name)
    for name in dir(termios)
    if name[0] == "B" and name[1:].isdigit() and int(name[1:]) >= 1200
}
_READ_BYTES = 65536


class SerialPort:
    """A terminal device: a USB serial adapter, or a pseudo-terminal.

    Parameters
    ----------
    path
        Such as ``/dev/ttyUSB0``.
    baud
        Bits per second, one that the system knows.

    Raises
    ------
    GshwError
        When there is none at ``path``, or another program has it. Later, from any call: when the
        port is gone.
    """

    def __init__(self, path: Path | str, baud: int) -> None:
        if baud not in BAUD_RATES:
            raise GshwError(
                f"baud must be one of {', '.join(map(str, sorted(BAUD_RATES)))}, not {baud}"
            )
        self.path = str(path)
        self.baud = baud
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise GshwError(f"{path}: cannot be opened: {error.strerror}") from None
        try:
            self._set_raw(BAUD_RATES[baud])
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (termios.error, OSError) as error:
            os.close(self._descriptor)
            if isinstance(error, BlockingIOError):
                raise GshwError(f"{path}: another program uses it") from None
            raise GshwError(f"{path}: must be a serial port") from None

    def _set_raw(self, rate: int) -> None:
        attributes = termios.tcgetattr(self._descriptor)
        control = list(attributes[6])
        control[termios.VMIN] = control[termios.VTIME] = 0
        flags = termios.CS8 | termios.CREAD | termios.CLOCAL
        attributes = [0, 0, flags, 0, rate, rate, control]
        termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)
        termios.tcflush(self._descriptor, termios.TCIOFLUSH)

    def _gone(self, error: OSError | None = None) -> GshwError:
        reason = f": {error.strerror}" if error else ""
        return GshwError(f"{self.path}: the port is gone{reason}")

    def write(self, data: bytes, timeout_s: float) -> None:
        """Hand over all bytes.

        Raises
        ------
        GshwError
            When the port does not take them in time.
        """
        left = memoryview(data)
        end = time.monotonic() + timeout_s
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                wait_s = end - time.monotonic()
                if wait_s <= 0:
                    raise GshwError(f"{self.path}: takes no bytes for {timeout_s:.1f} s") from None
                select.select([], [self._descriptor], [], wait_s)
            except OSError as error:
                raise self._gone(error) from None

    def read(self, timeout_s: float) -> bytes:
        """What has arrived; waits for the first byte, and gives none if none came in time."""
        try:
            ready, _, _ = select.select([self._descriptor], [], [], max(timeout_s, 0.0))
            if not ready:
                return b""
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._gone(error) from None
        if not data:
            raise self._gone()
        return data

    def close(self) -> None:
        os.close(self._descriptor)
