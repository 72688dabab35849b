"""What the loss needs in memory, from a run of it on fake outputs and targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from autopart.livebytes import LiveBytes
from autopart.program import Program
from autopart.schema.graph import Loss, Note
from autopart.tracing.culprit import first_line
from autopart.tracing.describing import FAKE

__all__ = ["with_loss"]


def with_loss(program: Program, loss_fn: Callable[..., torch.Tensor], targets: Sequence[Any]) -> Program:
    """The program, its graph with the bytes of a loss.

    Args:
        program: traced for training.
        loss_fn: called with the model's output and the targets.
        targets: of one micro-batch; real, meta or fake tensors, whose values are not read.

    A loss that cannot run on fake tensors leaves a note instead: the planner then assumes a cross-entropy's.
    """
    graph = program.graph
    try:
        loss = _loss(program, loss_fn, targets)
    except Exception as error:
        note = Note(
            code="loss-memory",
            message=f"what the loss keeps in memory could not be traced ({first_line(error)}) and is taken to be as "
            "much as the outputs",
            suggestion="write loss_fn without reading values of tensors, or leave room on the last device",
        )
        return dataclasses.replace(program, graph=dataclasses.replace(graph, notes=(*graph.notes, note)))
    return dataclasses.replace(program, graph=dataclasses.replace(graph, loss=loss))


def _loss(program: Program, loss_fn: Callable[..., torch.Tensor], targets: Sequence[Any]) -> Loss:
    with FAKE:
        outputs = tuple(
            torch.empty(value.shape, dtype=getattr(torch, value.dtype), requires_grad=value.differentiable)
            for value in program.graph.crossing(len(program.graph.layers))
        )
        fakes = pytree.tree_map(_fake, tuple(targets))
        weights = [*program.module.parameters(), *program.module.buffers()]
        live = LiveBytes((*outputs, *weights))
        with torch.enable_grad(), live:
            loss = loss_fn(program.unflatten_outputs(outputs), *fakes)
            saved_bytes, forward_bytes = live.now_bytes, live.peak_bytes
            live.peak_bytes = 0
            if loss.requires_grad:
                torch.autograd.backward(loss)
    target_bytes = sum(
        leaf.untyped_storage().nbytes() for leaf in pytree.tree_leaves(fakes) if isinstance(leaf, torch.Tensor)
    )
    saved_bytes = max(0, saved_bytes - target_bytes)
    return Loss(saved_bytes=saved_bytes, backward_bytes=max(forward_bytes, live.peak_bytes) - saved_bytes)


def _fake(leaf: Any) -> Any:
    return torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
