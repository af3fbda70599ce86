"""
What an experiment that would settle an open question costs: jobs and time, from the plan.

The report and `capgap summary` show it. The report assumes the plan's speed, because its contents must not
depend on the machine; the summary takes this machine's.

An experiment as the law proposes it need not be one that the study can run: pruning may not give
the student's size, too few teachers may be larger, or no control may be named for it. So the nearest
values that the plan accepts are taken, and the step names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from capgap.config import PretrainedTeacher, Study, run_grid
from capgap.config.counts import format_count
from capgap.config.devices import CPU
from capgap.cost.job_costs import StudyCost
from capgap.cost.makespan import duration
from capgap.cost.speed import planned
from capgap.cost.study_sizes import StudySizes
from capgap.cost.teacher_configs import complete, open_study
from capgap.errors import CapgapError
from capgap.law.number_text import about, two_digits
from capgap.reporting.answer_text import Experiment, step_of

LEAST_TEACHERS = 3  # of a student, or its curve shows no optimum
OUTSIDE = 1.2  # times beyond the students there are; a nearer one would tell little more
TRIES = 12  # sizes between the proposed one and the nearest student
SAME = 0.03  # relative difference of sizes that are called the same


Cost = Callable[[Study, list[str]], str]  # in words, of a study's jobs with these outputs


def assumed(study: Study, outputs: list[str]) -> str:
    """'31 jobs, about 9.0 min of one core', at the speed that the plan assumes."""
    speed, wanted = planned(study, study.plan.device), set(outputs)
    jobs = [job for job in StudyCost(study).jobs if job.output in wanted]
    seconds = sum(speed.seconds(job) * job.processes for job in jobs)
    worker = "core" if study.plan.device == CPU else study.plan.device
    return f"{len(jobs)} jobs, about {duration(seconds)} of one {worker}"


def price(study: Study, experiment: Experiment, cost: Cost = assumed) -> str:
    """'add students of 6.5k and 40k (31 jobs, 5.0 min)', with values that the plan accepts.

    If it accepts none, the step names the reason instead of a price.
    """
    values, data = experiment.values, _settings(study)
    if experiment.adds == "teachers":
        return _priced_teacher(study, experiment, cost)
    if experiment.adds == "students":
        found = [_accepted_student(study, size) for size in values]
        values = sorted({size for size in found if size is not None})
        if not values:
            return (
                f"{experiment.step}; these teachers do not allow it (a student needs "
                f"{LEAST_TEACHERS} that are larger, and a size that pruning gives), so add a larger "
                "teacher first"
            )
        for size in values:
            _add_student(study, data, size)
    elif experiment.adds == "tokens":
        data["grid"]["tokens"] = [*study.grid.tokens, *values]
    else:
        _redraw(study, data)
    try:
        costs = cost(*_added(study, data))
    except CapgapError as error:
        return f"{experiment.step}; the plan refuses it as the study stands ({error})"
    return f"{step_of(experiment.adds, values)} ({costs})"


def _settings(study: Study) -> dict[str, Any]:
    return study.model_dump(exclude_none=True, exclude_unset=True)


def _added(study: Study, data: dict[str, Any]) -> tuple[Study, list[str]]:
    """The study with changed settings, and outputs that these add; CapgapError if not possible."""
    larger = open_study(data)
    there = {job.output for job in StudyCost(complete(study)).jobs}
    return larger, [job.output for job in StudyCost(larger).jobs if job.output not in there]


def _add_student(study: Study, data: dict[str, Any], size: int) -> None:
    """Add a student to settings, with teachers and a control if these are named one by one."""
    grid, sizes = study.grid, run_grid.teacher_sizes(study)
    data["grid"]["students"] = sorted({*_students(study), size})
    if grid.teachers is not None:
        larger = run_grid.teachers_for(size, sizes)
        data["grid"]["teachers"] = {**data["grid"]["teachers"], size: larger}
    else:
        larger = grid.ladder(size, grid.budgets(size)[0], sizes)
    named = data["grid"].get("arm_inits")
    if grid.arms and named and larger and not {*larger} & {*named}:
        data["grid"]["arm_inits"] = [*named, larger[len(larger) // 2]]


def _accepted_student(study: Study, wanted: int) -> int | None:
    """The size nearest to a wanted one, towards the students there are, that the study can run."""
    for size in _towards(_students(study), wanted):
        data = _settings(study)
        _add_student(study, data, size)
        try:
            larger = open_study(data)
            teachers = {run.teacher for run in _main_runs(larger, size)}
            if len(teachers) < LEAST_TEACHERS:
                continue
            counts = _pruned_sizes(larger, size, teachers)
        except CapgapError:
            continue
        typical = math.exp(sum(map(math.log, counts)) / len(counts))
        if abs(math.log(typical / size)) > SAME:  # pruning gives another size than asked for
            size = two_digits(typical)
            if size not in _towards(_students(study), size):
                continue
        return size
    return None


def _students(study: Study) -> list[int]:
    return study.grid.sizes(run_grid.given_sizes(study))


def _towards(students: list[int], wanted: int) -> list[int]:
    """Round sizes from the wanted one to just outside of the students there are."""
    end = min(students) / OUTSIDE if wanted < min(students) else max(students) * OUTSIDE
    if (wanted < min(students)) != (wanted < end) and wanted != end:
        return []
    sizes = dict.fromkeys(two_digits(size) for size in np.geomspace(wanted, end, TRIES))
    return list(sizes)


def _main_runs(study: Study, size: int) -> Iterator[run_grid.Run]:
    name = format_count(size)
    for run in run_grid.runs_of(study):
        if run.student == name and run.init == run_grid.pruned_from(run.teacher):
            yield run


def _pruned_sizes(study: Study, size: int, teachers: set[str]) -> list[int]:
    """What pruning makes of a size, parameters without embeddings, one for each teacher."""
    sizes, name = StudySizes(study), format_count(size)
    return [
        sizes.student(name, run_grid.pruned_from(teacher)).non_embedding
        for teacher in sorted(teachers)
    ]


def _priced_teacher(study: Study, experiment: Experiment, cost: Cost) -> str:
    """The price of a further teacher; of one that is fetched it is known only once it is named."""
    sizes = run_grid.teacher_sizes(study)
    wanted = experiment.values[0]
    nearest = min(sizes, key=lambda name: abs(math.log(sizes[name] / wanted)))
    like = study.teachers[nearest]
    if not isinstance(like, PretrainedTeacher):
        return f"{experiment.step} (name one under teachers; capgap plan has its price)"
    heads = max(1, round(like.heads * math.sqrt(wanted / sizes[nearest])))
    head_dim = like.hidden // like.heads
    data = _settings(study)
    shape = data["teachers"][nearest] | {
        "heads": heads,
        "hidden": heads * head_dim,
        "intermediate": round(like.intermediate * heads / like.heads),
    }
    shape.pop("kv_heads", None)
    data["teachers"]["new"] = shape
    try:
        size = run_grid.teacher_sizes(open_study(data))["new"]
        del data["teachers"]["new"]
        name = f"t{about(size).lower()}"
        data["teachers"][name] = shape
        if study.grid.teachers is not None:
            for student, listed in data["grid"]["teachers"].items():
                by_budget = not isinstance(listed, list)
                data["grid"]["teachers"][student] = (
                    {tokens: [*names, name] for tokens, names in listed.items()}
                    if by_budget
                    else [*listed, name]
                )
        elif study.grid.teacher_ratio is not None:
            low, high = study.grid.teacher_ratio
            students = _students(study)
            data["grid"]["teacher_ratio"] = [
                min(low, size / max(students)) if size > max(students) else low,
                max(high, size / max(students)),
            ]
        costs = cost(*_added(study, data))
    except CapgapError as error:
        return f"{experiment.step}; the plan refuses it as the study stands ({error})"
    return f"add a teacher of {about(size)} ({costs})"


def _redraw(study: Study, data: dict[str, Any]) -> None:
    """Two replicas of everything, in place of seeds, or one replica more."""
    grid = data["grid"]
    grid.pop("seeds", None)
    grid.pop("arm_seeds", None)
    drawn = list(study.grid.replicas or [1])
    grid["replicas"] = [*drawn, max(drawn) + 1]
