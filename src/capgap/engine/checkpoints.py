"""
Checkpoints of an unfinished training run: written atomically, verified when read, few in number.

A checkpoint is a folder artifact `step-<n>` with model and optimizer state as safetensors. Tensors
are stored unsharded by parameter name, so any number of processes can write or read it. A torn one
does not match its manifest and is skipped for the one before it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from capgap.engine.parallel import ONE_PROCESS, DistContext, like, whole_tensor
from capgap.errors import CapgapError
from capgap.records.artifacts import intact, is_first_process, publish_folder

KEEP = 2
WEIGHTS, MOMENTS, NOTES = "model.safetensors", "optimizer.safetensors", "notes.json"


def save(
    scratch: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, notes: dict
) -> None:
    """Save the state after `step` steps; `notes` is the loop's own state, as JSON."""
    write(_folder_of(scratch, step), step, model, optimizer, notes)
    for old in _steps(scratch)[KEEP:] if is_first_process() else []:
        shutil.rmtree(old)


def load_latest(
    scratch: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    at_most: int | None = None,
    dist: DistContext = ONE_PROCESS,
) -> tuple[int, dict] | None:
    """Restore the newest intact state in place; returns (steps done, notes), None if there is none.

    at_most: states after more steps than this are skipped. The first process checks the states.
    """
    step = dist.sum(torch.tensor(_newest_step(scratch, at_most) if dist.rank == 0 else 0)).item()
    return None if step < 0 else load(_folder_of(scratch, step), model, optimizer)


def _newest_step(scratch: Path, at_most: int | None) -> int:
    """Steps done in the newest intact state, -1 if there is none."""
    for folder in _steps(scratch):
        step = int(folder.name.removeprefix("step-"))
        if at_most is not None and step > at_most:
            continue
        if whole(folder):
            return step
        print(f"checkpoint {folder} is damaged and was skipped", flush=True)
    return -1


def _folder_of(scratch: Path, step: int) -> Path:
    return scratch / f"step-{step:09d}"


def whole(folder: Path) -> bool:
    """Whether a checkpoint exists and none of its files is missing or damaged."""
    return intact(folder, WEIGHTS, MOMENTS, NOTES)


def latest(scratch: Path) -> Path | None:
    """Folder of the newest checkpoint that can be resumed from, None if there is none."""
    return next(filter(whole, _steps(scratch)), None)


def write(
    folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, notes: dict
) -> None:
    """Write the state after `step` steps as one folder artifact; only the first process writes."""
    weights = whole_weights(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": _on_first(value)
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
    }
    if not is_first_process():
        return
    with publish_folder(folder, ours=True) as temporary:
        save_file(weights, temporary / WEIGHTS)
        save_file(moments, temporary / MOMENTS)
        (temporary / NOTES).write_text(json.dumps({"step": step} | notes), encoding="utf-8")


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole parameters by name; empty tensors on all processes but the first."""
    return {name: _on_first(p.detach()) for name, p in model.named_parameters()}


def _on_first(tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor in main memory of the first process, one at a time."""
    whole = whole_tensor(tensor)
    return whole.contiguous().cpu() if is_first_process() else whole.new_empty(0)


def load(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict]:
    """Restore a state in place; returns (steps done, notes)."""
    if not folder.is_dir():
        raise CapgapError(
            f"{folder}: the first process has this state and another does not see it; put scratch "
            "where all processes see the same files"
        )
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(like(parameter, weights[name]))
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / MOMENTS).items():
        name, key = key.rsplit("/", 1)
        moments.setdefault(name, {})[key] = value
    for name, parameter in model.named_parameters() if moments else ():  # none before a first step
        optimizer.state[parameter] = {
            key: like(parameter, value).to(parameter.device)
            if value.shape == parameter.shape
            else value.to(parameter.device)
            for key, value in moments[name].items()
        }
    notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    return notes["step"], notes


def _steps(scratch: Path) -> list[Path]:
    """Checkpoints, newest first."""
    found = (p for p in scratch.glob("step-*") if p.name[5:].isdecimal() and p.is_dir())
    return sorted(found, reverse=True)
