"""
Compare the law's choice with its alternatives, and publish the final student.

IN   choice.json; run folders of the final student from the chosen, the neighbouring and the
     largest teacher; metrics.json of those teachers
OUT  final.json, and the chosen student's model folder
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
from scipy import stats

from capgap.law.answers.answer_records import Choice, FinalRecord, FinalRow
from capgap.records import paths
from capgap.records.artifacts import open_folder, publish_folder, write_text
from capgap.records.run_records import Metrics, RunRow
from capgap.stages.base import StageParser, out_file, out_folder, run_stage
from capgap.stages.collect import read_run


def run(
    choice_file: Path, run_folders: list[Path], teacher_metrics: list[Path], model_out: Path
) -> FinalRecord:
    """Compare the final runs and copy the chosen student's model (of its first seed)."""
    choice = Choice.read(choice_file)
    metrics = [Metrics.read(path) for path in teacher_metrics]
    teachers = {(m.lineage.name, m.lineage.seed): m for m in metrics}
    runs = {folder: read_run(folder, teachers) for folder in run_folders}
    perplexity = {
        folder: Metrics.read(folder / paths.METRICS).test.perplexity for folder in run_folders
    }
    rows = sorted(
        (_row(choice, teacher, runs, perplexity) for teacher in choice.teachers()),
        key=lambda row: (row.test_loss_nats_per_token, row.teacher),
    )
    chosen = next(row for row in rows if row.teacher == choice.chosen)
    regret = chosen.test_loss_nats_per_token - rows[0].test_loss_nats_per_token
    rival = next((row for row in rows if row.teacher != choice.chosen), None)
    source = min((r.seed, f) for f, r in runs.items() if r.teacher == choice.chosen)[1]
    with publish_folder(model_out) as target:
        model = open_folder(source / "model")
        for path in sorted(model.iterdir()):
            if path.name != paths.MANIFEST:
                shutil.copyfile(path, target / path.name)
    return FinalRecord(
        choice=choice,
        rows=rows,
        chosen_is_best=rows[0].teacher == choice.chosen,
        regret_nats=regret,
        resolved=resolved(choice, chosen, rival) if rival else None,
        published_seed=runs[source].seed,
        sentence=_sentence(choice, chosen, rows, rival),
    )


def _row(choice: Choice, teacher: str, runs: dict[Path, RunRow], perplexity) -> FinalRow:
    own = {folder: row for folder, row in runs.items() if row.teacher == teacher}
    roles = [r for r in ("chosen", "neighbour", "largest") if getattr(choice, r) == teacher]

    def mean(values) -> float:
        return math.fsum(values) / len(own)

    return FinalRow(
        teacher=teacher,
        role=" and ".join(roles),
        teacher_params_non_embedding=next(iter(own.values())).teacher_params_non_embedding,
        student_params_non_embedding=mean(r.student_params_non_embedding for r in own.values()),
        n_seeds=len(own),
        n_draws=len({(r.teacher_seed, r.init_seed) for r in own.values()}),
        val_loss_nats_per_token=mean(r.val_loss_nats_per_token for r in own.values()),
        test_loss_nats_per_token=mean(r.test_loss_nats_per_token for r in own.values()),
        test_bits_per_byte=mean(r.test_bits_per_byte for r in own.values()),
        test_perplexity=mean(perplexity[f] for f in own),
        test_loss_by_seed={
            str(r.seed): r.test_loss_nats_per_token
            for r in sorted(own.values(), key=lambda r: r.seed)
        },
        train_flops=mean(r.train_flops for r in own.values()),
    )


def resolved(choice: Choice, chosen: FinalRow, rival: FinalRow) -> bool | None:
    """Whether chosen and best alternative differ by more than the noise of their difference.

    Two-sided t test at 95 %. With the components of the law's noise, each teacher's mean varies with
    the order of the data, averaged over seeds, and with its own draw and that of its init, averaged
    over replicas. Without them the paired differences of seeds are used; None with fewer than two.
    """
    if choice.order_sd is not None:
        variance = sum(
            choice.order_sd**2 / row.n_seeds + (choice.redraw_sd or 0.0) ** 2 / row.n_draws
            for row in (chosen, rival)
        )
        gap = abs(chosen.test_loss_nats_per_token - rival.test_loss_nats_per_token)
        return bool(gap > _t_limit(choice.noise_df) * math.sqrt(variance))
    shared = sorted(set(chosen.test_loss_by_seed) & set(rival.test_loss_by_seed))
    if len(shared) < 2:
        return None
    differences = np.array(
        [chosen.test_loss_by_seed[s] - rival.test_loss_by_seed[s] for s in shared]
    )
    error = differences.std(ddof=1) / math.sqrt(len(shared))
    return bool(abs(differences.mean()) > _t_limit(len(shared) - 1) * error)


def _t_limit(df: float | None) -> float:
    """Half a 95 % interval in standard errors, for example 12.7 with one degree of freedom."""
    return float(stats.norm.ppf(0.975) if df is None else stats.t.ppf(0.975, df))


def _sentence(choice: Choice, chosen: FinalRow, rows: list[FinalRow], rival) -> str:
    loss = f"test loss {chosen.test_loss_nats_per_token:.4f} nats per token"
    if rival is None:
        return (
            f"The student from {choice.chosen} reaches {loss}; there was no other teacher to try."
        )
    gap = chosen.test_loss_nats_per_token - rival.test_loss_nats_per_token
    side = "better" if gap < 0 else "worse"
    noise = {
        None: "; with one seed, the noise of this difference is unknown",
        False: "; this is within the noise of the difference, so neither is shown to be better",
        True: ", which is more than the noise of this difference",
    }[resolved(choice, chosen, rival)]
    return (
        f"The student from the chosen {choice.chosen} reaches {loss}, {abs(gap):.4f} nats {side} "
        f"than from {rival.teacher}, the best alternative tried{noise}."
    )


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.compare", __doc__)
    parser.add_argument("--choice", required=True, type=Path, help="choice.json")
    parser.add_argument(
        "--trained", required=True, nargs="+", type=Path, help="train.json of every final run"
    )
    parser.add_argument(
        "--teachers", required=True, nargs="+", type=Path, help="metrics.json of their teachers"
    )
    parser.add_argument("--out", required=True, type=out_file, help="final.json to write")
    parser.add_argument("--model-out", required=True, type=out_folder, help="model folder to write")
    args, _ = parser.parse(argv)
    folders = [path.parent for path in args.trained]
    record = run(args.choice, folders, args.teachers, args.model_out)
    write_text(args.out, record.to_json())
    print(record.sentence)


if __name__ == "__main__":
    run_stage(main)
