"""
What the small result files contain: one class a file, one field a number, units in the names.

Records are written as JSON with sorted keys, so that equal results are equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from capgap.errors import CapgapError


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
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CapgapError(f"{path}: no such file") from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise CapgapError(f"{path}: not a {cls.__name__} record: {error}") from None


class ParamGroups(Record):
    """Parameters of a model by group; the groups sum to the total."""

    embedding: int  # input embedding and, where it is separate, the output head
    attention: int
    mlp: int
    norm: int
    non_embedding: int
    total: int

    @model_validator(mode="after")
    def _sums(self) -> Self:
        assert self.non_embedding == self.attention + self.mlp + self.norm, self
        assert self.total == self.non_embedding + self.embedding, self
        return self


class Lineage(Record):
    """`lineage.json` in a model folder: what the model is and where it comes from."""

    kind: Literal["teacher", "init", "student"]
    name: str  # of the teacher, or of the student size
    init: str | None = None  # the start: pruned-<teacher> or random
    teacher: str | None = None  # distilled from, 'none' for the arm without a teacher
    tokens: int | None = None  # trained on
    seed: int | None = None
    params: ParamGroups


class TokenStreams(Record):
    """`meta.json` beside the token streams."""

    vocab_size: int
    documents: dict[str, int]  # by split
    tokens: dict[str, int]
    bytes: dict[str, int]  # UTF-8 bytes of the text


class TrainRecord(Record):
    """`train.json`: how a model was trained and where it ended."""

    lineage: Lineage
    steps: int
    batch_tokens: int
    tokens: int
    tokens_per_param_non_embedding: float
    train_flops: float  # student forward and backward, teacher forward
    start_val_loss_nats_per_token: float
    best_val_loss_nats_per_token: float
    best_step: int
    last_val_loss_nats_per_token: float


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


class RunRow(Record):
    """A row of `runs.csv`, the table the law is fitted on; one finished run.

    A table from elsewhere needs the columns without a default.
    """

    student: str  # name of the student size
    init: str  # pruned-<teacher> or random
    teacher: str  # name, or 'none'
    seed: int
    student_params_non_embedding: int
    teacher_params_non_embedding: int | None  # empty without a teacher
    tokens: int  # distillation tokens
    val_loss_nats_per_token: float  # what the law is fitted on
    arm: str = "main"  # main, no_teacher, random_init, cross_teacher
    teacher_val_loss_nats_per_token: float | None = None
    start_val_loss_nats_per_token: float | None = None  # of the init, before training
    test_loss_nats_per_token: float | None = None
    test_bits_per_byte: float | None = None
    train_flops: float | None = None


class Interval(Record):
    """An estimate with its interval; `low` or `high` is None where the data set no limit."""

    value: float
    low: float | None
    high: float | None


class TeacherCell(Record):
    """One teacher at one student size and budget, over its seeds."""

    teacher: str
    teacher_params_non_embedding: int
    n_seeds: int
    mean_loss_nats_per_token: float  # adjusted for the effect of seeds it lacks
    loss_low: float | None  # interval of the mean, None where seeds do not allow one
    loss_high: float | None
    regret_nats: float  # above the best teacher of the same student and budget


class Optimum(Record):
    """The best teacher size of one student size at one token budget."""

    student: str
    student_params_non_embedding: float  # mean over its runs
    tokens: int
    status: Literal["interior", "lower_bound", "upper_bound", "not_identifiable"]
    # interior: an optimum inside the grid. lower_bound: the largest teacher is best, so the
    # optimum lies above the second largest. upper_bound: the smallest is best, so it lies below
    # the second smallest. not_identifiable: fewer than three teacher sizes.
    reason: str
    teacher_params: Interval | None  # T*, only where interior; interval by resampling runs
    ratio: Interval | None  # T* / S, only where interior
    interior_share: float | None  # share of resamples with an interior optimum; None with one seed
    best_teacher: str  # lowest mean loss among those tried
    within_tie: list[str]  # teachers within law.tie_nats of the best
    cells: list[TeacherCell]  # by teacher size


class Line(Record):
    """T* = intercept + slope S over the interior optima of one token budget."""

    tokens: int
    status: Literal["fitted", "not_identifiable"]
    reason: str
    slope: Interval | None  # hull of the resampled interval and the regression's t interval
    intercept: Interval | None
    ratio_through_origin: Interval | None  # T* = ratio S
    slope_resampled: Interval | None  # narrower; right only if T* is exactly linear in S
    r_squared: float | None
    n_students: int  # interior optima used
    published_slope: float
    published_slope_inside: bool | None  # whether the interval holds it


class LawRecord(Record):
    """`law.json`: what the regression found."""

    n_runs: int
    confidence: float
    resamples: int
    tie_nats: float
    seed: int  # of the resampling
    seed_sd_nats: float | None  # standard deviation between seeds of a cell, pooled
    paired_sd_nats: float | None  # the same without what a seed does to all teachers alike
    unevenness_sd_nats: float | None  # of a teacher about the smooth curve, beyond the seeds;
    # 0 where seeds explain it, None with one seed or fewer than five teacher sizes
    optima: list[Optimum]
    lines: list[Line]  # one for each token budget
    family_monotone: bool | None  # teacher loss falls with teacher size over the whole family
    verdict: str  # one sentence


class Choice(Record):
    """`choice.json`: the teacher the law chooses for a student size, and what it is held against."""

    student_params_non_embedding: int
    tokens: int  # budget of the final run
    law_tokens: int  # budget of the law that was used
    basis: Literal["line", "nearest_student"]  # nearest_student where no line could be fitted
    basis_note: str
    teacher_params_star: Interval | None  # T* of the line at this student size
    chosen: str
    neighbour: str | None  # the next best guess, from the other side of T* where there is one
    largest: str

    def teachers(self) -> list[str]:
        """The teachers to distil the final student from, chosen first, without repeats."""
        names = [self.chosen, self.neighbour, self.largest]
        return list(dict.fromkeys(name for name in names if name))


class FinalRow(Record):
    """The final student from one teacher, mean over its seeds."""

    teacher: str
    role: str  # chosen, neighbour, largest, or several
    teacher_params_non_embedding: int
    student_params_non_embedding: float
    n_seeds: int
    val_loss_nats_per_token: float
    test_loss_nats_per_token: float
    test_bits_per_byte: float
    test_perplexity: float
    test_loss_by_seed: dict[str, float]
    train_flops: float


class FinalRecord(Record):
    """`final.json`: the final student against its alternatives."""

    choice: Choice
    rows: list[FinalRow]  # best test loss first
    chosen_is_best: bool
    regret_nats: float  # test loss of the chosen above the best of the alternatives
    resolved: bool | None  # whether the difference exceeds the seeds' noise; None if unknown
    published_seed: int  # the run whose model is published
    sentence: str


def read_json(path: str | Path) -> Any:
    """Read any JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
