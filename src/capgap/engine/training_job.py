"""
A training job from start to published artifact, the same for teachers and students.

The result folder gets model/, curve.csv and, last, train.json. The state of an unfinished job lies
in a scratch folder named by a digest of everything that decides the result, so a job can never be
resumed from the state of another.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from capgap.config import Distill, Training
from capgap.config.run_grid import NONE
from capgap.config.shapes import training_flops
from capgap.data.token_streams import Streams
from capgap.engine import checkpoints, training
from capgap.engine.counting import count_params, forward_flops
from capgap.engine.models import save_model
from capgap.engine.parallel import DistContext, join
from capgap.engine.resuming import RunPaths, digest, discard, hold_state, state_key
from capgap.engine.run_plan import plan_run
from capgap.errors import CapgapError
from capgap.records.artifacts import is_first_process, open_folder, publish_folder, write_text
from capgap.records.paths import CURVE, MANIFEST, TRAIN, TRUNK
from capgap.records.run_records import Lineage, TrainRecord
from capgap.workflow.tracking import tracked

IDENTITY = "identity"  # file in a trunk's folder: its digest
AFTER_TRUNK = {"decay_share", "final_lr_share", "validations"}  # settings without effect on a trunk


def trunk_key(settings: Training, facts: dict, inputs: list[Path]) -> str:
    """A digest of everything that decides a trunk, which does not depend on the budget."""
    own = settings.model_dump(mode="json", exclude=AFTER_TRUNK | settings.memory_only)
    return digest(own, {key: value for key, value in facts.items() if key != "tokens"}, inputs)


@dataclass(frozen=True)
class TrainingJob:
    """The model, data, objective and identity of a training job."""

    model: torch.nn.Module
    streams: Streams
    settings: Training
    objective: training.Objective
    lineage: Lineage  # identity of the result; its tokens and seed decide the run
    tokenizer: Path
    inputs: list[Path]
    teacher: torch.nn.Module | None = None  # to count FLOPs; the objective computes with it
    teacher_tokens: float = 1.0  # that it reads for one of the student's, of another tokenizer
    trunk: Path | None = None  # of the same run at a smaller budget; saves time, changes nothing


def train_and_publish(job: TrainingJob, run_paths: RunPaths) -> TrainRecord:
    """Train the job's model, publish it with its curve and record, and return the record.

    If the schedule has a trunk, the state at its end is published as well. Only the first process
    publishes; all return the record.
    """
    with join(run_paths.shard) as dist:
        return _train_and_publish(job, run_paths, dist)


def _train_and_publish(job: TrainingJob, run_paths: RunPaths, dist: DistContext) -> TrainRecord:
    model, settings, lineage, inputs = job.model, job.settings, job.lineage, job.inputs
    plan = plan_run(settings, lineage.tokens, lineage.seed)
    facts = lineage.model_dump(mode="json")
    scratch = run_paths.scratch / state_key(settings, facts, inputs)
    key = trunk_key(settings, facts, inputs)
    run_paths.out.mkdir(parents=True, exist_ok=True)  # fail before the work if it cannot be written
    held = hold_state(scratch, run_paths.out) if is_first_process() else None
    trackers = settings.track if is_first_process() else []
    with tracked(trackers, run_paths.out) as watch:
        outcome = training.train(
            model,
            job.streams,
            plan,
            job.objective,
            scratch=scratch,
            trunk=None if job.trunk is None else _open_trunk(job.trunk, key),
            checkpoint_seconds=run_paths.checkpoint_seconds,
            watch=watch,
            dist=dist,
        )
    context = settings.sequence_length
    flops = training_flops(
        outcome.tokens,
        forward_flops(model, context),
        round(job.teacher_tokens * forward_flops(job.teacher, context))
        if job.teacher is not None
        else 0,
    )
    losses, params = outcome.losses, count_params(model)
    best = min(range(len(losses)), key=losses.__getitem__)
    record = TrainRecord(
        lineage=lineage,
        steps=outcome.steps,
        batch_tokens=settings.batch_tokens,
        tokens=outcome.tokens,
        tokens_per_param_non_embedding=outcome.tokens / params.non_embedding,
        trunk_tokens=plan.trunk_tokens,
        train_flops=flops,
        start_val_loss_nats_per_token=losses[0],
        best_val_loss_nats_per_token=losses[best],
        best_step=int(outcome.curve[best][0]),
        last_val_loss_nats_per_token=losses[-1],
        teacher_weight=_teacher_weight(settings, lineage),
    )
    finished = _whole_model(model)
    if is_first_process():
        _publish(finished, outcome, record, run_paths.out, scratch, job.tokenizer, key)
        discard(scratch, run_paths.out)
        held.close()
    dist.wait()
    return record


def _teacher_weight(settings: Training, lineage: Lineage) -> float | None:
    """Weight of the teacher's term in the loss; None without a teacher."""
    if isinstance(settings, Distill) and lineage.teacher != NONE:
        return settings.teacher_weight
    return None


def _whole_model(model: torch.nn.Module) -> torch.nn.Module:
    """The full model on the first process, gathered if it is sharded."""
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return model
    weights = checkpoints.whole_weights(model)
    with torch.device("meta"):
        whole = type(model)(model.config)
    if is_first_process():
        whole.load_state_dict(weights, strict=False, assign=True)
        whole.tie_weights()
    return whole


def _publish(
    model, outcome: training.Outcome, record: TrainRecord, out, scratch, tokenizer, key
) -> None:
    if record.trunk_tokens:
        with publish_folder(out / TRUNK) as folder:
            for path in sorted((scratch / training.TRUNK).iterdir()):
                if path.name != MANIFEST:
                    shutil.copyfile(path, folder / path.name)
            (folder / IDENTITY).write_text(key, encoding="utf-8")
    with publish_folder(out / "model") as folder:
        save_model(model, folder, record.lineage, tokenizer)
    write_text(out / CURVE, outcome.curve_csv())
    write_text(out / TRAIN, record.to_json())


def _open_trunk(path: Path, key: str) -> Path:
    """The folder of a trunk. Raises CapgapError if it belongs to another run."""
    folder = open_folder(path)
    if not (folder / IDENTITY).is_file() or (folder / IDENTITY).read_text() != key:
        raise CapgapError(
            f"{folder} is not the trunk of this run: init, teacher, text, seed or a setting "
            f"other than {', '.join(sorted(AFTER_TRUNK))} differs; leave it out or name another"
        )
    return folder
