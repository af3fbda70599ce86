"""How long jobs take, alone and on several workers."""

from pathlib import Path

import pytest
import yaml

from capgap.config.devices import CPU
from capgap.cost.device_memory import Memory
from capgap.cost.job_costs import StudyCost
from capgap.cost.makespan import schedule
from capgap.cost.one_job import Job, Work
from capgap.cost.speed import (
    CALIBRATION,
    DEVICE_STARTUP_S,
    Assumed,
    Measured,
    computed_as,
    speed_of,
)
from capgap.cost.teacher_configs import open_study
from capgap.records.artifacts import write_text
from capgap.records.run_records import Calibration

REPOSITORY = Path(__file__).parents[2]


def job(name, *needs, seconds=1, **more):
    return Job(name, name, needs, work=(Work("text", seconds, 0),), **more)


def of(job):
    return float(job.work[0].tokens)


def test_critical_path_and_time_on_n_workers_by_hand():
    #  a(2) - b(3) - e(1);  c(4);  d(2)
    jobs = [
        job("a", seconds=2), job("c", seconds=4), job("d", seconds=2), job("b", "a", seconds=3),
        job("e", "b", seconds=1),
    ]  # fmt: skip
    one, two, many = (schedule(jobs, of, n) for n in (1, 2, 9))
    assert one.work_s == one.makespan_s == 12
    assert [j.rule for j in one.chain] == ["a", "b", "e"]
    assert one.critical_s == many.makespan_s == many.critical_s == 6
    assert two.makespan_s == 6  # a b e on one, c d on the other
    assert schedule([], of, 2).makespan_s == 0


def test_jobs_without_a_device_take_none():
    jobs = [job("a", seconds=5), job("b", seconds=5), job("c", seconds=4, device=Memory())]
    found = schedule(jobs, of, 1, uses_worker=lambda job: job.device is not None)
    assert (found.work_s, found.makespan_s) == (4, 5)


def test_a_job_of_several_processes_takes_as_many_workers():
    jobs = [job("a", seconds=3, processes=2), job("b", seconds=1), job("c", seconds=1)]
    assert schedule(jobs, of, 2).work_s == 8
    assert schedule(jobs, of, 2).makespan_s == 4  # b and c beside each other, a alone
    assert schedule(jobs, of, 3).makespan_s == 3


def test_precision_decides_the_peak_of_a_device():
    work = (Work("train", 1, 312 * 10**12),)
    for precision, tflops in [("float32", 19.5), ("bfloat16", 312)]:
        trained = Job("distill_student", "x", (), work, Memory(), precision=precision)
        seconds = Assumed("a100-80gb", 0.5).seconds(trained)
        assert seconds == pytest.approx(DEVICE_STARTUP_S + 312 / (0.5 * tflops))
    jobs = StudyCost(open_study(REPOSITORY / "configs/gpt2.yaml")).jobs
    assert {job.rule for job in jobs if job.precision == "bfloat16"} == {"distill_student"}


def test_the_teacher_counts_at_its_own_precision():
    work = (Work("distill", 1, 331_500 * 10**9, teacher_flops=312 * 10**12),)
    trained = Job("distill_student", "x", (), work, Memory(), teacher_precision="bfloat16")
    seconds = Assumed("a100-80gb", 0.5).seconds(trained)
    assert seconds == pytest.approx(DEVICE_STARTUP_S + 19.5 / (0.5 * 19.5) + 312 / (0.5 * 312))
    data = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    same = {job.output: job for job in StudyCost(open_study(data)).jobs}
    data["distill"]["teacher_precision"] = "bfloat16"
    for job in StudyCost(open_study(data)).jobs:
        assert job.flops == same[job.output].flops
        if job.rule == "distill_student":
            taught = "from-none" not in job.output
            full = same[job.output].device.teacher
            assert full / 2 < job.device.teacher < full or not taught
            assert (sum(work.teacher_flops for work in job.work) > 0) == taught


def test_rates_are_straight_lines_between_the_measured_cases():
    calibration = Calibration(
        study="x",
        computed_as={},
        startup_s={"distill_student": 3.0},
        base_mb={"distill_student": 300.0},
        text_s_per_mb={"pack_tokens": 2.0},
        rates={"distill": [(100.0, 1e-6), (300.0, 2e-6)]},
        matmul_gflops=10.0,
    )
    speed = Measured(calibration)
    work = Work("distill", 1_000_000, 200 * 1_000_000)
    trained = Job("distill_student", "x", (), work=(work,), device=Memory(), host_mb=470)
    assert speed.seconds(trained) == pytest.approx(3 + 1.5)
    assert speed.memory_mb(trained) == 470 - 420 + 300
    packed = Job("pack_tokens", "y", (), work=(Work("text", 3_000_000, 0),), host_mb=1)
    assert speed.seconds(packed) == pytest.approx(5 + 6)
    scored = Job("score_importance", "z", (), work=(Work("score", 10**6, 10**12),), device=Memory())
    assert speed.seconds(scored) == pytest.approx(5 + 100)
    assert Assumed("a100-80gb", 0.4).seconds(scored) == pytest.approx(40 + 1 / 7.8)


def test_a_calibration_of_another_precision_is_not_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    study = open_study(data)
    measured = Calibration(
        study="x",
        computed_as=computed_as(study),
        startup_s={},
        base_mb={},
        text_s_per_mb={},
        rates={},
        matmul_gflops=10.0,
    )
    write_text(CALIBRATION, measured.to_json())
    assert isinstance(speed_of(study, CPU), Measured)
    data["distill"]["learning_rate"] = 1e-4
    assert isinstance(speed_of(open_study(data), CPU), Measured)
    data["distill"]["teacher_precision"] = "bfloat16"
    speed = speed_of(open_study(data), CPU)
    assert isinstance(speed, Assumed)
    assert "--calibrate measures (teacher_precision of distill changed" in speed.name


def test_budgets_that_share_a_trunk_cost_what_is_behind_it():
    data = yaml.safe_load((REPOSITORY / "tests/tiny/config.yaml").read_text())
    data["grid"].update(tokens=["10240", "20480"], arms=[], seeds=[0])
    data["distill"].update(schedule="wsd", warmup_tokens=512, decay_share=0.2)
    jobs = {job.output: job for job in StudyCost(open_study(data)).jobs}
    run = "results/tiny/students/3k/pruned-t6k/from-t6k/tokens-{}/seed-0/model/manifest.json"
    short, long = (jobs[run.format(tokens)] for tokens in ("10.24k", "20.48k"))
    assert short.work[0].tokens == 10_240
    assert long.work[0].tokens == 20_480 - 32 * 256  # 40 steps, the last 8 of which fall
    assert short.output in long.needs
