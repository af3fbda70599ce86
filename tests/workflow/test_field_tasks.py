"""Tasks of lm-evaluation-harness in a study: what runs, and where the results show."""

import importlib.util
import json

import pytest
import yaml
from repository import RESULTS

THERE = importlib.util.find_spec("lm_eval") is not None
TEACHERS = ("t6k", "t16k")


@pytest.fixture
def asked(study):
    """A finished study that now asks for a task of its own, on its corpus."""
    folder = study / "tasks"
    folder.mkdir()
    lines = sorted((study / "corpus").iterdir())[0].read_text().split("\n")
    texts = [" ".join(line.split()[:20]) for line in lines if line.strip()][:6]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    task = {
        "task": "corpus_text",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "tasks/corpus.jsonl"}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(task))
    harness = {
        "tasks": {"corpus_text": 0},
        "task_folder": "tasks",
        "run_task_code": True,
        "batch_size": 2,
    }
    study.configure(lambda data: data.update(harness=harness))
    return study


JOBS = {f"harness_teacher teachers/{name}" for name in TEACHERS} | {"harness_final final"}


def test_tasks_add_their_jobs_and_the_report_and_nothing_else(asked):
    assert asked.planned() == JOBS | {"write_report report"}
    asked.configure(lambda data: data["harness"].update(teachers=["t6k"], final=False))
    assert asked.planned() == {"harness_teacher teachers/t6k", "write_report report"}


def test_students_of_the_grid_are_measured_if_the_law_asks(asked):
    def ask(settings):
        settings["law"] = {"metric": ["loss", "corpus_text"]}
        settings["harness"]["teachers"] = ["t6k"]

    asked.configure(ask)
    students = {
        f"harness_student students/3k/pruned-{name}/from-{name}/tokens-5k/seed-0"
        for name in TEACHERS
    }
    planned = asked.planned()
    assert {job for job in planned if job.startswith("harness")} == students | {
        "harness_teacher teachers/t6k",
        "harness_final final",
    }
    assert "collect_runs law" in planned
    assert not {job for job in planned if job.startswith(("distill", "evaluate", "pretrain"))}


@pytest.mark.skipif(THERE, reason="lm-eval is installed")
def test_without_lm_eval_nothing_starts(asked):
    before = asked.made()
    result = asked.capgap("run", check=False)
    assert result.returncode
    assert "harness: lm-evaluation-harness is not installed; run make lm-eval" in (
        result.stdout + result.stderr
    )
    assert asked.made() == before


@pytest.mark.skipif(not THERE, reason="lm-eval is not installed: make lm-eval")
def test_results_of_tasks_reach_the_report_and_the_model_card(asked):
    asked.capgap("run", "--cores", "2")
    final = json.loads((asked / RESULTS / "final/harness.json").read_text())
    teacher = json.loads((asked / RESULTS / "teachers/t16k/harness.json").read_text())
    assert (final["lineage"]["kind"], teacher["lineage"]["name"]) == ("student", "t16k")
    bits = [f"{record['scores'][0]['value']:.4f}" for record in (final, teacher)]
    assert bits[0] != bits[1]
    page = (asked / RESULTS / "report/report.html").read_text()
    assert all(f'<td class="number">{value}</td>' in page for value in bits)
    asked.capgap("export", "--out", "out", "--data-licence", "CC0-1.0")
    card = (asked / "out/README.md").read_text()
    assert "| task | metric | this model | t6k | t16k |" in card
    assert f"| corpus_text | bits_per_byte ↓ | {bits[0]} | " in card
    assert asked.planned() == set()
    text = (asked / "tasks/corpus.jsonl").read_text()
    (asked / "tasks/corpus.jsonl").write_text(text.replace("law", "gap"))
    assert asked.planned() >= JOBS
