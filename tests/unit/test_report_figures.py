import re
from collections import Counter

import pytest
from report_records import (
    STUDENTS,
    make_final,
    make_law,
    make_runs,
)

from capgap.law.law_record import Interval
from capgap.reporting import charts, regret_chart, report_text
from capgap.reporting.law_chart import law_chart, level_names
from capgap.reporting.theme import size_axis
from capgap.stages.report import render_svg, specification

ALL_ARMS = ("no_teacher", "random_init", "cross_teacher")


def test_curves_hold_every_run_and_the_record_of_the_law():
    runs = make_runs(arms=ALL_ARMS)
    law = make_law(runs)
    data = charts.curves(runs, law).data
    arms = Counter(r.arm for r in runs)
    assert (data.kind == "seed").sum() == arms["main"]
    assert (data.kind == "no_teacher").sum() == arms["no_teacher"]
    stars = data[data.kind == "optimum"].set_index("student")
    for found in law.optima:
        assert stars.teacher_params[found.student] == found.teacher_params.value
        assert stars.params_low[found.student] == found.teacher_params.low
        tie = data[(data.student == found.student) & (data.kind == "tie")].iloc[0]
        assert tie.loss_nats_per_token == min(c.mean_loss_nats_per_token for c in found.teachers)
        assert tie.loss_high - tie.loss_nats_per_token == pytest.approx(law.tie_nats)


def test_a_run_without_teacher_stands_at_the_size_it_was_pruned_from():
    runs = make_runs(seeds=(0,), arms=ALL_ARMS)
    data = charts.controls(runs).data
    alone = data[(data.arm == report_text.arm_name("no_teacher")) & (data.init == "pruned-t340k")]
    assert set(alone.teacher_params) == {343_000}
    assert (data.kind == "baseline").sum() == len(STUDENTS)
    assert charts.controls(make_runs()) is None


def test_law_chart_draws_the_joint_law_the_published_line_and_the_final_student():
    law = make_law(make_runs())
    data = law_chart(law, make_final()).data
    rivals = {"choice of Busbridge et al.", "choice of the P2 law"}
    assert set(data.kind) - rivals == {
        "tried",
        "power law",
        "own curve",
        "final",
        "published: 2.5 × S",
    }
    published = data[data.kind == "published: 2.5 × S"]
    assert list(published.teacher_params) == pytest.approx(list(2.5 * published.student_params))
    points = data[data.kind == "power law"].set_index("student")
    for found in law.optima:
        assert points.teacher_params[found.student] == found.teacher_params.value
        assert points.level[found.student] == "1.5M tokens"
    assert set(data.student[data.kind == "final"]) == {"final 131k"}


def test_budgets_are_named_by_tokens_per_parameter_if_no_students_share_one():
    law = make_law(make_runs())
    own = [
        found.model_copy(update={"tokens": round(20 * found.student_params_non_embedding)})
        for found in law.optima
    ]
    assert set(level_names(own).values()) == {"20 tokens per parameter"}
    assert set(level_names(law.optima).values()) == {"1.5M tokens"}


def test_an_interval_open_on_one_side_ends_at_the_edge_and_none_is_none():
    runs = make_runs()
    law = make_law(runs)

    def band(low, high):
        found = law.optima[0]
        star = Interval(value=found.teacher_params.value, low=low, high=high)
        changed = found.model_copy(update={"teacher_params": star})
        data = charts.curves(runs, law.model_copy(update={"optima": [changed]})).data
        return data[data.kind == "optimum"].iloc[0][["params_low", "params_high"]]

    assert list(band(90_000.0, None)) == [90_000, 1_012_000]
    assert list(band(None, 300_000.0)) == [83_000, 300_000]
    assert band(None, None).isna().all()


def test_pareto_frontier_is_what_nothing_beats():
    runs = make_runs(arms=ALL_ARMS)
    data = charts.pareto(runs, make_final()).data
    points = set(
        data[data.kind != "frontier"][["train_flops", "loss_nats_per_token"]].itertuples(
            index=False, name=None
        )
    )
    frontier = data[data.kind == "frontier"]
    unbeaten = [
        (flops, loss)
        for flops, loss in points
        if not any(x <= flops and y <= loss for x, y in points - {(flops, loss)})
    ]
    assert sorted(unbeaten) == list(
        zip(frontier.train_flops, frontier.loss_nats_per_token, strict=True)
    )
    rings = data[data.kind == "final"].sort_values("train_flops")
    assert list(rings.name) == ["above", "below", "above"]  # names that do not overlap


def test_compute_that_a_table_does_not_tell_is_counted():
    runs = make_runs()
    told = charts.pareto(runs, None).data
    counted = charts.pareto([r.model_copy(update={"train_flops": None}) for r in runs], None).data
    assert list(counted.train_flops) == pytest.approx(list(told.train_flops))


def test_regret_table_marks_the_best_and_the_tie():
    law = make_law(make_runs())
    data = regret_chart.regret(law).data
    for found in law.optima:
        rows = data[data.student == found.student].set_index("teacher")
        assert rows.text[found.best_teacher] == "best"
        assert set(rows.index[rows.kind == "tie"]) == set(found.within_tie)
        for cell in found.teachers:
            assert rows.regret_nats[cell.teacher] == cell.regret_nats


def test_ticks_are_round_sizes_inside_the_range():
    assert size_axis([83_000, 1_012_000]).values == [1e5, 2e5, 5e5, 1e6]


def test_drawing_twice_gives_the_same_bytes():
    runs = make_runs()
    spec = specification(charts.curves(runs, make_law(runs)))
    first = render_svg("curves", spec)
    assert first == render_svg("curves", spec)
    ids = re.findall(r'\bid="([^"]+)"', first)
    assert ids
    assert ids == [f"curves-{i}" for i in range(len(ids))]
    assert set(re.findall(r"url\(#([^)]+)\)", first)) <= set(ids)


def test_rivals_stand_in_the_figure_of_the_law_where_they_choose():
    law = make_law(make_runs())
    data = law_chart(law, None).data
    for score in law.scores:
        if score.law == "busbridge":
            own = data[data.kind == "choice of Busbridge et al."]
            assert list(own.teacher_params) == [
                pick.teacher_params_non_embedding for pick in score.picks
            ]
            assert len(own) == score.n_cases > 0
