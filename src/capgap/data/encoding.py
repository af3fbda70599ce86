"""
Text to token ids. A text that spells a special token, like `<|endoftext|>`, is encoded character by
character, because only the packer may mark the beginning and the end of documents.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerFast

from capgap.data.boundaries import Boundaries, vocabulary_size
from capgap.errors import CapgapError


class Encoder:
    """Encodes documents with a tokenizer, without special tokens except those in `around`.

    around: ids before and after every document; none if None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, around: Boundaries | None = None):
        self.tokenizer, self.around = tokenizer, around or Boundaries([], [])
        self.entries = vocabulary_size(tokenizer)
        self.dtype = np.uint16 if self.entries <= 2**16 else np.uint32
        self.eos = tokenizer.eos_token_id
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()

    def encode(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Ids of each text, arrays of `dtype`; CapgapError if a text contains the end-of-text token."""
        texts = list(texts)
        self.backend.encode_special_tokens = True  # leave those of the text unrecognised
        found = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        arrays = [np.array(encoding.ids, dtype=self.dtype) for encoding in found]
        for text, ids in zip(texts, arrays, strict=True):
            if self.eos is not None and self.eos in ids:
                at = text.find(self.tokenizer.eos_token)
                raise CapgapError(
                    f"the text around {text[max(0, at - 20) : at + 20]!r} holds the end-of-text token "
                    f"{self.tokenizer.eos_token!r} as a word of its own, which this tokenizer encodes "
                    "like the end of a document; change the text, or the tokenizer's eos_token"
                )
        return arrays

    def documents(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Ids of each text as a document, between the ids `around`."""
        before, after = (np.array(ids, dtype=self.dtype) for ids in self.around)
        return [np.concatenate([before, ids, after]) for ids in self.encode(texts)]
