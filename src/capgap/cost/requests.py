"""
Resources that jobs request from Snakemake, from the plan: main memory, time, devices and processes.

Memory and time grow with the attempt, so that a job that ran out of either gets more. A job that takes
longer than a cluster allows (`plan.max_runtime`) runs in slices: attempts that end at the limit and do
not count as failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

from capgap.config import Study, run_grid
from capgap.config.devices import CPU
from capgap.cost.device_fit import refuse_misfits
from capgap.cost.job_costs import StudyCost
from capgap.cost.one_job import Job
from capgap.cost.speed import planned

MEMORY_MARGIN = 1.25
TIME_MARGIN = 3.0
LEAST_MINUTES = 10
SAVE_FIRST = "--signal=TERM@120"  # seconds before the time limit
FAILURES = 3  # after which a job is given up, as `retries` of the profiles
# wildcards besides the init that decide what a job costs
NAMES = ("teacher", "student", "tokens", "number", "text", "tokenizer")
CORES_PER_DEVICE = 6  # launching, the backward pass, communication and loading each have a thread


class Requests:
    """Resources of the rules of one study, as functions for Snakemake.

    cores_per_device: that the machine has for each of its GPUs; None on a cluster, whose nodes are not known.
    """

    def __init__(self, study: Study, cores_per_device: int | None = None):
        self.study, self.cost = study, StudyCost(study)
        self.speed = planned(study, study.plan.device)
        self.devices = 0 if study.plan.device == CPU else 1  # of a job that can use one
        most = CORES_PER_DEVICE if cores_per_device is None else max(1, cores_per_device)
        self.cores = min(CORES_PER_DEVICE, most) if self.devices else 1  # of a process
        self.processes, self.nodes = study.plan.processes, study.plan.nodes  # of a training job
        self.measuring = study.plan.processes_per_node  # of one that measures a model, on one node
        self.threads = self.cores * study.plan.processes_per_node  # of it on each node
        # Snakemake asks several times for each job, and runs that differ in their seed cost the same
        self._needs = cache(self._needs)

    def check_sizes(self) -> None:
        """Raise CapgapError for student sizes that no pruning gives."""
        _ = self.cost.jobs  # computing them solves for every student's shape

    def check_fit(self) -> None:
        """Raise CapgapError for jobs that plan.device cannot hold, with what would make them fit."""
        refuse_misfits(self.study, self.cost.jobs, self.study.plan.device)

    def mem_mb(self, rule: str) -> Callable[..., int]:
        """Main memory of a rule's jobs, MB."""

        def asked(wildcards, attempt: int) -> int:
            memory_mb, minutes = self._of(rule, wildcards)
            return memory_mb * max(1, attempt - self._slices(minutes) + 1)

        return asked

    def runtime(self, rule: str) -> Callable[..., int]:
        """Time limit of a rule's jobs, minutes."""

        def asked(wildcards, attempt: int) -> int:
            minutes = attempt * self._of(rule, wildcards)[1]
            return min(minutes, self.study.plan.max_runtime or minutes)

        return asked

    def on_slurm(self, given: Mapping[str, str]) -> dict[str, int | str]:
        """Additional resources, for Slurm's plugin, of a job that can be resumed.

        Slurm sends it SIGTERM some time before the limit, so that it saves, because at the limit srun kills what it has
        started. given: the run's default resources.
        """
        return {"slurm_extra": _joined(given.get("slurm_extra"), SAVE_FIRST)}

    def on_slurm_nodes(self, given: Mapping[str, str]) -> dict[str, int | str]:
        """Additional resources, for Slurm's plugin, of a training job.

        On several nodes the job's script runs on the first one and starts a launcher on each
        (`workflow.launch`), with the devices of that node.
        """
        if self.nodes == 1:
            return self.on_slurm(given)
        devices = None
        if self.devices:
            model, each = given.get("gpu_model"), self.processes // self.nodes
            devices = f"--gpus-per-node={f'{model}:' if model else ''}{each}"
        extra = _joined(given.get("slurm_extra"), SAVE_FIRST, "--ntasks-per-node=1", devices)
        # a task for each GPU is what the plugin would ask for otherwise
        return {"mpi": "srun", "tasks": self.nodes, "tasks_per_gpu": 0, "slurm_extra": extra}

    @property
    def retries(self) -> int:
        """How often the longest job of the study may be sent again."""
        minutes = (self._minutes(job) for job in self.cost.jobs)
        return FAILURES + max(map(self._slices, minutes)) - 1

    def _slices(self, minutes: int) -> int:
        """Attempts that a job needs if each is ended at the limit."""
        return math.ceil(minutes / (self.study.plan.max_runtime or minutes))

    def _minutes(self, job: Job) -> int:
        return math.ceil(max(LEAST_MINUTES, TIME_MARGIN * self.speed.seconds(job) / 60))

    def _of(self, rule: str, wildcards) -> tuple[int, int]:
        given = wildcards.get("given", "")
        init = run_grid.given_init(given) if given else wildcards.get("init", "")
        return self._needs(rule, init, *(wildcards.get(name, "") for name in NAMES))

    def _needs(self, rule: str, init: str, *values: str) -> tuple[int, int]:
        job = self.cost.job(rule, init=init, **dict(zip(NAMES, values, strict=True)))
        return math.ceil(MEMORY_MARGIN * job.host_mb), self._minutes(job)


def _joined(*options: str | None) -> str:
    return " ".join(filter(None, options))
