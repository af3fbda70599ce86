"""The Kubernetes profile with a stand-in for kubectl that runs each Job's command on this machine."""

import importlib.util
import json
import sys

import pytest
from repository import RESULTS, write_study

PLUGIN = "snakemake_executor_plugin_cluster_generic"
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        importlib.util.find_spec(PLUGIN) is None,
        reason=f"needs {PLUGIN} (make slurm)",
    ),
]
KUBECTL = """#!{python}
import json, os, pathlib, subprocess, sys
jobs = pathlib.Path("{folder}")
match sys.argv[1]:
    case "create":
        job, name = json.load(sys.stdin), f"capgap-{{len(list(jobs.iterdir())) + 1}}"
        (jobs / name).write_text(json.dumps(job))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        environment = os.environ | {{e["name"]: e["value"] for e in container["env"]}}
        ended = subprocess.run(container["command"], cwd=container["workingDir"], env=environment)
        job["status"] = {{"conditions": [
            {{"type": "Failed" if ended.returncode else "Complete", "status": "True"}}
        ]}}
        (jobs / name).write_text(json.dumps(job))
        print(name, end="")
    case "get":
        print((jobs / sys.argv[3]).read_text())
"""


@pytest.fixture
def kubectl(tmp_path):
    """A folder with the stand-in, which keeps the Jobs it was sent in another."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "jobs").mkdir()
    path = tmp_path / "bin/kubectl"
    path.write_text(KUBECTL.format(python=sys.executable, folder=tmp_path / "jobs"))
    path.chmod(0o755)
    return tmp_path


def test_jobs_go_through_kubectl_and_failures_are_told(kubectl, tmp_path):
    study = write_study(tmp_path / "study")
    path = f"{kubectl}/bin:{study.environment()['PATH']}"
    words = ("run", "--profile", "profiles/kubernetes", "--latency-wait", "5", "--retries", "0")
    target = f"{RESULTS}/corpus/manifest.json"
    study.capgap(*words, target, PATH=path)
    assert (study / target).is_file()
    (sent,) = [json.loads(file.read_text()) for file in (tmp_path / "jobs").iterdir()]
    assert sent["metadata"]["labels"] == {"app": "capgap", "rule": "prepare_corpus"}
    study.replace("config.yaml", "corpus/*.txt", "corpus/*.nothing")
    failed = study.capgap(*words, target, PATH=path, check=False)
    assert failed.returncode
    assert f"logs/prepare_corpus/{RESULTS}.log" in failed.stdout + failed.stderr
