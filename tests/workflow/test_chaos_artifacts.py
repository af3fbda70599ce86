"""Random faults of a finished study's files: each is found, and by which command; none passes silently."""

import json
import os
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from chaos_tool import Table, draw_of, outcome, sizes
from repository import RESULTS

from capgap.commands import run, verify
from capgap.records.artifacts import describe

SMALL = 40
pytestmark = pytest.mark.skipif(
    find_spec("capgap.records.checksums") is None, reason="needs the ledger of checksums"
)


def flip(path, draw):
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path, draw):
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def digit(path, draw):
    """A plausible edit: one digit is another one; what has none is flipped."""
    data = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(data) if chr(byte).isdecimal()]
    if not places:
        return flip(path, draw)
    place = draw.choice(places)
    data[place] = ord("0") + (data[place] - ord("0") + draw.randint(1, 9)) % 10
    path.write_bytes(data)


def of_another(path, draw):
    """The contents of another file of the study with the same suffix."""
    files = (p for p in Path(RESULTS).rglob(f"*{path.suffix}") if p.is_file())
    others = sorted(p for p in files if p.read_bytes() != path.read_bytes())
    if not others:
        return flip(path, draw)
    path.write_bytes(draw.choice(others).read_bytes())


def same_size_and_time(path, draw):
    before = path.stat()
    flip(path, draw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(make):
    """A fault that puts something else in place of the file."""

    def fault(path, draw):
        path.unlink()
        make(path)

    return fault


def written(data):
    return lambda path, draw: path.write_bytes(data)


def link_to_a_changed_copy(path, draw):
    copy = Path("elsewhere")
    shutil.copy(path, copy)
    flip(copy, draw)
    path.unlink()
    path.symlink_to(copy.resolve())


def consistent_lie(path, draw):
    """A folder is edited and its manifest rewritten with it."""
    if path.name == "manifest.json":  # to be written anew: an edit of it would be undone
        path = draw.choice(sorted(p for p in path.parent.iterdir() if p.name != path.name))
    flip(path, draw)
    for folder in path.parents:
        if (folder / "manifest.json").is_file():
            text = json.dumps(describe(folder), indent=1, sort_keys=True) + "\n"
            (folder / "manifest.json").write_text(text)
            return


FAULTS = {
    "bit flipped": flip,
    "bit flipped, size and time kept": same_size_and_time,
    "cut off": truncate,
    "emptied": written(b""),
    "appended to": lambda path, draw: path.write_bytes(path.read_bytes() + b"\n1"),
    "zeros of the same size": lambda path, draw: path.write_bytes(bytes(path.stat().st_size)),
    "a digit changed": digit,
    "contents of another file": of_another,
    "null": written(b"null\n"),
    "empty list": written(b"[]\n"),
    "not UTF-8": written(b"\xff\xfe\x00"),
    "nested too deep": written(b"[" * 100_000),
    "deleted": lambda path, draw: path.unlink(),
    "renamed": lambda path, draw: path.rename(path.with_name(path.name + ".bak")),
    "folder removed": lambda path, draw: shutil.rmtree(path.parent),
    "file added": lambda path, draw: (path.parent / "added.txt").write_text("mine"),
    "pipe": replaced(os.mkfifo),
    "folder in its place": replaced(lambda path: path.mkdir()),
    "dangling link": replaced(lambda path: path.symlink_to("nowhere")),
    "link to a changed copy": link_to_a_changed_copy,
    "edited with its manifest": consistent_lie,
}


@sizes(SMALL, 500)
def test_no_fault_of_a_result_passes_in_silence(finished, study, monkeypatch, capsys, trials):
    draw, table = draw_of(trials, SMALL), Table("fault")
    monkeypatch.chdir(study.path)
    files = sorted(p.relative_to(study.path) for p in (study / RESULTS).rglob("*") if p.is_file())
    assert verify.problems("tiny") == []
    kinds = list(FAULTS)
    for trial in range(trials):
        kind, path = kinds[trial % len(kinds)], draw.choice(files)
        FAULTS[kind](path, draw)
        said = []
        result = outcome(lambda said=said: said.extend(verify.problems("tiny")))
        before_a_run = outcome(lambda: run.check_results(Path(RESULTS), look=True))
        noted = before_a_run == "refused" or capsys.readouterr().err != ""
        if result in ("done", "refused"):
            found = ["verify"] * bool(said or result == "refused") + ["run"] * noted
            result = f"found by {' and '.join(found)}" if "verify" in found else "silent"
        if before_a_run not in ("done", "refused"):
            result = before_a_run
        table.add(kind, result, str(path))
        shutil.rmtree(RESULTS, ignore_errors=True)  # a fault may have removed all of it
        shutil.copytree(finished / RESULTS, RESULTS)
    assert verify.problems("tiny") == []
    table.finish(trials, SMALL)


@pytest.mark.parametrize("kind", ["deleted", "emptied", "null", "not UTF-8", "pipe", "cut off"])
def test_a_fault_of_a_record_is_one_message_or_a_rerun(study, monkeypatch, kind):
    monkeypatch.chdir(study.path)
    records = sorted(p for p in (study / ".snakemake/metadata").rglob("*") if p.is_file())
    FAULTS[kind](random.Random(0).choice(records), random.Random(0))
    result = outcome(lambda: verify.problems("tiny"))
    assert result in ("done", "refused")
