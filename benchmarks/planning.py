"""
What does planning cost, in CPU seconds, as a study grows?

Writes studies of about the given numbers of jobs into a temporary folder and plans each twice with
`snakemake -n`: with nothing made yet, and with everything made (small placeholder files, put on
record with `snakemake --touch`), which reads every record and hashes every input.

    python benchmarks/planning.py --jobs 1000 3000 10000

Columns: jobs; CPU seconds of the plan with nothing made and with everything made, and the same for
1,000 jobs.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from capgap.law.answers.answer_records import Choice
from capgap.workflow import ledger

SOURCE = Path(__file__).resolve().parents[1]
TEACHERS = 5
JOBS_PER_RUN = 2  # training and evaluation


def study(jobs: int) -> dict:
    """Settings of a study with about `jobs` jobs: five teachers, one student, many seeds."""
    settings = yaml.safe_load((SOURCE / "tests/tiny/config.yaml").read_text(encoding="utf-8"))
    settings["teachers"] = {
        f"t{i}": {
            "source": "pretrain",
            "layers": 2,
            "hidden": 32,
            "heads": 4,
            "intermediate": 80 + i,
        }
        for i in range(TEACHERS)
    }
    seeds = max(1, round(jobs / JOBS_PER_RUN / TEACHERS))
    settings["grid"] = {"students": ["3k"], "tokens": ["5k"], "seeds": list(range(seeds))}
    return settings


SNAKEMAKE = "from snakemake.cli import main; main()"
# its executor of --touch sleeps a tenth of a second for every job
TOUCH = f"from snakemake.executors.touch import Executor; Executor.SLEEPING_TIME = 0; {SNAKEMAKE}"


def snakemake(folder: Path, *options: str, program: str = SNAKEMAKE) -> tuple[float, str]:
    """Run Snakemake in a folder; (CPU seconds, what it printed)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", program, "--snakefile", str(SOURCE / "Snakefile")]
    result = subprocess.run(
        [*command, "--directory", str(folder), *options], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result.stdout


def outputs(folder: Path) -> list[str]:
    """Every output in Snakemake's graph."""
    rows = [line.split("\t") for line in snakemake(folder, "--summary")[1].splitlines()]
    return [row[0] for row in rows[1:] if len(row) == 6]


def pretend(folder: Path) -> None:
    """Make a placeholder for every result, and have Snakemake record all of them."""
    choice = Choice(
        student_params_non_embedding=4000,
        tokens=8000,
        law_tokens=5000,
        basis="nearest_student",
        basis_note="a placeholder",
        teacher_params_star=None,
        chosen="t0",
        neighbour="t1",
        largest="t4",
    )
    for _ in range(2):  # the second time with the final runs, which the choice decides
        known = outputs(folder)
        for name in known:
            path = folder / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(choice.to_json() if path.name == "choice.json" else name)
                begun = folder / ledger.location(ledger.UNFINISHED, name)
                begun.parent.mkdir(parents=True, exist_ok=True)
                begun.write_text("{}")  # results of unknown origin would be refused
        snakemake(folder, "--touch", "--cores", "100", "--rerun-triggers", "mtime", program=TOUCH)


def main() -> None:
    """Print the series."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 3000, 10000])
    print(f"{'jobs':>8} {'nothing made':>14} {'all made':>10} {'per 1,000':>16}")
    for jobs in parser.parse_args().jobs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            settings = study(jobs)
            (folder / "config.yaml").write_text(yaml.safe_dump(settings))
            (folder / "corpus").mkdir()
            (folder / "corpus/a.txt").write_text("text")
            runs = len(settings["grid"]["seeds"]) * TEACHERS
            fresh, _ = snakemake(folder, "-n", "--quiet", "all")
            pretend(folder)
            done, _ = snakemake(folder, "-n", "--quiet", "all")
            total = runs * JOBS_PER_RUN + 6 * TEACHERS + 8
            per = f"{fresh / total * 1000:.1f} {done / total * 1000:.1f}"
            print(f"{total:>8} {fresh:>14.1f} {done:>10.1f} {per:>16}", flush=True)


if __name__ == "__main__":
    main()
