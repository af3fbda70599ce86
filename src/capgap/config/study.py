"""The study: its grid, its law, its final student, and how the sections fit together."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from capgap.config.counts import format_count
from capgap.config.devices import DEVICE_NAMES
from capgap.config.harness_settings import Harness
from capgap.config.pruning_settings import StudyPrune
from capgap.config.section import Count, Section, Seed
from capgap.config.teacher_settings import (
    HubTeacher,
    ModelShape,
    PackageTeacher,
    PathTeacher,
    PretrainedTeacher,
    Teacher,
)
from capgap.config.text_settings import Corpus, TeacherTokenizer, Tokenizer
from capgap.config.training_settings import Distill, Pretrain, PretrainStage


class Grid(Section):
    """The runs the law is fitted on: every student from every larger teacher, at every budget."""

    students: list[Annotated[Count, Field(gt=0)]] = Field(
        min_length=1, description="student sizes, parameters without embeddings"
    )
    tokens: list[Annotated[Count, Field(gt=0)]] = Field(
        min_length=1, description="distillation budgets, tokens"
    )
    seeds: list[Seed] = Field(min_length=1, description="seeds of the data order, one run each")
    arms: list[Literal["no_teacher", "random_init", "cross_teacher"]] = Field(
        default_factory=list, description="control arms beside the main one"
    )
    arm_seeds: list[Seed] | None = Field(
        None, min_length=1, description="seeds of the control arms, if not all"
    )


class CollectStage(Section):
    """Which runs a study's grid consists of, and where they lie."""

    root: str = Field(description="results folder of the study, for example results/sotu")
    grid: Grid = Field(description="the runs")
    teacher_sizes: dict[str, int] = Field(
        description="parameters without embeddings of every teacher, by name"
    )


class Evaluate(Section):
    """How a finished model is measured on held-out text."""

    sequence_length: int = Field(128, ge=2, description="tokens of context at most")
    batch_tokens: Count = Field(16384, gt=0, description="tokens per forward pass")


def _from_text(value: Any) -> Any:
    """A list given on the command line, as YAML writes it."""
    if isinstance(value, str):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError("a list as YAML writes it, like [{teacher: t78, seed: 1}]") from None
    return value


class Law(Section):
    """How the law is fitted."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of every interval")
    metric: Literal["loss", "perplexity", "error", "accuracy"] | None = Field(
        None, description="what measures the runs; if not set, the header of its column decides"
    )
    exclude: Annotated[list[dict[str, str | int]], BeforeValidator(_from_text)] = Field(
        default_factory=list,
        description="runs to leave out, each by its columns, for example [{teacher: t78, seed: 1}]",
    )
    tie_nats: float = Field(
        0.005, ge=0, description="teachers this close to the best count as equally good, nats"
    )
    tie_logits: float = Field(
        0.02, ge=0, description="the same for error and accuracy, logits (half a point at 50 %)"
    )
    ratio_margin: float = Field(
        0.25, gt=0, description="share by which T*/S may differ from the published one and be equal"
    )
    exponent_margin: float = Field(
        0.15, gt=0, description="difference up to which two exponents count as equal"
    )
    published_slope: float = Field(2.5, gt=0, description="T*/S the fit is compared with")
    size: Literal["non_embedding", "total", "forward_flops"] = Field(
        "non_embedding",
        description="what counts the size of a model: parameters without or with embeddings, or "
        "FLOPs of a forward pass",
    )
    noise_sd: float | None = Field(
        None,
        gt=0,
        description="standard deviation between runs that differ in the order of the data alone, "
        "nats; if not set, it is estimated",
    )


class Final(Section):
    """The law-guided distillation of a student size that is not in the grid."""

    student: Count = Field(gt=0, description="student size, parameters without embeddings")
    tokens: Count = Field(gt=0, description="distillation tokens")
    seeds: list[Seed] = Field(
        default=[0], min_length=1, description="seeds of the data order, one run each"
    )


class Plan(Section):
    """Machines, and models that are not here: decides where and how long, not what comes out."""

    device: str = Field(DEVICE_NAMES[0], description=f"one of {', '.join(DEVICE_NAMES)}")
    gpus: int = Field(1, gt=0, description="devices that work at the same time")
    processes: int = Field(
        1,
        gt=0,
        description="processes of one training job, each with a device where one is named; results "
        "differ by rounding alone",
    )
    shard: bool = Field(
        False,
        description="whether these share weights, gradients, optimizer and teacher (FSDP2) instead of "
        "having a copy each (DDP)",
    )
    mfu: float = Field(
        0.4, gt=0, le=1, description="achieved share of the device's peak, for large models"
    )
    corpus_bytes: Count | None = Field(
        None, gt=0, description="UTF-8 bytes of text of a corpus that is not here"
    )
    test_bytes: Count = Field(
        1_300_000, gt=0, description="UTF-8 bytes of corpus.test; the default is WikiText-2's"
    )
    corpus_download_bytes: Count | None = Field(
        None, gt=0, description="bytes to download for it, if not 0.6 of its text"
    )
    shapes: dict[str, ModelShape] = Field(
        default_factory=dict, description="shapes of fetched teachers by name"
    )

    @model_validator(mode="after")
    def _known_device(self):
        if self.device not in DEVICE_NAMES:
            raise ValueError(f"device is one of {', '.join(DEVICE_NAMES)}, got {self.device}")
        return self


class Study(Section):
    """A whole study."""

    study: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="name, of lower-case letters, digits, - and _; results go to results/<study>/",
    )
    corpus: Corpus = Field(description="the text")
    tokenizer: Tokenizer = Field(description="text to tokens")
    teachers: dict[str, Teacher] = Field(min_length=1, description="teachers by name")
    pretrain: Pretrain | None = Field(None, description="needed by teachers with source: pretrain")
    prune: StudyPrune = Field(default_factory=StudyPrune, description="pruning")
    distill: Distill = Field(default_factory=Distill, description="distillation recipe")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="evaluation")
    grid: Grid = Field(description="the runs the law is fitted on")
    law: Law = Field(default_factory=Law, description="regression")
    final: Final = Field(description="the law-guided distillation")
    harness: Harness | None = Field(None, description="tasks of lm-evaluation-harness, if any")
    plan: Plan = Field(default_factory=Plan, description="assumptions about machines and sizes")

    @model_validator(mode="after")
    def _consistent(self):
        problems = list(_inconsistencies(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def pretrain_stage(self, teacher: str) -> PretrainStage:
        """Settings of one teacher's training: its own, over those of `pretrain`."""
        own = self.teachers[teacher].model_dump(exclude_none=True, exclude={"source"})
        return PretrainStage.model_validate({**self.pretrain.model_dump(), **own})

    def teacher_size(self, teacher: str) -> int:
        """Parameters of a teacher without embeddings and output head."""
        entry = self.teachers[teacher]
        if isinstance(entry, PretrainedTeacher):
            return entry.shape(vocab=1).params()["non_embedding"]
        return entry.params_non_embedding


