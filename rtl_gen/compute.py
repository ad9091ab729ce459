"""Multipliers, adder trees and accumulators."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig
from gshw.pipeline import MULTIPLY_LATENCY, adder_tree_latency
from rtl_gen.layouts import tag_layout


class MultiplierArray(wiring.Component):
    """``lanes * block * columns`` products of signed weights with signed or unsigned codes.

    Latency ``MULTIPLY_LATENCY``, throughput one product per multiplier and cycle.

    Members
    -------
    signed_input
        Whether activations are two's complement.
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
        for lane in range(config.lanes):
            for channel in range(config.block):
                for column in range(config.columns):
                    element = channel * config.columns + column
                    code = self.word[lane].word_select(element, width)
                    operand = Signal(signed(width + 1), name=f"operand_{lane}_{element}")
                    weight = self.weight[lane * config.block + channel]
                    product = Signal(
                        signed(self.product_width),
                        name=f"product_{lane}_{element}",
                        reset_less=True,
                    )
                    index = lane * config.block * config.columns + element
                    m.d.comb += [
                        operand.eq(Cat(code, code[-1] & self.signed_input).as_signed()),
                        self.product[index].eq(product),
                    ]
                    m.d.sync += product.eq(weight * operand)
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

    The last group of a bundle moves the sums to the drain registers in the same cycle, so the next
    bundle accumulates while this one drains. ``shift`` brings the next ``drain_rows`` rows to the
    output.

    Latency: 1 from ``i`` to the sum, which is the output of the first drained rows after the last
    group. Throughput: one group per cycle.

    Members
    -------
    tag
        Framing of the sums at ``i``: ``first`` starts new sums, ``drain`` != 0 captures them.
    i
        ``row * columns + column``.
    o
        ``drain_row * columns + column``: the rows to requantise now.
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
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        shape = signed(config.accumulator_width)
        n_sums = config.rows * config.columns
        stride = config.drain_rows * config.columns
        drained = [Signal(shape, name=f"drained_{n}", reset_less=True) for n in range(n_sums)]
        capture = Signal()
        m.d.comb += capture.eq(self.tag.valid & (self.tag.drain != 0))
        for n in range(n_sums):
            accumulator = Signal(shape, name=f"accumulator_{n}", reset_less=True)
            total = Signal(shape, name=f"total_{n}")
            m.d.comb += total.eq(Mux(self.tag.first, 0, accumulator) + self.i[n])
            with m.If(self.tag.valid):
                m.d.sync += accumulator.eq(total)
            with m.If(capture):
                m.d.sync += drained[n].eq(total)
            if n + stride < n_sums:
                with m.Elif(self.shift):
                    m.d.sync += drained[n].eq(drained[n + stride])
        m.d.comb += [self.o[n].eq(drained[n]) for n in range(stride)]
        return m
