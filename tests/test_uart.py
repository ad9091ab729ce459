# amaranth: UnusedElaboratable=no
"""The core behind a serial line: protocol, bridge, driver, ``gshw run`` on a simulated board."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from gshw import golden
from gshw.artefact import EncodedModel, save_model
from gshw.cli import main
from gshw.config import load_config, parse_config
from gshw.drivers.accelerator import ProgramError
from gshw.drivers.layers import run_layer, run_program
from gshw.drivers.open import SPECS, open_accelerator
from gshw.drivers.serial_port import SerialPort
from gshw.drivers.stream_form import StreamForm
from gshw.drivers.uart import UartAccelerator
from gshw.drivers.uart_simulated import SimulatedBoard
from gshw.errors import GshwError
from gshw.geometry import Geometry
from gshw.lower import lower_layer
from gshw.program import INSTRUCTION_BYTES
from gshw.register_map import register_map
from gshw.simulate import chain_input
from gshw.top import Top
from gshw.uart_protocol import (
    ALTERNATE,
    POSITIONS,
    FrameDecoder,
    Kind,
    Request,
    behind_uart,
    decode_reply,
    encode_frame,
)
from gshw.verilate import build_library
from rtl_gen.emit import cached_top_verilog
from rtl_gen.uart_top import UartTop
from tests.strategies import conv, random_activations, random_layer
from tests.uart_line import Line

CONFIG = load_config("tiny")
ENGINE = CONFIG.engine
MAP = register_map(behind_uart(CONFIG), Top.UART)
N_WORDS = 128


def word(value: int) -> bytes:
    return value.to_bytes(4, "little")


def offset(name: str) -> int:
    return MAP[name].offset


# --- frames ------------------------------------------------------------------------------------


def test_a_frame_byte_by_byte():
    # The check value of CRC-32 in every catalogue is that of these nine digits.
    assert encode_frame(b"123456789") == b"\x7e123456789\x26\x39\xf4\xcb\x7e"
    frame = Request(kind=Kind.READ, tag=0x7E, number=0x048).encode()
    assert frame[:1] + frame[-1:] == b"\x7e\x7e"
    assert frame[1:6] == b"\x01\x7d\x5e\x48\x00"
    assert frame.count(0x7E) == 2


def test_frames_come_out_of_pieces_of_any_size():
    rng = np.random.default_rng(1)
    bodies = [rng.integers(0, 256, int(n), dtype=np.uint8).tobytes() for n in (1, 4, 300, 7)]
    bodies += [b"\x7e\x7d" * 20]
    line = b"noise" + b"".join(map(encode_frame, bodies)) + b"\x7e\x01"
    for n_piece in (1, 2, 3, 50, len(line)):
        decoder = FrameDecoder()
        found = []
        for start in range(0, len(line), n_piece):
            found += decoder.feed(line[start : start + n_piece])
        assert found == bodies and decoder.n_bad == 0


def test_damaged_frames_are_counted_and_the_next_one_is_found():
    rng = np.random.default_rng(2)
    good = encode_frame(b"good")
    n_whole = 0
    for _ in range(300):
        frame = bytearray(encode_frame(rng.integers(0, 256, 40, dtype=np.uint8).tobytes()))
        frame[int(rng.integers(1, len(frame) - 1))] ^= 1 << int(rng.integers(8))
        decoder = FrameDecoder()
        assert decoder.feed(bytes(frame) + good) == [b"good"]
        n_whole += decoder.n_bad == 0
    assert n_whole == 0
    babble = FrameDecoder()
    for _ in range(20):
        babble.feed(bytes(100_000))
    assert babble.feed(good) == [b"good"] and babble.n_bad <= 1


def test_what_is_no_reply():
    request = b"\x01\x02\x03\x00" + bytes(4)
    for body in (request, b"\x81\x00\x00\x00", b"\x81" + bytes(8), b"\x8f" + bytes(7), b""):
        assert decode_reply(body) is None
    status = word(0x234 | 0x567 << 12 | 9 << 24 | 1 << 31)
    reply = decode_reply(b"\x84\x05\x07\x01" + b"payload." + status)
    assert (reply.kind, reply.tag, reply.number, reply.payload) == (
        Kind.RECEIVE,
        5,
        0x107,
        b"payload.",
    )
    assert (reply.accepted, reply.taken, reply.dropped, reply.flag) == (0x234, 0x567, 9, True)


# --- the bridge --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    return build_library(cached_top_verilog(CONFIG, Top.UART), top=Top.UART)


@pytest.fixture
def line(library):
    line = Line(library)
    yield line
    line.close()


def test_registers_are_read_and_written_once(line):
    sync = line.ask(Kind.SYNC)
    assert sync.payload == word(1 | (N_WORDS - 1) << 8 | N_WORDS << 20)
    for name in ("magic", "version", "config_hash", "features", "bus_widths"):
        reply = line.ask(Kind.READ, offset(name))
        assert reply.payload == word(MAP[name].reset) and not reply.flag
    enable = offset("interrupt_enable")
    assert not line.ask(Kind.WRITE, enable | ALTERNATE, word(2)).flag
    # The same bit again: a repeated request, answered and not done.
    line.ask(Kind.WRITE, enable | ALTERNATE, word(1))
    assert line.ask(Kind.READ, enable).payload == word(2)
    line.ask(Kind.WRITE, enable, word(3))
    assert line.ask(Kind.READ, enable).payload == word(3)
    line.ask(Kind.SYNC)
    line.ask(Kind.WRITE, enable | ALTERNATE, word(1))
    assert line.ask(Kind.READ, enable).payload == word(1)


def test_registers_that_are_not_there_are_flagged(line):
    line.ask(Kind.SYNC)
    for name in ("program_address_low", "window_first_low", "watchdog_cycles"):
        assert name in register_map(CONFIG, Top.STREAM) and name not in MAP
        assert line.ask(Kind.READ, register_map(CONFIG, Top.STREAM)[name].offset).flag
    assert line.ask(Kind.WRITE, 0xFFC | ALTERNATE, word(0)).flag
    assert not line.ask(Kind.READ, offset("magic")).flag


def test_bad_frames_are_dropped_and_counted(line):
    line.ask(Kind.SYNC)
    good = line.frame(Kind.READ, offset("magic"))
    damaged = bytearray(good)
    damaged[3] ^= 1
    n_dropped = line.ask(Kind.READ, 0).dropped
    for junk in (bytes(damaged), good[:-5], b"\x7e" + bytes(range(100)), b"\x7d"):
        assert line.put(junk) == []
        n_dropped += 1
        reply = line.ask(Kind.READ, offset("magic"))
        assert reply.payload == word(MAP["magic"].reset)
        assert reply.dropped == n_dropped % 128
    # While a request is answered nothing else is taken.
    (reply,) = line.put(good + line.frame(Kind.READ, offset("version")), answer_bytes=24)
    assert reply.payload == word(MAP["magic"].reset)
    assert line.ask(Kind.READ, 0).dropped == (n_dropped + 1) % 128


def send(line: Line, number: int, n_words: int, *, last: bool = False) -> None:
    payload = np.arange(number, number + n_words, dtype="<u4").tobytes()
    assert line.put(line.frame(Kind.SEND, number % POSITIONS, payload, tag=int(last))) == []


def test_words_are_accepted_in_order_and_while_there_is_room(line):
    def state() -> tuple[int, int]:
        reply = line.ask(Kind.RECEIVE, 0)
        assert reply.payload == b"" and not reply.flag
        return reply.accepted, reply.taken

    line.ask(Kind.SYNC)
    send(line, 0, 5)
    # No program runs: one word has moved to the core's door.
    assert state() == (5, 1)
    for number in (0, 4, 6, POSITIONS - 1):
        send(line, number, 3)
        assert state() == (5, 1), "words in the wrong place"
    send(line, 5, 123)
    assert state() == (128, 1), "it is full now"
    line.ask(Kind.SYNC)
    assert state() == (0, 0)
    send(line, 0, 127)
    assert state() == (127, 1)
    send(line, 127, 2)
    assert state() == (127, 1), "only one more fits, as a checksum takes room, too"
    line.ask(Kind.SYNC)
    send(line, 0, 10, last=True)
    send(line, 10, 1)
    assert state() == (10, 1), "the end of the packet waits"


# --- the driver --------------------------------------------------------------------------------


class Board(SimulatedBoard):
    """A board whose line can be made bad."""

    def __init__(self, library) -> None:
        self.damage = 0.0
        self.rng = np.random.default_rng(0)
        self.cut_after: int | None = None
        self.pull_after: int | None = None
        super().__init__(library)

    def heal(self) -> None:
        self.damage, self.cut_after, self.pull_after = 0.0, None, None

    def _spoil(self, data: bytes) -> bytes:
        if not self.damage:
            return data
        out = bytearray()
        for byte in data:
            dice = self.rng.random() / self.damage
            if dice >= 1:
                out.append(byte)
            elif dice < 0.4:
                out.append(byte ^ 1 << int(self.rng.integers(8)))
            elif dice < 0.6:
                out += bytes([byte, int(self.rng.integers(256))])
        return bytes(out)

    def to_board(self, data: bytes) -> bytes:
        if self.cut_after is not None:
            data, self.cut_after = data[: self.cut_after], max(0, self.cut_after - len(data))
        if self.pull_after is not None:
            data, self.pull_after = data[: self.pull_after], self.pull_after - len(data)
            if self.pull_after <= 0:
                self.pull_after = None
                self.unplug()
        return self._spoil(data)

    def from_board(self, data: bytes) -> bytes:
        return b"" if self.cut_after == 0 else self._spoil(data)


@pytest.fixture(scope="module")
def running_board(library):
    with Board(library) as board:
        yield board


@pytest.fixture
def board(running_board):
    running_board.heal()
    yield running_board
    running_board.heal()
    running_board.unplug()
    running_board.plug()


@pytest.fixture(scope="module")
def network():
    """Three pruned layers that follow each other."""
    layers = [
        random_layer(1, ENGINE, 8, conv(4, (3, 3), padding=(1, 1)), 0.4, relu=True),
        random_layer(2, ENGINE, 4, conv(8, (1, 1)), 0.5, relu=True),
        random_layer(3, ENGINE, 6, Geometry.linear(4 * 4 * 4), 0.3),
    ]
    layers[0].metadata["input_size"] = "4x4"
    return {layer.name: layer for layer in layers}


@pytest.fixture
def model(tmp_path, network):
    path = tmp_path / "network.safetensors"
    save_model(path, ENGINE, EncodedModel(layers=network))
    return path


def expected(network, x) -> np.ndarray:
    for layer in network.values():
        x = golden.run_layer(ENGINE, layer, chain_input(layer, x))
    return x


@pytest.fixture
def gshw_run(capsys):
    def call(*arguments) -> tuple[int, str, str]:
        status = main(["run", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_network_runs_on_the_board_bit_for_bit(board, model, network, gshw_run, tmp_path):
    x = random_activations(4, ENGINE, (1, 4, 4, 4))
    np.save(tmp_path / "x.npy", x)
    device = f"uart:{board.path}:3000000"
    arguments = [model, "--config", "tiny", "--device", device, "--check"]
    files = ["--input", tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--json", tmp_path / "r.json"]
    status, out, err = gshw_run(*arguments, *files)
    assert (status, err) == (0, "") and out.count("same") == 3
    assert np.array_equal(np.load(tmp_path / "y.npy"), expected(network, x))
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["device"] == device and record["config_hash"] == ENGINE.hash
    assert [row["name"] for row in record["layers"]] == list(network)
    for row, layer in zip(record["layers"], network.values(), strict=True):
        # At least the groups, and the line's time for the group words: 40 cycles per byte.
        assert row["counters"]["cycles"] > 40 * 4 * layer.n_groups


def layer_and_input(network):
    layer = next(iter(network.values()))
    return layer, random_activations(5, ENGINE, (1, 4, 4, 4))


def check_layer(accelerator, network) -> None:
    layer, x = layer_and_input(network)
    result = run_layer(accelerator, layer, x)
    assert np.array_equal(result.output, golden.run_layer(ENGINE, layer, x))


def test_noise_costs_time_and_nothing_else(board, network):
    with UartAccelerator(
        CONFIG, board.path, baud=3_000_000, answer_timeout_s=0.15, n_tries=40
    ) as accelerator:
        board.damage = 1 / 600
        for _ in range(2):
            check_layer(accelerator, network)
        statistics = accelerator.link.statistics
        assert statistics.repeated and (statistics.bad or statistics.dropped)
        assert "frames repeated" in accelerator.note and board.path in accelerator.note


def refused(result: tuple[int, str, str]) -> str:
    status, _, err = result
    assert status == 2 and err.startswith("gshw: ") and err.count("\n") == 1, err
    return err.removeprefix("gshw: ").rstrip("\n")


@pytest.mark.parametrize("n_bytes", [30, 1500])
def test_a_pulled_cable_is_one_line_and_the_next_run_works(board, model, gshw_run, n_bytes):
    board.pull_after = n_bytes
    path = board.path
    arguments = [model, "--config", "tiny", "--check", "--device"]
    line = refused(gshw_run(*arguments, f"uart:{path}:3000000"))
    assert line in (
        f"{path}: the port is gone",
        f"{path}: the port is gone: Input/output error",
    )
    board.plug()
    assert gshw_run(*arguments, f"uart:{board.path}:3000000")[0] == 0


def test_a_board_that_falls_silent_is_one_line_and_the_next_run_works(board, model, gshw_run):
    board.cut_after = 1500
    arguments = [model, "--config", "tiny", "--check", "--device", f"uart:{board.path}:3000000"]
    line = refused(gshw_run(*arguments))
    assert line.startswith(f"{board.path}: the board does not answer: 5 tries in 2.")
    board.heal()
    assert gshw_run(*arguments)[0] == 0


def test_a_bad_program_is_reported_and_the_next_one_runs(board, network):
    layer, x = layer_and_input(network)
    with UartAccelerator(CONFIG, board.path, baud=3_000_000) as accelerator:
        program = lower_layer(CONFIG, layer, *x.shape[:3])
        run_program(accelerator, program, x)
        form = StreamForm(behind_uart(CONFIG), accelerator.memory, program.program_address)
        data = bytearray(form.to_core)
        data[INSTRUCTION_BYTES + 17] ^= 4
        accelerator.link.sync()
        accelerator.control.start(0)
        accelerator.link.exchange(bytes(data), lambda: accelerator.control.finished, 5.0)
        with pytest.raises(ProgramError) as caught:
            accelerator.control.result()
        assert (caught.value.flags, caught.value.index) == (("instruction",), 1)
        check_layer(accelerator, network)


def test_a_program_that_hangs_is_given_up(board, network):
    with UartAccelerator(CONFIG, board.path, baud=3_000_000) as accelerator:
        link, exchange = accelerator.link, accelerator.link.exchange

        def never_ends(data: bytes, ended, timeout_s: float):
            return exchange(data[: len(data) // 8 * 4], lambda: False, 0.2)

        link.exchange = never_ends
        with pytest.raises(GshwError, match=r"^the program did not end: nothing moved for 0.2 s$"):
            check_layer(accelerator, network)
        link.exchange = exchange
        check_layer(accelerator, network)


class Impatient(Exception):
    """Stands for a KeyboardInterrupt, which would end the tests if it got away."""


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 5, 6, 8, 12])
def test_after_an_interrupt_anywhere_the_next_run_is_right(board, network, n_frames):
    """Between a frame and its answer: the host does not know whether it was done."""
    with UartAccelerator(CONFIG, board.path, baud=3_000_000) as accelerator:
        link = accelerator.link
        wait = link._wait
        left = n_frames

        def impatient(kind, patience_s):
            nonlocal left
            left -= 1
            if left == 0:
                raise Impatient
            return wait(kind, patience_s)

        link._wait = impatient
        with pytest.raises(Impatient):
            check_layer(accelerator, network)
        assert accelerator.control.ready
        check_layer(accelerator, network)


def test_a_board_that_comes_back_with_a_program_in_it(board, network):
    with UartAccelerator(
        CONFIG, board.path, baud=3_000_000, answer_timeout_s=0.05, n_tries=2
    ) as accelerator:
        board.cut_after = 1500
        with pytest.raises(GshwError, match="the board does not answer: 2 tries"):
            check_layer(accelerator, network)
        board.heal()
        check_layer(accelerator, network)


def test_a_board_that_was_reset_is_noticed(board, network):
    with UartAccelerator(CONFIG, board.path, baud=3_000_000) as accelerator:
        accelerator.link.sync()

        def reset() -> bool:
            accelerator.control.reset()
            return False

        with pytest.raises(GshwError, match=f"^{board.path}: the board lost its place: was it"):
            accelerator.link.exchange(bytes(40), reset, 5.0)
        check_layer(accelerator, network)


def test_a_core_for_another_config_is_refused(board, gshw_run, tmp_path):
    other = parse_config(CONFIG.to_toml().replace("bank_depth = 256", "bank_depth = 128"), "other")
    (tmp_path / "other.toml").write_text(other.to_toml())
    layer = random_layer(1, other.engine, 4, conv(4, (1, 1)))
    save_model(tmp_path / "m", other.engine, EncodedModel(layers={layer.name: layer}))
    device = f"uart:{board.path}:3000000"
    line = refused(
        gshw_run(tmp_path / "m", "--config", tmp_path / "other.toml", "--device", device)
    )
    assert line == (
        f"register config_hash must read 0x{other.engine.hash32:08x} for this config, "
        f"not 0x{ENGINE.hash32:08x}"
    )


def test_ports_that_cannot_be_used(tmp_path):
    with pytest.raises(GshwError, match=r"none: cannot be opened: No such file or directory$"):
        SerialPort(tmp_path / "none", 115200)
    (tmp_path / "file").write_text("")
    with pytest.raises(GshwError, match=r"file: must be a serial port$"):
        SerialPort(tmp_path / "file", 115200)
    with pytest.raises(GshwError, match=r"^baud must be one of 1200, .*, not 12345$"):
        SerialPort("/dev/null", 12345)
    master, slave = os.openpty()
    path = os.ttyname(slave)
    port = SerialPort(path, 115200)
    with pytest.raises(GshwError, match=f"^{path}: another program uses it$"):
        SerialPort(path, 115200)
    with pytest.raises(GshwError, match=f"^{path}: takes no bytes for 0.1 s$"):
        port.write(bytes(1 << 20), 0.1)
    port.close()
    os.close(master)
    os.close(slave)


def test_nobody_answers_and_an_echo_is_no_answer():
    master, slave = os.openpty()
    path = os.ttyname(slave)
    stop = threading.Event()

    def echo() -> None:
        while not stop.is_set():
            os.write(master, os.read(master, 1000))

    options = {"answer_timeout_s": 0.05, "n_tries": 3}
    with pytest.raises(GshwError, match=f"^{path}: the board does not answer: 3 tries in 0.2 s$"):
        UartAccelerator(CONFIG, path, **options)
    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    with pytest.raises(GshwError, match=f"^{path}: the board does not answer"):
        UartAccelerator(CONFIG, path, **options)
    stop.set()
    os.write(slave, b"\n")
    thread.join(5)
    os.close(master)
    os.close(slave)


# --- devices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fpga", f"device must be one of {', '.join(SPECS)}, not 'fpga'"),
        ("golden:1", f"device must be one of {', '.join(SPECS)}, not 'golden:1'"),
        (
            "uart:",
            "device uart:: must have the form uart:PORT[:BAUD], such as uart:/dev/ttyUSB0:115200, "
            "with a PORT that exists",
        ),
        ("uart:/dev/x:fast", "device uart:/dev/x:fast: must have the form uart:PORT[:BAUD], such "),
        ("uart:/dev/x:9", "baud must be one of 1200, "),
        ("uart:/dev/x", "/dev/x: cannot be opened: No such file or directory"),
        ("mem:1,2", "device mem:1,2: must have the form mem:REGISTERS,MEMORY,BYTES"),
        (
            "mem:0,zz,64",
            "device mem:0,zz,64: MEMORY must be a number such as 0x40000000, not 'zz'",
        ),
        ("uio:/dev/uio0,,0,64", "device uio:/dev/uio0,,0,64: must have the form uio:PORT,FILE,"),
    ],
)
def test_devices_that_are_none(spec, message):
    with pytest.raises(GshwError) as caught:
        open_accelerator(spec, CONFIG, cached_top_verilog)
    assert str(caught.value).startswith(message)


def test_the_guide_names_every_device():
    guide = (Path(__file__).resolve().parents[1] / "docs" / "integration.md").read_text()
    assert [spec for spec in SPECS if f"`{spec}`" not in guide] == []


def test_serial_ports_with_colons_in_their_names(tmp_path, monkeypatch):
    """As below /dev/serial/by-path."""
    calls = []
    monkeypatch.setattr(
        "gshw.drivers.uart.UartAccelerator", lambda _, *a, **k: calls.append((a, k))
    )
    for name in ("pci-0000:00:14.0-usb-0:1:1.0-port0", "usb-0:1"):
        path = tmp_path / name
        path.write_text("")
        open_accelerator(f"uart:{path}", CONFIG, cached_top_verilog)
        open_accelerator(f"uart:{path}:9600", CONFIG, cached_top_verilog)
        assert calls == [((str(path),), {"baud": baud}) for baud in (115200, 9600)]
        calls.clear()


def test_the_software_model_as_a_device(model, network, gshw_run, tmp_path):
    status, out, err = gshw_run(model, "--config", "tiny", "--check", "-o", tmp_path / "y.npy")
    assert (status, err) == (0, "") and out.count("same") == 3
    name = list(network)[2]
    alone = gshw_run(model, "--config", "tiny", "--layer", name, "--samples", 2)
    assert alone[0] == 0 and name in alone[1] and "2x1x1x6" in alone[1]


def test_mapped_devices_get_their_addresses(monkeypatch):
    calls = []
    monkeypatch.setattr("gshw.drivers.mapped.open_mapped", lambda *a, **k: calls.append((a, k)))
    open_accelerator("mem:0x43c00000,0x10000000,4096", CONFIG, cached_top_verilog)
    open_accelerator("uio:/dev/uio1,/dev/udmabuf0,0x10000000,8192", CONFIG, cached_top_verilog)
    memory = {"memory_base": 0x10000000}
    assert calls == [
        (
            (CONFIG, "/dev/mem", "/dev/mem"),
            memory | {"register_base": 0x43C00000, "memory_offset": 0x10000000, "n_bytes": 4096},
        ),
        ((CONFIG, "/dev/uio1", "/dev/udmabuf0"), memory | {"n_bytes": 8192}),
    ]


def test_a_network_of_the_demo_s_shapes_on_the_simulated_board(library, gshw_run, tmp_path):
    """As ``pruning.digits`` has it, 90 % pruned but for the first layer; weights are random."""
    down = {"stride": (2, 2), "padding": (1, 1)}
    layers = [
        random_layer(11, ENGINE, 32, conv(1, (3, 3), padding=(1, 1)), 1.0, relu=True),
        random_layer(12, ENGINE, 64, conv(32, (3, 3), **down), 0.1, relu=True),
        random_layer(13, ENGINE, 128, conv(64, (3, 3), **down), 0.1, relu=True),
        random_layer(14, ENGINE, 256, Geometry.linear(512), 0.1, relu=True),
        random_layer(15, ENGINE, 10, Geometry.linear(256), 0.1),
    ]
    layers[0].metadata["input_size"] = "8x8"
    network = {layer.name: layer for layer in layers}
    path = tmp_path / "digits.safetensors"
    save_model(path, ENGINE, EncodedModel(layers=network))
    x = random_activations(9, ENGINE, (1, 8, 8, 1))
    np.save(tmp_path / "x.npy", x)
    files = ["--input", tmp_path / "x.npy", "-o", tmp_path / "y.npy"]
    command = [path, "--config", "tiny", "--device", "sim-uart", "--check", *files]
    status, out, err = gshw_run(*command)
    assert (status, err) == (0, "") and out.count("same") == 5
    assert np.array_equal(np.load(tmp_path / "y.npy"), expected(network, x))


def test_the_simulated_board_as_a_device(library, model, gshw_run):
    status, out, err = gshw_run(model, "--config", "tiny", "--check", "--device", "sim-uart")
    assert (status, err) == (0, "") and out.count("same") == 3


@pytest.mark.parametrize("n_words", [8, 100, 4096])
def test_buffers_of_no_good_size(n_words):
    with pytest.raises(ValueError, match=rf"^n_words must be a power of two .*, not {n_words}$"):
        UartTop(CONFIG, n_words=n_words)


def test_layers_that_do_not_follow_each_other(gshw_run, tmp_path):
    layers = [
        random_layer(1, ENGINE, 8, conv(4, (1, 1))),
        random_layer(2, ENGINE, 8, conv(5, (1, 1))),
    ]
    layers[0].metadata["input_size"] = "4x4"
    path = tmp_path / "m"
    save_model(path, ENGINE, EncodedModel(layers={layer.name: layer for layer in layers}))
    line = refused(gshw_run(path, "--config", "tiny"))
    assert line.startswith("layer 'random2': activations must ")


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_outputs_are_checked_before_the_device_is_opened(model, gshw_run, tmp_path, option):
    command = [model, "--config", "tiny", "--device", "uart:/dev/none", option]
    line = refused(gshw_run(*command, "/nowhere/y"))
    assert line == "/nowhere/y: cannot be written: No such file or directory"
    assert refused(gshw_run(*command, tmp_path)) == f"{tmp_path}: cannot be written: Is a directory"


@pytest.mark.parametrize("size", ["4xfive", "0x4", "4x4x4", ""])
def test_a_model_with_an_input_size_that_is_none(gshw_run, tmp_path, size):
    layer = random_layer(1, ENGINE, 8, conv(4, (1, 1)))
    layer.metadata["input_size"] = size
    save_model(tmp_path / "m", ENGINE, EncodedModel(layers={layer.name: layer}))
    line = refused(gshw_run(tmp_path / "m", "--config", "tiny"))
    assert line == (
        f"layer 'random1': input_size must be a height and a width such as 28x28, not {size!r}"
    )


@pytest.mark.parametrize("n_samples", [10**15, 10**17])
def test_more_samples_than_memory_holds(model, gshw_run, n_samples):
    line = refused(gshw_run(model, "--config", "tiny", "--samples", n_samples))
    assert line == (
        f"layer 'random1': its input must fit into memory, not {n_samples} samples of 4x4x4 codes"
    )


def test_results_that_memory_does_not_hold(model, gshw_run, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 80 GiB")

    monkeypatch.setattr("gshw.drivers.run_command.run_layer", fail)
    line = refused(gshw_run(model, "--config", "tiny"))
    assert line == "run must fit into memory: Unable to allocate 80 GiB"


def test_a_difference_is_told(model, gshw_run, monkeypatch):
    true_layer = golden.run_layer
    monkeypatch.setattr(golden, "run_layer", lambda *a: true_layer(*a) ^ 1)
    status, out, _ = gshw_run(model, "--config", "tiny", "--check")
    assert status == 1 and "DIFFERS" in out
