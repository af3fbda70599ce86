"""Profiles: what they agree on, which devices jobs get, and the Jobs that Kubernetes is sent."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from capgap.errors import CapgapError
from capgap.workflow import launch, node

PROFILES = Path(__file__).parents[2] / "profiles"


@pytest.mark.parametrize("name", ["slurm", "local-gpu", "kubernetes"])
def test_profiles_agree_on_what_decides_a_rerun(name):
    default = yaml.safe_load((PROFILES / "default/config.yaml").read_text())
    profile = yaml.safe_load((PROFILES / name / "config.yaml").read_text())
    for key in ("keep-going", "rerun-incomplete", "rerun-triggers", "max-checksum-file-size"):
        assert profile[key] == default[key]
    assert profile["logger"] == ["capgap"]


def test_no_rule_states_tasks():
    """The Slurm plugin would start the script of a GPU job once for every GPU (--ntasks-per-gpu)."""
    rules = (PROFILES.parent / "rules").glob("*.smk")
    assert not [path for path in rules if re.search(r"^ {8}tasks=\d", path.read_text(), re.M)]


# --- devices of one machine -----------------------------------------------------------------------


TOY = """
import os, pathlib, sys, time
told, end = map(pathlib.Path, sys.argv[1:])
told.write_text(f"[{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}]")
while not end.exists():
    time.sleep(0.02)
