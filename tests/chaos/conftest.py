"""A small world of artifacts, made once by the stages themselves."""

import shutil

import pytest

from capgap.stages import corpus, distill, evaluate, pack, pretrain, prune, score, tokenizer

WORDS = "the state of the union is strong and the people are free and the law is just ".split()
SHORT = ["--sequence-length", "16", "--batch-tokens", "64", "--validations", "1"]
PLAN = [
    (corpus, "--source files --pattern texts/*.txt --out corpus"),
    (tokenizer, "--source train --vocab-size 270 --source-folder corpus --out tok"),
    (pack, "--corpus corpus --tokenizer tok --out tokens"),
    (pretrain, "--name t --token-streams tokens --tokenizer tok --layers 2 --hidden 16 --heads 2 "
     f"--intermediate 24 --tokens 640 {' '.join(SHORT)} --out t"),
    (score, "--model t/model --tokens tokens --out scores"),
    (prune, "t/model --importance scores --params 3k --out init"),
    (evaluate, "--model init --token-streams tokens --sequence-length 16 --out metrics.json"),
    (distill, "--init init --teacher t/model --token-streams tokens --tokens 320 "
     f"{' '.join(SHORT)} --out student"),
]  # fmt: skip
COMMANDS = {module.__name__.rpartition(".")[2]: line.split() for module, line in PLAN}
MAINS = {module.__name__.rpartition(".")[2]: module.main for module, _ in PLAN}


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
