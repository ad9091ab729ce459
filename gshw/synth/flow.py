"""Synthesis, place and route, and the search for a clock goal; results are cached by content."""

import dataclasses
import gzip
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.synth.design import Design, harnessed_design
from gshw.synth.devices import Area, Device, Family, require_fit
from gshw.synth.floorplan import find_places, has_floorplan, with_places
from gshw.synth.report import (
    HARNESS_NAME,
    CriticalPath,
    Hierarchy,
    cell_counts,
    critical_path,
    logged_utilization,
    placed_area,
    total_area,
)
from gshw.synth.tools import Source, Tool, ToolError, ToolTimeout, nextpnr, yosys
from gshw.verilate import cache_folder

_ICE40_FFS = " ".join(
    f"-cell $_{name}_ 0"
    for name in ("DFF_?", "DFFE_?P", "DFF_?P?", "DFFE_?P?P", "SDFF_?P?", "SDFFCE_?P?P")
)
"""What an iCE40's register can be. Those of a tile of eight share their enable and their reset:
one that few registers have would leave the rest of its tile empty, so it becomes logic."""
_SCRIPTS = {
    Family.ECP5: "synth_ecp5 -top {top}",
    Family.ICE40: (
        "synth_ice40 -device {kind}{dsp} -top {top} -run begin:map_ffs; "
        f"dfflegalize {_ICE40_FFS} -mince 8 -minsrst 8; "
        "synth_ice40 -device {kind}{dsp} -top {top} -run map_ffs:"
    ),
    Family.XC7: "synth_xilinx -family xc7 -flatten -abc9 -noiopad -noclkbuf -top {top}; autoname",
}
RAISE = 1.05
"""A goal that was met is raised to this much above what was achieved."""
SAME = 1.01
"""A higher goal must gain more than this, or the search ends."""
TIMING_WEIGHT = 30
"""Of the placer, once the blocks have their places: more than its own 10."""
SYNTHESIS_LIMIT_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long place and route may try.

    Parameters
    ----------
    max_runs
        Runs of the search for a clock goal.
    time_limit_seconds
        Of one run; it is ended then.
    n_jobs
        Runs at a time once the goal is found.
    """

    max_runs: int = 3
    time_limit_seconds: float = 1800.0
    n_jobs: int = 2

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            if value <= 0:
                raise GshwError(f"{key} must be positive, not {value}")


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """A mapped netlist and what it takes.

    Parameters
    ----------
    design
        With its harness, if it has one.
    key
        Digest of everything that decides the netlist.
    netlist
        Text for nextpnr.
    cells
        By type.
    """

    design: Design
    device: Device
    key: str
    netlist: str
    cells: Mapping[str, int]
    yosys_version: str
    script: str

    @property
    def area(self) -> Area:
        return total_area(self.device.family, self.cells)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One place-and-route run.

    Parameters
    ----------
    fmax_mhz
        Of the slowest clock.
    report
        ``critical_paths`` and ``utilization`` as nextpnr wrote them.
    """

    seed: int
    goal_mhz: float
    fmax_mhz: float
    report: Mapping


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything about a design on a device.

    Parameters
    ----------
    runs
        One per seed; none where the device is only synthesised for.
    search
        Goals that were tried on the first seed, and what came out (None: out of time).
    components
        Area of every component, the harness among them.
    """

    synthesis: Synthesis
    runs: tuple[Run, ...]
    search: tuple[tuple[float, float | None], ...]
    components: Mapping[str, Area]
    n_instances: Mapping[str, int]
    path: CriticalPath | None
    nextpnr_version: str | None

    @property
    def placed(self) -> Area:
        """What was placed, harness included; the netlist's where nothing was."""
        if not self.runs:
            return self.synthesis.area
        utilization = self.runs[0].report["utilization"]
        return placed_area(self.synthesis.device, utilization, self.synthesis.area)

    @property
    def own(self) -> Area:
        """What was placed, less the netlist's share of the harness."""
        harness = self.components.get(HARNESS_NAME, Area())
        placed = self.placed
        lut = harness.lut
        if self.synthesis.device.family is Family.ICE40:
            # Each bit of the harness is one logic cell: a register, in half of them behind a LUT.
            lut = harness.ff
        return dataclasses.replace(placed, lut=placed.lut - lut, ff=placed.ff - harness.ff)

    @property
    def fmax_mhz(self) -> tuple[float, float, float]:
        """Minimum, median and maximum over the seeds."""
        values = [run.fmax_mhz for run in self.runs]
        return min(values), median(values), max(values)


def _digest(*parts: object) -> str:
    key = hashlib.sha256()
    for part in parts:
        key.update(str(part).encode() + b"\0")
    return key.hexdigest()[:24]


def _cache(kind: str, key: str) -> Path:
    return cache_folder() / "synth" / f"{kind}-{key}.json.gz"


