"""`capgap init`: the ladder it proposes, what it writes, and what it refuses."""

import itertools
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from outputs import said
from transformers import LlamaConfig

from capgap.commands import init, plan
from capgap.commands.new_folder import DVC_FILES
from capgap.cost.proposal import LEAST_STUDENT, RATIO, Wish, propose
from capgap.cost.teacher_configs import open_study
from capgap.errors import CapgapError

REPOSITORY = Path(__file__).parents[2]
CAPGAP = [sys.executable, "-m", "capgap.cli"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a text of 400 kB in 20 files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for n in range(20):
        (tmp_path / f"texts/{n}.txt").write_text(f"text number {n} says something else. " * 540)
    return tmp_path


def wish(**given):
    corpus = {"source": "files", "pattern": "texts"}
    return Wish(**{"name": "mine", "corpus": corpus, "corpus_bytes": 12_000_000} | given)


def proposed(price=init.price, **given):
    return propose(wish(**given), price)


def ladders(study):
    """Sizes of the teachers of every student, in sizes of it."""
    sizes = {name: study.teacher_size(name) for name in study.teachers}
    budget = study.grid.tokens[0]
    return {
        student: [sizes[name] / student for name in study.grid.ladder(student, budget, sizes)]
        for student in study.grid.students
    }


@pytest.mark.parametrize("seconds", [600, 1200, 7200])
def test_a_study_takes_the_time_that_was_asked_for(folder, seconds):
    proposal = proposed(seconds=seconds)
    assert 0.7 * seconds < init.price(proposal.study) <= seconds
    assert 35 <= proposal.study["final"]["tokens"] / proposal.study["final"]["student"] <= 50
    assert proposal.study["grid"]["replicas"] == [1, 2]
    assert not proposal.notes


def test_twenty_minutes_give_the_design_of_the_default_study(folder):
    default = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    study = proposed(seconds=1200).study
    default, study = (open_study(data).model_dump() for data in (default, study))
    for section in study.keys() - {"study", "corpus"}:
        assert study[section] == default[section], section


def test_students_lie_around_the_final_one_and_teachers_reach_from_just_above_it_to_far_beyond(
    folder,
):
    study = open_study(proposed(student=16_000).study)
    assert study.grid.tokens == [200_000, 400_000, 800_000]
    assert study.pretrain.tokens == study.final.tokens == study.grid.tokens[-1]
    ratios = sorted(study.teacher_size(name) / 16_000 for name in study.teachers)
    assert ratios == pytest.approx([1.45, 2.6, 4.0, 5.8, 9.0, 13.0], rel=0.02)
    small, middle, large = study.grid.students
    assert small < 16_000 < middle < large
    for ladder in ladders(study).values():
        assert len(ladder) >= 4
        assert min(ladder) < 2.5 < max(ladder)
        assert RATIO[0] <= min(ladder)
        assert max(ladder) <= RATIO[1]


def test_without_a_student_the_time_decides_how_large_it_is(folder):
    small, large = (proposed(seconds=s).study["final"]["student"] for s in (600, 3600))
    assert LEAST_STUDENT <= small < large


def test_a_small_text_limits_the_student_and_the_vocabulary(folder):
    little = proposed(seconds=36_000, corpus_bytes=400_000).study
    much = proposed(seconds=36_000).study
    assert little["final"]["student"] < much["final"]["student"] / 4
    assert 2.3 * little["final"]["tokens"] <= 4 * 400_000
    assert little["tokenizer"]["vocab_size"] == 512
    assert much["tokenizer"]["vocab_size"] == 1024


def test_less_time_leaves_out_what_the_law_misses_least_and_says_so(folder):
    """From the whole design: the middle budget, the control, two teachers, and last the replica."""
    whole = init.price(proposed(student=16_000, tokens=560_000).study)
    found = [proposed(student=16_000, seconds=share * whole) for share in (0.95, 0.9, 0.7, 0.6)]
    grids = [proposal.study["grid"] for proposal in found]
    assert [len(grid["tokens"]) for grid in grids] == [2, 2, 2, 2]
    assert ["arms" in grid for grid in grids] == [True, False, False, False]
    assert [len(proposal.study["teachers"]) for proposal in found] == [6, 6, 4, 6]
    assert [len(grid["replicas"]) for grid in grids] == [2, 2, 2, 1]
    for grid in grids:
        assert grid["tokens"][-1] == pytest.approx(4 * grid["tokens"][0], rel=0.05)
    assert min(map(len, ladders(open_study(found[2].study)).values())) == 3
    assert [proposal.notes[0].partition(" has ")[2].split(".")[0] for proposal in found] == [
        "no budget between the shortest and the longest",
        "two budgets and no control without a teacher",
        "two budgets, four teachers and no control without a teacher",
        "two budgets, no control without a teacher, and one replica",
    ]


def test_much_time_for_a_small_student_suggests_a_third_replica(folder):
    (note,) = proposed(student=10_000, seconds=3600).notes
    assert "grid.replicas: [1, 2, 3]" in note


def test_too_little_time_is_said_and_the_least_study_proposed(folder):
    proposal = proposed(student=50_000, seconds=30)
    assert any("takes longer than asked for" in note for note in proposal.notes)
    assert proposal.study["grid"]["replicas"] == [1]


@pytest.mark.parametrize(("tokens", "side"), [(100_000, "smaller"), (4_000_000, "larger")])
def test_tokens_that_may_move_the_best_teacher_off_the_ladder_are_noted(folder, tokens, side):
    (note,) = proposed(student=16_000, tokens=tokens).notes
    assert f"it may be {side}" in note


def test_models_that_exist_are_used_by_the_same_ratios(folder):
    sizes = {"a": 19, "b": 85, "c": 302, "d": 806, "e": 1200, "f": 2500}
    for name in sizes:
        (folder / name).mkdir()
    study = proposed(
        fetched={name: {"source": "path", "path": name} for name in sizes},
        fetched_sizes={name: size * 10**6 for name, size in sizes.items()},
        device="h100-80gb",
        price=lambda study: 0.0,
    ).study
    final = study["final"]["student"]
    assert 85e6 > final > 19e6
    assert study["grid"]["students"] == pytest.approx(
        [0.6 * final, 1.4 * final, 2.5 * final], rel=0.05
    )
    for student in study["grid"]["students"]:  # three or more are larger
        assert sum(size * 10**6 > 1.4 * student for size in sizes.values()) >= 3
    assert "teacher_ratio" not in study["grid"]  # it would leave too few of so sparse a family
    assert "widths" not in study["prune"]
    assert study["grid"]["replicas"] == [1, 2]


def test_a_device_brings_its_precision_and_its_plan(folder):
    study = proposed(device="a100-80gb", devices=4, tokens=50_000_000, student=2_000_000).study
    assert study["plan"] == {"device": "a100-80gb", "gpus": 4}
    assert study["distill"]["precision"] == "bfloat16"
    assert "precision" not in proposed(device="v100-32gb", student=2_000_000).study["distill"]


def test_sizes_of_teachers_are_met(folder):
    study = open_study(proposed(teacher_sizes=(23_000, 41_000, 126_000)).study)
    sizes = [study.teacher_size(name) for name in study.teachers]
    assert sizes == pytest.approx([23_000, 41_000, 126_000], rel=0.03)


def test_a_student_that_is_no_smaller_than_any_teacher_is_refused(folder):
    with pytest.raises(CapgapError, match="not smaller than the largest teacher, which has 41,000"):
        proposed(teacher_sizes=(23_000, 41_000), student=50_000)


def capgap_init(*words):
    return subprocess.run(
        [*CAPGAP, "init", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_the_folder_is_ready_and_the_study_is_planned_as_it_was_shown(folder):
    result = capgap_init("My Study", "--text", "texts", "--student", "8k", "--time", "10m")
    assert result.returncode == 0, result.stderr
    study_folder = folder / "My Study"
    files = {p.relative_to(study_folder) for p in study_folder.rglob("*") if p.is_file()}
    assert files == {Path("config.yaml"), Path("README.md"), Path(".gitignore"), *DVC_FILES}
    os.chdir(study_folder)
    study = open_study(Path("config.yaml"))
    assert study.study == "my-study"
    assert study.final.student == 8000
    assert plan.short(plan.make_plan(study)).splitlines()[0] in result.stdout
    text = Path("config.yaml").read_text()
    commented = [line for line in text.splitlines() if line.startswith("  ") and "#" in line]
    assert len(commented) > 20
    assert "k # of every teacher's training" in text
    assert f"{folder / 'texts'} lies outside of the study's folder" in result.stdout
    assert result.stdout.splitlines()[-3:] == ["  cd My Study", "  capgap plan", "  capgap run"]


def test_a_text_inside_the_folder_is_named_from_there(folder):
    assert capgap_init("--text", "texts", "--name", "inside").returncode == 0
    study = yaml.safe_load(Path("config.yaml").read_text())
    assert study["corpus"]["pattern"] == "texts"
    assert study["study"] == "inside"


def test_nothing_is_overwritten(folder):
    Path("README.md").write_text("mine")
    first = capgap_init("--text", "texts")
    assert "kept README.md, which existed" in first.stdout
    assert Path("README.md").read_text() == "mine"
    before = Path("config.yaml").read_bytes()
    again = capgap_init("--text", "texts", "--student", "9k")
    assert again.returncode == 1
    assert "config.yaml exists already and is not overwritten" in again.stderr
    assert Path("config.yaml").read_bytes() == before
    beside = capgap_init("--text", "texts", "--file", "configs/second.yaml")
    assert beside.returncode == 0, beside.stderr
    assert beside.stdout.splitlines()[-2] == "  capgap run --study configs/second.yaml"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--text is needed: a file, a folder, package:NAME/GLOB or hub:OWNER/NAME"),
        (["--text", "nowhere"], "--text nowhere: no text found there"),
        (["--text", "package:not_here"], "package not_here is not installed"),
        (["--text", "texts", "--student", "0.3"], "--teachers names none"),
        (
            ["--text", "texts", "--teachers", "a b"],
            "is neither a size (like 41k) nor an existing folder",
        ),
        (["--text", "texts", "--time", "soon"], "a time is a number with s, m, h or d"),
        (["--text", "hub:owner/name"], "its newest commit cannot be looked up"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(folder, words, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = capgap_init("new", *words)
    assert result.returncode
    lines = said(result.stderr)
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("new").exists()


def test_models_that_exist_give_the_ladder(folder):
    for name, hidden in (("small", 32), ("large", 64)):
        model = folder / "models" / name
        model.mkdir(parents=True)
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=300,
            architectures=["LlamaForCausalLM"],
        ).save_pretrained(model)
    result = capgap_init("--text", "texts", "--teachers", "models/small", "models/large")
    assert result.returncode == 0, result.stderr
    study = yaml.safe_load(Path("config.yaml").read_text())
    assert study["teachers"]["small"] == {"source": "path", "path": "models/small"}
    assert study["tokenizer"] == {"source": "teacher", "teacher": "small"}
    assert "pretrain" not in study
    assert "the law needs three teachers or more, here are 2" in result.stdout


def test_on_a_terminal_it_asks(folder):
    """Answers: a wrong text, the right one, then a size for the student and else the defaults."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*CAPGAP, "init", "asked"], stdin=child, stdout=child, stderr=child, close_fds=True
    )
    os.close(child)
    os.write(parent, b"nowhere\ntexts\n\n7k\n\n3m\ny\n")
    printed = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:
            break
        if not chunk:
            break
        printed += chunk
    assert process.wait() == 0, printed.decode()
    assert b"no text found there" in printed
    study = open_study(Path("asked/config.yaml"))
    assert study.final.student == 7000


def killed_writing(calls):
    """Write a study in a process that is killed at that call which changes the disk; its status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def dying(real):
        def call(*words, **options):
            nonlocal calls
            calls -= 1
            return real(*words, **options) if calls >= 0 else os._exit(9)

        return call

    for name in ("replace", "rename", "mkdir", "fsync", "unlink", "rmdir", "chmod"):
        setattr(os, name, dying(getattr(os, name)))
    init.write_folder(Path("new"), Path("config.yaml"), "study: mine\n", "mine")
    os._exit(0)


@pytest.mark.parametrize("mine", [None, "notes.txt", ".gitignore"])
def test_a_killed_init_can_be_repeated_and_loses_nothing(tmp_path, monkeypatch, mine):
    monkeypatch.chdir(tmp_path)

    def contents():
        files = [p for p in Path("new").rglob("*") if p.is_file()]
        return {str(p.relative_to("new")): p.read_text() for p in files}

    def prepare():
        shutil.rmtree("new", ignore_errors=True)
        Path("new").mkdir()
        if mine:
            Path("new", mine).write_text("mine")

    prepare()
    assert killed_writing(10**9) == 0
    whole, status = contents(), 9
    assert len(whole) == 3 + len(DVC_FILES) + (mine == "notes.txt")
    assert whole.get(mine) == ("mine" if mine else None)
    for calls in itertools.count():
        prepare()
        before, status = contents(), killed_writing(calls)
        if status == 0:
            break
        left = contents()
        assert mine or left in (before, whole)
        assert not mine or left[mine] == "mine"
        if "config.yaml" not in left:
            assert killed_writing(10**9) == 0
            assert contents() == whole
        assert {name: text for name, text in contents().items() if ".tmp/" not in name} == whole
        shutil.rmtree("new")
    assert calls > 10
