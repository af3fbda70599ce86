"""
What does it cost to find that nothing has changed, with large checkpoints?

Makes the small study of tests/workflow in a temporary folder, adds a payload to every model folder
(manifests and records follow), saves it, and measures each command twice. The first `capgap verify`
reads everything; no other command should.

    python benchmarks/unchanged.py --gigabytes 5

Columns: command; CPU seconds of the first and the second call; wall seconds of the second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SOURCE / "tests/workflow"))

from repository import RESULTS, Repository, write_study  # noqa: E402

from capgap.records.artifacts import describe  # noqa: E402
from capgap.records.reading import digest  # noqa: E402
from capgap.workflow import ledger  # noqa: E402


def add_payload(study: Repository, gigabytes: float) -> int:
    """Add a file to each model folder, as if models were that large; the number of folders."""
    os.chdir(study.path)
    manifests = sorted(Path(RESULTS).rglob("model/manifest.json"))
    for number, manifest in enumerate(manifests):
        with (manifest.parent / "payload.bin").open("wb") as file:
            file.write(number.to_bytes(8, "big"))
            file.truncate(int(gigabytes * 1e9 / len(manifests)))
        text = json.dumps(describe(manifest.parent), indent=1, sort_keys=True) + "\n"
        manifest.write_text(text, encoding="utf-8")
    for output, record in ledger.read_all(RESULTS).items():
        known = {
            name: f"sha256:{digest(Path(name))}" for name in record.get("input_checksums") or {}
        }
        path = ledger.location(ledger.RECORDS, output)
        path.write_text(json.dumps({**record, "input_checksums": known}))
    return len(manifests)


def measure(study: Repository, *words: str) -> tuple[float, float, str]:
    """(CPU seconds, wall seconds, output) of a command."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = study.command(sys.executable, "-m", *words)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, ended - begun, result.stdout + result.stderr


def main() -> None:
    """Print one line a command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, help="where to put it (default a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        study = write_study(Path(name) / "study")
        study.commit("settings")
        study.capgap("run", "--cores", "2")
        folders = add_payload(study, args.gigabytes)
        study.capgap("save")
        study.commit("results")
        print(f"{folders} model folders, {args.gigabytes} GB together")
        for words, expected in [
            (("capgap.cli", "run", "-n"), "othing to"),
            (("dvc", "status"), "up to date"),
            (("dvc", "repro"), "didn't change"),
            (("capgap.cli", "verify"), "as recorded"),
        ]:
            first, _, _ = measure(study, *words)
            second, wall, said = measure(study, *words)
            assert expected in said, said
            label = " ".join(words).replace("capgap.cli", "capgap")
            print(f"{label:<16} {first:8.1f} {second:8.1f} {wall:8.1f}", flush=True)


if __name__ == "__main__":
    main()
