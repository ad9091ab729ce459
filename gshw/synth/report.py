"""Reads what yosys and nextpnr write, in terms of the design's components."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gshw.synth.design import INSTANCE, Design, module_lines
from gshw.synth.devices import Area, Device, Family, cell_area

_CELL_KINDS = (
    "TRELLIS_FF|TRELLIS_DPR16X4|LUT4|CCU2C|PFUMX|L6MUX21|DP16KD|PDPW16KD|MULT18X18D"
    r"|SB_(?:DFF[A-Z]*|LUT4|CARRY|RAM40_4K[A-Z]*|MAC16)|FD[RSCP]E|LUT[1-6]|CARRY4|DSP48E1"
)
_NOT_THE_LIMIT = re.compile(r"^<async>")


def cell_counts(statistics: Mapping, top: str) -> dict[str, int]:
    """Cells by type from ``stat -json``.

    Raises
    ------
    KeyError
        When ``top`` is not in it.
    """
    module = statistics["modules"][f"\\{top}"]
    return {
        kind: count
        for kind, count in module["num_cells_by_type"].items()
        if not kind.startswith("$")
    }


def total_area(family: Family, counts: Mapping[str, int]) -> Area:
    """What the cells take together."""
    total = Area()
    for kind, count in counts.items():
        one = cell_area(family, kind)
        total += Area(
            lut=one.lut * count,
            ff=one.ff * count,
            bram=one.bram * count,
            dsp=one.dsp * count,
            carry=one.carry * count,
        )
    return total


def base_name(cell: str) -> str:
    """The signal that a mapped cell was named after: ``a.b_TRELLIS_FF_Q_3`` is ``a.b``."""
    match = re.search(rf"_(?:{_CELL_KINDS})(?=_|$)", cell)
    return cell[: match.start()] if match else cell


class Hierarchy:
    """Where the cells of a flattened netlist come from.

    Flattened cells are named after the nets they drive, with the path of the instance in front. A
    net that leaves a component has its outermost name, so registers and carry cells, which keep
    their line of source text, put that right: they, and all cells named after the same net, belong
    to the component whose text holds the line.

    Parameters
    ----------
    netlist
        ``write_json`` of one flattened module, with its ``$scopeinfo`` cells.
    design
        What was synthesised, from a file ``design.v``.
    """

    def __init__(self, netlist: Mapping, design: Design) -> None:
        self._cells = netlist["modules"][design.top]["cells"]
        self._harnessed = bool(design.inner)
        self._module = design.module
        self._lines = module_lines(design.verilog)
        self._scopes = {"": design.top}
        for name, cell in self._cells.items():
            if cell["type"] == "$scopeinfo":
                self._scopes[name] = cell["attributes"].get("module", "")
        self._by_net: dict[str, str] = {}
        for name, cell in self._cells.items():
            module = self._module_of(cell.get("attributes", {}).get("src", ""))
            if module is not None and cell["type"] != "$scopeinfo":
                self._by_net.setdefault(base_name(name), self._resolve(name, module))

    def _module_of(self, source: str) -> str | None:
        for part in source.split("|"):
            match = re.match(r"design\.v:(\d+)", part)
            if match:
                line = int(match[1])
                return next((m for low, high, m in self._lines if low <= line <= high), None)
        return None

    def _prefix(self, name: str) -> str:
        path = name
        while path not in self._scopes:
            path = path.rpartition(".")[0]
        return path

    def _resolve(self, name: str, module: str) -> str:
        """The instance of ``module`` that is nearest to where the name points."""
        path = self._prefix(base_name(name))
        instances = [scope for scope, kind in self._scopes.items() if kind == module]
        return max(instances, key=lambda scope: (_shared(scope, path), -len(scope)), default=path)

    def component(self, cell: str) -> str:
        """The component that a cell belongs to: a path, the measured module, or ``harness``."""
        base = base_name(cell)
        return self._name(self._by_net.get(base, self._prefix(base)))

    def _name(self, path: str) -> str:
        if self._harnessed:
            if not path:
                return HARNESS_NAME
            path = path.removeprefix(INSTANCE).removeprefix(".")
        return path or self._module

    def register(self, cell: str) -> str:
        """The register, memory or multiplier that a cell is, as the design calls it."""
        base = base_name(cell)
        return base.removeprefix(f"{INSTANCE}.") if self._harnessed else base

    def areas(self, family: Family) -> dict[str, Area]:
        """Area of every component without the components in it, the largest first.

        Components that differ by numbers at the end of their names count as one.
        """
        totals: dict[str, Area] = {}
        for name, cell in self._cells.items():
            if not cell["type"].startswith("$"):
                key = folded(self.component(name))
                totals[key] = totals.get(key, Area()) + cell_area(family, cell["type"])
        return dict(sorted(totals.items(), key=lambda item: (-item[1].lut, -item[1].ff, item[0])))

    def instances(self) -> dict[str, int]:
        """How many components each name of :meth:`areas` stands for."""
        counts: dict[str, int] = {}
        for scope in self._scopes:
            key = folded(self._name(scope))
            counts[key] = counts.get(key, 0) + 1
        return counts


HARNESS_NAME = "harness"


def _shared(first: str, second: str) -> int:
    """Leading parts that two instance paths have in common."""
    count = 0
    for a, b in zip(first.split("."), second.split(".")):
        if a != b:
            break
        count += 1
    return count


def folded(path: str) -> str:
    """Instance path without the numbers that tell like instances apart."""
    return ".".join(re.sub(r"(_\d+)+$", "", part) for part in path.split("."))


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stretch of the critical path inside one component."""

    component: str
    n_cells: int
    logic_ns: float
    routing_ns: float


