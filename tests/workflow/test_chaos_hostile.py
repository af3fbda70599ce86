"""Hostile remotes, branches and folders, at random: nothing runs, and nothing outside is touched."""

import json
import pickle
import random
import shutil

import yaml
from chaos_tool import Table, draw_of, sizes
from forked import forked, load
from hostile import Runs, change_listing, name_of_record, put, saved, snapshot
from repository import RESULTS

from capgap.workflow import private

SMALL = 17
RECORDS = str(private.RECORDS)
OUTSIDE = ["../../yaml.py", "../../../outside.py", "../../.git/hooks/post-checkout", "/etc/motd.x",
           "../iocache/latest.pkl", "law/../../../src/capgap/__init__.py", "./x/../../../y", "",
           "sitecustomize.py", "law/__init__.py", "final/model/modeling_x.py", "law/law.json/x",
           "a\u0000b", "n" * 300, "..", "law//law.json", "\udcff"]  # fmt: skip
DEEP = b"[" * 100_000


class World:
    """A study, its remote, and the file that any code from outside would make."""

    def __init__(self, study, storage, draw):
        self.study, self.storage, self.draw = study, storage, draw
        self.mark = study.path.parent / "ran"
        self.code = f"import pathlib\npathlib.Path({str(self.mark)!r}).touch()\n".encode()
        self.pickle = pickle.dumps(Runs(self.mark))

    def add(self, root, name):
        """A file more in a listing, which holds code or a pickle."""
        oid = put(self.storage, self.pickle if name.endswith(".pkl") else self.code)
        entry = {"md5": oid, "relpath": name}
        change_listing(self.study, self.storage, root, lambda entries: entries.append(entry))

    def exchange(self, root, data):
        """Another contents for one of the files of a listing."""
        oid = put(self.storage, data)

        def change(entries):
            self.draw.choice(entries)["md5"] = oid

        change_listing(self.study, self.storage, root, change)

    def lock(self, change):
        """An edit of dvc.lock."""
        path = self.study / "dvc.lock"
        lock = yaml.safe_load(path.read_text())
        change(lock["stages"]["study"]["outs"], lock)
        path.write_text(yaml.safe_dump(lock))

    def objects(self, change):
        """Damage of a random object of the remote, none of which is in the cache any more."""
        shutil.rmtree(self.study / ".dvc/cache")
        path = self.draw.choice(sorted(p for p in self.storage.rglob("*") if p.is_file()))
        path.chmod(0o644)
        change(path)

    def shared(self, text):
        """A setting of DVC that comes with the branch."""
        with (self.study / ".dvc/config").open("a") as file:
            file.write(text.format(self.study.path.parent))

    def link(self, name):
        """A folder of the study is a link that leads out of it."""
        outside = self.study.path.parent / "private"
        outside.mkdir(exist_ok=True)
        shutil.rmtree(self.study / name)
        (self.study / name).symlink_to(outside)


def whole_listing(w, data):
    oid = put(w.storage, data, ".dir")
    w.lock(lambda outs, lock: outs[0].update(md5=oid))


PULLS = {
    "listing names a file outside": lambda w: w.add(RESULTS, w.draw.choice(OUTSIDE)),
    "listing of records does": lambda w: w.add(RECORDS, w.draw.choice(OUTSIDE)),
    "record of an output outside": lambda w: w.add(
        RECORDS, name_of_record(w.draw.choice(["../../victim", "/etc/passwd", "results/../../x"]))
    ),
    "mark of an unfinished job": lambda w: w.add(
        RECORDS, "../incomplete/" + name_of_record("../victim")
    ),
    "result exchanged": lambda w: w.exchange(RESULTS, b'{"verdict": "bought"}'),
    "record exchanged": lambda w: w.exchange(RECORDS, w.draw.choice([b"[1]", b"null", DEEP])),
    "listing is no listing": lambda w: whole_listing(
        w, w.draw.choice([b"null", b"{}", b"[1]", b'[{"md5": 1}]', b"\xff", DEEP, b""])
    ),
    "lock names another place": lambda w: w.lock(
        lambda outs, lock: outs[0].update(path=w.draw.choice(["src", "..", "/tmp", ".git"]))
    ),
    "lock names no object": lambda w: w.lock(
        lambda outs, lock: outs[0].update(md5=w.draw.choice(["../../x", "", "0" * 32, 5, None]))
    ),
    "lock counts other files": lambda w: w.lock(lambda outs, lock: outs[0].update(nfiles=1)),
    "object damaged": lambda w: w.objects(lambda path: path.write_bytes(b"rotten")),
    "object is missing": lambda w: w.objects(lambda path: path.unlink()),
    "object is a folder": lambda w: w.objects(lambda path: (path.unlink(), path.mkdir())),
    "branch sets DVC's caches": lambda w: w.shared("[cache]\n    dir = {}/private\n"),
    "branch sets a program": lambda w: w.shared(
        "['remote \"storage\"']\n    bearer_token_command = touch {}/ran\n"
    ),
    "results are a link out": lambda w: w.link(RESULTS),
    "records are a link out": lambda w: w.link(RECORDS),
}


def outside_of(study, storage):
    """All that a pull may not touch."""
    found = {k: v for k, v in snapshot(study.path.parent).items() if not k.startswith("study/")}
    for part in (".git", "src", "rules", ".dvc/config"):
        path = study / part
        inside = snapshot(path) if path.is_dir() else path.read_bytes()
        found[part] = inside
    return {k: v for k, v in found.items() if k not in ("counter", "printed")}


@sizes(SMALL, 102)
def test_what_comes_from_outside_runs_nothing_and_leaves_its_folder_nowhere(
    finished, tmp_path, trials
):
    load(["pull", "verify"])
    draw, table = draw_of(trials, SMALL), Table("hostile remote or branch")
    kinds = list(PULLS)
    for trial in range(trials):
        kind = kinds[trial % len(kinds)]
        folder = tmp_path / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        study = finished.copy(folder / "study")
        storage = shutil.copytree(finished.path.parent / "storage", folder / "storage")
        local = study / ".dvc/config.local"
        text = local.read_text().replace(str(finished.path.parent), str(folder))
        local.write_text(text)
        (folder / "victim").write_text("mine")
        world = World(study, storage, random.Random(draw.random()))
        PULLS[kind](world)
        before = outside_of(study, storage)
        results = study.contents() if not (study / RESULTS).is_symlink() else {}
        ended = forked(study, ["pull", "--models", "--force"])
        result = ended.outcome
        after = outside_of(study, storage)
        touched = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        if world.mark.exists():
            result = "lost: code ran"
        elif touched:
            result = f"lost: touched {touched[:3]}"
        elif result == "refused" and results and study.contents() != results:
            result = "lost: files in place were changed by a pull that was refused"
        elif result == "done" and study.contents() != finished.contents():
            result = "silent"
        table.add(kind, result, ended.text[-500:])
    table.finish(trials, SMALL)


def test_the_attacks_reach_the_listing(finished, study, tmp_path):
    """Otherwise the test above would pass for nothing."""
    storage = shutil.copytree(finished.path.parent / "storage", tmp_path / "storage")
    count = len(saved(study, storage, RESULTS))
    World(study, storage, random.Random(0)).add(RESULTS, "../../yaml.py")
    entries = saved(study, storage, RESULTS)
    assert len(entries) == count + 1
    assert json.dumps(entries[-1]).count("../../yaml.py") == 1
