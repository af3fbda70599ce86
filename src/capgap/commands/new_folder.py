"""The files beside a study file in a study's folder, so that git and DVC can be used at once."""

from __future__ import annotations

from pathlib import Path


def _content(name: str) -> str:
    """A file beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


DVC_FILES = {
    Path("dvc.yaml"): _content("new_study.stage.yaml"),
    Path(".dvcignore"): _content("new_study.dvcignore"),
    Path(".dvc/config"): _content("new_study.dvc_config"),
    Path(".dvc/.gitignore"): "/config.local\n/tmp\n/cache\n",
}


def folder_files(file: Path, study: str) -> dict[Path, str]:
    """Contents by name of all files beside the study file `file`."""
    return {
        Path(".gitignore"): _content("new_study.gitignore"),
        Path("README.md"): _content("new_study.readme.md").format(study=study, file=file),
        **DVC_FILES,
    }
