"""DVC's own commands on a study: repro, experiments, differences, and pulling a part."""

import json

import pytest
from repository import RESULTS

pytestmark = pytest.mark.slow


def law_settings(study):
    study["law"]["resamples"] = 120


def difference(study, what, *words):
    return json.loads(study.dvc(what, "diff", "--json", *words).stdout)


def test_repro_of_a_finished_study_runs_nothing(study):
    assert "Stage 'study' didn't change, skipping" in study.dvc("repro").stdout


def test_experiment_with_a_changed_setting_runs_what_it_affects(study):
    before = study.made()
    study.dvc("exp", "run", "-S", "config.yaml:law.resamples=120")
    # the choice comes out the same, so the comparison behind it need not run
    ran = {job for job, moment in study.made().items() if moment != before.get(job)}
    assert ran == {
        "fit_law law",
        "choose_teacher law",
        "write_headline .",
        "write_report report",
    }
    assert study.planned() == set()
    params = difference(study, "params")
    assert params["config.yaml"]["law.resamples"] == {"old": 100, "new": 120, "diff": 20}


def test_metrics_of_two_revisions_are_compared_by_name(study):
    path = study / RESULTS / "headline.json"
    numbers = json.loads(path.read_text())
    assert numbers["final"].keys() >= {"regret_nats", "test_loss_nats_per_token"}
    line = {"slope": 3.1, "slope_low": 2.2, "slope_high": 4.4}
    numbers["law"]["tokens-5k"] |= line
    path.write_text(json.dumps(numbers))
    study.dvc("commit", "--force", "study")
    study.commit("a fitted line")
    numbers["law"]["tokens-5k"] |= {"slope": 3.0}
    numbers["final"]["regret_nats"] += 0.25
    path.write_text(json.dumps(numbers))
    study.dvc("commit", "--force", "study")
    study.commit("another")
    changed = difference(study, "metrics", "HEAD~1", "HEAD")[f"{RESULTS}/headline.json"]
    assert changed["law.tokens-5k.slope"]["diff"] == pytest.approx(-0.1)
    assert changed["final.regret_nats"]["diff"] == pytest.approx(0.25)
    first = difference(study, "metrics", "HEAD~2", "HEAD~1")[f"{RESULTS}/headline.json"]
    assert {f"law.tokens-5k.{name}" for name in line} <= first.keys()


def test_plots_of_two_revisions_are_drawn(study):
    table = study / RESULTS / "law/runs.csv"
    table.write_text(table.read_text().replace("t6k", "t6x"))
    study.dvc("plots", "diff", "HEAD", "--out", "plots")
    page = (study / "plots/index.html").read_text()
    assert "val_loss_nats_per_token" in page
    assert "t6x" in page


def test_part_of_a_study_plans_nothing_and_names_the_missing_model(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone", pull=False)
    assert "small files" in clone.capgap("pull").stdout
    assert not (clone / RESULTS / "teachers/t6k/model/model.safetensors").exists()
    assert clone.planned() == set()
    result = clone.capgap("run")
    said = result.stdout + result.stderr
    assert "nothing to do" in said
    assert "recommended" in said
    assert "</html>" in (clone / RESULTS / "report/report.html").read_text()
    clone.configure(lambda data: data["evaluate"].update(sequence_length=16))
    assert clone.capgap("run", check=False).returncode
    model = f"{RESULTS}/teachers/t6k/model"
    log = (clone / f"logs/evaluate_teacher/{RESULTS}/teachers/t6k.log").read_text()
    assert f"{model}/model.safetensors is missing" in log
    assert f"dvc pull {model}" in log
    assert (clone / model / "manifest.json").exists()
    clone.dvc("pull", model)
    assert (clone / model / "model.safetensors").exists()
