"""DVC's own commands on a study: repro, experiments, differences, and pulling a part."""

import json
import sys

import pytest
from repository import RESULTS


def law_settings(study):
    study["law"]["tie_nats"] = 0.01


def difference(study, what, *words):
    return json.loads(study.dvc(what, "diff", "--json", *words).stdout)


def test_repro_of_a_finished_study_runs_nothing(study):
    assert "Stage 'study' didn't change, skipping" in study.dvc("repro").stdout


def test_experiment_with_a_changed_setting_runs_what_it_affects(study):
    before = study.made()
    study.dvc("exp", "run", "-S", "config.yaml:law.tie_nats=0.01")
    # the choice records which teachers are as good as the best, so the comparison runs as well
    ran = {job for job, moment in study.made().items() if moment != before.get(job)}
    assert ran == {
        "fit_law law",
        "choose_teacher law",
        "compare_final final",
        "write_metrics .",
        "write_report report",
    }
    assert study.planned() == set()
    params = difference(study, "params")
    assert params["config.yaml"]["law.tie_nats"] == {"old": 0.005, "new": 0.01, "diff": 0.005}


def test_metrics_of_two_revisions_are_compared_by_name(study):
    path = study / RESULTS / "metrics.json"
    numbers = json.loads(path.read_text())
    assert numbers["final"].keys() >= {"regret_nats", "test_loss_nats_per_token"}
    line = {"slope": 3.1, "slope_low": 2.2, "slope_high": 4.4}
    numbers["lines"]["tokens-5k"] = line
    path.write_text(json.dumps(numbers))
    study.dvc("commit", "--force", "study")
    study.commit("a fitted line")
    numbers["lines"]["tokens-5k"] = {"slope": 3.0, "slope_low": 2.0, "slope_high": 4.1}
    numbers["final"]["regret_nats"] += 0.25
    numbers["final"]["test_loss_nats_per_token"] -= 0.5
    path.write_text(json.dumps(numbers))
    study.dvc("commit", "--force", "study")
    study.commit("another")
    changed = difference(study, "metrics", "HEAD~1", "HEAD")[f"{RESULTS}/metrics.json"]
    differences = {name: entry["diff"] for name, entry in changed.items()}
    assert differences == pytest.approx(
        {
            "lines.tokens-5k.slope": -0.1,
            "lines.tokens-5k.slope_low": -0.2,
            "lines.tokens-5k.slope_high": -0.3,
            "final.regret_nats": 0.25,
            "final.test_loss_nats_per_token": -0.5,
        }
    )
    first = difference(study, "metrics", "HEAD~2", "HEAD~1")[f"{RESULTS}/metrics.json"]
    assert {f"lines.tokens-5k.{name}" for name in line} <= first.keys()


def test_plots_of_two_revisions_show_each_students_curve(study):
    """One curve a student and budget, of runs with their own teacher; the law as a picture."""
    table = study / RESULTS / "law/runs.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text(
        "\n".join([head, *rows, *[row.replace("3k,", "5k,", 1) for row in rows]]) + "\n"
    )
    study.dvc("plots", "diff", "HEAD", "--out", "plots")
    page = (study / "plots/index.html").read_text()
    spec = json.JSONDecoder().raw_decode(page, page.index("{", page.index("var spec = ")))[0]
    curves = [(row["rev"], row["student"]) for row in spec["data"]["values"]]
    assert curves.count(("workspace", "3k")) == curves.count(("HEAD", "3k")) == len(rows)
    assert curves.count(("workspace", "5k")) == len(rows)
    assert ("HEAD", "5k") not in curves
    assert spec["transform"][0] == {"filter": "datum.arm === 'main'"}
    assert "datum.student" in spec["transform"][1]["calculate"]
    assert spec["facet"]["field"] == spec["transform"][1]["as"]
    encoding, (mean, runs) = spec["spec"]["encoding"], spec["spec"]["layer"]
    assert encoding["x"]["field"] == "teacher_params_non_embedding"
    assert encoding["color"]["field"] == "rev"
    assert mean["encoding"]["y"]["aggregate"] == "mean"
    assert {e["encoding"]["y"]["field"] for e in (mean, runs)} == {"val_loss_nats_per_token"}
    assert "<DVC_METRIC" not in json.dumps(spec)
    pictures = sorted(path.name for path in (study / "plots/static").iterdir())
    assert [name.split("_")[0] for name in pictures] == ["HEAD", "workspace"]


@pytest.mark.slow
def test_part_of_a_study_plans_nothing_and_names_the_missing_model(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone", pull=False)
    assert "models stay where they are" in clone.capgap("pull").stdout
    assert not (clone / RESULTS / "teachers/t6k/model/model.safetensors").exists()
    assert clone.planned() == set()
    result = clone.capgap("run")
    said = result.stdout + result.stderr
    assert "nothing to do" in said
    assert "answer" in said
    assert "</html>" in (clone / RESULTS / "report/report.html").read_text()
    law = f"{RESULTS}/law"
    words = ["--law", f"{law}/law.json", "--runs", f"{law}/runs.csv", "--student", "4k"]
    answer = json.loads(clone.capgap("recommend", *words, "--json").stdout)
    assert {row["teacher"] for row in answer["ranked"]} == {"t6k", "t16k"}
    lock = (clone / "dvc.lock").read_text()
    result = clone.dvc("repro", check=False)  # DVC would take the models out of dvc.lock
    assert result.returncode
    assert "capgap pull --models" in result.stdout + result.stderr
    assert (clone / "dvc.lock").read_text() == lock
    before = clone.contents()
    clone.configure(lambda data: data["evaluate"].update(sequence_length=16))
    result = clone.capgap("run", check=False)
    assert result.returncode
    model = f"{RESULTS}/teachers/t6k/model"
    said = result.stdout + result.stderr
    assert "nothing was started" in said
    assert f"\n  {model}\n" in said
    assert "capgap pull --models" in said
    assert "capgap pull FOLDER" in said
    assert clone.contents() == before  # Snakemake deletes what it starts to make
    clone.configure(lambda data: data["evaluate"].update(sequence_length=32))
    assert clone.planned() == set()
    clone.capgap("pull", model)
    assert (clone / model / "model.safetensors").exists()


def test_final_student_is_a_model_for_dvc(finished, tmp_path):
    """`dvc get` takes it from the repository, without a clone."""
    names = (
        "from dvc.repo import Repo\nfor a in Repo().artifacts.read()['dvc.yaml'].items(): print(*a)"
    )
    listed = finished.command(sys.executable, "-c", names).stdout
    assert "final-student" in listed
    assert "type='model'" in listed
    path = f"{RESULTS}/final/model"
    assert path in listed
    finished.dvc("get", finished.path, path, "-o", tmp_path / "model")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (finished / path / name).read_bytes()
