"""
Check every hub commit that a study pins: whether it exists, and whether main has moved on.

Pins never change by themselves. The config.json of its teachers is fetched
into the cache of the hub, so that the study can be planned without a network from then on.
"""

from __future__ import annotations

from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from capgap.command_parser import CommandParser
from capgap.config import HubCorpus, HubTeacher, HubText, Study
from capgap.config.study_file import load_study
from capgap.data.hub import download_config, open_gate
from capgap.errors import CapgapError


def pins(study: Study) -> list[tuple[str, str, str]]:
    """What a study pins: (model or dataset, id on the hub, commit), without repeats."""
    found = [
        ("model", teacher.model, teacher.revision)
        for teacher in study.models.values()
        if isinstance(teacher, HubTeacher)
    ]
    if isinstance(study.corpus, HubCorpus):
        texts = [study.corpus, *([study.corpus.test] if study.corpus.test else [])]
        found += [("dataset", text.dataset, text.revision) for text in texts]
    more = [text for text in study.evaluate.texts.values() if isinstance(text, HubText)]
    found += [("dataset", text.dataset, text.revision) for text in more]
    return list(dict.fromkeys(found))


def check(kind: str, name: str, revision: str, api: HfApi) -> tuple[bool, str]:
    """Whether a pinned commit is on the hub, and a sentence about it and about main.

    Raises CapgapError if the hub cannot be reached.
    """
    try:
        main = api.repo_info(name, repo_type=kind).sha
        api.repo_info(name, repo_type=kind, revision=revision)
        api.auth_check(
            name, repo_type=kind
        )  # a gated repository's page is public, its files are not
    except RevisionNotFoundError:
        return False, f"{name}: no commit {revision}; main is {main}"
    except GatedRepoError:
        return False, f"{name}: gated; {open_gate(kind, name)}"
    except RepositoryNotFoundError:
        return False, f"{name}: not on the hub, or private"
    except (HTTPError, OSError) as error:
        raise CapgapError(
            f"{name}: the hub cannot be reached ({error}); try with a network"
        ) from None
    if main == revision:
        return True, f"{name}: {revision} is main"
    return True, f"{name}: {revision} exists; main has moved on to {main}"


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap pin`."""
    parser = CommandParser("pin", __doc__)
    parser.add_study()
    study = load_study(parser.parse_args(argv).study)
    api, missing = HfApi(), 0
    for kind, name, revision in pins(study):
        there, sentence = check(kind, name, revision, api)
        missing += not there
        print(sentence, flush=True)
        if there and kind == "model":
            download_config(name, revision)
    if missing:
        raise CapgapError(f"{missing} pinned commit(s) are not available; see above")
