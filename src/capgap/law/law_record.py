"""The contents of law.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from capgap.errors import CapgapError
from capgap.records.run_records import Record

SCHEMA_VERSION = 3  # of law.json
# capgap.law.table.metric explains them
MetricName = Literal["loss", "perplexity", "error", "accuracy", "bits_per_byte", "higher", "lower"]
RivalName = Literal["busbridge", "p2"]
LawName = Literal["power_law", "two_causes", RivalName]  # that `recommend` can use
Basis = Literal[LawName, "line", "nearest_student"]


class Interval(Record):
    """An estimate with its interval; `low` or `high` is None if the data set no limit."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def around(cls, value: float, half: float | None) -> Interval:
        """A value with its interval to either side; half: None if there is no limit."""
        low, high = (None, None) if half is None else (float(value - half), float(value + half))
        return cls(value=float(value), low=low, high=high)

    @property
    def limited(self) -> bool:
        """Whether the data set a limit on either side."""
        return self.low is not None or self.high is not None

    @property
    def width(self) -> float:
        """Distance of the ends, infinite if one is open."""
        return math.inf if self.low is None or self.high is None else self.high - self.low

    def within(self, low: float, high: float) -> bool:
        """Whether all of it lies between two values."""
        return None not in (self.low, self.high) and low <= self.low and self.high <= high

    def beyond(self, low: float, high: float) -> bool:
        """Whether all of it lies below the first of two values, or above the second."""
        below = self.high is not None and self.high < low
        return below or (self.low is not None and self.low > high)

    def apply(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the estimated number."""
        low, high = (None if end is None else float(function(end)) for end in (self.low, self.high))
        return Interval(value=float(function(self.value)), low=low, high=high)


class Exponents(Record):
    """T* ~ S^a D^b; None if the runs do not determine it."""

    by_size: Interval | None  # a: at equal tokens
    by_tokens: Interval | None  # b: for one student
    by_size_at_fixed_tokens_per_param: Interval | None  # a + b


class NoiseComponent(Record):
    """One variance component of the noise; capgap.law.power_law.noise defines them."""

    name: Literal["order", "block", "trunk", "init", "teacher", "scatter", "curvature", "misfit"]
    sd: Interval  # nats per token; of log T* (scatter), log curvature, or a share of the excess (misfit)
    source: Literal["replicas", "residuals", "prior", "stated"]  # what the estimate mostly rests on
    includes: list[str]  # components that this study cannot separate from it


class Misfit(Record):
    """Whether students deviate from the common law and curve beyond noise."""

    p: float | None  # F test; None without degrees of freedom
    students: list[str]  # those that do so most, if p is small
    reason: str


class TeacherEffect(Record):
    """How far a teacher's students lie from the curve of its size, nats per token; below 0 is better."""

    teacher: str  # with the number of its draw if there are several
    teacher_params_non_embedding: float
    effect_nats: float
    effect: Interval  # 90 % prediction interval
    off_family: bool  # whether that excludes 0


class SizeCount(Record):
    """How well the law fits if sizes are counted in one way."""

    size: Literal["non_embedding", "total", "forward_flops"]
    rms_nats: float  # of the runs about the law


class CurveForm(Record):
    """Curve of the loss above its lowest point: c exp(k (u* - u0)) E_k(log T/S - u*)."""

    curvature_nats: float  # c, at the central ratio
    skew: float  # k
    central_ratio: float  # T/S, exp(u0)
    central_student_params: float  # geometric means of the groups
    central_tokens: float


class TeacherMean(Record):
    """One teacher (all its draws) at one student size and budget."""

    teacher: str
    teacher_params_non_embedding: float
    n_runs: int
    mean_loss_nats_per_token: float
    loss_low: float | None  # interval of the mean by the noise of the study
    loss_high: float | None
    regret_nats: float  # above the best teacher of the same student and budget


class Optimum(Record):
    """The best teacher size of one student size at one token budget."""

    student: str
    student_params_non_embedding: float  # mean over its runs
    tokens: int
    status: Literal["interior", "lower_bound", "upper_bound", "not_identifiable"]
    # by the lowest mean. interior: inside the ladder. lower_bound: the largest teacher is best.
    # upper_bound: the smallest is best. not_identifiable: fewer than three teacher sizes.
    reason: str
    teacher_params: Interval | None  # T* by the power law; a side without a limit is None
    ratio: Interval | None  # T* / S by the power law
    place: Literal["inside", "below", "above", "open", "not_identifiable"]
    # of the power law's T*: inside the ladder, or its interval wholly below the smallest or above
    # the largest teacher; open: neither
    own_teacher_params: Interval | None  # T* by this group's curve alone
    best_teacher: str  # lowest mean loss among those tried
    within_tie: list[str]  # teachers within law.tie_nats of the best
    teachers: list[TeacherMean]  # by teacher size
    shape: Literal["interior", "saturating", "monotone", "flat", "not_identifiable"]
    shape_reason: str


class BandPoint(Record):
    """The line's own interval at a student size (not that of one more optimum), parameters."""

    student_params_non_embedding: float
    teacher_params: Interval


class Line(Record):
    """T* = intercept + slope S over separate optima, those at an edge as bounds."""

    tokens: int | None  # None for a line at equal tokens per parameter
    tokens_per_param: float | None
    status: Literal["fitted", "not_identifiable"]
    reason: str
    slope: Interval | None = None
    intercept: Interval | None = None
    ratio_through_origin: Interval | None = None  # T* = ratio S
    n_students: int  # interior optima used
    n_bounds: int = 0  # optima at an edge of the ladder, used as bounds
    published_slope: float
    # over the students of the line, and half as far again on either side
    band: list[BandPoint] = Field([])


class RivalFit(Record):
    """A rival law fitted to the same runs."""

    law: str
    status: Literal["identified", "not_identifiable", "failed", "not_available"]
    # not_identifiable: some constants are held because the runs cannot determine them
    reason: str
    constants: dict[str, float] = Field({})
    free: list[str] = Field([])
    held: list[str] = Field([])
    n_cells: int = 0
    rms_log_loss: float | None = None


class InitExplains(Record):
    """How much of the differences within a student size and budget the loss of the init explains."""

    n_cells: int
    r_squared_init: float
    r_squared_teacher: float  # by log T/S and its square
    r_squared_both: float
    p_teacher: float  # F test: teacher size explains nothing beyond the init
    p_init: float  # F test: the init explains nothing beyond teacher size


class Pick(Record):
    """The teacher that a law chose for a student it had not seen."""

    student: str
    student_params_non_embedding: float
    tokens: int
    teacher: str
    teacher_params_non_embedding: int
    regret_nats: float


class LeftOut(Record):
    """Mean regret of a law over what it had not seen."""

    kind: Literal["students", "budgets", "teachers", "all"]  # all: mean over the kinds
    n_cases: int  # students and budgets that lost runs, once for each thing left out
    n_answered: int  # of them; a random teacher's regret counts for the others
    regret: Interval  # nats per token; t interval over students


class Score(Record):
    """How well a law chose for student sizes it had not seen; means over students and budgets."""

    law: str
    status: Literal["scored", "not_available"]
    reason: str
    n_cases: int
    mean_regret_nats: float | None = None  # observed loss of its choice above the observed best
    max_regret_nats: float | None = None
    hit_rate: float | None = None  # choice within tie_nats of the best
    chance_hit_rate: float | None = None  # the same for a teacher at random
    interval_coverage: float | None = None  # share of its intervals that hold the T* left out
    n_intervals: int = 0
    pilot_flops: float | None = None  # of the runs it was fitted to
    choice_flops: float | None = None  # of one run with its choice
    exhaustive_flops: float | None = None  # of one run with every teacher
    left_out: list[LeftOut] = Field([])  # by kind, then all; empty for no_teacher and chance
    picks: list[Pick] = Field([])  # of a law or rule that names a teacher, case by case


class OffTeacher(Record):
    """A teacher whose own loss lies above the curve of its family; see capgap.law.causes.teacher_family."""

    teacher: str
    teacher_params_non_embedding: float
    loss: float
    above_curve: float


class CausesOptimum(Record):
    """The best teacher within the table's family, by the law of two causes."""

    student: str
    student_params_non_embedding: float
    tokens: int
    teacher_params: Interval  # a limit beyond the family is None
    place: Literal["interior", "smallest", "largest"]  # the latter two: of the family, a bound


class TeacherCauses(Record):
    """The two causes of one measured student, budget and teacher, nats per token."""

    student: str
    student_params_non_embedding: float
    tokens: int
    teacher: str
    teacher_params_non_embedding: float
    damage: Interval  # of the cut
    # g times the teacher's loss, above the smallest teacher's; below 0 helps
    teacher_part: Interval


class TwoCausesFit(Record):
    """The law of two causes; formula and names of its parameters in capgap.law.causes.two_causes."""

    status: Literal["identified", "not_identifiable", "not_available"]
    reason: str
    help: Interval | None = None  # g, nats of the student per nat of the teacher
    damage_rate_nats: Interval | None = None  # c, nats for each factor e in T/S, at the centre
    damage_by_tokens: Interval | None = None  # q, damage falls as D^-q
    damage_by_size: Interval | None = None  # r, and as S^-r
    damage_ceiling_nats: Interval | None = None  # A
    held: list[str] = Field([])  # parameters that their priors decide
    centre_student_params: float | None = None
    centre_tokens: float | None = None
    noise_nats: float | None = None  # standard deviation of a cell about the law
    n_cells: int = 0
    n_teachers: int = 0  # draws
    optima: list[CausesOptimum] = Field([])  # by budget and student size
    teachers: list[TeacherCauses] = Field([])  # by budget, student size and teacher size
    off_family: list[OffTeacher] = Field([])
    far_off: list[str] = Field([])  # cells more than six usual residuals from the law


class ComparedAt(Record):
    """T* of one student at one budget by two laws; see capgap.law.verdicts.law_comparison.

    A kind is a kind of init, a weight of the teacher's term, or a metric.
    """

    student: str
    student_params_non_embedding: float
    tokens: int
    teacher_params: dict[str, float]  # T* by kind, within the teachers tried under both
    place: dict[str, Literal["inside", "smallest", "largest"]]  # of T* among them
    ratio: Interval  # T* of the first kind over T* of the second
    # by kind, what the other kind's best teacher adds to its loss, nats or in the unit of a metric
    cost: dict[str, Interval]


class LawComparison(Record):
    """Whether the best teacher differs between two kinds of init, weights of the teacher, or metrics."""

    first: str  # a kind of init, a weight, or a metric in words
    second: str
    n_teachers: int  # draws, left out one at a time
    verdict: Literal["equal", "different", "not_told_apart"]
    reason: str
    ratio: Interval | None = None  # geometric mean over students and budgets
    cost: dict[str, Interval] = Field({})  # means over them
    at: list[ComparedAt] = Field([])


class EqualCompute(Record):
    """T* of a student at the compute of its run with T* at equal tokens; capgap.law.answers.equal_compute."""

    student: str
    student_params_non_embedding: float
    tokens: int  # at which T* at equal tokens is taken
    shared_by: int  # runs that share one pass of the teacher; 1 is online
    flops: float  # of the run
    teacher_params: Interval  # T* at equal compute; a limit beyond the teachers tried is None
    place: Literal["inside", "smallest", "largest"]  # among the teachers tried; at an end a bound
    tokens_there: float  # that the compute pays for with that teacher
    ratio: Interval  # T* at equal compute over T* at equal tokens
    at_equal_tokens: float  # T* there, within the teachers tried


class WorthAtEqualCompute(Record):
    """What a teacher is worth for its compute; capgap.law.verdicts.teacher_worth."""

    teacher: str  # that is worth most
    tokens_alone: float  # that its compute buys a student without a teacher
    gain: Interval  # loss without one there above that with it; below 0 none is better


class ArmEffects(Record):
    """Effects of init and teacher at one student size and budget, nats per token."""

    student: str
    tokens: int
    init_nats: float | None  # span over pruned inits
    teacher_nats: float | None  # span over teachers at a fixed init
    noise_nats: float | None  # span that noise alone exceeds in 5 % of cases
    fixed_init_shapes: dict[str, str]  # by init
    gain_nats: float | None  # own teacher against none at the same init and order of the data
    both_ways: tuple[str, ...] = ()  # teachers whose students' inits were also trained without one
    # of these inits, the lowest loss without a teacher above that with one; below 0 none is better
    alone: Interval | None = None
    at_equal_compute: WorthAtEqualCompute | None = None


class Claim(Record):
    """One claim about the law and its verdict; the rules are in capgap.law.verdicts.claims."""

    name: Literal["interior", "grows", "proportional", "ratio", "tokens"]
    answer: Literal["yes", "no", "unknown"]
    verdict: Literal["equal", "different", "not_told_apart", "shown", "not_shown"]
    reason: str
    estimate: Interval | None = None
    reference: float | None = None  # what the estimate is compared with
    margin: float | None = None  # that counts as equal: of an exponent, or a share of a ratio


class Overall(Record):
    """The verdict on the published law; rules in capgap.law.verdicts.claims."""

    status: Literal["supported", "contradicted", "inconclusive"]
    reason: str
    claims: list[Claim]
    cause: Literal["init", "teacher", "both", "unknown"]  # of interior optima
    cause_reason: str


class MetricLaw(Record):
    """The law of the same runs by another outcome; losses and nats are on the scale of its metric."""

    name: str  # test, a text, a task, or as the table's column names it
    title: str  # in words: 'bits per byte of news'
    metric: MetricName
    tie: float  # margin of equally good teachers, on the scale of the metric
    n_runs: int
    status: Literal["fitted", "flat", "not_identifiable"]
    reason: str  # why not identifiable, or over what it was fitted
    exponents: Exponents
    ratio_at_25_tokens_per_param: Interval | None
    noise: list[NoiseComponent]
    optima: list[Optimum]  # by budget and student size


class LawRecord(Record):
    """`law.json`: the results of the regression."""

    schema_version: Literal[3] = 3
    # kind of its students; pruned: the main arm
    init: Literal["pruned", "given", "random"] = "pruned"
    n_runs: int
    # of the table; all fields in nats are on its scale, which capgap.law.table.metric explains
    metric: MetricName = "loss"
    outcome: str | None = None  # name of the outcome it is fitted on; None for the plain one
    # of the teacher's term in the loss, if the runs of the table differ in it
    teacher_weight: float | None = None
    excluded: list[dict[str, str | int | float]] = Field([])  # runs left out by law.exclude
    confidence: float
    tie_nats: float
    ratio_margin: float
    exponent_margin: float
    size: Literal["non_embedding", "total", "forward_flops"]  # what S and T count
    noise_sd: float | None  # as stated in the settings, nats
    status: Literal["fitted", "flat", "not_identifiable"]
    reason: str  # why not identifiable, or over what it was fitted
    exponents: Exponents
    ratio_at_25_tokens_per_param: Interval | None  # T*/S of the central student
    published_ratio_at_tokens_per_param: Interval | None  # at which T*/S is the published slope
    curve: CurveForm | None
    noise: list[NoiseComponent]
    noise_df: float | None  # degrees of freedom of the noise between single runs of two teachers
    misfit: Misfit | None
    teacher_effects: list[TeacherEffect]  # if a component for teachers is fitted
    sizes: list[SizeCount]  # of the counts whose columns are in the table
    optima: list[Optimum]  # by budget and student size
    lines: list[Line]  # one for each budget, or for each number of tokens per parameter
    # validation loss of every teacher, smallest first, nats per token; empty if not known
    teacher_losses: list[tuple[str, float]] = Field([])
    verdict: str  # one sentence
    overall: Overall
    rivals: list[RivalFit] = Field([])
    scores: list[Score] = Field([])
    two_causes: TwoCausesFit | None = None
    leading: LawName | None = None
    # the law with the lowest mean regret over what it had not seen; `recommend` uses it
    leading_reason: str = "not scored"
    effects: list[ArmEffects] = Field([])  # of students and budgets with a control arm
    init_explains: InitExplains | None = None  # None without losses of the inits
    other_inits: list[LawRecord] = Field([])  # one law for each further kind of init
    # one law for each further weight of the teacher's term
    other_weights: list[LawRecord] = Field([])
    weight_comparisons: list[LawComparison] = Field([])  # of every two weights
    equal_compute: list[EqualCompute] = Field([])  # empty if the runs do not determine it
    init_comparisons: list[LawComparison] = Field([])  # of every two kinds
    metric_laws: list[MetricLaw] = Field([])  # of the same runs by their other outcomes
    metric_comparisons: list[LawComparison] = Field([])  # of each of them with this law

    @property
    def measured(self) -> str:
        """Name of the outcome that it is fitted on, or the metric of the plain one."""
        return self.outcome or self.metric

    def throughout(self, **fields: Any) -> LawRecord:
        """This law with other values of some fields, and so all laws within it."""
        inner = {
            name: [law.throughout(**fields) for law in getattr(self, name)]
            for name in ("other_inits", "other_weights")
        }
        return self.model_copy(update=inner | fields)

    def of_init(self, kind: str | None) -> LawRecord:
        """The law of a kind of init, its own if None; CapgapError if there is none."""
        laws = {law.init: law for law in (self, *self.other_inits)}
        if kind is None or kind in laws:
            return laws[kind or self.init]
        raise CapgapError(
            f"init: the law has no {kind} students; it was fitted on {', '.join(laws)} ones (grid.inits)"
        )

    def of_weight(self, weight: float | None) -> LawRecord:
        """The law at a weight of the teacher's term, its own if None; CapgapError if there is none."""
        laws = {law.teacher_weight: law for law in (self, *self.other_weights)}
        if weight is None or weight in laws:
            return laws[self.teacher_weight if weight is None else weight]
        there = ", ".join(f"{known:g}" for known in laws if known is not None)
        fix = f"it has {there}" if there else "its runs do not differ in it (grid.teacher_weights)"
        raise CapgapError(f"teacher_weight: the law has no runs at {weight:g}; {fix}")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a record; CapgapError if an earlier version of capgap wrote it."""
        path = Path(path)
        try:
            version = json.loads(path.read_text(encoding="utf-8")).get("schema_version", 1)
        except (OSError, UnicodeDecodeError, ValueError, AttributeError):
            version = SCHEMA_VERSION  # not a law record at all; reported below
        if version != SCHEMA_VERSION:
            raise CapgapError(
                f"{path}: a law record of version {version}, and this is version {SCHEMA_VERSION}; "
                "fit the law again: `capgap run` in the study, or `capgap law fit runs.csv --out "
                f"{path.name}`"
            )
        return super().read(path)
