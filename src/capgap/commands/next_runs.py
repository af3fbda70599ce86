"""The cost of an experiment that would answer an open question: jobs and time, from the plan."""

from __future__ import annotations

from capgap.commands.plan import duration, make_plan
from capgap.config import Study
from capgap.cost.job_costs import StudyCost
from capgap.cost.teacher_configs import complete, open_study
from capgap.errors import CapgapError
from capgap.reporting.answer import Experiment


def price(study: Study, experiment: Experiment) -> str:
    """'add students of 6.5k and 40k (31 jobs, 5.0 min)'; without the price if it cannot be planned."""
    if not experiment.changes:
        return experiment.step
    data = study.model_dump(exclude_none=True, exclude_unset=True)
    for section, values in experiment.changes.items():
        changed = {**data.get(section, {}), **values}
        data[section] = {key: value for key, value in changed.items() if value is not None}
    try:
        larger = open_study(data)
        there = {job.output for job in StudyCost(complete(study)).jobs}
        new = [job.output for job in StudyCost(larger).jobs if job.output not in there]
        plan = make_plan(larger, not_done=new)
    except CapgapError:  # the study needs more than this change, for example a larger teacher
        return experiment.step
    return f"{experiment.step} ({len(plan.left)} jobs, {duration(plan.schedule.makespan_s)})"
