"""What a trace depends on, in one key: code, structure, attributes and weights of a model, and the form of a call.

Two calls with the same key have the same trace.  The values of weights and of inputs are not in it: a graph from
torch.export alone cannot depend on them.  Where a model holds something that cannot be spelled, there is no key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from autopart.keying.codekey import code_key
from autopart.keying.spelling import CannotSpellError, Spelling

__all__ = ["model_key", "models_stay"]

_BEGUN: ContextVar[dict[tuple[int, str], tuple[nn.Module, Spelling]] | None] = ContextVar("begun", default=None)


@contextlib.contextmanager
def models_stay() -> Iterator[None]:
    """Within, no model is changed, so that each is spelled once, which takes long, for all its keys."""
    token = _BEGUN.set({})
    try:
        yield
    finally:
        _BEGUN.reset(token)


def _begun(model: nn.Module, stands_for: str) -> Spelling:
    """A spelling of the model, to which more can be added.

    Raises:
        CannotSpellError: something in it cannot be spelled.
    """
    known = _BEGUN.get()
    if known is not None and (id(model), stands_for) in known:
        return known[id(model), stands_for][1].copy()
    spelling = Spelling(stands_for=stands_for)
    spelling.add(model)
    if known is not None:
        known[id(model), stands_for] = (model, spelling.copy())
    return spelling


def model_key(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool, name: str,
    loss: tuple[Any, Any] | None = None, stands_for: str = "",
) -> tuple[str, ...]:  # fmt: skip
    """All that the graph of a call follows from; empty if that cannot be said.

    Args:
        model: with real weights or without.
        args: of the call.
        kwargs: of the call.
        training: the mode to trace in.
        name: of the model, for people.
        loss: the function, and the targets, that a training trace looks at too.
        stands_for: the device where weights on the meta device would really be, for a model built without them.
    """
    code = code_key(model)
    if not code:
        return ()
    try:
        spelling = _begun(model, stands_for)
        spelling.add_call((args, dict(kwargs)))
        spelling.add(_global_hooks())
        if loss is not None:
            spelling.add(loss[0])
            spelling.add_call(loss[1])
    except CannotSpellError:
        return ()
    return (code, repr(_torch_state()), str(training), name, spelling.hexdigest())


def _global_hooks() -> tuple[Any, ...]:
    """Hooks on the calls of all modules."""
    return tuple(
        tuple(value.values()) for name, value in sorted(vars(module_hooks).items())
        if name.startswith("_global_") and isinstance(value, dict)
    )


def _torch_state() -> tuple[object, ...]:
    """The switches of torch that a trace looks at."""
    attention: Any = torch.backends.cuda
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda"),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        attention.flash_sdp_enabled(), attention.mem_efficient_sdp_enabled(), attention.math_sdp_enabled(),
        attention.cudnn_sdp_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled,
        torch.cuda.is_available(), torch.backends.cpu.get_cpu_capability(),
    )  # fmt: skip
