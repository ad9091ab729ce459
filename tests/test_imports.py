"""Who may import whom (design, section 6), read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = {"torch", "torchvision"}
AMARANTH = {"amaranth", "amaranth_soc"}

FORBIDDEN = {
    "gshw": TORCH | AMARANTH | {"pruning", "rtl_gen", "sim_tests", "tests"},
    "pruning": AMARANTH | {"rtl_gen", "sim_tests", "tests"},
    "rtl_gen": TORCH | {"pruning", "sim_tests", "tests"},
}
LAZY = {"gshw/cli.py": {"pruning", "rtl_gen", "torch", "amaranth"}}
"""What a module may import inside its functions only."""


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of all packages that a syntax tree imports, anywhere."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {
                argument.value.split(".")[0]
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant)
            }
    return names


def imported_at_load(tree: ast.AST) -> set[str]:
    """As :func:`imported`, without function bodies and blocks for type checkers."""

    class Outside(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            checking = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            return None if checking else self.generic_visit(node)

    return imported(Outside().visit(tree))


def violations(package: str, path: str, text: str) -> set[str]:
    """Packages that a file imports and must not."""
    allowed = LAZY.get(path, set())
    found = imported(ast.parse(text)) & (FORBIDDEN[package] - allowed)
    return found | imported_at_load(ast.parse(text)) & allowed


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_keep_apart(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {}
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        bad = violations(package, name, path.read_text(encoding="utf-8"))
        if bad:
            found[name] = sorted(bad)
    assert not found


@pytest.mark.parametrize(
    ("package", "path", "text", "bad"),
    [
        ("gshw", "gshw/a.py", "import torch.nn", {"torch"}),
        ("gshw", "gshw/a.py", "def f():\n    from rtl_gen.top import Core", {"rtl_gen"}),
        ("gshw", "gshw/cli.py", "def f():\n    from rtl_gen.top import Core", set()),
        ("gshw", "gshw/cli.py", "from rtl_gen.top import Core", {"rtl_gen"}),
        ("gshw", "gshw/cli.py", "if True:\n    import pruning", {"pruning"}),
        (
            "pruning",
            "pruning/a.py",
            "import importlib\nimportlib.import_module('rtl_gen.top')",
            {"rtl_gen"},
        ),
        ("rtl_gen", "rtl_gen/a.py", "import numpy, pruning.masks", {"pruning"}),
        ("rtl_gen", "rtl_gen/a.py", "from amaranth.hdl import Module\nfrom . import b", set()),
    ],
)
def test_the_walk_sees_imports(package, path, text, bad):
    """Kept and broken rules of every kind."""
    assert violations(package, path, text) == bad


def test_loading_gshw_loads_neither_torch_nor_amaranth():
    """Not even through another package."""
    modules = [f"gshw.{path.stem}" for path in sorted((ROOT / "gshw").glob("[a-z]*.py"))]
    script = (
        f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; "
        f"print(sorted(set({sorted(FORBIDDEN['gshw'])}) & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"
