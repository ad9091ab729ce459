"""One interface, several back ends: equal results, and a plain line for whatever goes wrong."""

import mmap
import os
import socket
import sys
import types

import numpy as np
import pytest

from gshw.config import load_config
from gshw.drivers.accelerator import Accelerator, HostMemory, ProgramError
from gshw.drivers.control import Control
from gshw.drivers.golden import GoldenAccelerator
from gshw.drivers.layers import run_layer, run_program
from gshw.drivers.mapped import (
    MappedAccelerator,
    MappedFile,
    MappedRegisters,
    UioInterrupt,
    open_mapped,
)
from gshw.drivers.pynq import PynqAccelerator
from gshw.drivers.simulated import (
    MemoryModel,
    SimulatedAccelerator,
    SimulatedStreamAccelerator,
)
from gshw.drivers.stream_form import StreamForm
from gshw.errors import GshwError
from gshw.golden import run_layer as golden_layer
from gshw.lower import lower_layer
from gshw.program import INSTRUCTION_BYTES, assemble, disassemble
from gshw.register_map import register_map
from gshw.registers import PROGRAM_COUNTERS, PROGRAM_ERRORS, WIDE_COUNTERS
from gshw.top import Top
from gshw.verilate import build_library
from rtl_gen.emit import cached_top_verilog
from tests.strategies import conv, random_activations, random_layer

CONFIG = load_config("tiny")
ENGINE = CONFIG.engine
BASE = 0x4000_0000
N_BYTES = 1 << 16
REGISTERS = register_map(CONFIG, Top.AXI)


def library(top: Top):
    return build_library(cached_top_verilog(CONFIG, top), top=top)


def golden(**options) -> GoldenAccelerator:
    return GoldenAccelerator(CONFIG, n_bytes=N_BYTES, base=BASE, **options)


def axi(**options) -> SimulatedAccelerator:
    return SimulatedAccelerator(CONFIG, library(Top.AXI), n_bytes=N_BYTES, base=BASE, **options)


def stream(**options) -> SimulatedStreamAccelerator:
    return SimulatedStreamAccelerator(
        CONFIG, library(Top.STREAM), n_bytes=N_BYTES, base=BASE, **options
    )


@pytest.fixture
def core():
    with axi() as accelerator:
        yield accelerator


def mapped(core: SimulatedAccelerator, **options) -> MappedAccelerator:
    """The simulated core's registers and memory, as mapped ones."""
    return MappedAccelerator(CONFIG, core.library, core.memory.data, BASE, **options)


@pytest.fixture(scope="module")
def layer():
    channels = 2 * ENGINE.channels_per_row
    layer = random_layer(7, ENGINE, channels, conv(channels, (3, 3), padding=(1, 1)))
    return layer, random_activations(8, ENGINE, (1, 5, 6, channels))


@pytest.fixture(scope="module")
def program(layer):
    return lower_layer(CONFIG, layer[0], 1, 5, 6, base_address=BASE)


def run_well(accelerator: Accelerator, layer, base_address: int = BASE) -> dict[str, int]:
    """Run the layer, compare it with the golden model, return the counters."""
    encoded, x = layer
    result = run_layer(accelerator, encoded, x, base_address=base_address)
    assert (result.output == golden_layer(ENGINE, encoded, x)).all()
    return result.counters


def place(accelerator: Accelerator, program, x, *, damaged_byte: int | None = None) -> None:
    """Everything but the start; one byte of the program may be flipped."""
    for segment in program.segments:
        accelerator.write_memory(segment.address, segment.data)
    accelerator.write_memory(program.input_layout.address, program.input_bytes(x))
    if damaged_byte is not None:
        address = program.program_address + damaged_byte
        (old,) = accelerator.read_memory(address, 1)
        accelerator.write_memory(address, bytes([old ^ 1]))


# --- equal results -------------------------------------------------------------------------------

BACK_ENDS = {
    "golden": golden,
    "axi": axi,
    "axi_slow": lambda: axi(model=MemoryModel(read_latency=80, interval=3, pause=60), seed=5),
    "stream": stream,
    "stream_pauses": lambda: stream(pause=120, seed=6),
}


