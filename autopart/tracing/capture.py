"""Capture a model as one torch.fx graph with torch.export, leaving the user's module as it was."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from autopart.pythonstate import PythonState
from autopart.pytrees import open_classes
from autopart.recompute import mark, region_of
from autopart.restoring import attributes_kept, outputs_opened, training_mode
from autopart.tracing.dice import certain_answers
from autopart.tracing.effects import has_effect, users_of_memory
from autopart.tracing.faults import check_captured, check_state, faults_refused
from autopart.tracing.gathered import gathered, put_back
from autopart.tracing.known import KnownNumbers, numbers_known
from autopart.tracing.recording import record
from autopart.tracing.regions import finish, kept
from autopart.tracing.repeats import export_repeated
from autopart.tracing.sites import Site, put_in, standing_in
from autopart.tracing.unrolling import number_nodes

__all__ = ["capture"]

_LOUD = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
"""loggers that write about errors which are raised as well"""


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool, opaque: Sequence[Site] = ()
) -> fx.GraphModule:
    """The model's operators in execution order, for these shapes and this training flag.

    The graph module refers to the model's own Parameter and buffer objects.  Nodes that only assert something about
    the trace, and nodes that nobody needs and that change nothing, are gone.  Calls of the ``opaque`` sites are one
    operator each.  What is to be told about the capture is in its ``meta["notes"]``; ``meta["sizes"]`` says where among
    ``(args, kwargs)`` the tables of sizes are that it was made for.

    Raises:
        TracingError: parts of the model must be run with real weights, and these have no values.
        Exception: whatever torch.export or the model's own code raised.
    """
    open_classes((args, kwargs))
    with training_mode(model, training), outputs_opened(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls = record(model, args, kwargs, opaque, training=training) if opaque else {}
        state = PythonState(model)

        def export() -> fx.GraphModule:
            state.restore()
            known = KnownNumbers(args, kwargs)
            with (
                gathered(model, args, dict(kwargs)) as (near_args, near_kwargs),
                _silent(),
                faults_refused(model, state),
                kept(model) as recorder,
                standing_in(calls) as stand_ins,
                certain_answers(stand_ins),
                numbers_known(model, known),
            ):
                exported = torch.export.export(model, near_args, near_kwargs, strict=False)
                captured: fx.GraphModule = exported.module(check_guards=False)
                finish(recorder, captured)
                put_in(captured, stand_ins)
                known.guard(captured)
            captured.meta["sizes"] = known.read
            return captured

        with attributes_kept(model):
            captured, notes = export_repeated(model, export)
            _drop_dead_nodes(captured.graph)
            check_captured(model, captured)
            check_state(model, args, kwargs, state, calls)
    put_back(model, captured)
    _write_early(captured.graph)
    number_nodes(captured.graph)
    captured.recompile()
    captured.meta["notes"] = notes
    return captured


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what torch.export prints when it fails: the ladder says what is to be known."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _drop_dead_nodes(graph: fx.Graph) -> None:
    """Remove metadata asserts (they bake in a device), pure nodes without users, and copies onto themselves."""
    for node in reversed(list(graph.nodes)):
        is_assert = node.op == "call_function" and node.target is torch.ops.aten._assert_tensor_metadata.default
        is_dead = node.op in ("call_function", "get_attr") and not node.users and not has_effect(node)
        if is_assert or is_dead or _copies_onto_itself(node):
            graph.erase_node(node)


def _copies_onto_itself(node: fx.Node) -> bool:
    """What torch.export appends for ``self.count += 1``, though it kept the addition in place."""
    if node.target is not torch.ops.aten.copy_.default or node.users:
        return False
    target, source = (each.meta.get("val") if isinstance(each, fx.Node) else None for each in node.args[:2])
    if not isinstance(target, torch.Tensor) or not isinstance(source, torch.Tensor):
        return False
    same_memory = target.untyped_storage()._cdata == source.untyped_storage()._cdata
    return same_memory and (target.shape, target.stride(), target.storage_offset()) == (
        source.shape, source.stride(), source.storage_offset()
    )  # fmt: skip


def _write_early(graph: fx.Graph) -> None:
    """Move what torch.export appends for ``self.mean = mean``, the write of a buffer, to where it is possible.

    Left at the end it would hold together all layers from the buffer's first reader on.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.copy_.default or node.users:
            continue
        target, source = node.args[:2]
        if isinstance(target, fx.Node) and isinstance(source, fx.Node) and target.op == "get_attr":
            readers = (user for user in users_of_memory(target) if user is not node and user.op != "output")
            last = max((source, *readers), key=order.__getitem__)
            if last.op == "call_function" and order[last] < order[node]:
                last.append(node)
                node.meta.setdefault("nn_module_stack", last.meta.get("nn_module_stack"))
                mark(node, region_of(source))
