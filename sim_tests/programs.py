"""Random programs: any legal mix of instructions that no race can spoil, and what memory becomes.

Each begins with a prologue that gives every buffer word that it will read a known value, so it
does not matter what ran before, not even what was broken off. Hazards are found here by looking at
the last user of every cell; :class:`gshw.program_order.OrderChecker`, which shares nothing with
that, has the last word when the software model makes the expected memory.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.layout import group_fields, word_width
from gshw.program import INSTRUCTION_BYTES, Instruction, assemble
from gshw.program_model import ProgramModel
from gshw.program_text import to_text
from sim_tests.program_maker import ProgramMaker


def memory_bytes(config: Config) -> int:
    """Size of the memory: some pages, and more for an engine of wide group words."""
    engine = config.engine
    n_groups = 60 + engine.channels_per_row // engine.rows
    n_needed = 2 * n_groups * (word_width(group_fields(engine)) // 8 + 64)
    return max(1 << 15, 1 << n_needed.bit_length())


def memory_base(config: Config) -> int:
    """Address of the memory's first byte: its middle is where the highest address bit changes."""
    return (1 << min(config.bus.address_width - 1, 60)) - memory_bytes(config) // 2


@dataclass(frozen=True, kw_only=True)
class RandomProgram:
    """A program, its memory, and what the memory is afterwards.

    Parameters
    ----------
    config
        What it is for.
    address
        Of the header.
    instructions
        Without the header.
    before, after
        The whole memory, bytes.
    written
        Bool per byte: some store writes it.
    """

    config: Config
    address: int
    instructions: list[Instruction]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    written: NDArray[np.bool_]

    @property
    def base(self) -> int:
        """Address of the memory's first byte."""
        return memory_base(self.config)

    @property
    def text(self) -> str:
        """For the messages of failing tests."""
        return to_text(self.config.engine.hash32, self.instructions)

    @property
    def program_bytes(self) -> slice:
        """Places of header and instructions in the memory."""
        start = self.address - self.base
        return slice(start, start + INSTRUCTION_BYTES * (1 + len(self.instructions)))

    def check(self, memory: NDArray[np.uint8], what: str = "") -> None:
        """The memory must be what the software model says, everywhere."""
        wrong = np.flatnonzero(memory != self.after)
        assert not wrong.size, (
            f"{what}: {wrong.size} of {self.written.sum()} stored bytes differ, the first at "
            f"{self.base + wrong[0]:#x}: {memory[wrong[0]]:#04x}, not {self.after[wrong[0]]:#04x}, "
            f"stored: {self.written[wrong[0]]}\nprogram at {self.address:#x}\n{self.text}"
        )

    def check_broken_off(self, memory: NDArray[np.uint8], what: str = "") -> None:
        """A program that did not end may have changed only what it stores."""
        wrong = np.flatnonzero((memory != self.before) & ~self.written)
        assert not wrong.size, (
            f"{what}: {wrong.size} bytes outside the stored regions changed, the first at "
            f"{self.base + wrong[0]:#x}\nprogram at {self.address:#x}\n{self.text}"
        )


def finish_program(
    config: Config,
    address: int,
    instructions: list[Instruction],
    memory: NDArray[np.uint8],
    written: NDArray[np.bool_],
) -> RandomProgram:
    """Put the program into memory and let the software model run it."""
    program = assemble(config.engine.hash32, instructions)
    base = memory_base(config)
    start = address - base
    memory[start : start + len(program)] = np.frombuffer(program, np.uint8)
    after = memory.copy()
    ProgramModel(config.engine, after, base_address=base).run_at(address)
    return RandomProgram(
        config=config,
        address=address,
        instructions=instructions,
        before=memory,
        after=after,
        written=written,
    )


def random_program(
    rng: np.random.Generator,
    config: Config,
    *,
    n_steps: int = 24,
    window_words: int = 40,
    feedback: bool = True,
) -> RandomProgram:
    """Any legal program of about ``n_steps`` instructions behind its prologue.

    Parameters
    ----------
    window_words
        Words of the scratchpad and the output buffer that the prologue prepares.
    feedback
        Loads may read what stores wrote; over a stream they cannot.
    """
    base = memory_base(config)
    maker = ProgramMaker(rng, config, base, memory_bytes(config), n_steps, window_words, feedback)
    address = base + maker.make()
    instructions = maker.builder.instructions()
    return finish_program(config, address, instructions, maker.memory, maker.written)