@pytest.mark.parametrize("name", BACK_ENDS)
def test_every_back_end_gives_the_golden_output(name, layer):
    with BACK_ENDS[name]() as accelerator:
        assert accelerator.memory_base == BASE
        counters = run_well(accelerator, layer)
        assert run_well(accelerator, layer, BASE + 0x4000).keys() == counters.keys()
    if name == "golden":
        assert counters == {}
    else:
        assert set(counters) == {*WIDE_COUNTERS, *PROGRAM_COUNTERS}
        assert counters["cycles"] > counters["groups"] > 0


def test_memory_outside_the_output_is_untouched(core, layer, program):
    before = np.full(N_BYTES, 0xA5, dtype=np.uint8)
    core.write_memory(BASE, before)
    run_program(core, program, layer[1])
    after = core.read_memory(BASE, N_BYTES)
    assert (after[program.n_bytes :] == 0xA5).all()
    assert core.traffic.stray_bytes == 0


def test_waves_of_a_library_without_them(tmp_path, layer):
    """Nothing is written."""
    with axi(waves=tmp_path / "waves.vcd") as accelerator:
        run_well(accelerator, layer)
    assert not (tmp_path / "waves.vcd").exists()


# --- errors of programs --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [axi, stream], ids=["axi", "stream"])
def test_a_damaged_instruction_is_named_and_the_next_program_runs(make, layer, program):
    with make() as accelerator:
        place(accelerator, program, layer[1], damaged_byte=2 * INSTRUCTION_BYTES + 8)
        if make is stream:
            # The host reads the program too, in order to send its data.
            with pytest.raises(GshwError, match="instruction 2"):
                accelerator.run(program.program_address)
        else:
            with pytest.raises(ProgramError) as caught:
                accelerator.run(program.program_address)
            assert (caught.value.flags, caught.value.index) == (("instruction",), 2)
            assert str(caught.value) == (
                f"the core stopped at instruction 2 (address 0x0): {PROGRAM_ERRORS['instruction']}"
            )
        run_well(accelerator, layer)


def test_a_program_for_another_engine(core, layer, program):
    """Whole, but for the config hash in its header."""
    place(core, program, layer[1])
    hash32 = ENGINE.hash32 ^ 1
    foreign = assemble(hash32, disassemble(program.program, ENGINE))
    core.write_memory(program.program_address, foreign)
    with pytest.raises(ProgramError) as caught:
        core.run(program.program_address)
    assert (caught.value.flags, caught.value.index) == (("config_hash",), 0)
    run_well(core, layer)


def test_a_damaged_header(core, layer, program):
    place(core, program, layer[1], damaged_byte=12)
    with pytest.raises(ProgramError) as caught:
        core.run(program.program_address)
    assert (caught.value.flags, caught.value.index) == (("header",), 0)
    run_well(core, layer)


# --- interrupts and leftovers --------------------------------------------------------------------


class Impatient(Exception):
    """Stands for a KeyboardInterrupt, which would end the tests if it got away."""


def interrupted(*_) -> None:
    raise Impatient


@pytest.mark.parametrize("kind", ["axi", "mapped", "pynq"])
def test_after_an_interrupt_the_next_run_is_right(core, layer, program, kind, request):
    """The first program must not go on, nor its end count as the second one's."""
    if kind == "pynq":
        request.getfixturevalue("pynq")
        accelerator = PynqAccelerator(CONFIG, "gshw_axi.bit", n_bytes=N_BYTES)
    else:
        accelerator = core if kind == "axi" else mapped(core)
    # Slow enough that the first program would still run.
    core.set_model(MemoryModel(read_latency=2000, write_latency=2000))
    place(accelerator, program, layer[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "step", interrupted)
        patch.setattr(Control, "finished", property(interrupted))
        with pytest.raises(Impatient):
            accelerator.run(program.program_address)
    assert core.control.ready
    core.set_model(MemoryModel())
    run_well(accelerator, layer, BASE + 0x4000)


def test_a_program_that_was_left_in_the_core(core, layer, program):
    """A start refuses; a run resets first."""
    place(core, program, layer[1])
    core.control.start(program.program_address)
    line = "the core must be ready for a start: a program runs, or an error was not reset"
    with pytest.raises(GshwError, match=f"^{line}$"):
        core.control.start(program.program_address)
    assert not core.control.finished
    run_well(core, layer, BASE + 0x4000)


def test_a_clean_up_that_fails_does_not_hide_what_happened():
    port = Registers()
    control = Control(port, CONFIG, Top.AXI)
    with pytest.raises(Impatient), control.running(BASE):
        port.values[0] = 0
        raise Impatient
    with pytest.raises(GshwError, match="does not become ready"), control.running(BASE):
        pass


def test_a_bus_error_has_its_address(core, layer, program):
    place(core, program, layer[1])
    where = program.output_layout.address
    core.set_model(MemoryModel(fault_low=where, fault_high=where))
    with pytest.raises(ProgramError) as caught:
        core.run(program.program_address)
    assert "write_bus" in caught.value.flags
    burst_bytes = CONFIG.bus.max_burst * CONFIG.bus.data_bytes
    assert abs(where - caught.value.address) < burst_bytes
    assert f"(address 0x{caught.value.address:x})" in str(caught.value)
    core.set_model(MemoryModel())
    run_well(core, layer)


def test_a_stream_that_the_core_stops_is_taken_back(layer, program):
    """The core, not the host, finds the error: another core's config hash in its driver's hands."""
    with stream(pause=40) as accelerator:
        place(accelerator, program, layer[1])
        original = StreamForm.__init__

        def damaged(form, *arguments) -> None:
            original(form, *arguments)
            sent = bytearray(form.to_core)
            sent[12] ^= 1
            form.to_core = bytes(sent)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StreamForm, "__init__", damaged)
            with pytest.raises(ProgramError) as caught:
                accelerator.run(program.program_address)
        assert caught.value.index == 0
        run_well(accelerator, layer)


