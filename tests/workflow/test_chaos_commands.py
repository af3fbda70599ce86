"""
Every command of the contract, killed at random moments: files are old or new, never half; the next
command works, and the study ends as it was.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from chaos_tool import Table, draw_of, sizes
from forked import forked, load
from repository import RESULTS, Repository

from capgap.workflow import ledger, private

RECORDS = str(private.RECORDS)
SMALL = 6
REASON = "the same numbers"
COMMANDS = {
    "pull": ["pull", "--models"],
    "push": ["push"],
    "save": ["save"],
    "run": ["run", "--cores", "1"],
    "export": ["export", "--out", "out", "--data-licence", "mit", "--teacher-licence", "mit"],
    "accept": ["accept", "--by", "Ada", "--reason", REASON],
    "verify": ["verify"],
    "clean": ["clean"],
    "plan": ["plan", "--device", "cpu"],
    "recommend": ["recommend", "--student", "3k", "--out", "answer.json"],
    "summary": ["summary"],
    "init": ["init", "new", "--text", "corpus", "--student", "20k", "--time", "10m", "--yes"],
}
# Commands that start Python again are slow; the others get more of the trials.
TURNS = ["pull", "push", "export", "accept", "clean", "init", "verify", "pull", "push", "recommend",
         "save", "export", "accept", "plan", "summary", "pull", "clean", "run"]  # fmt: skip


def prepare(study, name, draw) -> None:
    """Give a command something to do."""
    if name == "pull":
        for part in draw.sample([RESULTS, RECORDS, ".dvc/cache"], draw.randint(1, 3)):
            shutil.rmtree(study / part)
    elif name == "push":
        shutil.rmtree(study.path.parent / "storage")
        (study.path.parent / "storage").mkdir()
    elif name == "save":
        shutil.rmtree(study / ".dvc/cache")
    elif name == "run":
        shutil.rmtree(study / RESULTS / draw.choice(["report", "law", "tokens"]))
    elif name == "accept":
        for file in sorted((study / RECORDS).rglob("*")):
            if file.is_file() and "distill" in json.loads(file.read_text())["rule"]:
                file.write_text(older(file.read_text()))
    elif name == "clean":
        for place in (RESULTS, f"{RESULTS}/final", "scratch/results"):
            (study / place / ".half.tmp").mkdir(parents=True)
            (study / place / ".half.tmp/part").write_text("x")


def older(record: str) -> str:
    """A record as if its output had been made with other source."""
    data = json.loads(record)
    before = json.dumps(ledger.read_spec(data), sort_keys=True)
    after = json.dumps({**ledger.read_spec(data), "source": "0" * 16}, sort_keys=True)
    data["params"] = [repr(after) if p == repr(before) else p for p in data["params"]]
    return json.dumps(data)


def results(study, name) -> dict[str, bytes]:
    """All results; not the book of what was accepted, and the ledger that lists it."""
    books = ("accepted.json", "checksums.json") if name == "accept" else ()
    return {path: data for path, data in study.contents().items() if path not in books}


def stored(folder) -> set[str]:
    """Objects of a remote, all of which must have the contents that they are named by.

    DVC copies a file under a random hidden name and renames it. A kill in between leaves that copy,
    which is no object, and no later command can tell it from the copy of a push that is running.
    """
    found = [p for p in Path(folder).rglob("*") if p.is_file()]
    objects = [p for p in found if not (p.name.startswith(".") and p.suffix == ".tmp")]
    for path in objects:
        oid = (path.parent.name + path.name).removesuffix(".dir")
        assert hashlib.md5(path.read_bytes()).hexdigest() == oid, path
    return {str(path.relative_to(folder)) for path in objects}


def made(study, name) -> dict[str, bytes]:
    """What a command writes besides results: whole files, or nothing at all."""
    place = {"export": "out", "init": "new", "recommend": "answer.json"}.get(name)
    root = study / place if place else None
    if root is None or not root.exists():
        return {}
    files = [root] if root.is_file() else [p for p in root.rglob("*") if p.is_file()]
    return {str(p.relative_to(study.path)): p.read_bytes() for p in files}


class Trials:
    """A copy of the finished study to kill commands in, and how each command ends without a kill."""

    def __init__(self, finished, folder):
        self.finished, self.folder = finished, folder
        self.whole = {}

    def fresh(self) -> Repository:
        """A new copy with a remote of its own."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        study = self.finished.copy(self.folder / "study")
        shutil.copytree(self.finished.path.parent / "storage", self.folder / "storage")
        local = study / ".dvc/config.local"
        local.write_text(
            local.read_text().replace(
                str(self.finished.path.parent / "storage"), str(self.folder / "storage")
            )
        )
        return study

    def unharmed(self, name, draw):
        """(calls that change the disk, seconds, what it wrote) of a command that nobody kills."""
        if name not in self.whole:
            study = self.fresh()
            prepare(study, name, draw)
            ended = forked(study, COMMANDS[name])
            assert ended.outcome == "done", (name, ended)
            self.whole[name] = (ended.calls, ended.seconds, made(study, name))
        return self.whole[name]


@pytest.fixture
def trial_of(finished, tmp_path) -> Trials:
    load(COMMANDS)
    return Trials(finished, tmp_path / "trial")


@sizes(SMALL, 126)
def test_a_killed_command_of_the_contract_leaves_old_or_new(trial_of, finished, trials):
    draw, table = draw_of(trials, SMALL), Table("kill of a command")
    objects = stored(finished.path.parent / "storage")
    for trial in range(trials):
        name = TURNS[trial % len(TURNS)]
        calls, seconds, whole = trial_of.unharmed(name, draw)
        study = trial_of.fresh()
        prepare(study, name, draw)
        victims = draw.choice(["group", "root"])
        window = calls > 2 and draw.random() < 0.75
        at = {"moment": draw.randint(1, calls)} if window else {"after": draw.uniform(0, seconds)}
        killed = forked(study, COMMANDS[name], victims=victims, **at)
        detail = f"{at}, {victims}"
        if killed.status != -9:
            table.add(name, killed.outcome, detail)
        else:
            table.add(name, "killed in a window" if window else "killed at a time")
        left = made(study, name)
        if left and left != whole:
            table.add(name, "lost: half of it is there", f"{detail} {sorted(left)}")
        look = forked(study, ["verify"])
        if look.outcome not in ("done", "refused"):
            table.add(name, look.outcome, f"verify after {detail}")
        again = forked(study, COMMANDS[name])
        there = name in ("export", "init") and left == whole and again.outcome == "refused"
        if again.outcome != "done" and not there:
            table.add(name, f"lost: {again.outcome}", f"{detail} {again.text[-800:]}")
            continue
        after = forked(study, ["verify"])
        lost = after.outcome != "done" or results(study, name) != results(finished, name)
        lost |= stored(study.path.parent / "storage") != objects or made(study, name) != whole
        lost |= (study / "dvc.lock").read_bytes() != (finished / "dvc.lock").read_bytes()
        leftovers = [p for p in (study / RESULTS).rglob(".*.tmp") if name in ("run", "clean")]
        lost |= bool(leftovers)
        table.add(name, "lost" if lost else "whole after a rerun", f"{detail} {after.text[-600:]}")
    table.finish(trials, SMALL)
