"""What torch.export would lose without a word: the backward of custom autograd.Functions, activation checkpointing.

While a model is traced inside ``kept``, a custom Function is recorded as one opaque operator, and what is computed
inside ``torch.utils.checkpoint`` is marked.  Both are caught below the names that models import
(``MyFunction.apply``, ``checkpoint``), so it does not matter who holds a reference to them: of a Function, where
torch's compiled ``apply`` looks up its ``forward``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.autograd import function as autograd_function
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.customgrad import FunctionCall
from autopart.recompute import Recompute, mark, mark_held, region_of

__all__ = ["finish", "kept"]

_LIBRARY = torch.library.Library("autopart_recorded", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("function(Tensor[] tensors, int call) -> Tensor[]")  # type: ignore[no-untyped-call]
_NON_REENTRANT = next(
    name for name in ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    if hasattr(checkpoint, name)
)  # fmt: skip
"""what ``checkpoint(use_reentrant=False)`` runs; torch 2.14 has put another function below the one of 2.13"""
_Kind: Any = autograd_function.FunctionMeta
"""the class of all custom Functions; its properties go before their own attributes"""
_numbers = itertools.count()
_recorders: list[_Recorder] = []


class _Recorder:
    """The custom Functions and checkpointed regions met in one trace."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: dict[int, FunctionCall] = {}
        self.results: dict[int, Any] = {}
        self.is_inside = False
        """of a custom Function, where others are part of it"""

    def forward(self, function: type[torch.autograd.Function], *args: Any) -> Any:
        """In place of ``forward``: one operator that stands for the call, backward and all."""
        has_context = function.setup_context is torch.autograd.Function.setup_context
        leaves, structure = pytree.tree_flatten((args[1:] if has_context else args, {}))
        places = tuple(index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        tensors = [leaves[place] for place in places]
        versions = [tensor._version for tensor in tensors]
        fixed = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        number = next(_numbers)
        call = FunctionCall(function=function, arguments=fixed, places=places, structure=structure, writes=())
        self.calls[number] = call
        flat = torch.ops.autopart_recorded.function(tensors, number)
        writes = tuple(index for index, each in enumerate(tensors) if each._version != versions[index])
        self.calls[number] = dataclasses.replace(call, writes=writes)
        if has_context and writes:
            args[0].mark_dirty(*(each for each in tensors if any(each is out for out in flat)))
        result_leaves, result_structure = pytree.tree_flatten(self.results.pop(number))
        recorded = iter(flat)
        return pytree.tree_unflatten(
            [next(recorded) if isinstance(leaf, torch.Tensor) else leaf for leaf in result_leaves], result_structure
        )

    def evaluate(self, tensors: list[torch.Tensor], number: int) -> list[torch.Tensor]:
        """What the opaque operator gives while the trace runs, on fake tensors."""
        self.is_inside = True
        try:
            with _OwnTensorsOnly(self.calls[number], tensors):
                self.results[number] = self.calls[number].apply(tensors)
        finally:
            self.is_inside = False
        return [leaf for leaf in pytree.tree_leaves(self.results[number]) if isinstance(leaf, torch.Tensor)]


class _OwnTensorsOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where a custom Function reads a tensor of the computation that is not among its arguments."""

    supports_higher_order_operators = True

    def __init__(self, call: FunctionCall, tensors: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = call.function.__name__
        self._known = {each.untyped_storage()._cdata for each in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch._subclasses.FakeTensor) and leaf.untyped_storage()._cdata not in self._known:
                raise RuntimeError(
                    f"the custom autograd.Function {self._name} reads a tensor that is not among its arguments, so a "
                    "graph cannot give it to the device where it runs"
                )
        result = func(*args, **(kwargs or {}))
        made = (leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))
        self._known.update(each.untyped_storage()._cdata for each in made)
        return result


def _evaluate(tensors: list[torch.Tensor], call: int) -> list[torch.Tensor]:
    return _recorders[-1].evaluate(tensors, call)


_LIBRARY.impl("function", _evaluate, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


def _forward_of(function: Any) -> Callable[..., Any]:
    """What ``function.forward`` is within ``kept``: its own only where nothing is recorded."""
    own = next(vars(each)["forward"] for each in function.__mro__ if "forward" in vars(each))
    recorder = _recorders[-1]
    if recorder.is_inside or get_proxy_mode() is None:
        found: Callable[..., Any] = own.__get__(None, function)
        return found
    return functools.partial(recorder.forward, function)


@contextlib.contextmanager
def kept(model: nn.Module) -> Iterator[_Recorder]:
    """Traces made inside keep custom Functions and checkpointed regions; give their graphs to ``finish`` inside too."""
    recorder = _Recorder(model)
    _recorders.append(recorder)
    try:
        with _caught() if len(_recorders) == 1 else contextlib.nullcontext():  # else a trace inside a trace
            yield recorder
    finally:
        _recorders.pop()


@contextlib.contextmanager
def _caught() -> Iterator[None]:
    reentrant, generator = checkpoint.CheckpointFunction.apply, getattr(checkpoint, _NON_REENTRANT)
    _Kind.forward = property(_forward_of)
    setattr(checkpoint.CheckpointFunction, "apply", _reentrant(reentrant))  # noqa: B010  # no method, says mypy
    setattr(checkpoint, _NON_REENTRANT, _non_reentrant(generator))
    try:
        yield
    finally:
        setattr(checkpoint, _NON_REENTRANT, generator)
        del _Kind.forward, checkpoint.CheckpointFunction.apply


def _reentrant(own: Callable[..., Any]) -> Callable[..., Any]:
    """In place of ``CheckpointFunction.apply``, which gives no gradients if no argument needs any."""

    def apply(function: Callable[..., Any], preserves: bool, *args: Any) -> Any:
        if _recorders[-1].is_inside or get_proxy_mode() is None:
            return own(function, preserves, *args)
        if not any(isinstance(each, torch.Tensor) and each.requires_grad for each in args):
            with torch.no_grad():
                return function(*args)
        with _region(reentrant=True, preserves_random_state=preserves, context_fn=None, early_stop=False):
            return function(*args)

    return apply


def _non_reentrant(own: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
    signature = inspect.signature(own)

    def generator(*args: Any, **kwargs: Any) -> Iterator[None]:
        if get_proxy_mode() is None:
            yield from own(*args, **kwargs)
            return
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        context_fn = options["context_fn"]
        with _region(
            reentrant=False,
            preserves_random_state=options["preserve_rng_state"],
            context_fn=None if context_fn is checkpoint.noop_context_fn else context_fn,
            early_stop=options.get("early_stop", True),
        ):
            yield

    return generator


@contextlib.contextmanager
def _region(
    *, reentrant: bool, preserves_random_state: bool, context_fn: Callable[[], Any] | None, early_stop: bool
) -> Iterator[None]:
    """Mark the operators that are recorded inside; a region inside a region is part of it."""
    mode = get_proxy_mode()
    assert mode is not None, "a region is marked while something is traced"
    region = Recompute(
        number=next(_numbers), reentrant=reentrant, preserves_random_state=preserves_random_state,
        context_fn=context_fn, early_stop=early_stop,
    )  # fmt: skip
    graph: fx.Graph = mode.tracer.graph
    before = next(iter(reversed(graph.nodes)), None)
    yield
    for node in itertools.takewhile(lambda each: each is not before, reversed(graph.nodes)):
        mark(node, region)


def finish(recorder: _Recorder, captured: fx.GraphModule) -> None:
    """Make the operators recorded for custom Functions calls of them, and each region whole."""
    for node in captured.graph.nodes:
        if node.target is torch.ops.autopart_recorded.function.default:
            node.target = recorder.calls[node.args[1]]
            node.args = node.args[:1]
        elif node.op == "get_attr":
            inner = getattr(captured, str(node.target), None)
            if isinstance(inner, fx.GraphModule):
                finish(recorder, inner)
                _hand_in(inner, list(node.users))
    _fill(captured.graph)
    captured.recompile()


def _hand_in(inner: fx.GraphModule, users: list[fx.Node]) -> None:
    """Tell an inner graph (autocast, no_grad) which inputs are weights, and its operator which region it lies in."""
    placeholders = [node for node in inner.graph.nodes if node.op == "placeholder"]
    nodes = [node for node in inner.graph.nodes if node.op == "call_function"]
    regions = {region_of(node) for node in nodes}
    for user in users:
        for placeholder, given in zip(placeholders, user.args[len(user.args) - len(placeholders) :], strict=True):
            if isinstance(given, fx.Node) and given.op == "get_attr":
                mark_held(placeholder)
        if len(regions) == 1:
            mark(user, next(iter(regions)))
        user.meta["nn_module_stack"] = _around(nodes) or user.meta.get("nn_module_stack")
    if len(regions) == 1:
        for node in nodes:
            mark(node, None)


def _around(nodes: list[fx.Node]) -> dict[str, Any]:
    """The module calls that all of these operators lie in."""
    stacks = [list((node.meta.get("nn_module_stack") or {}).items()) for node in nodes]
    levels = itertools.takewhile(lambda level: all(each == level[0] for each in level), zip(*stacks, strict=False))
    return dict(level[0] for level in levels)


def _fill(graph: fx.Graph) -> None:
    """What lies between a region's first and last operator belongs to it, and so do the parts of its tuples."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    bounds: dict[Recompute, list[int]] = {}
    for index, node in enumerate(nodes):
        if node.target is operator.getitem and region_of(node) is None:
            mark(node, region_of(node.args[0]))
        region = region_of(node)
        if region is not None:
            bounds.setdefault(region, [index, index])[1] = index
    for region, (first, last) in bounds.items():
        for node in nodes[first : last + 1]:
            mark(node, region)
