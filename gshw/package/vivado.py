"""Tcl scripts for Vivado: the core as an IP of the catalogue, and a PYNQ overlay for Zynq-7000."""

from gshw.package.interface import CLOCK, INTERRUPT, LIBRARY, RESET, VENDOR, Package

IP_VERSION = "1.0"


def package_script(package: Package) -> str:
    """Text of ``vivado/package_ip.tcl``: makes the folder ``vivado/ip``."""
    associations = "\n".join(
        f"ipx::associate_bus_interfaces -busif {bus.prefix} -clock {CLOCK} $core"
        for bus in package.buses
    )
    return f"""\
# Packages {package.module} as an IP for Vivado's catalogue, in vivado/ip.
# vivado -mode batch -source vivado/package_ip.tcl
set here [file dirname [file normalize [info script]]]
set ip [file join $here ip]
file delete -force $ip
create_project package [file join $here build_package] -part xc7z020clg400-1 -force
add_files [file join $here .. {package.source}]
set_property top {package.module} [current_fileset]
update_compile_order -fileset sources_1
ipx::package_project -root_dir $ip -vendor {VENDOR} -library {LIBRARY} -taxonomy /UserIP \\
    -import_files -force
set core [ipx::current_core]
set_property name {package.module} $core
set_property version {IP_VERSION} $core
set_property display_name {{{package.module} {package.config.name}}} $core
set_property description {{{package.summary}}} $core
ipx::infer_bus_interface {INTERRUPT} xilinx.com:signal:interrupt_rtl:1.0 $core
{associations}
ipx::associate_bus_interfaces -clock {CLOCK} -reset {RESET} $core
ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
close_project
"""


def overlay_script(package: Package) -> str:
    """Text of ``vivado/overlay.tcl`` (``gshw_axi`` only): makes the files of a PYNQ overlay."""
    return f"""\
# A PYNQ overlay: {package.module} on the processing system of a Zynq-7000. Registers on GP0,
# memory on HP0, the interrupt on IRQ_F2P. Run vivado/package_ip.tcl before it.
# vivado -mode batch -source vivado/overlay.tcl [-tclargs PART [BOARD_PART [CLOCK_MHZ]]]
# Without a board part the preset of the processing system (DDR timing, pins) must be set by hand;
# the part below is that of the PYNQ-Z1 and PYNQ-Z2.
set here [file dirname [file normalize [info script]]]
set part xc7z020clg400-1
set board ""
set clock_mhz {package.config.target.clock_mhz}
if {{[llength $argv] > 0}} {{ set part [lindex $argv 0] }}
if {{[llength $argv] > 1}} {{ set board [lindex $argv 1] }}
if {{[llength $argv] > 2}} {{ set clock_mhz [lindex $argv 2] }}

create_project overlay [file join $here build_overlay] -part $part -force
if {{$board ne ""}} {{ set_property board_part $board [current_project] }}
set_property ip_repo_paths [list [file join $here ip]] [current_project]
update_ip_catalog

create_bd_design overlay
create_bd_cell -type ip -vlnv xilinx.com:ip:processing_system7:5.5 ps
set preset [expr {{$board ne "" ? 1 : 0}}]
apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 \\
    -config [list make_external "FIXED_IO, DDR" apply_board_preset $preset] [get_bd_cells ps]
set_property -dict [list \\
    CONFIG.PCW_USE_M_AXI_GP0 1 \\
    CONFIG.PCW_USE_S_AXI_HP0 1 \\
    CONFIG.PCW_USE_FABRIC_INTERRUPT 1 \\
    CONFIG.PCW_IRQ_F2P_INTR 1 \\
    CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ $clock_mhz] [get_bd_cells ps]
create_bd_cell -type ip -vlnv {VENDOR}:{LIBRARY}:{package.module}:{IP_VERSION} {package.module}_0
apply_bd_automation -rule xilinx.com:bd_rule:axi4 \\
    -config [list Master /ps/M_AXI_GP0 Clk Auto] [get_bd_intf_pins {package.module}_0/s_axi]
apply_bd_automation -rule xilinx.com:bd_rule:axi4 \\
    -config [list Master /{package.module}_0/m_axi Clk Auto] [get_bd_intf_pins ps/S_AXI_HP0]
connect_bd_net [get_bd_pins {package.module}_0/{INTERRUPT}] [get_bd_pins ps/IRQ_F2P]
assign_bd_address
validate_bd_design
save_bd_design

set design [get_files overlay.bd]
add_files -norecurse [make_wrapper -files $design -top]
set_property top overlay_wrapper [current_fileset]
update_compile_order -fileset sources_1
launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
if {{[get_property PROGRESS [get_runs impl_1]] ne "100%"}} {{ error "no bitstream was made" }}

# PYNQ wants both under one name.
set run [get_property DIRECTORY [get_runs impl_1]]
file copy -force [file join $run overlay_wrapper.bit] [file join $here {package.module}.bit]
set handoff [file join [file dirname $design] hw_handoff overlay.hwh]
if {{![file exists $handoff]}} {{
    set handoff [file join $here build_overlay overlay.gen sources_1 bd overlay hw_handoff \\
        overlay.hwh]
}}
file copy -force $handoff [file join $here {package.module}.hwh]
"""
