"""The figure of learning curves: held-out loss of trained models against the tokens they have seen."""

from __future__ import annotations

import altair as alt
import pandas as pd

from capgap.reporting.theme import WIDE, Figure, loss_y, ramp, size_axis, tips, titled


def learning_curves(curves: dict[str, pd.DataFrame]) -> Figure:
    """Validation loss against tokens, a line for each run.

    curves: what curve.csv of a run contains, by the name of the run.
    """
    rows = [
        curve.assign(run=name)[["run", "tokens", "val_loss_nats_per_token"]]
        for name, curve in curves.items()
    ]
    data = pd.concat(rows, ignore_index=True)
    x = alt.X(
        "tokens:Q",
        title="Tokens trained on",
        scale=alt.Scale(nice=False),
        axis=size_axis(),
    )
    colour = alt.Color(
        "run:N",
        sort=list(curves),
        scale=alt.Scale(domain=list(curves), range=ramp(len(curves))),
        legend=alt.Legend(title=None) if len(curves) > 1 else None,
    )
    base = alt.Chart(data).encode(x=x, y=loss_y("val_loss_nats_per_token:Q"), color=colour)
    chart = alt.layer(
        base.mark_line(strokeWidth=2),
        base.mark_circle(size=40, opacity=1).encode(
            tooltip=tips("run tokens", loss="val_loss_nats_per_token")
        ),
    ).properties(**WIDE)
    return Figure("training", titled(chart, "Validation loss, nats per token"), data)
