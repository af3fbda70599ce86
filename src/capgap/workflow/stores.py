"""
Fetch, check and send objects between DVC's cache and the remote.

Every object is named by the MD5 of its contents. What arrives is hashed before it is kept, what is
sent is hashed before it goes, and fetching never writes to a remote.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from capgap.errors import CapgapError
from capgap.records import paths
from capgap.records.checksums import KnownDigests
from capgap.records.reading import Unreadable, digest, read_json
from capgap.workflow import private

TEMPORARY = Path(".dvc/tmp/capgap")
ATOMIC = ("local", "s3", "gs", "gcs", "abfs", "az", "oss", "http", "https")  # writes are atomic
FLAT = ("s3", "gs", "gcs", "abfs", "az", "oss", "http", "https")  # need no folders
THREADS = 16


class Fetched(NamedTuple):
    """Names whose objects are missing from the remote, and names whose objects are damaged there."""

    absent: list[str]
    damaged: list[str]


class Cache:
    """DVC's cache of this folder."""

    def __init__(self, settings: dict[str, Any]):
        self.folder = private.cache_folder(settings)
        self.group = settings["cache"].get("shared") == "group"
        shutil.rmtree(TEMPORARY, ignore_errors=True)  # of a killed pull
        TEMPORARY.mkdir(parents=True)
        self.whole: set[str] = set()  # objects that this process has hashed

    def path(self, oid: str) -> Path:
        """Path of an object."""
        return self.folder / private.object_name(oid)

    def holds(self, oid: str) -> bool:
        """Whether an object is here and intact. A damaged one is removed from this cache."""
        path = self.path(oid)
        if oid in self.whole:
            return True
        try:
            if digest(path, "md5") == oid.removesuffix(".dir"):
                self.whole.add(oid)
                return True
        except Unreadable:
            if path.is_dir() or not os.path.lexists(path):
                return False
        path.unlink()
        return False

    def keep(self, file: Path, oid: str) -> None:
        """Move a file into the cache. The caller has checked its hash."""
        path = self.path(oid)
        mode = os.umask(0o002) if self.group else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        finally:
            if mode is not None:
                os.umask(mode)
        file.chmod(0o444)  # DVC protects its objects in this way
        try:
            os.replace(file, path)
        except OSError:  # the cache is on another disk
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
            os.close(handle)
            shutil.copyfile(file, name)
            os.chmod(name, 0o444)
            os.replace(name, path)
        self.whole.add(oid)


