"""Disks that fill up, by bytes and by inodes: one message, nothing lost, and the same command works
once there is space."""

import os
import shutil

import pytest
from chaos_tool import Table, draw_of, mount, mounted, outcome, sizes
from chaos_world import COMMANDS, MAINS

from capgap.records.artifacts import differences

SMALL = 8
ROOM_KB, INODES = 20_000, 10_000
ROOM = f"size={ROOM_KB}k,nr_inodes={INODES}"


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    yield from mounted(tmp_path / "disk", ROOM)


@sizes(SMALL, 100)
def test_a_full_disk_is_one_message_and_nothing_is_lost(world, disk, trials):
    draw, table = draw_of(trials, SMALL), Table("full disk")
    names = ["pack", "tokenizer", "score", "prune", "evaluate"]
    names += ["pretrain", "distill"] if trials > SMALL else []
    for trial in range(trials):
        name = names[trial % len(names)]
        words = [*COMMANDS[name][:-1], str(disk / "out")]
        if name in ("pretrain", "distill"):
            words += ["--scratch", str(disk / "scratch"), "--checkpoint-seconds", "0"]
        kind = draw.choice(["bytes", "inodes"])
        old = trial % 2 and outcome(lambda n=name, w=words: MAINS[n](w))
        used = shutil.disk_usage(disk).used // 1024
        counts = os.statvfs(disk)
        files = counts.f_files - counts.f_ffree
        limit = (
            f"size={used + draw.choice([4, 8, 16, 40, 80, 200])}k,nr_inodes={INODES}"
            if kind == "bytes"
            else f"size={ROOM_KB}k,nr_inodes={files + draw.randrange(1, 9)}"
        )
        assert mount(disk, "remount", limit).returncode == 0
        result = outcome(lambda n=name, w=words: MAINS[n](w))
        damaged = [d for m in disk.rglob("manifest.json")
                   if "scratch" not in m.parts for d in differences(m)]  # fmt: skip
        if damaged or (old == "done" and not (disk / "out").exists()):
            result = f"lost: {damaged}"
        table.add(f"{name}, {kind}", result)
        assert mount(disk, "remount", ROOM).returncode == 0
        again = outcome(lambda n=name, w=words: MAINS[n](w))
        table.add(f"{name}, {kind}", "works with space" if again == "done" else f"lost: {again}")
        leftovers = [p.name for p in disk.iterdir() if p.name not in ("out", "scratch")]
        assert leftovers == []
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    table.finish(trials, SMALL)
