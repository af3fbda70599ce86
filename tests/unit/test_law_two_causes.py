"""The law of two causes on worlds with known truth and on the pilot studies."""

import numpy as np
import pytest
from causes_worlds import PILOT, family_loss, simulate_causes
from pilots import pilot

from capgap.config.run_grid import NONE
from capgap.law.causes.causes_fit import fit_two_causes
from capgap.law.causes.causes_form import NAMES, damage
from capgap.law.causes.teacher_family import family_of
from capgap.law.table.run_means import cell_table

CENTRE = (13e3, 5e5)  # of `simulate_causes`
LADDER = np.array([41e3, 78e3, 145e3, 283e3, 539e3])


def world(seed=0, **more):
    return cell_table(simulate_causes(np.random.default_rng(seed), **more))


def truth_at(centre, theta=PILOT):
    """Parameters about another centre (log S, log D)."""
    help_, rate, by_tokens, by_size, ceiling = theta
    size, tokens = centre - np.log(CENTRE)
    return np.array(
        [help_, rate - by_tokens * tokens - by_size * size, by_tokens, by_size, ceiling]
    )


def true_above(student, tokens, sizes, theta=PILOT):
    logs = np.log(student / CENTRE[0]), np.log(tokens / CENTRE[1])
    cut = np.log(np.asarray(sizes) / student)
    return theta[0] * family_loss(sizes) + damage(np.array(theta), cut, *logs)


# --- the formula ----------------------------------------------------------------------------------


def test_damage_by_hand():
    theta = np.array([0.4, np.log(0.2), 0.5, 1.0, np.log(2.0)])
    # c = 0.2, D = 4 D0, S = S0 / 2: z = 0.2 / 2 * 4^-0.5 * 2 * 3 = 0.3
    value = damage(theta, 3.0, -np.log(2), np.log(4))
    assert value == pytest.approx(2 * (1 - np.exp(-0.3)))


def test_damage_is_0_without_a_cut_concave_bounded_and_repaired_by_tokens():
    theta, cut = np.array(PILOT), np.linspace(0, 8, 50)
    at = damage(theta, cut, 0.0, -2.0)
    assert at[0] == 0
    assert (np.diff(at) > 0).all()
    assert (np.diff(at, 2) < 0).all()
    assert damage(theta, 1e9, 0.0, -2.0) == pytest.approx(np.exp(PILOT[4]))
    assert (damage(theta, cut[1:], 0.0, 1.0) < at[1:]).all()


# --- known truth ----------------------------------------------------------------------------------


def test_constants_are_recovered_without_noise():
    law = fit_two_causes(world(order_sd=0.0, arms=("no_teacher", "cross_teacher", "random_init")))
    assert law.status == "identified"
    assert law.theta_P == pytest.approx(truth_at(np.array(law.centre)), abs=2e-3)
    assert law.record().held == []


def test_intervals_hold_the_truth_when_teachers_and_inits_are_drawn():
    held, narrow = np.zeros(len(NAMES)), []
    for seed in range(12):
        law = fit_two_causes(world(seed, teacher_sd=0.005, init_sd=0.005))
        value, half = law.interval(lambda theta: theta)
        held += np.abs(value - truth_at(np.array(law.centre))) <= half
        narrow.append(half[0])
    assert (held >= 10).all()
    assert np.median(narrow) < 0.3


def test_the_best_teacher_of_another_family_is_predicted():
    law = fit_two_causes(world(teacher_sd=0.003, init_sd=0.003))
    for student, tokens in ((20e3, 400_000), (20e3, 2_000_000)):
        star, where = law.best_teacher(student, tokens, family_loss, (23e3, 2e6))
        fine = np.geomspace(23e3, 2e6, 5000)
        true = fine[np.argmin(true_above(student, tokens, fine))]
        assert where == "interior"
        assert (star.low or 0) < true < (star.high or np.inf)
        assert star.value == pytest.approx(true, rel=0.5)
    # and a badly trained large one is not chosen
    losses = family_loss(LADDER) + np.array([0, 0, 0, 0, 0.3])
    regret = law.regret(20e3, 2_000_000, losses, LADDER)
    assert regret[-1].low > 0
    assert min(interval.value for interval in regret) == 0


def test_a_loss_is_predicted_for_a_student_that_was_not_there():
    law = fit_two_causes(world())
    predicted = law.loss(20e3, 700_000, float(family_loss(145e3)), 145e3)
    level = 3.2 - 0.35 * np.log(20e3 / CENTRE[0]) - 0.12 * np.log(700_000 / CENTRE[1])
    true = level + true_above(20e3, 700_000, 145e3)
    assert predicted.value == pytest.approx(true, abs=0.01)
    assert predicted.low < true < predicted.high


