"""Other files in somebody's branch or folder run nothing and lead nowhere outside."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hostile import snapshot
from repository import RESULTS

from capgap.errors import CapgapError
from capgap.workflow.locks import only_run
from capgap.workflow.own_places import check_own_places
from capgap.workflow.pending import snakemake_command

TINY = Path(__file__).parents[1] / "tiny/config.yaml"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A Git repository without a commit, which is the working folder."""
    folder = tmp_path / "clone"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", folder], check=True)
    monkeypatch.chdir(folder)
    return folder


def track(*names):
    subprocess.run(["git", "add", "--force", "--", *names], check=True)


FILES = [
    ".dvc/config.local",  # bearer_token_command
    ".DVC/Config.Local",  # the same file on a disk that ignores case
    ".dvc/tmp/capgap-dvc.lock",  # what a killed save leaves; the next command puts it into dvc.lock
    ".dvc/tmp/site/repo/x/cache.db",  # pickles of DVC
    ".dvc/cache/files/md5/ab/c",
    ".snakemake/iocache/latest.pkl",
    ".snakemake/capgap.lock",
]


@pytest.mark.parametrize("name", FILES)
def test_files_of_one_machine_do_not_come_with_a_branch(clone, name):
    Path(name).parent.mkdir(parents=True)
    Path(name).write_text("x")
    check_own_places()  # made here
    track(name)
    with pytest.raises(CapgapError, match=f"git tracks {name}, a file"), only_run():
        pass
    with pytest.raises(CapgapError, match=f"git tracks {name}, a file"):
        snakemake_command(Path("config.yaml"), ["-n"])


LINKS = [
    *("dvc.lock", "results", "results/tiny", "scratch", "logs/fit", "timings", ".snakemake"),
    *(".snakemake/capgap.lock", ".dvc", ".dvc/tmp", ".dvc/config.local", "Results"),
]


@pytest.mark.parametrize("name", LINKS)
def test_links_in_places_that_are_written_do_not_come_with_a_branch(clone, name):
    outside = clone.parent / "outside"
    outside.mkdir()
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(outside)
    check_own_places()  # as a user does whose results lie on a larger disk
    track(name)
    with pytest.raises(CapgapError, match=f"git tracks {name}, a link"), only_run():
        pass
    assert list(outside.iterdir()) == []


def test_places_are_checked_in_a_folder_inside_a_repository(clone, monkeypatch):
    folder = clone / "studies/mine"
    (folder / ".snakemake").mkdir(parents=True)
    (folder / ".snakemake/x.pkl").write_text("x")
    track("studies/mine/.snakemake/x.pkl")
    check_own_places()
    monkeypatch.chdir(folder)
    with pytest.raises(CapgapError, match=r"git tracks \.snakemake/x\.pkl"):
        check_own_places()


def test_nothing_is_refused_without_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    check_own_places()
    monkeypatch.setenv("PATH", "")
    check_own_places()


def test_pull_does_not_write_through_a_link_that_was_committed(study):
    """The kept copy of dvc.lock would be put in place of a file outside, with whatever it holds."""
    victim = study.path.parent / "profile"
    victim.write_text("mine")
    (study / "dvc.lock").unlink()
    (study / "dvc.lock").symlink_to(victim)
    kept = study / ".dvc/tmp/capgap-dvc.lock"
    kept.write_text("touch ran")
    study.git("add", "--force", "dvc.lock", kept)
    study.git("commit", "-q", "-m", "a branch")
    before = snapshot(study / RESULTS)
    for words in (["pull", "--force"], ["push"], ["save"], ["run"], ["run", "-n"], ["plan"]):
        result = study.capgap(*words, check=False)
        assert result.returncode == 1, words
        assert "git tracks" in result.stderr
        assert "Traceback" not in result.stderr
        assert victim.read_text() == "mine"
    assert snapshot(study / RESULTS) == before


def test_settings_of_dvc_that_were_committed_run_nothing(study):
    local = study / ".dvc/config.local"
    local.write_text(
        "['remote \"storage\"']\n    url = webdav://127.0.0.1:9/x\n"
        f"    bearer_token_command = touch {study.path / 'ran'}\n"
    )
    study.git("add", "--force", local)
    result = study.capgap("pull", check=False)
    assert result.returncode == 1
    assert "git tracks .dvc/config.local" in result.stderr
    assert not (study / "ran").exists()


@pytest.fixture
def foreign(tmp_path):
    """A folder with a study file, and beside it code of every kind that a command might pick up."""
    study = yaml.safe_load(TINY.read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "corpus").mkdir()
    for n in range(4):
        (tmp_path / f"corpus/{n}.txt").write_text(f"text number {n} " * 400)
    runs = "__import__('pathlib').Path('ran').touch()"
    for name in ("yaml", "dvc", "torch", "snakemake", "sitecustomize", "usercustomize", "capgap"):
        (tmp_path / f"{name}.py").write_text(runs)
    for profile in ("default", "profiles/default", "workflow/profiles/default"):
        (tmp_path / profile).mkdir(parents=True)
        text = yaml.safe_dump({"cores": 1, "default-resources": [f"mem_mb={runs} or 1"]})
        (tmp_path / profile / "config.yaml").write_text(text)
    (tmp_path / "Snakefile").write_text(f"{runs}\nrule all:\n    shell: 'touch ran'\n")
    (tmp_path / "rules").mkdir()
    shutil.copy(tmp_path / "Snakefile", tmp_path / "rules/text.smk")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [["run", "-n"], ["run", f"{RESULTS}/corpus/manifest.json"], ["plan"], ["verify"],
     ["summary"], ["save"], ["pull"], ["push"], ["clean"]],
    ids=" ".join,
)  # fmt: skip
def test_code_beside_a_study_file_is_not_run(foreign, words):
    command = [Path(sys.executable).with_name("capgap"), *words]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    result = subprocess.run(
        command, cwd=foreign, env=environment, capture_output=True, text=True, timeout=600
    )
    assert not (foreign / "ran").exists()
    assert "Traceback" not in result.stderr
    if words[0] == "run":
        assert result.returncode == 0, result.stderr
        assert "this folder's Snakefile is not used" in result.stderr