TEACHER_NAME = r"[a-z0-9][a-z0-9.-]*"


def _inconsistencies(study: Study):
    """Problems that only show when sections are read together, one sentence each."""
    for name, teacher in study.teachers.items():
        if name == "none" or not re.fullmatch(TEACHER_NAME, name):
            yield (
                f"teachers.{name}: a name has lower-case letters, digits, dots and hyphens, "
                "and is not 'none' (that is the arm without a teacher)"
            )
        if isinstance(teacher, PretrainedTeacher) and study.pretrain is None:
            yield f"teachers.{name}: source is pretrain, so the section 'pretrain' is needed; add it"
    if isinstance(study.tokenizer, TeacherTokenizer):
        teacher = study.teachers.get(study.tokenizer.teacher)
        if teacher is None or isinstance(teacher, PretrainedTeacher):
            yield (
                f"tokenizer.teacher: '{study.tokenizer.teacher}' is not a teacher that brings a "
                "tokenizer; name one with source hub, package or path"
            )
    for name in study.plan.shapes:
        if not isinstance(study.teachers.get(name), HubTeacher | PackageTeacher | PathTeacher):
            yield f"plan.shapes.{name}: no teacher of this name is fetched"
    for name in (study.harness and study.harness.teachers) or []:
        if name not in study.teachers:
            yield f"harness.teachers: no teacher is called {name}"
    for section in ("pretrain", "distill"):
        settings, processes = getattr(study, section), study.plan.processes
        sequences = settings and settings.batch_tokens // settings.sequence_length
        if sequences and sequences % processes:
            yield (
                f"plan.processes: the {sequences} sequences of {section}.batch_tokens cannot be shared "
                f"equally among {processes} processes; change one of them"
            )
    sizes = {name: study.teacher_size(name) for name in study.teachers}
    largest = max(sizes, key=sizes.get)
    for key, students in (
        ("grid.students", study.grid.students),
        ("final.student", [study.final.student]),
    ):
        for student in students:
            if student >= sizes[largest]:
                yield (
                    f"{key}: {format_count(student)} is not smaller than any teacher; the largest, "
                    f"{largest}, has {sizes[largest]:,} parameters without embeddings; lower the "
                    "student or add a larger teacher"
                )
    for section, key in (
        *(("grid", key) for key in ("students", "tokens", "seeds", "arms", "arm_seeds")),
        ("final", "seeds"),
    ):
        values = getattr(getattr(study, section), key) or []
        if len(set(values)) < len(values):
            yield f"{section}.{key}: the same value stands twice in {values}; leave one out"
    for first, second in itertools.combinations(study.teachers, 2):
        if study.teachers[first] == study.teachers[second]:
            yield (
                f"teachers.{second}: the same model as teachers.{first}; leave one out, or change "
                "its shape or seed"
            )
    if study.final.student in study.grid.students:
        yield (
            f"final.student: {format_count(study.final.student)} is in grid.students; the law is "
            "tested on a size it has not seen"
        )
    for seed in study.grid.arm_seeds or []:
        if seed not in study.grid.seeds:
            yield f"grid.arm_seeds: {seed} is not in grid.seeds, so the arm would have no partner"
    for key, tokens in [
        ("grid.tokens", min(study.grid.tokens)),
        ("final.tokens", study.final.tokens),
    ]:
        distill = study.distill
        if tokens < distill.batch_tokens:
            yield f"{key}: {tokens} is less than one step, distill.batch_tokens is {distill.batch_tokens}"
        elif distill.schedule == "wsd" and distill.warmup_tokens > tokens * (
            1 - distill.decay_share
        ):
            yield (
                f"distill.warmup_tokens: {distill.warmup_tokens} is more than {key} of {tokens} has "
                f"before the learning rate falls over its last {distill.decay_share:.0%}"
            )
