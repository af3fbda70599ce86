"""The session on a GPU, with tiny sizes on a CPU: all parts, a failure that stays alone, a calibration."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from capgap.config.devices import DEVICES
from capgap.cost.job_costs import StudyCost
from capgap.cost.roofline import ASSUMED
from capgap.cost.speed import GPU_CALIBRATION, OTHER_MFU, Assumed, speed_of
from capgap.cost.teacher_configs import open_study
from capgap.errors import CapgapError
from capgap.records.artifacts import write_text
from capgap.records.run_records import GpuCalibration

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))


def test_all_parts_run_to_the_end_and_the_plan_takes_the_calibration(tmp_path, monkeypatch):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks/gpu_session.py", "--tiny", "--minutes", "60",
         "--out", "lines.jsonl"],
        cwd=tmp_path, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in done.stdout.splitlines()] == lines
    ended = {line["part"]: line["failed"] for line in lines if "failed" in line}
    assert list(ended) == [
        "versions", "rates", "loss", "step", "tests", "streamed", "checkpoint", "sharded",
    ]  # fmt: skip
    assert set(ended.values()) == {None}
    agreed = [line["relative_error"] for line in lines if "objective" in line]
    assert len(agreed) == 4
    assert max(agreed) < 1e-5
    whole = {line["stream"]: line["loss"] for line in lines if "stream" in line}
    assert whole[True] == whole[False]
    made = GpuCalibration.read(tmp_path / "scratch/tiny-calibration.json")
    [rates] = [line for line in lines if "launch_s" in line]
    assert made.reached.launch_s == rates["launch_s"]
    peak = 1e12 * DEVICES[made.device].peak_tflops_bfloat16
    assert made.reached.products * peak == pytest.approx(rates["product_flops_per_s"])


def test_a_part_that_fails_or_hangs_leaves_the_others_alone(monkeypatch):
    import gpu_session

    lines, reason = gpu_session.run_part("no such part", True, 60)
    assert lines == []
    assert "status 2" in reason
    lines, reason = gpu_session.run_part("versions", True, 0.01)
    assert reason.startswith("not finished after 0 s")


def test_plan_counts_by_the_roofline_by_a_calibration_or_by_a_given_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load((REPOSITORY / "configs/gpt2.yaml").read_text())
    study = open_study(data)
    jobs = [job for job in StudyCost(study).jobs if job.rule == "distill_student"]

    def hours(speed):
        return sum(map(speed.seconds, jobs))

    plain = speed_of(study, "a100-80gb")
    assert "by a roofline, not measured" in plain.name
    shares = {
        job.flops / (plain.seconds(job) - plain.startup_s) / 312e12 for job in jobs
    }  # by model, not one number
    assert len(shares) > 5
    assert 0.05 < min(shares) < max(shares) < 0.69
    slow = GpuCalibration(
        gpu="NVIDIA A100",
        device="a100-80gb",
        reached=ASSUMED,
        measured_over_roofline=2.0,
    )
    write_text(GPU_CALIBRATION, slow.to_json())
    measured = speed_of(study, "a100-80gb")
    assert "measured on NVIDIA A100" in measured.name
    startup_s = plain.startup_s * len(jobs)
    assert hours(measured) - startup_s == pytest.approx(2 * (hours(plain) - startup_s))
    assert "measured" not in speed_of(study, "h100-80gb").name.replace("not measured", "")
    wrong = json.loads(slow.to_json())
    wrong["reached"]["product"] = wrong["reached"].pop("products")
    GPU_CALIBRATION.write_text(json.dumps(wrong))
    refused = "scratch/gpu-calibration.json: .*reached.products.*gpu_session.py.*delete it"
    with pytest.raises(CapgapError, match=refused):
        speed_of(study, "a100-80gb")
    GPU_CALIBRATION.unlink()
    data["plan"]["mfu"] = OTHER_MFU
    assert hours(speed_of(open_study(data), "a100-80gb")) == pytest.approx(
        hours(Assumed("a100-80gb", OTHER_MFU))
    )
