"""Jobs and tokens of teachers that do not have the students' tokenizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capgap.config.text_settings import OfTeachersBrought
from capgap.cost.study_sizes import StudySizes
from capgap.records import paths


def jobs(sizes: StudySizes, name: str, made: Any, packed: Any) -> list[Any]:
    """The `Job`s of a tokenizer of teacher_tokenizers, from those of the students' one."""
    tokenizer, vocab = sizes.study.teacher_tokenizers[name], sizes.own_vocab(name)
    source, brought = sizes.path(paths.CORPUS), isinstance(tokenizer, OfTeachersBrought)
    if isinstance(tokenizer, OfTeachersBrought):
        source = sizes.path(paths.TEACHER_MODEL, teacher=tokenizer.teacher)
    (text,) = packed.work
    tokens = sizes.corpus_bytes / sizes.bytes_per_token * sizes.teacher_tokens(tokenizer.names()[0])
    output = sizes.path(paths.OWN_TOKENIZER, tokenizer=name)
    return [
        replace(
            made,
            rule="make_own_tokenizer",
            output=output,
            needs=(source,),
            work=(replace(text, tokens=0 if brought else text.tokens),),
            disk_bytes=40 * vocab,
        ),
        replace(
            packed,
            rule="pack_own_tokens",
            output=sizes.path(paths.OWN_TOKENS, tokenizer=name),
            needs=(sizes.path(paths.CORPUS), output),
            disk_bytes=round((2 if vocab <= 2**16 else 4) * tokens),
        ),
    ]


def note(sizes: StudySizes, name: str) -> str:
    """A note of the plan on the teachers of such a tokenizer."""
    teachers = ", ".join(sizes.study.teacher_tokenizers[name].names())
    return (
        f"{teachers}: tokenizer {name} of {sizes.own_vocab(name):,} entries, the students have another one "
        f"of {sizes.vocab:,}; students are taught by classes of entries where token boundaries meet"
    )
