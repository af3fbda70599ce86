"""T* at equal compute: a known truth is found, and its interval holds it."""

import json
import math

import numpy as np
import pytest
from law_simulation import Design, World, simulate
from law_worlds import holds, two_kinds

from capgap.commands import recommend
from capgap.config import Law
from capgap.law.answers.equal_compute import at_compute, equal_compute
from capgap.law.make_record import law_record
from capgap.law.power_law.loss_curve import bowl
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.table.grouped_runs import group_runs
from capgap.law.table.read_runs import read_runs, teacher_sizes
from capgap.law.table.token_flops import token_flops_of

LADDER = (20e3, 40e3, 80e3, 160e3, 320e3)
STUDENTS = (8e3, 12e3)
STAR, CURVATURE = 120e3, 0.05


def made(seed=0, budgets=(250e3, 500e3, 1e6, 2e6), **noise):
    """Runs whose T* is 120k at equal tokens of any number."""
    design = Design(
        dict.fromkeys(STUDENTS, LADDER), dict.fromkeys(STUDENTS, budgets), replicas=(1, 2)
    )
    world = World(lambda s, d: STAR, curvature=CURVATURE, skew=0.0, **{"order_sd": 1e-4} | noise)
    runs = read_runs(simulate(np.random.default_rng(seed), world, design))
    return runs, fit_power_law(group_runs(runs))


def truth(size, flops, shared_by=1.0):
    """T* at some FLOPs in this world, by looking at many sizes; the level is that of `simulate`."""
    log_t = np.linspace(math.log(LADDER[0]), math.log(LADDER[-1]), 20_001)
    tokens = flops / (6 * size + 2 * np.exp(log_t) / shared_by)
    level = 4.0 * (size / 1e4) ** -0.06 * (tokens / 5e5) ** -0.025
    loss = level + CURVATURE * bowl(log_t - math.log(STAR), np.float64(0.0))
    return math.exp(log_t[int(np.argmin(loss))])


def test_the_truth_is_found_online_and_cached():
    runs, law = made()
    for row in equal_compute(law, runs, Law()):
        size, expected = row.student_params_non_embedding, STAR
        price = 6 * size + 2 * row.at_equal_tokens / row.shared_by
        assert row.flops == pytest.approx(price * row.tokens)
        expected = truth(size, row.flops, row.shared_by)
        assert row.teacher_params.value == pytest.approx(expected, rel=0.05)
        assert row.at_equal_tokens == pytest.approx(STAR, rel=0.03)
        assert row.ratio.value == pytest.approx(expected / STAR, rel=0.05)
        assert row.tokens_there == pytest.approx(
            row.flops / (6 * size + 2 * row.teacher_params.value / row.shared_by)
        )


def test_a_shared_pass_brings_it_nearer_to_the_one_at_equal_tokens():
    runs, law = made()
    rows = {(r.student, r.tokens, r.shared_by): r for r in equal_compute(law, runs, Law())}
    online, cached = (rows["8000", 1_000_000, n] for n in (1, 2))
    assert online.teacher_params.value < 0.9 * cached.teacher_params.value
    assert cached.teacher_params.value < 0.95 * STAR


def test_intervals_hold_the_truth():
    held = []
    for seed in range(20):
        runs, law = made(100 + seed, teacher_sd=0.004, order_sd=0.002)
        row = equal_compute(law, runs, Law())[0]
        held.append(holds(row.teacher_params, truth(row.student_params_non_embedding, row.flops)))
    assert sum(held) >= 17


def test_teachers_are_ranked_at_the_tokens_they_leave():
    runs, law = made()
    flops = 2.5e11
    answer = at_compute(law, "", runs, teacher_sizes(runs), 10_000, flops, 1, 0.95)
    assert answer.status == "recommended"
    assert answer.teacher_params.value == pytest.approx(truth(10e3, flops), rel=0.05)
    nearest = min(LADDER, key=lambda t: abs(math.log(t / truth(10e3, flops))))
    assert answer.ranked[0].teacher_params_non_embedding == nearest
    for row in answer.ranked:
        size = row.teacher_params_non_embedding
        assert row.tokens == pytest.approx(flops / (6 * 10e3 + 2 * size))
    assert answer.ranked[0].predicted_regret.value == 0
    largest = next(r for r in answer.ranked if r.teacher_params_non_embedding == 320_000)
    assert largest.predicted_regret.low > 0


@pytest.mark.parametrize(
    ("budgets", "reason"),
    [((500e3,), "one token budget"), ((500e3, 1e6), "3.33e+12|times beyond")],
)
def test_what_the_runs_do_not_show_is_not_answered(budgets, reason):
    runs, law = made(budgets=budgets)
    answer = at_compute(law, "", runs, teacher_sizes(runs), 10_000, 5e13, 1, 0.95)
    assert answer.status == "abstains"
    assert any(part in answer.reason for part in reason.split("|"))
    assert bool(equal_compute(law, runs, Law())) == (len(budgets) > 1)


def test_no_law_no_answer():
    runs, _ = made()
    answer = at_compute(None, "two teachers", runs, teacher_sizes(runs), 10_000, 1e11, 1, 0.95)
    assert (answer.status, answer.reason) == ("abstains", "two teachers")
    assert equal_compute(None, runs, Law()) == []


def test_flops_of_the_table_are_used_and_else_counted():
    runs, _ = made()
    assert token_flops_of(runs).per_token(10e3, 40e3, 1) == 6 * 10e3 + 2 * 40e3
    runs["student_forward_flops_per_token"] = 5.0 * runs["student_params_non_embedding"]
    runs["teacher_forward_flops_per_token"] = 3.0 * runs["teacher_params_non_embedding"]
    found = token_flops_of(runs)
    assert found.per_token(10e3, 50e3, 4) == pytest.approx(3 * 5 * 10e3 + 3 * 50e3 / 4)
    assert found.forward("teacher", 640e3) == pytest.approx(3 * 640e3)  # beyond the ladder


def test_compute_and_inits_are_asked_on_the_command_line(tmp_path, capsys):
    runs = two_kinds(4, 4.0, teacher_sd=0.003)
    (tmp_path / "law.json").write_text(law_record(runs, Law()).to_json())
    runs.to_csv(tmp_path / "runs.csv", index=False)
    base = ["--law", str(tmp_path / "law.json"), "--runs", str(tmp_path / "runs.csv")]
    base += ["--student", "10k"]
    recommend.main([*base, "--flops", "100B", "--shared-by", "2", "--init", "given"])
    text = capsys.readouterr().out
    assert text.startswith("For a given student of 10k at 1e+11 FLOPs: t20000.")
    assert "2 runs share its pass" in text
    recommend.main([*base, "--init", "given", "--json"])
    assert json.loads(capsys.readouterr().out)["ranked"][0]["teacher"] == "t20000"
    for wrong in (["--flops", "1e9", "--tokens", "1k"], ["--flops", "0"], ["--init", "other"]):
        with pytest.raises(SystemExit):
            recommend.main([*base, *wrong])
