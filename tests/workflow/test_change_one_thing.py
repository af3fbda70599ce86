"""Exactly the affected jobs run again, in a pulled clone with arbitrary file times.

The expected sets are written out. While the law's choice is not up to date, Snakemake cannot know the final runs (4k), so a plan does
not hold them; `test_loss_edit_runs_distillation_and_what_follows` runs and sees them as well.
"""

import ast
import csv
import os
import re
import shutil

import pytest
from repository import RESULTS, edit_distillation_loss, scramble_times


@pytest.fixture(scope="module")
def pulled(finished, tmp_path_factory):
    """A colleague's clone in which nothing has run, its file times scrambled. Not to be changed."""
    clone = finished.clone(tmp_path_factory.mktemp("colleague") / "elsewhere/clone")
    scramble_times(clone, 0)
    return clone


@pytest.fixture
def study(pulled, tmp_path):
    """A copy of the clone to work in."""
    return pulled.copy(tmp_path / "study")


RUN = "students/3k/pruned-{0}/from-{0}/tokens-5k/seed-{1}"
REPORT = {"write_report report"}  # shows the settings, so any change of them
FINAL = {"compare_final final", "sample_final final", "write_metrics .", *REPORT}
CHOICE = {"choose_teacher law", *FINAL}
LAW = {"fit_law law", *CHOICE}
TABLE = {"collect_runs law", *LAW}


def teacher_jobs(name):
    return {f"{rule} teachers/{name}" for rule in ("pretrain_teacher", "evaluate_teacher")} | {
        f"score_importance teachers/{name}",
        f"prune_student inits/3k/pruned-{name}",
        *run_jobs(name, 0),
    }


def run_jobs(teacher, seed):
    run = RUN.format(teacher, seed)
    return {f"distill_student {run}", f"evaluate_student {run}"}


def size_of_one_teacher(study):
    study["teachers"]["t16k"]["intermediate"] = 88


def one_more_teacher(study):
    study["teachers"]["t9k"] = {
        "source": "pretrain", "layers": 2, "hidden": 24, "heads": 4, "intermediate": 32
    }  # fmt: skip


def one_more_student(study):
    study["grid"]["students"].append("5k")


def one_more_seed(study):
    study["grid"]["seeds"].append(1)


def evaluation_settings(study):
    study["evaluate"]["sequence_length"] = 16


def distillation_settings(study):
    study["distill"]["temperature"] = 2.0


def one_shape_for_all(study):
    study["prune"]["one_shape"] = True


def budget_by_ratio(study):
    study["grid"].update(tokens=[], tokens_per_param=[2, 1.6])  # 6k and 4.8k tokens


def teachers_by_ratio(study):
    study["grid"]["teacher_ratio"] = [1, 4]  # t6k alone, which is twice the student


def ladder_of_one_budget(study):
    study["grid"]["tokens"] = ["5k", "6k"]
    study["grid"]["teachers"] = {"3k": {"5k": ["t6k", "t16k"], "6k": ["t16k"]}}


def controls_at_one_init(study):
    study["grid"].update(arms=["no_teacher"], arm_inits=["t16k"])


def training_in_proportion_to_the_teacher(study):
    del study["pretrain"]["tokens"]
    study["pretrain"]["tokens_per_param"] = 2
    study["teachers"]["t6k"]["tokens"] = "20k"  # as before


def one_more_replica(study):
    study["grid"]["replicas"].append(9)


def final_at_a_size_of_the_grid(study):
    study["final"]["student"] = "3k"


def no_final(study):
    del study["final"]


def refitted_starts(study):
    study["prune"]["refit"] = "least_squares"


def sampling_settings(study):
    study["sample"] = {"temperature": 0.0}


def law_settings(study):
    study["law"]["tie_nats"] = 0.01


def final_tokens(study):
    study["final"]["tokens"] = "9k"


def final_size_and_tokens_swapped(study):
    study["final"].update(student="8k", tokens="4k")


STUDENT_5K = {
    f"{rule} {path.replace('3k', '5k')}"
    for name in ("t6k", "t16k")
    for rule, path in [
        ("prune_student", f"inits/3k/pruned-{name}"),
        ("distill_student", RUN.format(name, 0)),
        ("evaluate_student", RUN.format(name, 0)),
    ]
}


def runs_at(tokens, *teachers):
    return {
        job.replace("5k", tokens)
        for name in teachers or ("t6k", "t16k")
        for job in run_jobs(name, 0)
    }


