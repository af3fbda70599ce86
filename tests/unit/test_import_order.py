"""No import of capgap runs upwards: neither between its packages nor between those of the law."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "capgap"
BELOW_ALL = ["errors", "terminal", "command_table", "command_parser"]


def packages():
    """Packages of capgap from the bottom to the top, as docs/architecture.md lists them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|", text, flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)(?:\.py|/)`", row)][::-1]


def parts_of_law():
    """Packages and modules of the law from the bottom to the top, as its docstring lists them."""
    tree = ast.parse((SOURCE / "law" / "__init__.py").read_text(encoding="utf-8"))
    return re.findall(r"^(\w+)(?:/| {2})", ast.get_docstring(tree), flags=re.MULTILINE)


def imported(path):
    """What a file imports from capgap, anywhere: (["law", "table", "metric", "METRICS"], line)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        for name in names:
            assert not name.startswith("."), f"{path}:{node.lineno} has a relative import"
            first, *rest = name.split(".")
            if first == "capgap" and rest:
                yield rest, node.lineno


def upward(root, level, order):
    """Imports of something above the importer; level: of the names in `order`."""
    found = []
    for path in sorted(root.rglob("*.py")):
        here = path.relative_to(SOURCE).with_suffix("").parts
        for there, line in imported(path):
            if here[:level] == tuple(there[:level]) and len(there) > level:
                one, other = here[level], there[level]
                if one in order and other in order and order.index(other) > order.index(one):
                    found.append(f"{path.relative_to(ROOT)}:{line} imports {'.'.join(there)}")
    return found


def test_every_package_has_its_place():
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert modules == {*BELOW_ALL, "cli"}
    found = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert set(packages()) == found | {"cli"}
    in_law = {path.stem for path in (SOURCE / "law").iterdir()} - {"__init__", "__pycache__"}
    assert set(parts_of_law()) == in_law


def test_no_import_between_packages_runs_upwards():
    assert upward(SOURCE, 0, [*BELOW_ALL, *packages()]) == []


def test_no_import_within_the_law_runs_upwards():
    assert upward(SOURCE / "law", 1, parts_of_law()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from capgap.law.fit_law import x",
        "def f():\n    from capgap import law",
        "import capgap.law",
    ],
)
def test_an_import_is_found_in_every_form(tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    assert [there[0] for there, _ in imported(tmp_path / "module.py")] == ["law"]
