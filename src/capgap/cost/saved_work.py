"""
Finished work that a run is about to compute again although `capgap pull` would fetch it.

It is found without a network: in dvc.lock, in the listings and records in DVC's cache if they are
there, and in the plan. A run that has nothing to do does not look for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import yaml

from capgap.config import Study
from capgap.cost.job_costs import StudyCost
from capgap.cost.speed import speed_of
from capgap.errors import CapgapError
from capgap.records import paths
from capgap.records.reading import Unreadable, read_text
from capgap.workflow import ledger, private, remote, stores


def saved_work(study: Study, wanted: dict[str, dict | None]) -> str | None:
    """A note on finished work that can be fetched instead of computed; None if there is none.

    wanted: outputs of the coming run, each with the spec that it will be made with, None if unknown.
    """
    try:
        saved = remote.read_lock(study.study)
    except CapgapError:
        return None  # nothing was saved, or dvc.lock is damaged, which `capgap pull` reports
    try:
        settings = private.settings()
        cache = private.cache_folder(settings)
        found = _in_cache(cache, saved, wanted)
    except Exception:  # DVC's settings or cache are damaged, which is no reason to stop a run
        return None
    if found is None:  # a clone that pulled nothing: its listings are in the remote
        if Path(paths.ROOT.format(study=study.study)).is_dir() or not _same_settings():
            return None
        count = sum(out.files or 0 for out in saved.values())
        return (
            f"{count:,} files of finished results of this study, {_planned_s(study, None):,.0f} CPU "
            f"seconds of work by the plan, are in the remote {_remote_name(settings)}; `capgap pull` "
            "fetches them (--models: all of them). Ctrl-C and pull, or let this run compute them anew"
        )
    seconds, outputs, complete = found
    if not outputs:
        return None
    source = "DVC's cache on this machine" if complete else f"the remote {_remote_name(settings)}"
    return (
        f"{len(outputs)} of the results that this run would make are saved in dvc.lock, "
        f"{seconds or _planned_s(study, outputs):,.0f} CPU seconds of finished work; `capgap pull "
        f"--models --force` puts them in place, from {source}. Ctrl-C and pull, or let this run compute "
        "them anew"
    )


def _in_cache(
    cache: Path, saved: dict[str, remote.Saved], wanted: dict[str, dict | None]
) -> tuple[float, list[str], bool] | None:
    """(seconds, outputs, whether all are in the cache) of the wanted outputs that were saved.

    None if the listings are not in the cache. An output counts if its saved record was made with the
    spec that is wanted now.
    """
    files: dict[str, str] = {}
    for path, out in saved.items():
        listing = cache / private.object_name(out.oid)
        if not listing.is_file():
            return None
        files |= stores.listing(listing, path, out.files)
    spans: dict[tuple, float] = {}
    outputs, complete = [], True
    for output, spec in wanted.items():
        record_name = str(private.location(private.RECORDS, output))
        if output not in files or record_name not in files:
            continue
        file = cache / private.object_name(files[record_name])
        record = ledger.read_record(file, output) if file.is_file() else None
        if record is None or (spec is not None and ledger.read_spec(record) != spec):
            continue
        outputs.append(output)
        complete &= (cache / private.object_name(files[output])).is_file()
        span = (record["rule"], record["starttime"], record["endtime"])
        spans[span] = record["endtime"] - record["starttime"]
    return sum(spans.values()), outputs, complete


def _planned_s(study: Study, outputs: Iterable[str] | None) -> float:
    """CPU seconds of the study's jobs by the plan; of those that make `outputs`, if given."""
    speed, chosen = speed_of(study, study.plan.device), None if outputs is None else set(outputs)
    jobs = StudyCost(study).jobs
    return sum(speed.seconds(job) for job in jobs if chosen is None or job.output in chosen)


def _same_settings() -> bool:
    """Whether dvc.lock was saved with the settings that config.yaml has now."""
    try:
        lock = yaml.safe_load(read_text(remote.LOCK))
        params = lock["stages"]["study"]["params"]["config.yaml"]
        return params == yaml.safe_load(read_text(Path("config.yaml")))
    except (OSError, Unreadable, yaml.YAMLError, KeyError, TypeError):
        return False


def _remote_name(settings: dict) -> str:
    """The default remote's name, quoted; the way to name one if there is none."""
    name = settings.get("core", {}).get("remote")
    return f"'{name}'" if name else "(none is set: dvc remote add --default NAME URL)"


def wanted_of(jobs: Iterable) -> dict[str, dict | None]:
    """Outputs of Snakemake's jobs, each with the spec that it will be made with."""
    return {
        os.fspath(output): json.loads(job.params.spec) if job.params.get("spec") else None
        for job in jobs
        for output in job.output
    }
