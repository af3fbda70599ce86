"""The contents of choice.json and final.json: what a law answers, and how its choice turned out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from capgap.law.law_record import Basis, Interval
from capgap.records.run_records import Record


class RankedTeacher(Record):
    """One teacher of a recommendation."""

    teacher: str
    teacher_params_non_embedding: int
    ratio: float  # to the student's size
    predicted_loss: Interval | None  # nats per token; None without a power law
    predicted_regret: Interval | None  # above the best teacher offered, nats
    within_tie: bool | None  # predicted to be as good as the best
    measured_loss: Interval | None = None  # if this student, budget and teacher are in the table
    measured_regret: float | None = None  # above the best teacher measured there
    train_flops: float  # of one distillation, 6 S D + 2 T D


class ComputeTeacher(Record):
    """One teacher of a recommendation at equal compute."""

    teacher: str
    teacher_params_non_embedding: int
    tokens: float  # that the compute pays for
    tokens_extrapolation: float  # times beyond the budgets of the runs
    predicted_regret: Interval  # loss above the best of the teachers offered, nats


class ComputeAnswer(Record):
    """What `capgap recommend --flops` answers."""

    student_params_non_embedding: int
    flops: float
    shared_by: int  # runs that share one pass of the teacher
    status: Literal["recommended", "abstains"]
    reason: str | None
    teacher_params: Interval | None = None  # T* at this compute
    place: Literal["inside", "smallest", "largest"] | None = None
    ranked: list[ComputeTeacher] = Field([])  # best first
    notes: list[str] = Field([])


class StudentAnswer(Record):
    """What `capgap recommend --fits` answers."""

    teacher_params_non_embedding: int
    tokens: int
    student_params: Interval | None  # size of the student whose T* is this teacher
    reason: str | None  # why there is none; None if there is one
    notes: list[str] = Field([])


class RuleRegret(Record):
    """What a rule of thumb would cost here."""

    rule: str
    teacher: str | None  # that it picks; None without a teacher
    expected_regret_nats: float | None
    train_flops: float


class Recommendation(Record):
    """The answer of `capgap recommend`."""

    student_params_non_embedding: int
    tokens: int
    status: Literal["recommended", "abstains"]
    reason: str | None  # why no teacher is recommended; None if one is
    basis: Basis
    basis_note: str
    law_tokens: int  # budget of the law that was used
    teacher_params_star: Interval | None  # T*; None if it is taken from the nearest student
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
    """`choice.json`: the teacher that the law chooses for a student size, and its alternatives."""

    student_params_non_embedding: int
    tokens: int  # budget of the final run
    law_tokens: int  # budget of the law that was used
    basis: Basis  # nearest_student if no law could be fitted
    basis_note: str
    teacher_params_star: Interval | None  # T* at this student size and budget
    chosen: str
    neighbour: str | None  # the next best guess, from the other side of T* if there is one
    largest: str
    order_sd: float | None = None  # of the law's noise, nats: one run over orders of the data,
    redraw_sd: float | None = None  # and over redraws of its teacher and init; None if unknown
    noise_df: float | None = None  # degrees of freedom of both
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
    n_draws: int = 1  # of its teacher and init
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
    resolved: bool | None  # whether the difference exceeds its noise; None if that is unknown
    published_seed: int  # the run whose model is published
    sentence: str
