"""
Start a study of your own: a folder with a commented config.yaml, ready for git and DVC.

On a terminal, it prompts for what no option gives: a text, teachers, a student, a time and a device. Then it
proposes a ladder of teachers and students with its cost, and checks it as `capgap plan` does. Nothing
that exists is overwritten.

A text is a file, a folder or a glob (.txt, .md, .jsonl, .parquet), `package:NAME/GLOB` for files of an
installed Python package, or `hub:OWNER/NAME` for a data set of the Hugging Face hub. Teachers are
sizes to train here (23k 41k 92k), model folders, or models of the hub (owner/name, or
owner/name@commit); without any, a ladder is trained here.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from argparse import ArgumentTypeError, Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import jinja2
import yaml
from rich.console import Console
from rich.prompt import Confirm, Prompt

from capgap.command_parser import CommandParser
from capgap.commands import plan
from capgap.commands.new_folder import DVC_FILES, folder_files
from capgap.config import FilesCorpus, HubTeacher, PathTeacher
from capgap.config.counts import format_count, parse_count
from capgap.config.devices import CPU, DEVICE_NAMES
from capgap.config.study_file import check_section
from capgap.config.study_problems import TEACHER_NAME
from capgap.cost.proposal import Proposal, Wish, propose
from capgap.cost.teacher_configs import open_study, size_of
from capgap.data.hub import Absent
from capgap.data.packages import files_in_package
from capgap.data.sources import corpus_files
from capgap.errors import CapgapError, first_line, shown
from capgap.records.artifacts import publish_folder, temporary_folder, write_text
from capgap.stages.base import count_argument

DEFAULT_TIME = "10m"
UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[0-9a-f]{40})?")
REMARKS = {  # on keys of the study file; of one section, or of all that have the key
    "validation_share": "of the bytes; the law is fitted on it",
    "test_share": "the final students are compared on it",
    "vocab_size": "byte-level BPE, trained on the training split",
    "sequence_length": "tokens",
    "batch_tokens": "tokens per optimizer step",
    "learning_rate": "peak",
    "init_std": "narrow models learn faster from more than the usual 0.02",
    "warmup_share": "of the steps",
    "validations": "points of the learning curve",
    "validation_tokens": "of the validation split, for the curve",
    "widths": "the students are members of the teachers' family",
    "schedule": "the budgets of one run share all but the last fifth of their tokens",
    "warmup_tokens": "the same for all budgets",
    "students": "around the one that you want",
    "pretrain.tokens": "of every teacher's training",
    "grid.tokens": "budgets of a student's training; the best teacher grows with them",
    "final.tokens": "as many as the longest of the grid",
    "teacher_ratio": "teachers of every student, in multiples of its size",
    "grid.replicas": "repetitions, each with new teachers, inits and order of the data",
    "final.replicas": "whose teachers and inits it uses",
    "arms": "the same init, trained on the data alone",
    "arm_inits": "only the inits from this teacher",
    "final.student": "its size",
    "gpus": "devices that work at the same time",
}


def duration_argument(text: str) -> float:
    """An argparse type for times like 90s, 10m, 2h or 3d; seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)\s*", text)
    if not match or float(match[1]) == 0:
        raise ArgumentTypeError(f"a time is a number with s, m, h or d, like 10m; got '{text}'")
    return float(match[1]) * UNITS_S[match[2]]


