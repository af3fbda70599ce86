"""A training job over both nodes of a real Slurm: `make test-slurm`."""

import json
import re

import numpy as np
import pytest
from login_node import Login, checkpoints, reason, wait_for
from processes import alive
from repository import RESULTS

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=str(reason))]

TOKENS = "100k"
RUN = f"{RESULTS}/students/3k/pruned-t16k/from-t16k/tokens-{TOKENS}/seed-0"
TRAINED = f"{RUN}/model/manifest.json"
# Sums over four processes are rounded in another order than over one; measured: 2e-6 nats at most.
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def begun(packed, tmp_path_factory):
    """A study up to the student's init."""
    study = packed.copy(tmp_path_factory.mktemp("begun") / "study")
    study.configure(lambda data: data["grid"].update(tokens=[TOKENS]))
    study.capgap("run", "--cores", "2", f"{RESULTS}/inits/3k/pruned-t16k/model/manifest.json")
    return study


@pytest.fixture(scope="module")
def alone(begun, tmp_path_factory):
    """The curve of a run by one process on this machine."""
    study = begun.copy(tmp_path_factory.mktemp("alone") / "study")
    study.capgap("run", "--cores", "1", TRAINED)
    return curve(study)


@pytest.fixture
def study(begun, tmp_path):
    copy = begun.copy(tmp_path / "study")
    copy.configure(lambda data: data.update(plan={"nodes": 2, "processes": 4, "shard": True}))
    yield copy
    for process in alive(copy):
        process.kill()


def curve(study):
    return np.genfromtxt(study / RUN / "curve.csv", delimiter=",", skip_header=1, filling_values=0)


def log(study):
    path = study / f"logs/distill_student/{RUN}.log"
    return path.read_text() if path.is_file() else ""


def steps(study):
    return max((int(path.parent.name[5:]) for path in checkpoints(study)), default=0)


def one_running(slurm, login):
    (job,) = wait_for(lambda: slurm.running("distill_student"), login)
    return job


def test_two_nodes_of_two_processes_end_as_one_process_through_a_drain_and_a_loss(
    study, slurm, alone
):
    login = Login(study, slurm, TRAINED)
    job = one_running(slurm, login)
    assert slurm.ask("squeue", "-h", "-j", job, "-o", "%C %D") == "4 2"  # cores, nodes
    first = wait_for(lambda: steps(study), login, 400)
    workers = [p.environ() for p in alive(study, "capgap.stages.distill")]
    found = {
        (e["SLURMD_NODENAME"], e["RANK"], e["LOCAL_RANK"]): e["WORLD_SIZE"]
        for e in workers
        if "RANK" in e
    }
    places = {("n1", "0", "0"), ("n1", "1", "1"), ("n2", "2", "0"), ("n2", "3", "1")}
    assert found == dict.fromkeys(places, "4")
    assert {e["SLURM_JOB_ID"] for e in workers if "RANK" in e} == {job}

    # one node is drained, and its jobs get SIGTERM
    slurm.ask("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    slurm.ask("scancel", "--signal=TERM", job)
    wait_for(lambda: job not in slurm.running("distill_student"), login)
    said = log(study)
    assert "the state is saved" in said, said
    saved = int(re.search(r"terminated after step (\d+)/", said)[1])
    assert saved == steps(study) >= first
    slurm.ask("scontrol", "update", "nodename=n2", "state=resume")
    job = one_running(slurm, login)
    wait_for(lambda: steps(study) > saved, login, 400)
    assert f"resumed after step {saved}/" in log(study)

    # the other one, with the process that saves, loses its power
    at_loss = steps(study)
    slurm.kill_node("n2")
    slurm.start_node("n2")
    wait_for(lambda: job not in slurm.running("distill_student"), login)
    assert login.finish() == 0, login.said()
    resumed = int(re.search(r"resumed after step (\d+)/", log(study))[1])
    assert resumed >= at_loss
    np.testing.assert_allclose(curve(study), alone, rtol=TOLERANCE, atol=TOLERANCE)
    record = json.loads((study / RUN / "train.json").read_text())
    assert record["lineage"]["teacher"] == "t16k"
    print("largest difference of a curve's entry", np.abs(curve(study) - alone).max())

    # the number of nodes is no setting of the result
    study.configure(lambda data: data.update(plan={}))
    assert f"distill_student {RUN.removeprefix(f'{RESULTS}/')}" not in study.planned()


def test_slices_of_a_wall_time_shorter_than_the_job_add_up(study, slurm, alone):
    """Three minutes, of which Slurm gives the last one or two for saving.

    One process is stopped until Slurm's signal has come, so that the first slice is too short on a fast
    machine as well.
    """
    study.configure(lambda data: data["plan"].update(shard=False, processes=2))
    login = Login(
        study, slurm, TRAINED, "--retries", "9", "--set-resources", "distill_student:runtime=3",
        "distill_student:slurm_extra='--ntasks-per-node=1 --signal=TERM@60'",
    )  # fmt: skip
    first = one_running(slurm, login)
    assert slurm.ask("squeue", "-h", "-j", first, "-o", "%l") == "3:00"
    wait_for(lambda: steps(study), login, 400)
    stopped = [
        process
        for process in alive(study, "capgap.stages.distill")
        if process.environ().get("RANK") == "1"
    ]
    for process in stopped:
        process.suspend()
    wait_for(lambda: "SIGTERM" in log(study), login)
    for process in stopped:
        process.resume()
    wait_for(lambda: first not in slurm.running("distill_student"), login)
    said = log(study)
    assert "the state is saved" in said, said
    saved = int(re.search(r"terminated after step (\d+)/", said)[1])
    assert 0 < saved == steps(study)
    wait_for(lambda: "resumed after step" in log(study), login, 400)
    assert f"resumed after step {saved}/" in log(study)
    assert login.finish() == 0, login.said()
    np.testing.assert_allclose(curve(study), alone, rtol=TOLERANCE, atol=TOLERANCE)
