"""
Checks of model folders from outside, made before any library opens them.

A configuration can name code, kernels, other files and other models, and a link or an index of
shards can lead out of the folder. None of these is followed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers import PreTrainedModel

from capgap.errors import CapgapError
from capgap.records.paths import is_inside
from capgap.records.reading import Unreadable, read_json

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Keys of config.json and tokenizer_config.json that name code, kernels or files.
ASKING = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "kernel_config",
    "custom_generate",
    "custom_pipelines",
    "transformers_weights",
)


def check_folder(folder: Path) -> None:
    """Raise CapgapError for a folder that leads out of itself."""
    here = folder.resolve()
    homes = [here]
    if here.parent.name == "snapshots":  # the hub's cache links its files to blobs beside these
        homes.append(here.parent.parent / "blobs")
    for path in sorted(folder.rglob("*")):
        # unlike Path.resolve, this does not raise for a link that leads back to itself
        real = Path(os.path.realpath(path))
        if path.is_symlink() and not any(real.is_relative_to(home) for home in homes):
            raise CapgapError(
                f"{path} is a link that leads out of its folder, to {real}, so it is not "
                "read; put the file itself there"
            )
    if (folder / ADAPTER).exists():
        raise CapgapError(
            f"{folder / ADAPTER}: this folder is an adapter for a model that is elsewhere; merge the "
            "two into one model first"
        )
    if (folder / INDEX).exists():
        try:
            shards = set(read_json(folder / INDEX)["weight_map"].values())
        except (KeyError, TypeError, AttributeError):
            raise Unreadable(f"{folder / INDEX} is damaged: it has no weight_map") from None
        for name in shards:
            if not (isinstance(name, str) and is_inside(name) and name.endswith(".safetensors")):
                raise CapgapError(
                    f"{folder / INDEX} names {name!r}, which is no .safetensors file in its folder, so "
                    "it is not read; fetch the model again from where it is whole"
                )


def without_asking(settings: dict) -> dict:
    """Settings of a model or tokenizer, also those inside others, without code, kernels and files."""
    return {
        key: without_asking(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in ASKING
    }


def copy_settings(source: Path, target: Path) -> None:
    """Copy a JSON file of a tokenizer without keys that name code, kernels or files."""
    settings = read_json(source)
    kept = without_asking(settings)
    text = source.read_text(encoding="utf-8")
    if kept != settings:
        text = json.dumps(kept, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    target.write_text(text, encoding="utf-8")


def attention_of(architecture: type[PreTrainedModel]) -> str:
    """The attention implementation of a class; its configuration's choice is ignored."""
    return "sdpa" if getattr(architecture, "_supports_sdpa", False) else "eager"
