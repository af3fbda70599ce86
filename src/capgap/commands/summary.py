"""
Print what a study found: the answer, what is not known, and the runs that would settle it.

--all adds what the answer rests on: measured costs, the two causes, which law predicts best, comparisons
of inits and metrics, and the reason of each verdict.

IN   law.json of a study, and final.json if it has a final student
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from capgap.commands.plan import make_plan
from capgap.commands.verify import result_of
from capgap.config import Study
from capgap.config.study_file import load_study
from capgap.cost.makespan import duration
from capgap.cost.next_runs import price
from capgap.law.answers.answer_records import FinalRecord
from capgap.law.law_record import LawRecord
from capgap.records import paths
from capgap.reporting import comparison_text, report_text
from capgap.reporting.answer_text import answer_of
from capgap.reporting.report_text import Passage
from capgap.stages.base import StageParser


def run(study: Study, study_file: Path, console: Console, *, everything: bool = False) -> None:
    """Print the summary of a study. everything: also what the answer rests on."""
    name = study.study
    law = LawRecord.read(result_of(name, paths.LAW))
    has_final = study.final is not None
    final = FinalRecord.read(result_of(name, paths.FINAL)) if has_final else None
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for label, text in _rows(study, law, final, everything):
        if text:
            facts.add_row(label, escape(text))  # or rich takes "[no interval]" for a style
    facts.add_row("report", str(Path(paths.REPORT.format(study=name)).with_name("report.html")))
    if not everything:
        other = "" if str(study_file) == "config.yaml" else f" --study {study_file}"
        facts.add_row("more", escape(f"capgap summary --all{other}"))
    console.print(Panel(facts, title=f"study {name}", title_align="left", padding=(1, 2)))


def _rows(
    study: Study, law: LawRecord, final: FinalRecord | None, everything: bool
) -> list[tuple[str, str]]:
    """What the summary says, as (label, text)."""
    answer = answer_of(law, final)
    passages = [
        ("answer", answer.advice),
        ("cost of another", answer.costs),
        ("how it grows", Passage(answer.growth)),
        ("no teacher", answer.alone),
        ("teachers", Passage(answer.caution)),
        ("final student", Passage(answer.final)),
        ("published law", report_text.verdict(law)),
    ]
    rows = [(label, one.full if everything else one.short) for label, one in passages]
    if everything:
        rows += [("two causes", answer.causes), ("which law", answer.leads)]
        for what, comparisons in comparison_text.comparisons(law).items():
            rows += [(f"by {what}", comparison_text.in_short(one, what)) for one in comparisons]
    for i, experiment in enumerate(answer.experiments):
        cost = price(study, experiment, on_this_machine)
        rows.append(("" if i else "not known", f"{experiment.question}. To settle it, {cost}."))
    return rows


def on_this_machine(study: Study, outputs: list[str]) -> str:
    """'31 jobs, 5.0 min', at the speed of this machine with all its cores or the study's devices."""
    plan = make_plan(study, not_done=outputs)
    return f"{len(plan.left)} jobs, {duration(plan.schedule.makespan_s)}"


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = StageParser("capgap.commands.summary", __doc__)
    parser.add_study()
    parser.add_argument("--all", action="store_true", help="also what the answer rests on")
    args, _ = parser.parse(argv)
    run(load_study(args.study), args.study, Console(), everything=args.all)