def _load(path: Path) -> dict | None:
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, ValueError, EOFError):
        return None


def _keep(path: Path, data: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, gzip.compress(json.dumps(data).encode(), 3))


def _work_folder() -> tempfile.TemporaryDirectory:
    folder = cache_folder() / "synth"
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=folder, prefix="work-")


def mapping_script(design: Design, device: Device) -> str:
    """The yosys command that maps a design to a device's cells."""
    is_up = device.part.startswith("up")
    return _SCRIPTS[device.family].format(
        top=design.top, kind="u" if is_up else "hx", dsp=" -dsp" if is_up else ""
    )


def synthesise(design: Design, device: Device, source: Source = Source.YOWASP) -> Synthesis:
    """Map a design to a device's cells.

    Raises
    ------
    GshwError
        When yosys is missing or fails, or the device is too small.
    """
    tool = yosys(source)
    whole = harnessed_design(design, device)
    script = mapping_script(whole, device)
    key = _digest(whole.verilog, script, tool.version)
    path = _cache("netlist", key)
    found = _load(path)
    if found is None:
        found = _synthesise(tool, whole, script)
        _keep(path, found)
    cells = cell_counts(found["statistics"], whole.top)
    require_fit(device, total_area(device.family, cells), design.name)
    return Synthesis(
        design=whole,
        device=device,
        key=key,
        netlist=found["netlist"],
        cells=cells,
        yosys_version=tool.version,
        script=script,
    )


def _synthesise(tool: Tool, design: Design, script: str) -> dict:
    with _work_folder() as folder:
        work = Path(folder)
        (work / "design.v").write_text(design.verilog)
        commands = f"read_verilog -DSYNTHESIS design.v\n{script}\nwrite_json netlist.json\n"
        (work / "synth.ys").write_text(f"{commands}tee -q -o stat.json stat -json\n")
        try:
            tool.run(["-q", "synth.ys"], work, "yosys.log", SYNTHESIS_LIMIT_SECONDS)
        except ToolTimeout:
            raise GshwError(
                f"{design.name}: synthesis must end in {SYNTHESIS_LIMIT_SECONDS:.0f} s and did not"
            ) from None
        return {
            "netlist": (work / "netlist.json").read_text(),
            "statistics": json.loads((work / "stat.json").read_text()),
        }


def _device_options(device: Device) -> list[str]:
    options = [f"--{device.part}", "--package", device.package, "--timing-allow-fail"]
    if device.family is Family.ECP5:
        options += ["--speed", str(device.speed), "--out-of-context"]
    return options


def _route_options(device: Device, *, planned: bool, seed: int, goal_mhz: float) -> list[str]:
    options = ["--placer", "heap"]
    if planned:
        options += ["--placer-heap-timingweight", str(TIMING_WEIGHT)]
    # On our ECP5 cores router2 takes detours of up to 10 ns (docs/decisions/0018).
    options += ["--router", "router1" if device.family is Family.ECP5 else "router2"]
    return [*options, "--freq", f"{goal_mhz:.2f}", "--seed", str(seed)]


def _places(synthesis: Synthesis, tool: Tool, time_limit_seconds: float) -> dict[str, str]:
    """Where the blocks go; none where the placer may decide."""
    device = synthesis.device
    area = synthesis.area
    if not has_floorplan(device, area.lut, area.bram + area.dsp):
        return {}
    options = _device_options(device)
    path = _cache("floorplan", _digest(synthesis.key, *options, tool.version))
    places = _load(path)
    if places is None:
        with _work_folder() as folder:
            places = find_places(
                synthesis.netlist, device, tool, options, Path(folder), time_limit_seconds
            )
        _keep(path, places)
    return places


def place_and_route(
    synthesis: Synthesis, tool: Tool, seed: int, goal_mhz: float, time_limit_seconds: float
) -> Run | None:
    """One run of nextpnr, after one for the blocks' places; None when either ran out of time.

    Raises
    ------
    GshwError
        When the design does not fit, or nextpnr fails.
    """
    device = synthesis.device
    try:
        places = _places(synthesis, tool, time_limit_seconds)
        options = _device_options(device)
        options += _route_options(device, planned=bool(places), seed=seed, goal_mhz=goal_mhz)
        path = _cache("run", _digest(synthesis.key, *options, tool.version))
        report = _load(path)
        if report is None:
            netlist = with_places(synthesis.netlist, places) if places else synthesis.netlist
            report = _place_and_route(netlist, tool, options, time_limit_seconds)
            _keep(path, report)
    except ToolTimeout:
        return None
    except ToolError as error:
        used = placed_area(device, logged_utilization(error.log), synthesis.area)
        require_fit(device, used, synthesis.design.name)
        raise GshwError(f"{synthesis.design.name} on {device.name}: {error}") from None
    if not report["fmax"]:
        raise GshwError(
            f"{synthesis.design.name} must have a path between registers, or no clock limits it"
        )
    fmax = min(clock["achieved"] for clock in report["fmax"].values())
    return Run(seed=seed, goal_mhz=goal_mhz, fmax_mhz=fmax, report=report)


