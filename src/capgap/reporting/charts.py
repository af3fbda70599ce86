"""
The report's figures: records -> an Altair specification and the table behind it.

Each figure has one table; its column `kind` is the layer of the figure that a row belongs to.
Sizes are parameters without embeddings, losses nats per token, compute FLOPs.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from statistics import fmean

import altair as alt

from capgap.config.run_grid import NONE
from capgap.config.shapes import simple_training_flops
from capgap.law.answers.answer_records import FinalRecord
from capgap.law.law_record import LawRecord, Optimum
from capgap.law.table.metric import METRICS
from capgap.records.run_records import Metrics, RunRow
from capgap.reporting.headline_chart import headline
from capgap.reporting.law_chart import law_chart
from capgap.reporting.regret_chart import regret
from capgap.reporting.report_text import (
    arm_name,
    flops,
    on_ladder,
    optimum,
    ordered,
    pruned_sizes,
    several_budgets,
    size,
)
from capgap.reporting.theme import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE_BLUE,
    RED,
    SAND,
    WIDE,
    Figure,
    arm_scales,
    case,
    clipped,
    close_ends,
    facet,
    limits,
    log_scale,
    loss_y,
    of_kind,
    round_ticks,
    size_axis,
    student_colour,
    table,
    teacher_x,
    tips,
    titled,
)

PLAIN_LOSS = METRICS["loss"].axis()


def curves(runs: list[RunRow], law: LawRecord) -> Figure:
    """Loss against teacher size, a panel for each student size and budget."""
    several = several_budgets(law)
    pruned = pruned_sizes(runs)
    rows, panels = [], []
    for found in ordered(law.optima):
        panels.append(case(found.student, found.tokens, several) + f"|T*: {optimum(found)}")
        known = {"student": found.student, "tokens": found.tokens, "panel": panels[-1]}
        rows += [known | row for row in _curve_rows(found, runs, pruned, law.tie_nats)]
    data = table(
        rows,
        "panel student tokens kind teacher teacher_params seed loss_nats_per_token loss_low "
        "loss_high params_low params_high",
    )
    x = teacher_x(data)
    x_low = teacher_x(data, "params_low")
    y = loss_y()
    hover = tips("kind teacher seed", loss="loss_nats_per_token")
    layers = [
        of_kind(data, "tie").mark_rect(color=SAND).encode(y=y, y2="loss_high:Q"),
        of_kind(data, "optimum")
        .mark_rect(color=PALE_BLUE, opacity=0.6, clip=True)
        .encode(x=x_low, x2="params_high:Q"),
        of_kind(data, "optimum").mark_rule(color=BLUE, strokeWidth=1.5, clip=True).encode(x=x),
        of_kind(data, "bound").mark_rule(color=BLUE, strokeDash=[2, 3]).encode(x=x),
        of_kind(data, "no_teacher_mean")
        .mark_line(color=ORANGE, strokeWidth=1, strokeDash=[4, 3])
        .encode(x=x, y=y),
        of_kind(data, "no_teacher")
        .mark_point(color=ORANGE, shape="diamond", size=42, fill="white", strokeWidth=1.3)
        .encode(x=x, y=y, tooltip=hover),
        of_kind(data, "mean")
        .transform_filter("isValid(datum.loss_low)")
        .mark_rule(color=BLUE, strokeWidth=5, opacity=0.3)
        .encode(x=x, y=loss_y("loss_low:Q"), y2="loss_high:Q"),
        of_kind(data, "mean").mark_line(color=BLUE, strokeWidth=2).encode(x=x, y=y),
        of_kind(data, "seed").mark_circle(color=BLUE, size=40).encode(x=x, y=y, tooltip=hover),
    ]
    columns = len({found.tokens for found in law.optima}) if several else 3
    chart = facet(layers, data, panels, columns).resolve_scale(y="independent")
    return Figure("curves", titled(chart, METRICS[law.metric].axis(law.outcome)), data)


def _curve_rows(
    found: Optimum, runs: list[RunRow], pruned: dict[str, int], tie_nats: float
) -> list[dict]:
    """Rows of one panel of `curves`; limits that the data did not set end at the grid's edge."""
    sizes = [one.teacher_params_non_embedding for one in found.teachers]
    losses = [one.mean_loss_nats_per_token for one in found.teachers]
    best = min(losses)
    rows = [{"kind": "tie", "loss_nats_per_token": best, "loss_high": best + tie_nats}]
    star = found.teacher_params
    if on_ladder(found):
        ends = close_ends(limits(star), min(sizes), max(sizes))
        rows.append({"kind": "optimum"} | ends)
    elif star is not None:  # beyond the ladder: its nearer end
        edge = min(sizes) if star.value < min(sizes) else max(sizes)
        rows.append({"kind": "bound", "teacher_params": edge})
    rows += [
        {
            "kind": "mean",
            "teacher": one.teacher,
            "teacher_params": one.teacher_params_non_embedding,
            "loss_nats_per_token": one.mean_loss_nats_per_token,
            "loss_low": one.loss_low,
            "loss_high": one.loss_high,
        }
        for one in found.teachers
    ]
    alone = defaultdict(list)
    for run in runs:
        if (run.student, run.tokens) != (found.student, found.tokens):
            continue
        row = {"seed": run.seed, "loss_nats_per_token": run.val_loss_nats_per_token}
        if run.arm == "main":
            at = {"teacher": run.teacher, "teacher_params": run.teacher_params_non_embedding}
            rows.append({"kind": "seed"} | at | row)
        elif run.arm == "no_teacher" and run.init in pruned:
            alone[pruned[run.init]].append(run.val_loss_nats_per_token)
            at = {"teacher": run.init, "teacher_params": pruned[run.init]}
            rows.append({"kind": "no_teacher"} | at | row)
    return rows + [
        {"kind": "no_teacher_mean", "teacher_params": at, "loss_nats_per_token": fmean(values)}
        for at, values in alone.items()
    ]


