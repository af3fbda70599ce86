"""
Error messages of a training run with the cause, the step and settings to change.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from capgap.config import Training
from capgap.config.shapes import chunk_tokens, gpu_chunk_tokens
from capgap.data.token_streams import Batch
from capgap.engine import checkpoints
from capgap.errors import CapgapError, out_of_memory

LOSSES = {"losses.py", "class_loss.py"}  # files whose memory loss_chunk_tokens bounds


class RunHints:
    """Turns out-of-memory and divergence of a run into errors with the step and settings to change."""

    def __init__(self, settings: Training, scratch: Path, steps: int, vocab: int):
        self.settings, self.scratch, self.steps, self.vocab = settings, scratch, steps, vocab
        self.step, self.loading = 0, True

    def __enter__(self) -> RunHints:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, CapgapError) or not out_of_memory(error):
            return
        files = [Path(frame.filename).name for frame in traceback.extract_tb(trace)]
        raise CapgapError(
            f"out of memory at step {self.step + 1}/{self.steps}, in {self._phase(files)}; "
            f"{self._saved()}. {self._fixes(files)}"
        ) from None

    def _saved(self) -> str:
        saved = checkpoints.latest(self.scratch)
        return f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved yet"

    def diverged(self, what: str, rate: float, batch: Batch) -> CapgapError:
        """The error for a loss that is not finite."""
        starts = [f"{start:,}" for start in batch.starts[:3].tolist()]
        more = len(batch.starts) - len(starts)
        return CapgapError(
            f"{what} is not finite at step {self.step + 1}/{self.steps} (learning rate {rate:.3g}; "
            f"batch of the sequences at tokens {', '.join(starts)} and {more} others of the training "
            f"stream); {self._saved()}. Lower learning_rate, raise warmup_share or lower clip_norm"
        )

    def _phase(self, files: list[str]) -> str:
        if self.loading:
            return "loading the models"
        if LOSSES & {*files}:
            return "the loss"
        return "the optimizer" if "adamw.py" in files else "the forward or backward pass"

    def _fixes(self, files: list[str]) -> str:
        settings = self.settings
        micro = settings.micro_batch_tokens or settings.batch_tokens
        fixes = []
        if self.loading:
            micro = 0  # no pass was tried
            if getattr(settings, "precision_of_teacher", "") == "float32":
                fixes.append("set teacher_precision to bfloat16 (now float32)")
        if micro > settings.sequence_length:
            half = max(1, micro // settings.sequence_length // 2) * settings.sequence_length
            while settings.batch_tokens % half:
                half -= settings.sequence_length
            fixes.append(f"lower micro_batch_tokens from {micro} to {half}")
        if micro and not settings.activation_checkpointing:
            fixes.append("set activation_checkpointing (now false)")
        if LOSSES & {*files}:
            by_classes = "class_loss.py" in files or not torch.cuda.is_available()
            by_device = chunk_tokens if by_classes else gpu_chunk_tokens
            chunk = settings.loss_chunk_tokens or by_device(self.vocab)
            fixes.insert(
                0,
                f"set loss_chunk_tokens to {max(1, chunk // 2)} (now {chunk}, of {self.vocab:,} "
                "logits each)",
            )
        fixes.append("shard the model over more devices (--shard)")
        return "To need less, " + ", or ".join(fixes)
