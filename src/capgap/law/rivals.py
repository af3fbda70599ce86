"""The rivals with constants, fitted to a table: which runs, which constants, what status."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from capgap.config.run_grid import NONE, RANDOM
from capgap.law import busbridge, pruning_null
from capgap.law.huber import TRIES, Fitted
from capgap.law.law_record import RivalFit

Predict = Callable[[pd.DataFrame], np.ndarray]  # cells -> log loss of each


def cell_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of every (student, init, teacher, tokens), plain column names.

    Columns: student, init, teacher, tokens, arm, student_params, teacher_params, loss, flops (of one
    run), n, own_share (of the tokens not taken over from the trunk of a smaller budget), and
    teacher_loss and start_loss where the table has them.
    """
    source = {
        "student_params": "student_params_non_embedding",
        "teacher_params": "teacher_params_non_embedding",
        "loss": "val_loss_nats_per_token",
        "teacher_loss": "teacher_val_loss_nats_per_token",
        "start_loss": "start_val_loss_nats_per_token",
        "flops": "train_flops",
    }
    have = {new: (old, "mean") for new, old in source.items() if old in runs}
    keys = ["student", "init", "teacher", "tokens", "arm"]
    runs = runs.assign(own_share=1 - _taken_over(runs) / runs["tokens"])
    have |= {"n": ("seed", "size"), "own_share": ("own_share", "mean")}
    cells = runs.groupby(keys, sort=True).agg(**have).reset_index()
    by_rule = cells["tokens"] * (
        6 * cells["student_params"] + 2 * cells["teacher_params"].fillna(0)
    )
    cells["flops"] = cells["flops"].fillna(by_rule) if "flops" in cells else by_rule
    return cells.astype({"teacher_params": float})


def _taken_over(runs: pd.DataFrame) -> pd.Series:
    """Tokens of every run that were trained by the same run at the next smaller budget."""
    if "trunk_tokens" not in runs:
        return pd.Series(0.0, runs.index)
    chains = runs.sort_values("tokens").groupby(["student", "init", "teacher", "seed"])
    return chains["trunk_tokens"].shift().fillna(0.0)


def spent_flops(cells: pd.DataFrame) -> float:
    """Training compute of all runs of some cells, shared trunks counted once."""
    return float((cells["flops"] * cells["n"] * cells["own_share"]).sum())


def rival_fits(cells: pd.DataFrame) -> list[RivalFit]:
    """The rivals with constants, fitted to all cells they speak about (`cell_table`)."""
    return [fit_busbridge(cells)[1], fit_p2(cells)[1]]


def fit_busbridge(cells: pd.DataFrame, tries: int = TRIES) -> tuple[Predict | None, RivalFit]:
    """(prediction from a frame of cells, record); no prediction where it cannot be fitted."""
    use = cells[cells["arm"] == "main"]
    if "teacher_loss" not in use or use["teacher_loss"].isna().any():
        return None, _absent("busbridge", "the table has no losses of the teachers")
    free = busbridge.free_constants(
        use["student"].nunique(), use["tokens"].nunique(), use["teacher"].nunique(), len(use)
    )
    alone = cells[(cells["init"] == RANDOM) & (cells["teacher"] == NONE)]
    supervised, note = busbridge.SUPERVISED, "E, A, B, a, b and g are held as published"
    if alone["student"].nunique() >= 4 and alone["tokens"].nunique() >= 4:
        supervised, fitted = busbridge.fit_supervised(
            *(alone[n].to_numpy(float) for n in ("student_params", "tokens", "loss")), tries
        )
        note = f"E, A, B, a, b and g come from {len(alone)} random starts without a teacher"
    columns = ("teacher_loss", "student_params", "tokens", "loss")
    constants, free, fitted = busbridge.fit_distilled(
        *(use[name].to_numpy(float) for name in columns), free, supervised, tries
    )

    def predict(frame: pd.DataFrame) -> np.ndarray:
        teacher_loss, student, tokens = (frame[n].to_numpy(float) for n in columns[:3])
        base = busbridge.log_supervised(supervised, student, tokens)
        return busbridge.log_distilled(constants, teacher_loss, student, tokens, base)

    held = [name for name in busbridge.DISTILLED if name not in free]
    return predict, _rival(
        "busbridge", fitted, constants | dict(supervised), free, held, len(use), note
    )


def fit_p2(cells: pd.DataFrame, tries: int = TRIES) -> tuple[Predict | None, RivalFit]:
    """The P2 law on students pruned from models whose size and loss the table has."""
    if "teacher_loss" not in cells:
        return None, _absent("p2", "the table has no losses of the models that were pruned")
    main = cells[cells["arm"] == "main"]
    models = main.groupby("init")[["teacher_params", "teacher_loss"]].first()
    frame = cells[cells["init"].isin(models.index)].copy()
    # without a teacher is what P2 describes; where that arm is missing, the main arm stands in
    alone = frame[frame["arm"] == "no_teacher"]
    enough = alone["student"].nunique() > 1 and alone["init"].nunique() > 2
    use = (alone if enough else frame[frame["arm"] == "main"]).copy()
    use["source_params"] = use["init"].map(models["teacher_params"])
    use["source_loss"] = use["init"].map(models["teacher_loss"])
    if use["source_loss"].isna().any() or (use["source_params"] <= use["student_params"]).any():
        return None, _absent("p2", "sizes or losses of the models that were pruned are not known")
    free = pruning_null.free_constants(
        use["student"].nunique(), use["tokens"].nunique(), use["init"].nunique(), len(use)
    )
    columns = ("source_loss", "source_params", "student_params", "tokens", "loss")
    constants, fitted = pruning_null.fit_pruned(
        *(use[name].to_numpy(float) for name in columns), free, tries
    )

    def predict(teachers: pd.DataFrame) -> np.ndarray:
        names = ("teacher_loss", "teacher_params", "student_params", "tokens")
        return pruning_null.log_pruned(constants, *(teachers[n].to_numpy(float) for n in names))

    held = [name for name in pruning_null.NAMES if name not in free]
    note = f"fitted to runs {'without a teacher' if enough else 'of the main arm'}"
    return predict, _rival("p2", fitted, constants, free, held, len(use), note)


def _absent(law: str, reason: str) -> RivalFit:
    return RivalFit(
        law=law,
        status="not_available",
        reason=reason,
        constants={},
        free=[],
        held=[],
        n_cells=0,
        rms_log_loss=None,
    )


def _rival(
    law: str,
    fitted: Fitted,
    constants: dict[str, float],
    free: list[str],
    held: list[str],
    n_cells: int,
    note: str,
) -> RivalFit:
    status = "identified" if not held else "not_identifiable"
    reason = note
    if held:
        reason += f"; the runs cannot determine {', '.join(held)}, which are held"
    if fitted.weakest_P is not None:
        status, reason = "not_identifiable", f"{reason}; the fit leaves the rest partly open"
    if fitted.status != "converged":
        status, reason = "failed", f"{reason}; the solver did not converge: {fitted.message}"
    return RivalFit(
        law=law,
        status=status,
        reason=f"{reason}; starts that agree on the lowest point: {fitted.agreeing}",
        constants={name: float(value) for name, value in constants.items()},
        free=list(free),
        held=held,
        n_cells=n_cells,
        rms_log_loss=fitted.rms_log,
    )
