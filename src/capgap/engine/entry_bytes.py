"""
The bytes of text that each entry of a vocabulary stands for.

Supported are byte-level tokenizers, whose pieces spell bytes by 256 printable characters (GPT-2, Llama 3,
Qwen), and those that write a space as U+2581, with or without byte fallback (SentencePiece).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from capgap.errors import CapgapError

SPACE = "\u2581"  # how SentencePiece writes a space
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # an entry of byte fallback


def entry_bytes(tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[bytes | None]:
    """Bytes of every entry by its id; None for special tokens and for ids that are no entry.

    folder: of the tokenizer, for the message. Raises CapgapError for a tokenizer whose pieces do not
    spell the text, as those of WordPiece.
    """
    byte_level, data = _kind(tokenizer, folder)
    added = {token["id"]: token for token in data["added_tokens"]}
    found: list[bytes | None] = [None] * (1 + max(tokenizer.get_vocab().values()))
    for piece, at in tokenizer.get_vocab().items():
        if at in added:
            found[at] = None if added[at]["special"] else piece.encode()
        else:
            found[at] = _spelled(piece) if byte_level else _plain(piece)
    return found


def written_by(
    tokenizer: PreTrainedTokenizerFast, folder: Path, parts: list[bytes | None]
) -> list[list[int] | None]:
    """The ids with which a tokenizer writes some bytes inside a word; None if it cannot spell them.

    folder: see `entry_bytes`.
    """
    byte_level, data = _kind(tokenizer, folder)
    own, vocab = entry_bytes(tokenizer, folder), tokenizer.get_vocab()
    model = tokenizer.backend_tokenizer.model
    added = {t["content"]: t["id"] for t in data["added_tokens"] if not t["special"]}
    longest_first = sorted(added, key=len, reverse=True)
    split = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    byte_entries = {chr(0xDC00 + byte): vocab.get(f"<0x{byte:02X}>") for byte in range(128, 256)}

    def plain(text: str) -> list[int | None]:
        """Of text without added tokens; bytes that are no characters are surrogates."""
        if byte_level:
            piece = "".join(CHARACTER[byte] for byte in text.encode(errors="surrogateescape"))
            return [token.id for token in model.tokenize(piece)] if piece else []
        ids: list[int | None] = []
        for whole, byte in re.findall("([^\udc80-\udcff]+)|([\udc80-\udcff])", text):
            if whole:
                ids += [token.id for token in model.tokenize(whole.replace(" ", SPACE))]
            else:
                ids.append(byte_entries[byte])
        return ids

    def ids_of(part: bytes) -> list[int | None]:
        text, at, ids = part.decode(errors="surrogateescape"), 0, []
        for found in split.finditer(text):
            ids += [*plain(text[at : found.start()]), added[found[0]]]
            at = found.end()
        return ids + plain(text[at:])

    written: list[list[int] | None] = []
    for part in parts:
        ids = ids_of(part) if part else []
        real = [i for i in ids if i is not None and i < len(own)]
        spelled = b"".join(own[i] or b"" for i in real)
        written.append(real if part and len(real) == len(ids) and spelled == part else None)
    return written


def _kind(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[bool, dict]:
    """Whether pieces spell bytes by characters, and the tokenizer's data; raises as `entry_bytes` does."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = {
        step.get("type") for part in ("pre_tokenizer", "decoder") for step in _steps(data[part])
    }
    byte_level = "ByteLevel" in kinds
    if not byte_level and SPACE not in json.dumps(data["decoder"], ensure_ascii=False):
        raise CapgapError(
            f"{folder}: its tokenizer ({data['model'].get('type')}) is neither byte-level nor of the kind "
            "of SentencePiece, so its tokens cannot be found in the bytes of the text, and a model with "
            "it cannot teach one with another tokenizer; take another teacher"
        )
    return byte_level, data


def _steps(part: Any) -> Iterator[dict]:
    """All steps of a part of a tokenizer, also of nested sequences."""
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from _steps(value)
    elif isinstance(part, list):
        for value in part:
            yield from _steps(value)


def _byte_of_character() -> dict[str, int]:
    """The byte that each of the 256 characters of a byte-level piece stands for.

    Printable bytes of Latin-1 stand for themselves, the others in their order for the characters from
    256 on (GPT-2).
    """
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    found = {chr(byte): byte for byte in own}
    found |= {chr(256 + place): byte for place, byte in enumerate(others)}
    assert set(found) == set(ByteLevel.alphabet())
    return found


BYTE_OF = _byte_of_character()
CHARACTER = {byte: character for character, byte in BYTE_OF.items()}


def _spelled(piece: str) -> bytes:
    """Bytes of a byte-level piece."""
    if all(character in BYTE_OF for character in piece):
        return bytes(BYTE_OF[character] for character in piece)
    return piece.encode()


def _plain(piece: str) -> bytes:
    """Bytes of a piece that writes spaces as U+2581."""
    byte = BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()
