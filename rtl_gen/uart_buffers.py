"""The words that wait in a UART bridge, in either direction."""

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.uart_protocol import BUS, POSITION_WIDTH, WORD_BYTES
from rtl_gen.axi import beat_layout
from rtl_gen.uart_frames import byte_layout


def _is_full(written: Value, freed: Value, n_words: int) -> Value:
    """Whether ``n_words`` (a power of two) words lie between two positions."""
    bits = n_words.bit_length()
    return (written[:bits] ^ freed[:bits]) == n_words


class SendBuffer(wiring.Component):
    """Words from the host, kept until the core takes them.

    Bytes go in as they come and count only when their frame turns out good. Throughput to the
    core: one word in eight cycles, far more than a line brings.

    Parameters
    ----------
    n_words
        A power of two. A frame's checksum takes one of them, so a frame holds one less.

    Members
    -------
    clear
        Forget everything.
    begin
        A frame begins: what came since the last ``accept`` is forgotten.
    valid, byte
        A byte of the frame after its header, checksum included; dropped when there is no room.
    position
        Number of the frame's first word.
    acceptable
        The frame's words would be accepted: they are the next ones, there was room for all, and no
        end of a packet waits before them.
    accept, ends_packet
        The frame was good; its words, less one of checksum, count. The last one ends a packet.
    axis
        To the core.
    hold
        Keep ``accepted`` and ``taken`` as they are, from some cycles later on.
    accepted, taken
        Words so far, modulo ``2**POSITION_WIDTH``.
    """

    def __init__(self, n_words: int) -> None:
        self._n_words = n_words
        super().__init__(
            {
                "clear": In(1),
                "begin": In(1),
                "valid": In(1),
                "byte": In(8),
                "position": In(POSITION_WIDTH),
                "acceptable": Out(1),
                "accept": In(1),
                "ends_packet": In(1),
                "axis": Out(stream.Signature(beat_layout(BUS))),
                "hold": In(1),
                "accepted": Out(POSITION_WIDTH),
                "taken": Out(POSITION_WIDTH),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        depth = WORD_BYTES * self._n_words
        m.submodules.memory = memory = Memory(shape=8, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port(transparent_for=())

        # --- in ------------------------------------------------------------------------------
        written = Signal(POSITION_WIDTH + 2)
        frame_end = Signal(POSITION_WIDTH)
        full, overflow = Signal(), Signal()
        end_waits = Signal()
        m.d.comb += [
            full.eq(_is_full(written[2:], self.taken, self._n_words)),
            write.addr.eq(written),
            write.data.eq(self.byte),
            write.en.eq(self.valid & ~full),
            frame_end.eq(written[2:] - 1),
            self.acceptable.eq((self.position == self.accepted) & ~overflow & ~end_waits),
        ]
        with m.If(self.accept):
            m.d.sync += [
                self.accepted.eq(frame_end),
                written.eq(Cat(Const(0, 2), frame_end)),
                end_waits.eq(self.ends_packet),
            ]
        with m.Elif(self.begin):
            m.d.sync += [written.eq(Cat(Const(0, 2), self.accepted)), overflow.eq(0)]
        with m.Elif(self.valid):
            m.d.sync += [written.eq(written + ~full), overflow.eq(overflow | full)]

        # --- out -----------------------------------------------------------------------------
        word = Signal(8 * WORD_BYTES, reset_less=True)
        is_end = Signal(reset_less=True)
        n_byte = Signal(range(WORD_BYTES))
        reading = Signal()
        word_end, packet_end = Signal(), Signal()
        m.d.comb += [
            read.addr.eq(Cat(n_byte, self.taken)),
            word_end.eq(reading & n_byte.all()),
            packet_end.eq(end_waits & (self.taken + 1 == self.accepted)),
            self.axis.payload.data.eq(word),
            self.axis.payload.last.eq(is_end),
        ]
        may_start = (self.accepted != self.taken) & ~self.axis.valid & ~self.hold
        m.d.sync += reading.eq(~reading & (may_start | (n_byte != 0)))
        with m.If(reading):
            m.d.sync += [word.eq(Cat(word[8:], read.data)), n_byte.eq(n_byte + 1)]
        with m.If(word_end):
            m.d.sync += [
                is_end.eq(packet_end),
                self.axis.valid.eq(1),
                self.taken.eq(self.taken + 1),
            ]
            with m.If(packet_end):
                m.d.sync += end_waits.eq(0)
        with m.Elif(self.axis.ready):
            m.d.sync += self.axis.valid.eq(0)
        with m.If(self.clear):
            m.d.sync += [
                written.eq(0),
                self.accepted.eq(0),
                self.taken.eq(0),
                end_waits.eq(0),
                n_byte.eq(0),
                reading.eq(0),
                self.axis.valid.eq(0),
            ]
        return m


class ReceiveBuffer(wiring.Component):
    """Words from the core, kept until the host says that it has them.

    Throughput: one word in four cycles from the core, one byte in two cycles to the line.

    Parameters
    ----------
    n_words
        A power of two.

    Members
    -------
    clear
        Forget everything, and let the core's words go.
    axis
        From the core.
    rewind, position
        All words before ``position`` may be forgotten; ``o`` goes on with that one.
    o
        Bytes of the words; ``last`` with the final one of a packet.
    empty
        All whole words have been given.
    """

    def __init__(self, n_words: int) -> None:
        self._n_words = n_words
        super().__init__(
            {
                "clear": In(1),
                "axis": In(stream.Signature(beat_layout(BUS))),
                "rewind": In(1),
                "position": In(POSITION_WIDTH),
                "o": Out(stream.Signature(byte_layout())),
                "empty": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        depth = WORD_BYTES * self._n_words
        m.submodules.memory = memory = Memory(shape=8, depth=depth, init=[])
        m.submodules.ends = ends = Memory(shape=1, depth=self._n_words, init=[])
        write, read = memory.write_port(), memory.read_port(transparent_for=())
        write_end, read_end = ends.write_port(), ends.read_port(transparent_for=())
        # Positions need no more bits than it takes to tell full from empty.
        bits = self._n_words.bit_length()
        written, given = Signal(bits + 2), Signal(bits + 2)
        freed = Signal(bits)
        full, is_end = Signal(), Signal()
        settled = Signal()
        beat = self.axis.payload
        m.d.comb += [
            full.eq(_is_full(written[2:], freed, self._n_words)),
            is_end.eq(written[:2].all()),
            write.en.eq(self.axis.valid & ~full),
            write.addr.eq(written),
            write.data.eq(beat.data.word_select(written[:2], 8)),
            write_end.en.eq(write.en),
            write_end.addr.eq(written[2:]),
            write_end.data.eq(beat.last),
            self.axis.ready.eq((is_end & ~full) | self.clear),
            read.addr.eq(given),
            read_end.addr.eq(given[2:]),
            self.empty.eq(given[2:] == written[2:]),
            self.o.payload.data.eq(read.data),
            self.o.payload.last.eq(read_end.data & given[:2].all()),
            self.o.valid.eq(settled & ~self.empty),
        ]
        with m.If(write.en):
            m.d.sync += written.eq(written + 1)
        m.d.sync += settled.eq(~self.rewind & ~(self.o.valid & self.o.ready))
        with m.If(self.rewind):
            m.d.sync += [freed.eq(self.position), given.eq(Cat(Const(0, 2), self.position))]
        with m.Elif(self.o.valid & self.o.ready):
            m.d.sync += given.eq(given + 1)
        with m.If(self.clear):
            m.d.sync += [written.eq(0), given.eq(0), freed.eq(0)]
        return m
