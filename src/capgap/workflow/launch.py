"""
Start a stage as one process or several, and measure what it took.

    python -m capgap.workflow.launch [--gpus N] [--processes N] [--nodes N] ... TIMING MODULE [OPTION...]

GPUs and processes are those of the whole job. Several processes are started by torchrun (node.py), on several
machines through srun; one that needs no GPU is forked from the run's job host if there is one (job_host.py).
Wall time, CPU time and peak memory are written to the file TIMING. If the variable CAPGAP_GPUS lists devices
of this machine, the stage claims some that no other job of this user holds; else the cluster assigns them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from capgap.errors import CapgapError
from capgap.terminal import die_with_parent
from capgap.workflow import job_host
from capgap.workflow.job_host import Ended

VARIABLE = "CAPGAP_GPUS"  # ids of the devices that jobs may claim, separated by commas
VISIBLE = "CUDA_VISIBLE_DEVICES"
OTHERS_SECONDS = 60  # for the processes of other machines to end after those of one have
WAIT_SECONDS = 0.2


def share_out(number: int) -> None:
    """Let the jobs of this process share `number` GPUs: the visible ones, or else the first ones."""
    visible = os.environ.get(VISIBLE)
    ids = list(map(str, range(number))) if visible is None else [*filter(None, visible.split(","))]
    if len(ids) < number:
        raise CapgapError(
            f"gpu={number} is more than the {len(ids)} GPU(s) that {VISIBLE} names; lower it"
        )
    os.environ[VARIABLE] = ",".join(ids[:number])


def lock_folder() -> Path:
    """The folder of this user's GPU locks, which nobody else may write or read.

    It is the same for all jobs on a machine: the user's run-time folder if there is one, otherwise a
    temporary folder. Another user could create that one first, so its owner is checked.
    """
    user = os.getuid()
    runtime = [Path(p) for p in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{user}") if p]
    found = [p for p in runtime if p.is_dir() and p.stat().st_uid == user and os.access(p, os.W_OK)]
    if found:
        folder = found[0] / "capgap-gpus"
    else:
        folder = Path(tempfile.gettempdir()) / f"capgap-gpus-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        raise CapgapError(
            f"{folder} belongs to another user or may be written by one, so GPU locks cannot lie in "
            "it; have it removed, or set XDG_RUNTIME_DIR to a folder that only you may write"
        )
    return folder


def claim(number: int, ids: list[str]) -> list[str]:
    """Lock some devices for as long as this process, or the job it starts, lives."""
    if number > len(ids):
        raise CapgapError(
            f"the job needs {number} GPUs and {VARIABLE} lists {len(ids)}; raise gpu= of the run"
        )
    folder = lock_folder()
    while True:
        held: dict[str, int] = {}
        for name in ids:
            if len(held) == number:
                break
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            file = os.open(folder / f"{name}.lock", flags, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held[name] = file
            except BlockingIOError:
                os.close(file)
        if len(held) == number:
            break
        for file in held.values():  # otherwise two waiting jobs could block each other for ever
            os.close(file)
        time.sleep(WAIT_SECONDS)
    for file in held.values():
        os.set_inheritable(file, True)
    return list(held)


def command(
    module: str,
    options: list[str],
    *,
    processes: int = 1,
    nodes: int = 1,
    gpus: int = 0,
    cores: int = 1,
) -> list[str]:
    """The command line of a stage: Python, or the launcher of several processes on each machine.

    gpus, processes: of all machines. cores: of each. The job's script runs on the first machine, so a
    port that is free here is one where the launchers can meet.
    """
    if processes == 1:
        return [sys.executable, "-m", module, *options]
    port = free_port() if nodes > 1 else 0
    words = [sys.executable, "-m", "capgap.workflow.node"]
    words += [*map(str, (nodes, processes // nodes, port)), module, *options]
    if nodes == 1:
        return words
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    srun += [f"--cpus-per-task={cores}", f"--wait={OTHERS_SECONDS}"]
    srun += [f"--gpus-per-node={gpus // nodes}"] * (gpus > 0)
    return [*srun, *words]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def measured(words: list[str]) -> Ended:
    """Run a command to its end; SIGTERM is passed on to it, or by Slurm to what srun has started."""
    # the command inherits the locks, so they are held until it has released the devices
    process = subprocess.Popen(words, preexec_fn=die_with_parent, close_fds=False)

    def pass_on(*_) -> None:
        if words[0] != "srun":
            process.send_signal(signal.SIGTERM)
        else:  # which would answer SIGTERM with SIGKILL to all
            subprocess.run(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]])

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = 0  # it has been waited for
    return Ended(status, used.ru_utime + used.ru_stime, 1024.0 * used.ru_maxrss)


def write_timing(path: Path, wall_s: float, ended: Ended, *, nodes: int = 1) -> None:
    """Write one row with the column names of Snakemake's benchmark files; memory in MiB.

    On several nodes neither memory nor CPU time is known: they are those of srun.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    used = f"{ended.peak_bytes / 2**20:.2f}\t{ended.cpu_s:.4f}" if nodes == 1 else "NA\tNA"
    row = f"{wall_s:.4f}\t{used}"
    path.write_text(f"s\tmax_rss\tcpu_time\n{row}\n", encoding="utf-8")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """What to start, from a command line."""
    parser = argparse.ArgumentParser("capgap.workflow.launch", allow_abbrev=False)
    for name, default in (("gpus", 0), ("processes", 1), ("nodes", 1), ("cores", 1), ("shard", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("timing", type=Path)
    parser.add_argument("module")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    args = parser.parse_args(words)
    args.options += ["--shard"] * args.shard
    return args


def main() -> None:
    """Claim devices, run the stage, and exit with its status."""
    args = parse()
    if os.environ.get("CAPGAP_UNDER_WORKFLOW"):
        die_with_parent()
    if VARIABLE in os.environ:
        try:
            names = claim(args.gpus, os.environ[VARIABLE].split(","))
        except CapgapError as error:
            sys.exit(f"error: {error}")
        os.environ[VISIBLE] = ",".join(names)
        print(f"on GPU {os.environ[VISIBLE] or 'none'}", flush=True)
    os.environ.update(job_host.ONE_THREAD)  # Snakemake sets these to the number of processes
    begun, ended = time.monotonic(), None
    if args.processes == 1 and args.gpus == 0:
        try:
            ended = job_host.submit(args.module, args.options)
        except EOFError as error:
            sys.exit(f"error: {error}, and the job with it; run again to go on")
    if ended is None:
        asked = {name: getattr(args, name) for name in ("processes", "nodes", "gpus", "cores")}
        ended = measured(command(args.module, args.options, **asked))
    if ended.status == 0:
        write_timing(args.timing, time.monotonic() - begun, ended, nodes=args.nodes)
    elif os.WIFSIGNALED(ended.status):
        number = os.WTERMSIG(ended.status)
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(ended.status))


if __name__ == "__main__":
    main()
