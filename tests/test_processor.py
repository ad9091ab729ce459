"""Fetch, queues and the compute unit, each alone in Amaranth's simulator."""

import dataclasses
import itertools
import random
import zlib

import pytest
from amaranth.sim import Simulator

from gshw.config import BusConfig, Config, load_config
from gshw.program import (
    FIELDS,
    INSTRUCTION_BYTES,
    OPTIONAL_FIELDS,
    Instruction,
    Opcode,
    Unit,
    assemble,
    begin,
    encode,
)
from gshw.program_timing import MAX_IN_FLIGHT, QUEUE_SLOTS
from rtl_gen.command import ComputeUnit
from rtl_gen.crc import Crc32
from rtl_gen.fetch import CHUNK_INSTRUCTIONS, UNITS, BeatBuffer, Fetch
from rtl_gen.queue import TOKEN_WIDTH, UnitQueue
from rtl_gen.supervisor import Supervisor

CYCLE_LIMIT = 20000
TINY = load_config("tiny").engine
HASH = TINY.hash32


def simulate(component, *benches, background=()):
    """Run test benches, the first of which decides when to stop."""
    simulator = Simulator(component)
    simulator.add_clock(1e-8)
    for bench in benches:
        simulator.add_testbench(bench)
    for bench in background:
        simulator.add_testbench(bench, background=True)
    simulator.run()


def config_of(data_width: int) -> Config:
    return Config(name="test", engine=TINY, bus=BusConfig(data_width=data_width))


def fill(**tokens) -> Instruction:
    return Instruction(Opcode.FILL, {"n_words": 3, "target": 5, "columns": 1}, **tokens)


def load(**tokens) -> Instruction:
    values = {"address": 0x1234_5678, "run_bytes": 77, "count_0": 2, "memory_stride_0": -64}
    return Instruction(Opcode.LOAD_ACTIVATIONS, values, **tokens)


def run(**tokens) -> Instruction:
    return Instruction(Opcode.RUN, {"n_groups": 4, "low": -128, "high": 127}, **tokens)


def sync(**tokens) -> Instruction:
    return Instruction(Opcode.SYNC, {}, **tokens)


def store(**tokens) -> Instruction:
    return Instruction(Opcode.STORE, {"address": 0x100, "run_bytes": 4}, **tokens)


MIXED = [fill(), load(), run(), store(), sync(), load(push_next=True), run(pop_previous=True)] * 3


# --- checksum ------------------------------------------------------------------------------------


def test_residue_is_seen_after_a_message_with_its_crc():
    rng = random.Random(1)
    crc = Crc32()

    async def bench(ctx):
        for length in (1, 2, 15, 40):
            message = rng.randbytes(4 * length)
            for damage in (0, 1 << rng.randrange(32)):
                words = [*message, *(zlib.crc32(message) ^ damage).to_bytes(4, "little")]
                ctx.set(crc.restart, 1)
                await ctx.tick()
                ctx.set(crc.restart, 0)
                for start in range(0, len(words), 4):
                    ctx.set(crc.valid, 0)
                    await ctx.tick().repeat(rng.randrange(2) + 1)
                    ctx.set(crc.valid, 1)
                    ctx.set(crc.word, int.from_bytes(words[start : start + 4], "little"))
                    await ctx.tick()
                ctx.set(crc.valid, 0)
                assert ctx.get(crc.residue) == (damage == 0)

    simulate(crc, bench)


# --- buffer of beats -----------------------------------------------------------------------------


