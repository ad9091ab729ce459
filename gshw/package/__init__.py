"""What an integrator gets beside the Verilog: drivers, registers, and wrappers for other tools."""
