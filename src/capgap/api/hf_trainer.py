"""
The distillation loss in the Trainer of transformers, and by the same mixin in those built on it.

    class DistillationSFTTrainer(cg.DistillationMixin, trl.SFTTrainer): ...
"""

# B sequences, T tokens, N = B T, V vocabulary

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, Trainer

from capgap.api.own_loop import loss_of, loss_settings
from capgap.config.training_settings import Objective
from capgap.data.token_streams import IGNORED
from capgap.engine.forward import model_output
from capgap.engine.losses import ModelOutput
from capgap.engine.models import load_model, vocabulary_rows
from capgap.engine.onednn_matmul import use_onednn
from capgap.errors import CapgapError

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}  # of accelerate's mixed precision


if TYPE_CHECKING:
    _TrainerLike = Trainer  # the base class that follows the mixin
else:
    _TrainerLike = object


class DistillationMixin(_TrainerLike):
    """Makes a Trainer minimise (1 - w) CE(student, labels) + w tau^2 D(teacher, student).

    Put it before the class of the Trainer. Batches are those of causal language modelling: input_ids
    and labels (B x T, with -100 for tokens that do not count, shifted by the loss as transformers
    does), and whatever else the models take, like attention_mask. The loss is the mean over the
    tokens of a whole optimizer step, over gradient accumulation and processes as the Trainer counts
    them. Logs get its parts `data_ce` and `teacher_term` (tau^2 D), both unweighted, in nats per token.

    In training, logits are computed by chunks from hidden states, so they take no memory of
    B x T x V; in evaluation they are the models' own, for `compute_metrics`, and in training where
    FSDP or DeepSpeed shares out the weights of the head.

    Args:
        teacher: a causal language model of the student's vocabulary, or its folder. It is put into
            evaluation mode, without gradients, on the Trainer's device; its type stays.
        objective, teacher_weight, temperature, beta, chunk_tokens: as in `distillation_loss`.
        *arguments, **named: the Trainer's own.

    Raises:
        CapgapError: settings that do not fit together, label smoothing, and several GPUs in one
            process (start one process for each, with torchrun or accelerate launch).
    """

    def __init__(
        self,
        *arguments: Any,
        teacher: PreTrainedModel | str | os.PathLike[str],
        objective: Objective = "soft_ce",
        teacher_weight: float = 0.5,
        temperature: float = 1.0,
        beta: float | None = None,
        chunk_tokens: int | None = None,
        **named: Any,
    ) -> None:
        self.distillation = loss_settings(
            type(self).__name__, objective, teacher_weight, temperature, beta, chunk_tokens
        )
        super().__init__(*arguments, **named)
        if self.args.n_gpu > 1:
            raise CapgapError(
                f"{self.args.n_gpu} GPUs in one process: start one process for each (torchrun or "
                "accelerate launch), or let this one see one GPU (CUDA_VISIBLE_DEVICES)"
            )
        if self.args.label_smoothing_factor:
            raise CapgapError(
                f"label_smoothing_factor is {self.args.label_smoothing_factor:g}, but the loss is the "
                "distillation loss, whose targets the teacher softens; set it to 0"
            )
        if not isinstance(teacher, PreTrainedModel):
            teacher = load_model(teacher, dtype=None)
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self._takes = _inputs_of(self.teacher)
        # so the Trainer counts the tokens of a whole step and does not divide by its micro-batches
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True
        self._parts = {mode: torch.zeros(3, device=self.args.device) for mode in ("train", "eval")}

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """A step whose forward and backward pass use the same matmuls, as checkpointing needs."""
        with use_onednn():
            return super().training_step(*arguments, **named)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """The loss of a batch; with `return_outputs`, (loss, outputs of the student).

        num_items_in_batch: tokens to divide by, those of this batch that count if None.
        """
        inputs = dict(inputs)
        ids_BT, labels_N = inputs.pop("input_ids"), _next_tokens(inputs).reshape(-1)
        student = self.accelerator.unwrap_model(model)
        vocab = min(map(vocabulary_rows, (student, self.teacher)))
        precision = PRECISIONS.get(self.accelerator.mixed_precision, "float32")
        with torch.no_grad():
            known = {name: value for name, value in inputs.items() if self._takes(name)}
            targets = model_output(self.teacher, ids_BT, precision=precision, vocab=vocab, **known)
        outputs = None
        if return_outputs or _head_is_shared_out(student):
            outputs = model(input_ids=ids_BT, use_cache=False, **inputs)
            learnt = ModelOutput(outputs.logits.flatten(0, 1)[:, :vocab], None)
        else:
            learnt = model_output(
                student, ids_BT, precision=precision, vocab=vocab, wrapper=model, **inputs
            )
        counted = int((labels_N != IGNORED).sum())
        scale = 1 / max(1, counted)
        if num_items_in_batch is not None:
            # gradients become means over the processes, but the tokens are counted over all of them
            shares = (
                self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            )
            scale = shares / max(1, float(num_items_in_batch))
        loss, parts = loss_of(self.distillation, learnt, targets, labels_N, scale)
        sums = torch.stack([*parts, parts.data_ce.new_tensor(counted)])
        mode = "train" if model.training else "eval"
        self._parts[mode] += sums
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """Log the loss with its parts, means since the last log."""
        for key in [key for key in logs if key == "loss" or key.endswith("_loss")]:
            mode = "train" if key in ("loss", "train_loss") else "eval"
            if key == "train_loss":  # of the whole run, whose parts were logged
                continue
            sums = self.accelerator.reduce(self._parts[mode], "sum").tolist()
            self._parts[mode].zero_()
            if sums[2]:
                prefix = key.removesuffix("loss")
                logs[f"{prefix}data_ce"], logs[f"{prefix}teacher_term"] = (
                    part / sums[2] for part in sums[:2]
                )
        super().log(logs, *arguments, **named)


class DistillationTrainer(DistillationMixin, Trainer):
    """transformers' `Trainer` with the distillation loss; arguments as in `DistillationMixin`.

    trainer = cg.DistillationTrainer(
        model=student, args=TrainingArguments(...), train_dataset=data, teacher=teacher
    )
    trainer.train()
    """


def _next_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """Take the labels out of a batch: for every position the token that follows it (B x T)."""
    labels_BT = inputs.pop("labels", None)
    shifted_BT = inputs.pop("shift_labels", None)  # of collators that shift
    if shifted_BT is not None:
        return shifted_BT
    if labels_BT is None:
        raise CapgapError(
            f"the batch has no labels, only {', '.join(sorted(inputs)) or 'input_ids'}; use a collator "
            "that makes them, like DataCollatorForLanguageModeling(tokenizer, mlm=False)"
        )
    return pad(labels_BT[:, 1:], (0, 1), value=IGNORED)


def _inputs_of(model: torch.nn.Module):
    """A function of a name: whether a model's forward pass takes an input that is called so."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return lambda name: True
    return {parameter.name for parameter in parameters}.__contains__


def _head_is_shared_out(model: PreTrainedModel) -> bool:
    """Whether this process has only a part of the head outside of the model's forward pass."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return isinstance(weight, DTensor) or (weight is not None and weight.ndim != 2)
