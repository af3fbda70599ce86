"""What Snakemake plans with: the parameter of a rule, and file times that follow contents."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from capgap.config import Section, Study
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.records import paths
from capgap.records.checksums import read_manifest
from capgap.records.reading import Unreadable
from capgap.workflow import ledger
from capgap.workflow.digest import command_digest, source_digest
from capgap.workflow.tracking import SETTINGS

SOURCES = "CAPGAP_SOURCES"
SHOWN = 8


def prepare_environment() -> None:
    """Set what every job inherits: rules call `python`, which must be the one that runs this."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["CAPGAP_UNDER_WORKFLOW"] = "1"
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for large tensors, as by hand


def hand_down(study: Study) -> None:
    """Leave the settings of a run to jobs that parse the workflow again, as on a cluster.

    The workflow may have been edited meanwhile, and what the run had planned goes on record.
    """
    os.environ[SETTINGS] = study.model_dump_json(exclude_none=True)
    os.environ[SOURCES] = "{}"


def handed_down() -> Study:
    """The settings that a job's run planned with."""
    if SETTINGS not in os.environ:
        raise CapgapError(
            f"{SETTINGS} of the run did not reach this job; have the cluster pass the environment "
            "on (Slurm: --export=ALL)"
        )
    return load_study(json.loads(os.environ[SETTINGS]))


def digests(stage: str, rule: str) -> dict[str, str]:
    """What an output of this rule is made with now: digests of its source and its command."""
    return {"source": source_digest(f"capgap.stages.{stage}"), "command": command_digest(rule)}


def _planned(stage: str, rule: str) -> dict[str, str]:
    """The same, in a job what its run planned with.

    Raises CapgapError where the rule's command has changed since; the stage says it of the source.
    """
    planned = json.loads(os.environ.get(SOURCES, "{}"))
    if rule not in planned:
        planned[rule] = digests(stage, rule)
        os.environ[SOURCES] = json.dumps(planned)
    if planned[rule]["command"] != command_digest(rule):
        raise CapgapError(f"rule {rule} changed after the run was planned; run again")
    return planned[rule]


def spec(stage: str, settings: Section | None, rule: str) -> str:
    """Sorted JSON, so that Snakemake compares one text in which every value has its name."""
    data = {"stage": stage, **_planned(stage, rule)}
    if settings is not None:
        data["settings"] = settings.model_dump(
            mode="json", exclude_none=True, exclude=settings.watch_only
        )
    return json.dumps(data, sort_keys=True)


def reconcile(root: str, expected: Iterable[str]) -> None:
    """Make times say what contents say, before Snakemake looks at either.

    Snakemake reruns a job for an input that is newer than its output and has another checksum
    than recorded. So an input with another checksum is made newer, whatever its time was. It
    stops at an input from the future, as clocks of other machines leave them: those become past.
    Raises CapgapError for expected results without a record: nothing tells what they were made
    from, and Snakemake would take them as they are. Likewise for a result that is not what others
    were made from though no job has made it since: what follows would be made from the damage.
    """
    records = ledger.read_all(root)
    unfinished = ledger.unfinished(root)
    exempt = {*records, *unfinished}
    unknown = [path for path in expected if path not in exempt and os.path.exists(path)]
    if unknown:
        raise CapgapError(
            f"{unknown[0]} and {len(unknown) - 1} other results have no record of how they were "
            f"made, so they cannot be trusted; `capgap pull` brings records and results together, or "
            f"delete them ({Path(root)}) to make them again"
        )
    now = time.time()
    for path in records:
        if os.path.getmtime(path) >= now:
            os.utime(path, (now - 1, now - 1))
    for name, outputs in ledger.changed_inputs(records).items():
        if name in records and name not in unfinished:
            used = max(outputs, key=lambda output: records[output]["starttime"])
            if records[name]["endtime"] <= records[used]["starttime"]:
                raise CapgapError(
                    f"{name} is not what {used} was made from, and no job has made it since: it was "
                    f"edited or damaged. Bring back what was saved (capgap pull --force {name}), or "
                    "delete it to have it made again"
                )
        os.utime(name, (now, now))


def forget_final(study: str) -> None:
    """Remove the choice and the final student of earlier settings, which had one.

    They were made from a law that is no longer theirs. The runs behind them stay.
    """
    choice, final = (Path(path.format(study=study)) for path in (paths.CHOICE, paths.FINAL))
    choice.unlink(missing_ok=True)
    shutil.rmtree(final.parent, ignore_errors=True)


def check_inputs(jobs: Iterable[Any]) -> None:
    """Raise CapgapError when a job to run reads a folder of which not all is here.

    So `capgap pull` leaves a clone. The job would say it too, but by then Snakemake has deleted what
    the job made the last time. jobs: those of Snakemake that a run starts with.
    """
    made, read = set(), set()
    for job in jobs:
        if job.output:  # `all` only asks for files
            made.update(map(str, job.output))
            read.update(map(str, job.input))
    left_out = sorted(str(Path(p).parent) for p in read - made if _is_left_out(Path(p)))
    if left_out:
        shown = [
            *left_out[:SHOWN],
            *([f"and {len(left_out) - SHOWN} more"] * (len(left_out) > SHOWN)),
        ]
        raise CapgapError(
            "nothing was started: jobs of this run read what is not here. Files are missing of\n"
            + "\n".join(f"  {line}" for line in shown)
            + "\nBring all (capgap pull --models) or one (capgap pull FOLDER); a folder that you "
            "delete is made again"
        )


def _is_left_out(path: Path) -> bool:
    """Whether a file is the manifest of a folder in which another file is missing."""
    if path.name != paths.MANIFEST or not path.is_file():
        return False
    try:
        files = read_manifest(path)
    except Unreadable:  # as the job that opens it says
        return False
    return not all((path.parent / name).is_file() for name in files)
