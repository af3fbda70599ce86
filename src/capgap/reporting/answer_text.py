"""
What a reader should do with a study: the teacher to take, what another one costs, which questions
the runs leave open, and the cheapest experiment that would settle each.

Pure functions of the records. Sizes are parameters without embeddings; losses are nats per token, or on
the scale of another metric (`capgap.law.table.metric`).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from capgap.law.answers.answer_records import Choice, FinalRecord, Recommendation
from capgap.law.answers.extrapolation import nearest
from capgap.law.law_record import Claim, Interval, LawRecord, Optimum
from capgap.law.number_text import about, bracketed, budget, listed, two_digits
from capgap.law.power_law.noise import FORM
from capgap.law.table.metric import METRICS
from capgap.reporting.causes_text import effects, leads
from capgap.reporting.report_text import Passage, nats, size, worse_teachers
from capgap.reporting.worth_text import alone, is_harmed, negative


class Experiment(NamedTuple):
    """Runs that would settle an open question."""

    question: str  # "whether T* grows with the student"
    adds: Literal["students", "tokens", "teachers", "replicas"]
    values: list[int]  # to add: sizes in parameters, or tokens; none for replicas

    @property
    def step(self) -> str:
        """What to do, 'add students of 6.5k and 40k'."""
        return step_of(self.adds, self.values)


def step_of(adds: str, values: list[int]) -> str:
    """An experiment's step in words."""
    if adds == "replicas":
        return "redraw every teacher once more"
    if adds == "teachers":
        return f"add a teacher of about {about(values[0])}"
    if adds == "tokens":
        return f"add a budget of {budget(values[0])}"
    return f"add {'students' if len(values) > 1 else 'a student'} of {listed(map(about, values))}"


class Answer(NamedTuple):
    """The answer in sentences, the most useful one first."""

    headline: str  # the advice in a few words
    advice: Passage  # what to do
    costs: Passage  # what another teacher costs, by the law and as measured; '' if neither is known
    growth: str  # how the best size moves with student and tokens
    alone: Passage  # what the best teacher gains over none, as measured; '' without such runs
    caution: str  # teachers that are no better models than smaller ones; '' without
    causes: str  # what a better teacher gains and a heavier cut costs; '' without that law
    leads: str  # which law predicts best and why; '' if none was scored
    final: str  # how the chosen teacher did in the final run; '' without one
    experiments: list[Experiment]  # open questions, with the runs that would settle them


def answer_of(law: LawRecord, final: FinalRecord | None = None) -> Answer:
    """The answer of a study. final: its final student and what the law chose for it, if there is one."""
    choice = None if final is None else final.choice
    student, tokens = subject(law, final)
    near = nearest(law, student, tokens)
    headline = _headline(law, choice, student, tokens, near)
    advice = _advice(law, choice, student, tokens, near)
    harm = _harm(law, near, choice)
    if harm is not None:
        headline = f"For a student of {about(student)} at {budget(tokens)}, train without a teacher"
        advice = _none_better(law, harm, near, student, tokens, advice)
    return Answer(
        headline=headline,
        advice=advice,
        costs=costs(law, near, choice),
        growth=growth(law),
        alone=alone(law, near),
        caution=caution(law),
        causes=effects(law),
        leads=leads(law),
        final="" if final is None else final.sentence,
        experiments=experiments(law),
    )


def subject(law: LawRecord, final: FinalRecord | None) -> tuple[float, int]:
    """Student size and budget that the answer is for: the final ones, else the largest measured."""
    if final is not None:
        return final.choice.student_params_non_embedding, final.choice.tokens
    largest = max(law.optima, key=lambda o: (o.student_params_non_embedding, o.tokens))
    return largest.student_params_non_embedding, largest.tokens


