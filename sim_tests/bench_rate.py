"""cocotb bench that measures how fast cocotb moves the engine through one layer.

Environment: as :mod:`sim_tests.bench_engine`, and ``GSHW_BENCH_OUTPUT``, a file for the result.
"""

import json
import os
import time
from pathlib import Path

import cocotb
from cocotb.task import bridge

from gshw import runtime
from sim_tests.bench_engine import CONFIG, start
from sim_tests.bench_support import half_cycles
from sim_tests.rate_layer import TimedDevice, rate_case


@cocotb.test()
async def layer_rate(dut):
    """Load, run and read back one layer; write cycles and seconds."""
    engine = await start(dut)
    case = rate_case(CONFIG)
    timed, before = TimedDevice(engine, time.process_time), half_cycles()
    await bridge(runtime.run_layer)(CONFIG, case.layer, timed, case.activations)
    result = {"cycles": (half_cycles() - before) // 2, "seconds": timed.seconds}
    Path(os.environ["GSHW_BENCH_OUTPUT"]).write_text(json.dumps(result))
