"""
The common part of all stages' command lines.

A stage is a module with a docstring, `main(argv)` and `run(...)`. Its options come from its
settings class, so `--help` shows the meaning and unit of each. The workflow passes the same settings
as one JSON text with `--spec`, together with the source digest of its plan. A stage stops with an
error if the source has changed since, and locks `--out` against other writers.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import io
import json
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capgap.command_parser import CommandParser
from capgap.config.counts import parse_count
from capgap.config.study_file import check_section, sections_in, tags_of
from capgap.errors import CapgapError, Terminated, hide_secrets, out_of_memory, shown
from capgap.records.artifacts import check_file, check_filled, check_folder, is_first_process
from capgap.records.paths import CURVE, TRAIN
from capgap.terminal import die_with_parent, end_by_signal, end_unread, open_streams
from capgap.workflow.digest import source_digest
from capgap.workflow.locks import claim_output
from capgap.workflow.tracking import trackers_of


class StageParser(CommandParser):
    """Parser of one stage: paths are added by the stage, settings by their class."""

    def __init__(self, module: str, summary: str | None, settings: Any = None):
        super().__init__(module.rsplit(".", 1)[-1].replace("_", "-"), summary)
        self.module, self.settings = module, settings
        self.add_argument("--spec", help=argparse.SUPPRESS)  # settings as the workflow passes them
        group = self.add_argument_group("settings")
        for name, fields in _fields(settings).items():
            choices = [c for field in fields.values() for c in _choices(field.annotation)]
            group.add_argument(
                f"--{name.replace('_', '-')}",
                dest=f"setting_{name}",
                metavar=" | ".join(dict.fromkeys(choices)) or "X",
                help=_help(fields, len(sections_in(settings))).replace("%", "%%"),
            )

    def _spec(self, text: str | None) -> dict:
        """The settings of `--spec`; empty without it."""
        if not text:
            return {}
        try:
            spec = json.loads(text)
        except (ValueError, RecursionError):
            spec = None
        if not isinstance(spec, dict) or "source" not in spec:
            raise CapgapError(
                f"--spec is what the workflow passes, a JSON object with the key source, got "
                f"{shown(text)}; by hand, give the settings as options ({self.prog} --help)"
            )
        return spec

    def add_processes(self) -> None:
        """An option for how many processes share the work; the result does not depend on it."""
        self.add_argument(
            "--processes",
            type=int,
            metavar="N",
            help="processes that share the work (default: one for each core)",
        )

    def parse(
        self, argv: list[str] | None, spec_only: Any = None
    ) -> tuple[argparse.Namespace, Any]:
        """Parse the command line into (paths and identity, validated settings).

        spec_only: settings that only the workflow passes, None without `--spec`.
        """
        args = self.parse_args(argv)
        spec = self._spec(args.spec)
        if spec and spec["source"] != source_digest(self.module):
            raise CapgapError(
                f"the source of {self.module} changed after the run was planned; run again"
            )
        if spec and is_first_process():  # the one that writes
            self.claim = claim_output(args.out)
        if hasattr(args, "scratch"):  # a state must not be resumed by other source
            args.scratch = args.scratch / source_digest(self.module)
        if self.settings is None:
            given = spec.get("settings") if spec_only else None
            return args, given and check_section(spec_only, given, f"settings of {self.prog}")
        data = dict(spec.get("settings", {}))
        if spec and "track" in _fields(self.settings):  # trackers are not in a rule's parameters
            data["track"] = trackers_of(self.module.rsplit(".", 1)[-1])
        for name in _fields(self.settings):
            value = getattr(args, f"setting_{name}")
            if value is not None:
                data[name] = value
        return args, check_section(self.settings, data, f"settings of {self.prog}")


def _fields(settings: Any) -> dict[str, dict[str, Any]]:
    """Fields of a Section class or of a union of them: by name, then by the source they are for."""
    fields: dict[str, dict[str, Any]] = {}
    for section in sections_in(settings):
        source = tags_of(section)[0] if "source" in section.model_fields else ""
        for name, field in section.model_fields.items():
            fields.setdefault(name, {})[source] = field
    return fields


def _help(fields: dict[str, Any], of: int) -> str:
    """What a setting means and its default, once for all sources or for each; `of` sources in all."""
    texts: dict[str, list[str]] = {}
    for source, field in fields.items():
        default = field.get_default(call_default_factory=True)
        default_text = "not set" if default is None else f"default {default}"
        text = f"{field.description or 'where it comes from'} ({'required' if field.is_required() else default_text})"
        texts.setdefault(text, []).append(source)
    return "; ".join(
        text if len(sources) == of else f"source {' or '.join(sources)}: {text}"
        for text, sources in texts.items()
    )


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [c for member in typing.get_args(annotation) for c in _choices(member)]
    return []


def _run(main: Callable[[list[str] | None], Any], argv: list[str] | None = None) -> None:
    """Run a stage's `main` as a program; a CapgapError ends in one message and status 1.

    On SIGTERM a training job saves its state and ends with status 75 (EX_TEMPFAIL of sysexits.h); the
    next run resumes it.
    """
    if os.environ.get("CAPGAP_UNDER_WORKFLOW"):
        die_with_parent()
    open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the live display reads logs as they grow
    if not is_first_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  one log, not one a process
    try:
        try:
            main(argv)
        finally:
            sys.stdout.flush()
        return
    except Terminated as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(os.EX_TEMPFAIL)
    except CapgapError as error:
        message = str(error)
    except BrokenPipeError:  # as in `capgap ... | head`, which is no error
        end_unread()
    except OSError as error:
        message = system_message(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        message = (
            f"out of memory ({(str(error).strip() or 'none left').splitlines()[0]}); lower a batch size "
            "of this stage if it has one (--help), or run it where there is more"
        )
    except KeyboardInterrupt:
        print("interrupted; run again to go on", file=sys.stderr, flush=True)
        end_by_signal(signal.SIGINT)
    try:
        print(f"error: {hide_secrets(message)}", file=sys.stderr, flush=True)
    finally:
        sys.exit(1)


def run_stage(main: Callable[[list[str] | None], Any], argv: list[str] | None = None) -> None:
    """`_run` as a process of its own, which ends with it.

    Garbage collection and the interpreter's shutdown are skipped, because together they take half of
    the CPU time of a short job.
    """
    gc.freeze()
    try:
        with quiet_transformers():
            _run(main, argv)
    finally:
        gc.unfreeze()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(0)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn off progress bars in logs, and transformers' warnings of problems that are errors here."""
    library = sys.modules.get("transformers.utils.logging")
    if library is None:
        yield
        return
    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


