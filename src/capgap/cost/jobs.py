"""
Every job of a study with what it costs, from the settings alone.

FLOPs are counted as in capgap.shapes: 2 per weight and token forward, head included, input
embedding not (it is a look-up), plus attention; training costs three forward passes of the student
and one of the teacher. Passes over validation text count as well. Without attention and embedding
terms this is the 6 N_S D + 2 N_T D of the literature (`capgap.shapes.simple_training_flops`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from capgap import design, paths
from capgap.config import (
    FilesCorpus,
    HubTeacher,
    ModelShape,
    PackageCorpus,
    PathTeacher,
    PretrainedTeacher,
    Study,
    TeacherTokenizer,
    Training,
)
from capgap.cost import memory
from capgap.cost.architectures import (
    Architecture,
    Model,
    architecture,
    pretrained_architecture,
    shape_of_config,
)
from capgap.cost.memory import FLOAT, Memory
from capgap.counts import format_count, parse_count
from capgap.engine.schedule import trunk_steps
from capgap.errors import CapgapError
from capgap.packages import package_folder
from capgap.records import Choice, TokenStreams

MEGA = 10**6
BASE_MB = {"torch": 420, "text": 250, "law": 350}  # a job's memory before it holds anything
TEXT_RULES = ("prepare_corpus", "make_tokenizer", "pack_tokens")
TEXT_COPIES = {"prepare_corpus": 3, "make_tokenizer": 2, "pack_tokens": 3}  # of the text, at a time
LAW_RULES = (
    *("collect_runs", "fit_law", "choose_teacher"),
    *("compare_final", "write_headline", "write_report"),
)
STORED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
COMPRESSED = 0.6  # size of text in Parquet, of its UTF-8 bytes
CHECKPOINTS = 3  # two are kept while a third is written
FINAL_TEACHERS = 3  # the choice, its neighbour and the largest


def base_mb(rule: str) -> int:
    """Memory of a rule's job before it holds anything, MB of 10^6 bytes."""
    return BASE_MB["text" if rule in TEXT_RULES else "law" if rule in LAW_RULES else "torch"]


@dataclass(frozen=True)
class Work:
    """Tokens that pass through a model in one way."""

    kind: str  # pretrain, train, distill, evaluate, score; or text, and tokens are bytes
    tokens: int
    flops: int


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    rule: str
    output: str  # the output that stands for the job
    needs: tuple[str, ...]  # outputs of other jobs
    work: tuple[Work, ...] = ()
    device: Memory | None = None  # what lies on the device; None for a job that needs none
    host_mb: int = 0  # what lies in main memory, on a machine without such a device
    disk_bytes: int = 0
    scratch_bytes: int = 0  # while it runs
    download_bytes: int = 0

    @property
    def flops(self) -> int:
        """FLOPs of all its work."""
        return sum(work.flops for work in self.work)

    @property
    def tokens(self) -> int:
        """Tokens trained, scored or evaluated."""
        return sum(work.tokens for work in self.work if work.kind != "text")


