"""`import capgap as cg`: what it loads, what it leaves alone, and that its results are the stages'."""

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_losses import OBJECTIVES, dense

import capgap as cg
from capgap.api.keyword_settings import takes_settings
from capgap.config import Distill
from capgap.law.law_record import LawRecord
from capgap.law.table.read_runs import read_table
from capgap.stages import fit as fit_stage

SOURCE = Path(cg.__file__).parent

IMPORT = """
import json, os, sys
before = dict(os.environ), list(sys.path), sys.getswitchinterval()
import capgap as cg
dir(cg)
heavy = {"torch", "transformers", "numpy", "pandas", "altair"} & set(sys.modules)
print(json.dumps([sorted(heavy), before == (dict(os.environ), list(sys.path), sys.getswitchinterval())]))
cg.fit_law, cg.recommend, cg.plot
print(json.dumps(["torch" in sys.modules, dict(os.environ) == before[0]]))
"""
USE = """
import json, os, signal, sys
import torch
import transformers
from transformers import modeling_utils
torch.set_num_threads(2)
torch.manual_seed(7)
def state():
    return [
        torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
        torch.backends.mkldnn.matmul.fp32_precision, torch.backends.mkldnn.enabled,
        torch.get_rng_state().tolist(), dict(os.environ), os.getcwd(), sys.path,
        transformers.logging.get_verbosity(), str(signal.getsignal(signal.SIGTERM)),
        modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"].__module__,
        transformers.utils.logging.is_progress_bar_enabled(),
    ]
before = state()
import capgap as cg
settings = {"sequence_length": 16, "calibration_sequences": 4}
init = cg.prune("teacher", "tokens", out="init", sparsity=0.5, **settings)
student = cg.distill(init, "teacher", "tokens", out="student", tokens=256, sequence_length=16,
                     batch_tokens=64, validation_tokens=256)
cg.evaluate(student, "tokens", sequence_length=16)
cg.load(student)
x = torch.zeros(2, 3, 4)
cg.distillation_loss(x, x, torch.zeros(2, 3, dtype=torch.long))
assert before == state(), [(a, b) for a, b in zip(before, state()) if a != b]
"""


def fresh(code, folder):
    """What a process of its own prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_loads_nothing_heavy_and_changes_nothing(tmp_path):
    lines = fresh(IMPORT, tmp_path).splitlines()
    assert [json.loads(line) for line in lines] == [[[], True], [False, True]]


def test_using_it_leaves_the_process_as_it_was(models, tmp_path):
    fresh(USE, tmp_path)
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_every_name_has_a_type_and_a_docstring():
    stub = ast.parse((SOURCE / "__init__.pyi").read_text())
    typed = {
        alias.asname
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == set(cg.__all__) - {"__version__"}
    assert (SOURCE / "py.typed").is_file()
    for name in typed:
        assert inspect.getdoc(getattr(cg, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cg.nothing  # noqa: B018


def test_settings_are_keyword_parameters_with_their_descriptions():
    @takes_settings(Distill, "objective")
    def function(first, **settings):
        """Do it."""

    parameters = inspect.signature(function).parameters
    assert next(iter(parameters)) == "first"
    assert "objective" not in parameters
    assert parameters["temperature"].default == 1.0
    assert parameters["temperature"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "temperature: temperature of both distributions" in function.__doc__
    assert "clip_norm" in inspect.signature(cg.distill).parameters


@pytest.fixture
def models(tiny_model, tokenizer_file, token_streams, tmp_path, monkeypatch):
    """A teacher and token streams, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    tiny_model(1, hidden=36).save_pretrained(tmp_path / "teacher")
    tokenizer_file(tmp_path / "teacher")
    token_streams(tokens=3000)


def test_results_are_those_of_the_command_line(models, tmp_path):
    options = {"calibration_sequences": 4, "sequence_length": 16}
    training = {"sequence_length": 16, "batch_tokens": 64, "validation_tokens": 256}
    scores = cg.score("teacher", "tokens", out="scores", **options)
    assert scores.importance.groups.shape == (2, 3)
    init = cg.prune("teacher", out="init", params="2k", importance=scores)
    student = cg.distill(init, "teacher", "tokens", out="student", tokens=512, seed=3, **training)
    found = cg.evaluate(student, "tokens", sequence_length=16)

    def capgap(*arguments):
        command = [sys.executable, "-m", "capgap.cli", *arguments]
        subprocess.run(command, check=True, env=os.environ, capture_output=True)

    def flags(settings):
        return [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]

    capgap("score", "--model=teacher", "--tokens=tokens", "--out=c-scores", *flags(options))
    capgap("prune", "teacher", "--params=2k", "--importance=c-scores", "--out=c-init")
    capgap(
        *("distill", "--init=c-init", "--teacher=teacher", "--token-streams=tokens"),
        *("--tokens=512", "--seed=3", "--out=c-student", *flags(training)),
    )
    for mine, theirs in (("scores", "c-scores"), ("init", "c-init"), ("student", "c-student")):
        names = [p.relative_to(mine) for p in sorted(Path(mine).rglob("*")) if p.is_file()]
        for name in names:
            assert (Path(mine) / name).read_bytes() == (Path(theirs) / name).read_bytes(), name
    assert student.curve["val_loss_nats_per_token"].iloc[-1] == pytest.approx(
        student.record.last_val_loss_nats_per_token, rel=1e-6
    )
    assert found.lineage.teacher == "teacher"
    assert init.params_non_embedding == found.lineage.params.non_embedding


