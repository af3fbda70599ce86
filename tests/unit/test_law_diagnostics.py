"""Outliers, misfit, teachers off their family, counts of size, single optima and the line."""

import numpy as np
import pandas as pd
import pytest
from law_simulation import Design, World, power
from law_simulation import simulate as simulate_world
from law_worlds import FIVE, LADDER, QUICK, case, noise_free, simulate

from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.fit_law import fit_law
from capgap.law.make_record import law_record
from capgap.law.power_law.diagnostics import left_out_residuals, misfit_of, outlier_in, size_counts
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.table.grouped_runs import group_runs

WIDE = np.geomspace(70e3, 1.3e6, 7)


@pytest.mark.parametrize("off", [1.0, -0.3])
def test_a_run_that_is_off_is_named_whatever_its_sign(off):
    runs = simulate(students=FIVE, ladder=WIDE)
    run = runs.index[(runs["student"] == "100000") & (runs["seed"] == 1)][3]
    runs.loc[run, "val_loss_nats_per_token"] += off
    teacher = runs.loc[run, "teacher"]
    with pytest.raises(CapgapError, match=f"student 100000.*{teacher}.*seed 1.*law.exclude"):
        fit_law(runs, QUICK)
    fit_law(runs.drop(index=run), QUICK)  # without it nothing is


def test_noise_is_no_outlier():
    for seed in range(5):
        outlier_in(fit_power_law(group_runs(simulate(seed, between_init_sd=0.01))), QUICK)


def test_left_out_residuals_are_predictions_by_the_others():
    """Against a fit of the levels and slopes by generalised least squares without the run."""
    law = fit_power_law(group_runs(simulate()))
    missed, sd = left_out_residuals(law)
    runs, v = law.runs, law.noise_NN
    slope = law.curves.evaluate(law.x_P[None])[1][0]
    levels = (runs.group_N[:, None] == np.arange(runs.group_N.max() + 1)).astype(float)
    columns = np.hstack([levels, slope])
    prior = np.zeros((columns.shape[1],) * 2)
    prior[levels.shape[1] :, levels.shape[1] :] = law.near.prior_PP
    residual = runs.loss_N - law.curves.evaluate(law.x_P[None])[0][0]
    for run in (0, 11):
        keep = np.arange(len(residual)) != run
        inverse = np.linalg.inv(v[np.ix_(keep, keep)])
        normal = columns[keep].T @ inverse @ columns[keep] + prior
        fit = np.linalg.solve(normal, columns[keep].T @ inverse @ residual[keep])
        rest = residual[keep] - columns[keep] @ fit
        pull = v[run, keep] @ inverse
        prediction = columns[run] @ fit + pull @ rest
        away = columns[run] - pull @ columns[keep]
        variance = v[run, run] - pull @ v[keep, run] + away @ np.linalg.solve(normal, away)
        assert missed[run] == pytest.approx(residual[run] - prediction, rel=1e-5, abs=1e-8)
        assert sd[run] == pytest.approx(np.sqrt(variance), rel=1e-5)


def test_a_student_with_another_curve_is_named():
    runs = noise_free(students=FIVE, ladder=WIDE)
    rng = np.random.default_rng(0)
    runs["val_loss_nats_per_token"] += rng.normal(0, 0.001, len(runs))
    assert misfit_of(fit_power_law(group_runs(runs))).students == []
    own = runs["student"] == "100000"
    d = np.log(runs.loc[own, "teacher_params_non_embedding"].astype(float) / 250e3)
    runs.loc[own, "val_loss_nats_per_token"] += 0.15 * d**2
    found = misfit_of(fit_power_law(group_runs(runs)))
    assert found.p < 1e-4
    assert found.students[0] == "100000"
    assert "differ from the common law" in found.reason


def test_intervals_grow_with_the_misfit():
    """Optima scattered by 20 % about the law: the part of the noise for it, and a, are wider."""
    design = Design(dict.fromkeys(FIVE, WIDE), dict.fromkeys(FIVE, (1000000.0,)), seeds=(0, 1))
    wide, narrow = (
        fit_power_law(
            group_runs(
                simulate_world(
                    np.random.default_rng(3),
                    World(
                        lambda s, d: 2.5 * s, curvature=0.25, order_sd=0.001, star_scatter=scatter
                    ),
                    design,
                )
            )
        )
        for scatter in (0.2, 0.0)
    )
    assert wide.sd["scatter"][0] > 5 * narrow.sd["scatter"][0]
    assert wide.exponent(1, 0, 0.95).width > 5 * narrow.exponent(1, 0, 0.95).width


