"""What somebody who can write a branch and a remote can do to a saved study."""

import base64
import hashlib
import json
import stat
from pathlib import Path

import yaml

from capgap.workflow import private


def put(storage: Path, data: bytes, suffix: str = "") -> str:
    """Store an object as DVC does; its name."""
    oid = hashlib.md5(data).hexdigest() + suffix
    path = storage / private.object_name(oid)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return oid


def saved(study, storage, root) -> list[dict]:
    """The listing of a saved folder."""
    outs = private.saved_outs(yaml.safe_load((study / "dvc.lock").read_text()))
    return json.loads((storage / private.object_name(outs[root]["md5"])).read_text())


def change_listing(study, storage, root, change) -> None:
    """What a pull request does that changes dvc.lock and a remote."""
    entries = saved(study, storage, root)
    change(entries)
    lock = yaml.safe_load((study / "dvc.lock").read_text())
    for out in lock["stages"]["study"]["outs"]:
        if out["path"] == root:
            out["md5"] = put(storage, json.dumps(entries).encode(), ".dir")
            out["nfiles"] = len(entries)
    (study / "dvc.lock").write_text(yaml.safe_dump(lock))


def snapshot(folder: Path) -> dict[str, tuple]:
    """Kind, mode, size, time and contents of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_size, data)
    return found


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def name_of_record(output: str) -> str:
    return base64.urlsafe_b64encode(output.encode()).decode()
