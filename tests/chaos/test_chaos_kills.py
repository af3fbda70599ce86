"""Commands killed anywhere: what stood there stays or is replaced whole, and the next one works."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos_tool import Table, draw_of, sizes
from chaos_world import COMMANDS

from capgap.records.artifacts import collect_temporaries, differences

# Dies at the n-th call of the system that moves, syncs, makes or removes something.
DYING = """
import os, runpy, shutil, sys
left = int(sys.argv.pop(1))
def dying(owner, name):
    real = getattr(owner, name)
    def call(*given, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*given, **options)
    setattr(owner, name, call)
module = sys.argv[1]
sys.argv = [module, *sys.argv[2:]]
import ctypes
for owner, name in [(os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"),
                    (os, "unlink"), (ctypes, "CDLL")]:
    dying(owner, name)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
SMALL = 3


def contents(folder):
    """All results by path; scratch and temporary files are not among them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "scratch" not in path.relative_to(folder).parts
    }


@sizes(SMALL, 100)
def test_a_killed_command_leaves_the_old_or_the_new_and_works_again(made, world, trials):
    draw, table, expected = draw_of(trials, SMALL), Table("kill"), contents(made)
    environment = {**os.environ, "CAPGAP_CHECKPOINT_SECONDS": "0"}
    names = ["pack", "tokenizer", "score"] if trials == SMALL else list(COMMANDS)
    for trial in range(trials):
        name = names[trial % len(names)]
        words = [f"capgap.stages.{name}", *COMMANDS[name]]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment}
        if trial % 3 == 2 and trials > SMALL:  # at any moment
            process = subprocess.Popen([sys.executable, "-m", *words], **options)
            time.sleep(draw.uniform(1, 8))
            process.kill()
            process.communicate()
        else:  # in a window
            moment = str(draw.randrange(25))
            subprocess.run([sys.executable, "-c", DYING, moment, *words], **options)
        for manifest in world.rglob("manifest.json"):
            if ".tmp" not in str(manifest) and "scratch" not in manifest.parts:
                damage = differences(manifest)
                table.add(name, "lost" if damage else "whole", str(damage))
        again = subprocess.run([sys.executable, "-m", *words], **options, text=True)
        collect_temporaries(world)
        if again.returncode:
            table.add(name, "lost", again.stdout)
            shutil.rmtree(world)
            shutil.copytree(made, world)
        elif contents(world) != expected:
            table.add(name, "lost", "other bytes than without a kill")
        else:
            table.add(name, "same bytes after a rerun")
        assert not [p for p in Path(world).rglob(".*.tmp") if p.is_dir()]
    table.finish(trials, SMALL)


@pytest.mark.parametrize("moment", range(2))
def test_the_killer_kills(world, moment):
    """Otherwise the test above would pass for nothing."""
    words = "capgap.stages.pack --corpus corpus --tokenizer tok --out other".split()
    result = subprocess.run([sys.executable, "-c", DYING, str(moment), *words])
    assert result.returncode == 9
    assert not (world / "other").exists()
