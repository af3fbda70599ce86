"""Fetch models and data sets of the Hugging Face hub into its cache, and upload a model."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import httpx2
from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, get_token, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from capgap.errors import CapgapError
from capgap.records.reading import digest

HASH = r"[0-9a-f]{40}|[0-9a-f]{64}"
MODEL_FILES = [
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model",
]  # fmt: skip


def download_model(model: str, revision: str) -> Path:
    """Folder of a model of the hub in the local cache, fetched unless it is there already.

    Raises CapgapError if it cannot be fetched completely, or if its weights are not safetensors.
    """
    folder = _download("model", model, revision, allow_patterns=MODEL_FILES, ignore_patterns="*/*")
    if not list(folder.glob("*.safetensors")):
        raise CapgapError(
            f"{model} at {revision} has no safetensors weights, and pickled ones are not loaded; "
            "choose a commit that has them"
        )
    return folder


class Absent(CapgapError):
    """A model or data set that is not in the hub's cache and cannot be fetched now."""


def download_config(model: str, revision: str) -> Path:
    """Folder in the local cache with the config.json of a model of the hub, fetched unless there.

    Raises Absent without a network, and CapgapError if the hub does not give it.
    """
    held = try_to_load_from_cache(model, "config.json", revision=revision)
    if isinstance(held, str):
        return Path(held).parent
    if not constants.HF_HUB_OFFLINE and not _reachable(constants.ENDPOINT):
        raise Absent(
            f"{model} at {revision} is not in the cache, and {constants.ENDPOINT} not reachable"
        )
    return _download("model", model, revision, allow_patterns=["config.json"])


@cache
def _reachable(endpoint: str) -> bool:
    """Whether the hub answers at all, asked once; its library would ask six times for every file."""
    try:
        httpx2.head(endpoint, timeout=10)
    except (httpx2.ConnectError, httpx2.ConnectTimeout):
        return False
    except HTTPError:  # it answers, though not to this
        return True
    return True


def download_files(dataset: str, revision: str, files: list[str]) -> None:
    """Put files of a data set of the hub into the local cache, unless they are there already.

    Raises CapgapError if they cannot be fetched completely.
    """
    _download("dataset", dataset, revision, allow_patterns=files)


def _download(kind: str, name: str, revision: str, **patterns) -> Path:
    where = f"{name} at {revision}"
    try:
        folder = snapshot_download(name, repo_type=kind, revision=revision, **patterns)
        _check(where, Path(folder))
    except HFValidationError:
        raise CapgapError(f"{name}: not an id of the hub; an id is owner/name") from None
    except GatedRepoError:
        raise CapgapError(f"{where} is gated: {open_gate(kind, name)}") from None
    except RevisionNotFoundError:
        raise CapgapError(
            f"{name} has no commit {revision}; take one from its history on the hub"
        ) from None
    except RepositoryNotFoundError:
        raise CapgapError(
            f"{name} is not on the hub, or private; check its name, or log in with 'hf auth login'"
        ) from None
    except LocalEntryNotFoundError:
        raise Absent(
            f"{where} is neither in the cache nor reachable, or the cache holds a part of it; connect "
            "once, or fetch it on a machine with a network and name its folder"
        ) from None
    except (HTTPError, OSError, XetDownloadError) as error:
        if getattr(error, "errno", None):
            raise  # an error of this machine, like a full disk
        raise CapgapError(
            f"{where} cannot be fetched: {str(error).splitlines()[0]}; run again: files that arrived "
            "whole are kept"
        ) from None
    return Path(folder)


def open_gate(kind: str, name: str) -> str:
    """A hint on how to get access to a gated model or data set."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    try:
        tags = HfApi().repo_info(name, repo_type=kind).tags or []  # pyright: ignore[reportAttributeAccessIssue]
    except (HTTPError, OSError):  # the page names it too
        tags = []
    licence = next(
        (f" ({t.removeprefix('license:')})" for t in tags if t.startswith("license:")), ""
    )
    return (
        f"log in on {page}, accept its licence{licence} and wait until access is granted; then give "
        f"a read token with 'hf auth login', which keeps it in {constants.HF_TOKEN_PATH}, or in the "
        "environment variable HF_TOKEN"
    )


def _check(where: str, folder: Path) -> None:
    """Check files in the cache against the hub's hashes, and remove damaged ones.

    The cache links each file to one named after its hash: SHA-256 of a large file, git's of others.
    """
    damaged = []
    for path in filter(Path.is_file, folder.rglob("*")):
        said = path.readlink().name if path.is_symlink() else ""
        if not re.fullmatch(HASH, said):
            raise CapgapError(
                f"{path} is not a link to a file named after its hash, so it cannot be checked; set "
                "HF_HOME to a folder where symbolic links work, unset HF_HUB_DISABLE_SYMLINKS, and "
                "use a hub or mirror that gives hashes as ETag"
            )
        if said != (digest(path) if len(said) == 64 else _git_sha1(path)):
            damaged.append(path.relative_to(folder).as_posix())
            path.resolve().unlink()
            path.unlink()
    if damaged:
        raise CapgapError(
            f"{where}: {', '.join(sorted(damaged))} arrived damaged (another hash than the hub's) "
            "and was removed from the cache; run again to fetch it again"
        )


def _git_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json", "*.gguf"]


def upload_model(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload a folder to a model repository of the hub, which is made if needed; returns the commit.

    The same commit removes weights that the folder does not have, so that the repository loads as
    the folder's model. Raises CapgapError if the hub refuses or cannot be reached.
    """
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        if get_token() is None:
            raise LocalTokenNotFoundError
        api.create_repo(repo, repo_type="model", private=private or None, exist_ok=True)
        info = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            delete_patterns=WEIGHT_FILES,
        )
        return info.oid
    except HFValidationError:
        raise CapgapError(f"--push: {repo} is not an id of the hub; an id is USER/REPO") from None
    except LocalTokenNotFoundError:
        raise CapgapError(
            f"--push: no token, so nothing can be put into {repo}; make one that may write on "
            f"{constants.ENDPOINT}/settings/tokens and give it with 'hf auth login' or in HF_TOKEN"
        ) from None
    except (HTTPError, OSError, RuntimeError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        cause = str(error).strip().splitlines()[0]
        if status in (401, 403):
            cause = f"the token may not write there ({cause})"
        raise CapgapError(
            f"--push: {repo} was not updated: {cause}; {folder} is complete, so fix this and push it "
            f"again: hf upload {repo} {folder}"
        ) from None
