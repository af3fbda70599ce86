import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from snakemake.settings.enums import Quietness
from snakemake.settings.types import OutputSettings
from snakemake_interface_logger_plugins.common import LogEvent

import snakemake_logger_plugin_capgap as plugin
from snakemake_logger_plugin_capgap import LogHandler
from snakemake_logger_plugin_capgap.job_text import duration, job_identity, log_tail, short_reason
from snakemake_logger_plugin_capgap.progress import Job, Progress

RUN = "results/{study}/students/{student}/from-{teacher}/seed-{seed}"
SNAKEFILE = f"""
rule all:
    input:
        expand("{RUN.replace("{seed}", "1")}/m.json", study="toy", student=["60k", "90k"], teacher="t1")
rule pretrain_teacher:
    output: "results/{{study}}/teachers/{{teacher}}/m.json"
    log: "logs/teacher/{{study}}/{{teacher}}.log"
    shell: "echo 'step 1/2  val 3.377' >{{log}}; sleep $(cat pause); touch {{output}}"
rule distill_student:
    input: "results/{{study}}/teachers/{{teacher}}/m.json"
    output: "{RUN}/m.json"
    log: "logs/student/{RUN}.log"
    shell:
        '''
        exec >{{log}} 2>&1
        for i in $(seq 30); do echo "step $i/30"; done
        test ! -e fail-{{wildcards.student}} || {{{{ echo "error: vocabularies differ"; exit 3; }}}}
        touch {{output}}
        '''
"""
CHECKPOINT = """
rule all:
    input: "results/toy/final.txt"
checkpoint choose:
    output: "results/{study}/choice.txt"
    shell: "printf '1\\n2\\n' >{output}"
rule part:
    output: "results/{study}/parts/{n}/part.txt"
    log: "logs/{study}-{n}.log"
    retries: 1
    shell: "mkdir tried-{wildcards.n} && echo first >{log} && exit 1; touch {output}"
def parts(wildcards):
    with checkpoints.choose.get(study=wildcards.study).output[0].open() as lines:
        return [f"results/toy/parts/{line.strip()}/part.txt" for line in lines]
rule final:
    input: parts
    output: "results/{study}/final.txt"
    shell: "touch {output}"
"""


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--logger", "capgap", "--cores", "1", *options]


def snakemake(folder: Path, *options: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "FORCE_COLOR": "1"}
    return subprocess.run(
        command(*options), cwd=folder, env=env, capture_output=True, text=True, timeout=60
    )


def seconds_removed(text: str) -> list[str]:
    return re.sub(r"(\d+:\d\d|\d+ s)$", "N", text, flags=re.MULTILINE).splitlines()


@pytest.fixture
def study(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "pause").write_text("0")
    return tmp_path


def test_failure_then_mended_run_then_nothing_to_do(study):
    (study / "fail-90k").touch()
    failed = snakemake(study, "--keep-going")
    assert failed.returncode == 1
    assert failed.stdout == ""
    shown = failed.stderr.splitlines()
    assert shown[0] == "4 jobs to do: 1 pretrain_teacher, 2 distill_student, 1 all"
    assert re.fullmatch(r"\[1/4\] pretrain_teacher t1  \d s", shown[1])
    (start,) = [i for i, line in enumerate(shown) if line.startswith("failed: ")]
    assert re.fullmatch(
        r"failed: distill_student 90k/from-t1/seed-1  after \d s, exit status 3", shown[start]
    )
    assert shown[start + 1] == "  log: logs/student/results/toy/students/90k/from-t1/seed-1.log"
    steps = [f"  | step {i}/30" for i in range(20, 31)]
    assert shown[start + 2 : start + 14] == [*steps, "  | error: vocabularies differ"]
    assert shown[-4:] == [
        "1 of 4 jobs failed, 2 done:",
        "  distill_student 90k/from-t1/seed-1",
        "    error: vocabularies differ",
        "fix the causes shown above and run again: finished jobs are kept",
    ]
    assert len(shown) == 1 + 2 + 14 + 4  # and nothing of Snakemake's own words

    (study / "fail-90k").unlink()
    planned = snakemake(study, "--dry-run")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert planned.stdout.splitlines() == [
        "distill_student 90k/from-t1/seed-1  (missing output files)",
        "all  (input files updated by another job)",
        "1 distill_student",
        "1 all",
        "2 jobs to do; this was a dry run, nothing was changed",
    ]
    mended = snakemake(study)
    assert mended.returncode == 0
    assert seconds_removed(mended.stderr) == [
        "2 jobs to do: 1 distill_student, 1 all",
        "[1/2] distill_student 90k/from-t1/seed-1  N",
        "[2/2] all  N",
        "2 jobs done in N",
    ]
    idle = snakemake(study)
    assert (idle.returncode, idle.stderr) == (0, "nothing to do: everything is up to date\n")


