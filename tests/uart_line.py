"""gshw_uart, verilated, in this process: bytes in, bytes out, at the caller's pace."""

import ctypes
from pathlib import Path

from gshw.uart_protocol import FrameDecoder, Kind, Reply, Request, decode_reply

DIVISOR = 4
BYTE_CYCLES = 10 * DIVISOR


class Line:
    """A board fresh from power-up, and the other end of its cable."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._c.gshw_open.restype = ctypes.c_void_p
        self._c.gshw_receive.restype = ctypes.c_uint64
        self._handle = ctypes.c_void_p(self._c.gshw_open(None, DIVISOR))
        self._decoder = FrameDecoder()
        self._tag = 0

    def close(self) -> None:
        self._c.gshw_close(self._handle)

    def put(self, data: bytes, *, answer_bytes: int = 0) -> list[Reply]:
        """Send bytes, give them time and an answer too; returns the replies that came."""
        self._c.gshw_send(self._handle, data, ctypes.c_uint64(len(data)))
        n_cycles = (len(data) + 2 * answer_bytes + 4) * BYTE_CYCLES + 300
        self._c.gshw_run(self._handle, ctypes.c_uint64(n_cycles))
        buffer = ctypes.create_string_buffer(1 << 16)
        n_bytes = self._c.gshw_receive(self._handle, buffer, ctypes.c_uint64(len(buffer)))
        replies = [decode_reply(frame) for frame in self._decoder.feed(buffer.raw[:n_bytes])]
        assert None not in replies and self._decoder.n_bad == 0
        return [reply for reply in replies if reply is not None]

    def frame(self, kind: Kind, number: int = 0, payload: bytes = b"", *, tag: int | None = None):
        """The frame of a request; a new tag where none is given."""
        self._tag = (self._tag + 1) % 256
        tag = self._tag if tag is None else tag
        return Request(kind=kind, tag=tag, number=number, payload=payload).encode()

    def ask(self, kind: Kind, number: int = 0, payload: bytes = b"") -> Reply:
        """The reply to one request."""
        frame = self.frame(kind, number, payload)
        (reply,) = self.put(frame, answer_bytes=600 if kind is Kind.RECEIVE else 24)
        assert (reply.kind, reply.tag, reply.number) == (kind, self._tag, number)
        return reply