def controls(runs: list[RunRow], axis: str = PLAIN_LOSS) -> Figure | None:
    """All arms against teacher size, a panel for each student size and budget.

    None if there is no arm that `curves` does not show already. A run without a teacher is drawn at the
    size of the teacher that its init was pruned from; the random init without a teacher has no size and is
    a rule across the panel.
    """
    if {run.arm for run in runs} <= {"main", "no_teacher"}:
        return None
    pruned = pruned_sizes(runs)
    budgets = {run.tokens for run in runs}
    cases = sorted({(r.student_params_non_embedding, r.student, r.tokens) for r in runs})
    names = {
        (student, tokens): case(student, tokens, len(budgets) > 1) for _, student, tokens in cases
    }
    rows = [
        {
            "panel": names[run.student, run.tokens],
            "student": run.student,
            "tokens": run.tokens,
            "kind": "baseline" if run.teacher == NONE and run.init not in pruned else "run",
            "arm": arm_name(run.arm),
            "init": run.init,
            "teacher": run.teacher,
            "teacher_params": run.teacher_params_non_embedding or pruned.get(run.init),
            "seed": run.seed,
            "loss_nats_per_token": run.val_loss_nats_per_token,
        }
        for run in sorted(runs, key=lambda run: run.arm == "main")  # drawn last, on top
    ]
    data = table(
        rows, "panel student tokens kind arm init teacher teacher_params seed loss_nats_per_token"
    )
    x = teacher_x(data)
    colour, shape = arm_scales(run.arm for run in runs)
    hover = tips("arm init teacher seed", loss="loss_nats_per_token")
    base = of_kind(data, "run").encode(x=x, y=loss_y(), color=colour)
    layers = [
        of_kind(data, "baseline")
        .mark_rule(strokeDash=[6, 3])
        .encode(y=loss_y("mean(loss_nats_per_token):Q"), color=colour),
        base.transform_filter(f"datum.arm != '{arm_name('cross_teacher')}'")
        .mark_line(strokeWidth=1.5)
        .encode(y=loss_y("mean(loss_nats_per_token):Q")),
        base.mark_point(size=40, filled=True, opacity=0.85).encode(shape=shape, tooltip=hover),
    ]
    columns = len(budgets) if len(budgets) > 1 else 3
    chart = facet(layers, data, list(dict.fromkeys(names.values())), columns)
    chart = chart.resolve_scale(y="independent")
    return Figure("controls", titled(chart, axis), data)


