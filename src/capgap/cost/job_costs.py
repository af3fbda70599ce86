"""
Every job of a study and its cost, from the settings alone.

FLOPs are counted as in capgap.config.shapes: 2 per weight and token forward, with the output head,
without the input embedding (it is a look-up), plus attention. Training costs three forward passes of
the student (four with activation checkpointing) and one of the teacher; validation counts as well. With
no attention and embeddings these are the 6 N_S D + 2 N_T D of `config.shapes.simple_training_flops`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from capgap.config import HubTeacher, PackageTeacher, PretrainedTeacher, TeacherTokenizer, run_grid
from capgap.config.counts import parse_count
from capgap.cost import passes
from capgap.cost.architectures import Model, architecture
from capgap.cost.device_memory import FLOAT, Memory
from capgap.cost.host_memory import host_mb
from capgap.cost.init_costs import CHECKPOINTS, InitCosts, training_passes
from capgap.cost.metric_jobs import metric_jobs, student_tasks, task_job, text_job
from capgap.cost.one_job import COMPRESSED, Job, Work
from capgap.engine.run_plan import plan_run
from capgap.law.answers.answer_records import Choice
from capgap.records import paths

STORED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
FINAL_TEACHERS = 3  # the choice, its neighbour and the largest


class StudyCost(InitCosts):
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

    def job(self, rule: str, **names: str | int) -> Job:
        """The job of a rule with these wildcards, for its cost; those left out are empty.

        Runs that differ in the weight of the teacher's term alone cost the same, so it is not asked for,
        and outputs are those of the usual weight.
        """
        at = defaultdict(str, {name: str(value) for name, value in names.items()})
        teacher, student, init, replica = (at[n] for n in ("teacher", "student", "init", "replica"))
        run = run_grid.Run(student, init, teacher, at["tokens"], int(at["seed"] or 0), replica)
        match rule:
            case "prepare_corpus":
                return self._corpus()
            case "make_tokenizer" | "make_own_tokenizer":
                return self._tokenizer(at["tokenizer"])
            case "pack_tokens" | "pack_own_tokens":
                return self._pack(at["tokenizer"])
            case "pretrain_teacher" | "fetch_teacher":
                return self._teacher(teacher, replica)
            case "evaluate_teacher":
                return self._evaluate_teacher(teacher, replica)
            case "score_importance":
                return self._score(teacher, replica)
            case "cache_teacher":
                return self._targets(teacher, replica)
            case "random_init_student":
                return self._start(student, run_grid.RANDOM, replica)
            case "given_student" | "prune_student":
                return self._start(student, init or run_grid.pruned_from(teacher), replica)
            case "cut_round" | "distill_round" | "score_round":
                number = int(at["number"])
                place = run_grid.Round(student, run_grid.pruned_from(teacher), number, replica)
                return next(job for job in self._round(place) if job.rule == rule)
            case "distill_student":
                return self._run(run)[0]
            case "evaluate_student":
                return self._run(run)[1]
            case "harness_teacher" | "harness_final":
                return self._harness(teacher, replica)
            case "prepare_text" | "pack_text" | "evaluate_teacher_text" | "evaluate_student_text":
                return text_job(self, rule, at["text"], run)
            case "harness_student":
                return student_tasks(self, run)
            case "sample_final":
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
        for name, tokenizer in study.teacher_tokenizers.items():
            jobs += [self._tokenizer(name), self._pack(name)]
            self.notes.append(
                f"{', '.join(tokenizer.names())}: tokenizer {name} of {self.vocab_of(name):,} entries, "
                f"the students have another one of {self.vocab:,}; students are taught by classes of "
                "entries where token boundaries meet"
            )
        jobs += [job for job in teachers if job.rule != "fetch_teacher"]
        jobs += [self._evaluate_teacher(*draw) for draw in draws]
        runs = [*grid, *final]
        jobs += [self._score(*draw) for draw in run_grid.scored_teachers(runs)]
        if self.caches_targets:
            jobs += [self._targets(*draw) for draw in run_grid.teaching(study, runs)]
        jobs += [job for place in run_grid.rounds_of(study, grid) for job in self._round(place)]
        jobs += [self._start(*init) for init in _inits(grid)]
        for run in grid:
            jobs += self._run(run)
        metrics = [self.path(paths.RUN_METRICS, **run._asdict()) for run in grid]
        measured = [
            self.path(paths.TEACHER_METRICS, teacher=n, replica=level) for n, level in draws
        ]
        table, law = self.path(paths.RUNS_TABLE), self.path(paths.LAW)
        more = metric_jobs(self)
        jobs += more
        measured += [job.output for job in more]
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
            rounds = run_grid.rounds_of(study, final)
            after = [job for place in rounds for job in self._round(place)]
            after += [self._start(*init) for init in _inits(final)]
            for run in final:
                after += self._run(run, after=(choice,))
            jobs += [job for job in after if job.output not in made]
            metrics = [self.path(paths.RUN_METRICS, **run._asdict()) for run in final]
            jobs.append(light("compare_final", final_json, [choice, *metrics]))
            jobs.append(self._sample(final))
        if study.harness:
            self.notes.append("tokens of the harness's tasks are rough")
        ends = [final_json] if study.final else []
        shown = [*ends, *([self.path(paths.SAMPLES)] if study.final else [])]
        jobs += [
            *(self._harness(*draw) for draw in run_grid.measured_on_tasks(study)),
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

    def _tokenizer(self, own: str = "") -> Job:
        """The job of the students' tokenizer, or of one of teacher_tokenizers by its name."""
        tokenizer = self.study.teacher_tokenizers[own] if own else self.study.tokenizer
        source, size = self.path(paths.CORPUS), self.corpus_bytes
        if isinstance(tokenizer, TeacherTokenizer):
            source, size = self.path(paths.TEACHER_MODEL, teacher=tokenizer.teacher), 0
        return Job(
            "make_own_tokenizer" if own else "make_tokenizer",
            self._text_of(own)[1],
            (source,),
            work=(Work("text", size, 0),),
            host_mb=host_mb(self, "make_tokenizer"),
            disk_bytes=40 * self.vocab_of(own),
        )

    def _pack(self, own: str = "") -> Job:
        """The job of the text in tokens; own: as in `_tokenizer`."""
        tokens = self.corpus_bytes / self.bytes_per_token
        if own:
            tokens *= self.teacher_tokens(self.study.teacher_tokenizers[own].names()[0])
        width = 2 if self.vocab_of(own) <= 2**16 else 4
        output, tokenizer = self._text_of(own)
        return Job(
            "pack_own_tokens" if own else "pack_tokens",
            output,
            (self.path(paths.CORPUS), tokenizer),
            work=(Work("text", self.corpus_bytes, 0),),
            host_mb=host_mb(self, "pack_tokens"),
            disk_bytes=round(width * tokens),
        )

    def _teacher(self, name: str, level: str) -> Job:
        teacher = self.study.models[name]
        output = self.teacher_path(paths.TEACHER_MODEL, name, level)
        model = self.architecture(name).whole()
        if isinstance(teacher, PretrainedTeacher):
            settings = self.study.pretrain_stage(name)
            tokens = settings.tokens // settings.batch_tokens * settings.batch_tokens
            flops = (
                training_passes(settings) * model.forward_flops(settings.sequence_length) * tokens
            )
            held = self.training_memory(model, settings, alone=self.on_gpu)
            return Job(
                "pretrain_teacher",
                output,
                self._text_of(self.study.teacher_tokenizer(name)),
                work=(
                    Work("pretrain", tokens, flops, through=self._training(settings, model)),
                    self._validation(model, settings),
                ),
                device=self.training_memory(model, settings),
                processes=self.study.plan.processes,
                precision=settings.precision,
                host_mb=host_mb(self, "pretrain_teacher", held),
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
            host_mb=host_mb(self, "fetch_teacher", Memory(weights=2 * FLOAT * model.params)),
            disk_bytes=each * model.params,
            download_bytes=each * architecture(shape).whole().params if on_hub else 0,
        )

    def _held_out(self, teacher: str = "") -> tuple[str, int]:
        """Token stream of the held-out splits, and their tokens, as students or a teacher read them."""
        tokens = round(self.held_out_tokens() * self.teacher_tokens(teacher))
        return self._text_of(self.study.teacher_tokenizer(teacher))[0], tokens

    def evaluation(
        self, rule: str, output: str, source: str, model: Model, text: tuple[str, int]
    ) -> Job:
        """Evaluation of a model on a text: its token stream and tokens."""
        settings, (stream, tokens) = self.study.evaluate, text
        held, through = self.evaluation_memory(model, settings), passes.measured(model, settings)
        flops = tokens * model.forward_flops(settings.sequence_length)
        return Job(
            rule,
            output,
            (source, stream),
            work=(Work("evaluate", tokens, flops, through=through),),
            device=held,
            processes=self.study.plan.processes_per_node,
            precision=settings.precision,
            host_mb=host_mb(self, rule, held),
            read_bytes=self.read_bytes(model, tokens, settings.precision),
        )

    def _evaluate_teacher(self, name: str, level: str) -> Job:
        return self.evaluation(
            "evaluate_teacher",
            self.teacher_path(paths.TEACHER_METRICS, name, level),
            self.teacher_path(paths.TEACHER_MODEL, name, level),
            self.architecture(name).whole(),
            self._held_out(name),
        )

    def _score(self, name: str, level: str) -> Job:
        return self._scoring(
            "score_importance",
            self.path(paths.TEACHER_IMPORTANCE, teacher=name, replica=level),
            self.teacher_path(paths.TEACHER_MODEL, name, level),
            self.architecture(name).whole(),
        )

    def _targets(self, name: str, level: str) -> Job:
        settings, model = self.study.distill.targets_stage(), self.architecture(name).whole()
        tokens = settings.unique_tokens
        flops = tokens * model.forward_flops(settings.sequence_length)
        through, held = passes.measured(model, settings), self.evaluation_memory(model, settings)
        return Job(
            "cache_teacher",
            self.teacher_path(paths.TEACHER_TARGETS, name, level),
            (self.teacher_path(paths.TEACHER_MODEL, name, level), self.path(paths.TOKENS)),
            work=(Work("targets", tokens, flops, through=through),),
            device=held,
            processes=self.study.plan.processes_per_node,
            precision=settings.precision,
            read_bytes=self.read_bytes(model, tokens, settings.precision),
            host_mb=host_mb(self, "cache_teacher", held),
            disk_bytes=tokens * settings.bytes_per_token(self.vocab),
        )

    def _harness(self, teacher: str, level: str) -> Job:
        """A teacher on the tasks; without a name the final student."""
        rule = "harness_teacher" if teacher else "harness_final"
        source = paths.TEACHER_MODEL if teacher else paths.FINAL  # made together with its model
        source = self.path(source, teacher=teacher, replica=level)
        output = paths.harness(self.study.study, teacher, level)
        model = self.harness_model(teacher)
        return task_job(self, rule, output, source, model, self.study.harness)

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
        held = self.sampling_memory(largest)
        needs = [self.path(paths.RUN_MODEL, **run._asdict()) for run in runs]
        needs += [self.path(paths.TEACHER_MODEL, teacher=n, replica=level) for n, level in chosen]
        return Job(
            "sample_final",
            self.path(paths.SAMPLES),
            (*needs, self.path(paths.CORPUS), self.path(paths.TOKENS)),
            work=tuple(
                Work("evaluate", tokens, tokens * model.forward_flops(length)) for model in models
            ),
            device=held,
            precision=settings.precision,
            read_bytes=self.read_bytes(
                self.harness_model(largest), tokens, settings.precision, passes=settings.new_tokens
            ),
            host_mb=host_mb(self, "sample_final", held),
        )

    def _trunk_tokens(self, run: run_grid.Run) -> int:
        """Tokens of a run's stable phase, from which larger budgets continue; 0 unless wsd."""
        return plan_run(self.study.distill, parse_count(run.tokens)).trunk_tokens

    def _run(self, run: run_grid.Run, after: tuple[str, ...] = ()) -> list[Job]:
        """Training and evaluation of a run, which also wait for the outputs in `after`."""
        names, settings = run._asdict(), self.study.distill
        model = self.student(run.student, run.init)
        tokens = parse_count(run.tokens) // settings.batch_tokens * settings.batch_tokens
        shorter = run_grid.next_smaller(run, self.budgets) if settings.schedule == "wsd" else None
        needs = [self.path(paths.INIT_MODEL, **names), self.path(paths.TOKENS), *after]
        if shorter:
            needs.append(self.path(paths.RUN_MODEL, **shorter._asdict()))
            tokens -= self._trunk_tokens(shorter)
        output = self.path(paths.RUN_MODEL, **names)
        trained = self._distilling("distill_student", output, needs, run, model, tokens)
        if self._trunk_tokens(run):  # is kept with both moments
            kept = trained.disk_bytes + 3 * FLOAT * model.params
            trained = replace(trained, disk_bytes=kept)
        output = self.path(paths.RUN_METRICS, **names)
        text = self._held_out()
        return [trained, self.evaluation("evaluate_student", output, trained.output, model, text)]


def _inits(runs: list[run_grid.Run]) -> list[tuple[str, str, str]]:
    """The inits of runs, once each: (student, init, replica's level)."""
    return list(dict.fromkeys((run.student, run.init, run.replica) for run in runs))
