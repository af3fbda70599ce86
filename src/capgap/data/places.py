"""Places outside of a study's folder: read when a setting names them, not when a link leads there."""

from __future__ import annotations

from pathlib import Path

from capgap.errors import CapgapError


def named_place(path: str | Path, setting: str) -> Path:
    """The path of a setting, which may lie anywhere if the setting itself shows it.

    Raises CapgapError where a path that looks like one of this folder leads out of it by a link:
    links come along with a branch or an archive, and nobody sees them in the study file.
    """
    path = Path(path)
    if path.is_absolute() or ".." in path.parts:
        return path
    check_contained(path, Path.cwd(), setting)
    return path


def check_contained(path: Path, root: Path, setting: str) -> None:
    """Raise CapgapError for a path that links lead out of a folder."""
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise CapgapError(
            f"{setting}: {path} is a link to {real}, outside of {root}, so it is not read; if that is "
            f"meant, name {real} itself in the study"
        )
