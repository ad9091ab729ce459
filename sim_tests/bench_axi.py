"""cocotb bench of ``gshw_axi`` between the bus models of cocotbext-axi, which know nothing of it.

The models hold the core to AXI4: bursts within 4 KiB pages, ``wlast`` where it belongs, one answer
per burst. Environment: ``GSHW_BENCH_CONFIG`` names the config file, ``GSHW_BENCH_SEED`` the seed.
"""

import os
from random import Random

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout
from cocotbext.axi import AxiBus, AxiResp
from cocotbext.axi.axi_ram import AxiRamRead, AxiRamWrite

from gshw.config import load_config
from gshw.drivers.accelerator import HostMemory
from gshw.program import INSTRUCTION_BYTES, Instruction, Opcode
from gshw.program_model import ProgramModel
from gshw.registers import PROGRAM_ERRORS, Access
from gshw.top import Top
from sim_tests.bench_top_support import (
    PAUSES,
    PERIOD_NS,
    Registers,
    Watcher,
    pause_channels,
    reset,
    start_clock,
    watch,
)
from sim_tests.programs import (
    RandomProgram,
    finish_program,
    memory_base,
    memory_bytes,
    random_program,
)

CONFIG = load_config(os.environ["GSHW_BENCH_CONFIG"])
SEED = int(os.environ["GSHW_BENCH_SEED"])
BASE, N_BYTES = memory_base(CONFIG), memory_bytes(CONFIG)
N_BEAT = CONFIG.bus.data_bytes


class Fault:
    """Which transfers go wrong, and how.

    Attributes
    ----------
    after
        Transfers from now on that go well first; None: all do.
    count
        Transfers that then go wrong; None: all from there on.
    """

    def __init__(self) -> None:
        self.after: int | None = None
        self.count: int | None = None
        self.response = AxiResp.SLVERR

    def hits(self) -> bool:
        """Count one transfer."""
        if self.after is None:
            return False
        self.after -= 1
        return self.after < 0 and (self.count is None or self.after >= -self.count)


class Ram:
    """The programs' memory behind cocotbext-axi's slave; nothing else may be touched.

    Attributes
    ----------
    read_fault, write_fault
        Reads and writes that go wrong.
    reads, writes
        (address, bytes) of every beat read, and of every piece of a beat written.
    """

    def __init__(self, dut) -> None:
        self.data = np.zeros(N_BYTES, dtype=np.uint8)
        self.read_fault, self.write_fault = Fault(), Fault()
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        bus = AxiBus.from_prefix(dut, "m_axi")
        options = {"reset_active_level": False, "mem": bytearray(1)}
        self.read_if = AxiRamRead(bus.read, dut.aclk, dut.aresetn, **options)
        self.write_if = AxiRamWrite(bus.write, dut.aclk, dut.aresetn, **options)
        self.read_if._read, self.write_if._write = self._read, self._write
        self._answer_with(self.read_if.r_channel, "rresp", self.read_fault)
        self._answer_with(self.write_if.b_channel, "bresp", self.write_fault)

    def _answer_with(self, channel, field: str, fault: Fault) -> None:
        """The models only know SLVERR."""
        send = channel.send

        async def changed(item):
            if getattr(item, field) != AxiResp.OKAY:
                setattr(item, field, fault.response)
            await send(item)

        channel.send = changed

    def _place(self, address: int, n_bytes: int) -> int:
        assert address >= BASE and address + n_bytes <= BASE + N_BYTES, f"{address:#x} is outside"
        return address - BASE

    async def _read(self, address: int, n_bytes: int) -> bytes:
        place = self._place(address, n_bytes)
        self.reads.append((address, n_bytes))
        if self.read_fault.hits():
            raise ValueError("as asked")
        return self.data[place : place + n_bytes].tobytes()

    async def _write(self, address: int, data: bytes) -> None:
        place = self._place(address, len(data))
        self.writes.append((address, len(data)))
        if self.write_fault.hits():
            raise ValueError("as asked")
        self.data[place : place + len(data)] = np.frombuffer(data, np.uint8)

    @property
    def channels(self) -> list:
        read, write = self.read_if, self.write_if
        return [
            read.ar_channel,
            read.r_channel,
            write.aw_channel,
            write.w_channel,
            write.b_channel,
        ]


