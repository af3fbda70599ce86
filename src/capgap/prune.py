"""
Cut a teacher down to a student's start.

The least important groups, neurons and hidden channels go, the same number in every layer; depth
and head dimension stay. The size is the number of parameters without embeddings and output head.

IN   model folder, its importance folder (capgap score)
OUT  model folder that AutoModelForCausalLM loads, with the teacher's tokenizer
"""

from __future__ import annotations

from pathlib import Path

from capgap.artifacts import open_folder, publish_folder
from capgap.config import format_count
from capgap.design import pruned_from
from capgap.engine.models import count_params, load_model, read_lineage, save_model
from capgap.pruning.importance import most_important
from capgap.pruning.solver import Sizes, Solution, solve
from capgap.pruning.store import read_importance
from capgap.pruning.surgery import cut, sizes_of
from capgap.records import Lineage
from capgap.stage import StageParser, count_argument, run_stage


def run(
    model_folder: Path,
    importance_folder: Path,
    params: int,
    out: Path,
    *,
    name: str | None = None,
    init: str | None = None,
) -> tuple[Sizes, Solution]:
    """Prune a model to `params` parameters without embeddings and publish it.

    name: of the student size, by default written from `params`. init: name of the start, by default
    pruned-<name of the model>. Returns the sizes of the model and what was kept of them.
    """
    folder = open_folder(model_folder)
    model = load_model(folder)
    importance = read_importance(importance_folder, folder)
    teacher = read_lineage(folder, model).name
    sizes = sizes_of(model)
    solution = solve(sizes, params)
    student = cut(model, most_important(importance, solution.widths))
    lineage = Lineage(
        kind="init",
        name=name or format_count(params),
        init=init or pruned_from(teacher),
        params=count_params(student),
    )
    assert lineage.params.non_embedding == solution.params_non_embedding, (lineage, solution)
    with publish_folder(out) as temporary:
        save_model(student, temporary, lineage, tokenizer=folder)
    return sizes, solution


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.prune", __doc__)
    parser.add_argument("--model", required=True, type=Path, help="the teacher's model folder")
    parser.add_argument(
        "--importance", required=True, type=Path, help="folder that capgap score wrote for it"
    )
    parser.add_argument(
        "--params",
        required=True,
        type=count_argument,
        help="parameters without embeddings and output head to keep, like 60k",
    )
    parser.add_argument("--name", help="name of the student size (default: --params)")
    parser.add_argument("--init", help="name of the start (default: pruned-<teacher>)")
    parser.add_argument("--out", required=True, type=Path, help="model folder to write")
    args, _ = parser.parse(argv)
    sizes, solution = run(
        args.model, args.importance, args.params, args.out, name=args.name, init=args.init
    )
    print(solution.describe(sizes))


if __name__ == "__main__":
    run_stage(main)
