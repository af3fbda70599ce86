"""
What the small result files contain: one class a file, one field a number, units in the names.

Records are written as JSON with sorted keys, so that equal results are equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from capgap.config import SignalStage
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
            raise CapgapError(f"{path}: no such file; check the path") from None
        except UnicodeDecodeError as error:
            raise CapgapError(f"{path}: not UTF-8 text ({error.reason})") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CapgapError(
                f"{path}: not a {cls.__name__} file{', at ' + where if where else ''}: "
                f"{first['msg']}; name the file that was meant, or make it again"
            ) from None


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
    trunk_tokens: int  # of these, shared with larger budgets; 0 unless the schedule is wsd
    train_flops: float  # student forward and backward, teacher forward; with the shared part
    start_val_loss_nats_per_token: float
    best_val_loss_nats_per_token: float
    best_step: int
    last_val_loss_nats_per_token: float


class SignalRecord(Record):
    """`signal.json` beside the shards of a teacher's signal: what it is of, and what it took."""

    teacher: str
    settings: SignalStage
    weights_sha256: str  # of the teacher
    stream_sha256: str  # of the training stream
    stream_tokens: int
    vocab_size: int
    tokens: int  # covered, whole sequences
    bytes_per_token: int
    windows_per_shard: int
    mean_tail_mass: float | None  # of all but the most likely; None for samples
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


class HarnessScore(Record):
    """One metric of a task, or of a group of tasks, of lm-evaluation-harness."""

    task: str
    shots: int | None  # None where the tasks of a group differ
    task_version: str | None
    documents: int | None  # None for a group
    metric: str
    filter: str  # how the answer was read from what the model wrote; 'none' for likelihoods
    value: float | None  # as lm-eval gives it; None where it is no number
    standard_error: float | None
    higher_is_better: bool | None


class HarnessRecord(Record):
    """`harness.json`: a model measured on tasks of lm-evaluation-harness."""

    lineage: Lineage
    lm_eval_version: str
    tasks: dict[str, int]  # those asked for, with their few-shot examples; groups hold others
    limit: int | None  # documents of a task at most
    scores: list[HarnessScore]

    def asked(self) -> list[HarnessScore]:
        """The scores of the tasks and groups that were asked for, without those inside groups."""
        return [score for score in self.scores if score.task in self.tasks]


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
    trunk_tokens: int | None = None  # from which the next larger budget of the same run goes on


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
    shape: Literal["interior", "saturating", "monotone", "flat", "not_identifiable"] = (
        "not_identifiable"  # the verdict, which asks for significance; rules in capgap.law.shape
    )
    shape_reason: str = "not judged"


class Influence(Record):
    """What one student does to a line."""

    student: str
    slope_without: float


class BandPoint(Record):
    """The line's own interval at a student size (not that of one more optimum), parameters."""

    student_params_non_embedding: float
    teacher_params: Interval


class Line(Record):
    """T* = intercept + slope S over the optima of one token budget, those at an edge as bounds."""

    tokens: int
    status: Literal["fitted", "not_identifiable"]
    reason: str
    slope: Interval | None  # t interval of the weighted regression
    intercept: Interval | None
    ratio_through_origin: Interval | None  # T* = ratio S
    slope_resampled: Interval | None  # over runs alone; right only if T* is exactly linear in S
    r_squared: float | None
    n_students: int  # interior optima used
    n_bounds: int = 0  # optima at an edge of the grid, used as bounds
    published_slope: float
    published_slope_inside: bool | None  # whether the interval holds it
    elasticity: Interval | None = None  # slope of log T* on log S; 1 is proportion
    elasticity_resampled: Interval | None = None  # over runs alone
    influence: list[Influence] = []  # slope without each student in turn
    band: list[
        BandPoint
    ] = []  # over the students of the line, and half as far again on either side


class RatioAt(Record):
    """T*/S of the joint surface at one student size and budget of the grid."""

    student: str
    student_params_non_embedding: float
    tokens: int
    tokens_per_param: float
    ratio: Interval | None  # None where the surface has no minimum
    inside_grid: bool  # whether T* lies between the teachers tried there
    tie_low: float | None  # teacher sizes within tie_nats of the surface's best, parameters
    tie_high: float | None


class SurfaceFit(Record):
    """The joint surface over (S, T, D); rules and formula in capgap.law.surface."""

    status: Literal["fitted", "flat", "not_identifiable"]
    reason: str
    terms: dict[str, float]  # nats per unit of u = log T/S and of log S, log D about the centre
    centre_student_params: float  # geometric means of the groups
    centre_tokens: float
    by_size: Interval | None  # elasticity of T* by S at fixed D
    by_tokens: Interval | None  # elasticity of T* by D at fixed S
    by_size_at_fixed_tokens_per_param: Interval | None
    tokens_shape: Literal["constant", "rising", "falling", "saturating", "unknown"]
    # how T*/S goes with D at fixed S; saturating: it moves, but not between the two largest budgets
    ratios: list[RatioAt]  # by tokens per student parameter
    rms_nats: float
    error_sd_nats: float


class RivalFit(Record):
    """A rival law fitted to the same runs."""

    law: str
    status: Literal["identified", "not_identifiable", "failed", "not_available"]
    # not_identifiable: some constants are held because the runs cannot determine them
    reason: str
    constants: dict[str, float]
    free: list[str]
    held: list[str]
    n_cells: int
    rms_log_loss: float | None


