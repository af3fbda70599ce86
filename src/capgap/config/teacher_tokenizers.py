"""Teachers whose tokenizer is not the students': what does not fit together in a study."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from capgap.config.teacher_settings import PretrainedTeacher
from capgap.config.text_settings import OfTeachersTrained, TeacherTokenizer

NAME = r"[a-z0-9][a-z0-9.-]*"


def tokenizer_problems(study: Any) -> Iterator[str]:
    """Problems of the section teacher_tokenizers of a `Study`, one sentence each."""
    named = [name for tokenizer in study.teacher_tokenizers.values() for name in tokenizer.names()]
    for key, tokenizer in study.teacher_tokenizers.items():
        where = f"teacher_tokenizers.{key}"
        if not re.fullmatch(NAME, key):
            yield f"{where}: a name has lower-case letters, digits, dots and hyphens; change it"
        for name in tokenizer.names():
            teacher, trained = study.teachers.get(name), isinstance(tokenizer, OfTeachersTrained)
            if teacher is None:
                yield f"{where}: no teacher is called {name}; there are {', '.join(study.teachers)}"
            elif isinstance(teacher, PretrainedTeacher) != trained:
                was = "is trained here" if not trained else "comes with a tokenizer"
                fix = "source: train and vocab_size" if not trained else "source: teacher"
                yield f"{where}: teacher {name} {was}, so its tokenizer needs {fix}"
        if isinstance(tokenizer, TeacherTokenizer):
            yield from brings_problems(study, where, tokenizer)
        elif getattr(study.tokenizer, "vocab_size", None) == tokenizer.vocab_size:
            yield (
                f"{where}.vocab_size: {tokenizer.vocab_size} is that of the study's tokenizer, which is "
                "trained on the same text and so the same one; change it, or leave the entry out"
            )
    for name, times in Counter(named).items():
        if times > 1:
            yield f"teacher_tokenizers: teacher {name} is in {times} of them; leave it in one"
    if named:
        yield from _uses(study, set(named))


def brings_problems(study: Any, where: str, tokenizer: TeacherTokenizer) -> Iterator[str]:
    """A problem if the teacher that a tokenizer is taken from brings none. where: key of the tokenizer."""
    brings = study.teachers.get(tokenizer.teacher)
    if brings is None or isinstance(brings, PretrainedTeacher):
        yield (
            f"{where}.teacher: '{tokenizer.teacher}' is not a teacher that brings a tokenizer; "
            "name one with source hub, package or path"
        )


def _uses(study: Any, named: set[str]) -> Iterator[str]:
    """Settings that need teachers with the students' tokenizer. named: teachers with another one."""
    listed = ", ".join(sorted(named))
    fix = "or leave these teachers out of teacher_tokenizers"
    if "pruned" in study.grid.inits:
        yield (
            "grid.inits: pruned students have the tokenizer of the teacher that they are cut from, and "
            f"{listed} have another one than the students (teacher_tokenizers); set it to random or given"
        )
    for name in study.grid.given or []:
        if name in named:
            yield (
                f"grid.given: {name} has another tokenizer than the students (teacher_tokenizers); "
                "leave it out"
            )
    if study.distill.teacher_targets != "online":
        yield (
            f"distill.teacher_targets: {study.distill.teacher_targets} keeps probabilities of the "
            f"students' entries, and {listed} have other entries (teacher_tokenizers); set it to online, "
            f"{fix}"
        )
    if getattr(study.corpus, "messages_column", None):
        yield (
            "corpus.messages_column: each tokenizer writes conversations with a template of its own, so "
            f"{listed} cannot read what the students read (teacher_tokenizers); take text "
            f"(corpus.text_column), {fix}"
        )
    if study.final and study.sample.teacher:
        yield (
            "sample.teacher: true writes text with a teacher in the students' tokens, and the chosen one "
            f"may be of {listed} (teacher_tokenizers); set it to false"
        )
    if isinstance(study.tokenizer, TeacherTokenizer) and study.tokenizer.teacher in named:
        yield (
            f"tokenizer.teacher: {study.tokenizer.teacher} is in teacher_tokenizers, too; leave it out "
            "of one"
        )
