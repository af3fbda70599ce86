"""A small world of artifacts, made once by the stages themselves."""

import shutil

import pytest
from chaos_world import COMMANDS, MAINS, WORDS


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with the outputs of all commands of `PLAN`. Not to be changed."""
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "texts").mkdir()
    for i in range(12):
        words = [WORDS[(i * j + j * j) % len(WORDS)] for j in range(300)]
        (folder / "texts" / f"{i}.txt").write_text(" ".join(words))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in COMMANDS.items():
            MAINS[name](words)
    return folder


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """A copy to work in, which is the working folder."""
    shutil.copytree(made, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"
