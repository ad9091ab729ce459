"""Fetch: reads a program, checks its instructions and gives each to the queue of its unit."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import Config
from gshw.program import FIELDS, INSTRUCTION_BYTES, MAGIC, VERSION, Opcode, Unit
from gshw.program_timing import CHUNK_INSTRUCTIONS
from rtl_gen.axi import beat_layout, request_layout
from rtl_gen.crc import RESIDUE, Crc32, SerialCrc32
from rtl_gen.library import place

WORDS_PER_INSTRUCTION = INSTRUCTION_BYTES // 4
UNITS = (Unit.LOAD, Unit.COMPUTE, Unit.STORE)
"""In the order of every per-unit bit vector."""


class BeatBuffer(wiring.Component):
    """Queue of bus beats that come out as 32-bit words, lowest first.

    It never blocks its input: the user must not ask for more than ``n_beats``. Latency: the first
    word of a beat is at ``o`` four cycles after the beat was at ``i``. Throughput: one beat and
    one word per cycle.

    Parameters
    ----------
    data_width, n_beats
        Bits of a beat, a power of two from 32; and the capacity, a power of two.
    """

    def __init__(self, data_width: int, n_beats: int) -> None:
        self._data_width = data_width
        self._n_beats = n_beats
        self.variant = (data_width, n_beats)
        super().__init__({"i_valid": In(1), "i": In(data_width), "o": Out(stream.Signature(32))})

    def elaborate(self, platform) -> Module:
        m = Module()
        depth = max(self._n_beats, 2)
        m.submodules.memory = memory = Memory(shape=self._data_width, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port(transparent_for=())
        written = Signal(range(2 * depth))
        taken = Signal(range(2 * depth))
        m.d.comb += [
            write.en.eq(self.i_valid),
            write.addr.eq(written),
            write.data.eq(self.i),
            read.addr.eq(taken),
        ]
        with m.If(self.i_valid):
            m.d.sync += written.eq(written + 1)

        words_per_beat = self._data_width // 32
        # Memory output, a register behind it (block RAM is slow), then the chosen word.
        read_valid = Signal()
        held = Signal()
        fetch = Signal()
        pass_on = Signal()
        finish = Signal()
        move = Signal()
        beat = Signal(self._data_width, reset_less=True)
        word = Signal(32, reset_less=True)
        m.d.comb += [
            fetch.eq((written != taken) & (~read_valid | pass_on)),
            read.en.eq(fetch),
            pass_on.eq(read_valid & (~held | finish)),
            move.eq(held & (~self.o.valid | self.o.ready)),
            self.o.payload.eq(word),
        ]
        with m.If(fetch):
            m.d.sync += [taken.eq(taken + 1), read_valid.eq(1)]
        with m.Elif(pass_on):
            m.d.sync += read_valid.eq(0)
        with m.If(pass_on):
            m.d.sync += [beat.eq(read.data), held.eq(1)]
        with m.Elif(finish):
            m.d.sync += held.eq(0)
        if words_per_beat == 1:
            m.d.comb += finish.eq(move)
            chosen = beat
        else:
            number = Signal(range(words_per_beat))
            with m.If(move):
                m.d.sync += number.eq(number + 1)
            m.d.comb += finish.eq(move & number.all())
            chosen = beat.word_select(number, 32)
        with m.If(move):
            m.d.sync += [word.eq(chosen), self.o.valid.eq(1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m


class ReadAhead(wiring.Component):
    """Asks for the program in order, as far ahead as the buffer has room.

    Latency: the request for the header is valid the cycle after ``start``; the next one two
    cycles after ``header_good``. Between requests lies at least one idle cycle.

    Parameters
    ----------
    address_width
        Of a byte address.
    chunk
        Instructions of one request: 4, or 1 where data lie between the instructions.
    request
        Shape of the requests.

    Members
    -------
    start, address
        Begin with the header there.
    n_valid, n_instructions
        How many instructions follow the header, some time before:
    header_good
        The header is right.
    consumed
        One instruction (or the header) has left the buffer.
    hold
        Ask for nothing new.
    ended
        Everything was asked for and has left the buffer.
    """

    def __init__(self, address_width: int, chunk: int, request) -> None:
        self._chunk = chunk
        self.variant = (address_width, chunk)
        super().__init__(
            {
                "start": In(1),
                "address": In(address_width),
                "n_valid": In(1),
                "n_instructions": In(32),
                "header_good": In(1),
                "consumed": In(1),
                "hold": In(1),
                "request": Out(stream.Signature(request)),
                "ended": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        chunk = self._chunk
        log2_chunk = chunk.bit_length() - 1
        # Whole chunks count down; what is left over is asked for at the end.
        chunks = Signal(32 - log2_chunk)
        has_chunks = Signal()
        rest = Signal(max(log2_chunk, 1))
        known = Signal()
        m.d.sync += has_chunks.eq(chunks != 0)

        in_buffer = Signal(range(2 * chunk + 1))
        n_asked = Signal(range(chunk + 1), reset_less=True)
        address = Signal.like(self.address, reset_less=True)
        may_ask, ask = Signal(), Signal()
        amount = Signal(range(chunk + 1))
        has_room = in_buffer <= chunk if chunk > 1 else in_buffer == 0
        m.d.comb += [
            amount.eq(Mux(has_chunks, chunk, rest)),
            may_ask.eq(known & has_room & ~self.hold & ~self.request.valid),
            ask.eq(may_ask & (has_chunks | (rest != 0))),
            self.request.payload.address.eq(address),
            self.request.payload.n_bytes.eq(n_asked << (INSTRUCTION_BYTES.bit_length() - 1)),
        ]
        with m.If(self.start):
            m.d.sync += [address.eq(self.address), n_asked.eq(1), self.request.valid.eq(1)]
        with m.Elif(self.request.valid & self.request.ready):
            m.d.sync += [
                self.request.valid.eq(0),
                address.eq(address + (n_asked << (INSTRUCTION_BYTES.bit_length() - 1))),
            ]
        with m.Elif(ask):
            m.d.sync += [self.request.valid.eq(1), n_asked.eq(amount)]
        with m.If(self.n_valid):
            m.d.sync += chunks.eq(self.n_instructions >> log2_chunk)
            m.d.sync += rest.eq(self.n_instructions[:log2_chunk])
        with m.Elif(ask & has_chunks):
            m.d.sync += chunks.eq(chunks - 1)
        with m.Elif(ask):
            m.d.sync += rest.eq(0)
        counted = Signal()
        m.d.sync += [counted.eq(self.header_good), known.eq((known | counted) & ~self.start)]
        m.d.sync += in_buffer.eq(
            in_buffer + Mux(self.start, 1, Mux(ask, amount, 0)) - self.consumed
        )
        m.d.sync += self.ended.eq(
            known & ~has_chunks & (rest == 0) & (in_buffer == 0) & ~self.request.valid & ~self.start
        )
        return m


class Fetch(wiring.Component):
    """Reads a program, checks every instruction and writes it to the queue of its unit.

    The words of an instruction are written as they come and committed when its checksum is right.

    Latency: the request for the header is valid one cycle after ``start``. A beat that arrives in
    cycle t has its first word decoded in t + 4; if the queue has room, words 0 to 15 are written
    in t + 6 to t + 21 (or as they arrive), ``commit`` is high in t + 23, and word 0 of the next
    instruction is written in t + 25 at the earliest. Throughput: one instruction per 19 cycles.

    Parameters
    ----------
    config
        Its bus decides the width of the beats.
    interleaved
        Data of load instructions follow them on the same stream: one instruction is asked for at
        a time, and after one that brings data the next only when ``load_drained``.
    small
        Of an interleaved stream of words: no buffer, and a checksum that takes 33 cycles per word.

    Members
    -------
    start, program_address
        Read the program there; once after a reset, or after ``finished``.
    halt
        Write and commit nothing more.
    request, data
        Client of the memory; ``data`` is always taken, unless ``small``.
    word, write, commit, room
        Of the queues, one bit per unit: load, compute, store.
    load_drained
        The load unit and its queue have nothing left.
    finished
        All instructions were committed; falls with ``start``.
    blocked
        Nothing moves until a queue or the load unit does.
    progress
        A word was written.
    error_header, error_config_hash, error_instruction
        One cycle each; nothing is committed from then on.
    index
        Number of the instruction in hand, modulo 65536.
    """

    def __init__(self, config: Config, *, interleaved: bool = False, small: bool = False) -> None:
        bus = config.bus
        assert not small or (interleaved and bus.data_width == 32)
        self.config = config
        self._interleaved = interleaved
        self._small = small
        super().__init__(
            {
                "start": In(1),
                "program_address": In(bus.address_width),
                "halt": In(1),
                "request": Out(stream.Signature(request_layout(bus))),
                "data": In(stream.Signature(beat_layout(bus), always_ready=not small)),
                "word": Out(32),
                "write": Out(len(UNITS)),
                "commit": Out(len(UNITS)),
                "room": In(len(UNITS)),
                "load_drained": In(1),
                "finished": Out(1),
                "blocked": Out(1),
                "progress": Out(1),
                "error_header": Out(1),
                "error_config_hash": Out(1),
                "error_instruction": Out(1),
                "index": Out(16),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bus = self.config.bus
        chunk = 1 if self._interleaved else CHUNK_INSTRUCTIONS
        ahead = ReadAhead(bus.address_width, chunk, request_layout(bus))
        place(m, platform, "read_ahead", ahead)
        words = self._words(m, platform)
        crc = place(m, platform, "crc", SerialCrc32(32) if self._small else Crc32())
        crc_ready = crc.ready if self._small else 1
        residue = crc.register == RESIDUE if self._small else crc.residue
        wiring.connect(m, ahead.request, wiring.flipped(self.request))
        m.d.comb += [ahead.start.eq(self.start), ahead.address.eq(self.program_address)]

        # --- one instruction -----------------------------------------------------------------
        word, valid = words.payload, words.valid
        number = Signal(range(WORDS_PER_INSTRUCTION))
        in_header = Signal()
        unit = Signal(len(UNITS), reset_less=True)
        brings_data, wrong = Signal(reset_less=True), Signal(reset_less=True)
        known = [
            reduce(or_, (word[:8] == code for code in Opcode if code.unit is kind))
            for kind in UNITS
        ]
        take, checking, waiting, good = Signal(), Signal(), Signal(), Signal()
        refused = Signal()
        m.d.sync += [self.commit.eq(0), ahead.header_good.eq(0), refused.eq(0)]
        with m.FSM() as state:
            with m.State("DECODE"), m.If(valid):
                m.d.sync += [
                    unit.eq(Mux(in_header, 0, Cat(known))),
                    brings_data.eq(word[:8] != Opcode.FILL),
                    wrong.eq(
                        (word[16:] != self.index)
                        | ~Mux(in_header, word[:8] == Opcode.BEGIN, Cat(known).any())
                    ),
                ]
                m.next = "CHOOSE"
            with m.State("CHOOSE"):
                with m.If(self.halt):
                    m.next = "STOP"
                with m.Elif(wrong):
                    m.d.sync += refused.eq(1)
                    m.next = "STOP"
                with m.Elif(in_header | (unit & self.room).any()):
                    m.next = "WORDS"
                with m.Else():
                    m.d.comb += waiting.eq(1)
            with m.State("WORDS"):
                m.d.comb += [take.eq(valid & crc_ready), words.ready.eq(crc_ready)]
                with m.If(take & number.all()):
                    m.d.comb += ahead.consumed.eq(1)
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += checking.eq(crc_ready)
                with m.If(self.halt):
                    m.next = "STOP"
                with m.Elif(checking & good):
                    m.d.sync += [
                        self.commit.eq(unit),
                        ahead.header_good.eq(in_header),
                        in_header.eq(0),
                        self.index.eq(self.index + 1),
                    ]
                    m.next = "DECODE"
                with m.Elif(checking):
                    m.d.sync += refused.eq(1)
                    m.next = "STOP"
            with m.State("STOP"):
                pass
        with m.If(take):
            m.d.sync += number.eq(number + 1)
        with m.If(self.start):
            m.d.sync += [in_header.eq(1), self.index.eq(0)]

        # --- words and verdict ---------------------------------------------------------------
        header_wrong, foreign = self._check_header(m, take & in_header, word, number, ahead)
        m.d.comb += [
            self.word.eq(word),
            self.write.eq(Mux(take, unit, 0)),
            self.progress.eq(take),
            crc.word.eq(word),
            crc.valid.eq(take),
            crc.restart.eq(checking),
            good.eq(residue & ~(in_header & (header_wrong | foreign))),
        ]
        hash_only = Signal()
        m.d.sync += hash_only.eq(checking & residue & ~header_wrong)
        m.d.comb += [
            self.error_config_hash.eq(refused & in_header & hash_only),
            self.error_header.eq(refused & in_header & ~hash_only),
            self.error_instruction.eq(refused & ~in_header),
        ]

        # --- status ----------------------------------------------------------------------------
        held = Signal()
        if self._interleaved:
            with m.If(checking):
                m.d.sync += held.eq(unit[0] & brings_data)
            with m.Elif(self.load_drained & ~self.commit.any()):
                m.d.sync += held.eq(0)
            m.d.comb += ahead.hold.eq(held | state.ongoing("CHECK"))
        m.d.comb += [
            self.blocked.eq(waiting | held),
            self.finished.eq(ahead.ended & state.ongoing("DECODE") & ~self.commit.any()),
        ]
        return m

    def _words(self, m: Module, platform):
        """The stream of words to check."""
        words = stream.Signature(32).create()
        if self._small:
            m.d.comb += [
                words.payload.eq(self.data.payload.data),
                words.valid.eq(self.data.valid),
                self.data.ready.eq(words.ready),
            ]
            return words
        bus = self.config.bus
        capacity = 1 if self._interleaved else 2 * CHUNK_INSTRUCTIONS
        n_beats = capacity * INSTRUCTION_BYTES // bus.data_bytes
        buffer = place(m, platform, "buffer", BeatBuffer(bus.data_width, n_beats))
        m.d.comb += [buffer.i_valid.eq(self.data.valid), buffer.i.eq(self.data.payload.data)]
        return buffer.o

    def _check_header(self, m: Module, take, word, number, ahead) -> tuple[Signal, Signal]:
        """Flags, from word 5 of the header on: not a header; for another engine."""
        header_wrong, foreign = Signal(), Signal()
        fields = {field.name: field.low_bit // 32 for field in FIELDS[Opcode.BEGIN]}
        expected = {
            fields["magic"]: MAGIC,
            fields["version"]: VERSION,
            fields["config_hash"]: self.config.engine.hash32,
            fields["n_instructions"]: 0,
        }
        wanted, differs = Signal(32), Signal()
        m.d.comb += ahead.n_instructions.eq(word)
        with m.Switch(number):
            for place_in_header, value in expected.items():
                with m.Case(place_in_header):
                    m.d.comb += wanted.eq(value)
        m.d.comb += differs.eq(word != wanted)
        with m.If(take), m.Switch(number):
            with m.Case(0):
                m.d.sync += [header_wrong.eq(0), foreign.eq(0)]
            with m.Case(fields["magic"], fields["version"]):
                m.d.sync += header_wrong.eq(header_wrong | differs)
            with m.Case(fields["config_hash"]):
                m.d.sync += foreign.eq(differs)
            with m.Case(fields["n_instructions"]):
                m.d.sync += header_wrong.eq(header_wrong | ~differs)
                m.d.comb += ahead.n_valid.eq(1)
        return header_wrong, foreign
