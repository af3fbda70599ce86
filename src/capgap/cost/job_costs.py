"""
Every job of a study and its cost, from the settings alone.

FLOPs are counted as in capgap.config.shapes: 2 per weight and token forward, with the output head,
without the input embedding (it is a look-up), plus attention. Training costs three forward passes of
the student (four with activation checkpointing) and one of the teacher; validation counts as well. With
no attention and embeddings these are the 6 N_S D + 2 N_T D of `config.shapes.simple_training_flops`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from capgap.config import (
    HubTeacher,
    PackageTeacher,
    PretrainedTeacher,
    TeacherTokenizer,
    Training,
    run_grid,
)
from capgap.config.counts import parse_count
from capgap.cost import device_memory
from capgap.cost.architectures import Model, architecture
from capgap.cost.device_memory import FLOAT, Memory
from capgap.cost.host_memory import host_mb
from capgap.cost.study_sizes import StudySizes
from capgap.engine.run_plan import plan_run
from capgap.law.answer_records import Choice
from capgap.records import paths

STORED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
COMPRESSED = 0.6  # size of text in Parquet, of its UTF-8 bytes
CHECKPOINTS = 3  # two are kept while a third is written
FINAL_TEACHERS = 3  # the choice, its neighbour and the largest
# tokens of all prompts and answers of a task with the shots of the published table, millions, about
TASK_MTOKENS = {
    "mmlu": 10,
    "ceval-valid": 1.2,
    "drop": 11,
    "humaneval": 0.2,
    "bbh": 13,
    "gsm8k": 2,
    "lambada_openai": 0.5,
    "wikitext": 0.3,
}
OTHER_TASK_MTOKENS = 5


@dataclass(frozen=True)
class Work:
    """Tokens of one kind of pass through a model."""

    kind: str  # pretrain, train, distill, targets, evaluate, score; or text, whose tokens are bytes
    tokens: int
    flops: int
    teacher_flops: int = 0  # of these, in distillation


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    rule: str
    output: str  # the output that stands for the job
    needs: tuple[str, ...]  # outputs of other jobs
    work: tuple[Work, ...] = ()
    device: Memory | None = None  # on each device; None for a job that needs none
    processes: int = 1  # which share the job, each with a device
    precision: str = "float32"  # of its matrix products
    teacher_precision: str = "float32"  # of the teacher's, in distillation
    host_mb: int = 0  # peak main memory, of each machine
    disk_bytes: int = 0
    scratch_bytes: int = 0  # while it runs
    download_bytes: int = 0
    read_bytes: int = 0  # of weights, from disk while it computes, if they do not fit in memory

    @property
    def flops(self) -> int:
        """FLOPs of all its work."""
        return sum(work.flops for work in self.work)

    @property
    def tokens(self) -> int:
        """Tokens trained, scored or evaluated."""
        return sum(work.tokens for work in self.work if work.kind != "text")


class StudyCost(StudySizes):
    """The jobs of a study."""

    def final_teachers(self) -> list[str]:
        """The teachers that the law chose; before it is fitted, as many of the largest ones."""
        if self.study.final is None:
            return []
        student, made = self.study.final.student, Path(self.path(paths.CHOICE))
        large_enough = run_grid.teachers_for(student, run_grid.teacher_sizes(self.study))
        if made.is_file():
            choice = Choice.read(made)
            of_this_student = choice.student_params_non_embedding == student
            if of_this_student and set(choice.teachers()) <= set(large_enough):
                return choice.teachers()
        return large_enough[-FINAL_TEACHERS:]

    def job(
        self, rule: str, *, teacher="", student="", init="", tokens="", seed=0, replica="", **_
    ) -> Job:
        """The job of a rule with these wildcards."""
        if rule in ("prepare_corpus", "make_tokenizer", "pack_tokens"):
            make = {"prepare_corpus": self._corpus, "make_tokenizer": self._tokenizer}
            return make.get(rule, self._pack)()
        if rule in ("pretrain_teacher", "fetch_teacher"):
            return self._teacher(teacher, replica)
        if rule == "evaluate_teacher":
            return self._evaluate_teacher(teacher, replica)
        if rule == "score_importance":
            return self._score(teacher, replica)
        if rule == "cache_teacher":
            return self._targets(teacher, replica)
        if rule == "random_init_student":
            return self._start(student, run_grid.RANDOM, replica)
        if rule == "given_student":
            return self._start(student, init, replica)
        if rule == "prune_student":
            return self._start(student, init or run_grid.pruned_from(teacher), replica)
        if rule in ("distill_student", "evaluate_student"):
            run = run_grid.Run(student, init, teacher, tokens, int(seed), replica)
            trained, measured = self._run(run)
            return trained if rule == "distill_student" else measured
        if rule in ("harness_teacher", "harness_final"):
            return self._harness(teacher, replica)
        if rule == "sample_final":
            return self._sample(run_grid.final_runs(self.study, self.final_teachers()))
        return Job(rule, "", (), host_mb=host_mb(self, rule))

    @cached_property
    def grid(self) -> list[run_grid.Run]:
        """The runs that the law is fitted on."""
        return run_grid.runs_of(self.study)

    @cached_property
    def budgets(self) -> dict[run_grid.Run, list[int]]:
        """Their budgets, see `run_grid.budgets_of`."""
        return run_grid.budgets_of(self.grid)

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs, each after the ones it needs."""
        study, grid = self.study, self.grid
        final = run_grid.final_runs(study, self.final_teachers())
        jobs = [self._corpus()]
        draws = run_grid.teacher_draws(study)
        teachers = [self._teacher(*draw) for draw in [*draws, *run_grid.student_draws(study)]]
        fetched = [job for job in teachers if job.rule == "fetch_teacher"]
        jobs += [*fetched, self._tokenizer(), self._pack()]
        jobs += [job for job in teachers if job.rule != "fetch_teacher"]
        jobs += [self._evaluate_teacher(*draw) for draw in draws]
        runs = [*grid, *final]
        jobs += [self._score(*draw) for draw in run_grid.scored_teachers(runs)]
        if self.caches_targets:
            jobs += [self._targets(*draw) for draw in run_grid.teaching(study, runs)]
        jobs += [self._start(*init) for init in _inits(grid)]
        for run in grid:
            jobs += self._run(run)
        metrics = [self.path(paths.RUN_METRICS, **run._asdict()) for run in grid]
        measured = [
            self.path(paths.TEACHER_METRICS, teacher=n, replica=level) for n, level in draws
        ]
        table, law = self.path(paths.RUNS_TABLE), self.path(paths.LAW)
        choice, final_json = self.path(paths.CHOICE), self.path(paths.FINAL)

        def light(rule, output, needs):
            return replace(self.job(rule), output=output, needs=tuple(needs))

        jobs += [
            light("collect_runs", table, [*metrics, *measured]),
            light("fit_law", law, [table]),
        ]
        if study.final:
            made = {job.output for job in jobs}  # a final student of a size in the grid shares some
            jobs.append(light("choose_teacher", choice, [law]))
            after = [self._start(*init) for init in _inits(final)]
            for run in final:
                after += self._run(run, after=(choice,))
            jobs += [job for job in after if job.output not in made]
            metrics = [self.path(paths.RUN_METRICS, **run._asdict()) for run in final]
            jobs.append(light("compare_final", final_json, [choice, *metrics]))
            jobs.append(self._sample(final))
        ends = [final_json] if study.final else []
        shown = [*ends, *([self.path(paths.SAMPLES)] if study.final else [])]
        jobs += [
            *self._harnesses(),
            light("write_metrics", self.path(paths.STUDY_METRICS), [law, *ends]),
            light("write_report", self.path(paths.REPORT), [table, law, *shown]),
        ]
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
            host_mb=host_mb(self, "prepare_corpus"),
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
            host_mb=host_mb(self, "make_tokenizer"),
            disk_bytes=40 * self.vocab,
        )

    def _pack(self) -> Job:
        width = 2 if self.vocab <= 2**16 else 4
        return Job(
            "pack_tokens",
            self.path(paths.TOKENS),
            (self.path(paths.CORPUS), self.path(paths.TOKENIZER)),
            work=(Work("text", self.corpus_bytes, 0),),
            host_mb=host_mb(self, "pack_tokens"),
            disk_bytes=round(width * self.corpus_bytes / self.bytes_per_token),
        )

    def _teacher_path(self, path: str, name: str, level: str) -> str:
        """A path of the teacher that the runs of a replica use."""
        level = run_grid.teacher_level(self.study, name, level)
        return self.path(path, teacher=name, replica=level)

    def _teacher(self, name: str, level: str) -> Job:
        teacher = self.study.models[name]
        output = self._teacher_path(paths.TEACHER_MODEL, name, level)
        model = self.architecture(name).whole()
        if isinstance(teacher, PretrainedTeacher):
            settings = self.study.pretrain_stage(name)
            tokens = settings.tokens // settings.batch_tokens * settings.batch_tokens
            flops = _passes(settings) * model.forward_flops(settings.sequence_length) * tokens
            return Job(
                "pretrain_teacher",
                output,
                (self.path(paths.TOKENS), self.path(paths.TOKENIZER)),
                work=(Work("pretrain", tokens, flops), self._validation(model, settings)),
                device=self.training_memory(model, settings),
                processes=self.study.plan.processes,
                precision=settings.precision,
                host_mb=host_mb(self, "pretrain_teacher", teacher=name),
                disk_bytes=FLOAT * model.params,
                scratch_bytes=CHECKPOINTS * 3 * FLOAT * model.params,
            )
        shape, gguf = self._shape(name, teacher), isinstance(teacher, PackageTeacher)
        each = FLOAT if gguf else STORED_BYTES[shape.stored]  # as published; GGUF is expanded
        on_hub = isinstance(teacher, HubTeacher)
        trims = bool(teacher.trim_vocabulary)
        return Job(
            "fetch_teacher",
            output,
            (self.path(paths.CORPUS),) if trims else (),
            host_mb=host_mb(self, "fetch_teacher", teacher=name),
            disk_bytes=each * model.params,
            download_bytes=each * architecture(shape).whole().params if on_hub else 0,
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
            device=self.evaluation_memory(model, settings),
            processes=self.study.plan.processes_per_node,
            precision=settings.precision,
            host_mb=host_mb(self, rule, **ids),
            read_bytes=self.read_bytes(model, tokens, settings.precision),
        )

    def _evaluate_teacher(self, name: str, level: str) -> Job:
        return self._evaluation(
            "evaluate_teacher",
            self._teacher_path(paths.TEACHER_METRICS, name, level),
            self._teacher_path(paths.TEACHER_MODEL, name, level),
            self.architecture(name).whole(),
            teacher=name,
        )

    def _score(self, name: str, level: str) -> Job:
        settings, model = self.study.prune, self.architecture(name).whole()
        tokens = settings.calibration_sequences * settings.sequence_length
        flops = 3 * tokens * model.forward_flops(settings.sequence_length)
        units = model.layers * (model.neurons + model.key_value) + model.hidden
        return Job(
            "score_importance",
            self.path(paths.TEACHER_IMPORTANCE, teacher=name, replica=level),
            (self._teacher_path(paths.TEACHER_MODEL, name, level), self.path(paths.TOKENS)),
            work=(Work("score", tokens, flops),),
            device=self.scoring_memory(model),
            processes=self.study.plan.processes_per_node,
            precision=settings.precision,
            host_mb=host_mb(self, "score_importance", teacher=name),
            read_bytes=self.read_bytes(model, tokens, settings.precision, passes=2),
            disk_bytes=FLOAT * units,
        )

    def _targets(self, name: str, level: str) -> Job:
        settings, model = self.study.distill.targets_stage(), self.architecture(name).whole()
        tokens = settings.unique_tokens
        flops = tokens * model.forward_flops(settings.sequence_length)
        return Job(
            "cache_teacher",
            self._teacher_path(paths.TEACHER_TARGETS, name, level),
            (self._teacher_path(paths.TEACHER_MODEL, name, level), self.path(paths.TOKENS)),
            work=(Work("targets", tokens, flops),),
            device=self.evaluation_memory(model, settings),
            processes=self.study.plan.processes_per_node,
            precision=settings.precision,
            read_bytes=self.read_bytes(model, tokens, settings.precision),
            host_mb=host_mb(self, "cache_teacher", teacher=name),
            disk_bytes=tokens * settings.bytes_per_token(self.vocab),
        )

    def _harnesses(self) -> list[Job]:
        if self.study.harness is None:
            return []
        self.notes.append("tokens of the harness's tasks are rough")
        return [self._harness(*draw) for draw in run_grid.measured_on_tasks(self.study)]

    def _harness(self, teacher: str, level: str) -> Job:
        """A teacher on the tasks; without a name the final student."""
        rule = "harness_teacher" if teacher else "harness_final"
        source = paths.TEACHER_MODEL if teacher else paths.FINAL  # made together with its model
        settings, model = self.study.harness, self.harness_model(teacher)
        millions = (TASK_MTOKENS.get(name, OTHER_TASK_MTOKENS) for name in settings.shots())
        most = (settings.limit or 10**9) * device_memory.TASK_CONTEXT
        tokens = round(sum(min(1e6 * million, most) for million in millions))
        return Job(
            rule,
            paths.harness(self.study.study, teacher, level),
            (self.path(source, teacher=teacher, replica=level),),
            work=(
                Work("evaluate", tokens, tokens * model.forward_flops(device_memory.TASK_CONTEXT)),
            ),
            device=device_memory.tasks(model, settings.batch_size),
            host_mb=host_mb(self, rule, teacher=teacher),
        )

    def _sample(self, runs: list[run_grid.Run]) -> Job:
        """Continuations by the final students and the chosen teacher, each token from the whole text.

        Memory is that of the largest of their teachers: any of them may be chosen.
        """
        settings, runs = self.study.sample, run_grid.first_draws(runs)
        models = [self.student(run.student, run.init) for run in runs]
        chosen = run_grid.teaching(self.study, runs[:1]) if settings.teacher else []
        may_be = [name for name, _ in run_grid.teaching(self.study, runs)] if chosen else [""]
        largest = max(may_be, key=lambda name: self.harness_model(name).params)
        models += [self.architecture(name).whole() for name, _ in chosen]
        length = settings.prompt_tokens + settings.new_tokens
        tokens = settings.prompts * sum(range(settings.prompt_tokens, length))  # of one model
        needs = [self.path(paths.RUN_MODEL, **run._asdict()) for run in runs]
        needs += [self.path(paths.TEACHER_MODEL, teacher=n, replica=level) for n, level in chosen]
        return Job(
            "sample_final",
            self.path(paths.SAMPLES),
            (*needs, self.path(paths.CORPUS), self.path(paths.TOKENS)),
            work=tuple(
                Work("evaluate", tokens, tokens * model.forward_flops(length)) for model in models
            ),
            device=self.sampling_memory(largest),
            precision=settings.precision,
            read_bytes=self.read_bytes(
                self.harness_model(largest), tokens, settings.precision, passes=settings.new_tokens
            ),
            host_mb=host_mb(self, "sample_final", teacher=largest),
        )

    def _start(self, student: str, init: str, level: str) -> Job:
        output = self.path(paths.INIT_MODEL, student=student, init=init, replica=level)
        model, lends = self.student(student, init), self.shape_teacher[student]
        if init == run_grid.RANDOM:
            rule, teacher = "random_init_student", lends
            needs = (self._teacher_path(paths.TEACHER_MODEL, teacher, level),)
        elif run_grid.init_kind(init) == "given":
            rule, teacher = "given_student", init.removeprefix(run_grid.GIVEN)
            needs = (
                self._teacher_path(paths.TEACHER_MODEL, teacher, level),
                self.path(paths.TOKENIZER),
            )
        else:
            rule, teacher = "prune_student", init.removeprefix("pruned-")
            needs = (
                self._teacher_path(paths.TEACHER_MODEL, teacher, level),
                self.path(paths.TEACHER_IMPORTANCE, teacher=teacher, replica=level),
            )
            if self.study.prune.one_shape and lends != teacher:
                needs += (self._teacher_path(paths.TEACHER_MODEL, lends, level),)
        refits = rule == "prune_student" and self.study.prune.refit != "none"
        return Job(
            rule,
            output,
            (*needs, self.path(paths.TOKENS)) if refits else needs,
            work=(self._refit(model, self.architecture(teacher).whole()),) if refits else (),
            device=self.refit_memory(model, teacher) if refits else None,
            host_mb=host_mb(self, rule, student=student, init=init, teacher=teacher),
            disk_bytes=FLOAT * model.params,
            scratch_bytes=self._refit_scratch(model, teacher) if refits else 0,
        )

    def _refit_scratch(self, student: Model, teacher: str) -> int:
        """Bytes of the residual streams of all calibration tokens, twice for each model."""
        prune, hidden = self.study.prune, self.architecture(teacher).whole().hidden
        tokens = prune.calibration_sequences * prune.sequence_length
        return 2 * FLOAT * tokens * (hidden + student.hidden)

    def _refit(self, student: Model, teacher: Model) -> Work:
        """Forward passes, second moments in float64 (twice as slow) and solutions of linear systems."""
        length = self.study.prune.sequence_length
        tokens = self.study.prune.calibration_sequences * length
        passes = 2.5 * teacher.forward_flops(length) + 2.5 * student.forward_flops(length)
        d, wide = student.hidden, teacher.hidden
        pairs = [(d, wide), (d, wide), (student.attention, d), (student.neurons, d)]
        sums = 2 * student.layers * sum(2 * i * (i + o) for i, o in pairs)
        solved = 2 * student.layers * sum(8 * (i**3 // 3 + 4 * i * i * o) for i, o in pairs)
        return Work("score", tokens, round(tokens * (passes + sums) + solved))

    def _trunk_tokens(self, run: run_grid.Run) -> int:
        """Tokens of a run's stable phase, from which larger budgets continue; 0 unless wsd."""
        return plan_run(self.study.distill, parse_count(run.tokens)).trunk_tokens

    def _run(self, run: run_grid.Run, after: tuple[str, ...] = ()) -> list[Job]:
        """Training and evaluation of a run, which also wait for the outputs in `after`."""
        names, settings = run._asdict(), self.study.distill
        model = self.student(run.student, run.init)
        tokens = parse_count(run.tokens) // settings.batch_tokens * settings.batch_tokens
        shorter = run_grid.next_smaller(run, self.budgets) if settings.schedule == "wsd" else None
        flops = _passes(settings) * model.forward_flops(settings.sequence_length)
        needs = [self.path(paths.INIT_MODEL, **names), self.path(paths.TOKENS), *after]
        kind, of_teacher = "train", 0
        if run.teacher != run_grid.NONE:
            kind = "distill"
            needs.append(self._teacher_path(paths.TEACHER_MODEL, run.teacher, run.replica))
            if self.caches_targets:
                needs.append(self._teacher_path(paths.TEACHER_TARGETS, run.teacher, run.replica))
            else:
                teacher = self.architecture(run.teacher).whole()
                of_teacher = teacher.forward_flops(settings.sequence_length)
        if shorter:
            needs.append(self.path(paths.RUN_MODEL, **shorter._asdict()))
            tokens -= self._trunk_tokens(shorter)
        state = 3 * FLOAT * model.params  # weights and both moments
        trained = Job(
            "distill_student",
            self.path(paths.RUN_MODEL, **names),
            tuple(needs),
            work=(
                Work(kind, tokens, tokens * (flops + of_teacher), tokens * of_teacher),
                self._validation(model, settings),
            ),
            device=self.distill_memory(run.student, run.init, run.teacher),
            processes=self.study.plan.processes,
            precision=settings.precision,
            teacher_precision=settings.precision_of_teacher,
            host_mb=host_mb(self, "distill_student", **names),
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


def _inits(runs: list[run_grid.Run]) -> list[tuple[str, str, str]]:
    """The inits of runs, once each: (student, init, replica's level)."""
    return list(dict.fromkeys((run.student, run.init, run.replica) for run in runs))


def _passes(settings: Training) -> int:
    """Cost of a training step in forward passes; with activation checkpointing one is repeated."""
    return 4 if settings.activation_checkpointing else 3
