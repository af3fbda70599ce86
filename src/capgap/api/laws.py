"""
The law of capacity gap from a table of runs: fit it, ask it for a teacher, draw it.

A table has a row for every finished run, in a DataFrame or a file; docs/tables.md lists its columns
and their synonyms. Sizes are parameters without embeddings and losses nats per token.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import altair as alt
import pandas as pd

from capgap.api.keyword_settings import Count, PathLike, checked_count, takes_settings
from capgap.config import Law
from capgap.config.study_file import check_section
from capgap.errors import CapgapError, shown
from capgap.law.answers.answer_records import Recommendation
from capgap.law.answers.ask import OpenLaw, refit
from capgap.law.fit_law import Fit
from capgap.law.law_record import LawRecord
from capgap.law.table.init_kinds import runs_of_law
from capgap.law.table.metric import METRICS
from capgap.law.table.read_runs import RunTable, read_table
from capgap.law.verdicts.claims import sentence
from capgap.records.artifacts import write_text
from capgap.reporting import charts, law_text
from capgap.reporting.headline_chart import headline
from capgap.reporting.law_chart import law_chart
from capgap.reporting.recommendation_text import text as recommendation_text
from capgap.reporting.regret_chart import regret
from capgap.reporting.theme import THEME
from capgap.reporting.training_chart import learning_curves
from capgap.stages.fit import fit as fit_record
from capgap.stages.report import rows_of

if TYPE_CHECKING:  # models need torch, which laws do not
    from capgap.api.results_returned import Trained

Init: TypeAlias = Literal["pruned", "given", "random"]
Figure: TypeAlias = Literal["law", "curves", "controls", "ratios", "pareto", "regret", "headline"]


def _axis(law: LawRecord) -> str:
    return METRICS[law.metric].axis(law.outcome)


FIGURES = {
    "law": lambda law, rows: law_chart(law, None),
    "curves": lambda law, rows: charts.curves(rows, law),
    "controls": lambda law, rows: charts.controls(rows, _axis(law)),
    "ratios": lambda law, rows: charts.ratios(law),
    "pareto": lambda law, rows: charts.pareto(rows, None, _axis(law)),
    "regret": lambda law, rows: regret(law),
    "headline": lambda law, rows: headline(law),
}


@dataclass(frozen=True)
class FittedLaw:
    """A law and the runs it was fitted on. `print` it for what `capgap fit` prints."""

    record: LawRecord  # all numbers: exponents, optima, noise, verdicts, rivals, with intervals
    table: RunTable = field(repr=False)

    @property
    def runs(self) -> pd.DataFrame:
        """The table as it was read, a row for each run; columns as in docs/tables.md.

        Of a law of given or random students their runs, as the main arm, and of a law at one weight of
        the teacher's term the runs at that weight.
        """
        return runs_of_law(self.table.runs, self.record)

    def of_init(self, kind: Init) -> FittedLaw:
        """The law of students of one kind of init. Raises CapgapError if the runs have none."""
        return FittedLaw(self.record.of_init(kind), self.table)

    def of_weight(self, weight: float) -> FittedLaw:
        """The law at one weight of the teacher's term. Raises CapgapError if the runs have none."""
        return FittedLaw(self.record.of_weight(weight), self.table)

    @property
    def statement(self) -> str:
        """The fitted law in a sentence: its exponent with an interval, and its line."""
        return self.record.verdict

    @property
    def verdict(self) -> str:
        """Whether these runs support the published law, contradict it or cannot tell, and why."""
        return sentence(self.record.overall, self.record.optima)

    @property
    def optima(self) -> pd.DataFrame:
        """The best teacher size of every student and budget, with its interval; sizes in parameters.

        place: of T* among the teachers tried. T* and its limits are missing if they are open.
        """
        rows = [
            {
                "student": found.student,
                "student_params": found.student_params_non_embedding,
                "tokens": found.tokens,
                "teacher_params": found.teacher_params and found.teacher_params.value,
                "params_low": found.teacher_params and found.teacher_params.low,
                "params_high": found.teacher_params and found.teacher_params.high,
                "ratio": found.ratio and found.ratio.value,
                "place": found.place,
                "best_teacher_tried": found.best_teacher,
            }
            for found in self.record.optima
        ]
        return pd.DataFrame(rows)

    @cached_property
    def fit(self) -> Fit:
        """The fit behind the record, with the draws that predictions need; a few seconds, once."""
        return refit(self.record, self.runs, "the law and its table")

    def save(self, path: PathLike) -> None:
        """Write the record as law.json, for `capgap recommend --law PATH --runs TABLE`."""
        write_text(Path(path), self.record.to_json())

    def __str__(self) -> str:
        return law_text.with_inputs(self.table, self.record)


