"""The examples of docs/python.md run as they stand there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    assert len(examples) == 4
    names = {}
    for example in examples:
        exec(compile(example, PAGE.name, "exec"), names)


def test_every_function_is_described():
    import capgap as cg

    text = PAGE.read_text()
    assert [name for name in cg.PLACES if f"cg.{name}" not in text] == []
