"""The memories of activations: the scratchpad for inputs, the output buffer for results."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig
from gshw.pipeline import BANK_LATENCY
from rtl_gen.layouts import scratchpad_load_layout


class Scratchpad(wiring.Component):
    """``lanes`` banks of ``bank_depth`` words, written by loads and read by the engine.

    Latency: ``read_data`` follows ``read_address`` by ``latency`` cycles; a write is visible to
    reads of the next cycle. Throughput: one read per bank and one write of a row per cycle; a
    read of the word being written returns either value.

    Members
    -------
    load
        Element (bank b, channel c, column v) of the row at ``address`` is written iff bit
        ``b * block + c`` of ``channel_enable`` and bit v of ``column_enable`` are 1.
    read_address, read_data
        Per bank.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        n_banks = config.lanes
        super().__init__(
            {
                "load": In(stream.Signature(scratchpad_load_layout(config), always_ready=True)),
                "read_address": In(config.address_width).array(n_banks),
                "read_data": Out(config.bank_width).array(n_banks),
            }
        )

    @property
    def latency(self) -> int:
        return BANK_LATENCY

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        load = self.load.payload
        for b in range(config.lanes):
            memory = Memory(shape=config.bank_width, depth=config.bank_depth, init=[])
            m.submodules[f"bank_{b}"] = memory
            write = memory.write_port(granularity=config.activation_width)
            read = memory.read_port(transparent_for=())
            data = Signal(config.bank_width, name=f"data_{b}", reset_less=True)
            enables = [
                self.load.valid & load.channel_enable[b * config.block + c] & load.column_enable[v]
                for c in range(config.block)
                for v in range(config.columns)
            ]
            m.d.comb += [
                write.en.eq(Cat(enables)),
                write.addr.eq(load.address),
                write.data.eq(load.data.word_select(b, config.bank_width)),
                read.en.eq(1),
                read.addr.eq(self.read_address[b]),
                self.read_data[b].eq(data),
            ]
            m.d.sync += data.eq(read.data)
        return m


class OutputBuffer(wiring.Component):
    """``lanes`` banks of ``output_depth`` words, written by the scatter and read as rows.

    Latency: ``response`` follows ``request`` by ``latency`` cycles without stalls; a write is
    visible to requests taken in the next cycle. Throughput: one write per bank and one row read
    per cycle; a read of a word being written returns either value. One enable moves the whole
    read pipeline.

    Members
    -------
    write_enable
        Per bank, one bit per channel of the word.
    write_address, write_data
        Per bank.
    request
        Word address in every bank.
    response
        One word of every bank, bank 0 in the lowest bits; in the order of the requests.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        n_banks = config.lanes
        super().__init__(
            {
                "write_enable": In(config.block).array(n_banks),
                "write_address": In(config.output_address_width).array(n_banks),
                "write_data": In(config.bank_width).array(n_banks),
                "request": In(stream.Signature(config.output_address_width)),
                "response": Out(stream.Signature(config.scratchpad_row_width)),
            }
        )

    @property
    def latency(self) -> int:
        return BANK_LATENCY

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        # The same state twice: at the banks, and for the handshake, which would otherwise go
        # through a gate in their midst.
        move, _ = self._stages(m, "bank")
        takes, valid = self._stages(m, "handshake")
        m.d.comb += [self.request.ready.eq(takes), self.response.valid.eq(valid)]
        for b in range(config.lanes):
            memory = Memory(shape=config.bank_width, depth=config.output_depth, init=[])
            m.submodules[f"bank_{b}"] = memory
            write = memory.write_port(granularity=config.bank_width // config.block)
            read = memory.read_port(transparent_for=())
            data = Signal(config.bank_width, name=f"data_{b}", reset_less=True)
            m.d.comb += [
                write.en.eq(self.write_enable[b]),
                write.addr.eq(self.write_address[b]),
                write.data.eq(self.write_data[b]),
                read.en.eq(move),
                read.addr.eq(self.request.payload),
                self.response.payload.word_select(b, config.bank_width).eq(data),
            ]
            with m.If(move):
                m.d.sync += data.eq(read.data)
        return m

    def _stages(self, m: Module, name: str) -> tuple[Signal, Signal]:
        """Whether the read pipeline moves, and whether its last stage holds a row."""
        move = Signal(name=f"{name}_move")
        read_valid = Signal(name=f"{name}_read_valid")
        valid = Signal(name=f"{name}_valid")
        m.d.comb += move.eq(~valid | self.response.ready)
        with m.If(move):
            m.d.sync += [read_valid.eq(self.request.valid), valid.eq(read_valid)]
        return move, valid
