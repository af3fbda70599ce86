"""A teacher's targets are kept once for all its students, by a job like any other."""

import json

import pytest
from repository import RESULTS, edit_distillation_loss

BYTES = 96  # a token, as the settings promise for both kinds
TOKENS = 8000  # 250 sequences; the longest budget
TEACHERS = ("t6k", "t16k")
TARGET_KINDS = {f"cache_teacher teachers/{name}" for name in TEACHERS}
FINAL = {"compare_final final", "sample_final final", "write_metrics .", "write_report report"}


def runs(student, tokens, seeds, *, random=False):
    """Jobs of the runs of one student from both teachers, and from a random init and no teacher."""
    pairs = [(f"pruned-{name}", name) for name in TEACHERS]
    if random:
        pairs += [("random", name) for name in (*TEACHERS, "none")]
    return {
        f"{rule} students/{student}/{init}/from-{teacher}/tokens-{tokens}/seed-{seed}"
        for init, teacher in pairs
        for seed in seeds
        for rule in ("distill_student", "evaluate_student")
    }


@pytest.mark.parametrize(("kind", "seeds"), [("top_k", [0, 1]), ("sampled", [0])])
def test_one_targets_of_a_teacher_serves_all_its_students(study, kind, seeds):
    def keep(settings):
        settings["distill"].update(teacher_targets=kind, unique_tokens=TOKENS)
        settings["grid"].update(seeds=seeds, arms=["random_init"])

    def one_more(settings):
        settings["grid"]["students"].append("5k")

    study.configure(keep)
    (row,) = [
        line.split()
        for line in study.capgap("plan", COLUMNS="200").stdout.splitlines()
        if line.startswith("cache_teacher")
    ]
    disk = len(TEACHERS) * TOKENS * BYTES
    assert f"{disk / 1e6:.1f} MB" in " ".join(row)  # known before anything runs
    before = study.made()
    study.capgap("run", "--cores", "2")
    ran = {job for job, moment in study.made().items() if moment != before.get(job)}
    students = runs("3k", "5k", seeds, random=True) | runs("4k", "8k", [0])  # the final ones too
    assert {job for job in ran if " law" not in job} - FINAL == TARGET_KINDS | students | {
        "random_init_student inits/3k/random"
    }
    for job in TARGET_KINDS:
        folder = study / RESULTS / job.split()[1] / "targets"
        shards = sum(path.stat().st_size for path in folder.glob("shard-*"))
        assert shards == pytest.approx(disk / len(TEACHERS), rel=0.01)
        assert json.loads((folder / "targets.json").read_text())["tokens"] == TOKENS
    assert study.planned() == set()

    study.configure(one_more)
    starts = {f"prune_student inits/5k/pruned-{name}" for name in TEACHERS}
    planned = {job for job in study.planned() if " law" not in job} - FINAL
    assert planned == starts | {"random_init_student inits/5k/random"} | runs(
        "5k", "5k", seeds, random=True
    )


def test_what_is_kept_does_not_depend_on_the_loss(study):
    def keep(settings):
        settings["distill"].update(teacher_targets="sampled", unique_tokens=TOKENS)

    study.configure(keep)
    study.capgap(
        "run", "--cores", "2", *(f"{RESULTS}/teachers/{t}/targets/manifest.json" for t in TEACHERS)
    )
    edit_distillation_loss(study)
    planned = study.planned()
    assert runs("3k", "5k", [0]) <= planned
    assert not planned & TARGET_KINDS
