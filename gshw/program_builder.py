"""From steps that wait for earlier steps to instructions with tokens.

Tokens between two units are all alike, so the n-th one given is the n-th one taken. The builder
hands out a token only where a step must wait for a later instruction than the steps before it in
its unit did; then givers and takers come in the same order, and no token is left at the end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gshw.program import Instruction, Opcode, Unit

_PLACE = {Unit.LOAD: 0, Unit.COMPUTE: 1, Unit.STORE: 2}


@dataclass(frozen=True)
class Step:
    """An instruction before it has tokens.

    Parameters
    ----------
    opcode, values
        As of :class:`gshw.program.Instruction`.
    after
        Steps of neighbouring units that must have finished.
    n_cycles
        Estimated length.
    owner
        Which layer of the program it is for.
    """

    opcode: Opcode
    values: Mapping[str, int]
    after: tuple[int, ...]
    n_cycles: int
    owner: int = 0


class ProgramBuilder:
    """Collects steps in the order of the program."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(
        self,
        opcode: Opcode,
        values: Mapping[str, int],
        after: Iterable[int],
        n_cycles: int,
        owner: int = 0,
    ) -> int:
        """Append a step and return its number; ``after`` holds numbers of earlier steps."""
        self.steps.append(Step(opcode, values, tuple(after), n_cycles, owner))
        return len(self.steps) - 1

    def last(self, unit: Unit) -> int:
        """The last step of a unit, which must have one."""
        return next(
            number
            for number in reversed(range(len(self.steps)))
            if self.steps[number].opcode.unit is unit
        )

    def instructions(self, address: int = 0) -> list[Instruction]:
        """The program, tokens included; ``address`` is added to the steps' addresses."""
        tokens: list[dict[str, bool]] = [{} for _ in self.steps]
        newest: dict[tuple[Unit, Unit], int] = {}
        for number, step in enumerate(self.steps):
            taker = step.opcode.unit
            for earlier in step.after:
                giver = self.steps[earlier].opcode.unit
                distance = _PLACE[taker] - _PLACE[giver]
                assert earlier < number and abs(distance) <= 1, "a neighbour's earlier step"
                if not distance or earlier <= newest.get((giver, taker), -1):
                    continue
                # Only the latest of several steps of one unit counts.
                if any(
                    other > earlier and self.steps[other].opcode.unit is giver
                    for other in step.after
                ):
                    continue
                newest[giver, taker] = earlier
                give, take = ("next", "previous") if distance > 0 else ("previous", "next")
                tokens[earlier][f"push_{give}"] = True
                tokens[number][f"pop_{take}"] = True
        program = []
        for step, given in zip(self.steps, tokens, strict=True):
            values = dict(step.values)
            if "address" in values:
                values["address"] += address
            program.append(Instruction(step.opcode, values, **given))
        return program

    def estimate(self) -> int:
        """Cycles of the program, when every step takes its length and waits only as it must."""
        free = dict.fromkeys(_PLACE, 0)
        ends: list[int] = []
        for step in self.steps:
            unit = step.opcode.unit
            start = max([free[unit], *(ends[earlier] for earlier in step.after)])
            free[unit] = start + step.n_cycles
            ends.append(free[unit])
        return max(ends, default=0)
