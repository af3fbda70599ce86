"""The outputs that a run of Snakemake would make, found without a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import capgap
from capgap.errors import CapgapError
from capgap.records import paths
from capgap.workflow import ledger
from capgap.workflow.own_places import check_own_places
from capgap.workflow.private import out_of_date


class Pending(NamedTuple):
    """An output that is not up to date, and its rule."""

    rule: str
    output: str


def snakefile() -> Path:
    """The Snakefile of the installed capgap.

    A wheel holds it in the package; an editable installation has it in the repository. Another one in
    the working folder came with the study and can run any program, so it is not taken.
    """
    package, here = Path(capgap.__file__).parent, Path("Snakefile")
    installed = [package / "graph" / "Snakefile", package.parents[1] / "Snakefile"]
    found = next((path for path in installed if path.is_file()), installed[0])
    return found if foreign_snakefile(found) or not here.is_file() else here


def foreign_snakefile(own: Path) -> bool:
    """Whether the working folder has a Snakefile that is not the installed capgap's."""
    here = Path("Snakefile")
    return here.is_file() and not (own.is_file() and here.samefile(own))


def snakemake_command(study_file: Path, options: list[str]) -> list[str]:
    """Command line of Snakemake for a study.

    Raises CapgapError if there is no Snakefile, or if git brought files that only this machine may make.
    """
    check_own_places()
    graph = snakefile()
    if not graph.is_file():
        raise CapgapError(
            f"the installed capgap has no Snakefile ({graph}); install it again: pip install capgap, or "
            "pip install --editable . in its repository"
        )
    options = [_found(word, graph.parent) for word in options]
    if not any(word.startswith("--workflow-profile") for word in options):
        # else Snakemake takes default/ or profiles/default/ of the working folder, which may hold Python
        options = ["--workflow-profile", str(graph.parent / "profiles/default"), *options]
    command = [sys.executable, "-m", "capgap.workflow.private", "--snakefile", str(graph), *options]
    # --configfile takes all words after it, so targets must come before it
    return [*command, "--configfile", str(study_file)]


def _found(word: str, root: Path) -> str:
    """An option as given; the name of a shipped profile (profiles/slurm) becomes its path."""
    option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    shipped = value.startswith("profiles/") and not Path(value).exists() and (root / value).is_dir()
    return f"{option}{equals}{root / value}" if shipped else word


def pending(study_file: Path) -> list[Pending]:
    """Outputs that a run would make, as far as Snakemake can list them in advance."""
    result = subprocess.run(
        snakemake_command(study_file, ["--summary"]), capture_output=True, text=True
    )
    if result.returncode:
        raise CapgapError(f"the study cannot be planned:\n{result.stderr.strip()}")
    return [Pending(*row) for row in out_of_date(result.stdout)]


def not_done(study_file: Path, study: str) -> list[str] | None:
    """Outputs that a run would make; None if there are no results at all."""
    if not Path(paths.ROOT.format(study=study)).is_dir() or not snakefile().is_file():
        return None
    with ledger.kept_times(paths.ROOT.format(study=study)):
        return [item.output for item in pending(study_file)]