def test_the_count_of_size_that_scatters_least_is_shown():
    """Sizes with embeddings make the law here; without them a constant is missing."""
    design = Design(dict.fromkeys(FIVE, WIDE), dict.fromkeys(FIVE, (1000000.0,)), seeds=(0, 1))
    world = World(power(1, 0, 250e3, (100e3, 1e6)), curvature=0.25, order_sd=0.0005)
    runs = simulate_world(np.random.default_rng(0), world, design)
    runs["student_params_total"] = runs["student_params_non_embedding"]
    runs["teacher_params_total"] = runs["teacher_params_non_embedding"]
    shift = runs["student"].map(
        dict(zip(sorted(set(runs["student"])), (0.7, 1.4, 0.8, 1.3, 1.0), strict=True))
    )
    runs["student_params_non_embedding"] = (
        (runs["student_params_non_embedding"] * shift).round().astype(int)
    )
    rms = {count.size: count.rms_nats for count in size_counts(runs, QUICK)}
    assert set(rms) == {"non_embedding", "total"}
    assert rms["total"] < 0.7 * rms["non_embedding"]
    record = law_record(runs, Law(size="total"))
    assert record.size == "total"
    assert record.exponents.by_size.value == pytest.approx(1, abs=0.02)
    with pytest.raises(CapgapError, match="law.size is forward_flops.*no column"):
        fit_law(runs, Law(size="forward_flops"))


def test_a_denser_ladder_does_not_worsen_t_star():
    """Error of log T* of a single curve, 5 and 17 teachers over one range, 30 studies each."""

    def error(teachers):
        ladder, errors = np.geomspace(100e3, 800e3, teachers), []
        for seed in range(30):
            fit = fit_law(
                simulate(seed, students=(100e3,), ladder=ladder, noise_sd=0.006, seeds=1),
                Law(noise_sd=0.006),
            )
            errors.append(fit.located[0].own.log_star - np.log(250e3))
        return np.sqrt(np.mean(np.square(errors)))

    assert error(17) < error(5)


def test_the_line_through_exact_optima():
    fit = fit_law(noise_free(students=FIVE, ladder=WIDE, slope=2.4, intercept=8e3), QUICK)
    ((level, line),) = fit.lines
    assert level.tokens == 1e6
    slope, low, high = line.estimate(line.line, [0.0, 1.0])
    assert slope == pytest.approx(2.4, abs=0.05)
    assert low < 2.4 < high
    assert line.unit * line.estimate(line.line, [1.0, 0.0])[0] == pytest.approx(8e3, abs=4e3)
    star = line.predict(120e3)
    assert star.value == pytest.approx(296e3, rel=0.01)
    assert star.low < 296e3 < star.high


def test_students_beyond_the_ladder_enter_the_line_as_bounds():
    runs = simulate(students=(40e3, 60e3, 90e3, 130e3, 300e3), ladder=WIDE[:5])
    record = law_record(runs, QUICK)
    (line,) = record.lines
    assert line.n_bounds == 1
    assert "300000 best with the largest teacher, which gives only a bound" in line.reason
    assert line.slope.low < 2.5 < line.slope.high
    by_student = {o.student: o for o in record.optima}
    assert by_student["300000"].status == "lower_bound"
    assert by_student["300000"].teacher_params.low > WIDE[2]


def test_the_line_is_never_narrower_than_noise_makes_it():
    """Three optima on a line by chance."""
    widths = []
    for seed in range(12):
        fit = fit_law(simulate(seed, ladder=LADDER), QUICK)
        ((_, line),) = fit.lines
        low, high = line.estimate(line.line, [0.0, 1.0])[1:]
        sd = line.student_I * np.hypot(line.noise_I, line.scatter)
        weight = np.array([0, 1]) @ np.linalg.pinv(line.line.design_IP) / sd
        noise = np.linalg.norm(weight * line.student_I * line.noise_I)
        widths.append((high - low) / 2 / noise)
    assert min(widths) >= 1.95


def test_tables_of_the_pilots_have_no_outlier():
    for name in ("trial_v1024", "trial_family", "trial_larger", "published_default"):
        fit_law(pd.DataFrame(case(name)), Law())
