"""``gshw run``: an encoded model on a core, layer by layer."""

import argparse
import io
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gshw import golden
from gshw.config import Config
from gshw.drivers.layers import run_layer
from gshw.drivers.open import check_device, open_accelerator
from gshw.encoding import EncodedLayer
from gshw.files import check_output_files, write_atomically
from gshw.report import print_wide, write_record
from gshw.simulate import chain_input, random_activations
from gshw.top import Top


def _first_input(
    arguments: argparse.Namespace, config: Config, layer: EncodedLayer, given: NDArray | None
) -> NDArray[np.int64]:
    if given is None:
        given = random_activations(config.engine, layer, arguments.samples, arguments.seed)
    return golden.check_activations(config.engine, layer, given)


def _table(title: str, rows: list[dict]) -> Table:
    table = Table(title=title)
    for name in ("layer", "output", "cycles", "groups", "seconds", "golden model"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for row in rows:
        match = {None: "", True: "same", False: "DIFFERS"}[row["match"]]
        counters = [str(row["counters"].get(name, "")) for name in ("cycles", "groups")]
        shape = "x".join(map(str, row["shape"]))
        table.add_row(row["name"], shape, *counters, f"{row['seconds']:.3f}", match)
    return table


def run_command(
    arguments: argparse.Namespace,
    console: Console,
    config: Config,
    layers: Mapping[str, EncodedLayer],
    given: NDArray | None,
    top_verilog: Callable[[Config, Top], str],
) -> bool:
    """Run the layers one after the other, each on the results of the one before.

    Parameters
    ----------
    given
        Codes for the first layer; None takes random ones.
    top_verilog
        See :func:`gshw.drivers.open.open_accelerator`.

    Returns
    -------
    bool
        Whether all layers equal the golden model; True where that was not asked for.

    Raises
    ------
    GshwError
        For bad input, layers that do not follow each other, and a device that fails.
    """
    check_output_files(arguments.output, arguments.json)
    check_device(arguments.device)
    first = next(iter(layers.values()))
    # Bad input is refused before the device is opened, which may take a while.
    codes = _first_input(arguments, config, first, given)
    rows: list[dict] = []
    status = console.status("opening the device") if console.is_terminal else nullcontext()
    with status, open_accelerator(arguments.device, config, top_verilog) as accelerator:
        for name, layer in layers.items():
            x = golden.check_activations(config.engine, layer, chain_input(layer, codes))
            begin = time.monotonic()
            run = run_layer(accelerator, layer, x, base_address=accelerator.memory_base)
            seconds = time.monotonic() - begin
            match = None
            if arguments.check:
                match = bool(np.array_equal(run.output, golden.run_layer(config.engine, layer, x)))
            codes = run.output
            rows.append(
                {
                    "name": name,
                    "shape": list(codes.shape),
                    "seconds": seconds,
                    "match": match,
                    "counters": run.counters,
                }
            )
        note = accelerator.note
    print_wide(console, _table(f"{arguments.model} on {arguments.device}", rows))
    if note:
        console.print(note, highlight=False)
    if arguments.output is not None:
        _save(arguments.output, codes)
    data = {"device": arguments.device, "layers": rows, "note": note}
    write_record(arguments.json, config, arguments.raw, arguments.seed, data)
    return all(row["match"] is not False for row in rows)


def _save(path: Path, codes: NDArray) -> None:
    text = io.BytesIO()
    np.save(text, codes)
    write_atomically(path, text.getvalue())
