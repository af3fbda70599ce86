"""
The state of an unfinished training run: saved whole, checked when read, bounded in number.

A checkpoint is a folder artifact `step-<n>` with model and optimizer state as safetensors. A torn
one does not match its manifest and is passed over for the one before it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from capgap.artifacts import differences, publish_folder
from capgap.paths import MANIFEST

KEEP = 2
NOTES = "notes.json"


def save(
    scratch: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, notes: dict
) -> None:
    """Save the state after `step` steps; `notes` is what the loop must remember, as JSON."""
    write(scratch / f"step-{step:09d}", step, model, optimizer, notes)
    for old in _steps(scratch)[KEEP:]:
        shutil.rmtree(old)


def load_latest(
    scratch: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    at_most: int | None = None,
) -> tuple[int, dict] | None:
    """Restore the newest intact state in place; (steps done, notes), or None to start afresh.

    at_most: steps beyond which states are passed over.
    """
    for folder in _steps(scratch):
        if at_most is not None and int(folder.name.removeprefix("step-")) > at_most:
            continue
        if intact(folder):
            return load(folder, model, optimizer)
        print(f"checkpoint {folder} is damaged and passed over", flush=True)
    return None


def latest(scratch: Path) -> Path | None:
    """Folder of the newest checkpoint, None where there is none."""
    return next(iter(_steps(scratch)), None)


def write(
    folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, notes: dict
) -> None:
    """Write the state after `step` steps as one folder artifact."""
    with publish_folder(folder) as temporary:
        weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        save_file(weights, temporary / "model.safetensors")
        state = optimizer.state_dict()["state"]
        flat = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
        save_file(flat, temporary / "optimizer.safetensors")
        (temporary / NOTES).write_text(json.dumps({"step": step} | notes), encoding="utf-8")


def intact(folder: Path) -> bool:
    """Whether a folder is there and as its manifest says."""
    return (folder / MANIFEST).is_file() and not differences(folder)


def load(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict]:
    """Restore a state in place; (steps done, notes)."""
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    return notes["step"], notes


def _steps(scratch: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(scratch.glob("step-*"), reverse=True) if scratch.is_dir() else []