def test_checkpoint_changes_the_total_and_a_retry_is_no_failure(tmp_path):
    (tmp_path / "Snakefile").write_text(CHECKPOINT)
    planned = snakemake(tmp_path, "--dry-run").stdout.splitlines()
    assert "more jobs become known when a checkpoint has run" in planned
    assert planned[-1] == "3 jobs to do; this was a dry run, nothing was changed"
    run = snakemake(tmp_path)
    assert run.returncode == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", run.stderr)
    shown = seconds_removed(run.stderr)
    assert shown[:2] == ["3 jobs to do: 1 choose, 1 final, 1 all", "[1/3] choose  N"]
    assert shown[-3:] == ["[4/5] final  N", "[5/5] all  N", "5 jobs done in N"]
    assert "  | first" in shown
    for part in ("1", "2"):
        again = shown.index(f"trying again: part {part}")
        (done,) = [i for i, line in enumerate(shown) if line.endswith(f"/5] part {part}  N")]
        assert shown[again - 3].startswith(f"failed: part {part}  after")
        assert again < done


def test_workflow_errors_are_shown_in_full(study):
    run = snakemake(study, "results/toy/nothing")
    assert run.returncode == 1
    assert "MissingRuleException" in run.stderr
    assert "No rule to produce results/toy/nothing" in run.stderr
    assert "done" not in run.stderr


def test_terminal_shows_the_log_of_a_running_job_and_leaves_the_lines(study):
    (study / "pause").write_text("2.5")
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen(
        command(), cwd=study, env=env, stdin=side, stdout=side, stderr=side
    ) as run:
        os.close(side)
        shown = b""
        try:
            while chunk := os.read(main, 65536):
                shown += chunk
        except OSError:  # Linux: the last process closed the terminal
            pass
        os.close(main)
        assert run.wait(timeout=30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r", "")
    assert re.search(r"0/4 done  \d s elapsed", text)
    assert re.search(r"pretrain_teacher t1  [12] s\n  step 1/2  val 3\.377", text)
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1  # cursor hidden, shown
    for line in ("[1/4] pretrain_teacher t1", "[4/4] all", "4 jobs done in"):
        assert re.search(rf"{re.escape(line)} +\d+ s\n", text)
    assert text.rstrip().splitlines()[-1].startswith("4 jobs done in")


def record(event=None, message="", level=logging.INFO, **fields) -> logging.LogRecord:
    fields.setdefault("created", 1000.0)
    return logging.makeLogRecord({"event": event, "msg": message, "levelno": level, **fields})


def started(jobid: int, seed: str, log: list[str], created: float = 1000.0) -> logging.LogRecord:
    return record(
        LogEvent.JOB_INFO,
        jobid=jobid,
        rule_name="distill",
        wildcards={"seed": seed},
        output=[f"x/seed-{seed}/m.json"],
        log=log,
        reason="Forced execution",
        created=created,
    )


def broken(jobid: int, command: str, log: list[str]) -> logging.LogRecord:
    return record(
        LogEvent.JOB_ERROR,
        level=logging.ERROR,
        jobid=jobid,
        rule_name="distill",
        log=log,
        shellcmd=command,
        rule_msg=None,
        aux={},
        created=1061.0,
    )


def command_error(command: str, end: str) -> logging.LogRecord:
    message = (
        f'RuleException:\nCalledProcessError in file "/w/Snakefile", line 3:\n'
        f"Command 'set -euo pipefail;  {command}' {end}."
    )
    return record(LogEvent.ERROR, message, logging.ERROR)


def handler(**settings) -> LogHandler:
    made = LogHandler(OutputSettings(**settings), None)
    made.setFormatter(logging.Formatter())
    return made


def run_info(**stats: int) -> logging.LogRecord:
    return record(LogEvent.RUN_INFO, stats={**stats, "total": sum(stats.values())})


def test_two_failures_at_once_keep_their_own_causes(capsys, tmp_path):
    log = tmp_path / "a.log"
    log.write_text("error: a\n")
    shown = handler(quiet={Quietness.ALL})
    for event in (
        run_info(distill=3),
        started(1, "1", [str(log)]),
        started(2, "2", []),
        started(3, "3", []),
        command_error("run b", "returned non-zero exit status 7"),
        command_error("run a", "died with <Signals.SIGKILL: 9>"),
        command_error("run c", "died with <Signals.SIGINT: 2>"),
        command_error("run d", "died with <Signals.SIGTERM: 15>"),
        broken(1, "run a", [str(log)]),
        broken(2, "run b", []),
        broken(3, "run c", []),
    ):
        shown.emit(event)
    shown.close()
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "failed: distill seed-1  after 1:01, SIGKILL",
        f"  log: {log}",
        "  | error: a",
        "failed: distill seed-2  after 1:01, exit status 7",
        "  it has no log; its command:",
        "  | run b",
        "interrupted: distill seed-3  after 1:01, SIGINT",
        "RuleException:",
        'CalledProcessError in file "/w/Snakefile", line 3:',
        "Command 'set -euo pipefail;  run d' died with <Signals.SIGTERM: 15>.",
        "2 of 3 jobs failed:",
        "  distill seed-1",
        "    error: a",
        "  distill seed-2",
        "fix the causes shown above and run again: finished jobs are kept",
    ]


