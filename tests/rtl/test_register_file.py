"""Registers behind AXI4-Lite: every field through the bus, races, what is not mapped, pauses."""

from dataclasses import replace

import numpy as np
import pytest

from gshw.config import BusConfig, load_config
from gshw.register_map import register_map
from gshw.registers import Access, Register, RegisterField, RegisterMap
from gshw.top import Top
from rtl_gen.register_file import RegisterFile
from tests.rtl.axi_lite_master import OKAY, SLAVE_ERROR, Host, Pauses, read, write
from tests.rtl.bench import simulate


def odd_map() -> RegisterMap:
    """Fields across byte borders, several w1c bits, every access kind; spread addresses."""

    def field(name: str, low_bit: int, width: int, access: Access, **rest) -> RegisterField:
        return RegisterField(
            name=name, low_bit=low_bit, width=width, access=access, description="Odd.", **rest
        )

    fields = (
        field("crossing", 5, 14, Access.READ_WRITE, reset=0x2AAA),
        field("flags", 19, 7, Access.WRITE_1_CLEARS, hardware_clears=True),
        field("go", 27, 1, Access.PULSE),
        field("state", 28, 3, Access.READ_ONLY),
        field("kind", 31, 1, Access.CONSTANT, reset=1),
    )
    counters = tuple(
        Register(
            name=f"count_{n}",
            offset=0x040 + 4 * n,
            description="Kept in memory.",
            fields=(field("value", 0, 32, Access.READ_ONLY),),
            in_memory=True,
        )
        for n in range(20)
    )
    registers = (
        Register(name="mixed", offset=0x004, description="All kinds.", fields=fields),
        Register(
            name="plain",
            offset=0x018,
            description="One number.",
            fields=(field("value", 0, 32, Access.READ_WRITE, reset=0x89ABCDEF),),
        ),
        *counters,
        Register(
            name="far",
            offset=0x100,
            description="Beyond the counters.",
            fields=(field("value", 3, 21, Access.WRITE_1_CLEARS),),
        ),
    )
    return RegisterMap(name="odd", description="Odd.", address_width=12, registers=registers)


def top_map(top: Top, address_width: int) -> RegisterMap:
    bus = BusConfig(address_width=address_width)
    return register_map(replace(load_config("h16"), bus=bus), top)


MAPS = {
    "axi_32": lambda: top_map(Top.AXI, 32),
    "stream_64": lambda: top_map(Top.STREAM, 64),
    "odd": odd_map,
}


