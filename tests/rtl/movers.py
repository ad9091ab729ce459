"""What the tests of the load unit and of the store unit share: naive models and benches."""

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np

from gshw.config import BusConfig, Config, EngineConfig, load_config
from gshw.layout import group_fields, record_fields, word_width
from gshw.program import Instruction, Opcode, encode
from rtl_gen.instructions import unit_fields
from rtl_gen.library import flat_ports
from rtl_gen.verilog import convert
from tests.rtl.bench import at_random, bits, never, not_built, simulate
from tests.strategies import ENGINES

LOADS = (Opcode.LOAD_ACTIVATIONS, Opcode.LOAD_GROUPS, Opcode.LOAD_RECORDS)


def config(engine: str | EngineConfig, data_width: int = 64, address_width: int = 32) -> Config:
    """A small engine, or a preset with shallow buffers, behind a bus."""
    if isinstance(engine, str):
        shallow = {"bank_depth": 64, "output_depth": 32, "group_buffer_depth": 24}
        base = ENGINES[engine] if engine in ENGINES else load_config(engine).engine
        engine = dataclasses.replace(base, row_buffer_depth=16, **shallow)
    bus = BusConfig(data_width=data_width, address_width=address_width)
    return Config(name="test", engine=engine, bus=bus)


CONFIGS = [
    ("direct4", 32),
    ("direct4", 64),
    ("direct2x2", 64),
    ("direct2x2", 512),
    ("hybrid4", 32),
    ("vertical4", 64),
    ("vertical4", 256),
    ("vertical8", 128),
    ("v16x4", 64),
    ("block16", 64),
]
"""Engine and bus: beats narrower and wider than rows and words, 4-, 8- and 16-bit codes."""


# --- naive models ----------------------------------------------------------------------------


def memory_byte(address: int) -> int:
    """Contents of the memory."""
    return (address * 0x9E3779B1 ^ address >> 7) >> 5 & 0xFF


def memory_bytes(address: int, n_bytes: int, address_width: int = 32) -> bytes:
    return bytes(memory_byte((address + i) % (1 << address_width)) for i in range(n_bytes))


def runs(values: dict, cfg: Config, place: str) -> Iterator[tuple[int, int]]:
    """Memory address and buffer address of every run, in order."""
    for j in range(values["count_1"]):
        for i in range(values["count_0"]):
            address, word = values.get("address", 0), values[place]
            address += i * values.get("memory_stride_0", 0) + j * values.get("memory_stride_1", 0)
            word += i * values[f"{place}_stride_0"] + j * values[f"{place}_stride_1"]
            yield address % (1 << cfg.bus.address_width), word % 65536


def code_at(raw: bytes, index: int, width: int) -> int | None:
    """Code ``index`` of packed codes; None where it is not whole."""
    if (index + 1) * width > 8 * len(raw):
        return None
    return int.from_bytes(raw, "little") >> (index * width) & ((1 << width) - 1)


