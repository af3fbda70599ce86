"""Every stage's command line: help with units, settings by hand, one message for a mistake."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from outputs import said

from capgap.cli import COMMANDS
from capgap.config import Distill
from capgap.errors import CapgapError
from capgap.stages.base import StageParser
from capgap.workflow.rule_params import spec


def capgap(*words):
    return subprocess.run(
        [sys.executable, "-m", "capgap.cli", *words], capture_output=True, text=True
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(COMMANDS[command][0]).main(["--help"])
    assert end.value.code == 0
    assert f"usage: capgap {command}" in capsys.readouterr().out


def test_help_says_what_settings_mean_and_their_defaults(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("capgap.stages.distill").main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "tokens per optimizer step" in text
    assert "weight of the teacher's term" in text
    assert "(default 0.5)" in text


@pytest.fixture
def parse(tmp_path):
    """Function that parses settings as the distill stage does."""
    parser = StageParser("capgap.stages.distill", "x", Distill)
    parser.add_argument("--out", type=Path)
    return lambda *argv: parser.parse([*argv, "--out", str(tmp_path / "out")])[1]


def test_options_by_hand_override_the_spec(parse):
    text = spec("distill", Distill(learning_rate=0.5, temperature=3.0), "distill_student")
    settings = parse("--spec", text, "--learning-rate", "0.25")
    assert settings.learning_rate == 0.25
    assert settings.temperature == 3.0


def test_a_wrong_option_is_one_message_with_key_and_value(parse):
    with pytest.raises(CapgapError, match=r"learning_rate: input should be greater than 0"):
        parse("--learning-rate", "-1")


def test_source_changed_after_planning_is_refused(parse):
    stale = json.dumps(
        {**json.loads(spec("distill", Distill(), "distill_student")), "source": "0" * 16}
    )
    with pytest.raises(CapgapError, match="changed after the run was planned"):
        parse("--spec", stale)


def test_a_users_mistake_ends_in_one_line_without_traceback(tmp_path):
    out = capgap(
        "evaluate", "--model", "no-such", "--token-streams", "x", "--out", str(tmp_path / "m")
    )
    assert out.returncode == 1
    assert said(out.stderr) == ["error: no-such: no such folder; check the path"]


def test_a_reader_who_leaves_early_is_no_error():
    code = (
        "from capgap.stages.base import run_stage; "
        "run_stage(lambda argv: [print('line', i) for i in range(100_000)])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 128 + signal.SIGPIPE


def test_help_of_several_sources_says_which_a_setting_is_for(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("capgap.stages.corpus").main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--source package | files | hub" in text
    assert "--revision X source hub: commit, 40 hexadecimal digits (required)" in text
    assert "--test-share X share of the corpus bytes held out for the final test (default" in text


def test_what_the_system_refuses_is_one_line_and_a_log_grows_line_by_line(tmp_path):
    code = (
        "import sys; from capgap.stages.base import run_stage; "
        f"run_stage(lambda argv: open({str(tmp_path)!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 1
    assert out.stderr == f"error: {tmp_path}: is a directory; name a file\n"
    code = (
        "import sys; from capgap.stages.base import run_stage; "
        "run_stage(lambda argv: print(sys.stdout.line_buffering))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert out.stdout == b"True\n"
