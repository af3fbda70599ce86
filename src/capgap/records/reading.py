"""
Read small files that a kill, a disk or another person may have damaged.

Whatever is wrong with a file (missing, not a regular file, not UTF-8, not JSON, another type of
value), the caller gets one `Unreadable` that names it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from capgap.errors import CapgapError

DIGESTS = "CAPGAP_DIGESTS"  # folder of digests that the processes of a job on a machine share
LARGE_BYTES = 2**20


class Unreadable(CapgapError):
    """A file cannot be read as what it should be; the message names the file and the reason."""


def _open(path: str | Path) -> BinaryIO:
    """Open a regular file; a pipe or a device is refused, because it may block for ever."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise Unreadable(f"{path} is not a regular file")
    return os.fdopen(number, "rb")


def read_text(path: str | Path) -> str:
    """Text of a UTF-8 file; Unreadable if it is missing or something else."""
    try:
        with _open(path) as file:
            return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path}: not UTF-8 text ({error.reason})") from None


def read_json(path: str | Path, kind: type = dict) -> Any:
    """The JSON object of a file, or another `kind` of value (list); Unreadable if it holds none."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise Unreadable(f"{path} is damaged: not JSON ({reason})") from None
    if not isinstance(value, kind):
        wanted = {dict: "a JSON object", list: "a JSON list"}[kind]
        raise Unreadable(f"{path} is damaged: {wanted} is expected, it holds {text.strip()[:40]!r}")
    return value


def digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a regular file's contents; Unreadable if there is none.

    Processes that share a job on one machine read each large file once: its digest is kept, by the
    file's device, inode, size and time, in the folder that their launcher has made.
    """
    with _open(path) as file:
        status, folder = os.fstat(file.fileno()), os.environ.get(DIGESTS)
        if folder is None or status.st_size < LARGE_BYTES:
            return hashlib.file_digest(file, algorithm).hexdigest()
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        name = "-".join(map(str, (*identity, algorithm)))
        with open(Path(folder) / name, "a+", encoding="ascii") as kept:
            fcntl.flock(kept, fcntl.LOCK_EX)  # whoever comes second waits for the first
            kept.seek(0)
            found = kept.read()
            if not found:
                found = hashlib.file_digest(file, algorithm).hexdigest()
                kept.write(found)
            return found
