"""The study: its grid, its law, its final student, and how the sections fit together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from capgap.config.devices import COLLECTIVE_TIMEOUT_MINUTES, DEVICE_NAMES
from capgap.config.grid_settings import SEEDS_OR_REPLICAS, Draw, Grid
from capgap.config.harness_settings import Harness, HarnessStage, task_of
from capgap.config.law_settings import Law
from capgap.config.pruning_settings import Score, StudyPrune
from capgap.config.sample_settings import Sample
from capgap.config.section import Count, Precision, Section, Seed
from capgap.config.study_problems import inconsistencies
from capgap.config.teacher_settings import ModelShape, PretrainedTeacher, Teacher
from capgap.config.text_settings import Corpus, HeldOutText, OfTeachers, Tokenizer
from capgap.config.training_settings import LOSS_ON, Distill, LossOn, Pretrain, PretrainStage


class CollectStage(Section):
    """Which runs a study's grid consists of, and where they lie."""

    root: str = Field(description="results folder of the study, for example results/sotu")
    grid: Grid = Field(description="the runs")
    teacher_sizes: dict[str, int] = Field(
        description="parameters without embeddings of every teacher, by name"
    )
    trained: list[str] = Field(
        description="teachers that are trained here, and so drawn anew in each replica"
    )
    given: dict[str, int] = Field(
        default_factory=dict,
        description="parameters without embeddings of every given student, by name",
    )
    teacher_weight: float | None = Field(
        None, description="weight of the teacher's term in runs whose paths have no level for it"
    )
    texts: list[str] = Field(
        default_factory=list, description="further texts that models were measured on, by name"
    )
    tasks: list[str] = Field(
        default_factory=list,
        description="tasks that students were measured on, as law.metric has them",
    )


class Evaluate(Section):
    """How a finished model is measured on held-out text."""

    sequence_length: int = Field(128, ge=2, description="tokens of context at most")
    batch_tokens: Count = Field(16384, gt=0, description="tokens per forward pass")
    precision: Precision = Field("float32", description="of matmuls and logits")
    loss_on: LossOn = Field("all", description=LOSS_ON)


class StudyEvaluate(Evaluate):
    """Evaluation with the further texts of a study."""

    texts: dict[str, HeldOutText] = Field(
        default_factory=dict,
        description="further texts on which teachers and students of the grid are measured, by name, each "
        "with its source like corpus; all documents are held out, and the law is also fitted on them",
    )

    def stage(self) -> Evaluate:
        """The settings that decide the loss of a model on any text."""
        return Evaluate(**{key: getattr(self, key) for key in Evaluate.model_fields})


class Final(Section):
    """The law-guided distillation of one student size, in the grid or not."""

    student: Count = Field(gt=0, description="student size, parameters without embeddings")
    tokens: Count = Field(gt=0, description="distillation tokens")
    init: Literal["pruned", "random", "given"] | None = Field(
        None,
        description="kind of init, whose law chooses the teacher; the first of grid.inits if not set. With "
        "given it is the given student of this size",
    )
    seeds: list[Seed] | None = Field(
        None, min_length=1, description="seeds of the data order, one run each; 0 if not set"
    )
    replicas: list[Seed] | None = Field(
        None,
        min_length=1,
        description="replicas of the grid whose teachers and inits are used, instead of seeds; if "
        "not set, the grid's first one",
    )

    @model_validator(mode="after")
    def _alternatives(self):
        if self.seeds is not None and self.replicas is not None:
            raise ValueError(SEEDS_OR_REPLICAS)
        return self

    def draws(self, grid: Grid) -> list[Draw]:
        """The draws of the final runs, one run each."""
        if self.replicas:
            return [Draw(number, number) for number in self.replicas]
        seeds = [0] if self.seeds is None else self.seeds
        return [Draw(grid.replica_numbers()[0], seed) for seed in seeds]


