"""Plausible records of a small study, made from a loss surface that is known in closed form."""

import csv
import json
import math
from pathlib import Path

import pandas as pd

from capgap.config import Law, SampleStage
from capgap.law.answers.answer_records import (
    Choice,
    FinalRecord,
    FinalRow,
    RankedTeacher,
    Recommendation,
)
from capgap.law.law_record import Interval, LawRecord
from capgap.law.make_record import law_record
from capgap.records.run_records import (
    CurveRow,
    Lineage,
    Metrics,
    ParamGroups,
    RunRow,
    SampledModel,
    SampledPrompt,
    SamplesRecord,
    SplitLoss,
)

STUDENTS = {"60k": 61_440, "100k": 102_400, "160k": 158_720}
TEACHERS = {"t80k": 83_000, "t180k": 179_000, "t340k": 343_000, "t600k": 598_000, "t1m": 1_012_000}
TOKENS = 1_500_000
RATIO = 2.9  # of the surface's optimum to the student size


def teacher_loss(params: int) -> float:
    return 2.6 + 3.5 * (params / 1e4) ** -0.35


def surface(student: int, teacher: int, tokens: int, ratio: float) -> float:
    """Loss with its minimum over teachers at `ratio` x student, moving up with the budget."""
    best = ratio * student * (tokens / TOKENS) ** 0.4
    base = 2.9 + 3.1 * (student / 1e4) ** -0.4 - 0.14 * math.log(tokens / TOKENS)
    return base + 0.035 * math.log(teacher / best) ** 2


def _noise(*key: int) -> float:
    """Between -0.003 and 0.003 nat, a function of the run's identity."""
    return 0.003 * math.sin(sum((i + 1.7) * k for i, k in enumerate(key, 1)))


def make_runs(tokens=(TOKENS,), seeds=(0, 1), arms=("no_teacher",), ratio=RATIO) -> list[RunRow]:
    """Runs on the surface; a small `ratio` puts every optimum at the smallest teacher."""
    rows = []

    def add(arm, student, init, teacher, budget, seed, loss, start):
        size = TEACHERS.get(teacher)
        s = STUDENTS[student]
        rows.append(
            RunRow(
                student=student,
                init=init,
                teacher=teacher,
                seed=seed,
                student_params_non_embedding=s,
                teacher_params_non_embedding=size,
                tokens=budget,
                val_loss_nats_per_token=round(loss + _noise(seed, s % 97, (size or 7) % 89), 5),
                arm=arm,
                teacher_val_loss_nats_per_token=teacher_loss(size) if size else None,
                start_val_loss_nats_per_token=round(start, 4),
                test_loss_nats_per_token=round(loss + 0.02, 5),
                test_bits_per_byte=round((loss + 0.02) / math.log(2) / 2.9, 5),
                train_flops=float(budget * (6 * s + 2 * (size or 0))),
            )
        )

    for student, s in STUDENTS.items():
        larger = [t for t, size in TEACHERS.items() if size > s]
        for budget in tokens:
            for seed in seeds:
                for t in larger:
                    loss = surface(s, TEACHERS[t], budget, ratio)
                    start = loss + 1.1 + 0.3 * math.log(TEACHERS[t] / s)
                    pruned = f"pruned-{t}"
                    add("main", student, pruned, t, budget, seed, loss, start)
                    if "no_teacher" in arms:
                        add("no_teacher", student, pruned, "none", budget, seed, loss + 0.03, start)
                    if "cross_teacher" in arms:
                        for other in larger:
                            if other != t:
                                delta = 0.01 * math.log(TEACHERS[other] / TEACHERS[t])
                                add(
                                    "cross_teacher",
                                    student,
                                    pruned,
                                    other,
                                    budget,
                                    seed,
                                    loss - delta,
                                    start,
                                )
                    if "random_init" in arms:
                        add("random_init", student, "random", t, budget, seed, loss + 0.6, 6.95)
                if "random_init" in arms:
                    add("random_init", student, "random", "none", budget, seed, loss + 0.7, 6.95)
    return rows


