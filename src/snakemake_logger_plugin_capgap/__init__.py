"""
Live progress of a study, in place of Snakemake's wall of text: `snakemake --logger capgap ...`.

On a terminal each finished job is one line, above an area that shows how far the study is and
the last line of every running job's log. Elsewhere (CI, a file) the same lines come without the area, and
a heartbeat once a minute. Failures, errors and warnings are always shown. Snakemake's own full
record of the run is in `.snakemake/log/`. A dry run writes the outputs that it would make, one a line,
into the file that CAPGAP_PLANNED names.

Jobs are expected to write to their log: what one prints straight to the terminal is overdrawn by
the live area.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from logging import ERROR, WARNING
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_capgap.job_text import (
    duration,
    error_lines,
    job_count,
    job_identity,
    log_tail,
    plain,
    short_reason,
)
from snakemake_logger_plugin_capgap.progress import Job, Progress

HEARTBEAT_S = 60
FAILURE_LINES = 12
COMMAND_ERROR = re.compile(
    r"RuleException:\nCalledProcessError in file .*\nCommand '(?P<command>.*)' (?:returned non-zero "
    r"(?P<status>exit status \d+)|died with <Signals\.(?P<signal>\w+): \d+>)\.",
    re.DOTALL,
)
MISSING_OUTPUT = re.compile(r"MissingOutputException.*\nJob (?P<jobid>\d+) ")
# Routine messages of Snakemake, and those that this module words itself.
ROUTINE = re.compile(
    "Assuming unrestricted shared|Building DAG|Complete log|Conda environments: ignored|"
    "DAG of jobs will be updated|Elapsed time|Exiting because a job execution failed|"
    "Group jobs: inactive|Reasons:|Removing output files of failed|Removing temporary output|"
    "Rules with provenance|Select jobs|Shell command: None|Shutting down|"
    "Singularity containers: ignored|Some jobs were triggered by provenance|This was a dry-run|"
    "Touching output|Trying to restart|Updating checkpoint|Using shell|Would remove temporary|"
    "WorkflowError:\nAt least one job did not complete|Write-protecting output|None$|$"
)
IN_OUR_WORDS = {
    "Nothing to be done": "nothing to do: everything is up to date",
    "The run involves checkpoint jobs": "more jobs become known when a checkpoint has run",
}


class LogHandler(LogHandlerBase):
    """Shows Snakemake's events; `emit` runs in one thread, the live area in another."""

    writes_to_stream = True  # Snakemake then leaves its own stream handler out
    writes_to_file = False
    has_filter = True  # Snakemake's own filter would hide failures when quiet
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        """Prepare the output; nothing is shown before the first event."""
        self.options = self.common_settings
        quiet = set(self.options.quiet or ())
        self.quiet = set(Quietness) if Quietness.ALL in quiet else quiet
        stream = sys.stdout if self.options.stdout else sys.stderr
        self.console = Console(
            file=stream,
            force_terminal=stream.isatty(),
            no_color=self.options.nocolor or None,
            highlight=False,
            markup=False,
        )
        self.progress = Progress()
        self.planned: list[str] = []  # outputs, of a dry run
        self.finished: list[Any] = []  # shown when PROGRESS brings the new total
        self.command_errors: list[re.Match] = []  # shown with the failure of their job
        self.warnings: set[str] = set()
        self.had_error = False
        self.live: Live | None = None
        self.closed = threading.Event()
        self.on_event = {
            LogEvent.RUN_INFO: self.on_run_info,
            LogEvent.JOB_INFO: self.on_job_info,
            LogEvent.JOB_FINISHED: self.finished.append,
            LogEvent.PROGRESS: self.on_progress,
            LogEvent.JOB_ERROR: self.on_job_error,
            LogEvent.GROUP_ERROR: self.on_group_error,
            LogEvent.ERROR: self.on_message,
            None: self.on_message,
        }

    def emit(self, record: Any) -> None:
        """Show one event of the workflow."""
        try:
            self.on_event.get(getattr(record, "event", None), self.on_detail)(record)
            if self.live:
                self.live.refresh()
        except Exception:  # a mistake in showing progress must not end the study
            self.handleError(record)

    def say(self, text: str, style: str = "") -> None:
        """Print above the live area; long lines are wrapped by the terminal, not in a file."""
        self.console.print(Text(text, style), soft_wrap=True)

    def on_run_info(self, record: Any) -> None:
        """Announce the jobs to do; a dry run counts them at its end."""
        self.progress.started = record.created
        self.progress.left = Counter(record.stats)
        self.progress.total = self.progress.left.pop("total")
        if self.options.dryrun or Quietness.PROGRESS in self.quiet:
            return
        kinds = ", ".join(f"{count} {rule}" for rule, count in self.progress.left.items())
        self.say(f"{job_count(self.progress.total)} to do: {kinds}", "bold")
        if self.console.is_interactive:
            self.live = Live(
                console=self.console,
                get_renderable=self.live_area,
                refresh_per_second=1,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )
            self.live.start()
        else:
            threading.Thread(target=self.beat, daemon=True).start()

    def on_job_info(self, record: Any) -> None:
        """Note a started job; a dry run lists it with the reason."""
        identity = job_identity(record.wildcards, record.output)
        job = Job(record.rule_name, identity, record.log, record.created)
        if not self.options.dryrun:
            if self.progress.failed.pop(record.jobid, None):
                self.say(f"trying again: {job}", "yellow")
            self.progress.running[record.jobid] = job
            return
        self.planned += record.output
        if Quietness.RULES not in self.quiet:
            full = self.options.verbose or self.options.printshellcmds
            reason = record.reason if full else short_reason(record.reason)
            self.say(f"{job}" + ("" if Quietness.REASON in self.quiet else f"  ({reason})"))

    def on_progress(self, record: Any) -> None:
        """Show the jobs that finished since the last count; checkpoints change the total."""
        self.progress.total = record.total
        while self.finished:
            end = self.finished.pop(0)
            job = self.progress.finish(end.job_id, end.created)
            place = f"[{self.progress.done:>{len(str(record.total))}}/{record.total}]"
            took = (f"  {duration(end.created - job.started)}", "dim")
            self.console.print(Text.assemble((place, "green"), f" {job}", took), soft_wrap=True)

    def on_job_error(self, record: Any) -> None:
        """Show which job failed, how its command ended, and the end of its log."""
        unknown = Job(record.rule_name, "", record.log, record.created)
        job = self.progress.running.pop(record.jobid, unknown)
        text = f"{job}  after {duration(record.created - job.started)}"
        command = (record.shellcmd or "").strip()
        end = next((e for e in self.command_errors if command and command in e["command"]), None)
        if end:
            self.command_errors.remove(end)
            text += f", {end['status'] or end['signal']}"
            if end["signal"] == "SIGINT":
                self.say(f"interrupted: {text}", "yellow")
                return
        self.progress.failed[record.jobid] = job
        self.say(f"failed: {text}", "bold red")
        details = [record.rule_msg, *(f"{name}: {value}" for name, value in record.aux.items())]
        for detail in filter(None, details):
            self.say(f"  {detail}")
        self.say_logs(record.log)
        job.error = "\n".join(error_lines(job.logs))
        if command and not record.log:
            self.say(f"  it has no log; its command:\n{textwrap.indent(command, '  | ')}")

    def on_group_error(self, record: Any) -> None:
        """Show the logs of a failed group of jobs; its jobs follow as their own errors."""
        self.say(f"failed: group {record.groupid}, its jobs below", "bold red")
        self.say_logs(record.aux_logs)

    def say_logs(self, paths: list[str]) -> None:
        """Show the last lines of each log, or all with --show-failed-logs."""
        for path in paths:
            lines = log_tail(path, None if self.options.show_failed_logs else FAILURE_LINES)
            self.say(f"  log: {path}{'' if lines else ' (empty)'}")
            for line in lines:
                self.say(f"  | {line}", "" if line.lower().startswith("error") else "dim")

    def on_message(self, record: Any) -> None:
        """Show a message: errors in full, warnings once, of the rest what is not routine."""
        text = plain(self.format(record) or "").strip()
        routine = ROUTINE.match(text) and not self.options.verbose
        self.had_error |= record.levelno >= ERROR
        text = next((own for start, own in IN_OUR_WORDS.items() if text.startswith(start)), text)
        if command_error := COMMAND_ERROR.fullmatch(text):
            self.command_errors.append(command_error)
        elif routine or (record.levelno == WARNING and text in self.warnings):
            return
        elif record.levelno >= WARNING:
            self.warnings.add(text)
            self.say(text, "red" if record.levelno >= ERROR else "yellow")
            missing = MISSING_OUTPUT.match(text)  # the one failure without a JOB_ERROR
            if missing and (job := self.progress.running.pop(int(missing["jobid"]), None)):
                self.progress.failed[int(missing["jobid"])] = job
        elif not self.quiet & {Quietness.ALL, getattr(record, "quietness", None)}:
            self.say(text)

    def on_detail(self, record: Any) -> None:
        """Show an event of another kind if an option requests it, or if it is a problem."""
        commands = self.options.printshellcmds and Quietness.RULES not in self.quiet
        asked = {LogEvent.SHELLCMD: commands, LogEvent.DEBUG_DAG: self.options.debug_dag}
        if asked.get(record.event, self.options.verbose) or record.levelno >= WARNING:
            self.on_message(record)

    def live_area(self) -> RenderableType:
        """Draw the bottom of the terminal."""
        return self.progress.draw(time.time(), self.console.height)

    def beat(self) -> None:
        """Print once a minute what the running jobs do, until the end."""
        while not self.closed.wait(HEARTBEAT_S):
            self.say(self.progress.heartbeat(time.time()))

    def close(self) -> None:
        """End the live area and sum the run up, once."""
        if not self.closed.is_set():
            self.closed.set()
            try:
                self.sum_up()
            except Exception:  # Snakemake would drop it silently
                traceback.print_exc()
        super().close()

    def sum_up(self) -> None:
        """Print how the run ended."""
        if self.live:
            self.live.stop()
        if self.options.dryrun and "CAPGAP_PLANNED" in os.environ:
            Path(os.environ["CAPGAP_PLANNED"]).write_text("\n".join(self.planned), encoding="utf-8")
        for error in self.command_errors:
            self.say(error[0], "red")
        run, planned = self.progress, job_count(self.progress.total)
        if self.options.dryrun and run.total:
            for rule, count in run.left.items():
                self.say(f"{count:>{len(str(run.total))}} {rule}")
            self.say(f"{planned} to do; this was a dry run, nothing was changed", "bold")
        elif run.failed:
            done = f", {run.done} done" if run.done else ""
            self.say(f"{len(run.failed)} of {planned} failed{done}:", "bold red")
            causes: dict[str, list[Job]] = {}
            for job in run.failed.values():
                causes.setdefault(job.error, []).append(job)
            for error, jobs in causes.items():
                for job in jobs:
                    self.say(f"  {job}")
                if error:
                    self.say(textwrap.indent(error, "    "), "red")
            self.say("fix the causes shown above and run again: finished jobs are kept", "bold red")
        elif run.total and Quietness.PROGRESS not in self.quiet:
            if self.had_error and run.done < run.total:
                prefix = f"stopped with {run.done} of {planned} done; run again to go on: "
                self.say(f"{prefix}finished jobs are kept", "bold yellow")
            else:
                took = duration(time.time() - run.started)
                self.say(f"{job_count(run.done)} done in {took}", "bold green")
