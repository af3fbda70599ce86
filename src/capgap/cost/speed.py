"""Seconds of a job: on a device by its roofline, on this machine from a calibration."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from capgap.config import Study
from capgap.config.devices import CPU, DEVICES
from capgap.cost.host_memory import MEGA, base_mb
from capgap.cost.one_job import Job, Work
from capgap.cost.roofline import ASSUMED
from capgap.errors import CapgapError
from capgap.records.run_records import Calibration, GpuCalibration
from capgap.workflow import job_host

CALIBRATION = Path("scratch/calibration.json")
GPU_CALIBRATION = Path("scratch/gpu-calibration.json")  # benchmarks/gpu_session.py writes it
OTHER_MFU = 0.4  # of passes that no roofline counts, like tasks
DEVICE_STARTUP_S = 40.0  # imports, loading, first kernels
JOB_STARTUP_S = 5.0
FORK_STARTUP_S = 0.5  # of a fork of the job host, which only loads its models
FORKED = ("pretrain_teacher", "evaluate_teacher", "score_importance", "cache_teacher")
FORKED += ("prune_student", "random_init_student", "given_student", "distill_student")
FORKED += ("evaluate_student", "sample_final", "cut_round", "distill_round", "score_round")
FORKED += ("evaluate_teacher_text", "evaluate_student_text")
# What a core is assumed to reach without a calibration, GFLOP/s by FLOPs per token: narrow matrices keep it less
# busy. Measured: 15 to 20 with the default study's models, 55 with SmolLM2 on a core of an AMD EPYC (Zen 5).
ASSUMED_GFLOPS = {1e6: 15.0, 1e8: 40.0}
ASSUMED_TEXT_S_PER_MB = 1.0
DOWNLOAD_BYTES_PER_S = 50e6
READ_BYTES_PER_S = 2e9  # of a local NVMe disk; weights are read while the layer before computes


class Assumed:
    """FLOPs over what a core is assumed to reach; on a GPU its roofline.

    mfu: share of the device's peak that is reached, instead of the roofline. calibration: what one of
    these devices was measured to reach, instead of what is assumed.
    """

    def __init__(
        self, device: str, mfu: float | None = None, calibration: GpuCalibration | None = None
    ):
        self.device, self.mfu = device, mfu
        self.forks = device == CPU and job_host.possible()
        self.reached, self.slower = ASSUMED, 1.0
        if device == CPU:
            least, most = min(ASSUMED_GFLOPS.values()), max(ASSUMED_GFLOPS.values())
            self.name = (
                f"assumed {least:g} to {most:g} GFLOP/s a core, by the models; --calibrate measures"
            )
            self.startup_s = JOB_STARTUP_S
            return
        full, half = DEVICES[device].peak_tflops_float32, DEVICES[device].peak_tflops_bfloat16
        share, how = mfu or OTHER_MFU, f"at {mfu:.0%}" if mfu else "by a roofline, not measured"
        if calibration is not None and mfu is None:
            self.reached = calibration.reached
            self.slower = calibration.measured_over_roofline
            how = f"measured on {calibration.gpu}"
        self.name = f"{device}, {full:g} TFLOP/s in float32 and {half:g} in bfloat16 {how}"
        self.flops_per_s = {"float32": full * share * 1e12, "bfloat16": half * share * 1e12}
        self.startup_s = DEVICE_STARTUP_S

    def seconds(self, job: Job) -> float:
        """Seconds of a job on as many workers as it has processes: start-up, FLOPs, text, download."""
        text = sum(work.tokens for work in job.work if work.kind == "text")
        computing = sum(self._computing(job, work) for work in job.work)
        startup_s = self.startup_s if job.device else JOB_STARTUP_S
        if self.forks and job.rule in FORKED and job.processes == 1:
            startup_s = FORK_STARTUP_S
        return (
            startup_s
            + max(computing / job.processes, job.read_bytes / READ_BYTES_PER_S)
            + ASSUMED_TEXT_S_PER_MB * text / MEGA
            + job.download_bytes / DOWNLOAD_BYTES_PER_S
        )

    def _computing(self, job: Job, work: Work) -> float:
        """Seconds of a piece of work on one device."""
        if self.device == CPU:
            return work.flops / _assumed_flops_per_s(work.flops / max(1, work.tokens))
        if work.through is not None and self.mfu is None:
            per_token = work.through.seconds_per_token(self.device, self.reached)
            return self.slower * work.tokens * per_token
        own = (work.flops - work.teacher_flops) / self.flops_per_s[job.precision]
        return own + work.teacher_flops / self.flops_per_s[job.teacher_precision]

    def memory_mb(self, job: Job) -> float:
        """Peak main memory as counted, MB of 10^6 bytes."""
        return job.host_mb


def _assumed_flops_per_s(flops_per_token: float) -> float:
    points = [math.log(at) for at in ASSUMED_GFLOPS]
    return 1e9 * float(
        np.interp(math.log(max(1, flops_per_token)), points, [*ASSUMED_GFLOPS.values()])
    )


class Measured:
    """CPU seconds and memory from a calibration of this machine."""

    def __init__(self, calibration: Calibration):
        self.calibration = calibration
        self.name = f"this machine, measured on the models of study {calibration.study}"

    def seconds(self, job: Job) -> float:
        """Seconds of a job on as many workers as it has processes, at the measured rates."""
        total = self.calibration.startup_s.get(job.rule, JOB_STARTUP_S)
        for work in job.work:
            if work.kind == "text":
                rate = self.calibration.text_s_per_mb.get(job.rule, ASSUMED_TEXT_S_PER_MB)
                total += rate * work.tokens / MEGA
            elif work.tokens:
                rate = self._per_token(work.kind, work.flops / work.tokens)
                total += rate * work.tokens / job.processes
        return total + job.download_bytes / DOWNLOAD_BYTES_PER_S

    def _per_token(self, kind: str, flops: float) -> float:
        """Seconds per token: linear in FLOPs per token through the smallest and the largest model."""
        points = self.calibration.rates.get(kind)
        if not points:
            return flops / (self.calibration.matmul_gflops * 1e9)
        (low_flops, low_s), (high_flops, high_s) = points[0], points[-1]
        if high_flops == low_flops:
            return low_s * flops / low_flops
        slope = max(0.0, (high_s - low_s) / (high_flops - low_flops))
        return max(low_s + slope * (flops - low_flops), low_s / 2)

    def memory_mb(self, job: Job) -> float:
        """Peak main memory, MB of 10^6 bytes: as counted, on the measured base of the rule."""
        measured = self.calibration.base_mb.get(job.rule)
        return job.host_mb if measured is None else job.host_mb - base_mb(job.rule) + measured


Speed = Assumed | Measured

DECIDING = (  # settings with which tokens of equal FLOPs take different times
    "precision",
    "teacher_precision",
    "teacher_targets",
    "activation_checkpointing",
    "compile",
)


def computed_as(study: Study) -> dict[str, dict[str, str | bool]]:
    """The settings in DECIDING by section, without those that are not set."""
    sections = {"pretrain": study.pretrain, "distill": study.distill}
    return {
        name: {key: value for key, value in settings if key in DECIDING and value is not None}
        for name, settings in sections.items()
        if settings
    }


def planned(study: Study, device: str) -> Assumed:
    """Speed of a device as the plan assumes it, or as one of its kind was measured in this folder."""
    try:
        found = GpuCalibration.read(GPU_CALIBRATION) if GPU_CALIBRATION.is_file() else None
    except CapgapError as error:
        raise CapgapError(
            f"{error} (benchmarks/gpu_session.py), or delete it, so that the plan takes assumed rates"
        ) from None
    fitting = found if found is not None and found.device == device else None
    return Assumed(device, study.plan.mfu, fitting)


def speed_of(study: Study, device: str) -> Speed:
    """Measured speed if the study runs on this machine and it was calibrated, else the assumed one."""
    assumed = planned(study, device)
    if device != CPU or not CALIBRATION.is_file():
        return assumed
    calibration, wanted = Calibration.read(CALIBRATION), computed_as(study)
    for section, settings in calibration.computed_as.items():
        if section in wanted and settings != wanted[section]:
            changed = dict(settings.items() ^ wanted[section].items())
            assumed.name += f" ({', '.join(changed)} of {section} changed since it last did)"
            return assumed
    return Measured(calibration)
