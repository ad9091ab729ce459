"""From bus beats to buffer words of any number of 32-bit limbs."""

from math import gcd

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

LIMB_WIDTH = 32


class Gearbox(wiring.Component):
    """Cuts runs of densely packed words out of beats.

    Every limb goes straight to its place in one word register. Only where a beat may begin at
    another limb than a multiple of the beat's, it is rotated on the way; and limbs that belong to
    the following word wait one beat, so that the finished word can be taken meanwhile. With
    64-bit beats and 3-limb words (w0 is limb 0 of a word, 0..5 the limbs of the run)::

        beat        1 0     3 2     5 4
        rotation     0       0       1      limb 3 is w0 of the second word,
        written    w1 w0    w2      w2 w1   written with the beat after it
        finished             yes     yes

    A beat wider than a word is cut into parts of the largest power of two of limbs that a word
    has, each of which takes one cycle.

    Latency: ``word`` is valid one cycle after ``finish``. Throughput: one beat per cycle, or
    ``n_parts`` cycles per beat where beats are wider than words.

    Parameters
    ----------
    data_width
        Bits of a beat, a power of two from 32.
    n_limbs
        Limbs of a word.

    Members
    -------
    clear
        Begin anew; the next beat starts a word.
    valid, data, last
        A beat, held until ``ready``; ``last`` ends the run and with it the partial word.
    tail_bytes
        Bytes of a run's last beat, modulo the bytes of a beat; must hold from the cycle before
        the first beat on.
    ready
        High in the cycle in which a valid beat is used up.
    finish
        The current part completes a word.
    word_end
        The current part fills its word, whether the run may end there or not.
    incomplete
        The run ends within a word. ``finish`` is low then.
    word
        The finished word.
    """

    def __init__(self, data_width: int, n_limbs: int) -> None:
        self._beat_limbs = data_width // LIMB_WIDTH
        self._n_limbs = n_limbs
        self._part_limbs = min(self._beat_limbs, 1 << (n_limbs.bit_length() - 1))
        self.variant = (data_width, n_limbs)
        super().__init__(
            {
                "clear": In(1),
                "valid": In(1),
                "data": In(data_width),
                "last": In(1),
                "tail_bytes": In(range(data_width // 8)),
                "ready": Out(1),
                "finish": Out(1),
                "word_end": Out(1),
                "incomplete": Out(1),
                "word": Out(n_limbs * LIMB_WIDTH),
            }
        )

    @property
    def n_parts(self) -> int:
        """Cycles per beat."""
        return self._beat_limbs // self._part_limbs

    def elaborate(self, platform) -> Module:
        m = Module()
        n_limbs, part_limbs = self._n_limbs, self._part_limbs
        log2_part = part_limbs.bit_length() - 1
        n_whole, rest = divmod(n_limbs, part_limbs)

        # --- part ---------------------------------------------------------------------------
        tail_limbs = self.tail_bytes[2:]
        step = Signal()
        ending = Signal()
        if self.n_parts == 1:
            part = self.data
            m.d.comb += [
                self.ready.eq(1),
                step.eq(self.valid),
                ending.eq(self.valid & self.last),
            ]
        else:
            number = Signal(range(self.n_parts))
            final = Signal(range(self.n_parts))
            m.d.comb += final.eq((self.tail_bytes - 1)[2 + log2_part :])
            part = self.data.word_select(number, part_limbs * LIMB_WIDTH)
            m.d.comb += [
                self.ready.eq(number.all()),
                step.eq(self.valid & (~self.last | (number <= final))),
                ending.eq(self.valid & self.last & (number == final)),
            ]
            with m.If(self.clear):
                m.d.sync += number.eq(0)
            with m.Elif(self.valid):
                m.d.sync += number.eq(number + 1)

        # --- place of the part in the word: start = part_limbs * index(here) + rotation ----------
        n_places = n_whole + bool(rest)
        here = Signal(n_places, init=1)
        spacing = gcd(part_limbs, rest)
        log2_spacing = spacing.bit_length() - 1
        shift = Signal(range(part_limbs // spacing))
        rotation = Cat(Const(0, log2_spacing), shift)
        complete = here[n_whole - 1]
        if rest:
            complete = here[n_whole] | (complete & (rotation >= rest))
        # From registers: the tail is known long before its beat.
        has_whole_limbs = Signal(reset_less=True)
        m.d.sync += has_whole_limbs.eq(self.tail_bytes[:2] == 0)
        fits = has_whole_limbs
        if log2_part:
            last_rotation = Signal(log2_part, reset_less=True)
            m.d.sync += last_rotation.eq(n_limbs - tail_limbs)
            fits = has_whole_limbs & (rotation == last_rotation)
        m.d.comb += [
            self.word_end.eq(step & complete),
            self.incomplete.eq(ending & ~(complete & fits)),
            self.finish.eq(self.word_end & (~ending | fits)),
        ]
        with m.If(self.clear | ending):
            m.d.sync += [here.eq(1), shift.eq(0)]
        with m.Elif(step):
            with m.If(complete):
                m.d.sync += [here.eq(1), shift.eq((rotation - rest)[log2_spacing:log2_part])]
            with m.Else():
                m.d.sync += here.eq(here << 1)

        # --- limbs to their places ---------------------------------------------------------
        limbs = [part[LIMB_WIDTH * i : LIMB_WIDTH * (i + 1)] for i in range(part_limbs)]
        for bit in range(len(shift)):
            turn = spacing << bit
            limbs = [
                Mux(shift[bit], limbs[(i - turn) % part_limbs], limbs[i]) for i in range(part_limbs)
            ]
        places = []
        for place in range(n_limbs):
            row, column = divmod(place, part_limbs)
            limb = Signal(LIMB_WIDTH, name=f"limb_{place}", reset_less=True)
            source, enable = limbs[column], here[row]
            if column < part_limbs - spacing:
                from_before = rotation > column
                if row:
                    enable = Mux(from_before, here[row - 1], here[row])
                else:
                    waiting = Signal(LIMB_WIDTH, name=f"waiting_{place}", reset_less=True)
                    with m.If(step):
                        m.d.sync += waiting.eq(limbs[(column + rest) % part_limbs])
                    source = Mux(from_before, waiting, source)
            with m.If(step & enable):
                m.d.sync += limb.eq(source)
            places.append(limb)
        m.d.comb += self.word.eq(Cat(places))
        return m
