"""Settings of training, of distillation and of a teacher's cached targets."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from capgap.config.section import Count, Precision, Section, Share
from capgap.config.teacher_settings import TeacherShape

LossOn = Literal["all", "completions"]
Objective = Literal["soft_ce", "forward_kl", "reverse_kl", "jensen_shannon"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
LOSS_ON = "tokens that count in the loss: all, or only the completions of conversations"


def _names(value: Any) -> Any:
    """Parse a list on the command line, like [tensorboard, wandb] or one name."""
    return re.findall(r"[^\s,\[\]]+", value) if isinstance(value, str) else value


class Training(Section):
    """How a model is optimised; shared by pretraining and distillation."""

    memory_only: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch_tokens", "loss_chunk_tokens", "activation_checkpointing", "track"}
    )
    watch_only: ClassVar[frozenset[str]] = frozenset({"track"})

    sequence_length: int = Field(128, ge=2, description="tokens per training sequence")
    batch_tokens: Count = Field(
        4096, gt=0, description="tokens per optimizer step, a multiple of sequence_length"
    )
    micro_batch_tokens: Count | None = Field(
        None, gt=0, description="tokens per forward pass (gradients accumulate); all if not set"
    )
    loss_chunk_tokens: int | None = Field(
        None,
        gt=0,
        description="tokens whose logits the loss holds at once; by the vocabulary, if not set, 176 to "
        "256 on a CPU and 512 to 8,192 on a GPU",
    )
    precision: Precision = Field(
        "float32",
        description="of matmuls and logits; weights, optimizer and sums stay float32",
    )
    activation_checkpointing: bool = Field(
        False,
        description="compute each layer again in the backward pass: a third more work, less memory",
    )
    compile: bool = Field(
        False,
        description="compile the layers of student and teacher (torch.compile): a minute at the start, "
        "faster steps",
    )
    unique_tokens: Count | None = Field(
        None,
        gt=0,
        description="tokens of the training split to learn from, in sequences at fixed places that "
        "are the same for every seed; the whole split, cut anew each epoch, if not set",
    )
    loss_on: LossOn = Field("all", description=LOSS_ON)
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        "cosine",
        description="shape of the learning rate after warm-up; wsd is constant and falls over the "
        "last decay_share of the steps, and budgets of one student share what comes before the fall",
    )
    warmup_share: Share = Field(0.01, description="share of the steps spent warming up")
    warmup_tokens: Count | None = Field(
        None, gt=0, description="tokens spent warming up, instead of warmup_share; wsd needs them"
    )
    decay_share: float = Field(
        0.2, gt=0, lt=1, description="share of the steps over which the learning rate of wsd falls"
    )
    final_lr_share: Share = Field(
        0.0, description="learning rate at the end, as a share of the peak"
    )
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay, not on norms")
    clip_norm: float = Field(1.0, gt=0, description="limit on the global gradient norm")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="Adam decay of the second moment")
    validations: int = Field(
        8, ge=1, description="points of the learning curve at which validation loss is measured"
    )
    validation_tokens: Count = Field(
        65536, gt=0, description="tokens of the validation split used for the learning curve"
    )

    track: Annotated[list[Tracker], BeforeValidator(_names)] = Field(
        default_factory=list,
        description="trackers that get the learning curve while it grows, any of "
        "[tensorboard, wandb, mlflow, trackio]; no result depends on it",
    )

    @model_validator(mode="after")
    def _batches(self):
        for key in ("batch_tokens", "micro_batch_tokens"):
            value = getattr(self, key)
            if value is not None and value % self.sequence_length:
                raise ValueError(
                    f"{key} must be a multiple of sequence_length, "
                    f"got {value} and {self.sequence_length}"
                )
        if self.schedule == "wsd" and self.warmup_tokens is None:
            raise ValueError(
                "warmup_tokens is needed by schedule wsd, whose warm-up is the same for all budgets"
            )
        if self.micro_batch_tokens and self.batch_tokens % self.micro_batch_tokens:
            raise ValueError(
                "batch_tokens must be a multiple of micro_batch_tokens, "
                f"got {self.batch_tokens} and {self.micro_batch_tokens}"
            )
        return self


class FromScratch(Training):
    """How a model is trained from random weights."""

    init_std: float | None = Field(
        None,
        gt=0,
        description="standard deviation of the random weights, 0.02 if not set; models of less than "
        "about 100 channels learn faster from more, like 0.1",
    )


class Pretrain(FromScratch):
    """How teachers with `source: pretrain` are trained."""

    tokens: Count | None = Field(None, gt=0, description="training tokens of every teacher")
    tokens_per_param: float | None = Field(
        None,
        gt=0,
        description="training tokens in proportion to the teacher, per parameter without "
        "embeddings; instead of tokens",
    )

    @model_validator(mode="after")
    def _one_budget(self):
        if self.tokens is None and self.tokens_per_param is None:
            raise ValueError("no budget is given; set tokens or tokens_per_param")
        if self.tokens is not None and self.tokens_per_param is not None:
            raise ValueError(
                f"tokens is {self.tokens} and tokens_per_param {self.tokens_per_param:g}; give one "
                "(a single teacher may have tokens of its own)"
            )
        return self

    def recipe(self) -> dict:
        """The settings that all teachers share, by key."""
        return self.model_dump(exclude={"tokens", "tokens_per_param"})

    def tokens_of(self, params: int) -> int:
        """Training tokens of a teacher of this many parameters without embeddings."""
        return round(self.tokens_per_param * params) if self.tokens is None else self.tokens


class PretrainStage(FromScratch, TeacherShape):
    """All settings that decide one teacher that is trained here."""

    tokens: Count = Field(gt=0, description="training tokens")


TARGETS_BATCH_TOKENS = 4096


class TargetsStage(Section):
    """All settings, besides teacher and text, that decide a teacher's cached targets."""

    memory_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    kind: Literal["top_k", "sampled"] = Field(
        description="sampled (tokens drawn from the distribution) or top_k (the most likely tokens, "
        "and as many drawn from the others); both unbiased"
    )
    entries: int = Field(
        gt=0, description="tokens of the vocabulary drawn, or most likely, for each token of text"
    )
    unique_tokens: Count = Field(gt=0, description="tokens of the training split to cover")
    sequence_length: int = Field(128, ge=2, description="tokens per training sequence")
    temperature: float = Field(1.0, gt=0, description="temperature of the teacher's distribution")
    batch_tokens: Count = Field(TARGETS_BATCH_TOKENS, gt=0, description="tokens per forward pass")
    precision: Precision = Field("float32", description="of the teacher's matmuls and logits")
    seed: int = Field(0, ge=0, description="seed of the draws")

    def bytes_per_token(self, vocab: int) -> int:
        """Bytes on disk of the targets of one token: ids, and float16 probabilities for top_k."""
        id_bytes = 2 if vocab <= 2**16 else 4
        return self.entries * (id_bytes if self.kind == "sampled" else 2 * id_bytes + 2)


