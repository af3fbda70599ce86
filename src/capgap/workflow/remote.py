"""
Exchange results with the DVC remote: `capgap pull` and `capgap push`, whole or not at all.

DVC reports a missing bucket as missing files, leaves a refused key to its log, trusts what arrives
unless told otherwise, and takes away results that are in place when one file of a pull fails. So
here the remote is asked for its top folder first; everything is fetched and hashed before anything
is put in place; and the cause of a failure becomes one sentence that says what to do.
"""

from __future__ import annotations

import configparser
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capgap.errors import CapgapError
from capgap.workflow import ledger

if TYPE_CHECKING:
    from dvc.data_cloud import Remote
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

LOCK = Path("dvc.lock")
SHARED_SETTINGS = Path(".dvc/config")  # in git; .dvc/config.local is not
SECRETS = {
    "access_key_id",
    "account_key",
    "client_secret",
    "connection_string",
    "oss_key_secret",
    "password",
    "sas_token",
    "secret_access_key",
    "session_token",
    "token",
}
LOGS = ("dvc", "dvc_data", "dvc_objects", "asyncssh")

REFUSED = {"PermissionError", "NoCredentialsError", "PermissionDenied", "AuthError"}
SILENT = {
    "ConnectionError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "TimeoutError",
    "gaierror",
}


def pull(choose: Callable[[Iterable[str]], list[str]], *, force: bool = False) -> list[str]:
    """Bring files that `dvc.lock` names into place; the names that `choose` picked from all.

    force: replace files that were not saved, too.

    Raises CapgapError, and leaves every file as it was, when nothing was saved at this revision,
    when a file is not in the remote or is not what its author saved, when the remote cannot be
    read, and when a file here was not saved.
    """
    from dvc.exceptions import DvcException

    _check_saved()
    with _connected("read") as (repo, remote):
        # lists of files first, hashed like files, for the index would take them unseen
        lists = {str(out): out.hash_info for out in repo.index.outs if out.hash_info}
        _fetch(repo, remote, lists)
        files = _files(repo)
        names = choose(files)
        _fetch(repo, remote, {name: files[name] for name in names})
        try:
            repo.checkout(targets=None if len(names) == len(files) else names, force=force)
        except DvcException as error:
            first, *others = str(error).splitlines()
            if "unsaved files" not in first:
                raise
            unsaved = sorted(_name(Path(os.path.relpath(path))) for path in others)
            raise CapgapError(
                f"nothing was put in place: {_some(unsaved)} not as saved and would be lost. Keep "
                "what is here (capgap save), or give it up (capgap pull --force)"
            ) from None
    return names


def push() -> int:
    """Store the files that `dvc.lock` names in the remote; the number of objects that were new.

    Raises CapgapError when nothing was saved, when a file is neither here nor there, when the
    shared settings hold a secret, and when the remote cannot be written.
    """
    refuse_secrets()
    _check_saved()
    with _connected("write") as (repo, remote):
        lists = {str(out): out.hash_info for out in repo.index.outs if out.hash_info}
        files = {**_files(repo), **lists}
        absent, result = _transfer(repo, repo.cache.local, remote.odb, files)
        if absent:
            raise CapgapError(
                f"{_some(absent)} of dvc.lock neither here nor in the remote: pull first "
                "(capgap pull --models), or make and save them (capgap run, capgap save)"
            )
        if result.failed:
            raise _Incomplete(f"{len(result.failed)} files were not stored")
    return len(result.transferred)


def refuse_secrets(path: Path = SHARED_SETTINGS) -> None:
    """Raise CapgapError when the settings that git tracks hold a password or a key."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(path, encoding="utf-8")
    for section in settings.sections():
        for name, value in settings[section].items():
            in_url = name == "url" and ":" in value.partition("://")[2].rpartition("@")[0]
            if name in SECRETS or in_url:
                remote = section.strip("'").removeprefix('remote "').rstrip('"')
                raise CapgapError(
                    f"{path} is in git and holds a credential ({name} of remote {remote}); take "
                    f"it out and keep it here only: dvc remote modify --local {remote} {name} ..."
                )


def _check_saved() -> None:
    if not LOCK.is_file():
        raise CapgapError(
            f"this revision holds no results: there is no {LOCK}. Whoever has them types capgap "
            f"save, git add {LOCK}, git commit and capgap push; without them, capgap run"
        )


class _Incomplete(Exception):
    """A transfer that ended without all files; the cause is in DVC's log."""


@contextmanager
def _connected(purpose: str) -> Iterator[tuple[Repo, Remote]]:
    """This repository and its remote, which has answered. What fails inside becomes a message.

    purpose: read or write.
    """
    from dvc.repo import Repo

    with _causes() as causes, Repo() as repo:
        for settings in repo.config["remote"].values():
            settings["verify"] = True
        remote, answered = None, False
        try:
            remote = repo.cloud.get_remote()
            _ask(remote, purpose)
            answered = True
            yield repo, remote
        except CapgapError:
            raise
        except Exception as error:  # DVC and its plugins raise whatever their libraries raise
            kinds = [*causes, error]
            raise CapgapError(_advice(repo, remote, kinds, purpose, answered)) from None


