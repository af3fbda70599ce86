"""Closed, broken or full standard streams: a command still ends with one message of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest

CAPGAP = [sys.executable, "-m", "capgap.cli"]
SLOW = "import time, sys; print('loading', flush=True); time.sleep(60)"


def shell(line, **environment):
    return subprocess.run(
        ["bash", "-c", line.replace("capgap", " ".join(CAPGAP))],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "line",
    [
        "capgap --help | head -1",
        "capgap summary --help | head -1",
        "capgap --help | true",
        "capgap --help >&-",
        "capgap --help >&- 2>&-",
        "capgap --version <&- 2>&-",
        "capgap summary --study none.yaml >&-",
        "capgap summary --study none.yaml 2>&-",
        "capgap nothing | true",
        "capgap --help > /dev/full",
        "capgap summary --help > /dev/full",
    ],
)
def test_no_traceback_whoever_reads(line):
    result = shell(line)
    for word in ("Traceback", "Exception ignored", "Error:", "BrokenPipe"):
        assert word not in result.stderr, result.stderr


def test_full_disk_behind_the_output_is_a_message():
    result = shell("capgap --help > /dev/full")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "no space left" in result.stderr


def test_characters_that_the_terminal_lacks_are_escaped():
    result = shell("capgap summary --study é.yaml", PYTHONIOENCODING="ascii")
    assert result.returncode == 1
    assert "\\xe9.yaml: no such file" in result.stderr


def test_interrupt_while_a_command_is_loaded(tmp_path):
    """A command that takes a minute to import, as torch does on a cold disk."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(SLOW)
    process = subprocess.Popen(
        [*CAPGAP, "distill", "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "loading\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=30)[1]
    assert process.returncode == -signal.SIGINT
