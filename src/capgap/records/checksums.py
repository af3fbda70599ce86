"""
The ledger: a checksum of every result, written by the job that made it.

IN   notes of jobs, one small file per output in .snakemake/checksums, until a run folds them in
OUT  results/<study>/checksums.json: SHA-256 by path; a folder counts by its manifest

Snakemake's records hold checksums of the files that other jobs read. The ledger also covers files that
no job reads, and shows which files were added or are missing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from capgap.records.paths import CHECKSUMS, MANIFEST, ROOT, is_inside
from capgap.records.reading import Unreadable, digest, read_json, read_text

PENDING = Path(".snakemake/checksums")
KNOWN = Path(".snakemake/known-files.json")  # digests by size, time and inode; only saves time
RESULTS = PurePosixPath(ROOT).parts[0]
RECORDED = "the job that made it has on record"
# What operating systems, Snakemake and killed jobs leave in folders; .dvcignore lists the same.
DROPPINGS = (".DS_Store", ".nfs*", ".snakemake_timestamp", ".*.tmp")


class Manifest(NamedTuple):
    """A file as a manifest lists it."""

    size: int  # bytes
    sha256: str


def read_manifest(path: str | Path) -> dict[str, Manifest]:
    """The files that a manifest lists, by name. Raises Unreadable if it is damaged."""
    try:
        files = read_json(path)["files"]
        entries = {name: Manifest(entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        if any(not isinstance(e.size, int) or len(e.sha256) != 64 for e in entries.values()):
            raise TypeError(path)
    except (KeyError, TypeError, AttributeError):
        raise Unreadable(f"{path} is damaged: it lists no files") from None
    for name in entries:
        if not is_inside(name):
            raise Unreadable(f"{path} is damaged: it names {name}, which is outside its folder")
    return entries


def is_dropping(name: str) -> bool:
    """Whether a file is a by-product of the system, of Snakemake or of a killed job (DROPPINGS)."""
    return any(fnmatch(name, pattern) for pattern in DROPPINGS)


def enter(output: str | Path) -> None:
    """Note the checksum of a result that has just been published; other paths are ignored."""
    output = Path(output)
    if output.is_absolute() or output.parts[:1] != (RESULTS,) or not is_inside(str(output)):
        return
    announce(output, digest(output))


def announce(output: str | Path, sha256: str) -> None:
    """Note the checksum that a result is about to get; the old one stays valid until the next fold."""
    note = PENDING / output
    note.parent.mkdir(parents=True, exist_ok=True)
    _replace(note, f"{sha256}\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def ledger_of(root: str | Path) -> Path:
    """The ledger of a study's results."""
    return Path(root) / CHECKSUMS


def entries_in(ledger: Path, root: str | Path) -> dict[str, str]:
    """SHA-256 by output from one ledger file. Raises Unreadable if it is damaged."""
    try:
        entries = read_json(ledger)
    except Unreadable as error:
        raise Unreadable(f"{error}; bring it back: capgap pull --force {ledger}") from None
    for name, value in entries.items():
        if not (is_inside(name) and isinstance(value, str)):
            raise Unreadable(f"{ledger} is damaged: {name!r} is no result of {root}")
    return {f"{root}/{name}": value for name, value in entries.items()}


def read(root: str | Path) -> dict[str, set[str]]:
    """Valid checksums of each result: that of the ledger, and that of a job since the last fold.

    Raises Unreadable if the ledger is damaged.
    """
    file = ledger_of(root)
    folded = entries_in(file, root) if file.exists() else {}
    entries = {name: {value} for name, value in folded.items()}
    for note in _pending(root):
        output = note.relative_to(PENDING).as_posix()
        if output in entries or os.path.lexists(output):  # else a kill prevented the file
            entries.setdefault(output, set()).add(read_text(note).strip())
    return entries


def _pending(root: str | Path) -> list[Path]:
    folder = PENDING / root
    notes = folder.rglob("*") if folder.is_dir() else []
    return sorted(note for note in notes if note.is_file() and not is_dropping(note.name))


def fold(root: str | Path, forget: Callable[[str], bool] = lambda output: False) -> None:
    """Write the notes of jobs into the ledger. The caller must hold the lock of the run.

    forget: whether to drop a result that is no longer there.
    """
    if not Path(root).is_dir():
        return
    entries = {}
    for output, allowed in read(root).items():
        there = os.path.isfile(output)
        found = digest(output) if there and len(allowed) > 1 else None
        if there or not forget(output):
            entries[output] = found if found in allowed else _latest(output, allowed)
    names = {name.removeprefix(f"{root}/"): value for name, value in entries.items()}
    text = json.dumps(names, indent=1, sort_keys=True) + "\n"
    file = ledger_of(root)
    if not file.is_file() or read_text(file) != text:
        _replace(file, text)
    shutil.rmtree(PENDING / root, ignore_errors=True)


def _latest(output: str, allowed: set[str]) -> str:
    note = PENDING / output
    return read_text(note).strip() if note.is_file() else next(iter(allowed))


