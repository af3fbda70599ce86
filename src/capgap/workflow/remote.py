"""
Exchange results with the DVC remote: `capgap pull` and `capgap push`, whole or not at all.

What arrives comes from whoever can change dvc.lock or write the remote. So names are contained before
anything is fetched, contents are hashed, the ledger that came along is held against both, and only
then is a file put in place; nothing is unpickled, and a pull never writes to a remote. DVC's own
pull does none of this, takes away results when one file fails, and reports a missing bucket as
missing files. The cause of a failure becomes one sentence that says what to do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from capgap.errors import CapgapError, hide_secrets
from capgap.records import checksums, paths
from capgap.records.artifacts import write_text
from capgap.records.reading import Unreadable, read_text
from capgap.workflow import ledger, private
from capgap.workflow.leftovers import remove_temporary
from capgap.workflow.shared_settings import check_shared, own_caches
from capgap.workflow.stores import Cache, Placer, fetch, listing, send

LOCK = Path("dvc.lock")
KEPT = Path(".dvc/tmp/capgap-dvc.lock")  # the dvc.lock of before a save that has not ended

REFUSED = {"PermissionError", "NoCredentialsError", "PermissionDenied", "AuthError"}
SILENT = {
    "ConnectionError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "TimeoutError",
    "gaierror",
}


class Saved(NamedTuple):
    """A folder that dvc.lock names: its listing's object and its number of files."""

    oid: str
    files: int | None


def read_lock(study: str) -> dict[str, Saved]:
    """The folders of a study that `capgap save` stored last: its results and Snakemake's records.

    Raises CapgapError where nothing was saved, and for a dvc.lock that is damaged, holds another
    study or names anything else.
    """
    if not LOCK.is_file():
        raise CapgapError(
            f"this revision holds no results: there is no {LOCK}. Whoever has them types capgap "
            f"save, git add {LOCK}, git commit and capgap push; without them, capgap run"
        )
    root = paths.ROOT.format(study=study)
    try:
        outs = private.saved_outs(yaml.safe_load(read_text(LOCK)))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError, Unreadable):
        raise CapgapError(
            f"{LOCK} is damaged or holds a conflict of a merge. Take one side (git checkout --ours "
            f"{LOCK}, or --theirs), or the last commit's (git checkout HEAD {LOCK})"
        ) from None
    expected = {root, str(private.RECORDS)}
    if strange := sorted(outs.keys() - expected):
        raise CapgapError(
            f"{LOCK} names {strange[0]}, but the study of config.yaml is {study}, which keeps its "
            f"results in {root}; take the config.yaml that {LOCK} was saved with, or save again"
        )
    if lacking := sorted(expected - outs.keys()):
        raise CapgapError(f"{LOCK} does not name {lacking[0]}; save again (capgap save)")
    return {path: Saved(outs[path]["md5"], outs[path].get("nfiles")) for path in sorted(expected)}