def make_law(runs: list[RunRow]) -> LawRecord:
    """The law's record of those runs."""
    table = pd.DataFrame([run.model_dump() for run in runs])
    return law_record(table, Law())


def make_final(seeds=(0, 1), basis="line") -> FinalRecord:
    size, tokens = 131_072, 3_000_000
    star = RATIO * size
    rows = []
    for teacher, role in [("t340k", "chosen"), ("t600k", "neighbour"), ("t1m", "largest")]:
        loss = surface(size, TEACHERS[teacher], tokens, 2.2)
        by_seed = {str(s): round(loss + _noise(s, 5, TEACHERS[teacher] % 83), 5) for s in seeds}
        test = sum(by_seed.values()) / len(by_seed)
        rows.append(
            FinalRow(
                teacher=teacher,
                role=role,
                teacher_params_non_embedding=TEACHERS[teacher],
                student_params_non_embedding=size,
                n_seeds=len(seeds),
                val_loss_nats_per_token=test - 0.02,
                test_loss_nats_per_token=test,
                test_bits_per_byte=test / math.log(2) / 2.9,
                test_perplexity=math.exp(test),
                test_loss_by_seed=by_seed,
                train_flops=float(tokens * (6 * size + 2 * TEACHERS[teacher])),
            )
        )
    rows.sort(key=lambda row: row.test_loss_nats_per_token)
    by_name = {row.teacher: row.test_loss_nats_per_token for row in rows}
    rival = min((loss, teacher) for teacher, loss in by_name.items() if teacher != "t340k")
    gap = by_name["t340k"] - rival[0]
    return FinalRecord(
        choice=Choice(
            student_params_non_embedding=size,
            tokens=tokens,
            law_tokens=TOKENS,
            basis=basis,
            basis_note="the line was fitted at 1.5M tokens and is used at 3M"
            if basis == "line"
            else "no line could be fitted; the nearest student size, 160k, lends its ratio",
            teacher_params_star=Interval(value=star, low=star * 0.7, high=star * 1.5)
            if basis == "line"
            else None,
            chosen="t340k",
            neighbour="t600k",
            largest="t1m",
        ),
        rows=rows,
        chosen_is_best=gap <= 0,
        regret_nats=max(gap, 0.0),
        resolved=abs(gap) > 0.006 if len(seeds) > 1 else None,
        published_seed=seeds[0],
        sentence=f"The student from t340k ends {abs(gap):.4f} nats per token "
        f"{'above' if gap > 0 else 'below'} the one from {rival[1]}.",
    )


def make_teachers() -> list[Metrics]:
    found = []
    for name, size in TEACHERS.items():
        loss = teacher_loss(size)
        split = SplitLoss(
            loss_nats_per_token=loss,
            perplexity=math.exp(loss),
            bits_per_byte=loss / math.log(2) / 2.9,
            tokens=50_000,
            bytes=145_000,
        )
        groups = ParamGroups(
            embedding=64_000,
            attention=size // 3,
            mlp=size - size // 3 - 500,
            norm=500,
            non_embedding=size,
            total=size + 64_000,
        )
        lineage = Lineage(kind="teacher", name=name, tokens=8_000_000, seed=0, params=groups)
        found.append(
            Metrics(
                lineage=lineage,
                validation=split,
                test=split,
                forward_flops_per_token=2 * size,
            )
        )
    return found


def make_curves() -> list[CurveRow]:
    """Curves of every pruned student of the default runs, and of the teachers."""
    rows = []
    for run in make_runs(arms=("no_teacher",)):
        for share in (0.01, 0.1, 0.3, 1.0):
            rows.append(
                CurveRow(
                    student=run.student,
                    init=run.init,
                    teacher=run.teacher,
                    seed=run.seed,
                    budget_tokens=run.tokens,
                    tokens=round(share * run.tokens),
                    val_loss_nats_per_token=round(
                        run.val_loss_nats_per_token - 0.3 * math.log(share), 5
                    ),
                )
            )
    return rows


