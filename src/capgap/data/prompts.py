"""Prompts from held-out text: places that are spread over a split, each with what follows there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from capgap.data.chat import ChatEncoder
from capgap.data.encoding import Encoder
from capgap.data.text_store import is_chat, text_batches
from capgap.errors import CapgapError

SENTENCE_ENDS = re.compile(r"(?:[.!?][\"'”’)]*\s+|\n+)")
LONGEST_TURNS = 1024  # tokens before a completion; longer conversations are passed over


class Prompt(NamedTuple):
    """A beginning, and how the text itself goes on."""

    document: str
    ids: np.ndarray  # what a model reads, with the ids that begin a text
    spoken: np.ndarray  # of these, the text, to be shown
    follows: np.ndarray


def prompts(
    corpus: Path, encoder: Encoder, *, count: int, prompt_tokens: int, new_tokens: int
) -> list[Prompt]:
    """`count` prompts from the test split, a function of the corpus and these numbers alone.

    Text is continued from the first sentence after places that are spread evenly over the documents;
    conversations from their first completion, by the tokenizer's chat template. Documents that are
    too short give half of their text as a prompt. Raises CapgapError if they have no text to continue.
    """
    names = [name for batch in text_batches(corpus, "test") for name in batch[0]]
    places = [(i + 0.5) * len(names) / count for i in range(count)]
    if is_chat(corpus, "test"):
        return _of_conversations(corpus, encoder, [int(place) for place in places], new_tokens)
    wanted: dict[int, list[float]] = {}
    for place in places:
        wanted.setdefault(int(place), []).append(place % 1)
    found = []
    for number, (name, text) in enumerate(_documents(corpus)):
        for share in wanted.get(number, []):
            found.append(_of_text(encoder, name, text, share, prompt_tokens, new_tokens))
    found = [prompt for prompt in found if prompt is not None]
    if not found:
        raise CapgapError(
            "sample.prompts: the documents of the test split that were looked at have fewer than two "
            "tokens each, so there is nothing to continue; raise it, or corpus.test_share"
        )
    return found


def _documents(corpus: Path) -> Iterator[tuple[str, str]]:
    for names, texts in text_batches(corpus, "test"):
        yield from zip(names, texts, strict=True)


def _of_text(
    encoder: Encoder, name: str, text: str, share: float, prompt_tokens: int, new_tokens: int
) -> Prompt | None:
    """A prompt from the first sentence after a share of the text; else from its beginning.

    Of a text that is not longer than a prompt its first half; None of one without two tokens.
    """
    ends = [found.end() for found in SENTENCE_ENDS.finditer(text)]
    later = [end for end in ends if end >= share * len(text)]
    for start in [*later[:1], 0]:
        ids = encoder.documents([text[start:]])[0]
        before = len(encoder.around.before)
        spoken = ids[before : len(ids) - len(encoder.around.after)]
        if len(spoken) > prompt_tokens:
            break
    length = prompt_tokens if len(spoken) > prompt_tokens else len(spoken) // 2
    if not length:
        return None
    follows = spoken[length : length + new_tokens]
    return Prompt(name, ids[: before + length], spoken[:length], follows)


def _of_conversations(
    corpus: Path, encoder: Encoder, numbers: list[int], new_tokens: int
) -> list[Prompt]:
    """The turns before the first completion of conversations from these numbers on."""
    chat, found = ChatEncoder(encoder), []
    for number, (name, messages) in enumerate(_documents(corpus)):
        if len(found) == len(numbers) or number < numbers[len(found)]:
            continue
        talk = chat.encode(name, messages)
        completions = np.flatnonzero(talk.mask_N)
        if not len(completions) or not 0 < completions[0] <= LONGEST_TURNS:
            continue
        start = completions[0]
        stop = start + int(np.argmin([*talk.mask_N[start:], False]))
        before, follows = talk.ids_N[:start], talk.ids_N[start : min(stop, start + new_tokens)]
        found.append(Prompt(name, before, before, follows))
    if not found:
        raise CapgapError(
            f"sample: the test split has no conversation with a completion after at most "
            f"{LONGEST_TURNS} tokens; enlarge corpus.test_share"
        )
    return found
