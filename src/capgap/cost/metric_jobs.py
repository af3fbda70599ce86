"""The jobs that measure models on further texts, and the students of the grid on tasks of the law."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from capgap.config import FilesText, HarnessStage, PackageText, run_grid
from capgap.cost import device_memory
from capgap.cost.architectures import Model
from capgap.cost.host_memory import host_mb
from capgap.cost.one_job import COMPRESSED, Job, Work
from capgap.data.packages import files_in_package
from capgap.data.sources import corpus_files
from capgap.records import paths

if TYPE_CHECKING:
    from capgap.cost.job_costs import StudyCost

# tokens of all prompts and answers of a task with the shots of the published table, millions, about
TASK_MTOKENS = {
    "mmlu": 10,
    "ceval-valid": 1.2,
    "drop": 11,
    "humaneval": 0.2,
    "bbh": 13,
    "gsm8k": 2,
    "lambada_openai": 0.5,
    "wikitext": 0.3,
}
OTHER_TASK_MTOKENS = 5


def task_tokens(settings: HarnessStage) -> int:
    """Tokens of the prompts and answers of some tasks, roughly."""
    millions = (TASK_MTOKENS.get(name, OTHER_TASK_MTOKENS) for name in settings.shots())
    most = (settings.limit or 10**9) * device_memory.TASK_CONTEXT
    return round(sum(min(1e6 * million, most) for million in millions))


def metric_jobs(cost: StudyCost) -> list[Job]:
    """All of them, each after the ones it needs."""
    study, jobs = cost.study, []
    teachers = run_grid.teacher_draws(study)
    for text in study.evaluate.texts:
        jobs += [text_job(cost, rule, text) for rule in ("prepare_text", "pack_text")]
        jobs += [
            text_job(cost, "evaluate_teacher_text", text, run_grid.Run("", "", name, "", 0, level))
            for name, level in teachers
        ]
        jobs += [text_job(cost, "evaluate_student_text", text, run) for run in cost.grid]
    if study.student_harness():
        jobs += [student_tasks(cost, run) for run in cost.grid]
    return jobs


def text_job(cost: StudyCost, rule: str, text: str, run: run_grid.Run | None = None) -> Job:
    """A job about one further text; run: the student or, by its teacher and replica, the teacher."""
    made, packed = cost.path(paths.TEXT, text=text), cost.path(paths.TEXT_TOKENS, text=text)
    size = text_bytes(cost, text)
    work = (Work("text", size, 0),)
    if rule == "prepare_text":
        fetched = size if cost.study.evaluate.texts[text].source == "hub" else 0
        return Job(
            rule,
            made,
            (),
            work,
            host_mb=host_mb(cost, rule),
            disk_bytes=size,
            download_bytes=round(COMPRESSED * fetched),
        )
    if rule == "pack_text":
        needs = made, cost.path(paths.TOKENIZER)
        return Job(rule, packed, needs, work, host_mb=host_mb(cost, rule), disk_bytes=size)
    assert run is not None
    tokens = round(size / cost.bytes_per_token)
    if rule == "evaluate_teacher_text":
        return cost.evaluation(
            rule,
            cost.teacher_path(paths.TEACHER_ON_TEXT, run.teacher, run.replica, text=text),
            cost.teacher_path(paths.TEACHER_MODEL, run.teacher, run.replica),
            cost.architecture(run.teacher).whole(),
            (packed, tokens),
        )
    return cost.evaluation(
        rule,
        cost.path(paths.RUN_ON_TEXT, text=text, **run._asdict()),
        cost.path(paths.RUN_MODEL, **run._asdict()),
        cost.student(run.student, run.init),
        (packed, tokens),
    )


def text_bytes(cost: StudyCost, text: str) -> int:
    """UTF-8 bytes of a further text; plan.test_bytes if its files are not here."""
    source, size = cost.study.evaluate.texts[text], 0
    if isinstance(source, PackageText):
        files = files_in_package(source.package, source.pattern)
        size = sum(os.path.getsize(path) for path in files)
    elif isinstance(source, FilesText):
        size = sum(os.path.getsize(path) for path in corpus_files(source.pattern)[0])
    return size or cost.study.plan.test_bytes


def student_tasks(cost: StudyCost, run: run_grid.Run) -> Job:
    """One student of the grid on the tasks of the law."""
    output, source = (
        cost.path(path, **run._asdict()) for path in (paths.RUN_HARNESS, paths.RUN_MODEL)
    )
    model, settings = cost.student(run.student, run.init), cost.study.student_harness()
    return task_job(cost, "harness_student", output, source, model, settings)


def task_job(
    cost: StudyCost, rule: str, output: str, source: str, model: Model, settings: HarnessStage
) -> Job:
    """A model on tasks."""
    tokens, held = task_tokens(settings), device_memory.tasks(model, settings.batch_size)
    flops = tokens * model.forward_flops(device_memory.TASK_CONTEXT)
    work, memory_mb = Work("evaluate", tokens, flops), host_mb(cost, rule, held)
    return Job(rule, output, (source,), work=(work,), device=held, host_mb=memory_mb)
