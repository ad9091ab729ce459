"""One core that runs programs, whatever stands behind it.

Software puts a program and its data into memory that the core can reach, runs it, and takes the
results out. ``docs/integration.md`` shows the back ends.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.errors import GshwError
from gshw.registers import PROGRAM_ERRORS


@dataclass(frozen=True, kw_only=True)
class ProgramRun:
    """What the core counted while a program ran.

    Parameters
    ----------
    counters
        By the names of :data:`gshw.registers.WIDE_COUNTERS` and ``PROGRAM_COUNTERS``; empty where
        a back end has none.
    """

    counters: dict[str, int]


class ProgramError(GshwError):
    """The core stopped a program.

    Parameters
    ----------
    flags
        Names of :data:`gshw.registers.PROGRAM_ERRORS`.
    index
        The first error's instruction, modulo 65536; 0 is the header.
    address
        Memory address of a bus or window error, else 0.
    """

    def __init__(self, flags: tuple[str, ...], index: int, address: int) -> None:
        self.flags = flags
        self.index = index
        self.address = address
        reasons = "; ".join(PROGRAM_ERRORS[flag] for flag in flags) or "no error flag is set"
        super().__init__(
            f"the core stopped at instruction {index} (address 0x{address:x}): {reasons}"
        )


class Accelerator(ABC):
    """A core and the memory it works on.

    ``with`` closes it. Addresses are the core's own, in bytes.

    Parameters
    ----------
    config
        What the core was generated from.
    memory
        Where programs and their data lie.
    """

    def __init__(self, config: Config, memory: "CoreMemory") -> None:
        self.config = config
        self.memory = memory

    @property
    def memory_base(self) -> int:
        """Address of the first byte of the memory; programs may lie from there on."""
        return self.memory.base

    def write_memory(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        """Put bytes where the core can read them.

        Raises
        ------
        GshwError
            When they do not lie in the memory.
        """
        self.memory.write(address, data)

    def read_memory(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        """Bytes of the memory, a copy."""
        return self.memory.read(address, n_bytes)

    @abstractmethod
    def run(self, address: int) -> ProgramRun:
        """Run the program whose header lies at ``address`` to its end.

        After an error or an interrupt the core has been reset: the next program runs.

        Raises
        ------
        ProgramError
            When the core stopped it.
        GshwError
            When the core did not answer, or did not finish in time.
        """

    @property
    def note(self) -> str:
        """What a person should know about the runs so far; empty if there is nothing."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Release what stands behind; nothing may be called afterwards."""

    def __enter__(self) -> "Accelerator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CoreMemory:
    """Memory of the core as an array of this process.

    Parameters
    ----------
    data
        Its bytes.
    base
        The core's address of the first one.
    """

    def __init__(self, data: NDArray[np.uint8], base: int) -> None:
        self.base = base
        self.data = data

    def require(self, address: int, n_bytes: int) -> int:
        """Where these bytes lie in ``data``.

        Raises
        ------
        GshwError
            When they do not lie in the memory.
        """
        start = address - self.base
        if start < 0 or start + n_bytes > self.data.size:
            raise GshwError(
                f"address 0x{address:x}: {n_bytes} bytes do not lie in the core's memory, "
                f"0x{self.base:x} to 0x{self.base + self.data.size - 1:x}"
            )
        return start

    def write(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)
        start = self.require(address, raw.size)
        self.data[start : start + raw.size] = raw

    def read(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        start = self.require(address, n_bytes)
        return self.data[start : start + n_bytes].copy()

    def release(self) -> None:
        """Let go of the bytes."""
        self.data = np.zeros(0, dtype=np.uint8)


class HostMemory(CoreMemory):
    """A :class:`CoreMemory` of its own, all 0.

    Parameters
    ----------
    n_bytes
        Its bytes.
    base
        The core's address of its first byte.
    """

    def __init__(self, n_bytes: int, base: int = 0) -> None:
        super().__init__(np.zeros(n_bytes, dtype=np.uint8), base)
