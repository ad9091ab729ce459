"""A program in memory as what goes over a stream, and its results back into memory.

``docs/program.md``, section "On a stream", is the specification.
"""

from itertools import accumulate

from gshw.config import Config
from gshw.drivers.accelerator import CoreMemory
from gshw.errors import GshwError
from gshw.program import INSTRUCTION_BYTES, Instruction, Opcode, disassemble, read_header
from gshw.program_model import walk_runs


def _addresses(instruction: Instruction) -> list[int]:
    """Memory address of every run, in loop order."""
    return (instruction["address"] + walk_runs(instruction, "memory_stride")).tolist()


_LOADS = (Opcode.LOAD_ACTIVATIONS, Opcode.LOAD_GROUPS, Opcode.LOAD_RECORDS)


class StreamForm:
    """One program, ready to be sent.

    Parameters
    ----------
    config
        The core.
    memory
        Holds the program, what it loads, and takes what it stores.
    address
        Of the program's header.

    Attributes
    ----------
    to_core
        Bytes to send, whole beats.
    n_from_core
        Bytes that come back, whole beats.
    packet_ends
        Where in them each packet ends.

    Raises
    ------
    GshwError
        For a program that is not for this core, or reaches outside the memory.
    """

    def __init__(self, config: Config, memory: CoreMemory, address: int) -> None:
        self._memory = memory
        self._beat = config.bus.data_bytes
        header = read_header(memory.read(address, INSTRUCTION_BYTES).tobytes())
        n_bytes = INSTRUCTION_BYTES * (1 + header["n_instructions"])
        raw = memory.read(address, n_bytes).tobytes()
        instructions = disassemble(raw, config.engine)
        parts = [raw[:INSTRUCTION_BYTES]]
        self._stores: list[Instruction] = []
        for index, instruction in enumerate(instructions, start=1):
            parts.append(raw[index * INSTRUCTION_BYTES : (index + 1) * INSTRUCTION_BYTES])
            if instruction.opcode in _LOADS:
                n_run = instruction["run_bytes"]
                padding = bytes(self._padded(n_run) - n_run)
                for start in _addresses(instruction):
                    parts += [memory.read(start, n_run).tobytes(), padding]
            elif instruction.opcode is Opcode.STORE:
                self._stores.append(instruction)
        self.to_core = b"".join(parts)
        self.packet_ends = list(accumulate(map(self._packet_bytes, self._stores)))
        self.n_from_core = self.packet_ends[-1] if self.packet_ends else 0

    def _padded(self, n_bytes: int) -> int:
        return -(-n_bytes // self._beat) * self._beat

    def _packet_bytes(self, store: Instruction) -> int:
        return store["count_0"] * store["count_1"] * self._padded(store["run_bytes"])

    def store(self, received: bytes, packet_ends: list[int]) -> None:
        """Write the results to memory.

        Parameters
        ----------
        received
            Everything that came back, whole beats.
        packet_ends
            Where each packet (``tlast``) ended.

        Raises
        ------
        GshwError
            When it is not what the program stores.
        """
        if packet_ends != self.packet_ends or len(received) != self.n_from_core:
            raise GshwError(
                f"the core sent {len(received)} bytes in {len(packet_ends)} packets; the program "
                f"stores {self.n_from_core} in {len(self.packet_ends)}"
            )
        position = 0
        for store in self._stores:
            n_run = store["run_bytes"]
            for address in _addresses(store):
                self._memory.write(address, received[position : position + n_run])
                position += self._padded(n_run)
