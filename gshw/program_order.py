"""Do the tokens of a program order every pair of accesses that must not happen at once?

Ours: vector clocks, as race detectors of threads use them (Flanagan and Freund, "FastTrack",
PLDI 2009). Each unit counts its instructions; with every token goes what its giver knows to be
finished. Every buffer has one unit that writes it and one that reads it, so two ordinals per word
are the whole history.
"""

import enum
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gshw.errors import GshwError
from gshw.program import MAX_TOKENS, Instruction, Unit

UNITS = (Unit.LOAD, Unit.COMPUTE, Unit.STORE)
Clock = list[int]
"""Per unit of :data:`UNITS`: how many of its instructions are known to be finished."""


class Resource(enum.Enum):
    """What units share: (name of one cell, writing unit, reading unit)."""

    SCRATCHPAD = ("scratchpad word", Unit.LOAD, Unit.COMPUTE)
    GROUPS = ("group", Unit.LOAD, Unit.COMPUTE)
    RECORDS = ("record", Unit.LOAD, Unit.COMPUTE)
    OUTPUT = ("output word", Unit.COMPUTE, Unit.STORE)
    MEMORY = ("memory byte", Unit.STORE, Unit.LOAD)

    @property
    def cell(self) -> str:
        return self.value[0]

    @property
    def writer(self) -> Unit:
        return self.value[1]

    @property
    def reader(self) -> Unit:
        return self.value[2]


class OrderChecker:
    """Follows a program in its order and refuses what tokens do not keep apart.

    An instruction may take only tokens that instructions before it in the program give. Then the
    units never wait for each other in a circle, however short their queues are.

    Parameters
    ----------
    instructions
        The program, without its header; the header is instruction 0.
    n_cells
        Cells of every resource.

    Raises
    ------
    GshwError
        From the methods, for a token that is missing, left or one too many, and for accesses that
        no token orders.
    """

    def __init__(self, instructions: Sequence[Instruction], n_cells: dict[Resource, int]) -> None:
        self._instructions = instructions
        self._last = {
            (resource, writes): np.zeros(n_cells[resource], dtype=np.int32)
            for resource in Resource
            for writes in (False, True)
        }
        self._numbers: dict[Unit, list[int]] = {unit: [] for unit in UNITS}
        self._known: dict[Unit, Clock] = {unit: [0] * len(UNITS) for unit in UNITS}
        self._waiting: dict[tuple[Unit, Unit], deque[Clock]] = {}
        self._taken: dict[tuple[Unit, Unit], list[int]] = {}
        for one, other in (UNITS[:2], UNITS[1:]):
            for way in ((one, other), (other, one)):
                self._waiting[way] = deque()
                self._taken[way] = []
        self._number = 0

    def _neighbours(self, unit: Unit) -> tuple[tuple[str, Unit], ...]:
        place = UNITS.index(unit)
        pairs = []
        if place > 0:
            pairs.append(("previous", UNITS[place - 1]))
        if place + 1 < len(UNITS):
            pairs.append(("next", UNITS[place + 1]))
        return tuple(pairs)

    def start(self, number: int) -> None:
        """The instruction takes its tokens; ``number`` counts from 1."""
        instruction = self._instructions[number - 1]
        unit = instruction.unit
        self._number = number
        known = self._known[unit]
        for side, neighbour in self._neighbours(unit):
            if not getattr(instruction, f"pop_{side}"):
                continue
            way = (neighbour, unit)
            if not self._waiting[way]:
                raise GshwError(self._missing(way, len(self._taken[way])))
            for place, count in enumerate(self._waiting[way].popleft()):
                known[place] = max(known[place], count)
            self._taken[way].append(len(self._numbers[unit]) + 1)
        self._numbers[unit].append(number)

    def _missing(self, way: tuple[Unit, Unit], n_taken: int) -> str:
        """Why the token number ``n_taken`` of this way is not there."""
        giver, taker = way
        place = UNITS.index(taker) - UNITS.index(giver)
        side = "push_next" if place > 0 else "push_previous"
        givers = [
            number
            for number, instruction in enumerate(self._instructions, 1)
            if instruction.unit is giver and getattr(instruction, side)
        ]
        what = f"deadlock: the token from {giver.value}"
        if n_taken < len(givers):
            return (
                f"{what} must come from an instruction before it in the program, "
                f"not from instruction {givers[n_taken]}"
            )
        return f"{what} must be given by an instruction of {giver.value}, and none is left"

    def access(self, resource: Resource, cells: NDArray[np.int64] | slice, *, writes: bool) -> None:
        """The instruction reads or writes these cells, at some time between start and finish."""
        unit, other = resource.reader, resource.writer
        if writes:
            unit, other = other, unit
        against = self._last[resource, not writes][cells]
        if against.size:
            latest = int(against.max())
            if latest > self._known[unit][UNITS.index(other)]:
                self._refuse(resource, cells, other, latest, against, writes)
        self._last[resource, writes][cells] = len(self._numbers[unit])

    def _refuse(
        self,
        resource: Resource,
        cells: NDArray[np.int64] | slice,
        other: Unit,
        latest: int,
        against: NDArray[np.int32],
        writes: bool,
    ) -> None:
        place = int(against.argmax())
        cell = cells.start + place if isinstance(cells, slice) else int(cells.reshape(-1)[place])
        number = self._numbers[other][latest - 1]
        name = self._instructions[number - 1].opcode.text
        mine, theirs = ("writes", "may still read") if writes else ("reads", "may still write")
        raise GshwError(
            f"{mine} {resource.cell} {cell}, which instruction {number} ({name}) {theirs}: "
            f"a token must order them"
        )

    def finish(self) -> None:
        """The instruction gives its tokens."""
        instruction = self._instructions[self._number - 1]
        unit = instruction.unit
        clock = list(self._known[unit])
        clock[UNITS.index(unit)] = len(self._numbers[unit])
        for side, neighbour in self._neighbours(unit):
            if not getattr(instruction, f"push_{side}"):
                continue
            way = (unit, neighbour)
            self._waiting[way].append(clock)
            # Only takers that finished before this instruction began surely took their tokens.
            finished = self._known[unit][UNITS.index(neighbour)]
            surely = bisect_right(self._taken[way], finished)
            n_given = len(self._taken[way]) + len(self._waiting[way])
            if n_given - surely > MAX_TOKENS:
                raise GshwError(
                    f"tokens from {unit.value} to {neighbour.value} that may wait at once must be "
                    f"at most {MAX_TOKENS}, not {n_given - surely}"
                )

    def end(self) -> None:
        """No token may be left: the next program starts with none."""
        for (giver, taker), waiting in self._waiting.items():
            if waiting:
                raise GshwError(
                    f"tokens from {giver.value} to {taker.value} must all be taken at the end of "
                    f"the program, not {len(waiting)} left"
                )
