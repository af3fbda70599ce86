"""
Send the measurements of a training run to experiment trackers while it runs.

The trackers are accelerate's, so their own variables choose servers and offline modes (WANDB_MODE,
MLFLOW_TRACKING_URI, TRACKIO_DIR). Files go below tracking/. No result depends on a tracker: if one
fails, it is left out and training continues. The names of trackers are not among a job's parameters,
and this package is not part of source digests, so neither causes a rerun.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from capgap.errors import CapgapError, first_line

if TYPE_CHECKING:  # trackers take seconds to import, and few runs use one
    from accelerate.tracking import GeneralTracker

SETTINGS = "CAPGAP_STUDY"  # variable that passes a run's settings to its jobs, see rule_params
TRACKING = Path("tracking")
PROJECT = "capgap"
PACKAGES = {"mlflow": "mlflow-skinny sqlalchemy alembic"}  # if not named like the tracker

# (tokens trained on, measured values by name)
Watch = Callable[[int, dict[str, float]], None]


def trackers_of(stage: str) -> list[str]:
    """The trackers that this job's study names for a stage, which is distill or pretrain."""
    section = json.loads(os.environ.get(SETTINGS, "{}")).get(stage) or {}
    return section.get("track", [])


def unwatched(tokens: int, values: dict[str, float]) -> None:
    """The watch of a run without trackers: does nothing."""


@contextmanager
def tracked(names: list[str], out: Path) -> Iterator[Watch]:
    """Yield a function that sends values to the named trackers; the run is named after `out`.

    Raises CapgapError for a tracker that is not installed.
    """
    if not names:
        yield unwatched
        return
    trackers = {name: start for name in names if (start := _started(name, _run_name(out)))}

    def watch(tokens: int, values: dict[str, float]) -> None:
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        for name, tracker in list(trackers.items()):
            try:
                tracker.log(finite, step=tokens)
            except Exception as error:  # networks, disks and servers fail in many ways
                _give_up(name, error)
                del trackers[name]

    try:
        yield watch
    finally:
        for name, tracker in trackers.items():
            try:
                tracker.finish()
            except Exception as error:
                _give_up(name, error)


def _started(name: str, run: str) -> GeneralTracker | None:
    """A started tracker; None if it cannot be started."""
    from accelerate import PartialState, tracking

    if name not in map(str, tracking.get_available_trackers()):
        raise CapgapError(
            f"track: {name} is not installed; install it (pip install {PACKAGES.get(name, name)}, or "
            "pip install capgap[track] for all), or leave it out"
        )
    folder = TRACKING / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        PartialState()  # accelerate's trackers refuse to log without it
        match name:
            case "tensorboard":
                tracker = tracking.TensorBoardTracker(run, logging_dir=folder)
            case "wandb":
                tracker = tracking.WandBTracker(PROJECT, name=run, dir=str(folder))
            case "mlflow":
                _mlflow_in(folder)
                tracker = tracking.MLflowTracker(PROJECT, run_name=run, nested_run=True)
            case "trackio":
                tracker = tracking.TrackioTracker(PROJECT, name=run)
        tracker.start()
    except Exception as error:  # for example, nobody is logged in or the server is down
        _give_up(name, error)
        return None
    return tracker


def _mlflow_in(folder: Path) -> None:
    """Have MLflow write into a folder, unless a server is configured."""
    import mlflow

    if not mlflow.is_tracking_uri_set() and "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder.absolute()}/mlflow.db")


def _run_name(out: Path) -> str:
    """The output folder relative to the working folder, or its last name if it is outside."""
    out, here = Path(out).absolute(), Path.cwd()
    return str(out.relative_to(here)) if out.is_relative_to(here) and out != here else out.name


def _give_up(name: str, error: Exception) -> None:
    print(f"tracking by {name} stopped, training continues: {first_line(error)}", flush=True)