@pytest.mark.parametrize(("data_width", "n_beats"), [(32, 16), (64, 8), (512, 2), (512, 1)])
@pytest.mark.parametrize("stalls", [False, True])
def test_beats_come_out_as_words(data_width, n_beats, stalls):
    rng = random.Random(2)
    buffer = BeatBuffer(data_width, n_beats)
    beats = [rng.getrandbits(data_width) for _ in range(60)]
    per_beat = data_width // 32
    words = [beat >> 32 * i & 0xFFFFFFFF for beat in beats for i in range(per_beat)]
    got, arrivals, times = [], [], []

    async def bench(ctx):
        sent, cycle = 0, 0
        ready, before = 0, None
        while len(got) < len(words):
            in_buffer = sent - len(got) // per_beat
            send = sent < len(beats) and in_buffer < n_beats and not (stalls and rng.random() < 0.4)
            ctx.set(buffer.i_valid, send)
            if send:
                ctx.set(buffer.i, beats[sent])
                arrivals.append(cycle)
                sent += 1
            ready = not (stalls and rng.random() < 0.4)
            ctx.set(buffer.o.ready, ready)
            seen = (ctx.get(buffer.o.valid), ctx.get(buffer.o.payload))
            if before is not None:
                assert seen == before, "a stalled word must hold"
            before = seen if seen[0] and not ready else None
            if seen[0] and ready:
                got.append(seen[1])
                times.append(cycle)
            await ctx.tick()
            cycle += 1
            assert cycle < CYCLE_LIMIT

    simulate(buffer, bench)
    assert got == words
    assert times[0] >= arrivals[0] + 4
    if not stalls:
        assert times[0] == arrivals[0] + 4
        if n_beats * per_beat >= 16 and n_beats > 1:
            assert times[-1] - times[0] == len(words) - 1


# --- fetch ---------------------------------------------------------------------------------------


class FetchBench:
    """A memory, three queues without end, and what fetch gave them."""

    def __init__(self, program, *, data_width=64, interleaved=False, latency=5, stalls=None):
        self.program = program
        self.config = config_of(data_width)
        self.fetch = Fetch(self.config, interleaved=interleaved)
        self.latency = latency
        self.rng = random.Random(stalls) if stalls is not None else None
        self.base = 0x4000
        self.committed: list[tuple[int, bytes]] = []
        self.errors: list[tuple[str, int]] = []
        self.requests: list[tuple[int, int, int]] = []
        self.times: dict[str, list[int]] = {"commit": [], "word_0": [], "beat": []}
        self.no_room_until: dict[int, int] = {}
        self.drained_at = lambda cycle: True
        self.halt_at = None
        self.cycle = 0
        self.finished = False
        self._written = [bytearray() for _ in UNITS]

    def chance(self, probability: float) -> bool:
        return self.rng is not None and self.rng.random() < probability

    def go(self, n_cycles=3000):
        async def bench(ctx):
            await self._bench(ctx, n_cycles)

        simulate(self.fetch, bench)
        return self

    async def _bench(self, ctx, n_cycles):
        fetch, n_bytes = self.fetch, self.config.bus.data_bytes
        beats: list[tuple[int, bytes, bool]] = []
        ctx.set(fetch.start, 1)
        ctx.set(fetch.program_address, self.base)
        await ctx.tick()
        ctx.set(fetch.start, 0)
        self.cycle = 1
        assert not ctx.get(fetch.finished)
        idle = 0
        while idle < 60 and self.cycle < n_cycles:
            ctx.set(fetch.request.ready, not self.chance(0.5))
            send = bool(beats) and beats[0][0] <= self.cycle and not self.chance(0.3)
            ctx.set(fetch.data.valid, send)
            if send:
                _, data, last = beats.pop(0)
                ctx.set(fetch.data.payload.data, int.from_bytes(data, "little"))
                ctx.set(fetch.data.payload.last, last)
                self.times["beat"].append(self.cycle)
            room = sum((self.cycle >= self.no_room_until.get(i, 0)) << i for i in range(3))
            ctx.set(fetch.room, room)
            ctx.set(fetch.load_drained, self.drained_at(self.cycle))
            ctx.set(fetch.halt, self.halt_at is not None and self.cycle >= self.halt_at)
            assert ctx.get(fetch.data.ready)
            if ctx.get(fetch.request.valid) and ctx.get(fetch.request.ready):
                address = ctx.get(fetch.request.payload.address)
                size = ctx.get(fetch.request.payload.n_bytes)
                self.requests.append((self.cycle, address, size))
                start = address - self.base
                assert 0 < size <= CHUNK_INSTRUCTIONS * INSTRUCTION_BYTES
                for place in range(start, start + size, n_bytes):
                    data = self.program[place : place + n_bytes]
                    assert len(data) == n_bytes, "read beyond the program"
                    beats.append((self.cycle + self.latency, data, place + n_bytes == start + size))
            write, commit = ctx.get(fetch.write), ctx.get(fetch.commit)
            assert write in (0, 1, 2, 4) and commit in (0, 1, 2, 4)
            for i, written in enumerate(self._written):
                if commit >> i & 1:
                    assert len(written) == INSTRUCTION_BYTES
                    self.committed.append((i, bytes(written)))
                    self.times["commit"].append(self.cycle)
                    written.clear()
                if write >> i & 1:
                    if not written:
                        self.times["word_0"].append(self.cycle)
                    written += ctx.get(fetch.word).to_bytes(4, "little")
            for name in ("header", "config_hash", "instruction"):
                if ctx.get(getattr(fetch, f"error_{name}")):
                    self.errors.append((name, ctx.get(fetch.index)))
            self.finished = bool(ctx.get(fetch.finished))
            idle = 0 if beats or write or commit or ctx.get(fetch.request.valid) else idle + 1
            if self.halt_at is None and ctx.get(fetch.blocked):
                idle = 0
            await ctx.tick()
            self.cycle += 1


