"""From finished sums to output words: drain control, requantisation, scatter."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import MULTIPLIER_WIDTH, SHIFT_WIDTH, EngineConfig
from gshw.pipeline import REQUANTISE_LATENCY, SCATTER_LATENCY
from rtl_gen.delay import delay
from rtl_gen.layouts import record_layout, tag_layout


class DrainControl(wiring.Component):
    """Takes one record per cycle for as many cycles as the captured bundle asks.

    Latency: the first record is taken the cycle after the tag with ``drain`` != 0. Throughput: one
    record per cycle; a capture in the last drain cycle continues without a gap.

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
        left = Signal(self.config.drain_width)
        m.d.comb += [
            self.active.eq(left != 0),
            self.record.eq(self.i.payload.row),
            self.shift.eq(self.active & self.i.payload.row.advance[0]),
            self.i.ready.eq(self.active),
            self.pass_end.eq(self.active & self.i.payload.last),
            self.missing.eq(self.active & ~self.i.valid),
        ]
        with m.If(self.tag.valid & (self.tag.drain != 0)):
            m.d.sync += left.eq(self.tag.drain)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        return m


class Requantiser(wiring.Component):
    """``clamp((acc * multiplier + 2**(shift - 1)) >> shift, low, high)`` with ``acc = i + bias``.

    Ties round towards +infinity. The product is made of two halves of the accumulator, the shift
    in a coarse and a fine step; ``(p + 2**(s - 1)) >> s`` is computed as
    ``((p >> (s - 1)) + 1) >> 1``.

    Latency ``REQUANTISE_LATENCY``, throughput one value per cycle.

    Members
    -------
    i, bias
        Signed; their sum fits ``accumulator_width`` bits.
    multiplier, shift
        Unsigned, shift from 1 to 47.
    low, high
        Clamp, constant while values are in flight.
    o
        The code, ``activation_width`` bits; two's complement where low is negative.
    """

    def __init__(self, accumulator_width: int, activation_width: int) -> None:
        self._accumulator_width = accumulator_width
        self._activation_width = activation_width
        self.variant = (accumulator_width, activation_width)
        super().__init__(
            {
                "i": In(signed(accumulator_width)),
                "bias": In(signed(accumulator_width)),
                "multiplier": In(MULTIPLIER_WIDTH),
                "shift": In(SHIFT_WIDTH),
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
        # The low part is unsigned, the high part keeps the sign and at least one bit.
        low_width = min(MULTIPLIER_WIDTH, self._accumulator_width - 1)
        high_width = self._accumulator_width - low_width
        product_width = self._accumulator_width + MULTIPLIER_WIDTH

        biased = Signal(signed(self._accumulator_width), reset_less=True)
        m.d.sync += biased.eq(self.i + self.bias)

        multiplier = delay(m, self.multiplier, 1, "multiplier")
        product_low = Signal(low_width + MULTIPLIER_WIDTH, reset_less=True)
        product_high = Signal(signed(high_width + MULTIPLIER_WIDTH), reset_less=True)
        m.d.sync += [
            product_low.eq(biased[:low_width] * multiplier),
            product_high.eq(biased[low_width:].as_signed() * multiplier),
        ]

        product = Signal(signed(product_width), reset_less=True)
        upper = Signal(signed(high_width + MULTIPLIER_WIDTH))
        m.d.comb += upper.eq(product_high + product_low[low_width:])
        m.d.sync += product.eq(Cat(product_low[:low_width], upper))

        shift_less_1 = Signal(SHIFT_WIDTH)
        m.d.comb += shift_less_1.eq(self.shift - 1)
        coarse_step = delay(m, shift_less_1, 3, "shift")
        coarse = Signal(signed(product_width), reset_less=True)
        m.d.sync += coarse.eq(product >> Cat(0, 0, 0, coarse_step[3:]))

        fine_step = delay(m, coarse_step[:3], 1, "fine_shift")
        fine = Signal(signed(product_width), reset_less=True)
        m.d.sync += fine.eq(coarse >> fine_step)

        # Two bits beyond a code are enough to clamp: saturate to them, then compare narrowly.
        rounded = Signal(signed(product_width))
        narrow = Signal(signed(self._activation_width + 2), reset_less=True)
        top = rounded[len(narrow) - 1 :]
        m.d.comb += rounded.eq((fine + 1) >> 1)
        m.d.sync += narrow.eq(rounded)
        with m.If(~rounded[-1] & top.any()):
            m.d.sync += narrow.eq((1 << (len(narrow) - 1)) - 1)
        with m.Elif(rounded[-1] & ~top.all()):
            m.d.sync += narrow.eq(-(1 << (len(narrow) - 1)))

        code = Signal(self._activation_width, reset_less=True)
        m.d.sync += code.eq(
            Mux(narrow < self.low, self.low, Mux(narrow > self.high, self.high, narrow))
        )
        m.d.comb += self.o.eq(code)
        return m


class ScatterWriter(wiring.Component):
    """Turns drained rows into bank writes: output row r goes to its channel block's bank.

    The bits of a row number are (from bit 0) channel in the word, bank, word offset. Rows of one
    cycle go to different banks or to different channels of one word, so an AND-OR per bank
    suffices.

    Latency ``SCATTER_LATENCY``, throughput ``drain_rows`` rows per cycle.

    Members
    -------
    valid, row, code
        Per drained row (``code``: ``drain_row * columns + column``).
    base
        Scratchpad address of the position's first output word.
    enable, address, data
        Per bank, as the scratchpad's write port.
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
                "base": In(config.address_width),
                "enable": Out(config.block).array(config.lanes),
                "address": Out(config.address_width).array(config.lanes),
                "data": Out(config.bank_width).array(config.lanes),
                "overflow": Out(1),
            }
        )

    @property
    def latency(self) -> int:
        return SCATTER_LATENCY

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        rows = range(config.drain_rows)
        channel, address, legal, payload = [], [], [], []
        for d in rows:
            row = self.row[d]
            select = Signal(config.block, name=f"channel_{d}")
            total = Signal(config.address_width + 1, name=f"total_{d}")
            fits = Signal(name=f"legal_{d}")
            codes = Cat(self.code[d * config.columns + column] for column in range(config.columns))
            place = row[: config.log2_block] if config.log2_block else 0
            m.d.comb += [
                select.eq(1 << place),
                total.eq(self.base + row[config.log2_block + config.log2_lanes :]),
                fits.eq(self.valid[d] & ~total[-1]),
            ]
            channel.append(select)
            address.append(total[: config.address_width])
            legal.append(fits)
            payload.append(Cat(Mux(select[c], codes, 0) for c in range(config.block)))
        for b in range(config.lanes):
            hits = []
            for d in rows:
                hit = Signal(name=f"hit_{b}_{d}")
                bank = self.row[d][config.log2_block :][: config.log2_lanes]
                m.d.comb += hit.eq(legal[d] & (bank == b))
                hits.append(hit)
            enable = Signal(config.block, name=f"bank_enable_{b}")
            bank_address = Signal(config.address_width, name=f"bank_address_{b}", reset_less=True)
            bank_data = Signal(config.bank_width, name=f"bank_data_{b}", reset_less=True)
            m.d.sync += [
                enable.eq(reduce(or_, (Mux(hits[d], channel[d], 0) for d in rows))),
                bank_address.eq(reduce(or_, (Mux(hits[d], address[d], 0) for d in rows))),
                bank_data.eq(reduce(or_, (Mux(hits[d], payload[d], 0) for d in rows))),
            ]
            m.d.comb += [
                self.enable[b].eq(enable),
                self.address[b].eq(bank_address),
                self.data[b].eq(bank_data),
            ]
        m.d.sync += self.overflow.eq(reduce(or_, (self.valid[d] & ~legal[d] for d in rows)))
        return m
