"""
Publish folders and files whole or not at all, and check them before they are used.

A folder artifact carries a `manifest.json` with the size and SHA-256 of every other file in it.
Whatever is published is written into a temporary folder beside its place, put on the disk (fsync),
and exchanged with the previous one in one step, so a kill or a power loss at any moment leaves either
the old or the new. A command line may name either a folder or its manifest.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from capgap.errors import CapgapError
from capgap.records.checksums import compare, enter, files_below, is_dropping, read_manifest
from capgap.records.paths import MANIFEST
from capgap.records.reading import Unreadable, digest

FULL_BYTES = 2**16  # a disk with less free space counts as full
FULL_INODES = 4  # likewise
LOCK = ".lock"  # in a temporary folder, held by the process that fills it
NEW, OLD = "new", "old"  # in a temporary folder
NAME_BYTES = 255  # of a file name, on all file systems in use


def folder_of(path: str | Path) -> Path:
    """The folder that a path names, given as the folder itself or as its manifest."""
    path = Path(path)
    return path.parent if path.name == MANIFEST else path


def check_folder(out: str | Path, *, ours: bool = False) -> Path:
    """The real path, links followed, of a folder that is about to be written or replaced.

    Call it before the work. ours: nobody but capgap writes to this folder, so its contents are not
    checked. Raises CapgapError if a folder cannot be put there, or if it would replace files that
    are not capgap's.
    """
    out = folder_of(out)
    real = _real_place(out)
    if os.path.lexists(real) and not os.path.isdir(real):
        raise CapgapError(f"{out}: is a file, and a folder is to be written; name a folder")
    if os.path.ismount(real) or Path.cwd().is_relative_to(real):
        raise CapgapError(
            f"{out}: is replaced as a whole, which is not possible for a mount point or the folder "
            "that the command runs in; name a new folder inside it"
        )
    if not ours and "CAPGAP_UNDER_WORKFLOW" not in os.environ:  # Snakemake deletes manifests
        _refuse_foreign(out, real)
    return real


def check_file(out: str | Path) -> Path:
    """The real path, links followed, of a file to be written; CapgapError if it cannot be written."""
    out = Path(out)
    real = _real_place(out)
    if os.path.isdir(out):
        raise CapgapError(f"{out}: is a folder, and a file is to be written; name a file in it")
    if os.path.exists(out) and not os.path.isfile(out):
        raise CapgapError(f"{out}: is not a regular file and will not be replaced; name another")
    return real


def check_filled(out: str | Path, folders: Iterable[str], files: Iterable[str]) -> Path:
    """The real path of an existing or new folder in which artifacts are written one by one.

    Raises CapgapError if one of `folders` or `files` in it cannot be written.
    """
    real = _real_place(Path(out))
    if os.path.lexists(real) and not os.path.isdir(real):
        raise CapgapError(f"{out}: is a file, and a folder is to be filled; name a folder")
    for name in folders:
        check_folder(real / name)
    for name in files:
        check_file(real / name)
    return real


def _real_place(out: Path) -> Path:
    """`out` with links followed. Raises CapgapError if nothing can be written there."""
    if os.path.islink(out) and not os.path.exists(out):
        raise CapgapError(
            f"{out}: is a link to {os.readlink(out)}, which does not exist; make that first, or name "
            "another place"
        )
    real = Path(os.path.realpath(out))
    if long := [part for part in real.parts if len(os.fsencode(part)) > NAME_BYTES]:
        raise CapgapError(f"{out}: {long[0][:20]}... is longer than {NAME_BYTES} bytes; shorten it")
    there = next(path for path in real.parents if os.path.lexists(path))
    if not os.path.isdir(there):
        raise CapgapError(f"{out}: {there} is not a folder; name a place in a folder")
    for folder in [there, *([real] if os.path.isdir(real) else [])]:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CapgapError(
                f"{out}: {folder} cannot be written to; make it writable (chmod u+w, or mount it "
                "read-write), or name another place"
            )
    return real


def _refuse_foreign(out: Path, real: Path) -> None:
    """Raise CapgapError for a folder with a file that its manifest does not name."""
    here = {p.relative_to(real).as_posix() for p in real.rglob("*") if not p.is_dir()}
    here = {name for name in here - {MANIFEST} if not PurePosixPath(name).name.startswith(".")}
    try:
        foreign = here - read_manifest(real / MANIFEST).keys() if here else set()
    except CapgapError:
        foreign = here
    if foreign:
        raise CapgapError(
            f"{out}: has {min(foreign)}, which no {MANIFEST} of capgap names, so the folder will not "
            "be replaced; name a new folder, or empty this one"
        )


@contextmanager
def publish_folder(
    out: str | Path,
    *,
    manifest: bool = True,
    ours: bool = False,
    known: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Path]:
    """Yield an empty temporary folder; on success write its manifest and put it in place of `out`.

    What was at `out` is replaced, see `check_folder`. manifest: whether to write one; exports have
    none. known: SHA-256, when the folder is filled, of files that need not be read for it; such files
    may have been written on other machines.
    """
    named, out = folder_of(out), check_folder(out, ours=ours)
    with temporary_folder(out) as temporary:
        new = temporary / NEW
        new.mkdir()
        yield new
        if manifest:
            text = json.dumps(describe(new, known), indent=1, sort_keys=True) + "\n"
            (new / MANIFEST).write_text(text, encoding="utf-8")
        for path in {*new.rglob("*"), *(new / name for name in known)}:
            _settle(path)
        _settle(new)
        _put(new, out)
    if manifest:
        _enter(named / MANIFEST)


@contextmanager
def publish_file(out: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; on success put it in place of `out`.

    private: readable by this user alone, for a file that may hold secrets.
    """
    named, out = Path(out), check_file(out)
    with temporary_folder(out) as temporary:
        new = temporary / out.name
        yield new
        _settle(new)
        if private:
            new.chmod(0o600)
        _put(new, out)
    _enter(named)


