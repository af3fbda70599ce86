"""Every shell command of the tutorial runs, in order, with a tiny text and as little training as there is."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import yaml

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"
SYLLABLES = [first + second for first in "bcdfghklmnprstvw" for second in "aeiou"]


def blocks():
    return re.findall(r"^```bash\n(.*?)^```$", TUTORIAL.read_text(), flags=re.M | re.S)


def make_quick(study):
    """The study that the tutorial's init wrote, with two teachers, two students and few tokens."""
    data = yaml.safe_load(study.read_text())
    data["teachers"] = dict(list(data["teachers"].items())[:2])
    data["pretrain"] |= {
        "tokens": 2000,
        "validations": 1,
        "validation_tokens": 1000,
        "batch_tokens": 128,
    }
    data["distill"] |= {
        "validations": 1,
        "validation_tokens": 1000,
        "batch_tokens": 128,
        "warmup_tokens": 128,
    }
    data["prune"]["calibration_sequences"] = 4
    data["grid"] = {"students": [5900, 10000], "tokens": [1000], "replicas": [1]}
    data["final"] = {"student": 6000, "tokens": 1000, "replicas": [1]}
    text = yaml.safe_dump(data, sort_keys=False)
    assert "tie_nats: 0.005" in text
    study.write_text(text)


def test_the_tutorial(tmp_path):
    draw = random.Random(1)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(400)]
    (tmp_path / "my-study/texts").mkdir(parents=True)
    for n in range(20):
        lines = [" ".join(draw.choices(words, k=12)) for _ in range(60)]
        (tmp_path / f"my-study/texts/{n:02}.txt").write_text("\n".join(lines))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **{f"GIT_{who}_{what}": "ada@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }  # fmt: skip
    folder, printed = tmp_path, []
    for number, block in enumerate(blocks()):
        result = subprocess.run(
            ["bash", "-euc", f'{block}\npwd > "{tmp_path}/where"'],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
        printed.append(result.stdout + result.stderr)
        folder = Path((tmp_path / "where").read_text().strip())
        if number == 0:
            make_quick(tmp_path / "my-study/config.yaml")
    start, plan, run, summary, law, change, share, clone = printed
    assert "capgap run" in start
    assert "pretrain_teacher" in plan
    assert "answer" in run
    assert "report" in summary
    assert "6k" in law
    assert "pretrain_teacher" not in change
    assert "fit_law" in change
    assert "the remote has all of the last capgap save" in share
    assert "are here" in clone
    assert "answer" in clone
