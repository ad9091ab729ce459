"""Small programs that use the drivers."""

from gshw.package.interface import Package
from gshw.top import Top

_C_STREAM = """\
    /* The core takes the program over s_axis while it runs, and ends when m_axis has given all. */
    status = gshw_start(&device, 0);
    if (status == GSHW_OK) {
        START_DMA();
        status = gshw_wait(&device);
    }
"""
_C_DMA = """
#ifndef START_DMA
#define START_DMA() ((void)0) /* here the system's DMA begins: memory to s_axis, m_axis to memory */
#endif
"""
_C_AXI = """\
    gshw_set_window(&device, MEMORY_BASE, MEMORY_BASE + MEMORY_BYTES - 1u);
    status = gshw_run(&device, PROGRAM_ADDRESS);
"""
_C_MEMORY = """
#ifndef MEMORY_BASE
#define MEMORY_BASE 0x10000000u /* what the core may touch */
#endif
#ifndef MEMORY_BYTES
#define MEMORY_BYTES 0x01000000u
#endif
#ifndef PROGRAM_ADDRESS
#define PROGRAM_ADDRESS MEMORY_BASE /* where the file of `gshw program --address` lies */
#endif
"""


def c_example(package: Package) -> str:
    """Text of ``driver/example.c``: runs one program, without an operating system."""
    is_axi = package.top is Top.AXI
    before = (
        "Before it, place a program, its weights and its input in memory, and clean the caches;\n"
        " * after it, invalidate them."
        if is_axi
        else "The system's own DMA sends the program and takes the results."
    )
    return f"""\
/* Runs one program on {package.module} without an operating system.
 * {before}
 * Compile it with gshw.c and -I../regs; the addresses below are the system's. */
#include "gshw.h"

#ifndef GSHW_BASE
#define GSHW_BASE 0x43c00000u /* registers */
#endif
{_C_MEMORY if is_axi else _C_DMA}
enum {{ POLLS = 100000000, WATCHDOG_CYCLES = 1000000 }};

/* For a debugger: what the last program did. */
gshw_error example_error;
uint64_t example_cycles;

int main(void)
{{
    gshw_device device;
    gshw_status status = gshw_open(&device, GSHW_BASE, GSHW_CONFIG_HASH_VALUE, POLLS);

    if (status != GSHW_OK)
        return (int)status;
    gshw_set_watchdog(&device, WATCHDOG_CYCLES);
{_C_AXI if is_axi else _C_STREAM}    if (status != GSHW_OK) {{
        gshw_get_error(&device, &example_error);
        gshw_reset(&device);
        return (int)status;
    }}
    example_cycles = gshw_get_counter64(&device, GSHW_COUNTER_CYCLES_LOW_OFFSET);
    return 0;
}}
"""


