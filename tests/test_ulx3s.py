# amaranth: UnusedElaboratable=no
"""The bitstream of the ULX3S: its clock and pins, and the build, with stand-ins for the tools."""

from pathlib import Path

import pytest

from gshw.cli import main
from gshw.config import load_config
from gshw.errors import GshwError
from rtl_gen import emit
from rtl_gen.boards import ulx3s

CONFIG = load_config("tiny")


def test_clocks_and_rates_of_the_ulx3s():
    for clock_mhz in (5, 25, 50, 60, 75, 100, 120, 400):
        pll = ulx3s.pll_settings(clock_mhz)
        assert 25 * pll.feedback_divider == clock_mhz * pll.input_divider
        assert 400 <= clock_mhz * pll.output_divider <= 800
    for clock_mhz in (0, 1, 12, 48, 425):
        with pytest.raises(
            GshwError, match=rf"^clock must be 25 MHz times .* not {clock_mhz} MHz$"
        ):
            ulx3s.pll_settings(clock_mhz)
    assert ulx3s.uart_divisor(50, 115200) == 434
    assert ulx3s.uart_divisor(100, 3_000_000) == 33
    for clock_mhz, baud in ((50, 0), (50, 1200), (25, 3_000_000), (5, 2_000_000)):
        with pytest.raises(GshwError, match=rf"^baud must be within 2 % .* not {baud}$"):
            ulx3s.uart_divisor(clock_mhz, baud)


def test_pins_of_the_board():
    plan = ulx3s.plan_bitstream(CONFIG, clock_mhz=50, baud=115200)
    assert 'LOCATE COMP "uart_0__rx__io" SITE "M1";' in plan.files["gshw_ulx3s.lpf"]
    assert 'LOCATE COMP "uart_0__tx__io" SITE "L4";' in plan.files["gshw_ulx3s.lpf"]
    assert "module gshw_uart" in plan.files["gshw_uart.v"]


# --- the build, without the tools ----------------------------------------------------------------

YOSYS = "echo mapped > gshw_ulx3s.json"
NEXTPNR = """\
line="Info: Max frequency for clock '\\$glbnet\\$clk'"
echo "$line: 40.00 MHz (FAIL at 50.00 MHz)" > gshw_ulx3s.tim
echo "$line: 61.75 MHz (PASS at 50.00 MHz)" >> gshw_ulx3s.tim
touch gshw_ulx3s.config"""
ECPPACK = "echo bits > gshw_ulx3s.bit"
TOO_SLOW = """\
echo "Info: Program finished soon." > gshw_ulx3s.tim
echo "ERROR: Max frequency for clock 'clk': 40.00 MHz (FAIL at 50.00 MHz)" >> gshw_ulx3s.tim
exit 1"""
TOO_LARGE = """\
echo "Info: Device utilisation:" > gshw_ulx3s.tim
echo "Info:        TRELLIS_COMB: 100000/83640   119%" >> gshw_ulx3s.tim
echo "Info:              DP16KD:   218/  208   104%" >> gshw_ulx3s.tim
echo "ERROR: Unable to place cell 'x'" >> gshw_ulx3s.tim
exit 1"""
TITLE = "tiny for the ULX3S at 50 MHz"


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Sets the three programs, which do what the scripts say; the core's Verilog is given."""
    monkeypatch.setattr(ulx3s, "cached_uart_verilog", lambda *_: "module gshw_uart; endmodule\n")

    def make(*, yosys: str = YOSYS, nextpnr: str = NEXTPNR, ecppack: str = ECPPACK) -> None:
        scripts = {"YOSYS": yosys, "NEXTPNR_ECP5": nextpnr, "ECPPACK": ecppack}
        for variable, script in scripts.items():
            monkeypatch.setenv(variable, program(tmp_path / variable, script))

    make()
    return make


@pytest.fixture
def board(tmp_path, capsys):
    """Runs ``gshw board`` into ``out``; gives the status, stdout and the line on stderr."""

    def call(*options: str) -> tuple[int, str, str]:
        status = main(["board", "ulx3s", "tiny", "-o", str(tmp_path / "out"), *options])
        printed = capsys.readouterr()
        return status, printed.out, printed.err.removeprefix("gshw: ").rstrip("\n")

    return call