def test_stopped_run_is_not_called_done(capsys):
    shown = handler()
    for event in (
        run_info(distill=2),
        started(1, "1", []),
        record(LogEvent.JOB_FINISHED, job_id=1),
        record(LogEvent.PROGRESS, done=1, total=2),
        record(LogEvent.ERROR, "WorkflowError:\nthe disk is full", logging.ERROR),
    ):
        shown.emit(event)
    shown.close()
    assert capsys.readouterr().err.splitlines()[1:] == [
        "[1/2] distill seed-1  0 s",
        "WorkflowError:",
        "the disk is full",
        "stopped with 1 of 2 jobs done; run again to go on: finished jobs are kept",
    ]


def test_missing_output_counts_as_failure(capsys):
    shown = handler()
    message = "MissingOutputException in rule distill in file x, line 3:\nJob 1  completed, but"
    for event in (
        run_info(distill=2),
        started(1, "1", []),
        record(LogEvent.ERROR, message, logging.ERROR),
    ):
        shown.emit(event)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:3] == message.splitlines()
    assert lines[3:5] == ["1 of 2 jobs failed:", "  distill seed-1"]


def test_messages_warnings_once_routine_never(capsys):
    shown = handler()
    for event in (
        record(message="Building DAG of jobs..."),
        record(message="Error: Directory cannot be locked. Another Snakemake is running."),
        record(message="slow disk", level=logging.WARNING),
        record(message="slow disk", level=logging.WARNING),
        record(LogEvent.RESOURCES_INFO, "Provided cores: 2"),
        record(LogEvent.SHELLCMD, "Shell command: x", shellcmd="x"),
    ):
        shown.emit(event)
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "Error: Directory cannot be locked. Another Snakemake is running.",
        "slow disk",
    ]


def test_quiet_hides_notes_not_warnings(capsys):
    shown = handler(quiet={Quietness.ALL})
    shown.emit(record(message="a note"))
    shown.emit(record(message="slow disk", level=logging.WARNING))
    assert capsys.readouterr().err == "slow disk\n"


def test_emit_reports_its_own_mistake_and_does_not_raise(capsys):
    handler().emit(record(LogEvent.PROGRESS))  # without the fields of that event
    assert "AttributeError" in capsys.readouterr().err


