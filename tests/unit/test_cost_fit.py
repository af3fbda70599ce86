"""Jobs that are too large for a device: refused, with what makes them fit."""

import math
from pathlib import Path

import pytest
import yaml

from capgap.cost import device_fit
from capgap.cost.job_costs import StudyCost
from capgap.cost.speed import DEVICE_STARTUP_S, READ_BYTES_PER_S, Assumed
from capgap.cost.teacher_configs import open_study
from capgap.errors import CapgapError

REPOSITORY = Path(__file__).parents[2]


def test_jobs_too_large_for_a_device_are_refused_with_what_makes_them_fit(tmp_path):
    data = yaml.safe_load((REPOSITORY / "configs/pythia.yaml").read_text())
    del data["distill"]["micro_batch_tokens"]
    data["plan"]["device"] = "l4-24gb"
    data["grid"]["arms"] = []
    data["teachers"] = {k: data["teachers"][k] for k in ("p70m", "p160m", "p410m")}
    study = open_study(data)
    jobs = StudyCost(study).jobs
    with pytest.raises(CapgapError, match=r"do not fit plan.device l4-24gb") as refused:
        device_fit.refuse_misfits(study, jobs, "l4-24gb")
    text = str(refused.value)
    assert "distill_student results/pythia/students/" in text
    suggested = [
        int(m.split()[-1])
        for f in device_fit.misfits(study, jobs, "l4-24gb")
        for m in f.fixes
        if "micro" in m
    ]
    assert suggested
    assert "set distill.activation_checkpointing" not in text  # the whole batch is too large
    data["distill"]["micro_batch_tokens"] = 2 * min(suggested)
    checkpointed = open_study(data)
    found = device_fit.misfits(checkpointed, StudyCost(checkpointed).jobs, "l4-24gb")
    assert all("set distill.activation_checkpointing" in misfit.fixes for misfit in found)
    data["distill"]["activation_checkpointing"] = True
    checkpointed = open_study(data)
    more = {job.output: job.flops for job in StudyCost(checkpointed).jobs}
    assert all((more[job.output] > job.flops) == (job.rule == "distill_student") for job in jobs)
    device_fit.refuse_misfits(checkpointed, StudyCost(checkpointed).jobs, "l4-24gb")
    del data["distill"]["activation_checkpointing"]
    data["distill"]["micro_batch_tokens"] = min(suggested)
    smaller = open_study(data)
    device_fit.refuse_misfits(smaller, StudyCost(smaller).jobs, "l4-24gb")
    data["distill"]["micro_batch_tokens"] = 2 * max(suggested)
    larger = open_study(data)
    with pytest.raises(CapgapError):
        device_fit.refuse_misfits(larger, StudyCost(larger).jobs, "l4-24gb")


def changed(study, **settings):
    """The study with some settings of its sections changed, given by section."""
    sections = {
        name: getattr(study, name).model_copy(update=change) for name, change in settings.items()
    }
    return study.model_copy(update=sections)


def test_seventy_billion_that_do_not_fit_are_shared_when_they_teach_and_else_read_from_disk():
    study = open_study(REPOSITORY / "configs/llama2-minima.yaml")
    assert study.distill.precision_of_teacher == "bfloat16"  # with which training fits
    assert device_fit.misfits(study, StudyCost(study).jobs, "h100-80gb") == []
    wide = changed(study, distill={"teacher_precision": "float32"})
    found = device_fit.misfits(wide, StudyCost(wide).jobs, "h100-80gb")
    assert {m.job.rule for m in found} == {"distill_student"}
    largest = found[0]
    assert "from-l70b" in largest.job.output
    assert largest.job.host_mb < 350_000  # 276 GB of them the teacher's file
    assert any("plan.processes 16, plan.shard true" in fix for fix in largest.fixes)
    assert "set distill.teacher_precision to bfloat16" in largest.fixes  # as above, where it fits
    shared = changed(wide, plan={"processes": 16})
    assert device_fit.misfits(shared, StudyCost(shared).jobs, "h100-80gb") == []
    assert device_fit.misfits(study, StudyCost(study).jobs, "cpu") == []


