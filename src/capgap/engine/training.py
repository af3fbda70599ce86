"""
The training loop of teachers and students.

A step is a function of (settings, seed, step): data order, dropout and learning rate hold no other
state, so that a run that was killed and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from capgap.config import Training
from capgap.engine import checkpoints
from capgap.engine.evaluation import mean_loss
from capgap.engine.losses import LossParts
from capgap.engine.schedule import learning_rate_at, measured_steps, trunk_steps
from capgap.engine.streams import check_long_enough, training_batch
from capgap.errors import CapgapError

CURVE_COLUMNS = (
    "step,tokens,learning_rate,train_data_ce_nats_per_token,train_teacher_term_nats_per_token,"
    "val_loss_nats_per_token"
)

TRUNK = "trunk"  # folder of the state at the end of a trunk, in scratch

# (model, inputs B x T, labels (B T), starts B, scale) -> (loss, sums of its parts in nats)
Objective = Callable[..., tuple[torch.Tensor, LossParts]]


@dataclass(frozen=True)
class Outcome:
    """A finished run: its learning curve as CSV rows and the numbers read off it."""

    curve: list[list[float]]
    steps: int
    tokens: int

    @property
    def losses(self) -> list[float]:
        """Validation loss at the points of the curve, nats per token; the first is the start."""
        return [row[-1] for row in self.curve]

    def curve_csv(self) -> str:
        """The learning curve as CSV text."""
        lines = [",".join(_number(v) for v in row) for row in self.curve]
        return "\n".join([CURVE_COLUMNS, *lines]) + "\n"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.7g}"


def make_optimizer(model: torch.nn.Module, settings: Training) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms and biases do not."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def train(
    model: torch.nn.Module,
    streams,
    settings: Training,
    objective: Objective,
    *,
    tokens: int,
    seed: int,
    scratch: Path,
    trunk: Path | None = None,
    checkpoint_seconds: float = 60.0,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train a model in place and return its learning curve.

    tokens: budget; the last incomplete step is left out. scratch: folder for checkpoints, resumed
    from when it holds any, and for the state at the end of the trunk where the schedule has one.
    trunk: such a state of a shorter run, to go on from instead of step 0. Raises CapgapError when
    a loss or gradient is not finite, and for a trunk longer than this run's.
    """
    stream, held_out = streams["train"], streams["validation"][: settings.validation_tokens + 1]
    check_long_enough(stream, settings.sequence_length, "train")
    steps = tokens // settings.batch_tokens
    if steps < 1:
        raise CapgapError(
            f"{tokens} tokens are less than one step of {settings.batch_tokens}; "
            "raise the tokens or lower batch_tokens"
        )
    optimizer = make_optimizer(model, settings)
    measure_at, fork = measured_steps(steps, settings), trunk_steps(steps, settings)

    def validation_loss() -> float:
        return mean_loss(
            model,
            held_out,
            sequence_length=settings.sequence_length,
            batch_tokens=settings.batch_tokens,
            split="validation",
        )

    before_fork = None if fork is None or checkpoints.intact(scratch / TRUNK) else fork
    restored = checkpoints.load_latest(scratch, model, optimizer, at_most=before_fork)
    if restored is None and trunk is not None:
        restored = checkpoints.load(trunk, model, optimizer)
        if fork is None or restored[0] > fork:
            raise CapgapError(
                f"{trunk} is a state after {restored[0]} steps, but a run of {steps} steps with "
                f"schedule {settings.schedule} shares {fork or 0}; take the trunk of a smaller budget"
            )
    if restored is None:
        done, curve = 0, [[0, 0, 0.0, math.nan, math.nan, validation_loss()]]
    else:
        done, curve = restored[0], restored[1]["curve"]
        say(f"resumed after step {done}/{steps}")
    model.train()
    clock, last_saved = _Clock(steps, settings.batch_tokens, done), time.monotonic()
    for step in range(done, steps):
        if step == fork:
            checkpoints.write(scratch / TRUNK, step, model, optimizer, {"curve": curve})
        rate = learning_rate_at(step, steps, settings)
        data_ce, teacher_term = _step(
            model, optimizer, stream, settings, objective, rate, step, seed
        )
        if not math.isfinite(data_ce + teacher_term):
            raise _diverged("loss or gradient", step, steps, rate, scratch)
        if step + 1 in measure_at:
            row = [step + 1, (step + 1) * settings.batch_tokens, rate, data_ce, teacher_term]
            curve.append([*row, validation_loss()])
            if not math.isfinite(curve[-1][-1]):
                raise _diverged("validation loss", step, steps, rate, scratch)
        clock.tick(step + 1, data_ce, teacher_term, curve[-1][-1], rate, say)
        if time.monotonic() - last_saved > checkpoint_seconds and step + 1 < steps:
            checkpoints.save(scratch, step + 1, model, optimizer, {"curve": curve})
            last_saved = time.monotonic()
    model.eval()
    return Outcome(curve, steps, steps * settings.batch_tokens)