class Plan(Section):
    """Machines, and models that are not fetched yet. None of it changes a result."""

    device: str = Field(DEVICE_NAMES[0], description=f"one of {', '.join(DEVICE_NAMES)}")
    gpus: int = Field(1, gt=0, description="devices that work at the same time")
    processes: int = Field(
        1,
        gt=0,
        description="processes of one training job, each with a device if plan.device names one; results "
        "differ by rounding alone",
    )
    nodes: int = Field(
        1,
        gt=0,
        description="machines that these processes run on, as many on each; more than one needs Slurm",
    )
    shard: bool = Field(
        False,
        description="whether these processes shard weights, gradients, optimizer and teacher (FSDP2) instead "
        "of having a copy each (DDP); on several nodes, they shard within a node",
    )
    max_runtime: int | None = Field(
        None,
        ge=10,
        description="minutes that a cluster gives a job at most; longer jobs are sent again until they "
        "are finished, each time continuing from their last checkpoint",
    )
    collective_timeout_minutes: int = Field(
        COLLECTIVE_TIMEOUT_MINUTES,
        gt=0,
        description="minutes that processes of a job wait for one that hangs or is slower, before the job "
        "ends; it can be resumed",
    )
    mfu: float | None = Field(
        None,
        gt=0,
        le=1,
        description="achieved share of the device's peak; by a roofline of each model if not set",
    )
    container: str | None = Field(
        None,
        min_length=1,
        description="image that jobs run in with --sdm apptainer, like capgap.sif or docker://owner/capgap",
    )
    corpus_bytes: Count | None = Field(
        None, gt=0, description="UTF-8 bytes of text of a corpus that is not on this machine"
    )
    test_bytes: Count = Field(
        1_300_000,
        gt=0,
        description="UTF-8 bytes of corpus.test, and of each further text of the hub; the "
        "default is WikiText-2's",
    )
    corpus_download_bytes: Count | None = Field(
        None, gt=0, description="bytes to download for that corpus; 0.6 of its text if not set"
    )
    shapes: dict[str, ModelShape] = Field(
        default_factory=dict, description="shapes of fetched teachers by name"
    )

    @model_validator(mode="after")
    def _known_device(self):
        if self.device not in DEVICE_NAMES:
            raise ValueError(f"device is one of {', '.join(DEVICE_NAMES)}, got {self.device}")
        return self

    @model_validator(mode="after")
    def _equal_nodes(self):
        if self.processes % self.nodes:
            raise ValueError(
                f"processes: {self.processes} cannot be shared equally among {self.nodes} nodes; make it "
                "a multiple of plan.nodes"
            )
        if self.nodes > 1 and self.container:
            raise ValueError(
                f"nodes: {self.nodes} nodes are joined by srun, which an image (plan.container) does not "
                "have; take one of the two away"
            )
        return self

    @property
    def processes_per_node(self) -> int:
        """Processes of a training job on each of its machines."""
        return self.processes // self.nodes

    @property
    def shards(self) -> int:
        """Parts that a model is cut into: the processes of a node, or all if each has a node."""
        if not self.shard:
            return 1
        return self.processes if self.processes_per_node == 1 else self.processes_per_node


