"""
Settings of a study: every key, its unit and its limits are defined here and nowhere else.

A study is one YAML file, which `capgap.study_file` reads into `Study`. The workflow hands each stage the one section it needs; a stage run by hand takes
the same fields as command-line options. This module imports no torch.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from capgap.cost.devices import DEVICE_NAMES
from capgap.counts import format_count, parse_count
from capgap.shapes import LlamaShape

Count = Annotated[int, BeforeValidator(parse_count)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A group of settings: unknown keys are errors and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- text -----------------------------------------------------------------------------------------


class CorpusSplit(Section):
    """How documents are shared out; a document is never cut."""

    validation_share: float = Field(
        0.03, gt=0, lt=0.5, description="share of the corpus bytes held out for validation"
    )
    test_share: float = Field(
        0.03, gt=0, lt=0.5, description="share of the corpus bytes held out for the final test"
    )


class PackageCorpus(CorpusSplit):
    """Text files that an installed Python package ships; one file is one document."""

    source: Literal["package"]
    package: str = Field(description="name of the installed package, found but never imported")
    pattern: str = Field(description="glob inside the package, for example data/speeches/*.txt")


class FilesCorpus(CorpusSplit):
    """Local files: .txt (one document a file), .jsonl or .parquet (one document a row)."""

    source: Literal["files"]
    pattern: str = Field(description="glob of local files ending in .txt, .jsonl or .parquet")
    text_column: str = Field("text", description="column that holds the text in jsonl and parquet")


class HubText(Section):
    """Rows of a data set of the Hugging Face hub at a pinned commit."""

    dataset: str = Field(description="data set id on the hub, owner/name")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="commit, 40 hexadecimal digits")
    name: str | None = Field(
        None, description="configuration of the data set, where it has several"
    )
    split: str = Field("train", description="split of the data set to read, like train[:10%]")
    text_column: str = Field("text", description="column that holds the text")
    joined: bool = Field(
        False, description="whether the rows are lines of one document (WikiText), not documents"
    )


class HubCorpus(CorpusSplit, HubText):
    """A data set of the hub; one row is one document."""

    source: Literal["hub"]
    test: HubText | None = Field(
        None, description="another data set that is the test split, like WikiText (study file only)"
    )


Corpus = Annotated[PackageCorpus | FilesCorpus | HubCorpus, Field(discriminator="source")]


class TrainedTokenizer(Section):
    """A byte-level BPE tokenizer trained on the training split."""

    source: Literal["train"]
    vocab_size: int = Field(ge=257, le=1_000_000, description="entries of the vocabulary")


class TeacherTokenizer(Section):
    """The tokenizer that comes with one of the teachers."""

    source: Literal["teacher"]
    teacher: str = Field(description="name of the teacher whose tokenizer is used")


Tokenizer = Annotated[TrainedTokenizer | TeacherTokenizer, Field(discriminator="source")]


# --- teachers -------------------------------------------------------------------------------------


class TeacherShape(Section):
    """Shape and seed of a Llama-shaped model; embeddings are tied."""

    layers: int = Field(gt=0, description="transformer layers")
    hidden: int = Field(gt=0, description="hidden channels, a multiple of heads")
    heads: int = Field(gt=0, description="query heads per layer")
    kv_heads: int | None = Field(None, gt=0, description="key-value heads, a divisor of heads")
    intermediate: int = Field(gt=0, description="MLP neurons per layer")
    seed: Seed = Field(0, description="seed of the initial weights and of the data order")

    @model_validator(mode="after")
    def _divides(self):
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden must be a multiple of heads, got hidden {self.hidden} and heads {self.heads}"
            )
        if self.hidden // self.heads % 2:
            raise ValueError(
                f"hidden / heads must be even (rotary positions), got {self.hidden // self.heads}"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"heads must be a multiple of kv_heads, got heads {self.heads} "
                f"and kv_heads {self.kv_heads}"
            )
        return self

    def shape(self, vocab: int) -> LlamaShape:
        """Shape of the model for a vocabulary of `vocab` entries; embeddings are tied."""
        return LlamaShape(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.hidden // self.heads,
            intermediate=self.intermediate,
            vocab=vocab,
            tied=True,
        )


class PretrainedTeacher(TeacherShape):
    """A model trained here from a random start."""

    source: Literal["pretrain"]
    tokens: Count | None = Field(None, gt=0, description="training tokens, if not pretrain.tokens")
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate, if not pretrain.learning_rate"
    )


class FetchedTeacher(Section):
    """What every teacher that is not trained here must say."""

    params_non_embedding: Count = Field(
        gt=0, description="parameters without embeddings and output head; checked on arrival"
    )
    trim_vocabulary: bool | Count = Field(
        False,
        description="entries of the vocabulary to keep at most, the ones that the training split "
        "uses most; true keeps all it uses, false the whole vocabulary",
    )


class HubTeacher(FetchedTeacher):
    """A model of the Hugging Face hub at a pinned commit; safetensors only."""

    source: Literal["hub"]
    model: str = Field(description="model id on the hub, owner/name")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="commit, 40 hexadecimal digits")


class PackageTeacher(FetchedTeacher):
    """A model file (GGUF) or folder inside an installed Python package."""

    source: Literal["package"]
    package: str = Field(description="name of the installed package, found but never imported")
    file: str = Field(description="path of the .gguf file or model folder inside the package")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="expected SHA-256 of the file"
    )


class PathTeacher(FetchedTeacher):
    """A local Hugging Face folder."""

    source: Literal["path"]
    path: str = Field(description="folder with config.json, safetensors weights and tokenizer")


FetchedSource = Annotated[HubTeacher | PackageTeacher | PathTeacher, Field(discriminator="source")]
Teacher = Annotated[
    PretrainedTeacher | HubTeacher | PackageTeacher | PathTeacher, Field(discriminator="source")
]


class ModelShape(Section):
    """Shape of a model that is not here yet, so that its cost can be told; all layers alike."""

    family: Literal["llama", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "opt"] = Field(
        description="architecture; Mistral counts as llama, Pythia is gpt_neox"
    )
    layers: int = Field(gt=0, description="transformer layers")
    hidden: int = Field(gt=0, description="hidden channels")
    heads: int = Field(gt=0, description="query heads per layer")
    kv_heads: int | None = Field(None, gt=0, description="key-value heads, if fewer")
    head_dim: int | None = Field(None, gt=0, description="head dimension, if not hidden / heads")
    intermediate: int = Field(gt=0, description="MLP neurons per layer")
    vocab: int = Field(gt=0, description="entries of the vocabulary")
    positions: int = Field(0, ge=0, description="context; gpt2 and opt learn a vector for each")
    tied: bool = Field(False, description="whether the output head is the input embedding")
    stored: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="type of the weights as published, for the size of the download"
    )


# --- training -------------------------------------------------------------------------------------


class Training(Section):
    """How a model is optimised; shared by pretraining and distillation."""

    sequence_length: int = Field(128, ge=2, description="tokens per training sequence")
    batch_tokens: Count = Field(
        4096, gt=0, description="tokens per optimizer step, a multiple of sequence_length"
    )
    micro_batch_tokens: Count | None = Field(
        None, gt=0, description="tokens per forward pass (gradients accumulate); all if not set"
    )
    unique_tokens: Count | None = Field(
        None,
        gt=0,
        description="tokens of the training split to learn from, in sequences at fixed places that "
        "are the same for every seed; the whole split, cut anew each epoch, if not set",
    )
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


class Pretrain(Training):
    """How teachers with `source: pretrain` are trained."""

    tokens: Count = Field(gt=0, description="training tokens per teacher")


class PretrainStage(Pretrain, TeacherShape):
    """Everything that decides one teacher trained here."""


class SignalStage(Section):
    """Everything that decides, beside teacher and text, what is kept of a teacher's signal."""

    kind: Literal["top_k", "sampled"] = Field(
        description="top_k (the most likely tokens and the mass of the others) or sampled (random "
        "tokens, unbiased)"
    )
    entries: int = Field(gt=0, description="tokens of the vocabulary kept for each token of text")
    unique_tokens: Count = Field(gt=0, description="tokens of the training split to cover")
    sequence_length: int = Field(128, ge=2, description="tokens per training sequence")
    temperature: float = Field(1.0, gt=0, description="temperature of the teacher's distribution")
    batch_tokens: Count = Field(4096, gt=0, description="tokens per forward pass")
    seed: int = Field(0, ge=0, description="seed of the draws, for kind sampled")

    def bytes_per_token(self, vocab: int) -> int:
        """Bytes that the signal of one token takes on disk: ids; top_k has float16 masses too."""
        id_bytes = 2 if vocab <= 2**16 else 4
        if self.kind == "sampled":
            return self.entries * id_bytes
        return self.entries * (id_bytes + 2) + 2