def test_an_error_without_a_flag_says_so():
    assert str(ProgramError((), 3, 0)).endswith("no error flag is set")


@pytest.mark.parametrize("make", [axi, stream], ids=["axi", "stream"])
def test_a_program_that_does_not_end(make, layer, program):
    with make(cycle_limit=30) as accelerator:
        place(accelerator, program, layer[1])
        with pytest.raises(GshwError, match=r"^the program did not end within 30 cycles$"):
            accelerator.run(program.program_address)
        accelerator._limit = 1_000_000
        run_well(accelerator, layer)


# --- memory --------------------------------------------------------------------------------------

OUTSIDE = [(BASE - 1, 1), (BASE + N_BYTES - 3, 4), (0, 4)]


@pytest.mark.parametrize(("address", "n_bytes"), OUTSIDE)
@pytest.mark.parametrize("kind", ["golden", "axi", "stream", "mapped"])
def test_addresses_outside_the_memory(core, kind, address, n_bytes):
    made = {"golden": golden, "axi": lambda: core, "mapped": lambda: mapped(core)}
    accelerator = made.get(kind, stream)()
    line = (
        f"address 0x{address:x}: {n_bytes} bytes do not lie in the core's memory, "
        "0x40000000 to 0x4000ffff"
    )
    for access in (
        lambda: accelerator.read_memory(address, n_bytes),
        lambda: accelerator.write_memory(address, bytes(n_bytes)),
    ):
        with pytest.raises(GshwError) as caught:
            access()
        assert str(caught.value) == line


def test_an_output_beyond_the_memory_is_refused_before_the_start(core, layer, program):
    n_bytes = program.output_layout.address + 8 - BASE
    accelerator = MappedAccelerator(CONFIG, core.library, core.memory.data[:n_bytes], BASE)
    before = core.memory.data.copy()
    with pytest.raises(GshwError, match="bytes do not lie in the core's memory"):
        run_program(accelerator, program, layer[1])
    assert (core.memory.data == before).all() and core.traffic.read_bursts == 0


def test_the_core_cannot_write_beyond_the_mapped_memory(core, layer, program):
    """A program that was placed by hand; the memory goes on behind the part that is mapped."""
    n_bytes = program.output_layout.address + 8 - BASE
    core.write_memory(BASE, np.full(N_BYTES, 0xA5, dtype=np.uint8))
    accelerator = MappedAccelerator(CONFIG, core.library, core.memory.data[:n_bytes], BASE)
    place(accelerator, program, layer[1])
    with pytest.raises(ProgramError) as caught:
        accelerator.run(program.program_address)
    assert caught.value.flags == ("write_range",)
    assert (core.memory.data[n_bytes:] == 0xA5).all()
    control = accelerator.control
    assert control.read_pair("window_first") == BASE
    assert control.read_pair("window_last") == BASE + n_bytes - 1, "kept by the reset"


