"""``gshw program``, ``gshw assemble`` and ``gshw disassemble``."""

import argparse
from pathlib import Path

from gshw.config import Config, load_config
from gshw.encoding import EncodedLayer
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.lower import lower_layer
from gshw.program import assemble, disassemble, first_program, read_header
from gshw.program_text import parse_text, to_text
from gshw.simulate import input_size


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GshwError(f"{path}: cannot be read: {error.strerror}") from None


def program_command(arguments: argparse.Namespace, config: Config, layer: EncodedLayer) -> int:
    """Write the program of one layer and its weights as one piece, and print the memory map."""
    size = arguments.samples, *input_size(layer)
    lowered = lower_layer(config, layer, *size, base_address=arguments.address)
    write_atomically(arguments.output, lowered.image)
    print(arguments.output)
    print(lowered.memory_map)
    return 0


def assemble_command(arguments: argparse.Namespace) -> int:
    """Write the binary form of a text; with a config, check or give its hash."""
    source = arguments.source
    data = _read_bytes(source)
    try:
        config_hash32, instructions = parse_text(data.decode())
    except UnicodeDecodeError:
        raise GshwError(f"{source}: must be UTF-8 text, not binary") from None
    except GshwError as error:
        raise GshwError(f"{source}: {error}") from None
    if arguments.config is not None:
        wanted = load_config(arguments.config).engine.hash32
        if config_hash32 not in (None, wanted):
            raise GshwError(
                f"{source}: was written for the engine {config_hash32:08x}, not for {wanted:08x}"
            )
        config_hash32 = wanted
    if config_hash32 is None:
        raise GshwError(f"{source}: must begin with a line begin config_hash=..., or give --config")
    write_atomically(arguments.output, assemble(config_hash32, instructions))
    print(arguments.output)
    return 0


def disassemble_command(arguments: argparse.Namespace) -> int:
    """Print the text of a binary program; bytes behind it are left alone."""
    engine = None if arguments.config is None else load_config(arguments.config).engine
    data = _read_bytes(arguments.program)
    try:
        instructions = disassemble(first_program(data), engine)
        config_hash32 = read_header(data)["config_hash"]
    except GshwError as error:
        raise GshwError(f"{arguments.program}: {error}") from None
    print(to_text(config_hash32, instructions), end="")
    return 0
