"""Settings of kinds of init: which runs they give, and what does not fit together."""

import json
from pathlib import Path

import pytest
import yaml

from capgap.commands import export
from capgap.config import run_grid
from capgap.config.shapes import LlamaShape
from capgap.config.study_file import load_study
from capgap.cost.job_costs import StudyCost
from capgap.cost.teacher_configs import complete
from capgap.engine.models import llama_config
from capgap.errors import CapgapError

ROOT = Path(__file__).parents[2]
GIVEN = {"source": "pretrain", "layers": 2, "hidden": 12, "heads": 2, "intermediate": 20}
SIZE = "2.652k"  # of GIVEN


def study(change=lambda data: None):
    """The tiny study with a given student, changed."""
    data = yaml.safe_load((ROOT / "tests/tiny/config.yaml").read_text())
    data["students"] = {"mine": dict(GIVEN)}
    data["grid"].update(inits=["pruned", "given", "random"], students=[])
    change(data)
    return load_study(data)


def arms(runs):
    return {(run.student, run.init, run.teacher, run.seed) for run in runs}


def test_every_kind_has_every_teacher_and_seed():
    found = arms(run_grid.runs_of(study()))
    expected = {
        (SIZE, init or f"pruned-{teacher}", teacher, seed)
        for init in ("given-mine", "random", "")
        for teacher in ("t6k", "t9k", "t16k")
        for seed in (0, 1)
    }
    alone = {(SIZE, init, "none", 0) for init in ("given-mine", "random")}
    alone |= {(SIZE, f"pruned-{teacher}", "none", 0) for teacher in ("t6k", "t9k", "t16k")}
    assert found == expected | alone


def test_a_given_student_keeps_its_size_beside_others():
    found = run_grid.runs_of(study(lambda d: d["grid"].update(students=["3k"])))
    sizes = {(run_grid.init_kind(run.init), run.student) for run in found}
    assert sizes == {("pruned", "3k"), ("random", "3k"), ("given", SIZE)}


def test_a_teacher_can_be_a_given_student_of_larger_ones():
    def small_teacher(data):
        data["grid"].update(given=["t6k"], inits=["given"], arms=[])
        del data["students"], data["final"], data["grid"]["arm_seeds"]

    made = study(small_teacher)
    found = arms(run_grid.runs_of(made))
    assert {(init, teacher) for _, init, teacher, _ in found} == {
        ("given-t6k", "t9k"),
        ("given-t6k", "t16k"),
    }
    assert run_grid.student_draws(made) == []  # it is trained once, as a teacher
    assert run_grid.scored_teachers(run_grid.runs_of(made)) == []


def test_random_inits_of_the_axis_are_those_of_the_control():
    def with_arms(names):
        return lambda d: (d["grid"].update(arms=names, inits=["given", "random"]), d.pop("final"))

    without, both = (run_grid.runs_of(study(with_arms(names))) for names in ([], ["random_init"]))
    assert arms(both) - arms(without) == {(SIZE, "random", "none", 0)}


def test_a_replica_draws_a_given_student_anew():
    def replicas(data):
        data["grid"].update(replicas=[1, 2], arms=[])
        del data["grid"]["seeds"], data["grid"]["arm_seeds"]
        data["final"].pop("seeds")

    made = study(replicas)
    assert run_grid.student_draws(made) == [("mine", "replica-1/"), ("mine", "replica-2/")]
    assert [made.pretrain_stage("mine", n).seed for n in (1, 2)] == [1, 2]


def test_the_plan_counts_every_job():
    jobs = StudyCost(study()).jobs
    rules = [job.rule for job in jobs]
    assert rules.count("pretrain_teacher") == 4
    assert rules.count("evaluate_teacher") == 3
    assert rules.count("given_student") == 1
    made = {job.output: job for job in jobs}
    [init] = [job for job in jobs if job.rule == "given_student"]
    assert all(need in made for need in init.needs)
    [run] = [
        job for job in jobs if "given-mine/from-t6k" in job.output and "seed-0/model" in job.output
    ]
    assert init.output in run.needs
    pruned = made[run.output.replace("given-mine", "pruned-t6k")]
    assert run.flops == pruned.flops  # a student of the same shape


