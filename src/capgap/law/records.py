"""What the files of the law contain, and of what follows from it: law.json, choice.json, final.json."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from capgap.records.run_records import Record


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
    influence: list[Influence] = Field([])  # slope without each student in turn
    # over the students of the line, and half as far again on either side
    band: list[BandPoint] = Field([])


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
    terms: dict[str, float]  # coefficients of the formula; k is 0 where it is absent
    centre_student_params: float  # geometric means, about which the terms are taken
    centre_tokens: float
    centre_ratio: float  # of T/S
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


class LeftOut(Record):
    """Mean regret of a law over what it had not seen."""

    kind: Literal["students", "budgets", "teachers", "all"]  # all: mean over the kinds
    n_cases: int  # students and budgets that lost runs, once for each thing left out
    n_answered: int  # of them; a teacher at random stands in for the others
    regret: Interval  # nats per token; t interval over students


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
    left_out: list[LeftOut] = Field([])  # by kind, then all; empty for no_teacher and chance
    picks: list[Pick] = Field([])  # of a law or rule that names a teacher, case by case


class OffTeacher(Record):
    """A teacher whose own loss lies above the curve of its family; see capgap.law.teacher_family."""

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


class TwoCausesFit(Record):
    """The law of two causes; formula and names of its parameters in capgap.law.two_causes."""

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
    off_family: list[OffTeacher] = Field([])
    far_off: list[str] = Field([])  # cells more than six usual residuals from the law


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
    # of the table; all fields in nats are on its scale, which capgap.law.metric explains
    metric: Literal["loss", "perplexity", "error", "accuracy"] = "loss"
    excluded: list[dict[str, str | int]] = Field([])  # runs left out by law.exclude
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
    rivals: list[RivalFit] = Field([])
    scores: list[Score] = Field([])
    two_causes: TwoCausesFit | None = None
    leading: Literal["power_law", "two_causes", "busbridge", "p2"] | None = None
    # the law with the lowest mean regret over what it had not seen; `recommend` uses it
    leading_reason: str = "not scored"
    effects: list[ArmEffects] = Field([])  # of students and budgets with a control arm
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
