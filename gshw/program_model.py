"""Executes programs in software, bit for bit, and refuses what the core could get wrong.

Instructions run one after the other in the program's order. That is one of the orders that the
core may choose; :class:`gshw.program_order.OrderChecker` proves that all others give the same.
"""

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.engine_model import EngineModel
from gshw.errors import GshwError
from gshw.layout import group_fields, record_fields, word_width
from gshw.program import (
    INSTRUCTION_BYTES,
    Instruction,
    Opcode,
    disassemble,
    read_header,
)
from gshw.program_order import OrderChecker, Resource


def unpack_codes(config: EngineConfig, raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Codes, as unsigned bits, of bytes along the last axis; the lower half of a byte first."""
    match config.activation_width:
        case 4:
            return np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1).astype(int)
        case 8:
            return raw.astype(np.int64)
        case _:
            return np.ascontiguousarray(raw).view("<u2").astype(np.int64)


def pack_codes(config: EngineConfig, codes: NDArray) -> NDArray[np.uint8]:
    """Inverse of :func:`unpack_codes`; an odd count of 4-bit codes is filled up with 0."""
    codes = codes & ((1 << config.activation_width) - 1)
    match config.activation_width:
        case 4:
            if codes.shape[-1] % 2:
                codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
            return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
        case 8:
            return codes.astype(np.uint8)
        case _:
            return np.ascontiguousarray(codes.astype("<u2")).view(np.uint8)


def walk_runs(instruction: Instruction, stride: str) -> NDArray[np.int64]:
    """Distance of every run from the first, in loop order, for the strides of this name."""
    inner, outer = instruction.loop("count")
    inner_stride, outer_stride = instruction.loop(stride)
    distance = np.arange(outer)[:, None] * outer_stride + np.arange(inner) * inner_stride
    return distance.reshape(-1)


class ProgramModel:
    """The core with its memory.

    Buffers keep their contents from one program to the next, as in hardware.

    Parameters
    ----------
    config
        The engine.
    memory
        Bytes; stores change them in place.
    base_address
        Of the first byte.

    Attributes
    ----------
    engine
        Buffers and arithmetic.
    memory
        As given.
    written
        Shape (output_depth,), bool: output words that some command has written.
    """

    def __init__(
        self, config: EngineConfig, memory: NDArray[np.uint8], *, base_address: int = 0
    ) -> None:
        self.config = config
        self.engine = EngineModel(config)
        self.memory = memory
        self.base_address = base_address
        self.written = np.zeros(config.output_depth, dtype=np.bool_)

    def run_at(self, address: int) -> None:
        """Run the program that lies in memory at this address."""
        start = self._offset(address, INSTRUCTION_BYTES)
        header = read_header(self.memory[start : start + INSTRUCTION_BYTES].tobytes())
        n_bytes = (header["n_instructions"] + 1) * INSTRUCTION_BYTES
        self._offset(address, n_bytes)
        self.run(self.memory[start : start + n_bytes].tobytes(), at=address)

    def run(self, program: bytes, *, at: int | None = None) -> None:
        """Run a program.

        Parameters
        ----------
        at
            Its address, where it lies in this memory: stores must not touch it.

        Raises
        ------
        GshwError
            One line that names the instruction: what :func:`gshw.program.disassemble` and
            :class:`gshw.program_order.OrderChecker` refuse, ranges outside a buffer or memory,
            incomplete words, and stores of words that no command has written.
        """
        instructions = disassemble(program, self.config)
        own = (0, 0) if at is None else (at - self.base_address, len(program))
        self._program = range(own[0], own[0] + own[1])
        config = self.config
        cells = {
            Resource.SCRATCHPAD: config.bank_depth,
            Resource.GROUPS: config.group_buffer_depth,
            Resource.RECORDS: config.record_load_depth,
            Resource.OUTPUT: config.output_depth,
            Resource.MEMORY: self.memory.size,
        }
        order = OrderChecker(instructions, cells)
        for number, instruction in enumerate(instructions, 1):
            try:
                order.start(number)
                self._execute(instruction, order)
                order.finish()
            except GshwError as error:
                name = instruction.opcode.text
                raise GshwError(f"instruction {number} ({name}): {error}") from None
        order.end()

    def _execute(self, instruction: Instruction, order: OrderChecker) -> None:
        match instruction.opcode:
            case Opcode.LOAD_ACTIVATIONS:
                self._load_activations(instruction, order)
            case Opcode.LOAD_GROUPS | Opcode.LOAD_RECORDS:
                self._load_words(instruction, order)
            case Opcode.FILL:
                self._fill(instruction, order)
            case Opcode.RUN:
                self._run(instruction, order)
            case Opcode.STORE:
                self._store(instruction, order)
            case _:
                pass

    # --- memory ------------------------------------------------------------------------------

    def _offset(self, address: int, n_bytes: int) -> int:
        """Place in the memory array; refuses what is not wholly inside."""
        start = address - self.base_address
        if start < 0 or start + n_bytes > self.memory.size:
            last = self.base_address + self.memory.size - 1
            raise GshwError(
                f"bytes {address:#x}..{address + n_bytes - 1:#x} must lie in memory, "
                f"{self.base_address:#x}..{last:#x}"
            )
        return start

    def _run_bytes(self, instruction: Instruction) -> NDArray[np.int64]:
        """Places in memory of every run's bytes: (n_runs, run_bytes)."""
        starts = instruction["address"] + walk_runs(instruction, "memory_stride")
        for address in (int(starts.min()), int(starts.max())):
            self._offset(address, instruction["run_bytes"])
        return (starts - self.base_address)[:, None] + np.arange(instruction["run_bytes"])

    def _n_codes(self, instruction: Instruction) -> int:
        bits = 8 * instruction["run_bytes"]
        if bits % self.config.activation_width:
            raise GshwError(
                f"run_bytes must be whole codes of {self.config.activation_width} bits, "
                f"not {instruction['run_bytes']} bytes"
            )
        return bits // self.config.activation_width

    # --- load --------------------------------------------------------------------------------

    def _columns(self, instruction: Instruction) -> NDArray[np.int64]:
        mask = instruction["columns"]
        if not 0 < mask < 1 << self.config.columns:
            raise GshwError(
                f"columns must name some of the {self.config.columns} columns, not {mask:#x}"
            )
        return np.flatnonzero(mask >> np.arange(self.config.columns) & 1)

    def _load_activations(self, instruction: Instruction, order: OrderChecker) -> None:
        config = self.config
        columns = self._columns(instruction)
        places = self._run_bytes(instruction)
        n_codes = self._n_codes(instruction)
        first = instruction["target"] + walk_runs(instruction, "target_stride")
        words = _words(first, -(-n_codes // config.channels_per_row), config.bank_depth)
        order.access(Resource.MEMORY, places, writes=False)
        order.access(Resource.SCRATCHPAD, words, writes=True)
        codes = unpack_codes(config, self.memory[places])
        channel = first[:, None] * config.channels_per_row + np.arange(n_codes)
        for column in columns:
            self.engine.scratchpad[channel, column] = codes

    def _load_words(self, instruction: Instruction, order: OrderChecker) -> None:
        config = self.config
        groups = instruction.opcode is Opcode.LOAD_GROUPS
        fields = group_fields(config) if groups else record_fields(config)
        word_bytes = -(-word_width(fields) // 32) * 4
        if instruction["columns"]:
            raise GshwError(f"columns must be 0, not {instruction['columns']:#x}")
        if instruction["run_bytes"] % word_bytes:
            what = "groups" if groups else "records"
            raise GshwError(
                f"run_bytes must be whole {what} of {word_bytes} bytes, "
                f"not {instruction['run_bytes']}"
            )
        places = self._run_bytes(instruction)
        first = instruction["target"] + walk_runs(instruction, "target_stride")
        n_words = instruction["run_bytes"] // word_bytes
        depth = config.group_buffer_depth if groups else config.row_buffer_depth
        start = 0
        if not groups and config.activation_tables and int(first.min()) >= config.table_base:
            start, depth = config.table_base, config.record_load_depth
        entries = _words(first, n_words, depth, start)
        order.access(Resource.MEMORY, places, writes=False)
        order.access(Resource.GROUPS if groups else Resource.RECORDS, entries, writes=True)
        load = self.engine.load_groups if groups else self.engine.load_records
        for start, run in zip(first, self.memory[places], strict=True):
            load(int(start), run.view("<u4").reshape(-1, word_bytes // 4))

    def _fill(self, instruction: Instruction, order: OrderChecker) -> None:
        config = self.config
        if instruction["value"] >> config.activation_width:
            raise GshwError(
                f"value must have {config.activation_width} bits, not {instruction['value']:#x}"
            )
        first = instruction["target"] + walk_runs(instruction, "target_stride")
        words = _words(first, instruction["n_words"], config.bank_depth)
        columns = self._columns(instruction)
        order.access(Resource.SCRATCHPAD, words, writes=True)
        shape = (config.bank_depth, config.channels_per_row, config.columns)
        rows = self.engine.scratchpad.reshape(shape)
        for column in columns:
            rows[words, :, column] = instruction["value"]

    # --- compute and store -------------------------------------------------------------------

    def _run(self, instruction: Instruction, order: OrderChecker) -> None:
        touched = self.engine.run(instruction)
        for resource, base, count in (
            (Resource.GROUPS, "group_base", "n_groups"),
            (Resource.RECORDS, "record_base", "n_records"),
        ):
            cells = slice(instruction[base], instruction[base] + instruction[count])
            order.access(resource, cells, writes=False)
        if instruction["table"]:
            n_words = self.config.table_words
            first = self.config.table_base + (instruction["table"] - 1) * n_words
            order.access(Resource.RECORDS, slice(first, first + n_words), writes=False)
        order.access(Resource.SCRATCHPAD, touched.read, writes=False)
        order.access(Resource.OUTPUT, touched.written, writes=True)
        self.written[touched.written] = True

    def _store(self, instruction: Instruction, order: OrderChecker) -> None:
        config = self.config
        if instruction["column"] >= config.columns:
            raise GshwError(
                f"column must be below columns = {config.columns}, not {instruction['column']}"
            )
        places = self._run_bytes(instruction)
        n_codes = self._n_codes(instruction)
        first = instruction["source"] + walk_runs(instruction, "source_stride")
        words = _words(first, -(-n_codes // config.channels_per_row), config.output_depth)
        order.access(Resource.OUTPUT, words, writes=False)
        if not self.written[words].all():
            missing = int(words[~self.written[words]][0])
            raise GshwError(f"output word {missing} must have been written by a run")
        if self._program:
            hit = (places >= self._program.start) & (places < self._program.stop)
            if hit.any():
                address = self.base_address + int(places[hit][0])
                raise GshwError(f"byte {address:#x} of the program itself must not be written")
        order.access(Resource.MEMORY, places, writes=True)
        channel = first[:, None] * config.channels_per_row + np.arange(n_codes)
        codes = self.engine.output[channel, instruction["column"]]
        self.memory[places] = pack_codes(config, codes)


def _words(first: NDArray[np.int64], n_words: int, depth: int, start: int = 0) -> NDArray[np.int64]:
    """Words of runs that start at ``first``; refuses a run that leaves ``start`` to ``depth``."""
    if int(first.min()) < start:
        raise GshwError(f"words must be from {start} on, not {int(first.min())}")
    last = int(first.max()) + n_words - 1
    if last >= depth:
        raise GshwError(f"words must be below the buffer's depth of {depth}, not {last}")
    return (first[:, None] + np.arange(n_words)).reshape(-1)
