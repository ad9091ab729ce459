"""How software speaks to an engine, whatever stands behind it."""

import ctypes
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import Requantisation
from gshw.errors import GshwError
from gshw.plan import Command


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Status counters after a command; see :data:`gshw.registers.COUNTERS`."""

    cycles: int = 0
    groups: int = 0
    stalls: int = 0
    drains: int = 0
    conflicts: int = 0
    replays: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


class Device(Protocol):
    """An engine that takes words and commands.

    Words are rows of 32-bit little-endian limbs, as :func:`gshw.image.pack_words` makes them.
    """

    def load_scratchpad(self, address: int, words: NDArray[np.uint32]) -> None: ...

    def load_groups(self, address: int, words: NDArray[np.uint32]) -> None: ...

    def load_records(self, address: int, words: NDArray[np.uint32]) -> None: ...

    def run(self, command: Command, requantisation: Requantisation) -> Counters: ...

    def read_output(self, address: int, n_rows: int) -> NDArray[np.uint32]: ...


def command_words(
    config: EngineConfig, command: Command, requantisation: Requantisation
) -> NDArray[np.uint32]:
    """The command's fields in port order, one 32-bit word each (negative values wrap).

    A layer's activation table is taken to be the first one.
    """
    code_mask = (1 << (config.activation_width + 1)) - 1
    values = [
        config.hash32,
        command.group_base,
        command.n_groups,
        command.record_base,
        command.n_records,
        command.read_base,
        command.write_base,
        *(count - 1 for count in command.counts),
        *command.steps(command.read_strides, config.bank_depth),
        *command.steps(command.write_strides, config.output_depth),
        int(requantisation.signed_input),
        requantisation.low & code_mask,
        requantisation.high & code_mask,
        int(command.continues),
        *([int(requantisation.maximum)] if config.max_pooling else []),
        *([int(requantisation.table is not None)] if config.activation_tables else []),
    ]
    return np.array(values, dtype=np.uint32)


def _all_ones(width: int) -> NDArray[np.uint32]:
    """A port of ``width`` bits, all of them 1, in as many limbs as its C++ type may have."""
    raw = ((1 << width) - 1).to_bytes(8 * (-(-width // 64)), "little")
    return np.frombuffer(raw, dtype="<u4")


_RUN_ERRORS = {
    1: "refused the command",
    2: "did not finish",
    3: "drained a bundle in a command without records",
    4: "left the scratchpad or the output buffer",
}


class CompiledEngine:
    """The verilated core in this process.

    Parameters
    ----------
    config
        The engine.
    library
        Made by :func:`gshw.verilate.build_library` from this engine's Verilog.
    waves
        File to write; the library must have been built with that format.
    cycle_limit
        Cycles after which a command counts as hung.

    Raises
    ------
    GshwError
        From :meth:`run`, when the engine refuses or does not finish a command.
    """

    def __init__(
        self,
        config: EngineConfig,
        library: Path,
        *,
        waves: Path | None = None,
        cycle_limit: int = 1 << 31,
    ) -> None:
        self.config = config
        self._limit = cycle_limit
        self._n_limbs = -(-config.scratchpad_row_width // 32)
        self._library = ctypes.CDLL(str(library))
        void, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
        self._library.gshw_open.restype = void
        self._library.gshw_open.argtypes = [ctypes.c_char_p]
        self._library.gshw_close.argtypes = [void]
        self._library.gshw_total_cycles.restype = u64
        self._library.gshw_total_cycles.argtypes = [void]
        for name in ("load_scratchpad", "load_groups", "load_records", "read_output"):
            getattr(self._library, f"gshw_{name}").argtypes = [void, u32, u32, u32, void]
            getattr(self._library, f"gshw_{name}").restype = None
        self._library.gshw_run.argtypes = [void, void, u64, void]
        self._library.gshw_run.restype = ctypes.c_int
        self._library.gshw_clear_errors.argtypes = [void]
        self._library.gshw_enable_elements.argtypes = [void, void, void]
        self._handle = self._library.gshw_open(str(waves).encode() if waves else None)
        channels, columns = _all_ones(config.channels_per_row), _all_ones(config.columns)
        self._library.gshw_enable_elements(self._handle, channels.ctypes.data, columns.ctypes.data)

    def close(self) -> None:
        """Finish the waves and free the model; further calls are an error."""
        if self._handle:
            self._library.gshw_close(self._handle)
            self._handle = None

    def __enter__(self) -> "CompiledEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def total_cycles(self) -> int:
        """Clock cycles simulated so far, loads and reads included."""
        return self._library.gshw_total_cycles(self._handle)

    def _load(self, function, address: int, words: NDArray[np.uint32]) -> None:
        words = np.ascontiguousarray(words, dtype=np.uint32)
        function(self._handle, address, *words.shape, words.ctypes.data)

    def load_scratchpad(self, address: int, words: NDArray[np.uint32]) -> None:
        self._load(self._library.gshw_load_scratchpad, address, words)

    def load_groups(self, address: int, words: NDArray[np.uint32]) -> None:
        self._load(self._library.gshw_load_groups, address, words)

    def load_records(self, address: int, words: NDArray[np.uint32]) -> None:
        self._load(self._library.gshw_load_records, address, words)

    def read_output(self, address: int, n_rows: int) -> NDArray[np.uint32]:
        words = np.zeros((n_rows, self._n_limbs), dtype=np.uint32)
        self._library.gshw_read_output(
            self._handle, address, n_rows, self._n_limbs, words.ctypes.data
        )
        return words

    def run(self, command: Command, requantisation: Requantisation) -> Counters:
        return self.run_words(command_words(self.config, command, requantisation))

    def run_words(self, words: NDArray[np.uint32]) -> Counters:
        """Run a command given as its raw port values."""
        counters = np.zeros(len(fields(Counters)), dtype=np.uint32)
        words = np.ascontiguousarray(words, dtype=np.uint32)
        status = self._library.gshw_run(
            self._handle, words.ctypes.data, self._limit, counters.ctypes.data
        )
        if status:
            self._library.gshw_clear_errors(self._handle)
            raise GshwError(f"the engine {_RUN_ERRORS[status]}")
        return Counters(**dict(zip((f.name for f in fields(Counters)), map(int, counters))))
