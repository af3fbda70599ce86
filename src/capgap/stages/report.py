"""
Write the report of a study, for a reader who has not read the paper.

IN   runs.csv, law.json, final.json and samples.json (if there are any), curves.csv of learning curves,
     metrics.json of the teachers, harness.json of models (if there are any)
OUT  folder with report.html, one page that needs no network, and every figure as <name>.svg,
     <name>.png and, as the table behind it, <name>.csv
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from capgap import __version__
from capgap.config import Study
from capgap.config.study_file import load_study
from capgap.cost.next_runs import price
from capgap.errors import CapgapError
from capgap.law.answers.answer_records import FinalRecord
from capgap.law.answers.ask import refit
from capgap.law.law_record import LawRecord
from capgap.law.table.init_kinds import runs_of_law
from capgap.law.table.metric import METRICS, NAMED
from capgap.law.table.read_runs import read_runs, teacher_sizes
from capgap.law.table.run_means import cell_table
from capgap.records.artifacts import publish_folder
from capgap.records.reading import read_text
from capgap.records.run_records import CurveRow, HarnessRecord, Metrics, RunRow, SamplesRecord
from capgap.reporting import causes_text, comparison_text, glossary, report_text
from capgap.reporting.answer_text import Experiment, answer_of, subject, teacher_costs
from capgap.reporting.charts import all_figures
from capgap.reporting.citation import citation
from capgap.reporting.explorer import explorer
from capgap.reporting.samples import samples_of
from capgap.reporting.theme import THEME, Figure
from capgap.reporting.training_chart import training
from capgap.stages.base import StageParser, out_folder, run_stage

PARTS = Path(__file__).parents[1] / "reporting"
TEMPLATES = (
    "page.html.j2",
    "first_screen.html.j2",
    "glossary.html.j2",
    "compared.html.j2",
    "equal_compute.html.j2",
    "cite.html.j2",
    "samples.html.j2",
)  # named here, so that the digest counts them
STYLES = ("style.css", "first_screen.css", "reading.css", "interaction.css")
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
PNG_SCALE = 2  # pixels per unit of the figure


def run(
    runs: list[RunRow],
    law: LawRecord,
    final: FinalRecord | None,
    teachers: list[Metrics],
    study_name: str,
    settings: dict[str, Any],
    out: str | Path,
    harness: Sequence[HarnessRecord] = (),
    curves: Sequence[CurveRow] = (),
    samples: SamplesRecord | None = None,
) -> None:
    """Draw all figures and write the report's folder.

    settings: the study's settings as they shall be shown; may be empty.
    Raises CapgapError when the records do not belong together.
    """
    counts = Counter(row.arm for row in runs)
    answer = answer_of(law, final)
    studied = load_study(settings) if "teachers" in settings else None
    _check(counts["main"], law, final)
    runs = sorted(runs, key=_run_order)
    teachers = sorted(teachers, key=lambda m: (m.lineage.params.non_embedding, m.lineage.name))
    teachers = in_students_tokens(teachers, runs)
    costs = teacher_costs(law, final)
    shown = costs.student, costs.tokens_seen
    sizes = {m.lineage.name: m.lineage.params.non_embedding for m in teachers}
    figures = all_figures(runs, law, final, teachers)
    weights = (None, law.teacher_weight)
    learned = training([row for row in curves if row.teacher_weight in weights], sizes, shown)
    figures += [learned] if learned else []
    table = pd.DataFrame([row.flat() for row in runs])
    fit = refit(law, table, "the table and the law")
    answers = explorer(
        fit, law, teacher_sizes(table), cell_table(table, law.size), subject(law, final)
    )
    specs = {figure.name: specification(figure) for figure in figures}
    with publish_folder(out) as folder:
        pictures = {}
        for figure in figures:
            svg = render_svg(figure.name, specs[figure.name])
            pictures[figure.name] = Markup(svg)
            (folder / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
            (folder / f"{figure.name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=PNG_SCALE))
            figure.data.to_csv(folder / f"{figure.name}.csv", index=False, lineterminator="\n")
        page = (
            environment(TEMPLATES)
            .get_template("page.html.j2")
            .render(
                study_name=study_name,
                runs=runs,
                counts=counts,
                law=law,
                final=final,
                answer=answer,
                steps=[_step(studied, experiment) for experiment in answer.experiments],
                teachers=teachers,
                harness=harness,
                settings=report_text.settings_rows(settings),
                pictures=pictures,
                specs=specs,
                answers=answers,
                costs=costs,
                samples=samples and final and samples_of(samples, final),
                glossary=glossary.entries(),
                citation=citation(__version__),
                style=Markup("\n").join(part(name) for name in STYLES),
                highlight=part("highlight.js"),
                script=part("page.js"),
                vega=Markup(vega_bundle()),
                metrics=METRICS,
                w=report_text,
                x=comparison_text,
                c=causes_text,
            )
        )
        (folder / "report.html").write_text(with_terms(page) + "\n", encoding="utf-8")


def in_students_tokens(teachers: list[Metrics], runs: list[RunRow]) -> list[Metrics]:
    """The teachers with losses per token of the students, as the table of runs has them.

    They differ from the measured ones for a teacher with another tokenizer.
    """
    losses = {(r.teacher, r.teacher_seed): r.teacher_val_loss_nats_per_token for r in runs}

    def converted(teacher: Metrics) -> Metrics:
        own = teacher.validation.loss_nats_per_token
        loss = losses.get((teacher.lineage.name, teacher.lineage.seed or 0)) or own
        changed = teacher.validation.model_copy(update={"loss_nats_per_token": loss})
        return teacher if loss == own else teacher.model_copy(update={"validation": changed})

    return [converted(teacher) for teacher in teachers]


def _step(study: Study | None, experiment: Experiment) -> str:
    """An experiment with its price; without one if the study's settings are not known."""
    return experiment.step if study is None else price(study, experiment)


