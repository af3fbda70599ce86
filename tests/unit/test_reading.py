"""Anything that is not a readable small file gives one message that names it; nothing hangs."""

import os

import pytest

from capgap.errors import CapgapError
from capgap.records.reading import Unreadable, digest, read_json
from capgap.records.run_records import Metrics

SPOILT = {
    "empty": b"",
    "torn": b'{"files": {"a": ',
    "list": b"[]",
    "null": b"null",
    "number": b"3",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "zeros": b"\0" * 64,
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("contents", SPOILT.values(), ids=SPOILT)
def test_spoilt_json_is_named(tmp_path, contents):
    path = tmp_path / "record.json"
    path.write_bytes(contents)
    for read in (read_json, Metrics.read):
        with pytest.raises(CapgapError, match=r"record\.json"):
            read(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing", "device"])
def test_what_is_no_file_is_named_at_once(tmp_path, kind):
    path = tmp_path / "record.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    for read in (read_json, digest, Metrics.read):
        with pytest.raises(Unreadable, match=r"record\.json"):
            read(path)


def test_sound_json_is_read(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('{"a": [1, "ä"]}', encoding="utf-8")
    assert read_json(path) == {"a": [1, "ä"]}
    path.write_text("[1]", encoding="utf-8")
    assert read_json(path, list) == [1]
