"""What the campaign of faults shares: its size, its seed, a limit on time and a table."""

import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capgap.errors import CapgapError
from capgap.stages.base import system_message

LIMIT_S = 60  # what takes longer hangs
TABLE = "CAPGAP_CHAOS_TABLE"  # file for the tables of a campaign; its trials go to a .log beside it


def sizes(small: int, large: int):
    """Parametrise a test by its number of trials: few in `make test`, many in `make test-chaos`."""
    return pytest.mark.parametrize("trials", [small, pytest.param(large, marks=pytest.mark.chaos)])


def mount(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Mount a file system in memory, or, with the option remount, change its limits."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def mounted(folder: Path, limits: str) -> Iterator[Path]:
    """A file system of its own with these limits, for a fixture; skips where none can be mounted."""
    folder.mkdir()
    result = mount(folder, limits)
    if result.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def draw_of(trials: int, small: int) -> random.Random:
    """A generator: always the same in the default suite, another one in each campaign."""
    seed = 0 if trials <= small else int(os.environ.get("CAPGAP_CHAOS_SEED") or os.getpid())
    print(f"seed {seed} (CAPGAP_CHAOS_SEED), {trials} trials")
    return random.Random(seed)


@contextmanager
def limited(seconds: int = LIMIT_S):
    """Raise TimeoutError inside after so many seconds."""

    def late(*_):
        raise TimeoutError(f"nothing after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(action) -> str:
    """How a command ended: done, refused (with one message), 'hang' or the name of a traceback."""
    try:
        with limited():
            action()
    except SystemExit as end:
        return "refused" if end.code else "done"
    except CapgapError:
        return "refused"
    except TimeoutError as error:
        return f"hang: {error}"
    except OSError as error:
        try:
            system_message(error)
        except OSError:
            return f"traceback: {type(error).__name__}: {error}"
        return "refused"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    return "done"


class Table:
    """Counts of outcomes by row, for docs/benchmarks.md, and what must not happen, in full."""

    def __init__(self, name: str):
        self.name, self.rows, self.bad = name, {}, []

    def add(self, row: str, result: str, detail: str = "", *, bad: bool = False) -> None:
        self.rows.setdefault(row, Counter())[result.partition(":")[0]] += 1
        if TABLE in os.environ:  # to be read while the campaign runs, and after it was cut off
            with Path(os.environ[TABLE]).with_suffix(".log").open("a") as file:
                file.write(
                    f"{self.name} | {row} | {result.partition(chr(10))[0]} | {detail[:200]!r}\n"
                )
        if bad or result.startswith(("traceback", "hang", "silent", "lost")):
            self.bad.append(f"{row}: {result} {detail}")

    def finish(self, trials: int, small: int) -> None:
        """Print the table in a campaign, and fail if anything happened that must not."""
        results = sorted({result for counts in self.rows.values() for result in counts})
        lines = [f"| {self.name} | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
        for row, counts in sorted(self.rows.items()):
            lines.append(f"| {row} | {' | '.join(str(counts[result]) for result in results)} |")
        text = "\n".join(lines) + "\n"
        print(text)
        if trials > small and TABLE in os.environ:
            with open(os.environ[TABLE], "a") as file:
                file.write(text + "\n")
        assert self.bad == [], "\n".join(self.bad[:20])
