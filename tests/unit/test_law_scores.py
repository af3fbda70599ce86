"""Means of runs, regret over what a law has not seen, and which law leads."""

import numpy as np
import pandas as pd
import pytest
from causes_worlds import simulate_causes
from pilots import pilot

from capgap.config import Law
from capgap.law.law_record import Interval
from capgap.law.make_record import law_record
from capgap.law.scores.contenders import scores_of
from capgap.law.scores.left_out import KINDS, LEARNED, RULES, leading, nearest, score_laws
from capgap.law.simulate import simulate_study
from capgap.law.table.run_means import averaged, cell_table, spent_flops

STUDENTS = (60e3, 100e3, 160e3)
LADDER = tuple(np.geomspace(75e3, 1.6e6, 5))
LOSS = "val_loss_nats_per_token"


# --- means ----------------------------------------------------------------------------------------


def test_cells_average_seeds_and_count_compute():
    runs = simulate_study(np.random.default_rng(0), [60e3], LADDER, budgets=[10**6])
    cells = cell_table(runs).set_index(["init", "teacher"])
    t = f"t{LADDER[0]:.0f}"
    own = cells.loc[(f"pruned-{t}", t)]
    mask = (runs["init"] == f"pruned-{t}") & (runs["teacher"] == t)
    assert own["loss"] == pytest.approx(runs[mask][LOSS].mean())
    assert own["n"] == 2
    assert own["flops"] == pytest.approx(1e6 * (6 * 60e3 + 2 * 75e3))
    assert cells.loc[(f"pruned-{t}", "none")]["flops"] == pytest.approx(1e6 * 6 * 60e3)
    measured = cell_table(runs.assign(train_flops=7.0))
    assert (measured["flops"] == 7).all()


def test_draws_of_a_teacher_stay_apart_and_means_weigh_by_their_runs():
    runs = simulate_study(np.random.default_rng(0), [60e3], LADDER[:1], budgets=[10**6], arms=())
    assert len(cell_table(runs)) == 1
    assert len(cell_table(runs.assign(teacher_seed=[0, 1]))) == 2
    (cell,) = cell_table(runs.assign(n=[1, 3], **{LOSS: [4.0, 2.0]})).itertuples()
    assert (cell.n, cell.loss) == (4, 2.5)


def test_a_stable_phase_that_budgets_share_is_paid_once():
    budgets = [10**6, 2 * 10**6, 4 * 10**6]
    runs = simulate_study(np.random.default_rng(0), [60e3], LADDER[:1], budgets=budgets, arms=())
    alone = spent_flops(cell_table(runs))
    per_token = 6 * 60e3 + 2 * 75e3
    assert alone == pytest.approx(2 * 7e6 * per_token)  # two seeds
    shared = cell_table(runs.assign(trunk_tokens=runs["tokens"] * 0.8))
    # 1M, then 2M less 0.8M, then 4M less 1.6M
    assert spent_flops(shared) == pytest.approx(2 * (1 + 1.2 + 2.4) * 1e6 * per_token)
    assert spent_flops(shared[shared["tokens"] == 10**6]) == pytest.approx(2e6 * per_token)


# --- scores ---------------------------------------------------------------------------------------


def test_nearest_is_in_log_size():
    teachers = pd.DataFrame({"teacher_params": [100.0, 200.0, 800.0]})
    found = "".join("abc"[nearest(teachers, t)] for t in (-5, 10, 139, 143, 390, 410, 9e9))
    assert found == "aaabbcc"


@pytest.fixture(scope="module")
def scored():
    runs = simulate_study(
        np.random.default_rng(0), STUDENTS, LADDER, arms=("no_teacher",), budgets=[10**6]
    )
    return runs, law_record(runs, Law())


def test_every_law_and_rule_is_scored(scored):
    _, record = scored
    assert [score.law for score in record.scores] == [*LEARNED, *RULES]
    assert all(score.status == "scored" for score in record.scores)
    by_law = {score.law: score for score in record.scores}
    assert by_law["power_law"].mean_regret_nats <= by_law["chance"].mean_regret_nats / 4
    assert by_law["power_law"].interval_coverage >= 0.6
    assert by_law["power_law"].n_intervals == 3
    assert by_law["fixed_ratio"].pilot_flops == 0


