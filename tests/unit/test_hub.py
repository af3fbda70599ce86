"""The hub's real client against a local server with the hub's protocol."""

import io
import json
import re
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from hub_server import hub_server
from huggingface_hub import HfApi, constants

from capgap.commands import pin
from capgap.config import HubCorpus, HubText
from capgap.config.study_file import load_study
from capgap.data.hub import download_model, upload_model
from capgap.data.sources import documents, hub_texts
from capgap.errors import CapgapError

NAME = "owner/model"
WEIGHTS = "model.safetensors"
ABSENT = "c" * 40


def weights(seed: int) -> bytes:
    return safetensors.torch.save({"w": torch.randn(100, generator=torch.manual_seed(seed))})


def files(seed: int = 0) -> dict[str, bytes]:
    return {
        "config.json": json.dumps({"seed": seed}).encode(),
        "tokenizer.json": b"{}" * 100,
        WEIGHTS: weights(seed),
        "pytorch_model.bin": b"pickled",
        "modeling.py": b"raise SystemExit",
        "onnx/config.json": b"{}",
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server that is the hub, an empty cache, and no token."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def offline(monkeypatch):
    """Function that cuts the network off."""

    def cut():
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    return cut


@pytest.fixture
def repo(hub):
    return hub.repo(NAME)


def test_a_pinned_commit_stays_when_its_branch_moves(hub, repo):
    old = repo.commit(files(1))
    assert pin.check("model", NAME, old, api(hub)) == (True, f"{NAME}: {old} is main")
    new = repo.commit(files(2))
    folder = download_model(NAME, old)
    assert (folder / WEIGHTS).read_bytes() == weights(1)
    assert (download_model(NAME, "main") / WEIGHTS).read_bytes() == weights(2)
    there, sentence = pin.check("model", NAME, old, api(hub))
    assert there
    assert sentence == f"{NAME}: {old} exists; main has moved on to {new}"
    arrived = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert arrived == {"config.json", "tokenizer.json", WEIGHTS}
    for name in ("pytorch_model.bin", "modeling.py", "onnx/config.json"):
        assert hub.downloads(name) == []


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_truncated_file_is_refused(hub, repo, name):
    commit = repo.commit(files())
    hub.cut.add(name)
    with pytest.raises(
        CapgapError, match=rf"{NAME} at {commit} cannot be fetched: Consistency check"
    ):
        download_model(NAME, commit)
    hub.cut.clear()
    assert (download_model(NAME, commit) / name).read_bytes() == files()[name]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_damaged_file_is_refused_and_fetched_again(hub, repo, name):
    commit = repo.commit(files())
    hub.flipped.add(name)
    with pytest.raises(CapgapError, match=rf"{name} arrived damaged .* removed from the cache"):
        download_model(NAME, commit)
    hub.flipped.clear()
    assert (download_model(NAME, commit) / name).read_bytes() == files()[name]
    assert hub.downloads("tokenizer.json") == [None]
    assert hub.downloads(name) == [None, None]


def test_a_file_damaged_in_the_cache_is_refused_without_a_network(hub, repo, offline):
    commit = repo.commit(files())
    path = (download_model(NAME, commit) / WEIGHTS).resolve()
    offline()
    assert download_model(NAME, commit)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CapgapError, match=f"{WEIGHTS} arrived damaged"):
        download_model(NAME, commit)


def test_a_file_that_cannot_be_checked_is_refused(hub, repo):
    commit = repo.commit(files())
    path = download_model(NAME, commit) / WEIGHTS
    path.unlink()
    path.write_bytes(weights(0))  # as where links are not possible
    with pytest.raises(
        CapgapError, match=f"{WEIGHTS} is not a link to a file named after its hash"
    ):
        download_model(NAME, commit)


def test_a_broken_connection_is_resumed_where_it_broke(hub, repo, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)  # kept when a connection breaks
    commit = repo.commit(files())
    hub.dropped[WEIGHTS] = 1
    assert (download_model(NAME, commit) / WEIGHTS).read_bytes() == weights(0)
    assert hub.downloads(WEIGHTS) == [None, f"bytes={len(weights(0)) // 2 // 64 * 64}-"]