def _headline(
    law: LawRecord, choice: Choice | None, student: float, tokens: int, near: Optimum
) -> str:
    who = f"a student of {about(student)} at {budget(tokens)}"
    if law.status == "flat":
        return f"For {who}, the size of the teacher hardly matters"
    answer = None if choice is None else choice.recommendation
    if answer is None and law.status == "not_identifiable":
        best = f"{near.best_teacher} was the best teacher of the student {near.student}"
        return f"For {who}, these runs give no law; {best}"
    if choice is None:
        return f"For {who}, take the teacher {near.best_teacher}"
    if answer is not None and answer.status == "abstains":
        return f"These runs do not settle the teacher for {who}"
    text = f"For {who}, take the teacher {choice.chosen}"
    cheaper = _cheaper(choice.recommendation)
    return f"{text}, or {cheaper}, which is as good and cheaper" if cheaper else text


def _harm(law: LawRecord, near: Optimum, choice: Choice | None) -> Interval | None:
    """How much lower the loss of the nearest student measured is without a teacher, if it is shown to be.

    None as well if the question lies too far from the runs for an answer.
    """
    recommended = None if choice is None else choice.recommendation
    if recommended is not None and recommended.status == "abstains":
        return None
    for effect in law.effects:
        if (effect.student, effect.tokens) == (near.student, near.tokens) and is_harmed(
            law, effect
        ):
            return effect.alone and negative(effect.alone)
    return None


def _none_better(
    law: LawRecord, harm: Interval, near: Optimum, student: float, tokens: int, advice: Passage
) -> Passage:
    """The advice where no teacher is better than any; what it says of teachers follows."""
    asked = (near.student_params_non_embedding, near.tokens) == (student, tokens)
    who = f"the student {near.student}"
    if not asked:
        who = f"the nearest student measured, {near.student} at {budget(near.tokens)},"
    return Passage(
        f"For a student of {about(student)} parameters trained on {budget(tokens)}, take no teacher: from "
        f"the same inits, {who} did better without one, by {bracketed(harm, nats)} "
        f"{METRICS[law.metric].unit}. Of the teachers tried, {near.best_teacher} was the best for it.",
        f"If there must be a teacher: {advice.full[:1].lower()}{advice.full[1:]}",
    )


def _cheaper(answer: Recommendation | None) -> str | None:
    """The cheapest teacher that is predicted to be as good as the best; None if it is the best."""
    if answer is None or len(answer.within_tie) < 2:
        return None
    rows = [row for row in answer.ranked if row.teacher in answer.within_tie]
    least = min(rows, key=lambda row: (row.train_flops, row.teacher)).teacher
    return None if least == answer.ranked[0].teacher else least


def _advice(
    law: LawRecord, choice: Choice | None, student: float, tokens: int, near: Optimum
) -> Passage:
    who = f"a student of {about(student)} parameters distilled on {budget(tokens)}"
    if law.status == "flat":
        offered = near.teachers
        if choice is not None and choice.recommendation is not None:
            offered = choice.recommendation.ranked
        larger = [one for one in offered if one.teacher_params_non_embedding > student]
        cheapest = min(larger or offered, key=lambda one: one.teacher_params_non_embedding)
        return Passage(
            f"Teacher size makes no difference beyond noise here: for {who}, take {cheapest.teacher}, "
            "the smallest and cheapest."
        )
    if choice is None or choice.recommendation is None:
        one = next(one for one in near.teachers if one.teacher == near.best_teacher)
        ratio = one.teacher_params_non_embedding / near.student_params_non_embedding
        size = (
            f"{about(one.teacher_params_non_embedding)} parameters, {ratio:.1f} times the student"
        )
        if law.status == "not_identifiable":
            return Passage(
                f"These runs give no law ({law.reason}). For {who}, the best of the {len(near.teachers)} "
                f"teachers tried was {one.teacher}: {size}."
            )
        return Passage(
            f"For {who}, take the teacher {one.teacher}, the best of the {len(near.teachers)} that were "
            f"tried: {size}.",
            _agreeing(law, near, one.teacher),
        )
    answer = choice.recommendation
    best = answer.ranked[0]
    params = about(best.teacher_params_non_embedding)
    size = f"{params} parameters, {best.ratio:.1f} times the student"
    if answer.status == "abstains":
        return Passage(
            f"The runs do not settle which teacher is best for {who} ({answer.reason}). The best "
            f"guess is {best.teacher} ({size})."
        )
    others = answer.ranked[1:]
    seconds = [
        row.teacher for row in others if row.teacher in answer.within_tie or row.within_tie is None
    ]
    text = f"For {who}, take the teacher {best.teacher}: {size}."
    if seconds:
        many, cheaper = len(seconds) > 1, _cheaper(answer)
        text += (
            f" {listed(seconds)} {'are' if many else 'is'} predicted to be as good "
            f"(within {law.tie_nats:g} {METRICS[law.metric].unit})"
        )
        if cheaper:
            text += f"; {cheaper} is the cheapest" if many else " and is cheaper"
        text += "."
    star = answer.teacher_params_star
    by_law = ""
    if star is not None and star.limited and law.status == "fitted":
        by_law = f"The law puts the best size, T*, at {bracketed(star, about)}."
    return Passage(text, f"{_agreeing(law, near, best.teacher)} {by_law}".strip())


