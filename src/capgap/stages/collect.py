"""
Gather the finished runs of a study's grid into one table, and their learning curves into another.

IN   train.json, metrics.json and curve.csv of every run; metrics.json of every teacher, and curve.csv
     of those that were trained here; of both texts/<text>.json, and harness.json of the runs if the law
     is fitted on a task
OUT  runs.csv, one row for each run (columns: records.RunRow)
     curves.csv, one row for each measurement during training (columns: records.CurveRow)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from capgap.command_parser import by_hand
from capgap.config import CollectStage
from capgap.config.run_grid import NONE, Run, arm_of, collect_stage, grid_runs, replica_level
from capgap.errors import CapgapError
from capgap.law.table.task_scores import task_outcome
from capgap.records import paths
from capgap.records.artifacts import write_text
from capgap.records.reading import read_text
from capgap.records.run_records import (
    CurveRow,
    HarnessRecord,
    Metrics,
    Record,
    RunRow,
    TextLoss,
    TrainRecord,
)
from capgap.stages.base import StageParser, out_file, run_stage


def run(settings: CollectStage) -> list[RunRow]:
    """Rows of all runs, in the order of the run grid."""
    study = Path(settings.root).name
    teachers = {}
    for number in settings.grid.replica_numbers():
        for name in settings.teacher_sizes:
            level = replica_level(number) if name in settings.trained else ""
            path = paths.TEACHER_METRICS.format(study=study, teacher=name, replica=level)
            metrics = Metrics.read(path)
            teachers[name, metrics.lineage.seed] = metrics
    several = settings.grid.teacher_weights is not None
    rows = []
    for identity in _runs(settings):
        folder = Path(paths.RUN_DIR.format(study=study, **identity._asdict()))
        row = read_run(folder, teachers, several)
        outcomes = _outcomes(folder, settings) | _of_teacher(settings, study, identity)
        rows.append(row.model_copy(update={"outcomes": outcomes}))
    return rows


def _outcomes(folder: Path, settings: CollectStage) -> dict[str, float | None]:
    """Further outcomes of a run by header: bits per byte of texts, and scores of tasks."""
    found = {
        f"bits_per_byte:{text}": TextLoss.read(folder / f"texts/{text}.json").measured.bits_per_byte
        for text in settings.texts
    }
    if settings.tasks:
        record = HarnessRecord.read(folder / Path(paths.RUN_HARNESS).name)
        found |= dict(task_outcome(record, asked) for asked in settings.tasks)
    return found


def _of_teacher(settings: CollectStage, study: str, run: Run) -> dict[str, float | None]:
    """The same of its teacher, on texts; empty values without one."""
    found = {}
    for text in settings.texts:
        value = None
        if run.teacher != NONE:
            level = run.replica if run.teacher in settings.trained else ""
            path = paths.TEACHER_ON_TEXT.format(
                study=study, replica=level, teacher=run.teacher, text=text
            )
            value = TextLoss.read(path).measured.bits_per_byte
        found[f"teacher_bits_per_byte:{text}"] = value
    return found


def _runs(settings: CollectStage) -> list[Run]:
    return grid_runs(settings.grid, settings.teacher_sizes, settings.given, settings.teacher_weight)


def read_run(
    folder: Path, teachers: dict[tuple[str, int | None], Metrics], several_weights: bool = False
) -> RunRow:
    """Row of one run from its records; `teachers` are metrics by name and seed.

    several_weights: whether the runs differ in the weight of the teacher's term, so that it has a column.
    """
    trained = TrainRecord.read(folder / paths.TRAIN)
    metrics = Metrics.read(folder / paths.METRICS)
    lineage = trained.lineage
    assert lineage == metrics.lineage, f"{folder}: train.json and metrics.json differ in lineage"
    teacher = None if lineage.teacher == NONE else teachers[lineage.teacher, lineage.teacher_seed]
    # a teacher with another tokenizer: its tokens of the same text, for one of the student's
    each = 1 if teacher is None else teacher.validation.tokens / metrics.validation.tokens
    return RunRow(
        student=lineage.name,
        init=lineage.init,
        teacher=lineage.teacher,
        seed=lineage.seed,
        student_params_non_embedding=lineage.params.non_embedding,
        teacher_params_non_embedding=teacher and teacher.lineage.params.non_embedding,
        student_params_active=lineage.params.active,
        teacher_params_active=teacher and teacher.lineage.params.active,
        tokens=lineage.tokens,
        val_loss_nats_per_token=metrics.validation.loss_nats_per_token,
        arm=arm_of(lineage.init, lineage.teacher),
        student_params_total=lineage.params.total,
        teacher_params_total=teacher and teacher.lineage.params.total,
        student_forward_flops_per_token=metrics.forward_flops_per_token,
        teacher_forward_flops_per_token=teacher and each * teacher.forward_flops_per_token,
        teacher_seed=lineage.teacher_seed or 0,
        init_seed=lineage.init_seed or 0,
        teacher_val_loss_nats_per_token=teacher and each * teacher.validation.loss_nats_per_token,
        start_val_loss_nats_per_token=trained.start_val_loss_nats_per_token,
        test_loss_nats_per_token=metrics.test.loss_nats_per_token,
        test_bits_per_byte=metrics.test.bits_per_byte,
        train_flops=trained.train_flops,
        trunk_tokens=trained.trunk_tokens or None,
        teacher_weight=trained.teacher_weight if several_weights else None,
    )


def curves(settings: CollectStage) -> list[CurveRow]:
    """Learning curves of the teachers that were trained here, then of all runs, per token of the students."""
    study, rows = Path(settings.root).name, []
    runs = _runs(settings)
    first = {"study": study, **runs[0]._asdict()}
    students = Metrics.read(paths.RUN_METRICS.format(**first)).validation.tokens
    for number in settings.grid.replica_numbers():
        for name in settings.trained:
            names = {"study": study, "teacher": name, "replica": replica_level(number)}
            trained = TrainRecord.read(paths.TEACHER_TRAIN.format(**names))
            tokens = Metrics.read(paths.TEACHER_METRICS.format(**names)).validation.tokens
            learned = _curve(Path(paths.TEACHER_CURVE.format(**names)), trained, teacher=name)
            rows += [_per_token(row, tokens / students) for row in learned]
    for identity in runs:
        names = {"study": study, **identity._asdict()}
        trained = TrainRecord.read(paths.RUN_TRAIN.format(**names))
        rows += _curve(
            Path(paths.RUN_CURVE.format(**names)),
            trained,
            teacher=identity.teacher,
            student=identity.student,
            init=identity.init,
            weighted=settings.grid.teacher_weights is not None,
        )
    return rows


def _per_token(row: CurveRow, each: float) -> CurveRow:
    """A measurement per token of the students; each: tokens of the teacher's for one of theirs."""
    return row.model_copy(update={"val_loss_nats_per_token": each * row.val_loss_nats_per_token})