class Bench:
    """The core between its bus models, out of reset."""

    def __init__(self, dut) -> None:
        self.dut = dut
        self.random = Random(SEED)
        self.rng = np.random.default_rng(SEED)
        start_clock(dut)
        self.registers = Registers(dut, CONFIG, Top.AXI)
        self.ram = Ram(dut)
        self.good = self.program(n_steps=4, window_words=4)

    @classmethod
    async def begin(cls, dut) -> "Bench":
        bench = cls(dut)
        await reset(dut)
        return bench

    def program(self, n_steps: int = 8, window_words: int = 8) -> RandomProgram:
        """A new one each time."""
        return random_program(self.rng, CONFIG, n_steps=n_steps, window_words=window_words)

    def pause(self, kind: str | None) -> None:
        """``mixed``, one of ``PAUSES``, or None, for memory and registers."""
        pause_channels(self.random, self.ram.channels + self.registers.channels, kind)

    def prepare(self, program: RandomProgram) -> None:
        """Everything in memory, no faults."""
        self.ram.data[:] = program.before
        self.ram.read_fault.after = self.ram.write_fault.after = None
        self.ram.reads, self.ram.writes = [], []

    async def start(self, program: RandomProgram) -> None:
        self.prepare(program)
        await self.registers.start(program.address)

    async def run(self, program: RandomProgram) -> list[str]:
        await self.start(program)
        return await self.registers.end()

    async def run_well(self, program: RandomProgram, what: str) -> None:
        flags = await self.run(program)
        assert not flags, f"{what}: {flags}\n{program.text}"
        program.check(self.ram.data, what)

    async def recover(self, program: RandomProgram, what: str) -> None:
        """After ``program`` was broken off: nothing else was touched, and the next one runs."""
        program.check_broken_off(self.ram.data, what)
        assert not await self.registers.read("status"), what
        await self.run_well(self.good, f"after {what}")


# --- registers -----------------------------------------------------------------------------------


@cocotb.test()
async def every_register_reads_and_writes(dut):
    """Constants, every bit of every field that software writes, and the write strobes."""
    bench = await Bench.begin(dut)
    registers = bench.registers
    for kind in (None, "some", "most"):
        pause_channels(bench.random, registers.channels, kind)
        for register in registers.map.registers:
            if all(field.access is Access.CONSTANT for field in register.fields):
                assert await registers.read_word(register.offset) == register.reset
                await registers.write_word(register.offset, 0xFFFFFFFF)
                assert await registers.read_word(register.offset) == register.reset
            if all(field.access is Access.READ_WRITE for field in register.fields):
                await check_read_write(bench, register)


async def check_read_write(bench: Bench, register) -> None:
    registers, mask = bench.registers, sum(field.mask for field in register.fields)
    before = await registers.read_word(register.offset)
    for value in (0xFFFFFFFF, 0, bench.random.getrandbits(32)):
        await registers.write_word(register.offset, value)
        assert await registers.read_word(register.offset) == value & mask, register.name
    now = value & mask
    for byte in range(4):
        new = bench.random.getrandbits(8)
        await registers.master.write(register.offset + byte, bytes([new]))
        now = (now & ~(0xFF << 8 * byte) | new << 8 * byte) & mask
        assert await registers.read_word(register.offset) == now, (register.name, byte)
    await registers.write_word(register.offset, before)