def student_argument(text: str) -> int | float:
    """An argparse type for a student: a size like 20k, or a share of the largest teacher, like 0.3."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    return count_argument(text)


def corpus_of(text: str, folder: Path) -> tuple[dict[str, Any], int | None]:
    """The section `corpus` for a text, and its bytes on disk (None if it is on the hub).

    folder: the study's, from which a path of the study file counts.
    Raises CapgapError if there is nothing to read.
    """
    kind, _, rest = text.partition(":")
    if kind == "package":
        package, _, pattern = rest.partition("/")
        found = files_in_package(package, pattern or "**/*.txt")
        section = {"source": "package", "package": package, "pattern": pattern or "**/*.txt"}
    elif kind == "hub":
        name, revision = _on_hub("dataset", rest)
        return {"source": "hub", "dataset": name, "revision": revision}, None
    else:
        found = corpus_files(text)[0]
        section = {"source": "files", "pattern": _from_folder(text, folder)}
    size = sum(path.stat().st_size for path in found)
    if size == 0:
        kinds = FilesCorpus.model_fields["pattern"].description
        raise CapgapError(f"--text {text}: no text found there ({kinds})")
    return section, size


def teachers_of(
    words: list[str], folder: Path
) -> tuple[dict[str, dict], dict[str, int], tuple[int, ...]]:
    """Fetched teachers by name, their sizes, and sizes of teachers to train; for `--teachers`.

    Raises CapgapError for a word that is neither a size, a model folder nor a model of the hub.
    """
    counts, fetched, sizes = [], {}, {}
    for word in words:
        try:
            counts.append(int(parse_count(word)))
            continue
        except ValueError:
            pass
        if Path(word).is_dir():
            teacher = check_section(PathTeacher, {"source": "path", "path": word}, "--teachers")
            entry = {"source": "path", "path": _from_folder(word, folder)}
        elif HUB_ID.fullmatch(word):
            model, revision = _on_hub("model", word)
            entry = {"source": "hub", "model": model, "revision": revision}
            teacher = check_section(HubTeacher, entry, "--teachers")
        else:
            raise CapgapError(
                f"--teachers: {shown(word)} is neither a size (like 41k) nor an existing folder nor a "
                "model of the hub (owner/name)"
            )
        name = _name(Path(word.partition("@")[0]).name, fetched)
        try:
            fetched[name], sizes[name] = entry, size_of(teacher).params_non_embedding
        except Absent:
            raise CapgapError(
                f"--teachers: config.json of {word} is not in the cache of the hub, and the hub cannot "
                "be reached; run this with a network, or name a folder"
            ) from None
    if counts and fetched:
        raise CapgapError(
            "--teachers: sizes to train and existing models cannot share a tokenizer; give one kind"
        )
    return fetched, sizes, tuple(counts)


def _on_hub(kind: str, name: str) -> tuple[str, str]:
    """A repository of the hub and a commit of it: the one given after @, or that of main."""
    name, _, revision = name.partition("@")
    if revision:
        return name, revision
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return name, HfApi().repo_info(name, repo_type=kind).sha
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise CapgapError(
            f"hub {kind} {name}: its newest commit cannot be looked up ({first_line(error)}); give one, as "
            f"{name}@<40 digits>, or check the name and the network"
        ) from None


def _name(text: str, taken: dict) -> str:
    """A teacher's name from the name of its folder or repository."""
    name = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip(".-") or "teacher"
    assert re.fullmatch(TEACHER_NAME, name)
    while name in taken or name == "none":
        name += "-2"
    return name


def _from_folder(path: str, folder: Path) -> str:
    """A path as the study in a folder names it: relative if it lies inside, else absolute."""
    absolute = Path(os.path.abspath(path))
    with contextlib.suppress(ValueError):
        return str(absolute.relative_to(os.path.abspath(folder)))
    return str(absolute)


def ask(args: Namespace, console: Console) -> None:
    """Ask on a terminal for settings that no option gave, and show the defaults."""

    def value(question: str, default: str | None, parse) -> Any:
        while True:
            answer = Prompt.ask(question, default=default, console=console)
            try:
                return parse(answer) if answer else None
            except (ArgumentTypeError, CapgapError) as error:
                console.print(str(error), style="red")

    def text(answer: str) -> str:
        corpus_of(answer, args.folder)
        return answer

    def teachers(answer: str) -> list[str]:
        words = [] if answer == "ladder" else answer.split()
        teachers_of(words, args.folder)
        return words

    if args.text is None:
        args.text = value("Text (a file, a folder, package:... or hub:...)", None, text)
    if args.teachers is None:
        hint = "Teachers (ladder: trained here; or sizes, model folders, hub names)"
        args.teachers = value(hint, "ladder", teachers)
    if args.student is None:
        hint = "Student (a size like 20k, or a share of the largest teacher; auto: as time allows)"
        args.student = value(
            hint, "auto", lambda answer: None if answer == "auto" else student_argument(answer)
        )
    if args.device is None:
        args.device = Prompt.ask("Device", choices=list(DEVICE_NAMES), default=CPU, console=console)
    if args.time is None and args.tokens is None:
        args.time = value("Time that the study may take", DEFAULT_TIME, duration_argument)