WITHOUT_TEACHER = {job.replace("from-t16k", "from-none") for job in run_jobs("t16k", 0)}
PRUNED = {f"prune_student inits/3k/pruned-{name}" for name in ("t6k", "t16k")}
PRUNED_LIKE_T6K = {"prune_student inits/3k/pruned-t16k"}
MEASURED = {
    "evaluate_teacher teachers/t6k",
    "evaluate_teacher teachers/t16k",
    f"evaluate_student {RUN.format('t6k', 0)}",
    f"evaluate_student {RUN.format('t16k', 0)}",
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (size_of_one_teacher, teacher_jobs("t16k") | TABLE),
        (one_more_teacher, teacher_jobs("t9k") | TABLE),
        (one_more_student, STUDENT_5K | TABLE),
        (one_more_seed, run_jobs("t6k", 1) | run_jobs("t16k", 1) | TABLE),
        (evaluation_settings, MEASURED | TABLE),
        (distillation_settings, run_jobs("t6k", 0) | run_jobs("t16k", 0) | TABLE),
        (one_shape_for_all, PRUNED_LIKE_T6K | run_jobs("t16k", 0) | TABLE),
        (budget_by_ratio, runs_at("6k") | runs_at("4.8k") | TABLE),
        (teachers_by_ratio, TABLE),
        (ladder_of_one_budget, runs_at("6k", "t16k") | TABLE),
        (controls_at_one_init, WITHOUT_TEACHER | TABLE),
        (training_in_proportion_to_the_teacher, teacher_jobs("t16k") | TABLE),
        (final_at_a_size_of_the_grid, CHOICE),
        (no_final, {"write_metrics .", *REPORT}),
        (refitted_starts, PRUNED | run_jobs("t6k", 0) | run_jobs("t16k", 0) | TABLE),
        (law_settings, LAW),
        (sampling_settings, {"sample_final final", *REPORT}),
        (final_tokens, CHOICE),
        (final_size_and_tokens_swapped, CHOICE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_changed_setting_plans_exactly_what_it_affects(study, change, expected):
    study.configure(change)
    assert study.planned() == expected


def test_a_larger_budget_goes_on_from_the_trunk_and_reruns_nothing(study):
    def several_budgets(settings):
        settings["distill"].update(schedule="wsd", warmup_tokens="1k")
        settings["grid"]["tokens"] = ["3k", "5k"]

    def one_more(settings):
        settings["grid"]["tokens"].append("9k")

    def jobs(*budgets):
        return {
            job.replace("5k", tokens)
            for tokens in budgets
            for name in ("t6k", "t16k")
            for job in run_jobs(name, 0)
        }

    study.configure(several_budgets)
    assert study.planned() == jobs("3k", "5k") | TABLE
    study.capgap("run", "--cores", "2", "law")
    study.configure(one_more)
    assert study.planned() == jobs("9k") | TABLE
    before = study.made()
    study.capgap("run", "--cores", "2", "law")
    ran = {job for job, moment in study.made().items() if moment != before.get(job)}
    assert ran == jobs("9k") | {"collect_runs law", "fit_law law"}
    run = RUN.format("t6k", 0).replace("5k", "9k")
    log = (study / f"logs/distill_student/{RESULTS}/{run}.log").read_text()
    assert "resumed after step 15/35" in log  # 5k tokens are 19 steps, of which 4 fall


def test_replicas_draw_teachers_inits_and_order_anew_and_one_more_reruns_none(study):
    def replicated(settings):
        del settings["final"]
        settings["grid"].update(seeds=None, replicas=[4])

    def jobs(number):
        return {
            " ".join((rule, f"replica-{number}/{path.replace('seed-0', f'seed-{number}')}"))
            for name in ("t6k", "t16k")
            for rule, path in map(str.split, teacher_jobs(name))
        }

    ends = {"collect_runs law", "fit_law law", "write_metrics .", *REPORT}
    study.configure(replicated)
    assert study.planned() == jobs(4) | ends
    study.capgap("run", "--cores", "2")
    assert study.planned() == set()
    row, _ = csv.DictReader((study / RESULTS / "law/runs.csv").open())
    assert (row["teacher_seed"], row["init_seed"], row["seed"]) == ("4", "4", "4")
    report = (study / RESULTS / "report/report.html").read_text()
    assert "This report has no final student" in report
    study.capgap("save")
    study.configure(one_more_replica)
    assert study.planned() == jobs(9) | ends
    before = study.made()
    study.capgap("run", "--cores", "2")
    assert {j for j, moment in study.made().items() if moment != before.get(j)} == jobs(9) | ends
    rows = csv.DictReader((study / RESULTS / "law/runs.csv").open())
    losses = {(r["teacher"], r["teacher_seed"]): r["teacher_val_loss_nats_per_token"] for r in rows}
    assert len(set(losses.values())) == len(losses) == 4


def test_a_final_student_of_a_size_in_the_grid_goes_on_from_its_trunk(study):
    def longer(settings):
        settings["distill"].update(schedule="wsd", warmup_tokens="1k")
        settings["final"].update(student="3k", tokens="9k")

    study.configure(longer)
    study.capgap("run", "--cores", "2")
    assert study.planned() == set()
    run = RUN.format("t6k", 0).replace("5k", "9k")
    log = (study / f"logs/distill_student/{RESULTS}/{run}.log").read_text()
    assert "resumed after step 15/35" in log


def test_comments_docstrings_and_formatting_plan_nothing(study):
    for path in sorted((study / "src/capgap").rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        lines = text.splitlines()
        documented = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node)
        ]
        for node in documented:
            first = node.body[0]
            indent = " " * first.col_offset
            lines[first.lineno - 1] = f'{indent}"""Other words.'
            for number in range(first.lineno, first.end_lineno):
                lines[number] = ""
            lines[first.end_lineno - 1] += '"""'
        path.write_text("\n".join(lines) + "\n\n\n# a comment\n")
        ast.parse(path.read_text())
    rules = sorted((study / "rules").glob("*.smk"))
    for path in rules:
        text = re.sub(r'^    """(?=\w)', '    """Other words: ', path.read_text(), flags=re.M)
        path.write_text(
            text.replace(" --spec {params.spec:q} ", " \\\n   --spec {params.spec:q}  ")
        )
    assert sum(path.read_text().count("Other words") for path in rules) > 20
    for path in [study / "config.yaml", study / "Snakefile", study / "dvc.yaml", *rules]:
        path.write_text(path.read_text() + "\n\n# a comment\n")
    assert study.planned() == set()


def test_loss_edit_runs_distillation_and_what_follows(study):
    edit_distillation_loss(study)
    assert study.planned() == run_jobs("t6k", 0) | run_jobs("t16k", 0) | TABLE
    before = study.made()
    study.capgap("run", "--cores", "2")
    after = study.made()
    final = {
        job.replace("3k", "4k").replace("5k", "8k")
        for name in ("t6k", "t16k")
        for job in run_jobs(name, 0)
    }
    ran = {job for job, moment in after.items() if moment != before.get(job)}
    assert ran == run_jobs("t6k", 0) | run_jobs("t16k", 0) | final | TABLE
    assert study.planned() == set()


def edit_table(study):
    """What `main` of a stage calls to write its result."""
    before = 'writer = csv.DictWriter(text, columns, lineterminator="\\n", extrasaction="ignore")'
    study.replace("src/capgap/stages/collect.py", before, before.replace("\\n", "\\r\\n"))


def edit_command(study):
    before = "--runs {input:q} --spec {params.spec:q} --out {output:q} >{log:q} 2>&1"
    study.replace("rules/law.smk", before, "--tie-nats 0.004 " + before)


@pytest.mark.parametrize(("edit", "expected"), [(edit_table, TABLE), (edit_command, LAW)])
def test_edit_of_what_writes_and_of_a_command_plans_what_follows(study, edit, expected):
    edit(study)
    assert study.planned() == expected


def test_other_contents_under_an_old_time_are_seen(study):
    """A result that was made again and then got the time of an older file."""
    metrics = f"{RESULTS}/{RUN.format('t6k', 0)}/metrics.json"
    study.configure(evaluation_settings)
    study.capgap("run", "--cores", "1", metrics)
    os.utime(study / metrics, (1e9, 1e9))
    assert study.planned() == (MEASURED | TABLE) - {f"evaluate_student {RUN.format('t6k', 0)}"}


def test_results_without_records_are_refused(study):
    shutil.rmtree(study / ".snakemake/metadata")
    result = study.capgap("run", "-n", check=False)
    assert result.returncode
    assert "have no record of how they were made" in result.stdout + result.stderr
    assert "capgap pull" in result.stdout + result.stderr
    study.capgap("pull")
    assert study.planned() == set()
