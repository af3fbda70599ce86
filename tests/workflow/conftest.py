"""One small finished study, made once a session by the real rules; each test works on a copy."""

import shutil

import pytest
from repository import SECRET, Repository, write_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Repository:
    """The author's repository: run, saved, committed and pushed. Not to be changed."""
    repository = write_study(tmp_path_factory.mktemp("author") / "study")
    repository.commit("settings and source")
    repository.capgap("run", "--cores", "2", **SECRET)
    repository.capgap("save", **SECRET)
    repository.commit("results")
    repository.capgap("push", **SECRET)
    return repository


@pytest.fixture
def study(finished, tmp_path) -> Repository:
    """A copy of the finished repository to work in."""
    return finished.copy(tmp_path / "study")


@pytest.fixture
def remote(study, finished, tmp_path):
    """Folder of the study's remote: a copy, which somebody else can write."""
    folder = shutil.copytree(finished.path.parent / "storage", tmp_path / "storage")
    study.dvc("remote", "modify", "--local", "storage", "url", folder)
    return folder
