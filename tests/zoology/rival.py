"""torch.distributed.pipelining.pipeline() on the same specimens: two stages, run without a process group."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from tests.zoology.compare import Outcome, difference, outcome
from tests.zoology.result import Rival
from tests.zoology.specimen import Case

__all__ = ["rival_on"]


def rival_on(case: Case) -> Rival:
    """Cut before the middle child of the model's largest container; compare outputs and gradients in train mode."""
    from torch.distributed.pipelining import SplitPoint, pipeline

    case.model.train()
    expected = outcome(case.model, case)
    cut = _middle(case.model)
    if cut is None:
        return Rival(verdict="no cut", reason="no ModuleList or Sequential to cut")
    try:
        pipe = pipeline(case.model, case.args, dict(case.kwargs), split_spec={cut: SplitPoint.BEGINNING})
    except Exception as error:
        return Rival(verdict="not captured", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    try:
        found = outcome(_runner(pipe.split_gm, case), case)
    except Exception as error:
        return Rival(verdict="fails at run", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return _compared(expected, found)


def _runner(split: fx.GraphModule, case: Case) -> Any:
    """Pipe.forward detaches between stages, so its graph is interpreted instead."""
    names = [node.name for node in split.graph.nodes if node.op == "placeholder"]

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        if set(names) == set(kwargs):
            leaves = [kwargs[name] for name in names]
        return fx.Interpreter(split).run(*leaves)

    return run


def _compared(expected: Outcome, found: Outcome) -> Rival:
    """By position: its outputs have lost their names."""
    ones, others = list(expected.outputs.values()), list(found.outputs.values())
    if len(ones) != len(others):
        return Rival(verdict="wrong outputs", reason=f"{len(others)} tensors for {len(ones)}")
    wrong = difference(
        Outcome(outputs=dict(zip(map(str, range(len(ones))), ones, strict=True)), gradients={}, buffers={}),
        Outcome(outputs=dict(zip(map(str, range(len(ones))), others, strict=True)), gradients={}, buffers={}),
    )
    if wrong:
        return Rival(verdict="wrong outputs", reason=wrong)
    wrong = difference(
        Outcome(outputs={}, gradients=expected.gradients, buffers={}),
        Outcome(outputs={}, gradients=found.gradients, buffers={}),
    )
    return Rival(verdict="wrong gradients", reason=wrong) if wrong else Rival(verdict="equal")


def _middle(model: nn.Module) -> str | None:
    containers = [
        (len(module), name) for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and name
    ]  # fmt: skip
    if not containers:
        return None
    size, name = max(containers, key=lambda each: each[0])
    return f"{name}.{size // 2}"
