"""
What a finished study cost, from Snakemake's own measurements: a table by rule.

Run in the folder of a study that has been run: `python benchmarks/study_cost.py`. CPU seconds are
user and system time of the job and its children; memory is the peak resident set of a job.
"""

from pathlib import Path

import pandas as pd

TIMINGS = Path("timings")


def main() -> None:
    """Print the table as markdown, with a line for all rules together."""
    rows = []
    for path in sorted(TIMINGS.rglob("*.tsv")):
        measured = pd.read_csv(path, sep="\t", na_values="-").iloc[0]
        rule = path.relative_to(TIMINGS).parts[0]
        rows.append((rule, measured["s"], measured["cpu_time"], measured["max_rss"]))
    table = pd.DataFrame(rows, columns=["rule", "wall_s", "cpu_s", "peak_mb"])
    grouped = table.groupby("rule").agg(
        jobs=("cpu_s", "size"),
        median_cpu_s=("cpu_s", "median"),
        total_cpu_s=("cpu_s", "sum"),
        total_wall_s=("wall_s", "sum"),
        peak_mb=("peak_mb", "max"),
    )
    grouped = grouped.sort_values("total_cpu_s", ascending=False).round(1)
    print("| rule | jobs | CPU s, median | CPU s, all | wall s, all | peak MB |")
    print("|---|---|---|---|---|---|")
    for rule, row in grouped.iterrows():
        print(
            f"| {rule} | {row.jobs:.0f} | {row.median_cpu_s:.1f} | {row.total_cpu_s:.0f} "
            f"| {row.total_wall_s:.0f} | {row.peak_mb:.0f} |"
        )
    print(
        f"| **all** | {len(table)} | | {table.cpu_s.sum():.0f} | {table.wall_s.sum():.0f} "
        f"| {table.peak_mb.max():.0f} |"
    )


if __name__ == "__main__":
    main()
