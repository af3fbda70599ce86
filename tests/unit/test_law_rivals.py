import numpy as np
import pytest

from capgap.law.rivals import busbridge, p2
from capgap.law.rivals.busbridge import (
    DISTILLED,
    SUPERVISED,
    fit_busbridge,
    log_distilled,
    log_supervised,
)
from capgap.law.rivals.p2 import fit_p2
from capgap.law.rivals.robust_fit import fit_logs, jacobian, logadd, softplus
from capgap.law.simulate import simulate_study
from capgap.law.table.run_means import cell_table
from capgap.law.verdicts.init_or_teacher import init_against_teacher

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


def test_derivatives_are_those_of_differences():
    n, d = product(np.geomspace(1e8, 1e9, 3), np.geomspace(1e9, 1e11, 3))
    names = list(SUPERVISED)
    theta = np.log(list(SUPERVISED.values()))

    def predict(theta):
        return log_supervised(dict(zip(names, np.exp(theta), strict=True)), n, d)

    slopes = jacobian(predict, theta)
    for p in range(len(theta)):
        step = 1e-6 * np.eye(len(theta))[p]
        differences = (predict(theta + step) - predict(theta - step)) / 2e-6
        assert slopes[:, p] == pytest.approx(differences, abs=1e-8)


def test_a_direction_that_the_data_leave_open_is_reported():
    x = np.linspace(1, 2, 9)

    def only_the_sum(theta):
        return (theta[0] + theta[1]) * x

    fitted = fit_logs(only_the_sum, 3 * x, np.array([[0.0, 3.0], [0.0, 3.0]]))
    assert fitted.theta_P.sum() == pytest.approx(3, abs=1e-4)
    assert np.abs(fitted.weakest_P) == pytest.approx([np.sqrt(0.5)] * 2, abs=1e-3)


def test_one_outlier_hardly_moves_a_fit():
    x = np.linspace(0, 1, 21)
    y = 0.3 + 0.2 * x
    y[20] += 0.5

    def line(theta):
        return theta[0] + theta[1] * x

    fitted = fit_logs(line, y, np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert fitted.status == "converged"
    assert fitted.theta_P == pytest.approx([0.3, 0.2], abs=2e-3)  # 0.27 by squares


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
    law = fit_busbridge(cells)
    record = law.record
    assert record.status == "not_identifiable"
    assert set(record.free) | set(record.held) == set(DISTILLED)
    assert all(record.constants[name] == DISTILLED[name] for name in record.held)
    assert "c1" in record.held
    assert "c1" in record.reason
    assert np.exp(law.predict(cells)) == pytest.approx(cells["loss"], rel=0.1)


def test_without_teacher_losses_the_rivals_are_not_available():
    runs = simulate_study(np.random.default_rng(0), STUDENTS, LADDER, arms=())
    cells = cell_table(runs).drop(columns="teacher_loss")
    assert {fit(cells).record.status for fit in (fit_busbridge, fit_p2)} == {"not_available"}


# --- P2 ----------------------------------------------------------------------------------

P2 = {"gamma": -1.3, "delta": 0.08, "E": 0.7, "Dc": 300.0, "beta": 0.4, "Nc": 0.0, "alpha": 0.5}


def test_p2_law_by_hand():
    constants = P2 | {"gamma": 2.0, "delta": 1.0, "E": 3.0, "Dc": 8.0, "beta": 1.0}
    value = np.exp(p2.log_pruned(constants, *np.array([[2.0], [10.0], [5.0], [4.0]])))
    # rho = 1/2: (1/rho)^2 = 4; 1/N0 = 0.1; bracket 8/4 + 3
    assert value[0] == pytest.approx(2 + 4 * 0.1 * 5)


def test_p2_constants_are_recovered():
    s, source, d = product(
        np.geomspace(1e8, 8e8, 4), np.geomspace(1e9, 3e10, 5), np.geomspace(1e9, 1e11, 4)
    )
    loss_0 = 1.69 + 406 / source**0.34
    loss = np.exp(p2.log_pruned(P2, loss_0, source, s, d))
    free = ["gamma", "delta", "E", "Dc", "beta"]
    found, fitted = p2.fit_pruned(loss_0, source, s, d, loss, free)
    assert fitted.status == "converged"
    assert {name: found[name] for name in free} == pytest.approx(
        {name: P2[name] for name in free}, rel=1e-3
    )


def test_one_budget_frees_no_constant_of_the_budget():
    assert p2.free_constants(3, 1, 4, 12) == ["gamma", "delta", "E"]
    assert p2.free_constants(3, 2, 4, 24) == ["gamma", "delta", "Dc", "beta"]
    assert "E" in p2.free_constants(3, 3, 4, 36)


def test_p2_prefers_the_runs_without_a_teacher():
    runs = simulate_study(np.random.default_rng(0), STUDENTS, LADDER, arms=("no_teacher",))
    assert "without a teacher" in fit_p2(cell_table(runs)).record.reason
    main = runs[runs["arm"] == "main"]
    assert "of the main arm" in fit_p2(cell_table(main)).record.reason


def test_the_start_explains_a_world_that_it_made_and_the_teacher_one_that_it_made():
    def test(**world):
        runs = simulate_study(np.random.default_rng(1), STUDENTS, LADDER, budgets=[10**6], **world)
        cells = cell_table(runs[runs["arm"].isin(["main", "cross_teacher"])])
        return init_against_teacher(cells)

    start = test(damage=0.1, help_nats=0)
    assert start.r_squared_init > 0.95
    assert start.p_teacher > 0.01
    assert start.p_init < 1e-6
    teacher = test(damage=0, help_nats=0, bend=0.1)
    assert teacher.r_squared_teacher > 0.9
    assert teacher.p_init > 0.01
    assert teacher.p_teacher < 1e-6


def test_alike_inits_or_sizes_within_the_groups_explain_nothing():
    runs = simulate_study(np.random.default_rng(1), STUDENTS, LADDER, budgets=[10**6])
    cells = cell_table(runs[runs["arm"] == "main"])
    assert init_against_teacher(cells) is not None
    student = cells.groupby("student")
    for column in ("init_loss", "teacher_params", "loss"):
        assert (
            init_against_teacher(cells.assign(**{column: student[column].transform("mean")}))
            is None
        )
