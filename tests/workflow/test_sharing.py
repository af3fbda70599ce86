"""Clone and pull, check out and back: nothing runs."""

import hashlib
import shutil

import pytest
from repository import RESULTS, SECRET, scramble_times

from capgap.workflow import ledger


def test_clone_and_pull_run_nothing_whatever_the_times(finished, tmp_path):
    clone = finished.clone(tmp_path / "elsewhere/deep/clone")
    assert clone.contents() == finished.contents()
    assert clone.planned() == set()
    for seed in range(3):
        scramble_times(clone, seed)
        assert clone.planned() == set()
    assert "up to date" in clone.dvc("status").stdout
    result = clone.capgap("run")
    said = result.stdout + result.stderr
    assert "nothing to do" in said
    assert "answer" in said


@pytest.mark.slow
def test_checkout_of_another_commit_and_back_runs_nothing(study):
    def law(data):
        data["law"]["tie_nats"] = 0.01

    first, results = study.git("rev-parse", "HEAD").stdout.strip(), study.contents()
    study.configure(law)
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    second, others = study.commit("a wider tie"), study.contents()
    assert results != others
    for commit, expected in [(first, results), (second, others), (first, results)]:
        study.git("checkout", "-q", commit)
        study.dvc("checkout", "-q")
        assert study.contents() == expected
        assert study.planned() == set()
        assert "up to date" in study.dvc("status").stdout


def test_saving_refuses_what_is_not_up_to_date(study):
    def law(data):
        data["law"]["tie_nats"] = 0.01

    lock = (study / "dvc.lock").read_text()
    study.configure(law)
    result = study.capgap("save", check=False)
    assert result.returncode
    assert "nothing was saved" in result.stderr
    assert "fit_law" in result.stderr
    assert (study / "dvc.lock").read_text() == lock


def test_saving_refuses_a_damaged_result(study):
    weights = study / RESULTS / "teachers/t6k/model/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = study.capgap("save", check=False)
    assert result.returncode
    assert "teachers/t6k/model/model.safetensors has other contents" in result.stderr


@pytest.mark.slow
def test_merge_that_conflicts_in_the_lock_runs_the_difference_only(study):
    """The documented steps: keep our dvc.lock, check out, run, save."""
    study.git("checkout", "-q", "-b", "other")
    study.configure(lambda data: data["final"].update(tokens="9k"))
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    study.commit("longer final run")
    study.git("checkout", "-q", "main")
    study.dvc("checkout", "-q")
    study.configure(lambda data: data["law"].update(tie_nats=0.01))
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    study.commit("a wider tie")

    merge = study.git("merge", "other", check=False)
    assert "dvc.lock" in merge.stdout
    assert merge.returncode
    study.git("checkout", "--ours", "dvc.lock")
    study.commit("both")
    study.dvc("checkout", "-q")
    chosen = {
        "choose_teacher law",
        "compare_final final",
        "sample_final final",
        "write_metrics .",
        "write_report report",
    }
    assert study.planned() == chosen
    before = study.made()
    study.capgap("run", "--cores", "2")
    ran = {job for job, moment in study.made().items() if moment != before.get(job)}
    assert ran == chosen | {
        f"{rule} students/4k/pruned-{name}/from-{name}/tokens-9k/seed-0"
        for rule in ("distill_student", "evaluate_student")
        for name in ("t6k", "t16k")
    }
    study.capgap("save")
    assert "up to date" in study.dvc("status").stdout


def stored(storage, data: bytes):
    """The object of a folder used as remote that holds some contents."""
    digest = hashlib.md5(data).hexdigest()
    return storage / "files/md5" / digest[:2] / digest[2:]


@pytest.fixture
def storage(finished, tmp_path):
    """A copy of the remote."""
    return shutil.copytree(finished.path.parent / "storage", tmp_path / "storage")


def clone_of(finished, path, storage):
    clone = finished.clone(path, pull=False)
    clone.dvc("remote", "modify", "--local", "storage", "url", storage)
    return clone


def test_tampered_object_in_the_remote_is_refused_and_named(finished, storage, tmp_path):
    """DVC trusts a remote unless `verify` is set, as .dvc/config does."""
    law = (finished / RESULTS / "law/law.json").read_bytes()
    stored(storage, law).chmod(0o644)
    stored(storage, law).write_bytes(law.replace(b"0", b"1", 1))
    stored(storage, law).chmod(0o444)  # as DVC leaves what it trusts
    clone = clone_of(finished, tmp_path / "clone", storage)
    result = clone.capgap("pull", check=False)
    assert result.returncode == 1
    assert f"{RESULTS}/law/law.json is damaged in the remote" in result.stderr
    assert str(stored(storage, law)) in result.stderr
    assert not (clone / RESULTS).exists()
    assert clone.dvc("pull", check=False).returncode
    assert not (clone / RESULTS / "law/law.json").exists()


def test_small_results_of_another_revision_and_back(study, tmp_path):
    """`dvc checkout` takes away all of a clone without the models; `capgap pull` does not."""
    first = study.git("rev-parse", "HEAD").stdout.strip()
    study.dvc("remote", "modify", "--local", "storage", "url", tmp_path / "storage")
    study.capgap("push")
    study.configure(lambda data: data["law"].update(tie_nats=0.004))
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    second = study.commit("another revision")
    study.capgap("push")
    clone = clone_of(study, tmp_path / "clone", tmp_path / "storage")
    seen = []
    for revision in (second, first, second):
        clone.git("checkout", "-q", revision)
        if revision == first:
            assert clone.dvc("checkout", check=False).returncode
            assert clone.contents() == {}
        clone.capgap("pull")
        assert clone.planned() == set()
        assert not (clone / RESULTS / "final/model/model.safetensors").exists()
        seen.append((clone / RESULTS / "law/law.json").read_bytes())
    assert seen[0] == seen[2] != seen[1]


