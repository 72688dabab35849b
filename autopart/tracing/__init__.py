"""Model → Program: capture with torch.export, group into layers, cost on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import TracingError
from autopart.program import Program
from autopart.restoring import chance_kept, gradients_kept, training_mode
from autopart.tracing.attention import attention_notes
from autopart.tracing.describing import describe, fingerprint
from autopart.tracing.grouping import constant_nodes, group_nodes
from autopart.tracing.ladder import climb_down
from autopart.tracing.losscost import with_loss

__all__ = ["batch_size_of", "fingerprint", "trace", "training_mode", "with_loss"]


def trace(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    training: bool, name: str = "", opaque: Sequence[str] = (),
) -> Program:  # fmt: skip
    """The model as layers with costs, for the shapes of these inputs and this training flag.

    Nothing is allocated, the model is left as it was, and its weights may be on the meta device.
    Submodules named in ``opaque`` (``""``: the model itself) are not looked into: each is one layer, as it is written.

    Raises:
        TracingError: the model cannot be captured, or it computes nothing.
    """
    kwargs = kwargs or {}
    climbed = climb_down(model, args, kwargs, training=training, opaque=opaque)
    captured = climbed.module
    constants = constant_nodes(captured.graph)
    for node in constants:
        node.meta["constant"] = True
    groups = group_nodes(captured.graph, constants)
    if not groups:
        raise TracingError(f"{type(model).__name__} computes nothing from its inputs; there is nothing to place")
    with gradients_kept(model), chance_kept():  # which an opaque part's own code may change
        program = describe(
            model, captured, groups, name=name or type(model).__name__, training=training,
            batch_size=batch_size_of(args, kwargs),
        )  # fmt: skip
    notes = (*climbed.notes, *captured.meta["notes"], *attention_notes(model, training=training), *program.graph.notes)
    return replace(program, graph=replace(program.graph, tracer=climbed.tracer, notes=notes))


def batch_size_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Samples of a call: the first dimension of its first tensor, 1 if there is none."""
    for leaf in pytree.tree_leaves((args, dict(kwargs))):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0])
    return 1
