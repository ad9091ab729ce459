"""The top modules that the generator offers."""

import enum


class Top(enum.Enum):
    """What surrounds the engine."""

    CORE = "core"
    """Streams for words and commands, nothing else."""
    AXI = "axi"
    """AXI4-Lite registers and an AXI4 master that reads programs and moves data."""
    STREAM = "stream"
    """AXI4-Lite registers and AXI4-Stream: programs and data in, results out."""

    UART = "uart"
    """The core of STREAM behind a serial line; see ``docs/uart.md``."""

    @property
    def module_name(self) -> str:
        """Name of the Verilog module."""
        return f"gshw_{self.value}"
