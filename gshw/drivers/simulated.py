"""The verilated core in this process, as an accelerator."""

import ctypes
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from gshw.config import Config
from gshw.drivers.accelerator import Accelerator, CoreMemory, HostMemory, ProgramRun
from gshw.drivers.control import Control
from gshw.drivers.stream_form import StreamForm
from gshw.errors import GshwError
from gshw.top import Top

_VOID, _U32, _U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
_CYCLE_LIMIT = 1 << 31


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """Memory behind the AXI4 master, as ``harness_axi.cpp`` describes it.

    Parameters
    ----------
    read_latency, write_latency
        Cycles from an accepted address (last beat) to the first data beat (response), at least 1.
    interval
        Cycles per beat in each direction.
    pause
        Chance in 1/256 that a channel waits in a cycle.
    fault_low, fault_high
        First and last byte of a region that answers with errors; none where high is less than low.
    """

    read_latency: int = 30
    write_latency: int = 30
    interval: int = 1
    pause: int = 0
    fault_low: int = 1
    fault_high: int = 0


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the memory saw since the accelerator was opened.

    ``stray_bytes`` are bytes of writes that were refused: none was changed.
    """

    read_bursts: int
    read_beats: int
    write_bursts: int
    write_beats: int
    stray_bytes: int


class _Library:
    """The functions that both harnesses offer; also the port to the registers."""

    def __init__(self, library: Path, *open_arguments) -> None:
        self.c = ctypes.CDLL(str(library))
        self.c.gshw_open.restype = _VOID
        for name, arguments, result in (
            ("close", [], None),
            ("reset", [], None),
            ("total_cycles", [], _U64),
            ("write_register", [_U32, _U32, _U32], ctypes.c_int),
            ("read_register", [_U32, ctypes.POINTER(_U32)], ctypes.c_int),
            ("run", [_U64], _U64),
            ("interrupt", [], ctypes.c_int),
        ):
            function = getattr(self.c, f"gshw_{name}")
            function.argtypes = [_VOID, *arguments]
            function.restype = result
        self.handle = self.c.gshw_open(*open_arguments)

    def close(self) -> None:
        if self.handle:
            self.c.gshw_close(self.handle)
            self.handle = None

    def read_register(self, offset: int) -> int:
        value = _U32()
        response = self.c.gshw_read_register(self.handle, offset, ctypes.byref(value))
        self._check(response, "read", offset)
        return value.value

    def write_register(self, offset: int, value: int) -> None:
        response = self.c.gshw_write_register(self.handle, offset, value, 0xF)
        self._check(response, "written", offset)

    def _check(self, response: int, what: str, offset: int) -> None:
        if response < 0:
            raise GshwError(f"register 0x{offset:03x}: the core does not answer")
        if response:
            raise GshwError(f"register 0x{offset:03x}: cannot be {what}: response {response}")


class _Simulated(Accelerator):
    """What both simulated tops share."""

    def __init__(self, config: Config, memory: CoreMemory, library: _Library, top: Top) -> None:
        super().__init__(config, memory)
        self.library = library
        try:
            self.control = Control(library, config, top)
        except GshwError:
            library.close()
            raise

    def close(self) -> None:
        self.library.close()

    @property
    def total_cycles(self) -> int:
        """Clock cycles simulated so far, register accesses included."""
        return self.library.c.gshw_total_cycles(self.library.handle)

    def hard_reset(self) -> None:
        """Hold ``aresetn`` low for some cycles."""
        self.library.c.gshw_reset(self.library.handle)

    def step(self, n_cycles: int) -> int:
        """Run until the interrupt, at most ``n_cycles``; returns the cycles run."""
        return self.library.c.gshw_run(self.library.handle, n_cycles)

    def _finish(self, limit: int) -> ProgramRun:
        self.step(limit)
        if not self.library.c.gshw_interrupt(self.library.handle):
            raise GshwError(f"the program did not end within {limit} cycles")
        return self.control.result()


class SimulatedAccelerator(_Simulated):
    """The verilated ``gshw_axi`` with a memory model.

    Parameters
    ----------
    config
        The config.
    library
        Made by :func:`gshw.verilate.build_library` with ``top=Top.AXI``.
    n_bytes, base
        Size and first address of the memory.
    model
        Its timing.
    waves
        File to write; the library must have been built with that format.
    seed
        Of random pauses.
    cycle_limit
        Cycles after which a program counts as hung.
    """

    def __init__(
        self,
        config: Config,
        library: Path,
        *,
        n_bytes: int = 1 << 26,
        base: int = 0,
        model: MemoryModel = MemoryModel(),
        waves: Path | None = None,
        seed: int = 0,
        cycle_limit: int = _CYCLE_LIMIT,
    ) -> None:
        memory = HostMemory(n_bytes, base)
        self._limit = cycle_limit
        opened = _Library(
            library,
            str(waves).encode() if waves else None,
            _VOID(memory.data.ctypes.data),
            _U64(base),
            _U64(n_bytes),
        )
        opened.c.gshw_settings.argtypes = [_VOID, _VOID, _U64]
        opened.c.gshw_traffic.argtypes = [_VOID, _VOID]
        self.library = opened
        self.set_model(model, seed)
        super().__init__(config, memory, opened, Top.AXI)

    def set_model(self, model: MemoryModel, seed: int = 0) -> None:
        """Change the memory's timing and faults."""
        values = np.array(astuple(model), dtype=np.uint64)
        self.library.c.gshw_settings(self.library.handle, values.ctypes.data, seed)

    @property
    def traffic(self) -> Traffic:
        """What the memory saw so far."""
        values = np.zeros(5, dtype=np.uint64)
        self.library.c.gshw_traffic(self.library.handle, values.ctypes.data)
        return Traffic(**dict(zip(Traffic.__dataclass_fields__, map(int, values))))

    def run(self, address: int) -> ProgramRun:
        with self.control.running(address):
            return self._finish(self._limit)


