"""Allow paths outside of a study's folder if a setting names them, but not through a link."""

from __future__ import annotations

import os
from pathlib import Path

from capgap.errors import CapgapError


def named_place(path: str | Path, setting: str) -> Path:
    """The path of a setting, which may be anywhere if the setting itself shows that.

    Raises CapgapError if a path inside this folder leads out of it by a link, because links come
    with branches and archives and are not visible in the study file.
    """
    path = Path(path)
    if path.is_absolute() or ".." in path.parts:
        return path
    check_contained(path, Path.cwd(), setting)
    return path


def check_contained(path: Path, root: Path, setting: str) -> None:
    """Raise CapgapError if links lead a path out of a folder."""
    real = Path(os.path.realpath(path))  # Path.resolve raises for a link that leads back to itself
    if not real.is_relative_to(root.resolve()):
        raise CapgapError(
            f"{setting}: {path} is a link to {real}, outside of {root}, so it is not read; if that is "
            f"meant, name {real} itself in the study"
        )
