"""Tables of runs with a right answer, from the command's function to the record."""

import numpy as np
import pytest
from law_worlds import case, holds, width

from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.fit_law import fit_law
from capgap.law.make_record import law_record


@pytest.fixture(scope="module")
def record():
    cache = {}

    def of(name):
        if name not in cache:
            cache[name] = law_record(case(name), Law())
        return cache[name]

    return of


def claims(law):
    return {claim.name: claim for claim in law.overall.claims}


def test_one_diverged_run_is_named_with_the_fix():
    with pytest.raises(CapgapError, match="s80000.*t511181.*seed 0.*law.exclude") as error:
        fit_law(case("outlier"), Law())
    assert "5.16" in str(error.value)


def test_the_same_table_without_it_is_a_proportion(record):
    law = record("clean")
    assert law.exponents.by_size.value == pytest.approx(1, abs=0.03)
    assert law.overall.status == "supported"
    assert claims(law)["ratio"].verdict == "equal"
    for optimum in law.optima:
        true = 2.5 * optimum.student_params_non_embedding
        assert optimum.teacher_params.value == pytest.approx(true, rel=0.02)
        assert optimum.shape == "interior"


def test_growth_is_judged_by_the_exponent(record):
    law = record("power")
    assert holds(law.exponents.by_size, 0.48)
    assert width(law.exponents.by_size) < 0.2
    assert claims(law)["grows"].answer == "yes"
    assert claims(law)["proportional"].verdict == "different"


def test_two_teachers_of_one_size_that_disagree_leave_t_star_open(record):
    law = record("same_size")
    (optimum,) = law.optima
    assert width(optimum.teacher_params) > 100e3
    teacher = next(part for part in law.noise if part.name == "teacher")
    assert teacher.sd.value > 0.03
    assert teacher.source == "replicas"


def test_a_law_in_tokens_per_parameter_is_fitted(record):
    law = record("tpp")
    assert law.exponents.by_size is None
    assert law.exponents.by_tokens is None
    together = law.exponents.by_size_at_fixed_tokens_per_param
    assert together.value == pytest.approx(1, abs=0.01)
    assert holds(law.ratio_at_25_tokens_per_param, 2.5)
    assert claims(law)["proportional"].answer == "yes"
    assert "vary together" in claims(law)["tokens"].reason
    (line,) = law.lines
    assert line.tokens is None
    assert line.tokens_per_param == pytest.approx(25)
    assert line.slope.value == pytest.approx(2.42, abs=0.01)


def test_a_power_law_with_skewed_curves_is_recovered(record):
    """S^0.30 D^0.68 with noise of 0.0002 nats."""
    law = record("truth_G")
    assert holds(law.exponents.by_size, 0.30)
    assert holds(law.exponents.by_tokens, 0.68)
    assert holds(law.exponents.by_size_at_fixed_tokens_per_param, 0.98)
    assert width(law.exponents.by_size) < 0.1
    assert width(law.exponents.by_tokens) < 0.05
    assert claims(law)["tokens"].answer == "yes"


def test_the_default_study_as_published(record):
    """Losses of docs/studies.md: an exponent within 0.35 and T*(18k) within 15 %."""
    law = record("published_default")
    growth = law.exponents.by_size
    assert growth.value == pytest.approx(0.29, abs=0.05)
    assert width(growth) / 2 < 0.35
    star = fit_law(case("published_default"), Law()).power_law.star(18e3, 5e5, 0.95)
    assert star.value == pytest.approx(40.8e3, rel=0.03)
    assert star.high / star.low < 1.17**2
    assert claims(law)["interior"].answer == "yes"


def test_three_budgets_as_published(record):
    law = record("published_budgets")
    assert law.exponents.by_size.value == pytest.approx(0.31, abs=0.1)
    assert law.exponents.by_tokens.value == pytest.approx(0.72, abs=0.1)
    assert law.exponents.by_size_at_fixed_tokens_per_param.value == pytest.approx(1.03, abs=0.2)
    assert claims(law)["tokens"].answer == "yes"
    assert 10 < law.published_ratio_at_tokens_per_param.value < 30


def test_the_first_trial_runs_through_its_ladders(record):
    """T* below the ladder at the shortest budgets, and above its middle at the longest."""
    law = record("trial_v1024")
    by_name = {(o.student, o.tokens): o for o in law.optima}
    short, long = by_name["s6000", 60_000], by_name["s24000", 1_920_000]
    assert short.teacher_params.high < 23_256  # the second smallest
    assert short.teacher_params.low is None
    assert long.teacher_params.high is None or long.teacher_params.high > 10 * 125_944
    assert long.teacher_params.low > 125_944 / 2
    assert law.exponents.by_tokens.low > 0
    # concave curves are no misfit of single runs, but of the form, which grows with the excess
    misfit = next(part for part in law.noise if part.name == "misfit")
    assert misfit.source == "residuals"
    assert misfit.sd.value > 0.08


def test_the_second_trial_moves_with_tokens(record):
    law = record("trial_family")
    assert law.exponents.by_tokens.low > 0
    assert law.exponents.by_size.low > 0
    shortest = [o for o in law.optima if o.tokens == 250_000]
    assert all(o.status == "upper_bound" for o in shortest)


def test_a_badly_trained_teacher_is_found_among_replicas(record):
    """Two teachers of 539k of which one was trained worse, and better ones win everywhere."""
    law = record("trial_larger")
    effects = {effect.teacher: effect for effect in law.teacher_effects}
    assert effects["t116"].off_family
    assert effects["t116"].effect_nats > 0.01
    assert effects["t116b"].off_family
    assert effects["t116b"].effect_nats < -0.01
    assert [name for name, effect in effects.items() if effect.off_family] == ["t116", "t116b"]
    assert law.overall.status == "inconclusive"
    assert None in (law.exponents.by_size.low, law.exponents.by_size.high)


@pytest.mark.parametrize("name", ["clean", "truth_G", "published_default"])
def test_fewer_teachers_or_seeds_never_narrow_the_interval(name):
    runs = case(name)
    sizes = runs.groupby("student")["teacher_params_non_embedding"]
    whole = fit_law(runs, Law()).power_law
    inner = runs[runs["teacher_params_non_embedding"] < sizes.transform("max")]
    few = fit_law(inner, Law()).power_law
    width_whole, width_few = (law.exponent(1, 0, 0.95).width for law in (whole, few))
    assert width_few > 0.9 * width_whole
    for size, tokens in {
        (p, d) for p, d in zip(whole.runs.size_N, whole.runs.tokens_N, strict=True)
    }:
        a, b = (law.log_ratio(size, tokens, 0.95).width for law in (whole, few))
        assert np.isinf(b) or b > 0.9 * a
