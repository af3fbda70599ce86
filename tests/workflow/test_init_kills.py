"""`capgap init`, killed before each of its calls that change the disk, leaves no half study."""

import shutil
import signal
from pathlib import Path

from forked import forked, load

from capgap.commands.new_folder import DVC_FILES
from capgap.config import Study
from capgap.config.study_file import load_study

WORDS = ["init", "new", "--text", "texts", "--student", "10k", "--tokens", "400k", "--yes"]


class Folder:
    """A folder in which commands run, as `forked` takes it."""

    def __init__(self, path):
        self.path = path
        (path / "texts").mkdir(parents=True)
        for n in range(20):
            (path / f"texts/{n}.txt").write_text(f"text number {n} says something else. " * 300)

    def environment(self):
        return {"HF_HUB_OFFLINE": "1"}


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_kill_at_any_step_leaves_whole_files_and_the_same_command_goes_on(tmp_path):
    load(["init"])
    trial = Folder(tmp_path / "trial")
    result = forked(trial, WORDS)
    assert result.outcome == "done", result.text
    expected = files(trial.path / "new")
    assert expected.keys() == {
        Path("config.yaml"),
        Path("README.md"),
        Path(".gitignore"),
        *DVC_FILES,
    }
    step, before = 0, None
    while True:
        shutil.rmtree(trial.path / "new", ignore_errors=True)
        step += 1
        killed = forked(trial, WORDS, moment=step)
        if killed.status == 0:
            break
        assert killed.status == -signal.SIGKILL, killed.text
        there = files(trial.path / "new")
        left = {n: text for n, text in there.items() if not n.parent.name.endswith(".tmp")}
        assert left.items() <= expected.items()  # what is there is whole
        if Path("config.yaml") in left:
            assert left.keys() == expected.keys()  # the study comes last
        elif there != before:
            again = forked(trial, WORDS)
            assert again.outcome == "done", again.text
            assert files(trial.path / "new") == expected
        before = there
    assert step > 2 * len(expected)
    assert isinstance(load_study(trial.path / "new/config.yaml"), Study)