def _enter(out: Path) -> None:
    """Note the checksum of a job's result; a stage that is run by hand makes no result of a study."""
    if os.environ.get("CAPGAP_UNDER_WORKFLOW"):
        enter(out)


def write_text(out: str | Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    with publish_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _settle(path: Path) -> None:
    """Set the mode that the umask gives, whichever library wrote it, and sync it to disk."""
    if path.is_symlink():
        return
    mask = os.umask(0o077)
    os.umask(mask)
    full = 0o777 | path.stat().st_mode & 0o2000 if path.is_dir() else 0o666
    path.chmod(full & ~mask)
    sync(path)


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk (fsync)."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without fsync of folders
            raise
    finally:
        os.close(file)


def _put(new: Path, out: Path) -> None:
    """Move a finished file or folder to its place; the previous one goes to the temporary folder."""
    if not out.is_dir():
        os.replace(new, out)
    else:
        try:
            _exchange(new, out)
        except OSError:  # not on this system: two renames, and `_restore` after a kill between them
            os.rename(out, new.with_name(OLD))
            os.rename(new, out)
    sync(out.parent)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step: renameat2(2) of Linux with RENAME_EXCHANGE."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here = -100  # AT_FDCWD
    if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), 2):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _restore(out: Path) -> None:
    """Move back what a kill between the two renames of `_put` has left in the temporary folder."""
    old = _temporary_of(out) / OLD
    if old.is_dir() and not os.path.lexists(out):
        os.rename(old, out)


def _temporary_of(out: Path) -> Path:
    """The temporary folder of an output, beside it; there is only one, so that it can be found."""
    name = f".{out.name}.tmp"
    if len(os.fsencode(name)) > NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(out.name)).hexdigest()}.tmp"
    return out.with_name(name)


def new_folder_of(out: Path) -> Path:
    """The folder that `publish_folder` fills in another process, before it becomes `out`."""
    return _temporary_of(check_folder(out, ours=True)) / NEW


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """An empty temporary folder beside an output, locked against other processes.

    After a kill it is removed by the next process that writes this output, by a run, or by
    `capgap clean`.
    """
    folder = _temporary_of(out)
    with naming_full_disk(out):
        missing = [path for path in out.parents if not path.exists()]
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync(path.parent)
        with _hold(folder, wait=True):
            _restore(out)
            _empty(folder)
            try:
                yield folder
            finally:
                _remove(folder)


@contextmanager
def naming_full_disk(out: Path) -> Iterator[None]:
    """Turn an error inside into a CapgapError that names an output, if the disk is full."""
    try:
        yield
    except CapgapError:
        raise
    except Exception as error:
        if disk_is_full(out, error):
            raise CapgapError(
                f"{out}: no space left on the disk; nothing was kept of it. "
                "Free some space and run again: what was finished before is intact"
            ) from None
        raise


