"""Place and route with open tools: figures of a design on a device. Takes Verilog text."""
