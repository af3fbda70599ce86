"""
Conversations as tokens, by the tokenizer's chat template, with a mask of the completions.

A completion is the assistant's text up to the token that ends its turn. The template marks it with
`{% generation %}`; without that mark, the text up to a turn must be a prefix of the text with it.
"""

# N tokens of a conversation

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jinja2
import numpy as np
from transformers.utils.chat_template_utils import render_jinja_template

from capgap.data.encoding import Encoder
from capgap.errors import CapgapError, shown

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
# A fixed date for templates that print it, like Llama's, so that packed text does not depend on the day.
SAME_DAY = (
    "{%- macro strftime_now(format) %}"
    "{{- {'%Y-%m-%d': '2024-07-26'}.get(format, '26 Jul 2024') }}{%- endmacro %}"
)

Span = tuple[int, int]


class Conversation(NamedTuple):
    """A conversation as tokens."""

    ids_N: np.ndarray
    mask_N: np.ndarray  # bool: whether a token belongs to a completion
    text_bytes: int  # UTF-8 bytes of the rendered text, and of its completions
    completion_bytes: int


class ChatEncoder:
    """Encodes conversations by the chat template of a tokenizer."""

    def __init__(self, encoder: Encoder):
        self.encoder, self.tokenizer = encoder, encoder.tokenizer
        self.template = self.tokenizer.chat_template
        if not isinstance(self.template, str):
            raise CapgapError(
                "the corpus holds conversations (corpus.messages_column), but the tokenizer has no chat "
                "template (chat_template.jinja); take the tokenizer of a chat model, or put its "
                "template beside the tokenizer"
            )
        if "strftime_now" in self.template:
            self.template = SAME_DAY + self.template
        added = encoder.backend.get_added_tokens_decoder()
        self.special = {token.content: i for i, token in added.items() if token.special}
        longest_first = sorted(map(re.escape, self.special), key=len, reverse=True)
        self.specials = re.compile("|".join(longest_first) or r"(?!)")

    def encode(self, name: str, messages: str) -> Conversation:
        """One conversation, closed by the end-of-text token unless it ends with that already.

        messages: JSON. name: of the document, for messages. Raises CapgapError if the template
        refuses the conversation, or if the beginning of a completion cannot be found.
        """
        turns = json.loads(messages)
        text, spans = self._rendered(name, turns)
        if any(self.specials.search(spoken) for spoken in _strings(turns)):
            ids, starts = self._encode_literally(name, text, turns)
        else:
            ids, starts = self._encode(text, special=False)
        mask = np.zeros(len(ids), bool)
        for start, stop in spans:
            mask |= (start <= starts) & (starts < stop)
        if not len(ids) or ids[-1] != self.encoder.eos:
            ids, mask = np.append(ids, self.encoder.eos), np.append(mask, False)
        completions = sum(len(text[start:stop].encode()) for start, stop in spans)
        return Conversation(ids.astype(self.encoder.dtype), mask, len(text.encode()), completions)

    def _encode(self, text: str, special: bool) -> tuple[np.ndarray, np.ndarray]:
        """(ids, index of the character at which each starts). special: encode special tokens as text."""
        backend = self.encoder.backend
        backend.encode_special_tokens = special
        encoded = backend.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int64), np.array([a for a, _ in encoded.offsets], np.int64)

    def _encode_literally(
        self, name: str, text: str, turns: list[dict]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for a conversation whose contents spell a special token."""
        said = list(self._places(name, text, turns))
        parts, at = [], 0
        for found in self.specials.finditer(text):
            if any(start <= found.start() and found.end() <= stop for start, stop in said):
                continue
            ids, starts = self._encode(text[at : found.start()], special=True)
            parts.append((ids, starts + at))
            parts.append(([self.special[found.group()]], [found.start()]))
            at = found.end()
        ids, starts = self._encode(text[at:], special=True)
        parts.append((ids, starts + at))
        ids, starts = (np.concatenate(part).astype(np.int64) for part in zip(*parts, strict=True))
        return ids, starts

    def _places(self, name: str, text: str, turns: list[dict]) -> Iterator[Span]:
        """Spans of the messages' contents in the rendered text.

        They lie between the template's own parts, which are found by rendering other contents.
        """
        others = [{**turn, "content": f"\ue000{i}\ue001"} for i, turn in enumerate(turns)]
        first, *parts = re.split("\ue000\\d+\ue001", self._render(name, others)[0])
        at, good = len(first), text.startswith(first) and len(parts) == len(turns)
        for turn, part in zip(turns, parts, strict=False):
            content = turn.get("content")
            content = content if isinstance(content, str) else ""
            spoken = next(
                (c for c in (content, content.strip()) if text.startswith(c + part, at)), None
            )
            if not good or spoken is None:
                raise CapgapError(
                    f"{name}: a message spells a special token ({shown(content)}), and the chat "
                    "template changes messages, so the two cannot be distinguished; leave the "
                    "conversation out"
                )
            yield at, at + len(spoken)
            at += len(spoken) + len(part)

    def _rendered(self, name: str, turns: list[dict]) -> tuple[str, list[Span]]:
        """The text of a conversation, and the spans of its completions."""
        if MARKED.search(self.template):
            text, spans = self._render(name, turns, return_assistant_tokens_mask=True)
            return text, spans
        text, spans = self._render(name, turns)[0], []
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = self._render(name, turns[:number], add_generation_prompt=True)[0]
            behind = text
            if number + 1 < len(turns):
                behind = self._render(name, turns[: number + 1])[0]
            if not (behind.startswith(before) and text.startswith(behind)):
                raise CapgapError(
                    f"{name}: the chat template changes earlier turns once turn {number + 1} follows, "
                    "so completions cannot be separated from prompts; mark them in the template "
                    "with {% generation %}"
                )
            completion = behind[len(before) :].rstrip()
            if not any(completion.endswith(token) for token in self.special):
                completion = behind[len(before) :]
            spans.append((len(before), len(before) + len(completion)))
        return text, spans

    def _render(self, name: str, turns: list[dict], **options) -> tuple[str, list[Span]]:
        tokens = self.tokenizer.special_tokens_map
        try:
            rendered, spans = render_jinja_template(
                [turns], chat_template=self.template, **tokens, **options
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise CapgapError(
                f"{name}: the chat template refuses this conversation ({shown(str(error), 200)}); "
                "leave it out, or change it"
            ) from None
        return rendered[0], [(start, stop) for start, stop in (spans or [[]])[0]]


def _strings(value: Any) -> Iterator[str]:
    """All texts in a conversation."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