class Study(Section):
    """A whole study."""

    study: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        max_length=64,
        description="name, of at most 64 lower-case letters, digits, - and _; results go to "
        "results/<study>/",
    )
    corpus: Corpus = Field(description="the text")
    tokenizer: Tokenizer = Field(description="text to tokens")
    teacher_tokenizers: dict[str, OfTeachers] = Field(
        default_factory=dict,
        description="tokenizers, by name, of teachers that do not have the students' one; such teachers "
        "teach by classes of entries",
    )
    teachers: dict[str, Teacher] = Field(min_length=1, description="teachers by name")
    students: dict[str, Teacher] = Field(
        default_factory=dict,
        description="given students by name, models that exist already or are trained here as teachers "
        "are; grid.inits has given for them",
    )
    pretrain: Pretrain | None = Field(None, description="needed by models with source: pretrain")
    prune: StudyPrune = Field(default_factory=StudyPrune, description="pruning")
    distill: Distill = Field(default_factory=Distill, description="distillation recipe")
    evaluate: StudyEvaluate = Field(default_factory=StudyEvaluate, description="evaluation")
    grid: Grid = Field(description="the runs the law is fitted on")
    law: Law = Field(default_factory=Law, description="regression")
    final: Final | None = Field(None, description="the law-guided distillation; none if not set")
    sample: Sample = Field(
        default_factory=Sample, description="text that the final students and their teacher write"
    )
    harness: Harness | None = Field(None, description="tasks of lm-evaluation-harness, if any")
    plan: Plan = Field(default_factory=Plan, description="assumptions about machines and sizes")

    @model_validator(mode="after")
    def _consistent(self):
        problems = list(inconsistencies(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def watching(self) -> dict[str, set[str]]:
        """The settings that no result depends on, as pydantic's `exclude` wants them."""
        sections = {name: getattr(self, name) for name in ("pretrain", "distill")}
        return {name: set(section.watch_only) for name, section in sections.items() if section}

    @property
    def models(self) -> dict[str, Any]:
        """Teachers and given students by name."""
        return {**self.students, **self.teachers}

    def teacher_tokenizer(self, teacher: str) -> str:
        """Name of a teacher's own tokenizer in teacher_tokenizers; empty for that of the students."""
        own = self.teacher_tokenizers.items()
        return next((name for name, tokenizer in own if teacher in tokenizer.names()), "")

    def given_names(self) -> list[str]:
        """Names of the given students of the grid; none unless grid.inits has given."""
        if "given" not in self.grid.inits:
            return []
        return list(self.students) if self.grid.given is None else list(self.grid.given)

    def pretrain_stage(self, teacher: str, replica: int | None = None) -> PretrainStage:
        """Settings of one teacher's training: its own, over those of `pretrain`.

        A replica's number is added to the seed of the teacher.
        """
        own = self.models[teacher].model_dump(exclude_none=True, exclude={"source"})
        shared = self.pretrain.recipe()
        own["seed"] = self.models[teacher].seed + (replica or 0)  # pyright: ignore[reportAttributeAccessIssue]
        own.setdefault("tokens", self.pretrain.tokens_of(self.teacher_size(teacher)))
        return PretrainStage.model_validate({**shared, **own})

    def distill_stage(self, weight: float) -> Distill:
        """Settings of the distillations at a weight of the teacher's term."""
        return self.distill.model_copy(update={"teacher_weight": weight})

    def tasks_of_law(self) -> list[str]:
        """The metrics of the law that are tasks of the harness, as law.metric has them."""
        known = self.harness.shots() if self.harness else {}
        return [name for name in self.law.metrics() if task_of(name) in known]

    def student_harness(self) -> HarnessStage | None:
        """Settings of measuring the students of the grid on the tasks of the law; None without any."""
        shots, asked = self.harness and self.harness.shots(), map(task_of, self.tasks_of_law())
        chosen = {name: shots[name] for name in asked} if shots else {}
        if not chosen:
            return None
        return self.harness.stage().model_copy(update={"preset": None, "tasks": chosen})

    def law_stage(self) -> Law:
        """Settings of the regression."""
        first = self.law.teacher_weight
        if len(self.grid.teacher_weights or []) < 2:  # the runs do not differ in it
            first = None
        elif first is None:
            first = self.distill.teacher_weight
        return self.law.model_copy(update={"teacher_weight": first})

    def score_stage(self, replica: int | None = None) -> Score:
        """Settings of scoring; a replica's number is added to the seed of the calibration text."""
        scoring = self.prune.scoring()
        return scoring.model_copy(update={"seed": scoring.seed + (replica or 0)})

    def round_stage(self) -> Distill:
        """Settings of the training between two cuts: those of `distill`, with a cosine schedule.

        No larger budget continues from there, so there is no trunk to keep.
        """
        return self.distill.model_copy(update={"schedule": "cosine"})

    def teacher_size(self, teacher: str) -> int | None:
        """Parameters of a teacher or given student without embeddings and output head.

        None for one that is fetched, before `cost.teacher_configs.complete` has read its size.
        """
        entry = self.models[teacher]
        if isinstance(entry, PretrainedTeacher):
            return entry.shape(vocab=1).params()["non_embedding"]
        return entry.params_non_embedding
