"""A study under the profiles for GPUs and clusters."""

import importlib.util
import json
import re

import pytest
from processes import alive, start, wait_for
from repository import RESULTS, SOURCE, write_study

PLUGINS = {
    "slurm": "snakemake_executor_plugin_slurm",
    "kubernetes": "snakemake_executor_plugin_cluster_generic",
}


@pytest.mark.parametrize("profile", ["local-gpu", *PLUGINS])
def test_a_profile_is_dry_run(profile, tmp_path):
    plugin = PLUGINS.get(profile)
    if plugin and importlib.util.find_spec(plugin) is None:
        pytest.skip(f"needs {plugin}; profiles/{profile}/config.yaml says which")
    repository = write_study(tmp_path / "study")
    study = (SOURCE / "configs/smollm2-family.yaml").read_text()
    (repository / "config.yaml").write_text(study)
    run = repository.capgap("run", "--profile", f"profiles/{profile}", "--dry-run")
    assert "GPU hours" in run.stdout
    assert "nothing to do" not in run.stdout + run.stderr


@pytest.mark.slow
def test_jobs_at_the_same_time_get_different_gpus(tmp_path):
    repository = write_study(tmp_path / "study")

    def on_gpus(data):
        data["plan"] = {"device": "a100-40gb"}
        data["pretrain"]["tokens"] = "400k"

    repository.configure(on_gpus)
    words = ("teachers", "--profile", "profiles/local-gpu", "--cores", "4", "--resources", "gpu=2")
    repository.capgap("run", *words, CUDA_VISIBLE_DEVICES="3,5", TMPDIR=str(tmp_path))
    logs = sorted(repository.path.glob(f"logs/pretrain_teacher/{RESULTS}/teachers/*.log"))
    used = [re.search(r"^on GPU (.*)$", log.read_text(), re.M)[1] for log in logs]
    assert sorted(used) == ["3", "5"]
    (corpus,) = repository.path.glob(f"logs/prepare_corpus/{RESULTS}.log")
    assert "on GPU" not in corpus.read_text()


@pytest.mark.slow
def test_a_job_of_two_processes_learns_the_same(tmp_path):
    target, losses = f"{RESULTS}/teachers/t6k/train.json", []
    for processes in (1, 2):
        study = write_study(tmp_path / f"study-{processes}")
        study.configure(
            lambda data, n=processes: data.update(plan={"processes": n, "shard": n > 1})
        )
        run = start(study, "capgap.cli", "run", "--cores", "2", target)
        if processes > 1:
            workers = wait_for(
                lambda study=study: [
                    p for p in alive(study, "capgap.stages.pretrain") if "RANK" in p.environ()
                ][1:]
            )
            assert workers[0].environ()["WORLD_SIZE"] == "2"
        assert run.wait(300) == 0, study.logs()
        record = json.loads((study / target).read_text())
        losses.append(record["last_val_loss_nats_per_token"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
