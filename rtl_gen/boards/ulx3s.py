"""A bitstream for the ULX3S with an ECP5-85F: the core behind the board's USB serial port."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Instance, Module, ResetSignal
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer

from gshw.config import Config
from gshw.errors import GshwError
from gshw.files import check_output_folder, staged
from gshw.synth.devices import Area, find_device, require_fit
from gshw.synth.report import logged_utilization, placed_area
from gshw.synth.tools import ToolError
from gshw.top import Top
from rtl_gen.emit import cached_uart_verilog
from rtl_gen.uart import DIVISOR_WIDTH, MIN_DIVISOR

if TYPE_CHECKING:
    from amaranth.build import BuildPlan

NAME = "gshw_ulx3s"
INPUT_MHZ = 25
N_WORDS = 512
"""Words that wait in each direction: one block RAM of an ECP5 holds their bytes."""
_VCO_MHZ = (400, 800)
_MAX_INPUT_DIVIDER = 8
"""So that the phase detector runs at no less than 3.125 MHz."""
_MAX_DIVIDER = 128
_MAX_CLOCK_MHZ = 400
MAX_BAUD_ERROR = 0.02
"""Both ends sample a byte's last bit within 9.5 bits of its start; half a bit is all there is."""
_FMAX = re.compile(r"Max frequency for clock\s+'[^']*': ([\d.]+) MHz")
_DEVICE = find_device("ecp5-85k")
_TOOLS = {"YOSYS": "yosys", "NEXTPNR_ECP5": "nextpnr-ecp5", "ECPPACK": "ecppack"}


@dataclass(frozen=True)
class PllSettings:
    """Dividers of an ECP5 PLL with feedback from its output (Lattice FPGA-TN-02200)."""

    input_divider: int
    feedback_divider: int
    output_divider: int


def pll_settings(clock_mhz: int) -> PllSettings:
    """Dividers that make ``clock_mhz`` of the board's 25 MHz, exactly.

    Raises
    ------
    GshwError
        When there are none.
    """
    output = sum(_VCO_MHZ) // 2 // clock_mhz if 0 < clock_mhz <= _MAX_CLOCK_MHZ else 0
    in_range = _VCO_MHZ[0] <= output * clock_mhz <= _VCO_MHZ[1] and output <= _MAX_DIVIDER
    for input_divider in range(1, _MAX_INPUT_DIVIDER + 1):
        feedback, rest = divmod(clock_mhz * input_divider, INPUT_MHZ)
        if in_range and not rest and 1 <= feedback <= _MAX_DIVIDER:
            return PllSettings(input_divider, feedback, output)
    raise GshwError(
        f"clock must be {INPUT_MHZ} MHz times a fraction with a denominator of at most "
        f"{_MAX_INPUT_DIVIDER}, from 5 to {_MAX_CLOCK_MHZ} MHz, not {clock_mhz} MHz"
    )


def uart_divisor(clock_mhz: int, baud: int) -> int:
    """Clock cycles per bit.

    Raises
    ------
    GshwError
        When the clock cannot give the rate.
    """
    divisor = round(clock_mhz * 1_000_000 / baud) if baud > 0 else 0
    fits = MIN_DIVISOR <= divisor < 1 << DIVISOR_WIDTH
    if not fits or abs(clock_mhz * 1_000_000 / divisor / baud - 1) > MAX_BAUD_ERROR:
        raise GshwError(
            f"baud must be within {100 * MAX_BAUD_ERROR:.0f} % of the clock of {clock_mhz} MHz "
            f"divided by {MIN_DIVISOR} to {(1 << DIVISOR_WIDTH) - 1}, not {baud}"
        )
    return divisor


