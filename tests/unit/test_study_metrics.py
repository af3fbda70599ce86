"""The few numbers that revisions are compared by."""

from types import SimpleNamespace

from capgap.law.law_record import Interval
from capgap.stages.metrics import run


def line(tokens, slope, r_squared, n_students):
    return SimpleNamespace(tokens=tokens, slope=slope, r_squared=r_squared, n_students=n_students)


FINAL = SimpleNamespace(
    choice=SimpleNamespace(chosen="big"),
    regret_nats=0.25,
    rows=[
        SimpleNamespace(
            teacher=teacher,
            test_loss_nats_per_token=loss,
            test_bits_per_byte=loss / 2,
            teacher_params_non_embedding=params,
        )
        for teacher, loss, params in [("small", 2.0, 10), ("big", 2.25, 20)]
    ],
)


def test_slope_interval_regret_and_final_loss_have_names():
    law = SimpleNamespace(lines=[line(5000, Interval(value=3.1, low=2.2, high=None), 0.9, 3)])
    assert run(law, FINAL) == {
        "law": {"tokens-5k": {"optima_used": 3, "r_squared": 0.9, "slope": 3.1, "slope_low": 2.2}},
        "final": {
            "test_loss_nats_per_token": 2.25,  # of the chosen teacher's student, not of the best
            "test_bits_per_byte": 1.125,
            "regret_nats": 0.25,
            "teacher_params_non_embedding": 20,
        },
    }


def test_line_that_could_not_be_fitted_leaves_its_numbers_out():
    law = SimpleNamespace(lines=[line(5000, None, None, 0), line(10**6, None, None, 2)])
    assert run(law, FINAL)["law"] == {
        "tokens-5k": {"optima_used": 0},
        "tokens-1M": {"optima_used": 2},
    }