def test_a_download_that_was_given_up_keeps_whole_files(hub, repo, monkeypatch):
    shards = {f"model-{i}.safetensors": weights(i) for i in (1, 2)}
    commit = repo.commit(files() | shards)
    hub.cut.add("model-2.safetensors")
    with pytest.raises(CapgapError, match="files that arrived whole are kept"):
        download_model(NAME, commit)
    hub.cut.clear()
    hub.asked.clear()
    folder = download_model(NAME, commit)
    assert (folder / "model-1.safetensors").read_bytes() == weights(1)
    assert (folder / "model-2.safetensors").read_bytes() == weights(2)
    assert hub.downloads("model-2.safetensors") == [None]
    assert hub.downloads("model-1.safetensors") == []


def test_a_gated_model_names_its_licence_and_where_the_token_goes(hub, tmp_path, monkeypatch):
    commit = hub.repo("meta/gated", licence="llama2").commit(files())

    def refused(match):
        with pytest.raises(CapgapError, match=match):
            download_model("meta/gated", commit)

    page = re.escape(f"{hub.address}/meta/gated")
    refused(rf"gated: log in on {page}, accept its licence \(llama2\).* or in the .* HF_TOKEN")
    refused(re.escape(f"'hf auth login', which keeps it in {tmp_path / 'token'}"))
    there, sentence = pin.check("model", "meta/gated", commit, api(hub))
    assert not there
    assert "accept its licence (llama2)" in sentence
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    refused("is gated")
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    assert (download_model("meta/gated", commit) / WEIGHTS).read_bytes() == weights(0)
    assert pin.check("model", "meta/gated", commit, HfApi(endpoint=hub.address))[0]


def test_without_a_network_the_cache_is_used(hub, repo, offline):
    commit, other = repo.commit(files(1)), repo.commit(files(2))
    folder = download_model(NAME, commit)
    hub.asked.clear()
    offline()
    assert download_model(NAME, commit) == folder
    assert hub.asked == []
    with pytest.raises(CapgapError, match=f"{other} is neither in the cache nor reachable"):
        download_model(NAME, other)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CapgapError, match="the cache holds a part of it"):
        download_model(NAME, commit)


def test_a_model_with_pickled_weights_alone_is_refused(hub, repo):
    pickled = {name: data for name, data in files().items() if name != WEIGHTS}
    with pytest.raises(CapgapError, match="no safetensors weights, and pickled ones are not"):
        download_model(NAME, repo.commit(pickled))
    assert hub.downloads("pytorch_model.bin") == []


def test_what_is_not_there_is_named(hub, repo):
    main = repo.commit(files())
    with pytest.raises(CapgapError, match=f"{NAME} has no commit {ABSENT}"):
        download_model(NAME, ABSENT)
    with pytest.raises(CapgapError, match="no/model is not on the hub, or private"):
        download_model("no/model", main)
    with pytest.raises(CapgapError, match="an id is owner/name"):
        download_model("a/b/c", main)
    assert pin.check("model", NAME, ABSENT, api(hub)) == (
        False, f"{NAME}: no commit {ABSENT}; main is {main}",
    )  # fmt: skip
    assert pin.check("model", "no/model", main, api(hub))[1].endswith("not on the hub, or private")
    with pytest.raises(CapgapError, match="the hub cannot be reached"):
        pin.check("model", NAME, main, HfApi(endpoint="http://127.0.0.1:9", token=False))


# --- a model put there ----------------------------------------------------------------------------


@pytest.fixture
def writer(hub, tmp_path, monkeypatch):
    """Function that pushes a folder with some files, as somebody who may."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose server is another

    def push(files, name="owner/small", token=hub.writer, private=False):
        folder = tmp_path / "out"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file, data in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(data)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        return upload_model(folder, name, private=private, message="A study")

    return push


def test_a_folder_is_pushed_whole_and_again(hub, writer):
    first = files(1) | {"README.md": b"---\nlicense: mit\n---\n", "small-f32.gguf": b"GGUF" * 9}
    commit = writer(first)
    repo = hub.repos["model", "owner/small"]
    assert repo.main == commit
    assert {k: v for k, v in repo.commits[commit].items() if k != ".gitattributes"} == first
    assert hub.messages == ["A study"]
    assert hub.private == set()
    second = files(2) | {"README.md": b"---\nlicense: mit\n---\n"}
    repo.commit(repo.commits[commit] | {"notes.txt": b"of the owner", "old.safetensors": b"x"})
    held = repo.commits[writer(second)]
    assert held[WEIGHTS] == weights(2)
    assert held["notes.txt"] == b"of the owner"
    assert not {"small-f32.gguf", "old.safetensors"} & set(held)
    assert (download_model("owner/small", repo.main) / WEIGHTS).read_bytes() == weights(2)


def test_a_private_repository(hub, writer):
    writer(files(1), private=True)
    assert hub.private == {"owner/small"}


def test_who_may_not_write_is_told_what_to_do(hub, writer, offline):
    with pytest.raises(
        CapgapError, match="--push: no token, so nothing can be put into owner/small"
    ):
        writer(files(1), token=None)
    with pytest.raises(
        CapgapError, match=r"was not updated: the token may not write there .*hf upload"
    ):
        writer(files(1), token="hf_of_someone_else")
    assert ("model", "owner/small") not in hub.repos
    with pytest.raises(CapgapError, match="a/b/c is not an id of the hub; an id is USER/REPO"):
        writer(files(1), name="a/b/c")
    offline()
    with pytest.raises(CapgapError, match="owner/small was not updated: .*offline"):
        writer(files(1))


# --- data sets ------------------------------------------------------------------------------------

CARD = b"""---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train-*}
  - {split: test, path: plain/test-*}