"""


@pytest.fixture
def job(tmp_path):
    """Function that starts a job on N of the shared devices; it prints which, and ends on request."""
    started = []
    (tmp_path / "toy.py").write_text(TOY)

    def start(gpus: int, shared: str | None) -> tuple[subprocess.Popen, Path]:
        told, end = tmp_path / f"job-{len(started)}", tmp_path / f"end-{len(started)}"
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": path}
        environment.pop(launch.VISIBLE, None)
        if shared is not None:
            environment[launch.VARIABLE] = shared
        words = [
            "-m",
            "capgap.workflow.launch",
            "--gpus",
            gpus,
            tmp_path / "timing.tsv",
            "toy",
            told,
            end,
        ]
        process = subprocess.Popen([sys.executable, *map(str, words)], env=environment)
        started.append((process, end))
        return process, told

    def finish(process: subprocess.Popen) -> None:
        next(end for one, end in started if one is process).touch()
        assert process.wait(10) == 0

    start.finish = finish
    yield start
    for process, _ in started:
        process.kill()
        process.wait()


def told(path: Path) -> str:
    end = time.monotonic() + 20
    while not (path.is_file() and path.read_text().endswith("]")):
        assert time.monotonic() < end
        time.sleep(0.01)
    return path.read_text()[1:-1]


def test_jobs_at_the_same_time_have_different_devices(job):
    running = [job(1, "0,1,5") for _ in range(3)]
    assert {told(path) for _, path in running} == {"0", "1", "5"}
    waiting, path = job(1, "0,1,5")
    time.sleep(0.5)
    assert not path.exists()
    freed = told(running[1][1])
    job.finish(running[1][0])
    assert told(path) == freed
    assert waiting.poll() is None


def test_a_killed_job_frees_its_device_and_a_job_of_two_takes_two(job):
    (first, path), (second, other) = job(1, "0,1"), job(1, "0,1")
    assert {told(path), told(other)} == {"0", "1"}
    _, both = job(2, "0,1")
    first.kill()
    first.wait()
    time.sleep(0.5)
    assert not both.exists()  # takes none while one is missing
    again, third = job(1, "0,1")
    assert told(third) == told(path)
    job.finish(again)
    job.finish(second)
    assert told(both) == "0,1"


def test_where_devices_are_not_shared_out_a_job_sees_them_all_and_one_without_sees_none(job):
    assert told(job(1, None)[1]) == "all"
    assert told(job(0, "0,1")[1]) == ""


def test_several_processes_are_started_by_torchrun():
    single = launch.command("capgap.stages.distill", ["--seed", "1"])
    assert single == [sys.executable, "-m", "capgap.stages.distill", "--seed", "1"]
    options = ["--targets", "", "--seed", "1", "--role", "x"]  # torchrun has some like them
    words = launch.command("capgap.stages.distill", options, processes=4)
    assert words[1:6] == ["-m", "capgap.workflow.node", "1", "4", "0"]
    words = node.torchrun_words(1, 4, 0, *words[6:7], words[7:])
    understood = get_args_parser().parse_args(words)
    assert (understood.nproc_per_node, understood.module, understood.standalone) == (
        "4",
        True,
        True,
    )
    assert understood.training_script == "capgap.stages.distill"
    assert understood.training_script_args == options


def test_several_nodes_meet_at_the_first_one(monkeypatch):
    """One launcher on each, with its part of processes, devices and cores."""
    shared = {"processes": 8, "nodes": 2, "gpus": 8, "cores": 24}
    words = launch.command("capgap.stages.distill", ["--seed", "1"], **shared)
    assert words[0] == "srun"
    inner = words.index(sys.executable)
    assert set(words[1:inner]) >= {
        *("--nodes=2", "--ntasks=2", "--ntasks-per-node=1"),
        *("--gpus-per-node=4", "--cpus-per-task=24"),
    }
    assert words[inner + 1 : inner + 5] == ["-m", "capgap.workflow.node", "2", "4"]
    port = words[inner + 5]
    assert words[inner + 6 :] == ["capgap.stages.distill", "--seed", "1"]
    monkeypatch.setenv(node.NODE, "1")
    monkeypatch.setenv(node.FIRST_ADDRESS, "10.0.0.7")
    understood = get_args_parser().parse_args(
        node.torchrun_words(2, 4, int(port), "capgap.stages.distill", ["--seed", "1"])
    )
    assert (understood.nnodes, understood.node_rank, understood.nproc_per_node) == ("2", 1, "4")
    assert (understood.master_addr, understood.master_port) == ("10.0.0.7", int(port))
    assert (understood.rdzv_backend, understood.standalone) == ("static", False)


def test_a_job_on_several_nodes_leaves_no_measurement_of_srun(tmp_path):
    ended = launch.Ended(0, 1.5, 2**20)
    launch.write_timing(tmp_path / "one", 3.0, ended)
    launch.write_timing(tmp_path / "two", 3.0, ended, nodes=2)
    rows = [(tmp_path / name).read_text().splitlines()[1].split("\t") for name in ("one", "two")]
    assert rows == [["3.0000", "1.00", "1.5000"], ["3.0000", "NA", "NA"]]


def test_the_stage_gets_its_own_options_and_the_launcher_those_before_it():
    words = [
        "--gpus",
        "2",
        "--shard",
        "1",
        "t.tsv",
        "capgap.stages.x",
        "--gpus",
        "5",
        "--seed",
        "3",
    ]
    args = launch.parse(words)
    assert (args.gpus, args.processes, args.timing) == (2, 1, Path("t.tsv"))
    assert args.options == ["--gpus", "5", "--seed", "3", "--shard"]
    assert launch.parse(["--shard", "0", "t.tsv", "capgap.stages.x"]).options == []


def test_devices_are_those_the_run_may_see(monkeypatch):
    monkeypatch.setenv(launch.VARIABLE, "")
    monkeypatch.delenv(launch.VISIBLE, raising=False)
    launch.share_out(3)
    assert os.environ[launch.VARIABLE] == "0,1,2"
    monkeypatch.setenv(launch.VISIBLE, "4,6,7")
    launch.share_out(2)
    assert os.environ[launch.VARIABLE] == "4,6"
    with pytest.raises(CapgapError, match=r"gpu=4 is more than the 3 GPU\(s\)"):
        launch.share_out(4)
    with pytest.raises(CapgapError, match="needs 3 GPUs and CAPGAP_GPUS lists 2"):
        launch.claim(3, ["4", "6"])


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kube():
    spec = importlib.util.spec_from_file_location("kube", PROFILES / "kubernetes/kube.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_job_of_kubernetes_asks_for_what_the_plan_says(kube, tmp_path, monkeypatch):
    script, job = tmp_path / "job.sh", {"rule": "distill_student", "threads": 2}
    job["resources"] = {"mem_mb": 1500, "runtime": 30, "gpu": 1}
    script.write_text(f"#!/bin/sh\n# properties = {json.dumps(job)}\npython -m snakemake\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPGAP_RUN", "abc")
    monkeypatch.setenv("HF_TOKEN", "secret")
    made = kube.manifest(script, yaml.safe_load(kube.TEMPLATE.read_text()))
    assert made["spec"]["activeDeadlineSeconds"] == 1800
    assert made["spec"]["backoffLimit"] == 0
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/bin/sh", str(script)]
    assert container["workingDir"] == str(tmp_path)
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "1500M", "nvidia.com/gpu": "1"},
        "limits": {"memory": "1500M", "nvidia.com/gpu": "1"},
    }
    assert {"name": "CAPGAP_RUN", "value": "abc"} in container["env"]
    assert "secret" not in json.dumps(made)
    mounted = {volume["name"] for volume in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in made["spec"]["template"]["spec"]["volumes"]}


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        ({"status": {"active": 1}}, 0, "running"),
        ({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}, 0, "success"),
        ({"status": {"conditions": [{"type": "Failed", "status": "True"}]}}, 0, "failed"),
        ({"status": {"conditions": [{"type": "Failed", "status": "False"}]}}, 0, "running"),
        (None, 0, "failed"),  # gone
        (None, 1, "running"),  # the control plane is away
    ],
)
def test_states_of_a_job_of_kubernetes(
    kube, tmp_path, monkeypatch, capsys, answer, status, expected
):
    kubectl = tmp_path / "kubectl"
    text = json.dumps(answer) if answer else ""
    kubectl.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\nexit {status}\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    kube.status("capgap-1")
    assert capsys.readouterr().out.strip() == expected