def naive_load(cfg: Config, opcode: Opcode, values: dict, buffers: dict) -> None:
    """Change ``buffers`` as the instruction says.

    Keys: ("scratchpad", word, bank, channel, column), ("group", entry) and ("record", entry).
    """
    engine = cfg.engine
    for address, target in runs(values, cfg, "target"):
        chosen = [v for v in range(engine.columns) if values["columns"] >> v & 1]
        if opcode is Opcode.FILL:
            code = values["value"] % (1 << engine.activation_width)
            for word in range(target, target + values["n_words"]):
                for bank in range(engine.lanes):
                    for channel in range(engine.block):
                        for column in chosen:
                            buffers["scratchpad", word, bank, channel, column] = code
            continue
        raw = memory_bytes(address, values["run_bytes"], cfg.bus.address_width)
        if opcode is Opcode.LOAD_ACTIVATIONS:
            n = 0
            while (code := code_at(raw, n, engine.activation_width)) is not None:
                word = target + n // (engine.lanes * engine.block)
                bank, channel = n // engine.block % engine.lanes, n % engine.block
                for column in chosen:
                    buffers["scratchpad", word, bank, channel, column] = code
                n += 1
            continue
        name, width = word_of(cfg, opcode)
        n_bytes = word_bytes(cfg, opcode)
        for entry in range(len(raw) // n_bytes):
            piece = raw[entry * n_bytes : (entry + 1) * n_bytes]
            buffers[name, target + entry] = int.from_bytes(piece, "little") % (1 << width)


def word_of(cfg: Config, opcode: Opcode) -> tuple[str, int]:
    fields = group_fields if opcode is Opcode.LOAD_GROUPS else record_fields
    name = "group" if opcode is Opcode.LOAD_GROUPS else "record"
    return name, word_width(fields(cfg.engine))


def word_bytes(cfg: Config, opcode: Opcode) -> int:
    return -(-word_of(cfg, opcode)[1] // 32) * 4


def row_codes(cfg: Config, address: int) -> list[int]:
    """Row of the output buffer: code of (bank, channel, column), column fastest."""
    n_codes = cfg.engine.lanes * cfg.engine.block * cfg.engine.columns
    rng = np.random.default_rng(address)
    return [int(code) for code in rng.integers(0, 1 << cfg.engine.activation_width, n_codes)]


def naive_store(cfg: Config, values: dict) -> list[tuple[int, bytes]]:
    """Address and bytes of every run."""
    engine, found = cfg.engine, []
    width = engine.activation_width
    for address, source in runs(values, cfg, "source"):
        packed, n = 0, 0
        while n * width < 8 * values["run_bytes"]:
            word, place = divmod(n, engine.lanes * engine.block)
            code = row_codes(cfg, source + word)[place * engine.columns + values["column"]]
            packed |= code << (n * width)
            n += 1
        raw = packed.to_bytes(-(-n * width // 8), "little")[: values["run_bytes"]]
        found.append((address, raw))
    return found


# --- random instructions ---------------------------------------------------------------------


def random_run(rng: np.random.Generator, opcode: Opcode, cfg: Config) -> tuple[int, int, int]:
    """run_bytes, words of the run, and depth of its buffer."""
    engine = cfg.engine
    if opcode in (Opcode.LOAD_GROUPS, Opcode.LOAD_RECORDS):
        depth = engine.group_buffer_depth
        depth = depth if opcode is Opcode.LOAD_GROUPS else engine.row_buffer_depth
        n_words = int(rng.integers(1, 6))
        return n_words * word_bytes(cfg, opcode), n_words, depth
    depth = engine.output_depth if opcode is Opcode.STORE else engine.bank_depth
    row_bytes = engine.lanes * engine.block * engine.activation_width // 8
    n_bytes = int(rng.integers(1, max(4 * row_bytes, 2 * cfg.bus.data_bytes) + 1))
    n_bytes = min(n_bytes, depth * row_bytes // 2)
    if engine.activation_width == 16 and opcode is Opcode.STORE:
        n_bytes += n_bytes % 2
    return n_bytes, -(-n_bytes // row_bytes), depth


def random_instruction(rng: np.random.Generator, opcode: Opcode, cfg: Config) -> Instruction:
    """Legal, within the buffers, with strides of both signs."""
    run_bytes, n_words, depth = random_run(rng, opcode, cfg)
    count_0, count_1 = (int(n) for n in rng.integers(1, 5, 2))
    place = "source" if opcode is Opcode.STORE else "target"
    values = {"count_0": count_0, "count_1": count_1}
    reach = depth - n_words
    strides = [int(rng.integers(-(reach // (2 * n)), reach // (2 * n) + 1)) for n in (4, 4)]
    travels = [i * strides[0] + j * strides[1] for i in range(count_0) for j in range(count_1)]
    low, high = -min(travels), reach - max(travels)
    extreme = {0: low, 1: high}.get(int(rng.integers(0, 4)), int(rng.integers(low, high + 1)))
    values |= {place: extreme}
    values |= {f"{place}_stride_{i}": strides[i] % 65536 for i in (0, 1)}
    if opcode is Opcode.STORE:
        values["column"] = int(rng.integers(0, cfg.engine.columns))
    else:
        values["columns"] = int(rng.integers(0, 1 << cfg.engine.columns))
    if opcode is Opcode.FILL:
        values |= {"n_words": n_words, "value": int(rng.integers(0, 65536))}
    else:
        values |= {
            "address": int(rng.integers(0, 1 << min(cfg.bus.address_width, 40))),
            "run_bytes": run_bytes,
            "memory_stride_0": int(rng.integers(-5000, 5000)),
            "memory_stride_1": int(rng.integers(-(1 << 31), 1 << 31)),
        }
    return Instruction(opcode, values)


def payload(instruction: Instruction) -> dict[str, int]:
    """Fields of the unit's instruction stream."""
    block = int.from_bytes(encode(instruction, 1), "little")
    return {field.name: field.get(block) for field in unit_fields(instruction.unit)}


# --- benches ---------------------------------------------------------------------------------


class Bench:
    """A unit whose bus side and events are served and recorded; see the two below."""

    def __init__(self, cfg: Config, dut, seed: int | None) -> None:
        self.cfg = cfg
        self.dut = dut
        self.stall = [never if seed is None else at_random(seed + i) for i in range(3)]
        self.cycle = 0
        self.halted = False
        self.events: list[tuple[str, int]] = []
        self.requests: list[tuple[int, int]] = []

    def common_events(self) -> list:
        """What :meth:`note` wants to know."""
        streams = (self.dut.instruction, self.dut.request, self.dut.data)
        taken = [s.valid & s.ready for s in streams]
        return [*taken, self.dut.done, self.dut.error, self.dut.halt]

    def note(self, happened: list[int], **others: int) -> dict[str, int]:
        """Record the names of what happened in this cycle, unless the unit was halted in it."""
        names = ("accept", "request", "beat", "done", "error")
        self.halted = bool(happened.pop())
        found = dict(zip(names, happened, strict=True)) | others
        if self.halted:
            found = dict.fromkeys(found, 0)
        self.events += [(name, self.cycle) for name, value in found.items() if value]
        self.cycle += 1
        return found

    def requested(self, address: int, n_bytes: int) -> None:
        """Called with every request."""
        self.requests.append((address, n_bytes))

    async def take_requests(self, ctx):
        request = self.dut.request
        while True:
            ctx.set(request.ready, not self.stall[0](self.cycle))
            *_, valid, ready, address, n_bytes = await ctx.tick().sample(
                request.valid, request.ready, request.payload.address, request.payload.n_bytes
            )
            if valid and ready and not self.halted:
                self.requested(address, n_bytes)

    async def issue(self, ctx, fields: dict[str, int]):
        """Offer an instruction until it is accepted; then the payload is worthless."""
        port = self.dut.instruction
        ctx.set(port.payload, fields)
        ctx.set(port.valid, 1)
        ready = False
        while not ready:
            *_, ready = await ctx.tick().sample(port.ready)
        ctx.set(port.valid, 0)
        ctx.set(bits(port.payload), -1)

    async def wait_for(self, ctx, event: str, n_times: int = 1):
        while self.count(event) < n_times:
            await ctx.tick()

    async def halt(self, ctx):
        """One cycle of halt."""
        ctx.set(self.dut.halt, 1)
        await ctx.tick()
        ctx.set(self.dut.halt, 0)

    def count(self, event: str) -> int:
        return len(self.cycles(event))

    def cycles(self, event: str) -> list[int]:
        return [cycle for name, cycle in self.events if name == event]

    def simulate(self, component, bench: Callable, *watchers: Callable) -> None:
        watchers = (self.clock, self.take_requests, *watchers)
        simulate(component, bench, watchers=watchers, n_cycles=20_000)


# --- Verilog ---------------------------------------------------------------------------------


def check_verilog(component_type, cfg: Config) -> None:
    """Plain names, one module per component, and a port for every member."""
    text = convert(component_type(cfg), "mover")
    assert "\\" not in text
    names = re.findall(r"^module (\w+)", text, re.M)
    assert names[-1] == "mover"
    assert "mover_run_loops" in names
    top = text[text.rindex("\nmodule mover ") :]
    ports = set(re.findall(r"^  (?:input|output) (?:\[\d+:\d+\] )?(\w+);", top, re.M))
    listed = {name for name, _, _ in flat_ports(not_built(component_type(cfg)))}
    assert ports == listed | {"clk", "rst"}
