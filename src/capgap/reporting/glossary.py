"""
The report's glossary: terms are marked where a section uses them first, with what they mean.

A marked term shows its meaning on hover and on focus by style alone, and is described by the entry
of the list at the end of the page, which is what is read aloud and printed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from markupsafe import Markup, escape


class Term(NamedTuple):
    """One entry of the glossary."""

    name: str
    pattern: str  # of its uses in the text
    meaning: str


TERMS = (
    Term(
        "T*",
        r"T\*(?!/)",
        "the size of the best teacher: the one with the lowest loss of the student, in parameters "
        "without embeddings",
    ),
    Term(
        "T*/S",
        r"T\*\s?/\s?S\b",
        "the size of the best teacher in multiples of the student’s size",
    ),
    Term(
        "nats",
        r"\b[Nn]ats(?: per token)?\b",
        "the unit of loss: the mean negative natural logarithm of the probability that the model "
        "gives to the next token, on held-out text. Lower is better. A loss of L nats is a perplexity "
        "of e to the power L: 0.01 nats more is a perplexity 1 % higher, 0.1 nats more 10.5 %",
    ),
    Term(
        "bits per byte",
        r"\b[Bb]its per byte\b",
        "the loss in base 2, shared out over the bytes of the text; it compares models with "
        "different tokenizers",
    ),
    Term(
        "tokens per parameter",
        r"\btokens per (?:student )?parameter\b",
        "tokens of distillation divided by the student’s parameters without embeddings",
    ),
    Term(
        "budget",
        r"\b(?:token )?budgets?\b",
        "the number of tokens that a student is distilled on",
    ),
    Term(
        "init",
        r"\b(?:pruned |random )?inits?\b",
        "the weights that a student’s training begins with: pruned from a teacher, or random",
    ),
    Term(
        "replica",
        r"\breplicas?\b",
        "a repetition of the whole study that draws everything anew: teachers, inits and the order "
        "of the data",
    ),
    Term(
        "power law",
        r"\b[Pp]ower law\b",
        "one fit of all runs of the main arm, in which the best teacher’s size goes as a power of the "
        "student’s size and of the tokens: T* = c S^a D^b",
    ),
)
BLOCKS = frozenset({"p", "dd", "figcaption", "li"})  # of prose, in which terms are marked
CLOSED = frozenset({"a", "button", "noscript", "svg", "table", "summary", "nav", "script", "style"})
FRESH = frozenset({"section", "header"})  # in which every term appears for the first time again
_TAG = re.compile(r"(<[^>]*>)")
_NAME = re.compile(r"</?([a-zA-Z0-9]+)")
_USES = re.compile(
    "|".join(
        f"(?P<t{i}>{term.pattern})"
        for i, term in sorted(enumerate(TERMS), key=lambda found: -len(found[1].pattern))
    )
)


def identity(term: Term) -> str:
    """The id of a term's entry in the list."""
    return "term-" + re.sub(r"\W+", "-", term.name.replace("*", "-star")).strip("-")


def marked(html: str) -> str:
    """Markup with each term's first use in every section marked.

    Only prose is marked: paragraphs, list items, captions and definitions, and nothing inside links,
    buttons, tables and drawings. The text itself stays as it is.
    """
    out, seen = [], set()
    blocks = closed = 0
    for piece in _TAG.split(html):
        if not piece.startswith("<"):
            out.append(_mark(piece, seen) if blocks and not closed else piece)
            continue
        out.append(piece)
        found = _NAME.match(piece)
        name = found[1].lower() if found else ""
        step = -1 if piece.startswith("</") else 1
        if name in BLOCKS:
            blocks += step
        elif name in CLOSED:
            closed += step
        elif name in FRESH:
            seen.clear()
    return "".join(out)


def _mark(text: str, seen: set[int]) -> str:
    def mark(use: re.Match) -> str:
        number = int(str(use.lastgroup)[1:])
        if number in seen:
            return use[0]
        seen.add(number)
        term = TERMS[number]
        return (
            f'<span class="term" tabindex="0" aria-describedby="{identity(term)}" '
            f'data-meaning="{escape(term.name)}: {escape(term.meaning)}.">{use[0]}</span>'
        )

    return _USES.sub(mark, text)


def entries() -> list[tuple[str, str, Markup]]:
    """Id, name and meaning of every term, in the order of the list."""
    return [
        (identity(term), term.name, escape(term.meaning[0].upper() + term.meaning[1:] + "."))
        for term in TERMS
    ]