class StartExplains(Record):
    """How far the loss of the start explains differences within a student size and budget."""

    n_cells: int
    r_squared_start: float
    r_squared_teacher: float  # by log T/S and its square
    r_squared_both: float
    p_teacher: float  # F test: teacher size explains nothing beyond the start
    p_start: float  # F test: the start explains nothing beyond teacher size


class Pick(Record):
    """The teacher that a law chose for a student it had not seen."""

    student: str
    student_params_non_embedding: float
    tokens: int
    teacher: str
    teacher_params_non_embedding: int
    regret_nats: float


class Score(Record):
    """How well a law chose for student sizes it had not seen; means over students and budgets."""

    law: str
    status: Literal["scored", "not_available"]
    reason: str
    n_cases: int
    mean_regret_nats: float | None  # observed loss of its choice above the observed best
    max_regret_nats: float | None
    hit_rate: float | None  # choice within tie_nats of the best
    chance_hit_rate: float | None  # the same for a teacher at random
    interval_coverage: float | None  # share of its intervals that hold the T* left out
    n_intervals: int
    pilot_flops: float | None  # of the runs it was fitted to
    choice_flops: float | None  # of one run with its choice
    exhaustive_flops: float | None  # of one run with every teacher
    picks: list[Pick] = []  # of a law or rule that names a teacher, case by case


class ArmEffects(Record):
    """Effects of start and teacher at one student size and budget, nats per token."""

    student: str
    tokens: int
    start_nats: float | None  # span over pruned starts
    teacher_nats: float | None  # span over teachers at a fixed start
    noise_nats: float | None  # span that noise alone exceeds in 5 % of cases
    fixed_start_shapes: dict[str, str]  # by init
    gain_nats: float | None  # own teacher against none at the same start


class Claim(Record):
    """One claim of the law and what the runs say about it."""

    name: Literal["interior", "proportional", "ratio", "all_budgets"]
    answer: Literal["yes", "no", "unknown"]
    reason: str


class Overall(Record):
    """The verdict on the law; rules in capgap.law.claims."""

    status: Literal["supported", "contradicted", "inconclusive"]
    reason: str
    claims: list[Claim]
    cause: Literal["init", "teacher", "both", "unknown"]  # of interior optima
    cause_reason: str


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
    overall: Overall | None = None
    surface: SurfaceFit | None = None  # None with fewer than three teacher sizes everywhere
    rivals: list[RivalFit] = []
    scores: list[Score] = []
    effects: list[ArmEffects] = []  # of students and budgets with a control arm
    start_explains: StartExplains | None = None  # None without losses of the starts


class RankedTeacher(Record):
    """One teacher of a recommendation."""

    teacher: str
    teacher_params_non_embedding: int
    ratio: float  # to the student's size
    predicted_loss: Interval | None  # nats per token; None where no surface could be fitted
    predicted_regret: Interval | None  # above the best teacher offered, nats
    within_tie: bool | None  # predicted to be as good as the best
    train_flops: float  # of one distillation, 6 S D + 2 T D


class RuleRegret(Record):
    """What a rule of thumb would cost here."""

    rule: str
    teacher: str | None  # that it picks; None without a teacher
    expected_regret_nats: float | None
    train_flops: float


class Recommendation(Record):
    """What `capgap recommend` answers."""

    student_params_non_embedding: int
    tokens: int
    status: Literal["recommended", "abstains"]
    reason: str | None  # why the data cannot say; None where recommended
    basis: Literal["line", "surface", "nearest_student"]
    basis_note: str
    law_tokens: int  # budget of the law that was used
    teacher_params_star: Interval | None  # T*; None where only a nearest student could be asked
    target_params: float  # T*, or what the nearest student suggests
    ranked: list[RankedTeacher]  # best first
    within_tie: list[str]  # teachers predicted within tie_nats of the best
    student_extrapolation: float  # times beyond the sizes studied; 1 inside
    tokens_extrapolation: float
    teacher_extrapolation: float  # of T*/S beyond the ratios studied
    rules: list[RuleRegret]
    exhaustive_flops: float  # of one distillation from every teacher offered
    saved_flops: float  # by the first choice against trying all
    pilot_flops: float  # of all runs of the table, spent already
    notes: list[str]


class Choice(Record):
    """`choice.json`: the teacher the law chooses for a student size, and what it is held against."""

    student_params_non_embedding: int
    tokens: int  # budget of the final run
    law_tokens: int  # budget of the law that was used
    basis: Literal["line", "surface", "nearest_student"]  # the last where no law could be fitted
    basis_note: str
    teacher_params_star: Interval | None  # T* at this student size and budget
    chosen: str
    neighbour: str | None  # the next best guess, from the other side of T* where there is one
    largest: str
    recommendation: Recommendation | None = None  # the whole answer

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
    regret_nats: float  # test loss of the chosen above the best of all tried
    resolved: bool | None  # whether the difference exceeds the seeds' noise; None if unknown
    published_seed: int  # the run whose model is published
    sentence: str


class Calibration(Record):
    """`scratch/calibration.json`: what `capgap plan --calibrate` measured on this machine."""

    study: str  # whose models were measured
    startup_s: dict[str, float]  # CPU seconds of a job without its work, by rule
    base_mb: dict[str, float]  # peak memory beyond what is counted, MB of 10^6 bytes, by rule
    text_s_per_mb: dict[str, float]  # CPU seconds a MB of text, by rule
    # by kind of work: (FLOPs a token, CPU seconds a token) of the smallest and largest case
    rates: dict[str, list[tuple[float, float]]]
    matmul_gflops: float  # one thread, large matrices, float32


def read_json(path: str | Path) -> Any:
    """Read any JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
