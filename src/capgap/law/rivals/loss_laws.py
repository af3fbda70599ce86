"""The common interface of the rivals: a prediction of losses, and the record of a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from capgap.law.law_record import RivalFit
from capgap.law.rivals.robust_fit import Fitted

Predicted = Callable[[pd.DataFrame], np.ndarray]  # cells -> log loss


@dataclass(frozen=True)
class LossLaw:
    """A rival fitted to a table of cells (`run_means.cell_table`)."""

    record: RivalFit
    predict: Predicted | None = None  # None: no fit
    free: tuple[str, ...] = ()  # names of the fitted constants
    theta_P: np.ndarray | None = None  # their values as fitted, from which a refit starts


def absent(law: str, reason: str) -> LossLaw:
    """A law that cannot be fitted to a table."""
    return LossLaw(RivalFit(law=law, status="not_available", reason=reason))


def rival_law(
    law: str,
    fitted: Fitted,
    predict: Predicted,
    constants: dict[str, float],
    free: list[str],
    held: list[str],
    n_cells: int,
    note: str,
) -> LossLaw:
    """A law by its fit. held: constants that were not fitted. note: which runs were used."""
    status, reason = "identified" if not held else "not_identifiable", note
    if held:
        reason += f"; the runs cannot determine {', '.join(held)}, which are held"
    if fitted.weakest_P is not None:
        status, reason = (
            "not_identifiable",
            f"{reason}; the fit does not determine all of the others either",
        )
    if fitted.status != "converged":
        status, reason = "failed", f"{reason}; the solver did not converge: {fitted.message}"
    record = RivalFit(
        law=law,
        status=status,
        reason=f"{reason}; starts that agree on the lowest point: {fitted.agreeing}",
        constants={name: float(value) for name, value in constants.items()},
        free=list(free),
        held=held,
        n_cells=n_cells,
        rms_log_loss=fitted.rms_log,
    )
    return LossLaw(record, predict, tuple(free), fitted.theta_P)