def _diverged(what: str, step: int, steps: int, rate: float, scratch: Path) -> CapgapError:
    saved = checkpoints.latest(scratch)
    state = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved yet"
    return CapgapError(
        f"{what} is not finite at step {step + 1}/{steps} (learning rate {rate:.3g}); {state}. "
        "Lower learning_rate, raise warmup_share or lower clip_norm"
    )


def discard(scratch: Path) -> None:
    """Delete the state of a run that has been published."""
    shutil.rmtree(scratch, ignore_errors=True)


def _step(
    model, optimizer, stream: np.ndarray, settings: Training, objective: Objective, rate, step, seed
) -> tuple[float, float]:
    """One optimizer step; mean parts of the loss, nats per token.

    A gradient norm that is not finite comes back as a NaN loss, before the weights are touched.
    """
    torch.manual_seed((seed << 32) + step)  # dropout, where a model has it
    batch = training_batch(
        stream,
        sequence_length=settings.sequence_length,
        batch_size=settings.batch_tokens // settings.sequence_length,
        seed=seed,
        step=step,
        unique_tokens=settings.unique_tokens,
    )
    micro = (settings.micro_batch_tokens or settings.batch_tokens) // settings.sequence_length
    sums = torch.zeros(2, dtype=torch.float64)
    for inputs, labels, starts in zip(*(part.split(micro) for part in batch), strict=True):
        inputs, labels = inputs.to(model.device), labels.reshape(-1).to(model.device)
        loss, parts = objective(model, inputs, labels, starts, 1 / settings.batch_tokens)
        loss.backward()
        sums += torch.stack(parts).cpu()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    data_ce, teacher_term = (sums / settings.batch_tokens).tolist()
    if math.isfinite(norm.item()):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    else:
        data_ce = math.nan
    optimizer.zero_grad(set_to_none=True)
    return data_ce, teacher_term


class _Clock:
    """Prints a line of progress every few seconds."""

    def __init__(self, steps: int, batch_tokens: int, done: int, every_s: float = 5.0):
        self.steps, self.batch_tokens, self.first = steps, batch_tokens, done
        self.start = self.last = time.monotonic()
        self.every_s = every_s

    def tick(self, step, data_ce, teacher_term, val_loss, rate, say) -> None:
        now = time.monotonic()
        if now - self.last < self.every_s and step < self.steps:
            return
        self.last = now
        per_step = (now - self.start) / (step - self.first)
        left = round(per_step * (self.steps - step))
        teacher = f"  teacher {teacher_term:.3f}" if teacher_term else ""
        say(
            f"step {step}/{self.steps}  data {data_ce:.3f}{teacher}  val {val_loss:.3f}"
            f"  lr {rate:.1e}  {self.batch_tokens / per_step:,.0f} tok/s"
            f"  left {left // 60}:{left % 60:02d}"
        )
