import numpy as np
import pandas as pd
import pytest

from capgap.config import Law
from capgap.law import busbridge, pruning_null, scoring
from capgap.law.busbridge import DISTILLED, SUPERVISED, log_distilled, log_supervised
from capgap.law.huber import DELTA, fit_huber, huber, logadd, softplus, with_gradient
from capgap.law.rivals import cell_table, fit_busbridge, fit_p2, rival_fits, spent_flops
from capgap.law.scoring import LEARNED, RULES, nearest
from capgap.law.simulate import simulate_runs, simulate_study
from capgap.law.study import law_record

STUDENTS = (60e3, 100e3, 160e3)
LADDER = tuple(np.geomspace(75e3, 1.6e6, 5))


def product(*axes):
    return [axis.ravel() for axis in np.meshgrid(*axes)]


# --- the solver -----------------------------------------------------------------------------------


def test_softplus_and_logadd_are_exact_and_do_not_overflow():
    z = np.array([-1000.0, -1.0, 0.0, 2.0, 1000.0])
    assert softplus(z) == pytest.approx([0, np.log1p(np.exp(-1)), np.log(2), 2.126928, 1000])
    assert logadd(np.log(2.0), np.log(3.0)) == pytest.approx(np.log(5))
    assert logadd(-np.inf, 1.5) == 1.5
    assert np.imag(softplus(np.array([1 + 1e-20j])))[0] == pytest.approx(1e-20 / (1 + np.exp(-1)))


def test_huber_by_hand():
    # 1 delta: 1/2; 3 deltas: 3 - 1/2
    assert huber(np.array([DELTA, -3 * DELTA, 0])) == pytest.approx(3.0)


def test_gradient_is_that_of_differences():
    n, d = product(np.geomspace(1e8, 1e9, 3), np.geomspace(1e9, 1e11, 3))
    names = list(SUPERVISED)
    theta = np.log(list(SUPERVISED.values()))

    def predict(theta):
        return log_supervised(dict(zip(names, np.exp(theta), strict=True)), n, d)

    value, jacobian = with_gradient(predict, theta)
    assert value == pytest.approx(predict(theta))
    for p in range(len(theta)):
        step = 1e-6 * np.eye(len(theta))[p]
        differences = (predict(theta + step) - predict(theta - step)) / 2e-6
        assert jacobian[:, p] == pytest.approx(differences, abs=1e-8)


def test_a_direction_that_the_data_leave_open_is_reported():
    x = np.linspace(1, 2, 9)

    def only_the_sum(theta):
        return (theta[0] + theta[1]) * x

    fitted = fit_huber(only_the_sum, 3 * x, np.array([[0.0, 3.0], [0.0, 3.0]]))
    assert fitted.theta_P.sum() == pytest.approx(3, abs=1e-4)
    assert np.abs(fitted.weakest_P) == pytest.approx([np.sqrt(0.5)] * 2, abs=1e-3)


