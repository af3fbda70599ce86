"""What `make` ends with."""

import pytest
from report_records import TOKENS, make_final, make_law, make_runs
from rich.console import Console

from capgap.commands.summary import run
from capgap.law.words import listed
from capgap.records import paths
from capgap.records.artifacts import write_text
from capgap.reporting import wording


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Function that writes a study's records and returns its summary as one line of words."""
    monkeypatch.chdir(tmp_path)

    def summary(law):
        final = make_final()
        records = ((paths.LAW, law), (paths.CHOICE, final.choice), (paths.FINAL, final))
        for path, record in records:
            write_text(path.format(study="pocket"), record.to_json())
        console = Console(width=4000)
        with console.capture() as captured:
            run("pocket", console)
        return " ".join(captured.get().split())

    return summary


def test_every_budget_has_a_line_and_the_movement_between_them_is_said(shown):
    law = make_law(make_runs(tokens=(500_000, TOKENS)))
    text = shown(law)
    assert wording.tokens(law) in text
    assert "law at 500k tokens" in text
    assert "law at 1.5M tokens" in text
    for tokens, name in ((500_000, "500k"), (TOKENS, "1.5M")):
        gains = [e for e in law.effects if e.tokens == tokens]
        each = listed(f"{e.gain_nats:.3f} ({e.student})" for e in gains)
        assert len(gains) == 3
        assert f"teacher's gain at {name} {each} nats per token better" in text
    assert "is worse" not in text
    harmed = [law.effects[0].model_copy(update={"gain_nats": -0.01}), *law.effects[1:]]
    assert "less than 0 is worse" in shown(law.model_copy(update={"effects": harmed}))


def test_an_optimum_that_the_start_makes_is_called_so(shown):
    law = make_law(make_runs())
    overall = law.overall.model_copy(update={"cause": "teacher"})
    assert "not the teacher" not in shown(law.model_copy(update={"overall": overall}))
    overall = law.overall.model_copy(update={"cause": "init"})
    text = shown(law.model_copy(update={"overall": overall}))
    assert "what makes the optimum is the start that pruning leaves, not the teacher" in text
    assert "more tokens" not in text  # one budget
