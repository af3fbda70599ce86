"""Models of the Hugging Face hub, fetched into its local cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from capgap.errors import CapgapError

WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]


def download(model: str, revision: str) -> Path:
    """Folder of a model of the hub in the local cache, fetched unless it is there already.

    Raises CapgapError where it cannot be had, and where its weights are not safetensors.
    """
    where = f"{model} at {revision}"
    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=WANTED)
    except HFValidationError:
        raise CapgapError(f"{model}: not a model id of the hub; an id is owner/name") from None
    except GatedRepoError:
        raise CapgapError(
            f"{where} is gated: accept its licence on its page on the hub, then give a read token "
            "with 'hf auth login' or in HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise CapgapError(
            f"{model} has no commit {revision}; take one from its history on the hub"
        ) from None
    except RepositoryNotFoundError:
        raise CapgapError(
            f"{model} is not on the hub, or private; check its name, or log in with 'hf auth login'"
        ) from None
    except LocalEntryNotFoundError:
        raise CapgapError(
            f"{where} is neither in the cache nor reachable; connect once, or fetch it on a "
            "machine with a network and use source: path"
        ) from None
    except HfHubHTTPError as error:
        raise CapgapError(f"{where} cannot be had: {error}") from None
    if not list(Path(folder).glob("*.safetensors")):
        raise CapgapError(
            f"{where} has no safetensors weights, and pickled ones are not loaded; "
            "choose a commit that has them"
        )
    return Path(folder)
