"""The protocol between a host and a core behind a serial line: frames, requests, replies.

``docs/uart.md`` is the specification. This is the host's side, and what the RTL shares with it.
"""

import enum
import struct
import zlib
from dataclasses import dataclass, replace

from gshw.config import BusConfig, Config

FLAG = 0x7E
"""Stands before and after every frame, and nowhere else."""
ESCAPE = 0x7D
"""The byte after it was changed by ``FLIP`` because it looked like one of these two."""
FLIP = 0x20
PROTOCOL_VERSION = 1
DEFAULT_BAUD = 115200
"""Bits per second where nothing else is said."""
BUS = BusConfig(data_width=32, address_width=16)
"""Of every core behind a serial line, whatever its config says: words, and no addresses."""
WORD_BYTES = 4
POSITION_WIDTH = 12
"""Bits of the number of a word on a stream."""
POSITIONS = 1 << POSITION_WIDTH
DROPPED_WIDTH = 7
"""Bits of the board's count of dropped frames."""
N_DROPPED = 1 << DROPPED_WIDTH
REPLY = 0x80
"""Bit of the first byte of every frame that the board sends."""
ALTERNATE = 1 << POSITION_WIDTH
"""Bit of ``number`` that changes with every new register write."""
MAX_FRAME_BYTES = 4 * WORD_BYTES + WORD_BYTES * POSITIONS
"""Longest frame, without its flags and before escapes."""
_HEADER = struct.Struct("<BBH")
_CRC = struct.Struct("<I")


class Kind(enum.IntEnum):
    """What a frame asks for; a reply has ``REPLY`` added."""

    SYNC = 0
    READ = 1
    WRITE = 2
    SEND = 3
    RECEIVE = 4


@dataclass(frozen=True, kw_only=True)
class Request:
    """A frame from the host.

    Parameters
    ----------
    kind
        ``SEND`` has no reply, every other kind has one.
    tag
        Comes back in the reply; of ``SEND`` bit 0: the last word ends the stream's packet.
    number
        Byte offset of a register (``WRITE``: plus ``ALTERNATE`` every other time), or position of
        a word on a stream, modulo ``POSITIONS``: the first one sent, or the first one wanted.
    payload
        Whole words: the value of ``WRITE``, the words of ``SEND``.
    """

    kind: Kind
    tag: int
    number: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        """As it goes over the line, flags included."""
        return encode_frame(_HEADER.pack(self.kind, self.tag, self.number) + self.payload)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A frame from the board.

    Parameters
    ----------
    kind, tag, number
        Of the request.
    payload
        The register's value, or words of the stream, or what the board is (``SYNC``).
    accepted
        Words accepted from the host since the last ``SYNC``, modulo ``POSITIONS``.
    taken
        How many of them the core has taken.
    dropped
        Frames that the board could not use, modulo ``N_DROPPED``.
    flag
        There is no such register; or the last word ends a packet.
    """

    kind: Kind
    tag: int
    number: int
    payload: bytes
    accepted: int
    taken: int
    dropped: int
    flag: bool


@dataclass(frozen=True)
class Capacity:
    """Words that the board can hold in each direction."""

    send: int
    receive: int


def encode_frame(body: bytes) -> bytes:
    """Checksum, escapes and flags around the contents of a frame."""
    body += _CRC.pack(zlib.crc32(body))
    for byte in (ESCAPE, FLAG):
        body = body.replace(bytes([byte]), bytes([ESCAPE, byte ^ FLIP]))
    return b"%c%b%c" % (FLAG, body, FLAG)


def decode_reply(body: bytes) -> Reply | None:
    """The reply in a checked frame; None for anything else, such as an echo of the host's own."""
    if len(body) < 2 * WORD_BYTES or len(body) % WORD_BYTES or not body[0] & REPLY:
        return None
    kind, tag, number = _HEADER.unpack_from(body)
    if kind ^ REPLY not in set(Kind):
        return None
    status = int.from_bytes(body[-WORD_BYTES:], "little")
    return Reply(
        kind=Kind(kind ^ REPLY),
        tag=tag,
        number=number,
        payload=body[WORD_BYTES:-WORD_BYTES],
        accepted=status % POSITIONS,
        taken=(status >> POSITION_WIDTH) % POSITIONS,
        dropped=(status >> 2 * POSITION_WIDTH) % N_DROPPED,
        flag=bool(status >> 31),
    )


def capacity_word(n_send: int, n_receive: int) -> int:
    """Payload of the reply to ``SYNC``."""
    return PROTOCOL_VERSION | n_send << 8 | n_receive << (8 + POSITION_WIDTH)


def read_capacity(payload: bytes) -> tuple[int, Capacity]:
    """Protocol version and capacities in the payload of the reply to ``SYNC``."""
    word = int.from_bytes(payload, "little")
    n_send, n_receive = word >> 8, word >> (8 + POSITION_WIDTH)
    return word & 0xFF, Capacity(n_send % POSITIONS, n_receive % POSITIONS)


def behind_uart(config: Config) -> Config:
    """The config of a core behind a serial line."""
    return replace(config, bus=BUS)


class FrameDecoder:
    """Finds frames in bytes that come in pieces of any size.

    Whatever lies between two flags and is not a frame is dropped, and counted in ``n_bad``.
    """

    def __init__(self) -> None:
        self.n_bad = 0
        self._held = bytearray()
        self._in_frame = False

    def feed(self, data: bytes) -> list[bytes]:
        """Contents of the frames that end in ``data``, without their checksums."""
        frames = []
        *ended, rest = data.split(b"%c" % FLAG)
        for piece in ended:
            self._hold(piece)
            if self._in_frame and self._held:
                body = _checked(bytes(self._held))
                if body is None:
                    self.n_bad += 1
                else:
                    frames.append(body)
            self._held.clear()
            self._in_frame = True
        self._hold(rest)
        return frames

    def _hold(self, piece: bytes) -> None:
        # A line that babbles must not fill the memory.
        room = 2 * MAX_FRAME_BYTES + 1 - len(self._held)
        self._held += piece[:room]


def _checked(raw: bytes) -> bytes | None:
    """A frame without its escapes and its checksum; None when it is damaged."""
    first, *others = raw.split(b"%c" % ESCAPE)
    if not all(others):
        return None
    body = first + b"".join(b"%c%b" % (part[0] ^ FLIP, part[1:]) for part in others)
    content, checksum = body[: -_CRC.size], body[-_CRC.size :]
    if len(body) <= _CRC.size or _CRC.unpack(checksum)[0] != zlib.crc32(content):
        return None
    return content
