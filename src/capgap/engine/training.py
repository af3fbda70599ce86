"""
The training loop of teachers and students.

A step is a function of (settings, seed, step): data order, dropout and learning rate hold no other
state, so that a run that was killed and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from capgap.config import Training
from capgap.data.token_streams import IGNORED, Batch, check_long_enough, training_batch
from capgap.engine import checkpoints
from capgap.engine.compiling import compile_layers, micro_batch_shape
from capgap.engine.evaluation import mean_loss
from capgap.engine.forward import output_form
from capgap.engine.hints import RunHints
from capgap.engine.losses import LossParts
from capgap.engine.onednn_matmul import use_onednn
from capgap.engine.parallel import ONE_PROCESS, DistContext, whole_tensor
from capgap.engine.resuming import Stop
from capgap.engine.rounded_linear import Rounding, round_products
from capgap.engine.run_plan import RunPlan
from capgap.engine.saving import Saves
from capgap.engine.state_files import SAME_FILES
from capgap.engine.time_left import duration
from capgap.errors import CapgapError, Terminated
from capgap.workflow.tracking import Watch, unwatched

CURVE_COLUMNS = (
    "step,tokens,learning_rate,train_data_ce_nats_per_token,train_teacher_term_nats_per_token,"
    "val_loss_nats_per_token"
)
WATCHED = CURVE_COLUMNS.split(",")[2:]  # what trackers get; their step is the tokens

SAVING_SHARE = 0.03  # of the time, at most
NOTHING_ROUNDED = Rounding()
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
    """AdamW in one fused kernel; matrices decay, norms and biases do not."""
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


def prepare(model: torch.nn.Module, settings: Training, processes: int = 1) -> None:
    """Make a model compute its layers as the settings say; processes: that share a batch."""
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if settings.compile:
        compile_layers(model, micro_batch_shape(settings, processes))


def train(
    model: torch.nn.Module,
    streams,
    plan: RunPlan,
    objective: Objective,
    *,
    scratch: Path,
    trunk: Path | None = None,
    checkpoint_seconds: float = 60.0,
    say: Callable[[str], None] = print,
    watch: Watch = unwatched,
    dist: DistContext = ONE_PROCESS,
) -> Outcome:
    """Train a model in place and return its learning curve.

    scratch: folder of checkpoints, from which the run is resumed, and of the state at the end of the
    trunk if the schedule has one. trunk: such a state of a shorter run, to continue from instead of
    step 0. watch: called with the points of the curve and the values logged in between. dist: the
    processes of the job. Raises Terminated on SIGTERM, and CapgapError if a loss or gradient is not
    finite, if memory or disk space is short, or if the trunk is longer than this run's.
    """
    settings, steps, fork = plan.settings, plan.steps, plan.trunk_steps
    stream, held_out = streams["train"], streams["validation"][: settings.validation_tokens + 1]
    mask = streams.mask("train", settings.loss_on)
    held_out_mask = streams.mask("validation", settings.loss_on)
    if held_out_mask is not None:
        held_out_mask = held_out_mask[: len(held_out)]
    check_long_enough(stream, settings.sequence_length, "train")
    dist.own_sequences(settings.batch_tokens // settings.sequence_length)  # raises before any work
    hints = RunHints(settings, scratch, steps, streams.meta.vocab_size)
    with hints:
        output_form(model)  # probe the model before it is sharded and compiled
        if hasattr(objective, "on"):
            objective = objective.on(dist)
        whole = dist.distribute(model, precision=settings.precision)
        rounding = round_products(model, settings.precision)
        prepare(model, settings, dist.size)  # after sharding: FSDP changes the class of layers
        ddp_model = dist.data_parallel(whole)
    optimizer = make_optimizer(model, settings)

    def validation_loss() -> float:
        loss = mean_loss(
            model,
            held_out,
            sequence_length=settings.sequence_length,
            batch_tokens=settings.micro_batch_tokens or settings.batch_tokens,
            split="validation",
            precision=settings.precision,
            vocab=streams.meta.vocab_size,
            bos_id=streams.meta.bos_id,
            compute=ddp_model,
            mask=held_out_mask,
            dist=dist,
        )
        dist.reshard(ddp_model)
        return loss

    before_fork = None if fork is None or checkpoints.is_whole(scratch / TRUNK, dist) else fork
    restored = checkpoints.load_latest(scratch, model, optimizer, at_most=before_fork, dist=dist)
    if restored is None and trunk is not None:
        restored = checkpoints.load(trunk, model, optimizer)
        if fork is None or restored[0] > fork:
            raise CapgapError(
                f"{trunk} is a state after {restored[0]} steps, but a run of {steps} steps with "
                f"schedule {settings.schedule} shares {fork or 0}; take the trunk of a smaller budget"
            )
    rounding.refresh()
    done = 0 if restored is None else restored[0]
    _check_same(done, dist, scratch)
    saves = Saves(scratch, model, optimizer, dist)
    with hints, Stop() as stop, use_onednn(), saves:
        hints.step, hints.loading = done, False
        if restored is None:
            curve = [[0, 0, 0.0, math.nan, math.nan, validation_loss()]]
        else:
            curve = restored[1]["curve"]
            say(f"resumed after step {done}/{steps}")
        for row in curve:
            watch(int(row[1]), dict(zip(WATCHED, row[2:], strict=True)))
        model.train()
        clock, saver = _Clock(steps, settings.batch_tokens, done), _Saver(checkpoint_seconds)
        bos_id = streams.meta.bos_id
        batches = _batches(stream, plan, done, model.device, bos_id=bos_id, mask=mask)
        for step, batch in zip(range(done, steps), batches, strict=True):
            hints.step = step
            if step == fork:
                saves.at_once(step, {"curve": curve}, scratch / TRUNK)
            rate = plan.learning_rate(step)
            _seed(
                model.device, (plan.seed << 32) + step + (dist.rank << 24)
            )  # dropout, if there is any
            means = _step(
                ddp_model,
                optimizer,
                batch,
                settings,
                objective,
                rate,
                dist,
                rounding,
                lambda: stop.asked,
            )
            if means is None:
                saves.at_once(step, {"curve": curve})
                raise _terminated(step, steps, scratch)
            data_ce, teacher_term = means
            if not math.isfinite(data_ce + teacher_term):
                saves.finish()
                raise hints.diverged("loss or gradient", rate, batch)
            if step + 1 in plan.measured_steps:
                row = [step + 1, (step + 1) * settings.batch_tokens, rate, data_ce, teacher_term]
                curve.append([*row, validation_loss()])
                watch(row[1], dict(zip(WATCHED, curve[-1][2:], strict=True)))
                if not math.isfinite(curve[-1][-1]):
                    saves.finish()
                    raise hints.diverged("validation loss", rate, batch)
            said = clock.tick(step + 1, data_ce, teacher_term, curve[-1][-1], rate, say)
            if said and step + 1 not in plan.measured_steps:
                tokens = (step + 1) * settings.batch_tokens
                watch(tokens, dict(zip(WATCHED, (rate, data_ce, teacher_term), strict=False)))
            due, ended, writing = dist.any_process(saver.due, stop.asked, saves.writing)
            if not writing:
                saves.finish()
            if ended and step + 1 < steps:
                saves.at_once(step + 1, {"curve": curve})
                raise _terminated(step + 1, steps, scratch)
            if due and not writing and step + 1 < steps:
                with saver:
                    saves.begin(step + 1, {"curve": curve})
        saves.finish()
    rounding.undo()
    model.eval()
    return Outcome(curve, steps, plan.tokens)


class _Saver:
    """Decides when a state is due: after some seconds, or more if it takes long to save one.

    0 seconds: after every step.
    """

    def __init__(self, every_s: float):
        self.every_s, self.last = every_s, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.last > self.every_s

    def __enter__(self) -> None:
        self.begun = time.monotonic()

    def __exit__(self, *_) -> None:
        self.last = time.monotonic()
        if self.every_s:
            self.every_s = max(self.every_s, (self.last - self.begun) / SAVING_SHARE)


def _terminated(step: int, steps: int, scratch: Path) -> Terminated:
    return Terminated(
        f"terminated after step {step}/{steps}; the state is saved in {scratch}, run again to go on"
    )


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generator of one device; `torch.manual_seed` visits those of all kinds of device."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _check_same(done: int, dist: DistContext, scratch: Path) -> None:
    """Raise CapgapError if processes have restored different states."""
    if dist.sum(torch.tensor(done)).item() != done * dist.size:
        raise CapgapError(
            f"{scratch}: process {dist.rank} found a state after {done} steps and others found "
            f"another; {SAME_FILES}"
        )


def _batches(
    stream: np.ndarray,
    plan: RunPlan,
    done: int,
    device: torch.device,
    *,
    bos_id: int | None = None,
    mask: np.ndarray | None = None,
) -> Iterator[Batch]:
    """The global batch of every step from `done` on; for a GPU in pinned memory, one step ahead."""
    settings, steps = plan.settings, range(done, plan.steps)

    def make(step: int) -> Batch:
        batch = training_batch(
            stream,
            bos_id=bos_id,
            sequence_length=settings.sequence_length,
            batch_size=settings.batch_tokens // settings.sequence_length,
            seed=plan.seed,
            step=step,
            unique_tokens=settings.unique_tokens,
            mask=mask,
        )
        return batch if device.type == "cpu" else Batch(*(part.pin_memory() for part in batch))

    if device.type == "cpu":  # its cores are busy with training
        yield from map(make, steps)
        return
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(make, steps.start) if steps else None
        for step in steps:
            batch = coming.result()
            if step + 1 in steps:
                coming = ahead.submit(make, step + 1)
            yield batch


def _step(
    ddp_model,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: Training,
    objective: Objective,
    rate: float,
    dist: DistContext = ONE_PROCESS,
    rounding: Rounding = NOTHING_ROUNDED,
    asked_to_end: Callable[[], bool] = lambda: False,
) -> tuple[float, float] | None:
    """One optimizer step; mean parts of the loss over the global batch, nats per token.

    Means are over all tokens of the step that are not ignored, independent of micro-batches and
    processes. If the gradient norm is not finite, the loss is NaN and the weights stay unchanged.
    asked_to_end: looked at between micro-batches; None is returned then, and nothing has changed.
    """
    counted = max(1, int((batch.labels != IGNORED).sum()))
    mine = dist.own_sequences(len(batch.labels))
    micro = (settings.micro_batch_tokens or settings.batch_tokens) // settings.sequence_length
    sums = torch.zeros(2, dtype=torch.float64, device=dist.device)  # read once a step
    parts_of_batch = [
        *zip(*(part[mine].split(micro) for part in batch), strict=True),
    ]
    for number, (inputs, labels, starts) in enumerate(parts_of_batch, 1):
        inputs = inputs.to(dist.device, non_blocking=True)  # labels are counted here, then moved
        last = number == len(parts_of_batch)
        with dist.micro_batch(ddp_model, last=last):
            loss, parts = ddp_model(
                objective, inputs, labels.reshape(-1), starts, dist.size * (1 / counted)
            )
            loss.backward()
        sums += torch.stack(parts)
        if not last and dist.any_process(asked_to_end())[0]:
            optimizer.zero_grad(set_to_none=True)
            return None
    norm = torch.nn.utils.clip_grad_norm_(ddp_model.parameters(), settings.clip_norm)
    data_ce, teacher_term = (dist.sum(sums) / counted).tolist()
    if math.isfinite(whole_tensor(norm).item()):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        rounding.refresh()
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

    def tick(self, step, data_ce, teacher_term, val_loss, rate, say) -> bool:
        """Print the line if it is due; returns whether it was."""
        now = time.monotonic()
        if now - self.last < self.every_s and step < self.steps:
            return False
        self.last = now
        per_step = (now - self.start) / (step - self.first)
        left = per_step * (self.steps - step)
        teacher = f"  teacher {teacher_term:.3f}" if teacher_term else ""
        say(
            f"step {step}/{self.steps}  data {data_ce:.3f}{teacher}  val {val_loss:.3f}"
            f"  lr {rate:.1e}  {self.batch_tokens / per_step:,.0f} tok/s"
            f"  left {duration(left)}"
        )
        return True
