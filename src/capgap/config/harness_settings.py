"""Settings of lm-evaluation-harness, on whose tasks finished models may be measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from capgap.config.section import Count, Section

PLAIN = {"lambada_openai": 0, "wikitext": 0}
NO_CODE = PLAIN | {"mmlu": 5, "ceval-valid": 5, "drop": 3, "bbh": 3, "gsm8k": 8}
# by name of the preset: few-shot examples by name of the task
PRESETS = {"minima": NO_CODE | {"humaneval": 0}, "minima-no-code": NO_CODE, "plain": PLAIN}
RUN_CODE = ("humaneval", "mbpp")  # prefixes of the names of tasks that run generated code


def task_of(metric: str) -> str:
    """The task of a metric of the law: 'arc_easy' of 'arc_easy/acc_norm'."""
    return metric.split("/")[0]


def _parse_tasks(value):
    """Parse tasks on a command line, like mmlu=5,lambada_openai=0."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    return dict(part.split("=", 1) if "=" in part else (part, 0) for part in parts)


Shots = Annotated[int, Field(ge=0)]


class HarnessStage(Section):
    """The tasks on which a model is measured."""

    preset: Literal["minima", "minima-no-code", "plain"] | None = Field(
        None,
        description="a named table of tasks: minima (that of arXiv 2311.07052: MMLU 5-shot, C-Eval "
        "5, DROP 3, HumanEval 0, BBH 3, GSM8K 8; and LAMBADA, WikiText), minima-no-code (without "
        "HumanEval), plain (LAMBADA, WikiText: for models too small for the others)",
    )
    tasks: Annotated[dict[str, Shots], BeforeValidator(_parse_tasks)] = Field(
        default_factory=dict,
        description="more tasks or groups of lm-evaluation-harness, each with its number of few-shot "
        "examples; over those of the preset",
    )
    task_folder: str | None = Field(
        None, description="folder with YAML files of tasks of your own; data files beside them"
    )
    run_task_code: bool = Field(
        False,
        description="consent to run the code in task_folder: lm-evaluation-harness runs Python that a "
        "task names, and its templates can do all that Python can",
    )
    limit: Count | None = Field(
        None, gt=0, description="documents of a task at most; all if not set"
    )
    batch_size: int = Field(8, gt=0, description="sequences per forward pass")
    run_generated_code: bool = Field(
        False,
        description="consent to run code that models write, and the scorer that the evaluate library "
        "downloads for it; humaneval and mbpp need it, on a machine that they cannot harm",
    )

    @model_validator(mode="after")
    def _has_tasks(self):
        shots = self.shots()
        if not shots:
            raise ValueError("no task is named; set preset or tasks")
        unsafe = [name for name in shots if name.startswith(RUN_CODE)]
        if unsafe and not self.run_generated_code:
            raise ValueError(
                f"{', '.join(unsafe)} runs code that the model writes; set run_generated_code to true "
                "where nothing can be harmed, or take other tasks"
            )
        if self.task_folder and not self.run_task_code:
            raise ValueError(
                f"task_folder {self.task_folder}: tasks of a folder can run code; read them, then set "
                "run_task_code to true, or leave the folder out"
            )
        return self

    def shots(self) -> dict[str, int]:
        """Few-shot examples of every task, by name."""
        return dict(sorted((PRESETS.get(self.preset, {}) | self.tasks).items()))


class Harness(HarnessStage):
    """Tasks on which models are measured besides held-out text; they change no other result."""

    teachers: list[str] | None = Field(
        None, description="names of the teachers to measure; all if not set"
    )
    final: bool = Field(True, description="whether the final student is measured")

    def measured(self, teachers: Iterable[str]) -> list[str]:
        """Names of the models to measure, of all teachers; '' is the final student."""
        named = list(teachers) if self.teachers is None else self.teachers
        return [*named, ""] if self.final else [*named]

    def stage(self) -> HarnessStage:
        """The settings that decide the results of one model."""
        return HarnessStage(**{key: getattr(self, key) for key in HarnessStage.model_fields})
