"""Calls of the user's code that the tracer does not look into: intercept them, and let one operator stand for each.

While a graph is captured, ``autopart::opaque`` is recorded in place of the call; afterwards the ``OpaqueCall`` itself
becomes the operator's target.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from autopart.opaque import OpaqueCall, flat

__all__ = ["WHOLE_CALL", "CannotTraceError", "Site", "call_recorded", "intercepted", "put_in", "standing_in"]

WHOLE_CALL = "_call_impl"
"""what ``module(...)`` runs, hooks included"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A function to intercept, by the name that callers find it under."""

    label: str
    """as users know it"""
    name: str
    module: nn.Module | None = None
    """whose method it is; None for a function of a Python module"""
    namespace: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """of the Python module that calls it"""

    def get(self) -> Callable[..., Any]:
        """The function itself."""
        found: Callable[..., Any]
        found = self.namespace[self.name] if self.module is None else getattr(self.module, self.name)
        return found

    @property
    def holder(self) -> dict[str, Any]:
        """Where callers look first."""
        return self.namespace if self.module is None else vars(self.module)


_ABSENT = object()
Handler = Callable[[Site, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

torch.library.define("autopart::opaque", "(Tensor[] tensors, int call) -> Tensor[]")
_OPERATOR = torch.ops.autopart.opaque.default
_NUMBERS = itertools.count()
_CALLS: dict[int, OpaqueCall] = {}
"""what the operator stands for, while a capture is going on"""

fx.node.has_side_effect(_OPERATOR)


def _fake(tensors: list[torch.Tensor], call: int) -> list[torch.Tensor]:
    device = tensors[0].device if tensors else torch.device("cpu")
    return [form.empty(device) for form in _CALLS[call].forms]


torch.library.register_fake("autopart::opaque", _fake)


class CannotTraceError(Exception):
    """Something that a tracer would get wrong without a word; raised where the model's code does it."""

    def __init__(self, message: str, site: Site | None = None, module: nn.Module | None = None) -> None:
        super().__init__(message)
        self.site = site
        """what cannot be one operator, if that is the matter"""
        self.module = module
        """whose code it is, where the traceback does not tell"""


@contextlib.contextmanager
def intercepted(sites: Sequence[Site], handler: Handler) -> Iterator[None]:
    """Within, calls of the sites go to ``handler``, but not those inside a call that is being handled."""
    depth = 0

    def handled(site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nonlocal depth
        if depth:
            return original(*args, **kwargs)
        depth += 1
        try:
            return handler(site, original, args, kwargs)
        finally:
            depth -= 1

    before = [(site.holder, site.name, site.holder.get(site.name, _ABSENT)) for site in sites]
    try:
        for site in sites:
            site.holder[site.name] = _replacement(site, site.get(), handled)
        yield
    finally:
        for holder, name, own in before:
            if own is _ABSENT:
                holder.pop(name, None)
            else:
                holder[name] = own


def _replacement(site: Site, original: Callable[..., Any], handled: Handler) -> Callable[..., Any]:
    return lambda *args, **kwargs: handled(site, original, args, kwargs)


@contextlib.contextmanager
def standing_in(calls: Mapping[Site, Sequence[OpaqueCall]]) -> Iterator[set[int]]:
    """Within, the tracer records each call of a site as one operator, with the results of its recorded call.

    Calls of a site are matched with the recorded ones in order.  Gives what ``put_in`` needs.
    """
    turns = {site: itertools.cycle(recorded) for site, recorded in calls.items()}
    numbers: set[int] = set()

    def stand_in(site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        arguments, tensors = flat((args, kwargs))
        recorded = next(turns[site], None)
        if recorded is None or recorded.arguments.form != arguments.form:
            raise CannotTraceError(f"{site.label} is called in another way while traced than when run", site)
        own = {} if site.module is None else _tensors_by_all_names(site.module)
        weights = (own[name] for name in recorded.weight_names)
        return recorded.results.filled(call_recorded(recorded, numbers, *tensors, *weights))

    try:
        with intercepted(tuple(calls), stand_in):
            yield numbers
    finally:
        for number in numbers:
            del _CALLS[number]


def call_recorded(call: OpaqueCall, numbers: set[int], *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Let the tracer record one operator for the call; its number joins those that ``standing_in`` gave."""
    number = next(_NUMBERS)
    numbers.add(number)
    _CALLS[number] = call
    results: list[torch.Tensor] = _OPERATOR(list(tensors), number)
    return results


def _tensors_by_all_names(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def put_in(captured: fx.GraphModule, numbers: set[int]) -> None:
    """Put the calls themselves in the place of the operators that stand for them, in regions too."""
    if not numbers:
        return
    for module in captured.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target is _OPERATOR:
                tensors, number = node.args
                node.target = _CALLS[number]
                node.meta["flops"] = sum(work.flops for work in node.target.work)
                node.args = tuple(tensors)
        module.recompile()
