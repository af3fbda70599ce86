"""Inits pruned in rounds: jobs of their own, resumed after a kill, and what one does by hand."""

import shutil
import signal
import sys

import pytest
import yaml
from processes import alive, start, wait_for
from repository import RESULTS, write_study

from capgap.config.study_file import load_study
from capgap.cost.job_costs import StudyCost

FINAL = {"compare_final final", "sample_final final", "write_metrics .", "write_report report"}
LAW = {"collect_runs law", "fit_law law", "choose_teacher law", *FINAL}
TEACHERS = ("t6k", "t16k")
INIT = "inits/3k/pruned-t16k"


def three_rounds(study):
    study["prune"].update(rounds=3, round_tokens="2k")


def rounds(*rules, numbers=(1, 2)):
    places = [f"inits/3k/pruned-{name}/round-{n}" for name in TEACHERS for n in numbers]
    return {f"{rule} {place}" for rule in rules for place in places}


PRUNED = {f"prune_student inits/3k/pruned-{name}" for name in TEACHERS}
RUNS = {
    f"{rule} students/3k/pruned-{name}/from-{name}/tokens-5k/seed-0"
    for rule in ("distill_student", "evaluate_student")
    for name in TEACHERS
}
AFTER = PRUNED | RUNS | LAW


def longer_rounds(study):
    study["prune"].update(round_tokens="3k")


def other_loss(study):
    study["distill"].update(temperature=2.0)


def refit(study):
    study["prune"].update(refit="least_squares")


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """A study in three rounds whose inits are made. Not to be changed."""
    study = write_study(tmp_path_factory.mktemp("author") / "study")
    study.configure(three_rounds)
    study.capgap(
        "run",
        "--cores",
        "2",
        *(f"{RESULTS}/inits/3k/pruned-{n}/model/manifest.json" for n in TEACHERS),
    )
    return study


@pytest.fixture
def own(rounded, tmp_path):
    return rounded.copy(tmp_path / "study")


def test_the_plan_has_the_jobs_of_the_workflow(rounded):
    table = rounded.command(sys.executable, "-m", "snakemake", "--summary").stdout
    rows = [line.split("\t") for line in table.splitlines() if line.count("\t") == 5][1:]
    known = {(row[2], row[0]) for row in rows}
    jobs = StudyCost(load_study(yaml.safe_load((rounded / "config.yaml").read_text()))).jobs
    planned = {(job.rule, job.output) for job in jobs}
    final = {job for job in planned if "/4k/" in job[1]}  # behind the checkpoint
    assert planned - final <= known
    rules = {rule for rule, _ in planned - final}
    assert {"cut_round", "distill_round", "score_round"} <= rules
    companions = ("curve.csv", "train.json", "law/curves.csv", "final/model/manifest.json")
    outputs = {output for _, output in known if not output.endswith(companions)}
    assert outputs == {output for _, output in planned - final}


def test_exactly_what_follows_is_made_again(rounded, own):
    before = own.planned()
    assert before == RUNS | LAW | {f"evaluate_teacher teachers/{name}" for name in TEACHERS}
    for change, expected in (
        (longer_rounds, rounds("distill_round", "score_round") | rounds("cut_round", numbers=[2])),
        (other_loss, rounds("distill_round", "score_round") | rounds("cut_round", numbers=[2])),
        (refit, rounds("cut_round", "distill_round", "score_round")),
    ):
        shutil.copy(rounded / "config.yaml", own / "config.yaml")
        own.configure(change)
        assert own.planned() - before == expected | PRUNED, change
    shutil.copy(rounded / "config.yaml", own / "config.yaml")
    own.configure(
        lambda study: study.update(prune=study["prune"] | {"rounds": 1})
        or study["prune"].pop("round_tokens")
    )
    assert own.planned() - before == PRUNED


def test_a_killed_round_is_resumed_and_ends_in_the_same_bytes(rounded, own):
    folder = own / RESULTS / INIT
    shutil.rmtree(folder / "round-2")
    shutil.rmtree(folder / "model")
    run = start(
        own, "capgap.cli", "run", "--cores", "1", f"{RESULTS}/{INIT}/model/manifest.json",
        CAPGAP_CHECKPOINT_SECONDS="0",
    )  # fmt: skip
    scratch = own / f"scratch/{RESULTS}/{INIT}/round-2"
    wait_for(lambda: list(scratch.glob("*/*/step-*")))
    for job in alive(own, "capgap.stages.distill"):
        job.send_signal(signal.SIGKILL)
    assert run.wait() != 0
    assert not (folder / "round-2/train.json").exists()
    assert (folder / "round-2/cut/manifest.json").exists()
    own.capgap("run", "--cores", "1", f"{RESULTS}/{INIT}/model/manifest.json")
    log = (own / f"logs/distill_round/{RESULTS}/{INIT}/round-2.log").read_text()
    assert "resumed after step" in log
    assert own.contents() == rounded.contents()


def test_by_hand_it_is_prune_distill_and_score_in_turn(rounded, own, tmp_path):
    study = load_study(yaml.safe_load((own / "config.yaml").read_text()))
    teacher, tokens = own / RESULTS / "teachers/t16k/model", own / RESULTS / "tokens"
    scores = own / RESULTS / "teachers/t16k/importance"
    calibration = ["--calibration-sequences", "8", "--sequence-length", "64"]
    recipe = study.round_stage().model_dump(exclude_none=True, exclude={"track"})
    recipe = [
        str(w) for key, value in recipe.items() for w in (f"--{key.replace('_', '-')}", value)
    ]
    model = teacher
    for left in (3, 2, 1):
        cut = tmp_path / f"cut-{left}"
        own.capgap(
            "prune", model, "--importance", scores, "--params", "3k", "--rounds-left", left,
            "--shape-like", teacher, "--name", "3k", "--init", "pruned-t16k", "--scored-with", "0",
            "--out", cut,
        )  # fmt: skip
        if left > 1:
            out = tmp_path / f"trained-{left}"
            own.capgap(
                "distill", "--init", cut, "--teacher", teacher, "--token-streams", tokens,
                "--tokens", "2k", "--seed", 1000 * (4 - left), "--out", out,
                "--scratch", tmp_path / "scratch", *recipe,
            )  # fmt: skip
            model, scores = out / "model", tmp_path / f"scores-{left}"
            own.capgap(
                "score", "--model", model, "--token-streams", tokens, *calibration, "--out", scores
            )
    made = own / RESULTS / INIT / "model"
    for name in ("model.safetensors", "lineage.json", "config.json"):
        assert (cut / name).read_bytes() == (made / name).read_bytes()
