"""Registers as flip-flops and a read multiplexer, made from their declaration."""

from collections import defaultdict
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.registers import (
    REGISTER_BYTES,
    REGISTER_WIDTH,
    Access,
    Register,
    RegisterField,
    RegisterMap,
)
from rtl_gen.counters import CounterRead


class RegisterBus(wiring.Signature):
    """One access to a register at a time, as the side that asks sees it.

    ``read`` or ``write`` is high for one cycle, never both. ``address`` (a register's number: its
    offset / 4), ``write_data`` and ``strobes`` (one per byte) are valid then and hold until
    ``acknowledge``, which comes once, later, with ``error`` (nothing is at that address) and, after
    a read, ``read_data``, which holds until the next read. Nothing is asked before it.
    """

    def __init__(self, address_width: int) -> None:
        self.address_width = address_width
        super().__init__(
            {
                "address": Out(address_width - 2),
                "read": Out(1),
                "write": Out(1),
                "write_data": Out(REGISTER_WIDTH),
                "strobes": Out(REGISTER_BYTES),
                "acknowledge": In(1),
                "error": In(1),
                "read_data": In(REGISTER_WIDTH),
            }
        )


def _select(entries: dict[int, Value], address: Value, n_bits: int) -> Value:
    """The entry at ``address``: two-way multiplexers, one level per bit, lowest bit first.

    What is not in ``entries`` is any of them.
    """
    for bit in range(n_bits):
        pairs: dict[int, dict[int, Value]] = defaultdict(dict)
        for number, value in entries.items():
            pairs[number >> 1][number & 1] = value
        entries = {
            number: Mux(address[bit], pair[1], pair[0])
            if len(pair) == 2
            else next(iter(pair.values()))
            for number, pair in pairs.items()
        }
    return entries[0]


class RegisterFile(wiring.Component):
    """Every register of a map, behind a :class:`RegisterBus`.

    Members, for a field called ``name`` (:meth:`gshw.registers.Register.member`):

    ===========================  ==========================================================
    read and write               ``name`` Out
    read only                    ``name`` In; of registers in memory none, see ``counters``
    constant                     none
    write 1 to clear             ``name`` Out, ``name_set`` In (a one sets the bit),
                                 ``name_clear`` In (one bit; where hardware clears, too)
    pulse                        ``name`` Out, one cycle
    ===========================  ==========================================================

    Setting wins over clearing. An access is acknowledged after one cycle, but a read of a register
    in memory when ``counters`` (a :class:`rtl_gen.counters.CounterRead`, there only if the map has
    such registers) has given it. What a write changes shows with the acknowledgement.
    """

    def __init__(self, registers: RegisterMap) -> None:
        self.registers = registers
        members = {"bus": In(RegisterBus(registers.address_width))}
        if registers.in_memory:
            members["counters"] = Out(CounterRead(len(registers.in_memory)))
        for register in registers.registers:
            if register.in_memory:
                continue
            for field in register.fields:
                name = register.member(field)
                match field.access:
                    case Access.READ_WRITE:
                        members[name] = Out(field.width, init=field.reset)
                    case Access.PULSE:
                        members[name] = Out(1)
                    case Access.READ_ONLY:
                        members[name] = In(field.width)
                    case Access.WRITE_1_CLEARS:
                        members[name] = Out(field.width)
                        members[f"{name}_set"] = In(field.width)
                        if field.hardware_clears:
                            members[f"{name}_clear"] = In(1)
        super().__init__(members)

    def pair(self, name: str) -> Value:
        """Members ``name_low`` and ``name_high`` as one value of as many bits as exist."""
        return Cat(getattr(self, f"{name}_{half}", ()) for half in ("low", "high"))

    def elaborate(self, platform) -> Module:
        m = Module()
        bus = self.bus
        numbers = {r.offset // REGISTER_BYTES: r for r in self.registers.registers}

        # --- writes ------------------------------------------------------------------------
        for number, register in numbers.items():
            if not any(field.writable for field in register.fields):
                continue
            written = Signal(name=f"write_{register.name}")
            m.d.comb += written.eq(bus.write & (bus.address == number))
            for field in register.fields:
                self._write(m, register, field, written)

        # --- reads -------------------------------------------------------------------------
        mapped = Signal()
        acknowledge = bus.read | bus.write
        entries = {
            n: self._word(register) for n, register in numbers.items() if not register.in_memory
        }
        m.d.comb += mapped.eq(reduce(or_, (bus.address == number for number in numbers)))
        with m.If(bus.read):
            m.d.sync += bus.read_data.eq(_select(entries, bus.address, max(entries).bit_length()))
        kept = [number for number, register in numbers.items() if register.in_memory]
        if kept:
            counters = self.counters
            m.d.comb += [
                counters.request.eq(
                    bus.read & (bus.address >= kept[0]) & (bus.address <= kept[-1])
                ),
                counters.slot.eq(bus.address - kept[0]),
            ]
            with m.If(counters.valid):
                m.d.sync += bus.read_data.eq(counters.data)
            acknowledge = (acknowledge & ~counters.request) | counters.valid
        with m.If(bus.read & ~mapped):
            m.d.sync += bus.read_data.eq(0)
        with m.If(bus.read | bus.write):
            m.d.sync += bus.error.eq(~mapped)
        m.d.sync += bus.acknowledge.eq(acknowledge)
        return m

    def _write(self, m: Module, register: Register, field: RegisterField, written: Value) -> None:
        """What a write does to a field, byte by byte."""
        name = register.member(field)
        bits = slice(field.low_bit, field.high_bit + 1)
        data = self.bus.write_data[bits]
        enable = Cat(strobe.replicate(8) for strobe in self.bus.strobes)[bits]
        ones = data & enable & written.replicate(field.width)
        match field.access:
            case Access.READ_WRITE:
                value = getattr(self, name)
                for byte in range(field.low_bit // 8, field.high_bit // 8 + 1):
                    low = max(8 * byte - field.low_bit, 0)
                    high = min(8 * byte + 8 - field.low_bit, field.width)
                    with m.If(written & self.bus.strobes[byte]):
                        m.d.sync += value[low:high].eq(data[low:high])
            case Access.PULSE:
                m.d.sync += getattr(self, name).eq(ones)
            case Access.WRITE_1_CLEARS:
                value = getattr(self, name)
                kept = value & ~ones
                if field.hardware_clears:
                    kept = Mux(getattr(self, f"{name}_clear"), 0, kept)
                m.d.sync += value.eq(kept | getattr(self, f"{name}_set"))

    def _word(self, register: Register) -> Value:
        """What reading a register gives."""
        parts: list[Value] = []
        position = 0
        for field in register.fields:
            parts.append(Const(0, field.low_bit - position))
            match field.access:
                case Access.CONSTANT:
                    parts.append(Const(field.reset, field.width))
                case Access.PULSE:
                    parts.append(Const(0, field.width))
                case _:
                    parts.append(getattr(self, register.member(field)))
            position = field.high_bit + 1
        parts.append(Const(0, REGISTER_WIDTH - position))
        return Cat(parts)
