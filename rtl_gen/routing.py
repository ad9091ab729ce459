"""Routing networks: bank words to lanes.

All have members ``i`` (per bank), ``o`` (per lane) and a control for the same cycle as ``i``.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.benes import stage_pairs
from gshw.pipeline import benes_latency
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

    Latency ``benes_latency(log2 n_lanes)``: a register after every stage, so that every bit of a
    stage is one LUT and its register. Throughput one permutation per cycle.

    Members
    -------
    switch
        One bit per switch; 1 exchanges its two words.
    """

    def __init__(self, n_lanes: int, width: int) -> None:
        self._width = width
        self.variant = (n_lanes, width)
        self._log2_lanes = n_lanes.bit_length() - 1
        self._pairs = stage_pairs(self._log2_lanes)
        super().__init__(
            {
                "i": In(width).array(n_lanes),
                "switch": In(sum(map(len, self._pairs))),
                "o": Out(width).array(n_lanes),
            }
        )

    @property
    def latency(self) -> int:
        return benes_latency(self._log2_lanes)

    def elaborate(self, platform) -> Module:
        m = Module()
        words = list(self.i)
        first_switch = 0
        for stage, pairs in enumerate(self._pairs):
            switches = self.switch[first_switch : first_switch + len(pairs)]
            control = delay(m, switches, stage, f"switch_{stage}")
            first_switch += len(pairs)
            routed = list(words)
            for index, (low, high) in enumerate(pairs):
                # Equal to two multiplexers; written with XOR so that simulators do not branch on
                # the switches, which no branch predictor can guess.
                swap = Signal(self._width, name=f"swap_{stage}_{index}")
                exchange = control[index].replicate(self._width)
                m.d.comb += swap.eq((words[low] ^ words[high]) & exchange)
                routed[low] = words[low] ^ swap
                routed[high] = words[high] ^ swap
            words = [delay(m, word, 1, f"stage_{stage}_{p}") for p, word in enumerate(routed)]
        m.d.comb += [o.eq(word) for o, word in zip(self.o, words, strict=True)]
        return m