def _curve(
    path: Path,
    trained: TrainRecord,
    *,
    teacher: str,
    student: str | None = None,
    init: str | None = None,
    weighted: bool = False,
) -> list[CurveRow]:
    """The measurements in one curve.csv; weighted: with the weight of the teacher's term."""
    try:
        return [
            CurveRow(
                student=student,
                init=init,
                teacher=teacher,
                seed=trained.lineage.seed,
                budget_tokens=trained.lineage.tokens,
                tokens=int(line["tokens"]),
                val_loss_nats_per_token=float(line["val_loss_nats_per_token"]),
                teacher_weight=trained.teacher_weight if weighted else None,
            )
            for line in csv.DictReader(io.StringIO(read_text(path)))
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CapgapError(
            f"{path}: not a learning curve ({error!r}); delete it, and `capgap run` makes it again"
        ) from None


def to_csv(rows: Sequence[Record]) -> str:
    """Rows as CSV text; numbers in full precision, missing values empty.

    rows: of one class, at least one. A column in which all rows have the class's default is left out.
    """
    columns = [
        name
        for name, field in type(rows[0]).model_fields.items()
        if field.is_required() or any(getattr(row, name) != field.default for row in rows)
    ]
    cells = [row.flat() if isinstance(row, RunRow) else row.model_dump() for row in rows]
    if "outcomes" in columns:
        columns.remove("outcomes")
        known = type(rows[0]).model_fields
        columns += dict.fromkeys(name for cell in cells for name in cell if name not in known)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(cells)
    return text.getvalue()


@by_hand
def settings_of(study_file: Path) -> CollectStage:
    """The settings that the workflow passes, made from a study."""
    from capgap.cost.teacher_configs import open_study  # it is slow to import

    return collect_stage(open_study(study_file))


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.collect", __doc__)
    parser.add_argument("--study", type=Path, help="study whose grid is gathered")
    parser.add_argument("--out", required=True, type=out_file, help="runs.csv to write")
    parser.add_argument("--curves-out", type=out_file, help="curves.csv to write, if wanted")
    args, settings = parser.parse(argv, CollectStage)
    if args.study:
        settings = settings_of(args.study)
    if settings is None:
        parser.error("--study is needed")
    rows = run(settings)
    learned = curves(settings) if args.curves_out else []
    write_text(args.out, to_csv(rows))
    if args.curves_out:
        write_text(args.curves_out, to_csv(learned))
    print(f"{len(rows)} runs")


if __name__ == "__main__":
    run_stage(main)
