"""
Print what a study found: the law, the recommended teacher, the final student, the report's path.

IN   law.json, choice.json, final.json of a study
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from capgap.commands.verify import result_of
from capgap.config.counts import format_count
from capgap.config.study_file import load_study
from capgap.law.law_record import ArmEffects, FinalRecord, Interval, LawRecord
from capgap.law.words import listed
from capgap.records import paths
from capgap.reporting import wording
from capgap.stages.base import StageParser, run_stage


def interval_text(interval: Interval, digits: int = 2) -> str:
    """An estimate with its interval, like 3.10 [2.20, 4.40]; an open end is written as one."""
    low = "…" if interval.low is None else f"{interval.low:,.{digits}f}"
    high = "…" if interval.high is None else f"{interval.high:,.{digits}f}"
    return f"{interval.value:,.{digits}f} [{low}, {high}]"


def run(study: str, console: Console, *, has_final: bool = True) -> None:
    """Print the summary of a study by name; has_final: whether the study has a final student."""
    law = LawRecord.read(result_of(study, paths.LAW))
    final = FinalRecord.read(result_of(study, paths.FINAL)) if has_final else None
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for line in law.lines:
        facts.add_row(f"law at {format_count(line.tokens)} tokens", _law_text(line))
    facts.add_row("verdict", _verdict_text(law))
    if final is not None:
        choice = final.choice
        size = f"{choice.student_params_non_embedding:,}"
        star = choice.teacher_params_star
        star_text = f" (T* = {interval_text(star, 0)} parameters)" if star else ""
        facts.add_row("recommended", f"{choice.chosen} for a student of {size}{star_text}")
        facts.add_row("", choice.basis_note)
    if len(law.lines) > 1 and law.surface is not None:
        facts.add_row("more tokens", wording.tokens(law))
    for tokens in [line.tokens for line in law.lines]:
        gains = [e for e in law.effects if e.tokens == tokens and e.gain_nats is not None]
        if gains:
            facts.add_row(f"teacher's gain at {format_count(tokens)}", _gain_text(gains))
    if final is not None:
        facts.add_row("final student", final.sentence)
    facts.add_row("report", str(Path(paths.REPORT.format(study=study)).with_name("report.html")))
    console.print(Panel(facts, title=f"study {study}", title_align="left", padding=(1, 2)))


def _verdict_text(law: LawRecord) -> str:
    """The verdict and its reason; the line's numbers stand above it."""
    if law.overall is None:
        return law.verdict
    text = f"law {law.overall.status}: {law.overall.reason}"
    if law.overall.cause == "init":
        text += f"; what makes the optimum is {wording.CAUSES['init']}"
    return text


def _gain_text(gains: list[ArmEffects]) -> str:
    each = listed(f"{found.gain_nats:.3f} ({found.student})" for found in gains)
    text = f"{each} nats per token better with the own teacher than without, from the same start"
    return text + ("; less than 0 is worse" if min(e.gain_nats for e in gains) < 0 else "")


def _law_text(line) -> str:
    if line.status != "fitted":
        return f"not identifiable: {line.reason}"
    inside = "inside" if line.published_slope_inside else "outside"
    sign = "+" if line.intercept.value >= 0 else "-"
    return (
        f"T* = {line.slope.value:.2f} S {sign} {abs(line.intercept.value):,.0f}, "
        f"slope {interval_text(line.slope)}, R² {line.r_squared:.3f}; "
        f"the published {line.published_slope} is {inside} the interval"
    )


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = StageParser("capgap.commands.summary", __doc__)
    parser.add_argument(
        "--study", type=Path, default=Path("config.yaml"), help="study file (default config.yaml)"
    )
    args, _ = parser.parse(argv)
    study = load_study(args.study)
    run(study.study, Console(), has_final=study.final is not None)


if __name__ == "__main__":
    run_stage(main)