def test_a_model_that_does_not_fit_is_held_two_layers_at_a_time_and_read_once_a_block():
    study = open_study(REPOSITORY / "configs/llama2-minima.yaml")
    half = {"precision": "bfloat16"}
    plan = {"device": "rtx4090-24gb", "processes": 1, "shard": False}
    study = changed(study, evaluate=half, prune=half, plan=plan)
    cost = StudyCost(study)
    tables, layers = 2 * 32_000 * 8192, 68_976_648_192 - 2 * 32_000 * 8192
    held, block = 4 * tables + 2 * 2 * layers // 80, 0.25 * 24 * 2**30 / (2 * 4 * 8192)
    scored = cost.job("score_importance", teacher="l70b")
    assert scored.device.weights == pytest.approx(held, rel=1e-6)
    tokens = 1024 * 512
    assert scored.read_bytes == 2 * math.ceil(tokens / block) * 2 * layers  # forward and backward
    measured = cost.job("evaluate_teacher", teacher="l70b")
    [work] = measured.work
    assert measured.device.weights == scored.device.weights
    assert measured.read_bytes == math.ceil(work.tokens / block) * 2 * layers
    assert {measured.precision, scored.precision} == {"bfloat16"}
    found = device_fit.misfits(study, cost.jobs, "rtx4090-24gb")
    assert not {m.job.rule for m in found} & {"score_importance", "evaluate_teacher"}
    slow, fast = (Assumed(device, 1.0) for device in ("rtx4090-24gb", "b200-180gb"))
    reading_s, computing_s = measured.read_bytes / READ_BYTES_PER_S, measured.flops / 165e12
    assert slow.seconds(measured) == pytest.approx(DEVICE_STARTUP_S + computing_s)
    assert fast.seconds(measured) == pytest.approx(DEVICE_STARTUP_S + reading_s)
    small = cost.job("evaluate_teacher", teacher="l7b")  # 13.5 GB in bfloat16
    assert small.read_bytes == 0
    assert small.device.weights == 4 * 2 * 32_000 * 4096 + 2 * (6_738_415_616 - 2 * 32_000 * 4096)


def test_measurements_with_too_large_a_batch_are_told_the_largest_that_fits():
    data = yaml.safe_load((REPOSITORY / "configs/smollm2-family.yaml").read_text())
    data["evaluate"]["batch_tokens"] = "1B"
    data["harness"]["batch_size"] = 4096

    def suggested():
        study = open_study(data)
        found = device_fit.misfits(study, StudyCost(study).jobs, "a100-80gb")
        return [fix.removeprefix("set ").split(" to ") for m in found for fix in m.fixes[:1]]

    fixes = suggested()
    assert {key for key, _ in fixes} == {"evaluate.batch_tokens", "harness.batch_size"}
    for key in ("evaluate.batch_tokens", "harness.batch_size"):
        section, name = key.split(".")
        data[section][name] = min(int(value) for found, value in fixes if found == key)
    assert suggested() == []
    data["evaluate"]["batch_tokens"] += data["evaluate"]["sequence_length"]
    data["harness"]["batch_size"] += 1
    assert {key for key, _ in suggested()} == {"evaluate.batch_tokens", "harness.batch_size"}


def test_a_refit_reads_the_text_and_holds_about_what_scoring_does():
    data = yaml.safe_load((REPOSITORY / "configs/pythia.yaml").read_text())
    plain = StudyCost(open_study(data))
    data["prune"]["refit"] = "least_squares"
    fitted = StudyCost(open_study(data))
    pairs = [
        (before, after)
        for before, after in zip(plain.jobs, fitted.jobs, strict=True)
        if before.rule == "prune_student"
    ]
    assert pairs
    text = next(job.output for job in fitted.jobs if job.rule == "pack_tokens")
    for before, after in pairs:
        assert text in after.needs
        assert text not in before.needs
        assert before.device is None
        assert after.flops > before.flops == 0
        assert after.host_mb >= before.host_mb
        teacher = after.output.split("/")[4].removeprefix("pruned-")
        scored = fitted.job("score_importance", teacher=teacher)
        assert after.device.total < 1.6 * scored.device.total  # sums in float64
