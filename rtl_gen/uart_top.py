"""The top module gshw_uart: the core of gshw_stream behind a serial line."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gshw.config import Config
from gshw.register_map import register_map
from gshw.top import Top
from gshw.uart_protocol import BUS, POSITIONS, behind_uart
from rtl_gen.library import place
from rtl_gen.register_file import RegisterFile
from rtl_gen.tops import HOST, add_stream_ports, build_core
from rtl_gen.uart import DIVISOR_WIDTH
from rtl_gen.uart_bridge import UartBridge

N_WORDS = 128
"""Words that wait in each direction: one block RAM of an iCE40 holds their bytes."""
MIN_WORDS = 16
MAX_WORDS = POSITIONS // 2
"""A buffer that is full and one that is empty must differ in their positions."""


class UartTop(wiring.Component):
    """``gshw_uart``: everything over ``rx`` and ``tx``.

    ``rst`` is synchronous to ``clk``. ``divisor`` is how many cycles of ``clk`` a bit takes, at
    least 4; constant. The bus of the config counts for nothing: the core has
    :data:`gshw.uart_protocol.BUS`, fewer registers (:func:`gshw.register_map.register_map`), and
    is built small, as the line is slower than anything in it.

    Parameters
    ----------
    config
        Decides the engine.
    n_words
        Words that wait in each direction: a power of two, 16 to 2048. More make the line busier,
        because as many may be on their way before the host has to ask.

    Raises
    ------
    ValueError
        For another number of words.

    Members
    -------
    busy, failed
        A program runs; it was stopped by an error.
    """

    def __init__(self, config: Config, *, n_words: int = N_WORDS) -> None:
        if n_words & (n_words - 1) or not MIN_WORDS <= n_words <= MAX_WORDS:
            raise ValueError(
                f"n_words must be a power of two from {MIN_WORDS} to {MAX_WORDS}, not {n_words}"
            )
        self.config = behind_uart(config)
        self._n_words = n_words
        super().__init__(
            {
                "clk": In(1),
                "rst": In(1),
                "divisor": In(DIVISOR_WIDTH),
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "busy": Out(1),
                "failed": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        registers = register_map(self.config, Top.UART)
        core = build_core(
            m,
            platform,
            self.config,
            RegisterFile(registers),
            clock=self.clk,
            reset=self.rst,
            interleaved=True,
            small=True,
        )
        source, sink = add_stream_ports(m, platform, core.processor, BUS, small=True)
        bridge = UartBridge(registers.address_width, self._n_words, self._n_words)
        place(m, platform, "bridge", bridge, domain=HOST)
        wiring.connect(m, bridge.bus, core.registers.bus)
        wiring.connect(m, bridge.to_core, source.axis)
        wiring.connect(m, sink.axis, bridge.from_core)
        m.d.comb += [
            bridge.divisor.eq(self.divisor),
            bridge.rx.eq(self.rx),
            bridge.clear.eq(core.soft_reset.resetting),
            self.tx.eq(bridge.tx),
            self.busy.eq(core.processor.busy),
            self.failed.eq(core.processor.failed),
        ]
        return m
