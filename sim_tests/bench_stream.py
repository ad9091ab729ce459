"""cocotb bench of ``gshw_stream`` between the bus models of cocotbext-axi.

Environment: ``GSHW_BENCH_CONFIG`` names the config file, ``GSHW_BENCH_SEED`` the seed.
"""

import os
from random import Random

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, with_timeout
from cocotbext.axi import AxiStreamBus, AxiStreamSink, AxiStreamSource

from gshw.config import load_config
from gshw.drivers.accelerator import HostMemory
from gshw.drivers.stream_form import StreamForm
from gshw.program import INSTRUCTION_BYTES
from gshw.registers import Access
from gshw.top import Top
from sim_tests.bench_top_support import (
    CYCLE_LIMIT,
    PAUSES,
    PERIOD_NS,
    Registers,
    Watcher,
    pause_channels,
    reset,
    start_clock,
    watch,
)
from sim_tests.programs import RandomProgram, memory_base, memory_bytes, random_program

CONFIG = load_config(os.environ["GSHW_BENCH_CONFIG"])
SEED = int(os.environ["GSHW_BENCH_SEED"])
N_BEAT = CONFIG.bus.data_bytes


class Bench:
    """The core between its bus models, out of reset."""

    def __init__(self, dut) -> None:
        self.dut = dut
        self.random = Random(SEED)
        self.rng = np.random.default_rng(SEED)
        start_clock(dut)
        self.registers = Registers(dut, CONFIG, Top.STREAM)
        clock = dut.aclk, dut.aresetn
        self.source = AxiStreamSource(
            AxiStreamBus.from_prefix(dut, "s_axis"), *clock, reset_active_level=False
        )
        self.sink = AxiStreamSink(
            AxiStreamBus.from_prefix(dut, "m_axis"), *clock, reset_active_level=False
        )
        self.memory = HostMemory(memory_bytes(CONFIG), memory_base(CONFIG))
        self.good = self.program(n_steps=4, window_words=4)

    @classmethod
    async def begin(cls, dut) -> "Bench":
        bench = cls(dut)
        await reset(dut)
        return bench

    def program(self, n_steps: int = 8, window_words: int = 8) -> RandomProgram:
        """A new one each time."""
        return random_program(
            self.rng,
            CONFIG,
            n_steps=n_steps,
            window_words=window_words,
            feedback=False,
        )

    def form(self, program: RandomProgram) -> StreamForm:
        self.memory.data[:] = program.before
        return StreamForm(CONFIG, self.memory, program.address)

    def pause(self, kind: str | None) -> None:
        channels = [self.source, self.sink, *self.registers.channels]
        pause_channels(self.random, channels, kind)

    async def finish(self, program: RandomProgram, form: StreamForm, what: str) -> None:
        """The program that was started ends well, and its packets make the right memory."""
        flags = await self.registers.end()
        assert not flags, f"{what}: {flags}\n{program.text}"
        received, ends = b"", []
        while not self.sink.empty():
            frame = self.sink.recv_nowait()
            assert not frame.tkeep or all(frame.tkeep), "every byte of a beat is kept"
            received += bytes(frame.tdata)
            ends.append(len(received))
        form.store(received, ends)
        program.check(self.memory.data, what)

    async def run_well(self, program: RandomProgram, what: str) -> None:
        form = self.form(program)
        await self.source.send(form.to_core)
        await self.registers.start()
        await self.finish(program, form, what)
        assert self.source.empty()

    async def recover(self, what: str) -> None:
        """After a soft reset: packets that were begun are closed, and the next program runs."""
        assert not self.sink.active, f"{what}: a packet was left open"
        self.sink.clear()
        assert not await self.registers.read("status"), what
        await self.run_well(self.good, f"after {what}")

    async def stop_sender(self) -> None:
        """Between two beats; what was not sent is forgotten."""
        self.source.clear_pause_generator()
        self.source.pause = True
        for _ in range(CYCLE_LIMIT):
            await ClockCycles(self.dut.aclk, 1)
            if not int(self.dut.s_axis_tvalid.value):
                break
        self.source.assert_reset()
        self.source.clear()
        self.source.pause = False

    async def drained(self) -> None:
        """Wait until everything that was sent has been taken."""
        await with_timeout(self.source.wait(), CYCLE_LIMIT * PERIOD_NS, "ns")
        await ClockCycles(self.dut.aclk, 10)


@cocotb.test()
async def identity_and_settings(dut):
    """Constants read as the description says, settings hold what is written."""
    bench = await Bench.begin(dut)
    registers = bench.registers
    pause_channels(bench.random, registers.channels, "mixed")
    for register in registers.map.registers:
        access = {field.access for field in register.fields}
        if access == {Access.CONSTANT}:
            assert await registers.read_word(register.offset) == register.reset
        elif access == {Access.READ_WRITE}:
            mask = sum(field.mask for field in register.fields)
            value = bench.random.getrandbits(32)
            await registers.write_word(register.offset, value)
            assert await registers.read_word(register.offset) == value & mask


