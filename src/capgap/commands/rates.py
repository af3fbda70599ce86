"""
CPU seconds per token on this machine, by kind of work, measured in the engine's own loops on random
models of the study's smallest and largest shapes.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch

from capgap.config import PretrainedTeacher, Training, run_grid
from capgap.config.shapes import LlamaShape
from capgap.cost.architectures import Model
from capgap.cost.job_costs import StudyCost
from capgap.data.token_streams import Streams, calibration_batch
from capgap.engine import training
from capgap.engine.counting import count_params
from capgap.engine.evaluation import mean_loss
from capgap.engine.forward import hold_frozen, model_output, output_form
from capgap.engine.models import llama_config, new_model, save_model
from capgap.engine.objectives import Distillation, data_objective
from capgap.engine.resuming import RunPaths
from capgap.engine.run_plan import plan_run
from capgap.engine.teacher_targets import TargetStore, reduce_to_targets
from capgap.pruning.importance import measure
from capgap.records.artifacts import publish_folder
from capgap.records.run_records import Lineage
from capgap.stages import cache_teacher

LARGEST_PARAMS = 50_000_000  # of a measured model; larger ones go by the matmul rate
SECONDS_PER_POINT = 1.2

# FLOPs per token, CPU seconds per token
Rate = tuple[float, float]


def random_model(model: Model):
    """A random Llama of these sizes; an architecture of another family costs about the same."""
    shape = LlamaShape(
        layers=model.layers,
        hidden=model.hidden,
        heads=model.heads,
        kv_heads=model.key_value // model.head_dim,
        head_dim=model.head_dim,
        intermediate=model.neurons,
        vocab=model.vocab,
        tied=True,
    )
    return new_model(llama_config(shape, max_positions=4096, bos_id=0, eos_id=0), 0)


class Rates:
    """Measures the work of a study on random streams; scratch: folder for temporary files."""

    def __init__(self, cost: StudyCost, streams: Path, scratch: Path):
        self.cost, self.study = cost, cost.study
        self.streams, self.scratch = Streams(streams), scratch

    def _extremes(self, pairs: list[tuple[Model, Model | None]]) -> list[tuple]:
        """The pairs with the fewest and the most FLOPs per token, of those that are small enough."""

        def flops(pair):
            student, teacher = pair
            return 3 * student.forward_flops(128) + (teacher.forward_flops(128) if teacher else 0)

        small = [p for p in pairs if all(m is None or m.params <= LARGEST_PARAMS for m in p)]
        return list(dict.fromkeys([min(small, key=flops), max(small, key=flops)])) if small else []

    def measured(self) -> dict[str, list[Rate]]:
        """Rates of the smallest and the largest models by kind of work."""
        study, cost = self.study, self.cost
        runs = [
            *run_grid.runs_of(study),
            *run_grid.final_runs(study, cost.final_teachers()),
        ]
        students = {
            (cost.student(run.student, run.init), None if run.teacher == run_grid.NONE
             else cost.architecture(run.teacher).whole())
            for run in runs
        }  # fmt: skip
        teachers = {name: cost.architecture(name).whole() for name in study.models}
        trained = [
            (teachers[name], None)
            for name, teacher in study.models.items()
            if isinstance(teacher, PretrainedTeacher)
        ]
        taught = sorted({(teacher, None) for _, teacher in students if teacher}, key=repr)
        every = sorted({(m, None) for pair in students for m in pair if m} | set(trained), key=repr)
        ordered = sorted(students, key=repr)
        found = {
            "pretrain": [self._training(*p, study.pretrain) for p in self._extremes(trained)],
            "train": [
                self._training(*p, study.distill)
                for p in self._extremes([(m, t) for m, t in ordered if t is None])
            ],
            "distill": [
                self._training(*p, study.distill)
                for p in self._extremes([(m, t) for m, t in ordered if t])
            ],
            "targets": [
                self._targets(m) for m, _ in self._extremes(taught if cost.caches_targets else [])
            ],
            "evaluate": [self._evaluation(m) for m, _ in self._extremes(every)],
            "score": [
                self._scoring(m) for m, _ in self._extremes([(m, None) for m in teachers.values()])
            ],
        }
        return {kind: sorted(points) for kind, points in found.items() if points}

    def _training(self, student: Model, teacher: Model | None, settings: Training) -> Rate:
        model = random_model(student)
        objective = partial(data_objective, precision=settings.precision)
        context = settings.sequence_length
        flops = 3 * student.forward_flops(context)
        if teacher and self.cost.caches_targets:
            objective = Distillation(self._kept(teacher), settings)
        elif teacher:
            objective = Distillation(random_model(teacher).eval(), settings)
            flops += teacher.forward_flops(context)
        short = of_few_steps(settings).model_copy(update={"validation_tokens": 2 * context})

        def steps(count: int) -> None:
            training.train(
                model, self.streams, plan_run(short, count * settings.batch_tokens), objective,
                scratch=self.scratch / "no-state", checkpoint_seconds=1e9, say=lambda _: None,
            )  # fmt: skip

        return flops, _seconds_each(steps) / settings.batch_tokens

    def _kept(self, teacher: Model) -> TargetStore:
        """Cached targets of a random teacher."""
        out, model = self.scratch / "targets" / repr(teacher), random_model(teacher)
        if not out.exists():
            with publish_folder(out / "model") as folder:
                lineage = Lineage(kind="teacher", name="random", params=count_params(model))
                save_model(model, folder, lineage, tokenizer=folder)
            run_paths = RunPaths(out / "targets", out / "state", 1e9)
            with redirect_stdout(io.StringIO()):
                settings = self.study.distill.targets_stage()
                cache_teacher.run(settings, out / "model", self.streams.folder, run_paths)
        return TargetStore(out / "targets")

    def _targets(self, model: Model) -> Rate:
        settings, built = self.study.distill.targets_stage(), random_model(model).eval()
        output_form(built)  # probed while all its weights have one type
        hold_frozen(built, settings.precision)
        length, stream = settings.sequence_length, self.streams["train"]
        rows = max(1, min(settings.batch_tokens, settings.unique_tokens) // length)
        inputs, _ = calibration_batch(stream, sequence_length=length, count=rows, seed=0)
        draws = torch.rand(inputs.numel(), dtype=torch.float64)

        @torch.no_grad()
        def passes(count: int) -> None:
            for _ in range(count):
                output = model_output(built, inputs, precision=settings.precision)
                reduce_to_targets(output, draws, settings)

        return model.forward_flops(length), _seconds_each(passes) / inputs.numel()

    def _evaluation(self, model: Model) -> Rate:
        settings, built = self.study.evaluate, random_model(model).eval()
        stream = self.streams["test"][: settings.batch_tokens + 1]

        def passes(count: int) -> None:
            for _ in range(count):
                mean_loss(
                    built, stream, sequence_length=settings.sequence_length,
                    batch_tokens=settings.batch_tokens, split="test",
                )  # fmt: skip

        return model.forward_flops(settings.sequence_length), _seconds_each(passes) / len(stream)

    def _scoring(self, model: Model) -> Rate:
        settings, built = self.study.prune, random_model(model)
        stream = self.streams["train"]
        rows = max(1, 1024 // settings.sequence_length)
        inputs, labels = calibration_batch(
            stream, sequence_length=settings.sequence_length, count=rows, seed=0
        )

        def passes(count: int) -> None:
            for _ in range(count):
                measure(built, inputs, labels, settings.criterion)

        flops = 3 * model.forward_flops(settings.sequence_length)
        return flops, _seconds_each(passes) / inputs.numel()


def of_few_steps(settings: Training) -> Training:
    """The settings for a run that is too short for the warm-up and the fall of its schedule."""
    constant = {"schedule": "constant", "warmup_tokens": None, "warmup_share": 0.0}
    return settings.model_copy(update={"validations": 1, **constant})


def _seconds_each(repeat: Callable[[int], None]) -> float:
    """CPU seconds of one repetition: the difference between a long run and a short one."""
    repeat(2)
    begun = time.process_time()
    repeat(2)
    few = time.process_time() - begun
    more = max(2, round(SECONDS_PER_POINT / max(few / 2, 1e-4)))
    begun = time.process_time()
    repeat(2 + more)
    return max(1e-9, time.process_time() - begun - few) / more
