"""A further text and a further weight of the teacher: what each adds to a finished study, and no more."""

import csv
import json

from repository import RESULTS

TEACHERS = ("t6k", "t16k")
RUNS = [f"students/3k/pruned-{name}/from-{name}/{{}}tokens-5k/seed-0" for name in TEACHERS]
TABLE = {
    "collect_runs law",
    "fit_law law",
    "choose_teacher law",
    "write_metrics .",
    "write_report report",
}
TABLE |= {"compare_final final", "sample_final final"}  # fmt: skip


def test_a_text_reruns_its_own_evaluation_and_a_weight_its_own_runs(study):
    (study / "other").mkdir()
    for name in "ab":
        (study / f"other/{name}.txt").write_text("a larger stone in the sun " * 60)
    before = study.made()

    def add_text(settings):
        texts = {"other": {"source": "files", "pattern": "other/*.txt"}}
        settings["evaluate"]["texts"] = texts

    study.configure(add_text)
    assert study.planned() - TABLE == {
        "prepare_text texts/other/corpus",
        "pack_text texts/other/tokens",
        *(f"evaluate_teacher_text teachers/{name}/texts" for name in TEACHERS),
        *(f"evaluate_student_text {run.format('')}/texts" for run in RUNS),
    }

    def add_weight(settings):
        usual = settings["distill"].get("teacher_weight", 0.5)
        settings["grid"]["teacher_weights"] = [usual, 0.9]

    study.configure(add_weight)
    more = {
        f"{rule} {run.format('weight-0.9/')}{folder}"
        for run in RUNS
        for rule, folder in (
            ("distill_student", ""),
            ("evaluate_student", ""),
            ("evaluate_student_text", "/texts"),
        )
    }
    assert more <= study.planned()
    study.capgap("run", "--cores", "2")
    assert study.planned() == set()
    after = study.made()
    same = [job for job in before if job.startswith(("distill", "pretrain", "evaluate", "prune"))]
    assert same
    assert all(after[job] == before[job] for job in same)
    with (study / RESULTS / "law/runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["teacher_weight"] for row in rows) == ["0.5", "0.5", "0.9", "0.9"]
    for row in rows:
        weight = "" if row["teacher_weight"] == "0.5" else "weight-0.9/"
        run = RUNS[TEACHERS.index(row["teacher"])].format(weight)
        measured = json.loads((study / RESULTS / run / "texts/other.json").read_text())["measured"]
        assert float(row["bits_per_byte:other"]) == measured["bits_per_byte"]
        own = RESULTS + f"/teachers/{row['teacher']}/texts/other.json"
        teacher = json.loads((study / own).read_text())["measured"]
        assert float(row["teacher_bits_per_byte:other"]) == teacher["bits_per_byte"]
    assert len({row["val_loss_nats_per_token"] for row in rows}) == 4
    law = json.loads((study / RESULTS / "law/law.json").read_text())
    assert [other["name"] for other in law["metric_laws"]] == ["test", "other"]
    assert (law["teacher_weight"], law["other_weights"][0]["teacher_weight"]) == (0.5, 0.9)
    page = (study / RESULTS / "report/report.html").read_text()
    assert "Does the best teacher depend on what is measured?" in page
    assert "Does the best teacher depend on the weight of its term?" in page