def _in_parallel(function: Callable, items: Iterable) -> list:
    """Map a function over items in threads; the first error cancels the rest."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


def fetch(remote: private.Remote, cache: Cache, files: Mapping[str, str]) -> Fetched:
    """Copy objects from the remote into the cache. files: the object of each name."""
    names = {oid: name for name, oid in sorted(files.items(), reverse=True)}

    def bring(oid: str) -> str | None:
        if cache.holds(oid):
            return None
        arrived = TEMPORARY / oid
        try:
            remote.fs.get_file(_at(remote, oid), str(arrived.absolute()))
        except FileNotFoundError:
            return "absent"
        if digest(arrived, "md5") != oid.removesuffix(".dir"):
            arrived.unlink()
            return "damaged"
        cache.keep(arrived, oid)
        return None

    ends = dict(zip(names, _in_parallel(bring, names), strict=True))
    return Fetched(*([names[o] for o, end in ends.items() if end == e] for e in Fetched._fields))


def _at(remote: private.Remote, oid: str) -> str:
    return f"{remote.path.rstrip('/')}/{private.object_name(oid)}"


def send(remote: private.Remote, cache: Cache, oids: Iterable[str]) -> tuple[list[str], int]:
    """Store objects in the remote; returns those that neither store has, and the number of new ones.

    Listings of folders are sent last, so that a remote with a listing has the whole folder.
    """
    oids = sorted(set(oids), key=lambda oid: (oid.endswith(".dir"), oid))
    stored = remote.fs.info([_at(remote, oid) for oid in oids], return_exceptions=True)
    lacking = []
    for oid, found in zip(oids, stored, strict=True):
        if isinstance(found, FileNotFoundError):
            lacking.append(oid)
        elif isinstance(found, BaseException):
            raise found
        elif cache.path(oid).is_file() and cache.path(oid).stat().st_size != found["size"]:
            lacking.append(oid)  # an earlier transfer was cut off
    absent = [oid for oid in lacking if not cache.holds(oid)]
    if absent:
        return absent, 0

    def put(oid: str) -> None:
        target = _at(remote, oid)
        if remote.fs.protocol not in FLAT:
            remote.fs.makedirs(target.rpartition("/")[0])
        if remote.fs.protocol in ATOMIC:
            remote.fs.put_file(str(cache.path(oid).absolute()), target)
        else:
            # a name of its own, because two users may push the same object at once
            temporary = f"{target.rpartition('/')[0]}/.{uuid.uuid4().hex}.tmp"
            remote.fs.put_file(str(cache.path(oid).absolute()), temporary)
            remote.fs.move(temporary, target)

    _in_parallel(put, [oid for oid in lacking if not oid.endswith(".dir")])
    _in_parallel(put, [oid for oid in lacking if oid.endswith(".dir")])
    return [], len(lacking)


def listing(path: Path, root: str, count: int | None) -> dict[str, str]:
    """Objects of a saved folder's files by path.

    path: the listing in the cache. count: number of files according to dvc.lock.
    Raises CapgapError for a damaged listing and for a name that would leave the folder, because
    anybody who can write to the remote can write a listing.
    """
    files = {}
    try:
        for entry in read_json(path, list):
            name, oid = entry["relpath"], entry["md5"]
            if not isinstance(name, str) or not paths.is_inside(name):
                raise CapgapError(
                    f"the saved listing of {root} names {name!r}, which is outside that folder, so "
                    "capgap save did not write it. Nothing was fetched; ask whoever changed dvc.lock"
                )
            if not private.OBJECT.fullmatch(oid) or oid.endswith(".dir"):
                raise Unreadable(f"{oid!r} is not the name of an object")
            files[f"{root}/{name}"] = oid
    except (KeyError, TypeError, Unreadable) as error:
        raise CapgapError(
            f"the saved listing of {root} is damaged ({error}); nothing was fetched. Take dvc.lock "
            "from the commit of whoever saved it"
        ) from None
    if count is not None and len(files) != count:
        raise CapgapError(
            f"the saved listing of {root} has {len(files)} files, dvc.lock counts {count}, so they "
            "do not belong together. Take dvc.lock from the commit of whoever saved it"
        )
    if folders := sorted(files.keys() & {str(p) for f in files for p in Path(f).parents}):
        raise CapgapError(
            f"the saved listing of {root} has {folders[0]} both as a file and as a folder. Take "
            "dvc.lock from the commit of whoever saved it"
        )
    return files


class Placer:
    """Copies objects of the cache into the working folder; each file appears atomically."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self.known = KnownDigests("md5")
        self.here = Path.cwd().resolve()

    def is_same(self, name: str, oid: str) -> bool:
        """Whether a file here has the same contents as an object."""
        path = Path(name)
        return path.is_file() and not path.is_symlink() and self.known(path) == oid

    def is_saved(self, name: str) -> bool:
        """Whether the cache holds the contents of a file here, so that it may be overwritten."""
        path = Path(name)
        if path.is_symlink() or not path.is_file():
            return False
        return self.cache.holds(self.known(path))

    def check(self, name: str) -> None:
        """Raise CapgapError if symbolic links lead a name out of the working folder."""
        for folder in Path(name).parents:
            real = Path(os.path.realpath(folder))
            if folder.is_symlink() and not real.is_relative_to(self.here):
                raise CapgapError(
                    f"{folder} is a link to {real}, but a pull writes only inside this "
                    f"folder. Move the repository there, or make {folder} a folder"
                )

    def put(self, name: str, oid: str) -> None:
        """Write one file."""
        self.check(name)
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name[-200:]}.{os.getpid()}.tmp")
        _clone(self.cache.path(oid), temporary)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(temporary, path)
        self.known.learn(path, oid)

    def remove(self, name: str) -> None:
        """Remove one file and the folders that become empty."""
        self.check(name)
        path = Path(name)
        path.unlink()
        for folder in path.parents:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def _clone(source: Path, target: Path) -> None:
    """Copy a file; file systems that can share blocks (Btrfs, XFS) share them."""
    with source.open("rb") as read, target.open("wb") as write:
        copy = getattr(os, "copy_file_range", None)
        try:
            while copy and copy(read.fileno(), write.fileno(), 2**30):
                pass
        except OSError:  # this file system cannot share blocks
            copy = None
        if not copy:
            read.seek(0)
            write.seek(0)
            write.truncate()
            shutil.copyfileobj(read, write, 2**20)