def test_push_says_when_nobody_will_see_it(study):
    assert "committed" not in study.capgap("push").stdout
    with (study / "dvc.lock").open("a") as file:
        file.write("# saved again\n")
    said = study.capgap("push").stdout
    assert "0 objects were new" in said
    assert "nobody sees it before dvc.lock is committed: git add dvc.lock" in said


def test_failed_pull_takes_away_nothing(study, storage):
    """DVC's own pull removes a folder when one of its files fails."""
    before = study.contents()
    study.dvc("remote", "modify", "--local", "storage", "url", storage)
    law = before["law/law.json"]
    stored(storage, law).unlink()
    stored(study / ".dvc/cache", law).unlink()
    study.capgap("pull", "--models")  # it is here
    (study / RESULTS / "law/law.json").unlink()
    result = study.capgap("pull", "--models", check=False)
    assert result.returncode == 1
    assert f"{RESULTS}/law/law.json is not in the remote" in result.stderr
    assert "capgap push" in result.stderr
    assert study.contents() == {k: v for k, v in before.items() if k != "law/law.json"}


def test_results_that_were_not_saved_are_not_overwritten(study):
    before = study.contents()
    path = study / RESULTS / "metrics.json"
    path.write_text("{}")
    result = study.capgap("pull", check=False)
    assert result.returncode == 1
    assert f"{RESULTS}/metrics.json is not saved" in result.stderr
    assert "capgap save" in result.stderr
    assert study.contents() == {**before, "metrics.json": b"{}"}
    record = study / ledger.location(ledger.RECORDS, f"{RESULTS}/metrics.json")
    record.write_text("{}")
    path.unlink()
    result = study.capgap("pull", check=False)
    assert f"the record of {RESULTS}/metrics.json is not saved" in result.stderr
    assert "capgap pull --force" in result.stderr
    study.capgap("pull", "--force")
    assert study.contents() == before
    assert study.planned() == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pull"], "this revision holds no results"),
        (["push"], "this revision holds no results"),
        (["save"], "no results here"),
        (["verify"], "no results here"),
        (["accept"], "no results here"),
        (["export", "--out", "model"], "no results here"),
        (["summary"], "no results here"),
        (["recommend", "--student", "5k"], "no results here"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_without_results_every_command_says_where_they_come_from(finished, tmp_path, words, said):
    clone = clone_of(finished, tmp_path / "clone", tmp_path / "nowhere")
    (clone / "dvc.lock").unlink()
    result = clone.capgap(*words, check=False)
    assert result.returncode == 1
    assert said in result.stderr
    assert "capgap run" in result.stderr


def test_missing_remote_is_explained(finished, tmp_path):
    clone = clone_of(finished, tmp_path / "clone", tmp_path / "nowhere")
    result = clone.capgap("pull", check=False)
    assert result.returncode == 1
    assert "the folder does not exist" in result.stderr
    assert "dvc remote modify" in result.stderr
    assert "Traceback" not in result.stderr


def test_kind_of_remote_that_is_not_installed_is_explained(finished, tmp_path):
    clone = clone_of(finished, tmp_path / "clone", "gs://bucket/studies")
    result = clone.capgap("pull", check=False)
    assert result.returncode == 1
    assert "DVC's support for gs is not installed" in result.stderr


def test_credentials_are_written_nowhere(finished):
    """A secret in the environment of run, save and push is in no file and no commit."""
    secret = SECRET["AWS_SECRET_ACCESS_KEY"].encode()
    files = [p for p in finished.path.rglob("*") if p.is_file() and not p.is_symlink()]
    files += [p for p in (finished.path.parent / "storage").rglob("*") if p.is_file()]
    assert len(files) > 200
    assert [p for p in files if secret in p.read_bytes()] == []
    history = finished.git("log", "-p", "--all", "--full-history").stdout
    assert "config.yaml" in history
    assert secret.decode() not in history


def test_credentials_stay_out_of_git(study):
    secret = "never-to-be-committed"
    study.dvc("remote", "modify", "--local", "storage", "url", "ssh://ada@host/folder")
    study.dvc("remote", "modify", "--local", "storage", "password", secret)
    assert secret in (study / ".dvc/config.local").read_text()
    study.git("add", "-A")
    assert study.git("grep", "--cached", "-l", secret, check=False).stdout == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("secret_access_key", "s3cret"), ("url", "ssh://ada:s3cret@host/folder")],
)
@pytest.mark.parametrize("command", ["save", "push"])
def test_credentials_in_shared_settings_are_refused(study, command, name, value):
    with (study / ".dvc/config").open("a") as file:
        file.write(f"['remote \"lab\"']\n    {name} = {value}\n")
    result = study.capgap(command, check=False)
    assert result.returncode == 1
    assert f"holds a credential ({name} of remote lab)" in result.stderr
    assert f"dvc remote modify --local lab {name}" in result.stderr
    assert "s3cret" not in result.stderr
