"""Counters that live in a memory: many of them for the area of a few."""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory, MemoryData
from amaranth.lib.wiring import In, Out

from gshw.registers import PROGRAM_COUNTERS, REGISTER_WIDTH, WIDE_COUNTERS


class CounterRead(wiring.Signature):
    """Reads one counter register, as the side that asks sees it.

    ``request`` is high for one cycle; ``slot`` (the number of the register among those of the
    counters) holds until ``valid``, which comes once, with ``data``.
    """

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        super().__init__(
            {
                "request": Out(1),
                "slot": Out(range(n_slots)),
                "valid": In(1),
                "data": In(REGISTER_WIDTH),
            }
        )


def _add_one_bit(number: Value, bit: Value) -> Value:
    """Sum without a carry chain, which costs more than it saves in so few bits."""
    carry = bit
    bits = []
    for digit in number:
        bits.append(digit ^ carry)
        carry = digit & carry
    return Cat(bits)


class CounterBank(wiring.Component):
    """The counters of a program: wide ones first, two registers each, then narrow ones.

    Every cycle one slot is served: what its events added up to since its last turn goes onto the
    32 bits in the memory. So a read is exact, but it waits for its turn: at most ``n_slots + 2``
    cycles. The halves of a wide counter are read one after the other.

    Parameters
    ----------
    data_bytes
        Bytes of a beat.
    names
        Which counters there are, in the order of the registers.

    Members
    -------
    event_*
        Counts this cycle. Those of ``bytes_*`` count ``data_bytes`` each.
    clear
        Every counter becomes 0; an event in the same cycle is lost.
    read
        See :class:`CounterRead`.
    """

    def __init__(
        self, data_bytes: int, names: Sequence[str] = (*WIDE_COUNTERS, *PROGRAM_COUNTERS)
    ) -> None:
        self.data_bytes = data_bytes
        self.names = tuple(names)
        self.variant = (data_bytes, self.names)
        self.n_slots = sum(2 if name in WIDE_COUNTERS else 1 for name in self.names)
        self.contents = MemoryData(shape=REGISTER_WIDTH, depth=self.n_slots, init=[])
        super().__init__(
            {f"event_{name}": In(1) for name in names}
            | {"clear": In(1), "read": In(CounterRead(self.n_slots))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        n_slots = self.n_slots
        sum_width = n_slots.bit_length()
        low_slots, high_slots = {}, []
        first_free = 0
        for name in self.names:
            low_slots[name] = first_free
            if name in WIDE_COUNTERS:
                high_slots.append(first_free + 1)
            first_free += 2 if name in WIDE_COUNTERS else 1

        # --- whose turn it is --------------------------------------------------------------
        turn = Signal(n_slots, init=1)
        slot = Signal(range(n_slots))
        fresh_left = Signal(range(n_slots + 1), init=n_slots)
        m.d.sync += [
            turn.eq(turn.rotate_left(1)),
            slot.eq(Mux(turn[-1], 0, slot + 1)),
        ]
        with m.If(self.clear):
            m.d.sync += fresh_left.eq(n_slots)
        with m.Elif(fresh_left != 0):
            m.d.sync += fresh_left.eq(fresh_left - 1)

        # --- events since the last turn ----------------------------------------------------
        shift = self.data_bytes.bit_length() - 1
        amounts, byte_amounts = [], []
        for name, low_slot in low_slots.items():
            event = getattr(self, f"event_{name}")
            recent = Signal(sum_width, name=f"recent_{name}")
            m.d.sync += recent.eq(
                _add_one_bit(recent & ~turn[low_slot].replicate(sum_width), event)
            )
            with m.If(self.clear):
                m.d.sync += recent.eq(0)
            mine = recent & turn[low_slot].replicate(sum_width)
            (byte_amounts if name.startswith("bytes_") else amounts).append(mine)
        amount = Signal(sum_width + shift, reset_less=True)
        whole = reduce(or_, amounts, Const(0, sum_width))
        in_bytes = reduce(or_, byte_amounts, Const(0, sum_width))
        m.d.sync += amount.eq(whole | Cat(Const(0, shift), in_bytes))

        # --- add ---------------------------------------------------------------------------
        m.submodules.memory = memory = Memory(self.contents)
        load = memory.read_port()
        save = memory.write_port()
        m.d.comb += load.addr.eq(slot)
        high = Signal()
        fresh = Signal()
        add_slot = Signal.like(slot, reset_less=True)
        total = Signal(REGISTER_WIDTH + 1, reset_less=True)
        m.d.sync += [
            fresh.eq(fresh_left != 0),
            high.eq(reduce(or_, (turn[slot_number] for slot_number in high_slots))),
            add_slot.eq(slot),
            total.eq(
                Mux(fresh, 0, load.data) + (amount | (total[-1] & high & ~fresh)),
            ),
        ]

        # --- put back, read ----------------------------------------------------------------
        save_slot = Signal.like(slot, reset_less=True)
        saving = Signal(2)
        m.d.sync += [save_slot.eq(add_slot), saving.eq(Cat(1, saving[0]))]
        m.d.comb += [
            save.addr.eq(save_slot),
            save.data.eq(total),
            save.en.eq(saving[1]),
        ]
        asked = Signal()
        m.d.comb += [
            self.read.valid.eq(asked & saving[1] & (save_slot == self.read.slot)),
            self.read.data.eq(total),
        ]
        with m.If(self.read.request):
            m.d.sync += asked.eq(1)
        with m.Elif(self.read.valid):
            m.d.sync += asked.eq(0)
        return m
