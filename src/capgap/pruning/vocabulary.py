"""
Trim a vocabulary to the entries that a text uses: the rows of the model and the tokenizer together.

Only tokenizers with byte-pair encoding are supported. Entries that no merge produces stay (bytes or
characters, special tokens), so every text still encodes and decodes to itself. Keeping an entry
keeps, recursively, the merges that produce it and their parts. If all entries that a text uses stay,
the text encodes to the same pieces as before, because every merge that was applied to it exists, in
the same order, and no removed one was applied.
"""

# V entries of the vocabulary

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from capgap.data.boundaries import vocabulary_size
from capgap.data.encoding import Encoder
from capgap.engine.models import load_tokenizer
from capgap.errors import CapgapError
from capgap.pruning.surgery import cut, keep_all
from capgap.records.reading import read_json

CONFIG_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id")


def trim(
    model: PreTrainedModel, tokenizer_folder: Path, texts: Iterable[str], entries: int | None
) -> PreTrainedModel:
    """The model with a trimmed vocabulary; the tokenizer in `tokenizer_folder` is rewritten.

    texts: entries used in them are kept. entries: at most so many, the most frequent ones; all used
    ones if None. Consumes `model`, as `cut` does. Raises CapgapError for a tokenizer that is not a
    byte-pair encoding, for one with more entries than the model, and for too few `entries`.
    """
    path = tokenizer_folder / "tokenizer.json"
    tokenizer, data = load_tokenizer(tokenizer_folder), read_json(path)
    size = vocabulary_size(tokenizer)
    if size > model.config.vocab_size:
        raise CapgapError(
            f"{tokenizer_folder}: {size} entries, but the model has only "
            f"{model.config.vocab_size}; name the tokenizer of this model"
        )
    counts_V = np.zeros(size, dtype=np.int64)
    encoder = Encoder(tokenizer)
    for text in texts:
        [ids] = encoder.encode([text])
        counts_V += np.bincount(ids, minlength=size)
    configs = [model.config, model.generation_config]
    named = {i for config in configs for i in named_ids(config) if i < size}
    kept = kept_entries(data, counts_V, entries, always=named)
    place = {int(old): new for new, old in enumerate(kept)}
    path.write_text(json.dumps(_trimmed(data, place), ensure_ascii=False), encoding="utf-8")
    _rewrite_settings(tokenizer_folder / "tokenizer_config.json", place)
    for config in configs:  # before the cut: a padding entry must lie inside the new table
        rename_ids(config, place)
    return cut(model, keep_all(model)._replace(vocab=kept))


def kept_entries(
    data: dict, counts_V: np.ndarray, entries: int | None, always: Iterable[int] = ()
) -> np.ndarray:
    """Ids to keep, ascending: base entries, then the most used ones that fit together with their parts.

    data: tokenizer.json. counts_V: uses of each id. always: ids to keep whatever their count.
    """
    if data["model"]["type"] != "BPE":
        raise CapgapError(
            f"a {data['model']['type']} tokenizer cannot be trimmed, only byte-pair encodings (BPE); "
            "leave the vocabulary as it is"
        )
    parts = _parts(data)
    vocab = vocabulary_of(data)
    kept = {i for i in vocab.values() if i not in parts}
    for i in always:
        kept |= _with_parts(i, parts)
    if entries is not None and entries < len(kept):
        raise CapgapError(
            f"a vocabulary of {entries} entries is too small for the {len(kept)} bytes and special "
            "tokens, which are always kept; raise it"
        )
    used = np.flatnonzero(counts_V)
    for i in used[np.argsort(-counts_V[used], kind="stable")].tolist():
        if i not in kept:
            more = _with_parts(i, parts) - kept
            if entries is None or len(kept) + len(more) <= entries:
                kept |= more
    return np.array(sorted(kept), dtype=np.int64)


def vocabulary_of(data: dict) -> dict[str, int]:
    """Id of every entry by its text, added ones included."""
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    return data["model"]["vocab"] | added


def merges_of(data: dict) -> list[tuple[str, ...]]:
    """Merges as pairs; older files write a pair as one text with a space."""
    return [
        tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in data["model"]["merges"]
    ]


def _parts(data: dict) -> dict[int, set[int]]:
    """Ids of the two halves of every merge that produces an id, by that id."""
    vocab, parts = data["model"]["vocab"], defaultdict(set)
    added = {token["id"] for token in data["added_tokens"]}
    prefix = data["model"].get("continuing_subword_prefix") or ""
    for first, second in merges_of(data):
        result = vocab[first + second.removeprefix(prefix)]
        if result not in added:
            parts[result] |= {vocab[first], vocab[second]}
    return dict(parts)


def _with_parts(entry: int, parts: dict[int, set[int]]) -> set[int]:
    """An id and, recursively, the ids that merges build it from."""
    found, pending = set(), [entry]
    while pending:
        i = pending.pop()
        if i not in found:
            found.add(i)
            pending += parts.get(i, ())
    return found


def _trimmed(data: dict, place: dict[int, int]) -> dict:
    """tokenizer.json with only the ids in `place`, at their new places."""
    model = data["model"]
    vocab = {text: place[i] for text, i in model["vocab"].items() if i in place}
    prefix = model.get("continuing_subword_prefix") or ""
    merges = [
        [first, second]
        for first, second in merges_of(data)
        if {first, second, first + second.removeprefix(prefix)} <= vocab.keys()
    ]
    added = [token | {"id": place[token["id"]]} for token in data["added_tokens"]]
    padding = data.get("padding")
    return data | {
        "model": model
        | {"vocab": dict(sorted(vocab.items(), key=lambda e: e[1])), "merges": merges},
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "post_processor": _placed(data.get("post_processor"), place),
        "padding": padding and padding | {"pad_id": place[padding["pad_id"]]},
    }


def _placed(processor: dict | None, place: dict[int, int]) -> dict | None:
    """A post-processor with the new ids of the special tokens it adds."""
    match processor:
        case None | {"type": "ByteLevel"}:
            return processor
        case {"type": "Sequence", "processors": several}:
            return processor | {"processors": [_placed(one, place) for one in several]}
        case {"type": "TemplateProcessing", "special_tokens": tokens}:
            moved = {
                name: token | {"ids": [place[i] for i in token["ids"]]}
                for name, token in tokens.items()
            }
            return processor | {"special_tokens": moved}
    raise CapgapError(
        f"a tokenizer with a {processor['type']} post-processor cannot be trimmed; leave the "
        "vocabulary as it is"
    )


def _rewrite_settings(path: Path, place: dict[int, int]) -> None:
    """Update the ids of added tokens in the tokenizer's settings."""
    if not path.is_file():
        return
    settings = read_json(path)
    if "added_tokens_decoder" in settings:
        added = settings["added_tokens_decoder"]
        settings["added_tokens_decoder"] = {str(place[int(i)]): t for i, t in added.items()}
    text = json.dumps(settings, ensure_ascii=False, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def named_ids(config) -> list[int]:
    """Ids of special tokens that a configuration names."""
    values = [getattr(config, key, None) for key in CONFIG_IDS]
    return [i for v in values for i in (v if isinstance(v, list) else [v]) if i is not None]


def rename_ids(config, place: dict[int, int]) -> None:
    """Give the special tokens that a configuration names their new ids, in place."""
    for key in CONFIG_IDS:
        value = getattr(config, key, None)
        if isinstance(value, list):
            setattr(config, key, [place[i] for i in value if i in place])
        elif value is not None:
            setattr(config, key, place.get(value))
