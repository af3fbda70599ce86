"""
Show the learning curves of a study, or of runs by hand, in TensorBoard.

IN   curve.csv of every run found below a folder
OUT  a folder of event files, to look at with `tensorboard --logdir OUT`; they are written anew
     each time

TensorBoard is not part of the pinned environment: pip install tensorboard
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.records import paths
from capgap.records.artifacts import publish_folder
from capgap.stages.base import StageParser, out_folder


def run(runs: Path, out: Path) -> int:
    """Write the curves below `runs` as events below `out`, by the same names; how many.

    The step of an event is the tokens trained on. Raises CapgapError if TensorBoard is not
    installed or there is no curve.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CapgapError(
            "TensorBoard is not installed; run pip install tensorboard in this environment"
        ) from None
    curves = sorted(runs.rglob(paths.CURVE))
    if not curves:
        raise CapgapError(f"{runs}: no {paths.CURVE} below it; run the study first")
    with publish_folder(out) as temporary:
        for path in curves:
            table = pd.read_csv(path).drop(columns="step")
            with SummaryWriter(temporary / path.parent.relative_to(runs)) as writer:
                for row in table.to_dict("records"):
                    tokens = int(row.pop("tokens"))
                    for name, value in row.items():
                        if not math.isnan(value):
                            writer.add_scalar(name, value, tokens)
    return len(curves)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = StageParser("capgap.commands.tensorboard", __doc__)
    source = parser.add_mutually_exclusive_group()
    parser.add_study(source)
    source.add_argument("--runs", type=Path, help="a folder of runs by hand, instead of a study's")
    parser.add_argument(
        "--out", type=out_folder, default="tensorboard", help="(default tensorboard)"
    )
    args, _ = parser.parse(argv)
    runs = args.runs or Path(paths.ROOT.format(study=load_study(args.study).study))
    print(f"{run(runs, args.out)} curves; look at them with: tensorboard --logdir {args.out}")