SIGNAL_ENTRIES = {"top_k": 24, "sampled": 48}  # below 100 bytes each for up to 65,536 entries


class Distill(Training):
    """How a student is trained; the tokens, seeds and teachers stand in `grid` and `final`."""

    objective: Literal["soft_ce", "forward_kl", "reverse_kl", "jensen_shannon"] = Field(
        "soft_ce",
        description="the teacher's term: soft_ce (cross-entropy under the teacher's distribution, "
        "the paper's), forward_kl (the same less the teacher's entropy), reverse_kl, "
        "jensen_shannon",
    )
    beta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="jensen_shannon: the teacher's share in the middle distribution; towards 0 it "
        "acts like forward_kl, towards 1 like reverse_kl",
    )
    teacher_weight: Share = Field(
        0.5,
        description="weight of the teacher's term; the data's cross-entropy gets the rest",
    )
    temperature: float = Field(
        1.0, gt=0, description="temperature of both distributions in the teacher's term"
    )

    teacher_signal: Literal["online", "top_k", "sampled"] = Field(
        "online",
        description="where the teacher's signal comes from: its forward pass in every run (online) "
        "or, computed once a teacher and kept on disk, its most likely tokens with the mass of the "
        "others (top_k, biased) or tokens drawn at random (sampled, unbiased)",
    )
    signal_entries: int | None = Field(
        None,
        gt=0,
        description="tokens of the vocabulary kept for each token of text, "
        + ", ".join(f"{n} for {kind}" for kind, n in SIGNAL_ENTRIES.items())
        + " if not set; each takes 4 bytes for top_k and 2 for sampled, with more than 65,536 "
        "entries in the vocabulary 6 and 4",
    )

    def signal_stage(self) -> SignalStage:
        """The part that decides what is kept of the teacher's signal."""
        return SignalStage(
            kind=self.teacher_signal,
            entries=self.signal_entries or SIGNAL_ENTRIES[self.teacher_signal],
            unique_tokens=self.unique_tokens,
            sequence_length=self.sequence_length,
            temperature=self.temperature,
        )

    @model_validator(mode="after")
    def _signal(self):
        if self.teacher_signal == "online" and self.signal_entries is not None:
            raise ValueError(
                f"signal_entries is {self.signal_entries}, but teacher_signal is online, which keeps "
                "nothing; leave it out, or set teacher_signal to top_k or sampled"
            )
        if self.teacher_signal != "online" and self.unique_tokens is None:
            raise ValueError(
                f"teacher_signal {self.teacher_signal} needs unique_tokens: how much of the training "
                "split to keep the signal of; at least the largest token budget, to see no text twice"
            )
        if self.teacher_signal != "online" and self.objective != "soft_ce":
            raise ValueError(
                f"teacher_signal {self.teacher_signal} allows the objective soft_ce alone (forward_kl "
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


class Score(Section):
    """How the importance of a teacher's units is measured."""

    criterion: Literal["mask_gradient", "activation", "magnitude", "random"] = Field(
        "mask_gradient",
        description="importance of heads, neurons and channels: mask_gradient (first-order change "
        "of the loss, the paper's), activation (mean magnitude of what they put out, Minitron's), "
        "magnitude (norm of their weights), random",
    )
    calibration_sequences: int = Field(
        64, gt=0, description="training sequences over which importance is averaged"
    )
    sequence_length: int = Field(512, ge=2, description="tokens per calibration sequence")
    seed: Seed = Field(
        0, description="seed of the choice of calibration sequences and of random scores"
    )


class Depth(Section):
    """How many layers a pruned model keeps, and which."""

    depth: Literal["keep", "keep_middle", "drop_middle", "block_influence"] = Field(
        "keep",
        description="which layers stay: all (keep), the middle ones (keep_middle, MiniMA's), the "
        "first and the last (drop_middle), or those that change their input's direction most "
        "(block_influence)",
    )
    layers: int | None = Field(
        None,
        gt=0,
        description="layers to keep, unless depth is keep; if not set, the same fraction as of "
        "every width, the cube root of the share of the parameters",
    )

    @model_validator(mode="after")
    def _depth_for_layers(self):
        if self.depth == "keep" and self.layers is not None:
            raise ValueError(
                f"layers is {self.layers}, but depth is keep; set depth to keep_middle, drop_middle "
                "or block_influence, or leave layers out"
            )
        return self


class Prune(Depth, Score):
    """How a teacher is cut down to a student's start."""

    def scoring(self) -> Score:
        """The part that decides the scores."""
        return Score(**{key: getattr(self, key) for key in Score.model_fields})

    def cutting(self) -> Depth:
        """The part that decides, beside the scores, what is cut."""
        return Depth(**{key: getattr(self, key) for key in Depth.model_fields})


class StudyPrune(Prune):
    """Pruning in a study, where one student size is cut from several teachers."""

    one_shape: bool = Field(
        False,
        description="whether a student size has one shape whatever teacher it is cut from, the one "
        "that the smallest teacher large enough gives; false keeps each teacher's proportions",
    )


# --- the study ------------------------------------------------------------------------------------


class Grid(Section):
    """The runs the law is fitted on: every student from every larger teacher, at every budget."""

    students: list[Annotated[Count, Field(gt=0)]] = Field(
        min_length=1, description="student sizes, parameters without embeddings"
    )
    tokens: list[Annotated[Count, Field(gt=0)]] = Field(
        min_length=1, description="distillation budgets, tokens"
    )
    seeds: list[Seed] = Field(min_length=1, description="seeds of the data order, one run each")
    arms: list[Literal["no_teacher", "random_init", "cross_teacher"]] = Field(
        default_factory=list, description="control arms beside the main one"
    )
    arm_seeds: list[Seed] | None = Field(
        None, min_length=1, description="seeds of the control arms, if not all"
    )


class CollectStage(Section):
    """Which runs a study's grid consists of, and where they lie."""

    root: str = Field(description="results folder of the study, for example results/sotu")
    grid: Grid = Field(description="the runs")
    teacher_sizes: dict[str, int] = Field(
        description="parameters without embeddings of every teacher, by name"
    )


class Evaluate(Section):
    """How a finished model is measured on held-out text."""

    sequence_length: int = Field(128, ge=2, description="tokens of context at most")
    batch_tokens: Count = Field(16384, gt=0, description="tokens per forward pass")


class Law(Section):
    """How the law is fitted."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of every interval")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples")
    tie_nats: float = Field(
        0.005, ge=0, description="teachers this close to the best count as equally good, nats"
    )
    published_slope: float = Field(2.5, gt=0, description="slope the fit is compared with")
    seed: Seed = Field(0, description="seed of the bootstrap")


class Final(Section):
    """The law-guided distillation of a student size that is not in the grid."""

    student: Count = Field(gt=0, description="student size, parameters without embeddings")
    tokens: Count = Field(gt=0, description="distillation tokens")
    seeds: list[Seed] = Field(
        default=[0], min_length=1, description="seeds of the data order, one run each"
    )


class Plan(Section):
    """What is assumed of machines and of models that are not here; changes no result."""

    device: str = Field(DEVICE_NAMES[0], description=f"one of {', '.join(DEVICE_NAMES)}")
    gpus: int = Field(1, gt=0, description="devices that work at the same time")
    mfu: float = Field(
        0.4, gt=0, le=1, description="achieved share of the device's peak, for large models"
    )
    corpus_bytes: Count | None = Field(
        None, gt=0, description="UTF-8 bytes of text of a corpus that is not here"
    )
    test_bytes: Count = Field(
        1_300_000, gt=0, description="UTF-8 bytes of corpus.test; the default is WikiText-2's"
    )
    corpus_download_bytes: Count | None = Field(
        None, gt=0, description="bytes to download for it, if not 0.6 of its text"
    )
    shapes: dict[str, ModelShape] = Field(
        default_factory=dict, description="shapes of fetched teachers by name"
    )

    @model_validator(mode="after")
    def _known_device(self):
        if self.device not in DEVICE_NAMES:
            raise ValueError(f"device is one of {', '.join(DEVICE_NAMES)}, got {self.device}")
        return self


class Study(Section):
    """A whole study."""

    study: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="name, of lower-case letters, digits, - and _; results go to results/<study>/",
    )
    corpus: Corpus = Field(description="the text")
    tokenizer: Tokenizer = Field(description="text to tokens")
    teachers: dict[str, Teacher] = Field(min_length=1, description="teachers by name")
    pretrain: Pretrain | None = Field(None, description="needed by teachers with source: pretrain")
    prune: StudyPrune = Field(default_factory=StudyPrune, description="pruning")
    distill: Distill = Field(default_factory=Distill, description="distillation recipe")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="evaluation")
    grid: Grid = Field(description="the runs the law is fitted on")
    law: Law = Field(default_factory=Law, description="regression")
    final: Final = Field(description="the law-guided distillation")
    plan: Plan = Field(default_factory=Plan, description="assumptions about machines and sizes")

    @model_validator(mode="after")
    def _consistent(self):
        problems = list(_inconsistencies(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def pretrain_stage(self, teacher: str) -> PretrainStage:
        """Settings of one teacher's training: its own, over those of `pretrain`."""
        own = self.teachers[teacher].model_dump(exclude_none=True, exclude={"source"})
        return PretrainStage.model_validate({**self.pretrain.model_dump(), **own})

    def teacher_size(self, teacher: str) -> int:
        """Parameters of a teacher without embeddings and output head."""
        entry = self.teachers[teacher]
        if isinstance(entry, PretrainedTeacher):
            return entry.shape(vocab=1).params()["non_embedding"]
        return entry.params_non_embedding


TEACHER_NAME = r"[a-z0-9][a-z0-9.-]*"


def _inconsistencies(study: Study):
    """Problems that only show when sections are read together, one sentence each."""
    for name, teacher in study.teachers.items():
        if name == "none" or not re.fullmatch(TEACHER_NAME, name):
            yield (
                f"teachers.{name}: a name has lower-case letters, digits, dots and hyphens, "
                "and is not 'none' (that is the arm without a teacher)"
            )
        if isinstance(teacher, PretrainedTeacher) and study.pretrain is None:
            yield f"teachers.{name}: source is pretrain, so the section 'pretrain' is needed; add it"
    if isinstance(study.tokenizer, TeacherTokenizer):
        teacher = study.teachers.get(study.tokenizer.teacher)
        if teacher is None or isinstance(teacher, PretrainedTeacher):
            yield (
                f"tokenizer.teacher: '{study.tokenizer.teacher}' is not a teacher that brings a "
                "tokenizer; name one with source hub, package or path"
            )
    for name in study.plan.shapes:
        if not isinstance(study.teachers.get(name), HubTeacher | PackageTeacher | PathTeacher):
            yield f"plan.shapes.{name}: no teacher of this name is fetched"
    sizes = {name: study.teacher_size(name) for name in study.teachers}
    largest = max(sizes, key=sizes.get)
    for key, students in (
        ("grid.students", study.grid.students),
        ("final.student", [study.final.student]),
    ):
        for student in students:
            if student >= sizes[largest]:
                yield (
                    f"{key}: {format_count(student)} is not smaller than any teacher; the largest, "
                    f"{largest}, has {sizes[largest]:,} parameters without embeddings; lower the "
                    "student or add a larger teacher"
                )
    for section, key in (
        *(("grid", key) for key in ("students", "tokens", "seeds", "arms", "arm_seeds")),
        ("final", "seeds"),
    ):
        values = getattr(getattr(study, section), key) or []
        if len(set(values)) < len(values):
            yield f"{section}.{key}: the same value stands twice in {values}; leave one out"
    for first, second in itertools.combinations(study.teachers, 2):
        if study.teachers[first] == study.teachers[second]:
            yield (
                f"teachers.{second}: the same model as teachers.{first}; leave one out, or change "
                "its shape or seed"
            )
    if study.final.student in study.grid.students:
        yield (
            f"final.student: {format_count(study.final.student)} is in grid.students; the law is "
            "tested on a size it has not seen"
        )
    for seed in study.grid.arm_seeds or []:
        if seed not in study.grid.seeds:
            yield f"grid.arm_seeds: {seed} is not in grid.seeds, so the arm would have no partner"
    for key, tokens in [
        ("grid.tokens", min(study.grid.tokens)),
        ("final.tokens", study.final.tokens),
    ]:
        distill = study.distill
        if tokens < distill.batch_tokens:
            yield f"{key}: {tokens} is less than one step, distill.batch_tokens is {distill.batch_tokens}"
        elif distill.schedule == "wsd" and distill.warmup_tokens > tokens * (
            1 - distill.decay_share
        ):
            yield (
                f"distill.warmup_tokens: {distill.warmup_tokens} is more than {key} of {tokens} has "
                f"before the learning rate falls over its last {distill.decay_share:.0%}"
            )