def expected_commits(instructions):
    units = list(UNITS)
    return [
        (units.index(instruction.unit), encode(instruction, index))
        for index, instruction in enumerate(instructions, 1)
    ]


@pytest.mark.parametrize("data_width", [32, 64, 512])
@pytest.mark.parametrize("stalls", [None, 3])
@pytest.mark.parametrize("n_instructions", [1, 4, 21])
def test_instructions_reach_the_queue_of_their_unit(data_width, stalls, n_instructions):
    instructions = MIXED[:n_instructions]
    bench = FetchBench(assemble(HASH, instructions), data_width=data_width, stalls=stalls).go()
    assert bench.committed == expected_commits(instructions)
    assert bench.finished and not bench.errors
    assert sum(size for _, _, size in bench.requests) == 64 * (n_instructions + 1)


def test_fetch_takes_the_cycles_that_its_docstring_says():
    bench = FetchBench(assemble(HASH, MIXED), latency=7).go()
    assert bench.requests[0][0] == 1
    header_first_beat = bench.times["beat"][0]
    assert header_first_beat == 1 + 7
    # Header: decoded in t + 4, words from t + 6 to t + 21, good in t + 23, asked for in t + 26.
    assert bench.requests[1][0] == header_first_beat + 26
    first = bench.times["beat"][8]
    assert bench.times["word_0"][0] == first + 6
    assert bench.times["commit"][0] == first + 23
    starts = bench.times["word_0"][:CHUNK_INSTRUCTIONS]
    assert [b - a for a, b in itertools.pairwise(starts)] == [19] * 3
    # Reading ahead hides the memory: no gap between the chunks either.
    starts = bench.times["word_0"]
    assert starts[-1] - starts[0] == 19 * (len(MIXED) - 1)


def test_a_full_queue_holds_the_others_back_and_says_so():
    bench = FetchBench(assemble(HASH, MIXED))
    bench.no_room_until = {0: 300, 2: 700}
    bench.go()
    assert bench.committed == expected_commits(MIXED)
    assert bench.times["word_0"][0] == 301


DAMAGES = {
    "header opcode": (0, 0, 0x10, ("header", 0)),
    "header index": (0, 2, 1, ("header", 0)),
    "magic": (0, 4, 1, ("header", 0)),
    "version": (0, 8, 3, ("header", 0)),
    "no instructions": (0, 16, 3, ("header", 0)),
    "hash": (0, 15, 0x80, ("config_hash", 0)),
    "opcode": (2, 0, 0x40, ("instruction", 2)),
    "second header": (1, 0, 0x12, ("instruction", 1)),
    "index": (3, 3, 0x80, ("instruction", 3)),
}


def damaged(instruction: int, byte: int, change: int, *, with_crc: bool) -> bytes:
    """A program of three with one byte changed; its CRC is made right again if asked."""
    program = bytearray(assemble(HASH, [load(), run(), store()]))
    start = INSTRUCTION_BYTES * instruction
    program[start + byte] ^= change
    if with_crc:
        block = program[start : start + 60]
        program[start + 60 : start + 64] = zlib.crc32(block).to_bytes(4, "little")
    return bytes(program)