def test_memory_that_the_bus_does_not_reach(core):
    with pytest.raises(GshwError) as caught:
        MappedAccelerator(CONFIG, core.library, core.memory.data, (1 << 32) - 4096)
    assert str(caught.value) == (
        "the core's memory must lie within the bus's 32 address bits, "
        "not at 0xfffff000 to 0x10000efff"
    )


def test_reads_are_copies(core):
    core.write_memory(BASE, b"abcd")
    copy = core.read_memory(BASE, 4)
    core.write_memory(BASE, np.frombuffer(b"efgh", np.uint8).reshape(2, 2))
    assert (copy.tobytes(), core.read_memory(BASE, 4).tobytes()) == (b"abcd", b"efgh")


# --- registers -----------------------------------------------------------------------------------


class Registers:
    """A port whose registers read as a core's, but for what is changed."""

    def __init__(self, **changed: int) -> None:
        self.values = {r.offset: r.reset for r in REGISTERS.registers}
        self.values[0] = 0b1100
        for name, value in changed.items():
            self.values[REGISTERS[name].offset] = value
        self.n_resets = 0

    def read_register(self, offset: int) -> int:
        return self.values[offset]

    def write_register(self, offset: int, value: int) -> None:
        if offset == 0 and value == REGISTERS["control"].field("soft_reset").put(1):
            self.n_resets += 1


@pytest.mark.parametrize("name", ["magic", "version", "config_hash", "features"])
def test_another_core_is_refused(name):
    register = REGISTERS[name]
    with pytest.raises(GshwError) as caught:
        Control(Registers(**{name: register.reset ^ 1}), CONFIG, Top.AXI)
    assert str(caught.value) == (
        f"register {name} must read 0x{register.reset:08x} for this config, "
        f"not 0x{register.reset ^ 1:08x}"
    )


def test_a_core_that_does_not_come_out_of_reset():
    line = "the core does not become ready after a soft reset: its bus hangs"
    with pytest.raises(GshwError, match=f"^{line}$"):
        Control(Registers(control=0), CONFIG, Top.AXI)


def test_a_wait_that_gives_up_resets_the_core():
    port = Registers()
    control = Control(port, CONFIG, Top.AXI)
    pauses = []
    with pytest.raises(GshwError, match=r"^the program did not end within 0\.01 s$"):
        control.wait(0.01, pauses.append)
    assert port.n_resets == 2 and pauses and all(0 < p <= 0.01 for p in pauses)


def test_a_library_for_another_config_is_refused():
    other = load_config("h16")
    with pytest.raises(GshwError, match=r"^register config_hash must read"):
        SimulatedAccelerator(other, library(Top.AXI), n_bytes=N_BYTES)


def test_registers_that_do_not_answer(core):
    with pytest.raises(GshwError, match=r"^register 0xffc: cannot be read: response 2$"):
        core.library.read_register(0xFFC)
    with pytest.raises(GshwError, match=r"^register 0xffc: cannot be written: response 2$"):
        core.library.write_register(0xFFC, 0)
    with pytest.raises(GshwError, match=r"^register 0x040: the core does not answer$"):
        core.library._check(-1, "read", 0x40)


def test_a_hard_reset_forgets_the_program(core, layer, program):
    place(core, program, layer[1])
    core.control.start(program.program_address)
    core.step(40)
    core.hard_reset()
    assert core.control.read("program_address_low") == 0
    run_well(core, layer)


# --- streams -------------------------------------------------------------------------------------


def test_what_comes_back_must_be_what_the_program_stores(layer, program):
    memory = HostMemory(N_BYTES, BASE)
    memory.write(BASE, program.memory(layer[1]))
    form = StreamForm(CONFIG, memory, program.program_address)
    n_bytes = form.n_from_core
    with pytest.raises(GshwError) as caught:
        form.store(bytes(8), [8])
    assert str(caught.value).startswith("the core sent 8 bytes in 1 packets; the program stores ")
    with pytest.raises(GshwError, match=f"^the core sent {n_bytes} bytes in 0 packets; the "):
        form.store(bytes(n_bytes), [])


def test_a_program_that_reads_beyond_the_host_s_memory(layer, program):
    memory = HostMemory(program.input_layout.address - BASE + 8, BASE)
    memory.write(BASE, program.image)
    with pytest.raises(GshwError, match="bytes do not lie in the core's memory"):
        StreamForm(CONFIG, memory, program.program_address)


# --- mapped files --------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "registers"
    path.write_bytes(bytes(4096))
    return path