def test_cached_targets_stand_for_the_teacher(models):
    targets = cg.cache_teacher(
        "teacher", "tokens", out="targets", kind="top_k", entries=8, unique_tokens=512,
        sequence_length=16,
    )  # fmt: skip
    assert targets.record.tokens == 512
    student = cg.distill(
        "teacher", None, "tokens", out="student", tokens=256, targets=targets,
        sequence_length=16, batch_tokens=64, validation_tokens=256,
    )  # fmt: skip
    assert student.record.lineage.teacher == "teacher"


def test_documents_in_memory_are_packed(models):
    documents = [" ".join(f"w{1 + (i + j) % 63}" for j in range(40)) for i in range(40)]
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_file("teacher/tokenizer.json")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save("teacher/tokenizer.json")
    Path("teacher/tokenizer_config.json").write_text('{"eos_token": "w0"}')
    packed = cg.pack(documents, "teacher", out="packed")
    assert sum(packed.record.documents.values()) == 40
    assert sum(packed.record.tokens.values()) == 40 * 41  # and an end each
    assert not list(Path().glob("corpus*"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cg.prune("teacher", "tokens", out="x"), "exactly one of params, total_params"),
        (lambda: cg.load("nothing"), "nothing: no such folder"),
        (
            lambda: cg.load(torch.nn.Linear(1, 1)),
            "a model is a folder or an id of the hub, got a Linear",
        ),
        (lambda: cg.distill("teacher", None, "tokens", out="x", tokens="9q"), "tokens: a count is"),
        (
            lambda: cg.distill("teacher", None, "tokens", out="x", tokens=0.5),
            "tokens: a whole number",
        ),
        (
            lambda: cg.distill("teacher", None, "tokens", out="x", tokens=99, temprature=2),
            "temprature: unknown key .did you mean 'temperature'",
        ),
        (
            lambda: cg.evaluate("teacher", []),
            "a text is files, token streams, or a list of documents",
        ),
    ],
)
def test_bad_input_is_one_clear_message_and_leaves_nothing(models, call, message):
    with pytest.raises(cg.CapgapError, match=message):
        call()
    assert not Path("x").exists()


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
@pytest.mark.parametrize("form", ["logits", "hidden", "mixed"])
def test_distillation_loss_is_the_dense_formula_in_both_forms(objective, beta, form):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 11)
    hidden = torch.randn(2, 3, 5, 8, requires_grad=True)
    told_head, told_hidden = torch.randn(11, 6), torch.randn(2, 3, 5, 6)
    labels = torch.randint(0, 11, (2, 3, 5))
    labels[0, :2, 1:4] = 99
    teacher = (told_hidden, told_head) if form == "hidden" else (told_hidden @ told_head.T, None)
    student = (head(hidden), None) if form == "logits" else (hidden, head)
    loss, parts = cg.distillation_loss(
        student[0],
        teacher[0],
        labels,
        student_head=student[1],
        teacher_head=teacher[1],
        objective=objective,
        beta=beta,
        teacher_weight=0.3,
        temperature=1.5,
        ignore_index=99,
        chunk_tokens=4,
        return_parts=True,
    )
    loss.backward()
    got = hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()
    hidden.grad = head.weight.grad = head.bias.grad = None
    marked = labels.where(labels != 99, -100).flatten()
    logits = head(hidden).flatten(0, -2)
    whole = dense(
        logits,
        torch.eye(11),
        marked,
        told_hidden.flatten(0, -2) @ told_head.T,
        objective,
        beta,
        0.3,
        1.5,
    )
    whole = whole / (marked != -100).sum()
    whole.backward()
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(0.7 * parts.data_ce + 0.3 * parts.teacher_term, loss.detach())
    for mine, theirs in zip(got, (hidden.grad, head.weight.grad, head.bias.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_distillation_loss_sums_and_means_and_counts_no_ignored_token():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 7), torch.randn(6, 7)
    labels = torch.tensor([1, 2, -100, 3, 4, -100])
    mean, total = (
        cg.distillation_loss(student, teacher, labels, reduction=how) for how in ("mean", "sum")
    )
    torch.testing.assert_close(4 * mean, total)
    nothing = cg.distillation_loss(student, teacher, torch.full((6,), -100))
    assert nothing.item() == 0.0
    with torch.autocast("cpu", torch.bfloat16):
        inside = cg.distillation_loss(student, teacher, labels)
    assert torch.equal(inside, mean)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": torch.zeros(2, 4)}, "has 5 logits and the teacher 4"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels 3; all need the same leading shape"),
        ({"labels": torch.full((2,), 5)}, "labels go from 5 to 5, but there are 5 logits"),
        ({"student_head": torch.zeros(5, 3)}, "student_head is 5 x 3, but student has 5 channels"),
        ({"objective": "kl"}, "objective: input should be 'soft_ce'"),
        ({"beta": 0.5}, "beta belongs to the objective jensen_shannon"),
        ({"reduction": "none"}, "reduction is 'none'; it is mean or sum"),
        (
            {"teacher": torch.zeros(2, 5, dtype=torch.long)},
            "teacher must be a floating-point tensor",
        ),
    ],
)
def test_distillation_loss_names_what_does_not_fit(changes, message):
    given = {
        "student": torch.zeros(2, 5),
        "teacher": torch.zeros(2, 5),
        "labels": torch.tensor([0, 1]),
    }
    with pytest.raises(cg.CapgapError, match=message):
        cg.distillation_loss(**(given | changes))


