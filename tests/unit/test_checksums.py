"""The ledger names what was edited, added, removed or exchanged, of every kind of result."""

import json
import os
import shutil
from pathlib import Path

import pytest

from capgap.errors import CapgapError
from capgap.records import checksums
from capgap.records.artifacts import open_folder, publish_folder, write_text
from capgap.records.reading import Unreadable, digest

ROOT = "results/tiny"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Results of two jobs as the workflow publishes them, folded into the ledger."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPGAP_UNDER_WORKFLOW", "1")
    with publish_folder(f"{ROOT}/final/model") as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")
    write_text(f"{ROOT}/final/curve.csv", "step,loss\n1,2\n")
    checksums.fold(ROOT)
    assert checksums.check(ROOT).sentences() == []
    return tmp_path / ROOT


def rewrite_manifest(folder):
    """What somebody does who wants a changed folder to look whole."""
    entries = {
        p.name: {"bytes": p.stat().st_size, "sha256": digest(p)}
        for p in folder.iterdir()
        if p.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": entries}))


def edit_with_its_manifest(study):
    (study / "final/model/config.json").write_text('{"a": 1}')
    rewrite_manifest(study / "final/model")


def same_size_and_time(study):
    path = study / "final/curve.csv"
    status = path.stat()
    path.write_text(path.read_text().replace("2", "3"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


FAULTS = {
    "edited file": (
        lambda s: (s / "final/curve.csv").write_text("step,loss\n"),
        "damaged",
        "final/curve.csv has other contents than the job that made it has on record",
    ),
    "edited with size and time kept": (same_size_and_time, "damaged", "final/curve.csv has other"),
    "edited folder, manifest rewritten": (
        edit_with_its_manifest,
        "damaged",
        "final/model/manifest.json has other contents",
    ),
    "flipped weights": (
        lambda s: (s / "final/model/model.safetensors").write_bytes(b"Weights"),
        "damaged",
        "model.safetensors has other contents than its manifest says",
    ),
    "longer weights": (
        lambda s: (s / "final/model/model.safetensors").write_bytes(b"weights+"),
        "damaged",
        "model.safetensors has 8 bytes, not 7",
    ),
    "file added to a folder": (
        lambda s: (s / "final/model/hook.py").write_text("import os"),
        "damaged",
        "final/model/hook.py is not in the manifest of its folder",
    ),
    "stray file": (
        lambda s: (s / "notes.txt").write_text("x"),
        "unlisted",
        "notes.txt is not in the list of results",
    ),
    "file removed": (lambda s: (s / "final/curve.csv").unlink(), "missing", "curve.csv is missing"),
    "folder removed": (
        lambda s: shutil.rmtree(s / "final/model"),
        "missing",
        "final/model/manifest.json is missing",
    ),
    "all removed": (lambda s: shutil.rmtree(s / "final"), "missing", "curve.csv is missing"),
    "models left out": (
        lambda s: [p.unlink() for p in (s / "final/model").iterdir() if p.stem != "manifest"],
        "missing",
        "the 2 files of results/tiny/final/model are missing",
    ),
    "ledger removed": (
        lambda s: (s / "checksums.json").unlink(),
        "missing",
        "checksums.json, the checksums of all results, is missing",
    ),
    "ledger spoilt": (
        lambda s: (s / "checksums.json").write_text("[]"),
        "damaged",
        "checksums.json is damaged",
    ),
    "manifest spoilt": (
        lambda s: (s / "final/model/manifest.json").write_text("null"),
        "damaged",
        "final/model/manifest.json is damaged",
    ),
    "link in place of a file": (
        lambda s: (s / "final/curve.csv").rename(s.parent / "c")
        and (s / "final/curve.csv").symlink_to(s.parent / "c"),
        "damaged",
        "final/curve.csv is a link",
    ),
    "link to a folder": (
        lambda s: (s / "more").symlink_to("/etc"),
        "unlisted",
        "results/tiny/more is not in the list",
    ),
    "pipe in place of a file": (
        lambda s: (s / "final/curve.csv").unlink() or os.mkfifo(s / "final/curve.csv"),
        "damaged",
        "final/curve.csv is not a regular file",
    ),
}


@pytest.mark.parametrize(("change", "kind", "sentence"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_named_once(study, change, kind, sentence):
    change(study)
    found = checksums.check(ROOT)
    sentences = list(getattr(found, kind).values())
    assert any(sentence in line for line in sentences), found
    assert len([line for line in found.sentences() if sentence in line]) == 1


def test_droppings_of_systems_are_passed_over(study):
    for name in (".DS_Store", ".nfs0001", ".snakemake_timestamp", ".curve.csv.77.tmp"):
        (study / "final/model" / name).write_bytes(b"x")
    assert checksums.check(ROOT).sentences() == []
    open_folder(study / "final/model")


def test_folder_with_an_added_file_is_not_opened(study):
    (study / "final/model/adapter_config.json").write_text("{}")
    with pytest.raises(CapgapError, match=r"adapter_config.json is not in the manifest"):
        open_folder(study / "final/model")


def test_job_since_the_last_fold_counts_and_so_does_what_it_replaced(study):
    """Between the two a kill may come; Snakemake then calls the output unfinished."""
    write_text(f"{ROOT}/final/curve.csv", "step,loss\n5,6\n")
    assert checksums.check(ROOT).sentences() == []
    assert len(checksums.read(ROOT)[f"{ROOT}/final/curve.csv"]) == 2
    checksums.fold(ROOT)
    assert len(checksums.read(ROOT)[f"{ROOT}/final/curve.csv"]) == 1
    assert checksums.check(ROOT).sentences() == []


def test_ledger_is_the_same_bytes_whatever_the_order_of_jobs(study):
    before = (study / "checksums.json").read_bytes()
    (study / "checksums.json").unlink()
    write_text(f"{ROOT}/final/curve.csv", "step,loss\n1,2\n")
    with publish_folder(f"{ROOT}/final/model") as folder:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
    checksums.fold(ROOT)
    assert (study / "checksums.json").read_bytes() == before


def test_announced_file_that_a_kill_prevented_is_no_result(study):
    checksums.announce(f"{ROOT}/accepted.json", "0" * 64)
    assert checksums.check(ROOT).sentences() == []


def test_what_a_study_no_longer_has_is_forgotten_only_when_asked(study):
    (study / "final/curve.csv").unlink()
    checksums.fold(ROOT)
    assert list(checksums.check(ROOT).missing) == [f"{ROOT}/final/curve.csv"]
    checksums.fold(ROOT, forget=lambda output: True)
    assert checksums.check(ROOT).sentences() == []


def test_nothing_outside_of_results_is_entered(study, tmp_path):
    write_text("scratch/state.json", "{}")
    write_text(tmp_path / "report.json", "{}")
    write_text("results/../escape.json", "{}")
    assert [p for p in checksums.PENDING.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", "a\\b"])
def test_manifest_that_leaves_its_folder_is_damaged(study, name):
    manifest = study / "final/model/manifest.json"
    manifest.write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": "0" * 64}}}))
    with pytest.raises(Unreadable, match="damaged"):
        checksums.read_manifest(manifest)


def test_file_is_read_again_only_when_it_changed(study, monkeypatch):
    read = []

    def counting(path, algorithm="sha256"):
        read.append(str(path))
        return digest(path, algorithm)

    monkeypatch.setattr(checksums, "digest", counting)
    weights = f"{ROOT}/final/model/model.safetensors"
    for _ in range(2):
        known = checksums.KnownDigests()
        assert checksums.check(ROOT, known).sentences() == []
        known.save()
    assert read.count(weights) == 1
    Path(weights).write_bytes(b"Weights")
    assert weights in checksums.check(ROOT, checksums.KnownDigests()).damaged