@dataclass(frozen=True, kw_only=True)
class CriticalPath:
    """The slowest way from register to register.

    Parameters
    ----------
    start, end
        Registers or memories, by the design's names.
    steps
        Components on the way, in order.
    """

    start: str
    end: str
    steps: tuple[Step, ...]

    @property
    def total_ns(self) -> float:
        return sum(step.logic_ns + step.routing_ns for step in self.steps)

    @property
    def n_levels(self) -> int:
        """Cells between the two registers."""
        return sum(step.n_cells for step in self.steps)

    def __str__(self) -> str:
        logic = sum(step.logic_ns for step in self.steps)
        routing = sum(step.routing_ns for step in self.steps)
        way = " > ".join(dict.fromkeys(step.component for step in self.steps))
        return (
            f"{self.start} to {self.end}: {self.n_levels} cells in {way}, "
            f"{logic:.2f} ns logic, {routing:.2f} ns routing"
        )


def critical_path(report: Mapping, hierarchy: Hierarchy) -> CriticalPath | None:
    """The slowest path between clock edges in nextpnr's report; None without one."""
    paths = [
        path
        for path in report.get("critical_paths", [])
        if path["path"] and not any(_NOT_THE_LIMIT.match(path[end]) for end in ("from", "to"))
    ]
    if not paths:
        return None
    path = max(paths, key=lambda p: sum(part["delay"] for part in p["path"]))["path"]
    steps: list[Step] = []
    for part in path:
        component = hierarchy.component(part["to"]["cell"])
        routing = part["type"] == "routing"
        step = Step(
            component=component,
            n_cells=int(part["type"] == "logic"),
            logic_ns=0.0 if routing else part["delay"],
            routing_ns=part["delay"] if routing else 0.0,
        )
        if steps and steps[-1].component == component:
            last = steps.pop()
            step = Step(
                component=component,
                n_cells=last.n_cells + step.n_cells,
                logic_ns=last.logic_ns + step.logic_ns,
                routing_ns=last.routing_ns + step.routing_ns,
            )
        steps.append(step)
    return CriticalPath(
        start=hierarchy.register(path[0]["from"]["cell"]),
        end=hierarchy.register(path[-1]["to"]["cell"]),
        steps=tuple(steps),
    )


_PLACED = {
    Family.ECP5: {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "bram": "DP16KD", "dsp": "MULT18X18D"},
    Family.ICE40: {"lut": "ICESTORM_LC", "bram": "ICESTORM_RAM", "dsp": "ICESTORM_DSP"},
}


def placed_area(device: Device, utilization: Mapping, netlist: Area) -> Area:
    """What nextpnr placed; what it does not report (iCE40 registers, carry) from the netlist."""
    names = _PLACED[device.family]
    used = {key: utilization[name]["used"] for key, name in names.items() if name in utilization}
    return Area(
        lut=used.get("lut", 0),
        ff=used.get("ff", netlist.ff),
        bram=used.get("bram", 0),
        dsp=used.get("dsp", 0),
        carry=netlist.carry,
    )


def logged_utilization(log: str) -> dict[str, dict[str, int]]:
    """The table that nextpnr prints after packing, in the form of its report."""
    rows = re.findall(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", log, re.M)
    return {name: {"used": int(used), "available": int(all_)} for name, used, all_ in rows}
