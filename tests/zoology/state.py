"""Put back what a run leaves in a model: buffers, and the plain attributes that forward changes."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["left_as_it_was"]

_PLAIN = (int, float, complex, bool, str, list, dict, set, tuple, type(None))


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes that it had, the same objects with the same contents."""
    undo = [_undo(module) for module in model.modules()]
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for each in undo:
            each()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _undo(module: nn.Module) -> Callable[[], None]:
    registers = {name: dict(getattr(module, name)) for name in ("_parameters", "_buffers", "_modules")}
    attributes = {name: value for name, value in vars(module).items() if name not in registers}
    contents = [_restorer(value) for name, value in attributes.items() if not name.startswith("_")]

    def undo() -> None:
        for name in [name for name in vars(module) if name not in registers and name not in attributes]:
            del vars(module)[name]
        vars(module).update(attributes)
        for name, register in registers.items():
            getattr(module, name).clear()
            getattr(module, name).update(register)
        for restore in contents:
            restore()

    return undo


def _restorer(value: Any) -> Callable[[], None]:
    """Puts the contents of one attribute back."""
    if isinstance(value, torch.Tensor):
        before = value.detach().clone()
        return lambda: _copy(value, before)
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: _ignore(value.set_state(state))
    if isinstance(value, random.Random):
        dice = value.getstate()
        return lambda: value.setstate(dice)
    if isinstance(value, np.random.Generator):
        bits = copy.deepcopy(value.bit_generator.state)
        return lambda: setattr(value.bit_generator, "state", bits)
    if isinstance(value, list | dict | set) and all(isinstance(each, (*_PLAIN, torch.Tensor)) for each in value):
        contents = value.copy()
        return lambda: _refill(value, contents)
    return lambda: None


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


def _refill(target: Any, contents: Any) -> None:
    target.clear()
    (target.extend if isinstance(target, list) else target.update)(contents)


def _ignore(_: Any) -> None:
    """For a function that returns what nobody needs."""