@cocotb.test()
async def registers_that_do_not_exist_answer_with_an_error(dut):
    bench = await Bench.begin(dut)
    mapped = {register.offset for register in bench.registers.map.registers}
    free = [offset for offset in range(0, 1 << 12, 4) if offset not in mapped]
    for offset in (*free[:3], *bench.random.sample(free, 10), free[-1]):
        assert (await bench.registers.master.read(offset, 4)).resp is not AxiResp.OKAY
        assert (await bench.registers.master.write(offset, bytes(4))).resp is not AxiResp.OKAY
    await bench.run_well(bench.good, "errors on the control port")


@cocotb.test()
async def reads_and_writes_at_once(dut):
    """Many accesses in flight on both sides, answered in order."""
    bench = await Bench.begin(dut)
    registers = bench.registers
    magic, scratch = registers.map["magic"], registers.map["watchdog_cycles"]
    for kind in (None, "mixed", "mixed"):
        pause_channels(bench.random, registers.channels, kind)
        values = [bench.random.getrandbits(32) for _ in range(12)]
        writes, reads = [], []
        for value in values:
            writes.append(registers.master.init_write(scratch.offset, value.to_bytes(4, "little")))
            reads.append(registers.master.init_read(magic.offset, 4))
        for write in writes:
            await write.wait()
        for read in reads:
            await read.wait()
            assert int.from_bytes(read.data.data, "little") == magic.reset
        assert await registers.read_word(scratch.offset) == values[-1]


# --- programs ------------------------------------------------------------------------------------


@cocotb.test()
async def random_programs_with_pauses_on_every_channel(dut):
    """Back to back, with the handshakes watched; transfers meet page ends and odd addresses."""
    bench = await Bench.begin(dut)
    request = ("addr", "len", "size", "burst", "prot", "cache")
    watchers = [
        Watcher(dut, "m_axi_ar", request),
        Watcher(dut, "m_axi_aw", request),
        Watcher(dut, "m_axi_w", ("data", "strb", "last")),
        Watcher(dut, "s_axi_b", ("resp",)),
        Watcher(dut, "s_axi_r", ("data", "resp")),
    ]
    cocotb.start_soon(watch(dut, watchers))
    at_page_end = odd = 0
    for number, kind in enumerate((None, *PAUSES, "mixed", "mixed", "mixed", None)):
        bench.pause(kind)
        program = bench.program(n_steps=12)
        await bench.run_well(program, f"program {number}, pauses {kind}")
        used = bench.ram.reads + bench.ram.writes
        at_page_end += any((address + n_bytes) % 4096 == 0 for address, n_bytes in used)
        odd += any(address % N_BEAT for address, _ in bench.ram.writes)
    assert at_page_end and odd


@cocotb.test()
async def auto_restart_and_back_to_back(dut):
    """A program that starts again by itself, and one that is started at the end of another."""
    bench = await Bench.begin(dut)
    bench.pause("some")
    registers = bench.registers
    program = bench.program()
    expected = program.before.copy()
    model = ProgramModel(CONFIG.engine, expected, base_address=BASE)
    await registers.write("control", auto_restart=1)
    await bench.start(program)
    await registers.write("control", auto_restart=1)
    model.run_at(program.address)
    for _ in range(3):
        if not int(dut.interrupt.value):
            await RisingEdge(dut.interrupt)
        await registers.write("interrupt_status", done=1)
        model.run_at(program.address)
    await registers.write("control", auto_restart=0)
    assert not await registers.end()
    assert not await registers.read("status")
    wrong = np.flatnonzero(bench.ram.data != expected)
    assert not wrong.size, f"{wrong.size} bytes differ"
    for number in range(4):
        await bench.run_well(bench.good, f"run {number}")


