"""A short training run of a small model, with settings that tests change."""

from dataclasses import dataclass

import torch

from capgap.config import Distill, Training
from capgap.engine.objectives import Distillation, data_objective
from capgap.engine.parallel import ONE_PROCESS
from capgap.engine.run_plan import RunPlan, plan_run
from capgap.engine.training import train

BASE = {"sequence_length": 16, "batch_tokens": 64, "learning_rate": 0.01, "validations": 2}


def settings(**changes):
    return Training(**{**BASE, **changes})


def run(
    model,
    streams,
    scratch,
    *,
    tokens=64 * 12,
    seed=0,
    teacher=None,
    seconds=1e9,
    trunk=None,
    plan=plan_run,
    dist=ONE_PROCESS,
    **changes,
):
    objective = data_objective
    if teacher:
        precision = changes.get("precision", "float32")
        objective = Distillation(teacher.eval(), Distill(**BASE, precision=precision))
    return train(
        model,
        streams,
        plan(settings(**changes), tokens, seed),
        objective,
        scratch=scratch,
        trunk=trunk,
        checkpoint_seconds=seconds,
        say=lambda line: None,
        dist=dist,
    )


def dying(at, reached, error=KeyboardInterrupt):
    """A `plan` for `run` that raises before steps for which `at(step)` holds; notes begun steps."""

    @dataclass(frozen=True)
    class Dying(RunPlan):
        def learning_rate(self, step):
            if at(step):
                raise error
            reached.append(step)
            return super().learning_rate(step)

    return lambda *budget: Dying(**vars(plan_run(*budget)))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])
