"""Capture a model as one torch.fx graph with torch.export, leaving the user's module as it was."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from autopart.errors import TracingError
from autopart.tracing.effects import has_effect

__all__ = ["capture"]


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool
) -> fx.GraphModule:
    """The model's operators in execution order, for these shapes and this training flag.

    The graph module refers to the model's own Parameter and buffer objects.  Nodes that only assert something about
    the trace, and nodes that nobody needs and that change nothing, are gone.

    Raises:
        TracingError: torch.export cannot capture the model; the message names the line of the model's code.
    """
    with training_mode(model, training), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(model, args, dict(kwargs), strict=False)
            captured = exported.module(check_guards=False)
        except Exception as error:
            raise TracingError(_explain(model, error), detail=_last_lines(error)) from error
    _drop_dead_nodes(captured.graph)
    captured.recompile()
    return captured


@contextlib.contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or eval mode, and afterwards every submodule in the mode that it had."""
    before = [(module, module.training) for module in model.modules()]
    if training:
        # Submodules that the user put in eval mode by hand (frozen BatchNorm) stay there if the root was training.
        if not model.training:
            model.train()
    else:
        model.eval()
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


def _drop_dead_nodes(graph: fx.Graph) -> None:
    """Remove metadata asserts (they bake in a device) and pure nodes without users."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.op in ("call_function", "get_attr") and not node.users and not has_effect(node):
            graph.erase_node(node)


def _explain(model: nn.Module, error: Exception) -> str:
    """One line: what torch.export said, and which line of the model's code it was at."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    ours = [frame for frame in frames if "/autopart/" not in frame.filename.replace("\\", "/")]
    where = f" at {ours[-1].filename}:{ours[-1].lineno} ({ours[-1].line})" if ours else ""
    what = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"cannot trace {type(model).__name__}: torch.export failed{where}: {what}; "
        "make that line independent of tensor values, or wrap it in a module that autopart can treat as one layer"
    )


def _last_lines(error: Exception) -> str:
    return "".join(traceback.format_exception_only(error)).strip()
