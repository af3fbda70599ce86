"""
The transformers class for causal language modelling that a folder's config.json describes.

Folders of models for text and images hold a language model among other parts. Only that is loaded; its
configuration is their `text_config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from capgap.engine.foreign import without_asking
from capgap.engine.weight_files import Weights
from capgap.errors import CapgapError
from capgap.records.reading import read_json

AT_LEAST_ONE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "n_embd", "n_layer", "n_head",
)  # fmt: skip
MOST_LAYERS = 10_000  # or as many as there are tensors
# Names of the language model's tensors inside a wrapper, as wrappers of all times write them
IN_WRAPPER = {
    r"^(?:model\.)?language_model\.model\.": "model.",
    r"^(?:model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.": "model.",
}


class ModelClass(NamedTuple):
    """A class, the settings of its configuration, and whether the folder holds other parts too."""

    architecture: type[PreTrainedModel]
    settings: dict
    wrapped: bool


def read_settings(folder: Path) -> dict:
    """Contents of config.json without keys that name code, kernels or files.

    Raises CapgapError if there is none or it is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        raise CapgapError(
            f"{folder}: no config.json, so this is not a Hugging Face model folder; name the folder "
            "that holds config.json and the weights"
        )
    return without_asking(read_json(path))


def model_class(folder: Path, settings: dict) -> ModelClass:
    """The class for the settings in a folder's config.json.

    Raises CapgapError for quantised weights, and for a kind of model without a class for causal
    language modelling.
    """
    path = folder / "config.json"
    quantised = settings.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise CapgapError(
            f"{path}: quantization_config: the weights are quantised ({method or 'unknown method'}), "
            "and neither training nor pruning can use them; take the unquantised model"
        )
    kind, names = settings.get("model_type"), settings.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    name = name if isinstance(name, str) else None
    inner = settings.get("text_config")
    if isinstance(inner, dict) and isinstance(kind, str) and kind in CONFIG_MAPPING:
        text_kind = inner.get("model_type") or CONFIG_MAPPING[kind]().get_text_config().model_type
        if found := _of_kind(text_kind, None):
            shared = {key: settings[key] for key in SHARED if key in settings}
            return ModelClass(found, shared | inner, wrapped=True)
    found = _of_kind(kind, name)
    if found is None:
        raise CapgapError(
            f"{path}: transformers knows no causal language model for architecture {name or '(none)'} "
            f"and model_type {kind or '(none)'}; correct the two, or take another model"
        )
    return ModelClass(found, settings, wrapped=False)


SHARED = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype")


def _of_kind(kind: object, name: str | None) -> type[PreTrainedModel] | None:
    """The class of this name if it is for causal language modelling, or the one of a model type."""
    known = {}
    for one, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        known[one] = [names] if isinstance(names, str) else list(names)
    if name in {n for names in known.values() for n in names}:
        chosen = name
    else:
        chosen = known[kind][0] if isinstance(kind, str) and kind in known else None
    return getattr(transformers, chosen, None) if chosen else None


def names_in_wrapper(weights: Weights) -> set[str]:
    """Names that the language model's tensors in a wrapper have in its own class."""
    return {
        re.sub(pattern, name, key, count=1)
        for key in weights.tensors
        for pattern, name in IN_WRAPPER.items()
        if re.match(pattern, key)
    }


def check_sizes(folder: Path, settings: dict, weights: Weights) -> None:
    """Raise CapgapError for sizes that the weights cannot have, before anything is built of them."""
    for key, value in settings.items():
        if isinstance(value, dict):
            check_sizes(folder, value, weights)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if key in AT_LEAST_ONE and value < 1:
            raise CapgapError(
                f"{folder}/config.json: {key} is {value}, but must be at least 1; correct it, or fetch "
                "the model again"
            )
        if re.search(r"layers?$", key):
            most = max(MOST_LAYERS, len(weights.tensors))
        elif re.search(
            r"(hidden|intermediate|vocab|ffn|inner|embed).*size$|dim$|embd$|heads$", key
        ):
            most = max(10_000, weights.elements)
        else:
            continue
        if value > most:
            raise CapgapError(
                f"{folder}/config.json: {key} is {value:,}, but all its weights are {weights.elements:,} "
                f"numbers in {len(weights.tensors):,} tensors; correct it, or fetch the model again"
            )


def cause(error: Exception, settings: dict, view: str = "\0") -> str:
    """Why a library refuses a configuration, in a line, with the key whose value it refuses.

    view: a temporary folder whose name is kept out of the message.
    """
    lines = [line.strip() for line in str(error).replace(view, "the folder").splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    if lines[0].endswith(":") and len(lines) > 1:  # the validator, then what it found
        lines = lines[1:]
    text = re.sub(r"^\w+Error: ", "", lines[0])
    for key, value in _texts(settings):
        if repr(value) == text:  # a KeyError
            return f"{key} is {text}, which transformers does not have"
        if repr(value) in text and key not in text:
            return f"{key} is {value!r}: {text}"
    return f"nothing is named {text}" if isinstance(error, KeyError) else text


def _texts(settings: dict) -> Iterator[tuple[str, str]]:
    """Keys and values of settings that are text, also those inside others."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _texts(value)
        elif isinstance(value, str) and key != "model_type":
            yield key, value
