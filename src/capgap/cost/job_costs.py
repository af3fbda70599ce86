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
from capgap.cost import device_memory, own_tokenizers, passes
from capgap.cost.architectures import Model, architecture
from capgap.cost.device_memory import FLOAT, Memory
from capgap.cost.host_memory import host_mb
from capgap.cost.init_costs import CHECKPOINTS, InitCosts, training_passes
from capgap.cost.metric_jobs import metric_jobs, student_tasks, task_tokens, text_job
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
            case "make_tokenizer":
                return self._tokenizer()
            case "pack_tokens":
                return self._pack()
            case "make_own_tokenizer" | "pack_own_tokens":
                return next(j for j in self._own_tokenizer(at["tokenizer"]) if j.rule == rule)
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
        for name in study.teacher_tokenizers:
            jobs += self._own_tokenizer(name)
            self.notes.append(own_tokenizers.note(self, name))
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

    def _own_tokenizer(self, name: str) -> list[Job]:
        return own_tokenizers.jobs(self, name, self._tokenizer(), self._pack())

    def _text_of(self, teacher: str) -> tuple[str, str]:
        """Paths of the tokens that a teacher reads and of their tokenizer."""
        own = self.study.teacher_tokenizer(teacher)
        if own:
            wanted = (paths.OWN_TOKENS, paths.OWN_TOKENIZER)
            return tuple(self.path(path, tokenizer=own) for path in wanted)
        return self.path(paths.TOKENS), self.path(paths.TOKENIZER)

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
                self._text_of(name),
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

    def evaluation(
        self,
        rule: str,
        output: str,
        source: str,
        model: Model,
        *,
        teacher: str = "",
        text: tuple[str, int] | None = None,
    ) -> Job:
        """Evaluation of a model on the held-out splits, or on a text: its token stream and tokens.

        teacher: its name, if the model is one.
        """
        settings, held = self.study.evaluate, self.evaluation_memory(model, self.study.evaluate)
        tokens = round(self.held_out_tokens() * self.teacher_tokens(teacher))
        stream, _ = self._text_of(teacher)
        if text is not None:
            stream, tokens = text
        length = settings.sequence_length
        through = passes.measured(model, settings)
        return Job(
            rule,
            output,
            (source, stream),
            work=(Work("evaluate", tokens, tokens * model.forward_flops(length), through=through),),
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
            teacher=name,
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
        tokens, held = task_tokens(settings), device_memory.tasks(model, settings.batch_size)
        return Job(
            rule,
            paths.harness(self.study.study, teacher, level),
            (self.path(source, teacher=teacher, replica=level),),
            work=(
                Work("evaluate", tokens, tokens * model.forward_flops(device_memory.TASK_CONTEXT)),
            ),
            device=held,
            host_mb=host_mb(self, rule, held),
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
        flops = training_passes(settings) * model.forward_flops(settings.sequence_length)
        needs = [self.path(paths.INIT_MODEL, **names), self.path(paths.TOKENS), *after]
        kind, of_teacher, teacher = "train", 0, None
        if run.teacher != run_grid.NONE:
            kind = "distill"
            needs.append(self.teacher_path(paths.TEACHER_MODEL, run.teacher, run.replica))
            if self.caches_targets:
                needs.append(self.teacher_path(paths.TEACHER_TARGETS, run.teacher, run.replica))
            else:
                teacher = self.architecture(run.teacher).whole()
                of_teacher = round(
                    self.teacher_tokens(run.teacher)
                    * teacher.forward_flops(settings.sequence_length)
                )
                if self.study.teacher_tokenizer(run.teacher):
                    needs.append(self._text_of(run.teacher)[0])
        if shorter:
            needs.append(self.path(paths.RUN_MODEL, **shorter._asdict()))
            tokens -= self._trunk_tokens(shorter)
        state = 3 * FLOAT * model.params  # weights and both moments
        trained = Job(
            "distill_student",
            self.path(paths.RUN_MODEL, **names),
            tuple(needs),
            work=(
                Work(
                    kind,
                    tokens,
                    tokens * (flops + of_teacher),
                    tokens * of_teacher,
                    # the roofline has no teacher that reads other tokens; its FLOPs are counted above
                    through=None
                    if self.study.teacher_tokenizer(run.teacher)
                    else self._training(settings, model, teacher),
                ),
                self._validation(model, settings),
            ),
            device=self.distill_memory(model, run.teacher),
            processes=self.study.plan.processes,
            precision=settings.precision,
            teacher_precision=settings.precision_of_teacher,
            host_mb=self._distill_mb("distill_student", model, run.teacher),
            disk_bytes=FLOAT * model.params + (state if self._trunk_tokens(run) else 0),
            scratch_bytes=CHECKPOINTS * state,
        )
        output = self.path(paths.RUN_METRICS, **names)
        return [trained, self.evaluation("evaluate_student", output, trained.output, model)]


def _inits(runs: list[run_grid.Run]) -> list[tuple[str, str, str]]:
    """The inits of runs, once each: (student, init, replica's level)."""
    return list(dict.fromkeys((run.student, run.init, run.replica) for run in runs))