@cocotb.test()
@cocotb.parametrize(source=["done", "error"], action=["clear", "disable", "soft_reset"])
async def no_interrupt_is_lost(dut, source, action):
    """A write in any cycle around the end: what happens after it is seen, what was before is gone.

    An event in the cycle of a clear wins, so that no write can swallow it; a soft reset forgets
    what has not happened yet, too.
    """
    bench = await Bench.begin(dut)
    registers = bench.registers
    program = short_program(damaged=source == "error")
    await bench.start(program)
    n_cycles = 0
    while not int(dut.interrupt.value):
        await ClockCycles(dut.aclk, 1)
        n_cycles += 1
    await forget(registers)
    outcomes = set()
    for wait in range(n_cycles - 16, n_cycles + 6):
        await bench.start(program)
        rises = cocotb.start_soon(with_timeout(RisingEdge(dut.interrupt), 1000 * PERIOD_NS, "ns"))
        await ClockCycles(dut.aclk, wait)
        match action:
            case "clear":
                await registers.write("interrupt_status", **{source: 1})
            case "disable":
                await registers.write("interrupt_enable", done=0, error=0)
            case "soft_reset":
                await registers.write("control", soft_reset=1)
        # A soft reset may still be at work, and forgets it anyway.
        happened = 0 if action == "soft_reset" else await has_ended(registers, source)
        await ClockCycles(dut.aclk, 60)
        pending = await registers.read("interrupt_status", source)
        what = f"{action} {wait} cycles after the start"
        if action == "disable":
            assert pending and not int(dut.interrupt.value), what
            await registers.write("interrupt_enable", done=1, error=1)
            await ClockCycles(dut.aclk, 3)
        assert pending == int(dut.interrupt.value), what
        if action == "soft_reset":
            assert not await has_ended(registers, source), what
            assert not await registers.read("status"), what
            if not pending:
                rises.cancel()
        else:
            assert happened or pending, f"{what}: the end was lost"
        if action != "soft_reset" or pending:
            await rises
        outcomes.add((happened, pending))
        await forget(registers)
    assert outcomes >= EXPECTED_OUTCOMES[action], outcomes
    await bench.run_well(bench.good, f"interrupts: {source}, {action}")


EXPECTED_OUTCOMES = {
    "clear": {(0, 1), (1, 0)},
    "disable": {(0, 1), (1, 1)},
    "soft_reset": {(0, 0), (0, 1)},
}
"""(ended when the write was answered, pending in the end): what some cycle must give."""


def short_program(*, damaged: bool) -> RandomProgram:
    """One instruction that does nothing; or a header with a wrong bit."""
    memory = HostMemory(N_BYTES, BASE)
    nothing = np.zeros(N_BYTES, dtype=np.bool_)
    instructions = [Instruction(Opcode.SYNC, {})]
    program = finish_program(CONFIG, BASE + 0x100, instructions, memory.data, nothing)
    program.before[program.program_bytes.start + 8] ^= damaged
    return program


async def has_ended(registers: Registers, source: str) -> int:
    name, field = ("control", "done") if source == "done" else ("status", "halted")
    return await registers.read(name, field)


async def forget(registers: Registers) -> None:
    """Of a program that has ended or was broken off."""
    await registers.soft_reset()
    await registers.write("interrupt_status", done=1, error=1)


@cocotb.test()
async def interrupt_enables_gate_the_output_at_any_time(dut):
    """Status is kept while disabled; enabling shows it, disabling hides it."""
    bench = await Bench.begin(dut)
    registers = bench.registers
    await bench.start(bench.good)
    await registers.write("interrupt_enable", error=1)
    while not await registers.read("control", "done"):
        assert not int(dut.interrupt.value)
    assert await registers.read("interrupt_status", "done")
    for enable, gate in ((1, 1), (0, 1), (1, 0), (1, 1)):
        await registers.write("interrupt_enable", done=enable)
        await registers.write("interrupt_global", enable=gate)
        await ClockCycles(dut.aclk, 2)
        assert int(dut.interrupt.value) == (enable & gate)
        assert await registers.read("control", "interrupt") == (enable & gate)
    await registers.write("interrupt_status", done=1)
    await ClockCycles(dut.aclk, 2)
    assert not int(dut.interrupt.value)


# --- faults --------------------------------------------------------------------------------------


