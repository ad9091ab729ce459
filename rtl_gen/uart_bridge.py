"""The bridge between a serial line and the core: registers and both streams in frames."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.uart_protocol import (
    BUS,
    DROPPED_WIDTH,
    POSITION_WIDTH,
    REPLY,
    WORD_BYTES,
    Kind,
    capacity_word,
)
from rtl_gen.axi import beat_layout
from rtl_gen.library import place
from rtl_gen.register_file import RegisterBus
from rtl_gen.uart import DIVISOR_WIDTH, UartReceiver, UartTransmitter
from rtl_gen.uart_buffers import ReceiveBuffer, SendBuffer
from rtl_gen.uart_frames import FrameReceiver, FrameTransmitter, byte_layout

_KIND_WIDTH = 3
_NUMBER_WIDTH = 16
_HEADER_WIDTH = 8 * WORD_BYTES
_STATUS_WIDTH = 2 * POSITION_WIDTH + DROPPED_WIDTH


class ReplyWriter(wiring.Component):
    """One reply, byte by byte: header, payload, status.

    Latency: the first byte is offered in the cycle of ``start``, and a byte of ``words`` passes in
    the cycle in which it is there. Throughput: one byte per cycle, and one cycle between ``words``
    and the status.

    Members
    -------
    start
        Write a reply; hold it, and everything else that goes in, until ``done``.
    done
        High in the cycle in which the last byte is taken.
    has_value, has_words
        What the payload is: ``value``, or what ``words`` has.
    header, value, status
        Words of the reply. Bit 31 of the last one is ``packet_end``, or ``flag`` without words.
    words, words_empty
        Payload; it ends with ``words_empty``, or with the ``last`` of a packet.
    o
        To a :class:`FrameTransmitter`.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "start": In(1),
                "done": Out(1),
                "has_value": In(1),
                "has_words": In(1),
                "header": In(_HEADER_WIDTH),
                "value": In(32),
                "status": In(_STATUS_WIDTH),
                "flag": In(1),
                "words": In(stream.Signature(byte_layout())),
                "words_empty": In(1),
                "o": Out(stream.Signature(byte_layout())),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        n_byte = Signal(range(WORD_BYTES))
        packet_end = Signal(reset_less=True)
        step, word_end = Signal(), Signal()
        content = self.o.payload.data
        m.d.comb += [
            step.eq(self.o.valid & self.o.ready),
            word_end.eq(step & n_byte.all()),
        ]
        with m.If(step):
            m.d.sync += n_byte.eq(n_byte + 1)
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += [
                    self.o.valid.eq(self.start),
                    content.eq(self.header.word_select(n_byte, 8)),
                ]
                m.d.sync += packet_end.eq(0)
                with m.If(word_end & self.has_value):
                    m.next = "VALUE"
                with m.Elif(word_end & self.has_words):
                    m.next = "WORDS"
                with m.Elif(word_end):
                    m.next = "STATUS"
            with m.State("VALUE"):
                m.d.comb += [self.o.valid.eq(1), content.eq(self.value.word_select(n_byte, 8))]
                with m.If(word_end):
                    m.next = "STATUS"
            with m.State("WORDS"):
                m.d.comb += [
                    self.o.valid.eq(self.words.valid & ~packet_end),
                    content.eq(self.words.payload.data),
                    self.words.ready.eq(self.o.ready & ~packet_end),
                ]
                with m.If(step):
                    m.d.sync += packet_end.eq(self.words.payload.last)
                with m.If(packet_end | self.words_empty):
                    m.next = "STATUS"
            with m.State("STATUS"):
                ending = Cat(self.status, Mux(self.has_words, packet_end, self.flag))
                m.d.comb += [
                    self.o.valid.eq(1),
                    content.eq(ending.word_select(n_byte, 8)),
                    self.o.payload.last.eq(n_byte.all()),
                    self.done.eq(word_end),
                ]
                with m.If(word_end):
                    m.next = "HEADER"
        return m


