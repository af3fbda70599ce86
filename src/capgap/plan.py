"""
What a study will cost: jobs, tokens, FLOPs, time, memory, disk and downloads, before any is paid.

Needs no network and no models: fetched teachers count by the shapes under `plan.shapes`. FLOPs are
2 per weight and token forward with head and attention, three times that for training; hours are
FLOPs over what the device is assumed to reach, or, without a device, CPU time of this machine.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from capgap import paths
from capgap.config import Study, load_study
from capgap.cost import fit
from capgap.cost.devices import CPU, DEVICE_NAMES
from capgap.cost.jobs import Job, StudyCost, check_shapes
from capgap.cost.schedule import Schedule, schedule
from capgap.cost.speed import Speed, speed_of
from capgap.errors import CapgapError
from capgap.stage import run_stage


class Plan(NamedTuple):
    """The plan of a study for a device."""

    study: Study
    device: str
    workers: int
    speed: Speed
    jobs: list[Job]  # all
    left: list[Job]  # not up to date
    schedule: Schedule  # of what is left
    misfits: list[fit.Misfit]
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
        raise CapgapError(f"device {device}: known are {', '.join(DEVICE_NAMES)}")
    if device != study.plan.device:
        study = study.model_copy(update={"plan": study.plan.model_copy(update={"device": device})})
    check_shapes(study)
    cost, speed = StudyCost(study), speed_of(study, device)
    workers = workers or (study.plan.gpus if device != CPU else os.cpu_count() or 1)
    jobs = cost.jobs
    left = jobs if not_done is None else _left(study, jobs, set(not_done))
    return Plan(
        study,
        device,
        workers,
        speed,
        jobs,
        left,
        schedule(
            left,
            speed.seconds,
            workers,
            uses_worker=None if device == CPU else lambda job: job.device is not None,
        ),
        fit.misfits(study, left, device),
        cost.notes,
    )


def _left(study: Study, jobs: list[Job], not_done: set[str]) -> list[Job]:
    """Jobs that are out of date, missing, or behind a choice that is yet to be made."""
    choice = paths.CHOICE.format(study=study.study)
    left = {job.output for job in jobs if job.output in not_done or not Path(job.output).exists()}
    if choice in left:  # what is behind it cannot be told from what is there
        left |= {job.output for job in jobs if choice in job.needs}
    for job in jobs:
        if left.intersection(job.needs) and not Path(job.output).exists():
            left.add(job.output)
    return [job for job in jobs if job.output in left]


def short(plan: Plan) -> str:
    """The plan in a few lines, for the end of a dry run."""
    done = len(plan.jobs) - len(plan.left)
    lines = [
        f"{len(plan.left)} of {len(plan.jobs)} jobs to do"
        + (f", {done} up to date" if done else "")
        + f"; {_flops(sum(job.flops for job in plan.left))} FLOPs, "
        f"{_bytes(_disk(plan.left))} on disk"
        + (f", {_bytes(_download(plan.left))} to download" if _download(plan.left) else ""),
        f"{_worker_hours(plan)}; on {_workers(plan)} {_time(plan.schedule.makespan_s)}, "
        f"at least {_time(plan.schedule.critical_s)} on any number ({plan.speed.name})",
    ]
    lines += [f"note: {note}" for note in plan.notes]
    if plan.misfits:
        lines.append(f"does not fit {plan.device}, so a run is refused:")
        lines += [fit.describe(m) for m in fit.largest_of_each_rule(plan.misfits)]
    return "\n".join(lines)


def table(plan: Plan) -> Table:
    """One row a rule: what is left of it and what that costs."""
    on_device = plan.device != CPU
    out = Table(box=None, pad_edge=False)
    out.add_column("rule")
    for name in ("jobs", "done", "tokens", "FLOPs", "GPU h" if on_device else "CPU s"):
        out.add_column(name, justify="right")
    if on_device:
        out.add_column("device GB", justify="right")
    for name in ("memory MB", "disk", "scratch", "download"):
        out.add_column(name, justify="right")
    rules = list(dict.fromkeys(job.rule for job in plan.jobs))
    for rule in rules:
        every = [job for job in plan.jobs if job.rule == rule]
        left = [job for job in plan.left if job.rule == rule]
        out.add_row(*_row(plan, rule, every, left, on_device))
    out.add_section()
    out.add_row(*_row(plan, "all", plan.jobs, plan.left, on_device))
    return out


def _row(plan: Plan, name: str, every: list[Job], left: list[Job], on_device: bool) -> list[str]:
    seconds = sum(plan.speed.seconds(job) for job in left if job.device or not on_device)
    cells = [
        name,
        str(len(left)),
        str(len(every) - len(left)),
        _count(sum(job.tokens for job in left)),
        _flops(sum(job.flops for job in left)),
        f"{seconds / 3600:,.2f}" if on_device else f"{seconds:,.0f}",
    ]
    if on_device:
        held = max((job.device.total for job in left if job.device), default=0)
        cells.append(f"{held / 1e9:,.1f}" if held else "")
    memory = max((plan.speed.memory_mb(job) for job in left), default=0)
    return [
        *cells,
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


def _time(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.1f} days"


def _flops(flops: int) -> str:
    return f"{flops:.2e}" if flops else ""


def _count(tokens: int) -> str:
    for suffix, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= factor:
            return f"{tokens / factor:,.1f}{suffix}"
    return str(tokens) if tokens else ""


def _bytes(size: int) -> str:
    for suffix, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {suffix}"
    return f"{size} B" if size else ""


def _out_of_date(study_file: Path, study: Study) -> list[str] | None:
    """Outputs that Snakemake would make again; None where nothing is there or it cannot be asked."""
    if not Path(paths.ROOT.format(study=study.study)).is_dir() or not Path("Snakefile").is_file():
        return None
    from capgap.workflow.execute import pending

    return [item.output for item in pending(study_file)]


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap plan`."""
    parser = argparse.ArgumentParser(
        prog="capgap plan",
        description=__doc__.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--study", type=Path, default=Path("config.yaml"), help="study file (default config.yaml)"
    )
    parser.add_argument(
        "--device", help=f"{' | '.join(DEVICE_NAMES)} (default: plan.device of the study)"
    )
    parser.add_argument("--gpus", type=int, help="devices or cores at the same time")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure this machine on the study's own models first (about a minute of one core)",
    )
    parser.add_argument("--short", action="store_true", help="totals only")
    args = parser.parse_args(argv)
    study = load_study(args.study)
    if args.calibrate:
        from capgap.cost.probe import calibrate  # imports torch

        calibrate(study)
    plan = make_plan(
        study,
        device=args.device,
        workers=args.gpus,
        not_done=_out_of_date(args.study, study),
    )
    console = Console(soft_wrap=True, highlight=False)
    if not args.short:
        console.print(f"study {study.study} on {_workers(plan)}, {plan.speed.name}\n")
        console.print(table(plan))
        chain = [job for job in plan.schedule.chain if plan.speed.seconds(job) > 0]
        console.print("\ncritical path: " + " > ".join(job.rule for job in chain) + "\n")
    console.print(short(plan))


if __name__ == "__main__":
    run_stage(main)
