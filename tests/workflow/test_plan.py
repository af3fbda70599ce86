"""The plan has the same jobs as Snakemake; what cannot fit is refused before anything starts."""

import re
import sys

import pytest
import yaml
from repository import RESULTS, SOURCE, write_study

from capgap.config.study_file import load_study
from capgap.cost.job_costs import StudyCost
from capgap.cost.speed import CALIBRATION
from capgap.records.run_records import Calibration


@pytest.fixture
def fresh(tmp_path):
    """A repository in which nothing was run; every arm and two budgets, so that all rules count."""
    repository = write_study(tmp_path / "study")
    repository.configure(
        lambda study: study["grid"].update(
            tokens=["5k", "6k"], arms=["no_teacher", "random_init", "cross_teacher"]
        )
    )
    return repository


def snakemakes_jobs(repository):
    table = repository.command(sys.executable, "-m", "snakemake", "--summary").stdout
    rows = [line.split("\t") for line in table.splitlines() if line.count("\t") == 5][1:]
    return {(row[2], row[0]) for row in rows}


def test_plan_has_the_jobs_of_the_workflow(fresh):
    known = snakemakes_jobs(fresh)
    outputs = {output for _, output in known}
    jobs = StudyCost(load_study(yaml.safe_load((fresh / "config.yaml").read_text()))).jobs
    planned = {(job.rule, job.output) for job in jobs}
    final = {job for job in planned if "/4k/" in job[1]}  # behind the checkpoint
    assert planned - final <= known
    companions = ("curve.csv", "train.json", "law/curves.csv", "final/model/manifest.json")
    assert {o for o in outputs if not o.endswith(companions)} == {o for _, o in planned - final}


def test_a_run_that_cannot_fit_is_refused_and_a_dry_run_says_so(fresh):
    def enormous(study):
        study["evaluate"]["batch_tokens"] = "1B"
        study["plan"] = {"device": "h100-80gb"}

    fresh.configure(enormous)
    dry = fresh.capgap("run", "-n")
    assert "does not fit h100-80gb, so it cannot be run" in dry.stdout
    result = fresh.capgap("run", check=False)
    said = result.stdout + result.stderr
    assert result.returncode
    assert "job(s) do not fit plan.device h100-80gb" in said
    assert "GiB can be used" in said
    assert not (fresh / RESULTS).exists()


def test_a_dry_run_costs_the_jobs_that_it_lists(study):
    study.configure(lambda data: data.update(plan={"mfu": 0.3}))  # the report shows all settings
    dry = study.capgap("run", "-n").stdout
    assert "write_report  (params have changed since last execution)" in dry
    assert "2 jobs to do; this was a dry run" in dry  # with the target
    assert re.search(r"^1 of \d\d jobs to do$", dry, re.MULTILINE)
    assert "the final runs are counted in full" not in dry
    study.configure(lambda data: data["law"].update(tie_nats=0.01))
    assert "the final runs are counted in full" in study.capgap("run", "-n").stdout


def test_a_size_that_no_pruning_gives_is_refused_by_name(fresh):
    fresh.configure(lambda study: study["grid"].update(students=["40"]))
    result = fresh.capgap("run", "-n", check=False)
    said = result.stdout + result.stderr
    assert result.returncode
    assert "student 40 from teacher t6k: cannot prune to 40" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("study", "unit"),
    [
        *((name, "GPU hours") for name in ("gpt2", "pythia", "llama2-minima", "smollm2-family")),
        *((name, "CPU seconds") for name in ("cpu-study", "smollm2", "refit")),
    ],
)
def test_shipped_studies_dry_run_offline(fresh, study, unit):
    text = (SOURCE / f"configs/{study}.yaml").read_text()
    (fresh / "config.yaml").write_text(text)
    result = fresh.capgap("run", "-n")
    assert unit in result.stdout
    assert "this was a dry run" in result.stdout + result.stderr


@pytest.mark.parametrize("targets", [pytest.param("online", marks=pytest.mark.slow), "sampled"])
def test_a_calibration_measures_what_the_study_does(fresh, targets):
    def keeping(study):
        study["distill"].update(teacher_targets=targets, teacher_precision="bfloat16")
        study["distill"].update(schedule="wsd", warmup_tokens="1k")  # longer than what is run here
        if targets != "online":
            study["distill"]["unique_tokens"] = "6k"

    fresh.configure(keeping)
    said = fresh.capgap("plan", "--calibrate").stdout
    assert "this machine, measured on the models of study tiny" in said
    found = Calibration.read(fresh / CALIBRATION)
    kinds = {"pretrain", "train", "distill", "evaluate", "score"}
    assert set(found.rates) == kinds | ({"targets"} if targets != "online" else set())
    assert all(seconds > 0 for points in found.rates.values() for _, seconds in points)
    assert {"distill_student", "score_importance"} <= set(found.startup_s)
    assert ("cache_teacher" in found.startup_s) == (targets != "online")
