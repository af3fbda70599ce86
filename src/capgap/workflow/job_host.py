"""
A process that loads PyTorch and the stages once and forks for every job.

Importing PyTorch and transformers takes three CPU seconds, as long as a small job's own work. A run
on this machine starts one host, and `capgap.workflow.launch` hands jobs to it over a socket. A job
is a process of its own as before, with its own log, environment, lock and exit status: it dies with
the launcher that requested it, and with the host, which dies with Snakemake.

This works only on Linux without an NVIDIA driver, because an initialised driver does not survive a
fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import traceback
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from capgap.terminal import die_with_parent

VARIABLE = "CAPGAP_JOB_HOST"  # name of the host's socket
STAGES = ("pretrain", "evaluate", "score", "prune", "random_init", "given", "cache_teacher")
STAGES += ("distill", "sample")
USED = ("transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto")
LARGEST_REQUEST = 2**20  # bytes
STARTED, TERMINATE = b"s", b"t"
STATUS = struct.Struct("idd")  # wait status, CPU seconds, peak memory in bytes
CREDENTIALS = struct.Struct("3i")  # process, user, group
# One thread per job. Libraries read these when they are loaded, so the host must set them, too.
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")}


@dataclass(frozen=True)
class Ended:
    """How a job ended, its CPU time and its peak memory."""

    status: int  # as os.wait gives it
    cpu_s: float
    peak_bytes: float


def possible() -> bool:
    """Whether jobs on this machine may be forks of one process."""
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists()


def start() -> subprocess.Popen:
    """Start a host that ends with this process; jobs find its name in the environment."""
    name = f"capgap-{uuid.uuid4().hex}"
    os.environ[VARIABLE] = name
    words = [sys.executable, "-m", "capgap.workflow.job_host", name]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, env=os.environ | ONE_THREAD)


def submit(module: str, options: list[str]) -> Ended | None:
    """Run a stage in a fork of the host, with this process's environment and output, and wait.

    Returns None if there is no host with the same Python. SIGTERM is passed on to the job. Raises
    EOFError if the host ends before the job does.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    request = {
        "prefix": sys.prefix,
        "module": module,
        "options": options,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(f"\0{name}")
            socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
            if connection.recv(1) != STARTED:
                return None
        except OSError:  # there is no host on this machine, or the request is too long
            return None
        signal.signal(signal.SIGTERM, lambda *_: connection.send(TERMINATE))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the job as well
        try:
            answer = connection.recv(STATUS.size)
        except ConnectionResetError:
            answer = b""
        if answer == b"":
            raise EOFError(f"the job host ({name}), from which jobs are forked, has ended")
        return Ended(*STATUS.unpack(answer))


@dataclass
class Host:
    """The host's side: connections, and the job of each."""

    name: str
    jobs: dict[socket.socket, int] = field(default_factory=dict)  # process of each connection

    def serve(self) -> None:
        """Listen at once, load what stages need, then fork for every request."""
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(f"\0{self.name}")
        self.listener.listen()
        for module in (*USED, *(f"capgap.stages.{stage}" for stage in STAGES)):
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # otherwise every fork's collector would copy the pages of all modules
        ended, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.ready = selectors.DefaultSelector()
        self.ready.register(self.listener, selectors.EVENT_READ, self._accept)
        self.ready.register(ended, selectors.EVENT_READ, self._reap)
        while True:
            for key, _ in self.ready.select():
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        if CREDENTIALS.unpack(raw)[1] != os.getuid():  # the socket's name is no secret
            connection.close()
            return
        self.ready.register(connection, selectors.EVENT_READ, self._receive)

    def _receive(self, connection: socket.socket) -> None:
        """Read from a launcher: start its job, pass on its signal, or end the job if it has ended."""
        if connection in self.jobs:
            wish = connection.recv(1)
            os.kill(self.jobs[connection], signal.SIGTERM if wish else signal.SIGKILL)
            if not wish:
                self.ready.unregister(connection)
            return
        data, files, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 2)
        request = json.loads(data) if data else {}
        if not request or request["prefix"] != sys.prefix or len(files) != 2:
            self.ready.unregister(connection)
            connection.close()
        else:
            process = os.fork()
            if process == 0:
                self._run_job(request, files)
            self.jobs[connection] = process
            with suppress(BrokenPipeError):  # the launcher has ended, as the next event will show
                connection.send(STARTED)
        for file in files:
            os.close(file)

    def _run_job(self, request: dict, files: list[int]) -> None:
        """Run the job in the fork. Never returns."""
        status = 1
        try:
            die_with_parent()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for connection in [self.listener, *self.jobs]:
                connection.close()
            os.dup2(files[0], 1)
            os.dup2(files[1], 2)
            # open new streams: the host's remember whether its own files were seekable
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            stage = importlib.import_module(request["module"])
            stage.run_stage(stage.main, request["options"])  # as the module run by itself does
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def _reap(self, ended: socket.socket) -> None:
        """Answer the launchers of jobs that have ended."""
        ended.recv(4096)
        by_process = {process: connection for connection, process in self.jobs.items()}
        while by_process:
            process, status, used = os.wait4(-1, os.WNOHANG)
            if process == 0:
                return
            connection = by_process.pop(process)
            del self.jobs[connection]
            answer = STATUS.pack(status, used.ru_utime + used.ru_stime, 1024.0 * used.ru_maxrss)
            try:
                self.ready.unregister(connection)
            except KeyError:  # its launcher has ended
                pass
            else:
                connection.send(answer)
            connection.close()


def main() -> None:
    """Run a host that listens on the socket of the given name."""
    die_with_parent()
    Host(sys.argv[1]).serve()


if __name__ == "__main__":
    main()
