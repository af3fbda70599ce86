"""
Give a model the tokenizer of a study, if its own one makes the same pieces of a text.

Both must be byte-pair encodings with the same treatment of text and the same merges, as far as the
study's tokenizer has them, so that a text whose pieces the study's tokenizer has becomes these pieces
under either; their ids may differ. The rows of the embedding and of the output head are put in the
study's order. Entries of the model that the study's tokenizer does not have lose their rows: its
losses become those of the same model restricted to the shared entries. Entries that the model does not
have can only be added tokens (as <|user|>) at the end, for which it then has no rows; a text that
contains them is refused when it is read.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from capgap.engine.models import load_tokenizer, tokenizer_digest, vocabulary_rows
from capgap.errors import CapgapError, shown
from capgap.pruning.surgery import cut, keep_all
from capgap.pruning.vocabulary import merges_of, rename_ids, vocabulary_of
from capgap.records.reading import read_json

SHOWN = 3  # entries in a message
TREATMENT = ("normalizer", "pre_tokenizer")
OWN_PARTS = ("vocab", "merges")  # of the model of a tokenizer; the rest of it must be the same


def with_tokenizer(model: PreTrainedModel, own: Path, wanted: Path) -> PreTrainedModel:
    """The model with rows for the entries of another tokenizer, in its order.

    own: folder of the model's tokenizer. wanted: folder of the study's. Consumes `model`, as `cut`
    does; one whose tokenizer is the study's already is returned as it is. Raises CapgapError naming
    the difference if the two would make different pieces of a text.
    """
    if tokenizer_digest(own) == tokenizer_digest(wanted):
        return model
    rows_V = rows_by_entry(own, wanted, vocabulary_rows(model))
    place = {int(old): new for new, old in enumerate(rows_V)}
    for config in (model.config, model.generation_config):  # before the cut, as in `trim`
        rename_ids(config, place)
    if np.array_equal(rows_V, np.arange(vocabulary_rows(model))):
        return model
    return cut(model, keep_all(model)._replace(vocab=rows_V))


def rows_by_entry(own: Path, wanted: Path, rows: int) -> np.ndarray:
    """The model's row for every entry of the wanted tokenizer, in its order, (V,); V may be fewer.

    own: folder of the model's tokenizer; rows: that the model has. Errors as in `with_tokenizer`.
    """
    for folder in (own, wanted):
        load_tokenizer(folder)  # or an error that names the folder
    mine, theirs = read_json(own / "tokenizer.json"), read_json(wanted / "tokenizer.json")
    _check_treatment(own, mine, theirs)
    my_ids, their_ids = vocabulary_of(mine), vocabulary_of(theirs)
    _check_merges(own, mine, theirs, {*my_ids} & {*their_ids})
    entries = sorted(their_ids, key=their_ids.get)
    if [their_ids[entry] for entry in entries] != list(range(len(entries))):
        raise CapgapError(
            f"{wanted}: the ids of its tokenizer have gaps, so no vocabulary can be mapped to it; give a "
            "student with this tokenizer"
        )
    known = [entry in my_ids and my_ids[entry] < rows for entry in entries]
    missing = [entry for entry, there in zip(entries, known, strict=True) if not there]
    added = {token["content"] for token in theirs["added_tokens"]}
    inside = any(late and not early for early, late in pairwise(known))
    if inside or not added.issuperset(missing):
        raise CapgapError(
            f"{own}: its vocabulary lacks {len(missing):,} of the {len(entries):,} entries of the study's "
            f"tokenizer, {_listed(missing)}, and it has no probability for them; give a student that has "
            "them, or take the student's tokenizer for the study and trim the teachers to it "
            "(trim_vocabulary)"
        )
    return np.array([my_ids[e] for e, there in zip(entries, known, strict=True) if there], np.int64)


def _check_treatment(own: Path, mine: dict, theirs: dict) -> None:
    """Raise CapgapError unless both are byte-pair encodings that treat text alike."""
    for data in (mine, theirs):
        kind = data["model"].get("type")
        if kind != "BPE":
            raise CapgapError(
                f"{own}: its tokenizer is not the study's, and a vocabulary is only mapped between "
                f"byte-pair encodings (BPE), not to or from {kind}; give a student with the study's "
                "tokenizer"
            )
    for part in TREATMENT:
        if mine.get(part) != theirs.get(part):
            raise CapgapError(
                f"{own}: its tokenizer cuts a text otherwise than the study's ({part} differs: "
                f"{shown(str(mine.get(part)))} here, {shown(str(theirs.get(part)))} there), so its "
                "vocabulary cannot be mapped; give a student with the study's tokenizer"
            )
    for key in sorted({*mine["model"], *theirs["model"]} - {*OWN_PARTS, "type"}):
        if (mine["model"].get(key) or None) != (theirs["model"].get(key) or None):
            raise CapgapError(
                f"{own}: its byte-pair encoding differs from the study's in {key} "
                f"({mine['model'].get(key)} and {theirs['model'].get(key)}), so its vocabulary cannot be "
                "mapped; give a student with the study's tokenizer"
            )


def _check_merges(own: Path, mine: dict, theirs: dict, shared: set[str]) -> None:
    """Raise CapgapError unless the merges of shared entries are the same, in the same order."""
    prefix = mine["model"].get("continuing_subword_prefix") or ""

    def inside(data: dict) -> list[tuple[str, ...]]:
        return [
            (first, second)
            for first, second in merges_of(data)
            if {first, second, first + second.removeprefix(prefix)} <= shared
        ]

    here, there = inside(mine), inside(theirs)
    if here == there:
        return
    at = next(
        (i for i, pair in enumerate(zip(here, there, strict=False)) if pair[0] != pair[1]), None
    )
    at = min(len(here), len(there)) if at is None else at
    pairs = [" + ".join(found[at]) if at < len(found) else "none" for found in (here, there)]
    raise CapgapError(
        f"{own}: its tokenizer merges otherwise than the study's (merge {at:,} is {pairs[0]} here and "
        f"{pairs[1]} there), so the same text has other pieces and its vocabulary cannot be mapped; give a "
        "student with the study's tokenizer"
    )


def _listed(entries: list[str]) -> str:
    more = f" and {len(entries) - SHOWN:,} more" if len(entries) > SHOWN else ""
    return ", ".join(f"'{entry}'" for entry in entries[:SHOWN]) + more