def _ask(remote: Remote, purpose: str) -> None:
    """Ask a remote for its top folder, for S3 the bucket. DVC makes other folders when it writes."""
    if remote.fs.protocol == "s3":
        remote.fs.ls(remote.path.partition("/")[0], detail=False)
    elif purpose == "read":
        remote.fs.ls(remote.path, detail=False)
    else:
        remote.fs.exists(remote.path)


def _files(repo: Repo) -> dict[str, HashInfo]:
    """All files that DVC versions here, by path; their hashes."""
    return {
        "/".join(key): entry.hash_info
        for key, entry in repo.index.data["repo"].iteritems()
        if entry.hash_info and not entry.hash_info.isdir
    }


def _fetch(repo: Repo, remote: Remote, files: dict[str, HashInfo]) -> None:
    """Bring objects from the remote into the cache, and see that all are there."""
    url = remote.fs.unstrip_protocol(remote.path)
    absent, result = _transfer(repo, remote.odb, repo.cache.local, files)
    if absent:
        raise CapgapError(
            f"{_some(absent)} not in the remote {url}; whoever made this revision has to store it "
            "there: capgap push"
        )
    if result.failed:
        raise _Incomplete(f"{len(result.failed)} files were not fetched")
    damaged = [name for name, found in files.items() if not repo.cache.local.exists(found.value)]
    if damaged:
        stored = remote.odb.oid_to_path(files[damaged[0]].value)
        raise CapgapError(
            f"{_some(damaged)} damaged in the remote {url}: the contents are not what was saved, "
            f"and nothing was put in place. Delete the object there ({stored}) and have it stored "
            "again by someone who has the file: capgap push"
        )


def _transfer(repo: Repo, source: Any, target: Any, files: dict[str, HashInfo]) -> tuple:
    """Copy objects from one store to another; (names that neither has, DVC's result)."""
    from dvc_data.hashfile.transfer import transfer

    missing: set[HashInfo] = set()
    result = transfer(
        source,
        target,
        set(files.values()),
        verify=True,
        cache_odb=repo.cache.local,
        validate_status=lambda status: missing.update(status.missing),
    )
    return [name for name, found in files.items() if found in missing], result


def _name(path: Path) -> str:
    """A file as people know it: a record by its output."""
    if not path.is_relative_to(ledger.RECORDS):
        return str(path)
    return f"the record of {ledger.output_of(ledger.RECORDS, path)}"


def _some(names: list[str]) -> str:
    """The first of some names and how many more, with its verb."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


@contextmanager
def _causes() -> Iterator[list[BaseException]]:
    """Collect the exceptions that DVC logs instead of raising them; nothing of it is printed."""
    causes: list[BaseException] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                causes.append(record.exc_info[1])

    handler = Keep(logging.WARNING)
    for name in LOGS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False
    try:
        yield causes
    finally:
        for name in LOGS:
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).propagate = True


def _advice(
    repo: Repo, remote: Remote | None, errors: list[BaseException], purpose: str, answered: bool
) -> str:
    """What a user has to do about errors of DVC, the first cause first."""
    said = str(errors[0]).strip().splitlines()
    said = said[0] if said else type(errors[0]).__name__
    if remote is None:
        name = repo.config["core"].get("remote")
        url = repo.config["remote"].get(name, {}).get("url", "")
        kind = url.partition("://")[0]
        if any(isinstance(error, ImportError) for error in errors):
            needed = (
                "make remotes" if kind in ("s3", "ssh") else f".venv/bin/pip install dvc-{kind}"
            )
            return f"remote {name} is {url}, and what {kind} needs is not installed: {needed}"
        return f"there is no remote to use: {said}"
    url, name = remote.fs.unstrip_protocol(remote.path), remote.name
    where = f"remote {name}, {url}"
    if remote.config.get("endpointurl"):
        where += f" at {remote.config['endpointurl']}"
    kinds = {
        cls.__name__ for error in errors for link in _chain(error) for cls in type(link).__mro__
    }
    if kinds & SILENT:
        return (
            f"nothing answers for {where} ({said}). Is the server up, and is the address right? "
            f"To correct it: dvc remote modify --local {name} url ..."
            + (" (or endpointurl ...)" if remote.fs.protocol == "s3" else "")
        )
    if kinds & {*REFUSED, "FileNotFoundError"} and answered and purpose == "write":
        return (
            f"{where} may be read with these credentials, but not written ({said}); ask its owner "
            f"for the right to write, or name another place: dvc remote modify {name} url ..."
        )
    if kinds & REFUSED:
        return f"{where} refuses the credentials ({said}). {_credentials(remote)}"
    if "FileNotFoundError" in kinds and not answered:
        if remote.fs.protocol == "s3":
            bucket = remote.path.partition("/")[0]
            return (
                f"{where}: there is no bucket {bucket}. Create it, or correct the name: "
                f"dvc remote modify --local {name} url s3://..."
            )
        if remote.config.get("keyfile") and not Path(remote.config["keyfile"]).is_file():
            return f"{where}: the key file {remote.config['keyfile']} does not exist"
        return (
            f"{where}: there is no such folder. Nothing was stored there yet (capgap push), or "
            f"the address is wrong: dvc remote modify --local {name} url ..."
        )
    return f"{where}: the transfer failed ({said}); run the same command again, it goes on"


def _credentials(remote: Remote) -> str:
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
