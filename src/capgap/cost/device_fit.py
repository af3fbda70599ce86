"""Jobs that a device cannot hold, and what would make them fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from capgap.config import Study
from capgap.config.devices import CPU, DEVICES
from capgap.cost.job_costs import StudyCost
from capgap.cost.one_job import Job
from capgap.errors import CapgapError

GIB = 2**30
SHARDS = (2, 4, 8, 16, 32, 64)  # numbers of devices that may be suggested for FSDP
TRAINED = {"distill_student": "distill", "pretrain_teacher": "pretrain"}  # section by rule
ROUNDED = ("distill_student", "cache_teacher")  # rules that can hold the teacher in bfloat16
MEASURED = ("evaluate_teacher", "evaluate_student")
MEASURED += ("evaluate_teacher_text", "evaluate_student_text")
USABLE = 0.92  # of a device; the rest is the driver's and the allocator's


class Misfit(NamedTuple):
    """A job that is too large for a device."""

    job: Job
    needed_gib: float
    limit_gib: float
    fixes: tuple[str, ...]


def misfits(study: Study, jobs: list[Job], device: str) -> list[Misfit]:
    """Jobs that the device cannot hold, largest first; none if no device is named."""
    if device == CPU:
        return []
    limit = DEVICES[device].memory_gib * USABLE
    large = [job for job in jobs if job.device and job.device.total / GIB > limit]
    held_with = cache(lambda **change: _held(study, **change))
    found = [
        Misfit(job, job.device.total / GIB, limit, tuple(_fixes(study, job, limit, held_with)))
        for job in large
    ]
    return sorted(found, key=lambda misfit: -misfit.needed_gib)


def refuse_misfits(study: Study, jobs: list[Job], device: str) -> None:
    """Raise CapgapError for jobs that the device cannot hold, with what would make them fit."""
    found = misfits(study, jobs, device)
    if found:
        raise CapgapError(
            f"{len(found)} job(s) do not fit plan.device {device}; the largest of each rule:\n"
            + "\n".join(describe(misfit) for misfit in largest_of_each_rule(found))
        )


def largest_of_each_rule(found: list[Misfit]) -> list[Misfit]:
    """The first of each rule."""
    return list({misfit.job.rule: misfit for misfit in reversed(found)}.values())[::-1]


def describe(misfit: Misfit) -> str:
    """One line with the job, the memory it needs, the limit and the fixes."""
    return (
        f"  {misfit.job.rule} {misfit.job.output} needs {misfit.needed_gib:.1f} GiB, "
        f"{misfit.limit_gib:.1f} GiB can be used; {', or '.join(misfit.fixes)}"
    )


def _held(
    study: Study, *, rounded: bool = False, checkpointed: bool = False, shards: int = 0
) -> dict[str, float]:
    """Bytes that jobs would hold on a device under other settings, by output."""
    change = {}
    if rounded:
        change["distill"] = study.distill.model_copy(update={"teacher_precision": "bfloat16"})
    for name in TRAINED.values() if checkpointed else []:
        if settings := getattr(study, name):
            change[name] = settings.model_copy(update={"activation_checkpointing": True})
    if shards:
        processes = shards * study.plan.nodes
        change["plan"] = study.plan.model_copy(update={"processes": processes, "shard": True})
    jobs = StudyCost(study.model_copy(update=change)).jobs
    return {job.output: job.device.total for job in jobs if job.device}


def _fixes(study: Study, job: Job, limit_gib: float, held_with: Callable[..., dict[str, float]]):
    held, limit = job.device, limit_gib * GIB
    fixed, shards = held.total - held.activations, None
    full = job.rule in ROUNDED and study.distill.precision_of_teacher == "float32"
    if full and held_with(rounded=True)[job.output] <= limit:
        yield "set distill.teacher_precision to bfloat16"
    if job.rule in TRAINED:
        section = TRAINED[job.rule]
        settings = getattr(study, section)
        tokens = settings.micro_batch_tokens or settings.batch_tokens
        fits = int((limit - fixed) / (held.activations / tokens)) if fixed < limit else 0
        sequences = fits // settings.sequence_length
        while sequences and settings.batch_tokens % (sequences * settings.sequence_length):
            sequences -= 1
        if held_with(checkpointed=True)[job.output] <= limit:
            yield f"set {section}.activation_checkpointing"
        if sequences:
            yield f"set {section}.micro_batch_tokens to {sequences * settings.sequence_length}"
        shards = next((n for n in SHARDS if held_with(shards=n)[job.output] <= limit), None)
        if shards:
            processes = shards * study.plan.nodes
            yield f"shard it over {shards} devices (FSDP: plan.processes {processes}, plan.shard true)"
    else:
        yield from _smaller_batch(study, job, limit)
    larger = [name for name, d in DEVICES.items() if held.total / GIB <= d.memory_gib * USABLE]
    if larger:
        yield f"take a device like {larger[0]}"
    elif not shards:
        yield "leave its model out, or take a smaller one"


def _smaller_batch(study: Study, job: Job, limit: float):
    """The batch with which a measurement fits, which changes no result."""
    held = job.device
    if job.rule in MEASURED:
        settings, key, free = (
            study.evaluate,
            "evaluate.batch_tokens",
            limit - held.weights - held.loss,
        )
        fits = int(free * settings.batch_tokens / held.activations)
        fits -= fits % settings.sequence_length
    elif job.rule.startswith("harness"):
        key = "harness.batch_size"
        fits = int((limit - held.weights) * study.harness.batch_size / (held.total - held.weights))
    else:
        return
    if fits > 0:
        yield f"set {key} to {fits}"