@pytest.mark.parametrize("name", DAMAGES)
def test_wrong_instructions_are_refused_with_their_index(name):
    instruction, byte, change, error = DAMAGES[name]
    bench = FetchBench(damaged(instruction, byte, change, with_crc=True)).go()
    assert bench.errors == [error]
    assert len(bench.committed) == max(instruction - 1, 0)
    assert not bench.finished


@pytest.mark.parametrize("instruction", [0, 1, 3])
@pytest.mark.parametrize("byte", [5, 20, 44, 60, 63])
def test_a_flipped_bit_is_found(instruction, byte):
    bench = FetchBench(damaged(instruction, byte, 0x10, with_crc=False)).go()
    assert bench.errors == [("instruction" if instruction else "header", instruction)]
    assert len(bench.committed) == max(instruction - 1, 0)


def test_no_instruction_is_committed_after_halt():
    whole = FetchBench(assemble(HASH, MIXED)).go()
    for late in range(0, 40, 3):
        bench = FetchBench(assemble(HASH, MIXED))
        bench.halt_at = whole.times["word_0"][5] + late
        bench.go()
        assert bench.committed == [
            commit
            for commit, time in zip(whole.committed, whole.times["commit"], strict=True)
            if time <= bench.halt_at
        ]
        assert not bench.errors and not bench.finished


def test_interleaved_fetch_waits_for_the_data_of_a_load():
    instructions = [fill(), load(), run(), store()]
    bench = FetchBench(assemble(HASH, instructions), interleaved=True)
    bench.drained_at = lambda cycle: cycle >= 500
    bench.go()
    assert bench.committed == expected_commits(instructions)
    assert [size for _, _, size in bench.requests] == [64] * 5
    times = [time for time, _, _ in bench.requests]
    assert times[2] < bench.times["commit"][1] < 500 < times[3]
    assert bench.finished


def test_a_second_program_follows_the_first():
    program = assemble(HASH, [load(), run()])
    bench = FetchBench(program)

    async def twice(ctx):
        await bench._bench(ctx, 3000)
        assert bench.finished
        first = list(bench.committed)
        bench.committed.clear()
        await bench._bench(ctx, 3000)
        assert bench.finished and bench.committed == first

    simulate(bench.fetch, twice)
    assert not bench.errors


def test_a_long_program_has_its_length_from_the_header():
    """More than one chunk counter's bit, and what remains after whole chunks."""
    for n_instructions in (2, 3, 5, 8, 9):
        instructions = [sync()] * n_instructions
        bench = FetchBench(assemble(HASH, instructions)).go()
        assert len(bench.committed) == n_instructions and bench.finished
    header = encode(begin(HASH, 1 << 31), 0)
    bench = FetchBench(header + b"".join(encode(sync(), i) for i in range(1, 33)))
    with pytest.raises(AssertionError, match="beyond the program"):
        bench.go()


# --- queue ---------------------------------------------------------------------------------------


class QueueBench:
    """Feeds a queue and keeps what it offers, with the cycle of each event."""

    def __init__(self, unit: Unit):
        self.queue = UnitQueue(unit, optional=OPTIONAL_FIELDS)
        self.cycle = 0
        self.offered: list[tuple[int, dict[str, int]]] = []
        self.sent = {"push_previous": [], "push_next": []}
        self.index = 0
        self.ready = True

    async def tick(self, ctx, n_cycles=1):
        queue = self.queue
        for _ in range(n_cycles):
            ctx.set(queue.o.ready, self.ready)
            if ctx.get(queue.o.valid) and self.ready:
                payload = queue.o.payload
                values = {name: ctx.get(payload[name]) for name in payload.shape().members}
                self.offered.append((self.cycle, values))
            for name, times in self.sent.items():
                if ctx.get(getattr(queue, name)):
                    times.append(self.cycle)
            await ctx.tick()
            self.cycle += 1
            assert self.cycle < CYCLE_LIMIT

    async def write(self, ctx, instruction, *, commit=True):
        """Returns the cycle of the commit."""
        self.index += 1
        raw = encode(instruction, self.index)
        for start in range(0, INSTRUCTION_BYTES, 4):
            ctx.set(self.queue.write, 1)
            ctx.set(self.queue.word, int.from_bytes(raw[start : start + 4], "little"))
            await self.tick(ctx)
        ctx.set(self.queue.write, 0)
        if not commit:
            return None
        await self.tick(ctx)
        ctx.set(self.queue.commit, 1)
        time = self.cycle
        await self.tick(ctx)
        ctx.set(self.queue.commit, 0)
        return time

    async def pulse(self, ctx, name):
        ctx.set(getattr(self.queue, name), 1)
        time = self.cycle
        await self.tick(ctx)
        ctx.set(getattr(self.queue, name), 0)
        return time


