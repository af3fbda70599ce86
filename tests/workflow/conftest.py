"""One small finished study, made once a session by the real rules; each test works on a copy."""

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
