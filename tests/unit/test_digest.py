"""The digest covers what a stage runs, and nothing else."""

import json

import pytest

from capgap.errors import CapgapError
from capgap.workflow import digest

STAGE = '''
"""A stage."""
import json
from capgap.library import loss, Settings
from capgap.other import unused

def run(x):
    """Doc."""
    # comment
    return loss(x)

@by_hand
def for_people():
    return unused()

def main(argv):
    if argv:
        for_people()
    write(run(5))

def write(x):
    return json.dumps(x)
'''
LIBRARY = """
SCALE = 2
OTHER = 3

class Settings:
    rate: float = Field(0.1, description="a rate")

def loss(x):
    return helper(x) * SCALE

def helper(x):
    return x + 1

def elsewhere(x):
    return OTHER
"""


@pytest.fixture
def store(tmp_path_factory, monkeypatch):
    """A user's cache of its own; the file of digests in it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "capgap/source-digests.json"


@pytest.fixture
def package(tmp_path, monkeypatch, store):
    """Function that writes modules and returns the digest of capgap.stage_a."""
    monkeypatch.setattr(digest, "SOURCE_ROOT", tmp_path)
    (tmp_path / "__init__.py").write_text("")

    def of(stage=STAGE, library=LIBRARY, other="def unused(): return 1\n"):
        for name, text in [("stage_a", stage), ("library", library), ("other", other)]:
            (tmp_path / f"{name}.py").write_text(text)
        for function in vars(digest).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
        return digest.source_digest("capgap.stage_a")

    yield of
    for function in vars(digest).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.mark.parametrize(
    "change",
    [
        {"stage": STAGE.replace("# comment", "# another")},
        {"stage": STAGE.replace('"""Doc."""', '"""Other words."""')},
        {"stage": STAGE.replace("return loss(x)", "return loss( x )")},
        {"stage": STAGE.replace("return unused()", "return 5")},  # no job may call it
        {"library": LIBRARY.replace("OTHER = 3", "OTHER = 4")},
        {"library": LIBRARY.replace("0.1, description", "0.9, description")},  # not used by run
        {"library": LIBRARY + "\ndef added():\n    return 1\n"},
        {"other": "def unused(): return 2\n"},
    ],
)
def test_what_does_not_matter_is_not_seen(package, change):
    assert package(**change) == package()


@pytest.mark.parametrize(
    "change",
    [
        {"stage": STAGE.replace("loss(x)", "loss(x + 1)")},
        {"stage": STAGE.replace("run(5)", "run(6)")},
        {"stage": STAGE.replace("dumps(x)", "dumps(x, indent=1)")},  # what is written, and how
        {"stage": STAGE.replace("@by_hand\n", "")},
        {"library": LIBRARY.replace("x + 1", "x + 2")},  # reached through another function
        {"library": LIBRARY.replace("SCALE = 2", "SCALE = 3")},
        {"library": LIBRARY + "\nSCALE = 5\n"},
        {"library": LIBRARY + "\nprint('on import')\n"},
    ],
)
def test_what_matters_is_seen(package, change):
    assert package(**change) != package()


def test_help_texts_do_not_count_but_defaults_do(package):
    used = STAGE.replace("return loss(x)", "return Settings()")
    base = package(stage=used)
    assert package(stage=used, library=LIBRARY.replace("a rate", "the rate")) == base
    assert package(stage=used, library=LIBRARY.replace("0.1", "0.2")) != base


@pytest.mark.parametrize("line", ["from capgap.library import *", "exec('1')", "eval('1')"])
def test_what_hides_use_is_refused_by_line(package, line):
    with pytest.raises(CapgapError, match=r"stage_a\.py:"):
        package(stage=STAGE + f"\n{line}\n")


def test_a_whole_module_counts_where_it_is_used_by_name(package):
    used = STAGE.replace("from capgap.other import unused", "from capgap import other").replace(
        "return loss(x)", "return other.unused()"
    )
    assert package(stage=used, other="def unused(): return 2\n") != package(stage=used)


def test_a_kept_digest_is_taken_only_for_the_same_files(package, store, monkeypatch):
    first, changed = package(), LIBRARY.replace("x + 1", "x + 2")
    found = []
    real = digest._found_digest
    monkeypatch.setattr(digest, "_found_digest", lambda m: found.append(m) or real(m))
    assert package() == first
    assert found == []
    second = package(library=changed)
    assert second != first
    assert found == ["capgap.stage_a"]
    assert package() == first
    assert package(library=changed) == second
    assert len(found) == 1
    for n in range(2 * digest.STATES):
        package(other=f"def unused(): return {n + 10}\n")
    assert len(json.loads(store.read_text())) == digest.STATES


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '{"STATE": null}', '{"STATE": {"capgap.stage_a": "../x"}}']
)
def test_a_spoilt_store_of_digests_is_passed_over(package, store, text):
    first = package()
    store.write_text(text.replace("STATE", digest._package_digest()))
    assert package() == first


def test_a_store_that_cannot_be_written_stops_nothing(package, store):
    store.parent.write_text("no folder")
    assert package() == package()
