"""Disks that fill up while a study is pulled, pushed, saved or exported: one message, nothing lost."""

import os
import shutil

import pytest
from chaos_tool import Table, draw_of, mount, mounted, sizes
from forked import forked, load
from repository import RESULTS
from test_chaos_commands import COMMANDS, stored

SMALL = 2
ROOM_KB, INODES = 200_000, 50_000
NAMES = ["save"]


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    yield from mounted(tmp_path / "disk", f"size={ROOM_KB}k,nr_inodes={INODES}")


@sizes(SMALL, 6)
def test_a_disk_that_fills_while_sharing_loses_nothing(finished, disk, tmp_path, trials):
    load(NAMES)
    draw, table = draw_of(trials, SMALL), Table("full disk while sharing")
    expected = finished.contents()
    objects = stored(finished.path.parent / "storage")
    for trial in range(trials):
        name = NAMES[trial % len(NAMES)]
        for path in disk.iterdir():
            shutil.rmtree(path)
        study = finished.copy(disk / "study")
        home = tmp_path / "elsewhere"  # the counter and what is printed
        home.mkdir(exist_ok=True)
        shutil.copytree(finished.path.parent / "storage", disk / "storage")
        local = study / ".dvc/config.local"
        text = local.read_text().replace(str(finished.path.parent), str(disk))
        local.write_text(text)
        if name == "push":
            shutil.rmtree(disk / "storage")
            (disk / "storage").mkdir()
        else:
            shutil.rmtree(study / ".dvc/cache")
        if name == "pull":
            shutil.rmtree(study / RESULTS)
        used = shutil.disk_usage(disk).used // 1024
        counts = os.statvfs(disk)
        files = counts.f_files - counts.f_ffree
        kind = "inodes"
        limit = (
            f"size={used + draw.choice([0, 16, 80, 200, 800])}k,nr_inodes={INODES}"
            if kind == "bytes"
            else f"size={ROOM_KB}k,nr_inodes={files + draw.randrange(1, 200)}"
        )
        assert mount(disk, "remount", limit).returncode == 0
        first = forked(study, COMMANDS[name], home=home)
        row = f"{name}, {kind}"
        table.add(row, first.outcome, first.text[-600:])
        damaged = name != "pull" and study.contents() != expected
        table.add(row, "lost" if damaged else "nothing lost")
        assert mount(disk, "remount", f"size={ROOM_KB}k,nr_inodes={INODES}").returncode == 0
        again = forked(study, COMMANDS[name], home=home)
        done = again.outcome == "done" or (name == "export" and first.outcome == "done")
        whole = study.contents() == expected and stored(disk / "storage") == objects
        table.add(row, "works with space" if done and whole else "lost", again.text[-600:])
    table.finish(trials, SMALL)
