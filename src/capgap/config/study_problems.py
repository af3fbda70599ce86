"""What does not fit together in a study, although each of its sections is right: one sentence each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from capgap.config.counts import format_count
from capgap.config.grid_settings import grid_problems, repeats
from capgap.config.metric_problems import metric_problems
from capgap.config.teacher_settings import (
    HubTeacher,
    PackageTeacher,
    PathTeacher,
    PretrainedTeacher,
)
from capgap.config.teacher_tokenizers import brings_problems, tokenizer_problems
from capgap.config.text_settings import TeacherTokenizer

if TYPE_CHECKING:
    from capgap.config.study import Study

TEACHER_NAME = r"[a-z0-9][a-z0-9.-]*"


def inconsistencies(study: Study):
    """Problems that only show when sections are read together, one sentence each."""
    entries = [("teachers", *entry) for entry in study.teachers.items()]
    entries += [("students", *entry) for entry in study.students.items()]
    for section, name, model in entries:
        if name == "none" or not re.fullmatch(TEACHER_NAME, name):
            yield (
                f"{section}.{name}: a name has lower-case letters, digits, dots and hyphens, "
                "and is not 'none' (that is the arm without a teacher)"
            )
        if isinstance(model, PretrainedTeacher) and study.pretrain is None:
            yield f"{section}.{name}: source is pretrain, so the section 'pretrain' is needed; add it"
    yield from _given_problems(study)
    yield from tokenizer_problems(study)
    if isinstance(study.tokenizer, TeacherTokenizer):
        yield from brings_problems(study, "tokenizer", study.tokenizer)
    for key in ("pretrain", "distill", "evaluate"):
        section = getattr(study, key)
        plain = not getattr(study.corpus, "messages_column", None)
        if section and section.loss_on != "all" and plain:
            yield (
                f"{key}.loss_on: {section.loss_on} needs conversations; name their column "
                "(corpus.messages_column), or set it to all"
            )
    if study.distill.loss_on != study.evaluate.loss_on:
        yield (
            f"evaluate.loss_on: {study.evaluate.loss_on} is not what is learned, distill.loss_on is "
            f"{study.distill.loss_on}; the law is fitted on the held-out loss, so set both alike"
        )
    yield from _weight_problems(study)
    yield from metric_problems(study)
    for name in study.plan.shapes:
        if not isinstance(study.models.get(name), HubTeacher | PackageTeacher | PathTeacher):
            yield f"plan.shapes.{name}: no teacher of this name is fetched, and no given student"
    for name in (study.harness and study.harness.teachers) or []:
        if name not in study.teachers:
            yield f"harness.teachers: no teacher is called {name}"
    for section in ("pretrain", "distill"):
        settings, processes = getattr(study, section), study.plan.processes
        sequences = settings and settings.batch_tokens // settings.sequence_length
        if sequences and sequences % processes:
            yield (
                f"plan.processes: the {sequences} sequences of {section}.batch_tokens cannot be shared "
                f"equally among {processes} processes; change one of them"
            )
    sizes = {name: study.teacher_size(name) for name in study.teachers}
    finals = [study.final] if study.final else []
    given = {n: study.teacher_size(n) for n in study.given_names() if n in study.models}
    # else looked at once cost.teacher_configs.complete has read them
    known = all([*sizes.values(), *given.values()])
    largest = max(sizes, key=sizes.get) if known else None
    for key, students in (
        ("grid.students", study.grid.students),
        ("final.student", [final.student for final in finals]),
        *((f"grid.given: {name}", [size]) for name, size in given.items()),
    ):
        for student in students:
            if known and student >= sizes[largest]:
                yield (
                    f"{key}: {format_count(student)} is not smaller than any teacher; the largest, "
                    f"{largest}, has {sizes[largest]:,} parameters without embeddings; lower the "
                    "student or add a larger teacher"
                )
    if not study.grid.students and not given:
        yield "grid.students: at least one is needed; name a size, or give a student (students)"
    if known:
        yield from grid_problems(study.grid, sizes, given)
        yield from _final_init_problems(study, given)
    for key in ("seeds", "replicas") if study.final else ():
        yield from repeats(f"final.{key}", getattr(study.final, key))
    for replica in (study.final and study.final.replicas) or []:
        if replica not in (study.grid.replicas or []):
            yield (
                f"final.replicas: {replica} is not in grid.replicas, so its teachers are not trained; "
                "add it there, or give final.seeds instead"
            )
    yield from _same_models(study)
    yield from _round_problems(study)
    for key, tokens in _shortest(study):
        distill = study.distill
        stable = tokens * (1 - distill.decay_share)
        if tokens < distill.batch_tokens:
            yield f"{key}: {tokens} is less than one step, distill.batch_tokens is {distill.batch_tokens}"
        elif distill.schedule == "wsd" and distill.warmup_tokens > stable:
            yield (
                f"distill.warmup_tokens: {distill.warmup_tokens} is more than {key} of {tokens} has "
                f"before the learning rate falls over its last {distill.decay_share:.0%}"
            )


def _round_problems(study: Study):
    """Problems of the training between two cuts."""
    tokens, distill = study.prune.round_tokens, study.distill
    for key in ("batch_tokens", "warmup_tokens"):
        if tokens is not None and tokens < (getattr(distill, key) or 0):
            yield (
                f"prune.round_tokens: {tokens} is less than distill.{key}, {getattr(distill, key)}; "
                "raise it or lower that"
            )


def _shortest(study: Study) -> list[tuple[str, int]]:
    """The smallest budget by each key that gives budgets, tokens."""
    found = [("final.tokens", study.final.tokens)] if study.final else []
    if study.grid.tokens:
        found.insert(0, ("grid.tokens", min(study.grid.tokens)))
    if study.grid.tokens_per_param:
        given = [study.teacher_size(n) for n in study.given_names() if n in study.models]
        sizes = [size for size in [*study.grid.students, *given] if size]
        if sizes:
            smallest = round(min(study.grid.tokens_per_param) * min(sizes))
            found.insert(0, ("grid.tokens_per_param", smallest))
    return found


def _same_models(study: Study):
    """Teachers that would be the same model, in one of the draws of each."""
    seen: dict[str, tuple[str, int | None]] = {}
    for name, teacher in study.models.items():
        trained = isinstance(teacher, PretrainedTeacher)
        for replica in study.grid.replica_numbers() if trained else [None]:
            same = teacher
            if trained:
                same = teacher.model_copy(update={"seed": teacher.seed + (replica or 0)})
            key = same.model_dump_json()
            other, of_replica = seen.setdefault(key, (name, replica))
            if other != name:
                where = "" if replica is None else f" (in replicas {of_replica} and {replica})"
                yield (
                    f"{_section_of(study, name)}.{name}: the same model as "
                    f"{_section_of(study, other)}.{other}{where}; leave one out"
                    + (", or name the teacher in grid.given" if name in study.students else "")
                    + ", or change its shape or seed"
                )
                break


def _section_of(study: Study, name: str) -> str:
    return "teachers" if name in study.teachers else "students"


def _given_problems(study: Study):
    """Problems of the given students' names."""
    grid, known = study.grid, [*study.students, *study.teachers]
    for name in study.students:
        if name in study.teachers:
            yield (
                f"students.{name}: a teacher has this name; give it another one, or, if it is that model, "
                "leave it out here and name it in grid.given"
            )
    for name in grid.given or []:
        if name not in study.models:
            yield f"grid.given: no student or teacher is called {name}; there are {', '.join(known)}"
    if "given" not in grid.inits:
        for key in ["students"] * bool(study.students) + ["grid.given"] * bool(grid.given):
            yield f"{key}: not used, because grid.inits is {grid.inits}; add given there"
    elif not study.students and not grid.given:
        yield (
            "grid.inits: given is asked for, but no student is given; describe one in the section "
            "students, or name a teacher in grid.given"
        )
    elif grid.given is not None:
        for name in study.students:
            if name not in grid.given:
                yield f"students.{name}: not in grid.given, so nothing uses it; add it there"


