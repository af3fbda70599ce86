"""
Start a stage as one process or several, and measure what it took.

    python -m capgap.workflow.launch GPUS PROCESSES SHARD TIMING MODULE [OPTION...]

A stage of one process that needs no GPU is forked from the run's job host if there is one (see
`capgap.workflow.job_host`). Wall time, CPU time and peak memory are written to the file TIMING.

If the variable CAPGAP_GPUS lists devices of this machine, the stage claims GPUS of them that no other
job of this user holds, and sees only those. If it is not set, the cluster assigns devices. Several
processes are started by torchrun; SHARD is 1 if the model is sharded over them.
"""

from __future__ import annotations

import fcntl
import os
import signal
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
SHUTDOWN_SECONDS = 300  # for processes to finish a step and save it after SIGTERM
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


def command(processes: int, module: str, options: list[str]) -> list[str]:
    """The command line of a stage: Python, or torchrun for several processes on this machine."""
    if processes == 1:
        return [sys.executable, "-m", module, *options]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    torchrun += [f"--shutdown-timeout={SHUTDOWN_SECONDS}"]
    # without -- torchrun would read a stage's option as an abbreviation of one of its own
    return [sys.executable, *torchrun, "--module", "--", module, *options]


def measured(words: list[str]) -> Ended:
    """Run a command to its end; SIGTERM is passed on to it."""
    # the command inherits the locks, so they are held until it has released the devices
    process = subprocess.Popen(words, preexec_fn=die_with_parent, close_fds=False)
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = 0  # it has been waited for
    return Ended(status, used.ru_utime + used.ru_stime, 1024.0 * used.ru_maxrss)


def write_timing(path: Path, wall_s: float, ended: Ended) -> None:
    """Write one row with the column names of Snakemake's benchmark files; memory in MiB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = f"{wall_s:.4f}\t{ended.peak_bytes / 2**20:.2f}\t{ended.cpu_s:.4f}"
    path.write_text(f"s\tmax_rss\tcpu_time\n{row}\n", encoding="utf-8")


def main() -> None:
    """Claim devices, run the stage, and exit with its status."""
    gpus, processes, shard, timing, module, *options = sys.argv[1:]
    if int(shard):
        options.append("--shard")
    if os.environ.get("CAPGAP_UNDER_WORKFLOW"):
        die_with_parent()
    if VARIABLE in os.environ:
        try:
            names = claim(int(gpus), os.environ[VARIABLE].split(","))
        except CapgapError as error:
            sys.exit(f"error: {error}")
        os.environ[VISIBLE] = ",".join(names)
        print(f"on GPU {os.environ[VISIBLE] or 'none'}", flush=True)
    os.environ.update(job_host.ONE_THREAD)  # Snakemake sets these to the number of processes
    begun, ended = time.monotonic(), None
    if processes == "1" and gpus == "0":
        try:
            ended = job_host.submit(module, options)
        except EOFError as error:
            sys.exit(f"error: {error}, and the job with it; run again to go on")
    if ended is None:
        ended = measured(command(int(processes), module, options))
    if ended.status == 0:
        write_timing(Path(timing), time.monotonic() - begun, ended)
    elif os.WIFSIGNALED(ended.status):
        number = os.WTERMSIG(ended.status)
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(ended.status))


if __name__ == "__main__":
    main()
