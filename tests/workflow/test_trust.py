"""Nothing failed, stale or damaged passes for a result; what is accepted by hand is written down."""

import json
import sys

import pytest
from repository import RESULTS, edit_distillation_loss

from capgap.config.study_file import load_study
from capgap.workflow import ledger, rule_params

WEIGHTS = f"{RESULTS}/teachers/t6k/model/model.safetensors"


@pytest.fixture
def damaged(study):
    """A study with one flipped bit in a teacher's weights."""
    data = bytearray((study / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (study / WEIGHTS).write_bytes(data)
    return study


def law_settings(study):
    study["law"]["tie_nats"] = 0.01


def shell_command(study, output):
    """The command that made an output, as Snakemake has it on record."""
    path = study / ledger.location(ledger.RECORDS, f"{RESULTS}/{output}")
    return json.loads(path.read_text())["shellcmd"].split(">")[0]


def test_failed_job_and_all_behind_it_stay_undone(study):
    choose = study / "src/capgap/stages/choose.py"
    sound = choose.read_text()
    study.configure(law_settings)
    body = "\ndef main(argv=None):\n    raise CapgapError('broken on purpose')\n\n"
    broken = sound.replace('\nif __name__ == "__main__":', body + '\nif __name__ == "__main__":')
    assert broken != sound
    choose.write_text(broken)
    assert study.capgap("run", check=False).returncode
    choose.write_text(sound)
    expected = {
        "choose_teacher law",
        "compare_final final",
        "sample_final final",
        "write_metrics .",
        "write_report report",
    }
    assert study.planned() == expected
    assert study.capgap("save", check=False).returncode


def edit_fit(study):
    """Insert a statement at the start of the function that fits the law."""
    path = study / "src/capgap/stages/fit.py"
    text = path.read_text()
    start = text.index("def fit(")
    body = text.index('"""', text.index('"""', start) + 3) + 3
    path.write_text(text[:body] + "\n    print('other')" + text[body:])


def test_source_edited_after_planning_is_refused(study):
    command = shell_command(study, "law/law.json")
    law = (study / f"{RESULTS}/law/law.json").read_bytes()
    edit_fit(study)
    result = study.command(
        "bash", "-c", command, check=False, PATH=f"{sys.prefix}/bin:/usr/bin:/bin"
    )
    assert result.returncode == 1
    assert (
        "the source of capgap.stages.fit changed after the run was planned; run again"
        in result.stderr
    )
    assert (study / f"{RESULTS}/law/law.json").read_bytes() == law


def test_job_on_a_cluster_keeps_to_what_its_run_planned(study, monkeypatch):
    """It parses the workflow again, maybe after an edit; its run records what was planned."""
    for name in (rule_params.SETTINGS, rule_params.SOURCES):
        monkeypatch.setenv(name, "")  # so that nothing of this test stays behind
    settings = load_study(study / "config.yaml")
    rule_params.hand_down(settings)
    rule_params.spec("fit", settings.law, "fit_law")
    words = (
        "--mode remote --executor local --cores 1 --force --nolock --ignore-incomplete --no-hooks"
    )
    job = [sys.executable, "-m", "snakemake", *words.split(), "--allowed-rules", "fit_law"]
    job += ["--target-jobs", "fit_law:study=tiny"]
    path = study / f"{RESULTS}/law/law.json"
    law = path.read_bytes()

    path.write_text("{}")
    study.configure(law_settings)
    study.command(*job)
    assert path.read_bytes() == law

    edit_fit(study)
    assert study.command(*job, check=False).returncode
    log = (study / f"logs/fit_law/{RESULTS}.log").read_text()
    assert "the source of capgap.stages.fit changed after the run was planned; run again" in log

    monkeypatch.delenv(rule_params.SETTINGS)
    result = study.command(*job, check=False)
    assert result.returncode
    assert "is not set in this job" in result.stdout + result.stderr


def test_flipped_bit_is_named_by_verify(damaged):
    result = damaged.capgap("verify", check=False)
    assert result.returncode == 1
    assert f"{WEIGHTS} has other contents than its manifest says" in result.stderr
    assert "1 result(s)" in result.stderr
    assert "capgap pull --force PATH" in result.stderr
    damaged.capgap("pull", "--force", WEIGHTS)
    assert "as recorded" in damaged.capgap("verify").stdout


def test_flipped_bit_is_named_by_the_job_that_reads_it(damaged):
    command = shell_command(damaged, "teachers/t6k/metrics.json")
    before = (damaged / f"{RESULTS}/teachers/t6k/metrics.json").read_bytes()
    result = damaged.command(
        "bash", "-c", command, check=False, PATH=f"{sys.prefix}/bin:/usr/bin:/bin"
    )
    assert result.returncode == 1
    assert f"{WEIGHTS} has other contents" in result.stderr
    assert f"capgap pull --force {RESULTS}/teachers/t6k/model" in result.stderr
    assert (damaged / f"{RESULTS}/teachers/t6k/metrics.json").read_bytes() == before


def test_flipped_bit_is_named_by_dvc(damaged):
    assert f"modified:           {RESULTS}" in damaged.dvc("status").stdout
    assert WEIGHTS in damaged.dvc("data", "status", "--granular").stdout


def test_flipped_bit_does_not_enter_dvc_through_repro(damaged):
    """Nothing is planned, so the run succeeds; DVC would commit what it finds."""
    lock = (damaged / "dvc.lock").read_text()
    result = damaged.dvc("repro", check=False)
    assert result.returncode
    assert f"{WEIGHTS} has other contents" in result.stdout + result.stderr
    assert (damaged / "dvc.lock").read_text() == lock


@pytest.mark.parametrize("name", ["law/law.json", "teachers/t6k/model/manifest.json"])
def test_result_that_was_edited_by_hand_is_refused_and_named(study, name):
    """What follows would be made from it, and then look right."""
    path = study / RESULTS / name
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b"1", b"2", 1))
    for words in (["run"], ["save"]):
        result = study.capgap(*words, check=False)
        assert result.returncode
        assert f"{RESULTS}/{name} has other contents" in result.stderr
        assert "capgap pull --force PATH" in result.stderr
    result = study.command(sys.executable, "-m", "snakemake", "-n", check=False)
    assert result.returncode  # without capgap: the records of what was made from it
    assert f"{RESULTS}/{name} was edited or damaged" in result.stdout + result.stderr
    study.capgap("pull", "--force", f"{RESULTS}/{name}")
    assert path.read_bytes() == sound
    assert study.planned() == set()


