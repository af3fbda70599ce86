"""
Print what a study will cost before it runs: jobs, tokens, FLOPs, time, memory, disk and downloads.

No model is needed: for teachers to fetch, config.json is read once. FLOPs are
2 per weight and token forward with head and attention, three times that for training; hours are
FLOPs over what the device is assumed to reach, or, without a device, CPU time of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from capgap.command_parser import CommandParser
from capgap.config import Study
from capgap.config.devices import CPU, DEVICE_NAMES
from capgap.cost import device_fit
from capgap.cost.host_memory import LAW_RULES, TEXT_RULES
from capgap.cost.job_costs import StudyCost
from capgap.cost.makespan import Schedule, duration, schedule
from capgap.cost.one_job import Job
from capgap.cost.speed import Speed, speed_of
from capgap.cost.study_sizes import check_shapes
from capgap.cost.teacher_configs import open_study
from capgap.errors import CapgapError
from capgap.records import paths
from capgap.workflow.pending import not_done

EXACT_CPU_TIME_S = 15.0
# Folders in that of the job.
FILLED = ("model", "importance", "targets", "cut", "corpus", "tokenizer", "tokens")


class Plan(NamedTuple):
    """The plan of a study for a device."""

    study: Study
    device: str
    workers: int
    speed: Speed
    jobs: list[Job]  # all
    left: list[Job]  # jobs that are not up to date
    schedule: Schedule  # of these jobs
    misfits: list[device_fit.Misfit]
    notes: list[str]


def make_plan(
    study: Study,
    *,
    device: str | None = None,
    workers: int | None = None,
    not_done: Iterable[str] | None = None,
) -> Plan:
    """Plan a study. not_done: outputs known to be out of date; every job counts if None."""
    device = device or study.plan.device
    if device not in DEVICE_NAMES:
        raise CapgapError(f"device {device} is unknown; choose one of {', '.join(DEVICE_NAMES)}")
    if device != study.plan.device:
        study = study.model_copy(update={"plan": study.plan.model_copy(update={"device": device})})
    check_shapes(study)
    cost, speed = StudyCost(study), speed_of(study, device)
    workers = workers or (study.plan.gpus if device != CPU else os.cpu_count() or 1)
    jobs = cost.jobs
    left = jobs if not_done is None else _left(study, jobs, set(not_done))
    notes = list(cost.notes)
    if paths.CHOICE.format(study=study.study) in {job.output for job in left}:
        notes.append(
            "the final runs are counted in full, because their teachers are not chosen yet"
        )
    uses_worker = None if device == CPU else lambda job: job.device is not None
    times = schedule(left, speed.seconds, workers, uses_worker=uses_worker)
    misfits = device_fit.misfits(study, left, device)
    return Plan(study, device, workers, speed, jobs, left, times, misfits, notes)


def _left(study: Study, jobs: list[Job], not_done: set[str]) -> list[Job]:
    """Jobs that are out of date, missing, or follow from a choice that has not been made yet."""
    choice = paths.CHOICE.format(study=study.study)
    left = {job.output for job in jobs if job.output in not_done or not Path(job.output).exists()}
    if choice in left:  # the jobs that follow depend on it, whatever files exist
        left |= {job.output for job in jobs if choice in job.needs}
    for job in jobs:
        if left.intersection(job.needs) and not Path(job.output).exists():
            left.add(job.output)
    return [job for job in jobs if job.output in left]


def short(plan: Plan) -> str:
    """The plan in a few lines, for the end of a dry run."""
    if not plan.left:
        return f"0 of {len(plan.jobs)} jobs to do"
    amounts = [
        (_flops(sum(job.flops for job in plan.left)), "FLOPs"),
        (_bytes(_disk(plan.left)), "on disk"),
        (_bytes(_download(plan.left)), "to download"),
    ]
    counted = ", ".join(f"{amount} {what}" for amount, what in amounts if amount)
    lines = [
        f"{len(plan.left)} of {len(plan.jobs)} jobs to do" + (f"; {counted}" if counted else ""),
        f"{_worker_hours(plan)}; on {_workers(plan)} {duration(plan.schedule.makespan_s)}, "
        f"at least {duration(plan.schedule.critical_s)} on any number ({plan.speed.name})",
    ]
    lines += [f"note: {note}" for note in plan.notes]
    if plan.misfits:
        lines.append(f"does not fit {plan.device}, so it cannot be run:")
        lines += [device_fit.describe(m) for m in device_fit.largest_of_each_rule(plan.misfits)]
    return "\n".join(lines)


def _table(*numbers: str) -> Table:
    """A table with a column for the rule and columns of numbers."""
    out = Table(box=None, pad_edge=False)
    out.add_column("rule", no_wrap=True)
    for name in numbers:
        out.add_column(name, justify="right", no_wrap=True)
    return out


def table(plan: Plan) -> Table:
    """One row per rule with its remaining jobs and their cost."""
    on_device = plan.device != CPU
    worked = ["GPU h", "device GB"] if on_device else ["CPU s"]
    out = _table(
        "jobs", "done", "tokens", "FLOPs", *worked, "memory MB", "disk", "scratch", "download"
    )
    rules = list(dict.fromkeys(job.rule for job in plan.jobs))
    for rule in rules:
        every = [job for job in plan.jobs if job.rule == rule]
        left = [job for job in plan.left if job.rule == rule]
        out.add_row(*_row(plan, rule, every, left, on_device))
    out.add_section()
    out.add_row(*_row(plan, "all", plan.jobs, plan.left, on_device))
    return out


def comparison(plan: Plan) -> Table:
    """Expected and measured cost, one row per rule, over the jobs that were timed."""
    out = _table("jobs", "CPU s", "measured", "ratio", "memory MB", "measured", "ratio")
    for rule in dict.fromkeys(job.rule for job in plan.jobs):
        timed = [(job, measured(job)) for job in plan.jobs if job.rule == rule]
        timed = [(job, found) for job, found in timed if found]
        if not timed:
            continue
        seconds = sum(plan.speed.seconds(job) for job, _ in timed)
        spent = sum(found.cpu_s for _, found in timed)
        memory = max(plan.speed.memory_mb(job) for job, _ in timed)
        peak = max(found.peak_mb for _, found in timed)
        out.add_row(
            *(rule, str(len(timed)), f"{seconds:,.1f}", f"{spent:,.1f}", f"{seconds / spent:.2f}"),
            *(f"{memory:,.0f}", f"{peak:,.0f}", f"{memory / peak:.2f}"),
        )
    return out


class Measured(NamedTuple):
    """Measured CPU time and peak memory of a job."""

    cpu_s: float
    peak_mb: float


def measured(job: Job) -> Measured | None:
    """CPU seconds and peak memory of a job that has run; None if Snakemake has not timed it.

    Snakemake's own measurements read CPU time twice a second at first and every 30 s later, so they
    can miss half a minute of a longer job; then the wall time is used instead.
    """
    path = Path(paths.timing(job.rule, _identity(job)))
    if not path.is_file():
        return None
    names, values = (line.split("\t") for line in path.read_text().splitlines()[:2])
    row = dict(zip(names, values, strict=True))
    wall_s, cpu = float(row["s"]), row["cpu_time"]
    by_snakemake = "h:m:s" in row  # and not by capgap.workflow.launch, which is exact
    stale = by_snakemake and wall_s > EXACT_CPU_TIME_S
    cpu_s = wall_s if stale or cpu in ("NA", "-") else float(cpu)
    peak = row["max_rss"]
    return Measured(cpu_s, 0.0 if peak in ("NA", "-") else float(peak) * 2**20 / 1e6)


def _identity(job: Job) -> str:
    """The output folder of a job, which names its timings."""
    folder = Path(job.output).parent
    if job.rule in (*TEXT_RULES, *LAW_RULES):
        return str(Path(*folder.parts[:2]))
    if job.rule.startswith("evaluate") and folder.name == "texts":
        return str(Path(job.output).with_suffix(""))
    return str(folder.parent if folder.name in FILLED else folder)


def _row(plan: Plan, name: str, every: list[Job], left: list[Job], on_device: bool) -> list[str]:
    seconds = sum(
        plan.speed.seconds(job) * job.processes for job in left if job.device or not on_device
    )
    columns = [
        name,
        str(len(left)),
        str(len(every) - len(left)),
        _count(sum(job.tokens for job in left)),
        _flops(sum(job.flops for job in left)),
        f"{seconds / 3600:,.2f}" if on_device else f"{seconds:,.0f}",
    ]
    if on_device:
        held = max((job.device.total for job in left if job.device), default=0)
        columns.append(f"{held / 1e9:,.1f}" if held else "")
    memory = max((plan.speed.memory_mb(job) for job in left), default=0)
    return [
        *columns,
        f"{memory:,.0f}" if left else "",
        _bytes(_disk(left)),
        _bytes(max((job.scratch_bytes for job in left), default=0)),
        _bytes(_download(left)),
    ]


def _disk(jobs: list[Job]) -> int:
    return sum(job.disk_bytes for job in jobs)


def _download(jobs: list[Job]) -> int:
    return sum(job.download_bytes for job in jobs)


def _worker_hours(plan: Plan) -> str:
    if plan.device == CPU:
        return f"{plan.schedule.work_s:,.0f} CPU seconds"
    return f"{plan.schedule.work_s / 3600:,.1f} GPU hours"


def _workers(plan: Plan) -> str:
    return f"{plan.workers} {'core' if plan.device == CPU else 'device'}(s)"


def _flops(flops: int) -> str:
    return f"{flops:.2e}" if flops else ""


def _count(tokens: int) -> str:
    return _scaled(tokens, {"B": 1e9, "M": 1e6, "k": 1e3, "": 1})


def _bytes(size: int) -> str:
    return _scaled(size, {" TB": 1e12, " GB": 1e9, " MB": 1e6, " kB": 1e3, " B": 1})


def _scaled(amount: int, units: dict[str, float]) -> str:
    """An amount in the largest unit that it has one of, '' for none; units: largest first."""
    for unit, factor in units.items():
        if amount >= factor:
            return f"{amount / factor:,.1f}{unit}" if factor > 1 else f"{amount}{unit}"
    return ""


def _print_whole(console: Console, rows: Table) -> None:
    """Print a table without cutting numbers to the width of the terminal."""
    needed = Measurement.get(console, console.options.update(max_width=1000), rows).maximum
    console.width = max(needed, console.width)
    console.print(rows)


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap plan`."""
    parser = CommandParser("plan", __doc__)
    parser.add_study()
    parser.add_argument(
        "--device", help=f"{' | '.join(DEVICE_NAMES)} (default: plan.device of the study)"
    )
    parser.add_argument("--gpus", type=int, help="devices or cores at the same time")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure this machine on the study's own models first (about a minute of one core)",
    )
    parser.add_argument(
        "--measured",
        action="store_true",
        help="compare with what Snakemake measured of finished jobs (timings/)",
    )
    parser.add_argument("--short", action="store_true", help="totals only")
    args = parser.parse_args(argv)
    if args.gpus is not None and args.gpus < 1:
        parser.error(f"--gpus is {args.gpus}, but must be at least 1")
    study = open_study(args.study)
    if args.calibrate:
        from capgap.commands.probe import calibrate  # imports torch

        calibrate(study)
    plan = make_plan(
        study, device=args.device, workers=args.gpus, not_done=not_done(args.study, study.study)
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if args.measured:
        _print_whole(console, comparison(plan))
        return
    if not args.short:
        console.print(f"study {study.study} on {_workers(plan)}, {plan.speed.name}\n")
        _print_whole(console, table(plan))
        chain = [job for job in plan.schedule.chain if plan.speed.seconds(job) > 0]
        console.print("\ncritical path: " + " > ".join(job.rule for job in chain) + "\n")
    console.print(short(plan))