@contextmanager
def _hold(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Make and lock a temporary folder. Yields False if it is locked and `wait` is False."""
    held = False
    while not held:
        folder.mkdir(exist_ok=True)
        try:
            file = (folder / LOCK).open("w")
        except FileNotFoundError:  # another process has just removed the folder
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                print(f"waiting for another process that writes {folder}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                held = os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat())
            if held:
                yield True


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def _remove(folder: Path) -> None:
    """Remove a locked temporary folder, its lock last, so that a waiting process makes a new one."""
    with suppress(OSError):
        _empty(folder)
    shutil.rmtree(folder, ignore_errors=True)


def collect_temporaries(root: str | Path) -> list[Path]:
    """Remove the temporary files and folders below a folder that no process writes any more."""
    found = []
    for path in sorted(Path(root).rglob(".*.tmp")):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif not (path / LOCK).exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            out = path.with_name(path.name[1:].removesuffix(".tmp"))
            with _hold(path, wait=False) as held:
                if not held or ((path / OLD).is_dir() and _temporary_of(out) != path):
                    continue
                _restore(out)
                _remove(path)
        found.append(path)
    return found


def disk_is_full(path: str | Path, error: Exception | None = None) -> bool:
    """Whether a write failed because the disk is full; without an error, whether it is full now.

    NumPy and safetensors raise errors of their own that do not carry the system's number.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if getattr(error, "errno", None) in numbers:
        return True
    if any(f"(os error {number})" in str(error) for number in numbers):
        return True
    there = os.statvfs(next(p for p in Path(path).absolute().parents if p.is_dir()))
    inodes_are_counted = there.f_files > 0
    return there.f_bavail * there.f_frsize < FULL_BYTES or (
        inodes_are_counted and there.f_favail < FULL_INODES
    )


def describe(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> dict:
    """The manifest of a folder: {"files": {name: {"bytes", "sha256"}}}.

    known: SHA-256 of files that are not read for it.
    """
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {
        "files": {
            name: {
                "bytes": (folder / name).stat().st_size,
                "sha256": known.get(name) or digest(folder / name),
            }
            for name in sorted(names | known.keys())
            if name != MANIFEST and not is_dropping(Path(name).name)
        }
    }


def differences(folder: str | Path) -> list[str]:
    """Differences between a folder and its manifest, one sentence each; empty if there are none."""
    folder = folder_of(folder)
    manifest = (folder / MANIFEST).as_posix()
    try:
        entries = {manifest: {digest(folder / MANIFEST)}}
    except Unreadable as error:
        return [str(error)]
    files = {name: Path(name) for name in files_below(folder)}
    return compare(manifest, files, entries).sentences()


def intact(folder: Path, *names: str) -> bool:
    """Whether a folder exists and matches its manifest, which must list at least these files."""
    if not (folder / MANIFEST).is_file() or differences(folder):
        return False
    return read_manifest(folder / MANIFEST).keys() >= set(names)


def content_digest(path: str | Path) -> str:
    """SHA-256 that identifies the contents of a file or folder, with a manifest or without one.

    All files of a folder count that are not hidden, by name. A manifest that matches the files (see
    `open_folder`) saves reading them.
    """
    folder = folder_of(path)
    if folder.is_file():
        return digest(folder)
    if (folder / MANIFEST).is_file():
        digests = {name: entry.sha256 for name, entry in read_manifest(folder / MANIFEST).items()}
    else:
        files = describe(folder)["files"].items()
        shown = {n: e for n, e in files if not PurePosixPath(n).name.startswith(".")}
        digests = {name: entry["sha256"] for name, entry in shown.items()}
    text = json.dumps(digests, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def open_folder(path: str | Path) -> Path:
    """The folder that a path names, checked against its manifest if it has one.

    Raises CapgapError for a missing folder and for files that are missing or changed.
    """
    folder = folder_of(path)
    if not folder.is_dir():
        _restore(folder)
    if not folder.is_dir():
        what = "a file, and a folder is needed" if folder.exists() else "no such folder"
        raise CapgapError(f"{folder}: {what}; check the path")
    problems = differences(folder) if (folder / MANIFEST).exists() else []
    if problems:
        raise CapgapError(
            "; ".join(problems)
            + f". Fetch the folder again (capgap pull --force {folder}; all that is missing: "
            "capgap pull --models), or delete it and run again"
        )
    return folder


def is_first_process() -> bool:
    """Whether this is the process of its job that writes: the only one, or rank 0 under torchrun."""
    return os.environ.get("RANK", "0") == "0"