class Model:
    """What software must see, bit by bit from the declaration."""

    def __init__(self, registers: RegisterMap) -> None:
        self.values = {r.offset: r.reset for r in registers.registers}
        self.access = {
            r.offset: {bit: f.access for f in r.fields for bit in range(f.low_bit, f.high_bit + 1)}
            for r in registers.registers
        }
        self.pulses = 0

    def write(self, address: int, value: int, strobes: int) -> None:
        offset = address & ~3
        for bit, access in self.access[offset].items():
            if not strobes >> (bit // 8) & 1:
                continue
            one = value >> bit & 1
            mask = 1 << bit
            if access is Access.READ_WRITE:
                self.values[offset] = self.values[offset] & ~mask | one << bit
            elif access is Access.WRITE_1_CLEARS and one:
                self.values[offset] &= ~mask
            elif access is Access.PULSE and one:
                self.pulses += 1

    def set_field(self, register: Register, field: RegisterField, value: int) -> None:
        self.values[register.offset] &= ~field.mask
        self.values[register.offset] |= value << field.low_bit


def fields_of(registers: RegisterMap, access: Access):
    return [
        (r, f, r.member(f))
        for r in registers.registers
        if not r.in_memory
        for f in r.fields
        if f.access is access
    ]


def hold_watcher(valid, ready, *payload):
    """Watcher of an output channel: valid and payload hold until they are taken."""

    async def watch(ctx):
        waiting = None
        while True:
            v, r, *values = (await ctx.tick().sample(valid, ready, *payload))[2:]
            assert waiting is None or (v and values == waiting)
            waiting = values if v and not r else None

    return watch


def pulse_counter(file: RegisterFile, into: list[str]):
    """Watcher: the names of pulses, once for every cycle in which they are high."""
    pulses = [(name, getattr(file, name)) for *_, name in fields_of(file.registers, Access.PULSE)]

    async def watch(ctx):
        while True:
            values = (await ctx.tick().sample(*(signal for _, signal in pulses)))[2:]
            into.extend(name for (name, _), value in zip(pulses, values) if value)

    return watch


@pytest.mark.parametrize(
    ("name", "longest"), [("axi_32", 5), ("stream_64", 0), ("odd", 0), ("odd", 5)]
)
def test_every_field_through_the_bus(name, longest):
    registers = MAPS[name]()
    host = Host(registers)
    file, axi = host.file, host.axi
    model = Model(registers)
    rng = np.random.default_rng(7)
    pause = Pauses(11, longest)
    pulses: list[str] = []

    async def check_all(ctx):
        for register in rng.permutation(registers.registers):
            got = await read(ctx, axi, register.offset + int(rng.integers(4)), pause)
            assert got == (model.values[register.offset], OKAY), register.name

    async def bench(ctx):
        await check_all(ctx)
        for strobes in (None, 15):
            for register, field, member in fields_of(registers, Access.READ_ONLY):
                value = int(rng.integers(1 << field.width))
                ctx.set(getattr(file, member), value)
                model.set_field(register, field, value)
            for register, field, member in fields_of(registers, Access.WRITE_1_CLEARS):
                value = int(rng.integers(1 << field.width))
                ctx.set(getattr(file, f"{member}_set"), value)
                await ctx.tick()
                ctx.set(getattr(file, f"{member}_set"), 0)
                kept = field.get(model.values[register.offset])
                model.set_field(register, field, kept | value)
            for register in rng.permutation(registers.registers):
                value = int(rng.integers(1 << 32)) | (0x8000103 if strobes else 0)
                bytes_written = strobes or int(rng.integers(16))
                address = register.offset + int(rng.integers(4))
                assert await write(ctx, axi, address, value, bytes_written, pause) == OKAY
                model.write(address, value, bytes_written)
            await check_all(ctx)
            for register, field, member in fields_of(registers, Access.READ_WRITE):
                assert ctx.get(getattr(file, member)) == field.get(model.values[register.offset])
        for _ in range(2):
            await ctx.tick()
        assert len(pulses) == model.pulses > 0

    watchers = [
        hold_watcher(axi.bvalid, axi.bready, axi.bresp),
        hold_watcher(axi.rvalid, axi.rready, axi.rresp, axi.rdata),
        pulse_counter(file, pulses),
    ]
    simulate(host, bench, watchers=watchers, n_cycles=40_000)


@pytest.mark.parametrize("name", ["axi_32", "odd"])
def test_addresses_without_a_register(name):
    registers = MAPS[name]()
    host = Host(registers)
    mapped = {register.offset for register in registers.registers}
    free = [address for address in range(0, 0x140, 4) if address not in mapped]
    free += [0x200, 0x400, 0x800, 0xFFC, *(0x400 + offset for offset in sorted(mapped)[:3])]

    async def bench(ctx):
        for address in free:
            assert await write(ctx, host.axi, address, 0xFFFFFFFF) == SLAVE_ERROR
            assert await read(ctx, host.axi, address) == (0, SLAVE_ERROR)
        for register in registers.registers:
            assert await read(ctx, host.axi, register.offset) == (register.reset, OKAY)

    simulate(host, bench)


def test_reads_and_writes_at_once():
    """Two masters' worth of traffic: neither direction starves or disturbs the other."""
    registers = MAPS["axi_32"]()
    host = Host(registers)
    windows = ["window_first_low", "window_last_low"]
    written: list[int] = []
    seen: list[int] = []

    async def writer(ctx):
        pause = Pauses(1, 3)
        for n in range(1, 100):
            written.append(n)
            assert await write(ctx, host.axi, registers[windows[0]].offset, n, 15, pause) == OKAY

    async def reader(ctx):
        pause = Pauses(2, 3)
        for _ in range(100):
            oldest = written[-1] - 1 if written else 0
            value, response = await read(ctx, host.axi, registers[windows[0]].offset, pause)
            assert response == OKAY and oldest <= value <= (written[-1] if written else 0)
            seen.append(value)
            other = await read(ctx, host.axi, registers[windows[1]].offset, pause)
            assert other == (0xFFFFFFFF, OKAY)

    simulate(host, writer, reader)
    assert len(set(seen)) > 20


@pytest.mark.parametrize("stuck", ["b", "r"])
def test_a_response_not_taken_stops_only_its_direction(stuck):
    registers = MAPS["axi_32"]()
    host = Host(registers)
    axi, watchdog = host.axi, registers["watchdog_cycles"].offset

    async def bench(ctx):
        if stuck == "b":
            ctx.set(axi.awvalid, 1)
            ctx.set(axi.wvalid, 1)
            ctx.set(axi.awaddr, watchdog)
            ctx.set(axi.wstrb, 15)
            ctx.set(axi.wdata, 99)
            await ctx.tick().until(axi.bvalid)
            ctx.set(axi.awvalid, 0)
            ctx.set(axi.wvalid, 0)
            for _ in range(5):
                assert await read(ctx, axi, watchdog) == (99, OKAY)
            assert ctx.get(axi.bvalid)
        else:
            ctx.set(axi.araddr, watchdog)
            ctx.set(axi.arvalid, 1)
            await ctx.tick().until(axi.rvalid)
            ctx.set(axi.arvalid, 0)
            for n in range(5):
                assert await write(ctx, axi, watchdog, n) == OKAY
            assert ctx.get(axi.rvalid) and ctx.get(axi.rdata) == 0

    simulate(host, bench, n_cycles=300)


@pytest.mark.parametrize("late", range(-2, 4))
def test_an_event_in_the_cycle_of_its_clearing_stays(late):
    """An event ``late`` cycles after the write of a 1 reaches the registers."""
    file = RegisterFile(odd_map())
    outcome = []

    async def bench(ctx):
        ctx.set(file.mixed_flags_set, 0b0110011)
        await ctx.tick()
        ctx.set(file.mixed_flags_set, 0)
        await ctx.tick()
        ctx.set(file.bus.address, 1)
        ctx.set(file.bus.write_data, 0b0010001 << 19)
        ctx.set(file.bus.strobes, 15)
        for cycle in range(-2, 6):
            ctx.set(file.bus.write, cycle == 0)
            ctx.set(file.mixed_flags_set, 0b0000001 if cycle == late else 0)
            await ctx.tick()
        outcome.append(ctx.get(file.mixed_flags))

    simulate(file, bench)
    assert outcome == [0b0100011 if late >= 0 else 0b0100010]


def test_hardware_clears_unless_it_sets():
    file = RegisterFile(odd_map())

    async def bench(ctx):
        ctx.set(file.mixed_flags_set, 0b1111111)
        await ctx.tick()
        ctx.set(file.mixed_flags_set, 0b0000100)
        ctx.set(file.mixed_flags_clear, 1)
        await ctx.tick()
        assert ctx.get(file.mixed_flags) == 0b0000100

    simulate(file, bench)


def test_start_is_one_cycle_also_under_a_slow_master():
    registers = MAPS["axi_32"]()
    host = Host(registers)
    pulses: list[str] = []

    async def bench(ctx):
        pause = Pauses(5, 9)
        for _ in range(10):
            await write(ctx, host.axi, 0, 1, 15, pause)
            await write(ctx, host.axi, 0, 1, 0b1110, pause)
        await ctx.tick()

    simulate(host, bench, watchers=[pulse_counter(host.file, pulses)])
    assert pulses == ["control_start"] * 10
