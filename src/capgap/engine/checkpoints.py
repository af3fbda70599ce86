"""
Checkpoints of an unfinished training run: written atomically, verified when read, few in number.

A checkpoint is a folder artifact `step-<n>` with model and optimizer state as safetensors, by parameter
name. Processes that hold shards of a model write the parts that they hold (engine/saving.py). Any number of
processes can read a state. A torn one does not match its manifest and is skipped for the one before it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from capgap.engine.parallel import ONE_PROCESS, DistContext, whole_tensor
from capgap.engine.state_files import MOMENTS, SAME_FILES, WEIGHTS, StateFiles, name_of
from capgap.errors import CapgapError
from capgap.records.artifacts import is_first_process, publish_folder
from capgap.records.checksums import read_manifest
from capgap.records.paths import MANIFEST
from capgap.records.reading import Unreadable, digest, read_json

KEEP = 2
NOTES = "notes.json"


def save(
    scratch: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, notes: dict
) -> None:
    """Save the state after `step` steps; `notes` is the loop's own state, as JSON."""
    write(folder_of(scratch, step), step, model, optimizer, notes)
    prune(scratch, step)


def prune(scratch: Path, step: int) -> None:
    """Remove all but the newest states up to this step; the first process does it.

    States of later steps were skipped when the run was resumed, and would outlast every new one.
    """
    newest, states = folder_of(scratch, step), _steps(scratch)
    kept = [path for path in states if path.name <= newest.name][:KEEP]
    for path in states if is_first_process() else []:
        if path not in kept:
            shutil.rmtree(path)


def load_latest(
    scratch: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    at_most: int | None = None,
    dist: DistContext = ONE_PROCESS,
) -> tuple[int, dict] | None:
    """Restore the newest intact state in place; returns (steps done, notes), None if there is none.

    at_most: states after more steps than this are skipped. Each process checks some of the files.
    """
    skipped = False
    while (step := _newest_step(scratch, at_most, dist)) >= 0:
        folder = folder_of(scratch, step)
        if is_whole(folder, dist):
            return load(folder, model, optimizer)
        _say(f"checkpoint {folder} is damaged and was skipped", dist)
        skipped, at_most = True, step - 1
    if skipped:
        _say("no other checkpoint is left, so the run begins again", dist)
    return None


def _say(text: str, dist: DistContext) -> None:
    if dist.rank == 0:
        print(text, flush=True)


def _newest_step(scratch: Path, at_most: int | None, dist: DistContext) -> int:
    """Steps done in the newest state that the first process finds, -1 if there is none."""
    steps = (int(path.name.removeprefix("step-")) for path in _steps(scratch))
    found = next((step for step in steps if at_most is None or step <= at_most), -1)
    return int(dist.sum(torch.tensor(found if dist.rank == 0 else 0)).item())


def folder_of(scratch: Path, step: int) -> Path:
    """Where the state after some steps lies."""
    return scratch / f"step-{step:09d}"


def is_whole(folder: Path, dist: DistContext = ONE_PROCESS) -> bool:
    """Whether a checkpoint exists and none of its files is missing or damaged.

    dist: the processes that share the reading; all get the same answer. Raises CapgapError if only some
    of them see the folder, or if it cannot be read.
    """
    error, matches, there = None, False, (folder / MANIFEST).is_file()
    try:
        matches = there and _matches(folder, dist)
    except OSError as failure:
        error = failure
    dist.agree(error, f"{folder}: reading it")
    some, not_all, damaged = dist.any_process(there, not there, not matches)
    if some and not_all:
        raise CapgapError(
            f"{folder}: some processes of the job see this state and others do not; {SAME_FILES}"
        )
    return not damaged


def _matches(folder: Path, dist: DistContext) -> bool:
    """Whether the manifest lists all files of a state, and this process's share of them matches it."""
    try:
        listed = read_manifest(folder / MANIFEST)
        parts = read_json(folder / NOTES).get("parts", 1)
        needed = {name_of(kind, i, parts) for kind in (WEIGHTS, MOMENTS) for i in range(parts)}
        if not listed.keys() >= needed | {NOTES}:
            return False
        return all(
            (folder / name).stat().st_size == listed[name].size
            and digest(folder / name) == listed[name].sha256
            for name in dist.deal(sorted(listed))
        )
    except (Unreadable, FileNotFoundError, NotADirectoryError):
        return False


def latest(scratch: Path) -> Path | None:
    """Folder of the newest checkpoint that can be resumed from, None if there is none."""
    return next(filter(is_whole, _steps(scratch)), None)


def write(
    folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, notes: dict
) -> None:
    """Write the state after `step` steps as one folder artifact; only the first process writes.

    The model must not be sharded (see engine/saving.py).
    """
    if not is_first_process():
        return
    with publish_folder(folder, ours=True) as temporary:
        for kind, tensors in state(model, optimizer).items():
            held = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
            save_file(held, temporary / name_of(kind))
        write_notes(temporary, step, notes)


def write_notes(folder: Path, step: int, notes: dict) -> None:
    """Write the training loop's own state."""
    (folder / NOTES).write_text(json.dumps({"step": step} | notes), encoding="utf-8")


def state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of a state by kind and name, where they are."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": value
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
    }
    return {
        WEIGHTS: {name: parameter.detach() for parameter, name in names.items()},
        MOMENTS: moments,
    }


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole parameters by name; empty tensors on all processes but the first."""
    return {name: _on_first(p.detach()) for name, p in model.named_parameters()}


def _on_first(tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor in main memory of the first process, one at a time."""
    whole = whole_tensor(tensor)
    return whole.contiguous().cpu() if is_first_process() else whole.new_empty(0)


@torch.no_grad()
def load(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict]:
    """Restore a state in place; returns (steps done, notes). Each process reads what it holds."""
    notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    parts = notes.pop("parts", 1)
    weights, moments = (StateFiles(folder, kind, parts) for kind in (WEIGHTS, MOMENTS))
    keys: dict[str, list[str]] = {}
    for name in moments:  # none before a first step
        keys.setdefault(name.rsplit("/", 1)[0], []).append(name)
    for name, parameter in model.named_parameters():
        weights.fill(name, parameter)
        for key in keys.get(name, ()):
            optimizer.state[parameter][key.rsplit("/", 1)[1]] = moments.like(key, parameter)
    return notes["step"], notes


def _steps(scratch: Path) -> list[Path]:
    """Checkpoints, newest first."""
    found = (p for p in scratch.glob("step-*") if p.name[5:].isdecimal() and p.is_dir())
    return sorted(found, reverse=True)
