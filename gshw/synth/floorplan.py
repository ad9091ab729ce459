"""Places for the block RAMs and multipliers, chosen before a design is placed and routed.

nextpnr's ``static`` placer finds good ones from the whole netlist at once; its ``heap`` placer
does well by the logic around blocks that stay where they are (docs/decisions/0020).
"""

import json
from collections.abc import Mapping
from pathlib import Path

from gshw.synth.devices import Device, Family, cell_area
from gshw.synth.tools import Tool

MIN_LUTS = 1000
"""The ``static`` placer does not end on designs of a few cells."""
SEED = 1


def has_floorplan(device: Device, n_luts: int, n_blocks: int) -> bool:
    """Whether a design's blocks are placed first."""
    return device.family is Family.ECP5 and n_luts >= MIN_LUTS and n_blocks > 0


def _top_cells(netlist: Mapping) -> dict:
    """Cells of the one module of a flattened netlist."""
    for module in netlist["modules"].values():
        if int(str(module.get("attributes", {}).get("top", "0")), 2):
            return module["cells"]
    raise ValueError("no module is the top")


def find_places(
    netlist: str,
    device: Device,
    tool: Tool,
    options: list[str],
    folder: Path,
    time_limit_seconds: float,
) -> dict[str, str]:
    """Place a netlist and tell where its blocks came to lie.

    Parameters
    ----------
    netlist
        As yosys wrote it.
    options
        Of nextpnr: the device, and nothing about the placer.
    folder
        To work in.

    Returns
    -------
    places
        The site (nextpnr's BEL) of every block RAM and multiplier, by the cell's name.

    Raises
    ------
    ToolTimeout
        After ``time_limit_seconds``.
    ToolError
        When nextpnr fails.
    """
    (folder / "netlist.json").write_text(netlist)
    files = ["--json", "netlist.json", "--write", "placed.json"]
    placing = ["--placer", "static", "--no-route", "--seed", str(SEED)]
    tool.run([*options, *placing, *files], folder, "floorplan.log", time_limit_seconds)
    cells = _top_cells(json.loads((folder / "placed.json").read_text()))
    return {
        name: cell["attributes"]["NEXTPNR_BEL"]
        for name, cell in cells.items()
        if _is_block(device, cell["type"])
    }


def _is_block(device: Device, cell_type: str) -> bool:
    area = cell_area(device.family, cell_type)
    return area.bram + area.dsp > 0


def with_places(netlist: str, places: Mapping[str, str]) -> str:
    """The netlist with its blocks bound to their sites.

    Raises
    ------
    KeyError
        When the netlist lacks a cell that has a place.
    """
    whole = json.loads(netlist)
    cells = _top_cells(whole)
    for name, site in places.items():
        cells[name]["attributes"]["BEL"] = site
    return json.dumps(whole)
