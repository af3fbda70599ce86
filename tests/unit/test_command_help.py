"""`capgap`, its groups, the help of every command, and shell completion."""

import shlex
import shutil
import subprocess
import sys

import pytest
from outputs import said

from capgap import command_table
from capgap.cli import COMMANDS
from capgap.commands.completion import parser_of

HEAVY = ("torch", "transformers", "snakemake", "pandas", "pydantic")


def test_the_overview_has_every_command_in_one_group():
    text = command_table.overview()
    for title, commands in command_table.GROUPS.items():
        section = text.split(f"\n{title}:\n")[1].split("\n\n")[0].splitlines()
        assert [line.split()[0] for line in section] == list(commands)
    assert sum(map(len, command_table.GROUPS.values())) == len(COMMANDS)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_imports_nothing_heavy(words):
    code = (
        "import sys; from capgap.cli import main; sys.argv = sys.argv[:1] + sys.argv[2:]; main();"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "-", *words], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "models by hand:" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_the_command_accepts(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = parser_of(command)
    text = parser.format_help()
    example = COMMANDS[command].example
    assert text.endswith("example:\n" + "".join(f"  {line}\n" for line in example.splitlines()))
    if "--help" in example:
        return  # the workflow calls it, or its inputs are many
    for line in example.replace("\\\n", " ").splitlines():
        name, *words = shlex.split(line.partition(" >> ")[0], comments=True)
        words = words[1:] if words[0] == "law" else words
        assert (name, words[0]) == ("capgap", command)
        # either would end with a message; settings are validated, too
        getattr(parser, "parse", parser.parse_known_args)(words[1:])


def test_help_shows_what_is_needed_first_and_the_usage_is_short():
    text = parser_of("prune").format_help()
    order = ["needed:", "one of these is needed:", "options:", "settings:", "example:"]
    assert sorted(order, key=text.index) == order
    usage = " ".join(text.partition("\n\n")[0].split())
    assert usage == (
        "usage: capgap prune model --out OUT (--params PARAMS | --total-params TOTAL_PARAMS | "
        "--sparsity SPARSITY | --shape SHAPE) [options]"
    )
    assert "--spec" not in text


def test_a_word_that_is_nearly_a_command(capsys):
    result = subprocess.run(
        [sys.executable, "-m", "capgap.cli", "distil"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert said(result.stderr) == ["error: unknown command 'distil'; did you mean distill?"]


def test_completion_completes_commands_and_options(tmp_path):
    if not shutil.which("bash"):
        pytest.skip("bash is not here")
    result = subprocess.run(
        [sys.executable, "-m", "capgap.cli", "completion", "bash"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    (tmp_path / "capgap.bash").write_text(result.stdout)

    def complete(*words):
        script = (
            "source capgap.bash; f=$(complete -p capgap | sed 's/.*-F \\([^ ]*\\) .*/\\1/');"
            f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1};"
            f'"$f" capgap {shlex.quote(words[-1])} {shlex.quote(words[-2])};'
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        return {word.strip() for word in done.stdout.splitlines()}

    assert complete("capgap", "re") == {"recommend", "report"}
    assert complete("capgap", "prune", "--sp") == {"--sparsity"}
    assert complete("capgap", "plan", "--dev") == {"--device"}