def test_without_a_cut_the_best_teacher_is_the_best_model():
    runs = simulate_causes(np.random.default_rng(0), arms=("random_init",))
    runs = runs[(runs["arm"] == "random_init") & (runs["teacher"] != NONE)].assign(arm="main")
    law = fit_two_causes(cell_table(runs))
    assert law.theta_P[0] == pytest.approx(PILOT[0], abs=0.05)
    assert {"log_rate", "by_tokens", "by_size", "log_ceiling"} == set(law.record().held)
    losses = np.array([2.9, 2.6, 2.7])
    assert np.argmin(law.above_level(1e4, 1e6, losses, None)) == 1


def test_crossed_teachers_tell_help_from_damage_with_one_budget():
    def width(arms):
        law = fit_two_causes(
            world(arms=arms, budgets=(500_000,), teacher_sd=0.005, init_sd=0.005, seeds=2)
        )
        return law.interval(lambda theta: theta)[1][0]

    assert width(("cross_teacher",)) < 0.5 * width(())


def test_what_the_runs_cannot_say_is_said_to_be_open():
    one_budget = fit_two_causes(world(budgets=(500_000,)))
    assert "by_tokens" in one_budget.record().held
    half = one_budget.interval(lambda theta: theta)[1]
    assert half[2] > 1  # the prior's: the runs say nothing
    few = fit_two_causes(world(ladder=(23e3, 41e3)))
    assert few.status == "not_identifiable"
    assert "need three" in few.reason
    assert few.record().help.low is None
    noisy = fit_two_causes(world(seed=1, ladder=(23e3, 41e3, 78e3), order_sd=0.05))
    assert noisy.status == "not_identifiable"
    assert "add teachers of one size with different losses" in noisy.reason


def test_why_it_is_not_available():
    cells = world()
    assert "no losses of the teachers" in fit_two_causes(cells.drop(columns="teacher_loss"))
    assert "no column init" in fit_two_causes(cells.assign(init="unstated"))
    one = cells[cells["teacher"] == "t539000"]
    assert "no student has two teachers" in fit_two_causes(one)


def test_the_order_of_rows_does_not_matter():
    runs = simulate_causes(np.random.default_rng(0), teacher_sd=0.005)
    one = fit_two_causes(cell_table(runs)).record()
    assert fit_two_causes(cell_table(runs.sample(frac=1, random_state=0))).record() == one


# --- the pilot studies ----------------------------------------------------------------------------


def test_the_third_pilot_gives_the_help_of_a_better_teacher():
    # two teachers of 539k, 0.2339 nats apart, move one student by 0.0668: 0.286
    law = fit_two_causes(cell_table(pilot("larger"))).record()
    assert law.status == "identified"
    assert law.help.low < 0.286 < law.help.high
    assert law.help.value == pytest.approx(0.286, abs=0.15)
    assert "by_tokens" in law.held  # one budget


@pytest.mark.parametrize("name", ["family", "v1024", "both"])
def test_tokens_repair_the_cut_in_the_pilots(name):
    law = fit_two_causes(cell_table(pilot(name)))
    record = law.record()
    assert record.status == "identified"
    assert 0 < record.help.low < record.help.value < 0.7
    assert 0.3 < record.damage_by_tokens.low < record.damage_by_tokens.value < 1
    assert record.damage_rate_nats.low > 0.05
    assert record.held == []
    assert record.noise_nats < 0.02


def test_a_badly_trained_teacher_is_named():
    both = cell_table(pilot("both"))
    (off,) = family_of(both).off
    assert off.teacher == "t116"
    assert off.above_curve > 0.1
    assert family_of(cell_table(pilot("family"))).off[0].teacher == "t116"
    assert family_of(cell_table(pilot("v1024"))).off == ()
    # its students fared worse at the short budget than even its loss explains
    (far,) = fit_two_causes(both).record().far_off
    assert far == "student h28, init pruned-t116, teacher t116, 250000 tokens"


def test_it_extrapolates_sanely_from_the_pilots():
    law = fit_two_causes(cell_table(pilot("both")))
    family = family_of(cell_table(pilot("both")))
    stars = [
        law.best_teacher(30e3, tokens, family.loss_of, family.ends)[0].value
        for tokens in (30_000, 100_000, 300_000, 1_000_000, 10_000_000, 100_000_000)
    ]
    assert (np.diff(stars) >= 0).all()
    assert stars[0] < 50e3  # almost no tokens: hardly a cut
    assert stars[-1] > 500e3  # with many, the best model
    least = law.loss(30e3, 100_000_000, 2.3, 539e3)
    assert least.low < least.value < least.high
    assert law.above_level(1e2, 1e3, np.array([2.3]), np.array([1e9]))[0] < 2.5  # bounded damage


# --- the family -----------------------------------------------------------------------------------


def test_losses_between_the_sizes_of_a_family():
    family = family_of(world(training_sd=0.0))
    assert family.off == ()
    assert family.loss_of(np.array([60e3, 200e3])) == pytest.approx(
        family_loss(np.array([60e3, 200e3])), abs=5e-3
    )
    assert family.loss_of(41e3) == pytest.approx(family_loss(41e3))
    assert family.loss_of(1e9) == family.loss_of(539e3)