class KnownDigests:
    """Digests of files; a file is read again only if its size, time of change or inode changed."""

    def __init__(self, algorithm: str = "sha256"):
        self.algorithm = algorithm
        try:
            self.known = read_json(KNOWN)
        except Unreadable:
            self.known = {}
        self.changed = False

    def __call__(self, path: str | Path) -> str:
        """The digest of a file; Unreadable if it is no regular file."""
        status = os.stat(path)
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        key = f"{self.algorithm}:{path}"
        match self.known.get(key):
            case [*before, str(value)] if before == state:
                return value
        value = digest(path, self.algorithm)
        self.known[key] = [*state, value]
        self.changed = True
        return value

    def learn(self, path: str | Path, value: str) -> None:
        """Remember the digest of a file that was just written from bytes with that digest."""
        status = os.stat(path)
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        self.known[f"{self.algorithm}:{path}"] = [*state, value]
        self.changed = True

    def save(self) -> None:
        """Save the digests for the next run, without those of files that no longer exist."""
        if self.changed:
            kept = {k: v for k, v in self.known.items() if os.path.isfile(k.partition(":")[2])}
            KNOWN.parent.mkdir(exist_ok=True)
            _replace(KNOWN, json.dumps(kept))


class Findings(NamedTuple):
    """Differences from the ledger: a sentence by path."""

    damaged: dict[str, str]
    missing: dict[str, str]
    unlisted: dict[str, str]

    def sentences(self) -> list[str]:
        """All sentences: the damaged first."""
        return [text for kind in self for text in kind.values()]


def files_below(root: str | Path) -> Iterator[str]:
    """Paths of all files below a folder, links included, without droppings."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not is_dropping(name)]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*names, *links]:
            if not is_dropping(name):
                yield Path(folder, name).as_posix()


def compare(
    ledger: str,
    files: Mapping[str, Path | None],
    entries: Mapping[str, set[str]],
    digest_of: Callable[[Path], str] = digest,
) -> Findings:
    """Compare files with the ledger and with the manifests in it.

    ledger: path of the ledger, which does not list itself. files: by path in the study, the file that
    holds the contents; None to check only that the path exists.
    """
    damaged: dict[str, str] = {}
    missing: dict[str, str] = {}
    listed = {ledger}
    closed, unknown = [], []  # folders with a readable manifest, and folders without one
    for output, allowed in sorted(entries.items()):
        listed.add(output)
        folder, is_folder = PurePosixPath(output).parent, PurePosixPath(output).name == MANIFEST
        if output not in files:
            missing[output] = f"{output} is missing"
            unknown += [f"{folder}/"] * is_folder
            continue
        if text := _difference(files[output], output, allowed, RECORDED, digest_of):
            damaged[output] = text
        manifest = files[output] if is_folder else None
        if manifest is None:
            unknown += [f"{folder}/"] * is_folder
            continue
        try:
            inside = {f"{folder}/{n}": e for n, e in read_manifest(manifest).items()}
        except Unreadable as error:
            damaged[output] = str(error).replace(str(manifest), output)
            unknown.append(f"{folder}/")
            continue
        listed.update(inside)
        closed.append(f"{folder}/")
        absent = [name for name in inside if name not in files]
        if len(absent) == len(inside) > 1:  # a folder that `capgap pull` did not fetch
            missing[output] = f"the {len(inside)} files of {folder} are missing"
        else:
            missing |= {name: f"{name} is missing" for name in absent}
        for name in sorted(inside.keys() - set(absent)):
            size, sha256 = inside[name]
            path = files[name]
            if path is not None and path.is_file() and path.stat().st_size != size:
                damaged[name] = f"{name} has {path.stat().st_size} bytes, not {size}"
            elif text := _difference(path, name, {sha256}, "its manifest says", digest_of):
                damaged[name] = text
    unlisted = {}
    for name in sorted(files.keys() - listed):
        if name.startswith(tuple(closed)):
            damaged[name] = f"{name} is not in the manifest of its folder: somebody added it"
        elif not name.startswith(tuple(unknown)):
            unlisted[name] = f"{name} is not in the list of results: no job of this study made it"
    return Findings(damaged, missing, unlisted)


def _difference(
    path: Path | None, name: str, allowed: set[str], source: str, digest_of: Callable[[Path], str]
) -> str | None:
    """A sentence on what is wrong with one file, or None."""
    if path is None:
        return None
    if path.is_symlink():
        return f"{name} is a link, where a file is expected"
    try:
        if digest_of(path) in allowed:
            return None
    except (Unreadable, OSError) as error:
        return str(error).replace(str(path), name)
    return f"{name} has other contents than {source}"


def check(root: str | Path, digest_of: Callable[[Path], str] = digest) -> Findings:
    """Compare a study's results with its ledger; `digest_of` reads a file's contents."""
    if not ledger_of(root).exists() and not _pending(root):
        name = ledger_of(root).as_posix()
        return Findings({}, {name: f"{name}, the checksums of all results, is missing"}, {})
    try:
        entries = read(root)
    except Unreadable as error:
        return Findings({ledger_of(root).as_posix(): str(error)}, {}, {})
    files = {name: Path(name) for name in files_below(root)}
    return compare(ledger_of(root).as_posix(), files, entries, digest_of)


def strays(root: str | Path) -> set[str]:
    """Files among a study's results that no job made, by their names alone."""
    try:
        entries = read(root)
    except Unreadable:
        return set()
    files = {n: Path(n) if n.endswith(f"/{MANIFEST}") else None for n in files_below(root)}
    return set(compare(ledger_of(root).as_posix(), files, entries).unlisted) if entries else set()
