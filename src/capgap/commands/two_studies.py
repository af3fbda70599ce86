"""
Write the report of a study, or, with --against, one page that sets two studies side by side.

IN   records of a study; with --against the law and table of two
OUT  the report's folder; with --against one HTML file, which needs no network and no other file
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from capgap.commands.recommend import law_paths
from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.law_record import LawRecord
from capgap.law.table.init_kinds import runs_of_law
from capgap.law.table.metric import METRICS
from capgap.law.table.read_runs import main_arm, read_runs, read_table
from capgap.law.verdicts.study_difference import compare
from capgap.records.artifacts import check_file, write_text
from capgap.reporting import two_studies_text
from capgap.reporting.report_text import nats, nats_interval, size
from capgap.reporting.two_studies_chart import two_laws
from capgap.stages import report
from capgap.stages.base import StageParser
from capgap.stages.fit import fit

PAGE = "two_studies.html.j2"
LABELS = {
    "sizes": (
        "Does the best teacher grow alike?",
        "Points are T* by the power law of each study, with its interval, which the figure cuts off if "
        "it has no limit. A line is one budget.",
    ),
    "ratios": (
        "Is it the same multiple of the student?",
        "The same optima as T*/S, against tokens per student parameter. A line is one student; the "
        "dashed rule is the published ratio.",
    ),
}


class Side(NamedTuple):
    """One of two studies."""

    name: str
    law: LawRecord
    runs: pd.DataFrame


def read_side(path: Path) -> Side:
    """A study by the folder of its results, of its table and law, or by one of the two files.

    A table without a law is fitted here with the default settings. Raises CapgapError if the path has
    neither, or if table and law do not belong together.
    """
    law_file, table_file, name = _located(path)
    if not table_file.is_file():
        raise CapgapError(
            f"{table_file}: no such file; a comparison needs the table of runs beside the law"
        )
    if law_file is None or not law_file.is_file():
        table = read_table(table_file)
        law = fit(table, Law())
        return Side(name, law, runs_of_law(table.runs, law))
    return _side(name, law_file, table_file)


def _side(name: str, law_file: Path, table_file: Path) -> Side:
    law = LawRecord.read(law_file)
    runs = runs_of_law(read_runs(table_file, law.measured, law.excluded), law)
    if len(main_arm(runs)) != law.n_runs:
        raise CapgapError(
            f"{law_file} was fitted on {law.n_runs} runs, {table_file} has {len(main_arm(runs))} of the "
            "main arm; fit the law again on this table (capgap law fit)"
        )
    return Side(name, law, runs)


def _located(path: Path) -> tuple[Path | None, Path, str]:
    """Law, table and name of the study that a path names."""
    if path.is_file():
        name = _name(path)
        if path.suffix == ".json":
            return path, path.with_name("runs.csv"), name
        return path.with_name("law.json"), path, name if path.name == "runs.csv" else path.stem
    if not path.is_dir():
        raise CapgapError(
            f"--against: {path} does not exist; name a study's folder, its results, or a law.json or "
            "runs.csv"
        )
    inside = sorted(path.glob("results/*/law/law.json"))
    for folder, name in [(path, path.resolve().name), (path / "law", path.resolve().name)]:
        if (folder / "runs.csv").is_file():
            return folder / "law.json", folder / "runs.csv", name
    if len(inside) == 1:
        return inside[0], inside[0].with_name("runs.csv"), inside[0].parent.parent.name
    several = f"; it has {', '.join(str(p.parent) for p in inside)}, name one" if inside else ""
    raise CapgapError(
        f"--against: {path} has no runs.csv, no law/ and no finished study in results/{several}"
    )


def _name(file: Path) -> str:
    """Name of the study that a law or a table belongs to, by its folder."""
    folder = file.resolve().parent
    return folder.parent.name if folder.name == "law" else folder.name


def page(ours: Side, theirs: Side) -> str:
    """The page as HTML."""
    found = compare(ours.law, ours.runs, theirs.law, theirs.runs)
    names = [ours.name, theirs.name]
    if names[0] == names[1]:
        names = [f"{names[0]} (here)", f"{names[1]} (other)"]
    figures = two_laws(dict(zip(names, (ours.law, theirs.law), strict=True)))
    pictures = {
        figure.name: Markup(report.render_svg(figure.name, report.specification(figure)))
        for figure in figures
    }
    return (
        report.environment((PAGE,))
        .get_template(PAGE)
        .render(
            ours=names[0],
            theirs=names[1],
            n_ours=ours.law.n_runs,
            n_theirs=theirs.law.n_runs,
            found=found,
            confidence=(ours.law.confidence, theirs.law.confidence),
            metric=METRICS[ours.law.metric],
            pictures=pictures,
            labels=LABELS,
            style=Markup("\n").join(report.part(name) for name in report.STYLES),
            w=two_studies_text,
            nats=nats,
            nats_interval=nats_interval,
            size=size,
        )
    )


class _Parser(StageParser):
    """The parser of the stage, which needs nothing but --against if that is given."""

    def parse_known_args(self, args=None, namespace=None):
        if args and is_comparison(args):
            for action in self._actions:
                action.required = False
                if action.dest == "out":
                    action.type, action.default = _page_argument, Path("comparison.html")
        return super().parse_known_args(args, namespace)


def is_comparison(words: list[str]) -> bool:
    """Whether a command line asks for a comparison."""
    return any(word.split("=")[0] == "--against" for word in words)


def _parser() -> StageParser:
    parser = report.report_parser(_Parser)
    group = parser.add_argument_group("to compare two studies")
    group.add_argument(
        "--against",
        type=Path,
        metavar="OTHER",
        help="folder of another study, of its results, or a law.json or runs.csv; the study here is "
        "config.yaml's, or that of --law and --runs, and --out names the page "
        "(default comparison.html)",
    )
    group.add_argument("--study", help="study file of the study here (default config.yaml)")
    return parser


def _page_argument(text: str) -> Path:
    check_file(text)
    return Path(text)


def side_here(args: argparse.Namespace) -> Side:
    """The study that is compared: of --law and --runs, of the study file, or the published one."""
    law, table, note = law_paths(args)  # the published study's if there is none here
    if note:
        print(f"note: {note}", file=sys.stderr)
    return _side(args.study_name or _name(Path(law)), Path(law), Path(table))


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    words = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(words)
    if args.against is None:
        report.main(words)
        return
    theirs = read_side(args.against)
    write_text(args.out, page(side_here(args), theirs))
    print(f"wrote {args.out}")
