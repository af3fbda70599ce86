"""
The P2 law (arXiv 2411.10272), a rival that explains a student's loss by its init alone.

It was fitted to pruned models that train on without a teacher, and depends on what was pruned and for
how long the rest was trained:

  L = L0 + (1/rho)^gamma (1/N0)^delta (Nc/N0^alpha + Dc/D^beta + E)

L0 and N0 are loss (nats per token) and size (parameters without embeddings) of the model that was
pruned, rho = 1 - S/N0 the share cut away, D tokens of training. Signs of gamma and delta are free.
Small studies cannot tell the terms of the bracket apart: see `free_constants`.

Shapes: N cells (a mean over seeds), P free constants.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from capgap.law.rivals.loss_laws import LossLaw, absent, rival_law
from capgap.law.rivals.robust_fit import Fitted, fit_logs, logadd

NAMES = ("gamma", "delta", "E", "Dc", "beta", "Nc", "alpha")
SIGNED = ("gamma", "delta")
BOX = {  # limits of the grid of starts; of the logarithm, save for the signed ones
    **{"gamma": (-3, 3), "delta": (-0.5, 0.5), "E": (-6, 4)},
    **{"Dc": (0, 14), "beta": (-2.3, 0.2), "Nc": (0, 12), "alpha": (-2.3, 0.2)},
}
ABSENT = {"gamma": 0.0, "delta": 0.0, "E": 0.0, "Dc": 0.0, "beta": 0.5, "Nc": 0.0, "alpha": 0.5}


def log_pruned(
    constants: dict[str, complex],
    source_loss_N: np.ndarray,
    source_N: np.ndarray,
    student_N: np.ndarray,
    tokens_N: np.ndarray,
) -> np.ndarray:
    """Log loss of pruned students after training; a constant of 0 drops its term."""
    c = constants
    absent = [name for name in ("E", "Dc", "Nc") if np.ndim(c[name]) == 0 and c[name] == 0]
    log_source_N = np.log(source_N)
    terms = [
        np.log(c[name]) - (c[power] * np.log(of_N) if power else 0)
        for name, power, of_N in (
            ("E", None, None),
            ("Dc", "beta", tokens_N),
            ("Nc", "alpha", source_N),
        )
        if name not in absent
    ]
    bracket_N = terms[0]
    for term in terms[1:]:
        bracket_N = logadd(bracket_N, term)
    damage_N = -c["gamma"] * np.log1p(-student_N / source_N) - c["delta"] * log_source_N
    return logadd(np.log(source_loss_N), damage_N + bracket_N)


def free_constants(sizes: int, budgets: int, sources: int, cells: int) -> list[str]:
    """Constants that a study may determine; the others drop their terms (ABSENT).

    One budget determines nothing about D, two give a power law without floor, three a floor. The term
    in N0 alone needs many cells to be separated from delta.
    """
    free = ["E"] if budgets == 1 else ["Dc", "beta"]
    free += ["gamma"] * (sources >= 2) + ["delta"] * (sources >= 2 and sizes >= 2)
    free += ["E"] * (budgets >= 3)
    free += ["Nc", "alpha"] * (cells >= 3 * len(NAMES) and budgets >= 3 and sources >= 4)
    return [name for name in NAMES if name in free[: max(1, cells // 2)]]


def fit_pruned(
    source_loss_N: np.ndarray,
    source_N: np.ndarray,
    student_N: np.ndarray,
    tokens_N: np.ndarray,
    loss_N: np.ndarray,
    free: list[str],
    near_P: np.ndarray | None = None,
) -> tuple[dict[str, float], Fitted]:
    """Constants of the P2 law, and the fit."""

    def constants(theta_P: np.ndarray) -> dict:
        values = {
            name: theta if name in SIGNED else np.exp(theta)
            for name, theta in zip(free, theta_P, strict=True)
        }
        return ABSENT | values

    def predict(theta_P: np.ndarray) -> np.ndarray:
        return log_pruned(constants(theta_P), source_loss_N, source_N, student_N, tokens_N)

    box_P2 = np.array([BOX[name] for name in free], dtype=float)
    fitted = fit_logs(predict, np.log(loss_N), box_P2, near_P)
    return {name: float(v) for name, v in constants(fitted.theta_P).items()}, fitted


def fit_p2(cells: pd.DataFrame, near: LossLaw | None = None) -> LossLaw:
    """The P2 law on students pruned from models whose size and loss the table has.

    cells: as `run_means.cell_table`. near: a fit of almost the same cells to start from.
    """
    if "teacher_loss" not in cells:
        return absent("p2", "the table has no losses of the models that were pruned")
    main = cells[cells["arm"] == "main"]
    models = main.groupby("init")[["teacher_params", "teacher_loss"]].mean()
    frame = cells[cells["init"].isin(models.index)]
    # P2 describes training without a teacher; if that arm is missing, the main arm is used
    alone = frame[frame["arm"] == "no_teacher"]
    enough = alone["student"].nunique() > 1 and alone["init"].nunique() > 2
    use = (alone if enough else frame[frame["arm"] == "main"]).copy()
    use["source_params"] = use["init"].map(models["teacher_params"])
    use["source_loss"] = use["init"].map(models["teacher_loss"])
    if use["source_loss"].isna().any() or (use["source_params"] <= use["student_params"]).any():
        return absent("p2", "sizes or losses of the models that were pruned are not known")
    counts = (use[name].nunique() for name in ("student", "tokens", "init"))
    free = free_constants(*counts, len(use)) if near is None else list(near.free)
    columns = ("source_loss", "source_params", "student_params", "tokens", "loss")
    constants, fitted = fit_pruned(
        *(use[name].to_numpy(float) for name in columns), free, near and near.theta_P
    )

    def predict(teachers: pd.DataFrame) -> np.ndarray:
        names = ("teacher_loss", "teacher_params", "student_params", "tokens")
        return log_pruned(constants, *(teachers[n].to_numpy(float) for n in names))

    held = [name for name in NAMES if name not in free]
    note = f"fitted to runs {'without a teacher' if enough else 'of the main arm'}"
    return rival_law("p2", fitted, predict, constants, free, held, len(use), note)