@cocotb.test()
async def random_programs_with_pauses_on_every_channel(dut):
    """One packet in, one packet for each store out; handshakes watched."""
    bench = await Bench.begin(dut)
    watchers = [
        Watcher(dut, "m_axis_t", ("data", "keep", "last")),
        Watcher(dut, "s_axi_b", ("resp",)),
        Watcher(dut, "s_axi_r", ("data", "resp")),
    ]
    cocotb.start_soon(watch(dut, watchers))
    for number, kind in enumerate((None, *PAUSES, "mixed", "mixed", "mixed", None)):
        bench.pause(kind)
        await bench.run_well(bench.program(n_steps=12), f"program {number}, pauses {kind}")


@cocotb.test()
async def programs_wait_in_the_stream(dut):
    """Several packets sent at once: each start takes one, and nothing is taken before."""
    bench = await Bench.begin(dut)
    bench.pause("some")
    programs = [bench.program() for _ in range(3)]
    forms = []
    for program in programs:
        form = bench.form(program)
        forms.append(form)
        await bench.source.send(form.to_core)
    await ClockCycles(dut.aclk, 200)
    assert bench.source.count() >= 2, "a packet was taken before its start"
    for program, form in zip(programs, forms, strict=True):
        bench.memory.data[:] = program.before
        await bench.registers.start()
        await bench.finish(program, form, "a waiting program")


@cocotb.test()
async def packets_that_end_early(dut):
    """``tlast`` anywhere before the end: in the header, an instruction, or data."""
    bench = await Bench.begin(dut)
    for number in range(10):
        bench.pause((None, "mixed")[number % 2])
        form = bench.form(bench.program())
        n_beats = len(form.to_core) // N_BEAT
        cut = (
            (1, n_beats - 1, 64 // N_BEAT)[number]
            if number < 3
            else bench.random.randrange(n_beats)
        )
        await bench.source.send(form.to_core[: max(1, cut) * N_BEAT])
        await bench.registers.start()
        flags = await bench.registers.end()
        assert flags == ["stream"], (cut, n_beats, flags)
        await bench.drained()
        await bench.registers.soft_reset()
        await bench.recover(f"{cut} of {n_beats} beats")


@cocotb.test()
async def packets_that_end_late(dut):
    """Beats behind the program: it ends well, the next start finds them, the one after is well."""
    bench = await Bench.begin(dut)
    for n_spare in (1, 3, 20):
        bench.pause((None, "mixed")[n_spare % 2])
        program = bench.program()
        form = bench.form(program)
        await bench.source.send(form.to_core + bytes(range(N_BEAT)) * n_spare)
        await bench.registers.start()
        await bench.finish(program, form, f"{n_spare} beats too many")
        await bench.registers.start()
        flags = await bench.registers.end()
        assert flags and set(flags) <= {"stream", "header"}, flags
        await bench.drained()
        await bench.registers.soft_reset()
        await bench.recover(f"{n_spare} beats too many")


@cocotb.test()
async def damaged_packets(dut):
    """Flipped bits in instructions: the rest of the packet is dropped."""
    bench = await Bench.begin(dut)
    for number in range(8):
        bench.pause((None, "mixed")[number % 2])
        program = bench.program()
        sent = bytearray(bench.form(program).to_core)
        header = bench.random.random() < 0.3
        start = 0 if header else sent.index(_instruction(program, bench.random))
        bit = bench.random.randrange(8 * INSTRUCTION_BYTES)
        sent[start + bit // 8] ^= 1 << bit % 8
        await bench.source.send(bytes(sent))
        await bench.registers.start()
        flags = await bench.registers.end()
        assert flags and set(flags) <= {"header", "instruction", "config_hash"}, flags
        await bench.drained()
        await bench.registers.soft_reset()
        await bench.recover(f"flip {number}")


def _instruction(program: RandomProgram, random: Random) -> bytes:
    """Some instruction's bytes; index and checksum make them unlike anything else."""
    start = program.program_bytes.start
    start += INSTRUCTION_BYTES * random.randint(1, len(program.instructions))
    return program.before[start : start + INSTRUCTION_BYTES].tobytes()


@cocotb.test()
async def resets_at_any_time(dut):
    """Soft ones close the packet that was begun; hard ones take the models with them."""
    bench = await Bench.begin(dut)
    program = bench.program()
    for number in range(12):
        bench.pause((None, "mixed")[number % 2])
        await bench.source.send(bench.form(program).to_core)
        await bench.registers.start()
        await ClockCycles(dut.aclk, bench.random.randrange(700))
        if number % 3:
            await bench.stop_sender()
            await bench.registers.soft_reset()
        else:
            await reset(dut, bench.random.randint(1, 4))
            bench.source.clear()
            bench.sink.clear()
        await bench.recover(f"reset {number}")
