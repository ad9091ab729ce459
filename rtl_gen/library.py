"""Placing components in components: in place to simulate, as Verilog modules to emit."""

from amaranth.hdl import (
    ClockSignal,
    DomainRenamer,
    Instance,
    Module,
    ResetSignal,
    Signal,
    Value,
    ValueCastable,
)
from amaranth.lib.wiring import Flow


def flat_ports(component) -> list[tuple[str, bool, Value]]:
    """Member signals of a component: name (nested ones joined by ``__``), is output, value."""
    ports = []
    for path, member, value in component.signature.flatten(component):
        value = value.as_value() if isinstance(value, ValueCastable) else value
        if isinstance(value, Signal) and len(value):
            ports.append(("__".join(map(str, path)), member.flow is Flow.Out, value))
    return ports


class ModuleLibrary:
    """Amaranth platform that turns every placed component into a Verilog module of its own.

    Components of one class whose ``variant`` is equal share a module. ``convert`` is called once
    per module, leaves first, with (component, module name) and returns whether it has a clock and
    a reset.
    """

    def __init__(self, prefix: str, convert) -> None:
        self._prefix = prefix
        self._convert = convert
        self._modules: dict[object, tuple[str, bool, bool]] = {}

    def instance(self, component, domain: str = "sync") -> Instance:
        """An instance of the component's module, connected to its member signals and a domain."""
        kind = type(component)
        variant = getattr(component, "variant", ())
        if (kind, variant) not in self._modules:
            name = self._module_name(kind.__name__)
            self._modules[kind, variant] = (name, *self._convert(component, name))
        component._MustUse__silence = True
        name, has_clock, has_reset = self._modules[kind, variant]
        ports = [("o" if out else "i", port, value) for port, out, value in flat_ports(component)]
        if has_clock:
            ports.append(("i", "clk", ClockSignal(domain)))
        if has_reset:
            ports.append(("i", "rst", ResetSignal(domain)))
        return Instance(name, *ports)

    def _module_name(self, class_name: str) -> str:
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in class_name.strip("_"))
        name = f"{self._prefix}{words}"
        taken = {module for module, _, _ in self._modules.values()}
        count = 1
        while (name if count == 1 else f"{name}_{count}") in taken:
            count += 1
        return name if count == 1 else f"{name}_{count}"


def place(m: Module, platform, name: str, component, *, domain: str = "sync"):
    """Add a component, clocked by ``domain``, as submodule ``name`` and return it."""
    if isinstance(platform, ModuleLibrary):
        m.submodules[name] = platform.instance(component, domain)
    else:
        m.submodules[name] = component if domain == "sync" else DomainRenamer(domain)(component)
    return component
