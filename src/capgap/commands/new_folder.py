"""The files beside a study file in a study's folder, so that git and DVC can be used at once."""

from __future__ import annotations

from pathlib import Path

GITIGNORE = """\
/.venv/
/.snakemake/
/results/
/scratch/
/logs/
/timings/
/dvc_plots/
/tensorboard/
"""
DVCIGNORE = """\
# Not results, or not the same on every machine.
.DS_Store
.nfs*
.snakemake_timestamp
.*.tmp
"""
README = """\
# {study}

Which teacher is the best for a student of a given size? A study of [capgap](https://arxiv.org/abs/2311.07052),
which measures the law of capacity gap in distillation.

```bash
capgap plan      # what it costs
capgap run       # everything that is not up to date; run again after an interruption
capgap summary   # what it found; results/{study}/report/report.html has all of it
```

`{file}` is the study, every key of it with a comment. To share the results:

```bash
git init && git add -A && git commit -m "study"     # once
dvc remote add --default storage /a/folder/or/s3://bucket   # once
capgap save && git add -A && git commit -m "results" && capgap push
```

A colleague clones the repository, installs capgap and types `capgap pull`.
"""
DVC_YAML = """\
# One stage around the whole study: Snakemake decides what runs, DVC versions what came out.
vars:
  - config.yaml:study
stages:
  study:
    cmd: exec capgap run --study config.yaml
    params:
      - config.yaml:
    outs:
      - results/${study}:
          persist: true # Snakemake reruns what it must; DVC would delete everything first
      - .snakemake/metadata:
          persist: true # without these records everything would run again after a clone
metrics:
  - results/${study}/metrics.json
"""
DVC_CONFIG = """\
[core]
    analytics = false
[cache]
    type = "reflink,copy"
"""
DVC_FILES = {
    Path("dvc.yaml"): DVC_YAML,
    Path(".dvcignore"): DVCIGNORE,
    Path(".dvc/config"): DVC_CONFIG,
    Path(".dvc/.gitignore"): "/config.local\n/tmp\n/cache\n",
}


def folder_files(file: Path, study: str) -> dict[Path, str]:
    """Contents by name of all files beside the study file `file`."""
    return {
        Path(".gitignore"): GITIGNORE,
        Path("README.md"): README.format(study=study, file=file),
        **DVC_FILES,
    }
