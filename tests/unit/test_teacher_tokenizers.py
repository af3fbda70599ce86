"""Settings of teachers with another tokenizer: what they give and what does not fit together."""

from pathlib import Path

import pytest
import yaml
from report_records import make_runs, make_teachers

from capgap.commands.plan import make_plan, short
from capgap.config import run_grid
from capgap.config.study_file import load_study
from capgap.cost.job_costs import StudyCost
from capgap.cost.requests import Requests
from capgap.errors import CapgapError
from capgap.stages.report import in_students_tokens

ROOT = Path(__file__).parents[2]
OWN = {"b320": {"source": "train", "vocab_size": 320, "teachers": ["t16k"]}}


def study(change=lambda data: None):
    """The tiny study with random students and a teacher with a tokenizer of its own, changed."""
    data = yaml.safe_load((ROOT / "tests/tiny/config.yaml").read_text())
    data["teacher_tokenizers"] = {name: dict(own) for name, own in OWN.items()}
    data["grid"].update(inits=["random"])
    data["sample"] = {"teacher": False}
    change(data)
    return load_study(data)


def jobs(made, rule):
    return [job for job in StudyCost(made).jobs if job.rule == rule]


def test_a_study_names_the_tokenizer_of_each_teacher():
    made = study()
    assert [made.teacher_tokenizer(name) for name in made.teachers] == ["", "", "b320"]
    assert (
        made.pretrain_stage("t16k").model_dump().keys()
        == made.pretrain_stage("t6k").model_dump().keys()
    )
    assert load_study(made.model_dump(exclude_none=True)) == made


def test_shapes_are_lent_by_teachers_with_the_students_tokenizer_if_there_are():
    assert run_grid.shape_teachers(study())["3k"] == "t6k"

    def first_too(data):
        data["teacher_tokenizers"]["b320"]["teachers"] = ["t6k", "t16k"]

    assert run_grid.shape_teachers(study(first_too))["3k"] == "t9k"

    def every(data):
        data["teacher_tokenizers"]["b320"]["teachers"] = list(data["teachers"])

    lent = study(every)
    assert run_grid.shape_teachers(lent)["3k"] == "t6k"
    assert StudyCost(lent).student("3k", "random").vocab == 300


def test_the_plan_has_their_jobs_and_says_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("some text " * 1000)
    made = study()
    root = "results/tiny/tokenizers/b320"
    [made_tokenizer], [packed] = jobs(made, "make_own_tokenizer"), jobs(made, "pack_own_tokens")
    assert made_tokenizer.output == f"{root}/tokenizer/manifest.json"
    assert packed.output == f"{root}/tokens/manifest.json"
    assert packed.needs[1] == made_tokenizer.output
    for rule in ("pretrain_teacher", "evaluate_teacher"):
        needs = {job.output.split("/")[3]: job.needs for job in jobs(made, rule)}
        assert packed.output in needs["t16k"]
        assert packed.output not in needs["t9k"]
    taught = [job for job in jobs(made, "distill_student") if packed.output in job.needs]
    assert taught
    assert all("/from-t16k/" in job.output for job in taught)
    requests = Requests(made)
    assert requests.cost.job("pack_own_tokens", tokenizer="b320") == packed
    assert "t16k: tokenizer b320 of 320 entries" in short(make_plan(made))


def test_its_memory_and_work_count_the_teachers_own_entries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("some text " * 1000)

    def large(data):
        data["teacher_tokenizers"]["b320"]["vocab_size"] = 40_000

    def same(data):
        del data["teacher_tokenizers"]

    own, plain = StudyCost(study(large)), StudyCost(study(same))
    assert own.architecture("t16k").whole().vocab == 40_000
    assert own.student("3k", "random").vocab == 300
    ours, theirs = (
        cost.distill_memory(cost.student("3k", "random"), "t16k") for cost in (own, plain)
    )
    assert ours.loss > theirs.loss + 4 * 128 * 40_000
    assert own.teacher_tokens("t16k") == pytest.approx(0.538, abs=0.01)  # log 300 / log 40,000
    assert own.teacher_tokens("t9k") == 1


def pruned(data):
    data["grid"].update(inits=["pruned", "random"])


def kept(data):
    data["distill"].update(teacher_targets="top_k", unique_tokens="5k")


def talk(data):
    data["corpus"]["messages_column"] = "messages"


def sampled(data):
    del data["sample"]


def own(**changes):
    return lambda data: data["teacher_tokenizers"]["b320"].update(changes)


def twice(data):
    data["teacher_tokenizers"]["b330"] = {**OWN["b320"], "vocab_size": 330}


def brought(data):
    data["teacher_tokenizers"]["b320"] = {"source": "teacher", "teacher": "t9k"}


def fetched(data):
    data["teachers"]["big"] = {"source": "path", "path": "big", "params_non_embedding": "20k"}
    data["teacher_tokenizers"]["b320"]["teachers"] = ["big"]


def given(data):
    data["grid"].update(inits=["given"], given=["t16k"], students=[], arms=[])
    del data["final"], data["grid"]["arm_seeds"]


def named(data):
    data["teacher_tokenizers"]["B 320"] = data["teacher_tokenizers"].pop("b320")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pruned, "grid.inits: pruned students .* t16k have another .*; set it to random or given"),
        (kept, "distill.teacher_targets: top_k keeps .*t16k .*; set it to online"),
        (talk, "corpus.messages_column: each tokenizer .*t16k .*; take text"),
        (sampled, "sample.teacher: true .* t16k .*; set it to false"),
        (own(teachers=["t17k"]), "b320: no teacher is called t17k; there are t6k, t9k, t16k"),
        (own(vocab_size=300), "b320.vocab_size: 300 is that of the study's tokenizer"),
        (own(teachers=[]), "teacher_tokenizers.b320.teachers: at least one is needed"),
        (twice, "teacher t16k is in 2 of them; leave it in one"),
        (brought, "b320: teacher t9k is trained here, so its tokenizer needs source: train"),
        (brought, "b320.teacher: 't9k' is not a teacher that brings a tokenizer"),
        (
            fetched,
            "b320: teacher big comes with a tokenizer, so its tokenizer needs source: teacher",
        ),
        (given, "grid.given: t16k has another tokenizer than the students"),
        (named, "teacher_tokenizers.B 320: a name has lower-case letters"),
    ],
)
def test_what_does_not_fit_is_said_with_key_value_and_fix(change, message):
    with pytest.raises(CapgapError, match=message):
        study(change)


def test_the_report_has_losses_of_teachers_per_token_of_the_students():
    runs, teachers = make_runs(), make_teachers()
    largest = max(teachers, key=lambda m: m.lineage.params.non_embedding).lineage.name
    changed = [
        row.model_copy(update={"teacher_val_loss_nats_per_token": 1.25})
        if row.teacher == largest
        else row
        for row in runs
    ]
    found = {m.lineage.name: m.validation for m in in_students_tokens(teachers, changed)}
    assert found.pop(largest).loss_nats_per_token == 1.25
    own = {m.lineage.name: m.validation for m in teachers}
    assert all(split == own[name] for name, split in found.items())
