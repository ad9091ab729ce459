"""``gshw info`` and ``gshw generate``, and every broken config rule through the command line."""

import errno
import json
import os
from pathlib import Path

import pytest

from gshw.config import load_config, parse_config

TINY = load_config("tiny").engine


def test_info(run):
    result = run("info", "v16x4")
    assert (result.status, result.err) == (0, "")
    assert "v16x4: GS(16, 1), 16 lanes x 1 channel(s) x 4 column(s) = 64 MACs per cycle" in (
        result.out
    )
    assert load_config("v16x4").engine.hash in result.out


def test_info_json(run):
    data = json.loads(run("info", "block16", "--json").out)
    assert data["pattern"] == "GS(16, 1) with 1x4 blocks"
    assert data["config_hash"] == load_config("block16").engine.hash
    assert (data["block"], data["macs_per_cycle"]) == (4, 64)


def test_generate(run, tmp_path):
    """Four files, named on stdout; a second run gives the same bytes."""
    first = run("generate", "tiny", "-o", tmp_path / "a")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["config.toml", "gshw_core.v", "ports.json", "ports.md"]
    assert first.status == 0
    assert sorted(first.out.split()) == sorted(str(tmp_path / "a" / name) for name in names)
    run("generate", "tiny", "-o", tmp_path / "b")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    config = parse_config((tmp_path / "a" / "config.toml").read_text(), "tiny")
    assert config == load_config("tiny")
    assert "module gshw_core" in (tmp_path / "a" / "gshw_core.v").read_text()
    assert json.loads((tmp_path / "a" / "ports.json").read_text())["config_hash"] == TINY.hash


def test_generate_overwrites_only_when_forced(run, refused, tmp_path):
    run("generate", "tiny", "-o", tmp_path)
    (tmp_path / "gshw_core.v").write_text("mine")
    line = refused("generate", "tiny", "-o", tmp_path)
    assert line == f"{tmp_path}: must be an empty folder; --force overwrites files in it"
    assert (tmp_path / "gshw_core.v").read_text() == "mine"
    assert run("generate", "tiny", "-o", tmp_path, "--force").status == 0
    assert (tmp_path / "gshw_core.v").read_text() != "mine"


def test_generate_into_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("generate", "tiny", "-o", tmp_path / "file" / "out")
    assert line == f"{tmp_path}/file/out: cannot be made: Not a directory"