def make_samples() -> SamplesRecord:
    """Two prompts, continued by the three students of `make_final` and the chosen teacher."""
    lineages = [m.lineage for m in make_teachers() if m.lineage.name == "t340k"]
    for teacher in ("t340k", "t600k", "t1m"):
        student = {"kind": "student", "name": "131k", "init": f"pruned-{teacher}"}
        lineages.append(lineages[0].model_copy(update=student | {"teacher": teacher}))
    return SamplesRecord(
        settings=SampleStage(prompts=2),
        conversations=False,
        prompts=[
            SampledPrompt(document=f"{n}.txt", text=f"Prompt <{n}>", follows=f"Truth {n}")
            for n in (1, 2)
        ],
        models=[
            SampledModel(
                lineage=one, texts=[f"{one.teacher or 'teacher'} writes {n}" for n in (1, 2)]
            )
            for one in lineages
        ],
    )


SETTINGS = {
    "study": "pocket",
    "corpus": {"source": "package", "package": "speeches", "pattern": "data/*.txt"},
    "distill": {"teacher_weight": 0.5, "temperature": 1.0, "learning_rate": 0.003},
    "grid": {"students": [61_440, 102_400, 158_720], "tokens": [TOKENS], "seeds": [0, 1]},
}


def write_runs(path: Path, runs: list[RunRow]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(RunRow.model_fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.model_dump() for row in runs)


def write_study(folder: Path, runs=None, law=None, final=None, teachers=None) -> list[str]:
    """Write all records into a folder; returns the report's command line without --out."""
    runs = make_runs() if runs is None else runs
    write_runs(folder / "runs.csv", runs)
    (folder / "law.json").write_text((law or make_law(runs)).to_json())
    (folder / "final.json").write_text((final or make_final()).to_json())
    teachers = make_teachers() if teachers is None else teachers
    files = []
    for metrics in teachers:
        files.append(folder / f"{metrics.lineage.name}.json")
        files[-1].write_text(metrics.to_json())
    return [
        *("--runs", str(folder / "runs.csv"), "--law", str(folder / "law.json")),
        *("--final", str(folder / "final.json"), "--teachers", *map(str, files)),
        *("--study-name", "pocket", "--study-spec", json.dumps(SETTINGS)),
    ]


def with_recommendation(final: FinalRecord) -> FinalRecord:
    """The same final student, with a cost of each teacher that is larger: 0.01 nats a step from t340k."""
    size = final.choice.student_params_non_embedding
    larger = {name: params for name, params in TEACHERS.items() if params > size}
    order = sorted(larger, key=larger.get)
    steps = {name: abs(order.index(name) - order.index("t340k")) for name in order}
    ranked = [
        RankedTeacher(
            teacher=name,
            teacher_params_non_embedding=larger[name],
            ratio=larger[name] / size,
            predicted_loss=None,
            predicted_regret=Interval(value=0.01 * step, low=0.008 * step, high=0.02 * step),
            within_tie=step == 0,
            train_flops=float(larger[name]),
        )
        for name, step in sorted(steps.items(), key=lambda item: item[1])
    ]
    answer = Recommendation(
        student_params_non_embedding=size,
        tokens=final.choice.tokens,
        status="recommended",
        reason=None,
        basis="power_law",
        basis_note="",
        law_tokens=TOKENS,
        teacher_params_star=final.choice.teacher_params_star,
        target_params=RATIO * size,
        ranked=ranked,
        within_tie=["t340k"],
        student_extrapolation=1.0,
        tokens_extrapolation=2.0,
        teacher_extrapolation=1.0,
        rules=[],
        exhaustive_flops=1.0,
        saved_flops=0.0,
        pilot_flops=1.0,
        notes=[],
    )
    choice = final.choice.model_copy(update={"recommendation": answer})
    return final.model_copy(update={"choice": choice})
