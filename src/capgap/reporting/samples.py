"""What the report shows of the texts that models wrote."""

from __future__ import annotations

from typing import NamedTuple

from capgap.law.answers.answer_records import FinalRecord
from capgap.records.run_records import Lineage, SamplesRecord
from capgap.reporting.report_text import nats, size


class Written(NamedTuple):
    """One continuation."""

    name: str  # of the model, in words
    note: str  # its loss
    teacher: str  # for highlighting; '' for the document itself
    text: str


class PromptShown(NamedTuple):
    """A prompt with the continuations of all models."""

    document: str
    text: str
    rows: list[Written]


class Samples(NamedTuple):
    """The section of the report."""

    about: str
    prompts: list[PromptShown]


def samples_of(record: SamplesRecord, final: FinalRecord) -> Samples:
    """The section: per prompt the chosen student first, then its alternatives, teacher and document."""
    losses = {row.teacher: row.test_loss_nats_per_token for row in final.rows}
    chosen = final.choice.chosen
    order = sorted(
        range(len(record.models)),
        key=lambda i: _order(record.models[i].lineage, chosen, losses),
    )
    prompts = []
    for number, prompt in enumerate(record.prompts):
        rows = [
            _written(record.models[i].lineage, record.models[i].texts[number], losses, chosen)
            for i in order
        ]
        rows.append(Written("The document itself", "", "", prompt.follows))
        prompts.append(PromptShown(prompt.document, prompt.text, rows))
    return Samples(_about(record, final), prompts)


def _order(lineage: Lineage, chosen: str, losses: dict[str, float]) -> tuple:
    """Students before the teacher, the chosen one's first, the others by their loss."""
    known = losses.get(lineage.teacher or "", float("inf"))
    return lineage.kind == "teacher", lineage.teacher != chosen, known


def _written(lineage: Lineage, text: str, losses: dict[str, float], chosen: str) -> Written:
    if lineage.kind == "teacher":
        return Written(
            f"The teacher {lineage.name} itself",
            f"{size(lineage.params.non_embedding)} parameters",
            lineage.name,
            text,
        )
    role = ", the law’s choice" if lineage.teacher == chosen else ""
    note = f"test loss {nats(losses[lineage.teacher])}" if lineage.teacher in losses else ""
    return Written(f"Student of {lineage.teacher}{role}", note, lineage.teacher, text)


def _about(record: SamplesRecord, final: FinalRecord) -> str:
    settings = record.settings
    place = "turns of conversations" if record.conversations else "passages"
    how = (
        "the most probable token each time"
        if settings.temperature == 0
        else f"sampled at temperature {settings.temperature:g}, with the same random numbers for every model"
    )
    text = (
        f"The models continue {place} of the test text, which none of them was trained on: "
        f"{settings.new_tokens} tokens at most, {how}. "
    )
    spread = final.rows[-1].test_loss_nats_per_token - final.rows[0].test_loss_nats_per_token
    text += (
        f"The students’ test losses differ by {nats(spread)} nats per token, which a few lines cannot "
        "show: compare the tables for that, and read these lines for what such a loss looks like. "
    )
    bits = final.rows[0].test_bits_per_byte
    if bits > 1.5:
        text += (
            f"At {bits:.2f} bits per byte these models are too small to write sentences that make sense; "
            "they have learned spelling, frequent words and layout."
        )
    return text
