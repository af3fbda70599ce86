"""
What git must not bring into a study's folder: files that belong to one machine, and links in their place.

Snakemake, DVC and capgap keep locks, caches, pickles and settings with programs in hidden folders, and
write results and logs into others. All of them are in .gitignore, but a branch can hold them all the
same: `.dvc/config.local` with a command that DVC runs, a pickle in `.snakemake`, or `results` as a link
to somebody's home. Links and files that were made on this machine are not in git, so they stay allowed.
"""

from __future__ import annotations

import os
import subprocess

from capgap.errors import CapgapError, shown

MACHINE = (".snakemake", ".dvc/tmp", ".dvc/cache", ".dvc/config.local")  # no file of git's
WRITTEN = (".dvc", "dvc.lock", "results", "scratch", "logs", "timings")  # no link of git's
LINK = "120000"  # mode of a symbolic link in git's index


def git(*words: str) -> str | None:
    """What a command of git prints in this folder; None if it fails, or without git."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def check_own_places() -> None:
    """Raise CapgapError if git tracks a file of this machine, or a link in a place that is written.

    Without git, or outside of a repository, nothing can be told apart and nothing is refused.
    """
    for mode, name in _tracked():
        folded = name.casefold()  # some file systems ignore case
        parts = ["/".join(folded.split("/")[: n + 1]) for n in range(folded.count("/") + 1)]
        if mode == LINK or set(parts) & set(MACHINE):
            what = "a link" if mode == LINK else "a file"
            raise CapgapError(
                f"git tracks {shown(name)}, {what} in a place that belongs to this machine: it could "
                "run programs or lead out of this folder, so nothing was done. Remove it (git rm "
                f"--cached {shown(name)}, then delete or move it), and ask whoever committed it"
            )


def _tracked() -> list[tuple[str, str]]:
    """(mode, path from here) of every file of git's index in one of the places."""
    # A repository of another owner is common in containers, and its index is only read.
    command = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "ls-files", "-z"]
    command += ["--stage", "--", *(f":(icase){place}" for place in (*MACHINE, *WRITTEN))]
    try:
        listed = subprocess.run(command, capture_output=True)
    except FileNotFoundError:  # no git on this machine
        return []
    rows = [os.fsdecode(row) for row in listed.stdout.split(b"\0") if row]
    return [(row.split(" ", 1)[0], row.partition("\t")[2]) for row in rows]