def random_instruction(rng, opcode):
    values = {
        field.name: rng.choice((field.low, field.high, rng.randint(field.low, field.high)))
        for field in FIELDS[opcode]
    }
    return Instruction(opcode, values)


@pytest.mark.parametrize(
    "unit, opcodes",
    [
        (Unit.LOAD, [Opcode.LOAD_ACTIVATIONS, Opcode.FILL, Opcode.LOAD_GROUPS]),
        (Unit.COMPUTE, [Opcode.RUN, Opcode.SYNC]),
        (Unit.STORE, [Opcode.STORE]),
    ],
)
def test_fields_arrive_and_time_is_as_said(unit, opcodes):
    rng = random.Random(5)
    bench = QueueBench(unit)
    instructions = [random_instruction(rng, opcode) for opcode in opcodes * 6]

    async def check(ctx):
        for instruction in instructions:
            before = len(bench.offered)
            commit = await bench.write(ctx, instruction)
            await bench.tick(ctx, bench.queue.offer_latency + 1)
            time, values = bench.offered[before]
            assert time == commit + bench.queue.offer_latency
            assert values["opcode"] == instruction.opcode
            for name, value in instruction.values.items():
                assert values[name] == value
            assert ctx.get(bench.queue.index) == bench.index
            await bench.pulse(ctx, "done")
            await bench.tick(ctx)
            assert ctx.get(bench.queue.drained)
        assert len(bench.offered) == len(instructions)

    simulate(bench.queue, check)


def test_four_instructions_wait_and_come_at_full_rate():
    bench = QueueBench(Unit.LOAD)

    async def check(ctx):
        queue = bench.queue
        bench.ready = False
        # One more than the slots: the first is in the register already.
        for _ in range(QUEUE_SLOTS + 1):
            assert ctx.get(queue.room)
            await bench.write(ctx, load())
        await bench.tick(ctx)
        assert not ctx.get(queue.room)
        bench.ready = True
        await bench.tick(ctx, 200)
        times = [time for time, _ in bench.offered]
        assert len(times) == MAX_IN_FLIGHT, "as many as may be in flight"
        assert [b - a for a, b in itertools.pairwise(times)] == [queue.offer_latency] * 3
        assert ctx.get(queue.busy) and not ctx.get(queue.waiting)
        for expected in range(1, 5):
            assert ctx.get(queue.index) == expected
            await bench.pulse(ctx, "done")
        await bench.tick(ctx, 20)
        assert len(bench.offered) == 5

    simulate(bench.queue, check)


def test_words_that_are_not_committed_are_forgotten_by_reset_only():
    """The next instruction's words go to the same slot after a whole uncommitted one."""
    bench = QueueBench(Unit.STORE)

    async def check(ctx):
        await bench.write(ctx, store(), commit=False)
        await bench.tick(ctx, 40)
        assert not bench.offered and ctx.get(bench.queue.drained)
        wanted = Instruction(Opcode.STORE, {"address": 0xABC, "run_bytes": 9})
        await bench.write(ctx, wanted)
        await bench.tick(ctx, 40)
        assert bench.offered[0][1]["address"] == 0xABC

    simulate(bench.queue, check)


