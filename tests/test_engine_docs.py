"""Figures that the documents state are those of the code."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from gshw.benes import switch_settings
from gshw.config import load_config
from gshw.cycles import command_cycles
from gshw.layout import group_fields, record_fields
from gshw.pipeline import FETCH_LATENCY, Pipeline
from gshw.report import bit_diagram
from rtl_gen.top import Core

DOCS = Path(__file__).parents[1] / "docs"
ARCHITECTURE = (DOCS / "architecture.md").read_text()
FORMAT = (DOCS / "format.md").read_text()
PIPELINE_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in ARCHITECTURE[ARCHITECTURE.index("| figure |") :].split("\n\n")[0].splitlines()
]


def test_the_pipeline_table():
    names, figures = PIPELINE_ROWS[0][2:], PIPELINE_ROWS[2:]
    stated = {row[0].strip("`"): [int(cell) for cell in row[2:]] for row in figures}
    assert {"tiny", "v16x4", "arb16"} <= set(names) and "accumulate" in stated
    pipelines = [Pipeline(load_config(name).engine) for name in names]
    for figure, values in stated.items():
        assert values == [getattr(pipeline, figure) for pipeline in pipelines], figure


def test_the_timing_of_one_group():
    """``2 + 1 + accumulate + records + drain`` on v16x4."""
    config = load_config("v16x4").engine
    pipeline = Pipeline(config)
    total = command_cycles(config, np.array([1]), np.array([8]), 1, 1).total
    terms = (FETCH_LATENCY, 1, pipeline.accumulate, 8, pipeline.drain)
    assert f"Check: {' + '.join(map(str, terms))} = {total}, as" in ARCHITECTURE
    table = ARCHITECTURE[ARCHITECTURE.index("| cycle | what happens |") :]
    cycle = {
        what: re.search(rf"^\| (\d+)(?:\.\.\d+)? \| [^|]*{what}", table, re.M)
        for what in ("\\*\\*issue", "\\*\\*added", "\\*\\*drain", "write of the last", "is low")
    }
    found = [int(match[1]) for match in cycle.values() if match]
    issue = FETCH_LATENCY + 1
    added = issue + pipeline.accumulate
    assert found == [issue, added, added + 1, total, total + 1]


def test_the_example_of_the_cycle_law():
    config = load_config("v16x4").engine
    law = command_cycles(config, np.array([5, 10, 12]), np.array([8, 8, 8]), 27, 3)
    assert str(law) in ARCHITECTURE


@pytest.mark.parametrize("what", ["group word", "row-parameter record"])
def test_the_pictures_of_words(what):
    """Each is what ``gshw info`` prints."""
    pictures = re.findall(rf"^(\w+): {what}, (\d+) bits:\n((?:[ +|].*\n){{5}})", FORMAT, re.M)
    assert len(pictures) == 3
    fields = group_fields if what == "group word" else record_fields
    for name, n_bits, picture in pictures:
        table = fields(load_config(name).engine)
        assert int(n_bits) == table[-1].stop
        wanted = [line.rstrip() for line in bit_diagram(table).splitlines()]
        assert [line.rstrip() for line in picture.splitlines()] == wanted


def test_the_hash_of_tiny():
    engine = load_config("tiny").engine
    canonical = json.dumps(engine.canonical(), sort_keys=True, separators=(",", ":"))
    joined = FORMAT.replace("\n", "")
    assert canonical + engine.hash in joined
    assert f"here `0x{engine.hash32:08x}`" in joined


def test_the_switches_of_four_lanes():
    settings = switch_settings(np.array([[2, 0, 3, 1]]))[0]
    assert f"3, 1]])` gives `{' '.join(map(str, settings))}`" in FORMAT


def test_the_widths_of_the_command():
    """Of v16x4 with all options, from the table of the command's ports."""
    options = {"max_pooling": True, "activation_tables": 8}
    core = Core(dataclasses.replace(load_config("v16x4").engine, **options))
    core._MustUse__silence = core._engine._MustUse__silence = True
    widths = {port.name: port.width for port in core.ports}
    table = FORMAT[FORMAT.index("| field | bits | meaning |\n|---|---|---|\n| `config_hash`") :]
    rows = re.findall(r"^\| (`[^|]+`) \| (\d+)(?: each)? \|", table.split("\n\n")[0], re.M)
    stated = {}
    for names, width in rows:
        for name in re.findall(r"`(\w+)(?:\.\.2)?`", names):
            numbered = [f"{name[:-1]}{n}" for n in range(3)] if name.endswith("_0") else [name]
            stated |= {f"command_{one}": int(width) for one in numbered}
    actual = {
        name: width
        for name, width in widths.items()
        if name.startswith("command_") and name not in ("command_valid", "command_ready")
    }
    assert stated == actual
