"""Where results may be written, in which mode, and what a kill at each moment leaves."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capgap.errors import CapgapError
from capgap.records import artifacts
from capgap.records.artifacts import (
    check_file,
    check_filled,
    check_folder,
    collect_temporaries,
    differences,
    intact,
    open_folder,
    publish_file,
    publish_folder,
    write_text,
)


def make(path, text="new", **options):
    with publish_folder(path, **options) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)


def text_in(path):
    return (path / "sub" / "a.txt").read_text()


def test_a_link_to_a_folder_is_followed_and_kept(tmp_path):
    (tmp_path / "disk").mkdir()
    make(tmp_path / "disk/real", "old")
    (tmp_path / "link").symlink_to("disk/real")
    make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert text_in(tmp_path / "disk/real") == "new"
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["real"]
    (tmp_path / "file-link").symlink_to("disk/real.json")
    (tmp_path / "disk/real.json").write_text("old")
    write_text(tmp_path / "file-link", "new")
    assert (tmp_path / "file-link").is_symlink()
    assert (tmp_path / "disk/real.json").read_text() == "new"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system")
def test_a_link_to_a_folder_on_another_disk(tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (tmp_path / "link").symlink_to(other + "/out")
        os.mkdir(other + "/out")
        make(tmp_path / "link")
        assert sorted(os.listdir(other)) == ["out"]
        assert intact(tmp_path / "link")


@pytest.mark.parametrize("out", [".", "..", "../here", "inside/.."])
def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch, out):
    (tmp_path / "here").mkdir()
    make(tmp_path / "here", "old")
    (tmp_path / "here/inside").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CapgapError, match="the folder that the command runs in"):
        check_folder(out)
    with pytest.raises(CapgapError, match="is a folder, and a file is to be written"):
        check_file(out)
    assert text_in(tmp_path / "here") == "old"


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for check in (check_folder, check_file, lambda out: check_filled(out, ["model"], ["a.json"])):
        for name, message in [
            ("dangling", "is a link to nowhere, which does not exist"),
            ("loop", "is a link to loop"),
            ("file/below", "is not a folder"),
            ("n" * 256, "longer than 255 bytes"),
        ]:
            with pytest.raises(CapgapError, match=message):
                check(tmp_path / name)
    with pytest.raises(CapgapError, match="is a file"):
        check_folder(tmp_path / "file")
    with pytest.raises(CapgapError, match="is a file"):
        check_filled(tmp_path / "file", [], [])
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(CapgapError, match="not a regular file"):
            check_file(path)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_place_without_the_right_to_write_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CapgapError, match="cannot be written to"):
        check_folder(tmp_path / "closed/out")


def test_files_that_a_user_added_are_not_lost(tmp_path):
    make(tmp_path / "model", "old")
    (tmp_path / "model/notes.txt").write_text("mine")
    with pytest.raises(CapgapError, match=r"has notes\.txt"):
        check_folder(tmp_path / "model")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/manifest.json").write_text('{"name": "of a browser extension"}')
    (tmp_path / "app/icon.txt").write_text("mine")
    with pytest.raises(CapgapError, match=r"has icon\.txt"):
        check_folder(tmp_path / "app")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_are_those_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with publish_folder(tmp_path / "x") as folder:
            (folder / "sub").mkdir(mode=0o700)
            for name in ("a", "sub/b"):  # as safetensors does
                os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o600))
        with publish_file(tmp_path / "f") as path:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    files = {name: modes.pop(name) for name in ("a", "b", "f", "manifest.json")}
    assert set(files.values()) == {0o666 & ~mask}
    assert set(modes.values()) == {0o777 & ~mask}


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"files": null}', '{"files"', "\xff"])
def test_a_manifest_that_is_no_manifest_is_not_intact_and_is_replaced(tmp_path, text):
    folder = tmp_path / "step"
    make(folder, "old")
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    assert not intact(folder)
    (found,) = differences(folder)
    assert found.startswith(f"{folder}/manifest.json")
    with pytest.raises(CapgapError, match="is damaged|not UTF-8 text"):
        open_folder(folder)
    make(folder, ours=True)
    assert intact(folder)
    assert text_in(folder) == "new"


def test_a_manifest_may_not_name_what_lies_outside(tmp_path):
    make(tmp_path / "x")
    text = (tmp_path / "x/manifest.json").read_text()
    (tmp_path / "x/manifest.json").write_text(text.replace("sub/a.txt", "../a.txt"))
    (found,) = differences(tmp_path / "x")
    assert "is damaged: it names ../a.txt, which is outside its folder" in found


KILL = """
import ctypes, os, shutil, sys
from capgap.records.artifacts import publish_folder
fall_back, out, left = sys.argv[1] == "1", sys.argv[2], int(sys.argv[3])
def dying(name):
    real = getattr(owner, name)
    def call(*given, **options):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return real(*given, **options)
    return call
