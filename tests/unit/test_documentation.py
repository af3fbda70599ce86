"""The documentation: links, the site, and that it quotes what the code prints."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from capgap.command_table import overview

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "config/README.md"))]  # fmt: skip
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def prose(page):
    """A page without its code, in which brackets are no links."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)


def anchors(page):
    """Anchors of a page's headings, as the site and code hosts make them."""
    heads = re.findall(
        r"^#+ +(.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M
    )
    return {
        re.sub(r"[^\w\s-]", "", head.replace("`", "").lower()).strip().replace(" ", "-")
        for head in heads
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if DOCS in page.parents:  # the site has nothing else
            assert target.parent == DOCS, f"{page.name}: {link} leads out of the site"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


class _Site(yaml.SafeLoader):
    """mkdocs.yml names a function."""


_Site.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)


def named(entry):
    """Pages of a navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in named(part)]


def test_every_page_is_in_the_navigation_once():
    nav = named(yaml.load((ROOT / "mkdocs.yml").read_text(), _Site)["nav"])
    assert sorted(nav) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install -e .[docs]")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site/tutorial/index.html").is_file()


def test_the_commands_are_those_that_are_printed():
    assert f"```\n{overview()}\n```" in (DOCS / "commands.md").read_text()


def spoken():
    """All texts in the source, those of a concatenation together."""
    texts = [(ROOT / "Dockerfile").read_text()]
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value for p in node.values if isinstance(p, ast.Constant)]
                texts += parts
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n\0\n".join(texts)


def test_troubleshooting_quotes_messages_that_the_code_prints():
    text = spoken()
    quoted = re.findall(r"```\n(.*?)\n```", (DOCS / "troubleshooting.md").read_text(), flags=re.S)
    assert len(quoted) > 12
    for message in quoted:
        assert "\n" not in message
        parts = message.removeprefix("error: ").removeprefix("note: ").split("...")
        for part in filter(None, map(str.strip, parts)):
            assert part in text, f"{message!r}: {part!r} is printed nowhere"


def test_the_glossary_is_sorted():
    rows = re.findall(r"^\| ([^|]+) \|", (DOCS / "glossary.md").read_text(), flags=re.M)[1:]
    words = [row for row in rows if set(row) != {"-"}]
    assert words == sorted(words, key=str.lower)
