"""Frames on a serial line: flags, escapes and CRC-32, as :mod:`gshw.uart_protocol` has them."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.uart_protocol import ESCAPE, FLAG, FLIP
from rtl_gen.crc import RESIDUE, SerialCrc32
from rtl_gen.library import place

CRC_BYTES = 4


def byte_layout() -> data.StructLayout:
    """A byte of a frame; ``last`` with its final one before the checksum."""
    return data.StructLayout({"data": 8, "last": 1})


class FrameReceiver(wiring.Component):
    """Takes bytes off a line and gives the contents of frames, checksum included.

    Contents are given as they come; ``good`` or ``bad`` at the end tells whether they were worth
    it. Latency: one cycle.

    Members
    -------
    i_valid, i
        Bytes of the line, at least ten cycles apart.
    valid, byte
        A byte of the current frame.
    index
        Its number; from 12 on it goes 12, 13, 14, 15, 12, ...
    begin
        The next byte is the first of a frame.
    good, bad
        The frame has ended, intact and of whole words; or not. One cycle, with ``begin``.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "i_valid": In(1),
                "i": In(8),
                "valid": Out(1),
                "byte": Out(8),
                "index": Out(4),
                "begin": Out(1),
                "good": Out(1),
                "bad": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        crc = place(m, platform, "crc", SerialCrc32(8))
        escaped, is_empty = Signal(), Signal(init=1)
        is_flag, is_escape = Signal(), Signal()
        count = Signal(4)
        whole = count[:2] == 0
        intact = crc.register == RESIDUE
        ended = self.i_valid & is_flag & ~is_empty
        m.d.comb += [
            is_flag.eq(self.i == FLAG),
            is_escape.eq(self.i == ESCAPE),
            self.begin.eq(self.i_valid & is_flag),
            self.good.eq(ended & intact & whole & count[3] & ~escaped),
            self.bad.eq(ended & ~self.good),
            self.valid.eq(self.i_valid & ~is_flag & ~is_escape),
            self.byte.eq(self.i ^ (escaped << (FLIP.bit_length() - 1))),
            self.index.eq(count),
            crc.restart.eq(self.begin),
            crc.valid.eq(self.valid),
            crc.word.eq(self.byte),
            crc.unload.eq(0),
        ]
        with m.If(self.i_valid):
            m.d.sync += [escaped.eq(is_escape), is_empty.eq(is_flag)]
        with m.If(self.begin):
            m.d.sync += count.eq(0)
        with m.Elif(self.valid):
            m.d.sync += count.eq(Mux(count == 15, 12, count + 1))
        return m


class FrameTransmitter(wiring.Component):
    """Puts frames around bytes and gives them to a line.

    Members
    -------
    i
        Contents; ``ready`` is high for one cycle per byte, in which the byte is taken.
    o
        Bytes of the line, at least ten cycles apart.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(byte_layout())),
                "o": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        crc = place(m, platform, "crc", SerialCrc32(8))
        content = Signal(8)
        is_special, is_flipped = Signal(), Signal()
        in_crc = Signal()
        n_crc = Signal(range(CRC_BYTES))
        next_byte = Signal()
        m.d.comb += [
            content.eq(Mux(in_crc, ~crc.register[:8], self.i.payload.data)),
            is_special.eq((content == FLAG) | (content == ESCAPE)),
            crc.word.eq(content),
            crc.unload.eq(in_crc),
            crc.valid.eq(next_byte),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [
                    self.o.payload.eq(FLAG),
                    self.o.valid.eq(self.i.valid),
                    crc.restart.eq(1),
                ]
                with m.If(self.i.valid & self.o.ready):
                    m.next = "CONTENT"
            with m.State("CONTENT"):
                m.d.comb += [
                    self.o.valid.eq(self.i.valid | in_crc),
                    self.o.payload.eq(
                        Mux(
                            is_special & ~is_flipped,
                            ESCAPE,
                            content ^ (is_flipped << (FLIP.bit_length() - 1)),
                        )
                    ),
                ]
                with m.If(self.o.valid & self.o.ready):
                    m.d.sync += is_flipped.eq(is_special & ~is_flipped)
                    with m.If(~is_special | is_flipped):
                        m.d.comb += next_byte.eq(1)
                with m.If(next_byte & in_crc):
                    m.d.sync += n_crc.eq(n_crc + 1)
                    with m.If(n_crc.all()):
                        m.d.sync += in_crc.eq(0)
                        m.next = "END"
                with m.Elif(next_byte):
                    m.d.comb += self.i.ready.eq(1)
                    m.d.sync += in_crc.eq(self.i.payload.last)
            with m.State("END"):
                m.d.comb += [self.o.payload.eq(FLAG), self.o.valid.eq(1)]
                with m.If(self.o.ready):
                    m.next = "IDLE"
        return m
