"""What the inits of a study cost, and the training and scoring between two cuts."""

from __future__ import annotations

from dataclasses import replace

from capgap.config import Training, run_grid
from capgap.cost import device_memory, passes
from capgap.cost.architectures import Model
from capgap.cost.device_memory import FLOAT, Memory
from capgap.cost.host_memory import host_mb
from capgap.cost.one_job import Job, Work
from capgap.cost.roofline import Pass
from capgap.cost.study_sizes import StudySizes
from capgap.records import paths

CHECKPOINTS = 3  # two are kept while a third is written


class InitCosts(StudySizes):
    """The jobs that make inits, and what other jobs share with them."""

    def teacher_path(self, path: str, name: str, level: str, **values: str) -> str:
        """A path of the teacher that the runs of a replica use."""
        level = run_grid.teacher_level(self.study, name, level)
        return self.path(path, teacher=name, replica=level, **values)

    def _validation(self, model: Model, settings: Training) -> Work:
        tokens = (settings.validations + 1) * settings.validation_tokens
        through = passes.measured(model, settings, settings.micro_batch_tokens)
        flops = tokens * model.forward_flops(settings.sequence_length)
        return Work("evaluate", tokens, flops, through=through)

    def _training(self, settings: Training, model: Model, teacher: Model | None = None) -> Pass:
        return passes.trained(settings, model, teacher, self.study.plan.processes)

    def _start(self, student: str, init: str, level: str) -> Job:
        """The job that makes an init."""
        if run_grid.init_kind(init) == "pruned":
            return self._cut(student, init, level, self.study.prune.rounds)
        model = self.student(student, init)
        if init == run_grid.RANDOM:
            rule, teacher = "random_init_student", self.shape_teacher[student]
            held = device_memory.cutting(self.architecture(teacher).whole(), model)
            own = self.study.teacher_tokenizer(teacher)
            others = (self.path(paths.TOKENIZER),) if own else ()
        else:
            rule, teacher = "given_student", init.removeprefix(run_grid.GIVEN)
            held = Memory(weights=2 * FLOAT * model.params)
            others = (self.path(paths.TOKENIZER),)
        return Job(
            rule,
            self.path(paths.INIT_MODEL, student=student, init=init, replica=level),
            (self.teacher_path(paths.TEACHER_MODEL, teacher, level), *others),
            host_mb=host_mb(self, rule, held),
            disk_bytes=FLOAT * model.params,
        )

    def _cut(self, student: str, init: str, level: str, number: int) -> Job:
        """The job of one cut of a pruned init, from its teacher or from the round before."""
        prune, names = self.study.prune, {"student": student, "init": init, "replica": level}
        teacher, lends = init.removeprefix(run_grid.pruned_from("")), self.shape_teacher[student]
        whole, cut = self.cuts(student, init)[number - 1 : number + 1]
        own = self.teacher_path(paths.TEACHER_MODEL, teacher, level)
        needs = [own, self.path(paths.TEACHER_IMPORTANCE, teacher=teacher, replica=level)]
        if number > 1:
            before = names | {"number": number - 1}
            needs = [self.path(paths.ROUND_MODEL, **before), own]
            needs.append(self.path(paths.ROUND_IMPORTANCE, **before))
        if prune.one_shape and lends != teacher:
            needs.append(self.teacher_path(paths.TEACHER_MODEL, lends, level))
        last, held = number == prune.rounds, device_memory.cutting(whole, cut)
        refit = self.refit_memory(cut, whole) if prune.refit != "none" else None
        rule = "prune_student" if last else "cut_round"
        path = paths.INIT_MODEL if last else paths.ROUND_CUT
        if refit:
            needs.append(self.path(paths.TOKENS))
            held = max(held, refit, key=lambda memory: memory.total)
        return Job(
            rule,
            self.path(path, number=number, **names),
            tuple(needs),
            work=(self._refit(cut, whole),) if refit else (),
            device=refit,
            host_mb=host_mb(self, rule, held),
            disk_bytes=FLOAT * cut.params,
            scratch_bytes=self._refit_scratch(cut, whole) if refit else 0,
        )

    def _round(self, place: run_grid.Round) -> list[Job]:
        """A cut that is not the last, the training after it and the scores for the next cut."""
        names, settings = place._asdict(), self.study.distill
        teacher = place.init.removeprefix(run_grid.pruned_from(""))
        model = self.cuts(place.student, place.init)[place.number]
        tokens = self.study.prune.round_tokens // settings.batch_tokens * settings.batch_tokens
        needs = [self.path(paths.ROUND_CUT, **names), self.path(paths.TOKENS)]
        output = self.path(paths.ROUND_MODEL, **names)
        run = run_grid.Run(place.student, place.init, teacher, "", 0, place.replica)
        trained = self._distilling("distill_round", output, needs, run, model, tokens)
        cut = self._cut(place.student, place.init, place.replica, place.number)
        output = self.path(paths.ROUND_IMPORTANCE, **names)
        return [cut, trained, self._scoring("score_round", output, trained.output, model)]

    def _distilling(
        self, rule: str, output: str, needs: list[str], run: run_grid.Run, model: Model, tokens: int
    ) -> Job:
        """The training of a student on some tokens, by a run's teacher or by the text alone.

        needs: outputs besides those of the teacher.
        """
        settings, length = self.study.distill, self.study.distill.sequence_length
        foreign = self.study.teacher_tokenizer(run.teacher)
        kind, of_teacher, online = "train", 0, None
        if run.teacher != run_grid.NONE:
            kind = "distill"
            needs = [*needs, self.teacher_path(paths.TEACHER_MODEL, run.teacher, run.replica)]
            if self.caches_targets:
                needs.append(self.teacher_path(paths.TEACHER_TARGETS, run.teacher, run.replica))
            else:
                online = self.architecture(run.teacher).whole()
                forward = online.forward_flops(length)
                of_teacher = round(self.teacher_tokens(run.teacher) * forward)
            if foreign:
                needs.append(self._text_of(foreign)[0])
        own = training_passes(settings) * model.forward_flops(length)
        work = Work(
            kind,
            tokens,
            tokens * (own + of_teacher),
            tokens * of_teacher,
            # the roofline has no teacher that reads other tokens; its FLOPs are counted above
            through=None if foreign else self._training(settings, model, online),
        )
        held = self.distill_memory(model, run.teacher, alone=self.on_gpu)
        if self.on_gpu and held.teacher:  # in its file, all weights are float32
            whole = self.architecture(run.teacher).whole()
            held = replace(held, teacher=FLOAT * whole.params)
        return Job(
            rule,
            output,
            tuple(needs),
            work=(work, self._validation(model, settings)),
            device=self.distill_memory(model, run.teacher),
            processes=self.study.plan.processes,
            precision=settings.precision,
            teacher_precision=settings.precision_of_teacher,
            host_mb=host_mb(self, rule, held),
            disk_bytes=FLOAT * model.params,
            scratch_bytes=CHECKPOINTS * 3 * FLOAT * model.params,
        )

    def _text_of(self, own: str) -> tuple[str, str]:
        """Paths of the tokens of a tokenizer of teacher_tokenizers, '' for the students', and of itself."""
        if own:
            names = {"tokenizer": own}
            return self.path(paths.OWN_TOKENS, **names), self.path(paths.OWN_TOKENIZER, **names)
        return self.path(paths.TOKENS), self.path(paths.TOKENIZER)

    def _scoring(self, rule: str, output: str, source: str, model: Model) -> Job:
        settings, held = self.study.prune, self.scoring_memory(model)
        tokens = settings.calibration_sequences * settings.sequence_length
        flops = 3 * tokens * model.forward_flops(settings.sequence_length)
        through = passes.scored(model, settings, device_memory.SCORE_TOKENS)
        units = model.layers * (model.neurons + model.key_value) + model.hidden
        return Job(
            rule,
            output,
            (source, self.path(paths.TOKENS)),
            work=(Work("score", tokens, flops, through=through),),
            device=held,
            processes=self.study.plan.processes_per_node,
            precision=settings.precision,
            host_mb=host_mb(self, rule, held),
            read_bytes=self.read_bytes(model, tokens, settings.precision, passes=2),
            disk_bytes=FLOAT * units,
        )

    def _refit_scratch(self, student: Model, teacher: Model) -> int:
        """Bytes of the residual streams of all calibration tokens, twice for each model."""
        tokens = self.study.prune.calibration_sequences * self.study.prune.sequence_length
        return 2 * FLOAT * tokens * (teacher.hidden + student.hidden)

    def _refit(self, student: Model, teacher: Model) -> Work:
        """Forward passes, second moments in float64 (twice as slow) and solutions of linear systems."""
        length = self.study.prune.sequence_length
        tokens = self.study.prune.calibration_sequences * length
        forward = 2.5 * teacher.forward_flops(length) + 2.5 * student.forward_flops(length)
        d, wide = student.hidden, teacher.hidden
        pairs = [(d, wide), (d, wide), (student.attention, d), (student.neurons, d)]
        sums = 2 * student.layers * sum(2 * i * (i + o) for i, o in pairs)
        solved = 2 * student.layers * sum(8 * (i**3 // 3 + 4 * i * i * o) for i, o in pairs)
        return Work("score", tokens, round(tokens * (forward + sums) + solved))


def training_passes(settings: Training) -> int:
    """Cost of a training step in forward passes; with activation checkpointing one is repeated."""
    return 4 if settings.activation_checkpointing else 3
