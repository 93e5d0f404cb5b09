"""Our classes as one source file that doesn't import ldm: `trust_remote_code` loads it from beside the weights."""

import ast
import importlib
import inspect
from types import ModuleType

_ALIAS = "from types import SimpleNamespace"
_SHIM = "def register(cls):\n    return cls"  # a single file builds no classes by name


def flat(module_name: str) -> str:
    """The source of `module_name` and of all our modules that it needs, each after those that it needs itself."""
    order: list[str] = []
    _visit(module_name, order)
    imports: dict[str, None] = {_ALIAS: None}
    bodies: list[str] = []
    owner: dict[str, str] = {}
    for name in order:
        if name == "ldm.common.registry":
            bodies.append(_SHIM)
            continue
        module = importlib.import_module(name)
        lines, names = inspect.getsource(module).splitlines(), []
        for node in ast.parse("\n".join(lines)).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                if not _is_ours(node):
                    imports[ast.unparse(node)] = None
                elif isinstance(node, ast.ImportFrom):
                    bodies += [_namespace(m, n) for m, n in _modules(node)]
            elif not _is_idle(node):
                names += _defined(node)
                bodies.append("\n".join(lines[_first_line(node) - 1 : node.end_lineno]))
        for defined in names:
            if owner.setdefault(defined, name) != name:
                raise ValueError(f"{defined} is defined in {owner[defined]} and in {name}: one file can't hold both")
    taken = {alias.asname or alias.name for text in imports for alias in ast.parse(text).body[0].names}  # type: ignore[attr-defined]
    if both := sorted(taken & owner.keys()):
        raise ValueError(f"{both[0]} is imported, and defined in {owner[both[0]]}: one file can't hold both")
    doc = inspect.getdoc(importlib.import_module(module_name))
    head = f'"""{doc}\n\nWritten by ldm from its own source; Apache-2.0.\n"""'
    return "\n\n".join([head, "\n".join(sorted(imports))]) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def _visit(name: str, order: list[str]) -> None:
    """Appends the modules that `name` needs, then `name`."""
    if name in order:
        return
    if name != "ldm.common.registry":
        for node in ast.parse(inspect.getsource(importlib.import_module(name))).body:
            if isinstance(node, ast.ImportFrom) and _is_ours(node):
                for alias in node.names:
                    _visit(_home(str(node.module), alias.name), order)
    order.append(name)


def _home(module: str, name: str) -> str:
    """The module that defines what `from module import name` imports."""
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, ModuleType):
        return found.__name__
    home = getattr(found, "__module__", None)
    return home if isinstance(home, str) and home.startswith("ldm.") else module


def _modules(node: ast.ImportFrom) -> list[tuple[ModuleType, str]]:
    found = [(getattr(importlib.import_module(str(node.module)), a.name), a.asname or a.name) for a in node.names]
    return [(m, n) for m, n in found if isinstance(m, ModuleType)]


def _namespace(module: ModuleType, name: str) -> str:
    public = [n for node in ast.parse(inspect.getsource(module)).body for n in _defined(node) if n != "log"]
    return f"{name} = SimpleNamespace({', '.join(f'{n}={n}' for n in public)})"


def _is_ours(node: ast.stmt) -> bool:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]  # type: ignore[attr-defined]
    return any(n == "ldm" or n.startswith("ldm.") for n in names)


def _is_idle(node: ast.stmt) -> bool:
    """Docstrings, and imports for the type checker."""
    return isinstance(node, ast.If) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
