"""Folders appear whole or not at all and are checked before use."""

import json

import pytest

from capgap.errors import CapgapError
from capgap.records.artifacts import differences, open_folder, publish_file, publish_folder


def make(path, text="hello"):
    with publish_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)
    return path


def test_manifest_lists_every_file_and_may_name_the_folder(tmp_path):
    folder = make(tmp_path / "x")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["sub/a.txt"]["bytes"] == 5
    assert open_folder(folder / "manifest.json") == folder == open_folder(folder)
    assert differences(folder) == []


def test_publishing_to_the_manifest_replaces_the_folder(tmp_path):
    make(tmp_path / "x", "old")
    make(tmp_path / "x" / "manifest.json", "new")
    assert (tmp_path / "x" / "sub" / "a.txt").read_text() == "new"


def test_a_failed_write_leaves_the_old_folder_and_nothing_else(tmp_path):
    folder = make(tmp_path / "x", "old")
    with pytest.raises(RuntimeError), publish_folder(folder) as target:
        (target / "half.txt").write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert differences(folder) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_refused_by_name(tmp_path, damage):
    folder = make(tmp_path / "x")
    path = folder / "sub" / "a.txt"
    if damage == "flip":
        path.write_text("hellp")
    elif damage == "truncate":
        path.write_text("hell")
    else:
        path.unlink()
    with pytest.raises(CapgapError, match=r"sub/a\.txt"):
        open_folder(folder)


def test_full_disk_is_one_message(tmp_path):
    with pytest.raises(CapgapError, match="no space left"), publish_file(tmp_path / "f") as path:
        path.write_text("half")
        with open("/dev/full", "w") as full:
            full.write("x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_someone_else_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    refused = pytest.raises(
        CapgapError, match=r"letter\.txt, which no manifest\.json of capgap names"
    )
    with refused, publish_folder(tmp_path / "home"):
        raise AssertionError("nothing is computed first")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    monkeypatch.setenv("CAPGAP_UNDER_WORKFLOW", "1")  # Snakemake deletes the manifest it declares
    with publish_folder(tmp_path / "home") as folder:
        (folder / "new.txt").write_text("x")
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["manifest.json", "new.txt"]
