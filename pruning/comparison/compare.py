"""``gshw compare``: every pattern in accuracy and cycles, under one recipe and several seeds.

Cases run in processes of this machine or on a ``dask.distributed`` cluster. Every network trained
and every result is kept under the hash of all that decides it, so a sweep that was interrupted, or
is asked for again with more seeds, goes on where it stopped.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load

from gshw.config import Config, load_config
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.report import print_wide, progress_bar, write_record
from gshw.top import Top
from gshw.verilate import build_library, cache_folder
from pruning.comparison.cases import Case, hash_of, run_case, train_dense
from pruning.comparison.contestants import DENSE, contestants
from pruning.comparison.report import draw, markdown, summarise, terminal_tables
from pruning.comparison.tasks import TASKS
from pruning.comparison.whole_report import (
    draw_networks,
    network_markdown,
    network_rows,
    network_table,
)
from pruning.comparison.workers import cluster_workers, local_workers
from pruning.patterns.pattern import check_sparsity

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
SEEDS = (0, 1, 2)
_QUICK_SPARSITIES, _QUICK_SEEDS = (0.9,), (0,)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A case and what was measured."""

    case: Case
    result: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "task": self.case.task,
            "pattern": self.case.contestant.name,
            "sparsity": self.case.sparsity,
            "seed": self.case.seed,
            **self.result,
        }


# --- cache ----------------------------------------------------------------------------------------


class Cache:
    """Trained networks and results by content; files are whole or absent.

    Parameters
    ----------
    folder
        Made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, what: str, key: dict[str, Any], suffix: str) -> Path:
        return self.folder / what / f"{hash_of(key)}{suffix}"

    def _write(self, path: Path, data: bytes | str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GshwError(f"{path.parent}: cannot be made: {error.strerror}") from None
        write_atomically(path, data)

    def dense(self, case: Case) -> bytes | None:
        """The trained network of a case; None where there is none that is whole."""
        try:
            data = self._path("dense", case.dense_key(), ".safetensors").read_bytes()
            load(data)
        except (OSError, SafetensorError):
            return None
        return data

    def keep_dense(self, case: Case, data: bytes) -> None:
        self._write(self._path("dense", case.dense_key(), ".safetensors"), data)

    def result(self, case: Case) -> dict[str, Any] | None:
        """The result of a case; None where there is none that is whole."""
        key = case.key()
        try:
            found = json.loads(self._path("cases", key, ".json").read_text(encoding="utf-8"))
            return found["result"] if found["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_result(self, record: Record) -> None:
        key = record.case.key()
        entry = {"key": key, "case": record.case.contestant.name, "result": record.result}
        self._write(self._path("cases", key, ".json"), json.dumps(entry, indent=1) + "\n")


# --- sweep ----------------------------------------------------------------------------------------


def plan_cases(
    config: Config,
    tasks: Sequence[str],
    patterns: Sequence[str],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    quick: bool,
    *,
    is_whole: bool = False,
    library: Path | None = None,
) -> list[Case]:
    """All cases of a sweep, by task and seed; the dense network once for each.

    Parameters
    ----------
    tasks
        Names of tasks.
    patterns
        Globs over the names of :func:`pruning.comparison.contestants.contestants`; the dense
        network always takes part.
    is_whole, library
        See :class:`pruning.comparison.cases.Case`.

    Raises
    ------
    GshwError
        For an unknown task, a glob that matches nobody, a sparsity out of range, a negative seed.
    """
    everyone = contestants(config.engine)
    chosen = {DENSE}
    for glob in patterns:
        matched = [n for n in everyone if glob == "all" or fnmatchcase(n, glob)]
        if not matched:
            raise GshwError(f"no pattern {glob!r}; there are all, {', '.join(everyone)}")
        chosen.update(matched)
    for task in tasks:
        if task not in TASKS:
            raise GshwError(f"no task {task!r}; there are {', '.join(TASKS)}")
    for sparsity in sparsities:
        check_sparsity(sparsity)
    for seed in seeds:
        if seed < 0:
            raise GshwError(f"seed must be at least 0, not {seed}")
    return [
        Case(
            config=config,
            task=task,
            contestant=contestant,
            sparsity=sparsity,
            seed=seed,
            quick=quick,
            is_whole=is_whole,
            library=library,
        )
        for task, seed in product(dict.fromkeys(tasks), dict.fromkeys(seeds))
        for name, contestant in everyone.items()
        if name in chosen
        for sparsity in ((0.0,) if name == DENSE else sorted(set(sparsities)))
    ]


def sweep(
    cases: Sequence[Case],
    cache: Cache,
    executor: Executor,
    n_slots: int,
    on_record: Callable[[Record], None],
) -> list[Record]:
    """Measure all cases that the cache does not hold.

    Parameters
    ----------
    executor, n_slots
        Who works, and how many cases to hand out at a time.
    on_record
        Called with every record as it is found or made.

    Returns
    -------
    list of Record
        In the order of the cases.

    Raises
    ------
    GshwError
        For a worker that has other data.
    """
    found: dict[int, Record] = {}
    waiting: dict[str, list[int]] = {}
    for place, case in enumerate(cases):
        result = cache.result(case)
        if result is None:
            waiting.setdefault(hash_of(case.dense_key()), []).append(place)
        else:
            found[place] = Record(case=case, result=result)
            on_record(found[place])
    for place, result in _run(cases, waiting, cache, executor, n_slots):
        found[place] = Record(case=cases[place], result=result)
        cache.keep_result(found[place])
        on_record(found[place])
    return [found[place] for place in range(len(cases))]


def _run(
    cases: Sequence[Case],
    waiting: dict[str, list[int]],
    cache: Cache,
    executor: Executor,
    n_slots: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Results by the case's place as they are made, each after its trained network."""
    groups = list(waiting.values())
    ready: list[tuple[int, bytes]] = []
    working: dict[Future, list[int]] = {}
    training: set[Future] = set()
    while groups or ready or working:
        while len(working) < n_slots and (ready or groups):
            # Training first: everything else waits for it.
            if groups:
                places = groups.pop(0)
                case = cases[places[0]]
                dense = cache.dense(case)
                if dense is not None:
                    ready += [(place, dense) for place in places]
                    continue
                future = executor.submit(train_dense, case, TASKS[case.task].data_hash())
                training.add(future)
            else:
                place, dense = ready.pop(0)
                places, case = [place], cases[place]
                future = executor.submit(run_case, case, dense, TASKS[case.task].data_hash())
            working[future] = places
        done, _ = wait(working, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=lambda f: working[f][0]):
            places = working.pop(future)
            if future in training:
                training.discard(future)
                cache.keep_dense(cases[places[0]], future.result())
                ready += [(place, future.result()) for place in places]
            else:
                yield places[0], future.result()


