"""What a branch's DVC settings may decide, what counts as a secret, and whose the caches are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.config_schema import REMOTE_SCHEMAS, SCHEMA

from capgap.errors import CapgapError, hide_secrets
from capgap.workflow import shared_settings
from capgap.workflow.shared_settings import check_shared, is_secret, own_caches

SECRETS = {
    "access_key_id",
    "account_key",
    "client_secret",
    "connection_string",
    "custom_auth_header",
    "gdrive_client_secret",
    "kerb_ticket",
    "oss_key_id",
    "oss_key_secret",
    "passphrase",
    "password",
    "sas_token",
    "secret_access_key",
    "session_token",
    "sse_customer_key",
    "token",
}


def test_all_settings_of_dvc_are_told_apart():
    """A new version of DVC with a new setting fails here, to be looked at."""
    names = {str(name) for schema in REMOTE_SCHEMAS.values() for name in schema}
    names |= {str(name) for name in SCHEMA["studio"]} | {str(n) for n in SCHEMA["db"][str]}
    assert {name for name in names if is_secret(name, "x")} == SECRETS
    assert len(names) == 88, sorted(names)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("ssh://ada:pw@host/x", "ssh://ada:***@host/x"),
        ("https://tok3n@host/x", "https://***@host/x"),
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://u:p@proxy:3128", "http://***@proxy:3128"),
        ("https://host/x?sig=abc&se=1", "https://host/x?***"),
        ("s3://key:sec/ret@bucket/x?a=b", "s3://key:sec/ret@bucket/x?***"),
        ("ssh://ada@host/x", "ssh://ada@host/x"),
        ("azure://box/a b", "azure://box/a b"),
        ("/mnt/a?b", "/mnt/a?b"),
        ("nothing for ssh://a:b@h/c ('https://u:p@h/?k=v'), sorry?", "nothing for ssh://a:***@h/c ('https://***@h/?***'), sorry?"),
    ],
)  # fmt: skip
def test_secrets_in_addresses_are_hidden(address, shown):
    assert hide_secrets(address) == shown


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Function that writes .dvc/config of a folder, which becomes the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    (tmp_path / ".dvc").mkdir()

    def write(text):
        (tmp_path / ".dvc/config").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "s3cret") for name in sorted(SECRETS)),
        ("PassPhrase", "s3cret"),
        ("url", "ssh://ada:s3cret@host/x"),
        ("endpointurl", "https://s3cret@host"),
        ("proxy", "http://u:s3cret@proxy:80"),
        ("url", "https://host/x?sig=s3cret"),
    ],
)
def test_secret_in_shared_settings_is_refused_and_not_printed(folder, name, value):
    folder(f"['remote \"lab\"']\n    {name} = {value}\n")
    check_shared(secrets=False)
    with pytest.raises(
        CapgapError, match=f"credential \\({name.lower()} of remote lab\\)"
    ) as error:
        check_shared(secrets=True)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ("'remote \"lab\"'", "bearer_token_command = touch /tmp/x"),
        ("'remote \"lab\"'", "configpath = aws.ini"),
        ("'remote \"lab\"'", "credentialpath = aws.ini"),
        ("core", "site_cache_dir = /var/tmp/shared"),
        ("cache", "dir = ../../.ssh"),
        ("hydra", "plugins_path = plugins"),
    ],
)
def test_shared_settings_that_run_programs_or_move_files_are_refused(folder, section, setting):
    folder(f"[{section}]\n    {setting}\n")
    with pytest.raises(CapgapError, match="comes with the branch"):
        check_shared(secrets=False)


@pytest.mark.parametrize("name", sorted(shared_settings.SENT))
@pytest.mark.parametrize("level", ["local", "global"])
def test_own_password_does_not_go_where_a_branch_sends_it(folder, monkeypatch, name, level):
    root = folder("['remote \"lab\"']\n    url = webdavs://evil.example.org/x\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(root / "home"))
    (root / "home").mkdir()
    own = root / (".dvc/config.local" if level == "local" else "home/config")
    own.write_text("['remote \"other\"']\n    password = s3cret\n")
    check_shared(secrets=True)
    own.write_text(f"['remote \"lab\"']\n    {name} = s3cret\n")
    with pytest.raises(CapgapError, match="sets the address of remote lab") as error:
        check_shared(secrets=False)
    assert "s3cret" not in str(error.value)
    with own.open("a") as file:
        file.write("    url = webdavs://ours.example.org/x\n")
    check_shared(secrets=False)


def test_shipped_settings_are_fine(folder):
    folder((Path(__file__).parents[2] / ".dvc/config").read_text())
    check_shared(secrets=True)


def test_spoilt_settings_are_named(folder):
    folder("[core\n")
    with pytest.raises(CapgapError, match=r"\.dvc/config cannot be read"):
        check_shared(secrets=True)


def test_caches_of_dvc_are_this_users_alone(folder):
    """Also for DVC's own commands, and in a folder that was moved."""
    root = folder("[core]\n    no_scm = true\n")
    (root / ".dvc/config.local").write_text(
        "['remote \"lab\"']\n    url = ssh://h/x\n    password = s3cret\n"
    )
    (root / ".dvc/config.local").chmod(0o600)
    own_caches()
    local = (root / ".dvc/config.local").read_text()
    assert "s3cret" in local
    assert f"site_cache_dir = {root}/.dvc/tmp/site" in local
    assert (root / ".dvc/config.local").stat().st_mode & 0o777 == 0o600
    assert (root / ".dvc/tmp/site").stat().st_mode & 0o777 == 0o700
    command = [sys.executable, "-m", "dvc", "status"]
    environment = {k: v for k, v in os.environ.items() if k != "DVC_SITE_CACHE_DIR"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert list((root / ".dvc/tmp/site/repo").iterdir()) != []
    moved = root / "moved"
    (moved / ".dvc").mkdir(parents=True)
    (moved / ".dvc/config.local").write_text(local)
    os.chdir(moved)
    own_caches()
    assert f"site_cache_dir = {moved}/.dvc/tmp/site" in (moved / ".dvc/config.local").read_text()


def test_own_choice_of_the_cache_is_kept(folder):
    root = folder("")
    chosen = "[core]\n    site_cache_dir = /scratch/ada\n"
    (root / ".dvc/config.local").write_text(chosen)
    own_caches()
    assert (root / ".dvc/config.local").read_text() == chosen


def test_cache_that_another_user_put_there_is_refused(folder, monkeypatch):
    root = folder("")
    (root / ".dvc/tmp/site").mkdir(parents=True)
    monkeypatch.setattr(shared_settings.os, "getuid", lambda: os.stat(root).st_uid + 1)
    with pytest.raises(CapgapError, match="belongs to another user"):
        own_caches()
