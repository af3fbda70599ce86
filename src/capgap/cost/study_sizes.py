"""Sizes of the text and of the models of a study, from its settings and from existing files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from capgap.config import (
    Evaluate,
    FilesCorpus,
    ModelShape,
    PackageCorpus,
    PathTeacher,
    PretrainedTeacher,
    Study,
    TargetsStage,
    TeacherTokenizer,
    Tokenizer,
    Training,
    run_grid,
)
from capgap.config.counts import format_count, parse_count
from capgap.config.devices import CPU, DEVICES, FITS_SHARE, STREAMS_SHARE
from capgap.config.shapes import WHOLE_ATTENTION
from capgap.cost import device_memory
from capgap.cost.architectures import (
    Architecture,
    Model,
    architecture,
    pretrained_architecture,
    shape_of_config,
)
from capgap.cost.device_memory import BYTES, FLOAT, Memory
from capgap.data.packages import files_in_package
from capgap.data.sources import corpus_files
from capgap.errors import CapgapError
from capgap.records import paths
from capgap.records.reading import read_json
from capgap.records.run_records import TokenStreams


@dataclass
class StudySizes:
    """Sizes of a study from its settings and existing results; `notes` lists the assumptions."""

    study: Study
    notes: list[str] = field(default_factory=list)

    def path(self, path: str, **values) -> str:
        """A path of this study."""
        return path.format(study=self.study.study, **{"replica": "", "weight": ""} | values)

    @cached_property
    def streams(self) -> TokenStreams | None:
        """Counts of the packed text; None if it is not packed yet."""
        meta = Path(self.path(paths.TOKENS)).with_name("meta.json")
        return TokenStreams.read(meta) if meta.is_file() else None

    @cached_property
    def corpus_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        corpus = self.study.corpus
        if self.streams:
            return sum(self.streams.bytes.values())
        if isinstance(corpus, PackageCorpus):
            return sum(p.stat().st_size for p in files_in_package(corpus.package, corpus.pattern))
        if isinstance(corpus, FilesCorpus):
            size = sum(path.stat().st_size for path in corpus_files(corpus.pattern)[0])
        else:
            size = 0
        if size == 0 and self.study.plan.corpus_bytes is None:
            self.notes.append("size of the corpus unknown (plan.corpus_bytes); counted as 1 GB")
        return self.study.plan.corpus_bytes or size or 10**9

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes of text per token."""
        if self.streams:
            return self.corpus_bytes / sum(self.streams.tokens.values())
        vocab = self.vocab
        return 2.3 if vocab < 4000 else 3.5 if vocab < 30000 else 4.4

    @cached_property
    def vocab(self) -> int:
        """Entries of the vocabulary that text is packed with."""
        return self._entries(self.study.tokenizer)

    def own_streams(self, tokenizer: str) -> TokenStreams | None:
        """Counts of the text packed with a tokenizer of teacher_tokenizers; None before."""
        meta = Path(self.path(paths.OWN_TOKENS, tokenizer=tokenizer)).with_name("meta.json")
        return TokenStreams.read(meta) if meta.is_file() else None

    def vocab_of(self, tokenizer: str) -> int:
        """Entries of a tokenizer of teacher_tokenizers, '' for the students'."""
        if not tokenizer:
            return self.vocab
        return self._entries(self.study.teacher_tokenizers[tokenizer])

    def _entries(self, tokenizer: Tokenizer) -> int:
        if isinstance(tokenizer, TeacherTokenizer):
            return self._architecture(tokenizer.teacher).vocab  # `architectures` may need it
        return tokenizer.vocab_size

    def teacher_tokens(self, teacher: str) -> float:
        """Tokens that a teacher reads for one of the student's; 1 for one with the same tokenizer.

        Without the packed text it is estimated from the sizes of the two vocabularies.
        """
        own = self.study.teacher_tokenizer(teacher)
        if not own:
            return 1.0
        packed = self.own_streams(own)
        if packed and self.streams:
            return sum(packed.tokens.values()) / sum(self.streams.tokens.values())
        return math.log(self.vocab) / math.log(self.vocab_of(own))

    def held_out_tokens(self) -> int:
        """Tokens of the validation and the test split."""
        if self.streams:
            return self.streams.tokens["validation"] + self.streams.tokens["test"]
        corpus = self.study.corpus
        size = self.corpus_bytes * corpus.validation_share
        if getattr(corpus, "test", None):
            size += self.study.plan.test_bytes
        else:
            size += self.corpus_bytes * corpus.test_share
        return round(size / self.bytes_per_token)

    @cached_property
    def architectures(self) -> dict[str, Architecture]:
        """Shape of every teacher and given student, by name."""
        return {name: self._architecture(name) for name in self.study.models}

    def architecture(self, teacher: str) -> Architecture:
        """Shape of one teacher, with its trimmed vocabulary if the study trims it."""
        return self.architectures[teacher]

    def _architecture(self, name: str) -> Architecture:
        teacher = self.study.models[name]
        if isinstance(teacher, PretrainedTeacher):
            vocab = self.vocab_of(self.study.teacher_tokenizer(name))
            return pretrained_architecture(teacher, vocab)
        shape = self._shape(name, teacher)
        entries = teacher.trim_vocabulary
        if entries and entries is not True:
            shape = shape.model_copy(update={"vocab": min(shape.vocab, entries)})
        return architecture(shape)

    def _shape(self, name: str, teacher) -> ModelShape:
        """The declared shape, or that of config.json if it is here; else a guess, with a note."""
        if name in self.study.plan.shapes:
            return self.study.plan.shapes[name]
        folders = [Path(self.path(paths.TEACHER_MODEL, teacher=name)).parent]
        if isinstance(teacher, PathTeacher):
            folders.append(Path(teacher.path))
        for folder in folders:
            config = folder / "config.json"
            if config.is_file():
                return shape_of_config(read_json(config), str(config))
        self.notes.append(
            f"cost of the architecture of {name} unknown; counted as a Llama with 50,000 entries"
        )
        return guessed_shape(teacher.params_non_embedding)

    @cached_property
    def shape_teacher(self) -> dict[str, str]:
        """For every student size, the teacher that lends its shape: the smallest large enough."""
        return run_grid.shape_teachers(self.study)

    def student(self, student: str, init: str) -> Model:
        """Shape of a student, from its size and its init. Raises CapgapError if no cut is possible."""
        lends = self.shape_teacher[student]
        if run_grid.init_kind(init) == "given":
            model = self.architecture(init.removeprefix(run_grid.GIVEN)).whole()
        elif init == run_grid.RANDOM:
            model = self._cuts(student, lends, 1)[-1]
        else:
            return self._cuts(student, init.removeprefix(run_grid.pruned_from("")), 1)[-1]
        rows = round(model.embedding * self.vocab / model.vocab)
        return replace(model, vocab=self.vocab, embedding=rows)

    def cuts(self, student: str, init: str) -> tuple[Model, ...]:
        """Shapes from a pruned init's teacher to the init itself: one more than there are rounds."""
        teacher = init.removeprefix(run_grid.pruned_from(""))
        return self._cuts(student, teacher, self.study.prune.rounds)

    def _cuts(self, student: str, teacher: str, rounds: int) -> tuple[Model, ...]:
        prune, lends = self.study.prune, self.shape_teacher[student]
        like = self.architecture(lends).sizes if prune.one_shape and teacher != lends else None
        of, params = self.architecture(teacher), parse_count(student)
        try:
            return of.cuts(params, prune.shaping(), like, rounds)
        except CapgapError as error:
            raise CapgapError(f"student {student} from teacher {teacher}: {error}") from None

    def refit_memory(self, cut: Model, whole: Model) -> Memory:
        """Peak memory of refitting a model that was cut out of another."""
        length = self.study.prune.sequence_length
        return device_memory.refitting(whole, cut, length, self.scores(length))

    def distill_memory(self, model: Model, teacher: str, *, alone: bool = False) -> Memory:
        """Memory of one process of a distillation; alone: as in `training_memory`."""
        absent = teacher == run_grid.NONE or self.caches_targets
        taught_by = None if absent else self.architecture(teacher).whole()
        held = self.training_memory(model, self.study.distill, taught_by, alone=alone)
        if taught_by is None or not self.study.teacher_tokenizer(teacher):
            return held
        return device_memory.by_classes(held, model, taught_by, self.study.distill, self.on_gpu)

    def on_disk(self, model: Model, precision: str) -> bool:
        """Whether passes over text read a model's layers from disk, because the device cannot hold it."""
        device = self.study.plan.device
        if device == CPU:  # how much is free is known when a job begins
            return False
        free = DEVICES[device].memory_gib * 2**30
        return device_memory.held_whole(model, precision) > FITS_SHARE * free

    def evaluation_memory(self, model: Model, settings: Evaluate | TargetsStage) -> Memory:
        """Memory of a pass over text in batches."""
        scores = self.scores(settings.sequence_length, settings.precision)
        return self.passing_memory(model, settings.batch_tokens, settings.precision, scores)

    def passing_memory(self, model: Model, tokens: int, precision: str, scores: int = 0) -> Memory:
        """Memory of a forward pass of some tokens, the layers on disk if they do not fit."""
        held = device_memory.evaluation(model, tokens, precision, scores, self.on_gpu)
        if self.on_disk(model, precision):
            return device_memory.layers_on_disk(held, model, precision)
        return held

    def scoring_memory(self, model: Model) -> Memory:
        """Memory of scoring a teacher's units."""
        prune = self.study.prune
        length, on_disk = prune.sequence_length, self.on_disk(model, prune.precision)
        scores = self.scores(length, prune.precision)
        held = device_memory.scoring(
            model, length, scores, precision=prune.precision, on_disk=on_disk
        )
        return device_memory.layers_on_disk(held, model, prune.precision) if on_disk else held

    def read_bytes(self, model: Model, tokens: int, precision: str, passes: int = 1) -> int:
        """Bytes read from disk while tokens pass a model whose layers lie there; else 0.

        passes: how often a block of tokens goes through the layers, 2 with a backward pass.
        """
        if not self.on_disk(model, precision):
            return 0
        free = DEVICES[self.study.plan.device].memory_gib * 2**30
        block = STREAMS_SHARE * free / (2 * FLOAT * model.hidden)  # a stream and the next one
        # each of the processes that share the tokens reads the model for its own part
        processes = self.study.plan.processes_per_node
        blocks = processes * math.ceil(tokens / processes / block)
        return passes * blocks * BYTES[precision] * model.non_embedding

    def training_memory(
        self, model: Model, settings: Training, teacher: Model | None = None, *, alone: bool = False
    ) -> Memory:
        """Memory of one process of a training job.

        alone: count it as if it were the only process, whatever plan.processes is.
        """
        plan, scores = self.study.plan, self.scores(settings.sequence_length, settings.precision)
        shared = {} if alone else {"processes": plan.processes, "shards": plan.shards}
        return device_memory.training(
            model, settings, teacher, scores=scores, on_gpu=self.on_gpu, **shared
        )

    @property
    def on_gpu(self) -> bool:
        """Whether the study is planned for a GPU."""
        return self.study.plan.device != CPU

    def scores(self, sequence_length: int, precision: str = "float32") -> int:
        """Attention scores that are held at once, per token and head."""
        whole = self.study.plan.device == CPU and precision == "float32"
        return sequence_length if whole and sequence_length <= WHOLE_ATTENTION else 0

    def harness_model(self, teacher: str) -> Model:
        """A teacher, or without a name the final student, pruned from the teacher that lends its shape."""
        if teacher:
            return self.architecture(teacher).whole()
        size = format_count(self.study.final.student)
        return self.student(size, run_grid.final_init(self.study, self.shape_teacher[size]))

    def sampling_memory(self, teacher: str) -> Memory:
        """Memory of continuing a prompt with a teacher, or without a name with the final student."""
        settings, model = self.study.sample, self.harness_model(teacher)
        tokens = settings.prompt_tokens + settings.new_tokens
        return self.passing_memory(model, tokens, settings.precision)

    @property
    def caches_targets(self) -> bool:
        """Whether the targets of a teacher are computed once for all students."""
        return self.study.distill.teacher_targets != "online"


def guessed_shape(params: int) -> ModelShape:
    """A Llama of about this many parameters without embeddings: 32 layers, 3.5 d neurons."""
    layers = 32
    hidden = max(64, round((params / layers / 14.5) ** 0.5 / 64) * 64)
    return ModelShape(
        family="llama",
        layers=layers,
        hidden=hidden,
        heads=hidden // 64,
        intermediate=round(3.5 * hidden),
        vocab=50_000,
    )


def check_shapes(study: Study) -> None:
    """Raise CapgapError if a declared shape has another size than the study's setting."""
    for name, shape in study.plan.shapes.items():
        counted = architecture(shape).whole().non_embedding
        said = study.models[name].params_non_embedding  # pyright: ignore[reportAttributeAccessIssue]
        if counted != said:
            raise CapgapError(
                f"plan.shapes.{name}: this shape has {counted:,} parameters without embeddings, "
                f"params_non_embedding of {name} is {said:,}"
            )
