"""Resources that jobs request from Snakemake: memory, time and devices, by the plan and the attempt."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.resources import Resources

from capgap.cost.job_costs import StudyCost
from capgap.cost.requests import Requests
from capgap.cost.speed import Assumed
from capgap.cost.teacher_configs import open_study
from capgap.errors import CapgapError
from capgap.workflow.rule_params import check_executor, own_texts

REPOSITORY = Path(__file__).parents[2]


def real(name):
    return open_study(REPOSITORY / f"configs/{name}.yaml")


def test_jobs_longer_than_a_cluster_allows_run_in_slices():
    study = real("gpt2")
    run = {"student": "32M", "init": "pruned-gpt2", "teacher": "gpt2", "tokens": "50M"}
    whole = Requests(study)
    minutes, memory_mb = whole.runtime("distill_student")(run, 1), whole.mem_mb("distill_student")
    limit = math.ceil(minutes / 3) + 1  # three slices
    limited = study.model_copy(
        update={"plan": study.plan.model_copy(update={"max_runtime": limit})}
    )
    asked = Requests(limited)
    assert [asked.runtime("distill_student")(run, n) for n in (1, 2, 9)] == [limit] * 3
    needed = memory_mb(run, 1)
    memory = [asked.mem_mb("distill_student")(run, n) for n in (1, 2, 3, 4, 5)]
    assert memory == [needed, needed, needed, 2 * needed, 3 * needed]
    assert whole.retries == 3
    trained = (job for job in whole.cost.jobs if job.rule == "distill_student")
    longest_s = max(whole.speed.seconds(job) for job in trained)
    assert asked.retries == 3 + math.ceil(math.ceil(3 * longest_s / 60) / limit) - 1


def test_jobs_ask_for_what_the_plan_says_and_for_more_on_every_attempt():
    study = real("pythia")
    needs, jobs = Requests(study), StudyCost(study).jobs
    speed = Assumed("a100-80gb", study.plan.mfu)
    assert needs.devices == 1
    seen = set()
    for job in jobs:
        parts = Path(job.output).parts
        wildcards = {"study": "pythia"}
        if parts[2] == "teachers":
            wildcards["teacher"] = parts[3]
        elif parts[2] == "inits":
            wildcards["student"] = parts[3]
            if parts[4] != "random":
                wildcards["teacher"] = parts[4].removeprefix("pruned-")
        elif parts[2] == "students":
            names = ("student", "init", "teacher", "tokens", "seed")
            values = [parts[3], parts[4], *(part.split("-", 1)[1] for part in parts[5:8])]
            wildcards.update(zip(names, values, strict=True))
        memory_mb = needs.mem_mb(job.rule)(wildcards, 1)
        assert memory_mb == math.ceil(1.25 * job.host_mb), job
        assert needs.mem_mb(job.rule)(wildcards, 3) == 3 * memory_mb
        minutes = needs.runtime(job.rule)(wildcards, 1)
        assert minutes == math.ceil(max(10, 3 * speed.seconds(job) / 60)), job
        assert needs.runtime(job.rule)(wildcards, 2) == 2 * minutes
        seen.add(job.rule)
    assert {"fetch_teacher", "score_importance", "prune_student", "random_init_student"} <= seen
    assert Requests(open_study(REPOSITORY / "config.yaml")).devices == 0


def planned(**plan):
    """Requests of a study with other machines."""
    study = real("pythia")
    return Requests(study.model_copy(update={"plan": study.plan.model_copy(update=plan)}))


def test_what_slurm_is_asked_for_a_job_on_several_nodes():
    """The options that its plugin makes of them: one task a node, with the GPUs of that node."""
    needs = planned(processes=8, nodes=2)
    assert needs.threads == 4 * needs.cores
    asked = needs.on_slurm_nodes({"slurm_extra": "--nice=5", "gpu_model": "a100"})
    assert asked == {
        "mpi": "srun",
        "tasks": 2,
        "tasks_per_gpu": 0,
        "slurm_extra": "--nice=5 --signal=TERM@120 --ntasks-per-node=1 --gpus-per-node=a100:4",
    }
    alone = planned(processes=8).on_slurm_nodes({})
    assert alone == {"slurm_extra": "--signal=TERM@120"}  # and the plugin's own srun


@pytest.mark.parametrize(("cores_per_gpu", "cores"), [(None, 6), (10, 6), (3, 3), (0, 1)])
def test_the_jobs_of_all_gpus_share_the_cores_of_a_machine(cores_per_gpu, cores):
    assert Requests(real("pythia"), cores_per_gpu).cores == cores


def test_several_nodes_need_slurm():
    study = real("pythia")
    spread = study.model_copy(
        update={"plan": study.plan.model_copy(update={"nodes": 2, "processes": 2})}
    )
    check_executor(spread, "slurm")
    check_executor(study, "local")
    with pytest.raises(CapgapError, match="plan.nodes: jobs on 2 nodes .* executor is local"):
        check_executor(spread, "local")


def test_texts_for_slurm_that_a_run_gives_are_kept():
    parsed = Resources.parse(
        ["slurm_extra='--nice=5 --x'", "gpu_model=a100", "nodes=1"], allow_expressions=True
    )
    workflow = SimpleNamespace(resource_settings=SimpleNamespace(default_resources=parsed))
    assert own_texts(workflow) == {"slurm_extra": "--nice=5 --x", "gpu_model": "a100"}
