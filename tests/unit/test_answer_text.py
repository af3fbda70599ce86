"""The answer: which teacher to take, what another one costs, what is open and what would settle it."""

import pytest
from report_records import make_final, make_law, make_runs, with_recommendation

from capgap.law.answers.extrapolation import nearest
from capgap.law.law_record import (
    ArmEffects,
    Exponents,
    Interval,
    NoiseComponent,
    WorthAtEqualCompute,
)
from capgap.reporting.answer_text import answer_of, costs, experiments, growth, noise_sd
from capgap.reporting.worth_text import alone


@pytest.fixture(scope="module")
def law():
    return make_law(make_runs())


def claimed(law, **answers):
    """The law with other answers to its claims."""
    claims = [
        claim.model_copy(update={"answer": answers.get(claim.name, claim.answer)})
        for claim in law.overall.claims
    ]
    return law.model_copy(
        update={"overall": law.overall.model_copy(update={"claims": claims}), "noise": []}
    )


def test_without_a_final_student_the_best_measured_teacher_of_the_largest_one_is_named(law):
    answer = answer_of(law)
    best = nearest(law, 158_720, 1_500_000).best_teacher
    assert answer.headline == f"For a student of 159k at 1.5M tokens, take the teacher {best}"
    assert answer.final == ""


def test_the_final_student_is_what_the_answer_is_for(law):
    final = make_final()
    answer = answer_of(law, final)
    assert answer.headline == "For a student of 131k at 3M tokens, take the teacher t340k"
    assert answer.final == final.sentence


def test_costs_are_the_measured_losses_above_the_best_in_order(law):
    near = nearest(law, 60_000, 1_500_000)
    cells = [
        cell.model_copy(update={"teacher": name, "regret_nats": regret})
        for cell, (name, regret) in zip(
            near.teachers, [("a", 0.03), ("b", 0.0), ("c", 0.0124)], strict=False
        )
    ]
    near = near.model_copy(update={"teachers": cells, "best_teacher": "b"})
    law = law.model_copy(update={"noise": []})
    assert costs(law, near, None).full == (
        "Measured for the student 60k at 1.5M tokens, the loss is 0.012 nats per token higher with the "
        "next best teacher, c, and 0.030 higher with the worst, a."
    )


def worth(optimum, tokens, gain, **more):
    """Effects of one student and budget of which only the worth of a teacher is known."""
    spans = dict.fromkeys(("init_nats", "teacher_nats", "noise_nats", "gain_nats"))
    return ArmEffects(
        student=optimum.student,
        tokens=tokens,
        alone=gain,
        both_ways=(optimum.best_teacher,),
        fixed_init_shapes={},
        **spans,
        **more,
    )


def around(value, half):
    return Interval(value=value, low=value - half, high=value + half)