def test_the_final_student_can_be_given():
    def give(data):
        data["final"].update(init="given", student=SIZE)

    made = study(give)
    assert {run.init for run in run_grid.final_runs(made, ["t6k", "t9k"])} == {"given-mine"}
    assert run_grid.final_kind(study()) == "pruned"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.pop("students"), "grid.inits: given is asked for, but no student is given"),
        (lambda d: d["grid"].update(inits=["pruned"], students=["3k"]), "students: not used"),
        (lambda d: d["grid"].update(inits=["pruned"]), "grid.students: at least one is needed"),
        (
            lambda d: d["grid"].update(given=["yours"]),
            "grid.given: no student or teacher is called yours; there are mine, t6k, t9k, t16k",
        ),
        (lambda d: d["grid"].update(given=["t6k"]), "students.mine: not in grid.given"),
        (lambda d: d["students"].update(t6k=dict(GIVEN)), "students.t6k: a teacher has this name"),
        (
            lambda d: d["students"].update(large=GIVEN | {"hidden": 96, "heads": 8}),
            "grid.given: large: .* is not smaller than any teacher",
        ),
        (
            lambda d: d["students"].update(same=d["teachers"]["t6k"]),
            "teachers.t6k: the same model as students.same|students.same: the same model",
        ),
        (
            lambda d: d["grid"].update(inits=["given"], arms=["cross_teacher"]),
            "grid.arms: cross_teacher",
        ),
        (
            lambda d: d["final"].update(init="given"),
            "final.student: 4,000 must be the size of exactly one given",
        ),
        (
            lambda d: (d["grid"].update(inits=["given"]), d["final"].update(init="random")),
            "final.init: random is not in grid.inits",
        ),
        (
            lambda d: d["grid"].update(inits=["given", "given"]),
            "grid.inits: the same value occurs twice",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(change, problem):
    with pytest.raises(CapgapError, match=problem):
        study(change)


def test_all_problems_are_named_at_once():
    def wrong(data):
        data["grid"].update(given=["yours"], inits=["given"], arms=["cross_teacher"])
        data["students"]["Mine!"] = dict(GIVEN)

    with pytest.raises(CapgapError) as error:
        study(wrong)
    for part in (
        "grid.given: no student",
        "students.Mine!: a name",
        "students.mine: not in",
        "grid.arms",
    ):
        assert part in str(error.value)


def test_the_model_card_names_what_the_student_was_made_from():
    made = study()
    assert export._start(made, "pruned-t6k", None)[0].startswith("pruned from its\nteacher")
    assert "random weights" in export._start(made, "random", None)[0]
    text, licence = export._start(made, "given-mine", None)
    assert text.startswith("which is\nmine (trained from random weights on the same data)")
    assert licence == "Licence of mine: that of the data. "

    def folder(data):
        data["students"]["mine"] = {"source": "path", "path": "x", "params_non_embedding": 2652}

    with pytest.raises(CapgapError, match="give --student-licence"):
        export._start(study(folder), "given-mine", None)
    assert export._start(study(folder), "given-mine", "MIT")[1] == "Licence of mine: MIT. "


def test_sizes_of_fetched_students_are_read_and_their_problems_named(tmp_path):
    def folder(path):
        return lambda data: data["students"].update(mine={"source": "path", "path": str(path)})

    shape = LlamaShape(2, 12, 2, 2, 6, 20, vocab=300, tied=True)
    llama_config(shape, max_positions=64, bos_id=None, eos_id=None).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"architectures": ["LlamaForCausalLM"]})
    )
    made = complete(study(folder(tmp_path)))
    assert run_grid.given_sizes(made) == {"mine": 2652}
    assert {run.student for run in run_grid.runs_of(made)} == {SIZE}
    [init] = [job for job in StudyCost(made).jobs if job.rule == "given_student"]
    assert init.output.endswith(f"inits/{SIZE}/given-mine/model/manifest.json")
    with pytest.raises(CapgapError, match="students.mine: .*no such file"):
        complete(study(folder(tmp_path / "absent")))