def ratios(law: LawRecord) -> Figure | None:
    """T*/S by the power law against tokens per student parameter; None with one budget."""
    found = [o for o in ordered(law.optima) if o.ratio is not None]
    if not found or not several_budgets(law):
        return None
    tried = [
        c.teacher_params_non_embedding / o.student_params_non_embedding
        for o in found
        for c in o.teachers
    ]
    known = [law.lines[0].published_slope, *tried]
    least, most = min(known) / 1.3, max(known) * 1.3
    rows = [
        {
            "kind": {"inside": "inside the teachers tried"}.get(
                o.place, "beyond the teachers tried"
            ),
            "student": o.student,
            "student_params": o.student_params_non_embedding,
            "tokens": o.tokens,
            "tokens_per_param": o.tokens / o.student_params_non_embedding,
            "ratio": o.ratio.value,
            **dict(zip(("ratio_low", "ratio_high"), clipped(o.ratio, least, most), strict=True)),
        }
        for o in found
    ]
    rows.append({"kind": "published", "ratio": law.lines[0].published_slope})
    data = table(
        rows,
        "kind student student_params tokens tokens_per_param ratio ratio_low ratio_high",
    )
    per_param = data.tokens_per_param.dropna()
    x = alt.X(
        "tokens_per_param:Q",
        title="Distillation tokens per student parameter",
        scale=log_scale(per_param.min() / 1.25, per_param.max() * 1.25),
        axis=size_axis(per_param),
    )
    scale = log_scale(least, most)
    axis = size_axis([least, most])
    y = alt.Y("ratio:Q", title=None, scale=scale, axis=axis)
    colour = student_colour(data)
    own = alt.Chart(data).transform_filter("datum.kind != 'published'")
    hover = tips("student tokens kind", ratio="ratio", low="ratio_low", high="ratio_high")
    chart = alt.layer(
        of_kind(data, "published")
        .mark_rule(color=RED, strokeDash=[6, 4], strokeWidth=2)
        .encode(y=y),
        own.mark_rule(strokeWidth=1.6, opacity=0.7, clip=True).encode(
            x=x,
            y=alt.Y("ratio_low:Q", title=None, scale=scale, axis=axis),
            y2="ratio_high:Q",
            color=colour,
        ),
        own.mark_line(strokeWidth=2, clip=True).encode(x=x, y=y, color=colour),
        own.mark_point(filled=True, size=80, opacity=1, clip=True).encode(
            x=x, y=y, color=colour, tooltip=hover
        ),
    ).properties(**WIDE)
    return Figure("ratios", titled(chart, "Best teacher in multiples of the student, T*/S"), data)


