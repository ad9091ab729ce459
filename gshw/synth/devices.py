"""The FPGAs that ``gshw synth`` knows, and what each of their cells takes."""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gshw.errors import GshwError


class Family(enum.Enum):
    """Devices that share a synthesis script and cells."""

    ECP5 = "ecp5"
    ICE40 = "ice40"
    XC7 = "xc7"


@dataclass(frozen=True, kw_only=True)
class Area:
    """How many of each resource a design, or a part of it, takes.

    Parameters
    ----------
    lut
        Logic cells: TRELLIS_COMB (a carry cell takes two), SB_LUT4, or LUT6.
    ff
        Registers of one bit.
    bram
        Block RAMs: DP16KD, SB_RAM40_4K, or RAMB18 (a RAMB36 is two).
    dsp
        Multipliers: MULT18X18D, SB_MAC16, or DSP48E1.
    carry
        Carry cells: CCU2C, SB_CARRY, or CARRY4.
    """

    lut: int = 0
    ff: int = 0
    bram: int = 0
    dsp: int = 0
    carry: int = 0

    def __add__(self, other: "Area") -> "Area":
        return Area(
            lut=self.lut + other.lut,
            ff=self.ff + other.ff,
            bram=self.bram + other.bram,
            dsp=self.dsp + other.dsp,
            carry=self.carry + other.carry,
        )


LIMITED = ("lut", "ff", "bram", "dsp")
"""Resources of which a device has a number of its own."""

RESOURCES = {
    Family.ECP5: {
        "lut": "logic cells (TRELLIS_COMB)",
        "ff": "registers (TRELLIS_FF)",
        "bram": "block RAMs (DP16KD)",
        "dsp": "multipliers (MULT18X18D)",
    },
    Family.ICE40: {
        "lut": "logic cells (ICESTORM_LC)",
        "ff": "registers (ICESTORM_LC)",
        "bram": "block RAMs (ICESTORM_RAM)",
        "dsp": "multipliers (ICESTORM_DSP)",
    },
    Family.XC7: {
        "lut": "LUTs",
        "ff": "registers",
        "bram": "block RAMs (RAMB18)",
        "dsp": "multipliers (DSP48E1)",
    },
}

_CELLS: Mapping[Family, tuple[tuple[str, Area], ...]] = {
    Family.ECP5: (
        (r"LUT4", Area(lut=1)),
        (r"CCU2C", Area(lut=2, carry=1)),
        (r"TRELLIS_DPR16X4", Area(lut=4)),
        (r"TRELLIS_FF", Area(ff=1)),
        (r"DP16KD|PDPW16KD", Area(bram=1)),
        (r"MULT18X18D", Area(dsp=1)),
    ),
    Family.ICE40: (
        (r"SB_LUT4", Area(lut=1)),
        (r"SB_CARRY", Area(carry=1)),
        (r"SB_DFF.*", Area(ff=1)),
        (r"SB_RAM40_4K.*", Area(bram=1)),
        (r"SB_MAC16", Area(dsp=1)),
    ),
    Family.XC7: (
        (r"LUT[1-6]|SRL16E|SRLC32E|RAM(32|64|128|256)X1S", Area(lut=1)),
        (r"RAM(32|64)X1D", Area(lut=2)),
        (r"RAM128X1D|RAM(32|64)M", Area(lut=4)),
        (r"FD[RSCP]E.*", Area(ff=1)),
        (r"RAMB18E1", Area(bram=1)),
        (r"RAMB36E1", Area(bram=2)),
        (r"DSP48E1", Area(dsp=1)),
        (r"CARRY4", Area(carry=1)),
    ),
}


def cell_area(family: Family, cell_type: str) -> Area:
    """What one cell of the netlist takes; nothing for cells that need no resource of their own."""
    for pattern, area in _CELLS[family]:
        if re.fullmatch(pattern, cell_type):
            return area
    return Area()


