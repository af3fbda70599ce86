"""Files that installed Python packages ship, found without importing the packages."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from capgap.errors import CapgapError
from capgap.records.paths import is_inside


def package_folder(package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise CapgapError(
            f"package {package} is not installed; install it (pip install {package}) "
            "or name another source"
        )
    return Path(spec.submodule_search_locations[0])


def file_in_package(package: str, name: str) -> Path:
    """A file or folder of an installed package; CapgapError for a name that leads out of it."""
    root = package_folder(package)
    real = Path(os.path.realpath(root / name))
    if not is_inside(name) or not real.is_relative_to(os.path.realpath(root)):
        raise CapgapError(f"{name}: leads out of the package {package}; name a file inside it")
    return root / name


def files_in_package(package: str, pattern: str) -> list[Path]:
    """Files of an installed package by a glob, sorted; CapgapError for a pattern that leads out."""
    root = package_folder(package)
    if not is_inside(pattern):
        raise CapgapError(f"{pattern}: leads out of the package {package}; name files inside it")
    return [
        file_in_package(package, p.relative_to(root).as_posix()) for p in sorted(root.glob(pattern))
    ]


def check_lm_eval() -> None:
    """Raise CapgapError if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise CapgapError(
            "harness: lm-evaluation-harness is not installed; run make lm-eval (or pip install "
            "capgap[harness]), or leave harness out of the study"
        )