TARGET_ENTRIES = {"top_k": 16, "sampled": 48}  # 96 bytes each for vocabularies up to 65,536


class Distill(Training):
    """How a student is trained; `grid` and `final` have the tokens, seeds and teachers."""

    objective: Objective = Field(
        "soft_ce",
        description="the teacher's term: soft_ce (cross-entropy under the teacher's distribution, "
        "the paper's), forward_kl (the same less the teacher's entropy), reverse_kl, "
        "jensen_shannon",
    )
    beta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="jensen_shannon: the teacher's share in the mixture distribution; towards 0 it "
        "acts like forward_kl, towards 1 like reverse_kl",
    )
    teacher_weight: Share = Field(
        0.5,
        description="weight of the teacher's term; the data's cross-entropy gets the rest",
    )
    temperature: float = Field(
        1.0, gt=0, description="temperature of both distributions in the teacher's term"
    )
    teacher_precision: Precision | None = Field(
        None,
        description="of the teacher's matmuls and logits, in which its matrices are held; as precision "
        "if not set",
    )
    teacher_targets: Literal["online", "top_k", "sampled"] = Field(
        "online",
        description="where the teacher's targets come from: its forward pass in every run (online) "
        "or, computed once a teacher and kept on disk, tokens drawn from its distribution (sampled) "
        "or its most likely tokens and as many drawn from the others (top_k)",
    )
    target_entries: int | None = Field(
        None,
        gt=0,
        description="tokens of the vocabulary drawn, or most likely, for each token of text, "
        + ", ".join(f"{n} for {kind}" for kind, n in TARGET_ENTRIES.items())
        + " if not set; each takes 6 bytes for top_k and 2 for sampled, with more than 65,536 "
        "entries in the vocabulary 10 and 4",
    )

    @property
    def precision_of_teacher(self) -> Precision:
        """Precision in which the teacher is run."""
        return self.teacher_precision or self.precision

    def targets_stage(self) -> TargetsStage:
        """The settings that decide the cached targets."""
        return TargetsStage(
            kind=self.teacher_targets,
            entries=self.target_entries or TARGET_ENTRIES[self.teacher_targets],
            unique_tokens=self.unique_tokens,
            sequence_length=self.sequence_length,
            temperature=self.temperature,
            batch_tokens=min(TARGETS_BATCH_TOKENS, self.micro_batch_tokens or TARGETS_BATCH_TOKENS),
            precision=self.precision_of_teacher,
        )

    @model_validator(mode="after")
    def _targets(self):
        if self.teacher_targets == "online" and self.target_entries is not None:
            raise ValueError(
                f"target_entries is {self.target_entries}, but teacher_targets is online, which keeps "
                "nothing; leave it out, or set teacher_targets to top_k or sampled"
            )
        if self.teacher_targets != "online" and self.unique_tokens is None:
            raise ValueError(
                f"teacher_targets {self.teacher_targets} needs unique_tokens: how much of the training "
                "split to keep the targets of; at least the largest token budget, to see no text twice"
            )
        if self.teacher_targets != "online" and self.objective != "soft_ce":
            raise ValueError(
                f"teacher_targets {self.teacher_targets} allows the objective soft_ce alone (forward_kl "
                f"has the same gradient; the others need the whole distribution), got {self.objective}"
            )
        return self

    @model_validator(mode="after")
    def _beta(self):
        if (self.beta is not None) != (self.objective == "jensen_shannon"):
            raise ValueError(
                f"beta belongs to the objective jensen_shannon and to no other, got beta {self.beta} "
                f"and objective {self.objective}"
            )
        return self