def _agreeing(law: LawRecord, near: Optimum, teacher: str) -> str:
    """Which measured students of the nearest budget have the same best teacher."""
    same = [
        found.student
        for found in sorted(law.optima, key=lambda o: o.student_params_non_embedding)
        if found.tokens == near.tokens and found.best_teacher == teacher
    ]
    if near.student not in same or len(same) < 2:
        return ""
    at = budget(near.tokens)
    return f"{teacher} was the best one measured at {at} for the students {listed(same)}."


def costs(law: LawRecord, near: Optimum, choice: Choice | None) -> Passage:
    """What the next best teacher and the worst cost: predicted for the answer, then measured nearby."""
    found = [_predicted_costs(law, choice), _measured_costs(law, near), _noise(law, near)]
    return Passage(*_begun(found))


def _begun(sentences: list[str]) -> tuple[str, str]:
    """The first of these that is not empty, and the others."""
    short, *rest = [text for text in sentences if text] or [""]
    return short, " ".join(rest)


def _measured_costs(law: LawRecord, near: Optimum) -> str:
    """What the next best teacher and the worst cost in the nearest runs; '' without others."""
    _, *others = sorted(near.teachers, key=lambda one: (one.regret_nats, one.teacher))
    if not others or law.status == "flat":
        return ""
    text = (
        f"Measured for the student {near.student} at {budget(near.tokens)}, the loss is "
        f"{others[0].regret_nats:.3f} {METRICS[law.metric].unit} higher with the next best teacher, "
        f"{others[0].teacher}"
    )
    if len(others) > 1:
        text += f", and {others[-1].regret_nats:.3f} higher with the worst, {others[-1].teacher}"
    return f"{text}."


def _noise(law: LawRecord, near: Optimum) -> str:
    """How much a run varies, and how many stand behind a mean; '' if unknown or of no use."""
    noise = noise_sd(law)
    if noise is None or len(near.teachers) < 2 or law.status == "flat":
        return ""
    text = f"One run varies by {noise:.3f} (standard deviation) if everything is drawn anew"
    runs = max(1, min(one.n_runs for one in near.teachers))
    return f"{text}; these are means of {runs} runs." if runs > 1 else f"{text}."


def _predicted_costs(law: LawRecord, choice: Choice | None) -> str:
    """What the law expects for the student of the answer; '' without a prediction."""
    rows = [] if choice is None or choice.recommendation is None else choice.recommendation.ranked
    found = [(row.teacher, row.predicted_regret) for row in rows[1:] if row.predicted_regret]
    if not found:
        return ""
    (second, near_cost), (worst, far_cost) = found[0], found[-1]
    text = (
        f"Predicted for this student, the loss is higher by {bracketed(near_cost, nats)} "
        f"{METRICS[law.metric].unit} with {second}"
    )
    if worst != second:
        text += f" and by {bracketed(far_cost, nats)} with the worst, {worst}"
    return f"{text}."


