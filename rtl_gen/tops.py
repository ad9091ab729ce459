"""The top modules gshw_axi and gshw_stream: registers, processor and bus, wired."""

from typing import NamedTuple

from amaranth.hdl import ClockDomain, ClockSignal, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Flow, In, Out

from gshw.config import BusConfig, Config
from gshw.register_map import register_map
from gshw.registers import PROGRAM_COUNTERS, PROGRAM_ERRORS, WIDE_COUNTERS, RegisterMap
from gshw.top import Top
from rtl_gen.axi import ReadArbiter, ReadSignature, WriteSignature
from rtl_gen.axi_lite import AxiLite, AxiLiteSlave
from rtl_gen.axi_read import AxiReader
from rtl_gen.axi_write import AxiWriter
from rtl_gen.counters import CounterBank
from rtl_gen.library import place
from rtl_gen.processor import STOP_CYCLES, Processor
from rtl_gen.register_file import RegisterFile
from rtl_gen.stream_ports import StreamSink, StreamSource

HOST = "host"
"""Clock domain of what a soft reset does not touch; same clock as ``sync``."""
RESET_CYCLES = 4
NORMAL_BUFFERABLE = 0b0011
"""ARCACHE and AWCACHE: normal memory, not cached, writes may be buffered (AXI4, A4.4)."""


