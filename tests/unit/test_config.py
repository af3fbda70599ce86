"""Settings: everything wrong is reported at once, by key, with a hint; names are lossless."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from capgap.config.counts import format_count, parse_count
from capgap.config.study_file import load_study
from capgap.errors import CapgapError

ROOT = Path(__file__).parents[2]
STUDIES = [
    ROOT / "config.yaml",
    ROOT / "tests/tiny/config.yaml",
    *sorted(ROOT.glob("configs/*.yaml")),
]


@pytest.fixture
def tiny():
    return yaml.safe_load((ROOT / "tests/tiny/config.yaml").read_text())


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_every_shipped_study_loads(path):
    load_study(path)


def test_importing_settings_imports_no_torch():
    code = "import sys, capgap.config, capgap.config.run_grid, capgap.records.run_records; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def message(data):
    with pytest.raises(CapgapError) as error:
        load_study(data)
    return str(error.value)


def test_all_problems_at_once_with_key_value_and_hint(tiny):
    tiny["distill"]["learning_rte"] = 0.1
    tiny["pretrain"]["batch_tokens"] = -4
    tiny["teachers"]["t9k"]["heads"] = "three"
    del tiny["final"]["tokens"]
    text = message(tiny)
    assert "distill.learning_rte: unknown key (did you mean 'learning_rate'?)" in text
    assert "pretrain.batch_tokens: input should be greater than 0, got -4" in text
    assert "teachers.t9k.heads: a whole number is wanted, got 'three' (query heads" in text
    assert "final.tokens: missing (distillation tokens)" in text
    assert "4 problems" in text


def test_a_study_file_nested_too_deeply_is_one_message(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text("study: " + "[" * 3000 + "]" * 3000)
    with pytest.raises(CapgapError, match=r"deep\.yaml: sections are nested too deeply"):
        load_study(path)


def test_a_long_value_is_not_printed_whole(tiny):
    tiny["study"] = "a" * 300
    text = message(tiny)
    assert "study: string should have at most 64 characters, got 'aaa" in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d["teachers"]["t9k"].update(layers=True), "t9k: layers is not a yes-or-no"),
        (lambda d: d["grid"].update(seeds=[0, False]), "grid: seeds is not a yes-or-no question"),
        (lambda d: d["grid"].update(students=["2M"]), "grid.students: 2M is not smaller than any"),
        (lambda d: d["grid"].pop("tokens"), "grid: no budget is given; set tokens or tokens_per"),
        (lambda d: d["grid"].pop("seeds"), "grid: no draw is given; set seeds (of the data order)"),
        (lambda d: d["grid"].update(replicas=[1]), "grid: seeds and replicas are both given"),
        (lambda d: d["final"].update(replicas=[1]), "final: seeds and replicas are both given"),
        (
            lambda d: d["final"].update(seeds=None, replicas=[1]),
            "final.replicas: 1 is not in grid.replicas",
        ),
        (
            lambda d: d["grid"].update(tokens_per_param=[1.6666]),
            "grid.tokens_per_param: 1.66667 gives student 3k 5k tokens, which are in grid.tokens too",
        ),
        (
            lambda d: d["grid"].update(tokens=[], tokens_per_param=[0.05]),
            "grid.tokens_per_param: 150 is less than one step, distill.batch_tokens is 256",
        ),
        (lambda d: d["grid"].update(teacher_ratio=[3, 2]), "grid: teacher_ratio is the smallest"),
        (lambda d: d["grid"].update(teacher_ratio=[2]), "grid: teacher_ratio is the smallest"),
        (
            lambda d: d["grid"].update(teacher_ratio=[20, 30]),
            "grid.teacher_ratio: student 3k has no teacher between 20 and 30 times its size; there "
            "are 1.99, 3.11, 8.16; widen it or add a teacher",
        ),
        (
            lambda d: d["grid"].update(teacher_ratio=[2, 3], teachers={"3k": ["t6k"]}),
            "grid: teachers and teacher_ratio both choose the teachers",
        ),
        (
            lambda d: d["grid"].update(teachers={"4k": ["t6k"]}),
            "grid.teachers: student 3k is missing; list its teachers",
        ),
        (
            lambda d: d["grid"].update(teachers={"4k": ["t6k"]}),
            "grid.teachers.4k: no student of this size is in grid.students",
        ),
        (
            lambda d: d["grid"].update(teachers={"3k": ["t6k", "t6k", "t5"]}),
            "grid.teachers.3k: the same teacher occurs twice",
        ),
        (
            lambda d: d["grid"].update(teachers={"3k": ["t5"]}),
            "grid.teachers.3k: no teacher is called t5; there are t6k, t9k, t16k",
        ),
        (lambda d: d["grid"].update(teachers={"3k": []}), "grid.teachers.3k: no teacher is named"),
        (
            lambda d: d["grid"].update(students=["8k"], teachers={"8k": ["t6k"]}),
            "grid.teachers.8k: t6k has 5,968 parameters without embeddings, which is not more than",
        ),
        (
            lambda d: d["grid"].update(teachers={"3k": {"6k": ["t6k"]}}),
            "grid.teachers.3k.6k: no budget of this student; it has 5k",
        ),
        (
            lambda d: d["grid"].update(teachers={"3k": {"6k": ["t6k"]}}),
            "grid.teachers.3k: the budget of 5k tokens is missing; list its teachers",
        ),
        (lambda d: d["grid"].update(arm_inits=["t5"]), "grid.arm_inits: no teacher is called t5"),
        (
            lambda d: d["grid"].update(arm_inits=["t16k"], teachers={"3k": ["t6k", "t9k"]}),
            "grid.arm_inits: student 3k is distilled from t6k, t9k, none of which is named",
        ),
        (
            lambda d: d["pretrain"].update(tokens_per_param=3),
            "pretrain: tokens is 20000 and tokens",
        ),
        (lambda d: d["pretrain"].pop("tokens"), "pretrain: no budget is given; set tokens or"),
        (
            lambda d: (
                d["grid"].update(seeds=None, replicas=[1, 2], arm_seeds=None),
                d["teachers"].update(twin=d["teachers"]["t6k"] | {"seed": 1}),
            ),
            "teachers.twin: the same model as teachers.t6k (in replicas 2 and 1)",
        ),
        (lambda d: d["grid"].update(seeds=[1, 1]), "grid.seeds: the same value occurs twice"),
        (lambda d: d["grid"].update(arm_seeds=[7]), "grid.arm_seeds: 7 is not in grid.seeds"),
        (lambda d: d.pop("pretrain"), "the section 'pretrain' is needed"),
        (lambda d: d["teachers"]["t6k"].update(hidden=18), "hidden must be a multiple of heads"),
        (lambda d: d["distill"].update(batch_tokens=33), "must be a multiple of sequence_length"),
        (lambda d: d["grid"].update(tokens=["ten"]), "grid.tokens.0: a count is an integer"),
        (
            lambda d: d["corpus"].update(source="web"),
            "corpus.source: must be one of package, files",
        ),
        (lambda d: d["corpus"].pop("source"), "corpus.source: must be one of package, files"),
        (lambda d: d.update(corpus="a.txt"), "corpus: a section with keys is wanted, got 'a.txt'"),
        (lambda d: d.update(teachers={}), "teachers: at least one is needed"),
        (lambda d: d["grid"].update(students=[]), "grid.students: at least one is needed"),
        (lambda d: d["grid"].update(tokens="5k"), "grid.tokens: a list is wanted"),
        (lambda d: d.update(law=None), "law: a section with keys is wanted, got nothing"),
        (lambda d: d.update(law={"tokens": 5}), "law.tokens: unknown key (it belongs into the"),
        (lambda d: d["corpus"].update(packag="x"), "corpus.packag: unknown key"),
        (lambda d: d["distill"].update(learning_rate=float("inf")), "should be a finite number"),
        (lambda d: d["grid"].update(seeds=[2**31]), "grid.seeds.0: input should be less than"),
        (lambda d: d["final"].update(seeds=[1, 1]), "final.seeds: the same value occurs twice"),
        (lambda d: d["grid"].update(arms=["no_teacher"] * 2), "grid.arms: the same value"),
        (
            lambda d: d["teachers"].update(twin=d["teachers"]["t6k"]),
            "teachers.twin: the same model",
        ),
        (
            lambda d: d.update(tokenizer={"source": "teacher", "teacher": "t6k"}),
            "tokenizer.teacher",
        ),
        (lambda d: d["distill"].update(schedule="wsd"), "warmup_tokens is needed by schedule wsd"),
        (
            lambda d: d["distill"].update(schedule="wsd", warmup_tokens="4.5k"),
            "distill.warmup_tokens: 4500 is more than grid.tokens of 5000 has before",
        ),
        (lambda d: d["distill"].update(decay_share=1.0), "distill.decay_share"),
        (lambda d: d["teachers"].update(none=d["teachers"]["t6k"]), "teachers.none"),
        (
            lambda d: d.update(plan={"processes": 3}),
            "plan.processes: the 8 sequences of distill.batch_tokens cannot be shared equally among 3",
        ),
        (
            lambda d: d.update(plan={"processes": 4, "nodes": 3}),
            "plan: processes: 4 cannot be shared equally among 3 nodes",
        ),
        (
            lambda d: d.update(plan={"processes": 4, "nodes": 2, "container": "capgap.sif"}),
            "plan: nodes: 2 nodes are joined by srun, which an image (plan.container) does not have",
        ),
    ],
)
def test_each_mistake_is_named(tiny, change, expected):
    change(tiny)
    assert expected in message(tiny)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(CapgapError, match="no such file"):
        load_study(tmp_path / "no.yaml")
    path = tmp_path / "bad.yaml"
    path.write_bytes("study: é".encode("latin-1"))
    with pytest.raises(CapgapError, match="not UTF-8"):
        load_study(path)
    path.write_text("a: [1")
    with pytest.raises(CapgapError, match=r"bad\.yaml, line 1, column 6: not valid YAML"):
        load_study(path)
    path.write_text("teachers:\n  a: 1\n  b: 2\n  a: 3\n")
    with pytest.raises(CapgapError, match="line 4, column 3: .*'a' occurs twice"):
        load_study(path)
    path.write_text("- a")
    with pytest.raises(CapgapError, match="mapping"):
        load_study(path)


@pytest.mark.parametrize("count", [1, 999, 1000, 61437, 60000, 2_500_000, 3 * 10**9, 123_456_789])
def test_names_of_counts_are_lossless(count):
    assert parse_count(format_count(count)) == count


def test_counts_as_people_write_them():
    assert parse_count("60k") == 60_000
    assert parse_count("2.5M") == 2_500_000
    assert format_count(60_000) == "60k"
    assert format_count(128_116_700) == "128.1167M"
    for text in ("7B", "7b", "7,000,000,000", "7e9", "7_000_000_000", "7 000 000 000", "7000M"):
        assert parse_count(text) == 7 * 10**9
    assert parse_count("128116.7k") == 128_116_700
    with pytest.raises(ValueError, match="whole number"):
        parse_count("1.2345k")
    for text in ("7,00", "7G", "k", "", "-7k", "1e999999999"):
        with pytest.raises(ValueError, match="a count is an integer"):
            parse_count(text)
