import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from law_worlds import FIVE as STUDENTS
from law_worlds import LADDER, case
from law_worlds import simulate as simulate_shared

from capgap.commands.recommend import main, published, text
from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.answers.ask import OpenLaw, open_law
from capgap.law.answers.power_law_answer import beyond
from capgap.law.law_record import LawRecord
from capgap.law.make_record import law_record
from capgap.law.simulate import simulate_study
from capgap.records import paths
from capgap.stages.choose import run as choose

CURVATURE = 0.25


def flops(student, teacher, tokens):
    """Training compute of a distillation: 6 S D + 2 T D."""
    return 6 * student * tokens + 2 * teacher * tokens


def run(law, table, *question, **options):
    return open_law(law, table).teachers_for(*question, **options)


def simulate(seed=0, students=STUDENTS, ladder=LADDER, **world):
    return simulate_shared(seed, students, ladder, **world)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Write a table and its law, and return their paths."""

    def write(runs):
        folder = tmp_path_factory.mktemp("study")
        (folder / "runs.csv").write_text(runs.to_csv(index=False))
        (folder / "law.json").write_text(law_record(runs, Law()).to_json())
        return folder / "law.json", folder / "runs.csv"

    return write


@pytest.fixture(scope="module")
def pilot(write):
    return write(simulate(noise_sd=0.001))


@pytest.fixture(scope="module")
def armed(write):
    runs = simulate_study(
        np.random.default_rng(0),
        (60e3, 100e3, 160e3),
        tuple(np.geomspace(75e3, 2e6, 6)),
        budgets=(1_000_000, 4_000_000),
        arms=("no_teacher", "random_init"),
    )
    return write(runs)


def test_teachers_are_ranked_by_what_the_truth_says_they_cost(pilot):
    answer = run(*pilot, student=125_000)
    assert answer.status == "recommended"
    assert answer.tokens == 10**6
    assert answer.teacher_params_star.value == pytest.approx(2.5 * 125e3, rel=0.05)
    truth = {t: CURVATURE / 2 * np.log(t / (2.5 * 125e3)) ** 2 for t in LADDER if t > 125e3}
    best = min(truth.values())
    found = {row.teacher_params_non_embedding: row for row in answer.ranked}
    assert set(found) == set(truth)  # none that is not larger than the student
    for size, row in found.items():
        assert row.predicted_regret.value == pytest.approx(truth[size] - best, abs=0.006)
        assert row.predicted_regret.low <= truth[size] - best <= row.predicted_regret.high
        loss = 4 * 12.5**-0.06 * 2**-0.025 + truth[size]  # the simulator's level
        assert row.predicted_loss.value == pytest.approx(loss, abs=0.01)
        assert row.predicted_loss.low < loss < row.predicted_loss.high
        assert row.train_flops == flops(125e3, size, 1e6)
    values = [row.predicted_regret.value for row in answer.ranked]
    assert values == sorted(values)
    assert answer.within_tie == ["t280000"]


def test_three_optima_near_one_teacher_choose_it(write):
    """A line through them hardly determines T* at 18k; the power law does, and is used."""
    sizes = {"t23k": 23_256, "t41k": 41_248, "t64k": 64_360, "t126k": 125_944}
    losses = {  # of a study that was run, two seeds
        13_000: [(4.045, 4.046), (4.031, 4.027), (4.035, 4.036), (4.077, 4.075)],
        16_000: [(4.033, 4.033), (4.006, 4.004), (4.023, 4.015), (4.059, 4.060)],
        20_000: [(3.919, 3.918), (3.892, 3.890), (3.899, 3.902), (3.933, 3.933)],
    }
    runs = pd.DataFrame(
        {
            "student": f"{student // 1000}k",
            "init": f"pruned-{teacher}",
            "teacher": teacher,
            "arm": "main",
            "student_params_non_embedding": student,
            "teacher_params_non_embedding": sizes[teacher],
            "tokens": 500_000,
            "seed": seed,
            "val_loss_nats_per_token": loss,
        }
        for student, row in losses.items()
        for teacher, pair in zip(sizes, row, strict=True)
        for seed, loss in enumerate(pair)
    )
    answer = run(*write(runs), student=18_000)
    star, first = answer.teacher_params_star, answer.ranked[0]
    assert answer.basis == "power_law"
    assert sizes["t23k"] < star.low < 41_000 < star.value < 48_000 < star.high < sizes["t64k"]
    assert first.teacher_params_non_embedding == sizes["t41k"]
    assert first.predicted_regret.value == 0
    regrets = [row.predicted_regret.value for row in answer.ranked]
    assert regrets == sorted(regrets)


def test_rules_of_thumb_are_held_against_it(pilot):
    rules = {rule.rule: rule for rule in run(*pilot, student=125_000).rules}
    assert rules["2.5 times"].teacher == "t280000"
    assert rules["next size up"].teacher == "t150000"
    assert rules["largest"].teacher == "t990000"
    at_largest = CURVATURE / 2 * (np.log(990 / 312.5) ** 2 - np.log(280 / 312.5) ** 2)
    assert rules["largest"].expected_regret_nats == pytest.approx(at_largest, abs=0.01)
    assert rules["no teacher"].expected_regret_nats is None
    assert rules["no teacher"].train_flops == 6 * 125e3 * 1e6


def test_the_arm_without_a_teacher_prices_doing_without(armed):
    rules = {rule.rule: rule for rule in run(*armed, student=100_000, tokens=10**6).rules}
    runs = pd.read_csv(armed[1])
    here = runs[(runs["student_params_non_embedding"] == 100_000) & (runs["tokens"] == 10**6)]
    loss = here.groupby(["arm", "init"])["val_loss_nats_per_token"].mean()
    alone = loss["no_teacher"].filter(like="pruned").min() - loss["main"].min()
    assert alone > 0.02
    assert rules["no teacher"].expected_regret_nats == pytest.approx(alone)


def test_the_loss_of_a_teacher_does_not_depend_on_the_others_on_offer(pilot):
    every = {row.teacher: row for row in run(*pilot, student=125_000).ranked}
    for name in ("t150000", "t990000"):
        (one,) = run(*pilot, student=125_000, teachers=[name]).ranked
        assert one.predicted_loss.value == pytest.approx(every[name].predicted_loss.value)
        assert one.predicted_loss.value > every["t280000"].predicted_loss.value + 0.01
        assert one.predicted_regret.value == 0


def test_a_teacher_whose_student_would_be_out_of_reach_has_none(pilot):
    law = open_law(*pilot)
    answer = law.student_for(20_000_000)
    assert answer.student_params is None
    assert "beyond the runs" in answer.reason
    with pytest.raises(CapgapError, match="teacher is 0, but must be greater than 0"):
        law.student_for(0)
    flat = OpenLaw(law.law.model_copy(update={"status": "flat"}), law.runs, law.fit)
    assert "no difference beyond noise" in flat.student_for(250_000).reason


def test_compute_saved_is_that_of_the_other_teachers(pilot):
    answer = run(*pilot, student=125_000)
    every = [flops(125e3, t, 1e6) for t in LADDER[1:]]
    assert answer.exhaustive_flops == pytest.approx(sum(every))
    assert answer.saved_flops == pytest.approx(sum(every) - flops(125e3, 280e3, 1e6))
    pilot_flops = sum(2 * flops(s, t, 1e6) for s in STUDENTS for t in LADDER)
    assert answer.pilot_flops == pytest.approx(pilot_flops)


def test_teachers_may_be_sizes_or_names(pilot):
    answer = run(*pilot, student=125_000, teachers=["200k", "t530000", "300k"])
    assert answer.ranked[0].teacher == "300k"
    sizes = {row.teacher: row.teacher_params_non_embedding for row in answer.ranked}
    assert sizes == {"200k": 200_000, "t530000": 530_000, "300k": 300_000}


def test_how_far_it_extrapolates(pilot):
    answer = run(*pilot, student=320_000, tokens=3 * 10**6, teachers=["800k", "3M", "9M"])
    assert answer.student_extrapolation == pytest.approx(2)
    assert answer.tokens_extrapolation == pytest.approx(3)
    assert answer.teacher_extrapolation == 1
    law = LawRecord.read(pilot[0])
    shown = text(answer, law)
    assert "student size lies 2 times beyond" in shown
    assert "token budget lies 3 times beyond" in shown
    assert "the runs had one budget" in shown
    inside = run(*pilot, student=125_000)
    assert inside.student_extrapolation == inside.tokens_extrapolation == 1
    assert "beyond the runs" not in text(inside, law)
    assert "Nothing here is extrapolated." in text(inside, law)


def test_beyond_by_hand():
    assert [beyond(x, [2.0, 4.0]) for x in (1, 2, 3, 4, 8)] == [2, 1, 1, 1, 2]


def test_the_joint_law_answers_between_budgets(armed):
    answer = run(*armed, student=100_000, tokens=2_000_000)
    assert answer.basis == "power_law"
    # help / damage = 2.5, growing as tokens to the power 0.3
    assert answer.teacher_params_star.value == pytest.approx(2.5 * 2**0.3 * 1e5, rel=0.1)
    assert answer.tokens_extrapolation == 1
    assert any("the init made the difference" in note for note in answer.notes)


@pytest.mark.parametrize(
    ("runs", "student", "reason"),
    [
        (simulate(curvature=0), 70_000, "the teacher hardly matters, and the smallest one is"),
        (case("same_size"), 12_000, "for the nearest student, only a bound on T* is known"),
    ],
)
def test_it_abstains_where_the_data_cannot_say(write, runs, student, reason):
    law, table = write(runs)
    answer = run(law, table, student=student)
    assert answer.status == "abstains"
    assert reason in answer.reason
    shown = text(answer, LawRecord.read(law))
    assert shown.startswith(f"No recommendation for a student of {student // 1000}k at 1M tokens")
    assert answer.ranked[0].teacher_params_non_embedding > student


def test_on_flat_curves_the_cheapest_comes_first(write):
    answer = run(*write(simulate(curvature=0)), student=70_000)
    sizes = [row.teacher_params_non_embedding for row in answer.ranked]
    assert sizes == sorted(sizes)


def test_an_interval_over_all_teachers_offered_abstains(write):
    runs = simulate(students=STUDENTS[::2], scatter_sd=0.3, seed=3)
    answer = run(*write(runs), student=110_000, teachers=["250k", "290k"])
    assert answer.teacher_params_star.low is None or answer.teacher_params_star.low < 250e3
    assert answer.status == "abstains"
    assert "spans all teachers on offer" in answer.reason


def test_the_choice_of_the_workflow_is_the_same_answer(pilot):
    choice = choose(*pilot, student=125_000, tokens=10**6)
    answer = run(*pilot, student=125_000, tokens=10**6)
    assert choice.recommendation == answer
    assert choice.chosen == answer.ranked[0].teacher
    assert choice.teacher_params_star == answer.teacher_params_star


def test_a_choice_that_had_to_guess_says_so(write):
    choice = choose(*write(simulate(curvature=0)), student=70_000, tokens=10**6)
    assert "This is a guess, because the runs do not settle it" in choice.basis_note


def test_what_cannot_be_asked_is_refused(pilot, write):
    with pytest.raises(CapgapError, match="teachers: 'huge' is neither a teacher of the table"):
        run(*pilot, student=125_000, teachers=["huge"])
    with pytest.raises(CapgapError, match="teachers: no teacher is larger than the student"):
        run(*pilot, student=125_000, teachers=["100k"])
    with pytest.raises(CapgapError, match="student is 0"):
        run(*pilot, student=0)
    other = write(simulate(students=STUDENTS[:3]))
    with pytest.raises(CapgapError, match="do not belong together"):
        run(pilot[0], other[1], student=125_000)


def test_command_line(pilot, tmp_path, capsys):
    law, runs = map(str, pilot)
    out = tmp_path / "answer.json"
    options = ["--law", law, "--runs", runs, "--student", "125k"]
    main([*options, "--json", "--out", str(out)])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["ranked"][0]["teacher"] == "t280000"
    main([*options, "--teachers", "200k, 300k"])
    shown = capsys.readouterr().out
    assert shown.startswith("For a student of 125k at 1M tokens: 300k.\nBasis: the power law puts")
    assert "T* = 3" in shown
    assert re.search(r"largest +300k +0\.\d{4}\n", shown)
    assert re.search(r"which saves \d+%", shown)
    with pytest.raises(CapgapError, match="--law and --runs belong together"):
        main([*options[2:]])


def test_without_a_law_the_study_in_the_folder_is_asked(pilot, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CapgapError, match=r"mine\.yaml: no such study file; name a law"):
        main(["--student", "125k", "--study", "mine.yaml"])
    (tmp_path / "config.yaml").write_text(
        (Path(__file__).parents[1] / "tiny/config.yaml").read_text()
    )
    folder = tmp_path / Path(paths.LAW.format(study="tiny")).parent
    folder.mkdir(parents=True)
    for path in pilot:
        (folder / path.name).write_bytes(path.read_bytes())
    main(["--student", "125k"])
    assert capsys.readouterr().out.startswith("For a student of 125k at 1M tokens: t280000.")


def test_without_a_study_the_published_one_answers_and_says_how_far_it_reaches(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main(["--student", "16k", "--tokens", "400k"])
    shown = capsys.readouterr().out
    assert shown.startswith("For a student of 16k at 400k tokens: t64k.")
    assert "there is no study here, so this is the law of the published study" in shown
    main(["--student", "3B", "--teachers", "7B,13B,70B", "--tokens", "126B"])
    shown = capsys.readouterr().out
    assert shown.startswith(
        "No recommendation for a student of 3B at 126B tokens: the student lies"
    )
    assert "5.75e+04 times beyond the runs" in shown
    assert shown.count("unknown") == 3 * 2 + 4
    (tmp_path / "config.yaml").write_text(
        (Path(__file__).parents[1] / "tiny/config.yaml").read_text()
    )
    main(["--student", "16k"])
    assert (
        "study tiny has no law yet, so this is the law of the published study"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("study", ["sotu-law", "sotu"])
def test_the_published_laws_are_those_of_their_tables(study):
    folder = published().with_name(study)
    asked = open_law(folder / "law.json", folder / "runs.csv")
    law, fitted = asked.law, asked.fit.power_law
    for recorded, exponents in (
        (law.exponents.by_size, (1, 0)),
        (law.exponents.by_tokens, (0, 1)),
        (law.exponents.by_size_at_fixed_tokens_per_param, (1, 1)),
    ):
        found = fitted.exponent(*exponents, law.confidence)
        for end in ("value", "low", "high"):
            assert getattr(found, end) == pytest.approx(getattr(recorded, end), abs=0.02)
    ratio = law.ratio_at_25_tokens_per_param
    assert 2.5 < ratio.low < ratio.value < ratio.high < 5


def test_the_inverse_on_the_command_line(pilot, capsys):
    main(["--law", str(pilot[0]), "--runs", str(pilot[1]), "--fits", "250k"])
    sentence = capsys.readouterr().out
    assert "a teacher of 250k is the optimum of a student of" in sentence
    value = float(sentence.split("student of ")[1].split("k")[0])
    assert value == pytest.approx(100, abs=5)
    asked = ["--law", str(pilot[0]), "--runs", str(pilot[1])]
    main([*asked, "--fits", "250k", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["student_params"]["value"] == pytest.approx(100e3, rel=0.05)
    for wrong in ([], ["--fits", "250k", "--student", "20k"], ["--fits", "250k", "--flops", "1e9"]):
        with pytest.raises(SystemExit):
            main([*asked, *wrong])


@pytest.mark.parametrize("question", [["--fits", "60k"], ["--student", "16k", "--flops", "1e11"]])
def test_every_answer_of_the_published_study_has_its_note(question, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(question)
    assert (
        "\nNote: there is no study here, so this is the law of the published study"
        in capsys.readouterr().out
    )
    main([*question, "--json", "--out", "answer.json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["notes"][0].startswith(
        "there is no study here, so this is the law of the published"
    )
    assert answer == json.loads((tmp_path / "answer.json").read_text())


def test_a_single_teacher_on_offer_is_ranked_alone(pilot):
    answer = run(*pilot, student=125_000, teachers=["300k"])
    assert [row.teacher for row in answer.ranked] == ["300k"]
    assert answer.ranked[0].predicted_regret.value == 0
    assert answer.saved_flops == 0


def test_the_same_input_gives_the_same_bytes(pilot):
    assert run(*pilot, student=125_000).to_json() == run(*pilot, student=125_000).to_json()


def test_one_seed_still_answers_with_what_scatter_allows(write):
    answer = run(*write(simulate(seeds=1, noise_sd=0.001)), student=110_000)
    assert answer.teacher_params_star.low is not None
    assert pd.notna(answer.ranked[0].predicted_loss.value)