def test_scores_by_hand(scored):
    runs, record = scored
    by_law = {score.law: score for score in record.scores}
    main = runs[runs["arm"] == "main"]
    mean = main.groupby(["student", "teacher_params_non_embedding"])[LOSS].mean()
    losses = [mean[student].sort_index() for student in ("60000", "100000", "160000")]
    regret = [(loss - loss.min()).to_numpy() for loss in losses]
    largest = by_law["largest"]
    assert largest.mean_regret_nats == pytest.approx(np.mean([r[-1] for r in regret]))
    assert by_law["next_size_up"].max_regret_nats == pytest.approx(max(r[0] for r in regret))
    assert by_law["chance"].mean_regret_nats == pytest.approx(np.mean([r.mean() for r in regret]))
    assert by_law["chance"].hit_rate == pytest.approx(
        np.mean([(r <= 0.005).mean() for r in regret])
    )
    assert largest.chance_hit_rate == by_law["chance"].hit_rate
    flops = [
        sum(1e6 * (6 * s + 2 * t) for t in loss.index)
        for s, loss in zip(STUDENTS, losses, strict=True)
    ]
    assert by_law["power_law"].exhaustive_flops == pytest.approx(np.mean(flops), rel=1e-4)
    # two seeds of every teacher of the two other students
    assert by_law["power_law"].pilot_flops == pytest.approx(2 * 2 * np.mean(flops), rel=1e-4)
    # left out: 3 students once, and each with each of its teachers; one budget leaves none out
    students, teachers, everything = largest.left_out
    assert [one.kind for one in largest.left_out] == ["students", "teachers", "all"]
    assert (students.n_cases, teachers.n_cases) == (3, sum(len(r) for r in regret))
    weighed = np.average([r[-1] for r in regret], weights=[len(r) for r in regret])
    assert teachers.regret.value == pytest.approx(weighed)
    assert everything.regret.value == pytest.approx((largest.mean_regret_nats + weighed) / 2)
    ends = np.array([r[-1] for r in regret])
    half = 4.302653 * ends.std(ddof=1) / np.sqrt(3)  # t limit with 2 degrees of freedom
    assert students.regret.high == pytest.approx(ends.mean() + half)


def test_what_is_left_out_is_not_looked_at():
    """Inits of one student differ a little in size, as pruning leaves them."""
    runs = simulate_study(np.random.default_rng(1), STUDENTS, LADDER, arms=())
    runs["student_params_non_embedding"] += 7 * runs.groupby("init").ngroup()
    cells, lost = cell_table(runs), []

    def missing(kept, whole):
        names = ("student", "tokens", "teacher", "init")
        return [sorted(set(whole[name]) - set(kept[name])) for name in names]

    def spy(kept_runs, kept_cells):
        assert missing(kept_runs, runs) == missing(kept_cells, cells)
        lost.append(missing(kept_cells, cells))
        return "no answer"

    score_laws(runs, cells, {}, {"power_law": spy}, Law())
    assert sorted(student for (student,), *_ in lost[:3]) == ["100000", "160000", "60000"]
    assert [tokens for _, tokens, *_ in lost[3:5]] == [[10**6], [4 * 10**6]]
    teachers = [(teacher, init) for _, _, (teacher,), (init,) in lost[5:]]
    assert sorted(teachers) == sorted((f"t{t:.0f}", f"pruned-t{t:.0f}") for t in LADDER)


def test_whole_families_are_left_out_if_the_table_names_them():
    runs = simulate_causes(np.random.default_rng(0))
    runs["teacher_family"] = np.where(runs["teacher_params_non_embedding"] < 100e3, "old", "new")
    kept = []

    def spy(_, cells):
        kept.append(set(cells["teacher_family"]))
        return "no answer"

    score_laws(runs, cell_table(runs), {}, {"power_law": spy}, Law())
    assert kept[-2:] == [{"old"}, {"new"}]


