"""The registers' side of a driver: identity, start, wait, errors, counters."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from gshw.config import Config
from gshw.drivers.accelerator import CoreMemory, ProgramError, ProgramRun
from gshw.errors import GshwError
from gshw.register_map import register_map
from gshw.registers import (
    PROGRAM_COUNTERS,
    PROGRAM_ERRORS,
    REGISTER_WIDTH,
    WIDE_COUNTERS,
    Register,
)
from gshw.top import Top


class RegisterPort(Protocol):
    """Access to the 32-bit registers by byte offset."""

    def read_register(self, offset: int) -> int: ...

    def write_register(self, offset: int, value: int) -> None: ...


RESET_POLLS = 10_000
"""Reads of the control register after which a soft reset counts as failed."""


class Control:
    """Runs programs through a core's registers.

    Parameters
    ----------
    port
        The registers.
    config, top
        What the core was generated from.

    Raises
    ------
    GshwError
        When what answers is no gshw core, or one for another config.
    """

    def __init__(self, port: RegisterPort, config: Config, top: Top) -> None:
        self._port = port
        self._address_width = config.bus.address_width
        self._map = register_map(config, top)
        for name in ("magic", "version", "config_hash", "features"):
            self._check_constant(self._map[name])
        self.reset()

    def _check_constant(self, register: Register) -> None:
        value = self._port.read_register(register.offset)
        if value != register.reset:
            raise GshwError(
                f"register {register.name} must read 0x{register.reset:08x} for this config, "
                f"not 0x{value:08x}"
            )

    def read(self, name: str, field: str | None = None) -> int:
        """A register, or one of its fields."""
        register = self._map[name]
        word = self._port.read_register(register.offset)
        return word if field is None else register.field(field).get(word)

    def write(self, name: str, **fields: int) -> None:
        """Set fields of a register; what is not named is written as 0."""
        register = self._map[name]
        word = 0
        for field, value in fields.items():
            word |= register.field(field).put(value)
        self._port.write_register(register.offset, word)

    def read_pair(self, name: str) -> int:
        """A number in a pair of registers."""
        return self.read(f"{name}_low") | self.read(f"{name}_high") << REGISTER_WIDTH

    def write_address(self, name: str, address: int) -> None:
        """Write a pair of registers that hold an address."""
        for part, value in (("low", address & 0xFFFFFFFF), ("high", address >> 32)):
            self._port.write_register(self._map[f"{name}_{part}"].offset, value)

    def reset(self) -> None:
        """Stop the core cleanly and clear its errors.

        Raises
        ------
        GshwError
            When it does not become ready, because the bus behind it hangs.
        """
        self.write("control", soft_reset=1)
        for _ in range(RESET_POLLS):
            if self.ready:
                return
        raise GshwError("the core does not become ready after a soft reset: its bus hangs")

    def set_window(self, memory: CoreMemory) -> None:
        """Let the core touch this memory and nothing else, until a hard reset.

        Raises
        ------
        GshwError
            When the bus does not reach all of it.
        """
        last = memory.base + memory.data.size - 1
        if memory.base < 0 or last >> self._address_width:
            raise GshwError(
                f"the core's memory must lie within the bus's {self._address_width} address bits, "
                f"not at 0x{memory.base:x} to 0x{last:x}"
            )
        self.write_address("window_first", memory.base)
        self.write_address("window_last", last)

    @property
    def ready(self) -> bool:
        """Whether a start would be taken."""
        return bool(self.read("control", "ready"))

    def make_ready(self) -> None:
        """Reset the core if a program was left in it; see :meth:`reset`."""
        if not self.ready:
            self.reset()

    @contextmanager
    def running(self, address: int) -> Iterator[None]:
        """Run the body on a started program; however the body fails, the core is reset."""
        self.make_ready()
        try:
            self.start(address)
            yield
        except BaseException:
            # What happened first is told; a core that stays stuck is told by the next run.
            with suppress(GshwError):
                self.reset()
            raise

    def start(self, address: int) -> None:
        """Start the program at ``address``, with interrupts for its end.

        Raises
        ------
        GshwError
            When the core would not take it.
        """
        if not self.ready:
            raise GshwError(
                "the core must be ready for a start: a program runs, or an error was not reset"
            )
        if "program_address_low" in self._map:
            self.write_address("program_address", address)
        self.write("interrupt_status", done=1, error=1)
        self.write("interrupt_enable", done=1, error=1)
        self.write("interrupt_global", enable=1)
        self.write("control", start=1)

    @property
    def finished(self) -> bool:
        """Whether the program has ended, well or not."""
        return bool(self.read("interrupt_status"))

    def wait(self, timeout_s: float, pause: Callable[[float], object] | None = None) -> None:
        """Poll until the program has ended.

        Parameters
        ----------
        pause
            Waits for an interrupt, at most for these seconds; called between two polls.

        Raises
        ------
        GshwError
            When it takes longer; the core has been reset.
        """
        end = time.monotonic() + timeout_s
        while not self.finished:
            left = end - time.monotonic()
            if left <= 0:
                self.reset()
                raise GshwError(f"the program did not end within {timeout_s} s")
            if pause is not None:
                pause(left)

    def result(self) -> ProgramRun:
        """Counters of the program that has ended.

        Raises
        ------
        ProgramError
            When the core stopped it; the core has been reset.
        """
        self.write("interrupt_status", done=1, error=1)
        word = self.read("error")
        if word:
            register = self._map["error"]
            flags = tuple(name for name in PROGRAM_ERRORS if register.field(name).get(word))
            first = self._map["first_error"]
            place = self._port.read_register(first.offset)
            has_address = "first_error_address_low" in self._map
            address = self.read_pair("first_error_address") if has_address else 0
            self.reset()
            raise ProgramError(flags, first.field("index").get(place), address)
        return ProgramRun(counters=self.counters())

    def counters(self) -> dict[str, int]:
        """All counters that the core has; final after the end of a program."""
        values = {}
        for name in WIDE_COUNTERS:
            if f"counter_{name}_low" in self._map:
                values[name] = self.read_pair(f"counter_{name}")
        for name in PROGRAM_COUNTERS:
            if f"counter_{name}" in self._map:
                values[name] = self.read(f"counter_{name}")
        return values
