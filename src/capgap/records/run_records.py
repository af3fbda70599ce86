"""
Contents of the small result files: one class per file, one field per number, units in the names. The
files of the law and of the final student are in capgap.law.law_record.

Records are written as JSON with sorted keys, so that equal results are equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from capgap.config import SampleStage, TargetsStage
from capgap.errors import CapgapError
from capgap.records.reading import read_text


class Record(BaseModel):
    """Base of all records: unknown fields are errors, values are final."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> str:
        """The record as JSON text, sorted and with a final newline; NaN is refused."""
        data = self.model_dump(mode="json")
        return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a record; CapgapError names the file when it is missing or malformed."""
        text = read_text(path)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CapgapError(
                f"{path}: not a {cls.__name__} file{', at ' + where if where else ''}: "
                f"{first['msg']}; name the file that was meant, or make it again"
            ) from None


class ParamGroups(Record):
    """Parameters of a model by group; the groups sum to the total."""

    embedding: int  # input embedding, and the output head unless it is tied
    attention: int
    mlp: int
    norm: int
    non_embedding: int
    total: int
    active: int | None = None  # of non_embedding, those that a token uses; None if it uses all

    @model_validator(mode="after")
    def _sums(self) -> Self:
        assert self.non_embedding == self.attention + self.mlp + self.norm, self
        assert self.total == self.non_embedding + self.embedding, self
        return self


class Lineage(Record):
    """`lineage.json` in a model folder: the model's identity and origin."""

    kind: Literal["teacher", "init", "student"]
    name: str  # of the teacher, or of the student size
    init: str | None = None  # pruned-<teacher> or random
    teacher: str | None = None  # distilled from, 'none' for the arm without a teacher
    tokens: int | None = None  # trained on
    # of weights and data order; of an init, of its calibration text or weights
    seed: int | None = None
    teacher_seed: int | None = None  # of the teacher that a student learns from
    init_seed: int | None = None  # of the init that a student starts from
    params: ParamGroups


class Duplicates(Record):
    """Documents of a held-out split that also occur in another split."""

    exact: int  # word for word
    near: int  # near duplicates, see data.duplicates
    examples: list[tuple[str, str]]  # names of a document and of its duplicate


class CorpusRecord(Record):
    """`corpus.json` beside the splits of a corpus."""

    documents: dict[str, int]  # by split
    bytes: dict[str, int]  # UTF-8 bytes of the text
    shares_asked: dict[str, float]  # as configured, of all bytes, by held-out split of the corpus
    documents_cut: int  # into pieces in several splits
    duplicates: dict[str, Duplicates]


class TokenStreams(Record):
    """`meta.json` beside the token streams."""

    vocab_size: int  # of the tokenizer: its largest id plus one
    largest_id: int | None = None  # in the streams; None if it was not counted
    bos_id: int | None = None  # begins every window, as the tokenizer begins a text
    tokenizer_sha256: str  # of its files that decide the tokens, engine.models.tokenizer_digest
    documents: dict[str, int]  # by split
    tokens: dict[str, int]
    bytes: dict[str, int]  # UTF-8 bytes of the text
    completion_tokens: dict[str, int] | None = None  # in completions; None unless conversations
    completion_bytes: dict[str, int] | None = None


class TrainRecord(Record):
    """`train.json`: how a model was trained, and its last losses."""

    lineage: Lineage
    steps: int
    batch_tokens: int
    tokens: int
    tokens_per_param_non_embedding: float
    trunk_tokens: int  # of these, shared with larger budgets; 0 unless the schedule is wsd
    train_flops: float  # student forward and backward, teacher forward; with the shared part
    start_val_loss_nats_per_token: float
    best_val_loss_nats_per_token: float
    best_step: int
    last_val_loss_nats_per_token: float
    teacher_weight: float | None = None  # of the teacher's term in the loss; None without a teacher


class TargetsRecord(Record):
    """`targets.json` beside the shards of a teacher's targets: their source and their cost."""

    teacher: str
    teacher_seed: int | None = None  # seed of the teacher's training; None if unknown
    settings: TargetsStage
    weights_sha256: str  # of the teacher
    stream_sha256: str  # of the training stream
    stream_tokens: int
    vocab_size: int
    tokens: int  # that have targets, in whole sequences
    bytes_per_token: int
    windows_per_shard: int
    mean_tail_mass: float | None  # probability outside the top k; None for sampled targets
    forward_flops: float  # of the teacher, once for all students


class SplitLoss(Record):
    """Loss of a model on one split of held-out text."""

    loss_nats_per_token: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


class Metrics(Record):
    """`metrics.json`: a finished model measured on held-out text."""

    lineage: Lineage
    validation: SplitLoss
    test: SplitLoss
    forward_flops_per_token: int


class TextLoss(Record):
    """`texts/<text>.json`: a finished model measured on a further text."""

    lineage: Lineage
    text: str  # its name in evaluate.texts
    measured: SplitLoss


class HarnessScore(Record):
    """One metric of a task, or of a group of tasks, of lm-evaluation-harness."""

    task: str
    shots: int | None  # None if the tasks of a group differ
    task_version: str | None
    documents: int | None  # None for a group
    metric: str
    filter: str  # that extracts the answer from generated text; 'none' for likelihoods
    value: float | None  # as lm-eval gives it; None if it is no number
    standard_error: float | None
    higher_is_better: bool | None


