"""
Measure a model on tasks of lm-evaluation-harness.

Needs lm-eval (`make lm-eval`), and a network or a cache for the data of the tasks.

    capgap harness --model FOLDER --tasks gsm8k=8,lambada_openai=0 --out harness.json

IN   model folder with its tokenizer
OUT  harness.json: every metric of every task and group, with its standard error
"""

from __future__ import annotations

import difflib
import math
import os
from pathlib import Path
from typing import Any

import torch

from capgap.command_parser import by_hand
from capgap.config import HarnessStage
from capgap.data.packages import check_lm_eval
from capgap.data.places import named_place
from capgap.engine.models import load_model, load_tokenizer, read_lineage
from capgap.errors import CapgapError
from capgap.records.artifacts import open_folder, write_text
from capgap.records.run_records import HarnessRecord, HarnessScore
from capgap.reporting.report_text import harness_rows
from capgap.stages.base import StageParser, out_file, run_stage

RESAMPLES = 1000  # for standard errors that have no formula


def run(settings: HarnessStage, model_folder: Path) -> HarnessRecord:
    """All metrics of a model on the tasks.

    Raises CapgapError for an unknown task, for data that cannot be read, and for tasks that run
    generated code without permission.
    """
    check_lm_eval()
    folder = open_folder(model_folder)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if settings.run_generated_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder_of_tasks = settings.task_folder and named_place(settings.task_folder, "task_folder")
    manager = TaskManager(include_path=folder_of_tasks and str(folder_of_tasks))
    for name in settings.shots():
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"; near it are {', '.join(close)}" if close else ""
            raise CapgapError(
                f"harness.tasks: lm-eval {lm_eval.__version__} has no task {name}{hint}"
            )
    model = load_model(folder)
    lineage = read_lineage(folder, model)
    if torch.cuda.is_available():
        model.to("cuda")
    evaluator = HFLM(
        pretrained=model, tokenizer=load_tokenizer(folder), batch_size=settings.batch_size
    )
    scores = []
    for shots in sorted(set(settings.shots().values())):
        names = [name for name, number in settings.shots().items() if number == shots]
        scores += _scores(_evaluate(lm_eval, evaluator, manager, names, shots, settings), shots)
    return HarnessRecord(
        lineage=lineage,
        lm_eval_version=lm_eval.__version__,
        tasks=settings.shots(),
        limit=settings.limit,
        scores=sorted(scores, key=lambda score: (score.task, score.metric, score.filter)),
    )


def _evaluate(lm_eval, evaluator, manager, names: list[str], shots: int, settings) -> dict:
    """lm-eval's results for the tasks called `names`."""
    try:
        return lm_eval.simple_evaluate(
            evaluator,
            tasks=names,
            num_fewshot=shots,
            limit=settings.limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
            task_manager=manager,
            confirm_run_unsafe_code=settings.run_generated_code,
        )
    except OSError as error:  # also what datasets raises without a network
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CapgapError(
            f"harness: the data of {', '.join(names)} cannot be read ({first}); run once on a machine "
            "with a network, which fills the cache of the hub, or take other tasks"
        ) from None
    except ValueError as error:
        if "unsafe" not in str(error):
            raise
        raise CapgapError(
            f"harness.run_generated_code: a task among {', '.join(names)} runs code that the model "
            "writes; set it to true on an isolated machine, or take other tasks"
        ) from None


def _scores(results: dict[str, Any], shots: int) -> list[HarnessScore]:
    """Every metric of every task and group in what lm-eval returned."""
    found = []
    for task, values in results["results"].items():
        better = results.get("higher_is_better", {}).get(task, {})
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr"):
                continue
            error = _number(values.get(f"{metric}_stderr,{filter_name}"))
            found.append(
                HarnessScore(
                    task=task,
                    shots=results.get("n-shot", {}).get(task, shots),
                    task_version=_text(results.get("versions", {}).get(task)),
                    documents=results.get("n-samples", {}).get(task, {}).get("effective"),
                    metric=metric,
                    filter=filter_name,
                    value=_number(value),
                    standard_error=error,
                    higher_is_better=better.get(metric),
                )
            )
    return found


def _number(value) -> float | None:
    """A finite number; None for other values, like the missing standard error of a group."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _text(value) -> str | None:
    return None if value is None else str(value)


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.harness", __doc__, HarnessStage)
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--out", required=True, type=out_file, help="harness.json to write")
    args, settings = parser.parse(argv)
    record = run(settings, args.model)
    write_text(args.out, record.to_json())
    if not args.spec:
        print_scores(record)


@by_hand
def print_scores(record: HarnessRecord) -> None:
    """A line for each score of the requested tasks."""
    for row in harness_rows([record]):
        print(f"{row.task}: {row.metric} {row.values[0]}")


if __name__ == "__main__":
    run_stage(main)