def wish_of(args: Namespace) -> Wish:
    """The wish that options and answers make."""
    if not args.text:
        raise CapgapError("--text is needed: a file, a folder, package:NAME/GLOB or hub:OWNER/NAME")
    corpus, size = corpus_of(args.text, args.folder)
    fetched, sizes, to_train = teachers_of(args.teachers or [], args.folder)
    share = args.student if isinstance(args.student, float) else None
    if share and not (fetched or to_train):
        raise CapgapError(
            f"--student {share:g} is a share of the largest teacher, but --teachers names none; give "
            "a size like 20k, or teachers"
        )
    seconds = args.time
    if seconds is None and args.tokens is None:
        seconds = duration_argument(DEFAULT_TIME) if (args.device or CPU) == CPU else None
    folder = Path(os.path.abspath(args.folder)).name
    return Wish(
        name=args.name or re.sub(r"[^a-z0-9_-]+", "-", folder.lower()).strip("-_")[:64] or "study",
        corpus=corpus,
        corpus_bytes=size,
        fetched=fetched,
        fetched_sizes=sizes,
        teacher_sizes=to_train,
        student=None if share else args.student,
        student_share=share,
        tokens=args.tokens,
        seconds=seconds,
        device=args.device or CPU,
        devices=args.gpus,
    )


def price(study: dict[str, Any]) -> float:
    """Seconds that a study takes by the plan, from nothing."""
    return plan.make_plan(open_study(study)).schedule.makespan_s


def study_text(wish: Wish, study: dict[str, Any]) -> str:
    """The commented YAML of a study."""
    loaded = open_study(study)
    sizes = {name: loaded.teacher_size(name) for name in loaded.teachers}
    student = study["final"]["student"]
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"yaml": _yaml, "count": format_count}
    template = Path(__file__).with_name("new_study.yaml.j2").read_text(encoding="utf-8")
    order = dict(sorted(study["teachers"].items(), key=lambda item: sizes[item[0]]))
    return environment.from_string(template).render(
        title=f"Which teacher is the best for a student of {format_count(student)}?",
        study={"pretrain": None, "plan": None, **study, "teachers": order},
        remarks=defaultdict(str, REMARKS),
        ratios={n: f" # {size / student:.1f} times the student" for n, size in sizes.items()},
    )


def _yaml(value: Any) -> str:
    """A value on one line of YAML, counts of thousands with their suffix."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, int) and value >= 1000 and value % 100 == 0:
        return format_count(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    )


def check_new(folder: Path, file: Path) -> None:
    """Raise CapgapError if the study file is there already, or the folder cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise CapgapError(f"{folder} is a file; name a folder")
    if os.path.lexists(folder / file):
        raise CapgapError(
            f"{folder / file} exists already and is not overwritten; name another folder, or another "
            "study file in this one: --file configs/my-study.yaml"
        )


def write_folder(folder: Path, file: Path, text: str, study: str) -> tuple[list[Path], list[Path]]:
    """Write the study and files for git and DVC; returns the files written and those kept.

    A new folder appears as a whole. In an older one each file does, and the study file last: as long as
    that is missing, the same command can be repeated.
    """
    check_new(folder, file)  # again, since a person may have taken minutes to answer
    beside = folder_files(file, study)
    if file != Path("config.yaml"):  # the only one that DVC's stage names
        beside = {name: content for name, content in beside.items() if name not in DVC_FILES}
    files = {**beside, file: text}
    if not any(folder.iterdir()) and not folder.samefile("."):
        with publish_folder(folder, manifest=False) as new:
            for name, content in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_text(content, encoding="utf-8")
        written, kept = [folder / name for name in files], []
    else:
        kept = [folder / name for name in files if os.path.lexists(folder / name)]
        written = [folder / name for name in files if folder / name not in kept]
        for path in kept:
            with temporary_folder(path):  # removes what a kill may have left of it
                pass
        for path in written:
            write_text(path, files[path.relative_to(folder)])
    return sorted(written, key=lambda path: path != folder / file), kept