def test_registers_in_a_file(page):
    file = MappedFile(page, 0, 4096)
    registers = MappedRegisters(file)
    registers.write_register(0x10, 0x12345678)
    assert registers.read_register(0x10) == 0x12345678
    file.close()
    assert page.read_bytes()[0x10:0x14] == bytes.fromhex("78563412")


def test_files_that_cannot_be_mapped(tmp_path, page):
    with pytest.raises(GshwError) as caught:
        MappedFile(page, 100, 4096)
    assert str(caught.value) == (
        f"{page}: the offset must be a multiple of {mmap.PAGESIZE}, not 0x64"
    )
    with pytest.raises(GshwError) as caught:
        MappedFile(tmp_path / "none", 0, 4096)
    assert str(caught.value) == f"{tmp_path}/none: cannot be opened: No such file or directory"
    with pytest.raises(GshwError, match=f"^{page}: 8192 bytes cannot be mapped: "):
        MappedFile(page, 0, 8192)
    for offset, n_bytes in ((0, 0), (0, 1 << 63), (1 << 63, 4096), ((1 << 63) - 4096, 4096)):
        with pytest.raises(GshwError) as caught:
            MappedFile(page, offset, n_bytes)
        assert str(caught.value) == (
            f"{page}: must be mapped from 1 byte on and below 0x7fffffffffffffff, not "
            f"{n_bytes} bytes at 0x{offset:x}"
        )


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_opening_what_is_no_core_closes_everything(tmp_path, page):
    before = open_descriptors()
    memory = tmp_path / "memory"
    options = {"memory_base": BASE, "n_bytes": 4096}
    with pytest.raises(GshwError, match=f"^{memory}: cannot be opened"):
        open_mapped(CONFIG, page, memory, **options)
    memory.write_bytes(bytes(4096))
    with pytest.raises(GshwError, match=r"^register magic must read 0x57485347 for this config"):
        open_mapped(CONFIG, page, memory, **options)
    assert open_descriptors() == before


def test_a_core_in_a_file_is_opened_and_closed(tmp_path, page, monkeypatch):
    """The registers are a plain file: constant, so a program never ends."""
    words = np.zeros(1024, dtype="<u4")
    for register in REGISTERS.registers:
        words[register.offset // 4] = register.reset
    monkeypatch.setattr(MappedRegisters, "write_register", lambda *_: None)
    words[0] = 0b1100
    page.write_bytes(words.tobytes())
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(8192))
    before = open_descriptors()
    with open_mapped(
        CONFIG,
        page,
        memory,
        memory_base=BASE,
        memory_offset=4096,
        n_bytes=4096,
        timeout_s=0.01,
    ) as accelerator:
        accelerator.write_memory(BASE + 1, b"xyz")
        assert accelerator.read_memory(BASE, 4).tobytes() == b"\0xyz"
        with pytest.raises(GshwError, match=r"^the program did not end within 0\.01 s$"):
            accelerator.run(BASE)
    assert memory.read_bytes()[4096:4100] == b"\0xyz"
    assert open_descriptors() == before
    accelerator.close()


def test_mapped_accelerator_runs_a_layer(core, layer, program):
    """By polling: reading registers moves the simulated clock."""
    with mapped(core) as accelerator:
        run_well(accelerator, layer)
        place(accelerator, program, layer[1], damaged_byte=INSTRUCTION_BYTES)
        with pytest.raises(ProgramError):
            accelerator.run(program.program_address)
        run_well(accelerator, layer)


class Interrupt:
    """Stands for a UIO device; every second wake-up is one too many."""

    def __init__(self, core: SimulatedAccelerator) -> None:
        self.core = core
        self.n_waits = 0

    def wait(self, timeout_s: float) -> bool:
        assert 0 < timeout_s <= 60
        self.n_waits += 1
        self.core.step(10 if self.n_waits % 2 else 1_000_000)
        return True


def test_mapped_accelerator_waits_for_the_interrupt(core, layer):
    interrupt = Interrupt(core)
    with mapped(core, interrupt=interrupt) as accelerator:
        for n_runs in (1, 2):
            run_well(accelerator, layer)
            assert interrupt.n_waits == 2 * n_runs


