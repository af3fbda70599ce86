"""What a colleague, a remote or a kill left behind cannot reach out of the study or lie about it."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from hostile import Runs, change_listing, name_of_record, put, saved, snapshot
from repository import RESULTS

from capgap.workflow import private

RECORDS = str(private.RECORDS)


def refused(result, *words):
    """A command ended in one message of ours that holds some words."""
    text = result.stdout + result.stderr
    assert result.returncode == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("root", "name"),
    [
        (RESULTS, "../../yaml.py"),
        (RESULTS, "../../../outside.py"),
        (RESULTS, "../../.git/hooks/post-checkout"),
        (RECORDS, "../iocache/latest.pkl"),
        (RECORDS, "../incomplete/" + name_of_record("../../victim")),
        (RECORDS, name_of_record("../../victim")),
        (RECORDS, name_of_record("/etc/passwd")),
        (RECORDS, "sitecustomize.py"),
        (RESULTS, "final/model/modeling_x.py"),
        (RESULTS, "law/__init__.py"),
    ],
)
def test_pull_puts_nothing_in_place_that_the_study_does_not_have(study, remote, root, name):
    mark = study.path.parent / "ran"
    evil = pickle.dumps(Runs(mark)) if name.endswith(".pkl") else b"import os\n"
    oid = put(remote, evil)
    change_listing(
        study, remote, root, lambda entries: entries.append({"md5": oid, "relpath": name})
    )
    before, outside = snapshot(study / RESULTS), sorted(os.listdir(study.path.parent))
    top = sorted(os.listdir(study.path))
    refused(study.capgap("pull", "--models", "--force", check=False), Path(name).name)
    assert snapshot(study / RESULTS) == before
    assert sorted(os.listdir(study.path)) == top
    assert sorted(os.listdir(study.path.parent)) == outside
    assert not (study / root / name).exists()
    assert not mark.exists()


def test_pull_refuses_saved_results_that_are_not_those_of_the_ledger(study, remote):
    law = json.loads((study / RESULTS / "law/law.json").read_text())
    oid = put(remote, json.dumps(law | {"verdict": "bought"}).encode())

    def exchange(entries):
        next(e for e in entries if e["relpath"] == "law/law.json")["md5"] = oid

    change_listing(study, remote, RESULTS, exchange)
    shutil.rmtree(study / RESULTS)
    refused(study.capgap("pull", check=False), "law/law.json has other contents than the job")
    assert not (study / RESULTS).exists()


def test_pull_refuses_a_record_that_snakemake_could_not_read(study, remote):
    oid = put(remote, b"[1]")

    def exchange(entries):
        name = name_of_record(f"{RESULTS}/law/law.json")
        next(e for e in entries if e["relpath"] == name)["md5"] = oid

    change_listing(study, remote, RECORDS, exchange)
    refused(study.capgap("pull", "--force", check=False), f"record of {RESULTS}/law/law.json")


def test_unfinished_mark_of_a_file_outside_deletes_nothing(study):
    victim = study.path.parent / "victim"
    victim.write_text("mine")
    inside = study / "config.yaml"
    for output in (
        "../victim",
        str(victim),
        f"{RESULTS}/../../config.yaml",
        f"{RESULTS}/x/../../../../victim",
    ):
        mark = study / private.location(private.UNFINISHED, output)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("{}")
    (study / RESULTS / "out").symlink_to(study.path.parent)
    mark = study / private.location(private.UNFINISHED, f"{RESULTS}/out/victim")
    mark.write_text("{}")
    for words in (["run", "-n"], ["run"]):
        study.capgap(*words, check=False)
        assert victim.read_text() == "mine"
        assert inside.exists()


def test_pull_never_writes_to_the_remote(study, remote):
    law = (study / RESULTS / "law/law.json").read_bytes()
    oid = hashlib.md5(law).hexdigest()
    stored = remote / private.object_name(oid)
    stored.chmod(0o644)
    stored.write_bytes(b"rotten")
    (study / ".dvc/cache" / private.object_name(oid)).unlink()
    (study / RESULTS / "law/law.json").unlink()
    before = snapshot(remote)
    result = study.capgap("pull", check=False)
    refused(result, "law/law.json is damaged in the remote", str(stored))
    assert snapshot(remote) == before


DAMAGE = {
    "empty": "",
    "torn": "schema: '2.0'\nstages:\n  stu",
    "conflict": "<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '2.0'\n>>>>>>> other\n",
    "null": "null\n",
    "list": "[]\n",
    "tag": "!!python/object/apply:os.system ['touch ran']\n",
}


@pytest.mark.parametrize("text", DAMAGE.values(), ids=DAMAGE)
def test_spoilt_lock_is_named_with_the_way_back(study, text):
    good = (study / "dvc.lock").read_text()
    (study / "dvc.lock").write_text(text)
    for command in ("pull", "push"):
        refused(
            study.capgap(command, check=False), "dvc.lock is damaged", "git checkout HEAD dvc.lock"
        )
    assert not (study / "ran").exists()
    study.git("checkout", "HEAD", "dvc.lock")
    assert (study / "dvc.lock").read_text() == good
    study.capgap("push")


def test_lock_that_names_another_place_is_refused(study):
    text = (study / "dvc.lock").read_text()
    (study / "dvc.lock").write_text(text.replace(f"path: {RESULTS}", "path: src"))
    refused(study.capgap("pull", "--force", check=False), "dvc.lock names src")


def test_killed_save_leaves_the_lock_of_before(study):
    """A kill while DVC writes dvc.lock in place; the next command brings the old one back."""
    good = (study / "dvc.lock").read_text()
    kept = study / ".dvc/tmp/capgap-dvc.lock"
    for torn in ("", good[: len(good) // 2]):
        kept.write_text(good)
        (study / "dvc.lock").write_text(torn)
        study.capgap("push")
        assert (study / "dvc.lock").read_text() == good
        assert not kept.exists()
    kept.write_text("")  # nothing had been saved before
    (study / "dvc.lock").write_text("")
    refused(study.capgap("pull", check=False), "this revision holds no results")


def test_failed_save_leaves_no_lock_behind(study):
    (study / "dvc.lock").unlink()
    cache = study / ".dvc/cache"
    shutil.rmtree(cache)
    cache.write_text("no folder")  # as a disk that cannot be written
    refused(study.capgap("save", check=False), "nothing was saved: dvc commit failed")
    assert not (study / "dvc.lock").exists()
    cache.unlink()
    study.capgap("save")
    assert study.git("diff", "--exit-code", "dvc.lock").returncode == 0


def test_what_kills_of_pull_and_checkout_leave_stops_no_command(study):
    for folder in (study / RECORDS, study / RESULTS, study / RESULTS / "final/model"):
        for name in (".abcDEF.tmp", ".DS_Store", ".nfs0000001"):
            (folder / name).write_bytes(b"\xff\xfe")
    for words in (["verify"], ["accept"], ["run"], ["save"], ["pull"], ["push"], ["verify"]):
        study.capgap(*words)
    assert not (study / RECORDS / ".abcDEF.tmp").exists()
    assert not (study / RESULTS / "final/model/.abcDEF.tmp").exists()
    assert ".DS_Store" not in study.command("cat", "dvc.lock").stdout
    assert study.git("diff", "--exit-code", "dvc.lock").returncode == 0


@pytest.mark.parametrize("words", [("pull", "--models"), ("pull",)])
def test_pull_and_push_count_what_is_really_there(study, remote, words):
    """DVC's index of a revision, torn by a kill, made both of them lie."""
    listed = sum(len(saved(study, remote, root)) for root in (RESULTS, RECORDS))
    site = study / ".dvc/tmp/site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    (site / "repo").write_bytes(b"torn")
    shutil.rmtree(remote)
    remote.mkdir()
    said = study.capgap("push").stdout
    stored = [p for p in remote.rglob("*") if p.is_file()]
    assert f"{len(stored)} objects were new" in said
    shutil.rmtree(study / ".dvc/cache")
    shutil.rmtree(study / RESULTS)
    shutil.rmtree(study / RECORDS)
    said = study.capgap(*words).stdout
    here = [p for root in (RESULTS, RECORDS) for p in (study / root).rglob("*") if p.is_file()]
    assert f"{len(here)} files are here" in said
    if "--models" in words:
        assert len(here) == listed
        study.capgap("verify")
    assert study.planned() == set()


