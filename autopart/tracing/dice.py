"""Random numbers that decide nothing: a layer drop of 0 asks whether a number is below 0, and none ever is.

While a model is traced, such questions are answered by the least value that the number can have.  The number is drawn
at every call all the same, so that those after it are the unsplit model's.  Any other use of one is refused.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

from autopart.opaque import OpaqueCall, flat
from autopart.tracing.sites import CannotTraceError, call_recorded

__all__ = ["certain_answers"]

_aten = torch.ops.aten
_ASKED = {_aten.lt.Scalar: "<", _aten.le.Scalar: "<=", _aten.gt.Scalar: ">", _aten.ge.Scalar: ">="}
_MAKERS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (random, ("random", "uniform")), (np.random, ("random", "random_sample", "rand", "uniform")),
)  # fmt: skip
_OTHER_USES = (
    *(f"__{side}{name}__" for side in ("", "r") for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")),
    "neg", "abs", "float", "int", "bool", "index", "round", "eq", "ne", "hash", "format", "str", "repr", "array",
)  # fmt: skip


@contextlib.contextmanager
def certain_answers(numbers: set[int]) -> Iterator[None]:
    """Within, traces answer what is certain about a random number; ``numbers`` are those of the opaque calls.

    Where code does anything else with a number of Python's or numpy's, they raise CannotTraceError.
    """
    with contextlib.ExitStack() as stack:
        for module, names in _MAKERS:
            for name in names:
                own = getattr(module, name)
                stack.callback(setattr, module, name, own)
                setattr(module, name, _drawing(own, name, numbers))
        if "__bool__" not in vars(torch.Tensor):  # else this is a trace inside a trace
            stack.callback(delattr, torch.Tensor, "__bool__")
            setattr(torch.Tensor, "__bool__", _truth)  # noqa: B010  # a slot of a base class, says mypy
        yield


def _truth(tensor: torch.Tensor) -> bool:
    mode = get_proxy_mode()
    known = None if mode is None else _known(tensor, mode.tracer)
    return torch._C.TensorBase.__bool__(tensor) if known is None else known


def _known(tensor: torch.Tensor, tracer: Any) -> bool | None:
    """The answer, if the tensor is a comparison of ``torch.rand`` with a number, and it is certain."""
    slot = get_proxy_slot(tensor, tracer, None)
    node = None if slot is None else slot.proxy.node
    if node is None or node.target not in _ASKED or getattr(node.args[0], "target", None) is not _aten.rand.default:
        return None
    return _answer(_ASKED[node.target], 0.0, node.args[1])


def _answer(question: str, least: float, bound: Any) -> bool | None:
    """Whether a number that is ``least`` or more is ``<``, ``<=``, ``>`` or ``>=`` the bound; None if it may be."""
    if not isinstance(bound, int | float):
        return None
    is_below = bound <= least if question in ("<", ">=") else bound < least
    return question in (">", ">=") if is_below else None


def _drawing(own: Callable[..., Any], name: str, numbers: set[int]) -> Callable[..., Any]:
    @functools.wraps(own)
    def draw(*args: Any, **kwargs: Any) -> Any:
        is_pair = name == "uniform" and len(args) == 2 and all(isinstance(each, int | float) for each in args)
        if get_proxy_mode() is None or kwargs or not (is_pair or (not args and name != "uniform")):
            return own(*args, **kwargs)
        call_recorded(_drawn_again(own, name, args), numbers)
        return RandomNumber(name, float(min(args, default=0.0)))

    return draw


def _drawn_again(own: Callable[..., Any], name: str, args: tuple[Any, ...]) -> OpaqueCall:
    def draw(*args: Any) -> None:
        own(*args)

    return OpaqueCall(
        label=f"{name}()", function=draw, module=None, weight_names=(), arguments=flat((args, {}))[0],
        results=flat(None)[0], forms=(), written=frozenset(), aliased=frozenset(), flags=(), kind=f"{name}{args}",
    )  # fmt: skip


class RandomNumber:
    """Stands for a number while a model is traced: all that is known is the least value that it can have."""

    def __init__(self, name: str, least: float) -> None:
        self._name, self._least = name, least

    def __lt__(self, bound: Any) -> bool:
        return self._compared("<", bound)

    def __le__(self, bound: Any) -> bool:
        return self._compared("<=", bound)

    def __gt__(self, bound: Any) -> bool:
        return self._compared(">", bound)

    def __ge__(self, bound: Any) -> bool:
        return self._compared(">=", bound)

    def _compared(self, question: str, bound: Any) -> bool:
        known = _answer(question, self._least, bound)
        return self._refuse() if known is None else known

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise CannotTraceError(f"{self._name}() draws another number at every call, and a trace would fix it")


for _use in _OTHER_USES:
    setattr(RandomNumber, _use if _use.startswith("__") else f"__{_use}__", RandomNumber._refuse)