@cocotb.test()
async def bus_errors_on_any_beat(dut):
    """SLVERR and DECERR, on one beat or on all from it on, reads and writes."""
    bench = await Bench.begin(dut)
    program = bench.program()
    await bench.run_well(program, "before any fault")
    n_reads, n_writes = len(bench.ram.reads), len(bench.ram.writes)
    assert n_reads > 50 and n_writes > 5
    for number in range(16):
        bench.pause((None, "mixed")[number % 2])
        response = (AxiResp.SLVERR, AxiResp.DECERR)[number // 2 % 2]
        is_read = number % 4 < 2
        fault = bench.ram.read_fault if is_read else bench.ram.write_fault
        what = f"{response.name} on {'read' if is_read else 'write'}"
        # Before the start: the first reads come while its registers are still written.
        bench.prepare(program)
        fault.response, fault.count = response, (1, None)[number // 4 % 2]
        fault.after = bench.random.randrange(n_reads if is_read else n_writes)
        await bench.registers.start(program.address)
        flags = await bench.registers.end()
        wanted = "read_bus" if is_read else "write_bus"
        assert wanted in flags and set(flags) <= {"read_bus", "write_bus"}, (what, flags)
        code = await bench.registers.read("first_error", "code")
        assert code == list(PROGRAM_ERRORS).index(wanted) + 1
        await bench.registers.soft_reset()
        await bench.recover(program, what)


@cocotb.test()
async def outside_the_window(dut):
    """A transfer out of the window is refused before it reaches the bus."""
    bench = await Bench.begin(dut)
    registers = bench.registers
    for number in range(6):
        program = bench.program()
        cut = BASE + int(bench.rng.choice(np.flatnonzero(program.written)))
        low, high = ((BASE, cut - 1), (cut + 1, BASE + N_BYTES - 1))[number % 2]
        bench.pause((None, "mixed")[number // 2 % 2])
        await registers.write_address("window_first", low)
        await registers.write_address("window_last", high)
        flags = await bench.run(program)
        assert flags and set(flags) <= {"read_range", "write_range"}, flags
        for address, n_bytes in bench.ram.writes:
            assert low <= address and address + n_bytes - 1 <= high
        for address, n_bytes in bench.ram.reads:
            # Whole beats are read, of which the core uses what it asked for.
            assert address + n_bytes > low and address <= high
        # The burst that was refused is not all inside.
        first = await registers.read_pair("first_error_address")
        assert first < low or first + CONFIG.bus.max_burst * N_BEAT > high
        await registers.soft_reset()
        await registers.write_address("window_first", BASE)
        await registers.write_address("window_last", BASE + N_BYTES - 1)
        await bench.recover(program, f"window {low:#x}..{high:#x}")


@cocotb.test()
async def resets_at_any_time(dut):
    """Hard ones in the middle of transfers, soft ones that complete them first."""
    bench = await Bench.begin(dut)
    program = bench.program()
    for number in range(16):
        bench.pause((None, "mixed")[number % 2])
        await bench.start(program)
        await ClockCycles(dut.aclk, bench.random.randrange(900))
        if number % 4 < 2:
            await bench.registers.soft_reset()
        else:
            await reset(dut, bench.random.randint(1, 4))
        await bench.recover(program, f"reset {number}")


@cocotb.test()
async def damaged_programs_are_stopped(dut):
    """Flipped bits anywhere in the program."""
    bench = await Bench.begin(dut)
    for number in range(10):
        bench.pause((None, "mixed")[number % 2])
        program = bench.program()
        n_bits = 8 * INSTRUCTION_BYTES * (1 + len(program.instructions))
        for _ in range(bench.random.choice((1, 1, 2, 4))):
            bit = bench.random.randrange(n_bits)
            program.before[program.program_bytes.start + bit // 8] ^= 1 << bit % 8
        flags = await bench.run(program)
        assert flags and set(flags) <= {"header", "instruction", "config_hash"}, flags
        await bench.registers.soft_reset()
        await bench.recover(program, f"flip {number}")
