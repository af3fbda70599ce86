"""Settings of the text and of the tokenizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from capgap.config.section import Section

MESSAGES_COLUMN = Field(
    None,
    description="column that holds conversations (lists of role and content) instead of text; the "
    "tokenizer's chat template makes text of them",
)


class CorpusSplit(Section):
    """How documents are split: whole, unless one is much larger than the share of a split."""

    validation_share: float = Field(
        0.03, gt=0, lt=0.5, description="share of the corpus bytes held out for validation"
    )
    test_share: float = Field(
        0.03, gt=0, lt=0.5, description="share of the corpus bytes held out for the final test"
    )


class PackageText(Section):
    """Text files that an installed Python package ships; one file is one document."""

    source: Literal["package"]
    package: str = Field(description="name of the installed package, found but never imported")
    pattern: str = Field(description="glob inside the package, for example data/speeches/*.txt")


class PackageCorpus(CorpusSplit, PackageText):
    """The same as a corpus."""


class FilesText(Section):
    """Local files: .txt (one document a file), .jsonl or .parquet (one document a row)."""

    source: Literal["files"]
    pattern: str = Field(
        description="glob of local files, or a folder: .txt, .md, .jsonl, also as .gz or .zst, or "
        ".parquet; an ending that it spells out, like *.py, is plain text"
    )
    text_column: str = Field("text", description="column that holds the text in jsonl and parquet")
    messages_column: str | None = MESSAGES_COLUMN


class FilesCorpus(CorpusSplit, FilesText):
    """The same as a corpus."""


class HubText(Section):
    """Rows of a data set of the Hugging Face hub at a pinned commit."""

    dataset: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$",
        description="data set id on the hub, owner/name",
    )
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="commit, 40 hexadecimal digits")
    name: str | None = Field(None, description="configuration of the data set, if it has several")
    split: str = Field("train", description="split of the data set to read, like train[:10%]")
    text_column: str = Field("text", description="column that holds the text")
    messages_column: str | None = MESSAGES_COLUMN
    joined: bool = Field(
        False, description="whether the rows are lines of one document (WikiText), not documents"
    )


class HubHeldOut(HubText):
    """A data set of the hub; one row is one document."""

    source: Literal["hub"]


class HubCorpus(CorpusSplit, HubText):
    """A data set of the hub; one row is one document."""

    source: Literal["hub"]
    test: HubText | None = Field(
        None, description="another data set that is the test split, like WikiText (study file only)"
    )


Corpus = Annotated[PackageCorpus | FilesCorpus | HubCorpus, Field(discriminator="source")]
HeldOutText = Annotated[PackageText | FilesText | HubHeldOut, Field(discriminator="source")]


class TrainedTokenizer(Section):
    """A byte-level BPE tokenizer trained on the training split."""

    source: Literal["train"]
    vocab_size: int = Field(ge=257, le=1_000_000, description="entries of the vocabulary")


class TeacherTokenizer(Section):
    """The tokenizer that comes with one of the teachers."""

    source: Literal["teacher"]
    teacher: str = Field(description="name of the teacher whose tokenizer is used")


Tokenizer = Annotated[TrainedTokenizer | TeacherTokenizer, Field(discriminator="source")]


class OfTeachersTrained(TrainedTokenizer):
    """A byte-level BPE tokenizer trained on the training split, of teachers that are trained here."""

    teachers: list[str] = Field(min_length=1, description="names of the teachers that have it")

    def names(self) -> list[str]:
        """Teachers that have it."""
        return self.teachers

    def source_settings(self) -> TrainedTokenizer:
        """What decides the tokenizer itself."""
        return TrainedTokenizer(source="train", vocab_size=self.vocab_size)


class OfTeachersBrought(TeacherTokenizer):
    """The tokenizer that comes with a teacher."""

    teachers: list[str] | None = Field(
        None,
        min_length=1,
        description="names of the teachers that have it; if not set, the one that brings it",
    )

    def names(self) -> list[str]:
        """Teachers that have it."""
        return self.teachers or [self.teacher]

    def source_settings(self) -> TeacherTokenizer:
        """What decides the tokenizer itself."""
        return TeacherTokenizer(source="teacher", teacher=self.teacher)


OfTeachers = Annotated[OfTeachersTrained | OfTeachersBrought, Field(discriminator="source")]
