"""How far a study is, an estimate of the time left, and how both are drawn."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from snakemake_logger_plugin_capgap.job_text import duration, job_count, log_tail

HEARTBEAT_JOBS = 4


@dataclass
class Job:
    """A job as shown: its rule, what it makes, its log files and the Unix time of its start."""

    rule: str
    identity: str
    logs: list[str]
    started: float
    error: str = ""  # the job's own message

    def __str__(self) -> str:
        return f"{self.rule} {self.identity}".rstrip()

    def last_line(self) -> str:
        """Last line of the log, empty while there is none."""
        return "".join(log_tail(self.logs[0], 1)) if self.logs else ""


@dataclass
class Progress:
    """
    Counts of a run; jobs are keyed by Snakemake's job number, times are Unix times.

    One thread changes it and another draws it, so what is drawn is a snapshot: `list(...)`.
    """

    started: float = 0.0
    total: int = 0
    done: int = 0
    left: Counter[str] = field(default_factory=Counter)  # planned jobs not yet done, by rule
    running: dict[int, Job] = field(default_factory=dict)
    failed: dict[int, Job] = field(default_factory=dict)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def finish(self, jobid: int, now: float) -> Job:
        """Count a job as done; one whose start was not reported is named by its number."""
        job = self.running.pop(jobid, Job(f"job {jobid}", "", [], now))
        self.done += 1
        self.left[job.rule] -= 1
        self.seconds[job.rule].append(now - job.started)
        return job

    def seconds_left(self, now: float) -> float | None:
        """
        Estimate the time left from the mean duration of done jobs of the same rule.

        The jobs left are spread over as many places as there are jobs running. None while most of
        the jobs left are of rules without a done job.
        """
        means = {rule: statistics.fmean(seconds) for rule, seconds in list(self.seconds.items())}
        remaining, timed = self.total - self.done, sum(self.left[rule] for rule in means)
        if timed <= 0 or timed < remaining / 2:
            return None
        active = list(self.running.values())
        work = sum(self.left[rule] * mean for rule, mean in means.items())
        work -= sum(min(now - job.started, means.get(job.rule, 0.0)) for job in active)
        return work * remaining / timed / max(1, len(active))

    def status(self, now: float) -> list[str]:
        """How far the study is, in parts of a line."""
        left = self.seconds_left(now)
        return [
            f"{self.done}/{self.total} done",
            *([f"{len(self.failed)} failed"] if self.failed else []),
            f"{duration(now - self.started)} elapsed",
            *([f"about {duration(left)} left"] if left is not None else []),
        ]

    def heartbeat(self, now: float) -> str:
        """Return one line: how far the study is and what the running jobs do."""
        active = list(self.running.values())
        jobs = [
            ": ".join(filter(None, [str(job), job.last_line()])) for job in active[:HEARTBEAT_JOBS]
        ]
        more = len(active) - HEARTBEAT_JOBS
        return "; ".join(
            [", ".join(self.status(now)), *jobs, *([f"{job_count(more)} more"] if more > 0 else [])]
        )

    def draw(self, now: float, height: int) -> Group:
        """Draw how far the study is and each running job, in at most `height` lines."""
        header = Table.grid(padding=(0, 2))
        header.add_column()
        header.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(max(1, self.total), self.done, width=24)
        header.add_row(bar, "  ".join(self.status(now)))
        active = list(self.running.values())
        shown = active[: max(1, (height - 3) // 2)]
        lines = []
        for job in shown:
            lines += [
                (f"{job}  {duration(now - job.started)}", ""),
                (f"  {job.last_line()}", "dim"),
            ]
        if len(active) > len(shown):
            lines.append((f"and {job_count(len(active) - len(shown))} more", ""))
        rows = [Text(text, style, no_wrap=True, overflow="ellipsis") for text, style in lines]
        return Group("", header, *rows)
