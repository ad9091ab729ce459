"""Routing networks: bank words to lanes.

All have members ``i`` (per bank), ``o`` (per lane) and a control for the same cycle as ``i``.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.benes import stage_bits, stage_pairs
from gshw.pipeline import BENES_STAGES_PER_REGISTER, benes_latency
from rtl_gen.delay import delay


class DirectRouting(wiring.Component):
    """Bank b feeds lane b. Latency 0, throughput one word per lane and cycle."""

    def __init__(self, n_lanes: int, width: int) -> None:
        self.variant = (n_lanes, width)
        super().__init__({"i": In(width).array(n_lanes), "o": Out(width).array(n_lanes)})

    @property
    def latency(self) -> int:
        return 0

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.comb += [o.eq(i) for i, o in zip(self.i, self.o, strict=True)]
        return m


class Crossbar(wiring.Component):
    """Any bank to any lane: one-hot decode, then AND-OR.

    Latency 2, throughput one word per lane and cycle.

    Members
    -------
    bank
        Per lane: the bank that feeds it.
    enable
        One bit per lane; a disabled lane gets 0.
    """

    def __init__(self, n_lanes: int, width: int) -> None:
        self._n_lanes = n_lanes
        self._width = width
        self.variant = (n_lanes, width)
        super().__init__(
            {
                "i": In(width).array(n_lanes),
                "bank": In(n_lanes.bit_length() - 1).array(n_lanes),
                "enable": In(n_lanes),
                "o": Out(width).array(n_lanes),
            }
        )

    @property
    def latency(self) -> int:
        return 2

    def elaborate(self, platform) -> Module:
        m = Module()
        lanes = range(self._n_lanes)
        words = [delay(m, self.i[b], 1, f"word_{b}") for b in lanes]
        for lane in lanes:
            select = Signal(self._n_lanes, name=f"select_{lane}", reset_less=True)
            for b in lanes:
                m.d.sync += select[b].eq(self.enable[lane] & (self.bank[lane] == b))
            picked = reduce(or_, (Mux(select[b], words[b], 0) for b in lanes))
            result = Signal(self._width, name=f"lane_{lane}", reset_less=True)
            m.d.sync += result.eq(picked)
            m.d.comb += self.o[lane].eq(result)
        return m


class BenesNetwork(wiring.Component):
    """Any permutation of the banks, by switches set as :func:`gshw.benes.switch_settings` says.

    Latency ``benes_latency(log2 n_lanes)``: a register after every second stage. Throughput one
    permutation per cycle.

    Members
    -------
    switch
        One bit per switch; 1 exchanges its two words.
    """

    def __init__(self, n_lanes: int, width: int) -> None:
        self._n_lanes = n_lanes
        self._log2_lanes = n_lanes.bit_length() - 1
        self._width = width
        self.variant = (n_lanes, width)
        super().__init__(
            {
                "i": In(width).array(n_lanes),
                "switch": In((2 * self._log2_lanes - 1) * (n_lanes // 2)),
                "o": Out(width).array(n_lanes),
            }
        )

    @property
    def latency(self) -> int:
        return benes_latency(self._log2_lanes)

    def elaborate(self, platform) -> Module:
        m = Module()
        n_lanes, n_pairs = self._n_lanes, self._n_lanes // 2
        words = list(self.i)
        bits = stage_bits(self._log2_lanes)
        for stage, bit in enumerate(bits):
            control = delay(
                m,
                self.switch[stage * n_pairs : (stage + 1) * n_pairs],
                stage // BENES_STAGES_PER_REGISTER,
                f"switch_{stage}",
            )
            registered = stage % BENES_STAGES_PER_REGISTER == BENES_STAGES_PER_REGISTER - 1
            domain = m.d.sync if registered or stage == len(bits) - 1 else m.d.comb
            following = [
                Signal(self._width, name=f"stage_{stage}_{p}", reset_less=True)
                for p in range(n_lanes)
            ]
            for pair, (low, high) in enumerate(stage_pairs(n_lanes, bit)):
                # Equal to two multiplexers; written with XOR so that simulators do not branch on
                # the switches, which no branch predictor can guess.
                swap = Signal(self._width, name=f"swap_{stage}_{pair}")
                exchange = control[pair].replicate(self._width)
                m.d.comb += swap.eq((words[low] ^ words[high]) & exchange)
                domain += [
                    following[low].eq(words[low] ^ swap),
                    following[high].eq(words[high] ^ swap),
                ]
            words = following
        m.d.comb += [o.eq(word) for o, word in zip(self.o, words, strict=True)]
        return m
