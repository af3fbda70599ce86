"""A repository with a small study in it, and the commands one types there."""

import ast
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from capgap.workflow import ledger

SOURCE = Path(__file__).parents[2]
TRACKED = ["Snakefile", "rules", "profiles", "envs", "src", "dvc.yaml", ".dvcignore", ".gitignore"]
TRACKED += [".dvc/plots", ".dvc/config", ".dvc/.gitignore"]
WORDS = (
    "law gap student teacher size loss the of a is and larger token tree sun river stone".split()
)
RESULTS = "results/tiny"
FILLED = ("model", "importance", "targets", "trunk", "cut")  # in the folder of a job
SECRET = {"AWS_ACCESS_KEY_ID": "AKIA-never", "AWS_SECRET_ACCESS_KEY": "never-to-be-written-down"}


class Repository:
    """A repository of a study: its folder, and the commands one types in it."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name) -> Path:
        return self.path / name

    def environment(self, **more) -> dict:
        """Environment of a command: this repository's own source, one thread, no network."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.path / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "DVC_NO_ANALYTICS": "1",
            **more,
        }

    def command(self, *words, check=True, **environment) -> subprocess.CompletedProcess:
        """Run a command here; its output is text."""
        result = subprocess.run(
            list(map(str, words)),
            cwd=self.path,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
        )
        if check and result.returncode:
            raise AssertionError(
                f"{words} gave {result.returncode}\n{result.stdout}\n{result.stderr}\n{self.logs()}"
            )
        return result

    def capgap(self, *words, **options):
        return self.command(sys.executable, "-m", "capgap.cli", *words, **options)

    def dvc(self, *words, **options):
        return self.command(sys.executable, "-m", "dvc", *words, **options)

    def git(self, *words, **options):
        return self.command("git", *words, **options)

    def commit(self, message: str) -> str:
        """Commit everything; the commit's name."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").stdout.strip()

    def planned(self) -> set[str]:
        """Jobs that Snakemake would run, as 'rule folder', without those behind the checkpoint."""
        table = self.command(sys.executable, "-m", "snakemake", "--summary").stdout
        rows = [line.split("\t") for line in table.splitlines() if line.count("\t") == 5][1:]
        assert rows, table
        return {job_name(row[2], row[0]) for row in rows if row[5] == "update pending"}

    def made(self) -> dict[str, float]:
        """Jobs on record and when their outputs were made."""
        before = os.getcwd()
        os.chdir(self.path)
        try:
            records = ledger.read_all(RESULTS)
        finally:
            os.chdir(before)
        return {job_name(r["rule"], output): r["endtime"] for output, r in records.items()}

    def configure(self, change) -> None:
        """Edit config.yaml through a function of its contents."""
        path = self / "config.yaml"
        data = yaml.safe_load(path.read_text())
        change(data)
        path.write_text(yaml.safe_dump(data, sort_keys=False))

    def replace(self, name: str, before: str, after: str) -> None:
        """Replace a text that occurs once in a file."""
        text = (self / name).read_text()
        assert text.count(before) == 1, (name, before, text.count(before))
        (self / name).write_text(text.replace(before, after))

    def contents(self) -> dict[str, bytes]:
        """All results, by path."""
        root = self / RESULTS
        return {
            str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
        }

    def logs(self) -> str:
        """Ends of the jobs' logs."""
        files = sorted((self / "logs").rglob("*.log")) if (self / "logs").is_dir() else []
        return "\n".join(f"{f}: {f.read_text()[-800:]}" for f in files if "rror" in f.read_text())

    def copy(self, path: Path) -> "Repository":
        """A copy with the same file times."""
        shutil.copytree(self.path, path, symlinks=True)
        return Repository(path)

    def clone(self, path: Path, *, pull: bool = True) -> "Repository":
        """What a colleague does: git clone, set-up, dvc pull."""
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "-q", self.path, path], check=True)
        other = Repository(path)
        set_up(other)
        other.dvc("remote", "modify", "--local", "storage", "url", self.path.parent / "storage")
        if pull:
            other.dvc("pull", "-q")
        return other


def job_name(rule: str, output: str) -> str:
    """'rule folder' of an output: the folder that the job fills, below the study's results."""
    folder = Path(output).relative_to(RESULTS).parent
    return f"{rule} {folder.parent if folder.name in FILLED else folder}"


def set_up(repository: Repository) -> None:
    """Give a repository a .venv and an author."""
    (repository / ".venv").symlink_to(sys.prefix)
    with (repository / ".git/info/exclude").open("a") as file:
        file.write(".venv\n")
    repository.git("config", "user.name", "Ada")
    repository.git("config", "user.email", "ada@example.org")


def scramble_times(repository: Repository, seed: int) -> None:
    """Give every file a random time within a year of now."""
    draw = random.Random(seed)
    files = [p for p in repository.path.rglob("*") if p.is_file() and ".git" not in p.parts]
    now = (repository / "config.yaml").stat().st_mtime
    for path in files:
        moment = now + draw.uniform(-3e7, 3e7)
        os.utime(path, (moment, moment))


def write_study(path: Path) -> Repository:
    """A repository with this source and a study of two teachers, one student and a final one."""
    path.mkdir(parents=True)
    repository = Repository(path)
    for name in TRACKED:
        source = SOURCE / name
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, path / name, ignore=skip)
        else:
            shutil.copy(source, path / name)
    study = yaml.safe_load((SOURCE / "tests/tiny/config.yaml").read_text())
    study["teachers"] = {name: study["teachers"][name] for name in ("t6k", "t16k")}
    study["grid"] = {"students": ["3k"], "tokens": ["5k"], "seeds": [0]}
    (path / "config.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (path / "corpus").mkdir()
    draw = random.Random(1)
    for i in range(20):
        lines = [" ".join(draw.choices(WORDS, k=12)) for _ in range(60)]
        (path / f"corpus/{i:02}.txt").write_text("\n".join(lines))
    repository.git("init", "-q", "-b", "main")
    set_up(repository)
    repository.dvc("remote", "modify", "--local", "storage", "url", path.parent / "storage")
    return repository


def edit_distillation_loss(repository: Repository) -> None:
    """Insert a statement at the start of the distillation loss."""
    path = repository / "src/capgap/engine/losses.py"
    text = path.read_text()
    function = next(n for n in ast.parse(text).body if getattr(n, "name", "") == "mixture_loss")
    lines = text.splitlines()
    lines.insert(function.body[1].lineno - 1, "    scale = scale * 1.5")
    path.write_text("\n".join(lines) + "\n")
