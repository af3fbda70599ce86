"""The files beside a study file in a study's folder, so that git and DVC can be used at once."""

from __future__ import annotations

from pathlib import Path


def _content(kind: str) -> str:
    """One of the files new_study.* beside this module."""
    return Path(__file__).with_name(f"new_study.{kind}").read_text(encoding="utf-8")


DVC_FILES = {
    Path("dvc.yaml"): _content("stage.yaml"),
    Path(".dvcignore"): _content("dvcignore"),
    Path(".dvc/config"): _content("dvc_config"),
    Path(".dvc/.gitignore"): "/config.local\n/tmp\n/cache\n",
}


def folder_files(file: Path, study: str) -> dict[Path, str]:
    """Contents by name of all files beside the study file `file`."""
    return {
        Path(".gitignore"): _content("gitignore"),
        Path("README.md"): _content("readme.md").format(study=study, file=file),
        **DVC_FILES,
    }
