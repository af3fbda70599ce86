"""
The digest of the source a stage really runs.

Snakemake does not see imported modules, so each rule carries this digest in its parameters. It
covers the definitions that the stage's `run` reaches inside capgap: a module is cut into its
top-level definitions, and only those that are used, directly or through others, count. Comments,
docstrings, formatting and help texts do not. Over-approximation is safe and costs a rerun;
constructs that hide what is used (star imports, importlib, exec) are refused by name.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

import capgap
from capgap.errors import CapgapError

PACKAGE = "capgap"
SOURCE_ROOT = Path(capgap.__file__).parent
HELP_KEYWORDS = {"description", "help", "metavar"}
HELP_CALLS = {"Field", "add_argument", "add_argument_group"}
HIDING_CALLS = {"exec", "eval", "__import__", "import_module"}


@cache
def source_digest(module: str) -> str:
    """Digest (16 hexadecimal digits) of everything inside capgap that `module`'s `run` uses."""
    parts: dict[tuple[str, str], str] = {}
    pending = [(module, "run")]
    while pending:
        key = pending.pop()
        if key not in parts:
            parts[key] = _definitions(key[0])[key[1]]
            pending += _uses(*key)
    modules = sorted({module for module, _ in parts})
    text = "\n".join(f"{m}:{n}\n{parts[m, n]}" for m, n in sorted(parts))
    text += "\n".join(_data_files(folder) for folder in sorted({_file(m).parent for m in modules}))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _data_files(folder: Path) -> str:
    """Contents of the files that are not Python beside a module: templates, styles, scripts."""
    if folder == SOURCE_ROOT:
        return ""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc"))
    return "\n".join(f"{p.name}\n{p.read_text(encoding='utf-8')}" for p in files)


@cache
def _file(module: str) -> Path | None:
    """Source file of a module of this package, None for anything else."""
    if module != PACKAGE and not module.startswith(PACKAGE + "."):
        return None
    stem = SOURCE_ROOT.joinpath(*module.split(".")[1:])
    for path in (stem / "__init__.py", stem.with_suffix(".py")):
        if path.is_file():
            return path
    return None


ALWAYS = "<module level>"  # statements that run on import whatever is used


@cache
def _nodes(module: str) -> dict[str, list[ast.stmt]]:
    """Top-level statements of a module by the name they bind, normalised."""
    path = _file(module)
    assert path is not None, module
    tree = _Normalise(path).visit(ast.parse(path.read_text(encoding="utf-8")))
    nodes: dict[str, list[ast.stmt]] = {ALWAYS: []}
    for statement in tree.body:
        for name in _bound(statement):
            nodes.setdefault(name, []).append(statement)
    return nodes


@cache
def _definitions(module: str) -> dict[str, str]:
    return {
        name: "\n".join(_text(statement, name) for statement in statements)
        for name, statements in _nodes(module).items()
    }


def _text(statement: ast.stmt, name: str) -> str:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        aliases = ", ".join(ast.unparse(a) for a in _aliases(statement, statement, name))
        return f"import {aliases} from {getattr(statement, 'module', '')}"
    return ast.unparse(statement)


def _bound(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Assign() if all(isinstance(t, ast.Name) for t in statement.targets):
            return [t.id for t in statement.targets]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Import() | ast.ImportFrom():
            return [(a.asname or a.name).split(".")[0] for a in statement.names]
        case ast.Expr(value=ast.Constant()):
            return []
        case ast.If() if ast.unparse(statement.test) == "__name__ == '__main__'":
            return []
    return [ALWAYS]


@cache
def _uses(module: str, name: str) -> list[tuple[str, str]]:
    """Definitions inside the package that one definition refers to."""
    used = [(module, ALWAYS)]
    parent = module.rsplit(".", 1)[0]
    if parent != module and _file(parent):
        used.append((parent, ALWAYS))
    for statement in _nodes(module)[name]:
        for node in ast.walk(statement):
            match node:
                case ast.Name(id=other) if other in _nodes(module) and other != name:
                    used.append((module, other))
                case ast.Import():
                    for alias in _aliases(statement, node, name):
                        used += _everything(alias.name)
                case ast.ImportFrom(module=source):
                    for alias in _aliases(statement, node, name):
                        submodule = f"{source}.{alias.name}"
                        if _file(submodule):
                            used += _everything(submodule)
                        elif source and _file(source):
                            used.append((source, alias.name))
    return [(m, n) for m, n in used if n in _nodes(m)]


def _aliases(statement: ast.stmt, node: ast.Import | ast.ImportFrom, name: str) -> list[ast.alias]:
    """Names of an import that count: at top level only the one that binds `name`."""
    if node is not statement:
        return node.names
    return [a for a in node.names if (a.asname or a.name).split(".")[0] == name]


def _everything(module: str) -> list[tuple[str, str]]:
    return [(module, name) for name in _nodes(module)] if _file(module) else []


class _Normalise(ast.NodeTransformer):
    """Remove what cannot change behaviour; refuse what hides it."""

    def __init__(self, path: Path):
        self.path = path

    def _without_docstring(self, node):
        self.generic_visit(node)
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _without_docstring

    def visit_Call(self, node: ast.Call):
        self.generic_visit(node)
        called = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        if called in HELP_CALLS:
            node.keywords = [k for k in node.keywords if k.arg not in HELP_KEYWORDS]
        hides = isinstance(node.func, ast.Name) or called == "import_module"
        if called in HIDING_CALLS and hides:
            raise CapgapError(
                f"{self.path}:{node.lineno}: {called}() hides what a stage uses, so its source "
                "cannot be tracked; import it in plain sight"
            )
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom):
        if node.level or any(alias.name == "*" for alias in node.names):
            raise CapgapError(
                f"{self.path}:{node.lineno}: star and relative imports hide what a stage uses; "
                "name the module and the names"
            )
        return node
