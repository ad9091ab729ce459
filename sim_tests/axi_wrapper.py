"""The cores' ports as cocotbext-axi wants them: its AXI4 models know no bus without IDs."""

import re

ID_PORTS = {
    "m_axi_awid": "output",
    "m_axi_arid": "output",
    "m_axi_bid": "input",
    "m_axi_rid": "input",
}


def wrapped(verilog: str, module: str) -> tuple[str, str]:
    """The text with a module around the top, and that module's name.

    Parameters
    ----------
    verilog
        Of a top, as emitted.
    module
        Its name; where it has an AXI4 master the wrapper adds IDs, which are always 0.
    """
    body = re.search(rf"^module {module} \((.*?)\);(.*?)^endmodule", verilog, re.M | re.S)
    assert body is not None, f"no module {module}"
    ports = re.findall(r"^ *(input|output)\b *(\[[^]]*\])? *(\w+) *;", body[2], re.M)
    assert len(ports) == len(re.findall(r"\w+", body[1])), "a port was not understood"
    declared = [f"  {way} {width} {name}".replace("  ", " ") for way, width, name in ports]
    ids = ID_PORTS if any(name == "m_axi_araddr" for _, _, name in ports) else {}
    declared += [f"  {way} {name}" for name, way in ids.items()]
    lines = [f"module {module}_bench (", ",\n".join(declared), ");"]
    lines += [f"  assign {name} = 1'b0;" for name, way in ids.items() if way == "output"]
    connections = ",\n".join(f"    .{name}({name})" for _, _, name in ports)
    lines += [f"  {module} core (", connections, "  );", "endmodule", ""]
    return verilog + "\n" + "\n".join(lines), f"{module}_bench"
