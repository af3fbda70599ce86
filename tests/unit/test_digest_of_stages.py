"""On the real source: an edit of one line touches exactly the stages that run it."""

import ast
import shutil
from pathlib import Path

import pytest

from capgap.workflow import digest

STAGES = sorted(
    p.stem
    for p in (digest.SOURCE_ROOT / "stages").glob("*.py")
    if p.stem not in ("__init__", "base")
)
# stages that write a model
MODELS = {"fetch", "pretrain", "prune", "random_init", "given", "distill"}


def clear():
    for function in vars(digest).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the package, which the digest reads; what it was before is put back."""
    copy = tmp_path_factory.mktemp("source") / "capgap"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(digest.SOURCE_ROOT, copy, ignore=skip)
    real, digest.SOURCE_ROOT = digest.SOURCE_ROOT, copy
    clear()
    yield copy
    digest.SOURCE_ROOT = real
    clear()


@pytest.fixture(scope="module")
def before(source):
    return digests()


def digests():
    return {stage: digest.source_digest(f"capgap.stages.{stage}") for stage in STAGES}


def insert(path: Path, function: str) -> str:
    """Insert a statement at the start of a function; the text before."""
    text = path.read_text()
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    found = [n for n in nodes if n.name == function]
    assert len(found) == 1, (path, function)
    body = found[0].body
    first = body[1] if isinstance(body[0], ast.Expr) and len(body) > 1 else body[0]
    lines = text.splitlines()
    lines.insert(first.lineno - 1, " " * first.col_offset + "edited = 1")
    path.write_text("\n".join(lines) + "\n")
    return text


@pytest.mark.parametrize(
    ("module", "function", "stages"),
    [
        *[(f"stages/{stage}", "main", {stage}) for stage in STAGES],
        ("stages/evaluate", "run", {"evaluate"}),
        ("stages/choose", "run", {"choose"}),
        ("stages/collect", "to_csv", {"collect"}),
        ("stages/collect", "read_run", {"collect", "compare"}),
        ("stages/report", "read_rows", {"report"}),
        ("stages/report", "_settings", {"report"}),
        ("engine/training_job", "_publish", {"pretrain", "distill"}),
        ("engine/training", "curve_csv", {"pretrain", "distill"}),
        ("engine/models", "save_model", MODELS),
        ("engine/losses", "mixture_loss", {"distill"}),
        ("engine/teacher_targets", "gather", {"cache_teacher"}),
        ("pruning/store", "write_importance", {"score"}),
        ("law/table/read_runs", "read_table", {"fit", "choose", "report"}),
        ("records/artifacts", "_settle", set(STAGES)),
        ("stages/base", "parse", set(STAGES)),
        ("stages/base", "system_message", set()),
        ("workflow/locks", "claim_output", set()),
        ("config/study_file", "load_study", {"report"}),  # to price further runs
        ("cost/next_runs", "price", {"report"}),
        ("reporting/law_text", "with_inputs", set()),
        ("stages/distill", "pack_text", set()),
        ("stages/prune", "find_model", set()),
        ("commands/export", "run", set()),
    ],
)
def test_an_edit_touches_exactly_the_stages_that_run_it(source, before, module, function, stages):
    path = source / f"{module}.py"
    text = insert(path, function)
    clear()
    after = digests()
    path.write_text(text)
    clear()
    assert {stage for stage in STAGES if before[stage] != after[stage]} == stages


@pytest.mark.parametrize("stage", STAGES)
def test_every_function_of_a_stage_counts_or_is_marked_by_hand(source, stage):
    """What main and run do not reach would be outside the digest."""
    module = f"capgap.stages.{stage}"
    functions = {
        name
        for name, statements in digest._nodes(module).items()
        if isinstance(statements[0] if statements else None, ast.FunctionDef | ast.ClassDef)
    }
    reached, pending = set(), [(module, "main")]
    while pending:
        key = pending.pop()
        if key not in reached:
            reached.add(key)
            pending += digest._uses(*key)
    by_hand = {n for n in functions if digest._is_by_hand(digest._nodes(module)[n][0])}
    helpers = {n for n in functions - by_hand if (module, n) not in reached}
    used_by_hand = {n.id for f in by_hand for s in digest._nodes(module)[f] for n in ast.walk(s)
                    if isinstance(n, ast.Name)}  # fmt: skip
    assert helpers <= used_by_hand


def test_files_beside_modules_count_where_they_are_named(source, before):
    for name in ("page.html.j2", "page.js", "style.css"):
        path = source / "reporting" / name
        text = path.read_text()
        path.write_text(text + "\n")
        clear()
        after = digests()
        path.write_text(text)
        clear()
        assert {stage for stage in STAGES if before[stage] != after[stage]} == {"report"}
    files = [p for p in source.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    files = [p for p in files if p.name not in ("__init__.pyi", "py.typed")]  # for type checkers
    modules = "".join(p.read_text() for p in source.rglob("*.py"))
    assert files
    assert [p.name for p in files if f'"{p.name}"' not in modules] == []


def test_a_command_counts_by_its_words(tmp_path, monkeypatch):
    rule = 'rule one:\n    """One."""\n    output:\n        "x",\n    shell:\n        r"""\n{}\n        """\n\n\n'
    plain = (
        "        exec python -m capgap.stages.fit \\\n            --out {output:q} >{log:q} 2>&1"
    )

    def of(text):
        (tmp_path / "a.smk").write_text(rule.format(text) + rule.replace("one", "two").format("b"))
        clear()
        return digest.command_digest("one"), digest.command_digest("two")

    monkeypatch.setattr(digest, "rules_folder", lambda: tmp_path)
    one, two = of(plain)
    assert of(" ".join(plain.replace("\\\n", "").split())) == (one, two)
    assert of(plain.replace("fit", "fit --seed 5")) != (one, two)
    assert of(plain.replace("fit", "fit --seed 5"))[1] == two
    clear()