@pytest.mark.parametrize("order", [("next", "previous"), ("previous", "next")])
def test_tokens_gate_the_offer_and_done_sends_them(order):
    bench = QueueBench(Unit.COMPUTE)
    queue = bench.queue

    async def check(ctx):
        await bench.write(ctx, run(pop_previous=True, pop_next=True, push_previous=True))
        await bench.tick(ctx, 60)
        assert not bench.offered
        assert (
            ctx.get(queue.waiting) and ctx.get(queue.waits_previous) and ctx.get(queue.waits_next)
        )
        await bench.pulse(ctx, f"{order[0]}_push")
        await bench.tick(ctx, 20)
        assert not bench.offered
        assert ctx.get(getattr(queue, f"waits_{order[1]}"))
        assert not ctx.get(getattr(queue, f"waits_{order[0]}"))
        pushed = await bench.pulse(ctx, f"{order[1]}_push")
        await bench.tick(ctx, 20)
        assert [time for time, _ in bench.offered] == [pushed + 2]
        assert not ctx.get(queue.waiting)
        done = await bench.pulse(ctx, "done")
        await bench.tick(ctx, 5)
        assert bench.sent == {"push_previous": [done + 1], "push_next": []}
        # Tokens were used up: the same instruction waits again.
        await bench.write(ctx, run(pop_previous=True, push_next=True))
        await bench.tick(ctx, 60)
        assert len(bench.offered) == 1
        await bench.pulse(ctx, "previous_push")
        await bench.tick(ctx, 10)
        assert len(bench.offered) == 2
        done = await bench.pulse(ctx, "done")
        await bench.tick(ctx, 5)
        assert bench.sent["push_next"] == [done + 1]

    simulate(queue, check)


@pytest.mark.parametrize("unit", [Unit.LOAD, Unit.STORE])
def test_a_token_of_a_unit_that_is_not_there_never_comes(unit):
    bench = QueueBench(unit)
    side = "previous" if unit is Unit.LOAD else "next"
    # The instruction class refuses it, so its bits are made by hand.
    block = bytearray(encode(load() if unit is Unit.LOAD else store(), 1))
    block[1] |= 1 if unit is Unit.LOAD else 2

    async def check(ctx):
        for start in range(0, INSTRUCTION_BYTES, 4):
            ctx.set(bench.queue.write, 1)
            ctx.set(bench.queue.word, int.from_bytes(block[start : start + 4], "little"))
            await bench.tick(ctx)
        ctx.set(bench.queue.write, 0)
        await bench.pulse(ctx, "commit")
        await bench.pulse(ctx, f"{side}_push")
        await bench.tick(ctx, 40)
        assert not bench.offered
        assert ctx.get(bench.queue.waiting)

    simulate(bench.queue, check)


def test_an_instruction_may_take_its_tokens_while_another_runs():
    bench = QueueBench(Unit.COMPUTE)

    async def check(ctx):
        await bench.write(ctx, run())
        await bench.write(ctx, run(pop_previous=True))
        await bench.tick(ctx, 60)
        assert len(bench.offered) == 1
        assert not ctx.get(bench.queue.waiting), "the unit is not idle"
        bench.ready = False
        await bench.pulse(ctx, "previous_push")
        await bench.tick(ctx, 5)
        assert ctx.get(bench.queue.o.valid)
        await bench.pulse(ctx, "done")
        bench.ready = True
        await bench.tick(ctx, 5)
        assert len(bench.offered) == 2

    simulate(bench.queue, check)


def test_too_many_tokens_are_an_error():
    for side, other in (("previous", "next"), ("next", "previous")):
        bench = QueueBench(Unit.COMPUTE)

        async def check(ctx, queue=bench.queue, tick=bench.tick, side=side, other=other):
            ctx.set(getattr(queue, f"{side}_push"), 1)
            for count in range(1 << TOKEN_WIDTH):
                await tick(ctx)
                lost = ctx.get(getattr(queue, f"overflow_{side}"))
                assert lost == (count == (1 << TOKEN_WIDTH) - 1)
                assert not ctx.get(getattr(queue, f"overflow_{other}"))

        simulate(bench.queue, check)