def test_one_outlier_does_not_move_a_huber_fit():
    x = np.linspace(0, 1, 21)
    y = 0.3 + 0.2 * x
    y[20] += 0.5

    def line(theta):
        return theta[0] + theta[1] * x

    fitted = fit_huber(line, y, np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert fitted.status == "converged"
    assert fitted.theta_P == pytest.approx([0.3, 0.2], abs=1e-3)


# --- Busbridge ------------------------------------------------------------------------------------


def test_supervised_law_by_hand():
    constants = {"E": 1.0, "A": 8.0, "B": 9.0, "a": 1.0, "b": 0.5, "g": 0.5}
    # (8/2 + 9/9)^0.5 + 1... with N = 2 and D = 81: 4 + 1 = 5
    value = np.exp(log_supervised(constants, np.array([2.0]), np.array([81.0])))
    assert value[0] == pytest.approx(1 + np.sqrt(5))


def test_distillation_law_by_hand():
    constants = dict.fromkeys(DISTILLED, 1.0) | {"c0": 2.0, "f1": 0.5, "c1": 3.0, "d1": 2.0}
    value = np.exp(
        log_distilled(
            constants, np.array([2.0]), np.array([4.0]), np.array([4.0]), np.log(np.array([3.0]))
        )
    )
    # L_T = 2; gap (1 + (2 / 6)^2)^-1.5; capacity (1/4 + 1/4)
    assert value[0] == pytest.approx(2 + 2**-2 * (1 + 1 / 9) ** -1.5 * 0.5)


def test_published_supervised_constants_are_recovered():
    n, d = product(np.geomspace(1e8, 8e9, 7), np.geomspace(2e9, 5e11, 7))
    loss = np.exp(log_supervised(SUPERVISED, n, d))
    found, fitted = busbridge.fit_supervised(n, d, loss)
    assert fitted.status == "converged"
    assert fitted.weakest_P is None
    for name, published in SUPERVISED.items():
        assert found[name] == pytest.approx(published, rel=5e-4)


def test_published_distillation_constants_are_recovered():
    n, d, teacher = product(
        np.geomspace(1e8, 8e9, 5), np.geomspace(2e9, 5e11, 5), np.linspace(1.7, 3.6, 9)
    )
    loss = np.exp(log_distilled(DISTILLED, teacher, n, d, log_supervised(SUPERVISED, n, d)))
    found, free, fitted = busbridge.fit_distilled(teacher, n, d, loss, list(DISTILLED))
    assert fitted.status == "converged"
    assert free == list(DISTILLED)
    for name, published in DISTILLED.items():
        assert found[name] == pytest.approx(published, rel=5e-4)


def test_a_small_study_frees_few_constants_and_names_those_it_holds():
    assert busbridge.free_constants(3, 1, 4, 12) == ["A'", "d1", "c0", "a'"]
    assert busbridge.free_constants(1, 1, 1, 2) == ["A'"]
    assert set(busbridge.free_constants(5, 5, 9, 225)) == set(DISTILLED)
    cells = cell_table(simulate_study(np.random.default_rng(0), STUDENTS, LADDER, arms=()))
    predict, record = fit_busbridge(cells)
    assert record.status == "not_identifiable"
    assert set(record.free) | set(record.held) == set(DISTILLED)
    assert all(record.constants[name] == DISTILLED[name] for name in record.held)
    assert "c1" in record.held
    assert "c1" in record.reason
    assert np.exp(predict(cells)) == pytest.approx(cells["loss"], rel=0.1)


def test_without_teacher_losses_the_rivals_are_not_available():
    cells = cell_table(simulate_runs(np.random.default_rng(0), STUDENTS, [LADDER] * 3))
    assert {fit.status for fit in rival_fits(cells)} == {"not_available"}


# --- null models ----------------------------------------------------------------------------------

P2 = {"gamma": -1.3, "delta": 0.08, "E": 0.7, "Dc": 300.0, "beta": 0.4, "Nc": 0.0, "alpha": 0.5}


def test_p2_law_by_hand():
    constants = P2 | {"gamma": 2.0, "delta": 1.0, "E": 3.0, "Dc": 8.0, "beta": 1.0}
    value = np.exp(pruning_null.log_pruned(constants, *np.array([[2.0], [10.0], [5.0], [4.0]])))
    # rho = 1/2: (1/rho)^2 = 4; 1/N0 = 0.1; bracket 8/4 + 3
    assert value[0] == pytest.approx(2 + 4 * 0.1 * 5)


def test_p2_constants_are_recovered():
    s, source, d = product(
        np.geomspace(1e8, 8e8, 4), np.geomspace(1e9, 3e10, 5), np.geomspace(1e9, 1e11, 4)
    )
    loss_0 = 1.69 + 406 / source**0.34
    loss = np.exp(pruning_null.log_pruned(P2, loss_0, source, s, d))
    free = ["gamma", "delta", "E", "Dc", "beta"]
    found, fitted = pruning_null.fit_pruned(loss_0, source, s, d, loss, free)
    assert fitted.status == "converged"
    assert {name: found[name] for name in free} == pytest.approx(
        {name: P2[name] for name in free}, rel=1e-3
    )


def test_one_budget_frees_no_constant_of_the_budget():
    assert pruning_null.free_constants(3, 1, 4, 12) == ["gamma", "delta", "E"]
    assert pruning_null.free_constants(3, 2, 4, 24) == ["gamma", "delta", "Dc", "beta"]
    assert "E" in pruning_null.free_constants(3, 3, 4, 36)


def test_p2_prefers_the_runs_without_a_teacher():
    runs = simulate_study(np.random.default_rng(0), STUDENTS, LADDER, arms=("no_teacher",))
    assert "without a teacher" in fit_p2(cell_table(runs), 2)[1].reason
    main = runs[runs["arm"] == "main"]
    assert "of the main arm" in fit_p2(cell_table(main), 2)[1].reason


def test_the_start_explains_a_world_that_it_made_and_the_teacher_one_that_it_made():
    def test(**world):
        runs = simulate_study(np.random.default_rng(1), STUDENTS, LADDER, budgets=[10**6], **world)
        cells = cell_table(runs[runs["arm"].isin(["main", "cross_teacher"])])
        return pruning_null.start_test(cells)

    start = test(damage=0.1, help_nats=0)
    assert start.r_squared_start > 0.95
    assert start.p_teacher > 0.01
    assert start.p_start < 1e-6
    teacher = test(damage=0, help_nats=0, bend=0.1)
    assert teacher.r_squared_teacher > 0.9
    assert teacher.p_start > 0.01
    assert teacher.p_teacher < 1e-6


# --- scores ---------------------------------------------------------------------------------------


def test_cells_average_seeds_and_count_compute():
    runs = simulate_study(np.random.default_rng(0), [60e3], LADDER, budgets=[10**6])
    cells = cell_table(runs).set_index(["init", "teacher"])
    t = f"t{LADDER[0]:.0f}"
    own = cells.loc[(f"pruned-{t}", t)]
    mask = (runs["init"] == f"pruned-{t}") & (runs["teacher"] == t)
    assert own["loss"] == pytest.approx(runs[mask]["val_loss_nats_per_token"].mean())
    assert own["n"] == 2
    assert own["flops"] == pytest.approx(1e6 * (6 * 60e3 + 2 * 75e3))
    assert cells.loc[(f"pruned-{t}", "none")]["flops"] == pytest.approx(1e6 * 6 * 60e3)
    measured = cell_table(runs.assign(train_flops=7.0))
    assert (measured["flops"] == 7).all()


def test_a_trunk_that_budgets_share_is_paid_once():
    budgets = [10**6, 2 * 10**6, 4 * 10**6]
    runs = simulate_study(np.random.default_rng(0), [60e3], LADDER[:1], budgets=budgets, arms=())
    alone = spent_flops(cell_table(runs))
    per_token = 6 * 60e3 + 2 * 75e3
    assert alone == pytest.approx(2 * 7e6 * per_token)  # two seeds
    shared = cell_table(runs.assign(trunk_tokens=runs["tokens"] * 0.8))
    # 1M, then 2M less 0.8M, then 4M less 1.6M
    assert spent_flops(shared) == pytest.approx(2 * (1 + 1.2 + 2.4) * 1e6 * per_token)
    assert spent_flops(shared[shared["tokens"] == 10**6]) == pytest.approx(2e6 * per_token)


def test_nearest_is_in_log_size():
    teachers = pd.DataFrame({"teacher": ["a", "b", "c"], "teacher_params": [100.0, 200.0, 800.0]})
    assert [nearest(teachers, t) for t in (-5, 10, 139, 143, 390, 410, 9e9)] == list("aaabbcc")


@pytest.fixture(scope="module")
def scored():
    runs = simulate_study(
        np.random.default_rng(0), STUDENTS, LADDER, arms=("no_teacher",), budgets=[10**6]
    )
    return runs, law_record(runs, Law(resamples=200))


def test_every_law_and_rule_is_scored(scored):
    _, record = scored
    assert [score.law for score in record.scores] == [*LEARNED, *RULES]
    assert all(score.status == "scored" for score in record.scores)
    by_law = {score.law: score for score in record.scores}
    assert by_law["surface"].mean_regret_nats <= by_law["chance"].mean_regret_nats / 4
    assert by_law["surface"].interval_coverage >= 0.6
    assert by_law["surface"].n_intervals == 3
    assert by_law["fixed_ratio"].pilot_flops == 0


def test_scores_by_hand(scored):
    runs, record = scored
    by_law = {score.law: score for score in record.scores}
    main = runs[runs["arm"] == "main"]
    mean = main.groupby(["student", "teacher_params_non_embedding"])[
        "val_loss_nats_per_token"
    ].mean()
    losses = [mean[student].sort_index() for student in ("60000", "100000", "160000")]
    regret = [(loss - loss.min()).to_numpy() for loss in losses]
    assert by_law["largest"].mean_regret_nats == pytest.approx(np.mean([r[-1] for r in regret]))
    assert by_law["next_size_up"].max_regret_nats == pytest.approx(max(r[0] for r in regret))
    assert by_law["chance"].mean_regret_nats == pytest.approx(np.mean([r.mean() for r in regret]))
    assert by_law["chance"].hit_rate == pytest.approx(
        np.mean([(r <= 0.005).mean() for r in regret])
    )
    assert by_law["largest"].chance_hit_rate == by_law["chance"].hit_rate
    flops = [
        sum(1e6 * (6 * s + 2 * t) for t in loss.index)
        for s, loss in zip(STUDENTS, losses, strict=True)
    ]
    assert by_law["surface"].exhaustive_flops == pytest.approx(np.mean(flops), rel=1e-4)
    # two seeds of every teacher of the two other students
    assert by_law["surface"].pilot_flops == pytest.approx(2 * 2 * np.mean(flops), rel=1e-4)


def test_what_is_left_out_is_not_looked_at(monkeypatch):
    """Starts of one student differ a little in size, as pruning leaves them."""
    runs = simulate_study(np.random.default_rng(1), STUDENTS, LADDER, budgets=(10**6,), arms=())
    runs["student_params_non_embedding"] += 7 * runs.groupby("init").ngroup()
    looked_at = []

    def spy(cells, *rest):
        looked_at.append(set(cells["student"]))
        return fit_p2(cells, *rest)

    monkeypatch.setattr(scoring, "fit_p2", spy)
    record = law_record(runs, Law(resamples=100))
    names = {"60000", "100000", "160000"}
    assert sorted(map(sorted, looked_at)) == sorted(sorted(names - {name}) for name in names)
    flops = runs["tokens"] * (
        6 * runs["student_params_non_embedding"] + 2 * runs["teacher_params_non_embedding"]
    )
    (p2,) = [score for score in record.scores if score.law == "p2"]
    assert p2.pilot_flops == pytest.approx(2 / 3 * flops.sum())


def test_a_law_that_cannot_answer_says_so():
    runs = simulate_runs(np.random.default_rng(0), [100e3], [LADDER])
    by_law = {score.law: score for score in law_record(runs, Law(resamples=100)).scores}
    assert by_law["line"].status == "not_available"
    assert "a line needs two" in by_law["line"].reason
    assert by_law["surface"].mean_regret_nats is None
    assert "no other student size" in by_law["busbridge"].reason
    assert "no arm without a teacher" in by_law["no_teacher"].reason
    assert by_law["fixed_ratio"].status == "scored"


def test_a_table_without_losses_of_teachers_says_so():
    runs = simulate_runs(np.random.default_rng(0), [100e3, 200e3], [LADDER, LADDER])
    by_law = {score.law: score for score in law_record(runs, Law(resamples=100)).scores}
    assert "no losses of the teachers" in by_law["busbridge"].reason


def test_one_student_with_all_losses_leaves_nothing_to_fit_the_rivals_on():
    runs = simulate_study(np.random.default_rng(0), [100e3], LADDER, budgets=[10**6])
    by_law = {score.law: score for score in law_record(runs, Law(resamples=100)).scores}
    for law in ("busbridge", "p2"):
        assert by_law[law].status == "not_available"
        assert "no other student size" in by_law[law].reason
