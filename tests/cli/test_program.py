"""``gshw program``, ``gshw assemble`` and ``gshw disassemble``."""

import numpy as np
import pytest

from gshw.artefact import load_model
from gshw.config import load_config
from gshw.lower import lower_layer
from gshw.program import disassemble, first_program

CONFIG = load_config("tiny")


@pytest.fixture
def lowered(model, tmp_path, run):
    """The file that ``gshw program`` writes for the convolution, and what it prints."""
    path = tmp_path / "conv.bin"
    result = run(
        "program", model, "--config", "tiny", "--layer", "conv", "--samples", "2",
        "--address", "0x1000", "-o", path,
    )  # fmt: skip
    assert result.status == 0
    return path, result.out


def test_program_is_the_lowered_layer(model, lowered):
    path, out = lowered
    layer = load_model(model, CONFIG.engine).layers["conv"]
    expected = lower_layer(CONFIG, layer, 2, 4, 5, base_address=0x1000)
    assert path.read_bytes() == expected.image
    assert out == f"{path}\n{expected.memory_map}\n"
    placed = expected.memory(np.ones((2, 4, 5, 5), dtype=np.int64))
    assert placed.tobytes().startswith(expected.image)


def test_text_and_back(lowered, tmp_path, run):
    path, _ = lowered
    listing = run("disassemble", path, "--config", "tiny")
    assert listing.status == 0
    n_instructions = len(disassemble(first_program(path.read_bytes())))
    lines = listing.out.splitlines()
    assert len(lines) == n_instructions + 1
    assert lines[0] == f"begin config_hash={CONFIG.engine.hash32:#010x}"
    for text, options in ((listing.out, []), ("\n".join(lines[1:]), ["--config", "tiny"])):
        source, binary = tmp_path / "p.txt", tmp_path / "p.bin"
        source.write_text(text)
        assert run("assemble", source, "-o", binary, *options).out == f"{binary}\n"
        assert path.read_bytes().startswith(binary.read_bytes())


def test_what_is_refused(lowered, model, tmp_path, refused):
    path, _ = lowered
    hash32 = f"{CONFIG.engine.hash32:08x}"
    other = f"{load_config('h16').engine.hash32:08x}"
    source, output = tmp_path / "p.txt", tmp_path / "out.bin"
    for text, options, message in (
        ("sync\nwait", [], "line 2: instruction must be one of"),
        ("sync", [], "must begin with a line begin config_hash=..., or give --config"),
        (
            f"begin config_hash=0x{hash32}\nsync",
            ["--config", "h16"],
            f"was written for the engine {hash32}, not for {other}",
        ),
    ):
        source.write_text(text)
        line = refused("assemble", source, "-o", output, *options)
        assert line.startswith(f"{source}: {message}")
    source.write_bytes(b"\xff\xfe")
    assert refused("assemble", source, "-o", output) == f"{source}: must be UTF-8 text, not binary"
    nowhere = tmp_path / "nowhere"
    assert (
        refused("disassemble", nowhere) == f"{nowhere}: cannot be read: No such file or directory"
    )
    assert not output.exists()

    line = refused("disassemble", path, "--config", "h16")
    assert line == f"{path}: program was made for the engine {hash32}, not for {other}"
    damaged = bytearray(path.read_bytes())
    damaged[70] ^= 1
    path.write_bytes(damaged)
    assert refused("disassemble", path).startswith(f"{path}: instruction 1: CRC-32 must be ")
    path.write_bytes(damaged[:100])
    assert refused("disassemble", path).startswith(f"{path}: truncated program: ")
    line = refused(
        "program", model, "--config", "tiny", "--layer", "fc", "--address", "-64", "-o", output
    )
    assert line == "base_address must be a multiple of 64, not -0x40"


def test_an_address_must_be_a_number(refused):
    command = ["program", "m", "--config", "tiny", "--layer", "a", "-o", "x"]
    assert refused(*command, "--address", "here") == (
        "argument --address: must be an integer, not 'here'; gshw program --help tells more"
    )