def pareto(runs: list[RunRow], final: FinalRecord | None, axis: str = PLAIN_LOSS) -> Figure:
    """Training compute against loss, with the runs that no other beats.

    Compute: forward and backward of the student, forward of the teacher; the teacher's own
    training is not counted (the accounting of arXiv 2311.07052). Where the table does not say, it
    is 6 S D + 2 T D.
    """
    rows = [
        {
            "kind": "run",
            "teacher": run.teacher,
            "arm": arm_name(run.arm),
            "student": run.student,
            "student_params": run.student_params_non_embedding,
            "tokens": run.tokens,
            "seed": run.seed,
            "train_flops": run.train_flops
            or simple_training_flops(
                run.student_params_non_embedding, run.teacher_params_non_embedding or 0, run.tokens
            ),
            "loss_nats_per_token": run.val_loss_nats_per_token,
        }
        for run in runs
    ]
    rows += [
        {
            "kind": "final",
            "teacher": row.teacher,
            "arm": arm_name("main"),
            "student": size(row.student_params_non_embedding),
            "student_params": row.student_params_non_embedding,
            "tokens": final.choice.tokens,
            "train_flops": row.train_flops,
            "loss_nats_per_token": row.val_loss_nats_per_token,
            "name": ("above", "below")[i % 2],
        }
        for i, row in enumerate(sorted(final.rows, key=lambda r: r.train_flops) if final else [])
    ]
    best = float("inf")
    for row in sorted(rows, key=lambda r: (r["train_flops"], r["loss_nats_per_token"])):
        if row["loss_nats_per_token"] < best:
            best = row["loss_nats_per_token"]
            rows.append(row | {"kind": "frontier"})
    data = table(
        rows,
        "kind teacher arm student student_params tokens seed train_flops loss_nats_per_token name",
    )
    compute = [row["train_flops"] for row in rows]
    ticks = round_ticks(min(compute) / 1.3, max(compute) * 1.3)
    x = alt.X(
        "train_flops:Q",
        title="Training compute, FLOPs",
        scale=log_scale(min(compute) / 1.3, max(compute) * 1.3),
        axis=alt.Axis(labelExpr=_flop_labels(ticks), values=ticks),
    )
    _, shape = arm_scales(run.arm for run in runs)
    colour = student_colour(data)
    base = alt.Chart(data).encode(x=x, y=loss_y())
    hover = tips("student teacher arm tokens seed", loss="loss_nats_per_token", FLOPs="train_flops")
    chart = alt.layer(
        base.transform_filter("datum.kind == 'frontier'").mark_line(
            color=INK, strokeWidth=1.2, strokeDash=[4, 3], interpolate="step-after"
        ),
        base.transform_filter("datum.kind == 'run'")
        .mark_point(filled=True, size=45, opacity=0.75)
        .encode(shape=shape, color=colour, tooltip=hover),
        base.transform_filter("datum.kind == 'final'")
        .mark_point(shape="circle", size=130, color=RED, strokeWidth=2, opacity=1)
        .encode(tooltip=hover),
        *(
            base.transform_filter(f"datum.kind == 'final' && datum.name == '{place}'")
            .mark_text(dy=dy, fontSize=12, **ink)
            .encode(text="teacher:N")
            for place, dy in (("above", -16), ("below", 17))  # by turns: rings may stand close
            for ink in ({"stroke": "#ffffff", "strokeWidth": 4}, {"color": RED})
        ),
    ).properties(**WIDE)
    return Figure("pareto", titled(chart, axis), data)


def _flop_labels(ticks: list[float]) -> str:
    """An expression that writes these ticks as the tables do, '2 × 10¹¹'."""
    names = {str(round(math.log10(tick) * 1000)): flops(tick).replace(".0", "") for tick in ticks}
    key = "round(log(datum.value) / log(10) * 1000)"
    return f"{json.dumps(names, ensure_ascii=False)}[{key}]"


