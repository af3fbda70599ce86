"""The figure of learning curves: means over draws, gaps, thinning, and what is shown at first."""

import pytest

from capgap.records.run_records import CurveRow
from capgap.reporting.training_chart import MOST_POINTS, NO_TEACHER, TEACHERS, training

SIZES = {"t1": 100, "t2": 200}


def row(teacher, tokens, loss, *, student="10", init=None, budget=800, seed=1):
    init = init or (f"pruned-{teacher}" if student else None)
    return CurveRow(
        student=student,
        init=init,
        teacher=teacher,
        seed=seed,
        budget_tokens=budget,
        tokens=tokens,
        val_loss_nats_per_token=loss,
    )


CURVES = [
    *(row("t1", n, loss) for n, loss in [(0, 9.0), (50, 5.0), (400, 4.0), (800, 3.5)]),
    *(row("t1", n, loss, seed=2) for n, loss in [(0, 9.0), (50, 5.2), (400, 4.2), (800, 3.7)]),
    *(row("t2", n, loss) for n, loss in [(0, 9.5), (50, 6.0), (400, 4.3), (800, 3.2)]),
    *(row("none", n, 4.5, init="pruned-t1") for n in (50, 400, 800)),
    *(row("t1", n, 2.0, student=None, budget=900) for n in (450, 900)),
    row("t2", 100, 5.0, init="pruned-t1", budget=100),
]


def shown(figure, group, teacher):
    data = figure.data[(figure.data.group == group) & (figure.data.teacher == teacher)]
    return data.set_index("tokens")


def test_lines_are_means_over_draws_and_gaps_lie_above_the_lowest_line():
    figure = training(CURVES, SIZES, ("10", 800))
    group = "the student of 10 at 800 tokens"
    one, two = shown(figure, group, "t1"), shown(figure, group, "t2")
    assert one.loss_nats_per_token.to_dict() == pytest.approx({50: 5.1, 400: 4.1, 800: 3.6})
    assert one.gap_nats.dropna().to_dict() == pytest.approx({400: 0.0, 800: 0.4})  # not at 50
    assert two.gap_nats.dropna().to_dict() == pytest.approx({400: 0.2, 800: 0.0})
    assert set(shown(figure, group, NO_TEACHER).index) == {50, 400, 800}
    assert set(shown(figure, TEACHERS, "t1").index) == {450, 900}


def test_cross_teachers_have_no_line_and_what_was_asked_for_is_shown_first():
    figure = training(CURVES, SIZES, ("10", 800))
    assert "the student of 10 at 100 tokens" not in set(figure.data.group)
    params = {param["name"]: param for param in figure.chart.to_dict()["params"]}
    assert params["chosen"]["value"] == "the student of 10 at 800 tokens"
    assert params["chosen"]["bind"]["options"] == ["the student of 10 at 800 tokens", TEACHERS]


def test_long_curves_are_thinned_with_their_ends():
    curves = [row("t1", n, 9.0 - n / 1000) for n in range(1, 1001)]
    found = training(curves, SIZES, ("10", 800)).data.tokens.tolist()
    assert len(found) <= MOST_POINTS
    assert (found[0], found[-1]) == (1, 1000)


def test_without_curves_there_is_no_figure():
    assert training([], SIZES, ("10", 800)) is None
