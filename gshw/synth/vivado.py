"""A Tcl script that places and routes a design with Vivado, which no package index has."""

from gshw.synth.design import Design
from gshw.synth.devices import Device


def vivado_script(design: Design, device: Device, clock_mhz: float, source: str) -> str:
    """Text for ``vivado -mode batch -source``; reports are written beside it.

    Parameters
    ----------
    source
        Name of the Verilog file, in the same folder.
    """
    clock = "aclk" if "input aclk" in design.verilog else "clk"
    return f"""# {design.name} on {device.part} at {clock_mhz:g} MHz, without pins.
# vivado -mode batch -source vivado.tcl
set folder [file dirname [file normalize [info script]]]
read_verilog [file join $folder {source}]
synth_design -top {design.top} -part {device.part} -mode out_of_context \\
    -verilog_define SYNTHESIS -flatten_hierarchy rebuilt
create_clock -name {clock} -period {1000 / clock_mhz:.3f} [get_ports {clock}]
opt_design
place_design
phys_opt_design
route_design
report_utilization -hierarchical -file [file join $folder utilization.txt]
report_timing_summary -file [file join $folder timing.txt]
write_checkpoint -force [file join $folder {design.top}.dcp]
"""