class UartBridge(wiring.Component):
    """Answers a host's frames; see ``docs/uart.md``.

    From the end of a good request to the end of its reply nothing is taken from the line.

    Parameters
    ----------
    address_width
        Of a register's byte offset, at most ``POSITION_WIDTH``.
    n_send_words, n_receive_words
        Words that are held in each direction: powers of two, at most half of all positions.

    Members
    -------
    rx, tx, divisor
        The line; see :mod:`rtl_gen.uart`.
    bus
        Registers.
    to_core, from_core
        Streams; ``last`` ends a packet.
    clear
        The core is being reset: forget all words, and let those of the core go.
    """

    def __init__(self, address_width: int, n_send_words: int, n_receive_words: int) -> None:
        self._address_width = address_width
        self._n_send_words = n_send_words
        self._n_receive_words = n_receive_words
        beats = stream.Signature(beat_layout(BUS))
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "divisor": In(DIVISOR_WIDTH),
                "bus": Out(RegisterBus(address_width)),
                "to_core": Out(beats),
                "from_core": In(beats),
                "clear": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()

        # --- frames from the host ------------------------------------------------------------
        receiver = place(m, platform, "receiver", UartReceiver())
        incoming = place(m, platform, "incoming", FrameReceiver())
        kind = Signal(_KIND_WIDTH, reset_less=True)
        tag = Signal(8, reset_less=True)
        number = Signal(_NUMBER_WIDTH, reset_less=True)
        value = Signal(32, reset_less=True)
        busy, listening = Signal(), Signal()
        heard, valid, is_send, request = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            receiver.rx.eq(self.rx),
            receiver.divisor.eq(self.divisor),
            incoming.i_valid.eq(receiver.valid),
            incoming.i.eq(receiver.byte),
            valid.eq(incoming.valid & listening),
            heard.eq(incoming.good & listening),
            is_send.eq(kind == Kind.SEND),
            request.eq(heard & ~is_send),
        ]
        with m.If(incoming.begin):
            m.d.sync += listening.eq(~busy & ~request)
        with m.If(valid), m.Switch(incoming.index):
            with m.Case(0):
                m.d.sync += kind.eq(incoming.byte)
            with m.Case(1):
                m.d.sync += tag.eq(incoming.byte)
            with m.Case(2):
                m.d.sync += number[:8].eq(incoming.byte)
            with m.Case(3):
                m.d.sync += number[8:].eq(incoming.byte)
            for number_of_byte in range(WORD_BYTES):
                with m.Case(WORD_BYTES + number_of_byte):
                    m.d.sync += value.word_select(number_of_byte, 8).eq(incoming.byte)

        # --- requests ------------------------------------------------------------------------
        alternate, wrong_register = Signal(), Signal(reset_less=True)
        answer, answered, clear = Signal(), Signal(), Signal()
        m.d.comb += [
            self.bus.address.eq(number[2 : self._address_width]),
            self.bus.write_data.eq(value),
            self.bus.strobes.eq(-1),
            clear.eq(self.clear | (request & (kind == Kind.SYNC))),
        ]
        with m.FSM():
            with m.State("IDLE"), m.If(request):
                m.d.sync += busy.eq(1)
                m.next = "ANSWER"
                with m.Switch(kind):
                    with m.Case(Kind.SYNC):
                        m.d.sync += [alternate.eq(0), wrong_register.eq(0)]
                    with m.Case(Kind.READ):
                        m.d.comb += self.bus.read.eq(1)
                        m.next = "WAIT"
                    with m.Case(Kind.WRITE), m.If(number[POSITION_WIDTH] != alternate):
                        m.d.comb += self.bus.write.eq(1)
                        m.d.sync += alternate.eq(number[POSITION_WIDTH])
                        m.next = "WAIT"
            with m.State("WAIT"), m.If(self.bus.acknowledge):
                m.d.sync += wrong_register.eq(self.bus.error)
                m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += answer.eq(1)
                with m.If(answered):
                    m.d.sync += busy.eq(0)
                    m.next = "IDLE"

        # --- words ---------------------------------------------------------------------------
        sending = place(m, platform, "send_buffer", SendBuffer(self._n_send_words))
        receiving = place(m, platform, "receive_buffer", ReceiveBuffer(self._n_receive_words))
        n_dropped = Signal(DROPPED_WIDTH)
        wiring.connect(m, sending.axis, wiring.flipped(self.to_core))
        wiring.connect(m, wiring.flipped(self.from_core), receiving.axis)
        m.d.comb += [
            sending.clear.eq(clear),
            sending.hold.eq(busy),
            sending.begin.eq(incoming.begin),
            sending.valid.eq(valid & (incoming.index[2:] != 0)),
            sending.byte.eq(incoming.byte),
            sending.position.eq(number),
            sending.accept.eq(heard & is_send & sending.acceptable),
            sending.ends_packet.eq(tag[0]),
            receiving.clear.eq(clear),
            receiving.position.eq(number),
            receiving.rewind.eq(request & (kind == Kind.RECEIVE)),
        ]
        with m.If(incoming.bad | (incoming.good & ~request & ~sending.accept)):
            m.d.sync += n_dropped.eq(n_dropped + 1)

        # --- replies -------------------------------------------------------------------------
        reply = place(m, platform, "reply", ReplyWriter())
        outgoing = place(m, platform, "outgoing", FrameTransmitter())
        transmitter = place(m, platform, "transmitter", UartTransmitter())
        wiring.connect(m, receiving.o, reply.words)
        wiring.connect(m, reply.o, outgoing.i)
        wiring.connect(m, outgoing.o, transmitter.i)
        is_sync = kind == Kind.SYNC
        capacity = capacity_word(self._n_send_words - 1, self._n_receive_words)
        reply_bits = Const(REPLY >> _KIND_WIDTH, 8 - _KIND_WIDTH)
        m.d.comb += [
            reply.start.eq(answer),
            answered.eq(reply.done),
            reply.has_value.eq(is_sync | (kind == Kind.READ)),
            reply.has_words.eq(kind == Kind.RECEIVE),
            reply.header.eq(Cat(kind, reply_bits, tag, number)),
            reply.value.eq(Mux(is_sync, capacity, self.bus.read_data)),
            reply.status.eq(Cat(sending.accepted, sending.taken, n_dropped)),
            reply.flag.eq(wrong_register),
            reply.words_empty.eq(receiving.empty),
            transmitter.divisor.eq(self.divisor),
            self.tx.eq(transmitter.tx),
        ]
        return m
