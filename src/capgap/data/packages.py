"""Files that installed Python packages ship, found without importing the packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from capgap.errors import CapgapError


def package_folder(package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise CapgapError(
            f"package {package} is not installed; install it (pip install {package}) "
            "or name another source"
        )
    return Path(spec.submodule_search_locations[0])


def check_lm_eval() -> None:
    """Raise CapgapError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise CapgapError(
            "harness: lm-evaluation-harness is not installed; run make lm-eval (or pip install "
            "capgap[harness]), or leave harness out of the study"
        )
