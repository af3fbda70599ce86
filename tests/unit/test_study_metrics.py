"""The few numbers that revisions are compared by."""

import pytest
from report_records import make_final, make_law, make_runs

from capgap.law.law_record import Exponents, Interval
from capgap.stages.metrics import run


@pytest.fixture(scope="module")
def law():
    return make_law(make_runs())


def test_exponents_ratio_verdicts_and_the_final_loss_have_names(law):
    exponents = Exponents(
        by_size=Interval(value=0.3, low=0.1, high=None),
        by_tokens=None,
        by_size_at_fixed_tokens_per_param=Interval(value=1.0, low=0.8, high=1.2),
    )
    ratio = Interval(value=2.6, low=2.1, high=3.2)
    law = law.model_copy(update={"exponents": exponents, "ratio_at_25_tokens_per_param": ratio})
    final = make_final()
    numbers = run(law, final)
    assert numbers["law"] == {
        "size_exponent": 0.3,
        "size_exponent_low": 0.1,  # the open end is left out, and so is what is not known
        "size_exponent_at_fixed_tokens_per_param": 1.0,
        "size_exponent_at_fixed_tokens_per_param_low": 0.8,
        "size_exponent_at_fixed_tokens_per_param_high": 1.2,
        "ratio_at_25_tokens_per_param": 2.6,
        "ratio_at_25_tokens_per_param_low": 2.1,
        "ratio_at_25_tokens_per_param_high": 3.2,
        "verdict": law.overall.status,
        **{f"claim_{claim.name}": claim.answer for claim in law.overall.claims},
    }
    chosen = next(row for row in final.rows if row.teacher == final.choice.chosen)
    assert numbers["final"] == {
        "test_loss_nats_per_token": chosen.test_loss_nats_per_token,
        "test_bits_per_byte": chosen.test_bits_per_byte,
        "regret_nats": final.regret_nats,
        "teacher_params_non_embedding": 343_000,
    }


def test_each_line_is_named_by_its_budget_and_a_study_may_lack_a_final_student(law):
    slope = Interval(value=3.1, low=2.2, high=None)
    line = law.lines[0].model_copy(update={"tokens": 5000, "slope": slope})
    unknown = line.model_copy(update={"tokens": 10**6, "slope": None})
    numbers = run(law.model_copy(update={"lines": [line, unknown]}), None)
    assert numbers["lines"] == {"tokens-5k": {"slope": 3.1, "slope_low": 2.2}}
    assert "final" not in numbers