class Ulx3sTop(Elaboratable):
    """``gshw_uart`` with a PLL, on the pins of the board.

    LED 0: a program runs; 1: it failed; 7: the clock is there.
    """

    def __init__(self, pll: PllSettings, divisor: int) -> None:
        self._pll = pll
        self._divisor = divisor

    def elaborate(self, platform) -> Module:
        m = Module()
        m.domains.core = ClockDomain()
        pll = self._pll
        uart = platform.request("uart", dir="-")
        pins = {
            "clock": ("i", platform.request(platform.default_clk, dir="-")),
            "rx": ("i", uart.rx),
            "tx": ("o", uart.tx),
            "busy": ("o", platform.request("led", 0, dir="-")),
            "failed": ("o", platform.request("led", 1, dir="-")),
            "locked": ("o", platform.request("led", 7, dir="-")),
        }
        buffers = {name: io.Buffer(*pin) for name, pin in pins.items()}
        for name, buffer in buffers.items():
            m.submodules[name] = buffer
        locked = buffers["locked"].o
        m.submodules.pll = Instance(
            "EHXPLLL",
            p_CLKI_DIV=pll.input_divider,
            p_CLKFB_DIV=pll.feedback_divider,
            p_CLKOP_DIV=pll.output_divider,
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_CPHASE=pll.output_divider // 2,
            p_CLKOP_FPHASE=0,
            p_FEEDBK_PATH="CLKOP",
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            i_CLKI=buffers["clock"].i,
            i_CLKFB=ClockSignal("core"),
            i_RST=0,
            i_STDBY=0,
            i_PHASESEL0=0,
            i_PHASESEL1=0,
            i_PHASEDIR=0,
            i_PHASESTEP=0,
            i_PHASELOADREG=0,
            i_PLLWAKESYNC=0,
            i_ENCLKOP=0,
            o_CLKOP=ClockSignal("core"),
            o_LOCK=locked,
        )
        m.submodules.reset = ResetSynchronizer(~locked, domain="core")
        m.submodules.core = Instance(
            Top.UART.module_name,
            i_clk=ClockSignal("core"),
            i_rst=ResetSignal("core"),
            i_divisor=self._divisor,
            i_rx=buffers["rx"].i,
            o_tx=buffers["tx"].o,
            o_busy=buffers["busy"].o,
            o_failed=buffers["failed"].o,
        )
        return m


def plan_bitstream(config: Config, *, clock_mhz: int, baud: int) -> "BuildPlan":
    """Everything that the tools need to make the bitstream.

    Raises
    ------
    GshwError
        For a clock or rate that the board cannot have, or when amaranth-boards is missing.
    """
    pll, divisor = pll_settings(clock_mhz), uart_divisor(clock_mhz, baud)
    try:
        from amaranth_boards.ulx3s import ULX3S_85F_Platform
    except ModuleNotFoundError:
        raise GshwError("boards need amaranth-boards: pip install 'gshw[fpga]'") from None

    platform = ULX3S_85F_Platform()
    text = cached_uart_verilog(config, N_WORDS)
    platform.add_file(f"{Top.UART.module_name}.v", text)
    return platform.build(
        Ulx3sTop(pll, divisor),
        NAME,
        do_build=False,
        read_verilog_opts="-DSYNTHESIS",
        nextpnr_opts="--placer static --router router1",
    )


def _environment() -> dict[str, str]:
    """Amaranth's scripts find their tools through variables: the YoWASP ones where none is set."""
    environment = dict(os.environ)
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    for variable, name in _TOOLS.items():
        wanted = environment.get(variable)
        if wanted is not None and shutil.which(wanted) is None:
            raise GshwError(f"{variable} must name a program that is installed, not {wanted!r}")
        tool = wanted or shutil.which(f"yowasp-{name}", path=path)
        if tool is None:
            raise GshwError(f"a bitstream needs yowasp-{name}: pip install 'gshw[fpga]'")
        environment[variable] = tool
    return environment


def _failure(log: str, title: str, design: str) -> GshwError:
    """What went wrong, in the config's terms where they are too small a device's."""
    try:
        require_fit(_DEVICE, placed_area(_DEVICE, logged_utilization(log), Area()), design)
    except GshwError as error:
        return error
    return GshwError(f"{title}: {ToolError('the build', log)}")


def build_bitstream(
    config: Config, folder: Path, *, clock_mhz: int, baud: int, force: bool = False
) -> tuple[Path, float]:
    """Make the bitstream in ``folder``.

    Returns
    -------
    bitstream, fmax_mhz
        The file, and the highest clock that the core could have.

    Raises
    ------
    GshwError
        When the folder is not empty and ``force`` is not given, a tool is missing or fails, the
        core does not fit, or the clock is too fast for it. Nothing is written then.
    """
    check_output_folder(folder, force=force)
    environment = _environment()
    plan = plan_bitstream(config, clock_mhz=clock_mhz, baud=baud)
    title = f"{config.name} for the ULX3S at {clock_mhz} MHz"
    bitstream = f"{NAME}.bit"
    with staged(folder, last=bitstream) as stage:
        try:
            plan.extract(stage)
        except OSError as error:
            raise GshwError(f"{folder}: cannot be written: {error.strerror}") from None
        result = subprocess.run(
            ["sh", f"{plan.script}.sh"],
            cwd=stage,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        logs = [stage / f"{NAME}.{suffix}" for suffix in ("rpt", "tim")]
        texts = [log.read_text(errors="replace") for log in logs if log.is_file()]
        log = "\n".join([*texts, result.stdout + result.stderr])
        if result.returncode:
            raise _failure(log, title, config.name)
        found = _FMAX.findall(log)
        if not found or not (stage / bitstream).is_file():
            raise GshwError(
                f"{title}: the tools must report a clock and make {bitstream}, and did not"
            )
    return folder / bitstream, float(found[-1])