class SimulatedStreamAccelerator(_Simulated):
    """The verilated ``gshw_stream``; its memory is the host's.

    Parameters
    ----------
    config, waves, seed, cycle_limit
        As :class:`SimulatedAccelerator`.
    library
        Made by :func:`gshw.verilate.build_library` with ``top=Top.STREAM``.
    n_bytes, base
        Size and first address of the memory that programs speak of.
    pause
        Chance in 1/256 that a stream waits in a cycle.
    """

    def __init__(
        self,
        config: Config,
        library: Path,
        *,
        n_bytes: int = 1 << 26,
        base: int = 0,
        pause: int = 0,
        waves: Path | None = None,
        seed: int = 0,
        cycle_limit: int = _CYCLE_LIMIT,
    ) -> None:
        self._limit = cycle_limit
        opened = _Library(library, str(waves).encode() if waves else None)
        for name, arguments, result in (
            ("send", [_VOID, _U64], None),
            ("unsent", [], _U64),
            ("pause", [_U32, _U64], None),
            ("n_received", [], _U64),
            ("n_packets", [], _U64),
            ("receive", [_VOID, _VOID], None),
        ):
            function = getattr(opened.c, f"gshw_{name}")
            function.argtypes = [_VOID, *arguments]
            function.restype = result
        opened.c.gshw_pause(opened.handle, pause, seed)
        super().__init__(config, HostMemory(n_bytes, base), opened, Top.STREAM)

    def run(self, address: int) -> ProgramRun:
        c, handle = self.library.c, self.library.handle
        form = StreamForm(self.config, self.memory, address)
        sent = np.frombuffer(form.to_core, np.uint8)
        # A core is not ready at once after a hard reset.
        self.control.make_ready()
        c.gshw_send(handle, sent.ctypes.data, sent.size)
        try:
            self.control.start(0)
            run = self._finish(self._limit)
        except BaseException:
            # A beat on offer may be taken back only in a reset. What was not taken must not reach
            # the next program, nor be read after this array has gone.
            self.hard_reset()
            raise
        received = np.zeros(c.gshw_n_received(handle), dtype=np.uint8)
        ends = np.zeros(c.gshw_n_packets(handle), dtype=np.uint64)
        c.gshw_receive(handle, received.ctypes.data, ends.ctypes.data)
        form.store(received.tobytes(), ends.astype(np.int64).tolist())
        return run