def caution(law: LawRecord) -> str:
    """Why the optimum may be one of how well the teachers are trained."""
    worse = worse_teachers(law)
    if not worse:
        return ""
    return f"{worse}: part of the optimum may come from how well the teachers are trained."


class TeacherCost(NamedTuple):
    """What one teacher costs."""

    teacher: str
    size: str  # parameters, in words
    cost: str  # loss above the best, 'best', or '–' if no law can tell
    interval: str  # of a predicted cost, '[0.001, 0.006]'; '' if it was measured
    # the same as a change of perplexity: '+2.4 %'; '' for other metrics and the best
    perplexity: str
    share: float  # of the largest cost, from 0 to 1
    measured: str  # beside a prediction, what the nearest student paid; '' without one


class TeacherCosts(NamedTuple):
    """What every teacher costs: predicted for the student asked for if a law does, else measured."""

    student: str  # the nearest one that was measured
    tokens: str  # its budget
    tokens_seen: int  # the same as a number
    rows: list[TeacherCost]  # from the smallest teacher to the largest
    asked: str  # student and budget of the predictions; '' without one


def teacher_costs(law: LawRecord, final: FinalRecord | None) -> TeacherCosts:
    """Costs at the answer's student and budget, and at those of the grid that are nearest to them.

    Costs are losses above that of the best teacher, on the scale of the law's metric.
    """
    student, tokens = subject(law, final)
    near = nearest(law, student, tokens)
    answer = None if final is None else final.choice.recommendation
    params = {one.teacher: one.teacher_params_non_embedding for one in near.teachers}
    measured = {one.teacher: one.regret_nats for one in near.teachers}
    expected: dict[str, Interval] = {}
    for row in [] if answer is None else answer.ranked:
        if row.predicted_regret is not None:
            expected[row.teacher] = row.predicted_regret
            params[row.teacher] = row.teacher_params_non_embedding
    params = {name: at for name, at in params.items() if at > student} or params
    costs = {name: found.value for name, found in expected.items()} or measured
    worst = max(costs.values()) or 1.0
    in_nats = METRICS[law.metric].unit == "nats per token"
    rows = []
    for name in sorted(params, key=lambda name: (params[name], name)):
        cost, predicted = costs.get(name), expected.get(name)
        text = "–" if cost is None else nats(cost) if cost > 0 else "best"
        rows.append(
            TeacherCost(
                teacher=name,
                size=size(params[name]),
                cost=text,
                interval=bracketed(predicted, nats).partition(" ")[2]
                if predicted and predicted.limited and cost
                else "",
                perplexity=f"+{100 * math.expm1(cost):.1f} %" if cost and in_nats else "",
                share=(cost or 0.0) / worst,
                measured=nats(measured[name]) if expected and name in measured else "",
            )
        )
    asked = ""
    if expected:
        asked = f"{about(student)} at {budget(tokens)}"
    return TeacherCosts(near.student, budget(near.tokens), near.tokens, rows, asked)


def noise_sd(law: LawRecord) -> float | None:
    """Standard deviation of one run over redraws of everything that is drawn, nats; None if unknown."""
    parts = [part.sd.value for part in law.noise if part.name not in (*FORM, "block")]
    return math.sqrt(sum(sd**2 for sd in parts)) if parts else None


def growth(law: LawRecord) -> str:
    """How T* moves with student size and with tokens."""
    if law.status == "flat":
        return ""
    exponents, parts = law.exponents, []
    moves = [
        (exponents.by_tokens, "twice the tokens"),
        (exponents.by_size, "a student of twice the size"),
    ]
    if exponents.by_size is None:
        both = exponents.by_size_at_fixed_tokens_per_param
        moves.append((both, "a student of twice the size with twice the tokens"))
    for found, what in moves:
        if found is not None and found.limited:
            times = bracketed(found.apply(lambda exponent: 2.0**exponent), two_figures)
            parts.append(f"{times} times as large for {what}")
    text = f"The best teacher is {listed(parts)}." if parts else ""
    ratio = law.ratio_at_25_tokens_per_param
    if parts and ratio is not None and law.curve is not None:
        times = bracketed(ratio, two_figures)
        student = about(law.curve.central_student_params)
        text += f" At 25 tokens per parameter it is {times} times a student of {student}."
    return text


