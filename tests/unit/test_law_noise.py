"""Variance components: which a table has, what they are estimated at, and that they matter."""

import numpy as np
import pandas as pd
import pytest
from law_simulation import Design, World, power, shared_ladder
from law_simulation import simulate as simulate_world
from law_worlds import simulate

from capgap.law.make_record import noise_of
from capgap.law.power_law import noise, power_law
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.table.grouped_runs import group_runs

LADDER = np.geomspace(7e3, 700e3, 9)
STUDENTS = (6e3, 9e3, 13e3, 19e3, 28e3)


def study(seed=0, seeds=(0,), replicas=(0,), students=STUDENTS, budgets=(25e4, 1e6), **world):
    design = Design(
        shared_ladder(students, LADDER, 5),
        dict.fromkeys(students, budgets),
        seeds=seeds,
        replicas=replicas,
    )
    truth = World(power(0.3, 0.5), **{"order_sd": 0.003, **world})
    return simulate_world(np.random.default_rng(seed), truth, design)


def names(runs):
    return fit_power_law(group_runs(runs)).components


def test_a_component_without_draws_of_its_own_belongs_to_another():
    plain = names(simulate(seeds=1))
    assert plain.names == ("order", "teacher", "scatter", "curvature", "misfit")
    assert set(plain.includes["order"]) == {"trunk", "init"}
    seeds = names(simulate(seeds=2))
    assert seeds.names == ("order", "block", "init", "teacher", "scatter", "curvature", "misfit")
    assert seeds.includes == {"order": ("trunk",)}
    budgets = names(study())
    assert budgets.names == ("order", "init", "teacher", "scatter", "curvature", "misfit")
    assert budgets.includes == {"init": ("trunk",)}
    both = names(study(seeds=(0, 1)))
    assert both.names == (
        "order",
        "block",
        "trunk",
        "init",
        "teacher",
        "scatter",
        "curvature",
        "misfit",
    )
    alone = names(simulate(students=(100e3,)))
    assert "scatter" not in alone.names


def test_components_are_found_from_replicas():
    """Means over ten studies, of medians; the priors alone would give 1.6 and 1 times the order's."""
    found = [
        fit_power_law(
            group_runs(study(seed, replicas=(0, 1), teacher_sd=0.02, init_sd=0.002, order_sd=0.004))
        ).sd
        for seed in range(10)
    ]
    assert np.mean([sd["teacher"][0] for sd in found]) == pytest.approx(0.02, rel=0.25)
    assert np.mean([sd["order"][0] for sd in found]) == pytest.approx(0.004, rel=0.2)
    assert np.mean([sd["init"][0] for sd in found]) < 0.005


def test_the_record_names_what_a_component_rests_on():
    def source(runs, **kwargs):
        law = fit_power_law(group_runs(runs), **kwargs)
        return {part.name: part.source for part in noise_of(law)}

    assert source(study(replicas=(0, 1), teacher_sd=0.02))["teacher"] == "replicas"
    assert source(simulate(seeds=3))["order"] == "replicas"
    few = source(simulate(seeds=1, ladder=(80e3, 150e3, 280e3)))
    assert few["order"] == "residuals"
    assert few["teacher"] == "prior"
    assert source(simulate(seeds=1), noise_sd=0.003)["order"] == "stated"


def test_a_stated_noise_is_used():
    runs = group_runs(simulate(seeds=1))
    loud, quiet = (
        fit_power_law(runs, noise_sd=sd).exponent(1, 0, 0.95).width for sd in (0.03, 0.001)
    )
    assert loud > 2 * quiet


def test_means_weigh_as_the_runs_behind_them():
    """A table of means with their deviations has the interval of the runs, nearly."""
    runs = simulate(seeds=4, seed_sd=0.0)
    keys = ["student", "init", "teacher", "tokens", "arm"]
    means = runs.groupby(keys, as_index=False).agg(
        seed=("seed", "min"),
        student_params_non_embedding=("student_params_non_embedding", "first"),
        teacher_params_non_embedding=("teacher_params_non_embedding", "first"),
        sd=("val_loss_nats_per_token", "std"),
        n=("val_loss_nats_per_token", "size"),
        val_loss_nats_per_token=("val_loss_nats_per_token", "mean"),
    )
    whole, short = (fit_power_law(group_runs(table)) for table in (runs, means))
    assert short.components.stated
    assert short.sd["order"][0] == pytest.approx(whole.sd["order"][0], rel=0.15)
    a, b = (law.star(100e3, 1e6, 0.95) for law in (whole, short))
    assert a.value == pytest.approx(b.value, rel=0.01)
    assert np.log(b.high / b.low) == pytest.approx(np.log(a.high / a.low), rel=0.35)


