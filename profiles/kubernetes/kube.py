#!/usr/bin/env python3
"""
Snakemake's job scripts as Jobs of Kubernetes, through kubectl.

kube.py --submit SCRIPT   start a Job, print its name
kube.py --status NAME     print running, success or failed
kube.py NAME...           delete Jobs
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

TEMPLATE = Path(__file__).with_name("job.yaml")
GPU = "nvidia.com/gpu"


def manifest(script: Path, template: dict) -> dict:
    """The Job that runs a job script of Snakemake, whose second line holds the job's properties."""
    line = next(x for x in script.read_text().splitlines() if x.startswith("# properties = "))
    job = json.loads(line.removeprefix("# properties = "))
    resources = job["resources"]
    asked = {"cpu": str(job["threads"]), "memory": f"{resources['mem_mb']}M"}
    if resources.get("gpu"):
        asked[GPU] = str(resources["gpu"])
    template["metadata"]["labels"]["rule"] = job["rule"]
    template["spec"]["activeDeadlineSeconds"] = 60 * resources["runtime"]
    (container,) = template["spec"]["template"]["spec"]["containers"]
    container["command"] = ["/bin/sh", str(script)]
    container["workingDir"] = os.getcwd()
    container["resources"] = {
        "requests": asked,
        "limits": {name: value for name, value in asked.items() if name != "cpu"},
    }
    ours = {name: value for name, value in os.environ.items() if name.startswith("CAPGAP_")}
    container.setdefault("env", []).extend(
        {"name": name, "value": value} for name, value in sorted(ours.items())
    )
    return template


def submit(script: str) -> None:
    """Start a Job and print its name."""
    text = json.dumps(manifest(Path(script), yaml.safe_load(TEMPLATE.read_text())))
    command = ["kubectl", "create", "--filename=-", "--output=jsonpath={.metadata.name}"]
    print(subprocess.run(command, input=text, text=True, capture_output=True, check=True).stdout)


def status(name: str) -> None:
    """Print a Job's state; one that is gone has failed, one that cannot be asked about still runs."""
    command = ["kubectl", "get", "job", name, "--ignore-not-found", "--output=json"]
    answer = subprocess.run(command, text=True, capture_output=True)
    if answer.returncode:
        print(answer.stderr, file=sys.stderr)
        print("running")  # an outage of the control plane must not drop jobs that run
        return
    conditions = json.loads(answer.stdout)["status"].get("conditions", []) if answer.stdout else []
    true = {condition["type"] for condition in conditions if condition["status"] == "True"}
    if "Complete" in true:
        print("success")
    else:
        print("failed" if "Failed" in true or not answer.stdout else "running")


def main() -> None:
    """Command line."""
    match sys.argv[1:]:
        case ["--submit", script]:
            submit(script)
        case ["--status", name]:
            status(name)
        case names:
            subprocess.run(["kubectl", "delete", "job", "--wait=false", *names], check=True)


if __name__ == "__main__":
    main()