def show(console: Console, wish: Wish, proposal: Proposal) -> None:
    """Print the proposal with its cost."""
    study = proposal.study
    made = plan.make_plan(open_study(study))
    grid, final = study["grid"], study["final"]
    sizes = {name: made.study.teacher_size(name) for name in made.study.teachers}
    ladder = ", ".join(
        f"{n} ({s / final['student']:.1f} x)" for n, s in sorted(sizes.items(), key=lambda i: i[1])
    )
    students = ", ".join(map(format_count, grid["students"]))
    console.print(f"teachers  {ladder}")
    console.print(f"students  {students}; in the end {format_count(final['student'])}")
    console.print(f"tokens    {', '.join(map(format_count, grid['tokens']))} for each student")
    console.print(f"replicas  {len(grid['replicas'])}")
    console.print(f"cost      {plan.short(made)}")
    notes = list(proposal.notes)
    outside = [wish.corpus.get("pattern", ""), *(t.get("path", "") for t in wish.fetched.values())]
    for path in filter(os.path.isabs, outside):
        notes.append(
            f"{path} lies outside of the study's folder, so everybody you share it with needs it there"
        )
    for note in notes:
        console.print(f"note      {note}")
    if made.misfits:
        raise CapgapError(
            f"this study does not fit {wish.device}, see above; name a larger device or smaller models"
        )


def run(args: Namespace, console: Console, *, interactive: bool) -> None:
    """Propose a study, show it, and write it."""
    check_new(args.folder, args.file)
    if interactive:
        ask(args, console)
    wish = wish_of(args)
    created = not args.folder.exists()
    args.folder.mkdir(parents=True, exist_ok=True)
    start = Path.cwd()
    try:
        os.chdir(args.folder)  # paths in a study count from its folder
        proposal = propose(wish, price)
        show(console, wish, proposal)
        text = study_text(wish, proposal.study)
        if open_study(yaml.safe_load(text)) != open_study(proposal.study):
            raise AssertionError("the written study differs from the proposed one")
        os.chdir(start)
        if interactive and not Confirm.ask("Write it?", default=True, console=console):
            raise CapgapError("nothing was written")
    except BaseException:
        os.chdir(start)
        if created:
            with contextlib.suppress(OSError):
                args.folder.rmdir()
        raise
    written, kept = write_folder(args.folder, args.file, text, wish.name)
    console.print(f"\nwrote {', '.join(map(str, written))}")
    for path in kept:
        console.print(f"kept {path}, which existed")
    console.print("\nnext:")
    option = "" if str(args.file) == "config.yaml" else f" --study {args.file}"
    here = os.path.abspath(args.folder) == os.getcwd()
    commands = [f"capgap plan{option}", f"capgap run{option}", f"capgap summary{option}"]
    if not here:
        commands = [f"cd {args.folder}", *commands[:2]]
    for command in commands:
        console.print(f"  {command}")


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap init`."""
    parser = CommandParser("init", __doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(),
        help="folder of the study (default: this one)",
    )
    parser.add_argument(
        "--text", help="what to train on: a file, folder or glob, package:, or hub:"
    )
    parser.add_argument(
        "--teachers",
        nargs="+",
        metavar="TEACHER",
        help="sizes to train here, model folders, or models of the hub (default: a ladder from 1.45 to "
        "13 times the student, trained here)",
    )
    parser.add_argument(
        "--student",
        type=student_argument,
        metavar="SIZE",
        help="size that you want, like 20k, or a share of the largest teacher, like 0.3 (default: as "
        "large as the time allows)",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--time",
        type=duration_argument,
        help=f"time that the whole study may take, like 10m, 2h or 3d (default on a CPU {DEFAULT_TIME})",
    )
    budget.add_argument(
        "--tokens",
        type=count_argument,
        help="tokens of the longest distillation, like 500k, instead of a time",
    )
    parser.add_argument(
        "--device",
        choices=DEVICE_NAMES,
        metavar="NAME",
        help=f"{' | '.join(DEVICE_NAMES)} (default cpu)",
    )
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="how many of them (default 1)"
    )
    parser.add_argument("--name", help="name of the study (default: the folder's)")
    parser.add_argument(
        "--file",
        type=Path,
        default=Path("config.yaml"),
        help="study file inside the folder (default config.yaml)",
    )
    parser.add_argument(
        "--yes", action="store_true", help="ask nothing, take the defaults for what is not given"
    )
    args = parser.parse_args(argv)
    interactive = not args.yes and sys.stdin.isatty() and sys.stdout.isatty()
    run(args, Console(soft_wrap=True, highlight=False, markup=False), interactive=interactive)
