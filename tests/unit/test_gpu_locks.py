"""Locks of GPUs lie where only this user can write, whatever another user put in the way."""

import os
import stat

import pytest

from capgap.errors import CapgapError
from capgap.workflow import launch


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A machine without a run-time folder for the user; its folder for temporary files."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(launch.tempfile, "gettempdir", lambda: str(tmp_path))
    if os.path.isdir(f"/run/user/{os.getuid()}"):
        pytest.skip("this user has a run-time folder")
    return tmp_path / f"capgap-gpus-{os.getuid()}"


def test_run_time_folder_of_the_user_is_taken_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert launch.lock_folder() == tmp_path / "capgap-gpus"
    assert stat.S_IMODE((tmp_path / "capgap-gpus").stat().st_mode) == 0o700
    assert launch.claim(1, ["5", "6"]) == ["5"]


def test_folder_is_this_users_alone(temporary):
    assert launch.lock_folder() == temporary
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    temporary.chmod(0o777)
    with pytest.raises(CapgapError, match="belongs to another user or may be written by one"):
        launch.lock_folder()


def test_folder_of_another_user_is_refused(temporary, monkeypatch):
    temporary.mkdir(0o700)
    user = os.getuid()
    monkeypatch.setattr(launch.os, "getuid", lambda: user + 1)
    os.rename(temporary, temporary.with_name(f"capgap-gpus-{user + 1}"))
    with pytest.raises(CapgapError, match="XDG_RUNTIME_DIR"):
        launch.lock_folder()


def test_links_are_not_followed(temporary, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    temporary.symlink_to(elsewhere)
    with pytest.raises(CapgapError, match="another user"):
        launch.lock_folder()
    temporary.unlink()
    temporary.mkdir(0o700)
    victim = tmp_path / "victim"
    (temporary / "0.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        launch.claim(1, ["0"])
    assert not victim.exists()
