"""
Folders and files that appear whole or not at all, and that are checked before they are used.

A folder artifact carries a `manifest.json` with the size and SHA-256 of every other file in it.
The manifest is written last, inside a temporary sibling that is then renamed, so a folder with a
manifest is complete. Either the folder or its manifest may be named on a command line.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capgap.errors import CapgapError
from capgap.records.checksums import compare, enter, files_below, is_dropping
from capgap.records.paths import MANIFEST
from capgap.records.reading import Unreadable, digest

FULL_BYTES = 2**16  # a disk with less free space is full


def folder_of(path: str | Path) -> Path:
    """The folder that a path names, given as the folder itself or as its manifest."""
    path = Path(path)
    return path.parent if path.name == MANIFEST else path


def check_replaceable(out: str | Path) -> None:
    """By hand, raise CapgapError for a folder with contents that is not an artifact."""
    out = folder_of(out)
    foreign = out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()
    if foreign and not os.environ.get("CAPGAP_UNDER_WORKFLOW"):  # which deletes manifests first
        raise CapgapError(
            f"{out}: has files but no {MANIFEST}, so it is not one of capgap's folders and will not "
            "be replaced; name a new folder, or empty this one"
        )


@contextmanager
def publish_folder(out: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success write its manifest and rename it to `out`.

    What stands at `out` is replaced, see `check_replaceable`.
    """
    out = folder_of(out)
    check_replaceable(out)
    with _temporary(out) as temporary:
        temporary.mkdir()
        yield temporary
        manifest = json.dumps(describe(temporary), indent=1, sort_keys=True) + "\n"
        (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(temporary, out)
        _enter(out / MANIFEST)


@contextmanager
def publish_file(out: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success rename it to `out`."""
    out = Path(out)
    with _temporary(out) as temporary:
        yield temporary
        os.replace(temporary, out)
        _enter(out)


def _enter(out: Path) -> None:
    """Note a result of a study in its ledger; by hand nothing is a result of a study."""
    if os.environ.get("CAPGAP_UNDER_WORKFLOW"):
        enter(out)


def write_text(out: str | Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    with publish_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    temporary = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except CapgapError:
        raise
    except Exception as error:
        if disk_is_full(out, error):
            raise CapgapError(
                f"{out}: no space left on the disk; nothing was kept of it. "
                "Free some space and run again: what was finished before is intact"
            ) from None
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def disk_is_full(path: str | Path, error: Exception | None = None) -> bool:
    """Whether a write failed for want of space, or without an error, whether there is none left.

    NumPy and safetensors raise errors of their own that do not carry the system's number.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if getattr(error, "errno", None) in numbers:
        return True
    if any(f"(os error {number})" in str(error) for number in numbers):
        return True
    there = next(p for p in Path(path).absolute().parents if p.is_dir())
    return shutil.disk_usage(there).free < FULL_BYTES


def describe(folder: Path) -> dict:
    """Contents of a folder as a manifest: {"files": {name: {"bytes", "sha256"}}}."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
            for name in names
            if name != MANIFEST and not is_dropping(Path(name).name)
        }
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    return digest(path)


def differences(folder: str | Path) -> list[str]:
    """What in a folder is not as its manifest says, one sentence each; empty if all is well."""
    folder = folder_of(folder)
    manifest = (folder / MANIFEST).as_posix()
    try:
        entries = {manifest: {sha256(folder / MANIFEST)}}
    except Unreadable as error:
        return [str(error)]
    files = {name: Path(name) for name in files_below(folder)}
    return compare(manifest, files, entries).sentences()


def intact(folder: Path) -> bool:
    """Whether a folder is there and as its manifest says."""
    return (folder / MANIFEST).is_file() and not differences(folder)


def open_folder(path: str | Path) -> Path:
    """The folder that a path names, checked against its manifest where it has one.

    Raises CapgapError for a missing folder and for files that are missing or changed.
    """
    folder = folder_of(path)
    if not folder.is_dir():
        raise CapgapError(f"{folder}: no such folder; check the path")
    problems = differences(folder) if (folder / MANIFEST).exists() else []
    if problems:
        raise CapgapError(
            "; ".join(problems)
            + f". Fetch the folder again (capgap pull --force {folder}; all that is missing: "
            "capgap pull --models), or delete it and run again"
        )
    return folder


def is_first_process() -> bool:
    """Whether this is the only process of its job, or the first of those that torchrun started;
    it alone writes."""
    return os.environ.get("RANK", "0") == "0"
