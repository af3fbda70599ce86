"""The parameters of rules, and file times that follow contents, before Snakemake plans a run."""

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
from capgap.config.devices import COLLECTIVE_VARIABLE
from capgap.config.study_file import load_study
from capgap.errors import CapgapError, at_most
from capgap.records import paths
from capgap.records.checksums import read_manifest
from capgap.records.reading import Unreadable
from capgap.workflow import ledger
from capgap.workflow.digest import command_digest, source_digest
from capgap.workflow.tracking import SETTINGS

SOURCES = "CAPGAP_SOURCES"
SHOWN = 8


def prepare_environment() -> None:
    """Set the environment of all jobs: rules call `python`, which must be this interpreter."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["PYTHONSAFEPATH"] = "1"  # jobs import nothing from the working folder
    os.environ["CAPGAP_UNDER_WORKFLOW"] = "1"
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for large tensors


def hand_down(study: Study) -> None:
    """Pass the settings of a run to jobs that parse the workflow again, as on a cluster.

    The workflow may have been edited since, while the records name what the run had planned.
    """
    os.environ[SETTINGS] = study.model_dump_json(exclude_none=True)
    os.environ[SOURCES] = "{}"
    os.environ[COLLECTIVE_VARIABLE] = str(study.plan.collective_timeout_minutes)


def own_texts(workflow: Any) -> dict[str, str]:
    """The run's default resources that are texts for Slurm, which a rule's own would replace."""
    given = workflow.resource_settings.default_resources or {}
    texts = {
        name: str(getattr(given[name], "raw", given[name]))
        for name in ("slurm_extra", "gpu_model")
        if name in given
    }
    return {name: text.strip("'\"") for name, text in texts.items()}  # typed in quotes or without


def check_executor(study: Study, executor: str) -> None:
    """Raise CapgapError if jobs of several nodes would be run by something else than Slurm."""
    if study.plan.nodes > 1 and executor != "slurm":
        raise CapgapError(
            f"plan.nodes: jobs on {study.plan.nodes} nodes are started by Slurm, and this run's executor "
            f"is {executor}; run it with --profile profiles/slurm, or set plan.nodes to 1"
        )


def handed_down() -> Study:
    """The settings with which the job's run was planned."""
    if SETTINGS not in os.environ:
        raise CapgapError(
            f"the run's variable {SETTINGS} is not set in this job; let the cluster pass the "
            "environment on (Slurm: --export=ALL)"
        )
    return load_study(json.loads(os.environ[SETTINGS]))


def digests(stage: str, rule: str) -> dict[str, str]:
    """Digests of the source and the command that an output of this rule would be made with now."""
    return {"source": source_digest(f"capgap.stages.{stage}"), "command": command_digest(rule)}


def _planned(stage: str, rule: str) -> dict[str, str]:
    """The same; inside a job, the digests with which its run was planned.

    Raises CapgapError if the rule's command has changed since. The stage checks the source itself.
    """
    planned = json.loads(os.environ.get(SOURCES, "{}"))
    if rule not in planned:
        planned[rule] = digests(stage, rule)
        os.environ[SOURCES] = json.dumps(planned)
    if planned[rule]["command"] != command_digest(rule):
        raise CapgapError(f"rule {rule} changed after the run was planned; run again")
    return planned[rule]


def spec(stage: str, settings: Section | None, rule: str) -> str:
    """The rule's parameter as sorted JSON, so that Snakemake compares values with their names."""
    data = {"stage": stage, **_planned(stage, rule)}
    if settings is not None:
        data["settings"] = settings.model_dump(
            mode="json", exclude_none=True, exclude=settings.watch_only
        )
    return json.dumps(data, sort_keys=True)


def reconcile(root: str, expected: Iterable[str]) -> None:
    """Set file times so that they agree with contents, before Snakemake reads either.

    Snakemake reruns a job if an input is newer than its output and its checksum differs from the
    recorded one. So an input with another checksum gets a newer time. Snakemake stops at an input
    from the future, which clocks of other machines can cause, so such times are set to now.
    Raises CapgapError if expected results have no record, because Snakemake would accept them
    although their origin is unknown. Also raises it if an input of other results was edited or
    damaged without a job, because later results would be made from the damage.
    """
    records = ledger.read_all(root)
    unfinished = ledger.unfinished(root)
    exempt = {*records, *unfinished}
    unknown = [path for path in expected if path not in exempt and os.path.exists(path)]
    if unknown:
        raise CapgapError(
            f"{unknown[0]} and {len(unknown) - 1} other results have no record of how they were "
            f"made, so they cannot be trusted; `capgap pull` brings results with their records, or "
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
                    f"{name} was edited or damaged: it differs from what {used} was made from, and no "
                    f"job has made it since. Restore what was saved (capgap pull --force {name}), or "
                    "delete it so that the next run makes it again"
                )
        os.utime(name, (now, now))


def forget_final(study: str) -> None:
    """Remove the choice and the final student that earlier settings of the study made.

    They were made from a law that has been fitted again. The runs behind them stay.
    """
    choice, final = (Path(path.format(study=study)) for path in (paths.CHOICE, paths.FINAL))
    choice.unlink(missing_ok=True)
    shutil.rmtree(final.parent, ignore_errors=True)


def check_inputs(jobs: Iterable[Any]) -> None:
    """Raise CapgapError if a planned job reads a folder with missing files, as `capgap pull` leaves.

    The job itself would fail, too, but by then Snakemake has deleted the job's previous output.
    jobs: Snakemake's jobs of the run.
    """
    made, read = set(), set()
    for job in jobs:
        if job.output:  # `all` has inputs only
            made.update(map(str, job.output))
            read.update(map(str, job.input))
    left_out = sorted(str(Path(p).parent) for p in read - made if _is_left_out(Path(p)))
    if left_out:
        raise CapgapError(
            "nothing was started: jobs of this run read folders that are incomplete here:\n"
            + "\n".join(f"  {line}" for line in at_most(left_out, SHOWN))
            + "\nFetch all (capgap pull --models) or one (capgap pull FOLDER), or delete a folder so "
            "that the run makes it again"
        )


def _is_left_out(path: Path) -> bool:
    """Whether a file is the manifest of a folder in which another file is missing."""
    if path.name != paths.MANIFEST or not path.is_file():
        return False
    try:
        files = read_manifest(path)
    except Unreadable:  # the job that opens it will report this
        return False
    return not all((path.parent / name).is_file() for name in files)
