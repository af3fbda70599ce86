"""The wheel holds the whole workflow: a study runs in a folder that is no repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel installs."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: make setup")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", folder, REPOSITORY],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("capgap-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed, folder, *words):
    """A command of the installed package in a folder; what it printed."""
    command = [sys.executable, "-m", "capgap.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_a_study_of_ones_own_is_planned_anywhere_with_the_installed_package(installed, tmp_path):
    study = yaml.safe_load((REPOSITORY / "tests/tiny/config.yaml").read_text())
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "corpus").mkdir()
    for n in range(4):
        (tmp_path / f"corpus/{n}.txt").write_text(f"text number {n} " * 40)
    printed = run(installed, tmp_path, "run", "--study", "my.yaml", "-n")
    assert "prepare_corpus" in printed
    run(installed, tmp_path, "run", "--study", "my.yaml", "results/tiny/corpus/manifest.json")
    assert (tmp_path / "results/tiny/corpus/manifest.json").is_file()


def test_every_shipped_study_and_profile_is_in_the_wheel(installed):
    for folder in ("rules", "profiles", "configs", "envs"):
        files = {p.relative_to(REPOSITORY) for p in (REPOSITORY / folder).rglob("*") if p.is_file()}
        shipped = {p for p in files if "__pycache__" not in p.parts}
        assert shipped
        assert all((installed / "capgap/graph" / p).is_file() for p in shipped)


def test_a_shipped_profile_is_found_from_any_folder(installed, tmp_path):
    code = (
        "from pathlib import Path; from capgap.workflow.pending import snakemake_command as command;"
        "print(*command(Path('x.yaml'), ['--profile', 'profiles/slurm', '--profile=profiles/slurm']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    profile = str(installed / "capgap/graph/profiles/slurm")
    assert f"--profile {profile} --profile={profile}" in result.stdout, result.stderr


def test_a_study_is_started_and_planned_anywhere_with_the_installed_package(installed, tmp_path):
    (tmp_path / "texts").mkdir()
    for n in range(20):
        (tmp_path / f"texts/{n}.txt").write_text(f"text number {n} says more. " * 500)
    run(installed, tmp_path, "init", "mine", "--text", "texts", "--student", "8k")
    assert "pretrain_teacher" in run(installed, tmp_path / "mine", "plan")