def final_student(final: FinalRecord) -> Figure:
    """Test loss of the final student by teacher, seeds as points and their mean as a tick."""
    rows, order = [], []
    for row in sorted(final.rows, key=lambda r: (r.teacher_params_non_embedding, r.teacher)):
        label = f"{row.teacher}|{row.role}"
        order.append(label)
        at = {
            "label": label,
            "teacher": row.teacher,
            "role": row.role,
            "teacher_params": row.teacher_params_non_embedding,
            "pick": row.teacher == final.choice.chosen,
        }
        rows.append(at | {"kind": "mean", "test_loss_nats_per_token": row.test_loss_nats_per_token})
        rows += [
            at | {"kind": "seed", "seed": seed, "test_loss_nats_per_token": loss}
            for seed, loss in sorted(row.test_loss_by_seed.items())
        ]
    data = table(rows, "label kind teacher role teacher_params pick seed test_loss_nats_per_token")
    colour = alt.condition(alt.datum.pick, alt.value(RED), alt.value(GREY))
    losses = data.test_loss_nats_per_token
    room = max(losses.max() - losses.min(), 0.002)
    x = alt.X(
        "test_loss_nats_per_token:Q",
        title="Test loss, nats per token (left is better)",
        scale=alt.Scale(
            domain=[losses.min() - 0.15 * room, losses.max() + 0.35 * room], nice=False
        ),
        axis=alt.Axis(tickCount=5, grid=True),
    )
    y = alt.Y(
        "label:N",
        sort=order,
        title=None,
        axis=alt.Axis(labelExpr="split(datum.label, '|')", labelColor=INK, labelLineHeight=14),
    )
    mean = of_kind(data, "mean").encode(x=x, y=y, color=colour)
    chart = alt.layer(
        mean.mark_tick(thickness=3, size=26, opacity=1),
        of_kind(data, "seed")
        .mark_circle(size=60, opacity=0.6)
        .encode(
            x=x, y=y, color=colour, tooltip=tips("teacher seed", loss="test_loss_nats_per_token")
        ),
        of_kind(data, "mean")
        .mark_text(dy=-22, fontSize=12, color=INK)
        .encode(x=x, y=y, text=alt.Text("test_loss_nats_per_token:Q", format=".4f")),
    ).properties(width=WIDE["width"], height=64 * len(order))
    return Figure("final", titled(chart, "Teacher of the final student"), data)


def teacher_family(teachers: list[Metrics]) -> Figure | None:
    """Validation loss of the teachers themselves against their size; None without teachers."""
    if not teachers:
        return None
    rows = [
        {
            "kind": "teacher",
            "teacher": found.lineage.name,
            "teacher_params": found.lineage.params.non_embedding,
            "tokens": found.lineage.tokens,
            "loss_nats_per_token": found.validation.loss_nats_per_token,
        }
        for found in sorted(
            teachers, key=lambda m: (m.lineage.params.non_embedding, m.lineage.name)
        )
    ]
    data = table(rows, "kind teacher teacher_params tokens loss_nats_per_token")
    x = teacher_x(data)
    base = alt.Chart(data).encode(x=x, y=loss_y())
    chart = alt.layer(
        base.mark_line(color=BLUE, strokeWidth=2),
        base.mark_circle(color=BLUE, size=70, opacity=1).encode(
            tooltip=tips("teacher tokens", size="teacher_params", loss="loss_nats_per_token")
        ),
        base.mark_text(align="left", dx=5, dy=-9, fontSize=12, color=INK).encode(text="teacher:N"),
    ).properties(width=WIDE["width"], height=300)
    title = "Validation loss of the teacher itself, nats per token"
    return Figure("teachers", titled(chart, title), data)


def all_figures(
    runs: list[RunRow], law: LawRecord, final: FinalRecord | None, teachers: list[Metrics]
) -> list[Figure]:
    """Every figure that the records allow, in the report's order."""
    axis = METRICS[law.metric].axis(law.outcome)
    figures = [
        headline(law),
        curves(runs, law),
        controls(runs, axis),
        law_chart(law, final),
        ratios(law),
        # the final student's loss is the validation loss, whatever the runs are measured by
        pareto(runs, final if axis == PLAIN_LOSS else None, axis),
        final_student(final) if final else None,
        teacher_family(teachers),
        regret(law),
    ]
    return [figure for figure in figures if figure is not None]