def _weight_problems(study: Study):
    """Problems of the weights of the teacher's term."""
    weights, usual = study.grid.teacher_weights, study.distill.teacher_weight
    if weights is not None and usual not in weights:
        yield (
            f"grid.teacher_weights: {', '.join(map(str, weights))} are without distill.teacher_weight, "
            f"{usual:g}, at which the final student is distilled; add it, or set that to one of them"
        )
    first = study.law.teacher_weight
    if first is not None and first not in (weights or [usual]):
        yield (
            f"law.teacher_weight: no run has the weight {first:g}; it is one of "
            f"{', '.join(map(str, weights or [usual]))}"
        )
    elif first not in (None, usual) and study.final is not None:
        yield (
            f"law.teacher_weight: {first:g} is not distill.teacher_weight, {usual:g}, at which the final "
            "student is distilled; set them alike, or leave it out"
        )


def _final_init_problems(study: Study, given: dict[str, int]):
    """Problems of the final student's init."""
    final, grid = study.final, study.grid
    if final is None:
        return
    kind = final.init or grid.inits[0]
    if kind not in grid.inits:
        yield f"final.init: {kind} is not in grid.inits, so it has no law; add it there"
    elif kind == "given":
        same = [name for name, size in given.items() if size == final.student]
        if len(same) != 1:
            listed = ", ".join(f"{name} {size:,}" for name, size in given.items())
            yield (
                f"final.student: {final.student:,} must be the size of exactly one given student, because "
                f"final.init is given; there are {listed}; correct it, or set final.init"
            )