def test_heartbeat_names_running_jobs_until_the_end(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plugin, "HEARTBEAT_S", 0.05)
    log = tmp_path / "a.log"
    log.write_text("step 1\nstep 2\n")
    shown = handler()
    shown.emit(run_info(distill=2))
    shown.emit(started(1, "1", [str(log)]))
    time.sleep(0.2)
    shown.close()
    beats = [line for line in capsys.readouterr().err.splitlines() if line.startswith("0/2 done")]
    assert len(beats) >= 2
    assert beats[0].endswith("elapsed; distill seed-1: step 2")
    time.sleep(0.2)
    assert len(capsys.readouterr().err.splitlines()) <= 1  # at most the one under way at the end


def test_group_failure_shows_its_log_and_then_its_jobs(capsys, tmp_path):
    log = tmp_path / "cluster.log"
    log.write_text("killed by the queue\n")
    shown = handler()
    shown.emit(record(LogEvent.GROUP_ERROR, groupid="g7", aux_logs=[str(log)], job_error_info=[]))
    shown.emit(broken(1, "run a", []))
    assert capsys.readouterr().err.splitlines()[:4] == [
        "failed: group g7, its jobs below",
        f"  log: {log}",
        "  | killed by the queue",
        "failed: distill  after 0 s",
    ]


@pytest.mark.parametrize(
    ("wildcards", "output", "identity"),
    [
        (
            {"study": "toy", "student": "60k", "teacher": "t1", "seed": "1"},
            "results/toy/students/60k/from-t1/seed-1/model/manifest.json",
            "60k/from-t1/seed-1",
        ),
        ({"study": "toy"}, "results/toy/law/law.json", ""),
        ({}, "results/toy/law/law.json", ""),
        ({"study": "toy", "n": "b", "seed": "1"}, "results/toy/ab/seed-1", "b/1"),
        ({"study": "toy", "replica": "", "n": "b"}, "results/toy/teachers/b/x.json", "b"),
        (
            {"study": "toy", "replica": "replica-2/", "n": "b"},
            "results/toy/replica-2/teachers/b/x.json",
            "replica-2/b",
        ),
        ({"study": "60k", "student": "60k"}, "results/60k/students/60k.json", "60k"),
    ],
)
def test_job_identity(wildcards, output, identity):
    assert job_identity(wildcards, [output]) == identity


def test_job_identity_without_output():
    assert job_identity({"study": "toy", "seed": "1"}, []) == "1"


def test_short_reason_leaves_files_and_parameters_out():
    reason = "Missing output files: a, b; Params have changed since last execution: {'x': 1}"
    assert short_reason(reason) == "missing output files; params have changed since last execution"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (40.6, "41 s"), (59.6, "1:00"), (761, "12:41"), (3723, "1:02:03")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_log_tail(tmp_path):
    log = tmp_path / "x.log"
    assert log_tail(str(log), 3) == []
    log.write_bytes(b"old\n" * 9999 + b"  a\n\nhalf\rwhole\n\x1b[31mred\x1b[0m \xff\x07\n\n")
    assert log_tail(str(log), 3) == ["half", "whole", "red \ufffd"]
    assert len(log_tail(str(log), None)) == 9999 + 4
    assert log_tail(str(tmp_path), 3)[0].startswith("cannot read the log: ")


def test_time_left_from_jobs_of_the_same_rule():
    run = Progress(total=12)
    run.left.update(teacher=2, student=10)
    assert run.seconds_left(0.0) is None
    run.running = {1: Job("teacher", "", [], 0.0)}
    run.finish(1, 100.0)
    assert run.seconds_left(100.0) is None  # 10 of the 11 left are of an unknown kind
    run.running = {2: Job("student", "", [], 100.0)}
    run.finish(2, 110.0)
    run.running = {3: Job("student", "", [], 110.0), 4: Job("teacher", "", [], 110.0)}
    # 9 students of 10 s and 1 teacher of 100 s, both 4 s old, two at a time
    assert run.seconds_left(114.0) == pytest.approx((90 + 100 - 4 - 4) / 2)


def test_drawing_keeps_to_the_height():
    run = Progress(total=50, running={i: Job("student", str(i), [], 0.0) for i in range(40)})
    rows = run.draw(5.0, height=10).renderables
    assert [str(row) for row in rows[2:]] == [
        "student 0  5 s", "  ", "student 1  5 s", "  ", "student 2  5 s", "  ", "and 37 jobs more",
    ]  # fmt: skip
    assert len(rows) <= 10