class SoftReset(wiring.Component):
    """Stops the core, waits until the bus is quiet, then resets it.

    Latency: ``halt`` is high from the cycle after ``request``; ``reset`` follows
    ``2 * STOP_CYCLES`` cycles later or, if that is later, in the cycle after ``idle``. Throughput:
    one request until ``resetting`` falls.

    Members
    -------
    request
        One cycle; ignored while ``resetting``.
    idle
        No transfer is outstanding.
    halt
        The core must start nothing new.
    reset
        Of the core, ``RESET_CYCLES`` cycles.
    resetting
        From ``request`` to the end of ``reset``.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "request": In(1),
                "idle": In(1),
                "halt": Out(1),
                "reset": Out(1, init=1),
                "resetting": Out(1, init=1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # A stop needs some cycles to reach the movers; before that idle means nothing.
        settling = Signal(range(2 * STOP_CYCLES), init=2 * STOP_CYCLES - 1)
        left = Signal(range(RESET_CYCLES), init=RESET_CYCLES - 1)
        m.d.comb += self.resetting.eq(self.halt | self.reset)
        with m.If(self.reset):
            m.d.sync += left.eq(left - 1)
            with m.If(left == 0):
                m.d.sync += self.reset.eq(0)
        with m.Elif(self.halt):
            with m.If(settling != 0):
                m.d.sync += settling.eq(settling - 1)
            with m.Elif(self.idle):
                m.d.sync += [self.halt.eq(0), self.reset.eq(1), left.eq(RESET_CYCLES - 1)]
        with m.Elif(self.request):
            m.d.sync += [self.halt.eq(1), settling.eq(2 * STOP_CYCLES - 1)]
        return m


def _flat(prefix: str, signature: wiring.Signature, *, flip: bool = False) -> dict:
    """Members of a bus signature as ports of their own."""
    members = {}
    for name, member in signature.members.items():
        outward = (member.flow is Flow.Out) ^ flip
        members[f"{prefix}_{name}"] = Out(member.shape) if outward else In(member.shape)
    return members


def _connect_flat(m: Module, top, prefix: str, bus) -> None:
    """Wire a component's bus to the top's flat ports of the same direction."""
    for name, member in bus.signature.members.items():
        port, inner = getattr(top, f"{prefix}_{name}"), getattr(bus, name)
        m.d.comb += port.eq(inner) if member.flow is Flow.Out else inner.eq(port)


class CoreParts(NamedTuple):
    """What :func:`build_core` made; ``interrupt`` is a register."""

    processor: Processor
    registers: RegisterFile
    soft_reset: SoftReset
    interrupt: Signal


def counter_names(registers: RegisterMap) -> list[str]:
    """The counters that a map has, in the order of its registers."""
    wide = [name for name in WIDE_COUNTERS if f"counter_{name}_low" in registers]
    return wide + [name for name in PROGRAM_COUNTERS if f"counter_{name}" in registers]


def build_core(
    m: Module,
    platform,
    config: Config,
    registers: RegisterFile,
    *,
    clock: Value,
    reset: Value,
    interleaved: bool,
    small: bool = False,
) -> CoreParts:
    """Add what all tops have: clock domains, registers, counters, soft reset, processor.

    Parameters
    ----------
    registers
        Not placed yet. Where its map lacks a setting, that is 0.
    clock, reset
        ``reset`` is high in reset, and synchronous.
    interleaved, small
        See :class:`Processor`.
    """
    m.domains.sync = ClockDomain()
    m.domains.host = ClockDomain()
    processor = Processor(config, interleaved=interleaved, small=small)
    place(m, platform, "processor", processor)
    place(m, platform, "registers", registers, domain=HOST)
    soft_reset = place(m, platform, "soft_reset", SoftReset(), domain=HOST)
    interrupt = Signal()
    m.d.comb += [
        ClockSignal("sync").eq(clock),
        ClockSignal(HOST).eq(clock),
        ResetSignal("sync").eq(reset | soft_reset.reset),
        ResetSignal(HOST).eq(reset),
    ]

    # --- control ---------------------------------------------------------------------------
    start, quiet = Signal(), Signal()
    was_failed, asked = Signal(), Signal()
    # What happens from the request of a soft reset on is forgotten by it, so nobody hears of it.
    heard = Signal()
    m.d.comb += [
        heard.eq(~registers.control_soft_reset & ~soft_reset.resetting),
        start.eq(
            (registers.control_start | (processor.done & registers.control_auto_restart))
            & processor.ready
            & ~soft_reset.resetting
        ),
        processor.start.eq(start),
        processor.halt.eq(soft_reset.halt),
        processor.program_address.eq(registers.pair("program_address")),
        processor.watchdog_cycles.eq(getattr(registers, "watchdog_cycles", 0)),
        soft_reset.request.eq(registers.control_soft_reset),
        soft_reset.idle.eq(quiet),
        # A start in the very cycle of an end, as auto_restart's, leaves a program that runs.
        registers.control_done_set.eq(processor.done & heard & ~start),
        registers.control_done_clear.eq(start | registers.control_soft_reset),
        registers.control_idle.eq(~processor.busy & quiet & ~soft_reset.resetting),
        registers.control_ready.eq(processor.ready & ~soft_reset.resetting),
        registers.control_interrupt.eq(interrupt),
        registers.interrupt_status_done_set.eq(processor.done & heard),
        registers.interrupt_status_error_set.eq(processor.failed & ~was_failed & heard),
        asked.eq(
            (registers.interrupt_status_done & registers.interrupt_enable_done)
            | (registers.interrupt_status_error & registers.interrupt_enable_error)
        ),
    ]
    m.d.host += [
        quiet.eq(processor.reader_idle & processor.writer_idle),
        was_failed.eq(processor.failed),
        interrupt.eq(asked & registers.interrupt_global_enable),
    ]

    # --- status ----------------------------------------------------------------------------
    m.d.comb += [
        registers.status_busy.eq(processor.busy),
        registers.status_halted.eq(processor.failed),
        registers.status_resetting.eq(soft_reset.resetting),
        registers.first_error_code.eq(processor.first_error_code),
        registers.first_error_index.eq(processor.first_error_index),
        registers.pair("first_error_address").eq(processor.first_error_address),
    ]
    for unit in ("fetch", "load", "compute", "store"):
        status = getattr(registers, f"status_{unit}_busy")
        m.d.comb += status.eq(getattr(processor, f"{unit}_busy"))
    for number, name in enumerate(PROGRAM_ERRORS):
        m.d.comb += getattr(registers, f"error_{name}").eq(processor.errors[number])
    names = counter_names(registers.registers)
    if names:
        bank = CounterBank(config.bus.data_bytes, names)
        place(m, platform, "counters", bank, domain=HOST)
        wiring.connect(m, registers.counters, bank.read)
        m.d.comb += bank.clear.eq(start)
        for name in names:
            event = getattr(processor, f"event_{name}")
            m.d.comb += getattr(bank, f"event_{name}").eq(event)
    return CoreParts(processor, registers, soft_reset, interrupt)


def add_stream_ports(
    m: Module, platform, processor: Processor, bus: BusConfig, *, small: bool = False
) -> tuple[StreamSource, StreamSink]:
    """Give a processor streams for a memory: what remains is to connect ``axis`` of both."""
    source = place(m, platform, "source", StreamSource(bus, small=small))
    sink = place(m, platform, "sink", StreamSink(bus, small=small))
    for client in ("fetch", "load"):
        for channel in ("request", "data"):
            name = f"{client}_{channel}"
            wiring.connect(m, getattr(processor, name), getattr(source, name))
    wiring.connect(m, processor.store_request, sink.request)
    wiring.connect(m, processor.store_data, sink.data)
    m.d.comb += [
        source.start.eq(processor.start),
        source.halt.eq(processor.stop),
        sink.request_last.eq(processor.store_request_last),
        sink.halt.eq(processor.stop),
        processor.reader_idle.eq(1),
        processor.writer_idle.eq(sink.idle),
        processor.read_beat.eq(source.beat),
        processor.write_beat.eq(sink.beat),
        processor.stream_error.eq(source.error),
    ]
    return source, sink


class _Top(wiring.Component):
    """What both AXI tops have: the core, and its registers behind AXI4-Lite."""

    top: Top

    def __init__(self, config: Config, members: dict) -> None:
        self.config = config
        self._registers = register_map(config, self.top)
        super().__init__(
            {"aclk": In(1), "aresetn": In(1)}
            | _flat("s_axi", AxiLite(self._registers.address_width), flip=True)
            | members
            | {"interrupt": Out(1)}
        )

    def _build(self, m: Module, platform) -> tuple[Processor, RegisterFile]:
        """Everything but the memory side."""
        core = build_core(
            m,
            platform,
            self.config,
            RegisterFile(self._registers),
            clock=self.aclk,
            reset=~self.aresetn,
            interleaved=self.top is Top.STREAM,
        )
        width = self._registers.address_width
        slave = place(m, platform, "axi_lite", AxiLiteSlave(width), domain=HOST)
        wiring.connect(m, slave.bus, core.registers.bus)
        m.d.comb += self.interrupt.eq(core.interrupt)
        for name, member in slave.axi.signature.flip().members.items():
            port, inner = getattr(self, f"s_axi_{name}"), getattr(slave.axi, name)
            m.d.comb += inner.eq(port) if member.flow is Flow.Out else port.eq(inner)
        return core.processor, core.registers


class AxiTop(_Top):
    """``gshw_axi``: AXI4-Lite registers ``s_axi_*``, AXI4 memory master ``m_axi_*``.

    ``aresetn`` is synchronous to ``aclk``. ``interrupt`` is a level. A soft reset waits for the
    bus and leaves what software wrote; :class:`Processor` says what a program takes.
    """

    top = Top.AXI

    def __init__(self, config: Config) -> None:
        constants = {
            f"m_axi_{channel}{name}": Out(width)
            for channel in ("ar", "aw")
            for name, width in (("prot", 3), ("cache", 4))
        }
        super().__init__(
            config,
            _flat("m_axi", ReadSignature(config.bus))
            | _flat("m_axi", WriteSignature(config.bus))
            | constants,
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bus = self.config.bus
        processor, registers = self._build(m, platform)
        arbiter = place(m, platform, "read_arbiter", ReadArbiter(bus))
        reader = place(m, platform, "reader", AxiReader(bus))
        writer = place(m, platform, "writer", AxiWriter(bus))
        for client in ("fetch", "load"):
            for channel in ("request", "data"):
                name = f"{client}_{channel}"
                pair = (getattr(processor, name), getattr(arbiter, name))
                wiring.connect(m, *pair)
        wiring.connect(m, arbiter.request, reader.request)
        wiring.connect(m, reader.data, arbiter.data)
        wiring.connect(m, processor.store_request, writer.request)
        wiring.connect(m, processor.store_data, writer.data)
        for mover, prefix in ((reader, "read"), (writer, "write")):
            m.d.comb += [
                mover.window_low.eq(registers.pair("window_first")),
                mover.window_high.eq(registers.pair("window_last")),
                mover.halt.eq(processor.stop),
                getattr(processor, f"{prefix}_beat").eq(mover.beat),
                getattr(processor, f"{prefix}_error").eq(mover.error),
                getattr(processor, f"{prefix}_out_of_range").eq(mover.out_of_range),
                getattr(processor, f"{prefix}_error_address").eq(mover.error_address),
            ]
            _connect_flat(m, self, "m_axi", mover.axi)
        m.d.comb += [
            arbiter.halt.eq(processor.stop),
            reader.tag.eq(arbiter.of_load),
            processor.read_error_of_load.eq(reader.error_tag),
            processor.reader_idle.eq(reader.idle & arbiter.idle),
            processor.writer_idle.eq(writer.idle),
            self.m_axi_arcache.eq(NORMAL_BUFFERABLE),
            self.m_axi_awcache.eq(NORMAL_BUFFERABLE),
        ]
        return m


class StreamTop(_Top):
    """``gshw_stream``: AXI4-Lite registers ``s_axi_*``, programs in ``s_axis_*``, results out.

    Results leave on ``m_axis_*``. ``aresetn`` is synchronous to ``aclk``. ``interrupt`` is a
    level. After an error the core takes and drops what is left of the program on ``s_axis``, up to
    ``tlast``, and closes a packet that it began on ``m_axis``; a soft reset ends the dropping,
    too, so stop the sender before it.
    """

    top = Top.STREAM

    def __init__(self, config: Config) -> None:
        bus = config.bus
        super().__init__(
            config,
            {
                "s_axis_tdata": In(bus.data_width),
                "s_axis_tkeep": In(bus.data_bytes),
                "s_axis_tlast": In(1),
                "s_axis_tvalid": In(1),
                "s_axis_tready": Out(1),
                "m_axis_tdata": Out(bus.data_width),
                "m_axis_tkeep": Out(bus.data_bytes),
                "m_axis_tlast": Out(1),
                "m_axis_tvalid": Out(1),
                "m_axis_tready": In(1),
            },
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bus = self.config.bus
        processor, _ = self._build(m, platform)
        source, sink = add_stream_ports(m, platform, processor, bus)
        m.d.comb += [
            source.axis.valid.eq(self.s_axis_tvalid),
            source.axis.payload.data.eq(self.s_axis_tdata),
            source.axis.payload.last.eq(self.s_axis_tlast),
            self.s_axis_tready.eq(source.axis.ready),
            self.m_axis_tvalid.eq(sink.axis.valid),
            self.m_axis_tdata.eq(sink.axis.payload.data),
            self.m_axis_tlast.eq(sink.axis.payload.last),
            self.m_axis_tkeep.eq(-1),
            sink.axis.ready.eq(self.m_axis_tready),
        ]
        return m
