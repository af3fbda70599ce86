"""
Time of a study: its critical path, and the makespan on N workers.

Workers are the study's devices, or cores of this machine without one. Jobs that need no device
do not take a worker and only wait for their inputs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from capgap.cost.one_job import Job


@dataclass(frozen=True)
class Schedule:
    """Seconds."""

    work_s: float  # all jobs that use a worker, one after another
    critical_s: float  # the longest chain of jobs, which no number of workers shortens
    makespan_s: float  # on the given number of workers
    chain: tuple[Job, ...]  # the longest chain, first job first


def schedule(
    jobs: list[Job], seconds: Callable[[Job], float], workers: int, *, uses_worker=None
) -> Schedule:
    """List scheduling: ready jobs with the longest remaining chain first.

    jobs: in topological order; inputs that no job makes exist already. uses_worker: whether a job
    takes workers, one per process; by default all do.
    """
    uses_worker = uses_worker or (lambda job: True)

    def takes(job: Job) -> int:
        return min(job.processes, workers) if uses_worker(job) else 0

    cost = {job.output: seconds(job) for job in jobs}
    by_output = {job.output: job for job in jobs}
    behind = dict(cost)  # seconds from a job's start to the end of the longest chain it starts
    follower: dict[str, str | None] = dict.fromkeys(cost)
    for job in reversed(jobs):
        for need in job.needs:
            if need in behind and cost[need] + behind[job.output] > behind[need]:
                behind[need] = cost[need] + behind[job.output]
                follower[need] = job.output
    at = max(behind, key=behind.get, default=None)
    chain = []
    while at is not None:
        chain.append(by_output[at])
        at = follower[at]
    return Schedule(
        work_s=sum(cost[job.output] * job.processes for job in jobs if uses_worker(job)),
        critical_s=max(behind.values(), default=0.0),
        makespan_s=_makespan(jobs, cost, behind, workers, takes),
        chain=tuple(chain),
    )


def _makespan(jobs, cost, behind, workers, takes) -> float:
    missing = {job.output: sum(need in cost for need in job.needs) for job in jobs}
    wanted_by: dict[str, list[Job]] = {}
    for job in jobs:
        for need in job.needs:
            wanted_by.setdefault(need, []).append(job)
    ready: list[tuple[float, int, Job]] = []
    running: list[tuple[float, int, Job]] = []
    order = {job.output: i for i, job in enumerate(jobs)}
    free, now = workers, 0.0

    def offer(job: Job) -> None:
        if takes(job):
            heapq.heappush(ready, (-behind[job.output], order[job.output], job))
        else:
            heapq.heappush(running, (now + cost[job.output], order[job.output], job))

    for job in jobs:
        if missing[job.output] == 0:
            offer(job)
    while ready or running:
        while ready and free >= takes(ready[0][-1]):
            _, number, job = heapq.heappop(ready)
            heapq.heappush(running, (now + cost[job.output], number, job))
            free -= takes(job)
        now, _, job = heapq.heappop(running)
        free += takes(job)
        for waiting in wanted_by.get(job.output, []):
            missing[waiting.output] -= 1
            if missing[waiting.output] == 0:
                offer(waiting)
    return now


def duration(seconds: float) -> str:
    """Seconds as minutes, hours or days."""
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.1f} days"