def keep_lock() -> None:
    """Keep a copy of dvc.lock, which DVC writes in place, until a save has ended."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    write_text(KEPT, LOCK.read_text(encoding="utf-8") if LOCK.is_file() else "")


def restore_lock() -> None:
    """Bring back the dvc.lock of before a save that did not end. Only under the lock of the run."""
    if KEPT.is_file():
        if before := KEPT.read_text(encoding="utf-8"):
            write_text(LOCK, before)
        else:
            LOCK.unlink(missing_ok=True)
        KEPT.unlink()


def forget_kept_lock() -> None:
    """End a save: from now on the new dvc.lock counts."""
    with LOCK.open("rb") as file:
        os.fsync(file.fileno())
    KEPT.unlink()


def check_saved(study: str, root: Path) -> None:
    """Raise CapgapError unless dvc.lock names what is here, all of it, and the cache holds it."""
    saved = read_lock(study)
    cache = Cache(private.settings())
    files = _saved_files(cache, saved)
    here = set(checksums.files_below(root))
    stored = {name for name in files if name.startswith(f"{root}/")}
    if here != stored:
        strange = sorted(here ^ stored)[0]
        raise CapgapError(
            f"nothing was saved: DVC did not take {strange} as it is here; save again"
        )
    if lacking := [name for name, oid in files.items() if not cache.path(oid).is_file()]:
        raise CapgapError(f"nothing was saved: {_some(lacking)} not in DVC's cache; save again")


def pull(
    study: str,
    choose: Callable[[Iterable[str]], list[str]],
    *,
    force: bool = False,
    only: bool = False,
) -> list[str]:
    """Bring files that `dvc.lock` names into place; the names that `choose` picked from all.

    force: replace files that were not saved, too. only: leave all other files as they are, even
    those of another revision. Only under the lock of the run.

    Raises CapgapError, and leaves every file as it was, when nothing was saved at this revision,
    when a file is not in the remote or is not what its author saved, when the remote cannot be
    read, and when a file here was not saved.
    """
    check_shared(secrets=False)
    saved = read_lock(study)
    root = paths.ROOT.format(study=study)
    with _connected("read") as (remote, cache):
        _fetch(remote, cache, {path: out.oid for path, out in saved.items()})
        files = _saved_files(cache, saved)
        placer = Placer(cache)
        here = {name for name, oid in files.items() if placer.is_same(name, oid)}
        chosen = choose(files)
        described = {n for n in files if PurePosixPath(n).name == paths.MANIFEST}
        described.add(checksums.ledger_of(root).as_posix())
        needed = ({*chosen, *described} & files.keys()) - here
        _fetch(remote, cache, {name: files[name] for name in needed})
    contents = {
        name: Path(name) if name in here else cache.path(oid)
        for name, oid in files.items()
        if name in described or name in chosen
    }
    _check_arrived(root, files, contents)
    others = set() if only else set(_files_of(root)) - here - {*chosen} - checksums.strays(root)
    write = {name: files[name] for name in chosen if name not in here}
    _place(root, placer, write, sorted(others), force=force)
    return chosen


def _saved_files(cache: Cache, saved: dict[str, Saved]) -> dict[str, str]:
    """Object by path of every saved file, of listings that are in the cache."""
    files = {}
    for path, out in saved.items():
        files |= listing(cache.path(out.oid), path, out.files)
    for name in files:
        if Path(name).is_relative_to(private.RECORDS):
            output = private.output_of(private.RECORDS, Path(name))
            if output is None or not output.startswith(f"{checksums.RESULTS}/"):
                raise CapgapError(
                    f"the saved listing of {private.RECORDS} names {name}, which is no record of a "
                    "result: it was not written by capgap save. Nothing was put in place; ask whoever "
                    f"changed {LOCK}"
                )
    return files


def _check_arrived(root: str, files: dict[str, str], contents: dict[str, Path]) -> None:
    """Raise CapgapError where saved files are not what the ledger among them says, or no records.

    contents: where those that were chosen are; others count by their names alone.
    """
    file = checksums.ledger_of(root).as_posix()
    found = []
    try:
        if file not in contents:
            raise Unreadable(f"{file}, the checksums of all results, is missing")
        allowed = {n: {d} for n, d in checksums.entries_in(contents[file], root).items()}
        results = {name: contents.get(name) for name in files if name.startswith(f"{root}/")}
        found += checksums.compare(file, results, allowed).sentences()
    except Unreadable as error:
        found.append(str(error).replace(str(contents.get(file)), file))
    for name, path in sorted(contents.items()):
        if Path(name).is_relative_to(private.RECORDS):
            try:
                ledger.read_record(path, str(private.output_of(private.RECORDS, Path(name))))
            except Unreadable as error:
                found.append(str(error).partition(";")[0])
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise CapgapError(
            f"nothing was put in place: what was saved is not whole:\n{lines}\n"
            f"Whoever saved this revision did not use capgap save, or somebody changed {LOCK} since; "
            "have it saved again (capgap run, capgap save)"
        )


def _place(
    root: str, placer: Placer, write: dict[str, str], remove: list[str], *, force: bool
) -> None:
    """Write files, and remove those of another revision.

    Results come first and Snakemake's records last: what a kill leaves is out of date, not false.
    """
    file = checksums.ledger_of(root).as_posix()  # follows the results
    at_stake = {*remove, *(name for name in write if os.path.lexists(name))} - {file}
    lost = sorted(name for name in at_stake if not placer.is_saved(name))
    if lost and not force:
        raise CapgapError(
            f"nothing was put in place: {_some([*map(_name, lost)])} not as saved and would be lost. "
            "Keep what is here (capgap save), or give it up (capgap pull --force)"
        )
    for name in [*write, *remove]:
        placer.check(name)
    for name in remove:
        placer.remove(name)
    for name in sorted(write, key=lambda n: (n.startswith(f"{private.RECORDS}/"), n == file, n)):
        placer.put(name, write[name])
    if file in write:
        shutil.rmtree(checksums.PENDING / root, ignore_errors=True)
    remove_temporary(Path(root))
    placer.known.save()


def _files_of(root: str) -> list[str]:
    """All files here that belong to a study: its results and their records."""
    records = [str(file) for _, file in ledger.named(private.RECORDS, root)]
    return sorted([*checksums.files_below(root), *records])


def push(study: str) -> int:
    """Store the files that `dvc.lock` names in the remote; the number of objects that were new.

    Raises CapgapError when nothing was saved, when a file is neither here nor there, when the
    shared settings hold a secret, and when the remote cannot be written.
    """
    check_shared(secrets=True)
    saved = read_lock(study)
    with _connected("write") as (remote, cache):
        lists = {path: out.oid for path, out in saved.items()}
        absent = fetch(remote, cache, lists).absent
        files = lists if absent else {**_saved_files(cache, saved), **lists}
        if not absent:
            oids, new = send(remote, cache, files.values())
            absent = [name for name, oid in files.items() if oid in oids]
        if absent:
            raise CapgapError(
                f"{_some(absent)} of {LOCK} neither here, as they were saved, nor in the remote: pull "
                "first (capgap pull --models), or make and save them (capgap run, capgap save)"
            )
    return new


@contextmanager
def _connected(purpose: str) -> Iterator[tuple[private.Remote, Cache]]:
    """The remote, which has answered, and the cache. What fails inside becomes a message.

    purpose: read or write.
    """
    own_caches()
    settings: dict[str, Any] = {}
    remote, answered = None, False
    try:
        settings = private.settings()
        remote = private.open_remote(settings)
        _ask(remote, purpose)
        answered = True
        yield remote, Cache(settings)
    except CapgapError:
        raise
    except Exception as error:  # DVC and its plugins raise whatever their libraries raise
        raise CapgapError(_advice(settings, remote, error, purpose, answered)) from None


def _ask(remote: private.Remote, purpose: str) -> None:
    """Ask a remote for its top folder, for S3 the bucket; other folders are made by a push."""
    if remote.fs.protocol == "s3":
        remote.fs.ls(remote.path.partition("/")[0], detail=False)
    elif purpose == "read":
        remote.fs.ls(remote.path, detail=False)
    else:
        remote.fs.exists(remote.path)


def _fetch(remote: private.Remote, cache: Cache, files: dict[str, str]) -> None:
    """Bring objects from the remote into the cache, and see that all are there."""
    absent, damaged = fetch(remote, cache, files)
    url = hide_secrets(remote.url)
    if absent:
        raise CapgapError(
            f"{_some([*map(_name, absent)])} not in the remote {url}; whoever made this revision has "
            "to store it there: capgap push"
        )
    if damaged:
        stored = f"{remote.path}/{private.object_name(files[damaged[0]])}"
        raise CapgapError(
            f"{_some([*map(_name, damaged)])} damaged in the remote {url}: the contents are not what "
            f"was saved, and nothing was put in place. Whoever may write there has to delete the object "
            f"({stored}); then someone who has the file stores it again: capgap push"
        )


def _name(name: str) -> str:
    """A file as people know it: a record by its output."""
    path = Path(name)
    if not path.is_relative_to(private.RECORDS) or path == private.RECORDS:
        return name
    return f"the record of {private.output_of(private.RECORDS, path)}"


def _some(names: list[str]) -> str:
    """The first of some names and how many more, with its verb."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _advice(
    settings: dict[str, Any],
    remote: private.Remote | None,
    error: BaseException,
    purpose: str,
    answered: bool,
) -> str:
    """What a user has to do about an error of DVC or one of its plugins."""
    lines = str(error).strip().splitlines()
    cause = lines[0] if lines else type(error).__name__
    if remote is None:
        name = settings.get("core", {}).get("remote")
        url = settings.get("remote", {}).get(name, {}).get("url", "")
        kind = url.partition("://")[0]
        if any(isinstance(link, ImportError) for link in _chain(error)):
            needed = (
                "make remotes" if kind in ("s3", "ssh") else f".venv/bin/pip install dvc-{kind}"
            )
            return f"remote {name} is {url}, and what {kind} needs is not installed: {needed}"
        if not name:
            return "there is no remote to use: dvc remote add --default storage /shared/folder"
        return f"remote {name} cannot be used: {cause}"
    url, name = remote.url, remote.name
    where = f"remote {name}, {url}"
    if remote.settings.get("endpointurl"):
        where += f" at {remote.settings['endpointurl']}"
    kinds = {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}
    if kinds & SILENT:
        return (
            f"nothing answers for {where} ({cause}). Is the server up, and is the address right? "
            f"To correct it: dvc remote modify --local {name} url ..."
            + (" (or endpointurl ...)" if remote.fs.protocol == "s3" else "")
        )
    if kinds & {*REFUSED, "FileNotFoundError"} and answered and purpose == "write":
        return (
            f"{where} may be read with these credentials, but not written ({cause}); ask its owner "
            f"for the right to write, or name another place: dvc remote modify {name} url ..."
        )
    if kinds & REFUSED:
        return f"{where} refuses the credentials ({cause}). {_credentials(remote)}"
    if "FileNotFoundError" in kinds and not answered:
        if remote.fs.protocol == "s3":
            bucket = remote.path.partition("/")[0]
            return (
                f"{where}: there is no bucket {bucket}. Create it, or correct the name: "
                f"dvc remote modify --local {name} url s3://..."
            )
        if remote.settings.get("keyfile") and not Path(remote.settings["keyfile"]).is_file():
            return f"{where}: the key file {remote.settings['keyfile']} does not exist"
        return (
            f"{where}: there is no such folder. Nothing was stored there yet (capgap push), or "
            f"the address is wrong: dvc remote modify --local {name} url ..."
        )
    return f"{where}: the transfer failed ({cause}); run the same command again, it goes on"


def _credentials(remote: private.Remote) -> str:
    """How to give credentials to a kind of remote."""
    if remote.fs.protocol == "s3":
        return (
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or keep them on this machine only: "
            f"dvc remote modify --local {remote.name} access_key_id ... and secret_access_key ..."
        )
    return (
        "Is the public key known to the server? Name the private one: "
        f"dvc remote modify --local {remote.name} keyfile ..."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
