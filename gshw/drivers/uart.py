"""A core behind a serial line: ``gshw_uart``, reached with the protocol of ``docs/uart.md``."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gshw.config import Config
from gshw.drivers.accelerator import Accelerator, HostMemory, ProgramRun
from gshw.drivers.control import Control
from gshw.drivers.serial_port import SerialPort
from gshw.drivers.stream_form import StreamForm
from gshw.errors import GshwError
from gshw.top import Top
from gshw.uart_protocol import (
    ALTERNATE,
    DEFAULT_BAUD,
    N_DROPPED,
    POSITIONS,
    PROTOCOL_VERSION,
    WORD_BYTES,
    Capacity,
    FrameDecoder,
    Kind,
    Reply,
    Request,
    behind_uart,
    decode_reply,
    read_capacity,
)

LINE_BITS = 10
"""Bits that a byte takes on the line."""
SEND_WORDS = 32
"""Words of a frame: few enough that little is lost with one, many enough to hide its ends."""
LOOK_ROUNDS = 8
"""Rounds of an exchange after which the host looks whether the program has failed."""


@dataclass
class LinkStatistics:
    """What went wrong on the line, and was put right.

    Parameters
    ----------
    repeated
        Requests that got no answer in time, and lost batches of words.
    bad
        Frames from the board that were damaged.
    dropped
        Frames that the board could not use.
    """

    repeated: int = 0
    bad: int = 0
    dropped: int = 0

    @property
    def any(self) -> bool:
        """Whether anything went wrong."""
        return bool(self.repeated or self.bad or self.dropped)

    def __str__(self) -> str:
        return (
            f"{self.repeated} frames repeated, {self.bad} damaged on the way here, "
            f"{self.dropped} dropped by the board"
        )


class UartLink:
    """Registers and streams of a core behind a serial line.

    Every request is repeated until it is answered; all of them may be.

    Parameters
    ----------
    port
        The line.
    timeout_s
        How long to wait for an answer, beyond the time that its bytes take.
    n_tries
        How often a request is sent before the board counts as gone.
    """

    def __init__(self, port: SerialPort, *, timeout_s: float = 0.4, n_tries: int = 5) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._n_tries = n_tries
        self._decoder = FrameDecoder()
        # Replies to requests of an earlier program may still be on their way.
        self._tag = time.monotonic_ns() // 1_000_000 % 256
        self._alternate = 0
        self._n_dropped: int | None = None
        self._synchronised = False
        self.capacity = Capacity(0, 0)
        self.statistics = LinkStatistics()

    # --- requests ----------------------------------------------------------------------------

    @property
    def reachable(self) -> bool:
        """Whether the latest request was answered."""
        return self._synchronised

    def sync(self) -> None:
        """Make both sides forget all words on the streams, and number them from 0 again.

        Raises
        ------
        GshwError
            When the board does not answer, or speaks another version of the protocol.
        """
        self._synchronised = False
        reply = self._ask(Kind.SYNC)
        version, self.capacity = read_capacity(reply.payload)
        if version != PROTOCOL_VERSION:
            raise GshwError(
                f"{self._port.path}: the board must speak version {PROTOCOL_VERSION} of the "
                f"protocol, not {version}"
            )
        self._alternate = 0
        self._synchronised = True

    def request(self, kind: Kind, number: int, payload: bytes = b"") -> Reply:
        """Ask, and return the answer.

        Raises
        ------
        GshwError
            When there is none after all tries; the next request synchronises first.
        """
        if not self._synchronised:
            self.sync()
        return self._ask(kind, number, payload)

    def _ask(self, kind: Kind, number: int = 0, payload: bytes = b"") -> Reply:
        # An interrupt may leave a request behind that was done or not: synchronise after it.
        synchronised, self._synchronised = self._synchronised, False
        self._tag = (self._tag + 1) % 256
        frame = Request(kind=kind, tag=self._tag, number=number, payload=payload).encode()
        # The longest answer: all words that the board can hold, each byte escaped.
        n_bytes = len(frame) + 2 * WORD_BYTES * (self.capacity.receive + 4)
        n_bytes += 2 * WORD_BYTES * self.capacity.send
        patience_s = self._timeout_s + n_bytes * LINE_BITS / self._port.baud
        for n_try in range(self._n_tries):
            self.statistics.repeated += n_try > 0
            self._port.write(frame, patience_s)
            reply = self._wait(kind, patience_s)
            if reply is not None:
                self._synchronised = synchronised
                return reply
        raise GshwError(
            f"{self._port.path}: the board does not answer: {self._n_tries} tries in "
            f"{self._n_tries * patience_s:.1f} s"
        )

    def _wait(self, kind: Kind, patience_s: float) -> Reply | None:
        """The reply to the latest request; None when it does not come in time."""
        end = time.monotonic() + patience_s
        while (left_s := end - time.monotonic()) > 0:
            frames = self._decoder.feed(self._port.read(left_s))
            self.statistics.bad = self._decoder.n_bad
            for frame in frames:
                reply = decode_reply(frame)
                if reply and reply.tag == self._tag and reply.kind is kind:
                    before = reply.dropped if self._n_dropped is None else self._n_dropped
                    self.statistics.dropped += (reply.dropped - before) % N_DROPPED
                    self._n_dropped = reply.dropped
                    return reply
        return None

    # --- registers ---------------------------------------------------------------------------

    def read_register(self, offset: int) -> int:
        reply = self.request(Kind.READ, offset)
        self._check_register(reply, offset)
        return int.from_bytes(reply.payload, "little")

    def write_register(self, offset: int, value: int) -> None:
        if not self._synchronised:
            self.sync()
        # A write that is repeated must not be done twice.
        alternate = self._alternate ^ ALTERNATE
        payload = value.to_bytes(WORD_BYTES, "little")
        reply = self.request(Kind.WRITE, offset | alternate, payload)
        self._alternate = alternate
        self._check_register(reply, offset)

    def _check_register(self, reply: Reply, offset: int) -> None:
        if reply.flag:
            raise GshwError(f"register 0x{offset:03x}: the core has none there")

    # --- streams -----------------------------------------------------------------------------

    def exchange(
        self, data: bytes, ended: Callable[[], bool], timeout_s: float
    ) -> tuple[bytes, list[int]]:
        """Send one packet, and take all packets that come back, until the core has ended.

        To be called after :meth:`sync`, once the core has started.

        Parameters
        ----------
        data
            Whole words.
        ended
            Whether the core has ended, well or not.
        timeout_s
            Longest time in which nothing moves.

        Returns
        -------
        received, packet_ends
            All packets in a row, and where each ends.

        Raises
        ------
        GshwError
            When the board does not answer, was reset meanwhile, or nothing moves.
        """
        n_words = len(data) // WORD_BYTES
        accepted = taken = n_received = n_rounds = 0
        received = bytearray()
        packet_ends: list[int] = []
        has_ended = False
        moved_at = time.monotonic()
        while True:
            sent = self._send_words(data, accepted, taken)
            before = (accepted, taken, n_received)
            reply = self.request(Kind.RECEIVE, n_received % POSITIONS)
            accepted += (reply.accepted - accepted) % POSITIONS
            taken += (reply.taken - taken) % POSITIONS
            if not taken <= accepted <= sent:
                self._synchronised = False
                raise GshwError(f"{self._port.path}: the board lost its place: was it reset?")
            # What was sent before the request and is not accepted by now never will be.
            self.statistics.repeated += accepted < sent
            received += reply.payload
            n_received = len(received) // WORD_BYTES
            if reply.flag:
                packet_ends.append(len(received))
            moved = before != (accepted, taken, n_received)
            if has_ended and not reply.payload:
                return bytes(received), packet_ends
            n_rounds += 1
            if not moved or (accepted < n_words and n_rounds % LOOK_ROUNDS == 0):
                # Results that came before the end are taken in the next rounds.
                has_ended = has_ended or ended()
            if moved:
                moved_at = time.monotonic()
            elif time.monotonic() > moved_at + timeout_s and not has_ended:
                raise GshwError(f"the program did not end: nothing moved for {timeout_s:g} s")

    def _send_words(self, data: bytes, first: int, taken: int) -> int:
        """Send words from number ``first`` on as far as the board has room; up to which one."""
        n_words = len(data) // WORD_BYTES
        stop = min(n_words, taken + self.capacity.send)
        for start in range(first, stop, SEND_WORDS):
            end = min(start + SEND_WORDS, stop)
            frame = Request(
                kind=Kind.SEND,
                tag=int(end == n_words),
                number=start % POSITIONS,
                payload=data[WORD_BYTES * start : WORD_BYTES * end],
            ).encode()
            self._port.write(frame, self._timeout_s + len(frame) * LINE_BITS / self._port.baud)
        return max(first, stop)


class UartAccelerator(Accelerator):
    """``gshw_uart`` behind a serial port; its memory is the host's.

    Parameters
    ----------
    config
        The config. Its bus counts for nothing here.
    path, baud
        The port, and bits per second as the board has them.
    n_bytes, base
        Size and first address of the memory that programs speak of.
    answer_timeout_s, n_tries
        See :class:`UartLink`.
    timeout_s
        Longest time in which a program may stand still.

    Raises
    ------
    GshwError
        When there is no such port, no board answers, or its core is for another config.
    """

    def __init__(
        self,
        config: Config,
        path: Path | str,
        *,
        baud: int = DEFAULT_BAUD,
        n_bytes: int = 1 << 26,
        base: int = 0,
        answer_timeout_s: float = 0.4,
        n_tries: int = 5,
        timeout_s: float = 60.0,
    ) -> None:
        super().__init__(config, HostMemory(n_bytes, base))
        self._timeout_s = timeout_s
        self._behind = behind_uart(config)
        self._port = SerialPort(path, baud)
        self.link = UartLink(self._port, timeout_s=answer_timeout_s, n_tries=n_tries)
        try:
            self.control = Control(self.link, self._behind, Top.UART)
        except BaseException:
            self._port.close()
            raise

    def run(self, address: int) -> ProgramRun:
        form = StreamForm(self._behind, self.memory, address)
        self.link.sync()
        self.control.make_ready()
        try:
            self.control.start(0)
            received, packet_ends = self.link.exchange(
                form.to_core, lambda: self.control.finished, self._timeout_s
            )
            run = self.control.result()
        except BaseException as error:
            # A board that does not answer would only be waited for again: the next run resets it.
            if self.link.reachable or not isinstance(error, GshwError):
                with suppress(GshwError):
                    self.control.reset()
            raise
        form.store(received, packet_ends)
        return run

    @property
    def note(self) -> str:
        statistics = self.link.statistics
        return f"{self._port.path}: {statistics}" if statistics.any else ""

    def close(self) -> None:
        self._port.close()
