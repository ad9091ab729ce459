"""Latencies of the engine's pipeline, in cycles: one source for the RTL and the cycle law.

Ours. The datapath after the issue stage never stalls, so each figure is a constant of the
config. ``docs/architecture.md`` draws the stages.
"""

from dataclasses import dataclass

from gshw.config import EngineConfig, Gather, Routing

BENES_STAGES_PER_REGISTER = 2
FETCH_LATENCY = 2
"""Buffer read, buffer output register: from an accepted command to the first group at issue."""
BANK_LATENCY = 2
"""Memory read, memory output register."""
MULTIPLY_LATENCY = 1
REQUANTISE_LATENCY = 7
"""Bias, partial products, product, coarse shift, fine shift, round and saturate, clamp."""
SCATTER_LATENCY = 1


def benes_latency(log2_lanes: int) -> int:
    """Registers in a Benes network of ``2 * log2_lanes - 1`` switch stages."""
    n_stages = 2 * log2_lanes - 1
    return -(-n_stages // BENES_STAGES_PER_REGISTER)


def adder_tree_latency(n_inputs: int) -> int:
    """Levels of a binary adder tree, one register each; a single input passes through."""
    return (n_inputs - 1).bit_length()


@dataclass(frozen=True)
class Pipeline:
    """Stage latencies of one engine."""

    config: EngineConfig

    @property
    def address(self) -> int:
        """Base plus offset; the arbiter selects offsets in a cycle of its own before that."""
        return 2 if self.config.gather is Gather.ARBITRATED else 1

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
    def drain(self) -> int:
        """Cycles from a drain slot to the end of the scratchpad write of its rows."""
        return REQUANTISE_LATENCY + SCATTER_LATENCY
