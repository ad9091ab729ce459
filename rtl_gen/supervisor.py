"""Watches a program for standing still."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

DEADLOCK_CYCLES = 64


class Supervisor(wiring.Component):
    """Finds programs that wait for tokens that cannot come, and those that do not move.

    Latency: ``deadlock`` comes two cycles after ``DEADLOCK_CYCLES`` cycles in which ``stuck`` was
    high, ``watchdog`` two cycles after ``watchdog_cycles`` cycles without ``progress``, or at most
    two after the setting was made less than the cycles that have passed.

    Parameters
    ----------
    watchdog
        Whether there is a watchdog.

    Members
    -------
    watch
        A program runs and has not failed.
    stuck
        Nothing can move: all units are idle or wait for tokens, and one waits.
    progress
        Something moved.
    watchdog_cycles
        0 switches the watchdog off.
    """

    def __init__(self, *, watchdog: bool = True) -> None:
        self._has_watchdog = watchdog
        self.variant = watchdog
        super().__init__(
            {
                "watch": In(1),
                "stuck": In(1),
                "progress": In(1),
                "watchdog_cycles": In(32),
                "deadlock": Out(1),
                "watchdog": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        left = Signal(range(DEADLOCK_CYCLES), init=DEADLOCK_CYCLES - 1)
        watched = Signal()
        m.d.sync += [watched.eq(self.watch & self.stuck), self.deadlock.eq(watched & (left == 0))]
        with m.If(watched):
            m.d.sync += left.eq(left - 1)
        with m.Else():
            m.d.sync += left.eq(DEADLOCK_CYCLES - 1)
        if not self._has_watchdog:
            return m

        quiet = Signal(32)
        moved = Signal()
        wanted = Signal()
        limit = Signal(32)
        m.d.sync += [
            moved.eq(self.progress | ~self.watch),
            limit.eq(self.watchdog_cycles),
            wanted.eq(self.watchdog_cycles != 0),
            # Not only when equal: the setting may fall below what has passed.
            self.watchdog.eq(~moved & wanted & (quiet >= limit)),
        ]
        with m.If(moved):
            m.d.sync += quiet.eq(0)
        with m.Else():
            m.d.sync += quiet.eq(quiet + 1)
        return m
