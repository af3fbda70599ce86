"""
Write the final student as a plain Hugging Face folder with a model card: `capgap export`.

IN   results/<study>/final/, law/law.json, the metrics of its teacher
OUT  a folder for AutoModelForCausalLM.from_pretrained, with README.md and the law's figure; with
     --gguf also the model as one file for llama.cpp; with --push a repository of the hub
"""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

import yaml

from capgap.command_parser import CommandParser
from capgap.commands.verify import result_of
from capgap.config import (
    FilesCorpus,
    HubCorpus,
    HubTeacher,
    PackageCorpus,
    PackageTeacher,
    PretrainedTeacher,
    Study,
    run_grid,
)
from capgap.cost.teacher_configs import open_study
from capgap.data.hub import upload_model
from capgap.engine.gguf_file import TYPES, check_gguf, write_gguf
from capgap.errors import CapgapError
from capgap.law.answers.answer_records import FinalRecord
from capgap.law.law_record import LawRecord
from capgap.records import paths
from capgap.records.artifacts import check_folder, open_folder, publish_folder
from capgap.records.checksums import read_manifest
from capgap.records.reading import digest
from capgap.records.run_records import HarnessRecord, Lineage, Metrics
from capgap.reporting.citation import PAPER_ARXIV
from capgap.reporting.report_text import harness_name, harness_rows
from capgap.workflow.own_places import git

CARD = Path(__file__).with_name("model_card.md")
GGUF = """
`{file}` is the same model for llama.cpp: `llama-cli -m {file} -p "..."`.
"""


def run(
    study_file: Path,
    out: Path,
    licence: str | None = None,
    data_licence: str | None = None,
    teacher_licence: str | None = None,
    gguf: str | None = None,
    repo: str | None = None,
    student_licence: str | None = None,
) -> None:
    """Write the folder. Raises CapgapError if a licence is unknown or `out` exists.

    gguf: type of the matrices of a GGUF file, if one is wanted. repo: USER/REPO of the hub where the
    folder will be, for the card; None for a folder that stays here.
    """
    options = {
        "--study": study_file,
        "--out": out.name,
        "--licence": licence,
        "--data-licence": data_licence,
        "--teacher-licence": teacher_licence,
        "--student-licence": student_licence,
        "--gguf": gguf,
        "--push": repo,
    }
    study = open_study(study_file)
    if os.path.lexists(out):
        raise CapgapError(f"{out} exists already; name another folder or delete it")
    if study.final is None:
        raise CapgapError(
            f"{study_file} has no final student to export; add the section 'final' and run the study"
        )
    check_folder(out)
    final = FinalRecord.read(result_of(study.study, paths.FINAL))
    law = LawRecord.read(result_of(study.study, paths.LAW))
    model = open_folder(paths.FINAL_MODEL.format(study=study.study))
    lineage = Lineage.read(model / "lineage.json")
    runs = run_grid.final_runs(study, [lineage.teacher])
    made = next(run for run in runs if run.seed == lineage.seed)
    level = run_grid.teacher_level(study, lineage.teacher, made.replica)
    teacher_metrics = paths.TEACHER_METRICS.format(
        study=study.study, teacher=lineage.teacher, replica=level
    )
    teacher = Metrics.read(teacher_metrics)
    test = Metrics.read(paths.RUN_METRICS.format(study=study.study, **made._asdict())).test
    figure = open_folder(paths.REPORT.format(study=study.study)) / "law.png"
    file = f"{out.name}-{gguf}.gguf"
    if gguf:
        check_gguf(model)
    data, known = _data(study)
    data_licence = _required(data_licence or known, "data", data)
    source, known = _teacher(study, lineage.teacher)
    teacher_licence = _required(teacher_licence or known, "teacher", source)
    start, start_licence = _start(study, lineage.init, student_licence)
    kind = run_grid.final_kind(study)
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": licence or "other",
        "tags": ["knowledge-distillation", *["pruning"] * (kind == "pruned"), "capgap"],
        **_hub_sources(study, lineage.teacher),
    }
    card = CARD.read_text(encoding="utf-8").format(
        name=repo.split("/")[-1] if repo else out.name,
        version=version("capgap"),
        arxiv=PAPER_ARXIV,
        params=lineage.params.non_embedding,
        total=lineage.params.total,
        study=study.study,
        start=start,
        start_licence=start_licence,
        teacher=f"{lineage.teacher}: {source}, "
        f"{teacher.lineage.params.non_embedding:,} parameters without embeddings",
        tokens=lineage.tokens,
        seed=lineage.seed,
        law=law.of_init(kind).verdict,
        revision=_revision(),
        gguf=GGUF.format(file=file) if gguf else "",
        choice=final.choice.basis_note,
        loss=test.loss_nats_per_token,
        bits=test.bits_per_byte,
        regret=final.regret_nats,
        # per token of the student, if the teacher has another tokenizer
        teacher_loss=teacher.test.loss_nats_per_token * teacher.test.tokens / test.tokens,
        sentence=final.sentence,
        tasks=tasks_of_card(study),
        data=data,
        data_licence=data_licence,
        teacher_licence=teacher_licence,
        licence=licence or "not stated; it follows from those of the data and the teacher",
        study_file=study_file,
        command=shlex.join(
            ["capgap", "export", *(str(w) for o in options.items() if o[1] for w in o)]
        ),
        out_name=repo or out.name,
        weights=digest(model / "model.safetensors"),
    )
    text = f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{card}"
    with publish_folder(out, manifest=False) as folder:
        for name in read_manifest(model / paths.MANIFEST):  # without files that were added later
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model / name, folder / name)
        (folder / "README.md").write_text(text, encoding="utf-8")
        shutil.copyfile(figure, folder / figure.name)
        if gguf:
            write_gguf(model, folder / file, gguf, name=out.name, licence=licence or "other")


