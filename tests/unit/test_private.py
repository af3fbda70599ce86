"""The private parts of Snakemake and DVC that are used are as they were when they were looked at."""

from importlib.metadata import version
from pathlib import Path

import pytest

from capgap.workflow import ledger, private


def test_versions_are_those_that_were_checked():
    """After an upgrade: read private.py against the new source, then write the new number."""
    assert {name: version(name) for name in private.CHECKED} == private.CHECKED


def test_record_lies_where_snakemake_puts_it(tmp_path, monkeypatch):
    from snakemake.persistence import MetadataRecord
    from snakemake.persistence.file import FilePersistence

    monkeypatch.chdir(tmp_path)
    store = FilePersistence(nolock=True)
    names = ["results/tiny/law/law.json", f"results/tiny/{'long-name/' * 60}model/manifest.json"]
    for name in names:
        record = {"rule": "fit", "params": ["1"], "starttime": 1.0, "endtime": 2.0}
        store._write_record(name, MetadataRecord(**record, input_checksums={"a": "sha256:0"}))
        file = private.location(private.RECORDS, name)
        assert file.is_file()
        assert private.output_of(private.RECORDS, file) == name
        assert ledger.read_record(file, name)["rule"] == "fit"
        store._mark_incomplete(name, None)
    assert ledger.unfinished("results/tiny") == sorted(names)


@pytest.mark.parametrize(
    "name",
    [".DS_Store", ".nfs00012", ".abc.tmp", "not base64!", "YQ", "_w==", "migration_underway"],
)
def test_file_that_is_no_record_is_passed_over(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in (private.RECORDS, private.UNFINISHED):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"\xff")
    assert ledger.read_all("results/tiny") == {}
    assert ledger.unfinished("results/tiny") == []


@pytest.mark.parametrize("output", ["../../x", "/etc/passwd", "results/tiny/../../x"])
def test_record_of_a_file_outside_is_passed_over(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    file = private.location(private.UNFINISHED, output)
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert ledger.unfinished("results/tiny") == []
    assert ledger.unfinished("..") == []


SPOILT = [b"[1]", b'"x"', b"5", b'{"a": "\xff"}', b"{}", b'{"params": 3}', b"[" * 100_000]


@pytest.mark.parametrize("contents", SPOILT)
def test_spoilt_record_is_named_by_its_output(tmp_path, contents):
    file = tmp_path / "record"
    file.write_bytes(contents)
    with pytest.raises(Exception, match=r"record of results/tiny/law.json is damaged.*capgap pull"):
        ledger.read_record(file, "results/tiny/law.json")


@pytest.mark.parametrize("contents", [b"", b'{"rule": "f', b"\0\0"])
def test_torn_record_counts_as_none(tmp_path, contents):
    file = tmp_path / "record"
    file.write_bytes(contents)
    assert ledger.read_record(file, "results/tiny/law.json") is None


def test_record_from_elsewhere_makes_nobody_read_outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("inside").write_text("x")
    names = {"inside": "sha256:0", "/etc/passwd": "sha256:0", "../x": "sha256:0"}
    changed = ledger.changed_inputs({"results/tiny/a": {"input_checksums": names}})
    assert changed == {"inside": ["results/tiny/a"]}


@pytest.mark.parametrize(
    "parameter", ["__import__('os').getpid()", "(" * 5000, "'{'", "'[1]'", "x"]
)
def test_parameter_of_a_record_is_never_run(parameter):
    assert ledger.read_spec({"params": [parameter]}) is None


@pytest.mark.parametrize(
    "options",
    ["-n", "-np", "--dry-run", "--dryrun", "-n --cores 2", "--cores 2 all -n", "--summary", "-D",
     "--lint", "--list", "--dag", "--rulegraph", "--version"],
)  # fmt: skip
def test_looks_are_told_from_runs(options):
    assert private.only_looks(options.split())


@pytest.mark.parametrize("options", ["", "--cores 2", "law", "--touch", "--unlock", "-F", "-R fit"])
def test_runs_are_told_from_looks(options):
    assert not private.only_looks(options.split())
