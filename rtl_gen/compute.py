"""Multipliers, adder trees and accumulators."""

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig
from gshw.pipeline import (
    MULTIPLY_LATENCY,
    TAG_LEAD,
    adder_tree_latency,
    drain_select_latency,
)
from rtl_gen.delay import delay
from rtl_gen.layouts import tag_layout


class MultiplierArray(wiring.Component):
    """``lanes * block * columns`` products of signed weights with signed or unsigned codes.

    Latency ``MULTIPLY_LATENCY``, and a cycle more from column to column, as weights go from one to
    the next. Throughput one product per multiplier and cycle.

    Members
    -------
    signed_input
        Whether activations are two's complement; constant while values are in flight.
    word
        Per lane: ``block * columns`` activations, column fastest.
    weight
        ``lane * block + channel``.
    product
        ``(lane * block + channel) * columns + column``, exact.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        n_weights = config.lanes * config.block
        self.product_width = config.weight_width + config.activation_width
        super().__init__(
            {
                "signed_input": In(1),
                "word": In(config.bank_width).array(config.lanes),
                "weight": In(signed(config.weight_width)).array(n_weights),
                "product": Out(signed(self.product_width)).array(n_weights * config.columns),
            }
        )

    @property
    def latency(self) -> int:
        return MULTIPLY_LATENCY

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        width = config.activation_width
        is_signed = delay(m, self.signed_input, 1, "is_signed")
        weights = [[delay(m, weight, 1, f"weight_{n}_0")] for n, weight in enumerate(self.weight)]
        for n, passed_on in enumerate(weights):
            for column in range(1, config.columns):
                passed_on.append(delay(m, passed_on[-1], 1, f"weight_{n}_{column}"))
        for lane in range(config.lanes):
            for channel in range(config.block):
                for column in range(config.columns):
                    element = channel * config.columns + column
                    code = self.word[lane].word_select(element, width)
                    code = delay(m, code, column, f"code_{lane}_{element}")
                    operand = Signal(
                        signed(width + 1), name=f"operand_{lane}_{element}", reset_less=True
                    )
                    weight = weights[lane * config.block + channel][column]
                    product = Signal(
                        signed(self.product_width),
                        name=f"product_{lane}_{element}",
                        reset_less=True,
                    )
                    index = lane * config.block * config.columns + element
                    # The sign is a synchronous reset of its register: no gate of its own.
                    m.d.sync += [operand.eq(code.as_signed()), product.eq(weight * operand)]
                    with m.If(~is_signed):
                        m.d.sync += operand[-1].eq(0)
                    m.d.comb += self.product[index].eq(product)
        return m


class AdderTree(wiring.Component):
    """Sum of ``n_inputs`` signed values, a register after every level.

    Latency ``adder_tree_latency(n_inputs)``, throughput one sum per cycle. The result wraps at
    ``output_width`` bits; the encoder guarantees that the final accumulator does not overflow.
    """

    def __init__(self, n_inputs: int, input_width: int, output_width: int) -> None:
        self._n_inputs = n_inputs
        self.variant = (n_inputs, input_width, output_width)
        self._output_width = output_width
        super().__init__(
            {
                "i": In(signed(input_width)).array(n_inputs),
                "o": Out(signed(output_width)),
            }
        )

    @property
    def latency(self) -> int:
        return adder_tree_latency(self._n_inputs)

    def elaborate(self, platform) -> Module:
        m = Module()
        values = list(self.i)
        level = 0
        while len(values) > 1:
            sums = []
            for index in range(0, len(values), 2):
                pair = values[index : index + 2]
                width = min(len(pair[0]) + 1, self._output_width)
                total = Signal(signed(width), name=f"sum_{level}_{index // 2}", reset_less=True)
                m.d.sync += total.eq(sum(pair[1:], start=pair[0]))
                sums.append(total)
            values = sums
            level += 1
        m.d.comb += self.o.eq(values[0])
        return m


class Accumulators(wiring.Component):
    """``rows * columns`` sums, and the finished sums of the bundle being drained.

    The last group of a bundle also captures the sums as finished ones, so the next bundle
    accumulates while this one drains. ``shift`` selects the next ``drain_rows`` rows. With
    ``max_pooling`` they can keep the largest of the groups' sums instead, at least 0.

    Latency: the sums of a tag are at ``i`` ``TAG_LEAD`` cycles after it; the first drained rows
    are selected from the cycle after that, and at ``o`` ``latency`` cycles after they are
    selected; both are a cycle later from column to column. Throughput: one group per cycle.

    Members
    -------
    tag
        ``first`` starts new sums, ``drain`` != 0 captures them.
    i
        ``row * columns + column``.
    maximum
        Keep the largest; only with ``max_pooling``, and constant while groups are in flight. Sums
        are then single codes.
    o
        ``drain_row * columns + column``: the rows to requantise.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        super().__init__(
            {
                "tag": In(tag_layout(config)),
                "i": In(signed(config.accumulator_width)).array(config.rows * config.columns),
                "shift": In(1),
                "o": Out(signed(config.accumulator_width)).array(
                    config.drain_rows * config.columns
                ),
            }
            | ({"maximum": In(1)} if config.max_pooling else {})
        )

    @property
    def latency(self) -> int:
        return drain_select_latency(self.config.rows // self.config.drain_rows)

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        n_slices = config.rows // config.drain_rows
        early = delay(m, self.tag, TAG_LEAD - 2, "tag", resets=True)
        # A new bundle clears the sums the cycle before its first group: synchronous resets, not
        # a multiplexer in front of every adder.
        columns = range(config.columns)
        add_next = Signal()
        capture_next = Signal()
        clear = [Signal(name=f"clear_{column}") for column in columns]
        add = [Signal(name=f"add_{column}") for column in columns]
        capture = [Signal(name=f"capture_{column}") for column in columns]
        shift = [self.shift]
        m.d.sync += [
            add_next.eq(early.valid),
            capture_next.eq(early.valid & (early.drain != 0)),
            clear[0].eq(early.valid & early.first),
            add[0].eq(add_next),
            capture[0].eq(capture_next),
        ]
        for column in columns[1:]:
            shift.append(delay(m, shift[-1], 1, f"shift_{column}", resets=True))
            m.d.sync += [
                clear[column].eq(clear[column - 1]),
                add[column].eq(add[column - 1]),
                capture[column].eq(capture[column - 1]),
            ]
        drained = []
        for n in range(config.rows * config.columns):
            row, column = divmod(n, config.columns)
            shape = signed(config.accumulator_width)
            accumulator = Signal(shape, name=f"accumulator_{row}_{column}", reset_less=True)
            total = Signal(shape, name=f"total_{row}_{column}")
            finished = Signal(shape, name=f"finished_{row}_{column}", reset_less=True)
            m.d.comb += total.eq(self._total(accumulator, self.i[n]))
            with m.If(clear[column]):
                m.d.sync += accumulator.eq(0)
            with m.Elif(add[column]):
                m.d.sync += accumulator.eq(total)
            with m.If(capture[column]):
                m.d.sync += finished.eq(total)
            drained.append(finished)

        # A ring for every output, as one for all would reach over the whole engine. What it
        # selects when no row is left does not matter.
        stride = len(self.o)
        for n in range(stride):
            skip = Signal(n_slices, init=-1, name=f"skip_{n}")
            with m.If(capture[n % config.columns]):
                m.d.sync += skip.eq(~1)
            with m.Elif(shift[n % config.columns]):
                m.d.sync += skip.eq(skip.rotate_left(1))
            rows = drained[n::stride]
            m.d.comb += self.o[n].eq(_selected(m, rows, skip, f"drained_{n}"))
        return m

    def _total(self, accumulator: Signal, value: Value) -> Value:
        """The sum, or the larger of two codes."""
        total = accumulator + value
        if not self.config.max_pooling:
            return total
        width = self.config.activation_width + 1
        old, new = accumulator[:width].as_signed(), value[:width].as_signed()
        return Mux(self.maximum, Mux(new > old, new, old), total)


def _selected(m: Module, values: list[Signal], skip: Signal, name: str) -> Signal:
    """The value whose bit of one-cold ``skip`` is clear.

    Synchronous resets of a register per value are the AND gates; ORs of four follow, a register
    behind each. Latency ``drain_select_latency(len(values))``.
    """
    if len(values) == 1:
        return values[0]
    gated = [delay(m, value, 1, f"{name}_{n}") for n, value in enumerate(values)]
    for n, value in enumerate(gated):
        with m.If(skip[n]):
            m.d.sync += value.eq(0)
    level = 0
    while len(gated) > 1:
        fours = (gated[n : n + 4] for n in range(0, len(gated), 4))
        level += 1
        gated = [
            delay(m, reduce(or_, four), 1, f"{name}_or_{level}_{n}") for n, four in enumerate(fours)
        ]
    return gated[0]