SPOILT = {"null": b"null", "not UTF-8": b'{"\xff": 1}'}
PLACES = {
    "manifest": f"{RESULTS}/tokens/manifest.json",
    "result": f"{RESULTS}/law/law.json",
    "ledger": f"{RESULTS}/checksums.json",
    "record": f"{RECORDS}/{name_of_record(f'{RESULTS}/law/law.json')}",
}


@pytest.mark.parametrize("contents", [*SPOILT.values(), None], ids=[*SPOILT, "pipe"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_spoilt_small_file_is_one_message_everywhere(study, place, contents):
    path = study / place
    if contents is None:
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(contents)
    for command in ("verify", "run", "save"):
        refused(study.capgap(command, check=False))
    study.capgap("pull", "--force")
    study.capgap("verify")


def test_removed_results_are_named_one_by_one(study):
    for part in ("students", "law", "final"):
        shutil.rmtree(study / RESULTS / part)
    refused(
        study.capgap("verify", check=False),
        f"{RESULTS}/law/law.json is missing",
        f"{RESULTS}/final/model/manifest.json is missing",
        "curve.csv is missing",
    )


@pytest.mark.parametrize("part", ["curve.csv", "train.json"])
def test_lost_and_edited_records_of_training_are_named_and_made_again(study, part):
    path = study / RESULTS / "teachers/t6k" / part
    path.write_text("edited")
    for words in (["verify"], ["run"], ["save"]):
        refused(study.capgap(*words, check=False), f"teachers/t6k/{part} has other contents")
    path.unlink()
    refused(study.capgap("verify", check=False), f"teachers/t6k/{part} is missing")
    assert "pretrain_teacher teachers/t6k" in study.planned()
    result = study.capgap("run", "-n")
    assert f"note: {RESULTS}/teachers/t6k/{part} is missing" in result.stderr
    study.capgap("pull", path.relative_to(study.path))
    study.capgap("verify")
    assert study.planned() == set()


def test_a_look_changes_nothing(study):
    """Neither the lock of a cluster run that goes on without its login, nor what its jobs left."""
    lock = study / ".snakemake/capgap.lock"
    lock.write_text("run-of-a-dead-login")
    output = f"{RESULTS}/law/law.json"
    mark = study / private.location(private.UNFINISHED, output)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text("{}")
    (study / ".snakemake/locks").mkdir(exist_ok=True)
    (study / ".snakemake/locks/0.input.lock").write_text("x")
    (study / RESULTS / ".half.123.tmp").mkdir()
    before = {k: v for k, v in snapshot(study.path).items() if not k.startswith(".snakemake/log")}
    for words in (["run", "-n"], ["run", "--dry-run"], ["run", "--summary"], ["plan"], ["verify"],
                  ["summary"], ["run", "--list"]):  # fmt: skip
        study.capgap(*words, check=False)
    after = {k: v for k, v in snapshot(study.path).items() if not k.startswith(".snakemake/log")}
    assert after == before


def test_a_plan_leaves_the_times_of_files_as_they_were(study):
    """Though Snakemake plans by times, and stops at files from the future."""
    os.utime(study / RESULTS / "law/law.json", (4e9, 4e9))  # by the clock of another machine
    times = {p: p.stat().st_mtime_ns for p in (study / RESULTS).rglob("*") if p.is_file()}
    study.capgap("run", "-n")
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_a_look_needs_no_lock(study):
    import fcntl

    with (study / ".snakemake/capgap.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "0 of" in study.capgap("run", "-n").stdout


def test_sharing_works_without_git(study, remote):
    """As in an archive of the repository."""
    shutil.rmtree(study / ".git")
    shutil.rmtree(study / RESULTS)
    shutil.rmtree(study / RECORDS)
    study.capgap("pull", "--models")
    study.capgap("verify")
    assert "0 objects were new" in study.capgap("push").stdout
    refused(study.capgap("save", check=False), "nothing was saved", "git init")
    study.capgap("push")


def test_password_in_an_address_is_not_printed(study):
    study.dvc("remote", "modify", "--local", "storage", "url", "webdav://ada:s3cret@127.0.0.1:9/x")
    for command in ("push", "pull"):
        result = study.capgap(command, check=False)
        assert result.returncode == 1
        assert "s3cret" not in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