def test_worth_of_a_teacher_is_told_by_student_at_the_nearest_and_the_first_budget(law):
    near = law.optima[0]
    name = near.student
    effects = [
        worth(near, near.tokens, around(0.02, 0.03)),
        worth(near, near.tokens // 2, around(0.1, 0.05)),
    ]
    text = alone(law.model_copy(update={"effects": effects}), near)
    assert f"lowers the loss by 0.020 [−0.010, 0.050] for {name} after" in text.short
    assert f"For {name} a teacher is not shown to help" in text.short
    assert text.rest.endswith(f" teachers lowers the loss by 0.100 [0.050, 0.150] for {name}.")
    raised = law.model_copy(update={"effects": [worth(near, near.tokens, around(-0.05, 0.03))]})
    worse = alone(raised, near).short
    assert f"raises the loss by 0.050 [0.020, 0.080] for {name} after" in worse
    assert f"For {name} training without a teacher is better there." in worse
    assert "not shown" not in worse
    unknown = Interval(value=0.03, low=None, high=None)
    blind = law.model_copy(update={"effects": [worth(near, near.tokens, unknown)]})
    text = alone(blind, near).short
    assert f"by 0.030 (noise unknown) for {name}" in text
    assert "not shown" not in text
    assert alone(law.model_copy(update={"effects": []}), near).full == ""


def test_where_no_teacher_is_better_the_advice_is_to_take_none(law):
    best = max(law.optima, key=lambda o: (o.student_params_non_embedding, o.tokens))
    harmed = worth(best, best.tokens, around(-0.05, 0.03))
    answer = answer_of(law.model_copy(update={"effects": [harmed]}))
    assert answer.headline == "For a student of 159k at 1.5M tokens, train without a teacher"
    assert (
        f"the student {best.student} did better without one, by 0.050 [0.020, 0.080] nats per token. "
        f"Of the teachers tried, {best.best_teacher} was the best for it."
    ) in answer.advice.short
    usual = answer_of(law)
    assert "without" not in usual.headline
    assert answer.advice.rest == f"If there must be a teacher: f{usual.advice.full[1:]}"
    # the init of the best teacher was not trained without one, which might be no better
    other = law.model_copy(
        update={"effects": [harmed.model_copy(update={"both_ways": ("another",)})]}
    )
    assert answer_of(other).headline == usual.headline
    assert f"For {best.student} a teacher is not shown to help" in answer_of(other).alone.short


def test_a_student_that_was_not_measured_is_told_of_the_nearest(law):
    final = make_final()
    near = nearest(law, 131_072, 3_000_000)
    harmed = worth(near, near.tokens, around(-0.05, 0.03))
    answer = answer_of(law.model_copy(update={"effects": [harmed]}), final)
    assert "the nearest student measured, 160k at 1.5M tokens, did better" in answer.advice.short


def test_a_flat_law_and_one_without_identified_optima_answer_for_the_student_asked(law):
    final = with_recommendation(make_final())  # 131k
    flat = answer_of(law.model_copy(update={"status": "flat"}), final)
    assert "take t180k, the smallest and cheapest." in flat.advice.short  # t80k is smaller than it
    unknown = answer_of(law.model_copy(update={"status": "not_identifiable"}), final)
    assert unknown.headline == "For a student of 131k at 3M tokens, take the teacher t340k"
    assert "take the teacher t340k" in unknown.advice.short
    assert "T*" not in unknown.advice.full
    assert "The law puts the best size, T*, at" in answer_of(law, final).advice.rest
    distant = final.choice.recommendation.model_copy(
        update={"status": "abstains", "reason": "too far"}
    )
    choice = final.choice.model_copy(update={"recommendation": distant})
    final = final.model_copy(update={"choice": choice})
    near = nearest(law, 131_072, 3_000_000)
    harmed = worth(near, near.tokens, around(-0.05, 0.03))
    answer = answer_of(law.model_copy(update={"effects": [harmed]}), final)
    assert (
        answer.headline == "These runs do not settle the teacher for a student of 131k at 3M tokens"
    )


def test_worth_for_its_compute_is_told_at_the_first_and_the_last_budget(law):
    near = law.optima[0]
    budgets = {near.tokens // 4: 0.1, near.tokens // 2: 0.04, near.tokens: -0.02}
    effects = [
        worth(
            near,
            tokens,
            around(value, 0.01),
            at_equal_compute=WorthAtEqualCompute(
                teacher="t", tokens_alone=2 * tokens, gain=around(value, 0.01)
            ),
        )
        for tokens, value in budgets.items()
    ]
    text = alone(law.model_copy(update={"effects": effects}), near).short
    assert f"most to {near.student} lowers the loss by 0.100 [0.090, 0.110] after" in text
    assert "and raises it by 0.020 [0.010, 0.030] after" in text
    assert "0.040" not in text


def test_noise_of_one_run_adds_the_squares_of_what_is_drawn(law):
    def part(name, sd):
        found = Interval(value=sd, low=sd, high=sd)
        return NoiseComponent(name=name, sd=found, source="replicas", includes=[])

    noise = [part("order", 0.003), part("teacher", 0.004), part("misfit", 0.5)]
    assert noise_sd(law.model_copy(update={"noise": noise})) == pytest.approx(0.005)
    assert noise_sd(law.model_copy(update={"noise": []})) is None


def test_growth_is_told_by_doublings(law):
    exponents = Exponents(
        by_size=None,
        by_tokens=Interval(value=1.0, low=0.0, high=None),
        by_size_at_fixed_tokens_per_param=None,
    )
    law = law.model_copy(update={"exponents": exponents, "ratio_at_25_tokens_per_param": None})
    assert growth(law) == "The best teacher is 2 [1, no limit] times as large for twice the tokens."


def test_what_is_open_comes_with_the_settings_that_would_tell(law):
    settled = claimed(law, grows="yes", tokens="yes")
    assert experiments(settled) == []
    (students,) = experiments(claimed(law, grows="unknown", tokens="no"))
    assert students.adds == "students"
    assert min(students.values) == 31_000  # half the smallest, in round numbers
    assert max(students.values) < 1_012_000  # the largest teacher
    (budgets,) = experiments(claimed(law, grows="no", tokens="unknown"))
    assert (budgets.adds, budgets.values) == ("tokens", [3_000_000])


def with_estimate(law, name, low, high):
    """The law with an open claim about an exponent whose interval is given."""
    found = Interval(value=(low + high) / 2, low=low, high=high)
    claims = [
        claim.model_copy(update={"estimate": found, "margin": 0.15})
        if claim.name == name
        else claim
        for claim in law.overall.claims
    ]
    return law.model_copy(
        update={"overall": law.overall.model_copy(update={"claims": claims}), "noise": []}
    )


@pytest.mark.parametrize(
    ("low", "high", "begins", "holds"),
    [
        (
            0.11,
            0.36,
            "how strongly the best teacher grows",
            "between 0 and 0.15 would count as none",
        ),
        (-0.1, 0.36, "whether the best teacher grows", "T* ~ S^0.13 [-0.1, 0.36]"),
        (0.17, 0.36, "how strongly the best teacher grows", "the four claims, it reaches 0.15)"),
        (
            -0.4,
            -0.1,
            "how strongly the best teacher shrinks",
            "between 0 and -0.15 would count as none",
        ),
    ],
)
def test_an_exponent_that_excludes_zero_leaves_open_how_strong_it_is(law, low, high, begins, holds):
    open_law = with_estimate(claimed(law, grows="unknown", tokens="no"), "grows", low, high)
    (experiment,) = experiments(open_law)
    assert experiment.question.startswith(begins)
    assert holds in experiment.question


def test_an_optimum_beyond_the_ladder_asks_for_a_teacher(law):
    optima = [law.optima[0].model_copy(update={"place": "above"}), *law.optima[1:]]
    found = experiments(
        claimed(law.model_copy(update={"optima": optima}), grows="yes", tokens="yes")
    )
    assert [experiment.step for experiment in found] == ["add a teacher of about 2M"]
