"""The design: which runs a grid consists of."""

from pathlib import Path

import yaml

from capgap.config import Grid
from capgap.config.run_grid import (
    Run,
    arm_of,
    budgets_of,
    final_runs,
    grid_runs,
    measured_on_tasks,
    next_smaller,
    scored_teachers,
    teacher_draws,
    teachers_for,
    teaching,
)
from capgap.config.study_file import load_study

TINY = Path(__file__).parents[1] / "tiny/config.yaml"

SIZES = {"small": 50, "large": 200, "middle": 100}


def runs(**grid):
    return grid_runs(Grid(**{"students": [60], "tokens": [1000], "seeds": [1, 2], **grid}), SIZES)


def study(change):
    settings = yaml.safe_load(TINY.read_text())
    change(settings)
    return load_study(settings)


def test_only_larger_teachers_smallest_first():
    assert teachers_for(60, SIZES) == ["middle", "large"]
    assert teachers_for(200, SIZES) == []


def test_main_arm_is_every_larger_teacher_and_seed():
    assert runs() == [
        Run("60", f"pruned-{t}", t, "1k", s) for t in ("middle", "large") for s in (1, 2)
    ]


def test_arms_add_exactly_their_runs():
    main = set(runs())
    extra = set(runs(arms=["no_teacher"], arm_seeds=[1])) - main
    assert extra == {Run("60", f"pruned-{t}", "none", "1k", 1) for t in ("middle", "large")}
    extra = set(runs(arms=["cross_teacher"], arm_seeds=[2])) - main
    assert extra == {
        Run("60", "pruned-middle", "large", "1k", 2),
        Run("60", "pruned-large", "middle", "1k", 2),
    }
    extra = set(runs(arms=["random_init"])) - main
    assert {(r.init, r.teacher) for r in extra} == {
        ("random", t) for t in ("middle", "large", "none")
    }


def test_no_run_stands_twice_and_budgets_multiply():
    every = runs(tokens=[1000, 2000], arms=["no_teacher", "random_init", "cross_teacher"])
    assert (
        len(every)
        == len(set(every))
        == 2 * len(runs(arms=["no_teacher", "random_init", "cross_teacher"]))
    )


def test_arms_are_recognised_from_identity():
    assert arm_of("pruned-a", "a") == "main"
    assert arm_of("pruned-a", "none") == "no_teacher"
    assert arm_of("pruned-a", "b") == "cross_teacher"
    assert arm_of("random", "none") == arm_of("random", "a") == "random_init"


def test_final_runs_follow_the_teachers_given():
    tiny = study(lambda s: None)
    assert final_runs(tiny, ["t16k"]) == [Run("4k", "pruned-t16k", "t16k", "8k", 0)]
    assert final_runs(study(lambda s: s.pop("final")), ["t16k"]) == []


def test_budgets_in_proportion_to_the_student():
    found = runs(students=[60, 80], tokens=[], tokens_per_param=[100, 12.5], seeds=[1])
    assert {(r.student, r.tokens) for r in found} == {
        ("60", "6k"), ("60", "750"), ("80", "8k"), ("80", "1k"),
    }  # fmt: skip
    both = runs(tokens=[1000], tokens_per_param=[100], seeds=[1])
    assert {r.tokens for r in both} == {"1k", "6k"}


def test_teachers_by_ratio_and_by_list():
    def teachers(budget="1k", **grid):
        return [r.teacher for r in runs(seeds=[1], **grid) if r.tokens == budget]

    assert teachers(teacher_ratio=[1.0, 2.0]) == ["middle"]  # 100/60 = 1.67, 200/60 = 3.33
    assert teachers(teacher_ratio=[2.0, 3.4]) == ["large"]
    assert teachers(teachers={"60": ["large"]}) == ["large"]
    by_budget = {"60": {"1k": ["middle"], "2k": ["large", "middle"]}}
    assert teachers(tokens=[1000, 2000], teachers={60: by_budget["60"]}) == ["middle"]
    assert runs(tokens=[1000, 2000], seeds=[1], teachers=by_budget, arms=["cross_teacher"]) == [
        Run("60", "pruned-middle", "middle", "1k", 1),
        Run("60", "pruned-middle", "middle", "2k", 1),
        Run("60", "pruned-large", "large", "2k", 1),
        Run("60", "pruned-middle", "large", "2k", 1),
        Run("60", "pruned-large", "middle", "2k", 1),
    ]


