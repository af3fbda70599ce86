"""One job of a study and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from capgap.cost.device_memory import Memory
from capgap.cost.roofline import Pass

COMPRESSED = 0.6  # size of text in Parquet, of its UTF-8 bytes


@dataclass(frozen=True)
class Work:
    """Tokens of one kind of pass through a model."""

    kind: str  # pretrain, train, distill, targets, evaluate, score; or text, whose tokens are bytes
    tokens: int
    flops: int
    teacher_flops: int = 0  # of these, in distillation
    through: Pass | None = None  # the models, on a device; None for rare and mixed passes


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    rule: str
    output: str  # the output that stands for the job
    needs: tuple[str, ...]  # outputs of other jobs
    work: tuple[Work, ...] = ()
    device: Memory | None = None  # on each device; None for a job that needs none
    processes: int = 1  # which share the job, each with a device
    precision: str = "float32"  # of its matmuls
    teacher_precision: str = "float32"  # of the teacher's, in distillation
    host_mb: int = 0  # peak main memory, of each machine
    disk_bytes: int = 0
    scratch_bytes: int = 0  # while it runs
    download_bytes: int = 0
    read_bytes: int = 0  # of weights, from disk while it computes, if they do not fit in memory

    @property
    def flops(self) -> int:
        """FLOPs of all its work."""
        return sum(work.flops for work in self.work)

    @property
    def tokens(self) -> int:
        """Tokens trained, scored or evaluated."""
        return sum(work.tokens for work in self.work if work.kind != "text")
