"""torch.vmap in a trace: record the plain operators on whole batches that a mapped function comes to.

torch.export records the function for one member of the batch, between marks that only mean something to one run of
vmap; neither can be cut, costed or moved.  So the mapped call is traced by itself first, below vmap, where its
operators work on the batch, and what was found is computed in its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._export import utils
from torch._functorch import apis
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.opaque import Nest, flat
from autopart.tracing.sites import CannotTraceError

__all__ = ["mapped_as_operators", "refuse_in_mapped"]

_apis: Any = apis
_own: Callable[..., Any] = _apis.vmap_impl
_FINDER = "_maybe_find_pre_dispatch_tf_mode_for_export"
"""how vmap finds out that torch.export wants its marks"""


@contextlib.contextmanager
def mapped_as_operators() -> Iterator[None]:
    """Within, traces hold the operators of ``torch.vmap`` on whole batches.

    At a mapped function with a backward or a region of its own, which would get lost, they raise CannotTraceError.
    """
    before, enter = _apis.vmap_impl, torch.autocast.__enter__
    _apis.vmap_impl, torch.autocast.__enter__ = _mapped, _refused(enter)  # type: ignore[method-assign]
    try:
        yield
    finally:
        _apis.vmap_impl, torch.autocast.__enter__ = before, enter  # type: ignore[method-assign]


def _mapped(
    function: Any, in_dims: Any, out_dims: Any, randomness: str, chunk: int | None, *args: Any, **kwargs: Any
) -> Any:
    if get_proxy_mode() is None or is_mapping():
        return _own(function, in_dims, out_dims, randomness, chunk, *args, **kwargs)
    given, tensors = flat((args, kwargs))
    structures: list[Nest] = []

    def run(*members: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own_args, own_kwargs = given.filled(members)
        with _PlainOnly(torch.is_grad_enabled()):
            structure, results = flat(_own(function, in_dims, out_dims, randomness, chunk, *own_args, **own_kwargs))
        if any(each.requires_grad for each in results):  # below autograd nobody sees what was detached
            raise CannotTraceError("gradients go through a function mapped with torch.vmap, and some would get lost")
        structures.append(structure)
        return results

    with disable_proxy_modes_tracing(), _without_marks():
        operators = make_fx(run)(*tensors)
    return structures[0].filled(operators.forward(*tensors))


@contextlib.contextmanager
def _without_marks() -> Iterator[None]:
    own = getattr(utils, _FINDER)
    setattr(utils, _FINDER, lambda: None)
    try:
        yield
    finally:
        setattr(utils, _FINDER, own)


def is_mapping() -> bool:
    """Whether a function is being mapped now."""
    return torch._C._functorch.maybe_current_level() is not None


def refuse_in_mapped(what: str) -> None:
    """Raise CannotTraceError if a function is being mapped now."""
    if is_mapping():
        raise CannotTraceError(f"a function mapped with torch.vmap has {what} of its own, which would get lost")


def _refused(enter: Callable[[torch.autocast], Any]) -> Callable[[torch.autocast], Any]:
    def refuse(region: torch.autocast) -> Any:
        refuse_in_mapped("an autocast region")
        return enter(region)

    return refuse


class _PlainOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where gradients are switched on or off: the operators below autograd do not tell."""

    def __init__(self, with_gradients: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._with_gradients = with_gradients

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled() != self._with_gradients:
            raise CannotTraceError("a function mapped with torch.vmap switches gradients, which would get lost")
        return func(*args, **(kwargs or {}))