def uio(descriptor: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(path="/dev/uio0", descriptor=descriptor)


def test_uio_interrupt():
    """A socket has what a UIO device does: 1 to write, and a count to read."""
    device, kernel = socket.socketpair()
    with device, kernel:
        interrupt = UioInterrupt(uio(device.fileno()))
        assert not interrupt.wait(0.01)
        assert kernel.recv(100) == b"\1\0\0\0"
        kernel.send(b"\7\0\0\0")
        assert interrupt.wait(1.0)
        assert not interrupt.wait(0.01), "the count was read"


def test_a_uio_device_without_an_interrupt():
    """Its write fails, as that of the reading end of a pipe."""
    reader, writer = os.pipe()
    with pytest.raises(GshwError) as caught:
        UioInterrupt(uio(reader)).wait(0.01)
    assert str(caught.value) == (
        "/dev/uio0: must have an interrupt, and has none: Bad file descriptor"
    )
    os.close(reader)
    os.close(writer)


# --- PYNQ ----------------------------------------------------------------------------------------


class Buffer(np.ndarray):
    """What ``pynq.allocate`` returns, in the simulated core's memory."""

    device_address = BASE

    def __array_finalize__(self, _) -> None:
        self.calls: list[str] = []

    def flush(self) -> None:
        self.calls.append("flush")

    def invalidate(self) -> None:
        self.calls.append("invalidate")

    def freebuffer(self) -> None:
        self.calls.append("freebuffer")


@pytest.fixture
def pynq(core, monkeypatch):
    """A module that stands for pynq; its ``buffers`` are those that were allocated."""

    class Ip:
        def read(self, offset: int) -> int:
            return core.library.read_register(offset)

        def write(self, offset: int, value: int) -> None:
            core.library.write_register(offset, value)

    class Overlay:
        def __init__(self, bitstream: str) -> None:
            assert bitstream == "gshw_axi.bit"
            self.gshw_axi_0 = Ip()

    module = types.ModuleType("pynq")
    module.buffers = []

    def allocate(*, shape, dtype) -> Buffer:
        assert dtype is np.uint8
        module.buffers.append(core.memory.data[: shape[0]].view(Buffer))
        return module.buffers[-1]

    module.Overlay, module.allocate = Overlay, allocate
    monkeypatch.setitem(sys.modules, "pynq", module)
    return module


def test_pynq_runs_a_layer(pynq, layer, program):
    with PynqAccelerator(CONFIG, "gshw_axi.bit", n_bytes=N_BYTES) as accelerator:
        assert accelerator.memory_base == BASE
        run_well(accelerator, layer, accelerator.memory_base)
        (buffer,) = pynq.buffers
        assert buffer.calls == ["flush", "invalidate"]
        assert accelerator.control.read_pair("window_first") == BASE
        assert accelerator.control.read_pair("window_last") == BASE + N_BYTES - 1
        place(accelerator, program, layer[1], damaged_byte=INSTRUCTION_BYTES)
        with pytest.raises(ProgramError):
            accelerator.run(program.program_address)
        run_well(accelerator, layer)
    assert buffer.calls[-1] == "freebuffer"


@pytest.mark.parametrize(("address", "n_bytes"), OUTSIDE)
def test_pynq_addresses_outside_the_buffer(pynq, address, n_bytes):
    with PynqAccelerator(CONFIG, "gshw_axi.bit", n_bytes=N_BYTES) as accelerator:
        with pytest.raises(GshwError) as caught:
            accelerator.read_memory(address, n_bytes)
        assert str(caught.value) == (
            f"address 0x{address:x}: {n_bytes} bytes do not lie in the core's memory, "
            "0x40000000 to 0x4000ffff"
        )
        with pytest.raises(GshwError):
            accelerator.write_memory(address, bytes(n_bytes))


def test_pynq_without_the_core(pynq):
    with pytest.raises(GshwError, match=r"^gshw_axi\.bit: the overlay has no IP 'other'$"):
        PynqAccelerator(CONFIG, "gshw_axi.bit", ip="other")
    with pytest.raises(GshwError, match=r"^register config_hash must read"):
        PynqAccelerator(load_config("h16"), "gshw_axi.bit", n_bytes=N_BYTES)
    assert pynq.buffers[-1].calls == ["freebuffer"]


def test_without_pynq(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynq", None)
    line = "the PYNQ back end needs pynq: pip install pynq, on the board"
    with pytest.raises(GshwError, match=f"^{line}$"):
        PynqAccelerator(CONFIG, "gshw_axi.bit")
