"""The optimizers a job can name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn, optim

from autopart.errors import UsageError
from autopart.schema.plan import Plan

__all__ = ["OPTIMIZERS", "OptimizerChoice", "check_optimizer", "make_optimizer"]

OptimizerChoice = str | Callable[[Sequence[nn.Parameter]], optim.Optimizer] | None
"""a name of the job, a function of the parameters, or nothing: gradients are left to the caller"""

OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter]], optim.Optimizer]] = {
    "adamw": optim.AdamW,
    "adam": optim.Adam,
    "momentum": partial(optim.SGD, momentum=0.9),
    "sgd": optim.SGD,
}


def make_optimizer(choice: OptimizerChoice, parameters: Sequence[nn.Parameter]) -> optim.Optimizer | None:
    """The optimizer of ``parameters``, with torch's defaults when it is named; None for 'none' or no parameters.

    Raises:
        UsageError: no optimizer has that name.
    """
    if choice is None or choice == "none" or not parameters:
        return None
    if isinstance(choice, str):
        if choice not in OPTIMIZERS:
            raise UsageError(f"no optimizer is called {choice!r}; use one of {', '.join(OPTIMIZERS)} or none")
        choice = OPTIMIZERS[choice]
    return choice(parameters)


def check_optimizer(plan: Plan) -> None:
    """Refuses plans whose optimizer keeps float32 copies of narrower weights: torch's own do not.

    Raises:
        UsageError: it does.
    """
    if plan.job.master_weights:
        raise UsageError(
            "the plan counts on an optimizer with float32 copies of its weights, which cannot be run yet; plan without "
            "--master-weights, or plan the model in float32 and train with --precision bf16"
        )
