"""CRC-32 of a stream of words: a whole word, or one bit, per cycle."""

from functools import reduce
from operator import xor

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

_POLYNOMIAL = 0xEDB88320
"""Of zlib's CRC-32 (ISO 3309), lowest bit first."""
RESIDUE = 0xDEBB20E3
"""The register after words that end with their own CRC-32."""


def word_step(state: int) -> int:
    """The register 32 bits later, for a register already added to those bits.

    It is linear: the step of a sum is the sum of the steps.
    """
    for _ in range(32):
        state = state >> 1 ^ (_POLYNOMIAL if state & 1 else 0)
    return state


class Crc32(wiring.Component):
    """CRC-32, as zlib's, of 32-bit little-endian words.

    Latency: ``residue`` follows the last word by one cycle. Throughput: one word per cycle.

    Members
    -------
    restart
        Forget all words; not together with ``valid``.
    valid, word
        A word.
    residue
        The words since the restart end with the CRC-32 of those before the last.
    """

    def __init__(self) -> None:
        super().__init__({"restart": In(1), "valid": In(1), "word": In(32), "residue": Out(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        register = Signal(32, init=0xFFFFFFFF)
        columns = [word_step(1 << i) for i in range(32)]
        total = Signal(32)
        m.d.comb += total.eq(register ^ self.word)
        following = [
            reduce(xor, (total[i] for i in range(32) if columns[i] >> bit & 1)) for bit in range(32)
        ]
        with m.If(self.restart):
            m.d.sync += register.eq(0xFFFFFFFF)
        with m.Elif(self.valid):
            m.d.sync += register.eq(Cat(following))
        m.d.comb += self.residue.eq(register == RESIDUE)
        return m


class SerialCrc32(wiring.Component):
    """CRC-32, as zlib's, of little-endian words, one bit per cycle.

    Latency and throughput: a word takes ``width + 1`` cycles.

    Parameters
    ----------
    width
        Bits of a word.

    Members
    -------
    ready
        No word is worked on: what follows may be used.
    restart
        Forget all words.
    valid, word
        A word.
    unload
        With ``valid``: instead of adding a word, move the register's next word to its low end.
    register
        ``RESIDUE`` after words that end with their checksum. The checksum is its complement,
        lowest bits first.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self.variant = width
        super().__init__(
            {
                "ready": Out(1),
                "restart": In(1),
                "valid": In(1),
                "word": In(width),
                "unload": In(1),
                "register": Out(32, init=0xFFFFFFFF),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bits = Signal(self._width, reset_less=True)
        n_left = Signal(range(self._width + 1))
        adding = Signal(reset_less=True)
        feedback = Signal()
        m.d.comb += [
            self.ready.eq(n_left == 0),
            feedback.eq((self.register[0] ^ bits[0]) & adding),
        ]
        with m.If(~self.ready):
            m.d.sync += [
                bits.eq(bits >> 1),
                n_left.eq(n_left - 1),
                self.register.eq(
                    (self.register >> 1) ^ (Const(_POLYNOMIAL, 32) & feedback.replicate(32))
                ),
            ]
        with m.Elif(self.valid):
            m.d.sync += [bits.eq(self.word), n_left.eq(self._width), adding.eq(~self.unload)]
        with m.If(self.restart):
            m.d.sync += self.register.eq(-1)
        return m