def test_a_build(tools, board, tmp_path):
    """The clock is the last that nextpnr reports: the one after routing."""
    status, out, err = board()
    bitstream = tmp_path / "out" / "gshw_ulx3s.bit"
    assert (status, err) == (0, "")
    assert out == f"{bitstream}\n50 MHz wanted, 61.8 MHz possible, 115200 baud\n"
    names = {path.name for path in bitstream.parent.iterdir()}
    assert {"gshw_uart.v", "gshw_ulx3s.lpf", "gshw_ulx3s.tim", "build_gshw_ulx3s.sh"} < names
    assert bitstream.read_text() == "bits\n"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "YOSYS", "NEXTPNR_ECP5", "ECPPACK"}


FAILURES = [
    (
        {"nextpnr": TOO_SLOW},
        f"{TITLE}: the build failed: Max frequency for clock 'clk': 40.00 MHz (FAIL at 50.00 MHz)",
    ),
    (
        {"nextpnr": TOO_LARGE},
        "tiny does not fit ecp5-85k: 100000 logic cells (TRELLIS_COMB) of 83640, 16360 too many; "
        "218 block RAMs (DP16KD) of 208, 10 too many; try fewer lanes, rows or columns, or "
        "a smaller bank_depth, output_depth or group_buffer_depth",
    ),
    ({"yosys": "echo nothing works >&2; exit 3"}, f"{TITLE}: the build failed: nothing works"),
    ({"yosys": "exit 1"}, f"{TITLE}: the build failed: no output"),
    (
        {"nextpnr": "touch gshw_ulx3s.tim"},
        f"{TITLE}: the tools must report a clock and make gshw_ulx3s.bit, and did not",
    ),
    (
        {"ecppack": "true"},
        f"{TITLE}: the tools must report a clock and make gshw_ulx3s.bit, and did not",
    ),
]


@pytest.mark.parametrize(("scripts", "line"), FAILURES)
@pytest.mark.parametrize("forced", [False, True])
def test_a_build_that_fails_writes_nothing(tools, board, tmp_path, scripts, line, forced):
    """Nor does it touch what an earlier build has left."""
    if forced:
        assert board()[0] == 0
    tools(**scripts)
    assert board("--force") == (2, "", line)
    if forced:
        assert (tmp_path / "out" / "gshw_ulx3s.bit").read_text() == "bits\n"
        assert "61.75" in (tmp_path / "out" / "gshw_ulx3s.tim").read_text()
    else:
        assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.rglob(".*")], "no temporary folder is left"


def test_a_folder_that_is_not_empty(tools, board, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    line = f"{tmp_path}/out: must be an empty folder; --force overwrites files in it"
    assert board() == (2, "", line)
    assert board("--force")[0] == 0
    assert (tmp_path / "out" / "old").exists()


@pytest.mark.parametrize("variable", ["YOSYS", "NEXTPNR_ECP5", "ECPPACK"])
def test_a_variable_that_names_no_program(tools, board, monkeypatch, variable):
    monkeypatch.setenv(variable, "/nonexistent")
    line = f"{variable} must name a program that is installed, not '/nonexistent'"
    assert board() == (2, "", line)


@pytest.mark.parametrize("missing", ["yosys", "nextpnr-ecp5", "ecppack"])
def test_a_tool_that_is_not_installed(board, tmp_path, monkeypatch, missing):
    for variable, name in (
        ("YOSYS", "yosys"),
        ("NEXTPNR_ECP5", "nextpnr-ecp5"),
        ("ECPPACK", "ecppack"),
    ):
        monkeypatch.delenv(variable, raising=False)
        if name != missing:
            program(tmp_path / f"yowasp-{name}", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ulx3s.sys, "executable", "/nowhere/python")
    assert board() == (2, "", f"a bitstream needs yowasp-{missing}: pip install 'gshw[fpga]'")


def test_a_yosys_that_fails_before_the_build(board, tmp_path, monkeypatch):
    """Amaranth takes the same variable when it makes the core's Verilog."""
    monkeypatch.setenv("GSHW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOSYS", program(tmp_path / "bad", "echo out of order >&2; exit 1"))
    assert board() == (2, "", f"{tmp_path}/bad cannot make Verilog: out of order")
    assert not (tmp_path / "out").exists()
    with pytest.raises(GshwError, match=r"bad cannot make Verilog: out of order$"):
        emit.core_verilog(CONFIG.engine)
