"""The importance of a model on disk, tied to the weights it was measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

from capgap.engine.weight_files import weight_files
from capgap.errors import CapgapError
from capgap.pruning.importance import Importance
from capgap.records.artifacts import open_folder
from capgap.records.reading import digest

FILE = "importance.safetensors"
# the only entry, because safetensors writes several in no fixed order
WEIGHTS_KEY = "weights_sha256"


def weights_digest(model_folder: Path) -> str:
    """SHA-256 over names and contents of a model's weight files, 64 hexadecimal digits."""
    files = weight_files(model_folder)
    text = "".join(f"{file.name} {digest(file)}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def write_importance(folder: Path, importance: Importance, weights_sha256: str) -> None:
    """Write scores into a folder. weights_sha256: `weights_digest` of the model they belong to."""
    save_file(importance._asdict(), folder / FILE, metadata={WEIGHTS_KEY: weights_sha256})


def read_importance(path: Path, model_folder: Path) -> Importance:
    """Scores of a folder. Raises CapgapError if they were measured on other weights."""
    folder = open_folder(path)
    if not (folder / FILE).is_file():
        raise CapgapError(f"{folder}: no {FILE}; make the folder with capgap score")
    with safe_open(folder / FILE, framework="numpy") as file:
        if (file.metadata() or {}).get(WEIGHTS_KEY) != weights_digest(model_folder):
            raise CapgapError(
                f"{folder}: the scores were measured on other weights than those of "
                f"{model_folder}; score this model, or name the model the scores belong to"
            )
        if set(file.keys()) != set(Importance._fields):
            raise CapgapError(
                f"{folder}: holds scores of {', '.join(sorted(file.keys()))} instead of "
                f"{', '.join(Importance._fields)}; score the model again"
            )
        return Importance(*(file.get_tensor(name) for name in Importance._fields))
