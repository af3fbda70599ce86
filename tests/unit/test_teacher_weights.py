"""Several weights of the teacher's term: the runs, their paths, a law for each, and whether T* differs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from law_worlds import holds, two_kinds

import capgap as cg
from capgap.config import CollectStage, Law
from capgap.config.run_grid import NONE, collect_stage, runs_of, weight_level, weight_of
from capgap.config.study_file import load_study
from capgap.cost.job_costs import StudyCost
from capgap.errors import CapgapError
from capgap.law.answers.ask import open_law
from capgap.law.make_record import law_record
from capgap.law.table.init_kinds import at_weight, weights_of
from capgap.law.table.read_runs import read_table
from capgap.records import paths
from capgap.reporting import law_text

TINY = Path(__file__).parents[1] / "tiny/config.yaml"


def study(weights=(0.2, 0.5), change=lambda data: None):
    data = yaml.safe_load(TINY.read_text())
    data["distill"]["teacher_weight"] = 0.5
    data["grid"]["teacher_weights"] = list(weights)
    change(data)
    return load_study(data)


def weighted(ratio, seed=1, sd=0.004):
    """A table whose runs at weight 0.9 have a best teacher `ratio` times smaller than those at 0.3."""
    both = two_kinds(seed, ratio, teacher_sd=sd)
    pruned = both["arm"] == "main"
    both.loc[~pruned, "init"] = both.loc[pruned, "init"].to_numpy()
    return both.assign(arm="main", teacher_weight=np.where(pruned, 0.3, 0.9))


def test_every_weight_has_every_run_with_a_teacher_and_shares_the_others():
    plain, both = runs_of(study([0.5])), runs_of(study())
    assert {run.weight for run in plain} == {""}
    assert set(plain) < set(both)  # a further weight moves no run
    more = [run for run in both if run not in plain]
    assert {run.weight for run in more} == {"weight-0.2/"}
    assert {run._replace(weight="") for run in more} == {r for r in plain if r.teacher != NONE}
    assert runs_of(study(change=lambda data: data["grid"].pop("teacher_weights"))) == plain


@pytest.mark.parametrize("weight", [0.3, 1.0, 0.123456789, 1e-05])
def test_a_weight_survives_its_path(weight):
    level = weight_level(weight, 0.5)
    assert weight_of(level, 0.5) == weight
    assert weight_of(weight_level(0.5, 0.5), 0.5) == 0.5
    place = paths.RUN_DIR.format(
        study="s", replica="", student="1k", init="random", teacher="t", tokens="1k", seed=0,
        weight=level,
    )  # fmt: skip
    assert f"/from-t/{level}tokens-1k/" in place


def test_settings_of_a_run_and_of_the_law_follow_the_weight():
    made = study()
    assert made.distill_stage(0.2) == made.distill.model_copy(update={"teacher_weight": 0.2})
    assert made.law_stage().teacher_weight == 0.5
    assert study(change=lambda d: d["grid"].pop("teacher_weights")).law_stage() == made.law
    stage = collect_stage(made)
    assert CollectStage.model_validate(stage.model_dump(mode="json")).teacher_weight == 0.5


def test_the_plan_counts_a_job_for_every_weight():
    jobs = StudyCost(study()).jobs
    plain = StudyCost(study([0.5])).jobs
    more = {job.output for job in jobs} - {job.output for job in plain}
    taught = [run for run in runs_of(study([0.5])) if run.teacher != NONE]
    assert len(more) == 2 * len(taught)  # trained and measured
    assert len({job.output for job in jobs}) == len(jobs)
    assert all("/weight-0.2/" in output for output in more)


@pytest.mark.parametrize(
    ("weights", "change", "problem"),
    [
        (
            (0.2, 0.9),
            None,
            "grid.teacher_weights: 0.2, 0.9 are without distill.teacher_weight, 0.5",
        ),
        ((0.5, 0.5), None, "grid.teacher_weights: the same value occurs twice"),
        ((0.0, 0.5), None, "grid.teacher_weights"),
        ((0.5, 1.5), None, "grid.teacher_weights"),
        ((0.2, 0.5), {"teacher_weight": 0.3}, "law.teacher_weight: no run has the weight 0.3"),
        ((0.2, 0.5), {"teacher_weight": 0.2}, "law.teacher_weight: 0.2 is not distill"),
    ],
)
def test_what_does_not_fit_together_is_named(weights, change, problem):
    with pytest.raises(CapgapError, match=problem):
        study(weights, lambda data: data.setdefault("law", {}).update(change or {}))


def test_the_runs_of_a_weight_are_a_table_of_their_own():
    runs = weighted(2.0)
    alone = runs.iloc[:1].assign(teacher=NONE, arm="no_teacher", teacher_weight=np.nan, seed=7)
    alone["teacher_params_non_embedding"] = np.nan
    runs = read_table(pd.concat([runs, alone], ignore_index=True)).runs
    assert weights_of(runs) == [0.3, 0.9]
    own = at_weight(runs, 0.9)
    assert len(own) == 41
    assert "teacher_weight" not in own
    assert at_weight(runs, None) is runs
    assert weights_of(own) == []


def test_best_teachers_that_differ_between_weights_are_told_apart():
    record = law_record(weighted(3.0), Law(teacher_weight=0.3))
    assert record.teacher_weight == 0.3
    assert [law.teacher_weight for law in record.other_weights] == [0.9]
    [found] = record.weight_comparisons
    assert (found.first, found.second, found.verdict) == ("0.3", "0.9", "different")
    assert holds(found.ratio, 3.0)
    assert "T* for weight 0.3 is" in found.reason
    text = law_text.text(record)
    assert "different best teachers at the weights 0.3 and 0.9" in text


def test_equal_best_teachers_are_equal_and_the_middle_weight_comes_first():
    record = law_record(weighted(1.0), Law())
    assert record.teacher_weight == 0.9  # the upper one of two
    assert record.weight_comparisons[0].verdict == "equal"


def test_one_answers_by_the_law_of_a_weight(tmp_path):
    runs = weighted(4.0)
    record = law_record(runs, Law(teacher_weight=0.3))
    (tmp_path / "law.json").write_text(record.to_json())
    runs.to_csv(tmp_path / "runs.csv", index=False)
    law, table = tmp_path / "law.json", tmp_path / "runs.csv"
    best = {
        w: open_law(law, table, weight=w).teachers_for(10_000).ranked[0].teacher
        for w in (None, 0.3, 0.9)
    }
    assert best == {None: "t80000", 0.3: "t80000", 0.9: "t20000"}
    assert len(open_law(law, table, weight=0.9).runs) == 40
    with pytest.raises(CapgapError, match=r"no runs at 0.4; it has 0.3, 0.9"):
        open_law(law, table, weight=0.4)
    fitted = cg.fit_law(runs)
    assert cg.recommend(fitted.of_weight(0.9), 10_000).record.ranked[0].teacher == "t20000"


def test_tables_are_checked():
    runs = weighted(1.0)
    same = runs.assign(teacher_weight=0.4)
    with pytest.raises(CapgapError, match="occurs twice"):
        read_table(same)  # a constant weight distinguishes no runs
    once = runs[runs["teacher_weight"] == 0.3]
    assert "teacher_weight" not in read_table(once).runs
    with pytest.raises(CapgapError, match="a weight of the teacher's term is above 0"):
        read_table(runs.assign(teacher_weight=np.where(runs.index < 1, 1.5, 0.5)))
    missing = runs.assign(teacher_weight=runs["teacher_weight"].where(runs.index > 0))
    with pytest.raises(CapgapError, match="teacher_weight is empty"):
        read_table(missing)
    left = read_table(runs, exclude=[{"teacher_weight": 0.9, "teacher": "t80000"}])
    assert {row["teacher_weight"] for row in left.excluded} == {0.9}
    with pytest.raises(CapgapError, match=r"law.teacher_weight: no run has the weight 0.5"):
        law_record(read_table(runs).runs, Law(teacher_weight=0.5))