def test_no_answer_counts_as_a_teacher_at_random():
    runs = simulate_causes(np.random.default_rng(0))
    cells = cell_table(runs)
    laws = {"power_law": lambda *_: "no answer", "p2": lambda *_: lambda case: (0, None)}
    by_law = {score.law: score for score in score_laws(runs, cells, {}, laws, Law())}
    assert by_law["power_law"].status == "not_available"
    half = {"power_law": lambda *_: lambda case: "no" if case.tokens < 5e5 else (0, None)}
    (score, *_) = score_laws(runs, cells, {}, half, Law())
    small = [o for o in by_law["p2"].picks if o.tokens >= 5e5]
    students = score.left_out[0]
    assert (students.n_answered, students.n_cases) == (8, 12)
    groups = cells[cells["tokens"] < 5e5].groupby("student")["loss"]
    chance = (groups.mean() - groups.min()).sum()
    total = chance + sum(pick.regret_nats for pick in small)
    assert students.regret.value == pytest.approx(total / 12)


def test_an_interval_is_held_against_the_optimum_left_out():
    runs = simulate_causes(np.random.default_rng(0), budgets=(10**6,))
    own = {(f"s{s}", 10**6): Interval(value=1e5, low=9e4, high=1.1e5) for s in (6000, 10000)}
    guess = Interval(value=2e5, low=1.2e5, high=3e5)
    laws = {"power_law": lambda *_: lambda case: (0, guess)}
    (score, *_) = score_laws(runs, cell_table(runs), own, laws, Law())
    # 0.69 in log size apart; the limits reach hypot(0.51, 0.095)
    assert (score.n_intervals, score.interval_coverage) == (2, 0.0)


@pytest.mark.parametrize("name", ["family", "larger", "v1024"])
def test_what_leads_on_the_pilots(name):
    runs = pilot(name)
    if name == "family":  # a run that the power law refuses by name
        runs = runs[(runs["teacher"] != "t116") | (runs["tokens"] != 250_000)]
    found = scores_of(runs, cell_table(runs), {}, Law())
    by_law = {score.law: score.left_out for score in found["scores"] if score.left_out}
    regret = {law: left[-1].regret.value for law, left in by_law.items()}
    rules = min(regret[rule] for rule in ("fixed_ratio", "next_size_up", "largest"))
    assert regret["two_causes"] < 0.25 * min(rules, regret["busbridge"], regret["p2"])
    assert found["leading"] == min(("power_law", "two_causes"), key=regret.get)
    if name != "v1024":  # where both are good
        assert found["leading"] == "two_causes"
        assert regret["two_causes"] < 0.25 * regret["power_law"]
    kinds = [left.kind for left in by_law["two_causes"]]
    assert kinds == [*(KINDS if name != "larger" else ("students", "teachers")), "all"]


def test_none_leads_if_none_answers():
    assert leading([])[0] is None


def test_a_law_that_cannot_answer_says_so():
    runs = simulate_study(np.random.default_rng(0), [100e3], LADDER, arms=(), budgets=[10**6])
    by_law = {score.law: score for score in law_record(runs, Law()).scores}
    for law in ("busbridge", "power_law", "ratio"):
        assert by_law[law].status == "not_available"
        assert "nothing is left to fit to" in by_law[law].reason
    assert "no arm without a teacher" in by_law["no_teacher"].reason
    assert by_law["fixed_ratio"].status == "scored"


def test_laws_of_losses_are_not_fitted_to_shares():
    runs = simulate_causes(np.random.default_rng(0))
    record = law_record(runs, Law(metric="accuracy"))
    assert {rival.status for rival in record.rivals} == {"not_available"}
    assert "measured by accuracy" in record.rivals[0].reason
    assert record.two_causes.status == "identified"


def test_a_table_of_runs_as_one_of_means():
    runs = simulate_causes(np.random.default_rng(0), seeds=3)
    means = averaged(runs)
    assert len(means) == len(runs) / 3
    first = means.iloc[0]
    same = runs[
        (runs[["student", "init", "tokens"]] == first[["student", "init", "tokens"]]).all(axis=1)
    ]
    assert (first["n"], first[LOSS], first["sd"]) == pytest.approx(
        (3, same[LOSS].mean(), same[LOSS].std())
    )
    assert averaged(means)["n"].tolist() == means["n"].tolist()
