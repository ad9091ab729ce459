"""gshw_axi and gshw_stream, verilated, in this process: registers, memory, streams."""

import ctypes
import itertools

import numpy as np

from gshw.config import Config
from gshw.register_map import register_map
from gshw.registers import PROGRAM_ERRORS
from gshw.top import Top
from gshw.verilate import build_library
from rtl_gen.emit import cached_top_verilog

BASE = 0x4000_0000
MEMORY_BYTES = 1 << 20
LIMIT = 200_000


class Harness:
    """The part that both tops share; resets the core."""

    def __init__(self, config: Config, top: Top) -> None:
        self.config = config
        self.map = register_map(config, top)
        path = build_library(cached_top_verilog(config, top), top=top)
        # A library of its own would be shared by all cores of one config, which do not mind.
        self.library = ctypes.CDLL(str(path))
        self.library.gshw_open.restype = ctypes.c_void_p
        for name in ("gshw_run", "gshw_total_cycles", "gshw_unsent", "gshw_n_received"):
            if hasattr(self.library, name):
                getattr(self.library, name).restype = ctypes.c_uint64
        self.handle = ctypes.c_void_p(self._open())
        self.reset()

    def reset(self) -> None:
        """A hard reset; interrupts are enabled after it."""
        self.library.gshw_reset(self.handle)
        self.write("interrupt_global", enable=1)
        self.write("interrupt_enable", done=1, error=1)

    def _open(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self.library.gshw_close(self.handle)

    def write(self, register: str, **fields: int) -> None:
        """Write a register: fields that are not named become 0."""
        item = self.map[register]
        value = sum(item.field(name).put(value) for name, value in fields.items())
        assert self.library.gshw_write_register(self.handle, item.offset, value, 15) == 0

    def write_wide(self, register: str, value: int) -> None:
        self.write(f"{register}_low", value=value & 0xFFFFFFFF)
        if value >> 32:
            self.write(f"{register}_high", value=value >> 32)

    def read(self, register: str, field: str = "value") -> int:
        value = ctypes.c_uint32()
        item = self.map[register]
        assert not self.library.gshw_read_register(self.handle, item.offset, ctypes.byref(value))
        return item.field(field).get(value.value)

    def counter(self, name: str) -> int:
        if f"counter_{name}" in self.map:
            return self.read(f"counter_{name}")
        low, high = (self.read(f"counter_{name}_{half}") for half in ("low", "high"))
        return low | high << 32

    @property
    def errors(self) -> list[str]:
        return [name for name in PROGRAM_ERRORS if self.read("error", name)]

    @property
    def first_error(self) -> tuple[str, int]:
        code = self.read("first_error", "code")
        return list(PROGRAM_ERRORS)[code - 1] if code else "", self.read("first_error", "index")

    def run(self, limit: int = LIMIT) -> int:
        """Clock until the interrupt; returns the cycles."""
        return self.library.gshw_run(self.handle, ctypes.c_uint64(limit))

    def interrupted(self) -> bool:
        return bool(self.library.gshw_interrupt(self.handle))

    def acknowledge(self) -> tuple[bool, bool]:
        """Clear the interrupts; returns which they were: (done, error)."""
        seen = (
            bool(self.read("interrupt_status", "done")),
            bool(self.read("interrupt_status", "error")),
        )
        self.write("interrupt_status", done=1, error=1)
        return seen

    def start(self) -> None:
        self.write("control", start=1)

    def soft_reset(self, limit: int = LIMIT) -> None:
        """Ask for a soft reset and wait for it."""
        self.write("control", soft_reset=1)
        for _ in range(limit // 8):
            if not self.read("status", "resetting"):
                break
        assert not self.read("status", "resetting")
        self.acknowledge()


class AxiHarness(Harness):
    """``gshw_axi`` with a memory; see ``gshw/harness_axi.cpp``."""

    def __init__(self, config: Config) -> None:
        self.memory = np.zeros(MEMORY_BYTES, dtype=np.uint8)
        super().__init__(config, Top.AXI)

    def _open(self) -> int:
        pointer = ctypes.c_void_p(self.memory.ctypes.data)
        sizes = ctypes.c_uint64(BASE), ctypes.c_uint64(MEMORY_BYTES)
        return self.library.gshw_open(None, pointer, *sizes)

    def settings(self, *, latency=30, write_latency=10, interval=1, pause=0, fault=(1, 0), seed=1):
        """Memory model; ``fault`` is the first and last byte that answers with an error."""
        values = np.array([latency, write_latency, interval, pause, *fault], dtype=np.uint64)
        pointer = ctypes.c_void_p(values.ctypes.data)
        self.library.gshw_settings(self.handle, pointer, ctypes.c_uint64(seed))

    def put(self, address: int, data: bytes) -> None:
        offset = address - BASE
        self.memory[offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)

    def get(self, address: int, n_bytes: int) -> bytes:
        return self.memory[address - BASE : address - BASE + n_bytes].tobytes()


class StreamHarness(Harness):
    """``gshw_stream``; see ``gshw/harness_stream.cpp``."""

    def __init__(self, config: Config) -> None:
        self._sending = np.zeros(0, dtype=np.uint8)
        super().__init__(config, Top.STREAM)

    def _open(self) -> int:
        return self.library.gshw_open(None)

    def pause(self, pause: int, seed: int = 1) -> None:
        self.library.gshw_pause(self.handle, pause, ctypes.c_uint64(seed))

    def send(self, data: bytes) -> None:
        self._sending = np.frombuffer(data, dtype=np.uint8)
        pointer = ctypes.c_void_p(self._sending.ctypes.data)
        self.library.gshw_send(self.handle, pointer, ctypes.c_uint64(len(data)))

    def unsent(self) -> int:
        return self.library.gshw_unsent(self.handle)

    def receive(self) -> list[bytes]:
        """The packets that have come out since the last call."""
        data = np.zeros(self.library.gshw_n_received(self.handle), dtype=np.uint8)
        self.library.gshw_n_packets.restype = ctypes.c_uint64
        ends = np.zeros(self.library.gshw_n_packets(self.handle), dtype=np.uint64)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (data, ends))
        self.library.gshw_receive(self.handle, *pointers)
        starts = [0, *map(int, ends)]
        return [data[a:b].tobytes() for a, b in itertools.pairwise(starts)]