# --- command --------------------------------------------------------------------------------------


def _numbers(key: str, text: str, kind: type) -> list:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise GshwError(f"--{key} must be {what} with commas between, not {text!r}") from None
    return values


def _output_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise GshwError(f"{folder}: must be a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GshwError(f"{folder}: cannot be made: {error.strerror}") from None


def _describe(record: Record) -> str:
    case = record.case
    where = f"{case.task}, {case.contestant.name} at {100 * case.sparsity:g} %, seed {case.seed}"
    return where + (" (refused)" if "refused" in record.result else "")


def compare_command(
    arguments: argparse.Namespace, console: Console, top_verilog: Callable[[Config, Top], str]
) -> bool:
    """Run the sweep, and write tables, plots and ``results.json``.

    Parameters
    ----------
    top_verilog
        Verilog of a top module, for runs in RTL.

    Returns
    -------
    bool
        Whether all runs in RTL were as expected.
    """
    config = load_config(arguments.config)
    if arguments.whole and arguments.scheduler is not None:
        raise GshwError("--whole runs in RTL on this machine: not with --scheduler")
    quick = arguments.quick
    sparsities = _QUICK_SPARSITIES if quick else SPARSITIES
    seeds: Iterable[int] = _QUICK_SEEDS if quick else SEEDS
    if arguments.sparsities is not None:
        sparsities = _numbers("sparsities", arguments.sparsities, float)
    if arguments.seeds is not None:
        seeds = _numbers("seeds", arguments.seeds, int)
    cases = plan_cases(
        config,
        arguments.tasks.split(","),
        arguments.patterns.split(","),
        list(sparsities),
        list(seeds),
        quick,
        is_whole=arguments.whole,
    )
    _output_folder(arguments.output)
    n_jobs = arguments.jobs or os.cpu_count() or 1
    address = arguments.scheduler
    workers = local_workers(n_jobs) if address is None else cluster_workers(address)
    started = time.monotonic()
    if arguments.whole:
        library = build_library(top_verilog(config, Top.AXI), top=Top.AXI)
        cases = [replace(case, library=library) for case in cases]
    with workers as (executor, n_slots), progress_bar(console) as progress:
        task = progress.add_task("comparing", total=len(cases))

        def on_record(record: Record) -> None:
            progress.update(task, advance=1, description=_describe(record))

        cache = Cache(cache_folder() / "compare")
        records = sweep(cases, cache, executor, n_slots, on_record)
    rows = summarise([record.as_json() for record in records])
    for table in terminal_tables(rows):
        print_wide(console, table)
    for name in dict.fromkeys(case.task for case in cases):
        own = [row for row in rows if row.task == name]
        write_atomically(arguments.output / f"{name}.md", markdown(config, own, arguments.raw))
        draw(arguments.output, config, own)
    same = True
    if arguments.whole:
        networks = network_rows([record.as_json() for record in records])
        same = all(row.same is not False for row in networks)
        print_wide(console, network_table(networks))
        text = network_markdown(config, networks, arguments.raw)
        write_atomically(arguments.output / "networks.md", text)
        draw_networks(arguments.output, config, networks)
    data = {
        "seeds": list(dict.fromkeys(seeds)),
        "quick": quick,
        "cases": [record.as_json() for record in records],
    }
    write_record(arguments.output / "results.json", config, arguments.raw, None, data)
    console.print(f"{len(cases)} cases: {arguments.output}  ({time.monotonic() - started:.0f} s)")
    return same
