"""Which error came first, and where."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.registers import PROGRAM_ERRORS

CODE_WIDTH = len(PROGRAM_ERRORS).bit_length()


class ErrorLog(wiring.Component):
    """Sticky error flags, and what is known about the first one.

    Latency: an event in cycle t shows in t + 2. Of several in one cycle the lowest code counts.

    Members
    -------
    event_*
        One per name of :data:`gshw.registers.PROGRAM_ERRORS`, levels or pulses.
    fetch_index, load_index, compute_index, store_index
        Instruction that each unit has in hand.
    read_of_load
        The read of a bus or range error is one of the load unit, not of fetch.
    tokens_of, standing
        Whose tokens are too many, and who stands still; one bit per unit: load, compute, store.
        The first of them is named; nobody who stands still means fetch.
    read_address, write_address
        Of bus and range errors, in the cycle of the event.
    flags
        Bit i is the i-th name.
    any
        A flag is set.
    code, index, address
        Of the first error: bit number plus 1, instruction, burst (0 for other errors).
    """

    def __init__(self, address_width: int) -> None:
        self.variant = address_width
        super().__init__(
            {f"event_{name}": In(1) for name in PROGRAM_ERRORS}
            | {f"{unit}_index": In(16) for unit in ("fetch", "load", "compute", "store")}
            | {
                "read_of_load": In(1),
                "tokens_of": In(3),
                "standing": In(3),
                "read_address": In(address_width),
                "write_address": In(address_width),
                "flags": Out(len(PROGRAM_ERRORS)),
                "any": Out(1),
                "code": Out(CODE_WIDTH),
                "index": Out(16),
                "address": Out(address_width),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        events = {name: getattr(self, f"event_{name}") for name in PROGRAM_ERRORS}

        def one_of(*names: str):
            return reduce(or_, (events[name] for name in names))

        is_read = one_of("read_bus", "read_range")
        is_write = one_of("write_bus", "write_range")
        unmoved = one_of("deadlock", "watchdog")
        of_load, of_compute, of_store = (
            own | (events["tokens"] & given) | (unmoved & standing)
            for own, given, standing in zip(
                (
                    events["load"] | (is_read & self.read_of_load),
                    one_of("command", "address"),
                    events["store"] | is_write,
                ),
                self.tokens_of,
                self.standing,
                strict=True,
            )
        )
        seen = Signal(len(events))
        code = Signal(CODE_WIDTH)
        m.d.comb += seen.eq(Cat(events.values()))
        for number in reversed(range(len(events))):
            with m.If(seen[number]):
                m.d.comb += code.eq(number + 1)

        now = Signal(len(events))
        m.d.sync += [now.eq(seen), self.flags.eq(self.flags | now)]
        now_any = Signal()
        m.d.sync += now_any.eq(seen.any())
        with m.If(now_any):
            m.d.sync += self.any.eq(1)
        # What belongs to the first event is caught with it: counters behind it move on.
        first = Signal()
        m.d.comb += first.eq(~now_any & ~self.any)
        with m.If(first & seen.any()):
            m.d.sync += [
                self.code.eq(code),
                self.index.eq(
                    Mux(
                        of_load,
                        self.load_index,
                        Mux(
                            of_compute,
                            self.compute_index,
                            Mux(of_store, self.store_index, self.fetch_index),
                        ),
                    )
                ),
                self.address.eq(
                    Mux(is_read, self.read_address, Mux(is_write, self.write_address, 0))
                ),
            ]
        return m
