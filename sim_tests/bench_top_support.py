"""What the benches of ``gshw_axi`` and ``gshw_stream`` share: registers, pauses, watchers."""

import itertools
from collections.abc import Iterator, Sequence
from random import Random

from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge, with_timeout
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from gshw.config import Config
from gshw.register_map import register_map
from gshw.registers import PROGRAM_ERRORS
from gshw.top import Top

PERIOD_NS = 10
CYCLE_LIMIT = 100_000
WATCHDOG_CYCLES = 3000


def pauses(random: Random, kind: str) -> Iterator[bool]:
    """For ever: whether a channel waits, cycle by cycle."""
    match kind:
        case "some":
            while True:
                yield random.random() < 0.3
        case "most":
            while True:
                yield random.random() < 0.85
        case "bursts":
            while True:
                yield from itertools.repeat(random.random() < 0.5, random.randint(1, 40))
        case "turns":
            yield from itertools.cycle([True, False])


PAUSES = ("some", "most", "bursts", "turns")


def pause_channels(random: Random, channels: Sequence, kind: str | None) -> None:
    """Give every channel model its own pauses: ``None`` for none, ``mixed`` for any."""
    for channel in channels:
        chosen = random.choice((None, *PAUSES)) if kind == "mixed" else kind
        channel.clear_pause_generator()
        channel.pause = False
        if chosen is not None:
            channel.set_pause_generator(pauses(random, chosen))


class Registers:
    """The core's registers through cocotbext-axi's AXI4-Lite master.

    Parameters
    ----------
    dut
        A top in its wrapper; its clock must run.
    """

    def __init__(self, dut, config: Config, top: Top) -> None:
        self.dut = dut
        self.map = register_map(config, top)
        bus = AxiLiteBus.from_prefix(dut, "s_axi")
        self.master = AxiLiteMaster(bus, dut.aclk, dut.aresetn, reset_active_level=False)

    @property
    def channels(self) -> list:
        write, read = self.master.write_if, self.master.read_if
        return [
            write.aw_channel,
            write.w_channel,
            write.b_channel,
            read.ar_channel,
            read.r_channel,
        ]

    async def read_word(self, offset: int) -> int:
        answer = await with_timeout(self.master.read(offset, 4), CYCLE_LIMIT * PERIOD_NS, "ns")
        assert answer.resp is AxiResp.OKAY, f"read of {offset:#x}: {answer.resp}"
        return int.from_bytes(answer.data, "little")

    async def write_word(self, offset: int, value: int) -> None:
        data = value.to_bytes(4, "little")
        answer = await with_timeout(self.master.write(offset, data), CYCLE_LIMIT * PERIOD_NS, "ns")
        assert answer.resp is AxiResp.OKAY, f"write of {offset:#x}: {answer.resp}"

    async def read(self, name: str, field: str | None = None) -> int:
        register = self.map[name]
        word = await self.read_word(register.offset)
        return word if field is None else register.field(field).get(word)

    async def read_pair(self, name: str) -> int:
        return await self.read(f"{name}_low") | await self.read(f"{name}_high") << 32

    async def write(self, name: str, **fields: int) -> None:
        register = self.map[name]
        word = sum(register.field(field).put(value) for field, value in fields.items())
        await self.write_word(register.offset, word)

    async def write_address(self, name: str, address: int) -> None:
        await self.write_word(self.map[f"{name}_low"].offset, address & 0xFFFFFFFF)
        await self.write_word(self.map[f"{name}_high"].offset, address >> 32)

    async def start(self, address: int = 0) -> None:
        """Start with interrupts for the end, and a watchdog that makes an error of a hang."""
        await self.write_address("program_address", address)
        await self.write("watchdog_cycles", value=WATCHDOG_CYCLES)
        await self.write("interrupt_status", done=1, error=1)
        await self.write("interrupt_enable", done=1, error=1)
        await self.write("interrupt_global", enable=1)
        await self.write("control", start=1)

    async def end(self) -> list[str]:
        """Wait for the interrupt; the errors' names, none after a good end."""
        if not int(self.dut.interrupt.value):
            await with_timeout(RisingEdge(self.dut.interrupt), CYCLE_LIMIT * PERIOD_NS, "ns")
        seen = await self.read("interrupt_status")
        await self.write("interrupt_status", done=1, error=1)
        word = await self.read("error")
        flags = [name for name in PROGRAM_ERRORS if self.map["error"].field(name).get(word)]
        status = self.map["interrupt_status"]
        assert seen == status.field("error" if flags else "done").put(1), (seen, flags)
        assert "watchdog" not in flags, "the core hangs"
        return flags

    async def soft_reset(self) -> None:
        await self.write("control", soft_reset=1)
        for _ in range(CYCLE_LIMIT):
            if await self.read("control", "ready"):
                break
        assert not await self.read("error") and not await self.read("control", "done")
        await self.write("interrupt_status", done=1, error=1)


def start_clock(dut) -> None:
    """In reset; every input that no model drives is 0."""
    dut.aresetn.value = 0
    Clock(dut.aclk, PERIOD_NS, unit="ns", impl="gpi").start()


async def reset(dut, n_cycles: int = 3) -> None:
    """A hard reset; the bus models take part in it."""
    await RisingEdge(dut.aclk)
    dut.aresetn.value = 0
    await ClockCycles(dut.aclk, n_cycles)
    dut.aresetn.value = 1
    await ClockCycles(dut.aclk, 8)


class Watcher:
    """Holds a channel to its rules: what is offered stays as it is until it is taken.

    Parameters
    ----------
    prefix, payload
        ``{prefix}valid``, ``{prefix}ready`` and the payload's ports.
    """

    def __init__(self, dut, prefix: str, payload: Sequence[str]) -> None:
        self.name = prefix
        self.valid = getattr(dut, f"{prefix}valid")
        self.ready = getattr(dut, f"{prefix}ready")
        self.payload = [getattr(dut, f"{prefix}{name}") for name in payload]
        self.held: list[int] | None = None

    def look(self, in_reset: bool) -> None:
        valid = bool(int(self.valid.value)) and not in_reset
        now = [int(port.value) for port in self.payload] if valid else None
        if self.held is not None and not in_reset:
            assert now == self.held, f"{self.name}: {self.held} became {now} before it was taken"
        self.held = now if valid and not int(self.ready.value) else None


async def watch(dut, watchers: Sequence[Watcher]) -> None:
    """For ever, in the middle of every cycle, where everything is settled."""
    while True:
        await FallingEdge(dut.aclk)
        in_reset = not int(dut.aresetn.value)
        for watcher in watchers:
            watcher.look(in_reset)