def test_tokens_are_seen_and_forgotten():
    """What is left is shown by side; ``clear`` forgets it, with the token of its cycle."""
    bench = QueueBench(Unit.COMPUTE)
    queue = bench.queue

    async def check(ctx):
        for _ in range(3):
            await bench.pulse(ctx, "previous_push")
            assert ctx.get(queue.has_previous) and not ctx.get(queue.has_next)
        await bench.pulse(ctx, "next_push")
        assert ctx.get(queue.has_previous) and ctx.get(queue.has_next)
        # Two are taken, the third stays.
        for _ in range(2):
            await bench.write(ctx, run(pop_previous=True))
            await bench.tick(ctx, 40)
            await bench.pulse(ctx, "done")
        assert len(bench.offered) == 2 and ctx.get(queue.has_previous)
        ctx.set(queue.next_push, 1)
        await bench.pulse(ctx, "clear")
        ctx.set(queue.next_push, 0)
        assert not ctx.get(queue.has_previous) and not ctx.get(queue.has_next)
        await bench.write(ctx, run(pop_previous=True))
        await bench.tick(ctx, 60)
        assert len(bench.offered) == 2 and ctx.get(queue.waiting)

    simulate(queue, check)


def test_a_halted_queue_offers_nothing_new():
    bench = QueueBench(Unit.STORE)

    async def check(ctx):
        ctx.set(bench.queue.halt, 1)
        await bench.write(ctx, store())
        await bench.tick(ctx, 60)
        assert not bench.offered
        ctx.set(bench.queue.halt, 0)
        await bench.tick(ctx, 5)
        assert len(bench.offered) == 1

    simulate(bench.queue, check)


# --- compute unit --------------------------------------------------------------------------------


def set_instruction(ctx, unit, instruction):
    ctx.set(unit.instruction.payload.opcode, int(instruction.opcode))
    for name, value in instruction.values.items():
        if name in unit.instruction.payload.shape().members:
            ctx.set(unit.instruction.payload[name], value)
    ctx.set(unit.instruction.valid, 1)


def command_values(ctx, payload) -> dict[str, int]:
    values = {}
    for name in payload.shape().members:
        if name in ("count_less_1", "read_step", "write_step"):
            values |= {f"{name}_{i}": ctx.get(payload[name][i]) for i in range(3)}
        else:
            values[name] = ctx.get(payload[name])
    return values


LEGAL = {
    "group_base": 255,
    "n_groups": 256,
    "record_base": 63,
    "n_records": 64,
    "read_base": 255,
    "write_base": 254,
    "count_less_1_0": 65535,
    "count_less_1_1": 1,
    "count_less_1_2": 2,
    "signed_input": 1,
    "continues": 1,
    "read_step_0": 255,
    "read_step_1": 1,
    "read_step_2": 77,
    "write_step_0": 3,
    "write_step_1": 4,
    "write_step_2": 5,
    "low": -128,
    "high": 255,
}


@pytest.mark.parametrize("keys", [{}, {"max_pooling": True}, {"activation_tables": 4}])
def test_a_run_becomes_a_command(keys):
    config = config_of(64)
    engine = dataclasses.replace(config.engine, **keys)
    unit = ComputeUnit(dataclasses.replace(config, engine=engine))
    optional = {"maximum": 1} if "max_pooling" in keys else {}
    optional |= {"table": 3} if "activation_tables" in keys else {}
    wanted = LEGAL | optional | {"config_hash": engine.hash32}

    async def bench(ctx):
        set_instruction(ctx, unit, Instruction(Opcode.RUN, LEGAL | optional))
        assert not ctx.get(unit.command.valid)
        await ctx.tick()
        assert ctx.get(unit.command.valid) and not ctx.get(unit.instruction.ready)
        assert command_values(ctx, unit.command.payload) == wanted
        await ctx.tick().repeat(3)
        ctx.set(unit.command.ready, 1)
        assert ctx.get(unit.command.valid) and ctx.get(unit.instruction.ready)
        await ctx.tick()
        ctx.set(unit.instruction.valid, 0)
        assert not ctx.get(unit.command.valid) and not ctx.get(unit.done)
        ctx.set(unit.engine_done, 1)
        assert ctx.get(unit.done)

    simulate(unit, bench)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("group_base", 256),
        ("n_groups", 512),
        ("record_base", 64),
        ("n_records", 1 << 16),
        ("read_base", 1 << 15),
        ("write_base", 256),
    ],
)
def test_a_number_wider_than_the_engine_is_an_error(name, value):
    unit = ComputeUnit(config_of(64))

    async def bench(ctx):
        ctx.set(unit.command.ready, 1)
        set_instruction(ctx, unit, Instruction(Opcode.RUN, LEGAL | {name: value}))
        errors = 0
        for _ in range(5):
            assert not ctx.get(unit.command.valid) and not ctx.get(unit.instruction.ready)
            errors += ctx.get(unit.error)
            await ctx.tick()
        assert errors

    simulate(unit, bench)


