"""The compiled ``gshw_axi`` and ``gshw_stream`` with the memory of random programs."""

import numpy as np

from gshw.config import Config
from gshw.drivers.accelerator import ProgramError, ProgramRun
from gshw.drivers.simulated import MemoryModel, SimulatedAccelerator, SimulatedStreamAccelerator
from gshw.top import Top
from gshw.verilate import build_library
from rtl_gen.emit import cached_top_verilog
from sim_tests.programs import RandomProgram, memory_base, memory_bytes

CYCLE_LIMIT = 300_000
QUIET_CYCLES = 2000
"""Without any movement for so long, a program hangs; the memory models are never that slow."""
QUICK_MEMORY = MemoryModel(read_latency=2, write_latency=2)


def random_memory_model(rng: np.random.Generator) -> MemoryModel:
    """From quick to slow and stuttering."""
    return MemoryModel(
        read_latency=int(rng.integers(1, 70)),
        write_latency=int(rng.integers(1, 70)),
        interval=int(rng.choice([1, 1, 2, 7])),
        pause=int(rng.choice([0, 30, 128, 230])),
    )


class ProgramCore(SimulatedAccelerator):
    """``gshw_axi`` and the memory of random programs; the watchdog makes an error of every hang.

    Parameters
    ----------
    config
        Verilated if it is not in the cache.
    """

    def __init__(self, config: Config) -> None:
        library = build_library(cached_top_verilog(config, Top.AXI), top=Top.AXI)
        place = {"n_bytes": memory_bytes(config), "base": memory_base(config)}
        super().__init__(config, library, cycle_limit=CYCLE_LIMIT, **place)

    def prepare(
        self,
        program: RandomProgram,
        model: MemoryModel = QUICK_MEMORY,
        *,
        window: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        """Set memory, timing and window, which is all of the memory if not given."""
        window = window or (program.base, program.base + program.before.size - 1)
        self.memory.data[:] = program.before
        self.set_model(model, seed)
        for name, address in zip(("window_first", "window_last"), window, strict=True):
            self.control.write_address(name, address)
        self.control.write("watchdog_cycles", value=QUIET_CYCLES)

    def run_well(
        self,
        program: RandomProgram,
        model: MemoryModel = QUICK_MEMORY,
        *,
        seed: int = 0,
        what: str = "",
    ) -> ProgramRun:
        """The program must end without an error and leave the right memory."""
        self.prepare(program, model, seed=seed)
        try:
            run = self.run(program.address)
        except ProgramError as error:
            raise AssertionError(f"{what}: {error}\n{program.text}") from None
        program.check(self.memory.data, what)
        return run

    def run_badly(self, program: RandomProgram) -> ProgramError:
        """The prepared program must be stopped; returns why. The core has been reset."""
        try:
            self.run(program.address)
        except ProgramError as error:
            return error
        raise AssertionError(f"no error was found\n{program.text}")

    def start(self, address: int) -> None:
        """Start a program and let it run on."""
        self.control.start(address)

    @property
    def interrupted(self) -> bool:
        return bool(self.library.c.gshw_interrupt(self.library.handle))


class StreamCore(SimulatedStreamAccelerator):
    """``gshw_stream``, fed from and draining into the memory of random programs."""

    def __init__(self, config: Config) -> None:
        library = build_library(cached_top_verilog(config, Top.STREAM), top=Top.STREAM)
        place = {"n_bytes": memory_bytes(config), "base": memory_base(config)}
        super().__init__(config, library, cycle_limit=CYCLE_LIMIT, **place)

    def run_well(self, program: RandomProgram, pause: int, *, seed: int = 0) -> ProgramRun:
        """The program must end without an error, and its packets make the right memory."""
        self.memory.data[:] = program.before
        self.control.write("watchdog_cycles", value=QUIET_CYCLES)
        self.library.c.gshw_pause(self.library.handle, pause, seed)
        run = self.run(program.address)
        program.check(self.memory.data, f"seed {seed}, pause {pause}")
        return run
