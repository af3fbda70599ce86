"""
Checks of DVC's settings in git: no secrets, and nothing that acts on the machine of whoever pulls.

`.dvc/config` travels with a branch; `.dvc/config.local` stays on one machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from capgap.errors import CapgapError, hide_secrets
from capgap.records.artifacts import publish_file
from capgap.records.reading import Unreadable, read_text

SHARED = Path(".dvc/config")
LOCAL = Path(".dvc/config.local")
SITE_CACHE = Path(".dvc/tmp/site")

# DVC has no list of its secret settings, but the names of all of them contain one of these words.
SECRET = re.compile(r"password|passphrase|secret|token|credential|auth_header|connection_string")
SECRET_NAMES = {"access_key_id", "account_key", "oss_key_id", "sse_customer_key", "kerb_ticket"}
# Names that contain such a word, but hold a file's path, a switch or a number.
PLAIN = re.compile(r"^ask_|^exclude_|path$|_file$|^bearer_token_command$")
# Settings that run a program, load code or move DVC's files. The two paths are S3's: a profile in those
# files may name a program (credential_process).
DECIDING = {
    ("remote", "bearer_token_command"),
    ("remote", "configpath"),
    ("remote", "credentialpath"),
    ("core", "site_cache_dir"),
    ("cache", "dir"),
    ("hydra", "plugins_path"),
}
# Secrets that go to the address of a remote as they are. A key of S3 signs and is not sent.
SENT = {"password", "token", "custom_auth_header", "sas_token"}


def is_secret(name: str, value: str) -> bool:
    """Whether a setting of DVC by that name holds a password or a key."""
    named = bool(SECRET.search(name)) or name in SECRET_NAMES
    return (named and not PLAIN.search(name)) or hide_secrets(value) != value


def check_shared(*, secrets: bool) -> None:
    """Raise CapgapError if settings tracked by git decide what each user must decide.

    secrets: also refuse passwords and keys in them.
    """
    _check_addresses()
    for section, name, value in _settings(SHARED):
        kind, _, owner = section.partition(" ")
        owner = owner.strip('"')
        local = f"dvc config --local {kind}.{name} ..."
        if kind == "remote":
            local = f"dvc remote modify --local {owner} {name} ..."
        of = f"{name} of remote {owner}" if kind == "remote" else f"{kind}.{name}"
        if (kind, name) in DECIDING:
            raise CapgapError(
                f"{SHARED} comes with the branch and sets {of} to {value}, which can run programs or "
                f"write outside this folder. If you want it, set it on this machine only: {local}"
            )
        if secrets and is_secret(name, value):
            raise CapgapError(
                f"{SHARED} is in git and holds a credential ({of}); remove it and keep it on this "
                f"machine only: {local}"
            )


def _check_addresses() -> None:
    """Raise CapgapError if a password of this machine would go to an address that a branch sets."""
    from dvc.dirs import global_config_dir

    own = [s for file in (LOCAL, Path(global_config_dir(), "config")) for s in _settings(file)]
    settled = {section for section, name, _ in own if name == "url"}
    for section, _, value in [s for s in _settings(SHARED) if s[1] == "url"]:
        sent = [name for owner, name, _ in own if owner == section and name in SENT]
        if sent and section not in settled:
            owner = section.partition(" ")[2].strip('"')
            raise CapgapError(
                f"{SHARED} comes with the branch and sets the address of remote {owner}, to which your "
                f"{sent[0]} would be sent. If {hide_secrets(value)} is right, set it on this machine: "
                f"dvc remote modify --local {owner} url ..."
            )


def _read(path: Path) -> Any:
    """One of DVC's settings files, read as DVC reads it."""
    from configobj import ConfigObj, ConfigObjError

    try:
        lines = read_text(path).splitlines() if path.exists() else []
        return ConfigObj(lines, interpolation=False)
    except (ConfigObjError, Unreadable) as error:
        raise CapgapError(f"{path} cannot be read as DVC's settings ({error})") from None


def _settings(path: Path) -> list[tuple[str, str, str]]:
    """(section, name, value) of every setting in one of DVC's files."""
    found = []
    for section, values in _read(path).items():
        for name, value in values.items() if isinstance(values, dict) else []:
            text = value if isinstance(value, str) else ",".join(map(str, value))
            found.append((section.strip("'").lower(), name.lower(), text))
    return found


def own_caches() -> None:
    """Move DVC's caches of this folder to a place that only this user can write.

    By default they hold pickles in a folder that every user of the machine may write. The setting is
    local to this machine, so that DVC's own commands follow it, too.
    """
    if not SHARED.parent.is_dir():
        return
    folder = SITE_CACHE.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid():
        raise CapgapError(f"{folder} belongs to another user or is a link; remove it")
    folder.chmod(0o700)
    data = _read(LOCAL)
    now = data.get("core", {}).get("site_cache_dir")
    ours = now is None or (now.endswith(f"/{SITE_CACHE}") and now != str(folder))
    if ours and not os.environ.get("DVC_SITE_CACHE_DIR"):  # if set, the user has chosen a place
        data.setdefault("core", {})["site_cache_dir"] = str(folder)
        with publish_file(LOCAL, private=True) as temporary, temporary.open("wb") as file:
            data.write(file)
