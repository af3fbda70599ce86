import numpy as np
import pandas as pd
import pytest
from law_worlds import LADDER, QUICK, STUDENTS, noise_free, simulate

from capgap.config import Law
from capgap.law.cells import between_seeds, cells_of, pool
from capgap.law.regression import law_record
from capgap.law.unevenness import unevenness_of


def two_seeds(differences):
    """One student, a teacher for each difference between seed 1 and seed 0."""
    runs = noise_free(students=STUDENTS[:1], ladder=LADDER[: len(differences)])
    runs.loc[runs.seed == 1, "val_loss_nats_per_token"] += np.array(differences)
    return runs


def test_noise_by_hand():
    cells = cells_of(two_seeds([0.002, 0.004, 0.006]))
    noise = pool(cells)
    # residuals of teacher + seed: -+0.001, 0, +-0.001; (3 - 1)(2 - 1) degrees of freedom
    assert noise.df == 2
    assert noise.sd == pytest.approx(np.sqrt(4e-6 / 2))
    # within cells: half the squared differences, one degree of freedom a cell
    sd, df = between_seeds(cells)
    assert df == 3
    assert sd == pytest.approx(np.sqrt(28e-6 / 3))


def test_what_a_seed_does_to_all_teachers_is_no_noise():
    record = law_record(two_seeds([0.05, 0.05, 0.05, 0.05]), QUICK)
    assert record.paired_sd_nats == pytest.approx(0, abs=1e-12)
    assert record.seed_sd_nats == pytest.approx(0.05 / np.sqrt(2))


def test_a_missing_run_does_not_bend_the_curve():
    runs = noise_free(seed_sd=0.1, students=STUDENTS[:1])
    whole = law_record(runs, QUICK).optima[0]
    holed = law_record(runs.drop(index=[3, 4]), QUICK).optima[0]
    assert holed.teacher_params.value == pytest.approx(whole.teacher_params.value, rel=1e-9)
    assert [c.n_seeds for c in holed.cells] == [2, 1, 1, 2, 2]
    assert holed.cells[1].regret_nats == pytest.approx(whole.cells[1].regret_nats, abs=1e-12)


def test_seeds_that_are_not_shared_leave_unpaired_noise():
    runs = simulate(students=STUDENTS[:1])
    runs["seed"] = np.arange(len(runs))
    noise = pool(cells_of(runs))
    assert noise.df == len(runs) - len(LADDER)
    assert law_record(runs, QUICK).optima[0].teacher_params.low is not None


def test_drawn_noise_has_the_variance_and_the_tails_of_its_degrees_of_freedom():
    noise = pool(cells_of(simulate()))
    drawn = noise.draw(np.random.default_rng(0), 20_000, 2).mean(axis=1)
    expected = noise.sd**2 / 2 * noise.df / (noise.df - 2)
    assert noise.df == 12
    assert drawn.var() == pytest.approx(expected, rel=0.05)


def test_teachers_of_one_size_count_as_one_cell():
    runs = noise_free(students=STUDENTS[:1], ladder=LADDER[:4])
    twin = runs[runs.teacher == "t150000"].copy()
    twin["teacher"], twin["init"] = "twin", "pruned-twin"
    twin["val_loss_nats_per_token"] += 0.002
    runs.loc[runs.teacher == "t150000", "val_loss_nats_per_token"] -= 0.002
    optimum = law_record(pd.concat([runs, twin]), QUICK).optima[0]
    assert optimum.teacher_params.value == pytest.approx(150e3, rel=1e-6)
    assert len(optimum.cells) == 5


def test_unevenness_is_found_only_where_seeds_do_not_explain_it():
    def found(sd, **world):
        cells = cells_of(simulate(students=np.linspace(60e3, 160e3, 40), unevenness_sd=sd, **world))
        return unevenness_of(cells, pool(cells))

    assert found(0).sd == 0
    assert found(0.02).sd == pytest.approx(0.02, rel=0.3)
    assert found(0.02, seeds=1) is None
    assert found(0.02, ladder=LADDER[:4]) is None


def test_uneven_teachers_widen_the_interval():
    def width(**world):
        star = law_record(simulate(3, **world), Law()).optima[1].teacher_params
        return np.inf if None in (star.low, star.high) else star.high - star.low

    assert width(unevenness_sd=0.02) > 3 * width()