@pytest.fixture(scope="module")
def runs():
    """Runs whose best teacher is 3 times the student."""
    noise = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "student": size,
                "teacher": round(ratio * size),
                "tokens": 20 * size,
                "seed": seed,
                "loss": 3 + 0.03 * np.log(ratio / 3) ** 2 + noise.normal(0, 0.003),
            }
            for size in (20_000_000, 40_000_000, 80_000_000)
            for ratio in (1.25, 2.0, 3.0, 4.5, 7.0)
            for seed in range(2)
        ]
    )


@pytest.fixture(scope="module")
def law(runs):
    return cg.fit_law(runs)


def test_a_frame_gives_the_law_of_its_file_and_recovers_the_truth(runs, law, runs_table, tmp_path):
    read = read_table(runs_table(runs))
    pd.testing.assert_frame_equal(law.runs, read.runs)
    assert law.record == fit_stage.fit(read, fit_stage.Law())
    assert law.optima["ratio"].to_list() == pytest.approx([3.0] * 3, rel=0.1)
    assert law.verdict in str(law)
    assert law.statement.startswith("T* ~ S^1.0")
    law.save(tmp_path / "law.json")
    assert LawRecord.read(tmp_path / "law.json") == law.record


def test_values_of_a_frame_are_read_exactly(law):
    frame = pd.DataFrame(
        {
            "student": ["60k", "60k"],
            "teacher": ["none", "1.2M"],
            "student_params_non_embedding": [60_000.0, 60_000.0],  # as pandas has ints beside NaN
            "teacher_params_non_embedding": [np.nan, 1_200_000.0],
            "tokens": pd.array([2_000_000, 2_000_000], dtype="Int64"),
            "loss": [np.float32(3.1), 0.1 + 0.2],
            "note": [None, pd.NA],
        },
        index=[7, 7],
    )
    table = read_table(frame)
    assert table.runs["val_loss_nats_per_token"].tolist() == [0.1 + 0.2, float(np.float32(3.1))]
    assert table.runs["student_params_non_embedding"].tolist() == [60_000, 60_000]
    assert table.ignored == ["note"]


def test_a_recommendation_and_its_table(law):
    advice = cg.recommend(law, "60M", teachers=["100M", "180M", "400M"])
    assert advice.teacher == "180M"
    assert advice.ranked["teacher"].iloc[0] == "180M"
    assert advice.ranked["predicted_regret"].iloc[0] == 0
    assert "For a student of 60M at 1.6B tokens: 180M." in str(advice)
    far = cg.recommend(law, "5B", teachers=["10B", "20B"])
    assert far.teacher is None
    assert "beyond the runs" in far.reason


def test_figures_of_the_report(law, tmp_path):
    for figure in ("law", "curves", "ratios", "pareto", "regret", "headline"):
        assert cg.plot(law, figure).to_dict()["config"]["font"].startswith("Liberation Sans")
    cg.plot(law).save(tmp_path / "law.svg")
    assert "<svg" in (tmp_path / "law.svg").read_text()
    with pytest.raises(cg.CapgapError, match="nothing to show in 'controls'"):
        cg.plot(law, "controls")
    with pytest.raises(cg.CapgapError, match="figure is 'pie'"):
        cg.plot(law, "pie")
    with pytest.raises(cg.CapgapError, match="can be drawn, got 3"):
        cg.plot(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs.iloc[:0], "has no rows"),
        (lambda runs: runs.drop(columns="tokens"), "no column 'tokens'"),
        (lambda runs: runs.assign(loss=runs.loss.where(runs.index != 5)), "line 7: loss is empty"),
        (lambda runs: [1, 2], "runs is a DataFrame or the path of a CSV file, got list"),
    ],
)
def test_a_frame_that_is_no_table_of_runs_is_refused(runs, change, message):
    with pytest.raises(cg.CapgapError, match=message):
        cg.fit_law(change(runs))