@dataclass(frozen=True)
class Recommended:
    """A teacher for a student, or none. `print` it for what `capgap recommend` prints."""

    record: Recommendation  # all numbers and reasons
    law: LawRecord = field(repr=False)

    @property
    def teacher(self) -> str | None:
        """Name of the recommended teacher; None if the data cannot tell, see `reason`."""
        return self.record.ranked[0].teacher if self.record.status == "recommended" else None

    @property
    def reason(self) -> str | None:
        """Why nothing is recommended; None if something is."""
        return self.record.reason

    @property
    def ranked(self) -> pd.DataFrame:
        """The teachers on offer, best first: predicted loss and excess over the best, nats per token
        with limits of their intervals, and training compute in FLOPs."""
        rows = []
        for row in self.record.ranked:
            loss, above = row.predicted_loss, row.predicted_regret
            rows.append(
                {
                    "teacher": row.teacher,
                    "teacher_params": row.teacher_params_non_embedding,
                    "ratio": row.ratio,
                    "predicted_loss": loss and loss.value,
                    "predicted_loss_low": loss and loss.low,
                    "predicted_loss_high": loss and loss.high,
                    "predicted_regret": above and above.value,
                    "predicted_regret_low": above and above.low,
                    "predicted_regret_high": above and above.high,
                    "within_tie": row.within_tie,
                    "train_flops": row.train_flops,
                }
            )
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return recommendation_text(self.record, self.law)


@takes_settings(Law)
def fit_law(runs: pd.DataFrame | PathLike, **settings: Any) -> FittedLaw:
    """Fit T* ~ S^a D^b, its noise, its verdicts and its rivals on a table of runs.

    Takes a few seconds to a minute, by the number of runs. The same table gives the same numbers.

    Args:
        runs: a row for every run, with student and teacher sizes (parameters without embeddings),
            distillation tokens and a loss (nats per token), perplexity, error or accuracy. A column
            `seed` numbers repeats. A path names a CSV file.

    Raises:
        CapgapError: a column is missing or unknown, an entry is no number, rows contradict one
            another, or no run has a teacher; the message lists all problems by line.
    """
    chosen = check_section(Law, settings, "fit_law")
    if not isinstance(runs, pd.DataFrame | str | os.PathLike):
        raise CapgapError(
            f"fit_law: runs is a DataFrame or the path of a CSV file, got {type(runs).__name__}"
        )
    table = read_table(runs, chosen.metric, chosen.exclude)
    return FittedLaw(fit_record(table, chosen), table)


def recommend(
    law: FittedLaw,
    student: Count,
    *,
    tokens: Count | None = None,
    teachers: Iterable[Count] | None = None,
    init: Init | None = None,
) -> Recommended:
    """Recommend a teacher for a student by a fitted law, or say why the data cannot.

    Args:
        law: what `fit_law` returned.
        student: parameters without embeddings.
        tokens: distillation budget; the largest of the table if None.
        teachers: those on offer, by name in the table or by size, like ["7B", "13B"]; all of the
            table if None. Those not larger than the student are left out.
        init: what the student starts from: pruned from its teacher, given or random; that of the
            table's main arm if None.

    Raises:
        CapgapError: no teacher on offer is larger than the student, one is neither a name nor a
            size, or the runs have no students of this init.
    """
    law = law if init is None else law.of_init(init)
    offered = None if teachers is None else [str(teacher) for teacher in teachers]
    budget = None if tokens is None else checked_count("tokens", tokens)
    asked = OpenLaw(law.record, law.runs, law.fit)
    found = asked.teachers_for(checked_count("student", student), budget, offered)
    return Recommended(found, law.record)


def plot(
    what: FittedLaw | Trained | dict[str, Trained] | Sequence[Trained], figure: Figure = "law"
) -> alt.TopLevelMixin:
    """Draw a law as the report does, or the learning curves of trained students.

    Args:
        what: what `fit_law` returned, or what `distill` returned: one, several, or several by name.
        figure: of a law: law (T* against student size), curves (loss against teacher size), controls
            (control arms), ratios (T*/S against tokens), pareto (loss against compute), regret and
            headline (loss above the best teacher).

    Returns:
        An Altair chart, which a notebook shows and `.save("law.html")` or `.save("law.svg")` writes.

    Raises:
        CapgapError: the figure is unknown, or these runs have nothing to show in it.
    """
    if not isinstance(what, FittedLaw):
        return _themed(learning_curves(_curves(what)).chart)
    if figure not in FIGURES:
        raise CapgapError(f"plot: figure is {figure!r}; it is one of {', '.join(FIGURES)}")
    drawn = FIGURES[figure](what.record, rows_of(what.runs))
    if drawn is None:
        raise CapgapError(
            f"plot: these runs have nothing to show in {figure!r}; one of {', '.join(FIGURES)} may do"
        )
    return _themed(drawn.chart)


def _curves(what: Any) -> dict[str, pd.DataFrame]:
    """Learning curves by the name of the run, or by its folder if another has the name."""
    runs = [what] if hasattr(what, "curve") else what
    if isinstance(runs, dict):
        named = runs
    else:
        named = {}
        for run in runs if isinstance(runs, Sequence) else ():
            folder = Path(run).parent if isinstance(run, os.PathLike) else Path("?")
            named[str(folder) if folder.name in named else folder.name] = run
    if not named or not all(hasattr(run, "curve") for run in named.values()):
        raise CapgapError(
            "plot: what fit_law returned, or what distill returned (one, several, or several by name), "
            f"can be drawn, got {shown(what)}"
        )
    return {name: run.curve for name, run in named.items()}


def _themed(chart: Any) -> alt.TopLevelMixin:
    """The chart with the report's look, with all its rows whatever Altair's limit."""
    chart = chart.copy()
    chart.config = alt.Config(**THEME)
    return chart