for owner, name in [(os, "rename"), (os, "replace"), (ctypes, "CDLL"), (shutil, "rmtree"),
                    (os, "fsync"), (os, "umask")]:
    setattr(owner, name, dying(name))
if fall_back:
    ctypes.CDLL = lambda *_, **__: object()  # a C library without renameat2
with publish_folder(out) as folder:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("new")
"""


@pytest.mark.parametrize("fall_back", [False, True], ids=["exchange", "two renames"])
def test_a_kill_at_every_system_call_leaves_the_old_or_the_new(tmp_path, fall_back):
    out, seen, code = tmp_path / "x", set(), 9
    for moment in range(40):
        make(out, "old")
        command = [sys.executable, "-c", KILL, str(int(fall_back)), str(out), str(moment)]
        code = subprocess.run(command).returncode
        assert differences(open_folder(out)) == []
        seen.add(text_in(out))
        if code == 0:
            break
    assert code == 0
    assert seen == {"old", "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_killed_writers_folder_is_collected_and_a_living_ones_is_not(tmp_path):
    dead = [sys.executable, "-c", KILL, "0", str(tmp_path / "dead"), "0"]
    assert subprocess.run(dead).returncode == 9
    (tmp_path / ".torn.tmp").mkdir()
    with publish_folder(tmp_path / "alive") as folder:
        (folder / "a").write_text("x")
        found = {p.name for p in collect_temporaries(tmp_path)}
    assert found == {".dead.tmp", ".torn.tmp"}
    assert [p.name for p in tmp_path.iterdir()] == ["alive"]
    assert intact(tmp_path / "alive")


def test_collecting_puts_back_what_a_kill_between_two_renames_moved(tmp_path):
    make(tmp_path / "x", "old")
    temporary = tmp_path / ".x.tmp"
    temporary.mkdir()
    (temporary / ".lock").touch()
    (tmp_path / "x").rename(temporary / "old")
    collect_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert text_in(tmp_path / "x") == "old"


def test_everything_is_on_the_disk_before_it_is_in_place(tmp_path, monkeypatch):
    """Files, folders and manifest before the exchange; the folder above it after."""
    events, opened, real_open, real_replace = [], {}, os.open, os.replace

    def opening(path, *arguments, **options):
        number = real_open(path, *arguments, **options)
        opened[number] = Path(path).name
        return number

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", lambda number: events.append(opened[number]))
    monkeypatch.setattr(os, "replace", lambda *ends: (events.append("put"), real_replace(*ends)))
    make(tmp_path / "x")
    put = events.index("put")
    assert set(events[:put]) == {"sub", "a.txt", "manifest.json", "new"}
    assert events[put - 1] == "new"
    assert events[put + 1 :] == [tmp_path.name]


def test_a_full_disk_is_seen_by_space_and_by_inodes(tmp_path, monkeypatch):
    found = os.statvfs(tmp_path)
    for full in ({"f_bavail": 0}, {"f_favail": 0, "f_files": 10}):
        fields = {n: getattr(found, n) for n in ("f_bavail", "f_frsize", "f_files", "f_favail")}
        monkeypatch.setattr(os, "statvfs", lambda _, f=fields | full: type("S", (), f))
        assert artifacts.disk_is_full(tmp_path / "x")
    monkeypatch.undo()
    assert artifacts.disk_is_full(tmp_path / "x", OSError(errno.EDQUOT, "quota"))


def test_long_names_have_a_temporary_folder(tmp_path):
    make(tmp_path / ("n" * 255))
    assert [len(p.name) for p in tmp_path.iterdir()] == [255]