def test_generate_writes_nothing_for_a_bad_config(refused, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("[engine]\nlanes = 12\nrows = 1\nbank_width = 8\n")
    refused("generate", bad, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gshw_core.v", "ports.json"])
@pytest.mark.parametrize("exists", [False, True])
def test_generate_writes_all_files_or_none(refused, tmp_path, monkeypatch, name, exists):
    """The disk is full while the first or a later file is written."""
    write = Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    out = tmp_path / "out"
    if exists:
        out.mkdir()
    monkeypatch.setattr(Path, "write_bytes", fail)
    line = refused("generate", "tiny", "-o", out)
    assert line == f"{out}/{name}: cannot be written: No space left on device"
    assert list(tmp_path.rglob("*")) == ([out] if exists else [])


def test_generate_into_what_is_in_the_way(refused, tmp_path):
    (tmp_path / "regs").write_text("mine")
    line = refused("generate", "tiny", "--top", "axi", "-o", tmp_path, "--force")
    assert line.startswith(f"{tmp_path}/regs/") and line.endswith(
        ": cannot be made: Not a directory"
    )
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["regs"]


def test_generate_over_a_folder(refused, tmp_path):
    (tmp_path / "config.toml").write_text("old")
    (tmp_path / "ports.md").mkdir()
    line = refused("generate", "tiny", "-o", tmp_path, "--force")
    assert line == f"{tmp_path}/ports.md: cannot be written: Is a directory"
    assert (tmp_path / "config.toml").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"config.toml", "ports.md"}


def test_generate_for_a_board(refused, tmp_path):
    line = refused("generate", "tiny", "--top", "uart", "-o", tmp_path / "out")
    assert line == "top must be core, axi or stream, not uart: it belongs to a board"


# --- bad configs ---------------------------------------------------------------------------------

GOOD = {"lanes": 4, "rows": 2, "bank_width": 16}
BAD_ENGINES = [
    ({"lanes": 12}, "lanes must be a power of two from 2 to 64, not 12"),
    ({"lanes": '"four"'}, "lanes must be an integer, not 'four'"),
    ({"rows": 3}, "rows must be a power of two that divides lanes = 4, not 3"),
    ({"bank_depth": 1000}, "bank_depth must be a power of two from 16 to 65536, not 1000"),
    ({"columns": 17}, "columns must be from 1 to 16, not 17"),
    ({"activation_width": 7}, "activation_width must be 4, 8 or 16, not 7"),
    ({"weight_width": 2}, "weight_width must be 4, 8 or 16, not 2"),
    (
        {"bank_width": 24},
        "bank_width must be columns * activation_width times a power of two (the block), "
        "at most 512: a power-of-two multiple of 8, not 24",
    ),
    (
        {"accumulator_width": 40},
        "accumulator_width must be from 16 (16, or one whole product) to 32, not 40",
    ),
    ({"group_buffer_depth": 1}, "group_buffer_depth must be from 2 to 65536, not 1"),
    ({"row_buffer_depth": 70000}, "row_buffer_depth must be from 2 to 65536, not 70000"),
    ({"drain_rows": 4}, "drain_rows must be a power of two that is at most rows = 2, not 4"),
    (
        {"routing": '"direct"'},
        "routing may be 'direct' only with rows = 1 (a horizontal engine), "
        "not 'direct' with rows = 2",
    ),
    (
        {"routing": '"mesh"'},
        "routing must be one of direct, crossbar, benes, not 'mesh'",
    ),
    ({"gather": '"lazy"'}, "gather must be one of scheduled, arbitrated, not 'lazy'"),
    (
        {"gather": '"arbitrated"'},
        "gather may be 'arbitrated' only with routing = 'crossbar' (bank numbers known at run "
        "time), not 'arbitrated' with routing = 'benes'",
    ),
    (
        {"banks": 4},
        "[engine] has no key 'banks'; its keys are lanes, rows, bank_width, bank_depth, "
        "output_depth, columns, activation_width, weight_width, accumulator_width, "
        "group_buffer_depth, row_buffer_depth, drain_rows, routing, gather, max_pooling, "
        "activation_tables",
    ),
]


def toml(engine: dict, target: str = "") -> str:
    return "[engine]\n" + "".join(f"{k} = {v}\n" for k, v in engine.items()) + target


@pytest.mark.parametrize(("change", "message"), BAD_ENGINES)
def test_broken_config_rules(refused, tmp_path, change, message):
    """The line names the file, the key, the rule and the value."""
    path = tmp_path / "engine.toml"
    path.write_text(toml(GOOD | change))
    assert refused("info", path) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (toml({"rows": 2, "bank_width": 16}), "[engine] needs the key 'lanes'"),
        ("[target]\n", "needs a table [engine]"),
        (
            toml(GOOD, "[simulator]\n"),
            "unknown table or key 'simulator'; the tables are engine, bus, target",
        ),
        (toml(GOOD, "[target]\nclock_mhz = 0\n"), "clock_mhz must be from 1 to 1000, not 0"),
        (toml(GOOD, '[target]\ndevice = ""\n'), "device must be a non-empty string, not ''"),
        (
            toml(GOOD, "[target]\nspeed = 6\n"),
            "[target] has no key 'speed'; its keys are device, clock_mhz",
        ),
    ],
)
def test_broken_config_files(refused, tmp_path, text, message):
    path = tmp_path / "engine.toml"
    path.write_text(text)
    assert refused("info", path) == f"{path}: {message}"


def test_text_that_is_no_toml(refused, tmp_path):
    path = tmp_path / "engine.toml"
    path.write_text("[engine\n")
    assert refused("info", path).startswith(f"{path}: not valid TOML: ")


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["generate", "-o", "out"],
        ["explain", "m", "--config"],
        ["simulate", "m", "--config"],
        ["image", "m", "--layer", "fc", "-o", "out", "--config"],
        ["check", "m.npy", "--config"],
        ["prune", "a:b", "--sparsity", "0.5", "-o", "out", "--config"],
        ["test", "--config"],
    ],
    ids=lambda c: c[0],
)
def test_missing_config(refused, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(*command, "nothing.toml")
    assert line.startswith("nothing.toml: no such config file, nor a preset; presets are arb16, ")
    assert list(tmp_path.iterdir()) == []