class HarnessRecord(Record):
    """`harness.json`: a model measured on tasks of lm-evaluation-harness."""

    lineage: Lineage
    lm_eval_version: str
    tasks: dict[str, int]  # requested tasks with their few-shot examples; groups contain others
    limit: int | None  # documents of a task at most
    scores: list[HarnessScore]

    def asked(self) -> list[HarnessScore]:
        """The scores of the requested tasks and groups, without those inside groups."""
        return [score for score in self.scores if score.task in self.tasks]


class SampledPrompt(Record):
    """A beginning from held-out text."""

    document: str  # its name in the corpus
    text: str  # what the models read
    follows: str  # how the document goes on, up to the length of a continuation


class SampledModel(Record):
    """What one model wrote."""

    lineage: Lineage
    texts: list[str]  # a continuation of each prompt


class SamplesRecord(Record):
    """`samples.json`: held-out text continued by several models with the same random numbers."""

    settings: SampleStage
    conversations: bool  # whether prompts are the turns of conversations, by the chat template
    prompts: list[SampledPrompt]
    models: list[SampledModel]


class CurveRow(Record):
    """A row of `curves.csv`: a measurement during the training of a teacher or a student."""

    student: str | None  # empty for a teacher
    init: str | None
    teacher: str  # the model itself, or whom the student learns from; 'none' without one
    seed: int  # of the data order
    budget_tokens: int  # of the whole training
    tokens: int  # seen so far
    val_loss_nats_per_token: float  # on the first tokens of the validation split
    teacher_weight: float | None = None  # if the runs of the study differ in it


class RunRow(Record):
    """A row of `runs.csv`, the table the law is fitted on; one finished run.

    `law.table` describes which columns a table from elsewhere may leave out or name differently.
    """

    student: str  # name of the student size
    init: str  # pruned-<teacher> or random
    teacher: str  # name, or 'none'
    seed: int  # of the data order; runs with one seed saw the same data in the same order
    student_params_non_embedding: int
    teacher_params_non_embedding: int | None  # empty without a teacher
    tokens: int  # distillation tokens
    val_loss_nats_per_token: float  # what the law is fitted on
    arm: str = "main"  # main, no_teacher, random_init, cross_teacher
    teacher_family: str | None = None  # of teachers that were trained alike
    teacher_seed: int = 0  # which draw of the teacher, when one is trained several times
    init_seed: int = 0  # which draw of the init from one teacher
    student_params_total: int | None = None  # with embeddings
    teacher_params_total: int | None = None
    student_forward_flops_per_token: float | None = None
    teacher_forward_flops_per_token: float | None = None
    teacher_val_loss_nats_per_token: float | None = None
    start_val_loss_nats_per_token: float | None = None  # of the init, before training
    test_loss_nats_per_token: float | None = None
    test_bits_per_byte: float | None = None
    train_flops: float | None = None
    # of mixtures of experts, what a token uses of the parameters without embeddings
    student_params_active: int | None = None
    teacher_params_active: int | None = None
    n: int = 1  # runs behind a row of means
    sd: float | None = None  # between them, nats per token
    trunk_tokens: int | None = None  # shared with the next larger budget of the same run
    teacher_weight: float | None = None  # of the teacher's term in the loss, if runs differ in it
    # further outcomes as they were measured, by header, like bits_per_byte:news (capgap.law.table.metric)
    outcomes: dict[str, float | None] = Field({})

    def flat(self) -> dict[str, Any]:
        """The row with a column for each further outcome."""
        return self.model_dump(exclude={"outcomes"}) | self.outcomes


class Calibration(Record):
    """`scratch/calibration.json`: what `capgap plan --calibrate` measured on this machine."""

    study: str  # whose models were measured
    computed_as: dict[str, dict[str, str | bool]]  # by section, the settings that decide a rate
    startup_s: dict[str, float]  # CPU seconds of a job without its work, by rule
    base_mb: dict[str, float]  # peak memory beyond what is counted, MB of 10^6 bytes, by rule
    text_s_per_mb: dict[str, float]  # CPU seconds per MB of text, by rule
    # by kind of work: (FLOPs per token, CPU seconds per token) of the smallest and largest model
    rates: dict[str, list[tuple[float, float]]]
    matmul_gflops: float  # one thread, large matrices, float32


class Reached(Record):
    """What kernels reach: shares of the data sheet, and seconds of one launch (`capgap.cost.roofline`)."""

    products: float = Field(gt=0)  # of the peak, in matmuls of thousands of rows
    attention: float = Field(gt=0)  # of the peak in bfloat16, in FlashAttention-2
    attention_backward: float = Field(gt=0)
    bandwidth: float = Field(gt=0)  # of the memory
    launch_s: float = Field(ge=0)  # of an operation that Python starts
    compiled_launch_s: float = Field(ge=0)  # of one that a compiled layer starts


class GpuCalibration(Record):
    """`scratch/gpu-calibration.json`: what `benchmarks/gpu_session.py` measured on one GPU."""

    gpu: str  # as the driver names it
    device: str  # as `plan.device` names it
    reached: Reached
    # seconds of a real step over those of the roofline at these rates
    measured_over_roofline: float = Field(gt=0)