def test_the_marginal_likelihood_is_that_of_the_contrasts():
    """Against the density of a normal with the prior on the parameters integrated out, up to a constant."""
    law = fit_power_law(group_runs(simulate(seeds=2)))
    near = law.near
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(2, len(law.components.names))) / 2
    values = noise.marginal(law.components, near, phi)[0]
    prior_mean = np.linalg.solve(near.prior_PP, near.prior_pull_P)
    spread = near.column_CP @ np.linalg.solve(near.prior_PP, near.column_CP.T)
    expected = []
    for row in phi:
        v = np.tensordot(law.components.variances(row[None])[0], near.part_JNN, axes=1)
        v = near.contrast_CN @ v @ near.contrast_CN.T + spread
        rest = near.residual_C - near.column_CP @ prior_mean
        expected.append(
            -(np.linalg.slogdet(v)[1] + rest @ np.linalg.solve(v, rest) + row @ row) / 2
        )
    assert np.diff(values) == pytest.approx(np.diff(expected), rel=1e-5)


def test_curvature_that_differs_by_student_is_found_and_does_not_mislead():
    """Six studies of five students whose log curvatures have a standard deviation of 0.4."""
    found = {}
    for scatter in (0.0, 0.4):
        laws = [
            fit_power_law(group_runs(study(seed, curvature_scatter=scatter, init_sd=0.002)))
            for seed in range(6)
        ]
        found[scatter] = np.mean([law.sd["curvature"][0] for law in laws])
        exponents = [law.exponent(1, 1, 0.95) for law in laws]
        assert sum(e.low <= 0.8 <= e.high for e in exponents) >= 5
        assert np.std([e.value for e in exponents]) < 0.06
    assert found[0.0] < 0.1
    assert found[0.4] == pytest.approx(0.4, rel=0.4)


def test_mixture_quantiles_are_those_of_a_normal_and_a_t():
    rng = np.random.default_rng(0)
    one = power_law.mixture_quantile(np.array([1.0]), np.array([2.0]), np.array([1.0]), 0.975)
    assert one == pytest.approx(1 + 2 * 1.959964, rel=1e-6)
    sd = np.sqrt(5 / rng.chisquare(5, 40_000))  # a t with 5 degrees of freedom
    t = power_law.mixture_quantile(np.zeros(40_000), sd, np.full(40_000, 1 / 40_000), 0.975)
    assert t == pytest.approx(2.571, rel=0.02)


def test_intervals_hold_the_noise_of_teachers():
    """Teachers shared by all students, sd 0.01: intervals that leave them out cover a third.

    40 studies of 3 students, 4 teachers and one budget; 85 % of them is 3 standard errors below 95 %.
    """
    students, held, naive = (6e3, 12e3, 24e3), 0, 0
    design = Design(
        dict.fromkeys(students, (16000.0, 33000.0, 66000.0, 131000.0)),
        dict.fromkeys(students, (500000.0,)),
        seeds=(0, 1),
    )
    world = World(power(0.3, 0.68), order_sd=0.003, teacher_sd=0.01)
    rng = np.random.default_rng(1)
    for _ in range(40):
        law = fit_power_law(group_runs(simulate_world(rng, world, design)))
        truth = np.log(world.star(12e3, 5e5) / 12e3)
        limits = law.log_ratio(12e3, 5e5, 0.95)
        low = -np.inf if limits.low is None else limits.low
        high = np.inf if limits.high is None else limits.high
        held += low <= truth <= high
        alone = dict(law.component_variances, teacher=0.0, init=0.0)
        v = np.tensordot(np.array(list(alone.values())), law.near.part_JNN, axes=1)
        v = law.near.contrast_CN @ v @ law.near.contrast_CN.T
        column = law.near.column_CP
        covariance = np.linalg.inv(column.T @ np.linalg.solve(v, column) + law.near.prior_PP)
        weight = np.append(law.axes.basis_3Q.T @ law.weights(12e3, 5e5), [0, 0])
        half = 1.96 * np.sqrt(weight @ covariance @ weight)
        naive += abs(limits.value - truth) <= half
    assert held >= 34
    assert naive <= 28


def test_replicas_of_a_size_are_not_averaged():
    """Two teachers of one size that differ by 0.16 nats leave T* open."""
    runs = simulate(students=(100e3,), noise_sd=0.001, seed_sd=0)
    apart = runs[runs["teacher_params_non_embedding"] == 280_000]
    other = apart.assign(teacher="again", init="pruned-again")
    other = other.assign(val_loss_nats_per_token=other["val_loss_nats_per_token"] + 0.16)
    narrow = fit_power_law(group_runs(runs)).log_ratio(100e3, 1e6, 0.95)
    wide = fit_power_law(group_runs(pd.concat([runs, other]))).log_ratio(100e3, 1e6, 0.95)
    assert wide.width > 5 * narrow.width
