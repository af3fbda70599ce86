"""
A real Slurm on this machine: one controller and two nodes on loopback, as root, gone afterwards.

No systemd, no cgroups, no accounting. Commands come first in PATH as wrappers that name the
configuration: the plugin's inner step drops SLURM_CONF from its environment.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
COMMANDS = ("srun", "sbatch", "scancel", "squeue", "scontrol", "sinfo", "sacctmgr", "sshare")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
CONFIGURATION = """
ClusterName=capgap
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=1
MinJobAge=300
KillWait=30
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here; None where it can."""
    if os.geteuid():
        return "needs root: munge and slurmd run as it"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SYSTEM_PATH)]
    if absent:
        return f"needs {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return None


class Cluster:
    """Slurm's commands and the environment in which Snakemake finds them.

    start: function that starts a daemon.
    """

    def __init__(self, folder: Path, start):
        self.folder, self.start, self.daemons = folder, start, {}
        self.path = f"{folder}/bin:{os.environ['PATH']}"

    def ask(self, *words: str) -> str:
        """What a Slurm command prints."""
        result = subprocess.run(
            [f"{self.folder}/bin/{words[0]}", *words[1:]],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return result.stdout.strip()

    def running(self, rule: str) -> list[str]:
        """Ids of the jobs of a rule that run now; the plugin names a job's rule in its comment."""
        rows = [
            row.split("|") for row in self.ask("squeue", "-h", "-t", "R", "-o", "%i|%k").split()
        ]
        return [job for job, comment in rows if comment.startswith(f"rule_{rule}")]

    def start_node(self, name: str) -> None:
        """Start a node, whose jobs of before are gone."""
        self.daemons[name] = self.start("/usr/sbin/slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """What a loss of power does: kill a node with all that srun has started on it."""
        doomed = [psutil.Process(self.daemons[name].pid)]
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURMD_NODENAME") == name:
                    doomed += [process, *_started_by(process)]
            except psutil.Error:  # it ended meanwhile
                continue
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.daemons[name].wait()


def _started_by(process: psutil.Process) -> list[psutil.Process]:
    """Slurm's process that has started a task."""
    parent = process.parent()
    return [parent] if parent and parent.name().startswith("slurmstepd") else []


@contextmanager
def cluster(folder: Path):
    """Start a cluster in a folder, yield it, and stop what was started."""
    host = socket.gethostname().split(".")[0]
    for name in ("munge", "state", "n1", "n2", "bin"):
        (folder / name).mkdir(parents=True)
    for parent in [folder, *folder.parents]:  # munge's user must reach its socket
        if parent != Path("/") and parent.stat().st_mode & 0o055 != 0o055:
            parent.chmod(0o755)
    conf = folder / "slurm.conf"
    conf.write_text(CONFIGURATION.format(folder=folder, host=host, ports=free_ports(3)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    for name in COMMANDS:
        wrapper = folder / "bin" / name
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec /usr/bin/{name} "$@"\n')
        wrapper.chmod(0o755)
    key = folder / "munge/key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    shutil.chown(folder / "munge", "munge", "munge")
    shutil.chown(key, "munge", "munge")
    environment = {"PATH": SYSTEM_PATH, "SLURM_CONF": str(conf)}
    started = []

    def start(*words: str) -> subprocess.Popen:
        log = (folder / f"{Path(words[0]).name}.out").open("a")
        started.append(
            subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        )
        return started[-1]

    munge = folder / "munge"
    try:
        start(
            "/usr/bin/setpriv", "--reuid=munge", "--regid=munge", "--clear-groups",
            "/usr/sbin/munged", "--foreground", "--force", f"--key-file={munge}/key",
            f"--socket={munge}/socket", f"--pid-file={munge}/pid", f"--log-file={munge}/log",
            f"--seed-file={munge}/seed",
        )  # fmt: skip
        _wait(lambda: (munge / "socket").exists())
        start("/usr/sbin/slurmctld", "-D", "-c")
        here = Cluster(folder, start)
        for node in ("n1", "n2"):
            here.start_node(node)
        _wait(lambda: here.ask("sinfo", "-h", "-N", "-o", "%t").split() == ["idle", "idle"])
        yield here
    finally:
        subprocess.run(["/usr/bin/scancel", "--user", "root"], env=environment, timeout=20)
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"the cluster is not up after {seconds} s")
        time.sleep(0.2)