def test_damaged_manifest_is_named(study):
    manifest = study / f"{RESULTS}/tokens/manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    result = study.capgap("verify", check=False)
    assert f"{RESULTS}/tokens/manifest.json is damaged" in result.stderr


def test_refactor_is_accepted_with_a_reason_and_written_down(study):
    edit_distillation_loss(study)
    before = study.contents()
    listed = study.capgap("accept").stdout
    assert "distill:" in listed
    assert "pretrain:" not in listed
    assert study.contents() == before
    study.capgap("accept", "--reason", "scale is applied elsewhere", "--by", "Ada")
    assert study.planned() == set()
    entries = json.loads((study / f"{RESULTS}/accepted.json").read_text())
    assert {entry["stage"] for entry in entries} == {"distill"}
    assert entries[0]["by"] == "Ada"
    assert entries[0]["reason"] == "scale is applied elsewhere"
    assert entries[0]["source_before"] != entries[0]["source_now"]
    assert len(entries[0]["outputs"]) == 12  # model, curve, record of two runs and two final runs
    after = study.contents()
    after.pop("accepted.json")
    listed = json.loads(after.pop("checksums.json"))
    assert listed.pop("accepted.json")
    assert listed == json.loads(before.pop("checksums.json"))
    assert after == before
    study.capgap("verify")
    assert "nothing to accept" in study.capgap("accept").stdout


def test_accepting_does_not_hide_a_changed_setting(study):
    edit_distillation_loss(study)
    study.configure(lambda data: data["distill"].update(temperature=2.0))
    study.capgap("accept", "--reason", "refactor")
    assert "distill_student students/3k/pruned-t6k/from-t6k/tokens-5k/seed-0" in study.planned()


def test_accepting_refuses_damaged_results(damaged):
    edit_distillation_loss(damaged)
    result = damaged.capgap("accept", "--reason", "refactor", check=False)
    assert result.returncode == 1
    assert "nothing was accepted" in result.stderr
    assert WEIGHTS in result.stderr
    assert not (damaged / f"{RESULTS}/accepted.json").exists()
    assert damaged.planned() != set()
