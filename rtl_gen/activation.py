"""Functions of single codes, by loadable tables behind the requantisers."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import TABLE_WORD_CODES, EngineConfig
from gshw.pipeline import TABLE_LATENCY
from rtl_gen.delay import delay
from rtl_gen.layouts import load_layout


class ActivationTables(wiring.Component):
    """Replaces codes by entries of a table, or passes them on.

    Every code has a memory of its own that holds all tables, so all are looked up at a time.
    Latency ``TABLE_LATENCY``, throughput one set of codes per cycle.

    Members
    -------
    load
        ``TABLE_WORD_CODES`` entries of a table, the first in the lowest bits.
    select
        0: pass on; else one more than the table's number. Constant while codes are in flight.
    i, o
        Codes, ``drain_row * columns + column``; the bits of ``i`` are the number of the entry.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        width = config.activation_width
        n_codes = config.drain_rows * config.columns
        self._n_words = config.activation_tables * config.table_words
        self._address_width = (self._n_words - 1).bit_length()
        super().__init__(
            {
                "load": In(
                    stream.Signature(
                        load_layout(self._address_width, TABLE_WORD_CODES * width),
                        always_ready=True,
                    )
                ),
                "select": In(config.table_width),
                "i": In(width).array(n_codes),
                "o": Out(width).array(n_codes),
            }
        )

    @property
    def latency(self) -> int:
        return TABLE_LATENCY

    def elaborate(self, platform) -> Module:
        m = Module()
        config, width = self.config, self.config.activation_width
        log2_codes = TABLE_WORD_CODES.bit_length() - 1
        uses, number = Signal(reset_less=True), Signal(config.table_width, reset_less=True)
        m.d.sync += [uses.eq(self.select.any()), number.eq(self.select - 1)]
        for n, (code, result) in enumerate(zip(self.i, self.o, strict=True)):
            memory = Memory(
                shape=TABLE_WORD_CODES * width, depth=self._n_words, init=[0] * self._n_words
            )
            m.submodules[f"table_{n}"] = memory
            write, read = memory.write_port(), memory.read_port(transparent_for=())
            word = Cat(code[log2_codes:], number)[: self._address_width]
            m.d.comb += [
                write.en.eq(self.load.valid),
                write.addr.eq(self.load.payload.address),
                write.data.eq(self.load.payload.data),
                read.en.eq(1),
                read.addr.eq(word),
            ]
            entries = delay(m, read.data, 1, f"entries_{n}")
            passed = delay(m, code, TABLE_LATENCY - 1, f"passed_{n}")
            entry = entries.word_select(passed[:log2_codes], width)
            chosen = Signal(width, name=f"chosen_{n}", reset_less=True)
            m.d.sync += chosen.eq(Mux(uses, entry, passed))
            m.d.comb += result.eq(chosen)
        return m