def test_a_bad_run_is_an_error_only_when_those_before_it_are_done():
    """Until then the instruction in flight is the one that an index would name."""
    unit = ComputeUnit(config_of(64))

    async def bench(ctx):
        ctx.set(unit.command.ready, 1)
        set_instruction(ctx, unit, Instruction(Opcode.RUN, LEGAL))
        await ctx.tick().repeat(2)
        ctx.set(unit.command.ready, 0)
        set_instruction(ctx, unit, Instruction(Opcode.RUN, LEGAL | {"read_base": 1 << 15}))
        for _ in range(20):
            await ctx.tick()
            assert not ctx.get(unit.error) and not ctx.get(unit.instruction.ready)
        ctx.set(unit.engine_done, 1)
        await ctx.tick()
        ctx.set(unit.engine_done, 0)
        await ctx.tick()
        assert ctx.get(unit.error) and not ctx.get(unit.command.valid)

    simulate(unit, bench)


def test_sync_is_done_after_what_came_before():
    unit = ComputeUnit(config_of(64))

    async def bench(ctx):
        ctx.set(unit.command.ready, 1)
        set_instruction(ctx, unit, Instruction(Opcode.RUN, LEGAL))
        await ctx.tick().repeat(2)
        set_instruction(ctx, unit, sync())
        for _ in range(20):
            await ctx.tick()
            assert not ctx.get(unit.instruction.ready) and not ctx.get(unit.done)
            assert not ctx.get(unit.command.valid)
        ctx.set(unit.engine_done, 1)
        assert ctx.get(unit.done)
        await ctx.tick()
        ctx.set(unit.engine_done, 0)
        assert ctx.get(unit.instruction.ready)
        await ctx.tick()
        ctx.set(unit.instruction.valid, 0)
        assert ctx.get(unit.done)
        await ctx.tick()
        assert not ctx.get(unit.done)

    simulate(unit, bench)


def test_a_halted_compute_unit_starts_nothing():
    unit = ComputeUnit(config_of(64))

    async def bench(ctx):
        ctx.set(unit.command.ready, 1)
        ctx.set(unit.halt, 1)
        set_instruction(ctx, unit, Instruction(Opcode.RUN, LEGAL))
        for _ in range(10):
            await ctx.tick()
            assert not ctx.get(unit.command.valid)

    simulate(unit, bench)


# --- supervisor ----------------------------------------------------------------------------------


OFF = (1000, 0, 300)
"""Switched off while something is quiet: setting before, after, and cycles between."""


def test_the_watchdog_bites_after_the_cycles_that_it_says():
    """Also when the setting is lowered below what has passed already, and never when it is 0."""
    for before, after, n_passed in ((9, 9, 0), (1000, 9, 300), (0, 40, 0), (0, 40, 100), OFF):
        supervisor = Supervisor()

        async def bench(ctx, supervisor=supervisor, before=before, after=after, n_passed=n_passed):
            ctx.set(supervisor.watch, 1)
            ctx.set(supervisor.watchdog_cycles, before)
            ctx.set(supervisor.progress, 1)
            await ctx.tick().repeat(3)
            ctx.set(supervisor.progress, 0)
            for _ in range(n_passed):
                await ctx.tick()
                assert not ctx.get(supervisor.watchdog)
            ctx.set(supervisor.watchdog_cycles, after)
            if not after:
                for _ in range(100):
                    await ctx.tick()
                    assert not ctx.get(supervisor.watchdog)
                return
            waited = 0
            while not ctx.get(supervisor.watchdog):
                await ctx.tick()
                waited += 1
                assert waited < 100
            late = 2 if n_passed > after else after + 2
            assert waited == late, (before, after, n_passed)
            ctx.set(supervisor.watchdog_cycles, 0)
            await ctx.tick().repeat(2)
            for _ in range(100):
                assert not ctx.get(supervisor.watchdog)
                await ctx.tick()

        simulate(supervisor, bench)
