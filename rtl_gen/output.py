"""From finished sums to output words: drain control, requantisation, scatter."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import MULTIPLIER_WIDTH, SHIFT_WIDTH, EngineConfig
from gshw.pipeline import REQUANTISE_LATENCY, SCATTER_LEAD, scatter_latency
from rtl_gen.delay import delay
from rtl_gen.layouts import record_layout, tag_layout

SHIFT_STEPS = ((4, 3), (2, 4), (0, 4))
"""Lowest bit of every step of a shift by 0 to 46, and its choices: multiples of 16, 4 and 1."""


class DrainControl(wiring.Component):
    """Takes one record per cycle for as many cycles as the captured bundle asks.

    Latency: the first record is taken the cycle after the tag with ``drain`` != 0. Throughput: one
    record per cycle; a capture in the last drain cycle, not before, continues without a gap.

    Members
    -------
    tag
        As at the accumulators.
    i
        Records in drain order; ``last`` ends a pass.
    active, record
        A record is being drained.
    shift
        The accumulators' next rows follow.
    pass_end
        The last record of a pass is being drained.
    missing
        A bundle drains, but the command has no records.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        super().__init__(
            {
                "tag": In(tag_layout(config)),
                "i": In(
                    stream.Signature(data.StructLayout({"row": record_layout(config), "last": 1}))
                ),
                "active": Out(1),
                "record": Out(record_layout(config)),
                "shift": Out(1),
                "pass_end": Out(1),
                "missing": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # Records to come, less 1: the sign bit says that there are none. A capture comes at 0 or
        # below, so the OR is a choice.
        left = Signal(signed(self.config.drain_width + 1), init=-1)
        captured = self.tag.drain & self.tag.valid.replicate(self.config.drain_width)
        to_come = left & self.active.replicate(len(left))
        m.d.sync += left.eq((captured | to_come).as_signed() - 1)
        m.d.comb += [
            self.active.eq(~left[-1]),
            self.record.eq(self.i.payload.row),
            self.shift.eq(self.active & self.i.payload.row.advance[0]),
            self.i.ready.eq(self.active),
            self.pass_end.eq(self.active & self.i.payload.last),
            self.missing.eq(self.active & ~self.i.valid),
        ]
        return m


class Requantiser(wiring.Component):
    """``clamp((acc * multiplier + 2**(shift - 1)) >> shift, low, high)`` with ``acc = i + bias``.

    Ties round towards +infinity. The product is made of two halves of the accumulator.
    ``(p + 2**(s - 1)) >> s`` is computed as ``((p >> (s - 1)) + 1) >> 1``, and of ``p >> (s - 1)``
    only the lowest ``activation_width + 2`` bits and whether the rest fits.

    Latency ``REQUANTISE_LATENCY``, throughput one value per cycle.

    Parameters
    ----------
    accumulator_width, activation_width
        Of the engine.
    follows
        Takes the same parameters as another one, a cycle later: ``select`` instead of ``shift``.

    Members
    -------
    i, bias
        Signed; their sum fits ``accumulator_width`` bits.
    multiplier, shift
        Unsigned, shift from 1 to 47.
    select, passed_on
        The shift, decoded: what one unit passes on, the one that follows it selects by.
    low, high
        Clamp, constant while values are in flight.
    o
        The code, ``activation_width`` bits; two's complement where low is negative.
    """

    def __init__(
        self, accumulator_width: int, activation_width: int, *, follows: bool = False
    ) -> None:
        self._accumulator_width = accumulator_width
        self._follows = follows
        self._decoded: list[Signal] = []
        self._window_width = activation_width + 2
        self._activation_width = activation_width
        self.variant = (accumulator_width, activation_width, follows)
        n_decoded = self._n_decoded()
        super().__init__(
            {
                "i": In(signed(accumulator_width)),
                "bias": In(signed(accumulator_width)),
                "multiplier": In(MULTIPLIER_WIDTH),
                **({"select": In(n_decoded)} if follows else {"shift": In(SHIFT_WIDTH)}),
                "passed_on": Out(n_decoded),
                "low": In(signed(activation_width + 1)),
                "high": In(signed(activation_width + 1)),
                "o": Out(activation_width),
            }
        )

    @property
    def latency(self) -> int:
        return REQUANTISE_LATENCY

    def elaborate(self, platform) -> Module:
        m = Module()
        product = self._product(m)
        negative = delay(m, product[-1], 8, "negative")

        # By a multiple of 16, of 4, of 1: each keeps no more bits than the rest can bring down.
        shift_less_1 = Signal(SHIFT_WIDTH, reset_less=True)
        if not self._follows:
            m.d.sync += shift_less_1.eq(self.shift - 1)
        value, overflow = product, Const(0)
        for index, (low_bit, n_choices) in enumerate(SHIFT_STEPS):
            step = 1 << low_bit
            stop = SHIFT_STEPS[index - 1][0] if index else SHIFT_WIDTH
            n_steps = delay(m, shift_less_1[low_bit:stop], 2 * index, f"shift_by_{step}")
            width = self._window_width + step - 1
            value, lost = self._shifted(m, value, step, n_choices, n_steps, width)
            overflow = delay(m, overflow, 1, f"overflow_before_{step}")
            overflow = delay(m, overflow | lost, 1, f"overflow_{step}")

        # Beside the rounding, whether its result is beyond a clamp: (value + 1) >> 1 > high iff
        # value > 2 * high, and where value < 2 * low the result is low or below it.
        above = self._greater(m, value, self.high << 1, "above")
        below = self._greater(m, self.low << 1, value, "below")
        within_high = Signal(reset_less=True)
        within_low = Signal(reset_less=True)
        m.d.sync += [within_high.eq(~above), within_low.eq(~below)]
        overflow = delay(m, overflow, 2, "overflow")
        not_above = Mux(overflow, negative, within_high)
        not_below = Mux(overflow, ~negative, within_low)

        # One of the three, again by synchronous resets.
        rounded = Signal(self._activation_width, reset_less=True)
        m.d.sync += rounded.eq((value + 1) >> 1)
        rounded = delay(m, delay(m, rounded, 1, "rounded"), 1, "inside")
        high = delay(m, self.high[: self._activation_width], 1, "high")
        low = delay(m, self.low[: self._activation_width], 1, "low")
        with m.If(~(not_above & not_below)):
            m.d.sync += rounded.eq(0)
        with m.If(not_above):
            m.d.sync += high.eq(0)
        with m.If(not_below):
            m.d.sync += low.eq(0)
        m.d.comb += [
            self.o.eq(delay(m, rounded | high | low, 1, "code")),
            self.passed_on.eq(Cat(self._decoded)),
        ]
        return m

    def _n_decoded(self) -> int:
        """Bits that the shift is decoded to: choices, and where each of them loses bits."""
        n_bits, value_width = 0, self._accumulator_width + MULTIPLIER_WIDTH
        for low_bit, n_choices in SHIFT_STEPS:
            width = self._window_width + (1 << low_bit) - 1
            n_bits += n_choices + len(range(width - 1, value_width - 1, 1 << low_bit))
            value_width = width
        return n_bits

    def _decode(self, m: Module, condition: Value, name: str) -> Signal:
        """A bit of the decoded shift, in a register: made here, or taken from whom we follow."""
        bit = Signal(name=name, reset_less=True)
        m.d.sync += bit.eq(self.select[len(self._decoded)] if self._follows else condition)
        self._decoded.append(bit)
        return bit

    def _greater(self, m: Module, a: Value, b: Value, name: str) -> Value:
        """Whether ``a > b``, both two's complement of the window's width, after one cycle.

        Compared by pairs of bits, registered, which are then joined: less area than carry chains.
        """
        n_pairs = (self._window_width + 1) // 2
        greater = Signal(n_pairs, name=f"{name}_greater", reset_less=True)
        equal = Signal(n_pairs, name=f"{name}_equal", reset_less=True)
        result = Const(0)
        for n in range(n_pairs):
            pairs = (x[2 * n : 2 * n + 2] for x in (a, b))
            x, y = (pair.as_signed() if n == n_pairs - 1 else pair for pair in pairs)
            m.d.sync += [greater[n].eq(x > y), equal[n].eq(x == y)]
            result = greater[n] | (equal[n] & result)
        return result

    def _product(self, m: Module) -> Signal:
        """``(i + bias) * multiplier`` after three cycles."""
        # The low part is unsigned, the high part keeps the sign and at least one bit.
        low_width = min(MULTIPLIER_WIDTH, self._accumulator_width - 1)
        high_width = self._accumulator_width - low_width
        biased = Signal(signed(self._accumulator_width), reset_less=True)
        m.d.sync += biased.eq(self.i + self.bias)
        multiplier = delay(m, self.multiplier, 1, "multiplier")
        product_low = Signal(low_width + MULTIPLIER_WIDTH, reset_less=True)
        product_high = Signal(signed(high_width + MULTIPLIER_WIDTH), reset_less=True)
        m.d.sync += [
            product_low.eq(biased[:low_width] * multiplier),
            product_high.eq(biased[low_width:].as_signed() * multiplier),
        ]
        product = Signal(signed(self._accumulator_width + MULTIPLIER_WIDTH), reset_less=True)
        upper = Signal(signed(high_width + MULTIPLIER_WIDTH))
        m.d.comb += upper.eq(product_high + product_low[low_width:])
        m.d.sync += product.eq(Cat(product_low[:low_width], upper))
        return product

    def _shifted(
        self, m: Module, value: Value, step: int, n_choices: int, n_steps: Value, width: int
    ) -> tuple[Value, Value]:
        """``value >> step * n_steps``, and whether ``width`` bits lost some of it, a cycle earlier.

        ``value`` follows ``n_steps`` by two cycles. Latency 2. Every choice has a register, which a
        synchronous reset clears unless it is the one; then they are ORed.
        """
        choices, lost = [], []
        for n in range(n_choices):
            bits = value[min(step * n, len(value) - 1) :][:width]
            choice = Signal(width, name=f"by_{step}_{n}", reset_less=True)
            m.d.sync += choice.eq(Cat(bits, bits[-1].replicate(width - len(bits))))
            skipped = self._decode(m, n_steps != n, f"not_by_{step}_{n}")
            with m.If(delay(m, skipped, 1, f"not_by_{step}_{n}")):
                m.d.sync += choice.eq(0)
            choices.append(choice)
        # Bits that a shift by n steps leaves above are a step each, from step n on.
        for n, low in enumerate(range(width - 1, len(value) - 1, step)):
            reaches_not = self._decode(m, n_steps <= n, f"ends_below_{step}_{n}")
            reaches_not = delay(m, reaches_not, 2, f"ends_below_{step}_{n}")
            differ = delay(m, _differences(value[low : low + step + 1]), 1, f"differ_{step}_{n}")
            lost.append(reaches_not & differ.any())
        return delay(m, reduce(or_, choices), 1, f"by_{step}"), reduce(or_, lost, Const(0))


def _differences(bits) -> Value:
    """Whether the bits differ, for every four of them; the fours overlap by one."""
    fours = (bits[n : n + 4] for n in range(0, max(1, len(bits) - 1), 3))
    return Cat((four[1:] ^ four[:-1]).any() for four in fours)


class ScatterWriter(wiring.Component):
    """Turns drained rows into bank writes: output row r goes to its channel block's bank.

    The bits of a row number are (from bit 0) channel in the word, bank, word offset. Rows of one
    cycle go to different banks or to different channels of one word, so multiplexers suffice.

    Latency: writes come ``latency`` cycles after the codes, which are due ``SCATTER_LEAD`` cycles
    after their ``valid``, ``row`` and ``base``. Throughput: ``drain_rows`` rows per cycle.

    Members
    -------
    valid, row, code
        Per drained row (``code``: ``drain_row * columns + column``).
    base
        Output buffer address of the position's first word.
    enable, address, data
        Per bank, as the output buffer's write port.
    overflow
        An address left the bank (one cycle, with the write, which is suppressed).
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(config.drain_rows),
                "row": In(config.row_width).array(config.drain_rows),
                "code": In(config.activation_width).array(config.drain_rows * config.columns),
                "base": In(config.output_address_width),
                "enable": Out(config.block).array(config.lanes),
                "address": Out(config.output_address_width).array(config.lanes),
                "data": Out(config.bank_width).array(config.lanes),
                "overflow": Out(1),
            }
        )

    @property
    def latency(self) -> int:
        return scatter_latency(self.config.drain_rows)

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        rows = range(config.drain_rows)
        place_width = config.log2_block + config.log2_lanes
        low_width = place_width // 2

        # A row's place, channel and bank, is decoded in two halves: the upper one knows whether
        # the row is written at all.
        addresses, upper, lower, lost = [], [], [], []
        for d in rows:
            total = Signal(config.output_address_width + 1, name=f"total_{d}", reset_less=True)
            row, valid = self.row[d], self.valid[d]
            m.d.sync += total.eq(self.base + row[place_width:])
            decoded = _one_hot(m, row[low_width:place_width], valid, f"upper_{d}")
            legal = Signal(len(decoded), name=f"legal_{d}")
            lost.append(delay(m, valid, 1, f"valid_{d}", resets=True) & total[-1])
            m.d.sync += legal.eq(Mux(total[-1], 0, decoded))
            upper.append(legal)
            decoded = _one_hot(m, row[:low_width], 1, f"lower_{d}")
            lower.append(delay(m, decoded, 1, f"lower_{d}_late"))
            address = total[: config.output_address_width]
            addresses.append(delay(m, address, SCATTER_LEAD - 1, f"address_{d}"))
        overflow = delay(m, reduce(or_, lost), self.latency + 1, "overflow", resets=True)
        m.d.sync += self.overflow.eq(overflow)

        def hit(d: int, place: int):
            return upper[d][place >> low_width] & lower[d][place & ((1 << low_width) - 1)]

        codes = [Cat(self.code[d * config.columns :][: config.columns]) for d in rows]
        for b in range(config.lanes):
            places = range(b * config.block, (b + 1) * config.block)
            words, enables = [], []
            for channel, place in enumerate(places):
                hits = [hit(d, place) for d in rows]
                words.append(_chosen(m, hits, codes, f"code_{b}_{channel}"))
                enables.append(reduce(or_, hits))
            bank_hits = [reduce(or_, (hit(d, place) for place in places)) for d in rows]
            enable = delay(m, Cat(enables), self.latency + 1, f"enable_{b}", resets=True)
            m.d.comb += [
                self.enable[b].eq(enable),
                self.address[b].eq(_chosen(m, bank_hits, addresses, f"address_{b}")),
                self.data[b].eq(Cat(words)),
            ]
        return m


def _one_hot(m: Module, number, enable, name: str) -> Signal:
    """Registered decode of ``number``; all zero unless ``enable``."""
    decoded = Signal(1 << len(number), name=name)
    for n in range(len(decoded)):
        m.d.sync += decoded[n].eq(enable & (number == n))
    return decoded


def _chosen(m: Module, hits: list, values: list, name: str):
    """The value whose bit of ``hits`` was set a cycle ago; any of them where none was.

    Multiplexers of two with a register behind each: latency ``scatter_latency(len(values))``.
    """
    if len(values) == 1:
        return delay(m, values[0], 1, f"{name}_0")
    level = 0
    while len(values) > 1:
        picked = []
        for n in range(0, len(values), 2):
            stem = f"{name}_{level}_{n // 2}"
            select = delay(m, hits[n + 1], 1 + level, f"{stem}_select")
            picked.append(delay(m, Mux(select, values[n + 1], values[n]), 1, stem))
        values = picked
        hits = [a | b for a, b in zip(hits[::2], hits[1::2], strict=True)]
        level += 1
    return values[0]
