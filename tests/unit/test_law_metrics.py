"""The law by several metrics: which outcomes a table has, their scales and margins, and comparisons."""

import numpy as np
import pandas as pd
import pytest
from law_worlds import TWO_KINDS_LADDER, holds, two_kinds

from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.answers.ask import open_law
from capgap.law.make_record import law_record
from capgap.law.table.column_names import LOSS
from capgap.law.table.metric import METRICS, margin_of, title
from capgap.law.table.read_runs import further_outcomes, read_table
from capgap.reporting import law_text
from capgap.reporting.comparison_text import metric_rows
from capgap.stages import fit
from capgap.stages.collect import to_csv
from capgap.stages.report import rows_of


def measured(ratio=3.0, seed=6):
    """Runs whose best teacher by another outcome is `ratio` times smaller than by the loss."""
    both = two_kinds(seed, ratio)
    runs = both[both["arm"] == "main"].reset_index(drop=True)
    return runs, both.loc[both["arm"] == "given", LOSS].to_numpy()


@pytest.mark.parametrize(
    ("header", "values", "words"),
    [
        ("test_loss_nats_per_token", lambda other: other, "test loss"),
        ("bits_per_byte:news", lambda other: other / np.log(2) / 2.3, "bits per byte of news"),
        ("accuracy:word", lambda other: 1 / (1 + np.exp(4 * (other - 4))), "accuracy of word"),
        ("higher:bleu", lambda other: 40 - 30 * other, "score of bleu"),
        ("lower:brier", lambda other: other, "score of brier"),
    ],
)
def test_another_outcome_has_its_own_best_teacher(header, values, words):
    runs, other = measured()
    table = read_table(runs.assign(**{header: values(other)}))
    record = law_record(table.runs, Law())
    [found] = record.metric_comparisons
    assert (found.first, found.second) == ("validation loss", words)
    assert found.verdict == "different"
    assert holds(found.ratio, 3.0)
    assert f"times that for {words}" in found.reason
    [law] = record.metric_laws
    assert (law.title, law.status) == (words, "fitted")
    assert holds(law.optima[0].teacher_params, 80e3 / 3)
    assert f"by {words}" in law_text.text(record)
    assert [row.title for row in metric_rows(record)] == ["validation loss", words]


def test_a_multiple_of_the_loss_has_the_same_best_teacher_and_noise():
    runs, _ = measured()
    bits = runs[LOSS] / np.log(2) / 2.3
    record = law_record(runs.assign(**{"bits_per_byte:same": bits}), Law())
    assert record.metric_comparisons[0].verdict == "equal"
    assert record.metric_comparisons[0].ratio.value == pytest.approx(1.0, abs=0.02)
    noise = {
        law.metric: next(part.sd.value for part in law.noise if part.name == "order")
        for law in (record, *record.metric_laws)
    }
    assert noise["bits_per_byte"] == pytest.approx(noise["loss"] / np.log(2) / 2.3, rel=0.1)


def test_a_named_outcome_comes_first_and_answers(tmp_path):
    runs, other = measured()
    runs = runs.assign(**{"bits_per_byte:news": other / 2})
    runs.to_csv(tmp_path / "runs.csv", index=False)
    record = fit.run(tmp_path / "runs.csv", Law(metric="news", tie_bits_per_byte=0.001))
    assert (record.metric, record.outcome, record.tie_nats) == ("bits_per_byte", "news", 0.001)
    [found] = record.metric_comparisons
    assert (found.first, found.second) == ("bits per byte of news", "validation loss")
    (tmp_path / "law.json").write_text(record.to_json())
    best = (
        open_law(tmp_path / "law.json", tmp_path / "runs.csv")
        .teachers_for(10_000)
        .ranked[0]
        .teacher
    )
    assert best in ("t20000", "t40000")  # around 27k
    plain = fit.run(tmp_path / "runs.csv", Law())
    assert (plain.metric, plain.outcome) == ("loss", None)


def test_names_choose_what_is_compared():
    runs, other = measured()
    runs = runs.assign(**{"lower:a": other, "lower:b": other, "test_loss_nats_per_token": other})
    table = read_table(runs, ["loss", "b"])
    assert table.compared(Law(metric=["loss", "b"])) == ["b"]
    assert table.compared(Law()) == table.compared(Law(metric="loss")) == ["test", "a", "b"]
    named = read_table(runs, ["b", "a", "loss"])
    assert named.name == "b"
    assert set(further_outcomes(named.runs, "b")) == {"test", "a", "validation"}
    with pytest.raises(CapgapError, match=r"law.metric: c is no outcome .* there are test, a, b"):
        table.compared(Law(metric=["loss", "c"]))
    with pytest.raises(CapgapError, match=r"metric is 'newz', not one of loss, .*, a, b, test"):
        read_table(runs, "newz")
    assert Law(metric="loss, b").metrics() == ["loss", "b"]


def test_the_test_loss_can_come_first():
    runs, other = measured()
    table = read_table(runs.assign(test_loss_nats_per_token=other), "test")
    record = law_record(table.runs, table.settings(Law()), table.name)
    assert holds(record.optima[0].teacher_params, 80e3 / 3)
    assert [law.name for law in record.metric_laws] == ["validation"]


def test_each_metric_has_a_margin_of_its_own():
    law = Law(tie_nats=0.004, margins={"news": 0.5, "validation": 0.1})
    assert margin_of(law, METRICS["bits_per_byte"], "news") == 0.5
    assert margin_of(law, METRICS["bits_per_byte"], "other") == 0.002
    assert margin_of(law, METRICS["accuracy"], "task") == 0.02
    assert margin_of(law, METRICS["loss"], None) == 0.1
    assert title(METRICS["perplexity"], None) == "validation perplexity"


def test_an_outcome_that_some_runs_lack_or_that_has_an_outlier_has_no_law():
    runs, other = measured()
    lacking = law_record(runs.assign(**{"lower:x": np.where(runs.index < 3, np.nan, other)}), Law())
    assert lacking.metric_laws[0].status == "not_identifiable"
    assert lacking.metric_laws[0].reason == "3 runs of the main arm were not measured by it"
    assert lacking.metric_comparisons[0].verdict == "not_told_apart"
    odd = law_record(runs.assign(**{"lower:x": other + 3.0 * (runs.index == 5)}), Law())
    assert odd.metric_laws[0].status == "not_identifiable"
    assert "no law for score of x" in odd.metric_comparisons[0].reason
    assert odd.status == lacking.status == "fitted"


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"accuracy:word": 57.0}, "accuracy:word is 57, but an accuracy lies between 0 and 1"),
        ({"bits_per_byte:news": -1.0}, "must be greater than 0"),
        ({"accuracy:a": 0.5, "lower:a": 0.5}, "another outcome is called a"),
        ({"lower:test": 0.5}, "another outcome is called test"),
    ],
)
def test_outcomes_are_checked(columns, problem):
    runs, _ = measured()
    with pytest.raises(CapgapError, match=problem):
        read_table(runs.assign(**columns))


def test_outcomes_survive_the_table(tmp_path):
    runs, other = measured()
    rows = rows_of(read_table(runs.assign(**{"bits_per_byte:news": other})).runs)
    (tmp_path / "runs.csv").write_text(to_csv(rows))
    again = read_table(tmp_path / "runs.csv").runs
    assert again["bits_per_byte:news"].tolist() == [
        row.flat()["bits_per_byte:news"] for row in rows
    ]
    assert len(set(again["teacher"])) == len(TWO_KINDS_LADDER)
    assert pd.Series(again[LOSS]).notna().all()
