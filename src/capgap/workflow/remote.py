"""
Exchange results with the DVC remote, for `capgap pull` and `capgap push`: all files or none.

Anybody who can change dvc.lock or write to the remote decides what arrives. So names are checked
before anything is fetched, contents are hashed, both are compared with the ledger that arrived with
them, and only then are files put in place. Nothing is unpickled, and a pull never writes to a remote.
DVC's own pull checks none of this, removes results when one file fails, and reports a missing bucket
as missing files. Every failure is reported in one sentence with its cause and a fix.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from capgap.errors import CapgapError, first_line, hide_secrets
from capgap.records import checksums, paths
from capgap.records.artifacts import write_text
from capgap.records.reading import Unreadable, read_text
from capgap.workflow import ledger, private
from capgap.workflow.leftovers import remove_temporary
from capgap.workflow.shared_settings import check_shared, own_caches
from capgap.workflow.stores import Cache, Placer, fetch, listing, send

LOCK = Path("dvc.lock")
KEPT = Path(".dvc/tmp/capgap-dvc.lock")  # copy of dvc.lock from before an unfinished save

REFUSED = {"PermissionError", "NoCredentialsError", "PermissionDenied", "AuthError"}
SILENT = {"ConnectionError", "ConnectTimeoutError", "EndpointConnectionError", "TimeoutError"}
SILENT |= {"gaierror"}


class Saved(NamedTuple):
    """A folder that dvc.lock names: its listing's object and its number of files."""

    oid: str
    files: int | None


