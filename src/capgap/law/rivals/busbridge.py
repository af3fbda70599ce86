"""
The distillation scaling law of Busbridge et al. (arXiv 2502.08606), a rival on the same runs.

  L_S = L_T + L_T^(-c0) (1 + (L_T / (d1 Lt))^(1/f1))^(-c1 f1) (A'/N_S^a' + B'/D_S^b')^g'
  Lt  = E + (A/N_S^a + B/D_S^b)^g        loss of the same student trained on the data alone

Losses in nats per token, N_S parameters without embeddings, D_S tokens. The teacher's size matters
only through its loss L_T. Lt is held at the published constants; d1 rescales it.

A small study cannot determine nine constants. Which are set free follows from how many sizes,
budgets and teachers the runs hold (`free_constants`); the others keep their published values.
Constants that the fit then leaves open return to their published values one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from capgap.law.rivals.loss_laws import LossLaw, absent, rival_law
from capgap.law.rivals.robust_fit import Fitted, fit_logs, logadd, softplus

SUPERVISED = {"E": 1.220, "A": 3355.0, "B": 18186.0, "a": 0.408, "b": 0.431, "g": 0.452}
DISTILLED = {
    "A'": 2243.0,
    "B'": 24181.0,
    "a'": 0.321,
    "b'": 0.637,
    "g'": 0.764,
    "c0": 2.549,
    "c1": 522.6,
    "f1": 0.090,
    "d1": 1.315,
}
BOX = {  # limits of the grid of starts
    **{"A'": (1e1, 1e6), "B'": (1e2, 1e7), "a'": (0.1, 0.9), "b'": (0.2, 1.2), "g'": (0.3, 1.5)},
    **{"c0": (0.5, 6), "c1": (50, 5000), "f1": (0.03, 0.3), "d1": (0.7, 2.5)},
}


def log_supervised(
    constants: Mapping[str, complex], student_N: np.ndarray, tokens_N: np.ndarray
) -> np.ndarray:
    """Log loss of students trained on the data alone; `constants` named as in SUPERVISED."""
    c = constants
    inner_N = logadd(
        np.log(c["A"]) - c["a"] * np.log(student_N), np.log(c["B"]) - c["b"] * np.log(tokens_N)
    )
    return logadd(np.log(c["E"]), c["g"] * inner_N)


def log_distilled(
    constants: Mapping[str, complex],
    teacher_loss_N: np.ndarray,
    student_N: np.ndarray,
    tokens_N: np.ndarray,
    log_supervised_N: np.ndarray,
) -> np.ndarray:
    """Log loss of distilled students; `constants` as DISTILLED, real or complex."""
    c, log_teacher_N = constants, np.log(teacher_loss_N)
    capacity_N = logadd(
        np.log(c["A'"]) - c["a'"] * np.log(student_N), np.log(c["B'"]) - c["b'"] * np.log(tokens_N)
    )
    gap_N = softplus((log_teacher_N - np.log(c["d1"]) - log_supervised_N) / c["f1"])
    above_N = -c["c0"] * log_teacher_N - c["c1"] * c["f1"] * gap_N + c["g'"] * capacity_N
    return logadd(log_teacher_N, above_N)


def free_constants(sizes: int, budgets: int, teachers: int, cells: int) -> list[str]:
    """Constants of DISTILLED that a study may determine, most important first.

    A level needs one value of its variable, two terms of a sum two, an exponent three, a curved
    transition five and both of its constants seven; at most one constant for three cells.
    """
    wanted = [
        ("A'", True),
        ("d1", teachers >= 2),
        ("B'", budgets >= 2),
        ("c0", teachers >= 3),
        ("a'", sizes >= 3),
        ("b'", budgets >= 3),
        ("f1", teachers >= 5),
        ("g'", sizes >= 4 and budgets >= 4),
        ("c1", teachers >= 7),
    ]
    return [name for name, enough in wanted if enough][: max(1, cells // 3)]


def fit_distilled(
    teacher_loss_N: np.ndarray,
    student_N: np.ndarray,
    tokens_N: np.ndarray,
    loss_N: np.ndarray,
    free: list[str],
    near_P: np.ndarray | None = None,
) -> tuple[dict[str, float], list[str], Fitted]:
    """Constants of the distillation law, those still free, and the fit.

    Constants not in `free` keep their published values. While the fit leaves a direction open, the
    least important free constant that lies in it is fixed again and the fit repeated, unless it
    started near a former fit.
    """
    base_N = np.real(log_supervised(SUPERVISED, student_N, tokens_N))
    free = list(free)
    while True:
        names = tuple(free)

        def predict(theta_P: np.ndarray, names: tuple[str, ...] = names) -> np.ndarray:
            constants = DISTILLED | dict(zip(names, np.exp(theta_P), strict=True))
            return log_distilled(constants, teacher_loss_N, student_N, tokens_N, base_N)

        fitted = fit_logs(predict, np.log(loss_N), np.log([BOX[name] for name in names]), near_P)
        if fitted.weakest_P is None or len(free) == 1 or near_P is not None:
            constants = DISTILLED | dict(zip(names, np.exp(fitted.theta_P).tolist(), strict=True))
            return constants, free, fitted
        involved = np.abs(fitted.weakest_P) > 0.1
        free.pop(int(np.flatnonzero(involved)[-1]))


def fit_busbridge(cells: pd.DataFrame, near: LossLaw | None = None) -> LossLaw:
    """The law on the main arm of a table of cells (`run_means.cell_table`).

    near: a fit of almost the same cells, whose free constants are kept and refitted from there.
    """
    use = cells[cells["arm"] == "main"]
    if "teacher_loss" not in use or use["teacher_loss"].isna().any():
        return absent("busbridge", "the table has no losses of the teachers")
    counts = (use[name].nunique() for name in ("student", "tokens", "teacher"))
    free = free_constants(*counts, len(use)) if near is None else list(near.free)
    columns = ("teacher_loss", "student_params", "tokens", "loss")
    constants, free, fitted = fit_distilled(
        *(use[name].to_numpy(float) for name in columns),
        free,
        near and near.theta_P,
    )

    def predict(frame: pd.DataFrame) -> np.ndarray:
        teacher_loss, student, tokens = (frame[n].to_numpy(float) for n in columns[:3])
        base = log_supervised(SUPERVISED, student, tokens)
        return log_distilled(constants, teacher_loss, student, tokens, base)

    held = [name for name in DISTILLED if name not in free]
    note = "E, A, B, a, b and g are held as published"
    return rival_law(
        "busbridge", fitted, predict, constants | SUPERVISED, free, held, len(use), note
    )
