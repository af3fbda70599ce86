"""The best teacher under several kinds of init: one law each, and whether they differ."""

import numpy as np
import pandas as pd
import pytest
from law_worlds import TWO_KINDS_LADDER, holds, two_kinds

import capgap as cg
from capgap.config import Law
from capgap.config.run_grid import NONE, RANDOM, given_init
from capgap.errors import CapgapError
from capgap.law.answers.ask import open_law
from capgap.law.make_record import law_record
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.table.grouped_runs import group_runs
from capgap.law.table.init_kinds import as_main, kinds_of
from capgap.law.table.read_runs import main_arm
from capgap.law.verdicts.law_comparison import compare_inits

WIDE = Law(ratio_margin=0.25)


def compared(runs, settings=WIDE):
    """The comparison of the two kinds of a table."""
    laws = {
        kind: fit_power_law(group_runs(main_arm(as_main(runs, kind)))) for kind in kinds_of(runs)
    }
    [found] = compare_inits(laws, settings)
    return found


def test_each_kind_is_a_table_of_its_own():
    runs = two_kinds(0, 2.0)
    alone = runs.iloc[:1].assign(init="given-small", teacher=NONE, arm="no_teacher", seed=7)
    alone["teacher_params_non_embedding"] = np.nan
    runs = pd.concat([runs, alone], ignore_index=True)
    assert kinds_of(runs) == ["pruned", "given"]
    given = as_main(runs, "given")
    assert set(given["init"]) == {"given-small"}
    assert given["arm"].value_counts().to_dict() == {"main": 40, "no_teacher": 1}
    assert as_main(runs, "pruned") is runs


def test_given_students_of_one_size_are_told_apart():
    runs = two_kinds(0, 2.0)
    more = runs[runs["arm"] == "given"].assign(init=given_init("second"))
    given = as_main(pd.concat([runs, more], ignore_index=True), "given")
    assert set(given["student"]) == {"10000 small", "10000 second", "15000 small", "15000 second"}


def test_a_random_init_is_one_draw_for_all_teachers():
    runs = two_kinds(0, 2.0, other=RANDOM)
    grouped = group_runs(main_arm(as_main(runs, "random")))
    assert set(grouped.init_draw_N) == {"random//0"}
    pruned = group_runs(main_arm(runs))
    assert len(set(pruned.init_draw_N)) == 2 * len(TWO_KINDS_LADDER)


def test_teachers_that_differ_by_a_factor_of_three_are_told_apart():
    found = compared(two_kinds(1, 3.0))
    assert (found.first, found.second, found.verdict) == ("pruned", "given", "different")
    assert holds(found.ratio, 3.0)
    assert found.ratio.low > 1.25
    assert found.n_teachers == 10
    assert all(holds(row.ratio, 3.0) for row in found.at)
    # F(log 3) of a parabola of curvature 0.1
    assert found.cost["pruned"].value == pytest.approx(0.05 * np.log(3) ** 2, rel=0.4)


def test_luck_that_both_kinds_share_does_not_widen_the_interval():
    lucky, plain = compared(two_kinds(2, 1.0, teacher_sd=0.02)), compared(two_kinds(2, 1.0, 0.0))
    assert plain.verdict == "equal"
    width = [np.log(found.ratio.high / found.ratio.low) for found in (lucky, plain)]
    assert width[0] < 2 * width[1]
    assert lucky.verdict == "equal"


def test_the_same_end_of_the_ladder_is_no_proof_of_equality():
    found = compared(two_kinds(3, 1.0, star=2e6))
    assert found.verdict == "not_told_apart"
    assert all(set(row.place.values()) == {"largest"} for row in found.at)


def test_kinds_without_a_common_student_are_not_compared():
    runs = two_kinds(0, 1.0)
    runs.loc[runs["arm"] == "given", "student"] += "x"
    found = compared(runs)
    assert found.verdict == "not_told_apart"
    assert found.reason == "pruned and given share no student size and budget"


def test_intervals_of_the_ratio_hold_the_truth():
    held = [
        holds(compared(two_kinds(100 + i, 2.0, teacher_sd=0.006)).ratio, 2.0) for i in range(20)
    ]
    assert sum(held) >= 17  # of 20 at 95 %: fewer happen in 0.3 % of cases


def test_the_record_has_a_law_for_each_kind_and_answers_by_it(tmp_path):
    runs = two_kinds(4, 4.0, teacher_sd=0.003, other=RANDOM)
    record = law_record(runs, Law())
    assert (record.init, [law.init for law in record.other_inits]) == ("pruned", ["random"])
    assert [found.verdict for found in record.init_comparisons] == ["different"]
    assert record.of_init("random").n_runs == 40
    with pytest.raises(CapgapError, match="the law has no given students"):
        record.of_init("given")
    (tmp_path / "law.json").write_text(record.to_json())
    runs.to_csv(tmp_path / "runs.csv", index=False)
    best = {
        kind: open_law(tmp_path / "law.json", tmp_path / "runs.csv", kind)
        .teachers_for(10_000)
        .ranked[0]
        .teacher
        for kind in ("pruned", "random")
    }
    assert best == {"pruned": "t80000", "random": "t20000"}


def test_python_answers_by_the_law_of_a_kind():
    law = cg.fit_law(two_kinds(4, 4.0, teacher_sd=0.003))
    found = {kind: cg.recommend(law, 10_000, init=kind).record.ranked[0].teacher for kind in
             ("pruned", "given")}  # fmt: skip
    assert found == {"pruned": "t80000", "given": "t20000"}
    assert set(law.of_init("given").runs["init"]) == {"given-small"}
    with pytest.raises(CapgapError, match="no random students"):
        cg.recommend(law, 10_000, init="random")


def test_a_table_of_given_students_alone_has_their_law():
    runs = two_kinds(5, 2.0)
    record = law_record(runs[runs["arm"] == "given"], Law())
    assert record.init == "given"
    assert record.other_inits == record.init_comparisons == []
