"""
The digest of the source that a stage uses, and of the command of its rule.

Snakemake does not see imported modules, so each rule carries these digests in its parameters. The
first covers the definitions that the stage's `main` reaches inside capgap: a module is cut into its
top-level definitions, and only those that are used, directly or through others, count. Comments,
docstrings, formatting and help texts do not. Counting too much is safe and costs a rerun. Constructs
that hide what is used (star imports, importlib, exec) raise an error that names the line.

Two things are not followed. Functions marked `by_hand` refuse to run in a job of the workflow. The
package capgap.workflow decides whether and when a job runs, and writes no result.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import capgap
from capgap.errors import CapgapError
from capgap.records.artifacts import write_text
from capgap.records.reading import Unreadable, read_json
from capgap.workflow.pending import snakefile

PACKAGE = "capgap"
SOURCE_ROOT = Path(capgap.__file__).parent
HELP_KEYWORDS = {"description", "help", "metavar"}
HELP_CALLS = {"Field", "add_argument", "add_argument_group"}
HIDING_CALLS = {"exec", "eval", "__import__", "import_module"}
NOT_FOLLOWED = "capgap.workflow"
STATES = 8  # of the package, whose digests are kept
BY_HAND = "by_hand"  # the decorator, see capgap.command_parser


@cache
def source_digest(module: str) -> str:
    """Digest (16 hexadecimal digits) of everything inside capgap that `module`'s `main` uses.

    It is kept in the user's cache, because finding what a stage uses takes a second for all of them.
    """
    digests = _kept().get(_package_digest())
    if isinstance(digests, dict) and re.fullmatch("[0-9a-f]{16}", str(digests.get(module))):
        return digests[module]
    value = _found_digest(module)
    _keep(module, value)
    return value


@cache
def _package_digest() -> str:
    """Digest of everything that a source digest can depend on: all files of the package, and Python."""
    found = hashlib.sha256(sys.version.encode())
    for path in sorted(SOURCE_ROOT.rglob("*")):
        if path.suffix != ".pyc" and path.is_file():
            data = path.read_bytes()
            found.update(f"\n{path.relative_to(SOURCE_ROOT)} {len(data)}\n".encode() + data)
    return found.hexdigest()


def _store() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "capgap/source-digests.json")


def _kept() -> dict:
    """Digests by module, by the package's digest; empty if there are none that can be read."""
    try:
        return read_json(_store())
    except Unreadable:
        return {}


def _keep(module: str, value: str) -> None:
    """Keep a digest, and those of the last few states of the package; a full disk is no error."""
    state, kept = _package_digest(), _kept()
    digests = kept.pop(state, None)
    mine = {**(digests if isinstance(digests, dict) else {}), module: value}
    with suppress(OSError, CapgapError):
        write_text(_store(), json.dumps({**dict(list(kept.items())[1 - STATES :]), state: mine}))


def _found_digest(module: str) -> str:
    parts: dict[tuple[str, str], str] = {}
    pending = [(module, "main")]
    while pending:
        key = pending.pop()
        if key not in parts:
            parts[key] = _definitions(key[0])[key[1]]
            pending += _uses(*key)
    modules = sorted({module for module, _ in parts})
    text = "\n".join(f"{m}:{n}\n{parts[m, n]}" for m, n in sorted(parts))
    for folder in sorted({_file(m).parent for m in modules}):
        text += "".join(f"\n{n}\n{data}" for n, data in _data_files(folder).items() if n in text)
    return _short(text)


@cache
def command_digest(rule: str) -> str:
    """Digest (16 hexadecimal digits) of the shell command of a rule; line breaks do not count."""
    if rule not in _commands():
        raise CapgapError(
            f"rule {rule} has no shell command in triple quotes in {rules_folder()}/*.smk; write one"
        )
    return _short(_commands()[rule])


@cache
def _commands() -> dict[str, str]:
    """The shell command of every rule that has one, by the rule's name."""
    found = {}
    for path in sorted(rules_folder().glob("*.smk")):
        _, *blocks = re.split(r"^(?=(?:rule|checkpoint) \w+:)", path.read_text("utf-8"), flags=re.M)
        for block in blocks:
            command = re.search(r'^    shell:\s+r?"""(.*?)"""', block, flags=re.M | re.S)
            if command:
                words = command[1].replace("\\\n", " ").split()
                found[re.match(r"\w+ (\w+)", block)[1]] = " ".join(words)
    return found


def rules_folder() -> Path:
    """The folder of the rules of the graph in use."""
    return snakefile().parent / "rules"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _data_files(folder: Path) -> dict[str, str]:
    """Files that are not Python beside a module (templates, styles, scripts), by name.

    A file counts if a definition in use names it.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc"))
    return {p.name: p.read_text(encoding="utf-8") for p in files}


@cache
def _file(module: str) -> Path | None:
    """Source file of a module of this package, None for anything else."""
    if module != PACKAGE and not module.startswith(PACKAGE + "."):
        return None
    if module == NOT_FOLLOWED or module.startswith(NOT_FOLLOWED + "."):
        return None
    stem = SOURCE_ROOT.joinpath(*module.split(".")[1:])
    for path in (stem / "__init__.py", stem.with_suffix(".py")):
        if path.is_file():
            return path
    return None


ALWAYS = "<module level>"  # statements that run at every import


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


def _is_by_hand(statement: ast.stmt) -> bool:
    marks = getattr(statement, "decorator_list", [])
    return any(isinstance(mark, ast.Name) and mark.id == BY_HAND for mark in marks)


def _text(statement: ast.stmt, name: str) -> str:
    if _is_by_hand(statement):
        return BY_HAND
    if isinstance(statement, ast.Import | ast.ImportFrom):
        aliases = ", ".join(ast.unparse(a) for a in _aliases(statement, statement, name))
        return f"import {aliases} from {getattr(statement, 'module', '')}"
    return ast.unparse(statement)


def _bound(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Assign() if all(isinstance(t, ast.Name) for t in statement.targets):
            return [t.id for t in statement.targets if isinstance(t, ast.Name)]
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
        for node in [] if _is_by_hand(statement) else ast.walk(statement):
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
    """Remove what cannot change behaviour; raise on constructs that hide it."""

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
                "cannot be tracked; use an ordinary import statement"
            )
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom):
        if node.level or any(alias.name == "*" for alias in node.names):
            raise CapgapError(
                f"{self.path}:{node.lineno}: star and relative imports hide what a stage uses; "
                "name the module and the names"
            )
        return node
