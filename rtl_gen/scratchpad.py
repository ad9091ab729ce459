"""The scratchpad: one memory per bank, each with one read and one write port."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig
from gshw.pipeline import BANK_LATENCY


class Scratchpad(wiring.Component):
    """``lanes`` banks of ``bank_depth`` words.

    Latency: ``read_data`` follows ``read_address`` by ``latency`` cycles in which ``read_enable``
    is high; a write is visible to reads of the next cycle. Throughput: one read and one write per
    bank and cycle; a read of the word being written returns either value.

    Members
    -------
    read_enable
        Moves the read pipeline of all banks.
    read_address, read_data
        Per bank.
    write_enable
        Per bank, one bit per channel of the word.
    write_address, write_data
        Per bank.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        n_banks = config.lanes
        super().__init__(
            {
                "read_enable": In(1),
                "read_address": In(config.address_width).array(n_banks),
                "read_data": Out(config.bank_width).array(n_banks),
                "write_enable": In(config.block).array(n_banks),
                "write_address": In(config.address_width).array(n_banks),
                "write_data": In(config.bank_width).array(n_banks),
            }
        )

    @property
    def latency(self) -> int:
        return BANK_LATENCY

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        for b in range(config.lanes):
            memory = Memory(shape=config.bank_width, depth=config.bank_depth, init=[])
            m.submodules[f"bank_{b}"] = memory
            granularity = config.bank_width // config.block
            write = memory.write_port(granularity=granularity)
            read = memory.read_port(transparent_for=())
            data = Signal(config.bank_width, name=f"data_{b}", reset_less=True)
            m.d.comb += [
                write.en.eq(self.write_enable[b]),
                write.addr.eq(self.write_address[b]),
                write.data.eq(self.write_data[b]),
                read.en.eq(self.read_enable),
                read.addr.eq(self.read_address[b]),
                self.read_data[b].eq(data),
            ]
            with m.If(self.read_enable):
                m.d.sync += data.eq(read.data)
        return m
