"""Capture a model as one torch.fx graph with torch.export, leaving the user's module as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autopart.errors import TracingError
from autopart.tracing.effects import has_effect, users_of_memory
from autopart.tracing.gathered import gathered, put_back

__all__ = ["capture", "training_mode"]

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool
) -> fx.GraphModule:
    """The model's operators in execution order, for these shapes and this training flag.

    The graph module refers to the model's own Parameter and buffer objects.  Nodes that only assert something about
    the trace, and nodes that nobody needs and that change nothing, are gone.

    Raises:
        TracingError: torch.export cannot capture the model; the message names the line of the model's code.
    """
    _open_dataclasses((args, kwargs))
    with training_mode(model, training), _attributes_kept(model), _outputs_opened(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with gathered(model, args, dict(kwargs)) as (near_args, near_kwargs):
                exported = torch.export.export(model, near_args, near_kwargs, strict=False)
                captured: fx.GraphModule = exported.module(check_guards=False)
        except Exception as error:
            raise TracingError(_explain(model, error), detail=_last_lines(error)) from error
    put_back(model, captured)
    _drop_dead_nodes(captured.graph)
    _write_early(captured.graph)
    captured.recompile()
    return captured


@contextlib.contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or eval mode, and afterwards every submodule in the mode that it had.

    If the model is in that mode already, submodules that the user set otherwise by hand (frozen BatchNorm) stay so.
    """
    before = [(module, module.training) for module in model.modules()]
    if model.training != training:
        model.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards nothing that forward assigned to a module's attributes is left: it would be of fake tensors."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


@contextlib.contextmanager
def _outputs_opened(model: nn.Module) -> Iterator[None]:
    handle = model.register_forward_hook(lambda _, __, result: _open_dataclasses(result))
    try:
        yield
    finally:
        handle.remove()


def _open_dataclasses(nest: Any) -> None:
    """Make the dataclasses in a nest known to torch's pytrees; torch.export takes no others."""
    while unknown := {type(leaf) for leaf in pytree.tree_leaves(nest) if dataclasses.is_dataclass(leaf)} - {type}:
        for each in unknown:
            torch.export.register_dataclass(each)


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


def _explain(model: nn.Module, error: Exception) -> str:
    """One line: what torch.export said, and which line of the model's code it was at."""
    everything = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in everything if not frame.filename.startswith((*_LIBRARIES, "<"))]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    what = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    advice = "make that line independent of tensor values" if "data-dependent" in str(error) else "change that code"
    return f"cannot trace {type(model).__name__}: torch.export failed{where}: {what}; {advice}"


def _last_lines(error: Exception) -> str:
    return "".join(traceback.format_exception_only(error)).strip()
