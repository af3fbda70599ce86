"""Tables of the pilot studies, with the losses of their teachers."""

from pathlib import Path

import pandas as pd

from capgap.law.table.read_runs import read_runs


def pilot(name):
    """Runs of a pilot study: 'family', 'larger' and 'v1024', or 'both' of the first two."""
    folder = Path(__file__).parent / "law_pilots"
    names = ("family", "larger") if name == "both" else (name,)
    runs = pd.concat([read_runs(folder / f"{one}.csv") for one in names])
    return runs.drop_duplicates(["student", "teacher", "tokens"], ignore_index=True)
