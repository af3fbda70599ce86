"""The design: which runs a grid consists of."""

from capgap.config import Final, Grid
from capgap.config.run_grid import (
    Run,
    arm_of,
    budgets_of,
    final_runs,
    grid_runs,
    next_smaller,
    teachers_for,
)

SIZES = {"small": 50, "large": 200, "middle": 100}


def runs(**grid):
    return grid_runs(Grid(**{"students": [60], "tokens": [1000], "seeds": [1, 2], **grid}), SIZES)


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
    final = Final(student=70, tokens=5000, seeds=[0])
    assert final_runs(final, ["large"]) == [Run("70", "pruned-large", "large", "5k", 0)]


def test_budgets_of_one_run_are_a_chain():
    every = budgets_of(runs(tokens=[9000, 2000, 10000], seeds=[1]))
    run = Run("60", "pruned-large", "large", "10k", 1)
    assert next_smaller(run, every) == run._replace(tokens="9k")
    assert next_smaller(run._replace(tokens="9k"), every) == run._replace(tokens="2k")
    assert next_smaller(run._replace(tokens="2k"), every) is None
    assert next_smaller(run._replace(seed=2), every) is None
    assert next_smaller(run._replace(student="70"), every) is None