def experiments(law: LawRecord) -> list[Experiment]:
    """The questions that the runs leave open, with the runs that would settle them."""
    if law.status == "flat":
        return []
    claims = {claim.name: claim for claim in law.overall.claims}
    students = sorted({o.student_params_non_embedding for o in law.optima})
    budgets = sorted({o.tokens for o in law.optima})
    teachers = sorted({c.teacher_params_non_embedding for o in law.optima for c in o.teachers})
    found: list[Experiment] = []
    for side in ("above", "below"):
        beyond = [o for o in law.optima if o.place == side]
        sizes = [new for o in beyond if (new := _teacher_beyond(o)) is not None]
        if sizes:
            where = listed(f"{o.student} at {budget(o.tokens)}" for o in beyond[:3])
            question = (
                f"how large the best teacher of {where} is, which lies {side} the teachers tried"
            )
            size = max(sizes) if side == "above" else min(sizes)
            found.append(Experiment(question, "teachers", [size]))
            break
    if claims["grows"].answer == "unknown":
        low, high = two_digits(students[0] / 2), two_digits(students[-1] * 2)
        if high > teachers[-1] / 1.3:
            high = two_digits(teachers[-1] / 1.5)
        new = [size for size in (low, high) if not students[0] <= size <= students[-1]]
        if new:
            question = _open_exponent(claims["grows"], "S", "the student’s size S")
            found.append(Experiment(question, "students", new))
    if claims["tokens"].answer == "unknown":
        question = _open_exponent(claims["tokens"], "D", "the distillation tokens D")
        found.append(Experiment(question, "tokens", [budgets[-1] * 2]))
    guessed = [part.name for part in law.noise if part.source == "prior" and part.name == "teacher"]
    if guessed:
        question = (
            "how much retraining a teacher moves its students’ losses, which is assumed so far"
        )
        found.append(Experiment(question, "replicas", []))
    return found


def _teacher_beyond(found: Optimum) -> int | None:
    """A teacher to add where T* lies beyond those tried, parameters; None if none fits above the student."""
    tried = [one.teacher_params_non_embedding for one in found.teachers]
    if found.place == "above":
        return two_digits(max(tried) * 2)
    if (
        found.teacher_params is None
        or found.teacher_params.value < found.student_params_non_embedding
    ):
        return None  # no teacher above the student is small enough
    smaller = max(min(tried) / 2, math.sqrt(min(tried) * found.student_params_non_embedding))
    return two_digits(smaller) if smaller < min(tried) / 1.1 else None


def _open_exponent(claim: Claim, symbol: str, of: str) -> str:
    """The open question about an exponent: its sign is known if its interval excludes 0.

    The claim can be open all the same, because the interval reaches into the margin about 0, perhaps
    only when it is widened for the number of claims.
    """
    found = claim.estimate
    if found is None:
        return f"whether the best teacher grows with {of}"
    known = f"T* ~ {symbol}^{bracketed(found, two_figures)}"
    if found.low is not None and found.low > 0:
        question, counts = f"how strongly the best teacher grows with {of}", f"{claim.margin:g}"
    elif found.high is not None and found.high < 0:
        question, counts = f"how strongly the best teacher shrinks with {of}", f"-{claim.margin:g}"
    else:
        return f"whether the best teacher grows with {of} ({known})"
    if found.beyond(-claim.margin, claim.margin):
        return f"{question} ({known}; widened for the four claims, it reaches {counts})"
    return f"{question} ({known}, where an exponent between 0 and {counts} would count as none)"


def two_figures(value: float) -> str:
    """1.5738 -> '1.6'."""
    return f"{value:.2g}"