def _place_and_route(
    netlist: str, tool: Tool, options: list[str], time_limit_seconds: float
) -> dict:
    with _work_folder() as folder:
        work = Path(folder)
        (work / "netlist.json").write_text(netlist)
        files = ["--json", "netlist.json", "--report", "report.json"]
        tool.run([*options, *files], work, "nextpnr.log", time_limit_seconds)
        return json.loads((work / "report.json").read_text())


def search_goal(
    attempt: Callable[[float], Run | None], first_mhz: float, max_runs: int
) -> tuple[Run | None, list[tuple[float, float | None]]]:
    """Raise the clock goal until it is missed, gains nothing, or ``max_runs`` runs are done.

    A run out of time halves the goal, or ends the search when there is a result already.

    Returns
    -------
    run
        The fastest, None when all ran out of time.
    tried
        Goal and achieved clock of every run, in order.
    """
    best: Run | None = None
    tried: list[tuple[float, float | None]] = []
    goal = first_mhz
    for _ in range(max_runs):
        run = attempt(goal)
        tried.append((goal, None if run is None else run.fmax_mhz))
        if run is None:
            if best is not None:
                break
            goal /= 2
            continue
        gained = best is None or run.fmax_mhz > SAME * best.fmax_mhz
        if best is None or run.fmax_mhz > best.fmax_mhz:
            best = run
        if run.fmax_mhz < goal or not gained:
            break
        goal = RAISE * run.fmax_mhz
    return best, tried


def run_flow(
    design: Design,
    device: Device,
    *,
    clock_mhz: float,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    source: Source = Source.YOWASP,
    effort: Effort | None = None,
    notify: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Result:
    """Synthesise a design, search a clock goal on the first seed, and run all seeds with it.

    Parameters
    ----------
    clock_mhz
        First goal.
    notify
        Called with what is going on, and how many of how many steps are done.

    Raises
    ------
    GshwError
        When a tool is missing or fails, the device is too small, or no run ends in time.
    """
    if not seeds:
        raise GshwError("seeds must hold at least one seed, not none")
    effort = effort or Effort()
    total = 1 + (len(seeds) if device.routable else 0)
    # A missing tool is told before the long work begins.
    tool = nextpnr(device.family, source) if device.routable else None
    notify(f"{design.name}: synthesis", 0, total)
    synthesis = synthesise(design, device, source)
    runs: list[Run] = []
    tried: list[tuple[float, float | None]] = []
    if tool is not None:

        def attempt(goal: float, seed: int) -> Run | None:
            return place_and_route(synthesis, tool, seed, goal, effort.time_limit_seconds)

        notify(f"{design.name}: search for a clock goal", 1, total)
        first, tried = search_goal(lambda goal: attempt(goal, seeds[0]), clock_mhz, effort.max_runs)
        if first is None:
            raise GshwError(
                f"{design.name}: place and route must end in {effort.time_limit_seconds:.0f} s "
                f"and did not at any of {', '.join(f'{goal:g}' for goal, _ in tried)} MHz; "
                "a lower --clock, or a higher --time-limit"
            )
        runs = _run_seeds(first, list(seeds[1:]), attempt, effort, design.name, notify)
    hierarchy = Hierarchy(json.loads(synthesis.netlist), synthesis.design)
    slowest = min(runs, key=lambda run: run.fmax_mhz, default=None)
    return Result(
        synthesis=synthesis,
        runs=tuple(runs),
        search=tuple(tried),
        components=hierarchy.areas(device.family),
        n_instances=hierarchy.instances(),
        path=critical_path(slowest.report, hierarchy) if slowest else None,
        nextpnr_version=tool.version if tool else None,
    )


def _run_seeds(
    first: Run,
    others: Sequence[int],
    attempt: Callable[[float, int], Run | None],
    effort: Effort,
    name: str,
    notify: Callable[[str, int, int], None],
) -> list[Run]:
    runs = [first]
    total = 2 + len(others)
    text = f"{name}: place and route"
    notify(text, 2, total)
    with ThreadPoolExecutor(effort.n_jobs) as pool:
        for run in pool.map(lambda seed: attempt(first.goal_mhz, seed), others):
            if run is None:
                raise GshwError(
                    f"{name}: place and route must end in {effort.time_limit_seconds:.0f} s for "
                    "every seed; a higher --time-limit, or fewer --seeds"
                )
            runs.append(run)
            notify(text, 1 + len(runs), total)
    return runs