_PYTHON_AXI = """\
def open_accelerator(arguments, config):
    if arguments.bitstream:
        return PynqAccelerator(config, arguments.bitstream)
    if arguments.golden:
        return GoldenAccelerator(config)
    return open_mapped(
        config,
        arguments.registers,
        "/dev/mem",
        register_base=0 if "uio" in arguments.registers else arguments.register_base,
        memory_base=arguments.memory_base,
        memory_offset=arguments.memory_base,
        n_bytes=arguments.memory_bytes,
    )
"""
_PYTHON_STREAM = '''\
def move(data, n_bytes):
    """Send ``data`` to s_axis and take ``n_bytes`` from m_axis with the system's DMA.

    Returns what came, and where each packet (``tlast``) in it ended. It must stop the DMA before
    it raises: the core is reset then, and would take what still comes for the next program.
    """
    raise SystemExit("move() in this file must drive the system's DMA")


class StreamAccelerator(Accelerator):
    """The core's registers, mapped, and the system's DMA."""

    def __init__(self, config, registers, register_base):
        super().__init__(config, HostMemory(1 << 26))
        self.file = MappedFile(registers, register_base, 1 << ADDRESS_WIDTH)
        try:
            self.control = Control(MappedRegisters(self.file), config, Top.STREAM)
        except BaseException:
            self.file.close()
            raise

    def run(self, address):
        form = StreamForm(self.config, self.memory, address)
        with self.control.running(0):
            received, packet_ends = move(form.to_core, form.n_from_core)
            self.control.wait(60.0)
            result = self.control.result()
        form.store(received, packet_ends)
        return result

    def close(self):
        self.file.close()


def open_accelerator(arguments, config):
    if arguments.golden:
        return GoldenAccelerator(config)
    if arguments.simulation:
        verilog = (FOLDER / "gshw_stream.v").read_text()
        return SimulatedStreamAccelerator(config, build_library(verilog, top=Top.STREAM))
    base = 0 if "uio" in arguments.registers else arguments.register_base
    return StreamAccelerator(config, arguments.registers, base)
'''
_IMPORTS_AXI = """\
from gshw.drivers.golden import GoldenAccelerator
from gshw.drivers.layers import run_layer
from gshw.drivers.mapped import open_mapped
from gshw.drivers.pynq import PynqAccelerator
from gshw.golden import run_layer as golden_layer
from gshw.simulate import random_activations
"""
_IMPORTS_STREAM = """\
from gshw.drivers.accelerator import Accelerator, HostMemory
from gshw.drivers.control import Control
from gshw.drivers.golden import GoldenAccelerator
from gshw.drivers.layers import run_layer
from gshw.drivers.mapped import MappedFile, MappedRegisters
from gshw.drivers.simulated import SimulatedStreamAccelerator
from gshw.drivers.stream_form import StreamForm
from gshw.golden import run_layer as golden_layer
from gshw.register_map import ADDRESS_WIDTH
from gshw.simulate import random_activations
from gshw.top import Top
from gshw.verilate import build_library
"""
_USE_AXI = """\
    python example.py model.safetensors LAYER --bitstream gshw_axi.bit
    python example.py model.safetensors LAYER --registers /dev/uio0

The last one needs memory that the kernel leaves alone (``mem=`` or a reserved-memory node).
"""
_USE_STREAM = """\
    python example.py model.safetensors LAYER --simulation
    python example.py model.safetensors LAYER --registers /dev/uio0

The last one needs ``move`` below to be written for the system's DMA.
"""
_OPTIONS_AXI = """\
    parser.add_argument("--bitstream", help="of a PYNQ overlay")
    parser.add_argument("--memory-base", type=lambda x: int(x, 0), default=0x10000000)
    parser.add_argument("--memory-bytes", type=lambda x: int(x, 0), default=1 << 24)
"""
_OPTIONS_STREAM = """\
    parser.add_argument("--simulation", action="store_true", help="gshw_stream.v, compiled")
"""


def python_example(package: Package) -> str:
    """Text of ``driver/example.py``: one layer on a board."""
    is_axi = package.top is Top.AXI
    return f'''\
"""Runs one layer of an encoded model on {package.module} and compares it with the golden model.

    python example.py model.safetensors LAYER --golden
{_USE_AXI if is_axi else _USE_STREAM}"""

import argparse
from pathlib import Path

from gshw.artefact import load_model
from gshw.config import load_config
{_IMPORTS_AXI if is_axi else _IMPORTS_STREAM}
FOLDER = Path(__file__).resolve().parents[1]


{_PYTHON_AXI if is_axi else _PYTHON_STREAM}

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("layer")
    parser.add_argument("--golden", action="store_true", help="no hardware: the software model")
    parser.add_argument("--registers", default="/dev/mem", help="/dev/mem or /dev/uioN")
    parser.add_argument("--register-base", type=lambda x: int(x, 0), default=0x43C00000)
{_OPTIONS_AXI if is_axi else _OPTIONS_STREAM}    arguments = parser.parse_args()

    config = load_config(FOLDER / "config.toml")
    layer = load_model(arguments.model, config.engine).layers[arguments.layer]
    x = random_activations(config.engine, layer, 1, seed=0)
    with open_accelerator(arguments, config) as accelerator:
        result = run_layer(accelerator, layer, x, base_address=accelerator.memory_base)
    same = (result.output == golden_layer(config.engine, layer, x)).all()
    cycles = result.counters.get("cycles", "no")
    print(f"{{arguments.layer}}: {{cycles}} cycles, {{'right' if same else 'WRONG'}}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
'''
