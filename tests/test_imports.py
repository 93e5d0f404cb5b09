"""Imports run one way, and `import ldm` stays light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_contracts_in_pyproject_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("ldm", {"lightning", "hydra", "omegaconf", "torchvision", "tokenizers", "matplotlib", "sklearn"}),
        ("ldm.commands.cli", {"torch", "lightning"}),
    ],
)
def test_a_module_imports_nothing_heavy(module, heavy):
    code = f"import sys, {module}; print(*{heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def imports() -> dict[str, set[str]]:
    """Of every module of the package, those of it that it imports: at its head, within functions, or by a string."""
    files = {name_of(path): path for path in (ROOT / "ldm").rglob("*.py")}
    return {name: found_in(ast.parse(path.read_text("utf-8")), set(files)) - {name} for name, path in files.items()}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def found_in(tree: ast.Module, modules: set[str]) -> set[str]:
    """Names of `modules` that a file imports, or holds as a whole string, as importlib.import_module is given them."""
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= within & modules or {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named.add(node.value)
    return named & modules


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, whatever the way round."""
    order = graphlib.TopologicalSorter(graph)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        return [error.args[1]]
    return []


def test_no_module_imports_itself_by_way_of_others():
    graph = imports()
    del graph["ldm"]  # its names are imported when they are first used
    assert len(graph) > 300
    assert circles({name: needed - {"ldm"} for name, needed in graph.items()}) == []


def test_a_circle_by_a_string_is_found():
    tree = ast.parse('def later():\n    import importlib\n    return importlib.import_module("ldm.model.loading")\n')
    assert found_in(tree, {"ldm.model.loading"}) == {"ldm.model.loading"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
