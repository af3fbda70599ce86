"""
The launcher of one machine's processes of a job: torchrun, with an exit status by the reason of its end.

    python -m capgap.workflow.node NODES PROCESSES PORT MODULE [OPTION...]

PROCESSES run on each of NODES machines. On several, srun starts one launcher on each; Slurm's variables
name this machine's number and the address of the first, where a launcher listens on PORT.

Status 75 (EX_TEMPFAIL of sysexits.h): the processes were told to end (SIGTERM), and one is known to have
saved its state, or none to have failed. The job may be tried again.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from capgap.records.reading import DIGESTS
from capgap.terminal import die_with_parent

SHUTDOWN_SECONDS = 300  # for processes to finish a micro-batch and save the step after SIGTERM
REASONS = {
    "SIGKILL": " (out of main memory?)",
    "SIGABRT": " (by NCCL or CUDA, whose lines above name the cause; NCCL ends a process that has waited "
    "for another longer than plan.collective_timeout_minutes)",
}
NODE, FIRST_ADDRESS = "SLURM_NODEID", "SLURM_LAUNCH_NODE_IPADDR"  # srun runs on the first machine


def torchrun_words(
    nodes: int, processes: int, port: int, module: str, options: list[str]
) -> list[str]:
    """The options of torchrun on this machine."""
    if nodes == 1:
        place = ["--standalone"]
    else:
        place = [f"--nnodes={nodes}", f"--node-rank={os.environ[NODE]}"]
        place += [f"--master-addr={os.environ[FIRST_ADDRESS]}", f"--master-port={port}"]
    place += [f"--nproc-per-node={processes}", f"--shutdown-timeout={SHUTDOWN_SECONDS}"]
    # without -- torchrun would read a stage's option as an abbreviation of one of its own
    return [*place, "--module", "--", module, *options]


def status_of(failures: list[ProcessFailure]) -> int:
    """The launcher's exit status after some of its processes have failed; a line about each kill."""
    codes = [failure.exitcode for failure in failures]
    if os.EX_TEMPFAIL in codes:
        return os.EX_TEMPFAIL
    for failure in failures:
        # the others of the job end by themselves, or are ended by torchrun with SIGTERM
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            print(
                f"error: process {failure.local_rank} on {socket.gethostname()} was ended by {name}"
                + REASONS.get(name, "")
                + ", and the job with it; run again to go on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
    return 1


def wait_for_processes() -> int:
    """Wait until they have saved and ended. torchrun does so too, but not if it gets SIGTERM again.

    Slurm signals all processes of a node, and those that get the signal pass it on. Returns the job's
    status, by those that end here: torchrun keeps the status of processes that it waited for to itself. 1 if
    one failed and none saved, 75 otherwise.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end, codes = time.monotonic() + SHUTDOWN_SECONDS, []
    with suppress(ChildProcessError):  # there are none left
        while time.monotonic() < end:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process:
                codes.append(os.waitstatus_to_exitcode(status))
            else:
                time.sleep(0.1)
    failed = any(code > 0 and code != os.EX_TEMPFAIL for code in codes)
    return 1 if failed and os.EX_TEMPFAIL not in codes else os.EX_TEMPFAIL


def main() -> None:
    """Run the processes and exit with a status by how they ended."""
    nodes, processes, port, module, *options = sys.argv[1:]
    if os.environ.get("CAPGAP_UNDER_WORKFLOW"):
        die_with_parent()
    words = torchrun_words(int(nodes), int(processes), int(port), module, options)
    try:
        digests = TemporaryDirectory(prefix="capgap-digests-")
    except OSError as error:
        sys.exit(
            f"error: no temporary folder can be made ({error.strerror}); set TMPDIR to another"
        )
    with digests as folder:  # until the last process has ended, for those that save use it
        os.environ[DIGESTS] = folder
        try:
            run(parse_args(words))
        except SignalException:  # was passed on to the processes
            sys.exit(wait_for_processes())
        except ChildFailedError as error:
            sys.exit(status_of(list(error.failures.values())))


if __name__ == "__main__":
    main()
