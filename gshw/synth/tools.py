"""Finds and runs yosys and nextpnr: the YoWASP wheels, or the system's programs."""

import enum
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from gshw.errors import GshwError
from gshw.synth.devices import Family


class Source(enum.Enum):
    """Where the tools come from."""

    YOWASP = "yowasp"
    SYSTEM = "system"


class ToolTimeout(Exception):
    """A tool ran past its time limit and was ended."""


@dataclass(frozen=True)
class Tool:
    """One program that can be run.

    Parameters
    ----------
    command
        Starts it.
    """

    name: str
    command: tuple[str, ...]
    package: str | None

    @cached_property
    def version(self) -> str:
        """Package and its version, or what the system's program says of itself."""
        if self.package is not None:
            return f"{self.package} {version(self.package)}"
        option = "-V" if self.name == "yosys" else "--version"
        result = subprocess.run(
            [*self.command, option], capture_output=True, text=True, check=False
        )
        lines = (result.stdout + result.stderr).strip().splitlines()
        return lines[0] if lines else self.name

    def run(self, arguments: list[str], folder: Path, log: str, time_limit: float) -> str:
        """Run in ``folder``, keep its output in file ``log`` there, and return it.

        File names among the arguments must be relative: the YoWASP tools see a /tmp of their own.

        Raises
        ------
        ToolTimeout
            After ``time_limit`` seconds; the tool is ended.
        GshwError
            When it fails, with its first error.
        """
        path = folder / log
        # A tool that is ended leaves its temporary folder behind; this way within ours.
        environment = os.environ | {"TMPDIR": str(folder)}
        with path.open("w") as output:
            try:
                result = subprocess.run(
                    [*self.command, *arguments],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=time_limit,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise ToolTimeout(self.name) from None
        text = path.read_text(errors="replace")
        if result.returncode:
            raise ToolError(self.name, text)
        return text


class ToolError(GshwError):
    """A tool that failed; ``log`` is all that it printed."""

    def __init__(self, name: str, log: str) -> None:
        self.log = log
        lines = log.strip().splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["no output"]
        super().__init__(f"{name} failed: {errors[0].removeprefix('ERROR: ')}")


_NAMES = {Family.ECP5: "nextpnr-ecp5", Family.ICE40: "nextpnr-ice40"}


def _yowasp(name: str) -> Tool:
    package, function = f"yowasp-{name}", f"run_{name.replace('-', '_')}"
    module = package.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        raise GshwError(f"synthesis needs {package}: pip install 'gshw[fpga]'")
    start = f"import sys, {module}; sys.exit({module}.{function}(sys.argv[1:]))"
    return Tool(name, (sys.executable, "-c", start), package)


def _system(name: str) -> Tool:
    path = shutil.which(name)
    if path is None:
        raise GshwError(
            f"--tools system needs {name} on PATH; without it: pip install 'gshw[fpga]' "
            "and --tools yowasp"
        )
    return Tool(name, (path,), None)


def yosys(source: Source = Source.YOWASP) -> Tool:
    """The synthesis tool.

    Raises
    ------
    GshwError
        When it is missing, with the command that installs it.
    """
    return (_yowasp if source is Source.YOWASP else _system)("yosys")


def nextpnr(family: Family, source: Source = Source.YOWASP) -> Tool:
    """The place-and-route tool of a family.

    Raises
    ------
    GshwError
        When it is missing, with the command that installs it.
    """
    return (_yowasp if source is Source.YOWASP else _system)(_NAMES[family])
