"""Given students run beside pruned ones; a change of one reruns what it touches and no more."""

import csv
import json

from repository import RESULTS

TEACHERS = ("t6k", "t16k")
GIVEN = {"source": "pretrain", "layers": 2, "hidden": 12, "heads": 2, "intermediate": 20}
SIZE, OTHER = "2.652k", "4.092k"  # of the two given students, which pruned ones have, too
FINAL = {"compare_final final", "write_metrics .", "write_report report"}


def runs(student, inits):
    """Jobs of the runs of one student from both teachers."""
    return {
        f"{rule} students/{student}/{init.format(teacher)}/from-{teacher}/tokens-5k/seed-0"
        for init in inits
        for teacher in TEACHERS
        for rule in ("distill_student", "evaluate_student")
    }


def jobs_of(planned):
    """Jobs without those of the law and what follows."""
    return {job for job in planned if " law" not in job} - FINAL


def test_given_students_run_like_the_others(study):
    def give(settings):
        settings["students"] = {"mine": dict(GIVEN)}
        settings["grid"].update(inits=["pruned", "given"], students=[])

    def train_longer(settings):
        settings["students"]["mine"]["tokens"] = "25k"

    def one_more(settings):
        settings["students"]["other"] = GIVEN | {"intermediate": 40}

    study.configure(give)
    study.capgap("run", "--cores", "2")
    law = json.loads((study / RESULTS / "law/law.json").read_text())
    assert [law["init"], *(other["init"] for other in law["other_inits"])] == ["pruned", "given"]
    with (study / RESULTS / "law/runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["student"], row["init"], row["arm"]) for row in rows} == {
        *((SIZE, f"pruned-{name}", "main") for name in TEACHERS),
        (SIZE, "given-mine", "given"),
    }
    assert study.planned() == set()

    study.configure(train_longer)
    assert jobs_of(study.planned()) == runs(SIZE, ["given-mine"]) | {
        "pretrain_teacher teachers/mine",
        f"given_student inits/{SIZE}/given-mine",
        "sample_final final",  # as long as the choice may change
    }
    study.configure(one_more)
    assert runs(OTHER, ["given-other", "pruned-{}"]) <= jobs_of(study.planned())
