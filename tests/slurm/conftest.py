"""The test cluster, and studies with the repository of tests/workflow."""

import sys
from pathlib import Path

import pytest
from cluster import cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from processes import alive
from repository import RESULTS, write_study


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """A study whose text is packed, made without Slurm: jobs there cost half a minute each."""
    repository = write_study(tmp_path_factory.mktemp("packed") / "study")
    repository.commit("settings and source")
    repository.capgap("run", "--cores", "2", f"{RESULTS}/tokens/manifest.json")
    return repository


@pytest.fixture
def study(packed, tmp_path):
    copy = packed.copy(tmp_path / "study")
    yield copy
    for process in alive(copy):  # without cgroups a node that goes down may leave some
        process.kill()
