"""An IP-XACT component (IEEE 1685-2014): buses, clock, reset, interrupt, registers, files.

The bus definitions are Xilinx' (``xilinx.com:interface:aximm:1.0`` and so on), which the tools of
other vendors know too. The memory map is taken from what PeakRDL makes of the registers.
"""

import xml.etree.ElementTree as ElementTree
from xml.etree.ElementTree import Element, SubElement

from gshw.package.interface import (
    CLOCK,
    INTERRUPT,
    LIBRARY,
    RESET,
    VENDOR,
    Bus,
    BusKind,
    Package,
)

NAMESPACE = "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"
_SCHEMA = "http://www.w3.org/2001/XMLSchema-instance"
_ADDRESS_SPACE = "memory"
_FILES = "rtl"
_VIEW = "verilog"


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _add(parent: Element, tag: str, text: str | int | None = None, /, **attributes: str) -> Element:
    element = SubElement(parent, _tag(tag), attributes)
    if text is not None:
        element.text = str(text)
    return element


def _interface(
    parent: Element, name: str, group: str, kind: str, ports: dict[str, str], description: str
) -> Element:
    """A bus interface up to its port map; the mode and parameters must follow."""
    interface = _add(parent, "busInterface")
    _add(interface, "name", name)
    _add(interface, "description", description)
    vlnv = {"vendor": "xilinx.com", "library": group, "version": "1.0"}
    _add(interface, "busType", name=kind, **vlnv)
    abstraction = _add(_add(interface, "abstractionTypes"), "abstractionType")
    _add(abstraction, "abstractionRef", name=f"{kind}_rtl", **vlnv)
    maps = _add(abstraction, "portMaps")
    for logical, physical in ports.items():
        port_map = _add(maps, "portMap")
        _add(_add(port_map, "logicalPort"), "name", logical)
        _add(_add(port_map, "physicalPort"), "name", physical)
    return interface


def _parameters(interface: Element, **values: str) -> None:
    parameters = _add(interface, "parameters")
    for name, value in values.items():
        parameter = _add(parameters, "parameter", parameterId=f"{interface[0].text}_{name}")
        _add(parameter, "name", name)
        _add(parameter, "value", value)


def _bus(parent: Element, package: Package, bus: Bus, memory_map: str) -> None:
    ports = {name.upper(): port.name for name, port in package.signals(bus).items()}
    kind = "axis" if bus.kind is BusKind.STREAM else "aximm"
    interface = _interface(parent, bus.prefix, "interface", kind, ports, bus.description)
    mode = _add(interface, "master" if bus.is_initiator else "slave")
    if bus.kind is BusKind.AXI:
        _add(mode, "addressSpaceRef", addressSpaceRef=_ADDRESS_SPACE)
    elif bus.kind is BusKind.AXI_LITE:
        _add(mode, "memoryMapRef", memoryMapRef=memory_map)
    if bus.kind is not BusKind.STREAM:
        protocol = "AXI4LITE" if bus.kind is BusKind.AXI_LITE else "AXI4"
        _parameters(interface, PROTOCOL=protocol)


def _signals(parent: Element, package: Package) -> None:
    """Clock, reset and interrupt."""
    buses = ":".join(bus.prefix for bus in package.buses)
    for name, kind, logical, mode, parameters in (
        (CLOCK, "clock", "CLK", "slave", {"ASSOCIATED_BUSIF": buses, "ASSOCIATED_RESET": RESET}),
        (RESET, "reset", "RST", "slave", {"POLARITY": "ACTIVE_LOW"}),
        (INTERRUPT, "interrupt", "INTERRUPT", "master", {"SENSITIVITY": "LEVEL_HIGH"}),
    ):
        text = next(port.description for port in package.ports if port.name == name)
        interface = _interface(parent, name, "signal", kind, {logical: name}, text)
        _add(interface, mode)
        _parameters(interface, **parameters)


def _model(parent: Element, package: Package) -> None:
    model = _add(parent, "model")
    view = _add(_add(model, "views"), "view")
    _add(view, "name", _VIEW)
    _add(view, "envIdentifier", ":*Synthesis:")
    _add(view, "envIdentifier", ":*Simulation:")
    _add(view, "componentInstantiationRef", _VIEW)
    instantiation = _add(_add(model, "instantiations"), "componentInstantiation")
    _add(instantiation, "name", _VIEW)
    _add(instantiation, "language", "verilog")
    _add(instantiation, "moduleName", package.module)
    _add(_add(instantiation, "fileSetRef"), "localName", _FILES)
    ports = _add(model, "ports")
    for port in package.ports:
        element = _add(ports, "port")
        _add(element, "name", port.name)
        _add(element, "description", port.description)
        wire = _add(element, "wire")
        _add(wire, "direction", "in" if port.is_input else "out")
        if port.width > 1:
            vector = _add(_add(wire, "vectors"), "vector")
            _add(vector, "left", port.width - 1)
            _add(vector, "right", 0)


def component(package: Package, registers_xml: bytes) -> str:
    """Text of the component file, which lies in a folder beside the Verilog.

    Parameters
    ----------
    registers_xml
        The component that PeakRDL makes of the registers; its memory map is taken.
    """
    ElementTree.register_namespace("ipxact", NAMESPACE)
    ElementTree.register_namespace("xsi", _SCHEMA)
    made = ElementTree.fromstring(registers_xml).find(_tag("memoryMaps"))
    memory_map = None if made is None else made.findtext(f"{_tag('memoryMap')}/{_tag('name')}")
    assert made is not None and memory_map, "PeakRDL writes one memory map"
    root = Element(
        _tag("component"),
        {f"{{{_SCHEMA}}}schemaLocation": f"{NAMESPACE} {NAMESPACE}/index.xsd"},
    )
    for name, text in (
        ("vendor", VENDOR),
        ("library", LIBRARY),
        ("name", package.module),
        ("version", package.version),
    ):
        _add(root, name, text)
    interfaces = _add(root, "busInterfaces")
    for bus in package.buses:
        _bus(interfaces, package, bus, memory_map)
    _signals(interfaces, package)
    if any(bus.kind is BusKind.AXI for bus in package.buses):
        space = _add(_add(root, "addressSpaces"), "addressSpace")
        _add(space, "name", _ADDRESS_SPACE)
        _add(space, "range", f"'h{1 << package.config.bus.address_width:x}")
        _add(space, "width", package.config.bus.data_width)
    root.append(made)
    _model(root, package)
    files = _add(_add(root, "fileSets"), "fileSet")
    _add(files, "name", _FILES)
    file = _add(files, "file")
    _add(file, "name", f"../{package.source}")
    _add(file, "fileType", "verilogSource")
    _add(root, "description", package.summary)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"
