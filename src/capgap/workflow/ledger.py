"""
Snakemake's records: what each output was made from, with which parameters.

One JSON file for each output in .snakemake/metadata, named by the output's path in URL-safe
base64, cut into pieces where that is longer than a file name may be (Snakemake 9.27.1,
persistence/file.py; format version 6). DVC versions them together with the results.
"""

from __future__ import annotations

import ast
import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

from capgap.records.artifacts import sha256, write_text

RECORDS = Path(".snakemake/metadata")
UNFINISHED = Path(".snakemake/incomplete")
PIECE = 254


def location(folder: Path, output: str) -> Path:
    """File in `folder` that stands for an output."""
    name = urlsafe_b64encode(output.encode()).decode()
    pieces = [name[i : i + PIECE] for i in range(0, len(name), PIECE)]
    return folder.joinpath(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])


def output_of(folder: Path, file: Path) -> str:
    """The output that a file in `folder` stands for."""
    name = "".join(file.relative_to(folder).parts).replace("@", "")
    return urlsafe_b64decode(name).decode()


def read_all(root: str | Path) -> dict[str, dict]:
    """Records of all outputs that exist below a folder, by output, sorted.

    A record torn by a kill is left out; Snakemake passes over it as well and reruns the job.
    """
    records = {}
    for folder, _, names in os.walk(RECORDS):
        for name in names:
            output = output_of(RECORDS, Path(folder, name))
            if output.startswith(f"{root}/") and os.path.exists(output):
                try:
                    text = Path(folder, name).read_text(encoding="utf-8")
                    records[output] = json.loads(text)
                except json.JSONDecodeError:
                    continue
    return dict(sorted(records.items()))


def unfinished(root: str | Path) -> list[str]:
    """Outputs below a folder whose job was started and has not ended."""
    outputs = []
    for folder, _, names in os.walk(UNFINISHED):
        outputs += [output_of(UNFINISHED, Path(folder, name)) for name in names]
    return sorted(output for output in outputs if output.startswith(f"{root}/"))


def changed_inputs(records: dict[str, dict]) -> dict[str, list[str]]:
    """Inputs whose contents are not what outputs were made from: {input: [outputs]}."""
    digests: dict[str, str] = {}
    changed: dict[str, list[str]] = {}
    for output, record in records.items():
        for name, recorded in (record.get("input_checksums") or {}).items():
            if os.path.exists(name):
                if name not in digests:
                    digests[name] = f"sha256:{sha256(Path(name))}"
                if digests[name] != recorded:
                    changed.setdefault(name, []).append(output)
    return changed


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
    """The spec in a recorded parameter, which is the repr of a value; None for any other."""
    value = ast.literal_eval(parameter)
    if isinstance(value, str) and value.startswith("{"):
        data = json.loads(value)
        return data if {"stage", "source"} <= data.keys() else None
    return None
