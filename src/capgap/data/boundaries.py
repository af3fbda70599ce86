"""
The special tokens that a tokenizer adds around a text, as its models saw them in training.

A model that was trained with a token before every text (Gemma, Llama 3) predicts badly without it, so
it is put before every document and at the start of every window that is cut from a stream.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from capgap.errors import CapgapError


class Boundaries(NamedTuple):
    """Ids before and after every document."""

    before: list[int]
    after: list[int]

    @property
    def bos_id(self) -> int | None:
        """The one id before a document; None if there is none, or several."""
        return self.before[0] if len(self.before) == 1 else None


def boundaries(tokenizer: PreTrainedTokenizerFast, folder: object = "") -> Boundaries:
    """Ids that a tokenizer's post-processor puts around a text; the end-of-text token ends it always.

    folder: of the tokenizer, for the message. Raises CapgapError for a tokenizer without an
    end-of-text token.
    """
    end, around = tokenizer.eos_token_id, post_processed(tokenizer)
    if end is None:
        raise CapgapError(
            f"{folder}: this tokenizer has no end-of-text token to close documents; name one in its "
            "tokenizer_config.json (eos_token)"
        )
    return around if around.after[-1:] == [end] else Boundaries(around.before, [*around.after, end])


def post_processed(tokenizer: PreTrainedTokenizerFast) -> Boundaries:
    """Ids that a tokenizer's post-processor puts around a text, and no others."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    first = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return Boundaries(whole[:first], whole[first + len(inner) :])


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Size of a tokenizer's vocabulary: its largest id plus one, because ids may have gaps."""
    return 1 + max(tokenizer.get_vocab().values())
