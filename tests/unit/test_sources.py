"""Documents as they are read: endings, compression, columns, links, mistakes and long texts."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from capgap.config import FilesCorpus, PackageCorpus
from capgap.data import sources
from capgap.data.sources import border, documents, read_text
from capgap.errors import CapgapError

THREE = ["one", "two", "three"]


def read(pattern, **more):
    return list(documents(FilesCorpus(source="files", pattern=str(pattern), **more)))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def compressed(path, data, kind):
    with pyarrow.output_stream(str(path), compression=kind) as file:
        file.write(data)


def test_a_byte_order_mark_and_line_ends_of_other_systems_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffEin\r\nzwei\rdrei\n".encode())
    assert read(tmp_path / "*.txt") == [("a.txt", "Ein\nzwei\ndrei\n")]
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "a\\r\\nb"}\r\n\r\n{"text": "c"}'.encode())
    assert [text for _, text in read(tmp_path / "*.jsonl")] == ["a\r\nb", "c"]


def test_line_ends_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 3)
    (tmp_path / "a.txt").write_bytes("ab\r\ncdé\r\rü\r".encode())
    assert read(tmp_path / "*.txt") == [("a.txt", "ab\ncdé\n\nü\n")]
    write_rows(tmp_path / "b.jsonl", [{"text": text} for text in THREE])
    assert [text for _, text in read(tmp_path / "*.jsonl")] == THREE


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.TXT.GZ", "a.txt", "A.TXT", "a.md"])
def test_plain_text_by_any_ending_and_compression(tmp_path, name):
    data = "\ufeffüber\r\n".encode()
    kind = {".gz": "gzip", ".zst": "zstd"}.get(os.path.splitext(name)[1].lower())
    compressed(tmp_path / name, data, kind)
    assert read(tmp_path / "*") == [(name, "über\n")]
    assert read_text(tmp_path / name) == "über\n"


def test_compressed_json_lines(tmp_path):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in THREE).encode()
    compressed(tmp_path / "a.jsonl.gz", lines, "gzip")
    compressed(tmp_path / "b.jsonl.zst", lines, "zstd")
    assert [text for _, text in read(tmp_path / "*")] == THREE * 2


def test_one_column_is_read_and_others_may_hold_anything(tmp_path):
    odd = [None, {"a": 1}, [1, "x"], float("nan")]
    write_rows(
        tmp_path / "a.jsonl", [{"meta": m, "text": t} for m, t in zip(odd, "abcd", strict=True)]
    )
    assert [text for _, text in read(tmp_path / "*.jsonl")] == list("abcd")
    table = pyarrow.table({"meta": [1, 2], "body": ["x", "y"]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    names = ["b.parquet:000000000", "b.parquet:000000001"]
    assert read(tmp_path / "*.parquet", text_column="body") == list(zip(names, "xy", strict=True))


def test_a_folder_stands_for_the_readable_files_below(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "deep" / "A.TXT").write_text("a")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert read(tmp_path) == [("b.txt", "b"), ("deep/A.TXT", "a")]
    assert read(f"{tmp_path}/**/*.[tT]*") == [("b.txt", "b"), ("deep/A.TXT", "a")]
    with pytest.raises(CapgapError, match=r"picture\.png cannot be read: files end in \.txt"):
        read(tmp_path / "*")


def test_an_ending_that_the_pattern_spells_out_is_plain_text(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "B.PY").write_text("y = 2")
    with gzip.open(tmp_path / "c.py.gz", "wt") as file:
        file.write("z = 3")
    (tmp_path / "raw.py").write_bytes(b"\xff")
    with pytest.raises(CapgapError, match=r"raw\.py is not UTF-8 text"):
        read(tmp_path / "*.py")
    (tmp_path / "raw.py").unlink()
    assert read(tmp_path / "*.py") == [("a.py", "x = 1")]
    assert read(tmp_path / "*.py.gz") == [("c.py.gz", "z = 3")]
    with pytest.raises(CapgapError, match=r"a\.py.* cannot be read: files end in \.txt"):
        read(tmp_path / "a*")


def test_links(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "texts" / "link.txt").symlink_to("a.txt")
    assert read(tmp_path / "texts") == [("a.txt", "a"), ("link.txt", "a")]
    (tmp_path / "texts" / "broken.txt").symlink_to("nothing.txt")
    for pattern in (tmp_path / "texts", tmp_path / "texts" / "*.txt"):
        with pytest.raises(CapgapError, match=r"broken\.txt is a link to a file that is not there"):
            read(pattern)


def test_a_message_never_holds_a_whole_document(tmp_path):
    long = "so long " * 10_000
    cases = {
        "number.jsonl": json.dumps({"text": [long]}),
        "line.jsonl": '{"text": "' + long,
        "text.jsonl": json.dumps(long),
        "column.jsonl": json.dumps({"body": long, long: 1}),
    }
    for name, line in cases.items():
        (tmp_path / name).write_text(line, encoding="utf-8")
        with pytest.raises(CapgapError, match=name) as caught:
            read(tmp_path / name)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": null}', r"row 1 holds nothing \(null\) in column 'text'"),
        (b'{"text": 3}', r"row 1 holds int 3 in column 'text'"),
        (b'{"body": "x"}', r"line 1 has no column 'text', only body"),
        (b"[1]", r"line 1 is \[1\], not an object"),
        (b'{"text": ', "line 1 is not valid JSON"),
        (b"[" * 100_000, r"line 1 is not valid JSON \(nested too deeply\)"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "\xff"}', "is not UTF-8 text"),
    ],
)
def test_mistakes_in_json_lines_name_file_and_line(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_bytes(line)
    with pytest.raises(CapgapError, match=rf"a\.jsonl.*{said}"):
        read(tmp_path / "a.jsonl")


def test_files_that_are_damaged_or_missing(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"abc" + "é".encode("latin-1"))
    with pytest.raises(CapgapError, match=r"latin\.txt is not UTF-8 text \(.* at byte 3\)"):
        read(tmp_path / "latin.txt")
    whole = gzip.compress(os.urandom(10_000).hex().encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.txt.zst").write_bytes(b"plain")
    (tmp_path / "not.parquet").write_bytes(b"plain")
    for name in ("not.txt.zst", "not.parquet", "cut.txt.gz"):
        with pytest.raises(CapgapError, match=f"{name} cannot be read .* damaged or cut short"):
            read(tmp_path / name)
    with pytest.raises(CapgapError, match="package nosuchpackage is not installed"):
        list(documents(PackageCorpus(source="package", package="nosuchpackage", pattern="*")))


def test_long_texts_are_cut_after_a_paragraph(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_BYTES", 100)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
    paragraphs = [f"{n} " + "wörd " * 5 for n in range(40)]
    text = "\n\n".join(paragraphs)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    write_rows(tmp_path / "b.jsonl", [{"text": text}, {"text": "short"}])
    for pattern, last in (("*.txt", None), ("*.jsonl", "short")):
        found = read(tmp_path / pattern)
        texts = [text for _, text in found]
        if last:
            assert texts.pop() == last
        assert "".join(texts) == text
        assert all(len(piece.encode()) <= 100 for piece in texts)
        assert all(piece.endswith("\n\n") for piece in texts[:-1])
        assert found == sorted(found)


def test_a_text_without_a_space_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_BYTES", 100)
    write_rows(tmp_path / "a.jsonl", [{"text": "ü" * 501}])
    texts = [text for _, text in read(tmp_path / "a.jsonl")]
    assert "".join(texts) == "ü" * 501
    assert max(len(text.encode()) for text in texts) == 100


def test_a_border_is_the_nearest_of_the_first_kind():
    data = b"aa bb\ncc\n\ndd\n\n\nee ff\n\ngg"
    assert data[: border(data, 0, 5, 14, 20)] == b"aa bb\ncc\n\ndd\n\n\n"
    assert data[: border(data, 0, 5, 9, 20)] == b"aa bb\ncc\n\n"
    assert data[: border(data, 0, 1, 5, 8)] == b"aa bb\n"  # no paragraph ends so early, a line does
    assert data[10 : border(data, 10, 1, 5, 9)] == b"dd\n\n\n"
    assert border(b"aaaaaa", 0, 1, 3, 5) is None
    assert border(b"aa\n", 0, 1, 3, 3) is None  # nothing would be left