- config_name: other
  data_files:
  - {split: train, path: other/train-*}
---
"""


def rows(*texts: str) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    return file.getvalue()


@pytest.fixture
def texts(hub, tmp_path, monkeypatch):
    """A data set of two configurations."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return hub.repo("owner/text", "dataset")


def text_files(mark: str) -> dict[str, bytes]:
    return {
        "README.md": CARD,
        "plain/train-0.parquet": rows(*(f"{mark} {i}" for i in range(10))),
        "plain/test-0.parquet": rows("line 1\n", "line 2\n"),
        "other/train-0.parquet": rows("other"),
    }


def test_a_data_set_is_read_at_its_commit(hub, texts):
    old = texts.commit(text_files("old"))
    texts.commit(text_files("new"))
    asked = {"dataset": "owner/text", "revision": old, "name": "plain"}
    assert list(hub_texts(HubText(**asked, split="train[:30%]"))) == ["old 0", "old 1", "old 2"]
    assert list(hub_texts(HubText(**asked, split="test", joined=True))) == ["line 1\nline 2\n"]
    assert hub.downloads("other/train-0.parquet") == []
    names = [name for name, _ in documents(HubCorpus(source="hub", **asked))]
    assert names[:2] == ["000000000000", "000000000001"]


def test_a_data_set_of_json_lines(texts):
    lines = "".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(3)).encode()
    commit = texts.commit({"train.jsonl": lines})
    text = HubText(dataset="owner/text", revision=commit, text_column="body")
    assert list(hub_texts(text)) == ["text 0", "text 1", "text 2"]


def test_a_damaged_data_set_is_refused(hub, texts):
    text = HubText(dataset="owner/text", revision=texts.commit(text_files("a")), name="plain")
    hub.flipped.add("plain/train-0.parquet")
    with pytest.raises(CapgapError, match=r"plain/train-0\.parquet arrived damaged"):
        list(hub_texts(text))
    hub.flipped.clear()
    hub.cut.add("plain/train-0.parquet")
    with pytest.raises(CapgapError, match="cannot be fetched: Consistency check"):
        list(hub_texts(text))
    hub.cut.clear()
    assert next(hub_texts(text)) == "a 0"


def test_a_data_set_once_read_is_there_without_a_network(hub, texts, offline, monkeypatch):
    import datasets

    text = HubText(dataset="owner/text", revision=texts.commit(text_files("a")), name="plain")
    before = list(hub_texts(text))
    offline()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert list(hub_texts(text)) == before
    assert hub.asked == []


def test_a_data_set_that_needs_a_script_is_refused_with_what_to_do(texts):
    commit = texts.commit({"README.md": b"", "text.py": b"raise SystemExit('this ran')"})
    text = HubText(dataset="owner/text", revision=commit)
    with pytest.raises(CapgapError, match="a Python script that loads data, which is not run; pin"):
        list(hub_texts(text))


def test_a_gated_data_set_names_its_licence(hub, texts):
    texts.licence = "cc-by-4.0"
    text = HubText(dataset="owner/text", revision=texts.commit(text_files("a")), name="plain")
    page = re.escape(f"{hub.address}/datasets/owner/text")
    with pytest.raises(CapgapError, match=rf"{page}, accept its licence \(cc-by-4\.0\)"):
        list(hub_texts(text))


def test_models_and_data_sets_of_a_study_are_listed_once():
    found = pin.pins(load_study("configs/gpt2.yaml"))
    assert len(found) == len(set(found)) == 6
    assert [kind for kind, *_ in found] == ["model"] * 4 + ["dataset"] * 2


def api(hub) -> HfApi:
    return HfApi(endpoint=hub.address, token=False)
