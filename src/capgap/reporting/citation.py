"""
What a reader of the report should cite: the paper and this software.

The file CITATION.cff in the repository holds the same for other readers; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

TITLE = "capgap: measure the law of capacity gap in distillation, test it, and use it"
PAPER_TITLE = "Towards the Law of Capacity Gap in Distilling Language Models"
PAPER_AUTHORS = (
    ("Zhang", "Chen"),
    ("Li", "Qiuchi"),
    ("Song", "Dawei"),
    ("Ye", "Zheyu"),
    ("Gao", "Yan"),
    ("Hu", "Yao"),
)
PAPER_YEAR, PAPER_PAGES, PAPER_ARXIV = 2025, (22504, 22528), "2311.07052"
PAPER_BOOK = (
    "Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics "
    "(Volume 1: Long Papers)"
)


class Citation(NamedTuple):
    """The two references, as sentences and as BibTeX."""

    paper: str
    software: str
    bibtex: str


def citation(version: str) -> Citation:
    """The references; version: of the software."""
    names = ", ".join(f"{given} {family}" for family, given in PAPER_AUTHORS)
    first, last = PAPER_PAGES
    authors = " and ".join(f"{family}, {given}" for family, given in PAPER_AUTHORS)
    return Citation(
        paper=f"{names} ({PAPER_YEAR}). {PAPER_TITLE}. {PAPER_BOOK}, {first}–{last}. "
        f"arXiv {PAPER_ARXIV}.",
        software=f"The capgap authors. {TITLE}. Version {version}.",
        bibtex=(
            f"@inproceedings{{zhang{PAPER_YEAR}capacity,\n"
            f"  title = {{{PAPER_TITLE}}},\n  author = {{{authors}}},\n"
            f"  booktitle = {{{PAPER_BOOK}}},\n  pages = {{{first}--{last}}},\n"
            f"  year = {{{PAPER_YEAR}}},\n  eprint = {{{PAPER_ARXIV}}},\n"
            "  archivePrefix = {arXiv}\n}\n\n"
            f"@software{{capgap,\n  title = {{{TITLE}}},\n  author = {{{{The capgap authors}}}},\n"
            f"  version = {{{version}}}\n}}"
        ),
    )
