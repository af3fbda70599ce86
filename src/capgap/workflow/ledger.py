"""
Snakemake's records of the inputs and parameters that each output was made from.

There is one JSON file for each output in .snakemake/metadata, see private.py. DVC versions them
together with the results.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from capgap.records import paths
from capgap.records.artifacts import write_text
from capgap.records.reading import Unreadable, digest, read_text
from capgap.workflow.private import RECORDS, UNFINISHED, location, output_of


def named(folder: Path, root: str | Path) -> Iterator[tuple[str, Path]]:
    """Outputs below `root` that have a record in `folder`, each with its record's file."""
    for directory, _, names in os.walk(folder):
        for name in names:
            file = Path(directory, name)
            output = output_of(folder, file)
            if output is not None and output.startswith(f"{root}/"):
                yield output, file


def read_all(root: str | Path) -> dict[str, dict]:
    """Records of all outputs that exist below a folder, by output, sorted.

    A record torn by a kill is left out; Snakemake ignores it as well and reruns the job.
    Raises Unreadable for a record that Snakemake could not read either.
    """
    records = {}
    for output, file in named(RECORDS, root):
        if os.path.exists(output) and (record := read_record(file, output)):
            records[output] = record
    return dict(sorted(records.items()))


def read_record(file: Path, output: str) -> dict | None:
    """One record; None if a kill has torn it. Raises Unreadable if it is not a record."""
    hint = f"the record of {output} is damaged ({file}); restore it (capgap pull --force), or "
    hint += "delete that file and the output so that the next run makes it again"
    try:
        text = read_text(file)
        record = json.loads(text)
    except json.JSONDecodeError:
        return None
    except (Unreadable, ValueError, RecursionError):
        raise Unreadable(hint) from None
    kinds = {"params": list, "starttime": (int, float), "endtime": (int, float), "rule": str}
    fits = isinstance(record, dict) and all(isinstance(record.get(k), t) for k, t in kinds.items())
    if not fits or not isinstance(record.get("input_checksums") or {}, dict):
        raise Unreadable(hint)
    return record


def unfinished(root: str | Path) -> list[str]:
    """Outputs below a folder whose job was started and has not ended."""
    return sorted(output for output, _ in named(UNFINISHED, root))


def changed_inputs(records: dict[str, dict]) -> dict[str, list[str]]:
    """Inputs whose contents differ from those that outputs were made from: {input: [outputs]}.

    A record from another machine may name any file; files outside the working folder are not read.
    """
    digests: dict[str, str] = {}
    changed: dict[str, list[str]] = {}
    for output, record in records.items():
        for name, recorded in (record.get("input_checksums") or {}).items():
            if paths.is_inside(name) and os.path.exists(name):
                if name not in digests:
                    digests[name] = f"sha256:{digest(name)}"
                if digests[name] != recorded:
                    changed.setdefault(name, []).append(output)
    return changed


@contextmanager
def kept_times(root: str | Path) -> Iterator[None]:
    """Give results and their inputs the times back that they had before.

    Planning a study changes times so that Snakemake sees what contents show, and a plan alone shall
    change nothing. A file that was replaced meanwhile, by a run, keeps its new time.
    """
    records = read_all(root)
    inputs = {name for record in records.values() for name in record.get("input_checksums") or {}}
    names = {*records, *filter(paths.is_inside, inputs)}
    before = {name: os.stat(name) for name in names if os.path.exists(name)}
    try:
        yield
    finally:
        for name, old in before.items():
            now = os.stat(name) if os.path.exists(name) else None
            if now and now.st_ino == old.st_ino and now.st_mtime_ns != old.st_mtime_ns:
                os.utime(name, ns=(old.st_atime_ns, old.st_mtime_ns))


def read_spec(record: dict) -> dict | None:
    """The stage, source digest and settings that an output was made with."""
    return next((spec for spec in map(_spec, record["params"]) if spec), None)


def replace_spec(output: str, record: dict, change: Callable[[dict], dict]) -> None:
    """Rewrite the spec in an output's record."""
    params = [
        repr(json.dumps(change(spec), sort_keys=True)) if (spec := _spec(text)) else text
        for text in record["params"]
    ]
    write_text(location(RECORDS, output), json.dumps({**record, "params": sorted(params)}))


def _spec(parameter: str) -> dict | None:
    """The spec in a recorded parameter, which is the repr of a value; None if it holds no spec."""
    try:
        value = ast.literal_eval(parameter)
        data = json.loads(value) if isinstance(value, str) and value.startswith("{") else {}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return data if {"stage", "source"} <= data.keys() else None