def _revision() -> str:
    """The commit of the repository that the study is in, and whether files differ from it."""
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return "not in a Git repository"
    return commit if git("diff", "--quiet", "HEAD") is not None else f"{commit} with changes"


def _required(licence: str | None, what: str, source: str) -> str:
    if not licence:
        raise CapgapError(f"the licence of {source} is unknown; give --{what}-licence")
    return licence


def tasks_of_card(study: Study) -> str:
    """A section of the card: the student and its teachers on the tasks that were measured."""
    if not (study.harness and study.harness.final):
        return ""
    draws = run_grid.measured_on_tasks(study)
    *teachers, final = (HarnessRecord.read(paths.harness(study.study, *draw)) for draw in draws)
    records = [final, *teachers]
    heads = ["task", "metric", "this model", *map(harness_name, records[1:])]
    rows = [heads, ["---"] * len(heads)]
    rows += [[row.task, row.metric, *row.values] for row in harness_rows(records)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    limit = f", at most {final.limit} documents a task" if final.limit else ""
    return f"\n## Tasks\n\nlm-evaluation-harness {final.lm_eval_version}{limit}.\n\n{table}\n"


def _data(study: Study) -> tuple[str, str | None]:
    """The corpus in words, and its licence if its package states one."""
    match study.corpus:
        case PackageCorpus(package=package, pattern=pattern):
            return f"`{pattern}` of the Python package `{package}`", _package_licence(package)
        case HubCorpus(dataset=dataset, revision=revision):
            return f"data set `{dataset}` of the Hugging Face hub at {revision}", None
        case FilesCorpus(pattern=pattern):
            return f"local files `{pattern}`", None
    raise AssertionError(study.corpus)


def _teacher(study: Study, name: str) -> tuple[str, str | None]:
    """Origin of a teacher or given student in words, and its licence if it is known."""
    match study.models[name]:
        case PretrainedTeacher():
            return "trained from random weights on the same data", "that of the data"
        case PackageTeacher(package=package):
            return f"from the Python package `{package}`", _package_licence(package)
        case HubTeacher(model=model, revision=revision):
            return f"`{model}` of the Hugging Face hub at {revision}", None
    return "a local folder", None


def _hub_sources(study: Study, teacher: str) -> dict[str, object]:
    """Fields of the card's head by which the hub links a model to its teacher and its data."""
    found, made_from = {}, study.teachers[teacher]
    if isinstance(made_from, HubTeacher):
        found["base_model"] = made_from.model
    if isinstance(study.corpus, HubCorpus):
        found["datasets"] = [study.corpus.dataset]
    return found


def _start(study: Study, init: str, licence: str | None) -> tuple[str, str]:
    """What the student was made from in words, and the licence of a given one as a sentence."""
    if run_grid.init_kind(init) == "pruned":
        return "pruned from its\nteacher and distilled from it", ""
    if run_grid.init_kind(init) == "random":
        return "with random weights\nat first and distilled from its teacher", ""
    name = init.removeprefix(run_grid.GIVEN)
    source, known = _teacher(study, name)
    licence = _required(licence or known, "student", source)
    text = f"which is\n{name} ({source}), distilled further from its teacher"
    return text, f"Licence of {name}: {licence}. "


def _package_licence(package: str) -> str | None:
    """The licence that an installed package states."""
    try:
        stated = metadata(package)
    except PackageNotFoundError:
        return None
    text = next((stated[k] for k in ("License-Expression", "License") if k in stated), "")
    return text.strip().split("\n")[0] or None


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap export`."""
    parser = CommandParser(
        "export",
        "Write the final student as a Hugging Face folder with a model card.",
    )
    parser.add_study()
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--licence", help="licence of the model, as the hub abbreviates it")
    parser.add_argument(
        "--data-licence", help="licence of the data, if its package does not name one"
    )
    parser.add_argument("--teacher-licence", help="licence of the teacher, likewise")
    parser.add_argument("--student-licence", help="licence of a given student, likewise")
    parser.add_argument(
        "--gguf",
        nargs="?",
        const="f32",
        choices=list(TYPES),
        help="write a GGUF file for llama.cpp as well, its matrices in this type (f32 if none is given)",
    )
    parser.add_argument(
        "--push", metavar="USER/REPO", help="put the folder into a model of the hub"
    )
    parser.add_argument("--private", action="store_true", help="with --push: make a private one")
    args = parser.parse_args(argv)
    if args.private and not args.push:
        parser.error("--private belongs to --push USER/REPO")
    licences = args.licence, args.data_licence, args.teacher_licence
    run(args.study, args.out, *licences, args.gguf, args.push, args.student_licence)
    print(f"{args.out}: model, tokenizer and model card")
    if args.push:
        message = f"{args.out.name} by capgap {version('capgap')}"
        commit = upload_model(args.out, args.push, private=args.private, message=message)
        print(f"{args.push}: pushed as commit {commit}")