def test_controls_at_the_named_inits_alone():
    main = set(runs())
    extra = set(runs(arms=["no_teacher", "cross_teacher"], arm_inits=["large"])) - main
    assert {(r.init, r.teacher) for r in extra} == {
        ("pruned-large", "none"), ("pruned-large", "middle"),
    }  # fmt: skip


def test_a_replica_has_teachers_inits_and_order_of_its_own():
    assert runs(seeds=None, replicas=[3, 5], teacher_ratio=[1, 2]) == [
        Run("60", "pruned-middle", "middle", "1k", 3, "replica-3/"),
        Run("60", "pruned-middle", "middle", "1k", 5, "replica-5/"),
    ]

    def replicas(settings):
        settings["grid"].update(seeds=None, replicas=[3, 5], arm_seeds=[5])
        settings["final"]["seeds"] = [7]
        settings["teachers"]["t9k"] = {"source": "path", "path": "x", "params_non_embedding": "9k"}
        settings["harness"] = {"tasks": {"wikitext": 0}, "teachers": ["t6k", "t9k"]}

    redrawn = study(replicas)
    assert teacher_draws(redrawn) == [
        ("t6k", "replica-3/"), ("t9k", ""), ("t16k", "replica-3/"),
        ("t6k", "replica-5/"), ("t16k", "replica-5/"),
    ]  # fmt: skip
    found = grid_runs(redrawn.grid, {"t6k": 6000, "t9k": 9000})
    assert [r.replica for r in found if r.teacher == "none"] == ["replica-5/"] * 2
    assert scored_teachers(found) == [
        ("t6k", "replica-3/"),
        ("t6k", "replica-5/"),
        ("t9k", "replica-3/"),
        ("t9k", "replica-5/"),
    ]  # fmt: skip  of a fetched teacher the calibration text is drawn anew
    assert teaching(redrawn, found) == [("t6k", "replica-3/"), ("t6k", "replica-5/"), ("t9k", "")]
    assert final_runs(redrawn, ["t6k"])[0][-3:] == (7, "replica-3/", "")
    assert measured_on_tasks(redrawn) == [("t6k", "replica-3/"), ("t9k", ""), ("", "")]
    assert redrawn.pretrain_stage("t6k", 5).seed == 5
    assert redrawn.score_stage(5).seed == 5
    final = study(lambda s: (replicas(s), s["final"].update(seeds=None, replicas=[5, 3])))
    assert [r[-3:-1] for r in final_runs(final, ["t6k"])] == [(5, "replica-5/"), (3, "replica-3/")]


def test_training_tokens_in_proportion_to_the_teacher():
    def proportional(settings):
        settings["pretrain"].update(tokens=None, tokens_per_param=2.5)
        settings["teachers"]["t9k"]["tokens"] = "1M"

    found = study(proportional)
    assert found.pretrain_stage("t6k").tokens == 2.5 * found.teacher_size("t6k")
    assert found.pretrain_stage("t9k").tokens == 1_000_000


def test_budgets_of_one_run_are_a_chain():
    every = budgets_of(runs(tokens=[9000, 2000, 10000], seeds=[1]))
    run = Run("60", "pruned-large", "large", "10k", 1)
    assert next_smaller(run, every) == run._replace(tokens="9k")
    assert next_smaller(run._replace(tokens="9k"), every) == run._replace(tokens="2k")
    assert next_smaller(run._replace(tokens="2k"), every) is None
    assert next_smaller(run._replace(seed=2), every) is None
    assert next_smaller(run._replace(student="70"), every) is None