def _check(n_main: int, law: LawRecord, final: FinalRecord | None) -> None:
    """Refuse records of different studies or of different states of one study."""
    if n_main != law.n_runs:
        raise CapgapError(
            f"the law was fitted on {law.n_runs} runs of the main arm, but the table of runs has "
            f"{n_main}; fit the law again on this table (capgap fit)"
        )
    budgets = sorted({found.tokens for found in law.optima})
    if final and final.choice.law_tokens not in budgets:
        raise CapgapError(
            f"the final student's teacher was chosen by a law at {final.choice.law_tokens} tokens, "
            f"but this law has {', '.join(map(str, budgets))}; choose the teacher again by this law"
        )


def with_terms(page: str) -> str:
    """The page with the terms of the glossary marked in what is read, and not in its data."""
    body = page.index("<main>")
    end = page.index("</main>", body)
    return page[:body] + glossary.marked(page[body:end]) + page[end:]


def read_curves(path: str | Path) -> list[CurveRow]:
    """The learning curves of a study. Raises CapgapError for another kind of file."""
    try:
        return [
            CurveRow(**{key: value or None for key, value in line.items()})
            for line in csv.DictReader(io.StringIO(read_text(path)))
        ]
    except (TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise CapgapError(
            f"{path}: not a table of learning curves ({first}); name curves.csv of a study, which "
            "capgap collect --curves-out writes"
        ) from None


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one JavaScript module, once for all figures of a page."""
    return vl_convert.javascript_bundle(vl_version=VEGA_LITE)


def specification(figure: Figure) -> dict[str, Any]:
    """The Vega-Lite specification of a figure, with its data and the shared look."""
    with alt.data_transformers.enable("default", max_rows=None):
        return figure.chart.to_dict() | {"config": THEME}


def render_svg(name: str, spec: dict[str, Any]) -> str:
    """Draw a specification; ids start with the figure's name and count from 0.

    The renderer counts ids over the life of the process, so the same figure drawn twice would
    differ, and several drawings on one page would share ids.
    """
    svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    ids = list(dict.fromkeys(re.findall(r'\bid="((?:clip|gradient_)\d+)"', svg)))
    new = {old: f"{name}-{number}" for number, old in enumerate(ids)}
    return re.sub(
        r'(\bid="|url\(#)((?:clip|gradient_)\d+)(?=["\)])', lambda m: m[1] + new[m[2]], svg
    )


def _run_order(row: RunRow) -> tuple:
    return (
        row.student_params_non_embedding,
        row.student,
        row.tokens,
        row.arm != "main",
        row.arm,
        row.teacher_params_non_embedding or 0,
        row.teacher,
        row.init,
        row.seed,
    )


def environment(templates: Sequence[str]) -> Environment:
    """An environment with these templates of the package."""
    return Environment(
        loader=DictLoader({name: part(name) for name in templates}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def part(name: str) -> Markup:
    """A file of the page."""
    return Markup((PARTS / name).read_text(encoding="utf-8"))


def read_rows(path: str | Path, law: LawRecord) -> list[RunRow]:
    """The runs that a law was fitted on, as records; errors as in `read_runs`."""
    return rows_of(runs_of_law(read_runs(path, law.measured, law.excluded), law))


def rows_of(runs: pd.DataFrame) -> list[RunRow]:
    """The runs of a table that was read, as records."""
    found = []
    for row in runs.to_dict("records"):
        values = {name: None if pd.isna(value) else value for name, value in row.items()}
        outcomes = {name: values.pop(name) for name in row if NAMED.fullmatch(name)}
        found.append(RunRow(**values, outcomes=outcomes))
    return found


def _settings(text: str | None) -> dict[str, Any]:
    try:
        settings = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise CapgapError(
            f"--study-spec: not JSON ({error}); pass the settings as one object"
        ) from None
    if not isinstance(settings, dict):
        raise CapgapError(f"--study-spec: must be a JSON object, got {type(settings).__name__}")
    return settings


def report_parser(kind: type[StageParser] = StageParser) -> StageParser:
    """Parser of the stage."""
    parser = kind("capgap.stages.report", __doc__)
    parser.add_argument("--runs", required=True, help="table of runs, CSV")
    parser.add_argument("--law", required=True, help="law record, JSON")
    parser.add_argument(
        "--final",
        nargs="?",
        help="record of the final student, JSON; without it that part is left out",
    )
    parser.add_argument(
        "--teachers", nargs="*", default=[], metavar="METRICS", help="metrics.json of every teacher"
    )
    parser.add_argument(
        "--harness", nargs="*", default=[], metavar="RECORD", help="harness.json of every model"
    )
    parser.add_argument("--curves", metavar="TABLE", help="curves.csv, learning curves of all runs")
    parser.add_argument(
        "--samples", nargs="?", metavar="RECORD", help="samples.json of the final student"
    )
    parser.add_argument("--study-name", required=True, help="name of the study")
    parser.add_argument("--study-spec", metavar="JSON", help="the study's settings, to be shown")
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    args, _ = report_parser().parse(argv)
    law = LawRecord.read(args.law)
    run(
        read_rows(args.runs, law),
        law,
        FinalRecord.read(args.final) if args.final else None,
        [Metrics.read(path) for path in args.teachers],
        args.study_name,
        _settings(args.study_spec),
        args.out,
        [HarnessRecord.read(path) for path in args.harness],
        read_curves(args.curves) if args.curves else [],
        SamplesRecord.read(args.samples) if args.samples else None,
    )
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_stage(main)
