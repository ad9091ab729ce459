"""Latencies of the engine's pipeline, in cycles: one source for the RTL and the cycle law.

Ours. The datapath after the issue stage never stalls, so each figure is a constant of the
config. ``docs/architecture.md`` draws the stages.
"""

from dataclasses import dataclass

from gshw.config import EngineConfig, Gather, Routing

FETCH_LATENCY = 3
"""From the cycle after an accepted command to the first group at issue.

First address, buffer read, buffer output register.
"""
FEW_MACS = 8
"""Engines of no more lie close together and do without registers for the way."""
BANK_LATENCY = 2
"""Memory read, memory output register."""
MULTIPLY_LATENCY = 2
"""Operands with their signs, product."""
TAG_LEAD = 2
"""Cycles by which a group's framing is at the accumulators before its sums."""
REQUANTISE_LATENCY = 13
"""Bias, partial products, product, three steps of shift (6), round, compare, clamp (2)."""
TABLE_LATENCY = 3
"""Table read, its output register, choice of the entry or of the code itself."""
SCATTER_LEAD = 3
"""Cycles by which a row's number is at the scatter unit before its codes."""


def benes_latency(log2_lanes: int) -> int:
    """Stages of a Benes network, one register each."""
    return 2 * log2_lanes - 1


def adder_tree_latency(n_inputs: int) -> int:
    """Levels of a binary adder tree, one register each; a single input passes through."""
    return (n_inputs - 1).bit_length()


def drain_select_latency(n_slices: int) -> int:
    """Gate and ORs of four that pick one of ``n_slices`` sets of finished rows, a register each.

    A single set passes through.
    """
    n_values, n_levels = n_slices, int(n_slices > 1)
    while n_values > 1:
        n_values = -(-n_values // 4)
        n_levels += 1
    return n_levels


def scatter_latency(drain_rows: int) -> int:
    """Multiplexers of two from codes to a bank's word, one register each; at least one."""
    return max(1, (drain_rows - 1).bit_length())


@dataclass(frozen=True)
class Pipeline:
    """Stage latencies of one engine."""

    config: EngineConfig

    @property
    def read_registers(self) -> int:
        """Registers behind the memories of a group's parts: the output's, and one for the way."""
        return 1 if self.config.macs_per_cycle <= FEW_MACS else 2

    @property
    def offset_latency(self) -> int:
        """Memory read and its registers: from the issue of a scheduled group to its offsets."""
        return 1 + self.read_registers

    @property
    def address(self) -> int:
        """Base plus offset, after the offsets were read, or selected by the arbiter in a cycle."""
        return 1 + (1 if self.config.gather is Gather.ARBITRATED else self.offset_latency)

    @property
    def routing(self) -> int:
        """Banks to lanes: none, decode and AND-OR, or the permutation network."""
        match self.config.routing:
            case Routing.DIRECT:
                return 0
            case Routing.CROSSBAR:
                return 2
            case Routing.BENES:
                return benes_latency(self.config.log2_lanes)

    @property
    def adder_tree(self) -> int:
        return adder_tree_latency(self.config.lanes_per_row * self.config.block)

    @property
    def route_delay(self) -> int:
        """Cycles from issue to the routing network's input."""
        return self.address + BANK_LATENCY

    @property
    def weight_delay(self) -> int:
        """Cycles from issue to the multipliers' input."""
        return self.route_delay + self.routing

    @property
    def accumulate(self) -> int:
        """Cycles from issue to the cycle in which the group's sum is added."""
        return self.weight_delay + MULTIPLY_LATENCY + self.adder_tree

    @property
    def drain_select(self) -> int:
        """Cycles from a drain slot to its sums at the requantisers."""
        return drain_select_latency(self.config.rows // self.config.drain_rows)

    @property
    def drain(self) -> int:
        """Cycles from a drain slot to the end of the write of its rows, the last column's too."""
        columns = self.config.columns - 1
        scatter = scatter_latency(self.config.drain_rows)
        table = TABLE_LATENCY if self.config.activation_tables else 0
        return self.drain_select + columns + REQUANTISE_LATENCY + table + scatter