@dataclass(frozen=True, kw_only=True)
class Device:
    """One FPGA in one package.

    Parameters
    ----------
    name
        As on the command line.
    part
        Option of nextpnr, or Vivado's part.
    speed
        Speed grade; None where a part has only one.
    capacity
        What it holds: as nextpnr reports it; for xc7, which nothing here measures, nominal
        figures that Vivado has the last word on.
    n_pins
        Pins that a design may use; None where designs are placed without pins.
    """

    name: str
    family: Family
    part: str
    package: str
    speed: int | None
    capacity: Area
    n_pins: int | None = None

    @property
    def routable(self) -> bool:
        """Whether open tools place and route it, or only synthesise for it."""
        return self.family is not Family.XC7

    @property
    def title(self) -> str:
        """Name, package and speed grade."""
        grade = "" if self.speed is None else f", speed grade {self.speed}"
        return f"{self.name} ({self.package}{grade})"


def _ecp5(size: str, package: str, lut: int, bram: int, dsp: int) -> Device:
    return Device(
        name=f"ecp5-{size}",
        family=Family.ECP5,
        part=size,
        package=package,
        speed=6,
        capacity=Area(lut=lut, ff=lut, bram=bram, dsp=dsp),
    )


def _ice40(name: str, package: str, lut: int, bram: int, dsp: int, n_pins: int) -> Device:
    return Device(
        name=f"ice40-{name}",
        family=Family.ICE40,
        part=name,
        package=package,
        speed=None,
        capacity=Area(lut=lut, ff=lut, bram=bram, dsp=dsp),
        n_pins=n_pins,
    )


def _xc7(name: str, package: str, lut: int, bram: int, dsp: int) -> Device:
    return Device(
        name=name,
        family=Family.XC7,
        part=f"{name}{package}-1",
        package=package,
        speed=1,
        capacity=Area(lut=lut, ff=2 * lut, bram=2 * bram, dsp=dsp),
    )


DEFAULT_DEVICE = "ecp5-85k"

DEVICES = {
    device.name: device
    for device in (
        _ecp5("85k", "CABGA756", 83640, 208, 156),
        _ecp5("45k", "CABGA554", 43848, 108, 72),
        _ecp5("25k", "CABGA381", 24288, 56, 28),
        _ice40("up5k", "sg48", 5280, 30, 8, 39),
        _ice40("hx8k", "ct256", 7680, 32, 0, 206),
        _xc7("xc7z010", "clg400", 17600, 60, 80),
        _xc7("xc7z020", "clg400", 53200, 140, 220),
        _xc7("xc7a35t", "csg324", 20800, 50, 90),
        _xc7("xc7a100t", "csg324", 63400, 135, 240),
    )
}
_ALIASES = {"xc7": "xc7z020"}


def find_device(name: str) -> Device:
    """A device by its name.

    Raises
    ------
    GshwError
        For another name.
    """
    name = _ALIASES.get(name, name)
    if name not in DEVICES:
        raise GshwError(f"device must be one of {', '.join([*DEVICES, *_ALIASES])}, not {name!r}")
    return DEVICES[name]


_REMEDIES = {
    "lut": "fewer lanes, rows or columns",
    "ff": "fewer lanes, rows or columns",
    "bram": "a smaller bank_depth, output_depth or group_buffer_depth",
    "dsp": "fewer lanes, columns or drain_rows",
}


def excess(device: Device, area: Area) -> dict[str, int]:
    """By how much an area exceeds each resource of a device; empty when it fits."""
    missing = {name: getattr(area, name) - getattr(device.capacity, name) for name in LIMITED}
    return {name: count for name, count in missing.items() if count > 0}


def require_fit(device: Device, area: Area, name: str) -> None:
    """Refuse a design that a device cannot hold.

    Raises
    ------
    GshwError
        Naming every resource, by how much it is exceeded, and what to change.
    """
    missing = excess(device, area)
    if not missing:
        return
    labels = RESOURCES[device.family]
    parts = [
        f"{getattr(area, key)} {labels[key]} of {getattr(device.capacity, key)}, {count} too many"
        for key, count in missing.items()
    ]
    larger = [
        other
        for other in DEVICES.values()
        if other.family is device.family and not excess(other, area)
    ]
    smallest = min(larger, key=lambda other: other.capacity.lut, default=None)
    changes = [_REMEDIES[key] for key in missing]
    if smallest is not None:
        changes.insert(0, f"device {smallest.name}")
    unique = list(dict.fromkeys(changes))
    raise GshwError(
        f"{name} does not fit {device.name}: {'; '.join(parts)}; try {', or '.join(unique)}"
    )
