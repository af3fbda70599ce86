"""The processes of a job are no setting of a result: nothing reruns, states move, all end together."""

import json
import shutil

import pytest
from processes import alive, start, wait_for
from repository import RESULTS

pytestmark = pytest.mark.slow

RUN = "students/3k/pruned-t6k/from-t6k/tokens-5k/seed-0"


def loss(repository):
    return json.loads((repository / RESULTS / RUN / "metrics.json").read_text())["test"][
        "loss_nats_per_token"
    ]


def test_a_job_of_two_processes_is_killed_and_goes_on_in_one(finished, study):
    study.configure(lambda data: data.update(plan={"processes": 2, "shard": True}))
    assert study.planned() <= {"write_report report"}  # which shows the settings
    expected = loss(finished)
    shutil.rmtree(study / RESULTS / RUN)
    target = f"{RESULTS}/{RUN}/metrics.json"
    run = start(study, "capgap.cli", "run", "--cores", "2", target, CAPGAP_CHECKPOINT_SECONDS="0")
    wait_for(lambda: list((study / f"scratch/{RESULTS}/{RUN}").glob("*/*/step-*")))
    run.kill()
    run.wait()
    wait_for(lambda: not alive(study), seconds=20)  # neither the launcher nor its processes go on
    study.configure(lambda data: data.pop("plan"))
    study.capgap("run", "--cores", "2", target)
    log = (study / f"logs/distill_student/{RESULTS}/{RUN}.log").read_text()
    assert "resumed after step" in log  # of two processes, in one
    assert loss(study) == pytest.approx(expected, abs=1e-4)