FIXES = {
    errno.ENOENT: "check the path",
    errno.EEXIST: "name another place",
    errno.ENOTEMPTY: "name another place",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "correct the link, which leads back to itself",
    errno.EBUSY: "end what uses it, or name another place",
    errno.ETXTBSY: "end what uses it, or name another place",
    errno.EXDEV: "name a place on one disk",
    errno.EIO: "the disk or the network behind it fails; check it, then run again",
    errno.ESTALE: "the network file system lost it; check the mount, then run again",
    errno.ETIMEDOUT: "the network does not answer; check it, then run again",
    errno.EMFILE: "allow more open files (ulimit -n), then run again",
    errno.ENFILE: "end what holds so many files open, then run again",
    errno.EFBIG: "allow larger files (ulimit -f), or name another disk",
    errno.ENOLCK: "use a file system that has locks",
    errno.EACCES: "give yourself the right to, or name another place",
    errno.EPERM: "give yourself the right to, or name another place",
    errno.EROFS: "make it writable, or name another place",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder",
    errno.ENOSPC: "free some space and run again: what was finished before is intact",
    errno.EDQUOT: "free some space and run again: what was finished before is intact",
}


def system_message(error: OSError) -> str:
    """Translate an OSError into a message with a fix; re-raise unknown ones."""
    if error.errno not in FIXES:
        raise error
    what = (error.strerror or str(error)).lower()
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{what}; {FIXES[error.errno]}"


def out_folder(text: str) -> Path:
    """An argparse type for a folder to write; raises before the work if it cannot be written."""
    check_folder(text)
    return Path(text)


def out_file(text: str) -> Path:
    """An argparse type for a file to write; raises before the work if it cannot be written."""
    check_file(text)
    return Path(text)


def out_filled(text: str) -> Path:
    """An argparse type for the folder of a training job; other files in it are kept."""
    check_filled(text, ("model", "trunk"), (CURVE, TRAIN))
    return Path(text)


def count_argument(text: str) -> int:
    """An argparse type for counts like 60k or 2.5M."""
    try:
        return int(parse_count(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got '{text}'") from None


def seed_argument(text: str) -> int:
    """An argparse type for seeds."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(
            f"a seed is a whole number from 0 to {2**31 - 1:,}, got '{text}'"
        )
    return int(text)


def add_training_arguments(parser: StageParser) -> None:
    """Options of a training job for its output, its state and its processes."""
    parser.add_argument(
        "--out",
        required=True,
        type=out_filled,
        help="folder to fill: model/, curve.csv, train.json",
    )
    add_state_arguments(parser)
    parser.add_argument(
        "--shard",
        action="store_true",
        help="with several processes (torchrun): share weights, gradients and optimizer among them "
        "(FSDP2) instead of keeping a copy in each (DDP)",
    )


def add_stream_argument(parser: StageParser) -> None:
    """The option to leave a model on disk."""
    parser.add_argument(
        "--stream",
        action="store_true",
        help="run the model layer by layer from disk, as is done anyway if it does not fit into memory; "
        "results are the same",
    )


def add_state_arguments(parser: StageParser) -> None:
    """Options of a job that can be resumed: the folder of its state, and how often it saves."""
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("scratch"),
        help="folder for the state of an unfinished run, which is resumed (default scratch)",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=float(os.environ.get("CAPGAP_CHECKPOINT_SECONDS", 60)),
        metavar="S",
        help="seconds between saved states (default 60, or CAPGAP_CHECKPOINT_SECONDS)",
    )
