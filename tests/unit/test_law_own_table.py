"""A user's own table of runs, three token budgets, end to end by the command line alone."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from law_worlds import simulate_runs

from capgap.config.run_grid import NONE
from capgap.law.law_record import LawRecord
from capgap.law.number_text import about
from capgap.law.simulate import simulate_study

STUDENTS = (300e6, 500e6, 800e6, 1.3e9)
BUDGETS = (10_000_000_000, 40_000_000_000, 160_000_000_000)
POWER = 0.3


def ratio(tokens):
    """T*/S of the truth."""
    return 2.5 * (tokens / BUDGETS[0]) ** POWER


def capgap(folder, *words):
    """Output of a command in a folder without any study."""
    command = [sys.executable, "-m", "capgap.cli", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fitted(folder, runs):
    """Printed words and record of `capgap law fit` on a table."""
    runs.to_csv(folder / "runs.csv", index=False)
    printed = capgap(folder, "law", "fit", "runs.csv", "--out", "law.json")
    return printed, LawRecord.read(folder / "law.json")


def own_table(top=20e9):
    """Students of four sizes from one ladder of teachers, with only the columns that are needed."""
    rng, frames = np.random.default_rng(3), []
    ladder = [t for t in np.geomspace(400e6, 20e9, 9) if t <= top]
    for tokens in BUDGETS:
        for s in STUDENTS:
            larger = [t for t in ladder if t > 1.1 * s]
            frames.append(simulate_runs(rng, [s], [larger], tokens=tokens, slope=ratio(tokens)))
    return pd.concat(frames).drop(columns="arm")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("plain"), own_table())


def test_the_best_teacher_of_every_student_and_budget_is_found(plain):
    printed, law = plain
    assert len(law.optima) == 12
    inside = 0
    for found in law.optima:
        true = ratio(found.tokens) * found.student_params_non_embedding
        assert found.status == "interior"
        assert found.place == "inside"
        assert found.teacher_params.value == pytest.approx(true, rel=0.05)
        inside += found.teacher_params.low <= true <= found.teacher_params.high
        assert (
            f"{about(found.teacher_params.value)} [{about(found.teacher_params.low)}, " in printed
        )
    assert inside >= 10
    for line in law.lines:
        assert line.slope.low < ratio(line.tokens) < line.slope.high
        assert f"{line.slope.value:.2f} [" in printed


def test_how_it_moves_is_found_and_printed(plain):
    printed, law = plain
    exponents = law.exponents
    assert exponents.by_tokens.low < POWER < exponents.by_tokens.high
    assert exponents.by_size.low < 1 < exponents.by_size.high
    together = exponents.by_size_at_fixed_tokens_per_param
    assert together.low < 1 + POWER < together.high
    true = (25 / (BUDGETS[0] / law.curve.central_student_params)) ** POWER * 2.5
    assert law.ratio_at_25_tokens_per_param.value == pytest.approx(true, rel=0.05)
    at = law.published_ratio_at_tokens_per_param
    assert at.low < BUDGETS[0] / law.curve.central_student_params < at.high
    assert printed.startswith("The law is contradicted")
    assert "T* grows as D^0.3" in printed


def test_an_optimum_beyond_the_ladder_is_a_bound_and_not_dropped(tmp_path):
    _, law = fitted(tmp_path, own_table(top=8e9))
    outside = [found for found in law.optima if found.status == "lower_bound"]
    assert outside
    for found in outside:
        true = ratio(found.tokens) * found.student_params_non_embedding
        star = found.teacher_params  # the other students and budgets determine it
        assert star.low < true < star.high
        assert found.place in ("open", "above")
    bounds = {line.tokens: line.n_bounds for line in law.lines}
    assert sum(bounds.values()) == len(outside)
    fitted_lines = [line for line in law.lines if line.status == "fitted" and line.n_bounds]
    assert fitted_lines
    for line in fitted_lines:
        assert "which gives only a bound" in line.reason
        assert line.slope.low < ratio(line.tokens) < line.slope.high


# --- with control arms ----------------------------------------------------------------------------

DAMAGE, HELP = 0.08, 0.2


@pytest.fixture(scope="module")
def armed(tmp_path_factory):
    """A mechanism whose optimum comes from the init (`simulate_study`), at ten thousand times its size."""
    rng, units = np.random.default_rng(7), 10_000
    students, ladder = np.array(STUDENTS) / units, np.geomspace(40e3, 2.5e6, 8)
    budgets = tuple(tokens // units for tokens in BUDGETS)
    runs = simulate_study(rng, students, ladder, budgets=budgets, decay=POWER)
    for name in ("student_params_non_embedding", "teacher_params_non_embedding", "tokens"):
        runs[name] = (runs[name] * units).astype("Int64")
    folder = tmp_path_factory.mktemp("armed")
    printed, law = fitted(folder, runs)
    return folder, printed, law


def test_the_verdict_says_that_it_is_the_start(armed):
    _, printed, law = armed
    shapes = {shape for e in law.effects for shape in e.fixed_init_shapes.values()}
    assert {found.place for found in law.optima} == {"inside"}
    assert law.curve.skew == pytest.approx(-1, abs=0.2)
    assert "interior" not in shapes
    assert law.overall.cause == "init"
    verdict = printed.split("\n\n")[0]
    assert "The optimum comes from the pruned init rather than the teacher" in verdict
    *_, scores, rivals = printed.rstrip().split("\n\n")
    assert {row.split()[0] for row in scores.splitlines()[5:]} == {s.law for s in law.scores}
    assert [row.split()[0] for row in rivals.splitlines()[1:]] == ["busbridge", "p2"]


def true_loss(student, teacher, tokens):
    """Loss of a student pruned from its teacher (`simulate_study`), nats per token."""
    level = 3 - 0.25 * np.log(student / 1e9) - 0.1 * np.log(tokens / 1e10)
    damage = DAMAGE * np.log(teacher / student) * (tokens / 1e10) ** -POWER
    return level + damage - HELP * (1 - student / teacher)


def test_a_recommendation_by_hand(armed):
    folder, _, _ = armed
    asked = ["--law", "law.json", "--runs", "runs.csv", "--student", "3B", "--tokens", "100B"]
    asked += ["--teachers", "7B,13B,70B"]
    answer = json.loads(capgap(folder, "recommend", *asked, "--json"))
    assert answer["status"] == "recommended"
    assert [row["teacher"] for row in answer["ranked"]] == ["13B", "7B", "70B"]
    size = {"7B": 7e9, "13B": 13e9, "70B": 70e9}
    losses = {name: true_loss(3e9, t, 1e11) for name, t in size.items()}
    for row in answer["ranked"]:
        loss, regret = row["predicted_loss"], row["predicted_regret"]
        true = losses[row["teacher"]]
        assert loss["low"] - 0.002 < true < loss["high"] + 0.002
        assert loss["value"] == pytest.approx(true, abs=0.005)
        assert regret["value"] == pytest.approx(true - losses["13B"], abs=0.006)
        assert row["train_flops"] == 1e11 * (6 * 3e9 + 2 * size[row["teacher"]])
    assert answer["within_tie"] == ["13B"]
    star = answer["teacher_params_star"]
    assert star["value"] == pytest.approx(ratio(1e11) * 3e9, rel=0.04)
    assert star["low"] < star["value"] < star["high"]
    assert answer["basis"] == "power_law"
    assert answer["student_extrapolation"] == pytest.approx(3e9 / 1.3e9)
    assert answer["tokens_extrapolation"] == 1
    rules = {rule["rule"]: rule for rule in answer["rules"]}
    assert {name: rule["teacher"] for name, rule in rules.items()} == {
        "2.5 times": "7B",
        "next size up": "7B",
        "largest": "70B",
        "no teacher": None,
    }
    regret = {row["teacher"]: row["predicted_regret"]["value"] for row in answer["ranked"]}
    for name in ("2.5 times", "next size up", "largest"):
        expected = pytest.approx(regret[rules[name]["teacher"]])
        assert rules[name]["expected_regret_nats"] == expected
    # what the own teacher takes off at the nearest student and budget: help (1 - S/T), mean over T
    assert 0.1 < rules["no teacher"]["expected_regret_nats"] < 0.2
    everything = sum(row["train_flops"] for row in answer["ranked"])
    assert answer["exhaustive_flops"] == everything
    assert answer["saved_flops"] == everything - answer["ranked"][0]["train_flops"]
    runs = pd.read_csv(folder / "runs.csv")
    taught = runs["teacher_params_non_embedding"].fillna(0)
    each = runs["tokens"] * (6 * runs["student_params_non_embedding"] + 2.0 * taught)
    assert (taught == 0).eq(runs["teacher"].isna() | (runs["teacher"] == NONE)).all()
    assert answer["pilot_flops"] == pytest.approx(each.sum(), rel=1e-9)

    shown = capgap(folder, "recommend", *asked)
    assert shown.startswith("For a student of 3B at 100B tokens: 13B.")
    assert "the student size lies 2.31 times beyond the runs" in shown
    assert "the init made the difference" in shown


def test_a_recommendation_too_far_away_says_how_far(armed):
    folder, _, _ = armed
    asked = ["--law", "law.json", "--runs", "runs.csv", "--student", "3B", "--tokens", "1.6T"]
    shown = capgap(folder, "recommend", *asked, "--teachers", "7B,13B,70B")
    assert "the token budget lies 10 times beyond the runs" in shown