def read_lock(study: str) -> dict[str, Saved]:
    """The two folders that `capgap save` stored last: a study's results and Snakemake's records.

    Raises CapgapError if nothing was saved, or if dvc.lock is damaged, holds another study or names
    anything else.
    """
    if not LOCK.is_file():
        raise CapgapError(
            f"this revision holds no results: there is no {LOCK}. On the machine that has them, run "
            f"capgap save, git add {LOCK}, git commit and capgap push; or make them here (capgap run)"
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
    """Copy dvc.lock until a save has ended, because DVC overwrites it in place."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    write_text(KEPT, LOCK.read_text(encoding="utf-8") if LOCK.is_file() else "")


def restore_lock() -> None:
    """Restore dvc.lock after a save that did not end. The caller holds the run's lock."""
    if KEPT.is_file():
        if before := KEPT.read_text(encoding="utf-8"):
            write_text(LOCK, before)
        else:
            LOCK.unlink(missing_ok=True)
        KEPT.unlink()


def forget_kept_lock() -> None:
    """End a save: remove the copy, so that the new dvc.lock is valid."""
    with LOCK.open("rb") as file:
        os.fsync(file.fileno())
    KEPT.unlink()


def check_saved(study: str, root: Path) -> None:
    """Raise CapgapError unless dvc.lock names exactly the files here and the cache holds them all."""
    saved = read_lock(study)
    cache = Cache(private.settings())
    files = _saved_files(cache, saved)
    here = set(checksums.files_below(root))
    stored = {name for name in files if name.startswith(f"{root}/")}
    if here != stored:
        strange = sorted(here ^ stored)[0]
        raise CapgapError(
            f"nothing was saved: DVC recorded {strange} with other contents than here; save again"
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
    """Put files that `dvc.lock` names in place; returns the names that `choose` selected.

    force: also replace files that were not saved. only: leave all other files as they are, even
    those of another revision. The caller holds the run's lock.

    Raises CapgapError, and changes no file, if nothing was saved at this revision, if a file is not
    in the remote or differs from what was saved, if the remote cannot be read, or if a file here was
    not saved.
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
    """Object of every saved file by its path, from listings that are in the cache."""
    files = {}
    for path, out in saved.items():
        files |= listing(cache.path(out.oid), path, out.files)
    for name in files:
        if Path(name).is_relative_to(private.RECORDS):
            output = private.output_of(private.RECORDS, Path(name))
            if output is None or not output.startswith(f"{checksums.RESULTS}/"):
                raise CapgapError(
                    f"the saved listing of {private.RECORDS} names {name}, which is not the record of "
                    "a result, so capgap save did not write it. Nothing was put in place; ask whoever "
                    f"changed {LOCK} to save again"
                )
    return files


def _check_arrived(root: str, files: dict[str, str], contents: dict[str, Path]) -> None:
    """Raise CapgapError unless saved files match the ledger among them and records are readable.

    contents: paths of the chosen files' contents; of all other files only the names are checked.
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
            f"nothing was put in place, because the saved results are incomplete:\n{lines}\n"
            f"They were not saved by capgap save, or {LOCK} was changed later; have them saved again "
            "(capgap run, capgap save)"
        )


def _place(
    root: str, placer: Placer, write: dict[str, str], remove: list[str], *, force: bool
) -> None:
    """Write files, and remove those of another revision.

    Results come first and Snakemake's records last, so after a kill results are stale, never wrong.
    """
    file = checksums.ledger_of(root).as_posix()  # follows the results
    at_stake = {*remove, *(name for name in write if os.path.lexists(name))} - {file}
    lost = sorted(name for name in at_stake if not placer.is_saved(name))
    if lost and not force:
        raise CapgapError(
            f"nothing was put in place: {_some([*map(_name, lost)])} not saved and would be lost. "
            "Save first (capgap save), or overwrite (capgap pull --force)"
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
    """All files here that belong to a study, which are its results and their records."""
    records = [str(file) for _, file in ledger.named(private.RECORDS, root)]
    return sorted([*checksums.files_below(root), *records])


def push(study: str) -> int:
    """Store the files that `dvc.lock` names in the remote; returns the number of new objects.

    Raises CapgapError if nothing was saved, if a file is neither here nor in the remote, if the
    shared settings hold a secret, or if the remote cannot be written.
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
                f"{_some(absent)} named by {LOCK} but neither here, as saved, nor in the remote: pull "
                "first (capgap pull --models), or make and save them (capgap run, capgap save)"
            )
    return new


@contextmanager
def _connected(purpose: str) -> Iterator[tuple[private.Remote, Cache]]:
    """Yield the remote, after it has answered, and the cache; errors inside become a CapgapError.

    purpose: read or write.
    """
    own_caches()
    settings: dict[str, Any] = {}
    remote, answered = None, False
    try:
        settings = private.settings()
        remote = private.open_remote(settings)
        _check_connection(remote, purpose)
        answered = True
        yield remote, Cache(settings)
    except CapgapError:
        raise
    except Exception as error:  # DVC and its plugins let the errors of all their libraries through
        raise CapgapError(_hint(settings, remote, error, purpose, answered)) from None


def _check_connection(remote: private.Remote, purpose: str) -> None:
    """List a remote's top folder, on S3 the bucket; a push makes the folders of other remotes."""
    if remote.fs.protocol == "s3":
        remote.fs.ls(remote.path.partition("/")[0], detail=False)
    elif purpose == "read":
        remote.fs.ls(remote.path, detail=False)
    else:
        remote.fs.exists(remote.path)


def _fetch(remote: private.Remote, cache: Cache, files: dict[str, str]) -> None:
    """Copy objects from the remote into the cache. Raises CapgapError if one is absent or damaged."""
    absent, damaged = fetch(remote, cache, files)
    url = hide_secrets(remote.url)
    if absent:
        raise CapgapError(
            f"{_some([*map(_name, absent)])} not in the remote {url}; the author of this revision has "
            "to store it there (capgap push)"
        )
    if damaged:
        stored = f"{remote.path}/{private.object_name(files[damaged[0]])}"
        raise CapgapError(
            f"{_some([*map(_name, damaged)])} damaged in the remote {url}: the contents differ from "
            f"what was saved, and nothing was put in place. Delete the object there ({stored}), then "
            "store it again from a machine that has the file (capgap push)"
        )


def _name(name: str) -> str:
    """A file's name for messages; a record is named by its output."""
    path = Path(name)
    if not path.is_relative_to(private.RECORDS) or path == private.RECORDS:
        return name
    return f"the record of {private.output_of(private.RECORDS, path)}"


def _some(names: list[str]) -> str:
    """The first of some names and how many more there are, followed by "is" or "are"."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _hint(
    settings: dict[str, Any],
    remote: private.Remote | None,
    error: BaseException,
    purpose: str,
    answered: bool,
) -> str:
    """A hint for the user on an error of DVC or one of its plugins."""
    cause = first_line(error)
    if remote is None:
        name = settings.get("core", {}).get("remote")
        url = settings.get("remote", {}).get(name, {}).get("url", "")
        kind = url.partition("://")[0]
        if any(isinstance(link, ImportError) for link in _chain(error)):
            needed = (
                "make remotes" if kind in ("s3", "ssh") else f".venv/bin/pip install dvc-{kind}"
            )
            return (
                f"remote {name} is {url}, but DVC's support for {kind} is not installed: {needed}"
            )
        if not name:
            return "no remote is set; add one: dvc remote add --default storage /shared/folder"
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
            f"these credentials may read {where}, but not write to it ({cause}); ask its owner "
            f"for write access, or set another address: dvc remote modify {name} url ..."
        )
    if kinds & REFUSED:
        return f"{where} refuses the credentials ({cause}). {_credentials(remote)}"
    if "FileNotFoundError" in kinds and not answered:
        if remote.fs.protocol == "s3":
            bucket = remote.path.partition("/")[0]
            return (
                f"{where}: the bucket {bucket} does not exist. Create it, or correct the name: "
                f"dvc remote modify --local {name} url s3://..."
            )
        if remote.settings.get("keyfile") and not Path(remote.settings["keyfile"]).is_file():
            return f"{where}: the key file {remote.settings['keyfile']} does not exist"
        return (
            f"{where}: the folder does not exist. Either nothing was stored there yet (capgap push), "
            f"or the address is wrong: dvc remote modify --local {name} url ..."
        )
    return f"{where}: the transfer failed ({cause}); run the same command again to resume it"


def _credentials(remote: private.Remote) -> str:
    """How to give credentials to a kind of remote."""
    if remote.fs.protocol == "s3":
        return (
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or keep them on this machine only: "
            f"dvc remote modify --local {remote.name} access_key_id ... and secret_access_key ..."
        )
    return (
        "Check that the server has the public key, and name the private one: "
        f"dvc remote modify --local {remote.name} keyfile ..."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