@dataclass
class StudyCost:
    """The jobs of a study; what had to be assumed is in `notes`."""

    study: Study
    notes: list[str] = field(default_factory=list)

    def path(self, path: str, **values) -> str:
        """A path of this study."""
        return path.format(study=self.study.study, **values)

    @cached_property
    def streams(self) -> TokenStreams | None:
        """Counts of the packed text, where it is there already."""
        meta = Path(self.path(paths.TOKENS)).with_name("meta.json")
        return TokenStreams.read(meta) if meta.is_file() else None

    @cached_property
    def corpus_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        corpus = self.study.corpus
        if self.streams:
            return sum(self.streams.bytes.values())
        if isinstance(corpus, PackageCorpus):
            root = package_folder(corpus.package)
            return sum(p.stat().st_size for p in root.glob(corpus.pattern))
        if isinstance(corpus, FilesCorpus):
            files = list(Path().glob(corpus.pattern)) if not corpus.pattern.startswith("/") else []
            size = sum(p.stat().st_size for p in files)
        else:
            size = 0
        if size == 0 and self.study.plan.corpus_bytes is None:
            self.notes.append("size of the corpus unknown (plan.corpus_bytes); counted as 1 GB")
        return self.study.plan.corpus_bytes or size or 10**9

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes of text a token."""
        if self.streams:
            return self.corpus_bytes / sum(self.streams.tokens.values())
        vocab = self.vocab
        return 2.3 if vocab < 4000 else 3.5 if vocab < 30000 else 4.4

    @cached_property
    def vocab(self) -> int:
        """Entries of the vocabulary that text is packed with."""
        tokenizer = self.study.tokenizer
        if isinstance(tokenizer, TeacherTokenizer):
            return self.architecture(tokenizer.teacher).vocab
        return tokenizer.vocab_size

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
        """Shape of every teacher, by name."""
        return {name: self._architecture(name) for name in self.study.teachers}

    def architecture(self, teacher: str) -> Architecture:
        """Shape of one teacher, its vocabulary trimmed where the study says so."""
        return self.architectures[teacher]

    def _architecture(self, name: str) -> Architecture:
        teacher = self.study.teachers[name]
        if isinstance(teacher, PretrainedTeacher):
            return pretrained_architecture(teacher, self.vocab)
        shape = self._shape(name, teacher)
        entries = teacher.trim_vocabulary
        if entries and entries is not True:
            shape = shape.model_copy(update={"vocab": min(shape.vocab, entries)})
        return architecture(shape)

    def _shape(self, name: str, teacher) -> ModelShape:
        """Declared, or read from what is here; else a guess, noted."""
        if name in self.study.plan.shapes:
            return self.study.plan.shapes[name]
        folders = [Path(self.path(paths.TEACHER_MODEL, teacher=name)).parent]
        if isinstance(teacher, PathTeacher):
            folders.append(Path(teacher.path))
        for folder in folders:
            config = folder / "config.json"
            if config.is_file():
                return shape_of_config(json.loads(config.read_text(encoding="utf-8")), str(config))
        self.notes.append(
            f"shape of {name} unknown (plan.shapes.{name}); counted as a Llama with 50,000 entries"
        )
        return guessed_shape(teacher.params_non_embedding)

    @cached_property
    def shape_teacher(self) -> dict[str, str]:
        """For every student size, the teacher that lends its shape: the smallest large enough."""
        sizes = design.teacher_sizes(self.study)
        return {
            format_count(size): design.teachers_for(size, sizes)[0]
            for size in [*self.study.grid.students, self.study.final.student]
        }

    def student(self, student: str, init: str) -> Model:
        """Shape of a student, from its size and its start."""
        prune, lends = self.study.prune, self.shape_teacher[student]
        teacher = lends if init == design.RANDOM else init.removeprefix("pruned-")
        like = self.architecture(lends).sizes if prune.one_shape and teacher != lends else None
        try:
            return self.architecture(teacher).pruned(parse_count(student), prune.cutting(), like)
        except CapgapError as error:
            raise CapgapError(f"student {student} from teacher {teacher}: {error}") from None

    def distill_memory(self, student: str, init: str, teacher: str) -> Memory:
        """Memory of one distillation."""
        absent = teacher == design.NONE or self.keeps_signal
        taught_by = None if absent else self.architecture(teacher).whole()
        return memory.training(self.student(student, init), self.study.distill, taught_by)

    def final_teachers(self) -> list[str]:
        """The law's choice where it is made, else as many teachers as it may ask for, the dearest."""
        student, made = self.study.final.student, Path(self.path(paths.CHOICE))
        large_enough = design.teachers_for(student, design.teacher_sizes(self.study))
        if made.is_file():
            choice = Choice.read(made)
            of_this_student = choice.student_params_non_embedding == student
            if of_this_student and set(choice.teachers()) <= set(large_enough):
                return choice.teachers()
        return large_enough[-FINAL_TEACHERS:]

    def job(self, rule: str, *, teacher="", student="", init="", tokens="", seed=0, **_) -> Job:
        """The job of a rule with these wildcards."""
        if rule in ("prepare_corpus", "make_tokenizer", "pack_tokens"):
            make = {"prepare_corpus": self._corpus, "make_tokenizer": self._tokenizer}
            return make.get(rule, self._pack)()
        if rule in ("pretrain_teacher", "fetch_teacher"):
            return self._teacher(teacher)
        if rule == "evaluate_teacher":
            return self._evaluate_teacher(teacher)
        if rule == "score_importance":
            return self._score(teacher)
        if rule == "cache_teacher_signal":
            return self._signal(teacher)
        if rule == "randomise_student":
            return self._start(student, design.RANDOM)
        if rule == "prune_student":
            return self._start(student, init or design.pruned_from(teacher))
        if rule in ("distill_student", "evaluate_student"):
            run = design.Run(student, init, teacher, tokens, int(seed))
            trained, measured = self._run(run, self.grid, ())
            return trained if rule == "distill_student" else measured
        return Job(rule, "", (), host_mb=self.host_mb(rule))

    @cached_property
    def grid(self) -> list[design.Run]:
        """The runs that the law is fitted on."""
        return design.grid_runs(self.study.grid, design.teacher_sizes(self.study))

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs, each after the ones it needs."""
        study, grid = self.study, self.grid
        final = design.final_runs(study.final, self.final_teachers())
        corpus, tokens = self.path(paths.CORPUS), self.path(paths.TOKENS)
        jobs = [self._corpus()]
        teachers = [self._teacher(name) for name in study.teachers]
        fetched = [job for job in teachers if job.rule == "fetch_teacher"]
        jobs += [*fetched, self._tokenizer(), self._pack()]
        jobs += [job for job in teachers if job.rule != "fetch_teacher"]
        jobs += [self._evaluate_teacher(name) for name in study.teachers]
        runs = [*grid, *final]
        scored = {run.init.removeprefix("pruned-") for run in runs if run.init != design.RANDOM}
        jobs += [self._score(name) for name in sorted(scored)]
        if self.keeps_signal:
            taught = {run.teacher for run in runs} - {design.NONE}
            jobs += [self._signal(name) for name in sorted(taught)]
        jobs += [self._start(s, i) for s, i in dict.fromkeys((r.student, r.init) for r in grid)]
        for run in grid:
            jobs += self._run(run, grid, ())
        metrics = [self.path(paths.RUN_METRICS, **run._asdict()) for run in grid]
        measured = [self.path(paths.TEACHER_METRICS, teacher=name) for name in study.teachers]
        table, law = self.path(paths.RUNS_TABLE), self.path(paths.LAW)
        choice, final_json = self.path(paths.CHOICE), self.path(paths.FINAL)

        def light(rule, output, needs):
            return replace(self.job(rule), output=output, needs=tuple(needs))

        jobs += [
            light("collect_runs", table, [*metrics, *measured]),
            light("fit_law", law, [table]),
            light("choose_teacher", choice, [law]),
        ]
        jobs += [self._start(s, i) for s, i in dict.fromkeys((r.student, r.init) for r in final)]
        for run in final:
            jobs += self._run(run, final, (choice,))
        jobs += [
            light(
                "compare_final",
                final_json,
                [choice, *(self.path(paths.RUN_METRICS, **run._asdict()) for run in final)],
            ),
            light("write_headline", self.path(paths.HEADLINE), [law, final_json]),
            light("write_report", self.path(paths.REPORT), [table, law, final_json]),
        ]
        assert {corpus, tokens} <= {job.output for job in jobs}
        return jobs

    # --- one job each ---------------------------------------------------------------------------

    def _corpus(self) -> Job:
        size = self.corpus_bytes
        on_hub = self.study.corpus.source == "hub"
        return Job(
            "prepare_corpus",
            self.path(paths.CORPUS),
            (),
            work=(Work("text", size, 0),),
            host_mb=self.host_mb("prepare_corpus"),
            disk_bytes=round(COMPRESSED * size),
            download_bytes=self.study.plan.corpus_download_bytes or round(COMPRESSED * size)
            if on_hub
            else 0,
        )

    def _tokenizer(self) -> Job:
        tokenizer = self.study.tokenizer
        own = not isinstance(tokenizer, TeacherTokenizer)
        source = (
            self.path(paths.CORPUS)
            if own
            else self.path(paths.TEACHER_MODEL, teacher=tokenizer.teacher)
        )
        return Job(
            "make_tokenizer",
            self.path(paths.TOKENIZER),
            (source,),
            work=(Work("text", self.corpus_bytes if own else 0, 0),),
            host_mb=self.host_mb("make_tokenizer"),
            disk_bytes=40 * self.vocab,
        )

    def _pack(self) -> Job:
        width = 2 if self.vocab <= 2**16 else 4
        return Job(
            "pack_tokens",
            self.path(paths.TOKENS),
            (self.path(paths.CORPUS), self.path(paths.TOKENIZER)),
            work=(Work("text", self.corpus_bytes, 0),),
            host_mb=self.host_mb("pack_tokens"),
            disk_bytes=round(width * self.corpus_bytes / self.bytes_per_token),
        )

    def _teacher(self, name: str) -> Job:
        teacher, output = self.study.teachers[name], self.path(paths.TEACHER_MODEL, teacher=name)
        model = self.architecture(name).whole()
        if isinstance(teacher, PretrainedTeacher):
            settings = self.study.pretrain_stage(name)
            tokens = settings.tokens // settings.batch_tokens * settings.batch_tokens
            flops = 3 * model.forward_flops(settings.sequence_length) * tokens
            return Job(
                "pretrain_teacher",
                output,
                (self.path(paths.TOKENS), self.path(paths.TOKENIZER)),
                work=(Work("pretrain", tokens, flops), self._validation(model, settings)),
                device=memory.training(model, settings),
                host_mb=self.host_mb("pretrain_teacher", teacher=name),
                disk_bytes=FLOAT * model.params,
                scratch_bytes=CHECKPOINTS * 3 * FLOAT * model.params,
            )
        stored = 0
        if isinstance(teacher, HubTeacher):
            shape = self._shape(name, teacher)
            stored = STORED_BYTES[shape.stored] * architecture(shape).whole().params
        trims = bool(teacher.trim_vocabulary)
        return Job(
            "fetch_teacher",
            output,
            (self.path(paths.CORPUS),) if trims else (),
            host_mb=self.host_mb("fetch_teacher", teacher=name),
            disk_bytes=FLOAT * model.params,
            download_bytes=stored,
        )

    def _validation(self, model: Model, settings: Training) -> Work:
        tokens = (settings.validations + 1) * settings.validation_tokens
        return Work("evaluate", tokens, tokens * model.forward_flops(settings.sequence_length))

    def _evaluation(self, rule: str, output: str, source: str, model: Model, **ids) -> Job:
        settings, tokens = self.study.evaluate, self.held_out_tokens()
        return Job(
            rule,
            output,
            (source, self.path(paths.TOKENS)),
            work=(
                Work("evaluate", tokens, tokens * model.forward_flops(settings.sequence_length)),
            ),
            device=memory.evaluation(model, settings.batch_tokens),
            host_mb=self.host_mb(rule, **ids),
        )

    def _evaluate_teacher(self, name: str) -> Job:
        return self._evaluation(
            "evaluate_teacher",
            self.path(paths.TEACHER_METRICS, teacher=name),
            self.path(paths.TEACHER_MODEL, teacher=name),
            self.architecture(name).whole(),
            teacher=name,
        )

    def _score(self, name: str) -> Job:
        settings, model = self.study.prune, self.architecture(name).whole()
        tokens = settings.calibration_sequences * settings.sequence_length
        flops = 3 * tokens * model.forward_flops(settings.sequence_length)
        units = model.layers * (model.neurons + model.key_value) + model.hidden
        return Job(
            "score_importance",
            self.path(paths.TEACHER_IMPORTANCE, teacher=name),
            (self.path(paths.TEACHER_MODEL, teacher=name), self.path(paths.TOKENS)),
            work=(Work("score", tokens, flops),),
            device=memory.scoring(model, settings.sequence_length),
            host_mb=self.host_mb("score_importance", teacher=name),
            disk_bytes=FLOAT * units,
        )

    @property
    def keeps_signal(self) -> bool:
        """Whether a teacher reads the text once for all students."""
        return self.study.distill.teacher_signal != "online"

    def _signal(self, name: str) -> Job:
        settings, model = self.study.distill.signal_stage(), self.architecture(name).whole()
        tokens = settings.unique_tokens
        flops = tokens * model.forward_flops(settings.sequence_length)
        return Job(
            "cache_teacher_signal",
            self.path(paths.TEACHER_SIGNAL, teacher=name),
            (self.path(paths.TEACHER_MODEL, teacher=name), self.path(paths.TOKENS)),
            work=(Work("evaluate", tokens, flops),),
            device=memory.evaluation(model, settings.batch_tokens),
            host_mb=self.host_mb("cache_teacher_signal", teacher=name),
            disk_bytes=tokens * settings.bytes_per_token(self.vocab),
        )

    def _start(self, student: str, init: str) -> Job:
        output = self.path(paths.INIT_MODEL, student=student, init=init)
        model = self.student(student, init)
        if init == design.RANDOM:
            rule, teacher = "randomise_student", self.shape_teacher[student]
            needs = (self.path(paths.TEACHER_MODEL, teacher=teacher),)
        else:
            rule, teacher = "prune_student", init.removeprefix("pruned-")
            needs = tuple(
                self.path(path, teacher=teacher)
                for path in (paths.TEACHER_MODEL, paths.TEACHER_IMPORTANCE)
            )
            lends = self.shape_teacher[student]
            if self.study.prune.one_shape and lends != teacher:
                needs += (self.path(paths.TEACHER_MODEL, teacher=lends),)
        return Job(
            rule,
            output,
            needs,
            host_mb=self.host_mb(rule, student=student, init=init, teacher=teacher),
            disk_bytes=FLOAT * model.params,
        )

    def _trunk_tokens(self, run: design.Run) -> int:
        """Tokens of a run that larger budgets go on from; 0 where the schedule has no trunk."""
        batch = self.study.distill.batch_tokens
        return (trunk_steps(parse_count(run.tokens) // batch, self.study.distill) or 0) * batch

    def _run(self, run: design.Run, runs: list[design.Run], after: tuple[str, ...]) -> list[Job]:
        names, settings = run._asdict(), self.study.distill
        model = self.student(run.student, run.init)
        tokens = parse_count(run.tokens) // settings.batch_tokens * settings.batch_tokens
        shorter = design.next_smaller(run, runs) if settings.schedule == "wsd" else None
        flops = 3 * model.forward_flops(settings.sequence_length)
        needs = [self.path(paths.INIT_MODEL, **names), self.path(paths.TOKENS), *after]
        kind = "train"
        if run.teacher != design.NONE:
            kind = "distill"
            needs.append(self.path(paths.TEACHER_MODEL, teacher=run.teacher))
            if self.keeps_signal:
                needs.append(self.path(paths.TEACHER_SIGNAL, teacher=run.teacher))
            else:
                teacher = self.architecture(run.teacher).whole()
                flops += teacher.forward_flops(settings.sequence_length)
        if shorter:
            needs.append(self.path(paths.RUN_MODEL, **shorter._asdict()))
            tokens -= self._trunk_tokens(shorter)
        state = 3 * FLOAT * model.params  # weights and both moments
        trained = Job(
            "distill_student",
            self.path(paths.RUN_MODEL, **names),
            tuple(needs),
            work=(Work(kind, tokens, tokens * flops), self._validation(model, settings)),
            device=self.distill_memory(run.student, run.init, run.teacher),
            host_mb=self.host_mb("distill_student", **names),
            disk_bytes=FLOAT * model.params + (state if self._trunk_tokens(run) else 0),
            scratch_bytes=CHECKPOINTS * state,
        )
        measured = self._evaluation(
            "evaluate_student",
            self.path(paths.RUN_METRICS, **names),
            trained.output,
            model,
            student=run.student,
            init=run.init,
        )
        return [trained, measured]

    # --- main memory ----------------------------------------------------------------------------

    def host_mb(self, rule: str, *, student="", init="", teacher="", **_: str) -> int:
        """Peak of main memory of a job, in MB of 10^6 bytes, given the wildcards of its rule.

        With a device the device holds the tensors, and main memory holds weights while they load.
        """
        base = base_mb(rule)
        if rule in TEXT_RULES:
            return base + round(TEXT_COPIES[rule] * self.corpus_bytes / MEGA)
        match rule:
            case "pretrain_teacher":
                settings = self.study.pretrain_stage(teacher)
                held = memory.training(self.architecture(teacher).whole(), settings)
            case "fetch_teacher":
                held = Memory(weights=2 * FLOAT * self.architecture(teacher).whole().params)
            case "evaluate_teacher":
                model = self.architecture(teacher).whole()
                held = memory.evaluation(model, self.study.evaluate.batch_tokens)
            case "cache_teacher_signal":
                model = self.architecture(teacher).whole()
                held = memory.evaluation(model, self.study.distill.signal_stage().batch_tokens)
            case "score_importance":
                model = self.architecture(teacher).whole()
                held = memory.scoring(model, self.study.prune.sequence_length)
            case "prune_student":
                cut = self.student(student, init or design.pruned_from(teacher))
                held = memory.cutting(self.architecture(teacher).whole(), cut)
            case "randomise_student":
                like = self.shape_teacher[student]
                cut = self.student(student, design.RANDOM)
                held = memory.cutting(self.architecture(like).whole(), cut)
            case "distill_student":
                held = self.distill_memory(student, init, teacher)
            case "evaluate_student":
                model = self.student(student, init)
                held = memory.evaluation(model, self.study.evaluate.batch_tokens)
            case _:
                return base
        size = held.total
        if self.study.plan.device != "cpu" and held.optimizer:
            size = (
                held.weights + held.teacher + held.optimizer
            )  # loading, then writing a checkpoint
        return base + round(size / MEGA)


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
    """Raise CapgapError where a declared shape has another size than the study says."""
    for name, shape in study.plan.shapes.items():
        counted = architecture(shape).whole().non_embedding
        said = study.teachers[name].params_non_embedding
        if counted != said:
            raise CapgapError(
                f"plan.shapes.{name}: this shape has {counted:,} parameters without embeddings, "
                f"teachers.{name}.params_non_embedding is {said:,}"
            )
